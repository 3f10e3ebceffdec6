"""When a running experiment will be decided, renewed as its data arrive."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

import msgspec
import numpy as np

from equipoise.agent.errors import PlanError
from equipoise.agent.planning.problem import Problem
from equipoise.agent.planning.requirement import Interval80, interval80
from equipoise.agent.planning.sentences import count, duration, never
from equipoise.agent.planning.stored import FEWEST_REWARDS, TOO_FEW, running_problem, until_decided

if TYPE_CHECKING:
    from equipoise.agent.answers.answers import Reader

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


def forecast(agent: Reader, at: float) -> Forecast:
    """The forecast of everything the agent has folded. at: seconds since the epoch, now."""
    certified, known = agent.certified(), no_forecast(agent, at, "")
    winner, alike = agent.certified_winner(), certified.standing.equivalent()
    if winner is not None or alike:
        told = f"{winner} is certified" if winner is not None else "The best models are alike"
        return _with(known, state="decided", sentence=f"{told}: there is nothing to wait for.")
    try:
        problem, rewards = running_problem(agent, {})
    except PlanError as error:
        known = no_forecast(agent, at, str(error))
        if error.field == TOO_FEW:
            said = (
                f"Too little is known for a forecast: the least tried model has {error.value:g}"
                f" rewards of randomized requests, and {FEWEST_REWARDS:g} are needed."
            )
            return _with(known, sentence=said)
        return known
    ends = until_decided(problem, rewards)
    power, traffic = problem.request.power, problem.request.traffic
    spent = np.where(np.isfinite(ends.requests), ends.counts.sum(axis=1), np.inf)
    total = interval80(certified.randomized + spent, power)
    hours = None
    if traffic is not None:
        hours = interval80(ends.requests / traffic + problem.request.window, power)
    made = _with(known, state="pending", total=total, hours=hours)
    return _with(made, sentence=_sentence(made, problem))


def no_forecast(agent: Reader, at: float, why: str) -> Forecast:
    """That nothing can be foretold, and why."""
    return Forecast(
        state="unknown",
        sentence=f"There is no forecast: {why}.",
        at=at,
        log_rows=agent.fold.next_seq,
        era=agent.rule.era,
        randomized=agent.certified().randomized,
        planned=agent.config.budget.planned,
    )


def _with(known: Forecast, **changes: object) -> Forecast:
    return msgspec.structs.replace(known, **changes)


def _sentence(made: Forecast, problem: Problem) -> str:
    total, hours = made.total, made.hours
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
    said = (
        f"Decided{when} after {count(total.median)} randomized requests in all (80%:"
        f" {count(total.low)} to {count(total.high)}), {made.randomized:,} of them made."
    )
    if made.planned is not None:
        said += f" The plan was {made.planned:,}."
    return said
