"""Compressed bodies: gzip, deflate and zstd, unpacked a piece at a time and only so far.

A body of a few kilobytes can unpack to gigabytes, so nothing is unpacked as a whole: whoever reads
stops at the limit. A frame of zstd also says how much memory its reader needs, up to 128 MiB each
with the library used here; RFC 9659 lets a content coding ask for 8 MiB, and more is refused.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncGenerator, Iterator, Sequence

from equipoise.agent.service.api.problems import Refusal

ENCODINGS = ("gzip", "zstd", "deflate")
PIECE = 65_536
AT_ONCE = 2048
"""A packed body up to this size is unpacked without a thread: a millisecond at the most."""
MOST_PARTS = 65_536
"""Members of gzip, or blocks of zstd; each may be next to nothing, and costs time all the same."""
LARGEST_WINDOW = 1 << 23
"""Bytes of memory that a zstd frame may ask for (RFC 9659)."""

_GZIP, _ZLIB = 31, 15
_FRAME, _SKIPPABLE = 0xFD2FB528, 0x184D2A5


def encoding_of(headers: Sequence[tuple[bytes, bytes]]) -> str:
    """The content coding of a body, "" for none. Raises Refusal 415 for one that is not taken, or
    several."""
    found = ""
    for name, value in headers:
        if name == b"content-encoding":
            found = f"{found},{value.decode('latin-1')}" if found else value.decode("latin-1")
    encoding = found.strip().lower()
    if encoding in ("", "identity"):
        return ""
    encoding = encoding.removeprefix("x-")
    if encoding not in ENCODINGS:
        limit = f"one of {', '.join(ENCODINGS)}"
        raise Refusal(
            415,
            f"content-encoding: received {found.strip()[:40]!r}, expected {limit}",
            field="content-encoding",
            limit=limit,
            headers={"accept-encoding": ", ".join(ENCODINGS)},
        )
    return encoding


async def unpacked(packed: bytes, encoding: str, limit: int) -> bytes:
    """The whole body. Raises as `pieces`."""
    if len(packed) <= AT_ONCE and encoding != "zstd":
        return b"".join(pieces(packed, encoding, limit))
    return await asyncio.to_thread(lambda: b"".join(pieces(packed, encoding, limit)))


async def unpacked_pieces(packed: bytes, encoding: str, limit: int) -> AsyncGenerator[bytes, None]:
    """As `pieces`, without holding up the loop."""
    unpacking = pieces(packed, encoding, limit)
    while piece := await asyncio.to_thread(next, unpacking, b""):
        yield piece


def pieces(packed: bytes, encoding: str, limit: int) -> Iterator[bytes]:
    """The parts of what a body unpacks to, at most PIECE bytes each.

    Raises Refusal 413 as soon as they come to more than `limit` bytes, 400 for a body that is
    damaged or breaks off.
    """
    size = 0
    parts = _zstd(packed) if encoding == "zstd" else _inflated(packed, encoding)
    for piece in parts:
        size += len(piece)
        if size > limit:
            bound = f"{limit} bytes"
            raise Refusal(413, f"the body unpacks to more than {bound}", limit=bound)
        yield piece


def _inflated(packed: bytes, encoding: str) -> Iterator[bytes]:
    """gzip, member after member, or zlib's format, which HTTP calls deflate."""
    members, at, rest = 0, 0, b""
    while at < len(packed) or rest or not members:
        members += 1
        if members > MOST_PARTS or (members > 1 and encoding == "deflate"):
            raise _damaged(encoding, "there is more behind its end")
        engine = zlib.decompressobj(_GZIP if encoding == "gzip" else _ZLIB)
        while not engine.eof:
            if not rest:
                rest, at = packed[at : at + PIECE], at + PIECE
            try:
                piece = engine.decompress(rest, PIECE)
            except zlib.error as error:
                raise _damaged(encoding, str(error)) from None
            if not rest and not piece:
                raise _damaged(encoding, "it breaks off")
            rest = engine.unconsumed_tail
            if piece:
                yield piece
        rest = engine.unused_data


def _zstd(packed: bytes) -> Iterator[bytes]:
    import pyarrow as pa

    _check_frames(packed)
    stream = pa.CompressedInputStream(pa.BufferReader(packed), "zstd")
    while True:
        try:
            piece = stream.read(PIECE)
        except OSError as error:
            raise _damaged("zstd", str(error)) from None
        if not piece:
            return
        yield piece


def _check_frames(packed: bytes) -> None:
    """Refuse frames that ask for too much memory, or have too many blocks (RFC 8878). What is no
    frame is left to the library."""
    at = blocks = 0
    while at + 8 <= len(packed):
        magic = int.from_bytes(packed[at : at + 4], "little")
        if magic >> 4 == _SKIPPABLE:
            at += 8 + int.from_bytes(packed[at + 4 : at + 8], "little")
            blocks += 1
            if blocks > MOST_PARTS:
                raise _too_many()
            continue
        if magic != _FRAME:
            return
        descriptor, at = packed[at + 4], at + 5
        single, size = descriptor & 32, (0, 2, 4, 8)[descriptor >> 6]
        window = 0
        if single:
            size = size or 1
        else:
            window = 1 << (10 + (packed[at] >> 3))
            window += (window >> 3) * (packed[at] & 7)
            at += 1
        at += (0, 1, 2, 4)[descriptor & 3]
        if single:
            # What it unpacks to is kept as a whole; two bytes count from 256 on.
            window = int.from_bytes(packed[at : at + size], "little") + (256 if size == 2 else 0)
        if window > LARGEST_WINDOW:
            limit = f"{LARGEST_WINDOW} bytes"
            raise Refusal(413, f"the zstd frame needs a window of more than {limit}", limit=limit)
        at, last = at + size, False
        while not last and at + 3 <= len(packed):
            header = int.from_bytes(packed[at : at + 3], "little")
            last, kind = bool(header & 1), header >> 1 & 3
            at += 3 + (1 if kind == 1 else header >> 3)
            blocks += 1
            if blocks > MOST_PARTS:
                raise _too_many()
        at += 4 if descriptor & 4 else 0


def _too_many() -> Refusal:
    limit = f"{MOST_PARTS} blocks"
    return Refusal(413, f"the zstd body has more than {limit}", limit=limit)


def _damaged(encoding: str, why: str) -> Refusal:
    return Refusal(400, f"the body is not {encoding}: {why}", field="content-encoding")
