"""The LiteLLM plugin: its settings, features and outputs, and its files."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from litellm_shapes import MODELS, OUTPUTS, Daemon, asked, event, plugin, pre_call

from equipoise.agent.doors import litellm as door_module
from equipoise.agent.doors.litellm import (
    Attempt,
    Settings,
    known_cost,
    look_up,
    outputs_of,
    prompt_texts,
    tokens_known,
)

COUNTED = {  # more of the record, stream_options, whether stream_usage is declared, the answer
    "an answer": ({}, None, False, True),
    "an answer without counts": ({"prompt_tokens": 0, "completion_tokens": 0}, None, False, False),
    "a stream": ({"stream": True, "prompt_tokens": 0}, None, True, False),
    "a stream of 1.110.2, estimated": ({"stream": True, "prompt_tokens": 9}, None, True, False),
    "a stream with usage": ({"stream": True}, {"include_usage": True}, True, True),
    "the same where nobody vouches": ({"stream": True}, {"include_usage": True}, False, False),
    "a stream that was left": (
        {"stream": True, "error_str": "Client disconnected the request"},
        {"include_usage": True},
        True,
        False,
    ),
}


@pytest.mark.parametrize("case", COUNTED)
def test_no_estimate_is_reported_as_a_count(case):
    more, stream_options, vouched, known = COUNTED[case]
    settings = Settings(models=MODELS, outputs=OUTPUTS, stream_usage=vouched)
    body = asked() | {"metadata": {}}
    kwargs = event(body, "gpt-small-0", **more, stream_options=stream_options)
    assert tokens_known(settings, kwargs) == known
    outputs = outputs_of(settings, kwargs, [])
    assert outputs.pop("seconds") == pytest.approx(0.038665, abs=1e-5)
    assert outputs == ({"tokens": 20, "usd": 2.7e-05} if known else {})


@pytest.mark.parametrize(
    "more",
    [
        {"response_cost": 0.0},
        {"response_cost": None},
        {"response_cost_failure_debug_info": {"error_str": "This model isn't mapped yet."}},
    ],
)
def test_the_cost_of_a_model_without_a_price_is_unknown(more):
    settings = Settings(models=MODELS, outputs=OUTPUTS)
    kwargs = event(asked(), "gpt-small-0", **more)
    assert known_cost(settings, kwargs) is None
    assert outputs_of(settings, kwargs, []).keys() == {"seconds", "tokens"}


@pytest.mark.parametrize("streamed", [True, None])
def test_seconds_are_those_of_the_attempt_that_answered(streamed):
    tried = [
        Attempt("small", "gpt-small-0", "c1", "", 100.0, 102.0, "failed"),
        Attempt("large", "gpt-large-0", "c1", "", 102.5),
    ]
    # A stream is counted from the arrival of the request, another answer from its own attempt.
    started = 100.0 if streamed else 102.5
    kwargs = event(asked(), "gpt-large-0", stream=streamed, startTime=started, endTime=103.0)
    settings = Settings(models=MODELS, outputs=OUTPUTS)
    assert outputs_of(settings, kwargs, tried)["seconds"] == 0.5
    assert outputs_of(settings, kwargs, tried[:1])["seconds"] == 103.0 - started


def test_outputs_have_the_names_of_the_experiment_and_texts_only_where_they_are_named():
    outputs = {"text": "answer", "why": "finish_reason", "in": "input_tokens"}
    settings = Settings(models=MODELS, outputs=outputs)
    kwargs = event(asked(), "gpt-small-0")
    assert outputs_of(settings, kwargs, []) == {"text": "of course", "why": "stop", "in": 100}
    kwargs = event(asked(), "gpt-small-0", response="redacted-by-litellm")
    assert outputs_of(settings, kwargs, []) == {"in": 100}


BODY = {
    "messages": [
        {"role": "system", "content": "be brief"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "what is it?"}, {"type": "image_url"}],
        },
        {"role": "assistant", "content": None},
    ],
    "temperature": 0.5,
    "user": "",
    "metadata": {"tier": "gold", "requester_metadata": {"plan": "paid"}},
    "proxy_server_request": {"headers": {"x-region": "eu"}},
}
KEY = SimpleNamespace(team_id="t1", metadata={"site": {"name": "here"}}, user_id=None)


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("prompt", "be brief\nwhat is it?\n"),
        ("prompt.words", 5),
        ("prompt.characters", 21),
        ("prompt.messages", 3),
        ("body.temperature", 0.5),
        ("body.metadata.tier", "gold"),
        ("body.nothing.at.all", None),
        ("metadata.plan", "paid"),
        ("metadata.tier", "gold"),
        ("header.X-Region", "eu"),
        ("header.x-other", None),
        ("key.team_id", "t1"),
        ("key.metadata.site.name", "here"),
        ("key.user_id", None),
    ],
)
def test_features_are_looked_up_in_the_request(source, value):
    assert look_up(source, BODY, KEY) == value
    assert not look_up(source, {}, None)


@pytest.mark.parametrize(
    ("body", "texts"),
    [
        ({"prompt": "one"}, ["one"]),
        ({"prompt": ["one", "two"]}, ["one", "two"]),
        ({"input": "one"}, ["one"]),
        (
            {"input": [{"role": "user", "content": [{"type": "input_text", "text": "one"}]}]},
            ["one"],
        ),
        ({"input": [7, None]}, ["", ""]),
        ({}, []),
    ],
)
def test_prompts_of_every_endpoint_have_texts(body, texts):
    assert prompt_texts(body) == texts


def test_a_unit_without_a_name_is_left_out():
    daemon = Daemon()
    pre_call(plugin(daemon, unit="body.user"), asked(user=""))
    assert "unit_id" not in daemon.asked[0]


# Settings.


def test_settings_come_from_the_file_and_the_environment():
    section = {
        "url": "http://127.0.0.1:1",
        "models": {"large": "gpt-large", "small": ["gpt-small", "gpt-small-eu"]},
        "routed": {"chat": "large"},
        "outputs": OUTPUTS,
        "stream_usage": True,
    }
    read = Settings.read(
        section, {"EQUIPOISE_URL": "http://127.0.0.1:2", "EQUIPOISE_TIMEOUT": "0.2"}
    )
    assert read.models == MODELS
    assert (read.url, read.timeout, read.stream_usage) == ("http://127.0.0.1:2", 0.2, True)
    assert read.entries == {
        "gpt-large": "large",
        "gpt-small": "small",
        "gpt-small-eu": "small",
        "chat": "large",
    }
    environment = {
        "EQUIPOISE_MODELS": "large=gpt-large, small=gpt-small,small=gpt-small-eu",
        "EQUIPOISE_ROUTED": "chat=large",
        "EQUIPOISE_OUTPUTS": "seconds=seconds,tokens=output_tokens,usd=cost",
        "EQUIPOISE_STREAM_USAGE": "true",
        "EQUIPOISE_URL": "http://127.0.0.1:2",
        "EQUIPOISE_TIMEOUT": "0.2",
    }
    assert Settings.read({}, environment) == read


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({}, "models is empty"),
        ({"models": {"large": []}}, "models is {'large': ()}, expected groups that differ"),
        ({"models": {"a": "g", "b": "g"}}, "expected groups that differ"),
        (
            {"models": {"a": "g"}, "routed": {"chat": "b"}},
            "routed.chat is 'b', expected one",
        ),
        ({"models": {"a": "g"}, "features": {"x": "words"}}, "x is 'words', expected a source"),
        ({"models": {"a": "g"}, "unit": "user"}, "unit is 'user', expected a source"),
        (
            {"models": {"a": "g"}, "outputs": {"x": "tokens"}},
            "outputs.x is 'tokens', expected",
        ),
        ({"models": {"a": "g"}, "cached": "yes"}, "cached is 'yes', expected one of undelivered"),
        ({"models": {"a": "g"}, "modles": {}}, "equipoise.modles is no setting, expected one of"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_name_and_value(section, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        Settings.read(section, {})


def test_a_wrong_pair_of_the_environment_is_refused():
    with pytest.raises(ValueError, match="EQUIPOISE_MODELS is 'large', expected NAME=VALUE"):
        Settings.read({}, {"EQUIPOISE_MODELS": "large"})


COPIED = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("equipoise_litellm", sys.argv[1])
module = importlib.util.module_from_spec(spec)  # and not entered into sys.modules
spec.loader.exec_module(module)
print(module.plugin is module.plugin, module.plugin.settings.entries, module.Client.__module__)
"""


def test_two_files_are_enough_as_litellm_loads_them(tmp_path):
    """Without this package and without LiteLLM, by nothing but their place."""
    sources = Path(door_module.__file__).parents[1]
    shutil.copy(sources / "doors" / "litellm.py", tmp_path / "equipoise_litellm.py")
    shutil.copy(sources / "client.py", tmp_path / "client.py")
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", COPIED, tmp_path / "equipoise_litellm.py"],
        env={"EQUIPOISE_MODELS": "large=gpt-large"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "True {'gpt-large': 'large'} equipoise_client\n", done.stderr
