"""A batch in Protobuf is the same batch as in JSON; whatever else comes is refused."""

from __future__ import annotations

import base64
import random
from typing import Any

import msgspec
import pytest
from otlp_bodies import event, logs, plain_span, protobuf, rating, record, span, traces, varint

from equipoise.agent.ingest import otlp
from equipoise.agent.ingest.protobuf import ProtobufError, TooManyError, answer, decode, status

WHOLE: dict[str, Any] = traces(
    span(
        1,
        {
            "text": "Ünïcode",
            "flag": True,
            "negative": -7,
            "huge": -(2**63),
            "share": 0.1,
            "bytes": b"\x00\xff",
            "list": ["a", 1, [2.5]],
            "map": {"inner": {"deep": 1}},
        },
        parent=2,
        events=[event(score=0.25)],
        status={"code": 2, "message": "late"},
    ),
    plain_span(2, {"http.request.method": "POST"}),
)
RECORDS: dict[str, Any] = logs(record(rating(score=1.0), of=1), record(rating("Tone", None)))

EXPORTED = base64.b64decode(
    "Co4EChgKFgoMc2VydmljZS5uYW1lEgYKBGNoYXQS8QMKKQonb3BlbnRlbGVtZXRyeS5pbnN0cnVtZW50YXRpb24u"
    "b3BlbmFpX3YyEpoDChB8Gim83QekB9GlUbXmVeehEghagE4XOmGtWyoLY2hhdCBncHQtNG8wAzlVZZI/1SrsGEFy"
    "vplA1SrsGEofChVnZW5fYWkub3BlcmF0aW9uLm5hbWUSBgoEY2hhdEogChRnZW5fYWkucmVxdWVzdC5tb2RlbBII"
    "CgZncHQtNG9KGQoNZ2VuX2FpLnN5c3RlbRIICgZvcGVuYWlKHQoOc2VydmVyLmFkZHJlc3MSCwoJMTI3LjAuMC4x"
    "ShMKC3NlcnZlci5wb3J0EgQYw60CSiwKFWdlbl9haS5yZXNwb25zZS5tb2RlbBITChFncHQtNG8tMjAyNC0wOC0w"
    "NkosCh5nZW5fYWkucmVzcG9uc2UuZmluaXNoX3JlYXNvbnMSCioICgYKBHN0b3BKIgoSZ2VuX2FpLnJlc3BvbnNl"
    "LmlkEgwKCmNoYXRjbXBsLTFKHwoZZ2VuX2FpLnVzYWdlLmlucHV0X3Rva2VucxICGGRKIAoaZ2VuX2FpLnVzYWdl"
    "Lm91dHB1dF90b2tlbnMSAhgVegCFAQABAAAaJ2h0dHBzOi8vb3BlbnRlbGVtZXRyeS5pby9zY2hlbWFzLzEuMzAu"
    "MA=="
)
"""A body of OpenTelemetry's exporter for Python 1.45.1, with a span of its instrumentation of
OpenAI 2.4b0, which called a server of ours."""


def test_a_recorded_body_is_read():
    (row,) = otlp.rows(decode(EXPORTED, "traces"))
    assert not isinstance(row, otlp.Rejected)
    assert (row["model"], row["provider"]) == ("gpt-4o", "openai")
    assert (row["input_tokens"], row["output_tokens"]) == (100, 21)
    assert (row["response_id"], row["finish_reason"]) == ("chatcmpl-1", "stop")
    assert row["trace_id"] == "7c1a29bcdd07a407d1a551b5e655e7a1"
    assert row["attributes"]["server.port"] == 38595
    assert 0.0 < row["seconds"] < 1.0


@pytest.mark.parametrize("message", [WHOLE, RECORDS], ids=["traces", "logs"])
def test_both_encodings_are_the_same_batch(message: dict[str, Any]):
    signal: Any = "logs" if "resourceLogs" in message else "traces"
    text = msgspec.json.encode(message)
    assert list(otlp.rows(decode(protobuf(message), signal))) == list(
        otlp.rows(otlp.from_json(text, signal))
    )


def test_fields_that_nobody_knows_are_skipped():
    known = protobuf(WHOLE)
    unknown = (
        varint(200 << 3) + varint(2**64 - 1),
        varint(201 << 3 | 1) + bytes(8),
        varint(202 << 3 | 2) + varint(3) + b"abc",
        varint(203 << 3 | 5) + bytes(4),
        varint(1 << 3) + varint(5),  # a known number with another wire type
    )
    for field in unknown:
        assert decode(field + known + field, "traces") == decode(known, "traces")


def test_a_body_that_breaks_off_anywhere_is_refused():
    whole = protobuf(traces(span(1)))
    for end in range(1, len(whole)):
        # The batch is one field: only the whole of it is whole.
        with pytest.raises(ProtobufError, match=r"^[^\n]+$"):
            decode(whole[:end], "traces")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x0b", "wire type 3"),
        (b"\x0c", "wire type 4"),
        (b"\x0f", "wire type 7"),
        (b"\x00\x01", "field number 0"),
        (b"\x08" + b"\xff" * 11, "more than 10 bytes"),
        (b"\x0a\xff\xff\xff\xff\x0f", "breaks off"),
        (EXPORTED[:-1], "breaks off"),
        (varint(1 << 3 | 2) + varint(2) + b"\x0a\x05", "breaks off"),
    ],
)
def test_what_is_no_message_is_named(data: bytes, words: str):
    with pytest.raises(ProtobufError, match=words):
        decode(data, "traces")


def test_text_is_utf_8_and_nesting_ends():
    bad = protobuf(traces(span(1))).replace(b"gpt-4o-2024", b"gpt-4\xff-2024")
    with pytest.raises(ProtobufError, match="string_value is not UTF-8"):
        decode(bad, "traces")
    value: Any = "x"
    for _ in range(100):
        value = [value]
    with pytest.raises(ProtobufError, match="nested more than 64 deep"):
        decode(protobuf(traces(span(1, {"deep": value}))), "traces")


def test_random_damage_never_raises_anything_else():
    draw = random.Random(11)
    whole = protobuf(WHOLE)
    refused = 0
    for _ in range(600):
        damaged = bytearray(whole)
        for _ in range(draw.randrange(1, 5)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        try:
            list(otlp.rows(decode(bytes(damaged), "traces")))
        except ProtobufError:
            refused += 1
    assert 100 < refused < 600


def test_answers_are_short_messages():
    assert answer(0, "") == b""
    assert answer(300, "why") == b"\x0a\x08\x08\xac\x02\x12\x03why"
    assert answer(0, "why") == b"\x0a\x05\x12\x03why"
    assert status(3, "no") == b"\x08\x03\x12\x02no"


def test_messages_are_counted_while_they_are_decoded():
    # One batch, one scope, and spans of two bytes each.
    empty = b"\x12\x00" * 20
    scoped = b"\x12" + varint(len(empty)) + empty
    whole = b"\x0a" + varint(len(scoped)) + scoped
    batch = decode(whole, "traces", 23)
    assert isinstance(batch, otlp.Traces)
    assert len(batch.resource_spans[0].scope_spans[0].spans) == 20
    with pytest.raises(TooManyError, match="more messages"):
        decode(whole, "traces", 22)
    message = traces(span(1, {"list": ["a", "b"]}))
    objects = msgspec.json.encode(message).count(b"{") - 1  # a scope's name is not read
    decode(protobuf(message), "traces", objects)
    with pytest.raises(TooManyError):
        decode(protobuf(message), "traces", objects - 1)
