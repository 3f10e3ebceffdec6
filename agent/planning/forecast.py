"""When a running experiment will be decided, renewed as its data arrive."""

from __future__ import annotations

from math import inf
from typing import Literal, TypeAlias

import msgspec
import numpy as np

from equipoise.agent.answers.answers import Answers, Foreseen
from equipoise.agent.answers.statements import Outlook
from equipoise.agent.errors import PlanError
from equipoise.agent.planning.problem import Problem
from equipoise.agent.planning.requirement import Interval80, interval80
from equipoise.agent.planning.sentences import never
from equipoise.agent.planning.stored import FEWEST_REWARDS, TOO_FEW, running_problem, until_decided
from equipoise.agent.planning.wording import count, duration

State: TypeAlias = Literal["pending", "decided", "unknown"]


class Forecast(msgspec.Struct, frozen=True, kw_only=True):
    """What is to come until the certified decision, by the first `log_rows` rows of the log.

    state: `decided` where nothing is, `unknown` where too little is known to say. randomized:
    certified randomized requests of this era so far; planned: as `budget.planned`, null without.
    total: randomized requests of this era in all, hours: from `at` on; medians and bands of 80%
    over experiments that go on from here with true values drawn from what the rewards say. null in
    a band: more than were simulated. hours is null where the pace of the traffic is unknown.
    """

    state: State
    sentence: str
    at: float
    log_rows: int
    era: int
    randomized: int
    planned: int | None = None
    total: Interval80 | None = None
    hours: Interval80 | None = None

    @property
    def foreseen(self) -> Foreseen | None:
        """As the check `plan` takes it; None where nothing is foretold."""
        if self.total is None:
            return None
        low, median = self.total.low, self.total.median
        return Foreseen(self.era, inf if low is None else low, inf if median is None else median)


def forecast(answers: Answers, at: float) -> Forecast:
    """The forecast of an experiment, from everything folded. at: seconds since the epoch."""
    certified, unknown = answers.certified(), no_forecast(answers, at, "")
    winner, alike = answers.certified_winner(), certified.standing.equivalent()
    if winner is not None or alike:
        state = f"{winner} is certified" if winner is not None else "The best models are alike"
        return _with(unknown, state="decided", sentence=f"{state}: there is nothing to wait for.")
    try:
        problem, rewards = running_problem(answers, {})
    except PlanError as error:
        unknown = no_forecast(answers, at, str(error))
        if error.field == TOO_FEW:
            sentence = (
                f"Too little is known for a forecast: the least tried model has {error.value:g}"
                f" rewards of randomized requests, and {FEWEST_REWARDS:g} are needed."
            )
            return _with(unknown, sentence=sentence)
        return unknown
    ends = until_decided(problem, rewards)
    power, traffic = problem.request.power, problem.request.traffic
    spent = np.where(np.isfinite(ends.requests), ends.counts.sum(axis=1), np.inf)
    total = interval80(certified.randomized + spent, power)
    hours = None
    if traffic is not None:
        hours = interval80(ends.requests / traffic + problem.request.window, power)
    pending = _with(unknown, state="pending", total=total, hours=hours)
    return _with(pending, sentence=_sentence(pending, problem))


def no_forecast(answers: Answers, at: float, why: str) -> Forecast:
    """That nothing can be foretold, and why."""
    return Forecast(
        state="unknown",
        sentence=f"There is no forecast: {why}.",
        at=at,
        log_rows=answers.state.light.next_seq,
        era=answers.state.rule.era,
        randomized=answers.certified().randomized,
        planned=answers.state.config.budget.planned,
    )


def _with(forecast: Forecast, **changes: object) -> Forecast:
    return msgspec.structs.replace(forecast, **changes)


def _sentence(forecast: Forecast, problem: Problem) -> str:
    total, hours = forecast.total, forecast.hours
    assert total is not None
    if total.median is None:
        impossible = never(problem, problem.gap)
        if impossible:
            return f"Nothing will be decided: {impossible}."
        return (
            "It cannot be said when this will be decided: as the rewards look now, the difference"
            " may be too small to be found."
        )
    when = ""
    if hours is not None:
        span = f"{duration(hours.low)} to {duration(hours.high)}"
        when = f" in {duration(hours.median)} (80%: {span}) at today's pace,"
    sentence = (
        f"Decided{when} after {count(total.median)} randomized requests in all (80%:"
        f" {count(total.low)} to {count(total.high)}), {forecast.randomized:,} of them made."
    )
    if forecast.planned is not None:
        sentence += f" The plan was {forecast.planned:,}."
    return sentence


def outlook(forecast: Forecast | None) -> Outlook | None:
    """A forecast as statements take it."""
    if forecast is None or forecast.state == "decided":
        return None
    return Outlook(kind="unknown", why=forecast.sentence)
