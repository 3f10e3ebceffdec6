"""Odd numbers in process: what enters, what is refused, what a log that holds one still says."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from traffic import KEY, Traffic, config
from typer.testing import CliRunner

from equipoise.agent.agent import Agent
from equipoise.agent.config import config_from_dict
from equipoise.agent.errors import AgentError, BrokenError
from equipoise.agent.features import FeatureError
from equipoise.agent.record_adapter import RecordAdapter
from equipoise.agent.service.analyst.reports import report
from equipoise.replay.cli import app
from equipoise.store.memory import MemoryStore
from equipoise.store.records import Observation, Outcome, Request, Simulation
from equipoise.store.sqlite import SqliteStore

FAMILIES = [
    "ipw",
    "obs-only",
    "representation-exp",
    "cvci",
    "grounded",
    "doubly-robust",
    "hierarchical",
]
TRUTH = (0.4, 0.6)


def declared(limit: float | None = None):
    more = {} if limit is None else {"limit": limit}
    return config_from_dict(
        {
            "name": "odd",
            "models": [{"name": "a"}, {"name": "b"}],
            "features": {
                "context": [{"type": "number", "name": "words", "low": 0, **more}],
                "outputs": [{"type": "number", "name": "seconds", "low": 0, **more}],
            },
            "policy": {"assignment": "uniform", "rate": 0.5, "estimator": "hierarchical"},
        }
    )


def play(agent: Agent, rows: int, seed: int, tag: str = "q") -> None:
    """Honest rows whose outputs tell the models apart, and a table of replays."""
    rng, desk = np.random.default_rng(seed), RecordAdapter(agent)
    requests = [
        Request(
            request_id=f"{tag}{at}", routed="a", features={"words": float(rng.integers(1, 100))}
        )
        for at in range(rows)
    ]
    outcomes = []
    for made in desk.decide(requests):
        of = "ab".index(made.model)
        reward = float(rng.random() < TRUTH[of])
        outputs = {"seconds": 1.0 + of + rng.random()}
        outcomes.append(Outcome(decision_id=made.decision_id, outputs=outputs, reward=reward))
    desk.observe(outcomes)
    for at in range(150):
        words = {"words": float(rng.integers(1, 100))}
        desk.simulate(
            [
                Simulation(
                    context_id=f"{tag}{at}",
                    model=name,
                    features=words,
                    outputs={"seconds": 1.0 + of + rng.random()},
                )
                for of, name in enumerate("ab")
            ]
        )


def spoil(agent: Agent, way: str, value: float) -> None:
    desk = RecordAdapter(agent)
    words, seconds = {"words": value}, {"seconds": value}
    if way in ("context", "both"):
        made = desk.decide([Request(request_id="bad", routed="a", features=words)])[0]
        outputs = seconds if way == "both" else {"seconds": 1.0}
        desk.observe([Outcome(decision_id=made.decision_id, outputs=outputs, reward=1.0)])
    elif way == "outputs":
        made = desk.decide([Request(request_id="bad", routed="a", features={"words": 5.0})])[0]
        desk.observe([Outcome(decision_id=made.decision_id, outputs=seconds, reward=1.0)])
    elif way == "observation":
        desk.ingest([Observation(routed="b", features=words, outputs=seconds, reward=1.0)])
    else:
        desk.simulate(
            [Simulation(context_id="bad", model="b", features={"words": 5.0}, outputs=seconds)]
        )


@pytest.fixture(scope="module")
def said():
    """The report without the odd row."""
    honest = Agent(declared(), MemoryStore(), KEY)
    play(honest, 1200, seed=4)
    return report(honest, FAMILIES, 0.0)


@pytest.mark.parametrize("way", ["context", "outputs", "both", "observation", "simulation"])
@pytest.mark.parametrize("value", [1e6, 1.7e18, 1e50])
def test_a_log_that_holds_one_absurd_row_answers_as_without_it(tmp_path, said, way, value):
    """As logs of versions that took it do; the configuration may be that of now."""
    path = tmp_path / "log.db"
    with SqliteStore(path) as store:
        agent = Agent(declared(limit=1e50), store, KEY)
        play(agent, 1200, seed=4)
        spoil(agent, way, value)
        agent.refresh()
    with SqliteStore(path) as store:
        agent = Agent(declared(), store, KEY)  # refuses such rows from now on
        told = report(agent, FAMILIES, 0.0)
        assert told.estimates.fallbacks == {}
        for family in FAMILIES:
            for mine, other in zip(
                told.estimates.families[family], said.estimates.families[family], strict=True
            ):
                assert mine.value == pytest.approx(other.value, abs=0.06), family
        for truth, model in zip(TRUTH, told.estimates.models, strict=True):
            assert model.lower <= truth <= model.upper
        assert told.recommendation("hierarchical").model == "b"
        checks = {check.name: check for check in told.checks.checks}
        assert checks["estimators"].status == "watch"
        assert "so far off" in checks["estimators"].sentence
    result = CliRunner().invoke(app, ["status", str(path), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["models"][1]["value"] == pytest.approx(0.6, abs=0.1)


@pytest.mark.parametrize("way", ["context", "outputs", "both", "observation", "simulation"])
def test_such_a_row_is_refused_at_every_door(way):
    agent = Agent(declared(), MemoryStore(), KEY)
    before = agent.light.next_seq
    with pytest.raises(FeatureError, match=r"received 1.7e\+18, expected .* within ±1e\+09"):
        spoil(agent, way, 1.7e18)
    # A request that was fine is logged; what was odd is not.
    assert agent.light.next_seq - before == (way == "outputs")


@pytest.mark.parametrize("at", [1.7e12, 1.7e18, -1e300, np.nan, np.inf])
def test_a_time_that_is_no_second_of_this_age_is_refused(at):
    agent, traffic = Agent(config(), MemoryStore(), KEY), Traffic(np.random.default_rng(0))
    requests = traffic.requests(3)
    with pytest.raises(
        AgentError, match=r"at row 1: .* is not a time, expected seconds since the epoch"
    ):
        agent.decide(replace(requests, at=np.array([1.0, at, 1.0])))
    made = agent.decide(requests)
    outcomes = traffic.outcomes(made)
    if not np.isnan(at):  # unknown is allowed here
        with pytest.raises(AgentError, match="at row 1: "):
            agent.observe(replace(outcomes, at=np.array([1.0, at, 1.0])))
    agent.observe(outcomes)


@pytest.mark.parametrize("cost", [-1e-9, 1.1e6, 1e50, np.inf])
def test_a_cost_beyond_reason_is_refused(cost):
    agent = Agent(declared(), MemoryStore(), KEY)
    row = Simulation(
        context_id="c", model="a", features={"words": 1.0}, outputs={"seconds": 1.0}, cost=cost
    )
    with pytest.raises(AgentError, match=r"cost row 0: .* is not within 0 … 1e\+06: USD"):
        RecordAdapter(agent).simulate([row])


def test_the_limit_of_a_feature_may_change_in_a_running_experiment():
    agent = Agent(declared(), MemoryStore(), KEY)
    play(agent, 50, seed=1)
    big = Request(request_id="big", routed="a", features={"words": 1.7e9})
    with pytest.raises(FeatureError):
        RecordAdapter(agent).decide([big])
    changes = agent.reconfigure(declared(limit=2e9))
    assert {change.key for change in changes} == {
        "features.limits.words.limit",
        "features.limits.seconds.limit",
    }
    assert {change.effect for change in changes} == {"applied"}
    RecordAdapter(agent).decide([big])


@pytest.mark.parametrize("step", ["apply", "charge"])
def test_after_an_exception_between_append_and_fold_nothing_is_logged_any_more(monkeypatch, step):
    store = MemoryStore()
    agent, traffic = Agent(config(), store, KEY), Traffic(np.random.default_rng(0))
    made = agent.decide(traffic.requests(5))
    outcomes = traffic.outcomes(made)
    told = []
    agent.when_broken = told.append

    def fail(*_):
        raise MemoryError

    owner = agent.fold if step == "apply" else agent.state.purse
    with monkeypatch.context() as patch:
        patch.setattr(owner, step, fail)
        with pytest.raises(BrokenError, match="MemoryError after rows were logged"):
            agent.decide(traffic.requests(2))
    assert [type(error) for error in told] == [MemoryError]
    rows = store.next_seq
    for work in (
        lambda: agent.decide(traffic.requests(1)),
        lambda: agent.observe(outcomes),
        lambda: agent.expire(1e10),
    ):
        with pytest.raises(BrokenError):
            work()
    assert store.next_seq == rows
    # Opened again, it is what the log says.
    again = Agent(config(), store, KEY)
    assert again.light.next_seq == rows == 7
    again.observe(outcomes)


def test_an_interrupt_between_append_and_fold_stays_one(monkeypatch):
    agent, traffic = Agent(config(), MemoryStore(), KEY), Traffic(np.random.default_rng(0))

    def interrupted(seq, batch):
        raise KeyboardInterrupt

    monkeypatch.setattr(agent.fold, "apply", interrupted)
    with pytest.raises(KeyboardInterrupt):
        agent.decide(traffic.requests(3))
    assert agent.broken is not None
