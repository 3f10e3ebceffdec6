from __future__ import annotations

import threading
from typing import Any

import pytest

from equipoise.store.lanes.contract import (
    LaneEndedError,
    Parcel,
    Publication,
    Spent,
    TermEndedError,
)

LONG = 1e6


def held_up(hub: Any, statement: str, other: threading.Thread) -> list[bool]:
    """Starts `other` when the hub has run this statement, and goes on once that waits or is done;
    whether it waited."""
    rows, waited = hub.rows, list[bool]()

    def rows_and_start(sql: str, *values: object) -> Any:
        result = rows(sql, *values)
        if statement in sql and not waited:
            waited.append(True)
            other.start()
            other.join(0.5)
            waited[0] = other.is_alive()
        return result

    hub.rows = rows_and_start
    return waited


def test_nobody_is_elected_while_an_authority_acts(shared_place: Any) -> None:
    hub, other = shared_place.open(), shared_place.open()
    term = hub.elect("a", LONG)
    done: list[object] = []

    def succeed() -> None:
        other.resign(term)
        done.append(other.newest().version)
        done.append(other.elect("b", LONG))

    thread = threading.Thread(target=succeed)
    waited = held_up(hub, "SELECT term, until", thread)
    hub.publish(term, Publication(version=1, rule_id="r", era=0), {})
    thread.join()
    assert waited == [True]
    assert done[0] == 1
    assert done[1] is not None
    with pytest.raises(TermEndedError):
        hub.keep(term)


def test_no_lane_is_ended_while_it_ships(shared_place: Any) -> None:
    hub, other = shared_place.open(), shared_place.open()
    term = other.elect("a", LONG)
    other.publish(term, Publication(version=1, rule_id="r", era=0), {})
    lease = hub.join("d", 0.0)
    done: list[object] = []
    thread = threading.Thread(target=lambda: done.append(other.end_lapsed(term, -1.0)))
    waited = held_up(hub, "FROM lane_leases", thread)
    hub.ship(lease, [], adopted=1, spent=Spent(4))
    thread.join()
    assert waited == [True]
    assert done == [[1]]
    assert other.lanes()[0].spent == Spent(4)
    with pytest.raises(LaneEndedError):
        hub.ship(lease, [], adopted=1, spent=Spent(5))


def test_no_lane_is_forgotten_with_what_comes_meanwhile(shared_place: Any) -> None:
    """It ships late while the authority is about to forget it."""
    hub, other = shared_place.open(), shared_place.open()
    term = other.elect("a", LONG)
    other.publish(term, Publication(version=1, rule_id="r", era=0), {})
    lease = hub.join("d", 0.0)
    other.end_lapsed(term, 0.0)
    hub.ship_late(lease, [], Spent(), True)
    thread = threading.Thread(target=lambda: other.forget_lanes(term, [1]))
    waited = held_up(hub, "FROM lane_leases", thread)
    parcel = Parcel(1, 0, "reports", 0, 1, b"")
    hub.ship_late(lease, [parcel], Spent(), True)
    thread.join()
    assert waited == [True]
    assert [each.lane for each in other.lanes()] == [1]


def test_nothing_is_published_while_a_lane_joins(shared_place: Any) -> None:
    hub, other = shared_place.open(), shared_place.open()
    term = other.elect("a", LONG)
    other.publish(term, Publication(version=1, rule_id="r", era=0), {})
    second = Publication(version=2, rule_id="r", era=0)
    seen: list[list[int]] = []

    def publish() -> None:
        other.publish(term, second, {})
        seen.append([each.adopted for each in other.lanes()])

    thread = threading.Thread(target=publish)
    waited = held_up(hub, "max(version)", thread)
    hub.join("d", LONG)
    thread.join()
    assert waited == [True]
    assert seen == [[1]]  # who looks for lanes of version 1 after this finds it
