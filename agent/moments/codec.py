"""Versioned bytes for named arrays: how moments and checkpoints are kept.

Layout: magic (4 bytes), version (u16), header length (u32), CRC-32 of all that follows (u32),
header (JSON: name, dtype and shape of every array, and free text fields), then the arrays' bytes
in that order, little-endian, C order. No pickle.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from math import prod
from typing import Annotated, Any, BinaryIO, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from equipoise.store.batches import Buffer

MAGIC = b"EQST"
VERSION = 1
_PREFIX = struct.Struct("<4sHII")
_PIECE = 1 << 20
_DTYPES = {"<f8", "<i8", "|b1", "|u1"}


class _Entry(msgspec.Struct):
    name: str
    dtype: Literal["<f8", "<i8", "|b1", "|u1"]
    shape: list[Annotated[int, msgspec.Meta(ge=0, lt=2**31)]]


class _Header(msgspec.Struct):
    arrays: list[_Entry]
    fields: dict[str, Any]


class StateFormatError(ValueError):
    """The bytes are not a state this version can read."""


def encode(arrays: Mapping[str, NDArray[Any]], fields: Mapping[str, Any] | None = None) -> bytes:
    """Bytes of named arrays (float64, int64, uint8 or bool) and JSON-able fields."""
    header, *parts = _pieces(arrays, fields or {})
    body = b"".join([header, *parts])
    return _PREFIX.pack(MAGIC, VERSION, len(header), zlib.crc32(body)) + body


def encode_to(
    file: BinaryIO,
    arrays: Mapping[str, NDArray[Any]],
    fields: Mapping[str, Any],
    between: Callable[[], None] = lambda: None,
) -> int:
    """Write the bytes of `encode` to a file that can seek, a piece at a time; how many.

    between: called after each piece.
    """
    checksum, length, size = 0, -1, _PREFIX.size
    file.seek(size)
    for piece in _pieces(arrays, fields):
        length = len(piece) if length < 0 else length
        checksum, size = zlib.crc32(piece, checksum), size + len(piece)
        file.write(piece)
        between()
    file.seek(0)
    file.write(_PREFIX.pack(MAGIC, VERSION, length, checksum))
    file.flush()
    return size


def _pieces(arrays: Mapping[str, NDArray[Any]], fields: Mapping[str, Any]) -> Iterator[bytes]:
    """The header, then the arrays' bytes in pieces of about a megabyte."""
    listed: list[dict[str, Any]] = []
    dtypes: list[np.dtype[Any]] = []
    for name, array in arrays.items():
        dtype = array.dtype.newbyteorder("<") if array.dtype.itemsize > 1 else array.dtype
        if dtype.str not in _DTYPES:
            raise StateFormatError(f"array {name}: dtype {array.dtype} is not kept in states")
        listed.append({"name": name, "dtype": dtype.str, "shape": array.shape})
        dtypes.append(dtype)
    yield msgspec.json.encode({"arrays": listed, "fields": dict(fields)})
    for array, dtype in zip(arrays.values(), dtypes, strict=True):
        row = array[:1].nbytes if array.ndim else 0
        step = max(_PIECE // row, 1) if row else 0
        if not step or len(array) <= step:
            yield np.ascontiguousarray(array, dtype=dtype).tobytes()
            continue
        for start in range(0, len(array), step):
            yield np.ascontiguousarray(array[start : start + step], dtype=dtype).tobytes()


def decode(state: Buffer) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """The arrays (writable copies) and fields of `encode`.

    Raises StateFormatError where the bytes are cut, damaged, foreign or of a newer version.
    """
    if len(state) < _PREFIX.size:
        raise StateFormatError(f"state has {len(state)} bytes, a header alone needs {_PREFIX.size}")
    magic, version, length, checksum = _PREFIX.unpack_from(state)
    if magic != MAGIC:
        raise StateFormatError("these bytes are not an Equipoise state")
    if version > VERSION:
        raise StateFormatError(
            f"state has version {version}, this equipoise reads up to {VERSION}: upgrade equipoise"
        )
    if version < 1:
        raise StateFormatError(f"state has version {version}, the first ever written is 1")
    body = memoryview(state)[_PREFIX.size :]
    if zlib.crc32(body) != checksum:
        raise StateFormatError("state is damaged: its checksum does not match")
    # The checksum does not cover the header's length, so a header may still be unreadable.
    try:
        header = msgspec.json.decode(bytes(body[:length]), type=_Header)
    except ValueError as error:
        raise StateFormatError(f"state has no readable header: {error}") from error
    sizes = [prod(entry.shape) * np.dtype(entry.dtype).itemsize for entry in header.arrays]
    if length + sum(sizes) != len(body):
        raise StateFormatError(
            f"state has {len(body) - length} bytes of arrays, its header lists {sum(sizes)}"
        )
    arrays: dict[str, NDArray[Any]] = {}
    at = length
    for entry, size in zip(header.arrays, sizes, strict=True):
        flat = np.frombuffer(body[at : at + size], dtype=entry.dtype)
        arrays[entry.name] = flat.reshape(entry.shape).copy()
        at += size
    return arrays, header.fields


def decode_like(
    state: Buffer, own_arrays: Mapping[str, NDArray[Any]], own_fields: Mapping[str, Any]
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """`decode` of a state that must have the parts of another one.

    Raises StateFormatError where its arrays or fields have other names: then another version of
    the code wrote it.
    """
    arrays, fields = decode(state)
    other = (arrays.keys() ^ own_arrays.keys()) | (fields.keys() ^ own_fields.keys())
    if other:
        raise StateFormatError(
            f"state is of another version of equipoise: {', '.join(sorted(other)[:5])} "
            "are on one side only"
        )
    return arrays, fields
