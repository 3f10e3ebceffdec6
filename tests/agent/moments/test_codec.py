"""Bytes of moments come back bit for bit; anything else is refused with StateFormatError."""

from __future__ import annotations

import pickle
import struct
import zlib
from typing import Any

import numpy as np
import pytest

from equipoise.agent.moments.codec import MAGIC, VERSION, StateFormatError, decode, encode
from equipoise.agent.moments.state import Moments
from tests.agent.moments.raw_rows import SHAPE
from tests.agent.moments.table import CASES, assert_same_bits

PREFIX = struct.Struct("<4sHII")
MOMENTS = CASES[-1]


def some_moments() -> Moments:
    moments: Moments = MOMENTS.of([MOMENTS.rows(np.random.default_rng(1), 80)])
    return moments


def framed(body: bytes, length: int, version: int = VERSION, magic: bytes = MAGIC) -> bytes:
    """Bytes with a right checksum around any body."""
    return PREFIX.pack(magic, version, length, zlib.crc32(body)) + body


def test_moments_round_trip_bit_for_bit() -> None:
    moments = some_moments()
    moments.routing.mean[:] = [np.nan, -0.0, np.inf, -np.inf]
    moments.arms.mean[0, 0] = 5e-324
    state = moments.to_bytes()
    back = Moments.from_bytes(state)
    assert back.dimensions == moments.dimensions
    assert_same_bits(back, moments)
    assert back.to_bytes() == state


def test_empty_moments_round_trip() -> None:
    empty = Moments.empty(SHAPE)
    assert_same_bits(Moments.from_bytes(empty.to_bytes()), empty)


def test_read_moments_go_on_as_the_written_ones() -> None:
    moments = some_moments()
    back = Moments.from_bytes(moments.to_bytes())
    more = MOMENTS.rows(np.random.default_rng(2), 80)
    MOMENTS.update(moments, more)
    MOMENTS.update(back, more)
    assert_same_bits(back, moments)


def test_bytes_have_the_same_length_after_any_number_of_rows() -> None:
    few = len(some_moments().to_bytes())
    moments = some_moments()
    batch = MOMENTS.rows(np.random.default_rng(3), 1000)
    for _ in range(100):
        MOMENTS.update(moments, batch)
    assert len(moments.to_bytes()) == few == len(Moments.empty(SHAPE).to_bytes())


def test_every_flipped_bit_is_noticed() -> None:
    state = some_moments().to_bytes()
    damaged = bytearray(state)
    for position in range(len(state)):
        for bit in range(8) if position < PREFIX.size else (position % 8,):
            damaged[position] ^= 1 << bit
            with pytest.raises(StateFormatError):
                Moments.from_bytes(bytes(damaged))
            damaged[position] ^= 1 << bit
    assert_same_bits(Moments.from_bytes(bytes(damaged)), some_moments())


def test_every_cut_is_noticed() -> None:
    state = some_moments().to_bytes()
    for length in range(len(state)):
        with pytest.raises(StateFormatError):
            Moments.from_bytes(state[:length])
    with pytest.raises(StateFormatError):
        Moments.from_bytes(state + b"\0")


def headed(header: bytes, arrays: bytes = b"") -> bytes:
    """A right prefix and checksum around any header."""
    return framed(header + arrays, len(header))


FOREIGN = {
    "nothing": b"",
    "text": b"not a state, and long enough to hold a prefix",
    "pickle": pickle.dumps(np.zeros(9)),
    "other magic": framed(b"{}", 2, magic=b"EQXX"),
    "header no JSON": headed(b"no JSON"),
    "header no UTF-8": headed(b'{"arrays":[],"fields":{"a":"\xff"}}'),
    "header empty": headed(b"{}"),
    "header a list": headed(b"[]"),
    "header longer than all": framed(b'{"arrays":[],"fields":{}}', 99),
    "arrays a number": headed(b'{"arrays":7,"fields":{}}'),
    "fields a list": headed(b'{"arrays":[],"fields":[]}'),
    "array without shape": headed(b'{"arrays":[{"name":"a"}],"fields":{}}'),
    "objects": headed(b'{"arrays":[{"name":"a","dtype":"|O","shape":[1]}],"fields":{}}', bytes(8)),
    "too few": headed(b'{"arrays":[{"name":"a","dtype":"<f8","shape":[2]}],"fields":{}}', bytes(8)),
    "too many": headed(
        b'{"arrays":[{"name":"a","dtype":"<f8","shape":[1]}],"fields":{}}', bytes(9)
    ),
    "negative": headed(
        b'{"arrays":[{"name":"a","dtype":"<f8","shape":[-1]}],"fields":{}}', bytes(8)
    ),
}


@pytest.mark.parametrize("foreign", FOREIGN.values(), ids=FOREIGN)
def test_foreign_bytes_are_refused(foreign: bytes) -> None:
    with pytest.raises(StateFormatError):
        decode(foreign)
    with pytest.raises(StateFormatError):
        Moments.from_bytes(foreign)


def test_a_handmade_header_is_read() -> None:
    """So that the headers above are refused for what is wrong in them."""
    header = b'{"arrays":[{"name":"a","dtype":"<f8","shape":[1]}],"fields":{}}'
    arrays, fields = decode(headed(header, struct.pack("<d", 2.5)))
    assert arrays["a"].tolist() == [2.5]
    assert fields == {}


def test_newer_versions_are_refused_with_what_to_do() -> None:
    body = some_moments().to_bytes()[PREFIX.size :]
    length = PREFIX.unpack_from(some_moments().to_bytes())[2]
    with pytest.raises(StateFormatError, match=rf"version {VERSION + 1}.*upgrade"):
        Moments.from_bytes(framed(body, length, version=VERSION + 1))
    with pytest.raises(StateFormatError, match="version 0"):
        Moments.from_bytes(framed(body, length, version=0))
    assert_same_bits(Moments.from_bytes(framed(body, length)), some_moments())


FIELDS = {"models": 3, "context": 2, "features": 5, "groups": 4}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"models": 3},
        FIELDS | {"color": 1},
        FIELDS | {"models": "3"},
        FIELDS | {"models": None},
        FIELDS | {"models": -3},
        FIELDS | {"models": 3.5},
        FIELDS | {"models": 4},
    ],
)
def test_states_of_something_else_are_refused(fields: dict[str, Any]) -> None:
    arrays, _ = decode(some_moments().to_bytes())
    with pytest.raises(StateFormatError):
        Moments.from_bytes(encode(arrays, fields))


def test_missing_misshapen_or_retyped_arrays_are_refused_by_name() -> None:
    arrays, fields = decode(some_moments().to_bytes())
    for name, array in arrays.items():
        for wrong in (None, array[..., :-1], array[None], array.astype(np.int64)):
            changed = {key: other for key, other in arrays.items() if key != name}
            if wrong is not None:
                changed[name] = wrong
            with pytest.raises(StateFormatError, match=name):
                Moments.from_bytes(encode(changed, fields))


def test_named_arrays_and_fields_round_trip() -> None:
    arrays = {
        "floats": np.array([[1.5, np.nan], [np.inf, -0.0]]),
        "swapped": np.arange(3.0).astype(">f8"),
        "integers": np.arange(-2, 3, dtype=np.int64).reshape(1, 5),
        "flags": np.array([True, False]),
        "none": np.zeros((0, 4)),
        "scalar": np.array(2.5),
        "strided": np.arange(12.0).reshape(3, 4)[:, ::2],
    }
    back, fields = decode(encode(arrays, {"note": "é", "list": [1, None]}))
    assert fields == {"note": "é", "list": [1, None]}
    assert list(back) == list(arrays)
    for name, array in arrays.items():
        assert back[name].shape == array.shape
        np.testing.assert_array_equal(back[name], array)
        assert back[name].flags.writeable
        assert not np.shares_memory(back[name], array)
    assert np.signbit(back["floats"][1, 1])


@pytest.mark.parametrize("array", [np.zeros(2, dtype=np.float32), np.array(["a"]), np.array([{}])])
def test_other_types_are_not_written(array: np.ndarray[Any, Any]) -> None:
    with pytest.raises(StateFormatError, match="color"):
        encode({"color": array})
