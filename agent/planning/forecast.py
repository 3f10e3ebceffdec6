"""When a running experiment will be decided, renewed as its data arrive, or why nobody can say.

`forecast` is made once a minute from everything folded; `current` is what holds of it now: a
decision, a pause, a spent budget or a silence replaces it at once. `sentence` says either in words.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from math import inf
from typing import Literal, TypeAlias

import msgspec
import numpy as np

from equipoise.agent.answers.answers import Answers, Foreseen
from equipoise.agent.answers.statements import foretold
from equipoise.agent.answers.status import Outlook, Status
from equipoise.agent.errors import PlanError
from equipoise.agent.monitors.progress import watermark
from equipoise.agent.planning.futures import Futures, budget_spent, futures, pace_of
from equipoise.agent.planning.problem import Problem
from equipoise.agent.planning.requirement import Interval80, interval80
from equipoise.agent.planning.stored import FEWEST_REWARDS, TOO_FEW, running_problem

State: TypeAlias = Literal["pending", "decided", "unknown"]
Reason: TypeAlias = Literal[
    "decided",
    "equivalent",
    "kill-switch",
    "ended",
    "paused",
    "observing",
    "budget-spent",
    "held-back",
    "new-era",
    "outdated",
    "no-traffic",
    "too-few-rewards",
    "never",
    "budget-too-small",
    "too-small-a-difference",
    "planner",
]
"""Why no time or number is foretold.

never: missing rewards, each of which counts as the worst case, rule a decision out. held-back: a
decision that should be closed holds the watermark. outdated: what it rested on has changed since,
and the next one is not made yet. planner: it has no answer, and says why.
"""

LIKELY, SURE = 0.5, 0.9
"""Share of the futures that must end for a forecast to be one, and of those that missing rewards
rule out for the word never."""


class Forecast(msgspec.Struct, frozen=True, kw_only=True):
    """What is to come until the certified decision, by the first `log_rows` rows of the log.

    state: `decided` where nothing is, `unknown` where it cannot be said; reason: why, null where it
    is `pending`. randomized: certified randomized requests of this era so far; planned: as
    `budget.planned`, null without. total: randomized requests of this era in all, hours: from `at`
    on; medians and bands of 80% over futures that go on from here with true values, shares of
    missing rewards and traffic drawn from what the log says. null in a band: more than were
    simulated, or than the budget allows. hours is null where the pace of the traffic is unknown.

    chance: share of the futures that are decided before the simulation and every limit end; limit:
    the limit that ends most of the others; unlimited: `total` if there were no limits, null without
    any. models: those that are decided on. why: who paused it, or what the planner says. rewards:
    those of the least tried model. lost: share of randomized requests without a reward that count
    as the worst case; least_difference: below which, in reward units, none is ever certified.
    held_by: the decision that holds the watermark. newest_at: the time of the newest decision,
    seconds since the epoch; quiet_after: seconds from then on after which there is no traffic.
    requests_per_hour, randomized_per_hour: the pace of late.
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
    reason: Reason | None = None
    chance: float | None = None
    limit: str | None = None
    unlimited: Interval80 | None = None
    models: list[str] = []
    why: str = ""
    rewards: float | None = None
    lost: float | None = None
    least_difference: float | None = None
    held_by: str | None = None
    newest_at: float | None = None
    quiet_after: float | None = None
    requests_per_hour: float | None = None
    randomized_per_hour: float | None = None

    @property
    def foreseen(self) -> Foreseen | None:
        """As the check `plan` takes it; None where nothing is foretold."""
        if self.total is None:
            return None
        low, median = self.total.low, self.total.median
        return Foreseen(self.era, inf if low is None else low, inf if median is None else median)


def forecast(answers: Answers, at: float) -> Forecast:
    """The forecast of an experiment, from everything folded. at: seconds since the epoch, now; what
    is earlier than the newest decision counts as that."""
    state, certified = answers.state, answers.certified()
    made = no_forecast(answers, at, "")
    winner, alike = answers.certified_winner(), certified.standing.equivalent()
    if winner is not None or alike:
        names = [winner] if winner is not None else [state.models[each] for each in alike]
        reason: Reason = "decided" if winner is not None else "equivalent"
        return _as(made, "decided", reason, models=names)
    now = max(at, state.light.pending.newest_at)
    pace = pace_of(answers, now)
    if len(pace.at):
        made = msgspec.structs.replace(
            made, newest_at=float(pace.at[-1]), quiet_after=pace.quiet_after
        )
    holder = watermark(answers.behind(), now, state.config.reward.window)
    if holder.status in ("watch", "alarm") and pace.silent <= pace.quiet_after:
        return _as(made, "unknown", "held-back", held_by=holder.figures["decision_id"])
    spent = budget_spent(answers)
    try:
        problem, rewards = running_problem(answers, {})
    except PlanError as error:
        if spent is not None:
            return _as(made, "unknown", "budget-spent", limit=spent)
        if error.field == TOO_FEW:
            return _as(made, "unknown", "too-few-rewards", rewards=float(str(error.value)))
        return no_forecast(answers, at, str(error))
    coming = futures(answers, problem, rewards, now)
    made = _foretold(made, certified.randomized, coming, problem)
    reason_ = _reason(coming, spent)
    made = _as(made, "pending" if reason_ is None else "unknown", reason_)
    if spent is not None:
        made = _as(made, made.state, made.reason, limit=spent)
    return current(made, at=at)


def _foretold(made: Forecast, randomized: int, coming: Futures, problem: Problem) -> Forecast:
    """With the numbers of its futures."""
    power, within = problem.request.power, coming.within
    total = randomized + coming.randomized
    hours = None
    if coming.hours is not None:
        hours = interval80(np.where(within, coming.hours, np.inf), power)
    lost = float(problem.lost.mean())
    least = (lost - problem.epsilon) / max(1.0 - lost, 1e-9) * problem.scale
    pace = coming.requests_per_hour
    return msgspec.structs.replace(
        made,
        total=interval80(np.where(within, total, np.inf), power),
        hours=hours,
        chance=float(within.mean()),
        limit=coming.limit,
        unlimited=None if coming.limit is None else interval80(total, power),
        lost=lost,
        least_difference=least if least > 0.0 else None,
        requests_per_hour=pace,
        randomized_per_hour=None if pace is None else pace * problem.request.rate * coming.entering,
    )


def _reason(coming: Futures, spent: str | None) -> Reason | None:
    """Why fewer than half of the futures end; None where as many do."""
    if coming.within.mean() >= LIKELY:
        return None
    if spent is not None:
        return "budget-spent"
    if np.isfinite(coming.randomized).mean() >= LIKELY:
        return "budget-too-small"
    return "never" if coming.ruled_out.mean() >= SURE else "too-small-a-difference"


def no_forecast(answers: Answers, at: float, why: str) -> Forecast:
    """That nothing can be foretold, and why."""
    made = Forecast(
        state="unknown",
        sentence="",
        at=at,
        log_rows=answers.state.light.next_seq,
        era=answers.state.rule.era,
        randomized=answers.certified().randomized,
        planned=answers.state.config.budget.planned,
        reason="planner",
        why=why,
    )
    return msgspec.structs.replace(made, sentence=sentence(made))


def current(
    forecast: Forecast,
    *,
    at: float,
    status: Status | None = None,
    decided: Rows[str] = (),
    paused: str | None = None,
    observing: bool = False,
    killed: bool = False,
    ended: bool = False,
    undecided: bool = False,
    rewards: float | None = None,
    budget_left: float | None = None,
    era: int | None = None,
    newest_at: float | None = None,
) -> Forecast:
    """What holds now of the newest forecast; nothing that it foretold survives what ended it.

    at: seconds since the epoch, now. status: the newest one; decided: the models it names, where
    only they are known. undecided: the newest report of this era has no decision, so one that the
    forecast knows of was taken back. paused: why, None while it is not. observing: the mode.
    rewards: those of the least tried model, by a newer report, None without one. killed: the kill
    switch. ended: whether it has ended. budget_left: randomized requests, inf without such a limit,
    None where nobody knows. era: the one in force. newest_at: the time of the newest decision,
    seconds since the epoch.
    """
    names = list(status.models if status is not None else decided)
    same_era = era is None or era == forecast.era
    if ended:
        return _bare(forecast, at, "unknown", "ended")
    taken_back = forecast.state == "decided" and undecided and not names
    if forecast.state == "decided" and same_era and not taken_back:
        return forecast
    if names:
        reason: Reason = "decided" if len(names) == 1 else "equivalent"
        return _bare(forecast, at, "decided", reason, models=names, era=_or(era, forecast.era))
    if killed:
        return _bare(forecast, at, "unknown", "kill-switch")
    if paused is not None:
        return _bare(forecast, at, "unknown", "paused", why=paused)
    if observing:
        return _bare(forecast, at, "unknown", "observing")
    if not same_era:
        return _bare(forecast, at, "unknown", "new-era", era=_or(era, 0), randomized=0)
    if budget_left is not None and budget_left <= 0 and forecast.reason != "budget-spent":
        limit = forecast.limit or "requests"
        # What still waits for its reward may decide: the next forecast says whether.
        return _bare(forecast, at, "unknown", "budget-spent", limit=limit)
    raised = forecast.reason == "budget-spent" and (budget_left or 0.0) > 0.0
    if taken_back or (raised and forecast.limit in (None, "requests")):
        return _bare(forecast, at, "unknown", "outdated", limit=None, models=[])
    if forecast.reason == "too-few-rewards" and rewards is not None:
        if rewards >= FEWEST_REWARDS:
            return _bare(forecast, at, "unknown", "outdated", rewards=None)
        return _as(forecast, "unknown", forecast.reason, rewards=rewards)
    if forecast.state != "pending" and forecast.reason != "no-traffic":
        return forecast
    newest = max(_or(newest_at, 0.0), _or(forecast.newest_at, 0.0))
    quiet = forecast.quiet_after
    if quiet is not None and at - newest > quiet:
        return _as(forecast, "unknown", "no-traffic", newest_at=newest, at=at, hours=None)
    if forecast.state != "pending" or at <= forecast.at or forecast.hours is None:
        return forecast
    return _as(forecast, "pending", None, at=at, hours=_later(forecast.hours, at - forecast.at))


def _or(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


def _later(hours: Interval80, seconds: float) -> Interval80:
    """The same moments, seen from so many seconds later."""

    def left(each: float | None) -> float | None:
        return None if each is None else max(each - seconds / 3600.0, 0.0)

    return Interval80(left(hours.median), left(hours.low), left(hours.high), left(hours.needed))


def _as(forecast: Forecast, state: State, reason: Reason | None, **changes: object) -> Forecast:
    made = msgspec.structs.replace(forecast, state=state, reason=reason, **changes)
    return msgspec.structs.replace(made, sentence=sentence(made))


def _bare(
    forecast: Forecast, at: float, state: State, reason: Reason, **changes: object
) -> Forecast:
    """Without anything that was foretold."""
    nothing = dict.fromkeys(("total", "hours", "unlimited", "chance"))
    return _as(forecast, state, reason, **{**nothing, "at": at, **changes})


def outlook(forecast: Forecast | None) -> Outlook | None:
    """A forecast as statements take it; None where there is none."""
    if forecast is None:
        return None
    same = "reason total hours randomized planned chance limit unlimited models why lost"
    return Outlook(
        **{name: getattr(forecast, name) for name in same.split()},
        least_difference=forecast.least_difference,
        held_by=forecast.held_by,
        rewards=_or(forecast.rewards, 0.0),
        fewest=FEWEST_REWARDS,
        newest_at=_or(forecast.newest_at, 0.0),
    )


def sentence(forecast: Forecast) -> str:
    """A forecast in words."""
    words = outlook(forecast)
    assert words is not None
    return foretold(words)
