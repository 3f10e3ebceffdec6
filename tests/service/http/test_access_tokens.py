"""Who may do what: scopes, the refusal to be reachable without a token, constant time."""

from __future__ import annotations

import base64
import hmac
from hashlib import sha256

import pytest
from running import Running, refused, running, until

from equipoise.agent.config.service import TokenSettings
from equipoise.agent.service.api.problems import Refusal
from equipoise.agent.service.http.access import MissingTokenError, Tokens

ROUTE, ADMIN = "route-token-0123456789", "admin-token-0123456789"
SERVICE = f"""
host = "0.0.0.0"
[[service.tokens]]
name = "router"
sha256 = "{sha256(ROUTE.encode()).hexdigest()}"
[[service.tokens]]
name = "operator"
scope = "admin"
env = "EQUIPOISE_TEST_TOKEN"
"""
ASKED = {"request_id": "r1", "routed": "large", "features": {"words": 1.0}}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    with running(folder, SERVICE, environment={"EQUIPOISE_TEST_TOKEN": ADMIN}) as started:
        yield started


def paths(daemon: Running) -> list[tuple[str, str]]:
    document = daemon.ask("GET", "/openapi.json", token=ROUTE).json
    return [
        (method.upper(), path) for path, methods in document["paths"].items() for method in methods
    ]


def test_without_a_token_nothing_but_health_is_served(daemon: Running):
    for path in ("/healthz", "/readyz"):
        assert daemon.ask("GET", path).status == 200
    everything = [*paths(daemon), ("GET", "/metrics"), ("GET", "/openapi.json")]
    assert len(everything) > 12
    for token in (None, "wrong-token-0123456789", ROUTE[:-1], ""):
        for method, path in everything:
            answer = daemon.ask(method, path, {} if method != "GET" else None, token=token)
            assert answer.status == 401, (method, path)
            assert "Bearer" in answer.headers["www-authenticate"]


def test_a_route_token_decides_and_reads_but_changes_nothing(daemon: Running):
    assert daemon.ask("POST", "/v1/decide", ASKED, token=ROUTE).status == 200
    assert daemon.ask("GET", "/v1/budget", token=ROUTE).status == 200
    for method, path in (("PUT", "/v1/budget"), ("POST", "/v1/pause"), ("POST", "/v1/resume")):
        assert daemon.ask(method, path, {}, token=ROUTE).status == 403
    assert daemon.ask("GET", "/v1/budget", token=ROUTE).json["requests"] is None


def test_an_admin_token_may_do_all(daemon: Running):
    assert daemon.ask("PUT", "/v1/budget", {"requests": 7}, token=ADMIN).json["requests"] == 7
    assert daemon.ask("POST", "/v1/decide", ASKED, token=ADMIN).status == 200
    basic = base64.b64encode(f"anyone:{ADMIN}".encode()).decode()
    answer = daemon.ask("POST", "/v1/pause", Authorization=f"Basic {basic}")
    assert answer.json["paused"] is True
    assert daemon.ask("POST", "/v1/resume", token=ADMIN).json["paused"] is False


def test_another_site_cannot_press_the_buttons_of_a_browser(daemon: Running):
    headers = {"Sec-Fetch-Site": "cross-site"}
    assert daemon.ask("POST", "/v1/pause", token=ADMIN, **headers).status == 403
    headers = {"Sec-Fetch-Site": "same-origin"}
    assert daemon.ask("POST", "/v1/resume", token=ADMIN, **headers).status == 200


def test_no_secret_and_no_feature_enters_the_log(daemon: Running):
    daemon.ask("POST", "/v1/decide", {**ASKED, "features": {"words": "a prompt"}}, token=ROUTE)
    daemon.ask("POST", "/v1/decide", token="wrong-token-0123456789")
    daemon.ask("PUT", "/v1/budget", {"requests": 7}, token=ADMIN)
    until(lambda: '"event":"budget"' in "".join(daemon.log))
    written = "".join(daemon.log)
    assert '"token":"operator"' in written
    for secret in (ROUTE, ADMIN, "a prompt", "wrong-token"):
        assert secret not in written


def test_elsewhere_than_on_loopback_a_token_is_needed(tmp_path):
    words = refused(tmp_path, 'host = "0.0.0.0"')
    assert "service.tokens" in words
    assert "127.0.0.1" in words
    assert not (tmp_path / "log.db").exists()
    words = refused(tmp_path, "", "--host", "0.0.0.0")
    assert "service.tokens" in words


def test_a_token_whose_variable_is_not_set_is_refused(tmp_path):
    assert "EQUIPOISE_TEST_TOKEN" in refused(tmp_path, SERVICE)
    with pytest.raises(MissingTokenError):
        Tokens([TokenSettings(name="a", env="X")], {})


def test_every_digest_is_compared_whatever_matched_before(monkeypatch):
    """Time tells nothing: each known digest is compared in constant time, none is skipped."""
    names = [f"token-number-{number}" for number in range(5)]
    tokens = Tokens([TokenSettings(name=name, token=name, scope="admin") for name in names], {})
    compared: list[tuple[bytes, bytes]] = []
    original = hmac.compare_digest

    def counting(left: bytes, right: bytes) -> bool:
        compared.append((left, right))
        return original(left, right)

    monkeypatch.setattr(hmac, "compare_digest", counting)
    for presented in (names[0], names[4], "unknown", "x" * 10_000):
        compared.clear()
        headers = [(b"authorization", f"Bearer {presented}".encode())]
        if presented in names:
            assert tokens.check(headers, "route") == (presented, True)
        else:
            with pytest.raises(Refusal):
                tokens.check(headers, "route")
        assert len(compared) == len(names)
        assert {len(side) for pair in compared for side in pair} == {32}
