"""What a plan says to people: the recommended plan in one sentence, and what it rests on."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Rows
from typing import Any

import numpy as np

from equipoise.agent.answers.wording import (
    count,
    dollars,
    duration,
    figure,
    percent,
    tenths,
)
from equipoise.agent.inference.certificate import Sequence
from equipoise.agent.planning.levers import Lever, Question, World
from equipoise.agent.planning.problem import Problem
from equipoise.agent.planning.requirement import NEARLY, FixedSample, Requirement
from equipoise.agent.planning.tables import Bought, Split

_MINUTE = 1.0 / 60.0
ENDED = "ended"
"""What a store whose experiment has ended is called."""
RESTS_BRIEFLY = {
    Sequence.BOUNDED: "no further assumption",
    Sequence.PER_MODEL: "traffic must be stationary",
    Sequence.ASYMPTOTIC: "exact only in the limit",
}
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
    paid = bill_words(None if best.bill is None else best.bill.needed, problem.today is not None)
    what = {
        "effect": f"to find a model that is better by {figure(best.effect)} with"
        f" {percent(request.power)} power",
        "half-width": f"to know the leader's lead to ± {figure(request.half_width or 0.0)}",
        "regret": f"to be certified within {figure(request.regret or 0.0)} of the best",
    }[best.goal]
    return (
        f"Randomize {percent(best.rate)} of the requests by {best.policy}: plan for {count(needed)}"
        f" randomized requests ({count(best.requests.needed)} in all{traffic}{paid}) {what}, at"
        f" any look wrong with probability at most {figure(request.delta)}; half of such"
        f" experiments end by {count(span.median)}, 80% between {count(span.low)} and"
        f" {count(span.high)}."
    )


def bill_words(amount: float | None, extra: bool) -> str:
    """USD in a list of what a plan takes, and what they are of; "" where unknown.

    extra: against what today's routing would have paid for the same requests.
    """
    if amount is None:
        return ""
    if not extra:
        return f", {dollars(amount)} for the randomized requests"
    if amount < 0:
        return f", {dollars(-amount)} less than today's bill"
    return f", {dollars(amount)} on top of today's bill"


def billed(problem: Problem) -> str:
    """What the USD of a plan are of, in one sentence; "" without prices."""
    if np.isnan(problem.prices).any():
        return ""
    if problem.today is not None:
        return (
            "Money is the extra bill: what the randomized requests cost more than today's routing"
            f" would have paid for them ({dollars(problem.today)} a request)."
        )
    text = "Money is the whole bill of the randomized requests, most of which is paid today too"
    if problem.source == "benchmark":
        return f"{text}."
    return (
        f"{text}; give --price NAME=USD for every model and --mix NAME=SHARE for the extra bill"
        " against today's routing."
    )


def lever_sentence(problem: Problem, offered: Rows[Lever]) -> str:
    """The best lever: what to change, and what it saves. "" where nothing helps."""
    if len(offered) < 2:
        return ""
    plain, best = offered[0].row, offered[1]
    needed, before = best.row.randomized.needed, plain.randomized.needed
    saved = ""
    if best.row.hours is not None and best.row.hours.needed is not None:
        saved = f"an answer in {duration(best.row.hours.needed)}"
        if plain.hours is not None and plain.hours.needed is not None:
            sooner, later = duration(best.row.hours.needed), duration(plain.hours.needed)
            instead = later if later != sooner else f"a little more than {later}"
            saved += f" instead of {instead}"
    if best.kind != "rate" and needed is not None and before is not None:
        fewer = f"{count(needed)} randomized requests instead of {count(before)}"
        saved = f"{fewer}, and {saved}" if saved else fewer
    elif best.kind == "rate" and needed is not None and before is not None:
        saved += ", for about as many randomized requests"
        if abs(needed - before) > NEARLY * before:
            saved = saved.removesuffix("about as many randomized requests")
            saved += f"{count(needed)} randomized requests instead of {count(before)}"
    words = lever_words(plain.rate, problem.models, best)
    return f"{words[:1].upper()}{words[1:]}: {saved}."


def lever_words(asked: float, models: int, lever: Lever) -> str:
    """What a lever changes. asked: the share randomized; models: how many, both as asked."""
    value, row = lever.value, lever.row
    if isinstance(value, str):
        return f"certify by the {value} sequence ({RESTS_BRIEFLY[Sequence(value)]})"
    if value is None:
        return f"as asked ({percent(row.rate)} randomized by {row.policy})"
    return {
        "rate": f"randomize {percent(value)} of the requests instead of {percent(asked)}",
        "models": f"compare 2 models instead of {models}",
        "epsilon": f"accept a model within {figure(value)} of the best",
        "effect": f"look for a difference of {figure(value)} only",
    }[lever.kind]


def fixed_sentence(problem: Problem, fixed: FixedSample) -> str:
    """Why a plan takes more than a calculator for A/B tests says, with that number."""
    request = problem.request
    several = "" if problem.models == 2 else f" ({count(fixed.models)} for {problem.models} models)"
    text = (
        f"A fixed-n calculator says {count(fixed.two)} for two models{several}, at level"
        f" {figure(request.delta)} and {percent(request.power)} power, read once, at the end"
    )
    if fixed.times is None:
        return f"{text}."
    if fixed.times < 1.0 and problem.start is not None:
        return (
            f"{text}; from here on this plan takes {figure(fixed.times)} times that, because what"
            " the store holds already counts."
        )
    if fixed.times < 1.0:
        return f"{text}; this plan takes {figure(fixed.times)} times that."
    against = "" if problem.models == 2 else " and against every other model at once"
    return (
        f"{text}; this plan takes {figure(fixed.times)} times that, because its answer may be read"
        f" at any time{against}."
    )


def question_sentences(problem: Problem, asked: Question) -> list[str]:
    """Is it better by so much: what an experiment of the planned size says where it is, where it
    is equal and where it is worse."""
    when = f"after {count(asked.requests[asked.at])} requests"
    if asked.hours is not None:
        when = f"after {duration(asked.hours[asked.at])}"
    among = _of_all(problem, asked.difference)
    lines = [
        f"Is {asked.candidate} better than every other model by {figure(asked.difference)}"
        f"{among}? Yes"
        " means certified better, no means certified not better by"
        f" {figure(asked.difference)}; whichever comes first ends the experiment."
    ]
    lines += [
        f"If it is {world_words(world)}: {when} {_verdicts(asked, world)}"
        f"{_soonest(problem, world)}."
        for world in asked.worlds
    ]
    return lines


def world_words(world: World) -> str:
    if world.lead == 0.0:
        return "equal"
    return f"{'better' if world.lead > 0 else 'worse'} by {figure(abs(world.lead))}"


def _of_all(problem: Problem, difference: float) -> str:
    """What a difference among rated requests is over all; "" where it is the same."""
    share = problem.difference(1.0)
    if problem.request.of_raters:
        return " among those who rate"
    if share == 1.0:
        return ""
    return f" among rated requests ({figure(difference * share)} over all, as its lead below)"


def _verdicts(asked: Question, world: World) -> str:
    yes, no = world.yes[asked.at], world.no[asked.at]
    text = f"yes in {tenths(yes)}, no in {tenths(no)}, cannot say in {tenths(1.0 - yes - no)}"
    known = world.half_width
    return text if known is None else f"{text}; its lead is known to ± {figure(known)}"


def _soonest(problem: Problem, world: World) -> str:
    power = percent(problem.request.power)
    if world.answered is None:
        return f"; {power} have no answer by the last look simulated"
    when = f"{count(world.answered)} requests"
    when = when if world.hours is None else duration(world.hours)
    return f"; {power} have an answer after {when}"


def never(problem: Problem, effect: float) -> str:
    """Why no number of requests finds an effect on the [0, 1] scale: missing rewards that count as
    the worst case. "" where they do not stand in the way."""
    lost = float(problem.lost.mean())
    if lost == 0.0 or problem.lead(effect) + problem.simulated(problem.epsilon) > 0.0:
        return ""
    least = (lost - problem.epsilon) / (1.0 - lost)
    below = "no difference"
    if least < 1.0:
        below = f"no difference below {figure(least * problem.scale)}"
    cure = "declare what a missing reward means (reward.missing: a number, `rated` or `asked`)"
    if problem.request.missing_value is not None:
        cure = "deliver what is drawn (the check delivery says which model is affected)"
    return (
        f"{percent(lost)} of the randomized requests have no reward, and as each counts as the"
        f" worst case {below} can ever be certified: {cure}"
    )


def _none(problem: Problem, rows: Rows[Requirement], effect: float) -> str:
    request = problem.request
    impossible = never(problem, effect)
    if impossible:
        return f"A difference of {figure(effect * problem.scale)} is never found: {impossible}."
    reasons = [f"{row.policy}: {row.note}" for row in rows if row.note]
    if len(reasons) == len(rows):
        return (
            f"The planner cannot know when a difference of {figure(effect * problem.scale)} would"
            f" be found ({'; '.join(reasons)}); look for a larger one, randomize more, or declare"
            " another sequence."
        )
    hours = [row.hours.needed for row in rows if row.hours and row.hours.needed is not None]
    soonest = f"the soonest plan takes {duration(min(hours))}" if hours else "no plan ends"
    return (
        f"Not within the horizon of {duration(request.horizon)}: {soonest}; randomize more,"
        " look for a larger difference, or wait longer."
    )


def budget_sentence(problem: Problem, bought: Rows[Bought]) -> str:
    """What the budget buys under the policy that finds the smallest effect."""
    best = min(bought, key=lambda each: (each.smallest_effect or 9e99, each.half_width or 9e99))
    hours = "" if best.hours is None else f" ({duration(best.hours)} at this traffic)"
    paid = bill_words(best.bill, problem.today is not None)
    purchases = (
        "finds none of the differences that fit the range of rewards"
        if best.smallest_effect is None
        else f"finds a difference of {figure(best.smallest_effect)} with"
        f" {percent(problem.request.power)} power"
    )
    width = (
        "and says nothing yet about the lead of the leader"
        if best.half_width is None
        else f"and knows the leader's lead to ± {figure(best.half_width)}"
    )
    return (
        f"{count(best.randomized)} randomized requests{hours}{paid} by {best.policy}: that"
        f" {purchases} {width}, at any look wrong with probability at most"
        f" {figure(problem.request.delta)}."
    )


def assumptions(problem: Problem, sequence: Sequence, closed: bool) -> list[str]:
    """What every number of a plan rests on. closed: whether other shares of randomized requests
    were worked out instead of simulated."""
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
        "what is gained, or lost below 0, counts against today's routing"
        if problem.routing is not None or problem.mix is not None
        else "what is gained, or lost below 0, counts against the best model, as if today's"
        " routing served it already"
    )
    if problem.explained > 0:
        lines.append(
            f"a prediction frozen in advance explains {percent(problem.explained)} of the variance"
            " of rewards; if it does not, plan with explained = 0"
        )
    else:
        lines.append(
            "no prediction from replays (SIM) narrows the certified interval, except where a table"
            " says so; logs (OBS) never do"
        )
    if problem.attainable is not None:
        lines.append(
            f"at best a linear scorer of this benchmark's replays explains"
            f" {percent(problem.attainable)} of the variance of rewards"
        )
    if request.window >= _MINUTE:
        lines.append(f"a reward is final after {duration(request.window)}, added to the time")
    if closed:
        lines.append(
            "what other shares of randomized requests take follows from this plan by closed form,"
            " within 5% of simulating them; every other number is simulated"
        )
    return lines


def _about_missing(problem: Problem) -> str:
    rated, missing = float(problem.rated.mean()), problem.missing
    if rated == 1.0:
        return "every randomized request is served as drawn and its reward comes within the window"
    text = (
        f"the reward of {percent(rated)} of the randomized requests comes, and differences are"
        " those of these requests; the others count as "
    )
    if problem.request.of_raters:
        return (
            f"{percent(rated)} of the randomized requests are rated, and the answer is about those"
            " who rate: a model that changes who rates changes it"
        )
    if missing is None:
        return f"{text}the worst case, 0 for one end of the interval and 1 for the other"
    low, high = problem.request.reward_low, problem.request.reward_high
    value = missing if problem.request.maximise else 1.0 - missing
    worth = figure(low + value * (high - low))
    return f"{text}{worth}, and what is certified, and within the best, is the mean of all"


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
        f" ({dollars(best.replay_money)}), which predicts {tenths(best.explained)} of the variance,"
        " and"
        f" randomize {count(best.randomized)} requests ({dollars(best.exp_money)}{waiting}):"
        f" {dollars(best.total)} in all{instead}.{more}"
    )


def store_sentence(stored: Mapping[str, Any]) -> str:
    """What a store knows, and at today's pace when it will know."""
    name, progress = stored["experiment"], f"{stored['randomized']:,} randomized requests so far"
    if stored["decided"] is not None:
        return f"{name}, {progress}: {stored['claim']}."
    lead = (
        f"{stored['leader']} leads {stored['runner_up']} by {figure(stored['gap'])}"
        f" ± {figure(1.96 * stored['gap_error'])} in the rewards of randomized requests alone"
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
    elif stored["stopped"] == ENDED:
        when = "it has ended, and nothing more will be known unless it is resumed"
    else:
        low, high = in_words(remaining["low"]), in_words(remaining["high"])
        band = f" (80%: {low} to {high})" if low != high else ""
        half = f"in {in_words(remaining['median'])} at today's pace in half of the cases{band}"
        when = f"you will know {half}"
        if stored["stopped"] is not None:
            when = (
                f"it is {stored['stopped']}, so nothing more will be known until that ends; then"
                f" {when}"
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
    return "the best" if within == 0 else f"within {figure(within)} of the best"
