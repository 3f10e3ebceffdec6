"""Versioned bytes for named arrays: how moments and checkpoints are kept.

Layout: magic (4 bytes), version (u16), header length (u32), CRC-32 of all that follows (u32),
header (JSON: name, dtype and shape of every array, and free text fields), then the arrays' bytes
in that order, little-endian, C order. No pickle.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from math import prod
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

MAGIC = b"EQST"
VERSION = 1
_PREFIX = struct.Struct("<4sHII")
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
    parts: list[bytes] = []
    listed: list[dict[str, Any]] = []
    for name, array in arrays.items():
        dtype = array.dtype.newbyteorder("<") if array.dtype.itemsize > 1 else array.dtype
        if dtype.str not in _DTYPES:
            raise StateFormatError(f"array {name}: dtype {array.dtype} is not kept in states")
        listed.append({"name": name, "dtype": dtype.str, "shape": array.shape})
        parts.append(np.ascontiguousarray(array, dtype=dtype).tobytes())
    header = msgspec.json.encode({"arrays": listed, "fields": dict(fields or {})})
    body = b"".join([header, *parts])
    return _PREFIX.pack(MAGIC, VERSION, len(header), zlib.crc32(body)) + body


def decode(state: bytes) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
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


def decode_like(state: bytes, own: bytes) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """`decode` of a state that must have the parts of another one.

    Raises StateFormatError where its arrays or fields have other names: then another version of
    the code wrote it.
    """
    arrays, fields = decode(state)
    own_arrays, own_fields = decode(own)
    other = (arrays.keys() ^ own_arrays.keys()) | (fields.keys() ^ own_fields.keys())
    if other:
        raise StateFormatError(
            f"state is of another version of equipoise: {', '.join(sorted(other)[:5])} "
            "are on one side only"
        )
    return arrays, fields
