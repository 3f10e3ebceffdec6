"""What a lane has decided and been told, on the disk of its decider until the hub has it.

A lane has a few files in the folder of its decider: `lane-7.tail.1`, … hold its entries, one
checked frame each, written before anything is answered; `lane-7.lane` says whose lane it is and is
locked while its decider lives; `lane-7.cuts` says how far the hub has it. A killed decider leaves
them behind, and the next one that starts with the folder ships what is left.

Entries are shipped in parcels, which a hub takes once for each (lane, place). So what a parcel
holds is written down before it is shipped, and stays what it is until the hub has said that it is
there: whoever ships it again after a kill ships the same rows under the same place.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import msgspec

from equipoise.store.batches import Batch, DecisionBatch, OutcomeBatch
from equipoise.store.format.frames import (
    Sync,
    TailWriter,
    as_store_errors,
    batch_to_body,
    body_to_batch,
    framed,
    read_payload,
    scan,
    seed_of,
    tail_files,
)
from equipoise.store.format.sql_rows import joined, same_shape
from equipoise.store.lanes.contract import Lease, Parcel, ParcelKind, Spent

PARCEL_ROWS, PARCELS = 4096, 32
"""Rows of a parcel, and parcels of one call to the hub, at the most."""
PARCEL_BYTES = 4 << 20
_LEASE_SECONDS = 10.0
"""For which the lease of a lane is renewed whose decider is gone, while it is shipped."""
_KINDS: tuple[ParcelKind, ...] = ("decisions", "outcomes", "reports")
_DECISIONS, _OUTCOMES, _REPORTS = range(3)
_ENTRY = struct.Struct("<BQI")
_SLOT = struct.Struct("<II")
_SLOT_BYTES = 16_384
_NAME = re.compile(r"lane-([1-9][0-9]*)\.lane")


class LaneFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Whose lane it is.

    lane, token: of its lease. experiment: 32 hexadecimal digits that name the experiment and its
    key, at the head of every tail file too. config: the text of the configuration that it decides
    by. name: of its decider.
    """

    lane: int
    token: int
    experiment: str
    config: str
    name: str = ""

    @property
    def lease(self) -> Lease:
        """The lease, which may have run out."""
        return Lease(self.lane, self.token, _LEASE_SECONDS)


class _Cuts(msgspec.Struct, frozen=True, array_like=True):
    """How far the hub has a lane. place, entry: the first parcel and the first entry that it may
    not have. ends: the entry after the last of each parcel that was begun to be shipped since.
    spent: up to the last of those."""

    turn: int = 0
    place: int = 0
    entry: int = 0
    ends: tuple[int, ...] = ()
    spent: Spent = Spent()


class Entry(NamedTuple):
    """One append. number: 0, 1, 2, … in the lane. version: of the publication in force then.
    content: a batch, or the JSON of reports. size: bytes, about."""

    number: int
    kind: int
    version: int
    rows: int
    content: Batch | bytes
    size: int


class LaneJournal:
    """The files of one lane, for one writer; `cut` and `forget` may come from another thread.

    folder: where they are, there already. Raises StoreError where they cannot be written.
    """

    def __init__(self, folder: Path, facts: LaneFacts, sync: Sync = "never") -> None:
        self.folder, self.facts = folder, facts
        self._store = folder / f"lane-{facts.lane}"
        self._cuts = _Cuts()
        self._entries = 0
        store_id = bytes.fromhex(facts.experiment)
        self._seed = seed_of(store_id)
        with as_store_errors(self._store):
            self._lock = _locked_file(folder, facts)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self._marks = os.open(self._store.with_suffix(".cuts"), flags, 0o600)
        self._tail = TailWriter(self._store, sync, store_id)
        self._safe = sync != "never"

    def append(self, kind: int, version: int, rows: int, body: bytes) -> int:
        """Write one entry; its number. Raises as `TailWriter.append`."""
        number = self._entries
        payload = _ENTRY.pack(kind, version, rows) + body
        self._tail.append(number, 1, framed(number, payload, self._seed))
        self._entries = number + 1
        return number

    def cut(self, place: int, entry: int, ends: Sequence[int], spent: Spent) -> None:
        """Write down which entries the parcels from `place` on hold, before they are shipped."""
        cuts = _Cuts(self._cuts.turn + 1, place, entry, tuple(ends), spent)
        text = msgspec.json.encode(cuts)
        slot = _SLOT.pack(len(text), zlib.crc32(text)) + text
        if self._safe:
            # First the entries: what the hub has and this disk has not would be cut otherwise.
            self._tail.begin_sync()()
        with as_store_errors(self._store):
            os.pwrite(self._marks, slot, (cuts.turn % 2) * _SLOT_BYTES)
            if self._safe:
                os.fdatasync(self._marks)
        self._cuts = cuts

    def forget(self, entry: int) -> None:
        """Remove tail files whose entries all come before this one."""
        self._tail.forget(entry)

    def begin_sync(self) -> Callable[[], None]:
        """As of `TailWriter`."""
        return self._tail.begin_sync()

    def fault(self) -> str | None:
        """As of `TailWriter`."""
        return self._tail.fault()

    def probe(self) -> None:
        """As of `TailWriter`."""
        self._tail.probe()

    def close(self, *, remove: bool = False) -> None:
        """Let go of the files. remove: since the hub has everything. Again is no error."""
        if self._lock < 0:
            return
        self._tail.close()
        os.close(self._marks)
        if remove:
            _remove(self._store)
        os.close(self._lock)
        self._lock = -1


def _locked_file(folder: Path, facts: LaneFacts) -> int:
    """The file that says whose lane it is, locked before anybody can find it."""
    path = folder / f"lane-{facts.lane}.lane"
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(descriptor, msgspec.json.encode(facts))
        os.link(draft, path)
    except BaseException:
        os.close(descriptor)
        raise
    finally:
        os.unlink(draft)
    return descriptor


def _remove(store: Path) -> None:
    """Remove the files of a lane; the one that others look for last."""
    for path in (*tail_files(store), store.with_suffix(".cuts"), store.with_suffix(".lane")):
        with contextlib.suppress(OSError):
            path.unlink()


Cut: TypeAlias = Callable[[int, int, Sequence[int], Spent], None]


class Outbox:
    """What the hub does not have yet, and the parcels that are on their way.

    `add` belongs to the thread that decides, everything else to the one that ships. cut: writes
    down what parcels hold.
    """

    def __init__(self, lane: int, cut: Cut, cuts: _Cuts | None = None) -> None:
        cuts = cuts or _Cuts()
        self._lane = lane
        self._cut = cut
        self._new: deque[Entry] = deque()
        self._place, self._entry = cuts.place, cuts.entry
        self._ends = list(cuts.ends)
        self._parcels: list[Parcel] = []
        self._added = self._shipped = 0

    @property
    def waiting(self) -> int:
        """Rows that the hub does not have."""
        return self._added - self._shipped

    def add(self, entry: Entry) -> None:
        self._new.append(entry)
        self._added += entry.rows

    @property
    def empty(self) -> bool:
        """Whether the hub has everything."""
        return not self._parcels and not self._new and not self._ends

    def parcels(self, version: int, spent: Spent) -> tuple[list[Parcel], int]:
        """The next parcels to ship, and the publication under which the earliest decision that is
        not among them was or will be made. The same again until `shipped` is called.

        version: that is acted by, as it was before this call; spent: up to now at the least.
        Raises StoreError where it cannot be written down what they hold.
        """
        if not self._parcels:
            if self._ends:
                groups = self._as_cut()
            else:
                groups = self._groups()
                self._ends = [group[-1].number + 1 for group in groups]
                if groups:
                    self._cut(self._place, self._entry, self._ends, spent)
            self._parcels = [
                _parcel(self._lane, self._place + at, group) for at, group in enumerate(groups)
            ]
        return self._parcels, min(self._new[0].version, version) if self._new else version

    def shipped(self) -> int:
        """The hub has the parcels; the first entry that it may not have."""
        rows = sum(parcel.rows for parcel in self._parcels)
        self._shipped += rows
        self._place += len(self._parcels)
        self._entry = self._ends[-1] if self._ends else self._entry
        self._parcels, self._ends = [], []
        return self._entry

    def _as_cut(self) -> list[list[Entry]]:
        """What parcels hold that were begun to be shipped by a process that is gone; nothing where
        the disk lost it."""
        groups = []
        for end in self._ends:
            group = []
            while self._new and self._new[0].number < end:
                group.append(self._new.popleft())
            groups.append(group)
        return groups

    def _groups(self) -> list[list[Entry]]:
        """Entries in order, together where one parcel can hold them."""
        groups: list[list[Entry]] = []
        rows = size = 0
        for _ in range(len(self._new)):
            entry = self._new[0]
            alike = bool(groups) and _alike(groups[-1][-1], entry)
            if not alike or rows + entry.rows > PARCEL_ROWS:
                if len(groups) == PARCELS or size >= PARCEL_BYTES:
                    break
                groups.append([])
                rows = 0
            groups[-1].append(self._new.popleft())
            rows, size = rows + entry.rows, size + entry.size
        return groups


def _alike(one: Entry, other: Entry) -> bool:
    before, after = one.content, other.content
    if one.kind != other.kind:
        return False
    if isinstance(before, bytes) or isinstance(after, bytes):
        return True
    if isinstance(before, DecisionBatch) and isinstance(after, DecisionBatch):
        # What a disk has lost leaves a gap.
        follows = before.number[-1] + 1 == after.number[0]
        return bool(follows) and one.version == other.version and same_shape(before, after)
    return same_shape(before, after)


def _parcel(lane: int, place: int, group: Sequence[Entry]) -> Parcel:
    if not group:
        return Parcel(lane, place, "reports", 0, 0, b"[]")
    head = group[0]
    rows = sum(entry.rows for entry in group)
    first = version = 0
    names: tuple[str, ...] = ()
    if head.kind == _REPORTS:
        lists = [bytes(entry.content[1:-1]) for entry in group if isinstance(entry.content, bytes)]
        body = b"[%s]" % b",".join(lists)
    else:
        batch = joined([entry.content for entry in group if not isinstance(entry.content, bytes)])
        if isinstance(batch, DecisionBatch):
            first, version = int(batch.number[0]), head.version
            names = tuple(batch.request_id or ())
        body = batch_to_body(batch)
    kind = _KINDS[head.kind]
    return Parcel(lane, place, kind, version, rows, body, first=first, request_ids=names)


@dataclass(frozen=True, slots=True)
class LeftLane:
    """A lane whose decider is gone. facts: whose; outbox: what the hub may not have of it; entries:
    those of it; version: the newest publication that it acted by; spent: as its decider said last;
    since: entries after that; damaged: stretches of its files that cannot be read."""

    store: Path
    facts: LaneFacts
    outbox: Outbox
    version: int
    spent: Spent
    since: tuple[Entry, ...]
    damaged: int
    lock: int
    marks: int

    def close(self, *, remove: bool) -> None:
        """Let go of its files. remove: since the hub has everything."""
        os.close(self.marks)
        if remove:
            _remove(self.store)
        os.close(self.lock)

    def put_aside(self) -> Path:
        """Keep its files under names that nobody looks for; that of the first. Closes it."""
        aside = self.store.with_suffix(".refused")
        for path in (*tail_files(self.store), self.store.with_suffix(".cuts")):
            path.rename(path.with_name(path.name.replace("lane-", "refused-lane-", 1)))
        self.store.with_suffix(".lane").rename(aside)
        os.close(self.marks)
        os.close(self.lock)
        return aside


def left_lanes(folder: Path, experiment: str) -> Iterator[LeftLane]:
    """Lanes of one experiment in a folder whose deciders are gone, each locked until it is closed.

    experiment: as in `LaneFacts`. Files that are none of its are left alone.
    """
    for path in sorted(folder.glob("lane-*.lane")):
        if _NAME.fullmatch(path.name) is None:
            continue
        try:
            lock = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue  # removed meanwhile
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock).st_nlink == 0:
                raise FileNotFoundError(path)  # another one has just finished with it
            facts = msgspec.json.decode(path.read_bytes(), type=LaneFacts)
        except (OSError, msgspec.MsgspecError):
            os.close(lock)
            continue
        if facts.experiment != experiment:
            os.close(lock)
            continue
        yield _left(path.with_suffix(""), facts, lock)


def _left(store: Path, facts: LaneFacts, lock: int) -> LeftLane:
    marks = os.open(store.with_suffix(".cuts"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    cuts = _newest_cuts(os.pread(marks, 2 * _SLOT_BYTES, 0))
    turn = cuts.turn

    def cut(place: int, entry: int, ends: Sequence[int], spent: Spent) -> None:
        nonlocal turn
        turn += 1
        text = msgspec.json.encode(_Cuts(turn, place, entry, tuple(ends), spent))
        slot = _SLOT.pack(len(text), zlib.crc32(text)) + text
        os.pwrite(marks, slot, (turn % 2) * _SLOT_BYTES)
        os.fdatasync(marks)

    outbox, since = Outbox(facts.lane, cut, cuts), []
    counted = cuts.ends[-1] if cuts.ends else cuts.entry
    version = damaged = 0
    for path in tail_files(store):
        data = path.read_bytes()
        scanned = scan(data, bytes.fromhex(facts.experiment))
        damaged += len(scanned.damaged)
        for start, end, number in scanned.frames:
            entry = _entry(number, read_payload(data, start, end)[1])
            version = max(version, entry.version)
            if number >= cuts.entry:
                outbox.add(entry)
            if number >= counted:
                since.append(entry)
    return LeftLane(store, facts, outbox, version, cuts.spent, tuple(since), damaged, lock, marks)


def _entry(number: int, payload: bytes) -> Entry:
    kind, version, rows = _ENTRY.unpack_from(payload)
    body = payload[_ENTRY.size :]
    content: Batch | bytes = body if kind == _REPORTS else body_to_batch(body)
    return Entry(number, kind, version, rows, content, len(body))


def _newest_cuts(data: bytes) -> _Cuts:
    """What was written down last and whole."""
    found = _Cuts()
    for start in (0, _SLOT_BYTES):
        if len(data) < start + _SLOT.size:
            continue
        size, crc = _SLOT.unpack_from(data, start)
        text = data[start + _SLOT.size : start + _SLOT.size + size]
        if size and zlib.crc32(text) == crc:
            cuts = msgspec.json.decode(text, type=_Cuts)
            found = max(found, cuts, key=lambda each: each.turn)
    return found


def kind_of(batch: Batch) -> int | None:
    """The kind of entry that a batch makes; None for what a lane does not ship."""
    if isinstance(batch, DecisionBatch):
        return _DECISIONS
    return _OUTCOMES if isinstance(batch, OutcomeBatch) else None


REPORTS = _REPORTS
