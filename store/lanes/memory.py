"""A hub in memory, for deciders and an authority in one process: tests and replays."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Concatenate, ParamSpec, TypeVar

import msgspec

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
    unshipped,
)

T = TypeVar("T")
P = ParamSpec("P")


@dataclass(slots=True)
class _Lane:
    status: LaneStatus
    token: int
    asked: str
    forgotten: bool = False


def _alone(
    method: Callable[Concatenate[MemoryHub, P], T],
) -> Callable[Concatenate[MemoryHub, P], T]:
    """One thread at a time, so that a method is one transaction."""

    @functools.wraps(method)
    def call(hub: MemoryHub, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with hub.turn:
            return method(hub, *args, **kwargs)

    return call


class MemoryHub(Hub):
    """Keeps everything until the process ends; closing it keeps it too.

    Unlike other hubs one object is for any number of threads. clock: seconds since the epoch.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.turn = threading.RLock()
        self._clock = clock
        self._lanes: dict[int, _Lane] = {}
        self._tokens = self._arrivals = 0
        self._term: int | None = None
        self._term_until = 0.0
        self._publications: list[Publication] = []
        self._published_in = 0
        self._documents: dict[str, str] = {}
        self._parcels: dict[tuple[int, int], Parcel] = {}
        """By (lane, place), in the order in which they came."""

    @_alone
    def join(self, name: str, seconds: float, asked: str = "") -> Lease:
        if not self._publications:
            raise HubError("nothing is published yet: no authority has been here")
        for number, lane in self._lanes.items():
            if asked and lane.asked == asked:
                if lane.status.ended is None:
                    lane.status = replace(lane.status, until=self.now() + seconds)
                    return Lease(number, lane.token, seconds)
                lane.status, lane.asked = replace(lane.status, whole=True), ""
        return self._new_lane(name, seconds, asked)

    def _new_lane(self, name: str, seconds: float, asked: str) -> Lease:
        now, lane, self._tokens = self.now(), len(self._lanes) + 1, self._tokens + 1
        self._lanes[lane] = _Lane(
            LaneStatus(
                lane=lane,
                name=name,
                joined=now,
                until=now + seconds,
                ended=None,
                lost=False,
                adopted=self._publications[-1].version,
                places=0,
                spent=Spent(),
                whole=False,
            ),
            self._tokens,
            asked,
        )
        return Lease(lane, self._tokens, seconds)

    @_alone
    def ship(
        self,
        lease: Lease,
        parcels: Sequence[Parcel],
        *,
        adopted: int,
        spent: Spent,
        whole: bool = False,
    ) -> Lease:
        lane = self._lane(lease)
        status = lane.status
        if status.ended is not None:
            raise LaneEndedError(f"lane {lease.lane} was ended")
        new = unshipped(parcels, lease.lane, status.places, status.adopted)
        self._keep(new, late=False)
        lane.status = replace(
            status,
            until=self.now() + lease.seconds,
            adopted=max(adopted, status.adopted),
            places=status.places + len(new),
            spent=spent,
            whole=whole,
        )
        return lease

    @_alone
    def ship_late(self, lease: Lease, parcels: Sequence[Parcel], spent: Spent, whole: bool) -> None:
        lane = self._lane(lease)
        status = lane.status
        if status.ended is None:
            raise HubError(f"lane {lease.lane} is held: what it ships is not late")
        new = unshipped(parcels, lease.lane, status.places, None)
        if lane.forgotten:
            if new or not whole:
                raise LaneEndedError(f"lane {lease.lane} was whole, and is forgotten")
            return
        self._keep(new, late=True)
        lane.status = replace(status, places=status.places + len(new), spent=spent, whole=whole)

    @_alone
    def leave(self, lease: Lease, spent: Spent) -> None:
        lane = self._lane(lease)
        if lane.status.lost:
            raise LaneEndedError(f"lane {lease.lane} was ended")
        if lane.status.ended is None:
            lane.status = replace(lane.status, ended=self.now(), spent=spent, whole=True)

    @_alone
    def newest(self) -> Publication | None:
        return self._publications[-1] if self._publications else None

    @_alone
    def publications(self, since: int) -> list[Publication]:
        return [each for each in self._publications if each.version >= since]

    @_alone
    def document(self, name: str) -> str | None:
        return self._documents.get(name)

    @_alone
    def find_requests(self, request_ids: Sequence[str]) -> dict[str, int]:
        wanted = set(request_ids)
        found: dict[str, int] = {}
        for parcel in self._parcels.values():
            for request_id, position in parcel.positions():
                if request_id in wanted:
                    found[request_id] = min(position, found.get(request_id, position))
        return found

    @_alone
    def elect(self, name: str, seconds: float) -> Term | None:
        if self._term is not None and self.now() < self._term_until:
            return None
        self._tokens += 1
        self._term, self._term_until = self._tokens, self.now() + seconds
        return Term(self._tokens, seconds)

    @_alone
    def keep(self, term: Term) -> Term:
        self._check(term)
        self._term_until = self.now() + term.seconds
        return term

    @_alone
    def resign(self, term: Term) -> None:
        if self._term == term.token:
            self._term = None

    @_alone
    def publish(self, term: Term, publication: Publication, documents: Mapping[str, str]) -> float:
        self._check(term)
        newest = self.newest()
        version = newest.version if newest is not None else 0
        if newest is not None and publication.version == version:
            same = msgspec.structs.replace(publication, at=newest.at) == newest
            if same and self._published_in == term.token:
                return newest.at
        if publication.version != version + 1:
            raise HubError(f"publication {publication.version}: the newest is {version}")
        there = self._documents | {k: v for k, v in documents.items() if k not in self._documents}
        for name in publication.documents:
            if name not in there:
                raise HubError(f"publication {publication.version}: document {name} is missing")
        at = max(self.now(), newest.at if newest is not None else 0.0)
        self._publications.append(msgspec.structs.replace(publication, at=at))
        self._published_in = term.token
        self._documents = {name: there[name] for name in publication.documents}
        return at

    @_alone
    def forget_publications(self, term: Term, before: int) -> None:
        self._check(term)
        self._publications[:-1] = [p for p in self._publications[:-1] if p.version >= before]

    @_alone
    def lanes(self) -> list[LaneStatus]:
        waiting = {lane for lane, _ in self._parcels}
        return [
            lane.status
            for number, lane in self._lanes.items()
            if lane.status.ended is None or not lane.status.whole or number in waiting
        ]

    @_alone
    def end_lapsed(self, term: Term, grace: float) -> list[int]:
        self._check(term)
        now, ended = self.now(), []
        for number, lane in self._lanes.items():
            if lane.status.ended is None and lane.status.until + grace <= now:
                lane.status = replace(lane.status, ended=now, lost=True)
                ended.append(number)
        return ended

    @_alone
    def forget_lanes(self, term: Term, lanes: Sequence[int]) -> None:
        self._check(term)
        needed = {status.lane for status in self.lanes()}
        for number in lanes:
            if number in self._lanes and number not in needed:
                self._lanes[number].forgotten = True

    def decisions(self, version: int) -> Iterator[Parcel]:
        with self.turn:
            chosen = [
                each
                for each in self._parcels.values()
                if each.kind == "decisions" and (each.late or each.version <= version)
            ]
        chosen.sort(key=lambda each: (each.late, each.version, each.lane, each.place))
        yield from map(_bare, chosen)

    @_alone
    def outcomes(self, limit: int) -> list[Parcel]:
        return [_bare(p) for p in self._parcels.values() if p.kind != "decisions"][:limit]

    @_alone
    def later_outcomes(self, after: Parcel, limit: int) -> list[Parcel]:
        return [
            _bare(each)
            for each in self._parcels.values()
            if each.kind != "decisions" and each.arrival > after.arrival
        ][:limit]

    @_alone
    def forget(self, term: Term, parcels: Sequence[tuple[int, int]]) -> None:
        self._check(term)
        for key in parcels:
            self._parcels.pop(key, None)

    @_alone
    def waiting(self) -> dict[str, int]:
        rows: dict[str, int] = {}
        for parcel in self._parcels.values():
            rows[parcel.kind] = rows.get(parcel.kind, 0) + parcel.rows
        return rows

    def now(self) -> float:
        return self._clock()

    def close(self) -> None:
        pass

    def _lane(self, lease: Lease) -> _Lane:
        lane = self._lanes.get(lease.lane)
        if lane is None or lane.token != lease.token:
            raise LaneEndedError(f"lane {lease.lane} was never leased by token {lease.token}")
        return lane

    def _check(self, term: Term) -> None:
        if self._term != term.token or self.now() >= self._term_until:
            raise TermEndedError(f"the term of token {term.token} is over")

    def _keep(self, parcels: Sequence[Parcel], late: bool) -> None:
        now = self.now()
        for parcel in parcels:
            self._arrivals += 1
            self._parcels[parcel.lane, parcel.place] = replace(
                parcel, received=now, late=late, arrival=self._arrivals
            )


def _bare(parcel: Parcel) -> Parcel:
    """As handed out."""
    return replace(parcel, request_ids=())
