"""The LiteLLM plugin: what it asks, what it changes and what it reports, hook by hook."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from litellm_shapes import MESSAGES, Daemon, asked, attempt, event, plugin, pre_call

from equipoise.agent.client import Choice, Client
from equipoise.agent.doors import litellm as door_module
from equipoise.agent.doors.litellm import (
    MARK,
    MOST_ATTEMPTS,
    REPEAT,
    Equipoise,
)


def play(door: Equipoise, body: dict[str, Any], *steps: tuple[str, str]) -> None:
    """Hooks in the order in which LiteLLM calls them: (what, deployment)."""

    async def run() -> None:
        for what, deployment in steps:
            tried = attempt(body, deployment)
            if what == "begins":
                await door.async_pre_call_deployment_hook(tried, "acompletion")
            elif what == "nested":
                await door.async_pre_call_deployment_hook(tried, "anthropic_messages")
                await door.async_pre_call_deployment_hook(tried, "acompletion")
            elif what == "fails":
                error = RuntimeError("500")
                await door.async_post_call_failure_deployment_hook(
                    tried, error, "", fallback_depth=1
                )
            elif what == "failure event":
                failed = event(body, deployment, status="failure")
                await door.async_log_failure_event(failed, None, None, None)
            elif what == "gives up":
                data = {**body, "model": "gpt-small"}
                await door.async_post_call_failure_hook(data, RuntimeError("500"), None, "text")
            else:
                options = {"hit": {"cache_hit": True}, "answers": {}}[what]
                done = event(body, deployment, **options)
                await door.async_log_success_event(done, None, None, None)

    asyncio.run(run())


def listed(daemon: Daemon) -> list[tuple[str | None, str]]:
    (_, parts) = daemon.told[-1]
    return [(each["model"], each["status"]) for each in parts["attempts"]]


# What a request asks for becomes what was drawn.


def test_the_drawn_models_group_takes_the_place_of_the_requests_model():
    daemon = Daemon()
    door = plugin(daemon, features={"words": "prompt.words", "plan": "metadata.plan"}, unit="key.u")
    body = pre_call(door, asked(), SimpleNamespace(u=7))
    assert body["model"] == "gpt-small"
    assert body["metadata"][MARK] == "c1"
    assert "cache" not in body
    (question,) = daemon.asked
    features = {"words": 3, "plan": "paid"}
    assert question == {"id": "c1", "routed": "large", "features": features, "unit_id": "7"}
    assert door.counters.decided == 1


@pytest.mark.parametrize("model", ["other", None, 7, ["chat"]])
def test_other_models_are_none_of_its_business(model):
    daemon = Daemon()
    body = asked(model=model) | {"metadata": {MARK: "c0", REPEAT: "c0"}}  # the plugin's alone
    assert pre_call(plugin(daemon), body)["model"] == model
    assert not daemon.asked
    assert MARK not in body["metadata"]


def test_groups_of_the_experiment_are_routed_to_their_own_model():
    daemon = Daemon(model="large")
    assert pre_call(plugin(daemon), asked(model="gpt-small-eu"))["model"] == "gpt-large"
    assert daemon.asked[0]["routed"] == "small"


def test_without_a_decision_the_routed_group_serves_and_nothing_is_reported():
    daemon = Daemon(reason="time-out", decision_id=None, randomized=False)
    door = plugin(daemon)
    body = pre_call(door, asked())
    assert body["model"] == "gpt-large"
    assert MARK not in body["metadata"]
    play(door, body, ("begins", "gpt-large-0"), ("answers", "gpt-large-0"))
    assert not daemon.told
    assert door.counters.passed == {"time-out": 1}
    headers = door.async_post_call_response_headers_hook(body, None, None, request_headers={})
    assert asyncio.run(headers) is None


def test_no_error_of_ours_reaches_a_request(caplog):
    class Broken(Daemon):
        async def decide_async(self, *_: Any, **__: Any) -> Choice:
            raise ZeroDivisionError

    door = plugin(Broken())
    for number in range(3):
        assert pre_call(door, asked(f"c{number}"))["model"] == "gpt-large"
    prepared = asyncio.run(door.prepare(model="chat", messages=MESSAGES))
    assert prepared["model"] == "gpt-large"
    assert door.counters.errors == 4
    assert len(caplog.records) == 1 + 1  # each kind once a minute: the reason, and the error


def test_a_model_that_the_settings_do_not_have_is_served_as_routed():
    daemon = Daemon(model="huge")
    assert pre_call(plugin(daemon), asked())["model"] == "gpt-large"
    assert daemon.told == [("c1", {"delivered": False})]


def test_the_clients_own_time_out_holds():
    with Client("http://127.0.0.1:9") as client:  # nobody listens there
        door = plugin(client)
        assert pre_call(door, asked())["model"] == "gpt-large"
        assert door.counters.passed == {"unreachable": 1}


def test_a_program_prepares_the_arguments_of_its_router():
    daemon = Daemon()
    door = plugin(daemon, features={"plan": "metadata.plan"})
    metadata = {"plan": "free"}
    call = door.prepare(model="chat", messages=MESSAGES, metadata=metadata, request_id="r7")
    assert asyncio.run(call) == {
        "model": "gpt-small",
        "messages": MESSAGES,
        "metadata": {"plan": "free", MARK: "r7"},
    }
    assert metadata == {"plan": "free"}
    again = asyncio.run(door.prepare(model="chat", messages=MESSAGES))
    assert again["metadata"][MARK] == daemon.asked[1]["id"] != "r7"
    assert asyncio.run(door.prepare(model="other")) == {"model": "other"}


def test_drawn_requests_ask_the_cache_for_nothing_where_that_is_declared():
    body = pre_call(plugin(cached="fresh"), asked(cache={"ttl": 5}))
    assert body["cache"] == {"ttl": 5, "no-cache": True}
    undrawn = plugin(Daemon(randomized=False, model="large"), cached="fresh")
    assert "cache" not in pre_call(undrawn, asked())


@pytest.mark.parametrize("ask", [False, True])
def test_the_application_gets_what_it_needs_to_report_a_reward(ask):
    door = plugin(Daemon(outcome_token="T", ask=ask))
    body = pre_call(door, asked())
    headers = asyncio.run(door.async_post_call_response_headers_hook(body, None, None))
    wanted = {"x-equipoise-request-id": "c1", "x-equipoise-outcome-token": "T"}
    assert headers == wanted | ({"x-equipoise-ask": "true"} if ask else {})


# What came of it.

STORIES = {
    "one attempt": (
        [("begins", "gpt-small-0"), ("answers", "gpt-small-0")],
        [("small", "delivered")],
        "answered",
    ),
    "a retry in the other group of the model": (
        [
            ("begins", "gpt-small-0"),
            ("fails", "gpt-small-0"),
            ("failure event", "gpt-small-0"),
            ("begins", "gpt-small-eu-0"),
            ("answers", "gpt-small-eu-0"),
        ],
        [("small", "failed"), ("small", "delivered")],
        "answered",
    ),
    "a fallback, and a failure event that names the innocent one": (
        [
            ("begins", "gpt-small-0"),
            ("begins", "gpt-large-0"),
            ("failure event", "gpt-large-0"),
            ("answers", "gpt-large-0"),
        ],
        [("small", "failed"), ("large", "delivered")],
        "answered",
    ),
    "a fallback that is no model of the experiment": (
        [
            ("begins", "gpt-small-0"),
            ("fails", "gpt-small-0"),
            ("begins", "b-0"),
            ("answers", "b-0"),
        ],
        [("small", "failed"), (None, "delivered")],
        "answered",
    ),
    "a cached answer": (
        [("begins", "gpt-small-0"), ("hit", "gpt-small-0")],
        [("small", "cached")],
        "cached",
    ),
    "a fallback to a cached answer": (
        [("begins", "gpt-small-0"), ("begins", "gpt-large-0"), ("hit", "gpt-large-0")],
        [("small", "failed"), ("large", "cached")],
        "cached",
    ),
    "all fail": (
        [("begins", "gpt-small-0"), ("fails", "gpt-small-0"), ("gives up", "gpt-small-0")],
        [("small", "failed")],
        "failed",
    ),
    "a stream that breaks after its first word": (
        [("begins", "gpt-small-0"), ("failure event", "gpt-small-0"), ("gives up", "gpt-small-0")],
        [("small", "failed")],
        "failed",
    ),
    "one call carried out by another": (
        [
            ("nested", "gpt-small-0"),
            ("fails", "gpt-small-0"),
            ("fails", "gpt-small-0"),
            ("nested", "gpt-small-0"),
            ("answers", "gpt-small-0"),
        ],
        [("small", "failed"), ("small", "delivered")],
        "answered",
    ),
    "a fallback whose attempt had no hook": (
        [("begins", "gpt-small-0"), ("answers", "gpt-large-0")],
        [("small", "failed"), ("large", "delivered")],
        "answered",
    ),
    "an answer whose attempts had no hook": (
        [("answers", "gpt-large-0")],
        [("large", "delivered")],
        "answered",
    ),
}


@pytest.mark.parametrize("bucket", ["metadata", "litellm_metadata"])
@pytest.mark.parametrize("story", STORIES)
def test_a_request_is_reported_once_with_all_its_attempts(story, bucket):
    steps, attempts, ended = STORIES[story]
    daemon = Daemon()
    door = plugin(daemon)
    body = pre_call(
        door, asked(**({} if bucket == "metadata" else {bucket: {"user_api_key": "k"}}))
    )
    play(door, body, *steps)
    play(door, body, *steps[-1:])  # LiteLLM says some things twice
    assert len(daemon.told) == 1
    assert listed(daemon) == attempts
    (name, parts) = daemon.told[0]
    assert name == "c1"
    assert ("outputs" in parts) == (ended == "answered")
    assert getattr(door.counters, ended) == 1
    assert not door.counters.errors


def test_a_request_that_was_never_tried_is_undelivered():
    daemon = Daemon()
    door = plugin(daemon)
    play(door, pre_call(door, asked()), ("gives up", "gpt-small-0"))
    assert daemon.told == [("c1", {"delivered": False})]


def test_a_program_reports_every_failure_for_none_says_that_it_is_the_last():
    daemon = Daemon()
    door = plugin(daemon)
    body = asyncio.run(door.prepare(model="chat", messages=MESSAGES, request_id="r1"))

    async def run() -> None:
        for call_id, deployment in (
            ("a", "gpt-small-0"),
            ("b", "gpt-small-0"),
            ("c", "gpt-large-0"),
        ):
            tried = attempt(body, deployment, call_id)
            await door.async_pre_call_deployment_hook(tried, "acompletion")
            if call_id == "c":
                done = event(body, deployment, call_id)
                await door.async_log_success_event(done, None, None, None)
            else:
                if call_id == "a":  # the second one is a stream that broke: only an event
                    error = RuntimeError("500")
                    await door.async_post_call_failure_deployment_hook(tried, error, "acompletion")
                failed = event(body, deployment, call_id, status="failure")
                await door.async_log_failure_event(failed, None, None, None)

    asyncio.run(run())
    assert [len(parts["attempts"]) for _, parts in daemon.told] == [1, 2, 3]
    assert listed(daemon) == [("small", "failed"), ("small", "failed"), ("large", "delivered")]


def test_a_repeat_of_an_answered_request_is_served_alike_and_not_reported():
    daemon = Daemon()
    door = plugin(daemon)
    first = pre_call(door, asked())
    play(door, first, ("begins", "gpt-small-0"), ("answers", "gpt-small-0"))
    again = pre_call(door, asked())
    assert again["model"] == "gpt-small"
    assert MARK not in again["metadata"]
    play(door, again, ("begins", "gpt-small-0"), ("answers", "gpt-small-0"))
    assert len(daemon.told) == 1
    assert (door.counters.decided, door.counters.repeated) == (1, 1)


def test_another_request_of_the_same_id_learns_nothing_of_the_first():
    """The daemon refuses it; its application must not report for the decision of another."""
    daemon = Daemon(outcome_token="T")
    door = plugin(daemon)
    first = pre_call(door, asked())
    again = pre_call(door, asked())
    daemon.choice = {"reason": "status-409", "decision_id": None, "outcome_token": None}
    other = pre_call(door, asked(messages=[{"role": "user", "content": "something else"}]))
    assert [body["model"] for body in (first, again, other)] == ["gpt-small"] * 2 + ["gpt-large"]
    told = [
        asyncio.run(door.async_post_call_response_headers_hook(body, None, None))
        for body in (first, again, other)
    ]
    assert told[0] == told[1] == {"x-equipoise-request-id": "c1", "x-equipoise-outcome-token": "T"}
    assert told[2] is None


def test_a_group_that_the_settings_do_not_know_is_told_of(caplog):
    """Such as an alias: its answers would all count as another model's."""
    door = plugin()
    play(door, pre_call(door, asked()), ("begins", "alias-0"), ("answers", "alias-0"))
    assert "group alias, deployment alias-0 for small, see models" in caplog.text
    caplog.clear()
    body = pre_call(door, asked("c2"))
    play(door, body, ("begins", "gpt-small-0"), ("begins", "alias-0"), ("answers", "alias-0"))
    assert not caplog.records


def test_a_repeat_of_a_failed_request_goes_on_with_its_story():
    daemon = Daemon()
    door = plugin(daemon)
    first = pre_call(door, asked())
    play(door, first, ("begins", "gpt-small-0"), ("gives up", "gpt-small-0"))
    again = pre_call(door, asked())
    play(door, again, ("begins", "gpt-small-0"), ("answers", "gpt-small-0"))
    assert [len(parts["attempts"]) for _, parts in daemon.told] == [1, 2]
    assert listed(daemon) == [("small", "failed"), ("small", "delivered")]


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(door_module, "REMEMBERED", 10)
    daemon = Daemon()
    door = plugin(daemon)
    bodies = [pre_call(door, asked(f"c{number}")) for number in range(12)]
    play(door, bodies[0], ("begins", "gpt-small-0"), ("answers", "gpt-small-0"))
    assert not daemon.told  # forgotten
    play(door, bodies[-1], *[("begins", "gpt-small-0")] * (MOST_ATTEMPTS + 5))
    play(door, bodies[-1], ("gives up", "gpt-small-0"))
    assert len(listed(daemon)) == MOST_ATTEMPTS  # as an outcome may list
