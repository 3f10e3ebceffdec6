"""A plan: every table that a question asks for, the recommended row, and one sentence."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np

from equipoise.agent.answers.wording import brief, count, dollars, figure
from equipoise.agent.errors import PlanError
from equipoise.agent.inference import levels
from equipoise.agent.inference.certificate import Sequence
from equipoise.agent.planning.levers import Lever, Question, levers, question
from equipoise.agent.planning.problem import Case, Input, Problem, inputs
from equipoise.agent.planning.request import FEWEST_DIGITS, LARGEST
from equipoise.agent.planning.requirement import (
    FixedSample,
    Requirement,
    at_rate,
    cheapest,
    fixed_sample,
)
from equipoise.agent.planning.sentences import (
    ENDED,
    assumptions,
    billed,
    budget_sentence,
    fixed_sentence,
    lever_sentence,
    lever_words,
    question_sentences,
    recommendation,
)
from equipoise.agent.planning.simulation.forward import anytime_rows, contrast_variance
from equipoise.agent.planning.tables import (
    EFFECTS,
    Bought,
    Curve,
    Split,
    Tables,
    missing_fields,
    splits,
)

RATES = (0.25, 0.5, 1.0, 2.0, 4.0)
FLOORS = (0.02, 0.1, 0.3, 1.0)
"""Floors of the price table, as shares of 1 / K."""
EXPLAINED = (0.0, 0.25, 0.5, 0.75)
EFFECT_PATHS, MAIN_SHARE = 110, 3
"""Simulated experiments per effect, and how many times as many there are of the effect itself."""
SIDE_PATHS = 80
"""Simulated experiments per row of a table that only shows a direction."""
_WORST_CASE = (
    "while every missing reward counts as the worst case; declare what one means (--missing VALUE,"
    " or rated; reward.missing in the configuration)"
)
NOT_OFFERED = ("policies whose probabilities depend on the request: a plan knows no contexts",)


class Plan(msgspec.Struct, frozen=True):
    """Everything that a plan says; numbers in reward units, requests, hours and USD.

    source: numbers, benchmark or store. title, date (UTC), models: whose plan it is; inputs: what
    was asked. sentence: the best lever and the recommended plan. answers: what an experiment says
    of the question; why: why it takes more than a calculator says, `fixed`; billed: what the USD
    are of. assumptions: what it rests on. recommended: None where no policy gets there. goals: a
    row per policy, sequence and goal. effects: a row per policy and effect. rates: EXP against
    waiting, by share of traffic that is randomized; floors: the price of the floor; explained: what
    a prediction from replays would save; splits: ways to pay, by the number of replays; segments:
    each segment by itself. bought: what the budget buys. levers: what would make it cheaper or
    faster; question: whether a model is better by the effect. curves: certainty against spend, at
    `effect`; power, traffic: as asked. not_offered: questions without an honest answer. binary:
    whether a reward is 0 or 1. stored: what a store already holds.
    """

    source: str
    title: str
    date: str
    models: list[str]
    inputs: list[Input]
    sentence: str
    answers: list[str]
    why: str
    billed: str
    assumptions: list[str]
    effect: float
    recommended: Requirement | None
    goals: list[Requirement]
    effects: list[Requirement]
    rates: list[Requirement]
    floors: list[Requirement]
    explained: list[Requirement]
    splits: list[Split]
    segments: list[Requirement]
    bought: list[Bought]
    levers: list[Lever]
    question: Question | None
    fixed: FixedSample | None
    curves: list[Curve]
    not_offered: list[str]
    power: float
    traffic: float | None
    binary: bool
    stored: dict[str, Any]

    @property
    def money_name(self) -> str:
        """What a column of USD is called."""
        goals = any(row.extra is not None for row in self.goals)
        extra = goals or any(row.extra is not None for row in self.bought)
        return "extra bill" if extra else "whole bill"

    @property
    def harm_name(self) -> str:
        """What a column of harm with its sign turned is called: below 0 it is lost."""
        return "successes gained" if self.binary else "reward gained"

    @property
    def columns(self) -> list[tuple[str, Callable[[Requirement], str]]]:
        """Titles and cells of a table of rows that are known; no money without prices, no time
        without traffic."""

        def band(row: Requirement) -> str:
            low, high = row.randomized.low, row.randomized.high
            end = "…" if high is None else count(high)
            return "" if low is None else f"{count(low)} to {end}"

        def bill(row: Requirement) -> str:
            known = None if row.bill is None else row.bill.needed
            return "" if known is None else dollars(known)

        columns: list[tuple[str, Callable[[Requirement], str]]] = [
            ("plan for", lambda row: count(row.randomized.needed)),
        ]
        if self.traffic is not None:
            columns.append(("time", lambda row: brief(row.hours.needed if row.hours else None)))
        if any(row.bill is not None for row in self.goals):
            columns.append((self.money_name, bill))
        columns.append(("80% of them", band))
        harm = self.harm_name
        columns.append(
            (harm, lambda row: "" if row.harm.median is None else figure(0.0 - row.harm.median))
        )
        return columns

    def levers_as_rows(self) -> list[tuple[str, Requirement]]:
        """The plan and its levers, by what they change."""
        asked, models = self.levers[0].row.rate, len(self.models)
        return [(lever_words(asked, models, each), each.row) for each in self.levers]


def make_plan(
    problem: Problem,
    stored: dict[str, Any] | None = None,
    *,
    most: int | None = None,
    every: bool = True,
) -> Plan:
    """The plan of a problem. Raises PlanError where the question is contradictory.

    most: simulated experiments per case, at most; None for as many as the numbers need. every:
    whether the tables of floors and predictions, on which nothing else rests, are made too.
    """
    request, scale = problem.request, problem.scale
    sequence, tables = Sequence(request.sequence), Tables(problem, most=most)
    _traffic(problem)
    effect = _effect(problem)
    _reachable(problem, effect)
    goals: list[Requirement] = []
    effects: list[Requirement] = []
    curves: list[Curve] = []
    if request.effect is not None or not _others(problem):
        effects, curves, others = _effects(tables, problem, sequence, effect)
        goals += [row for row in effects if row.effect == effect * scale]
        goals += others
    if request.half_width is not None:
        width = request.half_width / scale
        for policy in request.policies:
            rows, curve = tables.required(
                policy, sequence, [tables.base(effect)], width=width, goal="half-width"
            )
            goals += rows
            curves = [*curves, *([] if effects else [curve])]
    if request.regret is not None:
        goals += _regret(tables, problem, sequence, effect, request.regret / scale)
    main = _main(problem, goals, sequence)
    best = cheapest(main, request.horizon)
    bought = _bought(tables, problem, sequence, effect)
    side = best or next(iter(main), None)
    rates = _rates(tables, problem, sequence, side) if effects else []
    closed = bool(rates) and tables.over_rates(sequence, [tables.base(effect)]) is not None
    floors, explained = _side(tables, problem, sequence, side) if effects and every else ([], [])
    unknown = missing_fields(problem)
    paid = splits(tables, problem, side) if side is not None and effects and not unknown else []
    offered = levers(problem, side, rates, effects, goals, most) if effects and side else []
    asked = question(problem, best or side, most) if effects and _is_asked(problem) else None
    fixed = fixed_sample(problem, effect, best) if effects else None
    if effects or not bought:
        sentence = recommendation(problem, best, main, effect)
        first = lever_sentence(problem, offered)
        sentence = f"{first} As asked: {_lower(sentence)}" if first else sentence
    else:
        sentence = budget_sentence(problem, bought)
    if effects and bought:
        sentence += f" What the budget buys: {budget_sentence(problem, bought)}"
    if stored:
        sentence = _of_store(stored, best, sentence)
    return Plan(
        source=problem.source,
        title=request.title or "Randomization plan",
        date=datetime.now(UTC).date().isoformat(),
        models=list(problem.names),
        inputs=inputs(problem, effect),
        sentence=sentence,
        answers=[] if asked is None else question_sentences(problem, asked),
        why="" if fixed is None else fixed_sentence(problem, fixed),
        billed="" if stored and stored["decided"] is not None else billed(problem),
        assumptions=assumptions(problem, sequence, closed),
        effect=effect * scale,
        recommended=best,
        goals=goals,
        effects=effects,
        rates=rates,
        floors=floors,
        explained=explained,
        splits=paid,
        segments=_segments(problem, sequence, side, most) if effects else [],
        bought=bought,
        levers=offered,
        question=asked,
        fixed=fixed,
        curves=curves,
        not_offered=_not_offered(unknown),
        power=request.power,
        traffic=request.traffic,
        binary=problem.variances is None and scale == 1.0,
        stored=stored or {},
    )


def _of_store(stored: dict[str, Any], best: Requirement | None, sentence: str) -> str:
    """The sentence of a running experiment: nothing is planned for one that is decided, and one
    that is stopped, or whose budget ends before, is told so first."""
    if stored["decided"] is not None:
        return "There is nothing to plan for: the experiment is decided."
    if stored["stopped"] == ENDED:
        return "The experiment has ended: there is nothing to plan for unless it is resumed."
    if stored["stopped"] is not None:
        return f"The experiment is {stored['stopped']}. Once that ends: {_lower(sentence)}"
    needed = None if best is None else best.randomized.needed
    left = stored["left"]
    if left is not None and needed is not None and needed > left:
        first = f"The budget allows {count(left)} more randomized requests, which are too few."
        return f"{first} {sentence}"
    return sentence


def _is_asked(problem: Problem) -> bool:
    """Whether one model stands against others that are alike: others have values of their own."""
    return problem.source == "numbers" and problem.request.effect is not None


def _lower(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


def _not_offered(unknown: list[str]) -> list[str]:
    if not unknown:
        return list(NOT_OFFERED)
    split = f"the cheapest split between EXP, replays (SIM) and waiting: give {', '.join(unknown)}"
    return [split, *NOT_OFFERED]


def _traffic(problem: Problem) -> None:
    request = problem.request
    budgets = (request.budget_requests, request.budget_money, request.budget_harm)
    if request.traffic is None and (_others(problem) is False or not any(budgets)):
        raise PlanError("traffic", "missing", "requests an hour, more than 0")


def _reachable(problem: Problem, effect: float) -> None:
    """Refuse what no number of requests reaches, because missing rewards count as the worst case.

    A store is told so in the plan instead: what it has seen is no question of the user's.
    """
    request, lost = problem.request, float(problem.lost.mean())
    if lost == 0.0 or problem.source == "store":
        return
    scale, rated = problem.scale, 1.0 - lost
    goals = [(problem.epsilon, f"a difference of {effect * scale:.3g} is never certified")]
    if request.regret is not None and request.effect is None:
        regret = max(request.regret, request.epsilon) / scale
        goals = [(regret, f"nothing is certified within {regret * scale:.3g} of the best")]
    elif request.half_width is not None and request.effect is None:
        goals = []
    for within, consequence in goals:
        if problem.lead(effect) + problem.simulated(within) <= 0.0:
            least = (1.0 - within) / (1.0 + effect)
            raise PlanError("rated", rated, f"more than {least:.4g}: {consequence} {_WORST_CASE}")
    width = request.half_width
    if width is not None and width / scale <= lost:
        consequence = f"the leader's lead is never known to ± {width:.3g}"
        raise PlanError(
            "rated", rated, f"more than {1 - width / scale:.4g}: {consequence} {_WORST_CASE}"
        )


def _others(problem: Problem) -> bool:
    """Whether anything but an effect is asked for."""
    request = problem.request
    return any(
        value is not None
        for value in (
            *(request.half_width, request.regret, request.budget_requests),
            *(request.budget_money, request.budget_harm),
        )
    )


def _effect(problem: Problem) -> float:
    """The effect on the [0, 1] scale that all is said at: the given one, or what fits the goal."""
    request = problem.request
    for goal in (request.effect, request.regret, request.half_width):
        if goal is not None:
            return min(goal / problem.scale, problem.most)
    if problem.source != "numbers" and problem.gap > 0:
        return problem.gap
    budget = request.budget_requests or _affordable(problem)
    if budget is None:
        raise PlanError("effect", "missing", "the smallest difference in reward worth finding")
    low, high = 1e-4, max(problem.most, 2e-4)
    for _ in range(40):
        middle = float(np.sqrt(low * high))
        low, high = (low, middle) if _rows(problem, middle) < budget else (middle, high)
    return high


def _rows(problem: Problem, effect: float) -> float:
    """Randomized requests to find an effect, by closed form under uniform shares."""
    design = problem.design(
        "uniform", Sequence(problem.request.sequence), [Tables(problem).base(effect)], 1
    )
    rate, models = problem.request.rate, problem.models
    chance = np.full(models, rate / models)
    unexplained = 1.0 - problem.explained
    noise = contrast_variance(design.variances[0], chance, 0, 1, unexplained)
    alpha = levels.decision_level(design.delta, models)
    lead = max(problem.lead(effect) + problem.simulated(problem.epsilon), FEWEST_DIGITS)
    return rate * anytime_rows(noise, lead, alpha, 2.0 + models / rate)


def _affordable(problem: Problem) -> float | None:
    """Randomized requests that the budget pays for, at mean prices; None without one."""
    request = problem.request
    if request.budget_money is not None:
        price = float(problem.prices.mean())
        if not price > 0:
            raise PlanError("price", "unknown or 0", "USD a request, to plan with budget_money")
        if problem.today is not None:
            # What they cost under uniform shares; the guess is corrected by the simulation.
            price = price - problem.today
            if not price > 0:
                expected = "more than 0: these requests cost no more than today's routing"
                raise PlanError("extra bill", f"{price:.3g} USD a request", expected)
        return _guess("money", request.budget_money, price)
    if request.budget_harm is not None and request.effect is None:
        raise PlanError("effect", "missing", "how much a worse model loses, to plan with harm")
    return None


def _guess(field: str, budget: float, each: float) -> float:
    """Randomized requests that a budget pays for, at so much each."""
    if budget > LARGEST * each:
        limit = f"at most {LARGEST * each:.3g}, of which {LARGEST:g} randomized requests are paid"
        raise PlanError(f"budget_{field}", budget, limit)
    return budget / each


def _effects(
    tables: Tables, problem: Problem, sequence: Sequence, effect: float
) -> tuple[list[Requirement], list[Curve], list[Requirement]]:
    """A row per policy and effect, a curve per policy, and what the other sequences would take."""
    tried = [effect * each for each in EFFECTS if each <= 1.0 or effect * each <= problem.most]
    cases = [tables.base(each) for each in tried]
    times = [MAIN_SHARE if each == effect else 1 for each in tried]
    rows: list[Requirement] = []
    others: list[Requirement] = []
    curves = []
    for policy in problem.request.policies:
        own, curve, of_others = tables.decided(policy, sequence, cases, times, EFFECT_PATHS)
        rows += own
        others += of_others
        curves.append(curve)
    # One sequence after the other, and by policy within each.
    others.sort(key=lambda row: [each.value for each in Sequence].index(row.reading))
    return rows, curves, others


def _regret(
    tables: Tables, problem: Problem, sequence: Sequence, effect: float, regret: float
) -> list[Requirement]:
    rows = []
    case = tables.base(max(effect, min(regret, problem.most)))
    for policy in problem.request.policies:
        rows += tables.required(
            policy, sequence, [case], epsilon=max(regret, problem.epsilon), goal="regret"
        )[0]
        rows.append(tables.recommended(policy, sequence, case, regret * (1.0 - 1e-9)))
    return rows


def _main(problem: Problem, goals: Rows[Requirement], sequence: Sequence) -> list[Requirement]:
    """The rows a recommendation is chosen from: the first goal asked for, certified as declared."""
    for goal in ("effect", "half-width", "regret"):
        rows = [row for row in goals if row.goal == goal and row.reading == sequence.value]
        if rows:
            return rows
    return []


def _rates(
    tables: Tables, problem: Problem, sequence: Sequence, row: Requirement | None
) -> list[Requirement]:
    """A row for other shares of the requests that are randomized."""
    if row is None:
        return []
    effect, rate = row.effect / problem.scale, problem.request.rate
    rates = [each * rate for each in RATES if each * rate <= 1.0]
    if rates[-1] == rate < 1.0:
        rates.append(1.0)
    cases = [Case(effect, each, problem.floor, problem.explained) for each in rates]
    needed = tables.over_rates(sequence, [cases[rates.index(rate)], *cases])
    if needed is not None:
        return [
            row if each == rate else at_rate(problem, row, each, more / needed[0])
            for each, more in zip(rates, needed[1:], strict=True)
        ]
    simulated = tables.required(row.policy, sequence, cases, most=SIDE_PATHS)[0]
    # One experiment has one size: the row of the plan itself is not simulated a second time.
    return [row if each == rate else one for each, one in zip(rates, simulated, strict=True)]


def _side(
    tables: Tables, problem: Problem, sequence: Sequence, row: Requirement | None
) -> tuple[list[Requirement], list[Requirement]]:
    """Rows for other floors, and for other shares that replays explain."""
    if row is None:
        return [], []
    effect, rate = row.effect / problem.scale, problem.request.rate
    floor, explained = problem.floor, problem.explained
    floors = [each / problem.models for each in FLOORS]
    shares = sorted({*EXPLAINED, explained, problem.attainable or 0.0})
    cases = [Case(effect, rate, floor, each) for each in shares]
    required = tables.required(row.policy, sequence, cases, most=SIDE_PATHS)[0]
    required = [
        row if each == explained else one for each, one in zip(shares, required, strict=True)
    ]
    # Under uniform shares a floor changes nothing: its price shows under an adaptive policy.
    adaptive = row.policy
    if adaptive == "uniform":
        adaptive = next((name for name in problem.request.policies if name != "uniform"), "top-two")
    cases = [Case(effect, rate, each, explained) for each in floors]
    priced = tables.required(adaptive, sequence, cases, most=SIDE_PATHS)[0]
    return priced, required


def _segments(
    problem: Problem, sequence: Sequence, row: Requirement | None, most: int | None
) -> list[Requirement]:
    """One row: any of the declared segments by itself, at its share of delta and of traffic."""
    count = problem.request.segments
    if count == 0 or row is None:
        return []
    # What a store holds of the whole traffic says nothing about a segment's own sums.
    afresh = replace(problem, start=None, era_caps=None)
    tables = Tables(afresh, delta=problem.levels[1], share=1.0 / count, most=most)
    return tables.required(row.policy, sequence, [tables.base(row.effect / problem.scale)])[0]


def _bought(tables: Tables, problem: Problem, sequence: Sequence, effect: float) -> list[Bought]:
    request = problem.request
    result = []
    for policy in request.policies:
        if request.budget_requests is not None:
            result.append(tables.bought(policy, sequence, request.budget_requests, effect))
        elif request.budget_money is not None:
            guess = _affordable(problem)
            assert guess is not None
            field = "money" if problem.today is None else "extra"
            result.append(_spending(tables, policy, sequence, guess, effect, field))
        elif request.budget_harm is not None:
            guess = _guess("harm", request.budget_harm, effect * problem.scale)
            result.append(_spending(tables, policy, sequence, guess, effect, "harm"))
    return result


def _spending(
    tables: Tables, policy: str, sequence: Sequence, guess: float, effect: float, field: str
) -> Bought:
    """What is bought when all of the money, or of the harm, is spent: two corrected guesses."""
    name = "budget_harm" if field == "harm" else "budget_money"
    limit = getattr(tables.request, name)
    purchase = tables.bought(policy, sequence, guess, effect)
    for _ in range(2):
        spent = getattr(purchase, field)
        if spent is None or spent <= 0:
            what = "win reward" if field == "harm" else "cost less than today's routing"
            expected = f"a loss: these experiments are expected to {what}, so it sets no limit"
            raise PlanError(name, limit, expected)
        guess = min(guess * (limit / spent), LARGEST)
        purchase = tables.bought(policy, sequence, guess, effect)
    # What is left is the error of the simulation.
    return msgspec.structs.replace(purchase, **{field: limit})
