"""Bandit feedback: every propensity and estimate follows from the raw rows, and no row is lost."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from raw_feedback import ROUTING, RawRows
from traffic import KEY, MODELS, Traffic, config, run
from traffic import SETTINGS as CUT

from equipoise.agent.agent import Agent
from equipoise.agent.config import (
    BudgetConfig,
    CertifyConfig,
    DeclaredPolicy,
    PolicyConfig,
    RewardConfig,
    SegmentBudget,
    UnitsConfig,
)
from equipoise.agent.errors import AgentError
from equipoise.agent.inference.rated import asked
from equipoise.agent.maintenance import export_bandit
from equipoise.agent.maintenance.bandit_files import write_feedback
from equipoise.agent.maintenance.export import tables, write_tables
from equipoise.agent.maintenance.export_bandit import BanditLog
from equipoise.store.batches import Closure, OutcomeBatch
from equipoise.store.memory import MemoryStore
from equipoise.store.sqlite import SqliteStore
from tests.agent.state.test_recovery_retention import played as cut_short
from tests.agent.test_controls_after_decision import decided, play

SPLIT = DeclaredPolicy(name="split", column="a", at_least=0.0, model="fast", otherwise="cheap")
SETTINGS = {
    "plain": {"policy": PolicyConfig(gate="contrast", assignment="contrast", rate=0.3)},
    "declared": {
        "policy": PolicyConfig(assignment="top-two", rate=0.4),
        "reward": RewardConfig(low=-1.0, high=3.0, window=100.0, missing=0.3),
        "certify": CertifyConfig(policies=[SPLIT]),
    },
    "sticky": {"units": UnitsConfig(ttl=3.0), "reward": RewardConfig(window=100.0, missing=0.0)},
    "frozen": {
        "budget": BudgetConfig(
            segments=[SegmentBudget(name="left", column="a", high=0.1, max_requests=40)]
        ),
        "certify": CertifyConfig(limits="freeze"),
    },
}


def played(store, settings, seed=6):
    """An era before, then one without "slow": masks, excluded users, fallbacks, lost rewards."""
    agent, traffic = Agent(settings, store, KEY), Traffic(np.random.default_rng(seed))
    rng = np.random.default_rng(seed + 1)
    agent.ingest(traffic.observations(30))
    run(agent, traffic, 2)
    agent.controls.open_era("by hand", 1.0, active=np.array([False, True, True]))
    for index in range(12):
        asked_for = traffic.requests(60)
        if settings.units is not None:
            asked_for.unit[:] = rng.integers(0, 90, 60)
        eligible = np.ones((60, 3), dtype=bool)
        eligible[rng.random(60) < 0.1, 2] = False
        eligible[np.arange(60), asked_for.routed] = True
        names = [f"q{index}-{row}" if row % 5 else "" for row in range(60)]
        decided = agent.decide(replace(asked_for, eligible=eligible, request_id=names))
        for part in outcomes(traffic, rng, decided):
            agent.observe(part)
        traffic.at += 20.0
        agent.expire(traffic.at)
        if index % 3 == 2:
            agent.refresh(traffic.at, review=False)
    traffic.at += 200.0
    agent.expire(traffic.at)
    # Still open at the end.
    agent.decide(traffic.requests(7))
    return agent


def outcomes(traffic, rng, decided):
    """Rewards of which some are missing; some draws fail, and a fallback answers some of those."""
    told = traffic.outcomes(decided)
    kinds = rng.random(len(decided))
    told.delivered[:] = kinds > 0.1
    reward = told.reward.copy()
    reward[rng.random(len(decided)) < 0.1] = np.nan
    again = kinds < 0.05
    told = replace(told, reward=np.where(again, np.nan, reward))
    count = int(again.sum())
    fallback = OutcomeBatch(
        number=decided.number[again],
        served=(decided.model[again] + 1) % 3,
        attempt=np.full(count, 2),
        delivered=np.ones(count, dtype=bool),
        outputs=np.full((count, 2), np.nan),
        reward=reward[again],
        at=decided.at[again],
    )
    return told, fallback


@pytest.fixture(params=sorted(SETTINGS))
def exported(request, tmp_path):
    """(settings, agent, folder) of a store that was exported as tables and as feedback."""
    settings = config(**SETTINGS[request.param])
    with SqliteStore(tmp_path / "log.db") as store:
        agent = played(store, settings)
    with SqliteStore(tmp_path / "log.db", read_only=True) as store:
        write_tables(store, settings, tmp_path / "tables", "parquet")
        write_feedback(store, settings, tmp_path / "obp", "obp")
    return settings, agent, tmp_path


def test_the_estimates_are_those_of_the_raw_rows(exported):
    _, _, folder = exported
    raw = RawRows(folder / "tables")
    said = json.loads((folder / "obp" / "experiment.json").read_text())
    assert list(said["estimates"]) == raw.candidates
    for index, end in enumerate(("low", "high")):
        for name, (ips, snips) in raw.estimates(end).items():
            assert said["estimates"][name]["ips"][index] == pytest.approx(ips, abs=1e-12)
            assert said["estimates"][name]["snips"][index] == pytest.approx(snips, abs=1e-12)


def test_every_decision_is_a_row_or_is_left_out_with_a_reason(exported):
    settings, agent, folder = exported
    raw = RawRows(folder / "tables")
    said = json.loads((folder / "obp" / "experiment.json").read_text())
    left = said["left_out"]
    assert said["rows"] + sum(left.values()) == agent.state.decisions
    assert left["of another era"] == raw.left_out["another era"] == 80
    assert left["at or behind the first that waits for its reward"] >= 7
    assert left["a compared model was not eligible"] > 10
    assert said["usage_rows"] == 30
    assert ("in the row of its unit" in left) == (settings.units is not None)
    if settings.certify.limits == "freeze":
        assert left["closed: segment"] > 0
        assert left["behind the first that a limit closed"] > 0


def test_a_routed_draw_has_both_ways_to_its_model_in_its_probability():
    """e pi + (1 - e) for the routed model, whichever way it came; e pi for another."""
    store = MemoryStore()
    agent, traffic = Agent(config(), store, KEY), Traffic(np.random.default_rng(3))
    decided = agent.decide(traffic.requests(300))
    agent.observe(traffic.outcomes(decided))
    (rows,) = BanditLog(store, config()).blocks()
    routed = rows.action == rows.routed
    assert 0 < (routed & decided.randomized).sum() < routed.sum()
    np.testing.assert_allclose(rows.pscore[routed], 0.1 + 0.7, rtol=1e-15)
    np.testing.assert_allclose(rows.pscore[~routed], 0.1, rtol=1e-15)


def test_an_era_that_ended_can_be_asked_for():
    settings = config(**SETTINGS["plain"])
    store = MemoryStore()
    played(store, settings)
    log = BanditLog(store, settings, 0)
    rows = sum(len(block) for block in log.blocks())
    assert rows == log.rows == 80
    assert log.actions.candidates == (*MODELS, ROUTING)
    assert log.left_out["of another era"] + log.rows < store.decisions
    with pytest.raises(AgentError, match="era 7 is not in the store, which has eras 0 to 1"):
        BanditLog(store, settings, 7)


@pytest.mark.parametrize("missing", ["rated", "asked"])
def test_where_only_some_rate_the_rows_are_those_who_did(missing, tmp_path):
    ask = 0.5 if missing == "asked" else None
    settings = config(reward=RewardConfig(window=100.0, missing=missing, ask=ask))
    store = MemoryStore()
    agent, traffic = Agent(settings, store, KEY), Traffic(np.random.default_rng(3))
    decided = agent.decide(traffic.requests(400))
    told = traffic.outcomes(decided)
    told.reward[::3] = np.nan
    told.delivered[5:7] = False  # with a reward, and without
    agent.observe(told)
    agent.expire(traffic.at + 200.0)
    said = write_feedback(store, settings, tmp_path / "out", "obp")
    heard = np.ones(400, dtype=bool) if ask is None else asked(decided.uniform, ask)
    rated = ~np.isnan(told.reward) | ~told.delivered
    assert said["rows"] == (heard & rated).sum()
    assert said["left_out"]["not rated"] == (heard & ~rated).sum()
    assert said["left_out"].get("not asked for a rating", 0) == (~heard).sum()
    # Their number is no number of requests: only the ratio means something.
    assert said["estimates"]["slow"]["ips"] is None
    own = heard & rated & (decided.model == 0) & told.delivered
    weight = 1 / np.where(decided.routed == 0, 0.8, 0.1)
    low, high = said["estimates"]["slow"]["snips"]
    unknown = heard & ~told.delivered & (decided.model == 0)
    assert (low < high) == unknown.any()
    if not unknown.any():
        assert low == high == pytest.approx(np.average(told.reward[own], weights=weight[own]))
    sticky = config(reward=settings.reward, units=UnitsConfig(ttl=3.0))
    with pytest.raises(AgentError, match=f"reward.missing is {missing} and units are sticky"):
        BanditLog(MemoryStore(), sticky)


def test_what_closed_a_decision_is_named():
    """One by one, as the reasons stand in the report."""
    assert set(export_bandit._CLOSED) == set(Closure)
    settings = config(budget=BudgetConfig(requests=20))
    store = MemoryStore()
    agent, traffic = Agent(settings, store, KEY), Traffic(np.random.default_rng(3))
    for _ in range(4):
        agent.observe(traffic.outcomes(agent.decide(traffic.requests(40))))
    log = BanditLog(store, settings)
    rows = sum(len(block) for block in log.blocks())
    assert log.left_out["closed: budget"] == 160 - rows > 0


@pytest.mark.parametrize(
    ("after", "reason"),
    [("ramp", "drawn after the decision, for the checks"), ("stop", "closed: decided")],
)
def test_what_is_decided_after_the_decision_is_no_row(after, reason):
    """Nor is it among those that the tables call certifiable."""
    agent, traffic = decided(after)
    rows = agent.answers.certified(0).rows
    play(agent, traffic, 2)
    assert agent.answers.certified(0).rows == rows
    log = BanditLog(agent.store, agent.config)
    assert sum(len(block) for block in log.blocks()) == rows
    assert log.left_out == {reason: 200}
    said = tables(agent.store, agent.config)["decisions"]
    assert said["entered"].sum() == said["certifiable"].sum() == rows


def test_of_a_log_that_was_cut_short_the_rest_is_the_same(tmp_path):
    settings = config(**CUT["units"])
    cut_short(tmp_path / "whole.db", settings, False)
    cut_short(tmp_path / "cut.db", settings, True)
    logs = []
    for name in ("whole", "cut"):
        with SqliteStore(tmp_path / f"{name}.db", read_only=True) as store:
            log = BanditLog(store, settings)
            logs.append((log, list(log.blocks()), store.base_snapshot(), store.decisions))
    (whole, (every,), _, _), (cut, (rest,), base, decisions) = logs
    assert cut.left_out["removed by age"] == base.decisions > 100
    assert cut.rows + sum(cut.left_out.values()) == decisions
    kept = every.number >= base.decisions
    assert 0 < kept.sum() < len(kept)
    for name in ("number", "action", "probabilities", "low", "high", "chosen", "x"):
        np.testing.assert_array_equal(getattr(every, name)[kept], getattr(rest, name))
    assert whole.left_out["removed by age"] == 0
