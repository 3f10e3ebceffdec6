"""A hub as tables: all that SQLite and PostgreSQL have in common, which is nearly everything.

A statement is written once: `?` stands for a value, `hub_now()` for the hub's clock, `FOR UPDATE`
for a row that stays as it is until the transaction ends. A method is one transaction. Whoever
changes anything first locks the row that proves its right, the lease of its lane or the one row of
`lane_state`, and reads it then: so nothing is done by a right that ended before it was done.
"""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Concatenate, ParamSpec, TypeAlias, TypeVar
from uuid import uuid4

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
    position,
    unshipped,
)
from equipoise.store.records import LANE_BITS

T = TypeVar("T")
H = TypeVar("H", bound="SqlHub")
P = ParamSpec("P")
Row: TypeAlias = tuple[Any, ...]

FORMAT = 1
"""Of the tables; another one is refused."""

# {number} grows with every row; {whole} and {bytes} are the database's words.
TABLES = """
CREATE TABLE lane_state (
  one {whole} PRIMARY KEY CHECK (one = 1),
  format {whole} NOT NULL,
  lane {whole} NOT NULL,
  token {whole} NOT NULL,
  term {whole} NOT NULL,
  authority TEXT NOT NULL,
  asked TEXT NOT NULL,
  until DOUBLE PRECISION NOT NULL,
  clock DOUBLE PRECISION NOT NULL,
  machine DOUBLE PRECISION NOT NULL
);
CREATE TABLE lane_leases (
  lane {whole} PRIMARY KEY,
  token {whole} NOT NULL,
  name TEXT NOT NULL,
  joined DOUBLE PRECISION NOT NULL,
  until DOUBLE PRECISION NOT NULL,
  ended DOUBLE PRECISION,
  lost {whole} NOT NULL,
  asked TEXT NOT NULL,
  adopted {whole} NOT NULL,
  places {whole} NOT NULL,
  spent TEXT NOT NULL,
  whole {whole} NOT NULL,
  forgotten {whole} NOT NULL
);
CREATE INDEX lane_leases_known ON lane_leases (lane) WHERE forgotten = 0;
CREATE INDEX lane_leases_asked ON lane_leases (asked) WHERE forgotten = 0;
CREATE TABLE lane_publications (
  version {whole} PRIMARY KEY,
  term {whole} NOT NULL,
  body TEXT NOT NULL
);
CREATE TABLE lane_documents (
  name TEXT PRIMARY KEY,
  body TEXT NOT NULL
);
CREATE TABLE lane_parcels (
  arrival {number},
  lane {whole} NOT NULL,
  place {whole} NOT NULL,
  kind TEXT NOT NULL,
  version {whole} NOT NULL,
  rows {whole} NOT NULL,
  position {whole} NOT NULL,
  late {whole} NOT NULL,
  received DOUBLE PRECISION NOT NULL,
  body {bytes} NOT NULL,
  UNIQUE (lane, place)
);
CREATE INDEX lane_parcels_decisions ON lane_parcels (late, version, lane, place)
  WHERE kind = 'decisions';
CREATE INDEX lane_parcels_outcomes ON lane_parcels (arrival) WHERE kind <> 'decisions';
CREATE TABLE lane_requests (
  position {whole} PRIMARY KEY,
  request_id TEXT NOT NULL
);
CREATE INDEX lane_requests_ids ON lane_requests (request_id, position);
"""
"""lane_state: one row: the last lane and token that were given, and the authority's term.
lane_leases: a row for each lane that ever was, so that asking again is told apart from news;
`forgotten` ones are asked for by nobody else. lane_requests: positions of decisions in parcels."""

_STATE = "INSERT INTO lane_state VALUES (1, ?, 0, 0, 0, '', '', 0.0, 0.0, 0.0)"
_PARCEL = "lane, place, kind, version, rows, position, late, received, body"
_PAGE_BYTES = 4 << 20
_LAST = (1 << 62) - 1


def atomic(method: Callable[Concatenate[H, P], T]) -> Callable[Concatenate[H, P], T]:
    """A method that is one transaction."""
    return _called(lambda hub, work: hub.transaction(work, lasting=False), method)


def lasting(method: Callable[Concatenate[H, P], T]) -> Callable[Concatenate[H, P], T]:
    """As `atomic`; once done it outlives the power of the machine, whatever the durability."""
    return _called(lambda hub, work: hub.transaction(work, lasting=True), method)


def reading(method: Callable[Concatenate[H, P], T]) -> Callable[Concatenate[H, P], T]:
    """A method of one statement that changes nothing."""
    return _called(lambda hub, work: hub.read(work), method)


def _called(
    runner: Callable[[H, Callable[[], T]], T], method: Callable[Concatenate[H, P], T]
) -> Callable[Concatenate[H, P], T]:
    @functools.wraps(method)
    def call(hub: H, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return runner(hub, lambda: method(hub, *args, **kwargs))

    return call


class SqlHub(Hub):
    """Everything but the connection, the clock, and how many rows enter at once."""

    AMONG: ClassVar[str]
    """`column AMONG` is true where the column is one of `listed(values)`."""
    IDS: ClassVar[str]
    """Rows of one text `id`, of `listed(values)`."""

    @abstractmethod
    def transaction(self, work: Callable[[], T], lasting: bool) -> T:
        """work() as a whole or not at all. It may be called again where it was not. Errors of the
        database become HubErrors."""

    @abstractmethod
    def read(self, work: Callable[[], T]) -> T:
        """As `transaction`, of one statement that changes nothing."""

    @abstractmethod
    def rows(self, sql: str, *values: object) -> list[Row]:
        """Rows of a statement, [] of one that has none."""

    @abstractmethod
    def each(self, sql: str, rows: Sequence[Row]) -> None:
        """A statement for each row of values."""

    @abstractmethod
    def insert(self, table: str, columns: str, rows: Sequence[Row]) -> None:
        """Add rows."""

    @abstractmethod
    def listed(self, values: Sequence[str] | Sequence[int]) -> object:
        """A list as one value, for AMONG."""

    # What deciders ask for.

    def join(self, name: str, seconds: float, asked: str = "") -> Lease:
        # A name in any case: a transaction whose answer was lost may be done again in this call.
        return self._join(name, seconds, asked or uuid4().hex)

    @lasting
    def _join(self, name: str, seconds: float, asked: str) -> Lease:
        [(lane, token, now)] = self.rows("SELECT lane, token, hub_now() FROM lane_state FOR UPDATE")
        # After the lock above, so that nothing can be published before this lane is there.
        [(newest,)] = self.rows("SELECT max(version) FROM lane_publications")
        if newest is None:
            raise HubError("nothing is published yet: no authority has been here")
        query = """
        SELECT lane, token, ended FROM lane_leases WHERE asked = ? AND forgotten = 0 FOR UPDATE"""
        for before, its_token, ended in self.rows(query, asked):
            if ended is None:
                self.rows("UPDATE lane_leases SET until = ? WHERE lane = ?", now + seconds, before)
                return Lease(before, its_token, seconds)
            self.rows("UPDATE lane_leases SET asked = '', whole = 1 WHERE lane = ?", before)
        lane, token = lane + 1, token + 1
        self.rows("UPDATE lane_state SET lane = ?, token = ?", lane, token)
        self.rows(
            "INSERT INTO lane_leases VALUES (?, ?, ?, ?, ?, NULL, 0, ?, ?, 0, ?, 0, 0)",
            *(lane, token, name, now, now + seconds, asked, newest, _json(Spent())),
        )
        return Lease(lane, token, seconds)

    @atomic
    def ship(
        self,
        lease: Lease,
        parcels: Sequence[Parcel],
        *,
        adopted: int,
        spent: Spent,
        whole: bool = False,
    ) -> Lease:
        ended, _, old, places, _, now = self._lease(lease)
        if ended is not None:
            raise LaneEndedError(f"lane {lease.lane} was ended")
        new = unshipped(parcels, lease.lane, places, old)
        self._keep(new, now, late=0)
        self.rows(
            "UPDATE lane_leases SET until = ?, adopted = ?, places = ?, spent = ?, whole = ?"
            " WHERE lane = ?",
            *(now + lease.seconds, max(adopted, old), places + len(new)),
            *(_json(spent), int(whole), lease.lane),
        )
        return lease

    @atomic
    def ship_late(self, lease: Lease, parcels: Sequence[Parcel], spent: Spent, whole: bool) -> None:
        ended, _, _, places, forgotten, now = self._lease(lease)
        if ended is None:
            raise HubError(f"lane {lease.lane} is held: what it ships is not late")
        new = unshipped(parcels, lease.lane, places, None)
        if forgotten:
            if new or not whole:
                raise LaneEndedError(f"lane {lease.lane} was whole, and is forgotten")
            return
        self._keep(new, now, late=1)
        self.rows(
            "UPDATE lane_leases SET places = ?, spent = ?, whole = ? WHERE lane = ?",
            *(places + len(new), _json(spent), int(whole), lease.lane),
        )

    @atomic
    def leave(self, lease: Lease, spent: Spent) -> None:
        ended, lost, *_ = self._lease(lease)
        if lost:
            raise LaneEndedError(f"lane {lease.lane} was ended")
        if ended is None:
            self.rows(
                "UPDATE lane_leases SET ended = hub_now(), spent = ?, whole = 1 WHERE lane = ?",
                *(_json(spent), lease.lane),
            )

    @reading
    def newest(self) -> Publication | None:
        rows = self.rows("SELECT body FROM lane_publications ORDER BY version DESC LIMIT 1")
        return _publication(rows[0][0]) if rows else None

    @reading
    def publications(self, since: int) -> list[Publication]:
        query = "SELECT body FROM lane_publications WHERE version >= ? ORDER BY version"
        return [_publication(body) for (body,) in self.rows(query, since)]

    @reading
    def document(self, name: str) -> str | None:
        rows = self.rows("SELECT body FROM lane_documents WHERE name = ?", name)
        return str(rows[0][0]) if rows else None

    @reading
    def find_requests(self, request_ids: Sequence[str]) -> dict[str, int]:
        # One look into the index for each, whatever the database knows of the table.
        query = f"""
        SELECT id, (SELECT min(position) FROM lane_requests WHERE request_id = id)
        FROM {self.IDS}"""
        found = self.rows(query, self.listed(request_ids))
        return {request_id: position for request_id, position in found if position is not None}

    # What the authority asks for.

    def elect(self, name: str, seconds: float) -> Term | None:
        return self._elect(name, seconds, uuid4().hex)  # as `join`

    @lasting
    def _elect(self, name: str, seconds: float, asked: str) -> Term | None:
        state = "SELECT token, term, until, asked, hub_now() FROM lane_state FOR UPDATE"
        [(token, term, until, before, now)] = self.rows(state)
        if now < until and before != asked:
            return None
        if before != asked:
            term = token + 1
        self.rows(
            "UPDATE lane_state SET token = ?, term = ?, authority = ?, asked = ?, until = ?",
            *(max(token, term), term, name, asked, now + seconds),
        )
        return Term(term, seconds)

    @atomic
    def keep(self, term: Term) -> Term:
        now = self._check(term)
        self.rows("UPDATE lane_state SET until = ?", now + term.seconds)
        return term

    @atomic
    def resign(self, term: Term) -> None:
        self.rows("UPDATE lane_state SET until = 0.0 WHERE term = ?", term.token)

    @lasting
    def publish(self, term: Term, publication: Publication, documents: Mapping[str, str]) -> float:
        now = self._check(term)
        query = "SELECT term, body FROM lane_publications ORDER BY version DESC LIMIT 1"
        version = 0
        for published_in, body in self.rows(query):
            newest = _publication(body)
            same = msgspec.structs.replace(publication, at=newest.at) == newest
            if same and published_in == term.token:
                return newest.at
            version = newest.version
            now = max(now, newest.at)
        if publication.version != version + 1:
            raise HubError(f"publication {publication.version}: the newest is {version}")
        there = {name for (name,) in self.rows("SELECT name FROM lane_documents")}
        for name in publication.documents:
            if name not in there and name not in documents:
                raise HubError(f"publication {publication.version}: document {name} is missing")
        needed = set(publication.documents)
        self.each("DELETE FROM lane_documents WHERE name = ?", [(name,) for name in there - needed])
        self.each(
            "INSERT INTO lane_documents VALUES (?, ?)",
            [(name, documents[name]) for name in sorted(needed - there)],
        )
        made = msgspec.structs.replace(publication, at=now)
        insert = "INSERT INTO lane_publications VALUES (?, ?, ?)"
        self.rows(insert, made.version, term.token, _json(made))
        return now

    @atomic
    def forget_publications(self, term: Term, before: int) -> None:
        self._check(term)
        newest = "(SELECT max(version) FROM lane_publications)"
        self.rows(f"DELETE FROM lane_publications WHERE version < ? AND version < {newest}", before)

    @reading
    def lanes(self) -> list[LaneStatus]:
        query = """
        SELECT lane, name, joined, until, ended, lost, adopted, places, spent, whole
        FROM lane_leases AS l
        WHERE forgotten = 0 AND (ended IS NULL OR whole = 0
          OR EXISTS (SELECT 1 FROM lane_parcels AS p WHERE p.lane = l.lane))
        ORDER BY lane"""
        return [
            LaneStatus(
                *(lane, name, joined, until, ended, bool(lost), adopted, places),
                msgspec.json.decode(spent, type=Spent),
                bool(all_in),
            )
            for lane, name, joined, until, ended, lost, adopted, places, spent, all_in in (
                self.rows(query)
            )
        ]

    @atomic
    def end_lapsed(self, term: Term, grace: float) -> list[int]:
        self._check(term)
        query = """
        UPDATE lane_leases SET ended = hub_now(), lost = 1
        WHERE forgotten = 0 AND ended IS NULL AND until + ? <= hub_now() RETURNING lane"""
        return sorted(lane for (lane,) in self.rows(query, grace))

    @atomic
    def forget_lanes(self, term: Term, lanes: Sequence[int]) -> None:
        self._check(term)
        # First the locks, for what is shipped meanwhile; then a look at what there is.
        chosen = f"WHERE lane {self.AMONG} AND ended IS NOT NULL AND whole = 1"
        self.rows(f"SELECT lane FROM lane_leases {chosen} FOR UPDATE", self.listed(lanes))
        parcels = "SELECT 1 FROM lane_parcels AS p WHERE p.lane = lane_leases.lane"
        self.rows(
            f"UPDATE lane_leases SET forgotten = 1 {chosen} AND NOT EXISTS ({parcels})",
            self.listed(lanes),
        )

    def decisions(self, version: int) -> Iterator[Parcel]:
        for late, newest in ((0, version), (1, _LAST)):
            last, limit = (-1, 0, 0), 8
            while True:
                page = self._decisions(late, newest, last, limit)
                yield from page
                if len(page) < limit:
                    break
                last = (page[-1].version, page[-1].lane, page[-1].place)
                size = sum(len(parcel.body) for parcel in page)
                limit = min(max(_PAGE_BYTES * len(page) // max(size, 1), 1), 1024)

    @reading
    def _decisions(
        self, late: int, newest: int, last: tuple[int, int, int], limit: int
    ) -> list[Parcel]:
        query = f"""
        SELECT {_PARCEL}, arrival FROM lane_parcels
        WHERE kind = 'decisions' AND late = ? AND version <= ?
          AND (version, lane, place) > (?, ?, ?)
        ORDER BY version, lane, place LIMIT ?"""
        return [_parcel(*row) for row in self.rows(query, late, newest, *last, limit)]

    def outcomes(self, limit: int) -> list[Parcel]:
        return self._outcomes(-1, limit)

    def later_outcomes(self, after: Parcel, limit: int) -> list[Parcel]:
        return self._outcomes(after.arrival, limit)

    @reading
    def _outcomes(self, arrival: int, limit: int) -> list[Parcel]:
        query = f"""
        SELECT {_PARCEL}, arrival FROM lane_parcels
        WHERE kind <> 'decisions' AND arrival > ? ORDER BY arrival LIMIT ?"""
        return [_parcel(*row) for row in self.rows(query, arrival, limit)]

    @atomic
    def forget(self, term: Term, parcels: Sequence[tuple[int, int]]) -> None:
        self._check(term)
        which = "FROM lane_parcels WHERE lane = ? AND place = ?"
        self.each(
            f"DELETE FROM lane_requests WHERE position >= (SELECT position {which})"
            f" AND position < (SELECT position + rows {which} AND kind = 'decisions')",
            [(*key, *key) for key in parcels],
        )
        self.each(f"DELETE {which}", parcels)

    @reading
    def waiting(self) -> dict[str, int]:
        query = "SELECT kind, sum(rows) FROM lane_parcels GROUP BY kind"
        return {kind: int(rows) for kind, rows in self.rows(query)}

    @reading
    def now(self) -> float:
        return float(self.rows("SELECT hub_now()")[0][0])

    def _lease(self, lease: Lease) -> Row:
        """ended, lost, adopted, places, forgotten of a lane, and the time; it stays so until the
        transaction ends."""
        query = """
        SELECT ended, lost, adopted, places, forgotten, hub_now() FROM lane_leases
        WHERE lane = ? AND token = ? FOR UPDATE"""
        rows = self.rows(query, lease.lane, lease.token)
        if not rows:
            raise LaneEndedError(f"lane {lease.lane} was never leased by token {lease.token}")
        return rows[0]

    def _check(self, term: Term) -> float:
        """The time, while the term lasts; nobody else is elected until the transaction ends."""
        [(token, until, now)] = self.rows(
            "SELECT term, until, hub_now() FROM lane_state FOR UPDATE"
        )
        if token != term.token or now >= until:
            raise TermEndedError(f"the term of token {term.token} is over")
        return float(now)

    def _keep(self, parcels: Sequence[Parcel], now: float, late: int) -> None:
        rows = [
            (
                p.lane,
                p.place,
                p.kind,
                p.version,
                p.rows,
                position(p.lane, p.first),
                late,
                now,
                p.body,
            )
            for p in parcels
        ]
        requests = [(place, name) for parcel in parcels for name, place in parcel.positions()]
        if rows:
            self.insert("lane_parcels", _PARCEL, rows)
        if requests:
            self.insert("lane_requests", "position, request_id", requests)

    def _make(self, words: Mapping[str, str]) -> None:
        """Make the tables, inside a transaction."""
        for statement in TABLES.format(**words).split(";"):
            if statement.strip():
                self.rows(statement)
        self.rows(_STATE, FORMAT)


def _parcel(
    lane: int,
    place: int,
    kind: Any,
    version: int,
    rows: int,
    position: int,
    late: int,
    received: float,
    body: bytes,
    arrival: int,
) -> Parcel:
    first = position - (lane << LANE_BITS)
    return Parcel(lane, place, kind, version, rows, body, received, bool(late), arrival, first)


def _publication(body: str) -> Publication:
    try:
        return msgspec.json.decode(body, type=Publication)
    except msgspec.MsgspecError as error:
        raise HubError(f"a publication cannot be read: {error}") from error


def _json(struct: msgspec.Struct) -> str:
    return msgspec.json.encode(struct).decode()
