"""The log of one lane: what is remembered, what is shipped once, and what a killed decider left."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from equipoise.store.batches import DecisionBatch, ExpiryBatch, ObservationBatch, OutcomeBatch
from equipoise.store.errors import ContradictionError, SequenceError, SlowStoreError, WriteError
from equipoise.store.format.frames import body_to_batch
from equipoise.store.lanes import Parcel, Spent
from equipoise.store.lanes.lane_journal import LaneFacts, LeftLane, left_lanes
from equipoise.store.lanes.lane_store import LaneStore
from equipoise.store.records import LANE_BITS

ID = "ab" * 16
FACTS = LaneFacts(lane=3, token=17, experiment=ID, config="{}", name="one")


def decisions(first: int, count: int = 1, name: str = "r", eligible: bool = False) -> DecisionBatch:
    number = np.arange(first, first + count)
    return DecisionBatch(
        number=number,
        unit=number + 5,
        context=np.full(count, -1),
        at=number + 100.0,
        x=number[:, None] * 1.0,
        routed=number % 2,
        rate=np.full(count, 0.5),
        probabilities=np.full((count, 2), 0.5),
        uniform=(number + 0.5) / 1e6,
        model=number % 2,
        randomized=number % 3 == 0,
        capped=np.zeros(count, dtype=bool),
        rule_id="rule",
        era=0,
        eligible=np.ones((count, 2), dtype=bool) if eligible else None,
        request_id=[f"{name}{each}" for each in number.tolist()],
        closed_by=np.zeros(count, dtype=np.int64),
        draw=number + (3 << LANE_BITS),
    )


def outcome(number: int, reward: float = 1.0) -> OutcomeBatch:
    return OutcomeBatch(
        number=np.array([number]),
        served=np.array([0]),
        attempt=np.array([0]),
        delivered=np.array([True]),
        outputs=np.full((1, 1), np.nan),
        reward=np.array([reward]),
        at=np.array([200.0]),
    )


def shipped(store: LaneStore) -> tuple[list[Parcel], int]:
    """Everything that waits, as one hub that always answers gets it."""
    parcels: list[Parcel] = []
    while True:
        some, adopted, _ = store.parcels(Spent)
        if not some:
            return parcels, adopted
        parcels += some
        store.shipped()


def numbers_of(parcels: list[Parcel]) -> list[int]:
    batches = [body_to_batch(each.body) for each in parcels if each.kind == "decisions"]
    return [int(number) for batch in batches for number in batch.number]


def test_look_ups_see_what_was_appended_and_the_newest_decisions_alone(tmp_path: Path) -> None:
    with LaneStore(tmp_path, FACTS, kept=10) as store:
        for at in range(25):
            store.append(decisions(at))
        store.append(decisions(25, 3))
        assert (store.decisions, store.oldest) == (28, 18)
        assert store.find_requests(["r17", "r18", "r26"]) == {"r18": 18, "r26": 26}
        found = store.decision(26)
        assert found is not None
        assert (found.uniform.item(), found.request_id) == (26.5 / 1e6, ["r26"])
        assert store.decision(17) is None
        assert store.find_draws([(3 << LANE_BITS) + 20, (3 << LANE_BITS) + 28, 20]) == {
            (3 << LANE_BITS) + 20: 20
        }
        store.append(outcome(20))
        assert [part.reward.item() for part in store.outcome_parts(20)] == [1.0]
        # A request that was forgotten is decided anew; its authority tells repeats apart.
        store.append(decisions(28, name="r-"))


def test_numbers_follow_requests_come_once_and_other_rows_are_refused(tmp_path: Path) -> None:
    with LaneStore(tmp_path, FACTS) as store:
        store.append(decisions(0))
        with pytest.raises(SequenceError):
            store.append(decisions(2))
        with pytest.raises(ContradictionError):
            store.append(DecisionBatch(**{**as_fields(decisions(1)), "request_id": ["r0"]}))
        empty = np.zeros(1, dtype=np.int64)
        with pytest.raises(WriteError, match="a lane takes decisions and outcomes only"):
            store.append(
                ObservationBatch(
                    empty, np.zeros(1), np.zeros((1, 1)), empty, np.zeros((1, 1)), np.zeros(1)
                )
            )
        store.append(ExpiryBatch(np.array([0]), np.array([1.0])))
        assert store.waiting == 1
        assert numbers_of(shipped(store)[0]) == [0]


def as_fields(batch: DecisionBatch) -> dict[str, object]:
    return {name: getattr(batch, name) for name in DecisionBatch.__slots__}


def test_parcels_hold_rows_of_one_publication_and_say_what_is_left_of_earlier_ones(
    tmp_path: Path,
) -> None:
    with LaneStore(tmp_path, FACTS) as store:
        for version in (4, 5):
            store.version = version
            for at in range(3):
                store.append(decisions(3 * (version - 4) + at))
            store.append(outcome(0))
            store.report(2, b'[{"a":1},{"b":2}]')
            store.report(1, b'[{"c":3}]')
        store.append(decisions(6, 2, eligible=True))
        store.version = 6
        parcels, adopted = shipped(store)
        assert [(p.place, p.kind, p.version, p.rows, p.first) for p in parcels] == [
            (0, "decisions", 4, 3, 0),
            (1, "outcomes", 0, 1, 0),
            (2, "reports", 0, 3, 0),
            (3, "decisions", 5, 3, 3),
            (4, "outcomes", 0, 1, 0),
            (5, "reports", 0, 3, 0),
            (6, "decisions", 5, 2, 6),
        ]
        assert parcels[2].body == b'[{"a":1},{"b":2},{"c":3}]'
        assert parcels[0].request_ids == ("r0", "r1", "r2")
        assert adopted == 6
        assert store.waiting == 0


def test_what_was_not_acknowledged_is_shipped_again_as_it_was(tmp_path: Path) -> None:
    with LaneStore(tmp_path, FACTS) as store:
        store.version = 1
        store.append(decisions(0, 2))
        first, adopted, _ = store.parcels(Spent)
        store.append(decisions(2, 2))
        store.version = 2
        again, later, _ = store.parcels(Spent)
        assert again == first
        assert (adopted, later) == (1, 1)  # two rows of publication 1 are still to come
        store.shipped()
        rest, adopted, _ = store.parcels(Spent)
        assert numbers_of(rest) == [2, 3]
        assert rest[0].place == 1
        assert adopted == 2


def test_rows_that_wait_are_bounded(tmp_path: Path) -> None:
    with LaneStore(tmp_path, FACTS, waiting_rows=5) as store:
        store.append(decisions(0, 4))
        with pytest.raises(SlowStoreError, match="4 rows wait for the hub, at most 5 may"):
            store.append(decisions(4, 2))
        shipped(store)
        store.append(decisions(4, 2))


def test_files_go_when_the_hub_has_everything_and_stay_otherwise(tmp_path: Path) -> None:
    store = LaneStore(tmp_path, FACTS)
    store.append(decisions(0))
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"lane-3.lane", "lane-3.cuts", "lane-3.tail.1"}
    store.close()
    assert {path.name for path in tmp_path.iterdir()} == names
    (left,) = left_lanes(tmp_path, ID)
    left.close(remove=True)
    assert list(tmp_path.iterdir()) == []


def test_tail_files_are_forgotten_once_the_hub_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("equipoise.store.format.frames.FILE_BYTES", 1 << 14)
    with LaneStore(tmp_path, FACTS) as store:
        for at in range(300):
            store.append(decisions(at))
            if at == 200:
                shipped(store)
        tails = sorted(int(path.suffix[1:]) for path in tmp_path.glob("*.tail.*"))
        assert tails[0] > 1
        assert numbers_of(shipped(store)[0]) == list(range(201, 300))


def left_by_killed(folder: Path, acknowledged: int, in_flight: bool) -> LeftLane:
    """What a process left that was killed with SIGKILL while it decided."""
    child = os.fork()
    if not child:  # pragma: no cover
        store = LaneStore(folder, FACTS)
        store.version = 7
        for at in range(30):
            store.append(decisions(at))
            if at + 1 == acknowledged:
                shipped(store)
        if in_flight:
            store.parcels(lambda: Spent(4, (2, 2)))
            store.append(decisions(30))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    (left,) = left_lanes(folder, ID)
    return left


@pytest.mark.parametrize("in_flight", [False, True])
@pytest.mark.parametrize("acknowledged", [0, 12])
def test_nothing_of_a_killed_decider_is_lost_or_cut_otherwise(
    tmp_path: Path, acknowledged: int, in_flight: bool
) -> None:
    left = left_by_killed(tmp_path, acknowledged, in_flight)
    assert (left.facts, left.version, left.damaged) == (FACTS, 7, 0)
    places: dict[int, list[int]] = {}
    while not left.outbox.empty:
        parcels, _ = left.outbox.parcels(left.version, left.spent)
        for parcel in parcels:
            places[parcel.place] = numbers_of([parcel])
        left.outbox.shipped()
    rows = [number for place in sorted(places) for number in places[place]]
    end = 31 if in_flight else 30
    assert sorted(set(rows)) == rows
    assert rows[-1] == end - 1
    if in_flight:
        # The hub may have had it already: the same rows under the same place.
        place = 1 if acknowledged else 0
        assert places[place] == list(range(acknowledged, 30))
        assert places[place + 1] == [30]
        assert left.spent == Spent(4, (2, 2))
        assert [entry.number for entry in left.since] == [30]
    else:
        # Whether the hub had what was acknowledged last is not written down: it comes again.
        assert rows == list(range(end))
    left.close(remove=True)


def test_a_torn_end_and_a_damaged_stretch_cost_what_they_held_alone(tmp_path: Path) -> None:
    store = LaneStore(tmp_path, FACTS)
    starts = []
    for at in range(6):
        store.append(decisions(at))
        starts.append(store._journal._tail._size)
    store.close()
    path = tmp_path / "lane-3.tail.1"
    data = bytearray(path.read_bytes())
    data[starts[1] + 40] ^= 0xFF  # in the third entry
    data[starts[4] + 40] ^= 0xFF  # in the last one
    path.write_bytes(data)
    (left,) = left_lanes(tmp_path, ID)
    assert left.damaged == 1
    parcels, _ = left.outbox.parcels(0, Spent())
    assert [(p.first, p.rows) for p in parcels] == [(0, 2), (3, 2)]
    left.close(remove=False)


def test_a_lane_that_is_held_or_another_experiments_is_left_alone(tmp_path: Path) -> None:
    with LaneStore(tmp_path, FACTS) as store:
        store.append(decisions(0))
        assert list(left_lanes(tmp_path, ID)) == []
    assert list(left_lanes(tmp_path, "cd" * 16)) == []
    (left,) = left_lanes(tmp_path, ID)
    assert list(left_lanes(tmp_path, ID)) == []  # one process at a time
    left.close(remove=False)
    (left,) = left_lanes(tmp_path, ID)
    aside = left.put_aside()
    assert aside.exists()
    assert list(left_lanes(tmp_path, ID)) == []
    assert len(list(tmp_path.iterdir())) == 3


def test_power_puts_rows_on_the_disk_before_they_are_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    sync = os.fdatasync

    def noting(descriptor: int) -> None:
        synced.append(descriptor)
        sync(descriptor)

    with LaneStore(tmp_path, FACTS, "power") as store:
        assert store.must_sync
        store.append(decisions(0))
        monkeypatch.setattr(os, "fdatasync", noting)
        store.begin_sync()()
        assert len(synced) == 1
        store.append(decisions(1))
        synced.clear()
        store.parcels(Spent)
        # First the entries, then what parcels hold: the hub has nothing that this disk may lose.
        assert len(set(synced)) == 2
        assert synced[-1] == store._journal._marks


def test_a_sealed_lane_takes_no_more_and_ships_what_it_has(tmp_path: Path) -> None:
    store = LaneStore(tmp_path, FACTS)
    store.append(decisions(0))
    store.seal()
    for refused in (lambda: store.append(decisions(1)), lambda: store.report(1, b"[{}]")):
        with pytest.raises(WriteError, match="the lane was given back"):
            refused()
    assert numbers_of(shipped(store)[0]) == [0]
    store.close(remove=True)
    assert list(tmp_path.iterdir()) == []


def test_decisions_of_two_publications_never_share_a_parcel(tmp_path: Path) -> None:
    with LaneStore(tmp_path, FACTS) as store:
        for at in range(6):
            store.version = 1 + at // 2
            store.append(decisions(at))
        parcels, adopted = shipped(store)
    assert [(p.version, p.first, p.rows) for p in parcels] == [(1, 0, 2), (2, 2, 2), (3, 4, 2)]
    assert adopted == 3
