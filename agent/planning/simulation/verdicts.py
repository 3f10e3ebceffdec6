"""Is B better by D? Yes, no, or nothing can be said yet: the shares of simulated experiments.

Both answers are certified by one experiment, which stops at the first of them.

- Yes: the status is decided for B, because the lower ends of its leads over all others are above 0
  at the level of a decision.
- No: B does not lead by D, because the upper end of its lead over some other model, as it is shown
  among all contrasts, is below D.

Yes is wrong only where B is not best, no only where it leads by D or more, so in any world at most
one of the two can be wrong, and its probability is at most delta however often one looks.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import numpy as np

from equipoise.agent.inference import levels
from equipoise.agent.planning.simulation.boundary import Boundary
from equipoise.agent.planning.simulation.forward import Design, advance
from equipoise.agent.planning.simulation.paths import PathState
from equipoise.store.batches import Flags, Floats, Ints


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What was said by each of L looks at N experiments.

    yes, no: (L,) shares of the experiments that ended so by then; the others cannot say.
    half_width: median certified half-width of the candidate's lead over the best of the others at
    the look asked for, on the [0, 1] scale.
    """

    yes: Floats
    no: Floats
    half_width: float


def verdicts(
    design: Design,
    candidate: int,
    difference: float,
    trail: Rows[float],
    width_at: int,
    rng: np.random.Generator,
) -> Verdicts:
    """The answers of N experiments about one model.

    candidate: its position; difference: D on the [0, 1] scale, of all requests; trail: (L,)
    requests at the looks, ascending; width_at: the look whose half-width is wanted.
    """
    reading = _Reading(design, candidate, difference)
    paths = len(design.values)
    state = PathState.empty(paths, design.models, len(reading.caps))
    yes, no = np.zeros(paths, dtype=np.bool_), np.zeros(paths, dtype=np.bool_)
    shares: tuple[list[float], list[float]] = [], []
    width, before = 1.0, 0.0
    for number, now in enumerate(trail):
        advance(design, state, np.full(paths, now - before), reading.caps, rng)
        before = now
        going = np.flatnonzero(~(yes | no))
        better, not_by_as_much = reading.take(state, going)
        # Where a look certifies both, B is better by less than D: no is what was asked.
        no[going] = not_by_as_much
        yes[going] = better & ~not_by_as_much
        shares[0].append(float(yes.mean()))
        shares[1].append(float(no.mean()))
        if number == width_at:
            width = reading.half_width(state)
    return Verdicts(np.array(shares[0]), np.array(shares[1]), width)


class _Reading:
    """What the certified sums of N experiments say about one model."""

    def __init__(self, design: Design, candidate: int, difference: float) -> None:
        self.caps = design.caps()
        self._candidate, self._difference = candidate, difference
        self._others: Ints = np.delete(np.arange(design.models), candidate)
        pairs = levels.pair_level(design.delta, design.candidates)
        self._decision = design.boundary(design.decision_levels, pairs, self.caps)
        self._shown = design.boundary(pairs, pairs, self.caps)

    def take(self, state: PathState, going: Ints) -> tuple[Flags, Flags]:
        """(n,) twice, of n paths: where the candidate is certified better than all others, and
        where it is certified not to lead one of them by the difference."""
        self._decision.update(state)
        self._shown.update(state)
        own = np.full((1, 1), self._candidate)
        others = self._others[None, :]
        above = _beyond(self._decision, state, going, own, others, np.zeros(1), every=True)
        short = np.full(1, -self._difference)
        below = _beyond(self._shown, state, going, others, own, short, every=False)
        better: Flags = np.all(above, axis=1)
        not_by_as_much: Flags = np.any(below, axis=1)
        return better, not_by_as_much

    def half_width(self, state: PathState) -> float:
        """The median of the certified half-widths against the best of the others."""
        paths = np.arange(len(state.rows))
        centre = self._shown.centre(state)[:, self._others]
        best = self._others[centre.argmax(axis=1)]
        own = np.full(len(paths), self._candidate)
        low = self._shown.lower(state, paths, own, best)
        high = self._shown.lower(state, paths, best, own)
        return float(np.median(-(low + high) / 2.0))


def _beyond(
    boundary: Boundary,
    state: PathState,
    paths: Ints,
    a: Ints,
    b: Ints,
    above: Floats,
    *,
    every: bool,
) -> Flags:
    """(n, M) `beyond` of paths (n,), asked only where it may be. every: whether a path counts only
    where all of its pairs are beyond."""
    result: Flags = boundary.hopeful(state, paths[:, None], a, b, above)
    asked = result & result.all(axis=1, keepdims=True) if every else result
    row, column = np.nonzero(asked)
    if len(row):
        left, right = (np.broadcast_to(each, result.shape)[row, column] for each in (a, b))
        result[row, column] = boundary.beyond(state, paths[row], left, right, above)
    return result
