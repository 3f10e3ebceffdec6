"""The configuration of an experiment: defaults, round trips, and every problem at once."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from equipoise.agent.config import (
    BudgetConfig,
    ConfigError,
    ExperimentConfig,
    ModelConfig,
    PolicyConfig,
    RewardConfig,
    config_from_dict,
)
from equipoise.agent.config.file import CapacityConfig, load_file
from equipoise.agent.config.ingest import IngestMapping
from equipoise.agent.config.service import ServiceSettings
from equipoise.agent.features import FeatureSchema, Transform
from equipoise.agent.features.declarations import bound_of, limit_of, read
from equipoise.agent.features.values import Problem, shown
from equipoise.policies.snapshot import Limits

MODELS = [{"name": "small"}, {"name": "large"}]
TOML = """
name = "chat"

[[models]]
name = "small"
price = 0.001

[[models]]
name = "org/large:2"
price = 1
version = "2024-11"

[reward]
low = -1
high = 1
missing = 0
window = 3600

[features]
interactions = [["prompt.words", "cost"]]

[[features.context]]
type = "text"
name = "prompt"
statistics = ["words", "question"]

[[features.context]]
type = "category"
name = "plan"
values = ["free", "pro"]
other = true

[[features.outputs]]
type = "number"
name = "cost"
log = true

[policy]
assignment = "uniform"
rate = 0.2
epsilon = 0.01

[budget]
requests = 5000
"""


def declared(**parts: Any) -> dict[str, Any]:
    return {"name": "chat", "models": MODELS, **parts}


def problems(data: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config_from_dict(data)
    return caught.value.problems


def test_a_file_becomes_a_configuration(tmp_path: Path) -> None:
    path = tmp_path / "equipoise.toml"
    path.write_text(TOML)
    config = load_file(path).experiment
    assert config.model_names == ("small", "org/large:2")
    assert config.models[1] == ModelConfig(name="org/large:2", price=1.0, version="2024-11")
    assert config.reward == RewardConfig(low=-1.0, high=1.0, missing=0.0, window=3600.0)
    assert config.policy == PolicyConfig(assignment="uniform", rate=0.2, epsilon=0.01)
    assert config.budget == BudgetConfig(requests=5000)
    assert Transform(config.features).p == 7
    assert load_file(str(path)).experiment == config


def test_defaults() -> None:
    config = config_from_dict(declared())
    assert config == ExperimentConfig(
        name="chat", models=[ModelConfig(name=n) for n in ("small", "large")]
    )
    assert config.reward == RewardConfig(low=0, high=1, maximise=True, missing="worst-case")
    assert config.features == FeatureSchema()
    assert config.budget.requests is None
    policy = config.policy
    names = (policy.gate, policy.assignment, policy.estimator)
    assert names == ("fixed-rate", "top-two", "hierarchical")
    assert (policy.delta, policy.epsilon) == (0.05, 0.0)


def test_the_default_policy_is_registered() -> None:
    """A table left out is not read; written out, the defaults must pass."""
    config = config_from_dict(declared(policy=msgspec.to_builtins(PolicyConfig())))
    assert config.policy == PolicyConfig()


@pytest.mark.parametrize(
    ("policy", "limits"),
    [
        ({}, Limits(rate=0.1, rate_min=0.01, rate_max=1.0, floor=0.05)),
        ({"rate": 0.004}, Limits(rate=0.004, rate_min=0.004, rate_max=1.0, floor=0.05)),
        ({"rate_min": 0.1, "floor": 0.5}, Limits(rate=0.1, rate_min=0.1, rate_max=1.0, floor=0.5)),
        ({"rate": 1, "rate_max": 1}, Limits(rate=1.0, rate_min=0.01, rate_max=1.0, floor=0.05)),
    ],
)
def test_limits_have_their_defaults_filled_in(policy: dict[str, float], limits: Limits) -> None:
    assert config_from_dict(declared(policy=policy)).limits == limits


def test_a_missing_reward_is_a_value_or_the_worst_case() -> None:
    assert RewardConfig().missing_value is None
    assert RewardConfig(missing=0.25).missing_value == 0.25


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"name": "a b"}, "name: received 'a b', expected letters, digits"),
        ({"name": 3}, "name: received 3, expected text"),
        ({"name": "a\n"}, "name: received 'a\\n', expected letters"),
        ({"nome": 3}, "nome: received 3, expected no such key; did you mean 'name'?"),
        ({"models": MODELS[:1]}, "models: received 1, expected 2 to 64 models; add"),
        ({"models": [{"name": f"m{i}"} for i in range(65)]}, "models: received 65, expected 2 to"),
        (
            {"models": [*MODELS, MODELS[0]]},
            "models: received 'small' twice, expected each name once",
        ),
        (
            {"models": [*MODELS, {"name": "keep"}]},
            "models[2].name: received 'keep', expected another name: in answers 'keep' is today's",
        ),
        ({"models": "small"}, "models: received 'small', expected a list"),
        ({"models": [*MODELS, "x"]}, "models[2]: received 'x', expected a table"),
        ({"models": [*MODELS, {}]}, "models[2].name: received nothing, expected text; add it"),
        ({"models": [*MODELS, {"name": "-"}]}, "models[2].name: received '-', expected letters"),
        (
            {"models": [*MODELS, {"name": "x", "price": -1}]},
            "models[2].price: received -1, expected USD per request, 0 or more; leave it out",
        ),
        ({"models": [*MODELS, {"name": "x", "price": math.inf}]}, "models[2].price: received inf"),
        ({"models": [*MODELS, {"name": "x", "version": "\0"}]}, "models[2].version: received"),
        ({"reward": {"low": math.nan}}, "reward.low: received nan, expected a number within"),
        ({"reward": {"low": 1}}, "reward.high: received 1, expected a number above low, which is"),
        (
            {"reward": {"missing": "rated"}, "certify": {"sequence": "asymptotic"}},
            "certify.sequence: received 'asymptotic', expected one that can certify the mean among"
            " those who rate (reward.missing = 'rated')",
        ),
        (
            {
                "reward": {"missing": "rated"},
                "certify": {"sequence": "per-model"},
                "units": {"ttl": 60.0},
            },
            "(reward.missing = 'rated') of sticky units",
        ),
        ({"reward": {"missing": 2}}, "reward.missing: received 2, expected a meaning or a num"),
        ({"reward": {"missing": "worst"}}, "reward.missing: received 'worst', expected 'worst-ca"),
        ({"reward": {"window": 0}}, "reward.window: received 0, expected seconds, more than 0"),
        ({"reward": {"window": math.inf}}, "reward.window: received inf, expected seconds"),
        ({"reward": {"maximise": 1}}, "reward.maximise: received 1, expected true or false"),
        ({"reward": []}, "reward: received a list of 0, expected a table"),
        ({"policy": {"rate": 0}}, "policy.rate: received 0, expected a number above 0, at most 1"),
        (
            {"policy": {"exclude": ["u1", "a\n"]}},
            "policy.exclude[1]: received 'a\\n', expected 1 to 200 printable characters",
        ),
        ({"policy": {"rate": "\ud800"}}, "policy.rate: received '\\ud800', expected a number"),
        ({"policy": {"rate": True}}, "policy.rate: received true, expected a number"),
        ({"policy": {"rate": math.nan}}, "policy.rate: received nan, expected a number above"),
        ({"policy": {"rate_min": 0.2}}, "policy.rate_min: received 0.2, expected a number above"),
        ({"policy": {"rate_min": 0}}, "policy.rate_min: received 0, expected a number above 0"),
        ({"policy": {"rate_max": 0.05}}, "policy.rate_max: received 0.05, expected a number from"),
        ({"policy": {"rate_max": 1.1}}, "policy.rate_max: received 1.1, expected a number from"),
        ({"policy": {"floor": 0.6}}, "policy.floor: received 0.6, expected at most 1 / 2, since"),
        ({"policy": {"floor": 0}}, "policy.floor: received 0, expected a number above 0"),
        ({"policy": {"delta": 0}}, "policy.delta: received 0, expected a number above 0, at most"),
        ({"policy": {"delta": 0.6}}, "policy.delta: received 0.6, expected a number above 0"),
        ({"policy": {"epsilon": -1}}, "policy.epsilon: received -1, expected a number of 0 or m"),
        ({"policy": {"epsilon": 1}}, "policy.epsilon: received 1, expected less than the range"),
        ({"policy": {"gate": "fixed"}}, "policy.gate: received 'fixed', expected one of active"),
        ({"policy": {"assignment": "toptwo"}}, "did you mean 'top-two'?"),
        ({"policy": {"estimator": "hierarchic"}}, "did you mean 'hierarchical'?"),
        ({"budget": {"requests": 0}}, "budget.requests: received 0, expected a whole number of 1"),
        ({"budget": {"requests": 1.5}}, "budget.requests: received 1.5, expected a whole number"),
        ({"features": {"context": [{"name": "a"}]}}, "features.context[0].type: received nothing"),
        (
            {"features": {"context": [{"type": "nummer"}]}},
            "features.context[0].type: received 'nummer', expected one of number, boolean, categ",
        ),
        (
            {"features": {"context": [{"type": "number", "name": "a", "scale": 0}]}},
            "features.context[0].scale: received 0, expected a number above 0",
        ),
        (
            {"features": {"interactions": [["a"]], "context": [{"type": "number", "name": "a"}]}},
            "features.interactions: received ['a'], expected pairs of column names",
        ),
        (
            {
                "features": {
                    "interactions": [[1, "a"]],
                    "context": [{"type": "number", "name": "a"}],
                }
            },
            "features.interactions[0][0]: received 1, expected text",
        ),
    ],
)
def test_a_problem_names_key_value_limit_and_fix(parts: dict[str, Any], message: str) -> None:
    (problem,) = problems(declared(**parts))
    assert message in problem


def parts(kind: Any) -> Iterator[type[msgspec.Struct]]:
    """Every struct that a type holds."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        yield kind
        for field in msgspec.structs.fields(kind):
            yield from parts(field.type)
    for inner in get_args(kind):
        yield from parts(inner)


def declared_bounds() -> dict[str, tuple[Any, msgspec.Meta]]:
    """Type and bound of every key that declares one, by the name of its struct and its own."""
    kinds = dict.fromkeys(
        part
        for whole in (ExperimentConfig, ServiceSettings, CapacityConfig, IngestMapping)
        for part in parts(whole)
    )
    return {
        f"{part.__name__}.{field.name}": (field.type, meta)
        for part in kinds
        for field in msgspec.structs.fields(part)
        if (meta := bound_of(field.type)[1]) is not None
    }


BOUNDS = declared_bounds()


@pytest.mark.parametrize("key", BOUNDS)
def test_a_declared_bound_holds_at_its_ends_and_not_beyond(key: str) -> None:
    kind, meta = BOUNDS[key]
    whole = int in (kind, *get_args(bound_of(kind)[0]), bound_of(kind)[0])
    nan = [] if whole else [math.nan]

    def step(end: float, to: float) -> float:
        return end + (1 if to > end else -1) if whole else math.nextafter(end, to)

    inside: list[Any] = [end for end in (meta.ge, meta.le) if end is not None]
    outside: list[Any] = nan if inside or meta.gt is not None else []
    outside += [] if meta.ge is None else [step(meta.ge, -math.inf)]
    outside += [] if meta.le is None else [step(meta.le, math.inf)]
    if meta.gt is not None:
        inside, outside = [*inside, step(meta.gt, math.inf)], [*outside, meta.gt]
    if meta.min_length is not None:
        outside.append("")
    if meta.max_length is not None:
        inside, outside = [*inside, "x" * meta.max_length], [*outside, "x" * (meta.max_length + 1)]
    if meta.pattern is not None:
        outside.append("\n")
    assert outside
    for value in inside:
        problems: list[Problem] = []
        assert read(value, kind, problems, key) == value
        assert problems == []
    for value in outside:
        problems = []
        read(value, kind, problems, key)
        (problem,) = problems
        assert str(problem).startswith(f"{key}: received {shown(value)}, expected ")
        assert problem.expected == limit_of(kind) != ""


def test_bound_of_every_part_are_declared() -> None:
    assert len(BOUNDS) > 60
    assert {"ModelConfig.price", "LimitSettings.rows", "Vector.length"} <= BOUNDS.keys()


def test_a_length_beyond_its_limit_does_not_fill_the_memory() -> None:
    vector = {"type": "vector", "name": "v", "length": 10**15}
    (problem,) = problems(declared(features={"context": [vector]}))
    assert problem.startswith("features.context[0].length: received 1000000000000000, expected a")


@pytest.mark.parametrize("ends", [{"low": math.nan}, {"high": math.nan}, {"low": 1.0, "high": 1}])
def test_a_segment_has_something_in_it(ends: dict[str, float]) -> None:
    segment = {"name": "s", "column": "a", **ends}
    context = {"context": [{"type": "number", "name": "a"}]}
    (problem,) = problems(declared(features=context, certify={"segments": [segment]}))
    assert "certify.segments[0].high: received" in problem
    assert "expected a number above low, which is" in problem


def test_every_problem_at_once() -> None:
    data = {
        "naam": "chat",
        "models": [{"name": "x", "price": -1}, {"name": "x"}, {"price": "3"}],
        "reward": {"low": 2, "high": 1, "missing": 5, "maximise": "yes"},
        "features": {
            "context": [{"type": "number", "name": "a", "scale": 0}, {"type": "text", "name": "t"}],
            "outputs": [{"type": "vector", "name": "v", "length": "3"}],
            "interactions": [["a", "nothing"], ["a"]],
        },
        "policy": {"rate": 1.5, "rate_min": 0.9, "gate": "?", "delta": "x", "floor": 2},
        "budget": {"request": 10},
        "service": {},
    }
    assert [problem.partition(":")[0] for problem in problems(data)] == [
        "naam",
        "service",
        "name",
        "models[0].price",
        "models[2].name",
        "models[2].price",
        "reward.maximise",
        "reward.high",
        "features.context[0].scale",
        "features.context[1].statistics",
        "features.outputs[0].length",
        "features.interactions",
        "policy.rate",
        "policy.floor",
        "policy.delta",
        "policy.gate",
        "budget.request",
        "models",
    ]


def test_each_problem_is_one_line_with_its_source(tmp_path: Path) -> None:
    path = tmp_path / "equipoise.toml"
    path.write_text('name = "a"\nmodels = []\n[policy]\nrate = 7\n')
    with pytest.raises(ConfigError) as caught:
        load_file(path)
    rate, models = str(caught.value).splitlines()
    assert rate.startswith(f"{path}: policy.rate: received 7, expected")
    assert models.startswith(f"{path}: models: received 0, expected")
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name = ", "the file is not TOML: Invalid value (at"),
        (b"a = 1\na = 2", "the file is not TOML: Cannot overwrite a value"),
        (b"name = '\xff'", "the file is not UTF-8: byte 8 is 0xff"),
        (b"a = " + b"[" * 100_000, "the file is not TOML"),
        (b"", "name: received nothing, expected text; add it"),
    ],
)
def test_an_unreadable_file_is_one_clear_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "equipoise.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_file(path)
    assert message in caught.value.problems[0]
    assert caught.value.source == str(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(ConfigError, match="the file cannot be read: "):
            load_file(path)


def test_importing_the_configuration_is_light() -> None:
    code = (
        "import sys, equipoise.agent.config;"
        "print({'scipy', 'pandas', 'river', 'pyarrow', 'sklearn'} & set(sys.modules) or 'light')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "light"
