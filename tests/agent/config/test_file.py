"""The whole file: every problem at once, the example, and what a change of it means."""

from __future__ import annotations

from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, get_args, get_origin

import msgspec
import pytest
from commands import run_command

from equipoise.agent.config import ConfigError, ExperimentConfig
from equipoise.agent.config.file import (
    CapacityConfig,
    ConfigFile,
    example_text,
    file_from_dict,
    load_file,
)
from equipoise.agent.config.reload import Effect, in_force, reload_plan, rule_of
from equipoise.agent.config.service import ServiceSettings
from equipoise.agent.ingest.presets import fields_of

ROOT = Path(__file__).resolve().parents[3]
MINIMAL: dict[str, Any] = {"name": "chat", "models": [{"name": "a"}, {"name": "b"}]}


def problems(**tables: Any) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        file_from_dict({**MINIMAL, **tables})
    return raised.value.problems


def test_the_parts_have_defaults() -> None:
    file = file_from_dict(MINIMAL)
    assert file.service == ServiceSettings()
    assert file.capacity == CapacityConfig()
    assert file.ingest == []


def test_every_part_says_all_its_problems_at_once() -> None:
    mapping = {
        "name": "log",
        "preset": "wildchats",
        "fields": {"rewrad": "a", "routed": "a..b"},
        "models": {"gpt": "c"},
        "features": {"words": "w"},
    }
    found = problems(
        policy={"rate": 2},
        service={"port": 99_999, "tokens": [{"name": "x"}], "mode": "off"},
        capacity={"requests_per_second": 0},
        ingest=[mapping, {**mapping, "preset": None, "fields": {}}],
        features={"outputs": [{"type": "number", "name": "cost"}]},
        extra=1,
    )
    # A mapping is compared with the experiment only where that can be read.
    expected = [
        "extra: received 1, expected no such key",
        "policy.rate: received 2, expected a number above 0, at most 1",
        "service.port: received 99999, expected 0 to 65535",
        "service.tokens[0].sha256: received none of them, expected exactly one of",
        "service.mode: received 'off', expected 'observe' or 'run'",
        "capacity.requests_per_second: received 0, expected a number above 0",
        "ingest[0].preset: received 'wildchats', expected one of litellm, litellm-spend, langfuse",
        "ingest[0].fields: received 'rewrad', expected a field of observations; did you mean",
        "ingest[0].fields.routed: received 'a..b', expected a path",
    ]
    for each in expected:
        assert any(problem.startswith(each) for problem in found), each
    assert len(found) == len(expected)


def test_keys_that_are_missing_and_names_that_are_none() -> None:
    shadow = {"contexts": "c", "endpoint": "http://x", "models": [], "budget_usd": 1}
    assert problems(service={"shadow": shadow, "names": ["a.example", "a b"]}) == [
        "service.shadow.outputs: received nothing, expected a table; add it",
        "service.names[1]: received 'a b', expected a host name",
    ]


def test_a_mapping_is_held_against_the_experiment() -> None:
    mapping = {"name": "log", "models": {"gpt": "c"}, "features": {"words": "w"}}
    found = problems(
        ingest=[mapping, mapping],
        features={
            "outputs": [
                {"type": "number", "name": "cost"},
                {"type": "number", "name": "calls", "missing": 0.0},
            ]
        },
    )
    for at in (0, 1):
        for each in (
            f"ingest[{at}].models: received 'c' for 'gpt', expected one of a, b",
            f"ingest[{at}].features: received 'words', expected a name in features.context",
            f"ingest[{at}].outputs.cost: received nothing, expected a path; add it",
        ):
            assert any(problem.startswith(each) for problem in found), each
    assert any(problem.startswith("ingest[1].name: received 'log'") for problem in found)
    assert len(found) == 7


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"\xff", "not UTF-8"), (b"name = ", "not TOML"), (None, "cannot be read")],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "equipoise.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        load_file(path)


def test_the_command_line_replaces_keys_of_the_service() -> None:
    assert file_from_dict(MINIMAL, {"port": 1}).service.port == 1
    with pytest.raises(ConfigError, match=r"service\.tokens: received none, expected a token"):
        file_from_dict(MINIMAL, {"host": "0.0.0.0"})


def test_the_example_of_the_repository_is_the_one_that_init_writes() -> None:
    """It is also the shortest path of its kind, which is the one that people will try."""
    listed = sorted(ROOT.glob("**/equipoise*.toml"), key=lambda path: len(str(path)))
    assert listed[0] == ROOT / "equipoise.toml"
    assert listed[0].read_text() == example_text()
    file = load_file(listed[0])
    assert file.service.loopback
    assert file.service.tokens == []
    assert fields_of(file.mapping("requests"))["routed"] == "request.model"


def test_init_writes_a_configuration_and_its_tokens(tmp_path: Path) -> None:
    def call(*arguments: str) -> CompletedProcess[str]:
        return run_command(*arguments, cwd=tmp_path)

    assert call("init").returncode == 0
    secret = tmp_path / "equipoise.tokens"
    assert secret.stat().st_mode & 0o777 == 0o600
    tokens = dict(line.split() for line in secret.read_text().splitlines())
    assert tokens.keys() == {"route", "admin"}
    text = (tmp_path / "equipoise.toml").read_text()
    assert not any(token in text for token in tokens.values())
    checked = call("serve", "--config", "equipoise.toml", "--host", "0.0.0.0", "--check")
    assert checked.returncode == 0, checked.stderr
    assert "GB per day" in checked.stdout
    assert "days until" in checked.stdout
    assert not (tmp_path / "equipoise.db").exists()
    again = call("init")
    assert again.returncode == 2
    assert again.stderr == "equipoise: equipoise.toml exists: it is not replaced\n"
    (tmp_path / "equipoise.toml").unlink()
    assert call("init").returncode == 2, "the tokens are in the way now"
    assert not (tmp_path / "equipoise.toml").exists(), "all or nothing"


def plan(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Effect]:
    changes = reload_plan(file_from_dict(MINIMAL | old), file_from_dict(MINIMAL | new)).changes
    return {change.key: change.effect for change in changes}


def test_nothing_changed() -> None:
    made = reload_plan(file_from_dict(MINIMAL), file_from_dict(MINIMAL))
    assert (made.changes, made.effect) == ((), "applied")


def test_models() -> None:
    def models(*given: dict[str, Any]) -> dict[str, Any]:
        return {"models": list(given)}

    a, b, c = ({"name": name} for name in "abc")
    assert plan({}, models(a, b, c)) == {"models[2]": "era"}
    assert plan({}, models(a, {**b, "retired": False}, c)) == {"models[2]": "era"}
    assert plan({}, models(b, a)) == {"models": "refused"}
    assert plan({}, models(a, {**b, "version": "2"})) == {"models[1].version": "era"}
    assert plan({}, models({**a, "price": 0.1}, b)) == {"models[0].price": "applied"}


def test_what_a_certificate_rests_on_starts_an_era_and_a_scale_never_changes() -> None:
    features = {"context": [{"type": "number", "name": "words"}]}
    new = {
        "reward": {"high": 5.0, "missing": 0.0, "window": 60.0},
        "policy": {"delta": 0.01, "floor": 0.1, "rate": 0.2, "epsilon": 0.1, "gate": "uncertainty"},
        "features": features,
        "budget": {"requests": 5},
    }
    assert plan({}, new) == {
        "reward.high": "refused",
        "reward.missing": "era",
        "reward.window": "era",
        "policy.delta": "era",
        "policy.floor": "era",
        "policy.rate": "era",
        "policy.epsilon": "applied",
        "policy.gate": "applied",
        "features.context": "refused",
        "budget.requests": "applied",
    }


def test_the_daemon_keeps_its_place_and_no_token_is_repeated() -> None:
    secret = "a-secret-of-24-characters"
    new = {
        "mode": "observe",
        "port": 1,
        "store": "other.db",
        "limits": {"rows": 5},
        "tokens": [{"name": "x", "token": secret}],
    }
    made = reload_plan(file_from_dict(MINIMAL), file_from_dict(MINIMAL | {"service": new}))
    assert {change.key: change.effect for change in made.changes} == {
        "service.mode": "applied",
        "service.port": "restart",
        "service.store": "restart",
        "service.limits.rows": "restart",
        "service.tokens": "applied",
    }
    assert made.effect == "restart"
    assert [change.key for change in made.waiting] == [
        "service.store",
        "service.port",
        "service.limits.rows",
    ]
    assert not any(secret in change.sentence for change in made.changes)
    assert not any(change.of_experiment for change in made.changes)


def test_until_the_next_start_the_rest_of_the_file_is_in_force() -> None:
    """What waits keeps its old value, by a file that was written without it."""
    a, b = ({"name": name} for name in "ab")
    features = {"context": [{"type": "number", "name": "words"}]}
    old = MINIMAL | {"models": [a, b], "features": features}
    later = {
        "models": [
            {**a, "version": "2", "price": 0.5},
            {**b, "retired": True},
            {"name": "c"},
            {"name": "d"},
        ],
        "policy": {"epsilon": 0.2, "delta": 0.01, "rate": 0.3},
        "reward": {"window": 60.0, "missing": 0.0},
        "certify": {"segments": [{"name": "long", "column": "words", "low": 0.5}]},
    }
    now = {"models": [{**a, "price": 0.5}, b], "policy": {"epsilon": 0.2}}
    before, after = file_from_dict(old), file_from_dict(old | later)
    plan, experiment = in_force(reload_plan(before, after), before.experiment, after.experiment)
    assert experiment == file_from_dict(old | now).experiment
    assert {change.key for change in plan.of("applied")} == {"models[0].price", "policy.epsilon"}
    assert {"models[2]", "models[3]", "models[1].retired", "policy.delta"} < {
        change.key for change in plan.waiting
    }
    assert all("in a new era" in change.sentence for change in plan.waiting)


def test_what_needs_a_change_that_waits_waits_with_it() -> None:
    """A highest rate below the old rate, which stays until the start."""
    before = file_from_dict(MINIMAL | {"policy": {"rate": 0.3}})
    after = file_from_dict(
        MINIMAL | {"policy": {"rate": 0.1, "rate_max": 0.2}, "service": {"mode": "observe"}}
    )
    plan, experiment = in_force(reload_plan(before, after), before.experiment, after.experiment)
    assert experiment == before.experiment
    assert {change.key: change.effect for change in plan.changes} == {
        "policy.rate": "era",
        "policy.rate_max": "restart",
        "service.mode": "applied",
    }


def keys(struct: Any, prefix: str) -> list[str]:
    found = []
    for field in msgspec.structs.fields(struct):
        key = f"{prefix}.{field.name}" if prefix else field.name
        inner = field.type
        if get_origin(inner) is list:
            inner, key = get_args(inner)[0], f"{key}[0]"
        is_part = isinstance(inner, type) and issubclass(inner, msgspec.Struct)
        found += keys(inner, key) if is_part else [key]
    return found


def test_every_key_there_is_has_a_rule() -> None:
    """A key that somebody adds is not forgotten: it must say what changing it means."""
    every = keys(ExperimentConfig, "")
    for name, part in (("service", ServiceSettings), ("capacity", CapacityConfig)):
        every += keys(part, name)
    assert len(every) > 40
    assert [key for key in every if rule_of(key) is None] == []
    assert set(ConfigFile.__dataclass_fields__) == {
        "experiment",
        "service",
        "ingest",
        "capacity",
    }
