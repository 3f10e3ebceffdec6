"""The provider's own part, without the SDK: what an event is joined to and what is reported.

The SDK itself is driven by `make doors`.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from running import running, until

from equipoise.agent import client as client_module
from equipoise.agent.client import Client
from equipoise.agent.doors import openfeature
from equipoise.agent.doors.openfeature import EquipoiseProvider, Outcomes

FILE = Path(openfeature.__file__)
DECISION = {
    "request_id": "r1",
    "decision_id": "d7",
    "unit": "user-1",
    "outcome_token": "secret",
    "propensity": 0.25,
}
CONTEXT = {"request_id": "r1", "words": 3}


class Recorder:
    """Stands for the client."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.lost: list[tuple[Any, ...]] = []

    def outcome(self, name: str, **parts: Any) -> None:
        self.sent.append((name, parts))

    def undelivered(self, *arguments: Any) -> None:
        self.lost.append(arguments)

    def close(self) -> None: ...


@pytest.fixture
def client() -> Recorder:
    return Recorder()


@pytest.fixture
def outcomes(client: Recorder) -> Outcomes:
    made = Outcomes(client)  # type: ignore[arg-type]
    made.remember(DECISION)
    return made


def test_an_event_finds_its_decision_by_the_request_of_its_context(
    outcomes: Outcomes, client: Recorder
) -> None:
    parts = {"outputs": {"seconds": 0.4}, "page": "/a"}
    assert outcomes.track("outcome", "user-1", CONTEXT, 1.0, parts) == "sent"
    said = {"reward": 1.0, "outputs": {"seconds": 0.4}}
    assert client.sent == [("r1", {**said, "unit_id": "user-1", "outcome_token": "secret"})]
    assert outcomes.counters == Counter(sent=1)


def test_an_event_of_another_unit_is_not_joined(outcomes: Outcomes, client: Recorder) -> None:
    assert outcomes.track("outcome", "user-2", CONTEXT, 1.0, {}) == "other-unit"
    assert outcomes.track("outcome", "user-1", CONTEXT, 1.0, {"unit": "user-2"}) == "other-unit"
    # Where nobody remembers the decision, the daemon looks.
    assert outcomes.track("outcome", "user-2", {"request_id": "r2"}, 1.0, {}) == "sent"
    assert client.sent == [("r2", {"reward": 1.0, "unit_id": "user-2"})]


def test_an_event_may_carry_what_the_metadata_said(outcomes: Outcomes, client: Recorder) -> None:
    """In another process, hours later: nothing is remembered there."""
    fresh = Outcomes(client)  # type: ignore[arg-type]
    assert fresh.track("outcome", "user-1", {}, 0.5, DECISION) == "sent"
    assert client.sent == [("r1", {"reward": 0.5, "unit_id": "user-1", "outcome_token": "secret"})]
    assert fresh.track("outcome", "user-9", {}, 0.5, DECISION) == "other-unit"
    assert outcomes.track("outcome", None, {}, 0.5, {"decision_id": "d7"}) == "sent"
    assert outcomes.track("outcome", None, {}, 0.5, {"decision_id": "d8"}) == "no-decision"
    assert outcomes.track("outcome", None, CONTEXT, 0.5, {"decision_id": "d8"}) == "other-decision"


@pytest.mark.parametrize(
    ("event", "context", "value", "attributes", "counted"),
    [
        ("page-seen", CONTEXT, 1.0, {}, "ignored"),
        ("outcome", {}, 1.0, {}, "no-decision"),
        ("outcome", {"request_id": 7}, 1.0, {}, "no-decision"),
        ("outcome", CONTEXT, None, {"page": "/a"}, "no-part"),
        ("outcome", {"request_id": "passed"}, 1.0, {}, "not-logged"),
    ],
)
def test_what_speaks_of_no_outcome_is_counted_and_not_sent(
    outcomes: Outcomes,
    client: Recorder,
    event: str,
    context: dict[str, Any],
    value: float | None,
    attributes: dict[str, Any],
    counted: str,
) -> None:
    outcomes.remember({"request_id": "passed", "unit": "user-1", "reason": "kill-switch"})
    assert outcomes.track(event, "user-1", context, value, attributes) == counted
    assert client.sent == []
    assert outcomes.counters == Counter({counted: 1})


def test_events_have_the_names_that_were_chosen(client: Recorder) -> None:
    outcomes = Outcomes(client, outcome="thumb", exposure="shown")  # type: ignore[arg-type]
    assert outcomes.track("outcome", None, CONTEXT, 1.0, {}) == "ignored"
    assert outcomes.track("thumb", None, CONTEXT, 1.0, {}) == "sent"


def test_an_exposure_says_that_somebody_got_the_answer(client: Recorder) -> None:
    outcomes = Outcomes(client)  # type: ignore[arg-type]
    assert outcomes.track("exposure", "user-1", CONTEXT, None, {}) == "sent"
    assert client.sent == [("r1", {"delivered": True, "unit_id": "user-1"})]


def test_nothing_raises_whatever_an_event_holds(outcomes: Outcomes, client: Recorder) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise TypeError("no such part")

    client.outcome = broken  # type: ignore[method-assign]
    assert outcomes.track("outcome", "user-1", CONTEXT, 1.0, {}).startswith("refused: TypeError")
    assert outcomes.track("outcome", ["?"], CONTEXT, 1.0, {}).startswith("refused")  # type: ignore[arg-type]
    outcomes.remember({})
    assert outcomes.counters.total() == 2


def test_the_oldest_decisions_are_forgotten(client: Recorder) -> None:
    outcomes = Outcomes(client, remembered=2)  # type: ignore[arg-type]
    for number in range(3):
        said = {"request_id": f"r{number}", "decision_id": f"d{number}", "unit": f"u{number}"}
        outcomes.remember(said)
    assert outcomes.track("outcome", None, {}, 1.0, {"decision_id": "d0"}) == "no-decision"
    assert outcomes.track("outcome", None, {}, 1.0, {"decision_id": "d2"}) == "sent"
    assert client.sent == [("r2", {"reward": 1.0, "unit_id": "u2"})]


def test_without_the_sdk_the_provider_says_what_is_missing() -> None:
    with pytest.raises(ImportError, match="pip install openfeature-sdk openfeature-provider-ofrep"):
        EquipoiseProvider("http://127.0.0.1:9")


class StockProvider:
    """Stands for the SDK's provider: answers or raises what the test says."""

    answer: Any = None

    def __init__(self, base_url: str, *, headers_factory: Any, timeout: float) -> None:
        self.headers, self.asked = headers_factory(), []

    def _resolve(self, flag_type: str, flag_key: str, default: Any, context: Any) -> Any:
        self.asked.append(context)
        if isinstance(self.answer, Exception):
            raise self.answer
        metadata = {**DECISION, "request_id": context.attributes["request_id"]}
        return SimpleNamespace(value="small", flag_metadata=metadata)


class Context:
    def __init__(self, targeting_key: str | None = None, attributes: Any = None) -> None:
        self.targeting_key, self.attributes = targeting_key, attributes or {}


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The file as a copy beside a copied client, where an SDK is installed."""
    modules = {
        "openfeature": {},
        "openfeature.contrib.provider.ofrep": {"OFREPProvider": StockProvider},
        "openfeature.evaluation_context": {"EvaluationContext": Context},
        "openfeature.provider": {"Metadata": SimpleNamespace},
    }
    for name, members in modules.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    shutil.copy(client_module.__file__, tmp_path / "client.py")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "equipoise.agent.client", None)
    path = shutil.copy(FILE, tmp_path / "equipoise_openfeature.py")
    spec = importlib.util.spec_from_file_location("equipoise_openfeature", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("client", None)


def test_a_request_without_an_id_gets_one_and_is_remembered(copied: Any) -> None:
    provider = copied.EquipoiseProvider("http://127.0.0.1:9", "secret-token")
    assert type(provider.outcomes.client).__module__ == "client", "the copied one"
    assert provider.headers == {"Authorization": "Bearer secret-token"}
    provider.outcomes.client.close()
    provider.outcomes.client = client = Recorder()
    provider._resolve("STRING", "chat", "large", Context("user-1", {"words": 3}))
    name = provider.asked[0].attributes["request_id"]
    assert provider.asked[0].attributes == {"words": 3, "request_id": name}
    event = SimpleNamespace(value=1.0, attributes={})
    provider.track("outcome", Context("user-1", {"request_id": name}), event)
    provider.track("outcome")
    assert [each for each, _ in client.sent] == [name]
    assert provider.outcomes.counters == Counter({"sent": 1, "no-decision": 1})


def failure(status: int | None) -> Exception:
    error = ValueError("no answer")
    response = None if status is None else SimpleNamespace(status_code=status)
    error.__cause__ = OSError()
    error.__cause__.response = response  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (failure(None), True),
        (failure(500), True),
        (ValueError("of another type than the default"), True),
        (failure(400), False),
        (failure(429), False),
    ],
)
def test_what_may_have_been_decided_for_nobody_is_reported(
    copied: Any, error: Exception, lost: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = copied.EquipoiseProvider("http://127.0.0.1:9")
    provider.outcomes.client.close()
    provider.outcomes.client = client = Recorder()
    monkeypatch.setattr(provider, "answer", error)
    with pytest.raises(ValueError, match=str(error)):
        provider._resolve("STRING", "chat", "large", Context("user-1", CONTEXT))
    asked = {"context": {"targetingKey": "user-1", **CONTEXT, "again": True}}
    wanted = [("r1", "large", "/ofrep/v1/evaluate/flags/chat", asked)]
    assert client.lost == (wanted if lost else [])


def test_an_answer_that_never_came_is_reported_with_the_token_it_had(tmp_path: Path) -> None:
    """A daemon that wants tokens is asked for that of a decision nobody got the answer of."""
    token = "a-router-of-this-test"
    service = f'[[service.tokens]]\nname = "router"\ntoken = "{token}"\n'
    path, context = "/ofrep/v1/evaluate/flags/chat", {"targetingKey": "user-1", "routed": "large"}
    with running(tmp_path, service) as daemon:
        client = Client(f"http://127.0.0.1:{daemon.port}", token)
        body = {"context": {**context, "request_id": "late", "words": 3}}
        assert daemon.ask("POST", path, body, token=token).status == 200
        for name in ("late", "never"):
            again = {"context": {**body["context"], "request_id": name, "again": True}}
            client.undelivered(name, "large", path, again)
        assert client.flush(30.0)
        client.close()
        assert client.counters.refused == 0
        late = "/v1/decisions?request_id=late"
        parts = until(lambda: daemon.ask("GET", late, token=token).json["outcomes"])
        assert [part["delivered"] for part in parts] == [False]
        assert daemon.ask("GET", "/v1/decisions?request_id=never", token=token).status == 404
