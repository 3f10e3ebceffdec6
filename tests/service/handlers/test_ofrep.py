"""The experiment as a feature flag: answers by OFREP's schema, decisions as by /v1/decide."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from running import CONFIG, Answer, Running, refused, running, until, write_config

from equipoise.agent.config.file import load_file
from equipoise.agent.maintenance.key_file import write_key
from equipoise.agent.service.api.problems import refusal_of
from equipoise.agent.service.app import _evaluations, build
from equipoise.agent.service.daemon import Daemon
from equipoise.agent.service.handlers.ofrep import Ofrep
from equipoise.agent.service.http.access import Tokens
from equipoise.agent.service.http.endpoints import Call
from equipoise.agent.service.telemetry import Log
from equipoise.store.batches import Closure, text_key
from equipoise.store.errors import FullStoreError
from equipoise.store.journal import JournaledStore

FLAGS = "/ofrep/v1/evaluate/flags"
FLAG = f"{FLAGS}/chat"
REASONS = ("STATIC", "TARGETING_MATCH", "SPLIT", "DISABLED", "UNKNOWN")
"""OFREP's; an SDK that reads another word gives its caller's default."""
CODES = ("PARSE_ERROR", "TARGETING_KEY_MISSING", "INVALID_CONTEXT", "GENERAL")
ROUTED = 'ofrep = {routed = "large"}\n'
TOKEN = "a-router-of-this-test"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("ofrep"), ROUTED) as started:
        yield started


def context(name: str | None = None, unit: Any = "user-1", **attributes: Any) -> dict[str, Any]:
    named = {} if name is None else {"request_id": name}
    return {"context": {"targetingKey": unit, "words": 10, **named, **attributes}}


def evaluated(answer: Answer) -> Any:
    """The evaluation, after what OFREP and its readers ask of one."""
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    return sound(answer.json)


def sound(flag: Any) -> Any:
    assert flag.keys() == {"key", "value", "reason", "variant", "metadata"}, "one reads them all"
    assert flag["key"] == "chat"
    assert flag["reason"] in REASONS
    assert isinstance(flag["value"], str)
    assert flag["variant"] == flag["value"]
    for name, value in flag["metadata"].items():
        assert isinstance(value, bool | int | float | str), name
    assert type(flag["metadata"].get("propensity", 1.0)) is float, "1 is no float everywhere"
    return flag


def failed(answer: Answer, status: int = 400, code: str = "INVALID_CONTEXT") -> Any:
    """A failure by OFREP's schema, which is a problem document as well."""
    assert (answer.status, answer.headers["content-type"]) == (status, "application/json")
    document = answer.json
    assert document["errorCode"] == code
    assert code in (("FLAG_NOT_FOUND",) if status == 404 else CODES)
    assert document["errorDetails"] == document["detail"]
    assert document["status"] == status
    return document


def test_an_evaluation_is_the_decision_that_decide_gives(daemon: Running) -> None:
    flag = evaluated(daemon.ask("POST", FLAG, context("same", email="a@b.example", plan={"a": 1})))
    body = {
        "request_id": "same",
        "routed": "large",
        "features": {"words": 10},
        "unit_id": "user-1",
    }
    decision = daemon.ask("POST", "/v1/decide", body).json
    assert flag["value"] == decision["model"]
    assert flag["reason"] == "SPLIT"
    names = ("decision_id", "propensity", "randomized", "request_id", "rule_id", "era")
    said = {name: decision[name] for name in (*names, "outcome_token")}
    ours = {"unit": "user-1", "routed": "large", "ignored": "email, plan"}
    assert flag["metadata"] == {**said, **ours}
    again = evaluated(daemon.ask("POST", FLAG, context("same")))
    del ours["ignored"]
    assert again["metadata"] == {**said, **ours}


def test_the_context_may_say_what_a_request_says(daemon: Running) -> None:
    said = context("said", routed="small", eligible=["small"], context_id="c1", words=3.5)
    assert evaluated(daemon.ask("POST", FLAG, said))["value"] == "small", "of one there is no draw"
    assert b'"propensity":1.0' in daemon.ask("POST", FLAG, said).body
    logged = daemon.ask("GET", "/v1/decisions?request_id=said").json
    assert (logged["context_id"], logged["unit_id"]) == ("c1", "user-1")


def test_an_evaluation_without_a_request_id_is_a_request_of_its_own(daemon: Running) -> None:
    names = {
        evaluated(daemon.ask("POST", FLAG, context()))["metadata"]["request_id"] for _ in range(3)
    }
    assert len(names) == 3
    for name in names:
        assert daemon.ask("GET", f"/v1/decisions?request_id={name}").status == 200


def test_again_asks_only_for_what_was_decided(daemon: Running) -> None:
    first = evaluated(daemon.ask("POST", FLAG, context("early")))
    assert evaluated(daemon.ask("POST", FLAG, context("early", again=True))) == first
    failed(daemon.ask("POST", FLAG, context("late", again=True)), 404, "FLAG_NOT_FOUND")
    assert daemon.ask("GET", "/v1/decisions?request_id=late").status == 404


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        (b"{", "PARSE_ERROR", "not JSON"),
        (b'{"context": {"targetingKey": "u", "words": NaN}}', "PARSE_ERROR", "not JSON"),
        (b"[]", "INVALID_CONTEXT", "expected `object`"),
        ({}, "INVALID_CONTEXT", "`context`"),
        ({"context": "x"}, "INVALID_CONTEXT", "object"),
        ({"context": {"words": 1}}, "TARGETING_KEY_MISSING", "targetingKey"),
        (context(unit=""), "TARGETING_KEY_MISSING", "targetingKey"),
        (context(unit=7), "INVALID_CONTEXT", "received 7, expected a text"),
        (context(unit="a\nb"), "INVALID_CONTEXT", "printable"),
        (context(words="many"), "INVALID_CONTEXT", "words: received 'many'"),
        (context(words=None, wrods=3), "INVALID_CONTEXT", "no features are wrods"),
        (context(words={"a": 1}), "INVALID_CONTEXT", "words"),
        (context(routed="huge"), "INVALID_CONTEXT", "'huge' is not one of large, small"),
        (context(routed=["large"]), "INVALID_CONTEXT", "a list of 1 is not one of"),
        (context(eligible=["huge"]), "INVALID_CONTEXT", "eligible"),
        (context(7), "INVALID_CONTEXT", "request_id"),
    ],
)
def test_what_is_no_evaluation_is_refused_with_the_reason(
    daemon: Running, body: Any, code: str, words: str
) -> None:
    before = daemon.ask("GET", "/readyz").json["log_rows"]
    document = failed(daemon.ask("POST", FLAG, body), code=code)
    assert words.lower() in document["errorDetails"].lower()
    assert document["key"] == "chat"
    assert daemon.ask("GET", "/readyz").json["log_rows"] == before


def test_another_content_of_the_same_request_is_refused(daemon: Running) -> None:
    daemon.ask("POST", FLAG, context("other"))
    assert "user" not in failed(daemon.ask("POST", FLAG, context("other", words=11)))["detail"]
    document = failed(daemon.ask("POST", FLAG, context("other", unit="user-2")))
    assert "other content: unit_id" in document["errorDetails"]


def test_another_flag_is_not_found(daemon: Running) -> None:
    document = failed(daemon.ask("POST", f"{FLAGS}/other", context()), 404, "FLAG_NOT_FOUND")
    assert document["key"] == "other"
    assert "no experiment is called 'other'" in document["errorDetails"]


def test_a_bulk_evaluation_is_what_is_routed_and_no_decision(daemon: Running) -> None:
    before = daemon.ask("GET", "/readyz").json["log_rows"]
    answer = daemon.ask("POST", FLAGS, context())
    assert answer.json.keys() == {"flags"}
    (flag,) = answer.json["flags"]
    sound(flag)
    assert (flag["value"], flag["reason"]) == ("large", "STATIC")
    assert flag["metadata"]["randomized"] is False
    assert "decision_id" not in flag["metadata"]
    (other,) = daemon.ask("POST", FLAGS, context(routed="small")).json["flags"]
    assert sound(other)["value"] == "small"
    assert daemon.ask("GET", "/readyz").json["log_rows"] == before


def test_an_unchanged_bulk_evaluation_is_told_by_its_tag(daemon: Running) -> None:
    tag = daemon.ask("POST", FLAGS, context()).headers["etag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}'):
        answer = daemon.ask("POST", FLAGS, context(unit="user-9"), **{"If-None-Match": known})
        assert (answer.status, answer.body, answer.headers["etag"]) == (304, b"", tag)
    other = context(routed="small")
    assert daemon.ask("POST", FLAGS, other, **{"If-None-Match": tag}).status == 200
    assert daemon.ask("POST", FLAGS, context(), **{"If-None-Match": "x"}).status == 200


@pytest.mark.parametrize(("body", "code"), [(b"{", "PARSE_ERROR"), ({}, "INVALID_CONTEXT")])
def test_a_bulk_evaluation_is_refused_as_a_whole(daemon: Running, body: Any, code: str) -> None:
    assert "key" not in failed(daemon.ask("POST", FLAGS, body), code=code)


def test_an_outcome_of_another_unit_is_refused(daemon: Running) -> None:
    said = evaluated(daemon.ask("POST", FLAG, context("mine", unit="B")))["metadata"]
    outcome = {"decision_id": said["decision_id"], "reward": 1.0}
    answer = daemon.ask("POST", "/v1/outcomes", {**outcome, "unit_id": "A2"})
    assert (answer.status, answer.json["field"]) == (409, "unit_id")
    assert daemon.ask("POST", "/v1/outcomes", {**outcome, "unit_id": "B"}).json["accepted"] == 1
    nobody = {"request_id": "mine", "reward": 1.0}
    assert daemon.ask("POST", "/v1/outcomes", nobody).json["duplicates"] == 1
    # Read back from the store, the unit is the same.
    until(lambda: "equipoise_queue_rows 0.0" in daemon.ask("GET", "/metrics").body.decode())
    assert daemon.ask("POST", "/v1/outcomes", {**outcome, "unit_id": "A2"}).status == 409


def test_a_request_without_a_unit_is_its_own_unit(daemon: Running) -> None:
    daemon.decide("alone")
    outcome = {"request_id": "alone", "reward": 1.0}
    assert daemon.ask("POST", "/v1/outcomes", {**outcome, "unit_id": "user-1"}).status == 409
    assert daemon.ask("POST", "/v1/outcomes", {**outcome, "unit_id": "alone"}).status == 200


def test_without_a_routed_model_the_callers_own_default_holds(tmp_path: Path) -> None:
    with running(tmp_path, "limits = {decide_per_second = 2}\n" + tokens()) as daemon:
        assert daemon.ask("POST", FLAG, context()).status == 401
        asked = daemon.ask("POST", FLAG, context(), token=TOKEN)
        assert "routed" in failed(asked)["errorDetails"]
        (flag,) = daemon.ask("POST", FLAGS, context(), token=TOKEN).json["flags"]
        assert flag.keys() == {"key", "reason", "metadata"}, "no value: the provider's default"
        routed = context(routed="small")
        answers = [daemon.ask("POST", FLAG, routed, token=TOKEN) for _ in range(4)]
        assert {answer.status for answer in answers} == {200, 429}
        limited = next(answer for answer in answers if answer.status == 429)
        assert limited.headers["retry-after"].isdigit(), "one reads whole seconds or dates of HTTP"
        # Others may ask for as many.
        assert daemon.ask("POST", FLAGS, context(), token=TOKEN).status == 200


def tokens() -> str:
    return f'[[service.tokens]]\nname = "router"\ntoken = "{TOKEN}"\n'


def test_a_routed_model_that_does_not_exist_is_refused_at_the_start(tmp_path: Path) -> None:
    words = refused(tmp_path, 'ofrep = {routed = "larg"}')
    assert "service.ofrep.routed" in words
    assert "did you mean 'large'?" in words


def in_process(folder: Path) -> Iterator[Daemon]:
    """A daemon in this process, that serves nobody."""
    file = load_file(write_config(folder, ROUTED, CONFIG), {"store": str(folder / "log.db")})
    store = JournaledStore(file.service.store)
    key = write_key(store.path)
    yield Daemon(file.experiment, file.service, store, key, Log("error", io.StringIO()))
    store.close()


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Daemon]:
    yield from in_process(tmp_path)


def evaluate(handler: Ofrep, name: str, **attributes: Any) -> Any:
    body = json.dumps(context(name, **attributes)).encode()
    call = Call({"experiment": "chat"}, {}, body, lambda: None)  # type: ignore[arg-type, return-value]
    return asyncio.run(handler.evaluate_flag(call))


@pytest.mark.parametrize("routed", ["large", "small"])
def test_whatever_stops_the_experiment_the_flag_never_fails(made: Daemon, routed: str) -> None:
    handler, seen = _evaluations(made), {}

    def ask(state: str) -> None:
        flag = evaluate(handler, f"{state}-{routed}", routed=routed)
        assert (flag.value, flag.variant, flag.reason) == (routed, routed, "STATIC")
        assert flag.metadata["propensity"] == 1.0
        assert flag.metadata["routed"] == routed
        seen[state] = flag.metadata["reason"], "decision_id" in flag.metadata

    made.switches.pause("", 1.0)
    ask("pause")
    made.switches.kill_switch.signal(True)
    made.switches.kill_switch.poll()
    ask("kill")
    made.switches.kill_switch.signal(False)
    made.switches.kill_switch.poll()
    made.hot.stopping = True
    ask("stop")
    made.hot.stopping = False
    made.breaker.trip(FullStoreError("no room"))
    ask("store")
    assert seen == {
        "pause": ("paused", True),
        "kill": ("kill-switch", False),
        "stop": ("stopping", False),
        "store": ("store-full", False),
    }


def test_a_decision_that_is_not_on_the_disk_is_passed_through(made: Daemon) -> None:
    waits = []

    async def committed() -> None:
        waits.append(made.agent.light.next_seq)
        if len(waits) > 1:
            raise OSError("the disk is gone")

    arguments = ("chat", lambda: made.agent.models, frozenset({"words"}))
    handler = Ofrep(made.hot, *arguments, lambda: made.settings.ofrep, committed)
    assert evaluate(handler, "first").reason == "SPLIT"
    flag = evaluate(handler, "second")
    assert (flag.value, flag.reason) == ("large", "STATIC")
    assert flag.metadata["reason"] == "store-failed"
    assert "decision_id" not in flag.metadata
    assert waits == [1, 2], "each waited once, after it was written"
    evaluate(handler, "third")
    assert len(waits) == 2, "what was not logged has nothing to wait for"


def test_what_is_known_of_a_decision_outlives_its_time_in_memory(
    made: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.switches.pause("", 1.0)
    evaluate(_evaluations(made), "old", unit="B")
    key = text_key("unit", "B")
    assert (made.adapter.unit(0), made.adapter.closure(0)) == (key, Closure.PAUSED)
    monkeypatch.setattr(made.agent.light, "pending", SimpleNamespace(base=1, next=1))
    assert (made.adapter.unit(0), made.adapter.closure(0)) == (key, Closure.PAUSED)
    assert (made.adapter.unit(1), made.adapter.closure(1)) == (None, Closure.OPEN)


def test_an_evaluation_waits_for_the_disk_by_itself(tmp_path: Path) -> None:
    """The endpoint, which would answer 503 where that fails, does not wait again."""
    service = f'{ROUTED}durability = "power"\n'
    file = load_file(write_config(tmp_path, service, CONFIG), {"store": str(tmp_path / "log.db")})
    with JournaledStore(file.service.store, "power", grouped=True) as store:
        key = write_key(store.path)
        daemon = Daemon(file.experiment, file.service, store, key, Log("error", io.StringIO()))

        async def fail() -> None:
            raise OSError("the disk is gone")

        assert daemon.barrier is not None
        daemon.barrier.wait = fail  # type: ignore[method-assign]
        application = build(daemon, Tokens([]))
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": json.dumps(context("w")).encode()}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": FLAG,
            "root_path": "",
            "query_string": b"",
            "headers": [(b"host", b"127.0.0.1")],
        }
        asyncio.run(application(scope, receive, send))
    assert sent[0]["status"] == 200
    assert json.loads(sent[1]["body"])["metadata"]["reason"] == "store-failed"


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
names = st.sampled_from(["large", "small", "r0", "r1"])
contexts = st.fixed_dictionaries(
    {"targetingKey": names | values, "words": st.floats(0, 9) | values},
    optional={
        "request_id": names | values,
        "routed": names | values,
        "eligible": st.lists(names, max_size=2) | values,
        "context_id": names | values,
        "again": st.booleans() | values,
        "other": values,
    },
)
bodies = st.fixed_dictionaries({"context": contexts | values}) | values


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    yield from in_process(tmp_path_factory.mktemp("offline"))


@settings(deadline=None, max_examples=200, derandomize=True)
@given(body=bodies)
def test_whatever_a_context_holds_is_evaluated_or_refused_in_one_line(
    offline: Daemon, body: Any
) -> None:
    handler, text = _evaluations(offline), json.dumps(body).encode()
    for answer in (handler.evaluate_flag, handler.evaluate_flags):
        call = Call({"experiment": "chat"}, {}, text, lambda: None)  # type: ignore[arg-type, return-value]
        try:
            given_answer = asyncio.run(answer(call))
        except Exception as error:
            document = refusal_of(error).document
            assert document.status in (400, 404)
            assert document.errorCode in (*CODES, "FLAG_NOT_FOUND")  # type: ignore[attr-defined]
            assert "\n" not in document.detail.replace("\\n", "")
        else:
            if answer == handler.evaluate_flag:
                sound(json.loads(msgspec.json.encode(given_answer)))
