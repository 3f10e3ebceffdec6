"""Who is sent where, and what looks random: right sizes, true splits found, none invented."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats
from scipy.stats.contingency import association

from equipoise.agent.look.assignment import (
    FALSE_ALARMS,
    SIZE,
    Sample,
    assignment,
    cramer,
    holm,
    independence,
)
from equipoise.agent.look.choosing import Column

NAMES = ["large", "small"]


def sample_of(model: Any, unit: Any = None, propensity: Any = None, **columns: Any) -> Sample:
    """A sample of rows as arrays: texts become categories, floats numbers, the rest codes."""
    count, kinds, codes, kept = len(model), [], [], {}
    for number, (name, values) in enumerate(columns.items()):
        values = np.asarray(values)
        if values.dtype.kind == "f":
            kinds.append(Column(name, "number"))
            codes.append(None)
            kept[f"column {number}"] = values
        else:
            labels, found = np.unique(values, return_inverse=True)
            kinds.append(Column(name, "category"))
            codes.append(SimpleNamespace(labels=labels.tolist()))
            kept[f"column {number}"] = found
    reader: Any = SimpleNamespace(
        keys=[],
        models=SimpleNamespace(labels=NAMES),
        chosen=SimpleNamespace(columns=kinds),
        columns=codes,
    )
    kept["model"] = np.asarray(model)
    kept["unit"] = np.zeros(count, np.int64) if unit is None else np.asarray(unit) + 1
    if propensity is not None:
        kept["propensity"] = np.asarray(propensity)
    sample = Sample(reader, kept)
    sample.settle(np.argsort(-np.bincount(kept["model"]), kind="stable").tolist())
    return sample


def test_strength_is_cramers_v() -> None:
    draws = np.random.default_rng(1)
    first, second = draws.integers(0, 3, 500), draws.integers(0, 5, 500)
    second[first == 2] = 4
    table = np.zeros((3, 5), int)
    np.add.at(table, (first, second), 1)
    assert cramer(first, second) == pytest.approx(association(table, method="cramer"))
    assert cramer(first, first) == pytest.approx(1.0)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6]) == [1.0, 1.0]


def test_without_users_it_is_about_the_chi_squared_test() -> None:
    draws = np.random.default_rng(2)
    for effect in (0.0, 0.05, 0.1):
        second = draws.integers(0, 4, 4000)
        first = (draws.random(4000) < 0.5 + effect * (second == 1)).astype(int)
        table = np.zeros((2, 4), int)
        np.add.at(table, (first, second), 1)
        test = independence(first, second, np.arange(4000))
        assert test is not None
        assert test.df == 3
        wanted = stats.chi2_contingency(table).pvalue
        assert math.log(test.p) == pytest.approx(math.log(wanted), rel=0.15, abs=0.1)


def test_users_with_many_rows_raise_no_false_alarm() -> None:
    """Each user has one plan, and one model by the toss of a coin, in 1 to 60 rows: 400 logs of 80
    users. Level 5%; by rows, as if each were a draw of its own, it would be most of them."""
    draws = np.random.default_rng(3)
    clustered = rowwise = 0
    for _ in range(400):
        rows = draws.integers(1, 60, 80)
        cluster = np.repeat(np.arange(80), rows)
        model, plan = (draws.integers(0, 2, 80)[cluster] for _ in range(2))
        test = independence(model, plan, cluster)
        plain = independence(model, plan, np.arange(len(cluster)))
        assert test is not None
        assert plain is not None
        clustered += test.p < 0.05
        rowwise += plain.p < 0.05
    assert stats.binomtest(clustered, 400, 0.05).pvalue > 0.01
    assert rowwise > 200


def world(draws: np.random.Generator, canary: float, shift: float = 1.3) -> Sample:
    """A confounded log, a share of which is drawn by a coin, and tagged. shift: of the log odds of
    the models, by a standard deviation of length and by the plan."""
    count = 6000
    users = 900
    unit = draws.integers(0, users, count)
    paid, home = draws.random(users) < 0.4, draws.integers(0, 6, users)
    length = draws.normal(0.4 * paid[unit], 1.0)
    chance = 1.0 / (1.0 + np.exp(-(shift * length + shift * paid[unit] - 0.6)))
    tagged = draws.random(count) < canary
    coin = draws.random(count) < 0.3
    model = np.where(tagged, coin, draws.random(count) < chance).astype(int)
    return sample_of(
        model,
        unit,
        plan=np.where(paid, "paid", "free")[unit],
        country=np.array(list("abcdef"))[home[unit]],
        route=np.where(tagged, "canary", "main"),
        device=draws.choice(["phone", "desk", "tv"], count),
        length=length,
        noise=draws.normal(size=count),
    )


def test_a_canary_is_found_among_confounded_traffic() -> None:
    """30 logs with a tenth of the requests drawn at random; a true split is missed with 1%."""
    draws = np.random.default_rng(4)
    found = invented = 0
    for _ in range(30):
        sent, splits, _ = assignment(world(draws, 0.1))
        random = [each for each in splits if each.verdict == "looks random"]
        found += [each.where for each in random].count("route = canary")
        invented += len(random) - [each.where for each in random].count("route = canary")
        assert {each.column for each in sent if each.p is not None and each.p < 0.001} >= {
            "length",
            "plan",
        }
    assert found >= 28
    # Of 30 logs with at most 5% each, 5 or more are less likely than 1 in 60.
    assert invented <= 4
    canary = next(each for each in splits if each.where == "route = canary")
    assert canary.power is not None
    assert canary.power > 1.0 - FALSE_ALARMS
    assert not canary.sticky
    assert 0.0 < canary.detectable < 0.3
    assert canary.p >= SIZE


def test_no_split_is_found_where_there_is_none() -> None:
    """40 confounded logs, of which each may have a part that looks random with 5% at most: half of
    them so weakly that a part of a third of the rows is too small to say no."""
    draws = np.random.default_rng(5)
    alarms = 0
    for attempt in range(40):
        _, splits, tried = assignment(world(draws, 0.0, (1.3, 0.22)[attempt % 2]))
        alarms += any(each.verdict == "looks random" for each in splits)
        assert sum(tried.values()) > 5
    assert alarms <= 5


def test_a_part_too_small_to_tell_is_called_so() -> None:
    """Rows of one country in twenty, sent as all others are: whatever its test says, too few."""
    draws = np.random.default_rng(6)
    count = 5000
    length = draws.normal(size=count)
    model = (draws.random(count) < 0.5 + 0.05 * np.sign(length)).astype(int)
    country = np.where(draws.random(count) < 0.06, "small one", "rest")
    _, splits, tried = assignment(sample_of(model, None, country=country, length=length))
    small = next(each for each in splits if each.where == "country = small one")
    assert small.verdict == "too few"
    assert small.power is not None
    assert small.power < 0.9
    assert tried["too few"] == 1


def test_a_log_that_is_all_random_is_said_to_be_so_once() -> None:
    draws = np.random.default_rng(7)
    model = (draws.random(4000) < 0.2).astype(int)
    columns = {"plan": draws.choice(["free", "paid"], 4000), "length": draws.normal(size=4000)}
    _, splits, tried = assignment(sample_of(model, None, **columns))
    assert [(each.where, each.verdict) for each in splits] == [("all requests", "looks random")]
    assert tried == {"looks random": 1}
    assert splits[0].shares == pytest.approx({"large": 0.8, "small": 0.2}, abs=0.03)


def test_a_hash_split_by_user_is_one_draw_a_user() -> None:
    """A bucket says who gets what, and goes together with nothing else: it is how the split was
    made, not what confounds it."""
    draws = np.random.default_rng(8)
    unit = draws.integers(0, 600, 6000)
    bucket = draws.integers(0, 10, 600)
    plan = np.where(draws.random(600) < 0.5, "free", "paid")
    sample = sample_of(
        (bucket < 2).astype(int)[unit],
        unit,
        plan=plan[unit],
        bucket=np.array([f"b{each}" for each in bucket])[unit],
        length=draws.normal(size=6000),
    )
    _, splits, _ = assignment(sample)
    assert [(each.where, each.verdict) for each in splits] == [("all requests", "looks random")]
    assert splits[0].sticky
    assert splits[0].clusters == 600


def test_a_bucket_that_goes_together_with_the_plan_is_no_device() -> None:
    draws = np.random.default_rng(9)
    unit = draws.integers(0, 600, 6000)
    paid = draws.random(600) < 0.5
    bucket = np.where(paid, draws.integers(0, 5, 600), draws.integers(3, 10, 600))
    sample = sample_of(
        (bucket < 4).astype(int)[unit],
        unit,
        plan=np.where(paid, "paid", "free")[unit],
        bucket=np.array([f"b{each}" for each in bucket])[unit],
    )
    _, splits, _ = assignment(sample)
    assert all(each.verdict != "looks random" for each in splits)
    # Long prompts get variant a rather than c, and b, which is `large`, has its share of either:
    # the model does not depend on length, but what it was made by does.
    length = draws.normal(size=6000)
    variant = np.where(draws.random(6000) < 0.4, "b", np.where(length > 0, "a", "c"))
    sample = sample_of((variant != "b").astype(int), None, variant=variant, length=length)
    _, splits, _ = assignment(sample)
    assert all(each.verdict != "looks random" for each in splits)


def test_propensities_are_believed_where_they_add_up() -> None:
    """The probability of the model that was drawn depends on length; a column of other numbers
    between 0 and 1, such as a router's confidence, does not add up."""
    draws = np.random.default_rng(10)
    length = draws.normal(size=5000)
    small = np.clip(1.0 / (1.0 + np.exp(-length)), 0.1, 0.9)
    model = (draws.random(5000) < small).astype(int)
    chance = np.where(model == 1, small, 1.0 - small)
    for claimed, verdict in ((chance, "looks random"), (np.sqrt(chance), "not random")):
        _, splits, _ = assignment(sample_of(model, None, propensity=claimed, length=length))
        first = next(each for each in splits if each.value == "propensity")
        assert first.verdict == verdict
        assert next(each for each in splits if each.where == "all requests").verdict == "not random"
    few, chances = model[:250], np.where(model == 1, 0.02, 0.98)[:250]
    _, splits, _ = assignment(sample_of(few, None, propensity=chances, length=length[:250]))
    assert splits[0].verdict != "looks random"


def test_a_log_without_choice_has_nothing_to_ask() -> None:
    assert assignment(sample_of(np.zeros(500, int), None, plan=["a", "b"] * 250)) == ([], [], {})
    assert assignment(sample_of([0, 1] * 20, None, plan=["a", "b"] * 20)) == ([], [], {})


def test_the_power_that_is_said_is_not_more_than_what_happens() -> None:
    """Three devices, each a third of every user's rows, all sent as the whole log is: how often
    their tests say no, against how often they are said to."""
    draws = np.random.default_rng(11)
    said: list[float] = []
    refused: list[bool] = []
    for _ in range(25):
        _, splits, _ = assignment(world(draws, 0.0, 0.16))
        for each in splits:
            if each.column == "device" and each.power is not None:
                said.append(each.power)
                refused.append(each.verdict == "not random")
    assert len(said) > 50
    assert 0.2 < np.mean(refused) < 0.8
    assert np.mean(said) < np.mean(refused)
