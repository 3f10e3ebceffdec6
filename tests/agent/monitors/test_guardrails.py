"""Guardrails: certain only where they may be, in either direction, on any scale."""

from __future__ import annotations

import numpy as np
import pytest

from equipoise.agent.inference.mixture import lower_mean
from equipoise.agent.monitors import Guardrail, GuardrailLimit

MODELS = ("a", "b", "c")


def fed(rng, rates, rows=6000, **options):
    monitor = Guardrail(MODELS, GuardrailLimit("error rate", 0.05), **options)
    model = rng.integers(0, 3, rows)
    monitor.update(model, (rng.random(rows) < np.array(rates)[model]).astype(float))
    return monitor


def test_a_model_at_its_limit_is_not_paused():
    """The worst honest case: all models exactly at the limit. Of 300 runs with 8 looks each more
    than 10 have probability 0.02% at the level of 1%."""
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(120):
        monitor, ever = Guardrail(MODELS, GuardrailLimit("error rate", 0.05)), False
        for _ in range(6):
            model = rng.integers(0, 3, 250)
            monitor.update(model, (rng.random(250) < 0.05).astype(float))
            ever |= monitor.result().status == "alarm"
        alarms += ever
    assert alarms <= 6


def test_a_model_beyond_its_limit_is_named():
    check = fed(np.random.default_rng(1), [0.04, 0.1, 0.03]).result()
    assert check.status == "alarm"
    assert check.models == (1,)
    assert "Pause b." in check.sentence
    assert check.figures["bounds"][1] > 0.05 >= check.figures["bounds"][0]


def test_the_bound_is_that_of_the_engine_around_the_limit():
    values = np.random.default_rng(4).random(300)
    monitor = Guardrail(MODELS, GuardrailLimit("x", 0.3), level=0.06)
    monitor.update(np.ones(300, dtype=int), values)
    expected = lower_mean(300.0, values.sum(), ((values - 0.3) ** 2).sum(), 1.0, 0.02)
    assert monitor.result().figures["bounds"][1] == pytest.approx(float(expected), rel=1e-9)
    assert expected > 0.3


def test_a_doubt_is_a_watch():
    check = fed(np.random.default_rng(2), [0.06, 0.02, 0.02], rows=1500).result()
    assert check.status == "watch"
    assert check.models == (0,)


def test_a_lower_limit_and_another_scale_mirror():
    """A quality from 0 to 10 that must stay above 9.5 is an error rate that must stay below .05."""
    rng = np.random.default_rng(3)
    model = rng.integers(0, 3, 5000)
    error = (rng.random(5000) < np.array([0.02, 0.09, 0.04])[model]).astype(float)
    one = Guardrail(MODELS, GuardrailLimit("error rate", 0.05))
    two = Guardrail(MODELS, GuardrailLimit("quality", 9.5, low=0.0, high=10.0, at_most=False))
    one.update(model, error)
    two.update(model, 10.0 * (1.0 - error))
    first, second = one.result(), two.result()
    assert first.status == second.status == "alarm"
    assert first.models == second.models == (1,)
    np.testing.assert_allclose(
        10.0 * (1.0 - np.array(first.figures["means"])), second.figures["means"], rtol=1e-9
    )
    assert "below its limit of 9.5" in second.sentence


def test_unknown_values_are_left_out_and_wild_ones_count_as_the_end():
    monitor = Guardrail(MODELS, GuardrailLimit("seconds", 2.0, high=4.0))
    monitor.update(np.array([0, 0, 1]), np.array([np.nan, 1.0, 1e9]))
    figures = monitor.result().figures
    assert figures["rows"] == [1.0, 1.0, 0.0]
    assert figures["means"][:2] == pytest.approx([1.0, 4.0])


@pytest.mark.parametrize("limit", [0.0, 1.0, 2.0])
def test_a_limit_outside_the_range_is_refused(limit):
    with pytest.raises(ValueError, match="limit of guardrail error rate is"):
        Guardrail(MODELS, GuardrailLimit("error rate", limit))
