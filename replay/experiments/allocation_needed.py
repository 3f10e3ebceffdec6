"""Randomized requests until the mean regret stays below a limit, with intervals and bounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from equipoise.replay.averages import TAILS, Floats, resampled_means
from equipoise.replay.experiments.allocation_bound import DELTA, scenario_bounds
from equipoise.replay.experiments.arms import Arm, ArmStreams, settled
from equipoise.replay.experiments.findings import Entry, Table
from equipoise.replay.experiments.streams import Setting

LIMITS = (0.005, 0.01, 0.02)
"""Regrets, reward units."""


def needed(streams: ArmStreams, setting: Setting, label: str, limit: float) -> tuple[float, Floats]:
    """The count, and those of bootstrap resamples of the seeds, the same for every arm (B,)."""
    curves = streams.curves(setting, label, "regret")
    point = settled(curves.mean(axis=0)[None], streams.checkpoints, limit)
    return float(point[0]), settled(resampled_means(curves), streams.checkpoints, limit)


def saving(
    streams: ArmStreams, setting: Setting, ours: Arm, other: Arm, limit: float
) -> tuple[float, float, float]:
    """How many times more the other needs, and its paired 95% interval.

    Who does not get there needs more than the last checkpoint and counts with it, so that the
    ratio is a lower bound where the other never gets there; 0 where only ours never does.
    """
    last = float(streams.checkpoints[-1])
    point, drawn = needed(streams, setting, ours.label, limit)
    others, others_drawn = needed(streams, setting, other.label, limit)

    def ratio(own: Floats, their: Floats) -> Floats:
        both = np.isinf(own) & np.isinf(their)
        found = np.where(np.isinf(own), 0.0, np.minimum(their, last) / np.minimum(own, last))
        return np.where(both, 1.0, found)

    low, high = np.quantile(ratio(drawn, others_drawn), TAILS)
    return float(ratio(np.array(point), np.array(others))), float(low), float(high)


def needed_tables(
    streams: ArmStreams, meta: Mapping[str, Any], ab_test: Arm, ours: Arm
) -> Iterator[Table]:
    """A table per limit: every arm's count, how often ours fits into an A/B test's, the bounds."""
    bounds = {
        setting: scenario_bounds(streams.scenario(setting), meta["models"], LIMITS)
        for setting in streams.settings
    }
    last = int(streams.checkpoints[-1])
    for place, limit in enumerate(LIMITS):
        rows: list[tuple[Entry, ...]] = []
        for setting in streams.settings:
            counts = [
                said_count(*needed(streams, setting, label, limit), last)
                for label in streams.labels
            ]
            times, low, high = saving(streams, setting, ours, ab_test, limit)
            residual, plain = bounds[setting][place]
            saved = f"{times:.1f} [{low:.1f}, {high:.1f}]"
            rows.append((str(setting), *counts, saved, round(residual), round(plain)))
        yield Table(
            f"needed-{limit:g}",
            f"Randomized requests until the mean regret stays at or below {limit:g}",
            "On the grid of checkpoints [95% bootstrap interval over seeds]. Saving: an A/B test's"
            f" count over that of {ours.label}, paired; a lower bound where the A/B test does not"
            f" get there. Bounds: Garivier & Kaufmann's for naming a model within {limit:g} of the"
            f" best with probability {1 - DELTA:g}, with the residual variance and with that of"
            " the reward; another task than a low mean regret, for orientation.",
            ("setting", *streams.labels, "saving", "bound, residual", "bound, reward"),
            tuple(rows),
        )


def said_count(point: float, drawn: Floats, last: int) -> str:
    """A count with its interval in words."""
    low, high = np.quantile(drawn, TAILS, method="closest_observation")
    return f"{_count(point, last)} [{_count(low, last)}, {_count(high, last)}]"


def _count(count: float, last: int) -> str:
    return f"over {last:,}" if np.isinf(count) else f"{count:,.0f}"
