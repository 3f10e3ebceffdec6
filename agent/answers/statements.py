"""Every sentence about the state of an experiment, made here and nowhere else from the same facts.

`state` takes what is known (`Facts`: the certified claim and the comparison of the estimates) and
what is going on (`Situation`: what happens to requests, the forecast) and returns `Statements`,
which interface, page, `status`, metrics and log pass on as they are. docs/statements.md lists
the rules; a property test asks random states for contradictions.

The rules in short: what is certified comes first, then the best estimate, then what it would take.
A value is said with its error, which is always half of a 95% interval. Nothing is to be served that
is not certified. Within epsilon of the best is not called best. No time is foretold that rests on
randomizing while nothing is randomized.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import msgspec

from equipoise.agent.answers.recommendation import KEEP, Comparison
from equipoise.agent.answers.status import (
    RESTARTING_ROWS,
    Activity,
    Band,
    Claim,
    Outlook,
    RatedMore,
    State,
    Status,
)
from equipoise.agent.answers.wording import (
    at_least,
    count,
    dollars,
    duration,
    listed,
    percent,
    tenths,
)
from equipoise.agent.errors import dated
from equipoise.agent.estimators.base import NORMAL_95
from equipoise.store.words import plural

Kind: TypeAlias = Literal["good", "bad", "plain", "watch"]


class Progress(msgspec.Struct, frozen=True):
    """Where an experiment stands. randomized: randomized requests that the certified sums of this
    era hold; made: those in the log, of all eras. reason: why this era was begun, "" for the
    first. about: which requests the sums are about, "" for all. renewed: models that became another
    version of themselves since the experiment began. uncertified: of rows that were drawn
    elsewhere why they count for estimates alone, "" where they do not; None for other rows."""

    randomized: int
    made: int
    era: int = 0
    reason: str = ""
    about: str = ""
    renewed: tuple[str, ...] = ()
    uncertified: str | None = None

    @property
    def restarted(self) -> bool:
        """Whether the era is new and holds next to nothing yet."""
        return self.era > 0 and bool(self.reason) and self.randomized < RESTARTING_ROWS


class Prices(msgspec.Struct, frozen=True):
    """USD a request. models: those whose price is known. routing: the mean of what today's routing
    pays for the requests that were randomized, None where that is not known."""

    models: dict[str, float]
    routing: float | None


class Facts(msgspec.Struct, frozen=True):
    """What is known after some row of the log. claim: what is certified, None while nothing is.
    prices: None where nobody gave any."""

    claim: Claim | None
    comparison: Comparison
    progress: Progress
    prices: Prices | None = None


@dataclass(frozen=True, slots=True)
class Situation:
    """What is going on while `Facts` hold. reason: of the pause or the end, "" where nobody gave
    one. outlook: None where nobody asked for a forecast. final: who is to be served after the end,
    a model or KEEP; None before. paused: whether somebody paused it, which the status says whatever
    else stops requests, such as the kill switch."""

    activity: Activity = Activity.RANDOMIZING
    reason: str = ""
    outlook: Outlook | None = None
    final: str | None = None
    paused: bool = False

    @property
    def stopped(self) -> Activity | None:
        """What people did to the experiment: an end or a pause, None without."""
        if self.final is not None or self.activity is Activity.ENDED:
            return Activity.ENDED
        return Activity.PAUSED if self.paused or self.activity is Activity.PAUSED else None


NOTHING_SPECIAL = Situation()


class Pill(msgspec.Struct, frozen=True):
    """A word in a colour. text: the word. kind: which colour."""

    text: str
    kind: Kind


@dataclass(frozen=True, slots=True)
class Statements:
    """What is said of one state.

    status, models: the decision and what it concerns. action: KEEP, or the certified model to
    serve; leaning: what estimates favour, a model or KEEP, None where too little is known. Then the
    sentences: `certified` with the action, `estimate`, `outlook`, which is "" where nothing is
    foretold; `status_sentence`: the decision alone; `activity_sentence`: what happens to requests.
    """

    status: State
    models: tuple[str, ...]
    action: str
    leaning: str | None
    certified: str
    estimate: str
    outlook: str
    status_sentence: str
    activity_sentence: str
    pills: tuple[Pill, ...]

    @property
    def headline(self) -> str:
        """What is certified, what is estimated, what it would take."""
        return " ".join(each for each in (self.certified, self.estimate, self.outlook) if each)


def state(facts: Facts, situation: Situation = NOTHING_SPECIAL) -> Statements:
    """Everything there is to say."""
    claim, comparison, activity = facts.claim, facts.comparison, situation.activity
    action = situation.final or action_of(claim, comparison)
    knowledge = _knowledge(claim, facts.progress)
    elsewhere = facts.progress.uncertified is not None and activity.randomizing
    return Statements(
        status=_stopped(situation) or knowledge,
        models=() if claim is None else claim.models,
        action=action,
        leaning=comparison.leaning,
        certified=_ended(claim, facts.progress, situation) or _certified(facts, action),
        estimate=_estimated(claim, comparison, facts.progress),
        outlook="" if elsewhere else _outlook(claim, situation),
        status_sentence=_status(claim, facts.progress, situation),
        activity_sentence=_NEXT if elsewhere else activity_sentence(activity, situation.reason),
        pills=_pills(knowledge, claim, activity),
    )


def decision(
    claim: Claim | None, progress: Progress, situation: Situation, *, epsilon: float, delta: float
) -> Status:
    """The decision alone, also of a segment: what is certified of it at level delta."""
    known = _stopped(situation) or _knowledge(claim, progress)
    models = () if claim is None else claim.models
    return Status(known, models, epsilon, delta, _status(claim, progress, situation))


_STOPPED_BY_PEOPLE = {Activity.PAUSED: State.PAUSED, Activity.ENDED: State.ENDED}


def _stopped(situation: Situation) -> State | None:
    """The status that people gave it, None where they did not stop it."""
    stopped = situation.stopped
    return None if stopped is None else _STOPPED_BY_PEOPLE[stopped]


def past_decision(claim: Claim | None, randomized: int, uncertified: str = "") -> tuple[State, str]:
    """The decision of an era that has ended, and the sentence about it. uncertified: of rows that
    were drawn elsewhere, why nothing was certified of them."""
    if claim is None and uncertified:
        return State.EXPLORING, f"Its rows count for estimates alone: {uncertified}."
    if claim is None:
        return (
            State.EXPLORING,
            f"Nothing was certified by {plural(randomized, 'randomized request')}.",
        )
    return _knowledge(claim, Progress(randomized, randomized)), _sure(claim)


def action_of(claim: Claim | None, comparison: Comparison) -> str:
    """The certified model, unless the estimates say that today's routing is better still."""
    if claim is None or claim.kind == "alike" or not claim.whole:
        return KEEP
    keep = comparison.leaning == KEEP and claim.over_routing <= 0.0
    return KEEP if keep else claim.models[0]


def _knowledge(claim: Claim | None, progress: Progress) -> State:
    """The decision, whatever happens to requests now."""
    if claim is not None:
        return State.EQUIVALENT if claim.kind == "alike" else State.DECIDED
    return State.RESTARTED if progress.restarted else State.EXPLORING


def fact(claim: Claim) -> str:
    """A certified claim, with its guarantee."""
    promise = f"(wrong in at most {claim.delta:.3g} of such experiments, whenever one looks)"
    if claim.kind == "alike":
        within = f"within {claim.epsilon:.4g} of each other"
        return f"{listed(claim.models)} are certified {within}{claim.about} {promise}"
    model = claim.models[0]
    if claim.kind == "best":
        by = f", by at least {at_least(claim.by)}" if claim.by > 0.0 else ""
        text = f"{model} is certified best of the models{claim.about}{by}"
    else:
        text = f"{model} is certified within {claim.epsilon:.4g} of the best model{claim.about}"
    if claim.over_routing > 0.0:
        text += f", and at least {at_least(claim.over_routing)} better than today's routing"
    return f"{text} {promise}"


def rating(gaps: Sequence[RatedMore], shares: Sequence[tuple[str, float, int]]) -> str:
    """How many requests are rated. shares: of each model its name, the share, of how many draws."""
    known = [f"{percent(share)} of {rows:,} on {name}" for name, share, rows in shares if rows]
    of = f"Values are among those who rate ({listed(known) or 'none so far'})"
    more = f"certified: {_rated_more(gaps)}" if gaps else "no difference in how many is certified"
    return f"{of}; {more}. A model that changes who rates changes its value."


def _rated_more(gaps: Sequence[RatedMore]) -> str:
    one = max(gaps, key=lambda gap: gap.by)
    most = f" (the largest of {len(gaps)} such differences)" if len(gaps) > 1 else ""
    least = f"by at least {at_least(100.0 * one.by)}% of requests{most}"
    return f"{one.model} is rated more often than {one.other}, {least}"


def _sure(claim: Claim, but: str = "") -> str:
    """A certified claim, and what else it may rest on: who rates."""
    why = ""
    if claim.rating:
        why = " Who rates depends on the model, and that may be the reason. Certified:"
        why += f" {_rated_more(claim.rating)}."
    return f"{fact(claim)}{but}.{why}"


def _ended(claim: Claim | None, progress: Progress, situation: Situation) -> str:
    """Whom an operator chose at the end, and whether that is certified; "" before."""
    final = situation.final
    if final is None:
        return ""
    why = f" ({situation.reason})" if situation.reason else ""
    chosen = "keep today's routing" if final == KEEP else f"serve {final}"
    sure = claim is not None and claim.whole and final in claim.models
    if final != KEEP and not sure:
        chosen += ", which is not certified"
    known = _sure(claim) if claim else f"Nothing is certified. {_progress(progress)}"
    return f"Ended{why}: {chosen}. {known}"


def _certified(facts: Facts, action: str) -> str:
    claim = facts.claim
    if claim is None:
        return f"Not certified: keep today's routing. {_progress(facts.progress)}"
    if not claim.whole:
        part = f"On a part of it {_sure(claim)}"
        return f"Not certified for all of the traffic: keep today's routing. {part}"
    paid = _paid(facts.prices, claim.models)
    if claim.kind == "alike":
        return f"Keep today's routing, or choose by price: {_sure(claim)}{paid}"
    if action == KEEP:
        worse = ", but by the estimates today's routing is better still"
        return f"Keep today's routing: {_sure(claim, worse)}"
    return f"Serve {claim.models[0]}: {_sure(claim)}{paid}"


def _paid(prices: Prices | None, models: Sequence[str]) -> str:
    """What a request costs on these models and as it is routed today; "" where one is unknown, or
    all are free."""
    if prices is None or prices.routing is None or not set(models) <= set(prices.models):
        return ""
    if not any((prices.routing, *(prices.models[name] for name in models))):
        return ""
    each = [f"{dollars(prices.models[name])} on {name}" for name in models]
    return f" A request costs {', '.join(each)} and {dollars(prices.routing)} as routed today."


def _progress(progress: Progress) -> str:
    if progress.uncertified:
        return f"These are {progress.reason}, for estimates alone: {progress.uncertified}."
    verb = "is" if progress.randomized == 1 else "are"
    count = f"{plural(progress.randomized, 'randomized request')} {verb} in the certified sums"
    if progress.about:
        count += f", which hold{progress.about}"
    if progress.era > 0 and progress.reason:
        return f"A new era began ({progress.reason}); {count}."
    if progress.era == 0 and progress.randomized < progress.made:
        return f"{count}, of {progress.made:,} made."
    return f"{count}."


def _status(claim: Claim | None, progress: Progress, situation: Situation) -> str:
    answer = _sure(claim) if claim else f"Nothing is certified yet. {_progress(progress)}"
    if situation.stopped is None:
        return answer
    if situation.final is not None:
        return _ended(claim, progress, situation)
    first = activity_sentence(situation.stopped, situation.reason)
    return f"{first} {'What was certified stands: ' if claim else ''}{answer}"


def _estimated(claim: Claim | None, comparison: Comparison, progress: Progress) -> str:
    text, pooled, numbers = _compared(comparison), "", comparison.kind in _NUMBERS
    if comparison.about and (numbers or comparison.kind == "wide"):
        text = f"{comparison.about}, {text}"
        if comparison.family != "ipw":
            pooled = f" ({comparison.family} takes those who rate for a random part of all.)"
    if not numbers:
        text = f"By the estimates nothing can be said: {text}"
    elif claim is None or not claim.whole:
        text = f"By the estimates, which certify nothing, {text}"
    elif claim.over_routing > 0.0:
        text = f"By the estimates {text}"
    else:
        text = f"Against today's routing nothing is certified; by the estimates {text}"
    if numbers and progress.era > 0 and progress.reason:
        only = f", but of {listed(progress.renewed)} only what the newest version answered"
        pooled += f" Estimates hold all eras, also from before this one ({progress.reason})"
        pooled += f"{only if progress.renewed else ''}."
    apart = "" if claim is not None else _apart(comparison)
    return f"{text}.{apart}{pooled}{comparison.note and ' ' + comparison.note}"


def _apart(comparison: Comparison) -> str:
    """Families whose best model is another one; "" where none is, or by how much is not known."""
    if comparison.kind != "leads":
        return ""
    best = comparison.models[comparison.top[0]]
    told = [
        f"{one.family} favours {one.favoured}, by"
        f" {_both(comparison, one.lead, one.lead_standard_error)}"
        for one in comparison.readings
        if one.favoured != best and one.lead and one.lead_standard_error
    ]
    return f" Families of estimates disagree: over {best} {'; '.join(told)}." if told else ""


_NUMBERS = ("tie-with-routing", "routing", "tie", "leads")


def _compared(comparison: Comparison) -> str:
    """The comparison in words; each value with half of its 95% interval."""
    one, names = comparison, [comparison.models[index] for index in comparison.top]
    if one.kind == "nothing":
        return "no model has a value yet"
    if one.kind == "few":
        return f"too few different rewards of {listed(one.unknown)}"
    best = _value(one, one.top[0])
    if one.kind == "wide":
        return f"the errors are larger than the range of rewards ({best} for {names[0]})"
    blank = [name for name, value in zip(one.models, one.values, strict=True) if math.isnan(value)]
    more = f"; {one.family} knows nothing of {listed(blank)} yet" if blank else ""
    if one.kind == "tie-with-routing":
        return f"{listed([*names, todays_routing])} tie at {best}{more}"
    if one.kind == "tie":
        return f"{listed(names)} tie at {best}{more}"
    routing = _both(one, one.routing, one.routing_error)
    if one.kind == "routing":
        return (
            f"no model looks better than today's routing, which is worth {routing}: the best one,"
            f" {names[0]}, is worth {best}{more}"
        )
    against = "; what today's routing is worth is not known"
    if math.isfinite(one.routing_error):
        gap = one.values[one.top[0]] - one.routing
        error = math.hypot(one.errors[one.top[0]], one.routing_error)
        signed = "+" if gap >= 0 else ""
        against = f", {signed}{_both(one, gap, error)} against today's routing ({routing})"
    return f"{names[0]} looks best, worth {best}{against}{more}"


todays_routing = "today's routing"


def _value(comparison: Comparison, index: int) -> str:
    return _both(comparison, comparison.values[index], comparison.errors[index])


def _both(comparison: Comparison, value: float, error: float) -> str:
    digits = comparison.digits
    return f"{value:.{digits}f} ± {NORMAL_95 * error:.{digits}f}"


def _outlook(claim: Claim | None, situation: Situation) -> str:
    activity, outlook = situation.activity, situation.outlook
    if situation.stopped is Activity.ENDED:
        return "The experiment has ended."
    if claim is not None:
        return _AFTER_DECISION.get(activity, "")
    if not activity.randomizing:
        return nothing_while(activity, situation.reason)
    return "" if outlook is None else foretold(outlook)


_AFTER_DECISION = {
    Activity.DECIDED: "Nothing more is randomized; every request is served as your router says.",
    Activity.RAMP: "A small share is still randomized, so that a change is noticed.",
    Activity.RANDOMIZING: "Requests are still randomized: end the experiment once this is enough.",
}
_NO_FORECAST = {
    Activity.KILL_SWITCH: "Nothing will be certified while the kill switch is on",
    Activity.PASSING_THROUGH: "Nothing will be certified while requests are passed through",
    Activity.OBSERVING: "Nothing will be certified in mode `observe`: nothing is randomized",
    Activity.PAUSED: "Nothing will be certified while randomizing is paused",
    Activity.DECIDED: "Nothing more is randomized until the next rule",
    Activity.UNPRICED: "Nothing will be certified until a model has a price",
    Activity.BUDGET_SPENT: "The budget is spent: nothing will be certified unless it is raised",
}


_STOPS = {
    "kill-switch": Activity.KILL_SWITCH,
    "paused": Activity.PAUSED,
    "observing": Activity.OBSERVING,
}


def nothing_while(activity: Activity, reason: str = "") -> str:
    """What has to change before anything can be certified."""
    why = f" ({reason})" if activity in _STOPPED_BY_PEOPLE and reason else ""
    return f"{_NO_FORECAST[activity]}{why}."


def foretold(outlook: Outlook) -> str:
    """A forecast, or why there is none, in words."""
    if outlook.reason is not None:
        return _why_not(outlook, outlook.reason)
    total, hours = outlook.total, outlook.hours
    assert total is not None
    when = ""
    if hours is not None:
        when = f" {_in(hours.median)} (80%: {_band(hours)}) at the recent pace,"
    text = (
        f"A decision is expected{when} after {count(total.median)} randomized requests in all (80%:"
        f" {_counts(total)}); {outlook.randomized:,} are certified so far."
    )
    if outlook.limit is not None and outlook.chance is not None and outlook.chance < 0.95:
        text += f" {_ends_first(outlook)}."
    if outlook.planned is not None:
        text += f" The plan was {outlook.planned:,}."
    return text


def _in(hours: float | None) -> str:
    if hours is not None and hours * 60.0 < 1.0:
        return "within a minute"
    return f"in {duration(hours)}"


def _counts(total: Band) -> str:
    """An 80% band of requests; an end that is beyond a limit, or beyond what was simulated, is
    open."""
    return f"{count(total.low)} {'or more' if total.high is None else f'to {count(total.high)}'}"


def _band(hours: Band) -> str:
    if hours.high is None:
        return f"{duration(hours.low)} or more"
    low, high = duration(hours.low), duration(hours.high)
    return low if low == high else f"{low} to {high}"


def _ends_first(outlook: Outlook) -> str:
    share = 1.0 - (outlook.chance or 0.0)
    return f"In {tenths(share)} of the simulated futures {_limit(outlook)} first"


def _limit(outlook: Outlook) -> str:
    return (
        "the horizon ends"
        if outlook.limit == "horizon"
        else (f"the budget of {outlook.limit or 'requests'} is spent")
    )


def _why_not(outlook: Outlook, reason: str) -> str:
    """Why nothing is foretold."""
    why = f": {outlook.why}" if outlook.why else ""
    unlimited, total = outlook.unlimited, outlook.total
    if reason == "decided":
        return f"{outlook.models[0]} is certified: there is nothing to wait for."
    if reason == "equivalent":
        return f"{listed(outlook.models)} are alike: there is nothing to wait for."
    if reason in _STOPS:
        return nothing_while(_STOPS[reason], outlook.why)
    if reason == "new-era":
        return "A new era has begun: the forecast waits for its first rewards."
    if reason == "ended":
        return "The experiment has ended."
    if reason == "outdated":
        return "What the last forecast rested on has changed: the next one is on its way."
    if reason == "planner":
        return f"There is no forecast{why}."
    if reason == "held-back":
        return (
            f"It cannot be said when this will be decided: {outlook.held_by} holds back all that"
            " came after it (see the check watermark)."
        )
    if reason == "too-few-rewards":
        return (
            "Too little is known for a forecast: the least tried model has"
            f" {plural(outlook.rewards, 'reward')} of randomized requests, and"
            f" {outlook.fewest:g} are needed."
        )
    if reason == "no-traffic":
        needed = ""
        if total is not None and total.median is not None:
            more = max(total.median - outlook.randomized, 0.0)
            needed = f" When it is back, about {count(more)} more randomized requests are needed."
        return f"No traffic since {dated(outlook.newest_at)}.{needed}"
    if reason == "budget-spent":
        text = f"Not at this budget: {_limit(outlook)}, and nothing is decided"
        if outlook.chance:
            text += f" (what still waits for its reward may do so: {tenths(outlook.chance)})"
        return f"{text}."
    if reason == "budget-too-small":
        text = f"{_ends_first(outlook)}, and nothing is decided"
        if unlimited is not None and unlimited.median is not None:
            text += (
                f"; without that limit it takes {count(unlimited.median)} randomized requests (80%:"
                f" {_counts(unlimited)})"
            )
        return f"{text}."
    if reason == "never" and outlook.lost is not None:
        below = outlook.least_difference
        least = "no difference" if below is None else f"no difference below {below:.3g}"
        return (
            f"Nothing will be decided: {percent(outlook.lost)} of the randomized requests have no"
            f" reward, and as each counts as the worst case {least} can ever be certified: declare"
            " what a missing reward means (reward.missing)."
        )
    text = (
        "It cannot be said when this will be decided: as the rewards look now, the difference may"
        " be too small to be found"
    )
    if outlook.lost and outlook.least_difference is not None:
        text += (
            f", for {percent(outlook.lost)} of the randomized requests have no reward and each"
            " counts as the worst case: declare what a missing reward means (reward.missing)"
        )
    return f"{text}."


def activity_sentence(activity: Activity, reason: str = "") -> str:
    """What happens to requests now."""
    why = f" ({reason})" if reason else ""
    return {
        Activity.KILL_SWITCH: "The kill switch is on: requests are passed through, not logged.",
        Activity.PASSING_THROUGH: f"Requests are passed through and not logged{why}.",
        Activity.ENDED: f"Ended{why}: decisions are logged, every request is served as routed.",
        Activity.OBSERVING: "Only observing: decisions are logged, every request is served as"
        " routed.",
        Activity.PAUSED: f"Paused{why}: decisions are logged, every request is served as routed.",
        Activity.DECIDED: "Decided: nothing more is randomized, every request is served as routed.",
        Activity.UNPRICED: "The budget is in money and no price is known: nothing is randomized.",
        Activity.BUDGET_SPENT: "The budget is spent: every request is served as routed.",
        Activity.RAMP: "Decided: a small share of the requests is still randomized.",
        Activity.RANDOMIZING: "A share of the requests is randomized.",
    }[activity]


NOTHING_DECIDED = "No request has been decided here yet."
"""In place of what happens to requests, where only a log is known."""
_NEXT = (
    "These rows were drawn elsewhere; the next decision here, or the start of a daemon, begins an "
    "era of its own."
)


def _pills(knowledge: State, claim: Claim | None, activity: Activity) -> tuple[Pill, ...]:
    words: dict[State, tuple[str, Kind]] = {
        State.EXPLORING: ("not certified", "plain"),
        State.RESTARTED: ("new era, not certified", "watch"),
        State.DECIDED: ("decided", "good"),
        State.EQUIVALENT: ("equivalent", "good"),
    }
    text, kind = words[knowledge]
    if claim is not None and not claim.whole:
        text = f"{text} on a part"
    good: Kind = "good" if activity.randomizing else "plain"
    bad = (Activity.KILL_SWITCH, Activity.PASSING_THROUGH, Activity.PAUSED, Activity.UNPRICED)
    doing = "not randomizing" if activity is Activity.DECIDED else activity.value.replace("-", " ")
    return Pill(text, kind), Pill(doing, "bad" if activity in bad else good)
