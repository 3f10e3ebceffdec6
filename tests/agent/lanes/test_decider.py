"""A decider over a hub in memory: leases, publications, shipping, and what a killed one left."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from lane_hubs import KEY, QUICK, Clock, Hubs, config_of, keeper, request

from equipoise.agent.agent import Agent
from equipoise.agent.decisions.uniforms import Uniforms
from equipoise.agent.errors import AgentError
from equipoise.agent.lanes import decider
from equipoise.store.batches import Closure
from equipoise.store.errors import StoreError
from equipoise.store.lanes import HubError, Lease, Report, Tickets, lane_store
from equipoise.store.lanes.memory import MemoryHub
from equipoise.store.records import LANE_BITS, Outcome, decision_position


def until(holds: Callable[[], object], seconds: float = 60.0) -> None:
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
    assert kept.wait(60.0)


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
    until(lambda: hubs.hub.lanes()[0].adopted == version + 1 and not lane.store.waiting)
    versions = [p.version for p in hubs.hub.decisions(99)]
    assert list(dict.fromkeys(versions)) == [2, version, version + 1]
    rows = [sum(p.rows for p in hubs.hub.decisions(99) if p.version == v) for v in set(versions)]
    assert sorted(rows) == [1, 1, 20]
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


class CutOff(MemoryHub):
    """A hub that goes away in the first late shipment."""

    cut = False

    def ship_late(self, *arguments: object) -> None:
        if not self.cut:
            self.cut = True
            raise HubError("nobody is there")
        super().ship_late(*arguments)


def test_a_late_shipment_that_failed_is_made_by_the_files_of_the_lane(tmp_path: Path) -> None:
    clock = Clock()
    hubs = Hubs(clock, hub=CutOff(clock))
    kept = keeper(hubs, tmp_path)
    publishing(hubs, kept)
    with kept_still(kept):
        kept.lane.records.decide_one(request("r0"))
        hubs.clock.now += 100.0
        assert hubs.hub.end_lapsed(hubs.term, 0.0) == [1]
    until(lambda: len(hubs.hub.lanes()) == 2)
    hubs.publish()
    # By the same process, which holds the files of the lane no more.
    until(lambda: {each.lane: each.whole for each in hubs.hub.lanes()}.get(1))
    assert hubs.hub.cut
    until(lambda: kept.recovered == 1)
    assert [(p.lane, p.rows, p.late) for p in hubs.hub.decisions(99)] == [(1, 1, True)]
    assert kept.close(10.0)
    assert list(tmp_path.glob("lane-*")) == []


def kept_still(kept):
    """While the hub cannot be reached by anybody else."""
    return kept._connect().turn


def test_the_wrong_key_is_said_and_no_lane_is_kept(tmp_path: Path) -> None:
    hubs = Hubs()
    kept = keeper(hubs, tmp_path, key=bytes(32))
    kept.start()
    with pytest.raises(AgentError, match="the key is that of another experiment"):
        kept.wait(60.0)
    kept.close(5.0)
    assert [each for each in hubs.hub.lanes() if not each.whole] == []


def test_sticky_units_are_refused_in_one_line(tmp_path: Path) -> None:
    hubs = Hubs(config=config_of(units={"ttl": 60.0}))
    kept = keeper(hubs, tmp_path)
    kept.start()
    with pytest.raises(AgentError, match=r"\[units\]"):
        kept.wait(60.0)
    kept.close(5.0)


def killed(hubs: Hubs, folder: Path, decisions: int) -> int:
    """A decider that decided and then died without shipping; its lane."""
    kept = keeper(hubs, folder)
    publishing(hubs, kept)
    lane = kept.lane
    still = threading.Event()
    kept._turn = still.set  # it ships no more
    assert still.wait(60.0)
    for at in range(decisions):
        lane.records.decide_one(request(f"k{at}"))
    lane.records.observe([Outcome(decision_id=f"d{lane.lease.lane}-0", reward=1.0)])
    kept._stopping.set()
    kept._thread.join(10.0)
    return lane.lease.lane


@pytest.mark.parametrize("ended", [False, True])
def test_the_next_decider_ships_what_a_killed_one_left(tmp_path: Path, ended: bool) -> None:
    hubs = Hubs()
    lane = killed(hubs, tmp_path, 20)
    assert hubs.shipped(lane) == []
    assert len(list(tmp_path.glob("lane-*"))) == 3
    if ended:
        hubs.clock.now += 100.0
        assert hubs.hub.end_lapsed(hubs.term, 0.0) == [lane]
    kept = keeper(hubs, tmp_path)
    publishing(hubs, kept)
    until(lambda: kept.recovered)
    assert kept.recovered == 21
    assert hubs.shipped(lane) == list(range(20))
    assert {p.late for p in hubs.hub.decisions(99) if p.lane == lane} == {ended}
    (status,) = [each for each in hubs.hub.lanes() if each.lane == lane]
    assert (status.whole, status.lost) == (True, ended)
    drawn = sum(int(b.randomized.sum()) for b in hubs.decisions())
    assert (status.spent.draws, sum(status.spent.models)) == (drawn, drawn)
    kept.close(10.0)
    assert list(tmp_path.iterdir()) == []


def test_files_of_a_lease_that_the_hub_never_gave_are_put_aside_and_said(tmp_path: Path) -> None:
    killed(Hubs(), tmp_path, 3)
    hubs = Hubs()
    hubs.hub.join("somebody", 60.0)  # lane 1 of another hub
    hubs.hub._tokens += 5
    hubs.hub._lanes[1].token = 77
    kept = keeper(hubs, tmp_path)
    publishing(hubs, kept)
    until(lambda: any(event == "lane-refused" for event, _ in kept.said))
    kept.close(10.0)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["lane-1.refused", "refused-lane-1.cuts", "refused-lane-1.tail.1"]


def test_another_configuration_begins_a_new_lane_and_gives_the_old_one_back(
    tmp_path: Path,
) -> None:
    hubs = Hubs()
    kept = keeper(hubs, tmp_path)
    publishing(hubs, kept)
    first = kept.lane
    first.records.decide_one(request("r0"))
    hubs.config = config_of(policy={"assignment": "uniform", "rate": 0.25})
    hubs.agent = Agent(hubs.config, hubs.agent.store, KEY, at=hubs.clock())
    leave, refused = hubs.hub.leave, []

    def leaving(*arguments: object) -> None:
        # What the old lane answered after its last shipment would go with its files.
        try:
            first.records.decide_one(request("late"))
        except StoreError:
            refused.append(first.lease.lane)
        leave(*arguments)

    hubs.hub.leave = leaving
    hubs.publish()
    until(lambda: len(hubs.hub.lanes()) == 2)
    hubs.publish()
    until(lambda: kept.lane is not first)
    made = kept.lane.records.decide_one(request("r1"))
    assert (made.decision_id, made.rate) == ("d2-0", 0.25)
    until(lambda: [each.whole for each in hubs.hub.lanes()] == [True, False])
    assert refused == [1]
    # The decision of the lane before is somebody else's now.
    assert kept.lane.records.observe([Outcome(decision_id="d1-0", reward=1.0)]).rows == 1
    kept.close(10.0)
    assert hubs.shipped(1) == [0]
    assert hubs.shipped(2) == [0]
    assert all(each.kind == "reports" for each in hubs.hub.outcomes(9))


class Forgetful(MemoryHub):
    """A hub whose answer to the first join is lost."""

    lost = 0

    def join(self, name: str, seconds: float, asked: str = "") -> Lease:
        lease = super().join(name, seconds, asked)
        self.lost += 1
        if self.lost == 1:
            raise HubError("the answer is lost")
        return lease


def test_a_lane_whose_answer_was_lost_is_not_left_behind(tmp_path: Path) -> None:
    clock = Clock()
    hubs = Hubs(clock, hub=Forgetful(clock))
    kept = keeper(hubs, tmp_path)
    publishing(hubs, kept)
    assert kept.lane is not None
    assert kept.lane.lease.lane == 1
    assert [each.lane for each in hubs.hub.lanes()] == [1]
    assert kept.close(10.0)
    again = keeper(hubs, tmp_path)
    publishing(hubs, again)
    assert again.lane is not None
    assert again.lane.lease.lane == 2
    assert again.close(10.0)


def test_a_hub_that_is_away_stops_nothing_until_the_lease_runs_out(tmp_path: Path) -> None:
    hubs = Hubs()
    away = False

    def connect() -> MemoryHub:
        if away:
            raise HubError("nobody is there")
        return Flaky(hubs.hub, lambda: away)

    kept = keeper(hubs, tmp_path)
    kept._connect = connect
    publishing(hubs, kept)
    lane = kept.lane
    away = True
    until(lambda: kept.trouble == "nobody is there")
    made = [lane.records.decide_one(request(f"r{at}")) for at in range(10)]
    assert kept.decides
    lane.until = time.monotonic()
    assert not kept.decides
    away = False
    until(lambda: kept.decides)
    assert kept.lane is lane  # nobody had ended it
    kept.close(10.0)
    assert hubs.shipped(1) == list(range(10))
    assert [event for event, _ in kept.said].count("hub-away") == 1
    assert len(made) == 10


class Flaky:
    """A hub that cannot be reached while `away`."""

    def __init__(self, hub: MemoryHub, away: Callable[[], bool]) -> None:
        self._hub, self._away = hub, away

    def __getattr__(self, name: str) -> object:
        if self._away():
            raise HubError("nobody is there")
        return getattr(self._hub, name)


def test_a_lane_remembers_and_closes_a_bounded_number_of_decisions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short_chunks: int
) -> None:
    monkeypatch.setattr(lane_store, "KEPT_DECISIONS", 2000)
    hubs = Hubs()
    kept = keeper(hubs, tmp_path)
    publishing(hubs, kept)
    lane = kept.lane
    for start in range(0, 12_000, 500):
        lane.records.decide([request(f"r{at}") for at in range(start, start + 500)])
        hubs.publish()
        until(lambda: lane.publication.version == hubs.version)
    assert lane.store.oldest == 10_000
    assert lane.agent.light.pending.size < 8_000
    # Of what it has forgotten its authority keeps the outcomes.
    outcomes = [Outcome(decision_id=f"d1-{at}", reward=0.5) for at in (3, 11_000)]
    assert lane.records.observe(outcomes).rows == 2
    kept.close(10.0)
    kinds = {p.kind: p.rows for p in hubs.hub.outcomes(9)}
    assert kinds == {"outcomes": 1, "reports": 1}
    assert hubs.shipped(1) == list(range(12_000))


def test_what_comes_while_a_decider_ends_is_refused_and_never_lost(tmp_path: Path) -> None:
    """Between the last shipment and the end of its files nothing may be answered as taken."""
    hubs = Hubs()
    kept = keeper(hubs, tmp_path)
    publishing(hubs, kept)
    lane = kept.lane
    left: list[str] = []
    leave = hubs.hub.leave

    def leaving(*arguments: object) -> None:
        with pytest.raises(StoreError):
            lane.records.decide_one(request("late"))
        with pytest.raises(StoreError):
            lane.records.observe([Outcome(request_id="elsewhere", reward=1.0)])
        left.append("refused")
        leave(*arguments)

    hubs.hub.leave = leaving
    lane.records.decide_one(request("r0"))
    assert kept.close(10.0)
    assert left == ["refused"]
    assert hubs.shipped(1) == [0]
    assert hubs.hub.outcomes(9) == []


def test_lanes_are_not_leased_one_after_another_where_files_cannot_be_written(
    tmp_path: Path,
) -> None:
    hubs = Hubs()
    kept = keeper(hubs, tmp_path / "no")
    (tmp_path / "no").write_text("a file and no folder")
    kept._folder = tmp_path / "no"
    kept._thread.start()
    until(lambda: kept.trouble is not None and kept._failures >= 2)
    assert kept._failures < 5
    assert len(hubs.hub._lanes) == kept._failures
    kept.close(5.0)
    assert all(each.whole for each in hubs.hub.lanes())


def test_a_lane_that_no_publication_names_has_no_tickets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decider, "TICKET_SECONDS", 0.05)
    hubs = Hubs()
    kept = keeper(hubs, tmp_path)
    kept.start()
    assert kept.wait(60.0)
    made = [kept.lane.records.decide_one(request(f"r{at}")) for at in range(30)]
    assert not any(each.randomized for each in made)
    assert {kept.lane.records.closure(at) for at in range(30)} == {Closure.SLICE}
    kept.close(10.0)


def test_a_renewed_lease_ends_before_the_hubs_does(tmp_path: Path) -> None:
    hubs = Hubs()
    kept = keeper(hubs, tmp_path)
    publishing(hubs, kept)
    lane = kept.lane
    first = lane.until
    lane.records.decide_one(request("r0"))
    until(lambda: lane.store.waiting == 0 and lane.until > first)
    assert lane.until <= time.monotonic() + 0.9 * QUICK.lease_seconds
    kept.close(10.0)
