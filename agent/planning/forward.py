"""The frozen rule simulated forward until a goal is reached: stopping times, counts, decisions.

Looks are geometric in requests, dense where the closed form expects the end; a path ends somewhere
between two looks, log-uniformly. Between looks the rule stays frozen. The real agent freezes
oftener, so early shares of an adaptive policy are a little staler here than there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from equipoise.agent.inference import levels
from equipoise.agent.inference.choice import Sequence
from equipoise.agent.planning.boundary import Boundary, boundary, needed_caps
from equipoise.agent.planning.closed import anytime_rows, contrast_variance
from equipoise.agent.planning.shares import ASSIGNMENTS
from equipoise.agent.planning.state import Draws, PathState
from equipoise.store.batches import Flags, Floats, Ints

EARLY_LOOKS, LATE_LOOKS = 10, 26
FIRST_SHARE, DENSE_SHARE, LAST_SHARE = 0.01, 0.12, 6.0
"""Looks run from the first to the last share of the expected end, dense from the middle one on."""

_WORTH_DROPPING = 0.7
"""Finished paths are dropped when no more than this share is left."""


@dataclass(frozen=True, slots=True)
class Design:
    """N experiments of one policy read by one sequence, all on the [0, 1] scale, larger better.

    values: (N, K) true ones; variances: (N, K) of a reward; explained: (N,) share of them that the
    frozen prediction explains; rate, floor: (N,). binary: whether rewards are 0 or 1. costs: (K,)
    USD per request. candidates: A, models and today's routing and declared policies. era_caps: of
    the era that is gone on with, None for those that a new one takes.
    """

    assignment: str
    sequence: Sequence
    values: Floats
    variances: Floats
    explained: Floats
    rate: Floats
    floor: Floats
    binary: bool
    costs: Floats
    candidates: int
    delta: float = 0.05
    epsilon: float = 0.0
    tuned_rows: float = 10_000.0
    era_caps: tuple[float, ...] | None = None

    def caps(self) -> Floats:
        """(C, N) caps whose sums are kept."""
        return needed_caps(self.sequence, self.models, self.rate, self.era_caps)

    @property
    def models(self) -> int:
        return int(self.values.shape[1])

    def take(self, paths: Ints) -> Design:
        """These experiments only."""
        names = ("values", "variances", "explained", "rate", "floor")
        return replace(self, **{name: getattr(self, name)[paths] for name in names})


@dataclass(frozen=True, slots=True)
class Ends:
    """Where N paths ended, all (N,) but counts (N, K); inf requests where one did not.

    requests: from the start of the plan; counts: randomized requests per model by then;
    model: what was decided or leads; looked: requests of the last look; trail: (L, N) requests of
    the looks, right: (L, N) whether the leading model was then within `regret` of the best, and
    spent: (L, N, K) randomized requests by then; state: the sums of the paths that were simulated
    to the end. Paths that ended are dropped after a while: their `spent` and `right` stand still.
    """

    requests: Floats
    counts: Floats
    model: Ints
    looked: Floats
    trail: Floats
    right: Flags
    spent: Floats
    state: PathState


def expected_end(design: Design, width: float | None = None) -> Floats:
    """(N,) requests by closed form under uniform shares. width: of a half-width goal."""
    alpha = levels.decision_level(design.delta, design.models)
    if width is not None:
        alpha = levels.pair_level(design.delta, design.candidates)
    result = np.empty(len(design.values))
    for row, values in enumerate(design.values):
        if row and _alike(design, row):
            result[row] = result[row - 1]
            continue
        order = np.argsort(-values)
        effect = values[order[0]] - values[order[1]] + design.epsilon if width is None else width
        chance = np.full(design.models, design.rate[row] / design.models)
        left = 1.0 - float(design.explained[row])
        a, b = int(order[0]), int(order[1])
        noise = contrast_variance(design.variances[row], chance, a, b, left)
        bound = 2.0 + design.models / float(design.rate[row])
        result[row] = anytime_rows(noise, max(float(effect), 1e-6), alpha, bound)
    return result


def _alike(design: Design, row: int) -> bool:
    """Whether a row differs in nothing from the one before: paths of one case do not."""
    columns = (design.values, design.variances, design.explained, design.rate)
    return all(np.array_equal(column[row], column[row - 1]) for column in columns)


def looks(end: Floats) -> Floats:
    """(L, N) requests at which paths are looked at."""
    early = np.geomspace(FIRST_SHARE, DENSE_SHARE, EARLY_LOOKS, endpoint=False)
    late = np.geomspace(DENSE_SHARE, LAST_SHARE, LATE_LOOKS)
    result: Floats = np.round(np.concatenate([early, late])[:, None] * end[None, :])
    return np.maximum.accumulate(np.maximum(result, 1.0), axis=0)


def simulate(
    design: Design,
    rng: np.random.Generator,
    *,
    width: float | None = None,
    regret: float = np.inf,
    start: PathState | None = None,
    trail: Floats | None = None,
    stop: bool = True,
) -> Ends:
    """Run N paths until a decision, or until the leader's contrast with the runner-up has the
    half-width `width` at the level of all pairs.

    start: sums so far, changed in place. trail: (L, N) requests of the looks, from the closed form
    if None.
    stop: whether to end when every path has; else every look is taken.
    """
    run = _Run(design, _Goal(design, width), start)
    if trail is None:
        trail = looks(expected_end(design, width))
    paths, best = len(design.values), design.values.max(axis=1)
    requests, model = np.full(paths, np.inf), np.zeros(paths, dtype=int)
    counts = np.zeros((paths, design.models))
    right = np.zeros(trail.shape, dtype=bool)
    spent = np.zeros((*trail.shape, design.models))
    taken, before = 0, np.zeros(paths)
    for taken, now in enumerate(trail, start=1):
        run.advance(now - before, rng)
        going = run.paths
        leader = run.state.means().argmax(axis=1)
        right[taken - 1, going] = best[going] - design.values[going, leader] <= regret + 1e-12
        spent[taken - 1] = spent[taken - 2] if taken > 1 else 0.0
        spent[taken - 1, going] = run.spent()
        open_ = np.flatnonzero(np.isinf(requests[going]))
        reached, found = run.goal.reached(run.state, open_)
        ended = going[open_[reached]]
        place = rng.random(paths)[ended]
        middle = now[ended] * (np.maximum(before[ended], 1.0) / now[ended]) ** place
        requests[ended], model[ended] = middle, found[reached]
        counts[ended] = spent[taken - 1, ended] * (middle / now[ended])[:, None]
        before = now
        if stop:
            left = np.isinf(requests[going])
            if not left.any():
                break
            run.keep(left)
    left = np.isinf(requests)
    counts[left] = spent[taken - 1, left]
    looked = trail[:taken], right[:taken], spent[:taken]
    return Ends(requests, counts, model, before, *looked, run.state)


class _Run:
    """The paths that are still simulated. paths: (n,) their positions among all."""

    def __init__(self, design: Design, goal: _Goal, start: PathState | None) -> None:
        size = len(design.values)
        self.goal, self.paths = goal, np.arange(size)
        self.state = start or PathState.empty(size, design.models, len(goal.caps))
        self._design = design
        self._begun = self.state.count.copy()

    def advance(self, rows: Floats, rng: np.random.Generator) -> None:
        """rows: (N,) requests of the next step, for all paths."""
        _advance(self._design, self.state, rows[self.paths], self.goal.caps, rng)

    def spent(self) -> Floats:
        """(n, K) randomized requests since the start."""
        return self.state.count - self._begun

    def keep(self, going: Flags) -> None:
        """Go on with these of the (n,) paths, once they are so few that it pays."""
        if going.mean() > _WORTH_DROPPING:
            return
        kept = np.flatnonzero(going)
        self.paths, self._begun = self.paths[kept], self._begun[kept]
        self.state = self.state.take(kept)
        self._design = self._design.take(kept)
        self.goal.keep(kept)


def _advance(
    design: Design, state: PathState, rows: Floats, caps: Floats, rng: np.random.Generator
) -> None:
    shares = ASSIGNMENTS[design.assignment](
        state.count,
        state.means(),
        state.variances(),
        design.costs,
        design.epsilon,
        design.delta,
    )
    floor = design.floor[:, None]
    pi = shares * (1.0 - design.models * floor) + floor
    chance = design.rate[:, None] * pi
    state.step(draw(design, rows, chance, rng), chance, design.values, caps)


def draw(design: Design, rows: Floats, chance: Floats, rng: np.random.Generator) -> Draws:
    """Rewards of a step of rows (N,) requests with chances (N, K)."""
    full = np.concatenate([chance, np.maximum(1.0 - chance.sum(axis=1, keepdims=True), 0.0)], 1)
    full /= full.sum(axis=1, keepdims=True)
    count = rng.multinomial(rows.astype(np.int64), full)[:, :-1].astype(float)
    values, noise = design.values, np.sqrt(count * design.variances)
    if design.binary:
        total = rng.binomial(count.astype(np.int64), values).astype(float)
        off = total - count * values
        scatter = total * (1.0 - values) ** 2 + (count - total) * values**2
    else:
        off = noise * rng.standard_normal(count.shape)
        total, scatter = count * values + off, count * design.variances
    share = design.explained[:, None]
    fresh = noise * rng.standard_normal(count.shape)
    # Variance of what the prediction leaves: (1 - share)^2 + share (1 - share) = 1 - share.
    residual = (1.0 - share) * off + np.sqrt(share * (1.0 - share)) * fresh
    return Draws(rows, count, total, scatter, residual, 1.0 - design.explained)


class _Goal:
    """Whether paths have reached what the experiment is for."""

    def __init__(self, design: Design, width: float | None) -> None:
        self.caps = design.caps()
        self._width, self._models = width, design.models
        self._above = np.full(1, -design.epsilon)
        pairs = levels.pair_level(design.delta, design.candidates)
        level = levels.decision_level(design.delta, design.models) if width is None else pairs
        self._boundary: Boundary = boundary(
            design.sequence, level, pairs, design.tuned_rows, self.caps
        )

    def keep(self, paths: Ints) -> None:
        """Go on with these paths."""
        self.caps = self.caps[:, paths]
        self._boundary.keep(paths)

    def reached(self, state: PathState, paths: Ints) -> tuple[Flags, Ints]:
        """(n,) which of these paths have reached it, and the model that leads each."""
        self._boundary.look(state)
        centre = self._boundary.centre(state)[paths]
        order = np.argsort(-centre, axis=1, kind="stable")
        leader = order[:, 0]
        if self._width is not None:
            half = self._half_width(state, paths, leader, order[:, 1])
            return half <= self._width, leader
        index, best, rivals = paths[:, None], leader[:, None], order[:, 1:]
        each = self._boundary.hopeful(state, index, best, rivals, self._above)
        hope: Flags = np.asarray(each.all(axis=1), dtype=np.bool_)
        # The closest rival first: where it is not beaten the others need not be asked.
        for column in range(rivals.shape[1]):
            left = np.flatnonzero(hope)
            if not len(left):
                break
            lower = self._boundary.lower(state, paths[left], leader[left], rivals[left, column])
            hope[left] = lower > self._above[0]
        return hope, leader

    def _half_width(self, state: PathState, paths: Ints, a: Ints, b: Ints) -> Floats:
        low = self._boundary.lower(state, paths, a, b)
        high = self._boundary.lower(state, paths, b, a)
        result: Floats = -(low + high) / 2.0
        return result
