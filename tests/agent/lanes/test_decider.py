"""A decider over a hub in memory: leases, publications, shipping, and what a killed one left."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from lane_hubs import KEY, Hubs, config_of, keeper, request

from equipoise.agent.decisions.uniforms import Uniforms
from equipoise.agent.errors import AgentError
from equipoise.store.batches import Closure
from equipoise.store.lanes import Report, Tickets
from equipoise.store.records import LANE_BITS, Outcome, decision_position


def until(holds: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait for the keeper's thread."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.002)


def publishing(hubs: Hubs, kept) -> None:
    """Start a keeper and give its lane tickets."""
    kept.start()
    until(lambda: hubs.hub.lanes())
    hubs.publish()
    assert kept.wait(10.0)


def test_decisions_are_drawn_by_lane_and_counter_and_come_to_the_hub(tmp_path: Path) -> None:
    hubs = Hubs()
    kept = keeper(hubs, tmp_path)
    publishing(hubs, kept)
    lane = kept.lane
    assert lane is not None
    assert kept.decides
    made = [lane.records.decide_one(request(f"r{at}")) for at in range(50)]
    assert [each.decision_id for each in made] == [f"d1-{at}" for at in range(50)]
    uniforms = Uniforms(KEY, "chat").of(1 << LANE_BITS, 50)
    assert [each.uniform for each in made] == uniforms.tolist()
    assert lane.records.decide_one(request("r7")) == made[7]
    assert kept.close(10.0)
    assert hubs.shipped(1) == list(range(50))
    batches = hubs.decisions()
    assert np.concatenate([b.uniform for b in batches]).tolist() == uniforms.tolist()
    assert {p.version for p in hubs.hub.decisions(99)} == {2}
    assert hubs.hub.find_requests(["r7", "none"]) == {"r7": decision_position("d1-7")}
    (status,) = hubs.hub.lanes()
    assert (status.whole, status.lost) == (True, False)
    assert status.spent.draws == sum(each.randomized for each in made)
    assert list(tmp_path.iterdir()) == []


def test_outcomes_of_other_lanes_are_reported_and_own_ones_validated(tmp_path: Path) -> None:
    hubs = Hubs()
    kept = keeper(hubs, tmp_path)
    publishing(hubs, kept)
    records = kept.lane.records
    records.decide_one(request("r0"))
    own = Outcome(decision_id="d1-0", reward=1.0)
    assert records.observe([own]).rows == 1
    assert records.observe([own]).duplicates == 1
    others = [
        Outcome(decision_id="d9-4", reward=0.5, outputs={"seconds": 2.0}),
        Outcome(request_id="elsewhere", reward=0.25),
        Outcome(decision_id="d7", reward=0.75),
    ]
    assert records.observe([*others, own]).rows == 3
    for wrong in (
        Outcome(decision_id="d9-4", reward=7.0),
        Outcome(decision_id="d9-4", served="nobody"),
        Outcome(decision_id="d1-1", reward=1.0),
        Outcome(decision_id="1-1", reward=1.0),
        Outcome(reward=1.0),
    ):
        with pytest.raises(AgentError):
            records.observe([wrong])
    kept.close(10.0)
    parcels = hubs.hub.outcomes(99)
    assert sum(each.rows for each in parcels if each.kind == "outcomes") == 1
    bodies = [each.body for each in parcels if each.kind == "reports"]
    reports = [r for body in bodies for r in msgspec.json.decode(body, type=list[Report])]
    assert [each.outcome for each in reports] == others
    assert {each.came for each in reports} == {hubs.clock()}


def test_a_publication_is_adopted_with_its_rule_and_tickets(tmp_path: Path) -> None:
    hubs = Hubs()
    kept = keeper(hubs, tmp_path)
    publishing(hubs, kept)
    lane = kept.lane
    first = lane.records.decide_one(request("r0"))
    hubs.tickets = Tickets(draws=0)
    version = hubs.publish().version
    until(lambda: lane.publication.version == version)
    closed = [lane.records.decide_one(request(f"s{at}")) for at in range(20)]
    assert not any(each.randomized for each in closed)
    assert {lane.records.closure(at) for at in range(1, 21)} == {Closure.SLICE}
    hubs.publish(off="an operator paused it")
    until(lambda: lane.publication.version == version + 1)
    lane.records.decide_one(request("t0"))
    assert lane.records.closure(21) is Closure.PAUSED
    until(lambda: hubs.hub.lanes()[0].adopted == version + 1)
    assert [p.version for p in hubs.hub.decisions(99)] == [2, version, version + 1]
    assert first.rule_id == hubs.agent.rule.rule_id
    kept.close(10.0)


def test_a_decider_stops_by_its_own_clock_before_its_lease_can_have_run_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hubs = Hubs()
    kept = keeper(hubs, tmp_path)
    publishing(hubs, kept)
    lane = kept.lane
    now = time.monotonic()
    assert now + 3.0 < lane.until < now + 4.6
    lane.until = now
    assert not kept.decides
    lane.until, lane.fresh = now + 99.0, now
    assert not kept.decides
    kept.close(10.0)


def test_what_a_lost_lane_ships_is_late_and_a_new_lane_follows(tmp_path: Path) -> None:
    hubs = Hubs()
    kept = keeper(hubs, tmp_path)
    publishing(hubs, kept)
    with kept_still(kept):
        kept.lane.records.decide_one(request("r0"))
        hubs.clock.now += 100.0
        assert hubs.hub.end_lapsed(hubs.term, 0.0) == [1]
    until(lambda: len(hubs.hub.lanes()) == 2)
    hubs.publish()
    until(lambda: kept.lane is not None and kept.lane.lease.lane == 2)
    kept.lane.records.decide_one(request("r1"))
    kept.close(10.0)
    late = {(p.lane, p.late) for p in hubs.hub.decisions(99)}
    assert late == {(1, True), (2, False)}
    assert all(each.whole for each in hubs.hub.lanes())


def kept_still(kept):
    """While the hub cannot be reached by anybody else."""
    return kept._connect().turn


def test_the_wrong_key_is_said_and_no_lane_is_kept(tmp_path: Path) -> None:
    hubs = Hubs()
    kept = keeper(hubs, tmp_path, key=bytes(32))
    kept.start()
    with pytest.raises(AgentError, match="the key is that of another experiment"):
        kept.wait(10.0)
    kept.close(5.0)
    assert [each for each in hubs.hub.lanes() if not each.whole] == []


def test_sticky_units_are_refused_in_one_line(tmp_path: Path) -> None:
    hubs = Hubs(config=config_of(units={"ttl": 60.0}))
    kept = keeper(hubs, tmp_path)
    kept.start()
    with pytest.raises(AgentError, match=r"\[units\]"):
        kept.wait(10.0)
    kept.close(5.0)
