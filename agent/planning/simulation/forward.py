"""The frozen rule simulated forward until a goal is reached; closed forms say where to look.

Looks are geometric in requests, dense where the closed form expects the end; a path ends somewhere
between two looks, log-uniformly. Between looks the rule stays frozen. The real agent freezes
oftener, so early shares of an adaptive policy are a little staler here than there.

The closed forms are Gaussian algebra for a contrast of two models under fixed shares:
`anytime_rows` replaces the quantile of a fixed-n test by what a mixture needs, `fewest_rewards` is
Garivier & Kaufmann's lower bound, which no policy at a sound level can beat on average.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from equipoise.agent.inference import levels
from equipoise.agent.inference.certificate import Sequence
from equipoise.agent.inference.levels import EraPrior
from equipoise.agent.planning.simulation.boundary import Boundary, boundary, needed_caps
from equipoise.agent.planning.simulation.paths import ASSIGNMENTS, Draws, PathState
from equipoise.policies.assignments.track_and_stop import leaders, optimal_weights
from equipoise.store.batches import Flags, Floats, Ints

MIXTURE = math.log(18.0)
"""Evidence that a mixture over a grid of 18 pays on top of log(1 / alpha)."""


def contrast_variance(
    variances: Floats, chance: Floats, a: int, b: int, unexplained: float = 1.0
) -> float:
    """Variance per request of the score contrast of a and b, drawn with chance (K,) each."""
    return float(unexplained * (variances[a] / chance[a] + variances[b] / chance[b]))


def anytime_rows(variance: float, effect: float, alpha: float, bound: float) -> float:
    """Requests after which a mixture at level alpha typically certifies `effect` > 0.

    Solves t effect = sqrt(2 t variance L) + bound L / 3 with L = log(1 / alpha) + MIXTURE: the
    boundary of sums that are bounded below by -bound (Bernstein's form).
    """
    evidence = math.log(1.0 / alpha) + MIXTURE
    linear, root = bound * evidence / 3.0, math.sqrt(2.0 * variance * evidence)
    return ((root + math.sqrt(root * root + 4.0 * effect * linear)) / (2.0 * effect)) ** 2


def fewest_rewards(values: Floats, variances: Floats, epsilon: float, delta: float) -> float:
    """Garivier & Kaufmann's lower bound on the expected rewards of any delta-correct rule.

    values, variances: (K,), larger is better, Gaussian rewards. kl(delta, 1 - delta) / c with
    c the best min over i of gap_i^2 / (2 (v_L / w_L + v_i / w_i)). inf where two models tie and
    epsilon is 0.
    """
    top = leaders(values)
    if top.sum() > 1 and epsilon == 0.0:
        return math.inf
    weights = optimal_weights(values, variances, epsilon)
    leader = int(np.argmax(values))
    others = np.arange(len(values)) != leader
    gaps = values[leader] - values[others] + epsilon
    noise = variances / np.maximum(weights, 1e-300)
    with np.errstate(divide="ignore", over="ignore"):
        rate = float((gaps**2 / (2.0 * (noise[leader] + noise[others]))).min())
    information = (1.0 - 2.0 * delta) * math.log((1.0 - delta) / delta)
    return information / rate


EARLY_LOOKS, LATE_LOOKS = 8, 22
FIRST_SHARE, DENSE_SHARE, LAST_SHARE = 0.01, 0.12, 6.0
"""Looks run from the first to the last share of the expected end, dense from the middle one on."""

MOST_REQUESTS = 1e15
"""What the counters of a simulated step still hold exactly."""

Test: TypeAlias = Callable[[PathState, Ints, Ints, Ints, Floats], Flags]

_WORTH_DROPPING = 0.7
"""Finished paths are dropped when no more than this share is left."""


@dataclass(frozen=True, slots=True)
class Design:
    """N experiments of one policy read by one sequence, all on the [0, 1] scale, larger better.

    values: (N, K) true ones, rewards that never come and count as the worst case as 0; variances:
    (N, K) of a reward that comes; explained: (N,) share of them that the frozen prediction
    explains; rate, floor: (N,). binary: whether rewards are 0 or 1. costs: (K,) USD per request.
    lost: (N, K), or (K,) for all of them, share of requests whose reward never comes and counts as
    the worst case. candidates: A, models and today's routing and declared policies. era_caps: of
    the era that is gone on with, None for those that a new one takes. prior: what is thought of the
    era, None for equal weights and levels; planned: (N,) its requests at the rate of each path.
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
    lost: Floats
    candidates: int
    delta: float = 0.05
    epsilon: float = 0.0
    tuned_rows: float = 10_000.0
    era_caps: tuple[float, ...] | None = None
    prior: EraPrior | None = None
    planned: Floats | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "lost", np.broadcast_to(self.lost, self.values.shape))

    def caps(self) -> Floats:
        """(C, N) caps whose sums are kept."""
        return needed_caps(self.sequence, self.models, self.rate, self.era_caps)

    @property
    def models(self) -> int:
        return int(self.values.shape[1])

    @property
    def decision_levels(self) -> Floats | float:
        """One-sided level of each comparison in a decision: (K, K), or one for all."""
        if self.prior is None or self.sequence is Sequence.PER_MODEL:
            return levels.decision_level(self.delta, self.models)
        active = np.ones(self.models, dtype=bool)
        return levels.decision_levels(self.delta, active, self.prior)

    def boundary(self, alpha: Floats | float, pairs: float, caps: Floats) -> Boundary:
        """The boundary of these experiments at a level; pairs: that of all pairs at once."""
        variance = 0.25 if self.prior is None else self.prior.variance
        return boundary(self.sequence, alpha, pairs, self.tuned_rows, caps, self.planned, variance)

    def take(self, paths: Ints) -> Design:
        """These experiments only."""
        names = ("values", "variances", "explained", "rate", "floor", "lost")
        planned = None if self.planned is None else self.planned[paths]
        parts = {name: getattr(self, name)[paths] for name in names}
        return replace(self, planned=planned, **parts)


@dataclass(frozen=True, slots=True)
class Ends:
    """Where N paths ended, all (N,) but counts (N, K); inf requests where one did not.

    requests: from the start of the plan; counts: randomized requests per model by then;
    model: what was decided or leads; last_look: requests then; trail: (L, N) requests of
    the looks, right: (L, N) whether the leading model was then within `regret` of the best, and
    spent: (L, N, K) randomized requests by then; state: the sums of the paths that were simulated
    to the end. Paths that ended are dropped after a while: their `spent` and `right` stand still.
    """

    requests: Floats
    counts: Floats
    model: Ints
    last_look: Floats
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
    starts = _case_starts(design)
    for row, last in zip(starts, [*starts[1:], len(result)], strict=True):
        values = design.values[row]
        order = np.argsort(-values)
        a, b = int(order[0]), int(order[1])
        effect = values[a] - values[b] + design.epsilon if width is None else width
        # The upper end of the runner-up, or either end, counts what is lost as the best.
        effect -= design.lost[row, b]
        chance = np.full(design.models, design.rate[row] / design.models)
        unexplained = 1.0 - float(design.explained[row])
        noise = contrast_variance(design.variances[row], chance, a, b, unexplained)
        bound = 2.0 + design.models / float(design.rate[row])
        result[row:last] = anytime_rows(noise, max(float(effect), 1e-6), alpha, bound)
    return result


def _case_starts(design: Design) -> list[int]:
    """Rows that differ from the one before: the paths of one case do not."""
    columns = (design.values, design.variances, design.explained, design.rate)
    facts = np.column_stack([column.reshape(len(design.values), -1) for column in columns])
    return [0, *(np.flatnonzero((facts[1:] != facts[:-1]).any(axis=1)) + 1).tolist()]


def looks(end: Floats) -> Floats:
    """(L, N) requests at which paths are looked at. Beyond MOST_REQUESTS nobody looks."""
    early = np.geomspace(FIRST_SHARE, DENSE_SHARE, EARLY_LOOKS, endpoint=False)
    late = np.geomspace(DENSE_SHARE, LAST_SHARE, LATE_LOOKS)
    result: Floats = np.round(np.concatenate([early, late])[:, None] * end[None, :])
    return np.maximum.accumulate(np.clip(result, 1.0, MOST_REQUESTS), axis=0)


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
    goal = _Goal(design, width)
    return _simulate(design, [goal], rng, width, regret, start, trail, stop)[0]


def simulate_readings(
    design: Design,
    sequences: Rows[Sequence],
    wanted: Flags,
    rng: np.random.Generator,
    start: PathState | None = None,
) -> list[Ends]:
    """The same N paths until each of several sequences decides, in their order.

    wanted: (S, N) of which paths a sequence's decision is wanted; the others end at 0 requests.
    start: sums so far with the caps of `all_caps`, changed in place.
    """
    goals = [
        _Goal(replace(design, sequence=each), None, row)
        for each, row in zip(sequences, wanted, strict=True)
    ]
    return _simulate(design, goals, rng, None, np.inf, start, None, True)


def all_caps(design: Design, sequences: Rows[Sequence]) -> Floats:
    """(C, N) caps whose sums any of these sequences reads; each reads the first of them."""
    caps = [replace(design, sequence=each).caps() for each in sequences]
    return max(caps, key=len)


def _simulate(
    design: Design,
    goals: list[_Goal],
    rng: np.random.Generator,
    width: float | None,
    regret: float,
    start: PathState | None,
    trail: Floats | None,
    stop: bool,
) -> list[Ends]:
    run = _Run(design, goals, start)
    if trail is None:
        trail = looks(expected_end(design, width))
    paths, best = len(design.values), design.values.max(axis=1)
    right = np.zeros(trail.shape, dtype=bool)
    spent = np.zeros((*trail.shape, design.models))
    steps, before = 0, np.zeros(paths)
    for steps, now in enumerate(trail, start=1):
        run.advance(now - before, rng)
        going = run.paths
        leader = run.state.means().argmax(axis=1)
        right[steps - 1, going] = best[going] - design.values[going, leader] <= regret + 1e-12
        spent[steps - 1] = spent[steps - 2] if steps > 1 else 0.0
        spent[steps - 1, going] = run.spent()
        place = rng.random(paths)
        middle = now * (np.maximum(before, 1.0) / now) ** place
        for goal in goals:
            goal.update(run.state, going, middle, spent[steps - 1] * (middle / now)[:, None])
        before = now
        if stop:
            left = np.any([np.isinf(goal.requests[going]) for goal in goals], axis=0)
            if not left.any():
                break
            run.keep(left)
    looks_taken = trail[:steps], right[:steps], spent[:steps]
    results = []
    for goal in goals:
        left = np.isinf(goal.requests)
        goal.counts[left] = spent[steps - 1, left]
        ends = goal.requests, goal.counts, goal.model
        results.append(Ends(*ends, before, *looks_taken, run.state))
    return results


class _Run:
    """The paths that are still simulated. paths: (n,) their positions among all."""

    def __init__(self, design: Design, goals: list[_Goal], start: PathState | None) -> None:
        size = len(design.values)
        self._goals, self.paths = goals, np.arange(size)
        self._caps = max((goal.caps for goal in goals), key=len)
        self.state = start or PathState.empty(size, design.models, len(self._caps))
        self._design = design
        self._begun = self.state.count.copy()

    def advance(self, rows: Floats, rng: np.random.Generator) -> None:
        """rows: (N,) requests of the next step, for all paths."""
        advance(self._design, self.state, rows[self.paths], self._caps, rng)

    def spent(self) -> Floats:
        """(n, K) randomized requests since the start."""
        return self.state.count - self._begun

    def keep(self, going: Flags) -> None:
        """Go on with these of the (n,) paths, once they are so few that it pays."""
        if going.mean() > _WORTH_DROPPING:
            return
        paths = np.flatnonzero(going)
        self.paths, self._begun = self.paths[paths], self._begun[paths]
        self.state = self.state.take(paths)
        self._design = self._design.take(paths)
        self._caps = self._caps[:, paths]
        for goal in self._goals:
            goal.keep(paths)


def advance(
    design: Design, state: PathState, rows: Floats, caps: Floats, rng: np.random.Generator
) -> None:
    shares = ASSIGNMENTS[design.assignment](
        state.seen,
        state.means(),
        state.variances(),
        design.costs,
        design.epsilon,
        design.delta,
    )
    floor = design.floor[:, None]
    pi = shares * (1.0 - design.models * floor) + floor
    chance = design.rate[:, None] * pi
    state.step(draw(design, rows, chance, rng), chance, caps)


def draw(design: Design, rows: Floats, chance: Floats, rng: np.random.Generator) -> Draws:
    """Rewards of a step of rows (N,) requests with chances (N, K)."""
    full = np.concatenate([chance, np.maximum(1.0 - chance.sum(axis=1, keepdims=True), 0.0)], 1)
    full /= full.sum(axis=1, keepdims=True)
    count = rng.multinomial(rows.astype(np.int64), full)[:, :-1].astype(float)
    if design.lost.any():
        return _draw_with_lost(design, rows, count, rng)
    values, noise = design.values, np.sqrt(count * design.variances)
    if design.binary:
        total = rng.binomial(count.astype(np.int64), values).astype(float)
        off = total - count * values
        scatter = total * (1.0 - values) ** 2 + (count - total) * values**2
    else:
        off = noise * rng.standard_normal(count.shape)
        total, scatter = count * values + off, count * design.variances
    unexplained = 1.0 - design.explained
    residual = _unpredicted(design, off, noise, rng)
    return Draws(rows, values, count, total, scatter, unexplained, residual)


def _draw_with_lost(design: Design, rows: Floats, count: Floats, rng: np.random.Generator) -> Draws:
    """As `draw`, of rows `count` (N, K), some of whose rewards are lost."""
    share = design.lost
    lost = rng.binomial(count.astype(np.int64), share).astype(float)
    rewarded, value = count - lost, design.values / (1.0 - share)
    noise = np.sqrt(rewarded * design.variances)
    if design.binary:
        total = rng.binomial(rewarded.astype(np.int64), np.clip(value, 0.0, 1.0)).astype(float)
        scatter = total * (1.0 - value) ** 2 + (rewarded - total) * value**2
        off = total - rewarded * value
    else:
        off = noise * rng.standard_normal(count.shape)
        total, scatter = rewarded * value + off, rewarded * design.variances
    unexplained = 1.0 - design.explained
    fresh = _unpredicted(design, off, noise, rng)

    def ends(as_one: float) -> Draws:
        """The sums where a lost reward counts as 0, or as 1."""
        mean = design.values + as_one * share
        gap = value - mean
        around = scatter + 2.0 * gap * off + rewarded * gap**2 + lost * (as_one - mean) ** 2
        # What is lost is no noise that a prediction could take away.
        steady = rewarded * gap + lost * (as_one - mean)
        residual = None if fresh is None else fresh + steady
        sums = total + as_one * lost
        return Draws(rows, mean, count, sums, around, unexplained, residual, lost)

    return replace(ends(0.0), high=ends(1.0))


def _unpredicted(
    design: Design, off: Floats, noise: Floats, rng: np.random.Generator
) -> Floats | None:
    """(N, K) sums of rewards less their values, `off`, without what the prediction explains.

    noise: (N, K) their standard deviations. None where it explains nothing.
    """
    if not design.explained.any():
        return None
    share = design.explained[:, None]
    fresh = noise * rng.standard_normal(off.shape)
    # Variance of what the prediction leaves: (1 - share)^2 + share (1 - share) = 1 - share.
    result: Floats = (1.0 - share) * off + np.sqrt(share * (1.0 - share)) * fresh
    return result


class _Goal:
    """What one sequence waits for, and where the paths reached it.

    caps: (C, n) of the paths still simulated. requests, model: (N,) and counts: (N, K), as in Ends.
    """

    def __init__(self, design: Design, width: float | None, wanted: Flags | None = None) -> None:
        self.caps = design.caps()
        self._width = width
        self._above = np.full(1, -design.epsilon)
        pairs = levels.pair_level(design.delta, design.candidates)
        level = design.decision_levels if width is None else pairs
        self._boundary = design.boundary(level, pairs, self.caps)
        size = len(design.values)
        self.requests = np.full(size, np.inf)
        if wanted is not None:
            self.requests[~wanted] = 0.0
        self.model, self.counts = np.zeros(size, dtype=int), np.zeros((size, design.models))

    def keep(self, paths: Ints) -> None:
        """Go on with these of the paths."""
        self.caps = self.caps[:, paths]
        self._boundary.keep(paths)

    def update(self, state: PathState, going: Ints, requests: Floats, counts: Floats) -> None:
        """Note which paths are there. going: (n,) paths of the state; requests: (N,) and counts:
        (N, K) where one that is there by now ends."""
        open_ = np.flatnonzero(np.isinf(self.requests[going]))
        self._boundary.update(state)
        if not len(open_):
            return
        reached, leaders = self._reached(state, open_)
        ended = going[open_[reached]]
        self.requests[ended], self.model[ended] = requests[ended], leaders[reached]
        self.counts[ended] = counts[ended]

    def _reached(self, state: PathState, paths: Ints) -> tuple[Flags, Ints]:
        """(n,) which of these paths have reached it, and the model that leads each."""
        centre = self._boundary.centre(state)[paths]
        order = np.argsort(-centre, axis=1, kind="stable")
        leader = order[:, 0]
        if self._width is not None:
            half = self._half_width(state, paths, leader, order[:, 1])
            return half <= self._width, leader
        best, rivals = leader[:, None], order[:, 1:]
        there = np.ones(len(paths), dtype=np.bool_)
        # What is cheap, and the closest rival, come first: few paths need more than that.
        tests: tuple[tuple[Test, int], ...] = (
            (self._boundary.hopeful, 1),
            (self._boundary.hopeful, rivals.shape[1]),
            (self._boundary.beyond, 1),
            (self._boundary.beyond, rivals.shape[1]),
        )
        for test, count in tests:
            left = np.flatnonzero(there)
            if len(left):
                ask = paths[left, None], best[left], rivals[left, :count]
                there[left] = test(state, *ask, self._above).all(axis=1)
        return there, leader

    def _half_width(self, state: PathState, paths: Ints, a: Ints, b: Ints) -> Floats:
        low = self._boundary.lower(state, paths, a, b)
        high = self._boundary.lower(state, paths, b, a)
        result: Floats = -(low + high) / 2.0
        return result
