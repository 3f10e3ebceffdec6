"""Guardrails and the actions of checks in a configuration: defaults, refusals, frozen text."""

from __future__ import annotations

import json
from typing import Any

import pytest

from equipoise.agent.config import ConfigError, ExperimentConfig, GuardrailConfig, config_from_dict
from equipoise.agent.monitors import DEFAULT_ACTIONS, action_table

BASE: dict[str, Any] = {"name": "chat", "models": [{"name": "small"}, {"name": "large"}]}
ERROR = {"name": "error", "limit": 0.1}
COST = {"name": "cost", "limit": 0.5, "low": -1.0, "high": 2, "direction": "at-least"}


def problems(**parts: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config_from_dict({**BASE, **parts})
    return caught.value.problems


def test_guardrails_and_actions_come_through_the_frozen_text():
    given = {**BASE, "guardrails": [ERROR, COST], "checks": {"drift": "widen"}}
    config = config_from_dict(given)
    assert config.guardrails[0] == GuardrailConfig(name="error", limit=0.1)
    assert config.guardrails[1].direction == "at-least"
    assert action_table(config.checks) == {**DEFAULT_ACTIONS, "drift": "widen"}
    assert ExperimentConfig.from_json(config.to_json()) == config


def test_a_configuration_without_them_keeps_the_text_it_had_before_there_were_any():
    """Else no store made by an older version could be opened again."""
    text = json.loads(config_from_dict(BASE).to_json())
    assert set(text) == {"budget", "features", "models", "name", "policy", "reward"}


def test_every_problem_is_listed_with_its_place_value_and_limit():
    found = problems(
        guardrails=[
            {"name": "a b", "limit": 1.5},
            {"name": "x", "limit": 0.5, "low": 3, "high": 1},
            {"name": "y", "limit": float("nan"), "low": float("inf")},
            {"name": "y", "limit": "low", "direction": "up"},
            {"limit": 0.5},
        ],
        checks={"drfit": "pause", "drift": "stop", "floors": 3},
    )
    said = "\n".join(found)
    for words in (
        "guardrails[0].name: received 'a b'",
        "guardrails[0].limit: received 1.5, expected a number between low and high, 0 and 1",
        "guardrails[1].high: received 1, expected a number above low, which is 3",
        "guardrails[2].low: received inf",
        "guardrails[3].limit: received 'low', expected a number",
        "guardrails[3].direction: received 'up', expected 'at-most' or 'at-least'",
        "guardrails[4].name: received nothing",
        "checks.floors: received 3, expected text",
    ):
        assert words in said


def test_names_and_actions_are_checked_together():
    found = problems(guardrails=[ERROR, ERROR], checks={"drfit": "pause", "drift": "stop"})
    assert len(found) == 3
    assert found[0].startswith("guardrails: received 'error' twice, expected each name once")
    assert found[1].endswith("did you mean 'drift'?")
    assert "checks.drift: received 'stop', expected one of report, widen" in found[2]


@pytest.mark.parametrize("limit", [0.0, 1.0])
def test_a_limit_at_an_end_of_the_range_could_not_be_crossed_or_kept(limit):
    assert "guardrails[0].limit" in problems(guardrails=[{"name": "error", "limit": limit}])[0]


def test_there_are_at_most_sixteen():
    many = [{"name": f"m{index}", "limit": 0.5} for index in range(17)]
    assert problems(guardrails=many)[0].startswith("guardrails: received 17, expected at most 16")
    assert len(config_from_dict({**BASE, "guardrails": many[:16]}).guardrails) == 16


@pytest.mark.parametrize("checks", [["drift"], "drift", {3: "pause"}])
def test_checks_are_a_table_by_name(checks):
    assert problems(checks=checks)[0].startswith("checks")


def test_net_takes_its_range_when_none_is_declared_and_keeps_it_in_the_frozen_text():
    config = config_from_dict({**BASE, "reward": {"missing": "net"}})
    declared = config_from_dict({**BASE, "reward": {"missing": "net", "low": -1, "high": 1}})
    assert (config.reward.low, config.reward.high, config.reward.missing_value) == (-1.0, 1.0, 0.0)
    assert config == declared
    assert ExperimentConfig.from_json(config.to_json()) == config
    # The range of a number, or of another meaning, stays what it was.
    assert config_from_dict({**BASE, "reward": {"missing": 0}}).reward.low == 0.0


@pytest.mark.parametrize(
    "given",
    [
        {"low": 0, "high": 1},
        {"low": -2, "high": 2},
        {"low": -1, "high": 2},
        {"low": -1.5},
        {"high": 2},
    ],
)
def test_net_refuses_another_range_in_one_line(given):
    (problem,) = problems(reward={"missing": "net", **given})
    assert "-1 to 1 where missing = 'net'" in problem
    assert "leave out low and high" in problem


def test_net_refuses_a_range_that_cannot_hold_silence_in_one_line():
    (problem,) = problems(reward={"missing": "net", "low": 1, "high": 2})
    assert "missing" in problem
