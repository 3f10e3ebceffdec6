"""The tables of a plan: one simulation each, its rows cut into cases; and ways to pay.

`splits` is the cheapest split of money between EXP, replays (SIM) and waiting. What replays teach
is which output to expect at a context, by a regression per model. Breiman and Freedman (1983):
least squares with p columns on n rows leaves s (1 + p / (n - p - 1)) of the variance s that no
number of rows explains. The part of a reward that replays leave unexplained is an upper bound of s
here, so the curve is a pessimistic one (tests/replay/test_planning_benchmarks.py holds it against
replays of a linear world).
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import replace

import msgspec
import numpy as np

from equipoise.agent.inference import levels
from equipoise.agent.inference.certificate import Sequence
from equipoise.agent.planning.problem import Case, Problem
from equipoise.agent.planning.request import PlanRequest
from equipoise.agent.planning.requirement import Requirement, requirement
from equipoise.agent.planning.simulation.forward import (
    Design,
    Ends,
    all_caps,
    expected_end,
    simulate,
    simulate_readings,
)
from equipoise.agent.planning.simulation.paths import PathState
from equipoise.store.batches import Flags, Floats

EFFECTS = (0.5, 0.7, 1.0, 1.4, 2.0)
"""Multiples of the effect that a plan is a function of."""
BUDGET_EFFECTS = (0.35, 0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0)
_BUDGET_LOOKS = 30
SPLITS = 7
NEARLY_ALL = 0.98
"""The most replays tried explain this share of what unlimited ones would."""


def paths_for(models: int, most: int = 200) -> int:
    """Simulated experiments per case: a few hundred, fewer for many models, whose pairs cost."""
    return int(np.clip(720 // models, 40, most))


class Curve(msgspec.Struct, frozen=True):
    """Certainty against spend: chance that the goal is reached, by randomized requests.

    hours, money: medians by then, None where unknown.
    """

    policy: str
    randomized: list[float]
    chance: list[float]
    hours: list[float] | None
    money: list[float] | None


class Bought(msgspec.Struct, frozen=True):
    """What a budget buys under a policy.

    randomized, requests, hours, money, extra, harm: all of it spent, as in a `Requirement`.
    half_width: certified, of the leader against the runner-up, median. smallest_effect: found with
    the wanted power, None if none of the effects tried is. chances: power by effect; right: chance
    that `ipw` then recommends the best model, by effect.
    """

    policy: str
    reading: str
    randomized: float
    requests: float
    hours: float | None
    money: float | None
    extra: float | None
    harm: float
    half_width: float | None
    smallest_effect: float | None
    effects: list[float]
    chances: list[float]
    right: list[float]

    @property
    def bill(self) -> float | None:
        """As `Requirement.bill`."""
        return self.money if self.extra is None else self.extra


class Tables:
    """Simulations of one problem. delta: of the statement; share: of the traffic it is about;
    most: simulated experiments per case, at most."""

    def __init__(
        self,
        problem: Problem,
        *,
        delta: float | None = None,
        share: float = 1.0,
        most: int | None = None,
    ) -> None:
        if share != 1.0 and problem.request.traffic is not None:
            part = msgspec.structs.replace(problem.request, traffic=problem.request.traffic * share)
            problem = replace(problem, request=part)
        self._problem = problem
        self._delta = delta
        self._most = most
        self._rng_seed = problem.request.seed

    @property
    def request(self) -> PlanRequest:
        return self._problem.request

    def base(self, effect: float) -> Case:
        """The case of the request itself at an effect on the [0, 1] scale."""
        problem = self._problem
        return Case(effect, problem.request.rate, problem.floor, problem.explained)

    def required(
        self,
        policy: str,
        sequence: Sequence,
        cases: list[Case],
        *,
        width: float | None = None,
        epsilon: float | None = None,
        goal: str = "effect",
        most: int = 200,
    ) -> tuple[list[Requirement], Curve]:
        """A row for each case, also where two are alike, and the curve of the first case."""
        paths = self._paths(most)
        design = self._design(policy, sequence, cases, paths)
        if epsilon is not None:
            design = replace(design, epsilon=self._problem.simulated(epsilon))
        width = None if width is None else self._problem.simulated(width)
        ends = simulate(design, self._rng(), width=width, start=self._start(design))
        labels = policy, sequence.value, goal
        rows = [
            requirement(self._problem, design, ends, _part(index, paths), case, *labels)
            for index, case in enumerate(cases)
        ]
        return rows, self._curve(policy, ends, _part(0, paths), cases[0].rate)

    def over_rates(self, sequence: Sequence, cases: list[Case]) -> list[float] | None:
        """What a decision takes in each of these cases, as a multiple of a number that only the
        rates change; None where no closed form is exact enough.

        Per model only the randomized requests count, whatever their share. The bounded sequence
        follows the closed form, as long as no prediction narrows it; the asymptotic one, tuned at
        an absolute number of requests, does not, and neither does what goes on from sums of an era.
        """
        if self._problem.start is not None:
            return None
        if sequence is Sequence.PER_MODEL:
            return [1.0 / case.rate for case in cases]
        if sequence is not Sequence.BOUNDED or any(case.explained for case in cases):
            return None
        ends: list[float] = expected_end(self._design("uniform", sequence, cases, 1)).tolist()
        return ends

    def decided(
        self, policy: str, sequence: Sequence, cases: list[Case], times: Rows[int], most: int
    ) -> tuple[list[Requirement], Curve, list[Requirement]]:
        """As `required` for a decision; and on the same experiments, for the case that is simulated
        most, a row for each of the other sequences.

        times: for each case, how many times the experiments of a single one.
        """
        paths = self._paths(most)
        listed = [case for case, count in zip(cases, times, strict=True) for _ in range(count)]
        design = self._design(policy, sequence, listed, paths)
        ends_at = np.cumsum(times) * paths
        parts = [
            slice(int(last) - count * paths, int(last))
            for last, count in zip(ends_at, times, strict=True)
        ]
        most_often = int(np.argmax(times))
        main, part = cases[most_often], parts[most_often]
        sequences = [sequence, *(each for each in Sequence if each is not sequence)]
        if self._problem.request.of_raters:
            sequences = [sequence]  # the configuration refuses the asymptotic one there
        wanted = np.zeros((len(sequences), len(design.values)), dtype=np.bool_)
        wanted[0], wanted[:, part] = True, True
        start = self._start(design, len(all_caps(design, sequences)))
        own, *others = simulate_readings(design, sequences, wanted, self._rng(), start)
        rows = [
            requirement(self._problem, design, own, each, case, policy, sequence.value, "effect")
            for case, each in zip(cases, parts, strict=True)
        ]
        of_others = [
            requirement(self._problem, design, ends, part, main, policy, each.value, "effect")
            for each, ends in zip(sequences[1:], others, strict=True)
        ]
        return rows, self._curve(policy, own, part, main.rate), of_others

    def recommended(
        self, policy: str, sequence: Sequence, case: Case, regret: float
    ) -> Requirement:
        """Requests until the model that `ipw` puts first is within `regret` with probability
        1 - delta, and stays so."""
        paths = self._paths() * 2
        design = self._design(policy, sequence, [case], paths)
        ends = simulate(design, self._rng(), regret=regret, start=self._start(design), stop=False)
        share = ends.right.mean(axis=1)
        error = 1.3 * np.sqrt(design.delta * (1.0 - design.delta) / paths)
        target = 1.0 - design.delta
        looks = [_from_then_on(share >= target + shift) for shift in (0.0, -error, error)]
        requests = np.array([np.inf if i is None else ends.trail[i].mean() for i in looks])
        # The quantiles of these three are themselves: median, low and high of Monte Carlo.
        counts = np.array([ends.spent[-1 if i is None else i].mean(axis=0) for i in looks])
        reduced = replace(ends, requests=requests, counts=counts)
        return requirement(
            self._problem, design, reduced, slice(0, 3), case, policy, "ipw", "regret"
        )

    def bought(self, policy: str, sequence: Sequence, randomized: float, effect: float) -> Bought:
        """What `randomized` EXP requests buy. effect: around which effects are tried."""
        problem = self._problem
        tried = [effect * each for each in BUDGET_EFFECTS if effect * each <= problem.most]
        tried = tried or [problem.most / 2.0]
        cases = [self.base(each) for each in tried]
        paths = self._paths(120)
        design = self._design(policy, sequence, cases, paths)
        requests = max(randomized / problem.request.rate, 1.0)
        trail = np.maximum(np.round(np.geomspace(requests / 100.0, requests, _BUDGET_LOOKS)), 1.0)
        trail = np.repeat(trail[:, None], len(design.values), axis=1)
        ends = simulate(
            design, self._rng(), regret=0.0, start=self._start(design), trail=trail, stop=False
        )
        reshaped = np.isfinite(ends.requests).reshape(len(cases), paths)
        chances = reshaped.mean(axis=1)
        middle = _part(int(np.argmin(np.abs(np.array(tried) - effect))), paths)
        spent = ends.spent[-1][middle]
        money = float((spent * problem.prices).sum(axis=1).mean())
        traffic = problem.request.traffic
        return Bought(
            policy=policy,
            reading=sequence.value,
            randomized=float(randomized),
            requests=float(requests),
            hours=None if traffic is None else requests / traffic + problem.request.window,
            money=money if np.isfinite(money) else None,
            extra=None
            if problem.today is None or not np.isfinite(money)
            else money - problem.today * float(spent.sum(axis=1).mean()),
            harm=self._harm(design, spent, middle),
            half_width=self._half_width(design, ends, middle),
            smallest_effect=self._smallest(tried, chances),
            effects=[each * problem.scale for each in tried],
            chances=chances.tolist(),
            right=ends.right[-1].reshape(len(cases), paths).mean(axis=1).tolist(),
        )

    def _harm(self, design: Design, spent: Floats, part: slice) -> float:
        values = design.values[part]
        reference = self._problem.reference(values)[:, None]
        lost: Floats = (spent * (reference - values)).sum(axis=1)
        return float(lost.mean() * self._problem.scale)

    def _half_width(self, design: Design, ends: Ends, part: slice) -> float | None:
        caps = design.caps()
        pairs = levels.pair_level(design.delta, design.candidates)
        read = design.boundary(pairs, pairs, caps)
        read.update(ends.state)
        order = np.argsort(-read.centre(ends.state), axis=1)[part]
        paths = np.arange(len(design.values))[part]
        low = read.lower(ends.state, paths, order[:, 0], order[:, 1])
        high = read.lower(ends.state, paths, order[:, 1], order[:, 0])
        half = float(np.median(-(low + high) / 2.0))
        return half * self._problem.scale / self._problem.simulated(1.0) if half < 1.0 else None

    def _smallest(self, tried: list[float], chances: Floats) -> float | None:
        power = self._problem.request.power
        enough = np.flatnonzero(chances >= power)
        if not len(enough):
            return None
        first = int(enough[0])
        if first == 0:
            return tried[0] * self._problem.scale
        low, high = chances[first - 1], chances[first]
        share = (power - low) / (high - low)
        between = tried[first - 1] + share * (tried[first] - tried[first - 1])
        return float(between * self._problem.scale)

    def _curve(self, policy: str, ends: Ends, part: slice, rate: float) -> Curve:
        problem = self._problem
        trail, requests, counts = ends.trail[:, part].mean(axis=1), ends.requests[part], ends.counts
        # Paths that ended spend no more; what counts is the spend of one that goes on till then.
        randomized = trail * rate
        share = counts[part].sum(axis=0) / max(float(counts[part].sum()), 1.0)
        money = randomized * float(share @ problem.prices)
        traffic = problem.request.traffic
        return Curve(
            policy,
            randomized.tolist(),
            [float((requests <= now).mean()) for now in trail],
            None if traffic is None else (trail / traffic + problem.request.window).tolist(),
            money.tolist() if np.isfinite(money).all() else None,
        )

    def _paths(self, most: int = 200) -> int:
        """Simulated experiments per case."""
        paths = paths_for(self._problem.models, most)
        return paths if self._most is None else min(paths, self._most)

    def _design(self, policy: str, sequence: Sequence, cases: list[Case], paths: int) -> Design:
        return self._problem.design(policy, sequence, cases, paths, self._delta)

    def _start(self, design: Design, caps: int | None = None) -> PathState | None:
        start = self._problem.start
        caps = len(design.caps()) if caps is None else caps
        return None if start is None else start(len(design.values), caps)

    def _rng(self) -> np.random.Generator:
        return np.random.default_rng(self._rng_seed)


def _part(index: int, paths: int) -> slice:
    return slice(index * paths, (index + 1) * paths)


def _from_then_on(holds: Flags) -> int | None:
    """The first look from which it holds at every later one; None where it does not at the last."""
    missing = np.flatnonzero(~holds)
    first = 0 if not len(missing) else int(missing[-1]) + 1
    return first if first < len(holds) else None


class Split(msgspec.Struct, frozen=True):
    """One way to pay for an answer.

    replays: contexts, each replayed on every model; explained: share of the variance of rewards
    that they predict; randomized, hours: to plan for, None where unknown; exp_money, replay_money,
    waiting_money: USD, and total of the three. cheapest: of those that are in time.
    """

    replays: float
    explained: float
    randomized: float | None
    hours: float | None
    exp_money: float | None
    replay_money: float
    waiting_money: float
    total: float | None
    cheapest: bool = False


def explained_by(replays: Floats, columns: int, explainable: float) -> Floats:
    """Share of the variance that so many replays per model predict. 0 where they are too few."""
    free = replays - columns - 1.0
    share = 1.0 - (1.0 - explainable) * (1.0 + columns / np.maximum(free, 1e-9))
    return np.where(free > 0, np.maximum(share, 0.0), 0.0)


def missing_fields(problem: Problem) -> list[str]:
    """Fields without which nobody can say what a replay is worth."""
    unknown = [name for name in ("explainable", "columns") if getattr(problem, name) is None]
    return unknown if np.isfinite(problem.prices).all() else [*unknown, "price"]


def splits(tables: Tables, problem: Problem, row: Requirement) -> list[Split]:
    """Ways to reach the goal of a row under its policy, by the number of replays."""
    request = problem.request
    explainable, columns = problem.explainable, problem.columns
    assert explainable is not None
    assert columns is not None
    count = np.unique([0.0, *_grid(columns, explainable)])
    shares = explained_by(count, columns, explainable)
    # What is predicted already is no reason for replays that would predict less.
    more = (count == 0) | (shares > row.explained)
    count, shares = count[more], shares[more]
    effect = row.effect / problem.scale
    cases = [Case(effect, row.rate, row.floor, share) for share in shares.tolist()]
    rows = [row]
    if len(cases) > 1:
        # Without replays it is the experiment that is recommended.
        rows += tables.required(row.policy, Sequence(request.sequence), cases[1:], most=160)[0]
    per_context = float(problem.prices.sum())
    if request.replay_price is not None:
        per_context = request.replay_price * problem.models
    smooth = _smoothed(rows)
    ways = [
        _split(problem, each, factor, replays, per_context)
        for each, factor, replays in zip(rows, smooth, count.tolist(), strict=True)
    ]
    fit = [each for each in ways if each.total is not None and _in_time(each, request.horizon)]
    best = min(fit, key=lambda each: each.total or 0.0, default=None)
    return [msgspec.structs.replace(each, cheapest=each is best) for each in ways]


def _grid(columns: int, explainable: float) -> list[float]:
    """Replays from where they begin to explain anything to where they explain nearly all."""
    if explainable <= 0:
        return []
    odds = explainable / (1.0 - explainable)
    first = columns + 1.0 + columns / odds
    last = columns + 1.0 + columns / (odds * (1.0 - NEARLY_ALL))
    return [float(round(each)) for each in np.geomspace(first * 1.1, last, SPLITS - 1)]


def _smoothed(rows: list[Requirement]) -> list[float]:
    """What to multiply each row by to lie on one line from the first row on.

    The certified variance is linear in the share that is left unexplained; the simulation's own
    error would otherwise decide between neighbours.
    """
    needed = np.array([row.randomized.needed or np.nan for row in rows])
    share = np.array([row.explained for row in rows]) - rows[0].explained
    known = np.isfinite(needed) & (share != 0)
    if not np.isfinite(needed[0]) or known.sum() < 2:
        return [1.0] * len(rows)
    slope = (share[known] @ (needed[known] - needed[0])) / (share[known] @ share[known])
    line = np.clip(needed[0] + slope * share, 0.1 * needed[0], 10.0 * needed[0])
    factors: list[float] = np.where(np.isfinite(needed), line / needed, 1.0).tolist()
    return factors


def _split(
    problem: Problem, row: Requirement, factor: float, replays: float, per_context: float
) -> Split:
    window = problem.request.window

    def scaled(value: float | None, fixed: float = 0.0) -> float | None:
        return None if value is None else fixed + (value - fixed) * factor

    hours = None if row.hours is None else scaled(row.hours.needed, window)
    paid = None if row.money is None else scaled(row.money.needed)
    replayed, waited = replays * per_context, problem.request.hour_price * (hours or 0.0)
    known = row.known and paid is not None
    return Split(
        replays=replays,
        explained=row.explained,
        randomized=scaled(row.randomized.needed),
        hours=hours,
        exp_money=paid,
        replay_money=replayed,
        waiting_money=waited,
        total=(paid or 0.0) + replayed + waited if known else None,
    )


def _in_time(split: Split, horizon: float | None) -> bool:
    return horizon is None or split.hours is None or split.hours <= horizon
