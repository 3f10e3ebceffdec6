"""Who may come in, and with what: host, origin, content type, tokens of outcomes, rates."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import signal
from base64 import urlsafe_b64encode
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from raw_requests import Raw, in_chunks
from running import Running, refused, running, until

from equipoise.agent.client import Client
from equipoise.agent.config.service import TokenSettings
from equipoise.agent.service.api.problems import Refusal
from equipoise.agent.service.http.access import ANYBODY, OutcomeTokens, Rates, Tokens

ROUTE, OTHER, ADMIN = (f"{name}-token-0123456789" for name in ("route", "other", "admin"))
TOKENS = "".join(
    f'[[service.tokens]]\nname = "{name}"\nscope = "{scope}"\ntoken = "{token}"\n'
    for name, scope, token in (
        ("router", "route", ROUTE),
        ("another", "route", OTHER),
        ("operator", "admin", ADMIN),
    )
)
PROMPT = "my own private words"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    """Without tokens, so on loopback alone."""
    with running(tmp_path_factory.mktemp("open"), 'names = ["eq.corp.example"]') as started:
        yield started


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    with running(tmp_path_factory.mktemp("guarded"), TOKENS) as started:
        yield started


def asked(name: str, **more: Any) -> dict[str, Any]:
    return {"request_id": name, "routed": "large", "features": {"words": 1.0}, **more}


def everything(daemon: Running) -> list[tuple[str, str]]:
    document = daemon.ask("GET", "/openapi.json").json
    paths = [
        (method.upper(), path.replace("{decision_id}", "d0").replace("{rule_id}", "r0"))
        for path, methods in document["paths"].items()
        for method in methods
        if path != "/healthz"
    ]
    return [*paths, ("GET", "/"), ("GET", "/metrics"), ("GET", "/page/history")]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "localhost.evil.example:8080"}, 421),
        ({"Host": "127.0.0.1.evil.example"}, 421),
        ({"Host": "127.0.0.1@evil.example"}, 421),
        ({"Host": "192.0.2.7:8080"}, 421),
        ({"Host": "0.0.0.0:8080"}, 421),
        (
            {
                "Host": "evil.example",
                "Origin": "http://evil.example",
                "Sec-Fetch-Site": "same-origin",
            },
            421,
        ),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "ftp://127.0.0.1"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Dest": "image"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "iframe"}, 403),
    ],
)
def test_a_page_of_a_stranger_gets_nothing(daemon: Running, headers: dict[str, str], status: int):
    for method, path in everything(daemon):
        body = None if method == "GET" else {}
        answer = daemon.ask(method, path, body, **headers)
        assert answer.status == status, (method, path, answer.body)
    assert daemon.ask("GET", "/v1/budget").json["requests"] is None


def test_our_own_names_and_our_own_page_are_served(daemon: Running):
    for host in (
        "localhost", f"127.0.0.1:{daemon.port}", "[::1]:8080", "127.9.9.9", "LOCALHOST:1",
        "eq.localhost", "equipoise", "eq.corp.example",
    ):  # fmt: skip
        assert daemon.ask("GET", "/v1/budget", Host=host).status == 200, host
        origin = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
        answer = daemon.ask("POST", "/v1/decide", asked("own"), **origin)
        assert answer.status == 200, (host, answer.body)
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "document"}
    assert daemon.ask("GET", "/", **link).status == 200, "a link may stand anywhere"
    assert daemon.ask("POST", "/v1/pause", {}, **link).status == 403
    behind = {"Host": "127.0.0.1", "Origin": "https://eq.corp.example"}
    assert daemon.ask("GET", "/v1/budget", **behind).status == 200


@pytest.mark.parametrize("path", ["/v1/decide", "/v1/outcomes", "/v1/pause", "/v1/observations"])
def test_a_body_says_that_it_is_json_or_nothing(daemon: Running, path: str):
    def status(kind: str | None, **browser: str) -> int:
        headers = browser if kind is None else {"Content-Type": kind, **browser}
        return daemon.ask("POST", path, b" ", **headers).status

    fine = status(None)
    assert fine in (200, 400)
    form = "application/x-www-form-urlencoded"  # what `curl -d` says
    for kind in (
        "application/json",
        "Application/JSON; charset=utf-8",
        "application/x-ndjson",
        form,
    ):
        assert status(kind) == fine, kind
    own = {"Origin": f"http://127.0.0.1:{daemon.port}"}
    assert status("application/json", **own) == fine
    for kind in ("text/plain", "text/plain; application/json", "multipart/form-data; boundary=x"):
        assert status(kind) == 415
        assert status(kind, **own) == 415
    assert status(form, **own) == 415


def test_with_tokens_a_browser_is_asked_for_its_page_too(guarded: Running):
    for headers in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        for method, path in (
            ("POST", "/v1/decide"),
            ("GET", "/v1/estimates"),
            ("POST", "/v1/pause"),
        ):
            assert guarded.ask(method, path, token=ADMIN, **headers).status == 403
    assert guarded.ask("GET", "/v1/budget", token=ROUTE, Host="anything.example").status == 200


WEAK = ["", "\n", " ", "a", "zz", "~~~", "abc\n"[:2] + "\n", "0000", "1234"]
WEAK += ["token", "Token", "TOKEN\n", "$TOKEN", "changeme", "secret\n", "password", "admin", "test"]


@pytest.mark.parametrize("text", WEAK)
def test_the_digest_of_what_is_no_secret_is_refused(text: str):
    digest = sha256(text.encode()).hexdigest()
    (problem,) = TokenSettings(name="t", scope="admin", sha256=digest).faults()
    assert problem.key == "sha256"
    assert "the digest of" in problem.received


def test_a_daemon_does_not_start_on_the_digest_of_nothing(tmp_path: Path):
    digest = sha256(b"").hexdigest()
    token = f'[[service.tokens]]\nname = "t"\nscope = "admin"\nsha256 = "{digest}"'
    assert "the digest of the empty text" in refused(tmp_path, token)
    weak = '[[service.tokens]]\nname = "t"\nenv = "EQUIPOISE_WEAK"'
    os.environ["EQUIPOISE_WEAK"] = "short"
    try:
        assert "EQUIPOISE_WEAK holds 5 characters" in refused(tmp_path, weak)
    finally:
        del os.environ["EQUIPOISE_WEAK"]


@pytest.mark.parametrize(
    "token", ["a" * 40, "changemechangeme", " padded-token-0123456", "tökens" * 4]
)
def test_a_token_that_can_be_guessed_or_not_be_sent_is_refused(token: str):
    assert [problem.key for problem in TokenSettings(name="t", token=token).faults()] == ["token"]


def test_what_is_not_presented_is_not_compared(monkeypatch: pytest.MonkeyPatch):
    # Even if the digest of nothing had come past the configuration.
    nothing = TokenSettings(name="t", scope="admin", sha256=sha256(b"").hexdigest())
    tokens = Tokens([nothing], {})
    compared = []
    monkeypatch.setattr(hmac, "compare_digest", lambda *both: compared.append(both))
    basic = b"Basic " + b"YW55b25lOg=="  # anyone and no password
    for value in (None, b"", b"Bearer", b"Bearer ", b"Basic", b"Basic ?", basic, b"Digest x"):
        with pytest.raises(Refusal) as caught:
            tokens.check([] if value is None else [(b"authorization", value)], "route")
        assert caught.value.document.status == 401
    assert compared == []


def test_outcome_tokens_are_the_hmac_that_they_always_were():
    for key in (b"k" * 32, bytes(range(32)), b"\xff"):
        tokens = OutcomeTokens(key, "bench", required=True)
        own = hmac.digest(key, b"equipoise outcome token, version 1\0bench", "sha256")
        for number in range(300):
            digest = hmac.digest(own, f"d{number}".encode(), "sha256")
            token = urlsafe_b64encode(digest[:15]).decode()
            assert tokens.of(f"d{number}") == token
            tokens.check(f"d{number}", token, ANYBODY)
            with pytest.raises(Refusal):
                tokens.check(f"d{number + 1}", token, ANYBODY)


def decided(daemon: Running, name: str, token: str | None) -> dict[str, Any]:
    answer = daemon.ask("POST", "/v1/decide", asked(name), token=token)
    assert answer.status == 200, answer.body
    made: dict[str, Any] = answer.json
    return made


def test_an_outcome_needs_the_token_of_its_decision(guarded: Running):
    mine, others = (decided(guarded, name, ROUTE) for name in ("mine", "others"))

    def give(token: str = OTHER, **outcome: Any) -> int:
        return guarded.ask("POST", "/v1/outcomes", outcome, token=token).status

    for key in ("decision_id", "request_id"):
        named = {key: others[key], "outputs": {"seconds": 1.0}}
        assert give(**named) == 403
        assert give(**named, outcome_token=mine["outcome_token"]) == 403
        assert give(**named, outcome_token="") == 403
        assert give(**named, outcome_token=others["outcome_token"][:-1]) == 403
    for again in ({}, {"again": True}):
        answer = guarded.ask("POST", "/v1/decide", asked("others", **again), token=OTHER)
        assert answer.json["outcome_token"] == others["outcome_token"], (
            "who knows all that was asked"
        )
    rows = [
        {"request_id": "mine", "outcome_token": mine["outcome_token"], "reward": 1.0},
        {"request_id": "others", "reward": 1.0},
        {"request_id": "nobodys", "reward": 1.0},
    ]
    answer = guarded.ask("POST", "/v1/outcomes", rows, token=ROUTE).json
    assert answer["accepted"] == 1
    assert [(each["index"], each["status"]) for each in answer["rejected"]] == [(1, 403), (2, 404)]
    assert give(request_id="others", outcome_token=others["outcome_token"], reward=0.5) == 200
    assert give(ADMIN, request_id="others", outputs={"seconds": 2.0}) == 200, "an admin may do all"
    logged = guarded.ask("GET", f"/v1/decisions/{others['decision_id']}", token=ROUTE).body
    assert others["outcome_token"].encode() not in logged


def test_the_token_is_an_hmac_under_the_stores_key_and_survives_a_restart(tmp_path: Path):
    with running(tmp_path, TOKENS) as daemon:
        first = decided(daemon, "first", ROUTE)
        key = Path(f"{daemon.store}.key").read_bytes()
    assert len(key) == 32

    def by_hand(key: bytes, text: bytes) -> bytes:  # RFC 2104
        pad = key.ljust(64, b"\0")
        inner = sha256(bytes(each ^ 0x36 for each in pad) + text).digest()
        return sha256(bytes(each ^ 0x5C for each in pad) + inner).digest()

    derived = by_hand(key, b"equipoise outcome token, version 1\0chat")
    expected = urlsafe_b64encode(by_hand(derived, first["decision_id"].encode())[:15]).decode()
    assert first["outcome_token"] == expected
    assert hashlib.blake2b(key).hexdigest()[:8] not in expected
    with running(tmp_path, f'outcomes = "open"\n{TOKENS}') as daemon:
        assert decided(daemon, "first", ROUTE) == first
        outcome = {"request_id": "first", "reward": 1.0}
        wrong = {**outcome, "outcome_token": "x" * 20}
        assert daemon.ask("POST", "/v1/outcomes", wrong, token=ROUTE).status == 403
        assert daemon.ask("POST", "/v1/outcomes", outcome, token=ROUTE).status == 200


def test_who_asks_again_only_asks_for_what_was_decided(guarded: Running):
    rows = guarded.ask("GET", "/readyz").json["log_rows"]
    answer = guarded.ask("POST", "/v1/decide", asked("never", again=True), token=ROUTE)
    assert answer.status == 404
    batch = {"requests": [asked("never", again=True), asked("ever")]}
    assert guarded.ask("POST", "/v1/decide/batch", batch, token=ROUTE).status in (404, 422)
    assert guarded.ask("GET", "/readyz").json["log_rows"] == rows


def test_the_client_brings_the_tokens_by_itself(guarded: Running):
    with Client(f"http://127.0.0.1:{guarded.port}", ROUTE, timeout=5.0) as client:
        choice = client.decide("c1", "large", {"words": 1.0})
        assert choice.outcome_token
        client.outcome(choice, outputs={"seconds": 1.0})
        client.outcome("c1", reward=1.0)
        assert client.flush(20)
        assert (client.counters.delivered, client.counters.refused) == (2, 0)
    with Client(f"http://127.0.0.1:{guarded.port}", ROUTE) as elsewhere:
        elsewhere.outcome("c1", metrics={})
        assert elsewhere.flush(20)
        assert elsewhere.counters.refused == 1, "another process was not told"
        elsewhere.outcome("c1", reward=1.0, outcome_token=choice.outcome_token)
        assert elsewhere.flush(20)
        assert elsewhere.counters.delivered == 1


def test_a_decision_that_came_too_late_is_reported_all_the_same(tmp_path: Path):
    """Its answer, and so its token, never reached the client, which asks for it again."""
    with running(tmp_path, TOKENS) as daemon:
        with Client(f"http://127.0.0.1:{daemon.port}", ROUTE, timeout=5.0) as client:
            assert client.decide("warm", "large", {"words": 1.0}).reason == ""
            client.timeout = 0.2
            os.kill(daemon.process.pid, signal.SIGSTOP)
            try:
                assert client.decide("late", "large", {"words": 2.0}).reason == "time-out"
            finally:
                os.kill(daemon.process.pid, signal.SIGCONT)
            client.outcome("late", outputs={"seconds": 1.0}, reward=1.0)
            assert client.flush(30)
            assert client.counters.refused == 0
        answer = daemon.ask("POST", "/v1/decide", asked("late", again=True), token=ROUTE)
        if answer.status == 404:  # its connection was gone before the daemon read it
            assert client.counters.observations == 1
            return
        until(lambda: parts(daemon, "d1"))
        assert {part["delivered"] for part in parts(daemon, "d1")} == {False}


def parts(daemon: Running, name: str) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = daemon.ask("GET", f"/v1/decisions/{name}", token=ROUTE).json[
        "outcomes"
    ]
    return made


def test_a_token_has_so_many_requests_decided_and_no_more(tmp_path: Path):
    with running(tmp_path, f"[service.limits]\ndecide_per_second = 0.02\n{TOKENS}") as daemon:
        assert daemon.ask("POST", "/v1/decide", asked("r1"), token=ROUTE).status == 200
        answer = daemon.ask("POST", "/v1/decide", asked("r2"), token=ROUTE)
        assert answer.status == 429
        assert 1 <= int(answer.headers["retry-after"]) <= 50
        batch = {"requests": [asked("r3")]}
        assert daemon.ask("POST", "/v1/decide/batch", batch, token=ROUTE).status == 429
        with Raw(daemon) as one:  # by the other way through the server
            one.say(in_chunks(json.dumps(asked("r6")), f"authorization: Bearer {ROUTE}\r\n"))
            assert one.hear()[0] == 429
        assert daemon.ask("POST", "/v1/decide", asked("r4"), token=OTHER).status == 200
        with Client(f"http://127.0.0.1:{daemon.port}", ROUTE, timeout=5.0) as client:
            choice = client.decide("r5", "small", {"words": 1.0})
            assert (choice.model, choice.reason) == ("small", "status-429"), "it fails open"
        assert daemon.ask("GET", "/readyz").json["log_rows"] == 2


def test_a_bucket_fills_by_time_and_a_large_batch_is_paid_back(monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    rates = Rates(10.0)
    rates.take("a", 10)
    with pytest.raises(Refusal) as caught:
        rates.take("a", 1)
    assert caught.value.document.retry_after == pytest.approx(0.1)
    rates.take("b", 25)  # more than it ever holds, with a full bucket: 1.5 s of credit
    now[0] += 0.1
    rates.take("a", 1)
    now[0] += 1.4  # 1.5 in all
    with pytest.raises(Refusal):
        rates.take("b", 1)
    now[0] += 0.1
    rates.take("b", 1)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/decide", asked("p1", features={"words": PROMPT})),
        ("/v1/decide", asked("p1", features={PROMPT: 1.0})),
        ("/v1/decide", asked("p1", features={"words": 1.0, "other": PROMPT})),
        ("/v1/decide", asked("p1", features=PROMPT)),
        ("/v1/decide", {**asked("p1"), PROMPT: 1}),
        ("/v1/decide", asked("p1", features={"words": {PROMPT: 1}})),
        ("/v1/decide", asked("p1", routed=PROMPT)),
        ("/v1/decide", asked("p1", eligible=[PROMPT])),
        ("/v1/decide/batch", {"requests": [asked("p1", features={"words": PROMPT})]}),
        ("/v1/outcomes", {"request_id": "known", "outputs": {"seconds": PROMPT}}),
        ("/v1/outcomes", {"request_id": "known", "outputs": {PROMPT: 1.0}}),
        ("/v1/outcomes", {"request_id": "known", "metrics": {PROMPT: 1.0}}),
        ("/v1/outcomes", [{"request_id": "known", "metrics": {PROMPT: 1.0}}]),
        ("/v1/outcomes", {"request_id": "known", PROMPT: 1.0}),
        ("/v1/observations", {"routed": "large", "features": {"words": PROMPT}, "outputs": {},
                              "reward": 1}),
        ("/v1/observations", {PROMPT: "large"}),
        ("/v1/simulations", {"context_id": "c", "model": "large", "features": {PROMPT: 1},
                             "outputs": {}}),
        ("/v1/plan", {PROMPT: 1}),
        ("/v1/plan", {"models": PROMPT}),
    ],
)  # fmt: skip
def test_an_error_does_not_say_what_a_user_wrote(daemon: Running, path: str, body: Any):
    daemon.decide("known")
    answer = daemon.ask("POST", path, body)
    refusal = answer.status >= 400 or answer.json.get("rejected")
    assert refusal, answer.body
    for word in (PROMPT, PROMPT[:12], "private"):
        assert word.encode() not in answer.body
    assert not [line for line in daemon.log if "private" in line]
    # A short word helps, and is repeated: a mistyped category, say.
    typo = daemon.ask("POST", "/v1/decide", asked("p2", features={"words": "many"}))
    assert "'many'" in typo.json["detail"]


def scopes_of_the_page() -> dict[str, list[bool]]:
    """What nobody, route and admin may do, by operation."""
    text = (Path(__file__).parents[3] / "docs/runbook.md").read_text()
    rows = {}
    for line in text.splitlines():
        if line.startswith(("| `GET ", "| `POST ", "| `PUT ")):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            for operation in cells[0].replace("`", "").split(", "):
                rows[operation] = [cell == "yes" for cell in cells[1:]]
    return rows


def test_the_page_of_scopes_has_every_operation(daemon: Running):
    document = daemon.ask("GET", "/openapi.json").json
    known = [(m.upper(), path) for path, each in document["paths"].items() for m in each]
    known += [("GET", path) for path in ("/healthz", "/readyz", "/metrics", "/openapi.json", "/")]
    assert set(scopes_of_the_page()) == {f"{method} {path}" for method, path in known}


def test_each_scope_may_do_what_the_page_says(guarded: Running):
    for operation, allowed in scopes_of_the_page().items():
        method, path = operation.split(" ")
        path = path.replace("{decision_id}", "d0").replace("{rule_id}", "r0")
        for token, may in zip((None, ROUTE, ADMIN), allowed, strict=True):
            body = None if method == "GET" else b"no json"
            status = guarded.ask(method, path, body, token=token).status
            assert (status not in (401, 403)) == may, (operation, token, status)
