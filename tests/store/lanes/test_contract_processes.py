"""Several processes at one hub, and processes that are killed."""

from __future__ import annotations

import time
from typing import Any

import pytest

from equipoise.store.lanes.contract import Publication, Spent

LONG = 1e6
SHIP = (
    "hub.ship(Lease({lane}, {token}, 1e6), [Parcel({lane}, place, 'decisions', 1, 3, b'x' * 3000,"
    " first=3 * place, request_ids=(f'{lane}-{{place}}', '', ''))"
    " for place in range({first}, {last})], adopted=1, spent=Spent({last}))"
)


def opened(children: list[Any], place: Any) -> None:
    for child in children:
        child.send(f"(hub := open_hub({place.where!r}, seconds=60.0)) and os.getpid()")
    assert [int(child.answer()) for child in children] == [each.process.pid for each in children]


def published(place: Any) -> Any:
    hub = place.open()
    term = hub.elect("authority", LONG)
    hub.publish(term, Publication(version=1, rule_id="r", era=0), {})
    return hub


def test_all_open_a_new_hub_at_once(shared_place: Any, children: list[Any]) -> None:
    opened(children, shared_place)
    assert [child.ask("hub.newest()") for child in children] == ["None"] * 4


def test_of_those_who_stand_for_election_one_is_elected(
    shared_place: Any, children: list[Any]
) -> None:
    opened(children, shared_place)
    hub, tokens = shared_place.open(), []
    for _ in range(8):
        for child in children:
            child.send("(term := hub.elect(str(os.getpid()), 1e6))")
        elected = [child.answer() != "None" for child in children]
        assert sum(elected) == 1
        # All of them publish the next version; who was not elected now, in the last term.
        last = f"Term({tokens[-1] if tokens else 999}, 1e6)"
        made = f"Publication(version={len(tokens) + 1}, rule_id=str(os.getpid()), era=0)"
        for child in children:
            child.send(f"hub.publish(term or {last}, {made}, {{}}) > 0.0")
        wanted = ["True" if won else "TermEndedError" for won in elected]
        assert [child.answer() for child in children] == wanted
        winner = elected.index(True)
        assert hub.newest().rule_id == str(children[winner].process.pid)
        tokens.append(int(children[winner].ask("term.token")))
        assert children[winner].ask("hub.resign(term)") == "None"
    assert tokens == sorted(set(tokens))
    assert len(hub.publications(1)) == 8


def test_lanes_that_join_at_once_are_others(shared_place: Any, children: list[Any]) -> None:
    opened(children, shared_place)
    hub = published(shared_place)
    for child in children:
        child.send(
            "sorted((lease.lane, lease.token) for lease in [hub.join('d', 9.0)] * 1 +"
            " [hub.join('d', 9.0) for _ in range(9)])"
        )
    pairs = [pair for child in children for pair in eval(child.answer())]
    assert sorted(lane for lane, _ in pairs) == list(range(1, 41))
    assert len({token for _, token in pairs}) == 40
    assert len(hub.lanes()) == 40


def test_a_place_is_kept_once_whoever_ships_it(shared_place: Any, children: list[Any]) -> None:
    opened(children, shared_place)
    hub = published(shared_place)
    lease = hub.join("a", LONG)
    for last in range(5, 45, 5):
        # A decider that asks again while its first question is still on the way.
        for child in children:
            child.send(SHIP.format(lane=1, token=lease.token, first=last - 5, last=last))
        assert {child.answer() for child in children} == {repr(lease)}
    assert [each.place for each in hub.decisions(1)] == list(range(40))
    assert hub.waiting() == {"decisions": 120}
    assert hub.lanes()[0].places == 40
    found = hub.find_requests([f"1-{place}" for place in range(40)])
    assert found == {f"1-{place}": 1 << 40 | 3 * place for place in range(40)}


def test_a_reader_sees_whole_parcels_in_order_while_others_write(
    shared_place: Any, children: list[Any]
) -> None:
    opened(children, shared_place)
    hub = published(shared_place)
    leases = [hub.join("d", LONG) for _ in children]
    for child, lease in zip(children, leases, strict=True):
        ship = SHIP.format(lane=lease.lane, token=lease.token, first="n", last="n + 1")
        child.send(f"len([{ship} for n in range(60)])")
    seen: list[int] = []
    while sum(seen) < 4 * 60:
        places: list[list[int]] = [[] for _ in children]
        for each in hub.decisions(1):
            assert (len(each.body), each.rows) == (3000, 3)
            places[each.lane - 1].append(each.place)
        assert places == [list(range(len(each))) for each in places]
        counts = [len(each) for each in places]
        assert all(new >= old for new, old in zip(counts, seen, strict=False))
        seen = counts
        assert all(
            status.places >= count for status, count in zip(hub.lanes(), counts, strict=True)
        )
    assert [child.answer() for child in children] == ["60"] * 4


KILL_WHILE_INSERTING = """
[setattr(type(hub), "insert", (lambda insert: lambda self, table, *rest: (
    insert(self, table, *rest),
    os.kill(os.getpid(), signal.SIGKILL) if table == {table!r} else None,
))(type(hub).insert))]
"""


@pytest.mark.parametrize("table", ["lane_parcels", "lane_requests"])
def test_a_process_killed_while_it_ships_has_shipped_nothing(
    shared_place: Any, new_child: Any, table: str
) -> None:
    hub, child = published(shared_place), new_child()
    lease = hub.join("a", LONG)
    opened([child], shared_place)
    ship = SHIP.format(lane=1, token=lease.token, first=0, last=2)
    assert child.ask(ship) == repr(lease)
    before = hub.lanes()
    child.ask(KILL_WHILE_INSERTING.format(table=table).replace("\n", " ").strip())
    more = SHIP.format(lane=1, token=lease.token, first=2, last=9)
    assert child.ask(more) == ""
    assert child.process.wait() == -9
    assert hub.lanes() == before
    assert hub.waiting() == {"decisions": 6}
    assert hub.find_requests(["1-0", "1-1", "1-2"]).keys() == {"1-0", "1-1"}
    # Its rows are not lost: who reads its journal ships them again.
    again = new_child()
    opened([again], shared_place)
    assert again.ask(more) == repr(lease)
    assert [each.place for each in hub.decisions(1)] == list(range(9))


def test_a_process_killed_at_any_moment_has_shipped_what_it_was_told(
    shared_place: Any, new_child: Any
) -> None:
    hub = published(shared_place)
    lease, shipped = hub.join("a", LONG), 0
    for pause in (0.05, 0.12):
        child = new_child()
        opened([child], shared_place)
        ship = SHIP.format(lane=1, token=lease.token, first="n", last="n + 7")
        child.send(f"[print({ship} and n + 7, flush=True) for n in range({shipped}, 10**6, 7)]")
        first = child.answer()
        time.sleep(pause)
        child.process.kill()
        told = [int(line) for line in [first, *child.process.stdout.read().split("\n")[:-1]]]
        while True:
            [status] = hub.lanes()
            places = [each.place for each in hub.decisions(1)]
            if hub.lanes() == [status]:  # a server may still do what a killed process had asked for
                break
        assert status.places in (told[-1], told[-1] + 7)
        assert status.spent == Spent(status.places)
        shipped = status.places
        assert places == list(range(shipped))
        names = [f"1-{place}" for place in range(shipped + 7)]
        assert len(hub.find_requests(names)) == shipped
    assert shipped > 14
