"""Moments without the groups in which a value far off drowns all others.

Sums of squares hold 16 digits and a least-squares fit follows its largest value: one row of 1e6
among features of 1 to 100 takes the slope of that feature, and with it what the models differ by,
to nothing, and one of 1e12 takes the digits too; answers stay finite and their errors small.
Moments are kept per group of units (of contexts in SIM), so such a row spoils one group of twenty.
The others are left, and whoever reads the estimate is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from equipoise.agent.moments.additive import Additive
from equipoise.agent.moments.scorer import SimulationMoments, kept_for_replays
from equipoise.agent.moments.state import Moments
from equipoise.store.batches import Flags, Floats, Ints

M = TypeVar("M", bound=Additive)

FAR = 100.0
"""Typical spreads by which a value must be off, as far as the spread of its group tells."""
DOMINANT = 20.0
"""Times the scatter of all other groups together that its group must hold."""
REPLAY = 25.0
"""Both are so many times more in SIM, whose mean is what is asked for: leaving out large values
moves it, and as long as they are kept the jackknife over contexts shows what they do."""
MOST = 0.25
"""Share of the groups that may be left out; where more are far off, nothing can be told."""
FEWEST = 5
"""Groups with rows from which one of them can be told to be far off."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """groups: how many of `present` are left out of `source`; feature: position in phi without
    its intercept of the one that is farthest off."""

    source: str
    groups: int
    present: int
    feature: int

    @property
    def too_many(self) -> bool:
        """Whether so many are far off that what is left says nothing."""
        return self.groups > MOST * self.present

    def sentence(self, features: Sequence[str]) -> str:
        """For people. features: (p - 1,) names."""
        name = features[self.feature] if self.feature < len(features) else "a feature"
        verb = "holds" if self.groups == 1 else "hold"
        return (
            f"{self.groups} of {self.present} groups of {self.source} {verb} a value of {name} so "
            f"far off that nothing else counts beside it"
        )


def without_far_groups(moments: Moments) -> tuple[Moments, tuple[LeftOut, ...]]:
    """The moments with groups far off emptied, and what was left out.

    The moments themselves, not a copy, where nothing is. EXP rows of a group leave the sums of
    rewards per model too (`arms`), whose corrections rest on the same features; `ipw`, which looks
    at none, is for the caller to give the whole.
    """
    losses: list[LeftOut] = []
    groups = moments.dimensions.groups
    # Infinite sums are far off like any others.
    with np.errstate(all="ignore"):
        obs, exp, typical = _far_rows(moments, losses)
        exp |= _far_arms(moments, exp, typical, losses)
        contexts, replays = _far_contexts(moments.simulation)
    losses += replays
    if not losses:
        return moments, ()
    sources = np.concatenate([obs, exp, exp])
    assert len(sources) == 3 * groups
    sound = replace(
        moments,
        scorers=_emptied(moments.scorers, sources),
        arms=_emptied(moments.arms, exp),
        former=_emptied(moments.former, exp),
        simulation=_emptied(moments.simulation, contexts),
    )
    return sound, tuple(losses)


def _far_rows(moments: Moments, losses: list[LeftOut]) -> tuple[Flags, Flags, Floats]:
    """Groups of OBS and of EXP that are far off, and the typical squares of EXP."""
    groups, rows = moments.dimensions.groups, moments.scorers

    def both(array: Floats) -> Floats:
        """(G, 2, ...) of OBS and EXP."""
        return array[: 2 * groups].reshape(2, groups, *array.shape[1:]).swapaxes(0, 1)

    weight, count = both(rows.weight.sum(axis=1)), both(rows.count.sum(axis=1))
    # Rewards have a declared range: only features can be far off.
    own = both(np.diagonal(rows.scatter, axis1=-2, axis2=-1)[:, :-1])
    variance = own / np.maximum(weight, 1e-300)[..., None]
    square, typical = _squares(count, both(rows.centre[:, :-1]), variance)
    obs, exp = (
        _far(name, count[:, at], square[:, at], typical[at], 1.0, losses)
        for at, name in enumerate(("logged requests", "randomized requests"))
    )
    return obs, exp, typical[1]


def _far_arms(
    moments: Moments, far_already: Flags, typical: Floats, losses: list[LeftOut]
) -> Flags:
    """Groups in which the features behind rewards without outputs are far off: by their means,
    in units of the spread of EXP rows that have outputs (typical: (p - 1,) its squares)."""
    arms, d = moments.arms, moments.dimensions.context
    weight = arms.live_weight.sum(axis=1)
    count = np.where(weight > 0, arms.count.sum(axis=1), 0.0)
    mean = arms.live_sum.sum(axis=1) / np.maximum(weight, 1e-300)[:, None]
    centre = _median(mean, count > 0)
    square = count[:, None] * (mean - centre) ** 2
    more: list[LeftOut] = []
    far = _far("randomized requests", count, square, typical[:d], 1.0, more) & ~far_already
    if far.any() and not any(each.source == "randomized requests" for each in losses):
        losses += more
    return far


@kept_for_replays
def _far_contexts(simulation: SimulationMoments) -> tuple[Flags, list[LeftOut]]:
    groups, models = simulation.count.shape
    far: Flags = np.zeros(groups, dtype=bool)
    worst: LeftOut | None = None
    own = np.diagonal(simulation.scatter, axis1=-2, axis2=-1)
    variance = own / np.maximum(simulation.count, 1.0)[..., None]
    squares, typical = _squares(simulation.count, simulation.mean, variance)
    for model in range(models):
        more: list[LeftOut] = []
        count = simulation.count[:, model]
        far |= _far("replayed contexts", count, squares[:, model], typical[model], REPLAY, more)
        worst = more[0] if more else worst
    if worst is None:
        return far, []
    present = int((simulation.count.sum(axis=1) > 0).sum())
    return far, [replace(worst, groups=int(far.sum()), present=present)]


def _squares(count: Floats, mean: Floats, variance: Floats) -> tuple[Floats, Floats]:
    """(G, ..., F) mean square of each feature around the median of the groups, and (..., F) its
    typical size among groups where it varies; NaN where it never does. count: (G, ...)."""
    present = count > 0
    square = variance + (mean - _median(mean, present)) ** 2
    varies = present[..., None] & (square > 0) & np.isfinite(square)
    return square, _middle(np.where(varies, square, np.nan), varies.sum(axis=0), np.nan)


def _far(
    name: str,
    count: Floats,
    square: Floats,
    typical: Floats,
    times: float,
    losses: list[LeftOut],
) -> Flags:
    present = int((count > 0).sum())
    if present < FEWEST:
        return np.zeros(len(count), dtype=bool)
    ratio = square / typical
    beyond = (ratio > times * DOMINANT * present) & (ratio * count[:, None] > (times * FAR) ** 2)
    beyond = (beyond | ~np.isfinite(square)) & (count > 0)[:, None]
    far: Flags = np.asarray(beyond.any(axis=1))
    if far.any():
        feature = int(np.argmax(np.where(beyond, ratio, -1.0).max(axis=0)))
        losses.append(LeftOut(name, int(far.sum()), present, feature))
    return far


def _median(mean: Floats, present: Flags) -> Floats:
    """(..., F) median of the groups (G, ...) that have rows; 0 where none has."""
    unknown = (np.isnan(mean) & present[..., None]).any(axis=0)
    rows = np.where(present[..., None], mean, np.nan)
    return np.where(unknown, np.nan, _middle(rows, present.sum(axis=0)[..., None], 0.0))


def _middle(rows: Floats, count: Ints, without: float) -> Floats:
    """(..., F) median of the first `count` (..., F or 1) of sorted rows (G, ..., F), whose others
    are NaN; `without` where there are none."""
    ordered = np.sort(rows, axis=0)
    count = np.broadcast_to(count, ordered.shape[1:])
    both = np.stack([np.maximum(count - 1, 0) // 2, np.minimum(count // 2, len(rows) - 1)])
    low, high = np.take_along_axis(ordered, both, axis=0)
    return np.where(count > 0, (low + high) / 2.0, without)


def _emptied(part: M, far: Flags) -> M:
    """A copy without the rows of some groups."""
    if not far.any():
        return part
    sound = part.copy()
    for array in sound.arrays().values():
        array[far] = 0.0
    return sound
