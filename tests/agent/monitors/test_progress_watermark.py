"""What holds back the certificate: bounded at the door, closed in time, seen and alarmed."""

from __future__ import annotations

import numpy as np
import pytest
from traffic import KEY, Traffic, config

from equipoise.agent.agent import Agent
from equipoise.agent.cli.status import describe
from equipoise.agent.config import RewardConfig, UnitsConfig
from equipoise.agent.errors import SKEW, AgentError, TimeError
from equipoise.agent.monitors.progress import FEWEST_HELD, PATIENCE, Behind, watermark
from equipoise.agent.record_adapter import RecordAdapter
from equipoise.agent.service.analyst.reports import report
from equipoise.store.memory import MemoryStore
from equipoise.store.records import Observation, Outcome, Request, Simulation

FEATURES, OUTPUTS = {"a": 0.1, "b": 0.2}, {"u": 0.1, "v": 0.2}
WINDOW, NOW = 100.0, 1_790_000_000.0


class Moving:
    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def asked(clock, store=None, window=WINDOW, **settings):
    reward = RewardConfig(low=0.0, high=1.0, window=window)
    return RecordAdapter(
        Agent(config(reward=reward, **settings), store or MemoryStore(), KEY), clock
    )


def request(name, **more):
    return Request(request_id=name, routed="slow", features=FEATURES, **more)


def whole(door, names, seconds=1.0):
    """Requests with everything they wait for, one after another."""
    for name in names:
        door.decide([request(name)])
        door._clock.now += seconds
        door.observe([Outcome(request_id=name, outputs=OUTPUTS, reward=0.5)])


def check(agent, at=None):
    (found,) = [each for each in agent.answers.checks(at) if each.name == "watermark"]
    return found


@pytest.mark.parametrize(
    ("at", "says"),
    [
        (4e9, "4000000000.000 .2096-10-02 07:06:40 UTC. is 2,210,000,000 s after the agent's"),
        (NOW + SKEW + 1, "is 301 s after the agent's clock, at most 300 s from"),
        (NOW - SKEW - 1, "is 301 s before the agent's clock, at most 300 s from"),
        (0.0, "1970-01-01 00:00:00 UTC. is 1,790,000,000 s before"),
        (float("nan"), "nan is not a time, expected seconds since the epoch"),
        (float("inf"), "inf is not a time"),
        (-1.0, "-1.0 is not a time"),
        (1e12, "1e.12|1000000000000.0 is not a time"),
    ],
)
def test_a_decision_is_made_now(at, says):
    """At either way in; and a request that was decided before is answered whatever it carries."""
    door = asked(Moving())
    bad = request("q0", at=at)
    for way in (lambda: door.decide_one(bad), lambda: door.decide([request("q1"), bad])):
        with pytest.raises(TimeError, match=says):
            way()
    assert door.agent.store.next_seq == 0
    first = door.decide_one(request("q0", at=NOW - SKEW))
    assert first.at == NOW - SKEW
    assert door.decide_one(bad) == door.decide([bad])[0] == first


@pytest.mark.parametrize("at", [NOW + 3600.0, float("nan"), -5.0])
def test_nothing_is_reported_from_the_future_or_from_no_time(at):
    door = asked(Moving())
    door.decide_one(request("q0"))
    with pytest.raises(TimeError):
        door.observe([Outcome(request_id="q0", reward=0.5, at=at)])
    row = Observation(routed="slow", features=FEATURES, outputs=OUTPUTS, reward=0.1, at=at)
    with pytest.raises(TimeError):
        door.ingest([row])
    replay = Simulation(context_id="c", model="slow", features=FEATURES, outputs=OUTPUTS, at=at)
    with pytest.raises(TimeError):
        door.simulate([replay])
    assert door.agent.store.next_seq == 1
    history = Observation(routed="slow", features=FEATURES, outputs=OUTPUTS, reward=0.1, at=3.0)
    assert door.ingest([history]).rows == 1, "a usage log is as old as it is"


@pytest.mark.parametrize("at", [np.nan, np.inf, -1.0, 1e12])
def test_columns_carry_times_too(at):
    agent, traffic = Agent(config(), MemoryStore(), KEY), Traffic(np.random.default_rng(0))
    requests = traffic.requests(3)
    requests.at[1] = at
    with pytest.raises(AgentError, match=r"at row 1: .* is not a time"):
        agent.decide(requests)
    with pytest.raises(AgentError, match="is not a time"):
        agent.expire(at)
    assert agent.store.next_seq == 0


def test_one_waits_and_three_hundred_are_held_back():
    """Where no window ends the wait: said with its number, alarmed with the cure."""
    door = asked(Moving(), window=None)
    door.decide([request("lost")])
    whole(door, [f"q{i}" for i in range(300)], seconds=1.0)
    agent = door.agent
    behind = agent.answers.behind()
    assert (behind.waiting, behind.held, behind.number) == (1, 300, 0)
    assert behind.delay == pytest.approx(1.0)
    found = check(agent)
    assert found.status == "alarm"
    assert "d0 of 2026-09-21 14:13:20 UTC holds back 300 requests" in found.sentence
    assert "declare one (a new era)" in found.sentence
    facts = describe(agent)
    assert (facts["waiting_for_outcomes"], facts["held_back"]) == (1, 300)
    assert facts["waiting"] == (
        "1 waits for its outcome; d0 of 2026-09-21 14:13:20 UTC holds back 300 requests."
    )
    told = report(agent, [], door._clock()).estimates
    assert (told.waiting, told.watermark.held_back, told.watermark.decision_id) == (1, 300, "d0")
    assert agent.answers.view().certified.overall.rows == 0
    door.observe([Outcome(request_id="lost", outputs=OUTPUTS, reward=0.5)])
    assert agent.answers.view().certified.overall.rows == 301
    assert agent.answers.behind() == Behind()
    assert check(agent).status == "ok"


def test_a_clock_that_was_set_back_holds_back_one_window_at_the_most():
    """Decided by a clock a day ahead; the rows wait for no reward of that day."""
    clock = Moving(NOW + 86_400.0)
    store = MemoryStore()
    door = asked(clock, store)
    door.decide([request(f"ahead{i}") for i in range(3)])
    clock.now = NOW
    whole(door, [f"q{i}" for i in range(50)])
    found = check(door.agent, clock.now)
    assert found.status == "alarm"
    assert "in the future" in found.sentence
    assert door.agent.expire(clock.now) == 0
    clock.now += WINDOW
    assert door.agent.expire(clock.now) == 0
    assert door.observe([Outcome(request_id="ahead0", outputs=OUTPUTS, reward=0.5)]).rows == 1
    clock.now += 1.0
    assert door.agent.expire(clock.now) == 2
    assert door.agent.answers.view().certified.overall.rows == 53
    assert check(door.agent, clock.now).status == "ok"
    assert Agent(door.agent.config, store, KEY).fold.to_bytes() == door.agent.fold.to_bytes()


def test_units_opened_by_a_clock_that_was_set_back_close_too():
    """And users get units of their own again: the clock of units went back with it."""
    clock = Moving(NOW + 86_400.0)
    store = MemoryStore()
    door = asked(clock, store, units=UnitsConfig(ttl=30.0))
    door.decide([request("ahead", unit_id="ann")])
    door.observe([Outcome(request_id="ahead", outputs=OUTPUTS, reward=0.5)])
    clock.now = NOW
    door.agent.expire(clock.now)
    clock.now += WINDOW + 1.0
    assert door.agent.expire(clock.now) == 1
    for name in ("q0", "q1"):
        door.decide([request(name, unit_id="bob")])
        door.observe([Outcome(request_id=name, outputs=OUTPUTS, reward=0.5)])
        clock.now += 1.0
    leaders = door.agent.light.pending.leader[:3] - door.agent.light.pending.base
    assert leaders.tolist() == [0, 1, 1]
    assert door.agent.answers.behind().number == 1
    assert "its unit may grow until 2026-09-21 14:15:31 UTC" in door.agent.answers.behind().sentence
    clock.now += 31.0
    door.decide([request("q2", unit_id="cid")])
    assert door.agent.answers.behind().number == 3
    assert Agent(door.agent.config, store, KEY).fold.to_bytes() == door.agent.fold.to_bytes()


def test_a_window_that_nobody_sweeps_is_alarmed_with_the_cure():
    door = asked(Moving())
    door.decide([request("lost")])
    whole(door, [f"q{i}" for i in range(20)])
    assert check(door.agent).status == "ok"
    at = NOW + WINDOW
    assert [check(door.agent, at + late).status for late in (69.0, 71.0, 161.0)] == [
        "ok",
        "watch",
        "alarm",
    ]
    assert "call `expire(now)`" in check(door.agent, at + 161.0).sentence
    assert door.agent.expire(at + 161.0) == 1
    assert check(door.agent, at + 161.0).sentence == "Nothing waits: every decision is closed."


def test_patience_without_a_window_is_twenty_mean_delays():
    def status(held, waits):
        return watermark(Behind(3, held, 7, NOW, delay=2.0), NOW + waits, None).status

    assert status(FEWEST_HELD - 1, 1e6) == "ok"
    assert status(FEWEST_HELD, 2.0 * PATIENCE + 0.1) == "alarm"
    assert status(FEWEST_HELD, 2.0 * PATIENCE - 0.1) == "watch"
    assert status(FEWEST_HELD, PATIENCE - 0.1) == "ok"


def test_honest_delays_without_a_window_raise_no_alarm():
    """Exponential delays of 40 requests: the oldest of 3,000 waits 20 means with chance 6e-6."""
    rng = np.random.default_rng(4)
    agent = Agent(config(reward=RewardConfig(low=0.0, high=1.0)), MemoryStore(), KEY)
    traffic, waiting, held = Traffic(rng), {}, 0
    for step in range(300):
        outcomes = traffic.outcomes(agent.decide(traffic.requests(10)))
        for row, delay in enumerate(rng.exponential(4.0, 10).astype(int).tolist()):
            waiting.setdefault(step + delay, []).append((outcomes, row))
        for batch, row in waiting.pop(step, []):
            columns = {name: getattr(batch, name) for name in batch.__slots__}
            one = {k: v if v is None else v[row : row + 1] for k, v in columns.items()}
            agent.observe(type(batch)(**one | {"at": np.array([traffic.at])}))
        if step % 10 == 9:
            held = max(held, agent.answers.behind().held)
            assert check(agent).status != "alarm"
    assert held > FEWEST_HELD


def test_while_the_agents_clock_comes_back_told_times_are_moved_onto_it():
    """The machine's clock was an hour behind when the daemon started, and was set right: callers
    tell right times, and neither are refused nor late, nor wait an hour longer."""
    clock = Moving()
    agent = asked(clock).agent
    door = RecordAdapter(agent, clock, off=lambda: 3600.0)
    decided = door.decide_one(request("q0", at=NOW + 3600.0))
    assert decided.at == NOW
    assert door.decide([request("q1")])[0].at == NOW
    clock.now += WINDOW - 1.0
    parts = [Outcome(request_id=name, reward=0.5, at=clock.now + 3600.0) for name in ("q0", "q1")]
    assert door.observe(parts).rows == 2
    with pytest.raises(TimeError, match=r"at row 1: .* is 3,600 s before"):
        door.decide([request("q2"), request("q4", at=clock.now)])
    clock.now += 2.0
    door.decide_one(request("q3", at=clock.now + 3600.0))
    clock.now += WINDOW + 1.0
    assert door.observe([Outcome(request_id="q3", reward=0.5)]).late == 1
    row = Observation(
        routed="slow", features=FEATURES, outputs=OUTPUTS, reward=0.1, at=clock.now + 3600.0
    )
    door.ingest([row])
    (*_, last) = agent.store.read()
    assert last.batch.at[0] == row.at, "a usage log keeps its times"
