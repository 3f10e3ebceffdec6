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
from equipoise.agent.answers.statements import Band, Outlook, OutlookKind
from equipoise.agent.answers.status import Status
from equipoise.agent.errors import PlanError, dated
from equipoise.agent.monitors.progress import watermark
from equipoise.agent.planning.futures import Futures, budget_spent, futures, pace_of
from equipoise.agent.planning.problem import Problem
from equipoise.agent.planning.requirement import Interval80, interval80
from equipoise.agent.planning.stored import FEWEST_REWARDS, TOO_FEW, running_problem
from equipoise.agent.planning.wording import count, duration, percent, tenths

State: TypeAlias = Literal["pending", "decided", "unknown"]
Reason: TypeAlias = Literal[
    "decided",
    "equivalent",
    "kill-switch",
    "paused",
    "observing",
    "budget-spent",
    "held-back",
    "new-era",
    "no-traffic",
    "too-few-rewards",
    "never",
    "budget-too-small",
    "too-small-a-difference",
    "planner",
]
"""Why no time or number is foretold.

never: missing rewards, each of which counts as the worst case, rule a decision out. held-back: a
decision that should be closed holds the watermark. planner: it has no answer, and says why.
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
    budget_left: float | None = None,
    era: int | None = None,
    newest_at: float | None = None,
) -> Forecast:
    """What holds now of the newest forecast; nothing that it foretold survives what ended it.

    at: seconds since the epoch, now. status: the newest one; decided: the models it names, where
    only they are known. paused: why, None while it is not. observing: the mode. killed: the kill
    switch. budget_left: randomized requests, None for no such limit. era: the one in force.
    newest_at: the time of the newest decision, seconds since the epoch.
    """
    names = list(status.models if status is not None else decided)
    same_era = era is None or era == forecast.era
    if forecast.state == "decided" and same_era:
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


def sentence(forecast: Forecast) -> str:
    """A forecast in words."""
    if forecast.reason is not None:
        return _why_not(forecast, forecast.reason)
    total, hours = forecast.total, forecast.hours
    assert total is not None
    when = ""
    if hours is not None:
        when = f" {_in(hours.median)} (80%: {_band(hours)}) at the pace of late,"
    text = (
        f"A decision is expected{when} after {count(total.median)} randomized requests in all (80%:"
        f" {count(total.low)} to {count(total.high)}), {forecast.randomized:,} of them certified."
    )
    if forecast.limit is not None and forecast.chance is not None and forecast.chance < 0.95:
        text += f" {_ends_first(forecast)}."
    if forecast.planned is not None:
        text += f" The plan was {forecast.planned:,}."
    return text


def _in(hours: float | None) -> str:
    if hours is not None and hours * 60.0 < 1.0:
        return "within a minute"
    return f"in {duration(hours)}"


def _band(hours: Interval80) -> str:
    low, high = duration(hours.low), duration(hours.high)
    return low if low == high else f"{low} to {high}"


def _ends_first(forecast: Forecast) -> str:
    share = 1.0 - (forecast.chance or 0.0)
    return f"In {tenths(share)} of the simulated futures {_limit(forecast)} first"


def _limit(forecast: Forecast) -> str:
    return (
        "the horizon ends"
        if forecast.limit == "horizon"
        else (f"the budget of {forecast.limit or 'requests'} is spent")
    )


def _why_not(forecast: Forecast, reason: Reason) -> str:
    """Why nothing is foretold."""
    why = f": {forecast.why}" if forecast.why else ""
    unlimited, total = forecast.unlimited, forecast.total
    if reason == "decided":
        return f"{forecast.models[0]} is certified: there is nothing to wait for."
    if reason == "equivalent":
        return f"{', '.join(forecast.models)} are alike: there is nothing to wait for."
    if reason == "kill-switch":
        return "The kill switch is on: nothing is decided while it is."
    if reason == "paused":
        return f"Paused{why}. Nothing is decided while it is."
    if reason == "observing":
        return "Observing only: nothing is randomized, so nothing will be decided."
    if reason == "new-era":
        return "A new era has begun: the forecast waits for its first rewards."
    if reason == "planner":
        return f"There is no forecast{why}."
    if reason == "held-back":
        return (
            f"It cannot be said when this will be decided: {forecast.held_by} holds back all that"
            " came after it (see the check watermark)."
        )
    if reason == "too-few-rewards":
        rewards = _or(forecast.rewards, 0.0)
        return (
            f"Too little is known for a forecast: the least tried model has {rewards:g}"
            f" reward{'' if rewards == 1 else 's'} of randomized requests, and"
            f" {FEWEST_REWARDS:g} are needed."
        )
    if reason == "no-traffic":
        needed = ""
        if total is not None and total.median is not None:
            more = max(total.median - forecast.randomized, 0.0)
            needed = f" When it is back, about {count(more)} more randomized requests are needed."
        return f"No traffic since {dated(_or(forecast.newest_at, 0.0))}.{needed}"
    if reason == "budget-spent":
        text = f"Not at this budget: {_limit(forecast)}, and nothing is decided"
        if forecast.chance:
            text += f" (what still waits for its reward may do so: {tenths(forecast.chance)})"
        return f"{text}."
    if reason == "budget-too-small":
        text = f"{_ends_first(forecast)}, and nothing is decided"
        if unlimited is not None and unlimited.median is not None:
            band = f"80%: {count(unlimited.low)} to {count(unlimited.high)}"
            text += f": it takes {count(unlimited.median)} randomized requests ({band})"
        return f"{text}."
    if reason == "never" and forecast.lost is not None:
        below = forecast.least_difference
        least = "no difference" if below is None else f"no difference below {below:.3g}"
        return (
            f"Nothing will be decided: {percent(forecast.lost)} of the randomized requests have no"
            f" reward, and as each counts as the worst case {least} can ever be certified: declare"
            " what a missing reward is worth (reward.missing)."
        )
    text = (
        "It cannot be said when this will be decided: as the rewards look now, the difference may"
        " be too small to be found"
    )
    if forecast.lost and forecast.least_difference is not None:
        text += (
            f", for {percent(forecast.lost)} of the randomized requests have no reward and each"
            " counts as the worst case: declare what a missing reward is worth (reward.missing)"
        )
    return f"{text}."


_KINDS: dict[str, OutlookKind] = {
    "too-few-rewards": "too-few-rewards",
    "no-traffic": "no-traffic",
    "budget-too-small": "budget-too-small",
    "never": "never",
    "too-small-a-difference": "too-small",
    "held-back": "held-back",
}


def outlook(forecast: Forecast | None) -> Outlook | None:
    """A forecast as statements take it; None where there is nothing to wait for."""
    if forecast is None or forecast.state == "decided":
        return None
    seconds = None
    if forecast.newest_at is not None:
        seconds = max(forecast.at - forecast.newest_at, 0.0)
    return Outlook(
        kind="pending" if forecast.reason is None else _KINDS.get(forecast.reason, "unknown"),
        total=_as_band(forecast.total),
        hours=_as_band(forecast.hours),
        randomized=forecast.randomized,
        planned=forecast.planned,
        share=forecast.chance,
        seconds=seconds,
        why=_within_sentence(forecast),
    )


def _within_sentence(forecast: Forecast) -> str:
    """Why nothing is foretold, to follow a colon."""
    text = forecast.why if forecast.reason == "planner" else forecast.sentence
    for head in (
        "Nothing will be decided: ",
        "It cannot be said when this will be decided: ",
        "Too little is known for a forecast: ",
    ):
        text = text.removeprefix(head)
    text = text.removesuffix(".")
    return text if forecast.reason == "held-back" else text[:1].lower() + text[1:]


def _as_band(interval: Interval80 | None) -> Band | None:
    if interval is None:
        return None
    return Band(median=interval.median, low=interval.low, high=interval.high)
