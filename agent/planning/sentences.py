"""What a plan says to people: the recommended plan in one sentence, and what it rests on."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Rows
from typing import Any

from equipoise.agent.inference.certificate import Sequence
from equipoise.agent.planning.problem import Problem
from equipoise.agent.planning.requirement import Requirement
from equipoise.agent.planning.tables import Bought, Split

_MINUTE = 1.0 / 60.0
RESTS_ON = {
    Sequence.BOUNDED: "certified by the bounded sequence, which needs no further assumption",
    Sequence.PER_MODEL: (
        "certified by the per-model sequence: traffic is stationary and no probability depends on"
        " a request"
    ),
    Sequence.ASYMPTOTIC: (
        "certified by the asymptotic sequence: exact only in the limit, opened once every model"
        " has had enough of its rarer outcome"
    ),
}


def recommendation(
    problem: Problem, best: Requirement | None, rows: Rows[Requirement], effect: float
) -> str:
    """The recommended plan in one sentence, or why there is none."""
    request = problem.request
    if best is None:
        return _none(problem, rows, effect)
    needed, span = best.randomized.needed, best.randomized
    traffic = "" if best.hours is None else f", {duration(best.hours.needed)} at this traffic"
    paid = "" if best.money is None else f", {dollars(best.money.needed)}"
    what = {
        "effect": f"to find a model that is better by {best.effect:.3g} with"
        f" {request.power:.0%} power",
        "half-width": f"to know the leader's lead to ± {request.half_width or 0:.3g}",
        "regret": f"to be certified within {request.regret or 0:.3g} of the best",
    }[best.goal]
    return (
        f"Randomize {best.rate:.3g} of the requests by {best.policy}: plan for {count(needed)}"
        f" randomized requests ({count(best.requests.needed)} in all{traffic}{paid}) {what}, at"
        f" any look wrong with probability at most {request.delta:.3g}; half of such experiments"
        f" end by {count(span.median)}, 80% between {count(span.low)} and {count(span.high)}."
    )


def never(problem: Problem, effect: float) -> str:
    """Why no number of requests finds an effect on the [0, 1] scale: missing rewards that count as
    the worst case. "" where they do not stand in the way."""
    lost = float(problem.lost.mean())
    if lost == 0.0 or problem.lead(effect) + problem.epsilon > 0.0:
        return ""
    least = (lost - problem.epsilon) / (1.0 - lost)
    below = "no difference" if least >= 1.0 else f"no difference below {least * problem.scale:.3g}"
    cure = "declare what a missing reward is worth (reward.missing)"
    if problem.request.missing_value is not None:
        cure = "deliver what is drawn (the check delivery says which model is affected)"
    return (
        f"{percent(lost)} of the randomized requests have no reward, and as each counts as the"
        f" worst case {below} can ever be certified: {cure}"
    )


def percent(share: float) -> str:
    """A share in words, never rounded to none or all."""
    return f"{share:.0%}" if 0.005 <= share < 0.995 else f"{100.0 * share:.3g}%"


def _none(problem: Problem, rows: Rows[Requirement], effect: float) -> str:
    request = problem.request
    impossible = never(problem, effect)
    if impossible:
        return f"A difference of {effect * problem.scale:.3g} is never found: {impossible}."
    reasons = [f"{row.policy}: {row.note}" for row in rows if row.note]
    if len(reasons) == len(rows):
        return (
            f"The planner cannot know when a difference of {effect * problem.scale:.3g} would be"
            f" found ({'; '.join(reasons)}); look for a larger one, randomize more, or declare"
            " another sequence."
        )
    hours = [row.hours.needed for row in rows if row.hours and row.hours.needed is not None]
    soonest = f"the soonest plan takes {duration(min(hours))}" if hours else "no plan ends"
    return (
        f"Not within the horizon of {request.horizon or 0:g} hours: {soonest}; randomize more,"
        " look for a larger difference, or wait longer."
    )


def budget_sentence(problem: Problem, bought: Rows[Bought]) -> str:
    """What the budget buys under the policy that finds the smallest effect."""
    best = min(bought, key=lambda each: (each.smallest_effect or 9e99, each.half_width or 9e99))
    hours = "" if best.hours is None else f" ({duration(best.hours)} at this traffic)"
    paid = "" if best.money is None else f", {dollars(best.money)}"
    purchases = (
        "finds none of the differences that fit the range of rewards"
        if best.smallest_effect is None
        else f"finds a difference of {best.smallest_effect:.3g} with {problem.request.power:.0%}"
        " power"
    )
    width = (
        "and says nothing yet about the lead of the leader"
        if best.half_width is None
        else f"and knows the leader's lead to ± {best.half_width:.3g}"
    )
    return (
        f"{count(best.randomized)} randomized requests{hours}{paid} by {best.policy}: that"
        f" {purchases} {width}, at any look wrong with probability at most"
        f" {problem.request.delta:.3g}."
    )


def assumptions(problem: Problem, sequence: Sequence) -> list[str]:
    """What every number of a plan rests on."""
    request = problem.request
    lines = [
        RESTS_ON[sequence],
        "traffic and the models stay as they are for the whole time",
        _about_missing(problem),
    ]
    if problem.source == "numbers":
        lines.append(
            f"one of {problem.models} models is better by the effect and the others are alike:"
            " the hardest case for finding it"
        )
    else:
        lines.append("values and variances are those known now; the effect moves only the gap")
    lines.append(
        "rewards are 0 or 1" if problem.variances is None else "sums of rewards are nearly normal"
    )
    lines.append(
        "harm counts against the best model, as if today's routing served it already"
        if problem.routing is None
        else "harm counts against today's routing"
    )
    if problem.explained > 0:
        lines.append(
            f"a prediction frozen in advance explains {problem.explained:.0%} of the variance of"
            " rewards; if it does not, plan with explained = 0"
        )
    else:
        lines.append(
            "no prediction from replays (SIM) narrows the certified interval, except where a table"
            " says so; logs (OBS) never do"
        )
    if problem.attainable is not None:
        lines.append(
            f"at best a linear scorer of this benchmark's replays explains"
            f" {problem.attainable:.0%} of the variance of rewards"
        )
    if request.window >= _MINUTE:
        lines.append(f"a reward is final after {duration(request.window)}, added to the time")
    return lines


def _about_missing(problem: Problem) -> str:
    rated, missing = float(problem.rated.mean()), problem.missing
    if rated == 1.0:
        return "every randomized request is served as drawn and its reward comes within the window"
    text = (
        f"the reward of {percent(rated)} of the randomized requests comes, and differences are"
        " those of these requests; the others count as "
    )
    if missing is None:
        return f"{text}the worst case, 0 for one end of the interval and 1 for the other"
    low, high = problem.request.reward_low, problem.request.reward_high
    value = missing if problem.request.maximise else 1.0 - missing
    return f"{text}{low + value * (high - low):.3g}, and what is certified is the mean of all"


def split_sentence(splits: Rows[Split]) -> str:
    """The cheapest way to pay, against doing without replays. "" where none is in time."""
    best = next((each for each in splits if each.cheapest), None)
    if best is None:
        return ""
    plain = splits[0]
    waiting = f", {dollars(best.waiting_money)} for waiting" if best.waiting_money > 0 else ""
    if best.replays == 0:
        return (
            f"Cheapest: no replays, {count(best.randomized)} randomized requests"
            f" ({dollars(best.exp_money)}{waiting}): what replays save in EXP costs more than it"
            " is worth."
        )
    more = ""
    if best is splits[-1]:
        more = " That is nearly all that replays can predict."
    if best.waiting_money > (best.exp_money or 0.0):
        more += " Waiting is what costs most: randomize a larger share (--rate)."
    instead = "" if plain.total is None else f", instead of {dollars(plain.total)} without replays"
    return (
        f"Cheapest: replay {count(best.replays)} contexts on every model"
        f" ({dollars(best.replay_money)}), which predicts {best.explained:.0%} of the variance, and"
        f" randomize {count(best.randomized)} requests ({dollars(best.exp_money)}{waiting}):"
        f" {dollars(best.total)} in all{instead}.{more}"
    )


def count(number: float | None) -> str:
    """A number of requests to three digits, rounded up."""
    if number is None:
        return "more than were simulated"
    if number < 1000:
        return f"{number:.0f}"
    return f"{float(f'{number:.3g}'):,.0f}"


def dollars(amount: float | None) -> str:
    if amount is None:
        return "unknown money"
    return f"${float(f'{amount:.3g}'):,.0f}" if amount >= 100 else f"${amount:.2f}"


def duration(hours: float | None) -> str:
    """Hours, days or years in words."""
    if hours is None:
        return "longer than was simulated"
    if hours < 1.0:
        minutes = f"{hours * 60:.0f}"
        return "less than a minute" if minutes == "0" else _units(minutes, "minute")
    if hours < 48:
        return _units(f"{hours:.3g}", "hour")
    if hours < 24 * 365:
        return _units(f"{hours / 24:.3g}", "day")
    return _units(f"{hours / 24 / 365:.3g}", "year")


def _units(number: str, unit: str) -> str:
    return f"{number} {unit}" if number == "1" else f"{number} {unit}s"


def brief(hours: float | None) -> str:
    """Hours, days or years for a narrow column; "" where unknown."""
    if hours is None:
        return ""
    if hours < 1.0:
        return f"{hours * 60:.0f} min"
    if hours < 48:
        return f"{hours:.3g} h"
    return f"{hours / 24:.3g} d" if hours < 24 * 365 else f"{hours / 24 / 365:.3g} y"


def store_sentence(stored: Mapping[str, Any]) -> str:
    """What a store knows, and at today's pace when it will know."""
    name, progress = stored["experiment"], f"{stored['randomized']:,} randomized requests so far"
    if stored["decided"] is not None:
        return f"{name}, {progress}: {stored['decided']} is certified already."
    lead = (
        f"{stored['leader']} leads {stored['runner_up']} by {stored['gap']:.3g}"
        f" ± {stored['gap_error']:.2g}"
    )
    remaining = stored["remaining"]

    def in_words(number: float | None) -> str:
        if number is None:
            return "longer than was simulated"
        return duration(number) if stored["unit"] == "hours" else f"{count(number)} requests"

    if remaining["median"] is None and stored["never"]:
        when = f"nothing will be decided: {stored['never']}"
    elif remaining["median"] is None:
        when = "the planner cannot know when: the true difference may be too small to be found"
    else:
        when = (
            f"at today's pace you will know in {in_words(remaining['median'])} in half of the cases"
            f" (80%: {in_words(remaining['low'])} to {in_words(remaining['high'])})"
        )
    warnings = "".join(
        f" {each}: no plan can be trusted while they do." for each in stored["cannot_know"]
    )
    return f"{name}, {progress}; {lead}; {when}.{warnings}"


def family_lines(stored: Mapping[str, Any]) -> list[str]:
    """What the families that rest on EXP recommend today, by their own posteriors."""
    return [
        f"{each['family']} recommends {each['recommended']}:"
        f" {_nearness(each['within'])} with chance {each['chance']:.0%} (its own, not certified)"
        for each in stored.get("families", [])
    ]


def _nearness(within: float) -> str:
    return "the best" if within == 0 else f"within {within:.3g} of the best"
