"""OTLP as exporters speak it to a daemon: answers, retries, and what ends up in the log."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from otlp_bodies import (
    body,
    event,
    logs,
    pairs,
    plain_span,
    protobuf,
    rating,
    record,
    span,
    trace_id,
    traces,
    varint,
)
from running import Answer, Running, refused, running, start, until

from equipoise.agent.client import Choice
from equipoise.agent.ingest.protobuf import MOST_MESSAGES
from equipoise.agent.service.handlers.otlp import Otlp
from equipoise.agent.service.http.access import ANYBODY
from equipoise.agent.service.telemetry import Counters, Log

CONFIG = """
name = "chat"
models = [{name = "gpt-4o"}, {name = "gpt-4o-mini"}]
[reward]
low = 0.0
high = 1.0
window = 3600
[features]
context = [
  {type = "number", name = "words", low = 0, scale = 100},
  {type = "text", name = "prompt", statistics = ["words"]},
]
outputs = [{type = "number", name = "tokens", low = 0}]
[policy]
assignment = "uniform"
rate = 0.5
[[ingest]]
name = "spans"
[ingest.features]
words = "attributes.app.words"
prompt = "attributes.app.prompt"
[ingest.outputs]
tokens = "output_tokens"
"""
SETTINGS = 'mapping = "spans"\nevaluation = "Relevance"\nonly = {"service.name" = "chat"}\n'
SERVICE = f"[service.otlp]\n{SETTINGS}settle_seconds = 0.5\nwait_seconds = 3600\n"
PROTOBUF, JSON = "application/x-protobuf", "application/json"
SECRET = "the words of a user"
WORDS = {"app.prompt": SECRET}
TOKEN = "route-token-of-length"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("otlp"), SERVICE, config=CONFIG) as started:
        yield started


def send(daemon: Running, message: dict[str, Any], encoding: str = JSON, **headers: str) -> Answer:
    path = "/v1/logs" if "resourceLogs" in message else "/v1/traces"
    data = body(message) if encoding == JSON else protobuf(message)
    return daemon.ask("POST", path, data, **{"Content-Type": encoding, **headers})


def counts(daemon: Running) -> Any:
    return daemon.ask("GET", "/v1/otlp").json


def decide(daemon: Running, name: str, **options: Any) -> Choice:
    request = {"request_id": name, "routed": "gpt-4o", "features": {"words": 3, "prompt": "hi"}}
    made = daemon.ask("POST", "/v1/decide", request, **options).json
    names = ("request_id", "model", "randomized", "propensity", "decision_id", "outcome_token")
    return Choice(routed="gpt-4o", **{each: made.get(each) for each in names})


def call(number: int, **more: Any) -> dict[str, Any]:
    return span(number, WORDS | more)


def parts(daemon: Running, choice: Choice) -> list[Any]:
    found: list[Any] = daemon.ask("GET", f"/v1/decisions/{choice.decision_id}").json["outcomes"]
    return found


@pytest.mark.parametrize("encoding", [JSON, PROTOBUF])
def test_spans_become_rows_once_and_by_whichever_encoding(daemon: Running, encoding: str):
    first = 100 if encoding == JSON else 200
    before = counts(daemon)
    batch = traces(
        *(call(first + number) for number in range(5)),
        plain_span(first + 9, {"http.request.method": "GET"}),
    )
    said = logs(
        record(rating(score=0.25), of=first),
        record(rating(score=0.5, gen_ai__response__id=f"answer-{first + 1}")),
        record(rating("Politeness", 0.0), of=first),
    )
    packed = gzip.compress(body(said) if encoding == JSON else protobuf(said))
    header = {"Content-Type": encoding, "Content-Encoding": "gzip"}
    for _ in range(2):  # an exporter that did not see the answer
        answer = send(daemon, batch, encoding)
        assert (answer.status, answer.headers["content-type"]) == (200, encoding)
        assert answer.body == (b"{}" if encoding == JSON else b"")
        assert daemon.ask("POST", "/v1/logs", packed, **header).status == 200
    after = until(
        lambda: (now := counts(daemon))["observations"] == before["observations"] + 2 and now
    )
    grown = {name: after[name] - before[name] for name in after if name != "last_refusal"}
    assert {name: count for name, count in grown.items() if count} == {
        "waiting_calls": 3,
        "calls": 5,
        "evaluations": 2,
        "repeats": 7,
        "ignored": 2,
        "other": 2,
        "observations": 2,
    }


def test_a_decision_gets_the_outcome_and_the_reward_of_its_call(daemon: Running):
    own, around = decide(daemon, "own"), decide(daemon, "around")
    attributes = own.span_attributes("chat", unit_id="u")
    assert attributes["feature_flag.result.variant"] == own.model
    named = {"gen_ai.request.model": own.model, "gen_ai.response.model": None}
    # Neither of the two has the features of the request: the decision has them.
    send(
        daemon,
        traces(
            span(301, attributes | named | {"app.words": None}, events=[event(score=0.75)]),
            plain_span(310, around.span_attributes("chat")),
            plain_span(311, {"openinference.span.kind": "CHAIN"}, trace=310, parent=310),
            span(
                312,
                {"app.words": None, "gen_ai.response.model": "gpt-4o-mini"},
                trace=310,
                parent=311,
            ),
        ),
    )
    by_id = rating(score=1.0) + pairs(
        {"equipoise.decision_id": around.decision_id, "equipoise.outcome_token": "wrong"}
    )
    refusal = send(daemon, logs(record(by_id)), PROTOBUF)
    assert refusal.status == 200
    assert b"outcome_token: this is not the one that came with decision" in refusal.body
    by_id[-1]["value"] = {"stringValue": around.outcome_token}
    assert send(daemon, logs(record(by_id)), PROTOBUF).body == b""
    until(lambda: len(parts(daemon, own)) >= 2 and len(parts(daemon, around)) >= 2)
    served = {choice: {} for choice in (own.request_id, around.request_id)}
    for choice in (own, around):
        for part in parts(daemon, choice):
            for name in ("served", "outputs", "reward"):
                if part[name] is not None:
                    assert name not in served[choice.request_id]
                    served[choice.request_id][name] = part[name]
    assert served["own"] == {"served": own.model, "outputs": [20.0], "reward": 0.75}
    # A gateway fell back: another model answered than the one drawn, and the log says so.
    assert served["around"] == {"served": "gpt-4o-mini", "outputs": [20.0], "reward": 1.0}


def test_an_attempt_that_failed_says_nothing_of_the_decision(daemon: Running):
    choice = decide(daemon, "failing")
    names = choice.span_attributes("chat")
    failed = {"error.type": "RateLimitError", "gen_ai.response.id": None}
    failed |= {"gen_ai.usage.output_tokens": None, "gen_ai.response.model": None}
    before = counts(daemon)["failed"]
    send(daemon, traces(span(401, names | failed, status={"code": 2}), span(402, names, trace=401)))
    until(lambda: counts(daemon)["failed"] == before + 1 and parts(daemon, choice))
    assert [part["outputs"] for part in parts(daemon, choice)] == [[20.0]]


def test_what_is_refused_is_counted_and_named_and_the_rest_is_kept(daemon: Running):
    before = counts(daemon)
    batch = traces(
        call(501),
        span(502),  # no prompt
        call(503, **{"gen_ai.request.model": "other", "gen_ai.response.model": None}),
        call(504, **{"gen_ai.usage.output_tokens": None}),
        call(505) | {"traceId": "?"},
        call(506, **{"equipoise.decision_id": "d999999"}),
    )
    partial = send(daemon, batch).json["partialSuccess"]
    assert partial["rejectedSpans"] == "5"
    for words in ("features.prompt: received nothing", "model: 'other' is not one of gpt-4o"):
        assert words in partial["errorMessage"]
    assert "and 2 more reasons" in partial["errorMessage"]
    said = logs(
        record(rating(score=7.0), of=501),
        record(rating(score=None), of=501),
        record(rating(score=0.5)),
        record([], of=501),
    )
    partial = send(daemon, said).json["partialSuccess"]
    assert partial["rejectedLogRecords"] == "4"
    for words in (
        "reward: 7 is not from 0 to 1",
        "score.value: 'Relevance' has none",
        "neither span",
    ):
        assert words in partial["errorMessage"]
    after = counts(daemon)
    assert (after["calls"], after["rejected"]) == (before["calls"] + 1, before["rejected"] + 9)
    assert "gen_ai.evaluation.name" in after["last_refusal"] or "neither" in after["last_refusal"]


@pytest.mark.parametrize("encoding", [JSON, PROTOBUF])
def test_a_hostile_row_takes_no_other_row_with_it(daemon: Running, encoding: str):
    first = 520 if encoding == JSON else 540
    before = counts(daemon)
    good = [call(first + number) for number in range(3)]
    bad = [
        span(first + 10 + at, WORDS | {"equipoise.decision_id": name})
        for at, name in enumerate(["d" + "9" * 5000, "d" + "9" * 19, "d01", "d\u0661", "my secret"])
    ]
    answer = send(daemon, traces(*good[:1], *bad, *good[1:]), encoding)
    assert answer.status == 200
    assert b"equipoise.decision_id: a text of 5001 characters does not exist" in answer.body
    assert b"secret" not in answer.body
    after = counts(daemon)
    assert after["calls"] == before["calls"] + len(good)
    assert after["rejected"] == before["rejected"] + len(bad)


def test_a_score_that_is_no_float_is_refused_by_name(daemon: Running):
    huge = rating(score=None)
    huge += [{"key": "gen_ai.evaluation.score.value", "value": {"intValue": "9" * 400}}]
    before = counts(daemon)
    answer = send(daemon, logs(record(huge, of=561), record(rating(score=0.5), of=562)))
    partial = answer.json["partialSuccess"]
    assert partial["rejectedLogRecords"] == "1"
    words = "gen_ai.evaluation.score.value: a number of 1329 bits is too large a number"
    assert partial["errorMessage"] == words
    assert counts(daemon)["evaluations"] == before["evaluations"] + 1


def test_a_fault_of_ours_is_logged_and_costs_one_row(monkeypatch: pytest.MonkeyPatch):
    class Whole:
        def note(self, arrivals: list[Any], now: float) -> dict[str, int]:
            return {"calls": len(arrivals)}

    stream = io.StringIO()
    counters = Counters()
    taking = Otlp(
        cast(Any, None),
        cast(Any, None),
        counters,
        Log(stream=stream),
        lambda: 0.0,
        lambda: "",
        joining=cast(Any, Whole()),
    )

    def arrival(row: Any, *_: Any) -> Any:
        if row["span_id"].endswith("2"):
            raise ZeroDivisionError("the words of a user")
        return row

    monkeypatch.setattr(taking, "_arrival", arrival)
    message = body(traces(call(1), call(2), call(3)))
    answer = asyncio.run(taking.take("traces", JSON.encode(), message, ANYBODY))
    partial = json.loads(answer)["partialSuccess"]
    assert partial["rejectedSpans"] == "1"
    assert "its log says why" in partial["errorMessage"]
    assert counters.spans["rejected"] == 1
    assert "ZeroDivisionError" in stream.getvalue()
    assert "words" not in stream.getvalue()


def test_the_words_of_a_user_are_in_no_answer(daemon: Running):
    said = {"listValue": [SECRET]}
    batch = traces(
        call(581, **{"app.words": SECRET}),
        call(582, **{"user.id": [SECRET]}),
        call(583, **{"gen_ai.request.model": SECRET, "gen_ai.response.model": None}),
        call(584, **{"equipoise.decision_id": SECRET}),
        call(585, **{"gen_ai.response.id": said}),
        call(586) | {"spanId": SECRET},
    )
    for one in batch["resourceSpans"][0]["scopeSpans"][0]["spans"]:
        answer = send(daemon, traces(one))
        assert answer.json["partialSuccess"]["rejectedSpans"] == "1"
        for text in (answer.body.decode(), counts(daemon)["last_refusal"]):
            assert SECRET not in text
            assert "the words" not in text
    for label in (SECRET, [SECRET]):
        said_of = rating(SECRET, None, gen_ai__evaluation__score__label=label)
        assert SECRET not in send(daemon, logs(record(said_of, of=587))).body.decode()


def test_spans_of_something_else_do_not_count(daemon: Running):
    before = counts(daemon)
    answer = send(daemon, traces(call(601), resource={"service.name": "summaries"}))
    assert answer.body == b"{}"
    after = counts(daemon)
    assert (after["other"], after["calls"]) == (before["other"] + 1, before["calls"])


@pytest.mark.parametrize(
    ("data", "headers", "status", "words"),
    [
        (b"no JSON", {"Content-Type": JSON}, 400, "the body is not OTLP in JSON"),
        (b"[" * 100_000, {"Content-Type": JSON}, 400, "the body is not OTLP in JSON"),
        (b'{"resourceSpans": 3}', {"Content-Type": JSON}, 400, "Expected `array`"),
        (b"\x0a\x7f", {"Content-Type": PROTOBUF}, 400, "it breaks off"),
        (b"{}", {"Content-Type": "text/plain"}, 415, "application/x-protobuf"),
        (b"{}", {"Content-Type": JSON, "Content-Encoding": "br"}, 415, "gzip, zstd, deflate"),
        (b"{}", {"Content-Type": JSON, "Content-Encoding": "gzip"}, 400, "not gzip"),
        (
            gzip.compress(bytes(1 << 25)),
            {"Content-Type": PROTOBUF, "Content-Encoding": "gzip"},
            413,
            "unpacks to more",
        ),
        (b"{}", {"Content-Type": JSON, "Origin": "http://elsewhere.example"}, 403, "another site"),
    ],
)
def test_refusals_are_a_status_in_the_encoding_of_the_request(
    daemon: Running, data: bytes, headers: dict[str, str], status: int, words: str
):
    answer = daemon.ask("POST", "/v1/traces", data, **headers)
    assert answer.status == status
    if headers["Content-Type"] == PROTOBUF:
        assert answer.headers["content-type"] == PROTOBUF
        assert answer.body[:1] == b"\x08"
        assert words.encode() in answer.body
    else:
        assert answer.headers["content-type"] == JSON
        assert set(answer.json) == {"code", "message"}
        assert words in answer.json["message"]


@pytest.mark.parametrize("encoding", [JSON, PROTOBUF])
def test_a_small_body_of_many_empty_messages_is_refused(daemon: Running, encoding: str):
    if encoding == JSON:
        spans = b"{}," * MOST_MESSAGES
        whole = b'{"resourceSpans":[{"scopeSpans":[{"spans":[' + spans + b"{}]}]}]}"
    else:
        spans = b"\x12\x00" * MOST_MESSAGES
        scoped = b"\x12" + varint(len(spans)) + spans
        whole = b"\x0a" + varint(len(scoped)) + scoped
    packed = gzip.compress(whole)
    assert len(packed) < 5000
    header = {"Content-Type": encoding, "Content-Encoding": "gzip"}
    answer = daemon.ask("POST", "/v1/traces", packed, **header)
    assert answer.status == 413
    assert b"more than 500000 messages in one body" in answer.body
    assert b"send smaller batches" in answer.body


def test_an_empty_batch_is_fine_and_get_is_not(daemon: Running):
    assert daemon.ask("POST", "/v1/traces", b"", **{"Content-Type": PROTOBUF}).body == b""
    assert daemon.ask("POST", "/v1/traces", b"{}", **{"Content-Type": JSON}).body == b"{}"
    assert daemon.ask("GET", "/v1/traces").status == 405
    beside = daemon.ask("POST", "/v1/traces/", b"{}", **{"Content-Type": JSON})
    assert (beside.status, beside.headers.get("location")) == (404, None)


def test_no_prompt_is_written_anywhere(daemon: Running):
    send(daemon, traces(call(701, **{"app.prompt": SECRET * 3})))
    assert counts(daemon)["waiting_calls"] > 0
    for path in daemon.folder.iterdir():
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path
    file = daemon.folder / "log.db.spans"
    assert file.stat().st_mode & 0o077 == 0


def test_metrics_count_what_came(daemon: Running):
    send(daemon, traces(call(971)))

    def text() -> str:
        return daemon.ask("GET", "/metrics").body.decode()

    until(lambda: 'equipoise_otlp_waiting{kind="calls"}' in text())
    assert 'equipoise_otlp_total{what="calls"}' in text()


def test_what_waits_survives_a_kill(tmp_path: Path):
    service = SERVICE.replace("settle_seconds = 0.5", "settle_seconds = 1.5")
    first = start(tmp_path, service, config=CONFIG)
    try:
        choice = decide(first, "q")
        named = choice.span_attributes("chat") | {"gen_ai.request.model": choice.model}
        send(first, traces(call(1), span(2, named | {"gen_ai.response.model": None})))
        send(first, logs(record(rating(score=0.5), of=1)))
    finally:
        first.kill()
    with running(tmp_path, service, config=CONFIG) as second:
        until(lambda: counts(second)["observations"] == 1 and counts(second)["outcomes"] == 1)
        assert send(second, traces(call(1))).body == b"{}"
        assert counts(second)["repeats"] == 1
        store = second.store
    with sqlite3.connect(store) as file:
        rows = file.execute("SELECT request_id, reward FROM observations").fetchall()
    assert rows == [(f"{trace_id(1)}-{1:016x}", 0.5)]


def test_a_missing_reward_with_a_value_counts_when_the_wait_is_over(tmp_path: Path):
    config = CONFIG.replace("window = 3600", "window = 3600\nmissing = 0.0")
    service = f"[service.otlp]\n{SETTINGS}settle_seconds = 0\nwait_seconds = 1.0\n"
    service = f'durability = "power"\n{service}'
    with running(tmp_path, service, config=config) as daemon:
        send(daemon, traces(call(1)))
        until(lambda: counts(daemon)["observations"] == 1)
        assert counts(daemon)["unrated"] == 0


def test_tokens_are_needed_where_there_are_some(tmp_path: Path):
    tokens = f'tokens = [{{name = "router", scope = "route", token = "{TOKEN}"}}]\n'
    with running(tmp_path, tokens + SERVICE, config=CONFIG) as daemon:
        refusal = send(daemon, traces(call(1)), PROTOBUF)
        assert (refusal.status, refusal.headers["content-type"]) == (401, PROTOBUF)
        key = {"Authorization": f"Bearer {TOKEN}"}
        assert send(daemon, traces(call(1)), PROTOBUF, **key).body == b""
        choice = decide(daemon, "q", token=TOKEN)
        bare = {"equipoise.decision_id": choice.decision_id}
        answer = send(daemon, traces(call(2, **bare)), **key)
        assert "outcome_token" in answer.json["partialSuccess"]["errorMessage"]
        names = choice.span_attributes("chat")
        assert send(daemon, traces(call(2, **names)), **key).body == b"{}"


def test_while_nothing_can_be_kept_exporters_are_told_to_come_again(tmp_path: Path):
    with running(tmp_path, SERVICE, config=CONFIG) as daemon:
        with sqlite3.connect(tmp_path / "log.db.spans") as file:
            file.execute("DROP TABLE calls")
            file.commit()
            answer = send(daemon, traces(call(1)), PROTOBUF)
        assert answer.status == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert daemon.ask("GET", "/healthz").status == 200


def test_without_the_table_no_otlp_is_taken(tmp_path: Path):
    with running(tmp_path, config=CONFIG) as daemon:
        answer = send(daemon, traces(call(1)))
        assert (answer.status, answer.json["code"]) == (404, 5)
        assert "declare [service.otlp]" in answer.json["message"]
        assert daemon.ask("GET", "/v1/otlp").status == 404
        assert not os.path.exists(f"{daemon.store}.spans")


def test_the_table_needs_a_mapping_of_observations(tmp_path: Path):
    words = refused(tmp_path, '[service.otlp]\nmapping = "spans"\n')
    assert "service.otlp.mapping" in words
    assert "[[ingest]]" in words
    assert json.dumps("spans") in words or "'spans'" in words
