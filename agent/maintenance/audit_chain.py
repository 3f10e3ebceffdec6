"""Whether a store still holds what was written to it: its hash chain, its kept states, anchors.

An anchor says where the chain ended at an earlier moment. A file of anchors only ever grows, one
JSON object a line: append-only for the daemon (`chattr +a`), on another machine, or printed now and
then. A backup holds one too, in its manifest.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from equipoise.agent.errors import AgentError
from equipoise.store.sql.chain import (
    BEGINS,
    BROKEN,
    EVERY,
    LOG,
    RECORDS,
    Anchor,
    Link,
    next_digest,
)
from equipoise.store.sql.records import KeptState
from equipoise.store.sql.store import SqlStore

MANIFEST = "backup.json"


class _Manifest(msgspec.Struct):
    """The part of a backup's manifest that is of interest here."""

    anchor: Anchor | None = None


def append_anchor(path: Path, anchor: Anchor) -> None:
    """Add an anchor to a file, on the disk before this returns. Raises OSError."""
    line = msgspec.json.encode(anchor) + b"\n"
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(file, line)  # one call: a line is there as a whole, or it is the torn last one
        os.fsync(file)
    finally:
        os.close(file)


def read_anchors(path: Path) -> list[Anchor]:
    """The anchors of a file, or of a backup (its folder, or its backup.json).

    Raises AgentError naming the file and the line where there is none to be read.
    """
    path = path / MANIFEST if path.is_dir() else path
    try:
        content = path.read_bytes()
    except OSError as error:
        raise AgentError(f"{path} cannot be read: {error.strerror}") from None
    if path.name == MANIFEST:
        try:
            anchor = msgspec.json.decode(content, type=_Manifest).anchor
        except msgspec.MsgspecError as error:
            raise AgentError(f"{path} is no manifest of a backup: {error}") from None
        if anchor is None:
            raise AgentError(f"{path} holds no anchor: an older version made that backup")
        return [anchor]
    anchors = []
    lines = content.split(b"\n")[:-1]
    for number, line in enumerate(lines, 1):  # what follows the last end of line was torn off
        try:
            anchors.append(msgspec.json.decode(line, type=Anchor))
        except msgspec.MsgspecError as error:
            raise AgentError(f"{path} line {number} is no anchor: {error}") from None
    if not anchors:
        raise AgentError(f"{path} holds no anchor")
    return anchors


_WINDOW = 4096


@dataclass(slots=True)
class Chained:
    """begins: the first row that is chained, None where none is; rows: how many are. anchors: how
    many were compared. faults: sentences."""

    begins: int | None = None
    rows: int = 0
    anchors: int = 0
    faults: list[str] = field(default_factory=list)


def check_chain(
    store: SqlStore,
    anchors: Sequence[Anchor] = (),
    progress: Callable[[int], None] = lambda rows: None,
) -> Chained:
    """Recompute every chain of a store and compare it with what is stored, and with anchors."""
    result = Chained()
    (links, head), states = store.chain_links(), store.kept_states()
    # Only now the length: what was chained when the links were read is in the log by now.
    length = store.next_seq
    begins = min((link.position for link in links if link.kind != BROKEN), default=0)
    _check_states(result, states, length, begins)
    digests = _check_log(result, store, links, head, length, anchors, progress)
    records = {name: _check_records(result, store, name) for name in RECORDS}
    for anchor in anchors:
        result.anchors += 1
        _compare(result, anchor, digests, records)
    return result


def _check_states(result: Chained, states: Sequence[KeptState], length: int, begins: int) -> None:
    for state in states:
        if not state.whole:
            result.faults.append(f"the {state.kind} of row {state.seq} is damaged")
        # What an older version kept has no digest beside it.
        elif state.noted is False or (state.noted is None and state.seq > begins):
            result.faults.append(
                f"the {state.kind} of row {state.seq} is not the one that was kept"
            )
        if state.seq > length:
            result.faults.append(
                f"a {state.kind} covers {state.seq} rows, the log has {length}: the newest are gone"
            )


def _check_log(
    result: Chained,
    store: SqlStore,
    links: list[Link],
    head: Link | None,
    length: int,
    anchors: Sequence[Anchor],
    progress: Callable[[int], None],
) -> dict[int, str]:
    """D at every row that an anchor names."""
    wanted = {anchor.log.position for anchor in anchors if anchor.log is not None}
    for link in links:
        if link.kind == BROKEN:
            result.faults.append(
                f"a writer found {link.position} rows in the log where its chain had another"
                " number, and went on from there"
            )
    log_links = [link for link in links if link.kind in (LOG, BEGINS)]
    ends = [*log_links, *([] if head is None else [head])]
    beyond = max((link.position for link in ends), default=0)
    if beyond > length:
        result.faults.append(
            f"the chain covers {beyond} rows, the log has {length}: the newest are gone"
        )
    if head is None:
        result.faults.append("the end of the chain is gone")
    elif head.position < length and not _chained_now(store, length):
        result.faults.append(
            f"rows {head.position} to {length - 1} were added behind the back of the chain"
        )
    if not log_links:
        result.faults.append("the beginning of the chain is gone")
        return {}
    start = log_links[0]
    begins = store.truncation.begins
    if start.kind != BEGINS and start.position != begins:
        result.faults.append(f"the chain from row {begins} to {start.position} is gone")
    result.begins = start.position
    expected = {link.position: link.digest for link in ends if link.position <= length}
    for link in links:
        if link.kind == BROKEN:
            expected.setdefault(link.position, link.digest)
    end = min(length, beyond)
    positions = range(start.position // EVERY * EVERY + EVERY, end + 1, EVERY)
    missing = [at for at in positions if at not in expected]
    if missing:
        result.faults.append(f"the digest after {missing[0]} rows is gone from the chain")
    return _follow(result, store, start, expected, end, wanted, progress)


def _follow(
    result: Chained,
    store: SqlStore,
    start: Link,
    expected: dict[int, str],
    end: int,
    wanted: set[int],
    progress: Callable[[int], None],
) -> dict[int, str]:
    digest, last = bytes.fromhex(start.digest), start.position
    digests = {start.position: start.digest}
    at = start.position
    for low in range(start.position, end, _WINDOW):
        for name, row in store.rows_in_order(low, min(low + _WINDOW, end)):
            digest = next_digest(digest, name, row)
            # The row says its number: one that is missing makes all that follow differ.
            at = int(row[0]) + 1
            if at in wanted:
                digests[at] = digest.hex()
            stored = expected.get(at)
            if stored is None:
                continue
            if stored != digest.hex():
                result.faults.append(
                    f"rows {last} to {at - 1} are not those that were written: their digest is"
                    " another than the chain's"
                )
                digest = bytes.fromhex(stored)
            last = at
        progress(min(low + _WINDOW, end) - start.position)
    result.rows = end - start.position
    return digests


def _chained_now(store: SqlStore, length: int) -> bool:
    """Whether a writer was at work, and its rows are chained by now."""
    head = store.chain_links()[1]
    return head is not None and head.position >= length


def _check_records(result: Chained, store: SqlStore, name: str) -> dict[int, str]:
    head, digests = store.chained_records(name)
    if head is None:
        return {}
    if digests.get(head.position) != head.digest:
        result.faults.append(f"{name}: they are not those that were written, by their digest")
    elif max(digests) > head.position:
        result.faults.append(f"{name}: some were added behind the back of the chain")
    return digests


def _compare(
    result: Chained, anchor: Anchor, log: dict[int, str], records: dict[str, dict[int, str]]
) -> None:
    for name, place in ((LOG, anchor.log), *anchor.records.items()):
        if place is None:
            continue
        if name == LOG:
            if result.begins is None or place.position < result.begins:
                continue  # that part of the log was removed, or never chained here
            digest = log.get(place.position)
            what = f"the first {place.position} rows"
        else:
            digest = records.get(name, {}).get(place.position)
            what = f"{name} up to {place.position}"
        if digest != place.digest:
            state = "are gone" if digest is None else "are not what they were"
            result.faults.append(f"{what} {state}: the anchor of {anchor.at:.0f} s is another")
