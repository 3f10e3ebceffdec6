"""The battery every hub passes. A lease of 0 seconds has lapsed, one of LONG has not."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from equipoise.store.lanes.contract import (
    Hub,
    HubError,
    LaneEndedError,
    LaneStatus,
    Lease,
    Parcel,
    Publication,
    Spent,
    Term,
    TermEndedError,
    Tickets,
    position,
)
from equipoise.store.lanes.memory import MemoryHub

LONG = 1e6


def publish(hub: Hub, term: Term, version: int, **given: Any) -> float:
    made = Publication(version=version, rule_id=f"r{version}", era=0, **given)
    return hub.publish(term, made, {name: f"text of {name}" for name in made.documents})


def authority(hub: Hub, publications: int = 1) -> Term:
    term = hub.elect("authority", LONG)
    assert term is not None
    for version in range(1, publications + 1):
        publish(hub, term, version)
    return term


def parcel(lease: Lease | int, place: int, version: int = 1, **given: Any) -> Parcel:
    lane = lease if isinstance(lease, int) else lease.lane
    content = {"kind": "decisions", "rows": 2, "body": b"%d-%d\0\xff" % (lane, place)}
    return Parcel(**{"lane": lane, "place": place, "version": version, **content, **given})


def ship(hub: Hub, lease: Lease, *parcels: Parcel, adopted: int = 1, **given: Any) -> Lease:
    return hub.ship(lease, parcels, **{"adopted": adopted, "spent": Spent(), **given})


def lane(hub: Hub, number: int) -> LaneStatus:
    [status] = [each for each in hub.lanes() if each.lane == number]
    return status


def keys(parcels: Any) -> list[tuple[int, int]]:
    return [(each.lane, each.place) for each in parcels]


def test_a_new_hub_is_empty(hub: Hub) -> None:
    assert hub.newest() is None
    assert hub.publications(0) == []
    assert hub.lanes() == []
    assert hub.document("rule:r1") is None
    assert list(hub.decisions(5)) == []
    assert hub.outcomes(5) == []
    assert hub.waiting() == {}
    assert hub.find_requests(["a"]) == {}
    with pytest.raises(HubError, match="nothing is published yet"):
        hub.join("d", LONG)


def test_a_lane_is_given_once(place: Any) -> None:
    hub, other = place.open(), place.open()
    authority(hub, 3)
    first, second = hub.join("a", LONG), other.join("b", LONG)
    hub.leave(first, Spent())
    third = hub.join("a", 7.0)
    assert [first.lane, second.lane, third.lane] == [1, 2, 3]
    assert first.token < second.token < third.token
    assert third.seconds == 7.0
    status = lane(other, 3)
    assert (status.name, status.adopted, status.places, status.whole) == ("a", 3, 0, False)
    assert status.until - status.joined == pytest.approx(7.0)


def test_a_join_that_is_asked_again_gives_the_same_lane(place: Any) -> None:
    hub, other = place.open(), place.open()
    term = authority(hub)
    first = hub.join("a", 0.0, asked="x")
    assert other.join("a", LONG, asked="x") == Lease(1, first.token, LONG)
    assert other.join("a", LONG, asked="y").lane == 2
    assert hub.end_lapsed(term, 0.0) == []
    ship(hub, first)  # for 0 seconds
    assert hub.end_lapsed(term, 0.0) == [1]
    assert not lane(hub, 1).whole
    third = hub.join("a", LONG, asked="x")
    assert third.lane == 3
    assert [each.lane for each in hub.lanes()] == [2, 3]  # nobody ever held lane 1
    assert hub.join("a", LONG, asked="x") == third
    assert [hub.join("a", LONG).lane, hub.join("a", LONG).lane] == [4, 5]


def test_a_hub_hands_out_what_was_shipped(hub: Hub) -> None:
    authority(hub)
    lease, before = hub.join("a", LONG), hub.now()
    sent = parcel(lease, 0, first=7, request_ids=("é", ""))
    report = parcel(lease, 1, 0, kind="reports", body=b"", rows=3)
    assert ship(hub, lease, sent, report, spent=Spent(5, (1, 4), (2,)), whole=True) == lease
    [back] = hub.decisions(1)
    assert (back.lane, back.place, back.kind, back.version, back.rows) == (1, 0, "decisions", 1, 2)
    assert (back.body, back.first, back.late, back.request_ids) == (b"1-0\0\xff", 7, False, ())
    assert type(back.body) is bytes
    assert before <= back.received <= hub.now()
    [back] = hub.outcomes(9)
    assert (back.kind, back.version, back.body, back.rows) == ("reports", 0, b"", 3)
    assert hub.waiting() == {"decisions": 2, "reports": 3}
    status = lane(hub, 1)
    assert (status.spent, status.whole, status.places) == (Spent(5, (1, 4), (2,)), True, 2)


def test_a_place_is_kept_once(hub: Hub) -> None:
    term, lease = authority(hub), hub.join("a", LONG)
    sent = [parcel(lease, place) for place in range(4)]
    ship(hub, lease, *sent[:2])
    ship(hub, lease, *sent[:3])
    ship(hub, lease, parcel(lease, 1, body=b"another"))
    assert keys(hub.decisions(1)) == [(1, 0), (1, 1), (1, 2)]
    assert [each.body for each in hub.decisions(1)] == [each.body for each in sent[:3]]
    # Not even where it was forgotten since: an answer may be lost for long.
    hub.forget(term, [(1, 0), (1, 1), (1, 2)])
    ship(hub, lease, *sent)
    assert keys(hub.decisions(1)) == [(1, 3)]
    assert lane(hub, 1).places == 4


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (parcel(1, 2), "lane 1, parcel 2: parcel 1 comes next"),
        (parcel(2, 1), "lane 1, parcel 1: it is of lane 2"),
        (parcel(1, 1, 1), "decisions of publication 1, and the lane had adopted 2"),
        (parcel(1, 1, 2, request_ids=("a",)), "1 request_ids for 2 rows"),
    ],
)
def test_a_parcel_that_cannot_be_is_refused(hub: Hub, wrong: Parcel, match: str) -> None:
    authority(hub, 2)
    lease = hub.join("a", LONG)
    ship(hub, lease, parcel(lease, 0, 2), adopted=2)
    before = lane(hub, 1)
    with pytest.raises(HubError, match=match):
        ship(hub, lease, wrong, adopted=3, spent=Spent(9))
    assert lane(hub, 1) == before
    assert keys(hub.decisions(9)) == [(1, 0)]


def test_a_publication_is_adopted_together_with_the_parcels(hub: Hub) -> None:
    term = authority(hub)
    lease = hub.join("a", LONG)
    publish(hub, term, 2)
    ship(hub, lease, parcel(lease, 0, 1), parcel(lease, 1, 2), adopted=2)
    assert lane(hub, 1).adopted == 2
    ship(hub, lease, adopted=1)
    assert lane(hub, 1).adopted == 2
    ship(hub, lease, parcel(lease, 2, 0, kind="outcomes"), adopted=2)
    assert keys(hub.outcomes(5)) == [(1, 2)]


def test_a_lapsed_lease_is_renewed_or_ended_for_good(hub: Hub) -> None:
    term = authority(hub)
    lapsed, held = hub.join("a", 0.0), hub.join("b", LONG)
    assert hub.end_lapsed(term, LONG) == []
    ship(hub, lapsed, parcel(lapsed, 0))  # it slept, and nobody minded
    assert hub.end_lapsed(term, 0.0) == [1]
    assert hub.end_lapsed(term, 0.0) == []
    ended = lane(hub, 1)
    assert ended.lost
    assert ended.ended is not None
    for call in (
        lambda: ship(hub, lapsed, parcel(lapsed, 1)),
        lambda: ship(hub, lapsed),
        lambda: hub.leave(lapsed, Spent()),
    ):
        with pytest.raises(LaneEndedError, match="lane 1 was ended"):
            call()
    assert lane(hub, 1) == ended
    assert lane(hub, held.lane).ended is None


def test_what_an_ended_lane_ships_is_late(hub: Hub) -> None:
    term = authority(hub)
    lease = hub.join("a", 0.0)
    ship(hub, lease, parcel(lease, 0, 1))
    with pytest.raises(HubError, match="lane 1 is held"):
        hub.ship_late(lease, [parcel(lease, 1, 1)], Spent(), False)
    hub.end_lapsed(term, 0.0)
    for _ in range(2):
        hub.ship_late(lease, [parcel(lease, 0, 1), parcel(lease, 1, 1)], Spent(7), True)
    assert [(each.place, each.late) for each in hub.decisions(1)] == [(0, False), (1, True)]
    status = lane(hub, 1)
    assert (status.whole, status.places, status.spent) == (True, 2, Spent(7))
    assert status.lost


def test_only_the_holder_of_a_lease_ships(hub: Hub) -> None:
    term = authority(hub)
    first, second = hub.join("a", 0.0), hub.join("b", 0.0)
    for wrong in (Lease(1, second.token, LONG), Lease(9, first.token, LONG)):
        for call in (
            lambda wrong=wrong: ship(hub, wrong, parcel(wrong, 0)),
            lambda wrong=wrong: hub.ship_late(wrong, [parcel(wrong, 0)], Spent(), True),
            lambda wrong=wrong: hub.leave(wrong, Spent()),
        ):
            with pytest.raises(LaneEndedError, match="was never leased by token"):
                call()
    assert hub.end_lapsed(term, 0.0) == [1, 2]
    assert list(hub.decisions(1)) == []


def test_a_lane_that_was_given_back_is_no_more(hub: Hub) -> None:
    term = authority(hub)
    lease = hub.join("a", LONG)
    ship(hub, lease, parcel(lease, 0))
    for _ in range(2):
        hub.leave(lease, Spent(3))
    status = lane(hub, 1)
    assert (status.lost, status.whole, status.spent) == (False, True, Spent(3))
    with pytest.raises(LaneEndedError):
        ship(hub, lease, parcel(lease, 1))
    hub.forget_lanes(term, [1])  # a parcel is there
    assert [each.lane for each in hub.lanes()] == [1]
    hub.forget(term, [(1, 0)])
    assert hub.lanes() == []


def test_asking_again_is_safe_after_a_lane_is_forgotten(hub: Hub) -> None:
    term = authority(hub)
    lease = hub.join("a", 0.0)
    hub.end_lapsed(term, 0.0)
    hub.forget_lanes(term, [1])  # it is not whole
    hub.ship_late(lease, [parcel(lease, 0)], Spent(), True)
    hub.forget(term, [(1, 0)])
    hub.forget_lanes(term, [1, 99])
    hub.ship_late(lease, [parcel(lease, 0)], Spent(), True)
    assert list(hub.decisions(1)) == []
    with pytest.raises(LaneEndedError, match="forgotten"):
        hub.ship_late(lease, [parcel(lease, 1)], Spent(), True)
    assert hub.lanes() == []


def test_there_is_one_authority(place: Any) -> None:
    hub, other = place.open(), place.open()
    first = hub.elect("a", LONG)
    assert first is not None
    assert other.elect("b", LONG) is None
    assert hub.elect("a", LONG) is None
    assert hub.keep(first) == first
    for _ in range(2):
        hub.resign(first)
    second = other.elect("b", LONG)
    assert second is not None
    assert second.token > first.token
    hub.resign(first)  # no longer its own
    assert hub.elect("a", LONG) is None


def test_an_authority_that_stalled_can_do_nothing(place: Any) -> None:
    hub, other = place.open(), place.open()
    stalled = hub.elect("a", 0.0)
    assert stalled is not None
    calls: list[Callable[[], object]] = [
        lambda: hub.keep(stalled),
        lambda: publish(hub, stalled, 2),
        lambda: hub.forget_publications(stalled, 2),
        lambda: hub.end_lapsed(stalled, 0.0),
        lambda: hub.forget_lanes(stalled, [2]),
        lambda: hub.forget(stalled, [(1, 0)]),
    ]
    for call in calls:  # lapsed, though nobody else was elected
        with pytest.raises(TermEndedError):
            call()
    term = authority(other, 1)
    lease, left = other.join("a", 0.0), other.join("b", LONG)
    ship(other, lease, parcel(lease, 0))
    other.leave(left, Spent())
    before = (list(other.decisions(1)), other.lanes(), other.publications(1))
    for call in calls:
        with pytest.raises(TermEndedError):
            call()
    assert (list(other.decisions(1)), other.lanes(), other.publications(1)) == before
    assert other.keep(term) == term


def test_publications_follow_one_another(hub: Hub) -> None:
    term = authority(hub, 0)
    with pytest.raises(HubError, match="publication 2: the newest is 0"):
        publish(hub, term, 2)
    tickets = {3: Tickets(5, (None, 2), (7,)), 12: Tickets()}
    given = {"tickets": tickets, "counted": {3: Spent(1, (0, 1), (1,))}, "closed_segments": (1,)}
    at = publish(hub, term, 1, off="paused", observing=True, requests=9, **given)
    newest = hub.newest()
    assert newest == Publication(
        version=1, at=at, rule_id="r1", era=0, off="paused", observing=True, requests=9, **given
    )
    assert publish(hub, term, 1, off="paused", observing=True, requests=9, **given) == at
    with pytest.raises(HubError, match="publication 1: the newest is 1"):
        publish(hub, term, 1, off="another reason")
    assert publish(hub, term, 2) >= at
    with pytest.raises(HubError, match="publication 4: the newest is 2"):
        publish(hub, term, 4)
    hub.resign(term)
    term = authority(hub, 0)
    with pytest.raises(HubError, match="publication 2: the newest is 2"):
        publish(hub, term, 2)  # an earlier authority's
    publish(hub, term, 3)
    assert [each.version for each in hub.publications(2)] == [2, 3]
    hub.forget_publications(term, 2)
    assert [each.version for each in hub.publications(0)] == [2, 3]
    hub.forget_publications(term, 99)
    assert [each.version for each in hub.publications(0)] == [3]
    publish(hub, term, 4)


def test_texts_are_there_while_they_are_named(hub: Hub) -> None:
    term = authority(hub, 0)
    with pytest.raises(HubError, match="publication 1: document rule:a is missing"):
        hub.publish(term, Publication(version=1, rule_id="a", era=0, documents=("rule:a",)), {})
    assert hub.newest() is None
    made = Publication(version=1, rule_id="a", era=0, documents=("rule:a", "config:1"))
    texts = {"rule:a": "é", "config:1": "{}", "unnamed": "x"}
    hub.publish(term, made, texts)
    assert [hub.document(name) for name in texts] == ["é", "{}", None]
    made = Publication(version=2, rule_id="b", era=0, documents=("config:1", "rule:b"))
    hub.publish(term, made, {"rule:b": "b", "config:1": "not looked at"})
    assert [hub.document(name) for name in ("rule:a", "config:1", "rule:b")] == [None, "{}", "b"]


def test_decisions_come_by_version_lane_and_place(hub: Hub) -> None:
    term = authority(hub, 3)
    leases = [hub.join(name, 0.0) for name in "abc"]
    publish(hub, term, 4)
    sent = {1: [3, 3, 4], 2: [3, 4, 4, 5], 3: [4, 4]}
    for lease in reversed(leases):
        for place, version in enumerate(sent[lease.lane]):
            ship(hub, lease, parcel(lease, place, version), adopted=version)
    hub.end_lapsed(term, 0.0)
    hub.ship_late(leases[1], [parcel(2, 4, 9), parcel(2, 5, 1)], Spent(), True)
    hub.ship_late(leases[0], [parcel(1, 3, 1)], Spent(), True)
    late = [(1, 3), (2, 5), (2, 4)]
    assert keys(hub.decisions(3)) == [(1, 0), (1, 1), (2, 0), *late]
    assert keys(hub.decisions(4)) == [
        *((1, 0), (1, 1), (2, 0), (1, 2), (2, 1), (2, 2), (3, 0), (3, 1)),
        *late,
    ]
    assert keys(hub.decisions(5)) == [*keys(hub.decisions(4))[:-3], (2, 3), *late]


def test_outcomes_come_in_the_order_of_their_coming(hub: Hub) -> None:
    term = authority(hub)
    leases = [hub.join(name, LONG) for name in "ab"]
    order = [0, 1, 1, 0, 1, 0, 0]
    places = [0, 0]
    for number, which in enumerate(order):
        for kind in ("outcomes" if number % 2 else "reports", "decisions"):
            ship(hub, leases[which], parcel(leases[which], places[which], kind=kind))
            places[which] += 1
    wanted = [(1, 0), (2, 0), (2, 2), (1, 2), (2, 4), (1, 4), (1, 6)]
    assert keys(hub.outcomes(99)) == wanted
    first = hub.outcomes(3)
    assert keys(first) == wanted[:3]
    assert keys(hub.later_outcomes(first[-1], 2)) == wanted[3:5]
    hub.forget(term, wanted[1:3])
    assert keys(hub.later_outcomes(first[-1], 9)) == wanted[3:]
    assert keys(hub.outcomes(2)) == [wanted[0], wanted[3]]


def test_requests_are_found_until_they_are_forgotten(hub: Hub) -> None:
    term = authority(hub)
    first, second = hub.join("a", LONG), hub.join("b", LONG)
    ship(hub, second, parcel(second, 0, first=4, request_ids=("x", "same")))
    ship(hub, first, parcel(first, 0, first=0, rows=3, request_ids=("", "y", "same")))
    ship(hub, first, parcel(first, 1, first=3, request_ids=("z", "")), parcel(first, 2, first=5))
    names = ["x", "y", "z", "same", "", "unknown", "x'; --", '"']
    assert hub.find_requests(names) == {
        "x": position(2, 4),
        "y": position(1, 1),
        "z": position(1, 3),
        "same": position(1, 2),
    }
    assert position(2, 4) == 2**41 + 4
    hub.forget(term, [(1, 0), (1, 2), (7, 7)])
    assert hub.find_requests(names) == {
        "x": position(2, 4),
        "z": position(1, 3),
        "same": position(2, 5),
    }
    assert hub.waiting() == {"decisions": 4}
    assert hub.find_requests([]) == {}


def test_decisions_are_read_a_few_at_a_time(hub: Hub) -> None:
    """40 MB, of which a reader holds two pages of 4 MB and what it was just given."""
    authority(hub)
    lease, body, most = hub.join("a", LONG), bytes(200_000), 16 << 20
    for first in range(0, 200, 20):
        ship(hub, lease, *(parcel(lease, first + place, body=body) for place in range(20)))
    tracemalloc.start()
    try:
        assert [each.place for each in hub.decisions(1)] == list(range(200))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(hub, MemoryHub) or 1 << 20 < peak < most


def test_decisions_may_be_forgotten_while_they_are_read(hub: Hub) -> None:
    term = authority(hub)
    lease = hub.join("a", LONG)
    ship(hub, lease, *(parcel(lease, place) for place in range(50)))
    read = []
    for each in hub.decisions(1):
        read.append(each.place)
        hub.forget(term, [(1, each.place)])
    assert read == list(range(50))
    assert hub.waiting() == {}


def test_closing_again_is_no_error(place: Any) -> None:
    with place.open() as hub:
        authority(hub)
        hub.close()
    hub.close()


# Random calls of three lanes and two authorities, beside the hub in memory.


class Chance:
    """Makes calls as deciders and authorities would, and wrong ones too."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.leases: list[Lease] = []
        self.terms: list[Term] = []
        self.places: dict[int, int] = {}
        self.counters: dict[int, int] = {}
        self.version = 0

    def pick(self, *values: Any) -> Any:
        return values[self.rng.integers(len(values))]

    def seconds(self) -> float:
        return float(self.pick(0.0, 0.0, LONG))

    def lease(self) -> Lease:
        """One of the last three, and at times one that never was."""
        lease = self.pick(*self.leases[-3:]) if self.leases else Lease(1, 1, 0.0)
        return self.pick(*[lease] * 19, Lease(lease.lane, lease.token + 1, 0.0))

    def term(self) -> Term:
        return self.pick(*self.terms[-1:] * 12, *self.terms[-2:], Term(99_999, 0.0))

    def parcels(self, lane: int) -> list[Parcel]:
        first = max(self.places.get(lane, 0) - int(self.rng.integers(3)), 0)
        gap = int(self.rng.random() < 0.05)
        made = []
        for place in range(first + gap, first + gap + int(self.rng.integers(4))):
            rows, kind = int(self.rng.integers(1, 4)), self.pick("decisions", "outcomes", "reports")
            counter = self.counters.get(lane, 0)
            self.counters[lane] = counter + rows
            names = tuple(self.pick("", "a", "b", "c", "d") for _ in range(rows))
            version = max(self.version - int(self.rng.integers(2)), 0)
            made.append(
                parcel(
                    *(lane, place, version if kind == "decisions" else 0),
                    kind=kind,
                    rows=rows,
                    body=self.rng.bytes(5),
                    first=counter if kind == "decisions" else 0,
                    request_ids=names if kind == "decisions" and place % 3 else (),
                )
            )
        return made

    def calls(self, count: int) -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any]]]:
        kinds = "ship ship ship ship_late leave elect keep publish publish end forget forget_lanes"
        for _ in range(count):
            kind = self.pick("join", *kinds.split(), "forget_publications")
            if not self.terms or (self.rng.random() < 0.3 and not self.version):
                kind = self.pick("elect", "publish")
            lease, whole = self.lease(), bool(self.rng.integers(2))
            spent = Spent(int(self.rng.integers(9)))
            if kind == "join":
                yield "join", ("d", self.seconds(), self.pick("", "", "x", "y")), {}
            elif kind == "ship":
                adopted = self.version - int(self.rng.integers(2))
                told = {"adopted": adopted, "spent": spent, "whole": whole}
                yield "ship", (lease, self.parcels(lease.lane)), told
            elif kind == "ship_late":
                yield "ship_late", (lease, self.parcels(lease.lane), spent, whole), {}
            elif kind == "leave":
                if self.rng.random() < 0.5:
                    yield "leave", (lease, spent), {}
            elif kind == "elect":
                if self.terms and self.rng.random() < 0.3:
                    yield "resign", (self.term(),), {}
                yield "elect", ("z", self.pick(0.0, *[LONG] * 9)), {}
            elif kind == "publish":
                version = self.version + self.pick(0, 1, 1, 1, 2)
                names = tuple(f"rule:{self.rng.integers(4)}" for _ in range(2))
                texts = {name: str(self.rng.integers(9)) for name in names[: self.pick(1, 2, 2)]}
                made = Publication(
                    version=version, rule_id="r", era=0, documents=tuple(dict.fromkeys(names))
                )
                yield "publish", (self.term(), made, texts), {}
            elif kind == "end":
                yield "end_lapsed", (self.term(), self.pick(0.0, LONG)), {}
            elif kind == "forget":
                keys = [(lease.lane, int(place)) for place in self.rng.integers(0, 40, 20)]
                yield "forget", (self.term(), keys), {}
            elif kind == "forget_lanes":
                yield "forget_lanes", (self.term(), [lease.lane, 1, 2]), {}
            elif kind == "forget_publications":
                yield "forget_publications", (self.term(), self.version - 1), {}
            else:
                yield kind, (self.term(),), {}

    def learn(self, name: str, args: tuple[Any, ...], result: Any) -> None:
        if isinstance(result, str):
            return
        if name == "join":
            self.leases.append(result)
        elif name == "elect" and result is not None:
            self.terms.append(result)
        elif name == "publish":
            self.version = args[1].version
        elif name in ("ship", "ship_late"):
            lane = args[0].lane
            last = max((each.place for each in args[1]), default=-1)
            self.places[lane] = max(self.places.get(lane, 0), last + 1)


def result_of(hub: Hub, name: str, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
    try:
        return getattr(hub, name)(*args, **given)
    except HubError as error:
        return f"{type(error).__name__}: {error}"


def timeless(value: Any) -> Any:
    """Without what a clock said, and the numbers of arrival."""
    if isinstance(value, list):
        return [timeless(each) for each in value]
    if isinstance(value, LaneStatus):
        fields = [getattr(value, name) for name in LaneStatus.__slots__]
        return [each is None if isinstance(each, float | None) else each for each in fields]
    if isinstance(value, Parcel):
        return (*keys([value])[0], value.kind, value.version, value.rows, value.body, value.late)
    if isinstance(value, Publication):
        return (value.version, value.documents)
    return value if not isinstance(value, float) else "a time"


def everything(hub: Hub, version: int) -> Any:
    """All that a hub would say."""
    found = hub.find_requests(["a", "b", "c", "d"])
    outcomes = hub.outcomes(5)
    later = hub.later_outcomes(outcomes[-1], 5) if outcomes else []
    texts = [hub.document(f"rule:{number}") for number in range(4)]
    lists = [
        *(hub.lanes(), list(hub.decisions(version - 1)), list(hub.decisions(version))),
        *(outcomes, later, hub.publications(version - 2), [hub.newest()]),
    ]
    return timeless(lists), found, texts, hub.waiting()


@pytest.mark.parametrize("seed", range(3))
def test_any_calls_do_what_they_do_in_memory(shared_place: Any, seed: int) -> None:
    model, chance = MemoryHub(), Chance(seed)
    hubs = [shared_place.open(), shared_place.open()]
    done: dict[str, list[int]] = {}
    for number, (name, args, given) in enumerate(chance.calls(400)):
        wanted = result_of(model, name, args, given)
        result = result_of(hubs[number % 2], name, args, given)
        assert timeless(result) == timeless(wanted), (number, name, args)
        chance.learn(name, args, wanted)
        if number % 5 == 0:
            other = hubs[1 - number % 2]
            assert everything(other, chance.version) == everything(model, chance.version), number
        counts = done.setdefault(name, [0, 0])
        counts[isinstance(wanted, str)] += 1
    assert len(done) == 12
    assert all(well > 1 for well, _ in done.values()), done
    # Only to resign is never refused.
    assert sum(bool(refused) for _, refused in done.values()) >= 9, done
