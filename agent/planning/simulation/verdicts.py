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
        better, not_by_as_much = reading.take(state)
        # Where a look certifies both, B is better by less than D: no is what was asked.
        ended = yes | no
        no |= ~ended & not_by_as_much
        yes |= ~ended & better & ~not_by_as_much
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

    def take(self, state: PathState) -> tuple[Flags, Flags]:
        """(N,) twice: where the candidate is certified better than all others, and where it is
        certified not to lead one of them by the difference."""
        self._decision.update(state)
        self._shown.update(state)
        paths = np.arange(len(state.rows))[:, None]
        own = np.full((1, 1), self._candidate)
        others = self._others[None, :]
        above = self._decision.beyond(state, paths, own, others, np.zeros(1))
        below = self._shown.beyond(state, paths, others, own, np.full(1, -self._difference))
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
