"""Limits per segment and per user, through the real Agent: never passed, whatever the batches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from traffic import KEY, MODELS, Traffic, config

from equipoise.agent.agent import Agent
from equipoise.agent.config import (
    BudgetConfig,
    ConfigError,
    ModelConfig,
    PerUser,
    PolicyConfig,
    SegmentBudget,
    UnitsConfig,
)
from equipoise.agent.errors import AgentError
from equipoise.agent.maintenance.audit import audit
from equipoise.store.memory import MemoryStore
from equipoise.store.sqlite import SqliteStore

UNIFORM = PolicyConfig(gate="fixed-rate", assignment="uniform", rate=0.6)
LOW = SegmentBudget(name="low", column="a", high=-0.3, max_requests=17)
MIDDLE = SegmentBudget(name="middle", column="a", low=-0.6, high=0.4, max_requests=40)


def limited(segments=(), share=None, caps=(None, None, None), store=None, **changes):
    budget = BudgetConfig(
        segments=list(segments), per_user=None if share is None else PerUser(share=share)
    )
    models = [ModelConfig(name=n, max_requests=c) for n, c in zip(MODELS, caps, strict=True)]
    settings = config(models=models, policy=UNIFORM, budget=budget, **changes)
    return Agent(settings, MemoryStore() if store is None else store, KEY)


def requests(seed, count, users):
    """A stream in which few users come often, and some only once."""
    rng = np.random.default_rng(seed)
    unit = np.where(
        rng.random(count) < 0.8, rng.integers(0, users, count), 10**6 + rng.permutation(count)
    )
    return replace(Traffic(np.random.default_rng(seed)).requests(count), unit=unit)


def part(whole, rows):
    columns = ("unit", "context", "at", "x", "routed")
    return replace(whole, **{name: getattr(whole, name)[rows] for name in columns})


def decided(agent, whole, sizes):
    found, start = [], 0
    for size in sizes:
        found.append(agent.decide(part(whole, slice(start, start + size))))
        start += size
    assert start == len(whole)
    return (
        np.concatenate([batch.model for batch in found]),
        np.concatenate([batch.randomized for batch in found]),
        np.concatenate([batch.capped for batch in found]),
        np.concatenate([batch.rate for batch in found]),
    )


def plain_rule(whole, drawn, segments, share):
    """Which rows are closed, counted again row by row from the draws alone."""
    a, closed = whole.x[:, 0], np.zeros(len(whole), dtype=bool)
    spent, users = dict.fromkeys([each.name for each in segments], 0), {}
    for row, user in enumerate(whole.unit.tolist()):
        inside = [
            each
            for each in segments
            if (each.low is None or a[row] >= each.low)
            and (each.high is None or a[row] < each.high)
        ]
        history = users.setdefault(user, [])
        closed[row] = any(spent[each.name] >= each.max_requests for each in inside)
        if share is not None and any(history):
            since = history[history.index(True) :]
            closed[row] |= sum(since) + 1 > share * (len(since) + 1)
        history.append(bool(drawn[row]))
        for each in inside:
            spent[each.name] += drawn[row]
    return closed


@pytest.mark.parametrize("sizes", [[600], [1] * 600, [7] * 85 + [5]])
@pytest.mark.parametrize(
    ("segments", "share", "caps"),
    [
        ([LOW, MIDDLE], None, (None, None, None)),
        ([], 0.25, (None, None, None)),
        ([LOW, MIDDLE], 0.4, (None, None, None)),
        ([LOW], 0.4, (20, None, 35)),
    ],
)
def test_no_limit_is_passed_and_batches_change_nothing(segments, share, caps, sizes):
    whole = requests(3, 600, 25)
    agent = limited(segments, share, caps)
    model, drawn, closed, rate = decided(agent, whole, sizes)
    expected = plain_rule(whole, drawn, segments, share)
    if caps == (None, None, None):
        np.testing.assert_array_equal(closed, expected)
    else:
        assert closed[expected].all()
    assert not drawn[closed].any()
    assert (rate[closed] == 0).all()
    assert (model[closed] == whole.routed[closed]).all()
    assert drawn.sum() > 30
    for other in (limited(segments, share, caps),):
        again = decided(other, whole, [600])
        for mine, theirs in zip((model, drawn, closed, rate), again, strict=True):
            np.testing.assert_array_equal(mine, theirs)
    assert audit(agent.store, agent.config, KEY).clean


def test_a_user_s_share_is_kept_at_every_moment():
    whole = requests(5, 2000, 12)
    _, drawn, _, _ = decided(limited(share=0.3), whole, [2000])
    for user in range(12):
        history = drawn[whole.unit == user]
        first = int(history.argmax())
        assert history.any()
        got = np.cumsum(history[first:])
        seen = np.arange(1, len(got) + 1)
        assert (got <= np.maximum(1, 0.3 * seen)).all()
        assert got[-1] > 0.2 * seen[-1], "and it is used"


def test_closed_rows_are_not_certified_and_the_rest_is():
    agent, traffic = limited([LOW]), Traffic(np.random.default_rng(1))
    batch = agent.decide(traffic.requests(400))
    assert 0 < batch.capped.sum() < 400
    agent.observe(traffic.outcomes(batch))
    assert agent.answers.view().certified.overall.rows == 400 - batch.capped.sum()


def test_what_was_spent_is_said():
    agent = limited([LOW, MIDDLE])
    batch = agent.decide(requests(3, 600, 25))
    low, middle = agent.answers.spending()
    assert (low.resource, low.limit, low.spent, low.left) == ("requests in low", 17.0, 17.0, 0.0)
    inside = (batch.x[:, 0] >= -0.6) & (batch.x[:, 0] < 0.4)
    assert middle.spent == np.count_nonzero(batch.randomized & inside) == 40
    assert middle.expected == pytest.approx(batch.rate[inside].sum())


@pytest.mark.parametrize("checkpointed", [False, True])
def test_counts_come_back_with_the_store(tmp_path, checkpointed):
    whole = requests(7, 300, 9)
    straight = decided(limited([MIDDLE], 0.4), whole, [300])
    found, path = [], tmp_path / "log.db"
    for start in range(0, 300, 50):
        with SqliteStore(path) as store:
            agent = limited([MIDDLE], 0.4, store=store)
            found.append(decided(agent, part(whole, slice(start, start + 50)), [50]))
            if checkpointed:
                agent.checkpoint()
    for mine, theirs in zip(zip(*found, strict=True), straight, strict=True):
        np.testing.assert_array_equal(np.concatenate(mine), theirs)


def test_a_cap_can_be_raised_and_a_segment_not_be_another():
    agent = limited([LOW], 0.4)
    agent.decide(requests(3, 300, 25))
    assert agent.answers.spending()[0].left == 0

    def budget(**changes):
        kept = {"column": "a", "high": -0.3, "max_requests": 17, **changes}
        return BudgetConfig(
            segments=[SegmentBudget(name="low", **kept)], per_user=PerUser(share=0.4)
        )

    raised = agent.config.__class__.from_json(
        config(models=agent.config.models, policy=UNIFORM, budget=budget(max_requests=30)).to_json()
    )
    (change,) = agent.reconfigure(raised)
    assert (change.key, change.effect) == ("budget.segments[0].max_requests", "applied")
    agent.decide(requests(4, 300, 25))
    assert agent.answers.spending()[0].spent == 30
    moved = config(models=agent.config.models, policy=UNIFORM, budget=budget(high=0.1))
    with pytest.raises(AgentError, match="start a new store"):
        agent.reconfigure(moved)
    without = config(models=agent.config.models, policy=UNIFORM)
    with pytest.raises(AgentError, match=r"budget\.per_user"):
        agent.reconfigure(without)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"segments": [SegmentBudget(name="x", column="nowhere", low=0.0, max_requests=3)]},
            "nowhere",
        ),
        ({"segments": [SegmentBudget(name="x", column="a", max_requests=3)]}, "no end"),
        (
            {"segments": [SegmentBudget(name="x", column="a", low=0.0, max_requests=0)]},
            "max_requests",
        ),
        ({"segments": [LOW, LOW]}, "twice"),
        ({"per_user": PerUser(share=0.0)}, "share"),
        ({"per_user": PerUser(share=1.5)}, "share"),
    ],
)
def test_impossible_limits_are_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        config(budget=BudgetConfig(**changes)).checked()


@pytest.mark.parametrize("budget", [{"per_user": PerUser(share=0.5)}, {"segments": [LOW]}])
def test_sticky_users_have_no_limits_of_their_own(budget):
    with pytest.raises(ConfigError, match="keeps its model for all its requests"):
        config(units=UnitsConfig(ttl=5.0), budget=BudgetConfig(**budget)).checked()


@pytest.mark.parametrize("size", [1, 7, 64, 600])
def test_sticky_users_do_not_carry_a_model_beyond_its_cap(size):
    whole = requests(11, 600, 25)
    agent = limited(caps=(40, 35, None), units=UnitsConfig(ttl=1e6))
    sizes = [size] * (600 // size) + ([600 % size] if 600 % size else [])
    found = decided(agent, whole, sizes)
    spent = np.bincount(found[0][found[1]], minlength=3)
    assert spent[0] <= 40
    assert spent[1] <= 35
    alone = decided(limited(caps=(40, 35, None), units=UnitsConfig(ttl=1e6)), whole, [1] * 600)
    for mine, theirs in zip(found, alone, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert audit(agent.store, agent.config, KEY).clean
