"""Spans as exporters write them become calls and evaluations, whichever names they use."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import msgspec
import pytest
from otlp_bodies import (
    END,
    body,
    event,
    logs,
    pairs,
    plain_span,
    rating,
    record,
    span,
    span_id,
    trace_id,
    traces,
)

from equipoise.agent.config.ingest import parse_path
from equipoise.agent.errors import AgentError
from equipoise.agent.ingest import otlp


def rows(message: dict[str, Any], **others: Any) -> list[Any]:
    signal: Any = "logs" if "resourceLogs" in message else "traces"
    return list(otlp.rows(otlp.from_json(body(message), signal), **others))


def test_a_call_has_numbers_seconds_and_the_name_that_was_asked_for():
    (row,) = rows(traces(span(1), resource={"service.name": "chat"}))
    assert row["kind"] == "call"
    assert row["request_id"] == f"{trace_id(1)}-{span_id(1)}"
    assert (row["model"], row["answered_model"]) == ("gpt-4o", "gpt-4o-2024-08-06")
    assert (row["at"], row["seconds"]) == (pytest.approx(1_795_799_526.7996638), 1.5)
    assert (row["output_tokens"], row["input_tokens"]) == (20, None)
    assert row["response_id"] == "answer-1"
    assert row["attributes"]["app.words"] == 12
    assert row["resource"] == {"service.name": "chat"}
    assert parse_path("attributes.app.words").find(row) == 12


GENERATIONS = {
    "until 1.26": {
        "gen_ai.system": "openai",
        "gen_ai.request.model": "gpt-4o",
        "gen_ai.usage.prompt_tokens": 100,
        "gen_ai.usage.completion_tokens": 20,
        "gen_ai.response.id": "a",
    },
    "until 1.36": {
        "gen_ai.operation.name": "chat",
        "gen_ai.system": "openai",
        "gen_ai.request.model": "gpt-4o",
        "gen_ai.usage.input_tokens": 100,
        "gen_ai.usage.output_tokens": 20,
        "gen_ai.response.id": "a",
    },
    "from 1.37": {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-4o",
        "gen_ai.usage.input_tokens": 100,
        "gen_ai.usage.output_tokens": 20,
        "gen_ai.response.id": "a",
    },
    "OpenInference": {
        "openinference.span.kind": "LLM",
        "llm.system": "openai",
        "llm.invocation_parameters": '{"model": "gpt-4o", "temperature": 1}',
        "llm.model_name": "gpt-4o-2024-08-06",
        "llm.token_count.prompt": 100,
        "llm.token_count.completion": 20,
        "output.value": '{"id":"a","choices":[]}',
    },
}


@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_generation_of_names_says_the_same(generation: str):
    (row,) = rows(traces(plain_span(1, GENERATIONS[generation])))
    assert row["kind"] == "call"
    got = [row[name] for name in ("provider", "model", "input_tokens", "output_tokens")]
    assert got == ["openai", "gpt-4o", 100, 20]
    assert row["response_id"] == "a"


@pytest.mark.parametrize(
    ("requested", "answered", "model"),
    [
        ("gpt-4o", "gpt-4o-2024-08-06", "gpt-4o"),
        ("gpt-4", "gpt-4-0613", "gpt-4"),
        ("claude-sonnet-4", "claude-sonnet-4-20250514", "claude-sonnet-4"),
        ("claude-3-5-sonnet-latest", "claude-3-5-sonnet-20241022", "claude-3-5-sonnet-latest"),
        ("openai/gpt-4o", "gpt-4o-2024-08-06", "openai/gpt-4o"),
        ("gpt-4o", "gpt-4o", "gpt-4o"),
        ("gpt-4o", None, "gpt-4o"),
        (None, "gpt-4o-2024-08-06", "gpt-4o-2024-08-06"),
        # A gateway fell back: who answered is not who was asked.
        ("gpt-4o", "gpt-4o-mini", "gpt-4o-mini"),
        ("gpt-4o", "gpt-4o-mini-2024-07-18", "gpt-4o-mini-2024-07-18"),
        ("large", "claude-sonnet-4", "claude-sonnet-4"),
    ],
)
def test_the_model_is_who_answered_under_the_name_asked_for(
    requested: str | None, answered: str | None, model: str
):
    names = {"gen_ai.request.model": requested, "gen_ai.response.model": answered}
    (row,) = rows(traces(span(1, names)))
    assert row["model"] == model


def test_what_is_no_call_is_counted_and_its_place_is_known():
    ignored, parents = Counter[str](), dict[str, str]()
    found = rows(
        traces(
            plain_span(1, {"http.request.method": "POST"}, trace=9),
            plain_span(2, {"gen_ai.operation.name": "embeddings"}, trace=9, parent=1),
            plain_span(3, {"gen_ai.operation.name": "execute_tool"}, trace=9, parent=1),
            plain_span(4, {"openinference.span.kind": "CHAIN"}, trace=9, parent=1),
            span(5, trace=9, parent=4),
        ),
        ignored=ignored,
        parents=parents,
    )
    assert [row["span_id"] for row in found] == [span_id(5)]
    assert ignored == {"spans": 4}
    place = f"{trace_id(9)}-"
    assert parents[place + span_id(5)] == place + span_id(4)
    assert parents[place + span_id(4)] == place + span_id(1)
    assert parents[place + span_id(1)] == ""
    assert rows(logs({"body": {"stringValue": "hello"}}), ignored=ignored) == []
    assert ignored == {"spans": 4, "records": 1}


def test_a_status_is_no_outcome():
    error = {"error.type": "RateLimitError"}
    found = rows(traces(span(1, status={"code": 2}), span(2, error), span(3, status={"code": 1})))
    assert [row["failed"] for row in found] == [True, True, False]
    assert "reward" not in found[0]


def test_what_failed_after_an_answer_began_is_an_answer():
    nothing = {"gen_ai.usage.output_tokens": None, "gen_ai.response.model": None}
    error = {"error.type": "_OTHER"}
    found = rows(
        traces(
            span(1, nothing | error | {"gen_ai.response.id": None}),
            # LiteLLM gives a failed call an id of its own.
            span(
                2, nothing | error | {"gen_ai.response.id": "259f595b-bc51-496e-ac67-4a1d2d430ce8"}
            ),
            # A stream that the user left.
            span(3, error | {"gen_ai.usage.output_tokens": None}),
        )
    )
    assert [row["failed"] for row in found] == [True, True, True]
    assert [row["answered"] for row in found] == [False, False, True]


def test_what_litellm_calls_its_operations_are_calls():
    for operation in ("acompletion", "aresponses", "anthropic_messages", "text_completion"):
        (row,) = rows(traces(span(1, {"gen_ai.operation.name": operation})))
        assert row["kind"] == "call"


def test_a_stream_without_usage_has_no_tokens_rather_than_none_at_all():
    (row,) = rows(traces(span(1, {"gen_ai.usage.output_tokens": None})))
    assert row["output_tokens"] is None
    (row,) = rows(traces(span(1, {"gen_ai.usage.output_tokens": 0})))
    assert row["output_tokens"] == 0


@pytest.mark.parametrize("named", ["eventName", "event.name"])
def test_an_evaluation_comes_on_a_span_or_as_a_record(named: str):
    said = rating(score=0.75, gen_ai__response__id="answer-1")
    if named == "eventName":
        single = record(said, of=1)
    else:  # as SDKs wrote it before records had names
        single = record(said + pairs({"event.name": "gen_ai.evaluation.result"}), of=1)
        single["eventName"] = ""
    call, on_span = rows(traces(span(1, events=[event(score=0.25), {"name": "other"}])))
    (alone,) = rows(logs(single))
    assert call["kind"] == "call"
    for row, score in ((on_span, 0.25), (alone, 0.75)):
        assert row["kind"] == "evaluation"
        assert (row["name"], row["score"], row["label"]) == ("Relevance", score, None)
        assert (row["trace_id"], row["span_id"]) == (trace_id(1), span_id(1))
        assert row["at"] == pytest.approx(END / 1e9)
    assert (on_span["response_id"], alone["response_id"]) == (None, "answer-1")


def test_a_span_that_names_a_decision_is_there_though_it_is_no_call():
    names = {"equipoise.decision_id": "d7", "equipoise.outcome_token": "t"}
    around, call = rows(traces(plain_span(1, names), span(2, names)))
    assert (around["kind"], around["decision_id"], around["outcome_token"]) == (
        "decision",
        "d7",
        "t",
    )
    assert (call["kind"], call["decision_id"], call["outcome_token"]) == ("call", "d7", "t")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"traceId": "xyz"}, "traceId: received 'xyz', expected 32 hexadecimal digits"),
        ({"traceId": "0" * 32}, "traceId and spanId: received nothing"),
        ({"spanId": ""}, "traceId and spanId: received nothing"),
        ({"traceId": "\uff11" * 32}, "expected 32 hexadecimal digits"),
        ({"traceId": "0" * 31 + "g"}, "expected 32 hexadecimal digits"),
        ({"spanId": "AAAAAAAAAAAA"}, "spanId: received 'AAAAAAAAAAAA', expected 16"),
        ({"parentSpanId": span_id(1)}, "parentSpanId: received '0000000000000001', the id of"),
        ({"startTimeUnixNano": "soon"}, "startTimeUnixNano: received 'soon'"),
        ({"endTimeUnixNano": -1}, "endTimeUnixNano: received -1"),
        (
            {"attributes": pairs({"gen_ai.operation.name": "chat", "gen_ai.request.model": ["x"]})},
            "gen_ai.request.model: received a list of 1, expected text",
        ),
        (
            {"attributes": [{"key": "a", "value": {"intValue": "1.5"}}]},
            "intValue: '1.5' is no whole number",
        ),
        (
            {"attributes": [{"key": "a", "value": {"intValue": "1_0"}}]},
            "intValue: '1_0' is no whole number",
        ),
        (
            {"attributes": [{"key": "a", "value": {"doubleValue": " 5 of my words"}}]},
            "doubleValue: a text of 14 characters is no number",
        ),
        ({"spanId": "０" * 15 + "１"}, "spanId: received '０"),
        (
            {
                "attributes": pairs(
                    {"gen_ai.operation.name": "chat", "gen_ai.usage.output_tokens": "x"}
                )
            },
            "gen_ai.usage.output_tokens: received what is no number",
        ),
        (
            {
                "attributes": [
                    *pairs({"gen_ai.operation.name": "chat"}),
                    {"key": "gen_ai.usage.output_tokens", "value": {"intValue": "9" * 400}},
                ]
            },
            "gen_ai.usage.output_tokens: received what is no number",
        ),
        (
            {
                "attributes": pairs(
                    {"gen_ai.operation.name": "chat", "gen_ai.response.id": "a" * 201}
                )
            },
            "gen_ai.response.id: received 201 characters, at most 200",
        ),
    ],
)
def test_a_span_that_cannot_be_read_is_refused_alone(change: dict[str, Any], words: str):
    refused, read = rows(traces(span(1) | change, span(2)))
    assert isinstance(refused, otlp.Rejected)
    assert words in refused.reason
    assert read["span_id"] == span_id(2)


def test_ids_may_be_upper_case_or_base64_as_some_exporters_write_them():
    upper = span(0xABCDEF) | {"traceId": trace_id(0xABCDEF).upper()}
    (row,) = rows(traces(upper))
    assert row["trace_id"] == trace_id(0xABCDEF)
    based = span(1) | {"traceId": "AAAAAAAAAAAAAAAAAKvN7w==", "spanId": "AAAAAAAAAAE="}
    (row,) = rows(traces(based))
    assert (row["trace_id"], row["span_id"]) == (trace_id(0xABCDEF), span_id(1))


def test_only_ids_that_can_be_read_have_a_place_and_it_does_not_depend_on_how_they_are_written():
    parents: dict[str, str] = {}
    long = plain_span(1, {}) | {"traceId": "ab" * 500_000}
    own = plain_span(2, {}, parent=2)
    based = plain_span(3, {}, trace=1) | {"traceId": "AAAAAAAAAAAAAAAAAKvN7w=="}
    based |= {"spanId": "AAAAAAAAAAM=", "parentSpanId": "AAAAAAAAAAE="}
    upper = plain_span(0xB, {}, trace=0xABCDEF) | {"spanId": span_id(0xB).upper()}
    rows(traces(long, own, based, upper), parents=parents)
    place = f"{trace_id(0xABCDEF)}-"
    assert parents == {place + span_id(3): place + span_id(1), place + span_id(0xB): ""}


def test_a_line_of_a_file_is_a_batch_and_its_evaluations_stand_beside_the_calls():
    line = traces(
        span(
            1,
            events=[event(score=0.25), event("Tone", None, gen_ai__evaluation__score__label="ok")],
        ),
        span(2, trace=3, parent=3),
        span(3, {"gen_ai.response.id": None}),
        span(4, {"gen_ai.response.id": "answer-1"}),
        plain_span(5, {"db.system": "x"}),
    )
    found = [row for row in otlp.rows_of(line) if isinstance(row, dict)]
    assert [row["span_id"] for row in found] == [span_id(1), span_id(3)]
    assert (found[0]["scores"], found[0]["labels"]) == ({"Relevance": 0.25}, {"Tone": "ok"})
    assert (found[1]["scores"], found[1]["labels"]) == ({}, {})
    (alone,) = otlp.rows_of(logs(record(rating(), of=1)))
    assert isinstance(alone, dict)
    assert alone["kind"] == "evaluation"
    with pytest.raises(AgentError, match="no batch of OTLP"):
        list(otlp.rows_of({"resourceSpans": 3}))
    assert otlp.recognised(line)
    assert not otlp.recognised({"model": "x"})


def test_a_span_of_a_file_that_cannot_be_read_takes_no_other_with_it():
    line = traces(span(1), span(2, {"gen_ai.usage.output_tokens": "x"}), span(3, {"x": 1}))
    first, refused, third = otlp.rows_of(line)
    assert isinstance(refused, otlp.Rejected)
    assert "output_tokens" in refused.reason
    assert isinstance(first, dict)
    assert isinstance(third, dict)
    assert (first["span_id"], third["span_id"]) == (span_id(1), span_id(3))


def test_whatever_comes_instead_is_refused_in_one_line():
    draw = random.Random(7)
    whole = body(traces(span(1, events=[event()]), span(2)))
    refused = 0
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(draw.randrange(1, 6)):
            at = draw.randrange(len(damaged))
            damaged[at : at + draw.randrange(3)] = draw.choice(
                [b"", b'"', b"{", b"1", b"null", b"[]", b"\xff", draw.randbytes(2)]
            )
        try:
            for row in otlp.rows(otlp.from_json(bytes(damaged), "traces")):
                if isinstance(row, otlp.Rejected):
                    refused += 1
                    assert "\n" not in row.reason
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            refused += 1
    assert 200 < refused < 800
