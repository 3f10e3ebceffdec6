"""Configurations as canonical text, and garbage as configurations."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.agent.config import (
    BudgetConfig,
    ConfigError,
    ExperimentConfig,
    ModelConfig,
    PolicyConfig,
    RewardConfig,
    config_from_dict,
)
from equipoise.agent.features import FeatureSchema

SHARES = st.floats(1e-6, 1)
CONFIGS = st.builds(
    ExperimentConfig,
    name=st.from_regex(r"[a-z0-9][a-z.\-]{0,5}", fullmatch=True),
    models=st.lists(
        st.builds(
            ModelConfig,
            name=st.from_regex(r"[a-z0-9][A-Z:/@+]{0,3}", fullmatch=True),
            price=st.none() | st.floats(0, 10) | st.integers(0, 3),
            version=st.sampled_from(["", "2", "v 3"]),
        ),
        min_size=2,
        max_size=4,
        unique_by=lambda model: model.name,
    ),
    reward=st.builds(
        RewardConfig,
        low=st.floats(-9, 0),
        high=st.integers(1, 9),
        maximise=st.booleans(),
        missing=st.just("worst-case") | st.floats(0, 1),
        window=st.none() | st.floats(1e-3, 1e6),
    ),
    features=st.builds(
        FeatureSchema.vectors,
        st.lists(st.sampled_from("abc"), unique=True),
        st.lists(st.sampled_from("xyz"), unique=True),
    ),
    policy=st.builds(
        PolicyConfig,
        gate=st.sampled_from(["fixed-rate", "uncertainty"]),
        assignment=st.sampled_from(["uniform", "thompson", "top-two"]),
        rate=SHARES,
        rate_min=st.none() | st.just(1e-6),
        floor=st.none() | st.floats(1e-6, 0.25),
        estimator=st.sampled_from(["ipw", "cvci", "hierarchical"]),
        delta=st.floats(1e-9, 0.5),
        epsilon=st.floats(0, 0.99),
    ),
    budget=st.builds(BudgetConfig, requests=st.none() | st.integers(1, 2**62)),
)


@settings(deadline=None, max_examples=60)
@given(CONFIGS)
def test_canonical_text_round_trips(config: ExperimentConfig) -> None:
    text = config.to_json()
    again = ExperimentConfig.from_json(text)
    assert again == config == config.checked()
    assert again.to_json() == text
    assert again.limits == config.limits
    assert config_from_dict(msgspec.json.decode(text)) == config


def test_canonical_text_is_checked() -> None:
    with pytest.raises(ConfigError, match=r"policy\.rate: received nan"):
        ExperimentConfig(
            name="a", models=[ModelConfig(name=n) for n in "ab"], policy=PolicyConfig(rate=math.nan)
        ).to_json()
    with pytest.raises(ConfigError, match="it holds what no file could"):
        ExperimentConfig(name="a", models=[object()]).checked()  # type: ignore[list-item]


@pytest.mark.parametrize("text", ["", "[" * 100_000, "[]", "null", b"\xff", '{"name": "a"}'])
def test_damaged_canonical_text_is_refused(text: str | bytes) -> None:
    with pytest.raises(ConfigError):
        ExperimentConfig.from_json(text)


GARBAGE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**400), 10**400)
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(["worst-case", "top-two", "\ud800", b"x", object()]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    *(
                        name
                        for part in (ModelConfig, RewardConfig, PolicyConfig, BudgetConfig)
                        for name in part.__struct_fields__
                    ),
                    "type",
                    "context",
                    "interactions",
                    3,
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=15,
)


@settings(deadline=None, max_examples=200)
@given(st.dictionaries(st.sampled_from(ExperimentConfig.__struct_fields__), GARBAGE) | GARBAGE)
def test_garbage_is_refused_with_problems(data: Any) -> None:
    """Any object whatever is a ConfigError that can be shown, never another exception."""
    with pytest.raises(ConfigError) as caught:
        config_from_dict(data)
    found = caught.value.problems
    assert found
    assert all(len(problem) < 1000 for problem in found)


@settings(deadline=None, max_examples=200)
@given(
    part=st.sampled_from(["reward", "policy", "features", "budget"]),
    values=st.dictionaries(
        st.sampled_from([*RewardConfig.__struct_fields__, *PolicyConfig.__struct_fields__]), GARBAGE
    ),
)
def test_a_garbled_part_is_refused_or_sound(part: str, values: dict[str, Any]) -> None:
    models = [{"name": "small"}, {"name": "large"}]
    try:
        config = config_from_dict({"name": "chat", "models": models, part: values})
    except ConfigError:
        return
    assert ExperimentConfig.from_json(config.to_json()) == config
    assert 0 < config.limits.rate_min <= config.limits.rate <= config.limits.rate_max <= 1
    assert 0 < config.limits.floor <= 0.5
