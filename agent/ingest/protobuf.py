"""OTLP in Protocol Buffers: as much of the wire format as its batches need, and its short answers.

A message is a row of fields, each a tag (number and wire type) and a value; fields that are not in
`_FIELDS` are skipped, as everywhere. The messages are those of `agent/ingest/otlp.py`, filled as
OTLP's JSON would fill them: ids in hexadecimal, bytes in base64.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from equipoise.agent.ingest.otlp import (
    MESSAGES,
    AnyValue,
    ArrayValue,
    Event,
    KeyValue,
    KeyValueList,
    LogRecord,
    Logs,
    Resource,
    ResourceLogs,
    ResourceSpans,
    ScopeLogs,
    ScopeSpans,
    Signal,
    Span,
    Status,
    Traces,
)

DEEPEST = 64
"""Messages within messages; only values of attributes can be nested without end."""
MOST_MESSAGES = 500_000
"""Of one body: spans, records, events, attributes, and the values of attributes. An empty one is
two bytes that become a hundred, and a batch of 8192 spans with 30 attributes each has fewer."""
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_fixed64 = struct.Struct("<Q").unpack_from
_double = struct.Struct("<d").unpack_from


class ProtobufError(ValueError):
    """What is no message of Protocol Buffers, in one line."""


class TooManyError(ProtobufError):
    """There are more messages than one body may hold."""


class _Field(NamedTuple):
    """name: of the attribute that it fills. value: of its bytes, where they are no message.
    message: its type; repeated: whether each adds to a list."""

    name: str
    value: Callable[[bytes], Any] | None = None
    message: type | None = None
    repeated: bool = False


def _text(value: bytes) -> str:
    return value.decode()


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _tag(number: int, wire: int) -> int:
    return number << 3 | wire


def _fields(*fields: tuple[int, int, _Field]) -> Mapping[int, _Field]:
    return {_tag(number, wire): field for number, wire, field in fields}


def _list(number: int, name: str, message: type) -> tuple[int, int, _Field]:
    return number, _BYTES, _Field(name, message=message, repeated=True)


def _one(number: int, name: str, message: type) -> tuple[int, int, _Field]:
    return number, _BYTES, _Field(name, message=message)


def _string(
    number: int, name: str, value: Callable[[bytes], Any] = _text
) -> tuple[int, int, _Field]:
    return number, _BYTES, _Field(name, value)


def _number(number: int, wire: int, name: str) -> tuple[int, int, _Field]:
    return number, wire, _Field(name)


_FIELDS: Mapping[type, Mapping[int, _Field]] = MappingProxyType(
    {
        Traces: _fields(_list(1, "resource_spans", ResourceSpans)),
        ResourceSpans: _fields(_one(1, "resource", Resource), _list(2, "scope_spans", ScopeSpans)),
        ScopeSpans: _fields(_list(2, "spans", Span)),
        Span: _fields(
            _string(1, "trace_id", bytes.hex),
            _string(2, "span_id", bytes.hex),
            _string(4, "parent_span_id", bytes.hex),
            _string(5, "name"),
            _number(7, _FIXED64, "start_time_unix_nano"),
            _number(8, _FIXED64, "end_time_unix_nano"),
            _list(9, "attributes", KeyValue),
            _list(11, "events", Event),
            _one(15, "status", Status),
        ),
        Event: _fields(
            _number(1, _FIXED64, "time_unix_nano"),
            _string(2, "name"),
            _list(3, "attributes", KeyValue),
        ),
        Status: _fields(_string(2, "message"), _number(3, _VARINT, "code")),
        Resource: _fields(_list(1, "attributes", KeyValue)),
        Logs: _fields(_list(1, "resource_logs", ResourceLogs)),
        ResourceLogs: _fields(_one(1, "resource", Resource), _list(2, "scope_logs", ScopeLogs)),
        ScopeLogs: _fields(_list(2, "log_records", LogRecord)),
        LogRecord: _fields(
            _number(1, _FIXED64, "time_unix_nano"),
            _number(11, _FIXED64, "observed_time_unix_nano"),
            _list(6, "attributes", KeyValue),
            _string(9, "trace_id", bytes.hex),
            _string(10, "span_id", bytes.hex),
            _string(12, "event_name"),
        ),
        KeyValue: _fields(_string(1, "key"), _one(2, "value", AnyValue)),
        AnyValue: _fields(
            _string(1, "string_value"),
            _number(2, _VARINT, "bool_value"),
            _number(3, _VARINT, "int_value"),
            _number(4, _FIXED64, "double_value"),
            _one(5, "array_value", ArrayValue),
            _one(6, "kvlist_value", KeyValueList),
            _string(7, "bytes_value", _base64),
        ),
        ArrayValue: _fields(_list(1, "values", AnyValue)),
        KeyValueList: _fields(_list(1, "values", KeyValue)),
    }
)
"""Of opentelemetry-proto 1.x, where these numbers are stable."""


def decode(body: bytes, signal: Signal, most: int = MOST_MESSAGES) -> Traces | Logs:
    """The batch of an export. Raises ProtobufError; TooManyError beyond `most` messages."""
    places = iter(range(most))
    message: Traces | Logs = _message(MESSAGES[signal], body, 0, len(body), 0, places)
    return message


def _message(kind: type, data: bytes, at: int, end: int, depth: int, places: Iterator[int]) -> Any:
    """The message in data[at:end]. places: one for each message that may still come."""
    if depth > DEEPEST:
        raise ProtobufError(f"messages are nested more than {DEEPEST} deep")
    if next(places, None) is None:
        raise TooManyError("it has more messages than one body may hold")
    message, fields = kind(), _FIELDS[kind]
    while at < end:
        tag = data[at]
        if tag < 128:
            at += 1
        else:
            tag, at = _varint(data, at, end)
        wire, field = tag & 7, fields.get(tag)
        if wire == _BYTES:
            length = data[at] if at < end else 128
            if length < 128:
                at += 1
            else:
                length, at = _varint(data, at, end)
            stop = at + length
            if stop > end:
                raise ProtobufError("it breaks off")
            if field is not None:
                _set_bytes(message, field, data, at, stop, depth, places)
            at = stop
        elif wire == _VARINT:
            value, at = _varint(data, at, end)
            if field is not None:
                setattr(message, field.name, _signed(field.name, value))
        elif wire in (_FIXED64, _FIXED32):
            stop = at + (8 if wire == _FIXED64 else 4)
            if stop > end:
                raise ProtobufError("it breaks off")
            if field is not None:
                read = _double if field.name == "double_value" else _fixed64
                setattr(message, field.name, read(data, at)[0])
            at = stop
        else:
            raise ProtobufError(f"wire type {wire} is not used in OTLP")
        if tag < 8:
            raise ProtobufError("field number 0 does not exist")
    return message


def _set_bytes(
    message: Any, field: _Field, data: bytes, at: int, stop: int, depth: int, places: Iterator[int]
) -> None:
    if field.message is None:
        assert field.value is not None
        try:
            setattr(message, field.name, field.value(data[at:stop]))
        except UnicodeDecodeError:
            raise ProtobufError(f"{field.name} is not UTF-8") from None
        return
    value = _message(field.message, data, at, stop, depth + 1, places)
    if field.repeated:
        getattr(message, field.name).append(value)
    else:
        setattr(message, field.name, value)


def _signed(name: str, value: int) -> int | bool:
    if name == "bool_value":
        return value != 0
    return value - (1 << 64) if value >> 63 else value


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= end:
            raise ProtobufError("it breaks off")
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            break
        shift += 7
        if shift > 63:
            raise ProtobufError("a number has more than 10 bytes")
    return value & 0xFFFF_FFFF_FFFF_FFFF, at


def answer(rejected: int, message: str) -> bytes:
    """An ExportTraceServiceResponse or ExportLogsServiceResponse, which is empty where there is
    nothing to say. rejected: spans or log records that were not taken."""
    if not rejected and not message:
        return b""
    partial = (_encoded(_tag(1, _VARINT)) + _encoded(rejected)) if rejected else b""
    return _framed(1, partial + (_framed(2, message.encode()) if message else b""))


def status(code: int, message: str) -> bytes:
    """A google.rpc.Status, which is what refusals of OTLP are."""
    return _encoded(_tag(1, _VARINT)) + _encoded(code) + _framed(2, message.encode())


def _framed(number: int, value: bytes) -> bytes:
    return _encoded(_tag(number, _BYTES)) + _encoded(len(value)) + value


def _encoded(value: int) -> bytes:
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    parts.append(value)
    return bytes(parts)
