"""Batches of OTLP for tests, in JSON as exporters write it, and in Protobuf, byte by byte."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Sequence
from typing import Any

START, END = 1_795_799_526_799_663_667, 1_795_799_528_299_663_667
EVALUATION = "gen_ai.evaluation.result"
CALL = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": "gpt-4o",
    "gen_ai.response.model": "gpt-4o-2024-08-06",
    "gen_ai.usage.output_tokens": 20,
    "app.words": 12,
}


def span_id(number: int) -> str:
    return f"{number:016x}"


def trace_id(number: int) -> str:
    return f"{number:032x}"


def span(
    number: int,
    attributes: dict[str, Any] | None = None,
    *,
    trace: int | None = None,
    parent: int | None = None,
    events: Sequence[Any] = (),
    **others: Any,
) -> dict[str, Any]:
    """A span of its own trace, of a model call unless its attributes say otherwise."""
    return {
        "traceId": trace_id(number if trace is None else trace),
        "spanId": span_id(number),
        "parentSpanId": "" if parent is None else span_id(parent),
        "name": "chat gpt-4o",
        "kind": 3,
        "startTimeUnixNano": str(START),
        "endTimeUnixNano": str(END),
        "attributes": pairs(CALL | {"gen_ai.response.id": f"answer-{number}"} | (attributes or {})),
        "events": list(events),
        "status": {},
        **others,
    }


def plain_span(number: int, attributes: dict[str, Any], **others: Any) -> dict[str, Any]:
    """A span that is no model call."""
    return span(number, **others) | {"attributes": pairs(attributes)}


def rating(name: str = "Relevance", score: float | None = 0.5, **more: Any) -> list[Any]:
    said = {"gen_ai.evaluation.name": name, "gen_ai.evaluation.score.value": score}
    return pairs(said | {key.replace("__", "."): value for key, value in more.items()})


def event(*args: Any, **more: Any) -> dict[str, Any]:
    return {"timeUnixNano": str(END), "name": EVALUATION, "attributes": rating(*args, **more)}


def record(attributes: list[Any], of: int | None = None, trace: int | None = None) -> Any:
    """A log record of an evaluation; of: the number of the span that it is about."""
    about = {}
    if of is not None:
        about = {"traceId": trace_id(of if trace is None else trace), "spanId": span_id(of)}
    return {"timeUnixNano": str(END), "eventName": EVALUATION, "attributes": attributes, **about}


def traces(*spans: Any, resource: dict[str, Any] | None = None) -> dict[str, Any]:
    attributes = pairs(resource or {"service.name": "chat"})
    scope = {"scope": {"name": "test"}, "spans": list(spans)}
    return {"resourceSpans": [{"resource": {"attributes": attributes}, "scopeSpans": [scope]}]}


def logs(*records: Any) -> dict[str, Any]:
    return {"resourceLogs": [{"scopeLogs": [{"logRecords": list(records)}]}]}


def body(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode()


def pairs(values: dict[str, Any]) -> list[Any]:
    """Attributes; None is left out."""
    return [
        {"key": key, "value": any_value(value)}
        for key, value in values.items()
        if value is not None
    ]


def any_value(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        return {"stringValue": value}
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    if isinstance(value, bytes):
        return {"bytesValue": base64.b64encode(value).decode()}
    if isinstance(value, list):
        return {"arrayValue": {"values": [any_value(each) for each in value]}}
    return {"kvlistValue": {"values": pairs(value)}}


_NUMBERS: dict[str, dict[str, tuple[int, Any]]] = {
    "traces": {"resourceSpans": (1, "resource_spans")},
    "resource_spans": {"resource": (1, "resource"), "scopeSpans": (2, "scope_spans")},
    "resource": {"attributes": (1, "pair")},
    "scope_spans": {"scope": (1, "scope"), "spans": (2, "span")},
    "scope": {"name": (1, str)},
    "span": {
        "traceId": (1, bytes.fromhex),
        "spanId": (2, bytes.fromhex),
        "parentSpanId": (4, bytes.fromhex),
        "name": (5, str),
        "kind": (6, int),
        "startTimeUnixNano": (7, "time"),
        "endTimeUnixNano": (8, "time"),
        "attributes": (9, "pair"),
        "events": (11, "event"),
        "status": (15, "status"),
    },
    "event": {"timeUnixNano": (1, "time"), "name": (2, str), "attributes": (3, "pair")},
    "status": {"message": (2, str), "code": (3, int)},
    "logs": {"resourceLogs": (1, "resource_logs")},
    "resource_logs": {"resource": (1, "resource"), "scopeLogs": (2, "scope_logs")},
    "scope_logs": {"logRecords": (2, "record")},
    "record": {
        "timeUnixNano": (1, "time"),
        "attributes": (6, "pair"),
        "traceId": (9, bytes.fromhex),
        "spanId": (10, bytes.fromhex),
        "observedTimeUnixNano": (11, "time"),
        "eventName": (12, str),
    },
    "pair": {"key": (1, str), "value": (2, "any")},
    "any": {
        "stringValue": (1, str),
        "boolValue": (2, int),
        "intValue": (3, int),
        "doubleValue": (4, "double"),
        "arrayValue": (5, "array"),
        "kvlistValue": (6, "list"),
        "bytesValue": (7, base64.b64decode),
    },
    "array": {"values": (1, "any")},
    "list": {"values": (1, "pair")},
}


def protobuf(message: dict[str, Any], kind: str = "") -> bytes:
    """The same batch in Protobuf; written for these tests alone."""
    kind = kind or ("logs" if "resourceLogs" in message else "traces")
    out = b""
    for name, value in message.items():
        number, form = _NUMBERS[kind][name]
        for each in value if isinstance(value, list) else [value]:
            if isinstance(form, str) and form in _NUMBERS:
                text = protobuf(each, form)
                out += varint(number << 3 | 2) + varint(len(text)) + text
            elif form == "time":
                out += varint(number << 3 | 1) + struct.pack("<Q", int(each))
            elif form == "double":
                out += varint(number << 3 | 1) + struct.pack("<d", each)
            elif form is int:
                out += varint(number << 3) + varint(int(each) % 2**64)
            else:
                text = each.encode() if form is str else form(each)
                out += varint(number << 3 | 2) + varint(len(text)) + text
    return out


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])
