"""A simulator that may be wrong: drifted, truncated and missing replays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from equipoise.replay.worlds.features import generator, standardized
from equipoise.replay.worlds.options import WorldOptions
from equipoise.store.batches import Flags, Floats

_KEPT_WHEN_CUT = 0.5
_LOW_END = 0.005


def replayed_outputs(outputs: Floats, models: Sequence[str], options: WorldOptions) -> Floats:
    """(C, K, q) outputs as the simulator has them, from those of the live models."""
    return truncated(drifted(outputs, models, options), outputs, options.simulator_truncation)


def drifted(outputs: Floats, models: Sequence[str], options: WorldOptions) -> Floats:
    """Each model's outputs shifted by `simulator_drift` deviations, root mean square over q."""
    if options.simulator_drift == 0:
        return outputs
    q = outputs.shape[2]
    directions = np.array(
        [generator(options.world_seed, "drift", name).standard_normal(q) for name in models]
    )
    directions /= np.sqrt((directions**2).mean(axis=1, keepdims=True))
    shifted: Floats = outputs + options.simulator_drift * directions * outputs.std(axis=(0, 1))
    return shifted


def truncated(replayed: Floats, live: Floats, share: float) -> Floats:
    """The given share of rows cut short: the longest by their mean standardized feature.

    A cut row's features move half way to the low end (0.5% quantile) of the live table; a
    feature that is already below it stays. Which models suffer thus depends on how long they
    are, which is what makes truncation a bias and not only noise.
    """
    size = standardized(replayed).mean(axis=2)
    count = round(share * size.size)
    if count == 0:
        return replayed
    cut = np.zeros(size.size, dtype=bool)
    cut[np.argsort(-size, axis=None, kind="stable")[:count]] = True
    low = np.quantile(live, _LOW_END, axis=(0, 1))
    shorter = low + _KEPT_WHEN_CUT * (replayed - low)
    moves = cut.reshape(size.shape)[:, :, None] & (replayed > low)
    return np.where(moves, shorter, replayed)


def present_rows(worth: Floats, models: Sequence[str], options: WorldOptions) -> Flags:
    """(C, K) which replays exist; worth (C, K) decides who goes first under a tilt.

    A row is absent with probability (1 - tilt) · share + tilt · line, where the line has the same
    mean over the rows and falls linearly with the rank of worth, equal worth having equal ranks.
    """
    share, tilt = options.simulator_missing, options.simulator_missing_tilt
    if share == 0:
        return np.ones(worth.shape, dtype=bool)
    _, position, counts = np.unique(worth, return_inverse=True, return_counts=True)
    rank = ((np.cumsum(counts) - counts / 2) / worth.size)[position].reshape(worth.shape)
    # Beyond a share of one half the line ends above 0, so that it still starts at 1.
    line = 2 * share * (1 - rank) if share <= 0.5 else 1 - 2 * (1 - share) * rank
    absent = (1 - tilt) * share + tilt * line
    uniform = np.stack(
        [generator(options.world_seed, "missing", name).random(len(worth)) for name in models],
        axis=1,
    )
    present: Flags = uniform >= absent
    return present
