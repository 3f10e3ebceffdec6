"""Versioned bytes for named arrays: how moments and checkpoints are kept.

Layout: magic (4 bytes), version (u16), header length (u32), CRC-32 of all that follows (u32),
header (JSON: name, dtype and shape of every array, and free text fields), then the arrays' bytes
in that order, little-endian, C order. No pickle.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

MAGIC = b"EQST"
VERSION = 1
_PREFIX = struct.Struct("<4sHII")
_DTYPES = {"<f8", "<i8", "|b1"}


class StateFormatError(ValueError):
    """The bytes are not a state this version can read."""


def encode(arrays: Mapping[str, NDArray[Any]], fields: Mapping[str, Any] | None = None) -> bytes:
    """Bytes of named arrays (float64, int64 or bool) and JSON-able fields."""
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
    body = memoryview(state)[_PREFIX.size :]
    if zlib.crc32(body) != checksum:
        raise StateFormatError("state is damaged: its checksum does not match")
    header = msgspec.json.decode(bytes(body[:length]))
    arrays: dict[str, NDArray[Any]] = {}
    at = length
    for entry in header["arrays"]:
        dtype = np.dtype(entry["dtype"])
        size = int(np.prod(entry["shape"], dtype=np.int64)) * dtype.itemsize
        flat = np.frombuffer(body[at : at + size], dtype=dtype)
        arrays[entry["name"]] = flat.reshape(entry["shape"]).copy()
        at += size
    return arrays, header["fields"]
