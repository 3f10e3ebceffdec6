"""Statements never say more than is known, and no two of them contradict each other.

`python tests/agent/answers/test_statements.py 100000` asks as many random states.
"""

from __future__ import annotations

import math
import re
import sys
from dataclasses import dataclass
from itertools import combinations

import msgspec
import numpy as np
import pytest

from equipoise.agent.answers.recommendation import KEEP, compare, readings
from equipoise.agent.answers.statements import (
    Facts,
    Prices,
    Progress,
    Situation,
    activity_sentence,
    decision,
    state,
)
from equipoise.agent.answers.status import Activity, Claim, Outlook, RatedMore, State
from equipoise.agent.estimators.base import Estimate

NAMES = ("large", "small", "tiny", "mid")
STATES = 3_000
STOPPED = (Activity.PAUSED, Activity.ENDED)
REASONS = (
    None,
    "too-few-rewards",
    "no-traffic",
    "budget-spent",
    "budget-too-small",
    "never",
    "too-small-a-difference",
    "held-back",
    "new-era",
    "ended",
    "outdated",
    "planner",
)


@dataclass(frozen=True)
class Band:
    low: float | None
    median: float | None
    high: float | None


def compared(rng: np.random.Generator):
    models = NAMES[: rng.integers(2, 5)]
    low = float(rng.choice([0.0, -1.0, 1e6]))
    span = float(rng.choice([1.0, 10.0, 1e-3]))
    values = low + span * np.round(rng.random(len(models)), int(rng.choice([1, 6])))
    values[rng.random(len(models)) < 0.15] = np.nan
    errors = span * 10.0 ** rng.uniform(-3, 1, len(models))
    errors[rng.random(len(models)) < 0.15] = rng.choice([np.nan, 0.0, np.inf])
    place = float(rng.choice([rng.random(), np.nan]))
    routing = low + span * place, (span * rng.random()) ** 2
    if rng.random() < 0.1 and np.isfinite(values).any():
        routing = float(np.nanmax(values)), routing[1]
    estimate = Estimate("ipw", values, np.diag(errors**2))
    sign = int(rng.choice([1, -1]))
    comparison = compare(models, estimate, routing, sign, low=low, high=low + span)
    others = [
        Estimate(name, rng.permutation(values), np.diag(rng.permutation(errors) ** 2))
        for name in ("hierarchical", "cvci")[: rng.integers(3)]
    ]
    told = readings(comparison, [estimate, *others], sign)
    return msgspec.structs.replace(comparison, readings=told)


def claimed(rng: np.random.Generator, models: tuple[str, ...], raters: bool) -> Claim | None:
    kind = rng.choice(["none", "best", "within", "alike"])
    if kind == "none":
        return None
    part = str(rng.choice(["", " on requests that were still open (3 were not)"]))
    about = (" among those who rate" if raters else "") + part
    size = int(rng.integers(2, len(models) + 1)) if kind == "alike" else 1
    return Claim(
        kind=kind,
        models=tuple(rng.permutation(models)[:size].tolist()),
        by=float(rng.choice([-0.01, 0.0, 10.0 ** rng.uniform(-6, 0)])),
        over_routing=float(rng.choice([-np.inf, -0.2, 10.0 ** rng.uniform(-6, 0)])),
        epsilon=float(rng.choice([0.01, 0.25])),
        delta=0.05,
        about=about,
        whole=not part,
        rating=rated_more(rng, models) if raters else (),
    )


def rated_more(rng: np.random.Generator, models: tuple[str, ...]) -> tuple[RatedMore, ...]:
    pairs = [rng.permutation(models)[:2].tolist() for _ in range(rng.integers(0, 3))]
    return tuple(
        RatedMore(model=one, other=other, by=10.0 ** rng.uniform(-6, 0)) for one, other in pairs
    )


def foretold(rng: np.random.Generator) -> Outlook | None:
    if rng.random() < 0.1:
        return None
    reason = REASONS[rng.integers(len(REASONS))]

    def band(scale: float, last: int) -> Band:
        """Beyond some end everything is more than was simulated."""
        ends = np.sort(scale * 10.0 ** rng.uniform(-3, 3, 3)).tolist()
        return Band(*(None if place >= last else end for place, end in enumerate(ends)))

    last = int(rng.choice([2, 3, 3, 3]))
    simulated = reason in (None, "no-traffic", "budget-too-small", "budget-spent", "never")
    return Outlook(
        reason=reason,
        total=band(1000.0, last) if simulated else None,
        hours=band(10.0, last) if reason is None and rng.random() < 0.7 else None,
        randomized=int(rng.integers(0, 5000)),
        planned=int(rng.integers(1, 5000)) if rng.random() < 0.3 else None,
        chance=float(rng.random() ** 4) if simulated else None,
        limit=str(rng.choice(["requests", "money", "horizon"])) if simulated else None,
        unlimited=band(1000.0, last) if reason == "budget-too-small" else None,
        why="the reason" if reason == "planner" else "",
        rewards=float(rng.choice([0.0, 1.0, 7.5])),
        fewest=20.0,
        lost=float(rng.random()) if simulated else None,
        least_difference=float(rng.choice([0.3, 0.0])) or None,
        held_by="d7",
        newest_at=float(10.0 ** rng.uniform(1, 9)),
    )


def priced(rng: np.random.Generator) -> Prices | None:
    if rng.random() < 0.3:
        return None
    known = {name: float(rng.choice([0.0, 0.02, 12.5])) for name in NAMES if rng.random() < 0.8}
    return Prices(known, None if rng.random() < 0.3 else float(rng.choice([0.0, 0.00931])))


def drawn(seed: int) -> tuple[Facts, Situation]:
    rng = np.random.default_rng(seed)
    comparison, raters = compared(rng), bool(rng.random() < 0.5)
    if raters:
        comparison = msgspec.structs.replace(comparison, about="among those who rate")
    certified = int(rng.choice([0, 1, 57, 4321]))
    era = int(rng.choice([0, 0, 2]))
    reason = "drift: rewards fell" if era else ""
    renewed = ("b",) if era and rng.random() < 0.5 else ()
    progress = Progress(
        certified, certified + int(rng.choice([0, 12])), era, reason, renewed=renewed
    )
    facts = Facts(claimed(rng, comparison.models, raters), comparison, progress, priced(rng))
    why = str(rng.choice(["", "a release"]))
    activity = list(Activity)[rng.integers(len(Activity))]
    hides = activity in (Activity.KILL_SWITCH, Activity.PASSING_THROUGH)
    paused = activity is Activity.PAUSED or (hides and bool(rng.random() < 0.3))
    return facts, Situation(activity, why, foretold(rng), paused=paused)


FORETELLS = re.compile(
    r"Likely decided|of such experiments are decided|may be too small|in all \(80%"
)
RANDOMIZES = re.compile(r"still randomized|share of the requests is randomized")
NO_WORD = re.compile(
    r"\bnan\b|\binf\b|\bNone\b|  |\.\.|\( | \)|(?<![\d.,])1 (minutes|hours|days|years)\b"
)


def check_state(seed: int) -> None:
    """Every law, for one random state."""
    facts, situation = drawn(seed)
    said, claim, one = state(facts, situation), facts.claim, facts.comparison
    activity, outlook = situation.activity, situation.outlook
    words = (said.certified, said.estimate, said.status_sentence, said.activity_sentence)
    for text in (*words, said.headline):
        assert not NO_WORD.search(text), text
        assert text[0].isupper() or text.startswith(one.models), text
        assert text.endswith((".", ".)")), text
    assert said.headline.startswith(said.certified)

    # No value without its error.
    rest = re.sub(r"[+-]?\d+\.?\d* ± \d+\.?\d*", "", said.estimate)
    assert not re.search(r"\d", rest), said.estimate
    for value, error in re.findall(r"([+-]?\d+\.?\d*) ± (\d+\.?\d*)", said.estimate):
        assert math.isfinite(float(value))
        assert math.isfinite(float(error))

    # Families that favour another model are named while one leads by an estimate alone.
    other = {each.family for each in one.readings if each.favoured != said.leaning}
    told = set(re.findall(r"(hierarchical|cvci) favours ", said.estimate))
    assert told <= other
    assert not told or (claim is None and said.leaning in one.models)
    assert bool(told) is (" Families of estimates disagree: over " in said.estimate)
    for name in told:
        each = next(each for each in one.readings if each.family == name)
        assert each.lead > 0.0
        assert one.spread >= abs(each.value_of_model - one.values[one.top[0]]) - 1e-9

    # Rewards from before a change are in the estimates: it is said beside every one.
    pooled = facts.progress.era > 0 and one.kind not in ("nothing", "few", "wide")
    assert ("Estimates hold all eras" in said.estimate) is pooled

    # No action without a certificate for all of the traffic, or the words "not certified".
    whole = claim is not None and claim.whole
    if said.action != KEEP:
        assert whole
        assert claim.kind != "alike"
        assert claim.models == (said.action,)
        assert said.certified.startswith(f"Serve {said.action}: {said.action} is certified ")
        assert one.leaning != KEEP or claim.over_routing > 0.0
    else:
        assert "Serve" not in said.headline
        assert "eep today's routing" in said.certified
    assert said.certified.startswith("Not certified") is not whole
    if not whole:
        assert "which certify nothing" in said.estimate or one.leaning is None
    assert ("better than today's routing (" in said.certified) is (
        claim is not None and claim.kind != "alike" and claim.over_routing > 0.0
    )

    # What a change to the model costs, beside the advice, where every price in it is known.
    if " A request costs " in said.certified:
        assert claim is not None
        assert facts.prices is not None
        assert said.action != KEEP or claim.kind == "alike"
        for name in claim.models:
            assert re.search(rf"\$[\d.]+ on {name}\b", said.certified)
        assert re.search(r" and \$[\d.]+ as routed today\.$", said.certified)
    elif said.action != KEEP:
        known = facts.prices is not None and said.action in facts.prices.models
        free = known and not any((facts.prices.routing, facts.prices.models[said.action]))
        assert free or not known or facts.prices.routing is None

    # A guarantee beside every certificate; not "best" for "within epsilon".
    for text in (said.certified, said.status_sentence):
        assert ("wrong in at most" in text) is (claim is not None)
        best = claim is not None and claim.kind == "best"
        assert ("certified best of the models" in text) is best
        if claim is not None and not best:
            assert f"within {claim.epsilon:.4g} of " in text
    for bound, unit in re.findall(r"at least ([\d.e+-]+)(%?)", said.certified):
        known = (
            [100.0 * each.by for each in claim.rating] if unit else [claim.by, claim.over_routing]
        )
        assert any(0.0 < float(bound) <= each for each in known)

    # Who an answer is about, wherever there is one; who rates, where that may be the reason.
    raters = bool(one.about)
    about_all = not raters
    if claim is not None:
        for text in (said.certified, said.status_sentence):
            assert ("among those who rate" not in text) is about_all
            assert ("Who rates depends on the model" in text) is bool(claim.rating)
    if " ± " in said.estimate:
        assert ("among those who rate" not in said.estimate) is about_all

    # No forecast while nothing is randomized, once it is decided, or of nothing.
    assert not FORETELLS.search(said.outlook) or (
        activity.randomizing and claim is None and outlook is not None
    ), said.outlook
    if claim is None and activity.randomizing and outlook is not None:
        assert said.outlook
        assert ("A decision is expected" in said.outlook) is (outlook.reason is None)

    # Status, models, leaning, pills and sentences agree.
    assert (said.status is State.PAUSED) is situation.paused
    assert (said.status is State.ENDED) is (activity is Activity.ENDED)
    assert said.models == (() if claim is None else claim.models)
    if said.status not in (State.PAUSED, State.ENDED):
        alike = claim is not None and claim.kind == "alike"
        assert (said.status is State.EQUIVALENT) is alike
        assert (said.status is State.DECIDED) is (claim is not None and not alike)
    knowledge, doing = (pill.text for pill in said.pills)
    assert ("not certified" in knowledge) is (claim is None)
    assert knowledge != doing
    assert bool(RANDOMIZES.search(said.activity_sentence)) is activity.randomizing
    if RANDOMIZES.search(said.outlook):
        assert activity.randomizing
    looks = [name for name in one.models if f"{name} looks best" in said.estimate]
    assert looks == ([said.leaning] if said.leaning in one.models else [])
    assert ("better than today's routing, which" in said.estimate) is (said.leaning == KEEP)
    same = decision(claim, facts.progress, situation, epsilon=0.0, delta=0.05)
    assert (same.state, same.models, same.sentence) == (
        said.status,
        said.models,
        said.status_sentence,
    )


def test_no_random_state_is_contradicted():
    for seed in range(STATES):
        check_state(seed)


def test_random_states_reach_every_case():
    """Else the laws above would hold of nothing."""
    kinds, pairs = set(), set()
    for seed in range(STATES):
        facts, situation = drawn(seed)
        kinds.add(facts.comparison.kind)
        claim = None if facts.claim is None else (facts.claim.kind, facts.claim.whole)
        outlook = (situation.outlook and situation.outlook.reason) or "pending"
        outlook = outlook if situation.outlook else None
        pairs |= set(combinations((("c", claim), ("a", situation.activity), ("o", outlook)), 2))
    assert len(kinds) == 7
    assert len(pairs) == 7 * 10 + 7 * 13 + 10 * 13, "every two of claim, activity and outlook meet"


def comparison(values, errors, routing=(0.4, 0.05), sign=1, **more):
    covariance = np.diag(np.square(np.array(errors, dtype=float)))
    estimate = Estimate("ipw", np.array(values, dtype=float), covariance)
    routing = (routing[0], routing[1] ** 2)
    return compare(NAMES[: len(values)], estimate, routing, sign, **more)


def said(values, errors, routing=(0.4, 0.05), sign=1, claim=None, situation=None, **more):
    facts = Facts(claim, comparison(values, errors, routing, sign, **more), Progress(40, 52))
    return state(facts, Situation() if situation is None else situation)


def test_before_anything_is_certified():
    pending = Outlook(total=Band(1950, 2500, 4740), hours=Band(1.5, 2, 5), randomized=40)
    answer = said([0.7, 0.5, 0.6], [0.02, 0.02, 0.03], situation=Situation(outlook=pending))
    assert (answer.action, answer.leaning, answer.status) == (KEEP, "large", State.EXPLORING)
    assert answer.headline == (
        "Not certified: keep today's routing. 40 randomized requests are in the certified sums,"
        " of 52 made. By the estimates, which certify nothing, large looks best, worth 0.700 ±"
        " 0.039, +0.300 ± 0.106 against today's routing (0.400 ± 0.098). A decision is expected in"
        " 2 hours (80%: 1.5 hours to 5 hours) at the recent pace, after 2,500 randomized requests"
        " in all (80%: 1,950 to 4,740); 40 are certified so far."
    )


def test_a_family_that_favours_another_model_is_named_with_the_error_of_its_lead():
    one = comparison([0.7, 0.5, 0.6], [0.02, 0.02, 0.03], (0.9, 0.05), sign=-1)
    spread = np.array([[0.01, 0.005, 0], [0.005, 0.04, 0.02], [0, 0.02, 0.09]])
    other = Estimate("cvci", np.array([0.4, 0.55, np.nan]), spread)
    alike = Estimate("grounded", np.array([0.7, 0.6, 0.7]), spread)
    (first, second) = readings(one, [other, alike], -1)
    assert (first.favoured, first.value_of_model, first.value_of_second) == ("large", 0.55, None)
    assert first.lead == pytest.approx(0.15)
    assert first.lead_standard_error == pytest.approx(math.sqrt(0.04))
    assert (second.favoured, second.lead, second.value_of_second) == ("small", 0.0, 0.7)
    apart = msgspec.structs.replace(one, readings=(first, second))
    assert apart.spread == pytest.approx(0.1)
    told = state(Facts(None, apart, Progress(40, 52))).estimate
    assert " Families of estimates disagree: over small cvci favours large, by 0.150 ± " in told
    assert "grounded" not in told


def test_an_end_beyond_the_budget_is_open_and_the_budget_is_named():
    """Nothing was simulated beyond a limit, so "longer than was simulated" would be about us."""
    ends = {"total": Band(1540, 3550, None), "hours": Band(0.5, 1, None)}
    near = Outlook(**ends, randomized=591, limit="requests", chance=0.67)
    told = said([0.7, 0.5], [0.02, 0.02], situation=Situation(outlook=near)).outlook
    assert told == (
        "A decision is expected in 1 hour (80%: 30 minutes or more) at the recent pace, after 3,550"
        " randomized requests in all (80%: 1,540 or more); 591 are certified so far. In 33% of the"
        " simulated futures the budget of requests is spent first."
    )
    unlimited = Band(1600, 6130, 43_900)
    far = Outlook(reason="budget-too-small", limit="requests", chance=0.49, unlimited=unlimited)
    told = said([0.7, 0.5], [0.02, 0.02], situation=Situation(outlook=far)).outlook
    assert told == (
        "In 51% of the simulated futures the budget of requests is spent first, and nothing is"
        " decided; without that limit it takes 6,130 randomized requests (80%: 1,600 to 43,900)."
    )


def test_an_end_without_a_certificate_says_so_in_its_own_sentence():
    ended = Situation(Activity.ENDED, "the quarter is over", final=KEEP)
    facts = Facts(None, comparison([0.7, 0.5], [0.02, 0.02]), Progress(1270, 3553, 1, "drift: x"))
    assert state(facts, ended).certified == (
        "Ended (the quarter is over): keep today's routing. Nothing is certified. A new era began"
        " (drift: x); 1,270 randomized requests are in the certified sums."
    )


def test_advice_to_change_says_what_it_costs():
    values = comparison([0.7, 0.5, 0.6], [0.02, 0.02, 0.03])
    prices = Prices({"large": 0.02, "small": 0.002}, 0.00923)
    told = state(Facts(HELD, values, Progress(40, 52), prices)).certified
    assert told.endswith("). A request costs $0.02 on large and $0.00923 as routed today.")
    alike = changed(kind="alike", models=("large", "small"), by=0.0, epsilon=0.1)
    told = state(Facts(alike, values, Progress(40, 52), prices)).certified
    assert told.endswith(
        "). A request costs $0.02 on large, $0.002 on small and $0.00923 as routed today."
    )
    for unknown in (
        None,
        Prices({}, 0.01),
        Prices({"large": 0.02}, None),
        Prices({"large": 0.0}, 0.0),
    ):
        told = state(Facts(HELD, values, Progress(40, 52), unknown)).certified
        assert "costs" not in told


def test_who_is_served_after_the_decision_is_said():
    """The certified model is served by the router once it is told to, not by the experiment."""
    stopped = Situation(Activity.DECIDED)
    answer = said([0.7, 0.5, 0.6], [0.02, 0.02, 0.03], claim=HELD, situation=stopped)
    assert answer.outlook == (
        "Nothing more is randomized; every request is served as your router says."
    )


def test_one_rating_is_too_little_to_say():
    answer = said([1.0, 0.0, np.nan], [np.nan, np.nan, np.nan])
    assert (answer.action, answer.leaning) == (KEEP, None)
    assert "nothing can be said: too few different rewards of large." in answer.estimate


HELD = Claim(kind="best", models=("large",), by=0.05, over_routing=-0.02, epsilon=0.0, delta=0.05)


def changed(**changes) -> Claim:
    return Claim(**{name: getattr(HELD, name) for name in HELD.__struct_fields__} | changes)


def test_what_is_certified_is_served_and_said_first():
    values = [0.7, 0.5, 0.6], [0.02, 0.02, 0.03]
    answer = said(*values, claim=HELD)
    assert answer.action == "large"
    assert answer.certified == (
        "Serve large: large is certified best of the models, by at least 0.05 (wrong in at most"
        " 0.05 of such experiments, whenever one looks)."
    )
    assert answer.estimate.startswith("Against today's routing nothing is certified; by the")
    sure = said(*values, claim=changed(over_routing=0.1))
    assert "and at least 0.1 better than today's routing (" in sure.certified
    near = said(*values, claim=changed(kind="within", epsilon=0.02, by=-0.01))
    assert near.certified.startswith("Serve large: large is certified within 0.02 of the best")


def test_the_best_model_may_still_be_worse_than_what_is_deployed():
    answer = said([0.7, 0.5, 0.6], [0.02, 0.02, 0.03], (0.8, 0.01), claim=HELD)
    assert (answer.action, answer.status) == (KEEP, State.DECIDED)
    assert answer.certified.startswith(
        "Keep today's routing: large is certified best of the models"
    )


def test_what_is_certified_against_routing_outweighs_an_estimate():
    against = [0.7, 0.5, 0.6], [0.02, 0.02, 0.03], (0.8, 0.01)
    assert said(*against, claim=changed(over_routing=0.0)).action == KEEP
    assert said(*against, claim=changed(over_routing=0.001)).action == "large"


def test_whom_the_end_chose_is_certified_only_where_all_of_the_traffic_is():
    ended = Situation(Activity.ENDED, "it is over", final="large")
    values = [0.7, 0.5, 0.6], [0.02, 0.02, 0.03]
    whole = said(*values, claim=HELD, situation=ended)
    assert whole.certified.startswith("Ended (it is over): serve large. large is certified best")
    assert whole.status_sentence == whole.certified, "who is told of the end hears whom to serve"
    part = said(*values, claim=changed(whole=False, about=" on a part"), situation=ended)
    assert part.certified.startswith("Ended (it is over): serve large, which is not certified. ")
    other = said(*values, claim=changed(models=("tiny",)), situation=ended)
    assert other.certified.startswith(
        "Ended (it is over): serve large, which is not certified. tiny is"
    )


def test_models_that_are_alike_are_no_action():
    alike = changed(kind="alike", models=("large", "tiny"), by=0.0, epsilon=0.1)
    answer = said([0.7, 0.5, 0.6], [0.02, 0.02, 0.03], claim=alike)
    assert answer.action == KEEP
    assert "large and tiny are certified within 0.1 of each other" in answer.certified


def test_a_stop_says_why_and_keeps_what_was_certified():
    answer = said(
        [0.7, 0.5], [0.1, 0.1], claim=HELD, situation=Situation(Activity.PAUSED, "a release")
    )
    assert (answer.status, answer.models, answer.action) == (State.PAUSED, ("large",), "large")
    assert answer.status_sentence.startswith("Paused (a release): decisions are logged")
    assert "What was certified stands: large is certified best" in answer.status_sentence
    assert [pill.text for pill in answer.pills] == ["decided", "paused"]


@pytest.mark.parametrize("activity", [Activity.KILL_SWITCH, Activity.PASSING_THROUGH])
def test_the_kill_switch_hides_neither_a_pause_nor_an_end(activity):
    facts = drawn(0)[0]
    paused = state(facts, Situation(activity, "a release", paused=True))
    assert paused.status is State.PAUSED
    assert paused.status_sentence.startswith("Paused (a release)")
    assert paused.pills[1].text == activity.value.replace("-", " ")
    ended = state(facts, Situation(activity, "it won", final="keep"))
    assert (ended.status, ended.outlook) == (State.ENDED, "The experiment has ended.")


def test_every_activity_has_a_sentence():
    assert len({activity_sentence(each) for each in Activity}) == len(Activity)


if __name__ == "__main__":
    wanted = int(sys.argv[1])
    for number in range(wanted):
        check_state(number)
        if number % 10_000 == 0:
            print(f"{number:,} of {wanted:,}", flush=True)
    print(f"{wanted:,} random states: no statement contradicts another")
