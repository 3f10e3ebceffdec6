"""The question behind a plan, from numbers, a benchmark or a store, all on the [0, 1] scale."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self, TypeAlias

import msgspec
import numpy as np

from equipoise.agent.answers.wording import count, dollars, duration, figure, percent
from equipoise.agent.errors import PlanError
from equipoise.agent.inference.certificate import Sequence
from equipoise.agent.inference.levels import EraPrior, segment_levels
from equipoise.agent.inference.rated import LONE
from equipoise.agent.planning.request import FLOOR_SHARE, PlanRequest
from equipoise.agent.planning.simulation.forward import Design
from equipoise.agent.planning.simulation.paths import PathState
from equipoise.store.batches import Floats

Start: TypeAlias = Callable[[int, int], PathState]
"""Sums so far for a number of paths and of caps."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is planned. Rewards are turned so that larger is better and scaled to [0, 1].

    source: "numbers", "benchmark" or "store". names: (K,). values: (K,) what the models are
    thought to be worth; with `numbers` all but the first are alike. variances: (K,) of a reward;
    None where rewards are 0 or 1 and their values say it. rated: (K,) share of requests whose
    reward comes; values, variances and effects are theirs. missing: what the others count as, None
    for the worst case. prices: (K,) USD, NaN where unknown.
    routing: value of today's routing, None where unknown; mix: (K,) shares of today's traffic, from
    which it then follows; today: USD of a request as it is routed today. scale: reward units of 1.
    candidates: A. start: sums so far, None from the beginning. explained: share of the variance
    that the prediction is taken to explain; attainable: what it could explain at best, None where
    nobody knows. era_caps, prior: of the sums in `start`, fixed when their era began; no prior
    where it began without one. read: columns that the scorer of a benchmark or a store reads.
    """

    source: str
    request: PlanRequest
    names: tuple[str, ...]
    values: Floats
    variances: Floats | None
    rated: Floats
    missing: float | None
    prices: Floats
    routing: float | None
    scale: float
    candidates: int
    explained: float
    tuned_rows: float = 10_000.0
    start: Start | None = None
    attainable: float | None = None
    era_caps: tuple[float, ...] | None = None
    prior: EraPrior | None = None
    read: int | None = None
    mix: Floats | None = None
    today: float | None = None

    @classmethod
    def of_numbers(cls, request: PlanRequest) -> Self:
        """From a few numbers. Raises PlanError where the reward is missing."""
        if request.reward_rate is None:
            raise PlanError("reward_rate", "missing", "what models are worth today, reward units")
        models = request.count
        scale = request.reward_high - request.reward_low
        rate = (request.reward_rate - request.reward_low) / scale
        rate = rate if request.maximise else 1.0 - rate
        variances = None
        if request.reward_sd is not None:
            variances = np.full(models, (request.reward_sd / scale) ** 2)
        prices = np.full(models, np.nan if request.price is None else request.price)
        if request.prices is not None:
            prices = np.array(request.prices)
        names = request.names or [f"model {index + 1}" for index in range(models)]
        mix = None if request.mix is None else np.array(request.mix) / math.fsum(request.mix)
        today = None if mix is None else float(mix @ prices)
        # The model that may be better comes first.
        order = _candidate_first(request, mix)
        return cls(
            "numbers",
            request,
            tuple(names[index] for index in order),
            np.full(models, rate),
            variances,
            *cls.of_missing(request, models, rate),
            prices[order],
            None,
            scale,
            models + 1,
            request.explained,
            mix=None if mix is None else mix[order],
            today=None if today is None or not math.isfinite(today) else today,
        )

    @staticmethod
    def of_missing(request: PlanRequest, models: int, worth: float) -> tuple[Floats, float | None]:
        """(K,) the share rated that is asked for, and what the other rewards count as.

        worth: of the models that are compared, among those who rate. An answer about these is a
        test at every value of the others (`inference.rated`); the one that binds lies between the
        models', so planning with it as a declared value is planning the test.
        """
        if request.of_raters:
            share = (1.0 if request.rated is None else request.rated) * (request.ask or 1.0)
            return np.full(models, share), worth
        missing = request.missing_value
        if missing is not None:
            missing = (missing - request.reward_low) / (request.reward_high - request.reward_low)
            missing = missing if request.maximise else 1.0 - missing
        return np.full(models, 1.0 if request.rated is None else request.rated), missing

    @property
    def models(self) -> int:
        return len(self.names)

    @property
    def lost(self) -> Floats:
        """(K,) share of requests whose reward never comes and counts as the worst case."""
        return 1.0 - self.rated if self.missing is None else np.zeros(self.models)

    @property
    def gap(self) -> float:
        """What the best model leads the runner-up by among the requests whose reward comes."""
        order = np.sort(self.values)
        return float(order[-1] - order[-2])

    @property
    def _stays_binary(self) -> bool:
        """Whether rewards of 0 and 1 are so too once missing ones count."""
        return self.missing in (None, 0.0, 1.0) or bool((self.rated == 1.0).all())

    def reference(self, values: Floats) -> Floats:
        """(N,) what harm counts against, of values (N, K) over all requests, as those of a design
        are: today's routing or, where nobody knows it, the best model."""
        if self.routing is not None:
            rated = float(self.rated.mean())
            worth = self.routing * rated + (self.missing or 0.0) * (1.0 - rated)
            return np.full(len(values), worth)
        result: Floats = values.max(axis=1) if self.mix is None else values @ self.mix
        return result

    def difference(self, effect: float) -> float:
        """What a difference among the requests whose reward comes is of all requests, where the
        others count as declared; it stays what it is under the worst case."""
        return effect if self.missing is None else effect * float(self.rated.mean())

    def simulated(self, difference: float) -> float:
        """What a difference in the answer is in the values that are simulated: those of all
        requests, also where the answer is about those who rate."""
        return difference * float(self.rated.mean()) if self.request.of_raters else difference

    def lead(self, effect: float) -> float:
        """The most that can be certified of the lead of a model that is better by `effect` among
        the requests whose reward comes: under the worst case all of the others may favour the
        runner-up."""
        rated = float(self.rated.mean())
        return effect * rated - float(self.lost.mean())

    @property
    def explainable(self) -> float | None:
        """Share of the variance that unlimited replays predict: as asked, or as known."""
        declared = self.request.explainable
        return self.attainable if declared is None else declared

    @property
    def columns(self) -> int | None:
        """Columns that the scorer reads: as asked, or as known."""
        declared = self.request.columns
        return self.read if declared is None else declared

    @property
    def floor(self) -> float:
        floor = self.request.floor
        return FLOOR_SHARE / self.models if floor is None else floor

    @property
    def levels(self) -> tuple[float, float]:
        """delta of statements about the whole traffic, and about each segment."""
        return segment_levels(self.request.delta, self.request.segments)

    @property
    def epsilon(self) -> float:
        return self.request.epsilon / self.scale

    def values_at(self, effect: float) -> Floats:
        """(K,) values where the best model leads the runner-up by `effect` and nobody is closer.

        From numbers: one model is better than all the others, which is the hardest such case.
        Else the runner-up is moved, and whoever stands closer than it with it.
        """
        if self.source == "numbers":
            result = self.values.copy()
            result[0] += effect
            return result
        order = np.argsort(-self.values, kind="stable")
        result = self.values.copy()
        best = min(max(float(result[order[0]]), effect), 1.0)
        result[order[0]] = best
        result[order[1:]] = np.minimum(result[order[1:]], best - effect)
        result[order[1]] = best - effect
        return result

    @property
    def most(self) -> float:
        """The largest effect that the range of rewards leaves room for."""
        return float(1.0 - self.values[0]) if self.source == "numbers" else 1.0

    def design(
        self,
        assignment: str,
        sequence: Sequence,
        cases: list[Case],
        paths: int,
        delta: float | None = None,
    ) -> Design:
        """The design of `paths` experiments for every case, case after case."""

        def each(values: list[float]) -> Floats:
            return np.repeat(np.array(values), paths)

        values = np.repeat(np.array([self.values_at(case.effect) for case in cases]), paths, axis=0)
        values, variances = self.over_all(np.clip(values, 0.0, 1.0))
        prior, level = self._prior, self.levels[0] if delta is None else delta
        if self.request.of_raters:
            level *= 1.0 - 2.0 * LONE  # what the contrast of two scores has of it
        return Design(
            assignment=assignment,
            sequence=sequence,
            values=values,
            variances=variances,
            explained=each([case.explained for case in cases]),
            rate=each([case.rate for case in cases]),
            floor=each([case.floor for case in cases]),
            binary=self.variances is None and self._stays_binary,
            costs=self.prices,
            lost=self.lost,
            candidates=self.candidates,
            delta=level,
            epsilon=self.simulated(self.epsilon),
            tuned_rows=self.tuned_rows,
            era_caps=self.era_caps,
            prior=prior,
            planned=None
            if prior is None
            else each([prior.requests * self.request.rate / case.rate for case in cases]),
        )

    @property
    def _prior(self) -> EraPrior | None:
        """Of the era that is simulated: the running one's, or what a new one takes if nothing is
        known and nothing was declared."""
        if self.start is not None:
            return self.prior
        rated = float(self.rated.mean()) if self.request.of_raters else 1.0
        rate, epsilon = self.request.rate, self.epsilon
        return EraPrior.planned(self.models, self.levels[0], rate, epsilon=epsilon, rated=rated)

    def over_all(self, values: Floats) -> tuple[Floats, Floats]:
        """(N, K) values of all requests, and variances, as a design takes them, out of values of
        those whose reward comes."""
        own = values * (1.0 - values)
        if self.variances is not None:
            own = np.broadcast_to(self.variances, values.shape)
        rated = self.rated
        if self.missing is None:
            return values * rated, own
        # Of reward-or-value: the variance within, and that between the two kinds of request.
        between = rated * (1.0 - rated) * (values - self.missing) ** 2
        return values * rated + (1.0 - rated) * self.missing, rated * own + between


def _candidate_first(request: PlanRequest, mix: Floats | None) -> list[int]:
    """Positions of the models with the one that may be better at the head."""
    first = 0 if mix is None else int(np.argmin(mix))
    if request.candidate is not None and request.names is not None:
        first = request.names.index(request.candidate)
    return [first, *(index for index in range(request.count) if index != first)]


@dataclass(frozen=True, slots=True)
class Case:
    """What may differ between the rows of a table. effect on the [0, 1] scale."""

    effect: float
    rate: float
    floor: float
    explained: float


class Input(msgspec.Struct, frozen=True):
    """One line of what was asked: its name, and the value with its unit."""

    name: str
    value: str


def inputs(problem: Problem, effect: float) -> list[Input]:
    """Everything that the numbers of a plan follow from. effect: on the [0, 1] scale."""
    request = problem.request
    lines = [
        ("models", ", ".join(problem.names)),
        ("traffic", _traffic(problem)),
        ("mean reward today", _reward_line(problem)),
        ("rewards", _rewards(problem)),
        ("requests that are rated", _rated(problem)),
        ("difference to find", figure(effect * problem.scale)),
        ("power", percent(request.power)),
        ("wrong in at most", f"{percent(request.delta)} of such experiments, at any look"),
        ("within the best counts as best", _optional(request.epsilon)),
        ("half-width", "" if request.half_width is None else f"± {figure(request.half_width)}"),
        ("regret", "" if request.regret is None else figure(request.regret)),
        ("share randomized", percent(request.rate)),
        ("least probability of a model", percent(problem.floor)),
        ("certified by", f"the {request.sequence} sequence"),
        ("explained by replays", percent(problem.explained) if problem.explained else ""),
        ("prices", _price_line(problem)),
        ("today's routing", _mix(problem)),
        ("budget", _budget(problem)),
        ("reward is final after", duration(request.window) if request.window else ""),
        ("horizon", "none" if request.horizon is None else duration(request.horizon)),
        ("segments", str(request.segments) if request.segments else ""),
        ("seed", str(request.seed)),
    ]
    return [Input(name, value) for name, value in lines if value]


def _optional(value: float) -> str:
    return figure(value) if value else ""


def _traffic(problem: Problem) -> str:
    traffic = problem.request.traffic
    if traffic is None:
        return ""
    return f"{count(traffic)} requests an hour ({count(24.0 * traffic)} a day)"


def _reward_line(problem: Problem) -> str:
    rate = problem.request.reward_rate
    return "" if rate is None or problem.source != "numbers" else figure(rate)


def _rewards(problem: Problem) -> str:
    request = problem.request
    kind = "0 or 1" if problem.variances is None else "between"
    low, high = figure(request.reward_low), figure(request.reward_high)
    text = f"{low} or {high}" if kind == "0 or 1" else f"{low} to {high}"
    if request.reward_sd is not None:
        text += f", standard deviation {figure(request.reward_sd)}"
    return f"{text}, {'larger' if request.maximise else 'smaller'} is better"


def _rated(problem: Problem) -> str:
    """The share, and what the others count as."""
    rated = float(problem.rated.mean())
    if rated == 1.0:
        return "100%: every reward comes (--rated SHARE where not)"
    missing = problem.request.missing_value
    if problem.request.of_raters:
        ask = problem.request.ask
        asked = "" if ask is None else f" when they are asked, as {percent(ask)} are"
        return f"{percent(rated)}; the answer is about those who rate{asked}"
    others = "the worst case" if problem.missing is None else figure(missing or 0.0)
    return f"{percent(rated)}; the others count as {others}"


def _price_line(problem: Problem) -> str:
    prices = problem.prices
    if not np.isfinite(prices).any():
        return ""
    if (prices == prices[0]).all():
        return f"{dollars(float(prices[0]))} (USD) a request"
    each = [
        f"{name} {dollars(price) if np.isfinite(price) else 'unknown'}"
        for name, price in zip(problem.names, prices.tolist(), strict=True)
    ]
    return f"{', '.join(each)} (USD a request)"


def _mix(problem: Problem) -> str:
    if problem.mix is None:
        return ""
    pairs = zip(problem.names, problem.mix.tolist(), strict=True)
    text = ", ".join(f"{name} {percent(share)}" for name, share in pairs)
    return text if problem.today is None else f"{text}; {dollars(problem.today)} a request"


def _budget(problem: Problem) -> str:
    request = problem.request
    parts = [
        "" if request.budget_requests is None else f"{count(request.budget_requests)} requests",
        "" if request.budget_money is None else f"{dollars(request.budget_money)} (USD)",
        "" if request.budget_harm is None else f"{figure(request.budget_harm)} reward lost",
    ]
    return ", ".join(part for part in parts if part)
