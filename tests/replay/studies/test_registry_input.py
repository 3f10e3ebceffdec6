"""What an experiment refuses, what overrides its plan, and the statistics its tables rest on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import run_command

from equipoise.agent.errors import AgentError
from equipoise.agent.estimators.base import Estimate
from equipoise.replay.command import complete_order
from equipoise.replay.findings.findings import beaten, bias_and_deviation, lowest
from equipoise.replay.harness.stream import direct_method
from equipoise.replay.studies.misspecified import flagged
from equipoise.replay.studies.registry import prepare
from equipoise.replay.studies.simulator import largest_change

NOTHING: dict[str, Any] = {
    **dict.fromkeys(("policies", "estimators", "alphas", "confoundings", "exp_rate", "seeds")),
    **dict.fromkeys(("obs", "requests", "budget", "out", "store")),
    "benchmark": "semisynthetic",
    "delta": 0.05,
    "epsilon": 0.0,
    "world": [],
    "jobs": 1,
    "force": False,
    "as_json": True,
}


def prepared(name: str, **given: Any):
    return prepare(complete_order({**NOTHING, "experiment": name, **given}))


def test_an_experiment_runs_its_plan_where_nothing_is_given():
    found = prepared("grid")
    assert len(found.sweep) == 25 * 20
    assert found.settings.budget == 1000
    assert found.settings.obs == 20_000
    assert found.settings.exp_rate == 1.0
    assert len(found.meta["scenarios"]) == 25
    assert complete_order({**NOTHING, "experiment": "grid"}).out == Path("runs/grid")


def test_what_is_given_overrides_the_plan():
    found = prepared(
        "simulator",
        alphas=[0.2],
        seeds=2,
        obs=0,
        budget=50,
        world=["rating=0.1"],
        estimators=["ipw"],
    )
    assert len(found.sweep) == 13 * 2
    assert {cell.alpha for cell in found.sweep} == {0.2}
    assert found.settings.obs == 0
    worlds = {cell.world: cell.options for cell in found.sweep}
    assert {options.rating for options in worlds.values()} == {0.1}
    assert worlds["drift 0.3"].simulator_drift == 0.3
    assert worlds["missing tilted 0.6"].simulator_missing_tilt == 1.0


def test_requests_alone_say_how_long_a_stream_is():
    found = prepared("alignment", requests=300)
    assert (found.settings.requests, found.settings.budget) == (300, None)


@pytest.mark.parametrize(
    ("name", "given", "says"),
    [
        ("grid", {"estimators": ["ipw", "grounded"]}, "obs-only, representation-exp missing"),
        ("grid", {"estimators": ["magic"]}, "'magic' is not one of"),
        ("grid", {"policies": ["uniform", "top-two"]}, "one policy"),
        ("misspecified", {"policies": ["top-two"]}, "top-two looks at estimates"),
        ("simulator", {"world": ["simulator_drift=2"]}, "simulator_drift is what"),
        ("alignment", {"store": Path("x.db")}, "^store: "),
    ],
)
def test_orders_that_make_no_sense_are_refused(name, given, says):
    with pytest.raises(AgentError, match=says):
        prepared(name, **given)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--experiment", "magic"], "'magic' is not one of alignment, "),
        (["--experiment", "grid", "--alpha", "1.5"], "1.5"),
        (["--experiment", "grid", "--estimators", ""], "--estimators"),
        (["--experiment", "grid", "--benchmark", "swebench:/nowhere"], "/nowhere"),
        (["--experiment", "grid", "--out", "mine"], "exists"),
    ],
)
def test_bad_input_is_one_clear_line_and_nothing_is_written(tmp_path, arguments, says):
    (tmp_path / "mine").mkdir()
    result = run_command("replay", *arguments, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert says in result.stderr
    assert "Traceback" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_bias_has_no_noise_of_seeds_in_it():
    """Unbiased errors of 12 seeds and 200 models: the naive root mean square is .29, this is ~0.

    The estimate of bias² has standard deviation about .006 here; .15 is over 3 of them away.
    """
    errors = np.random.default_rng(3).normal(size=(12, 200))
    naive = np.sqrt((errors.mean(axis=0) ** 2).mean())
    bias, deviation = bias_and_deviation(errors)
    assert naive > 0.25
    assert bias.mean < 0.15
    assert bias.low == 0
    assert bias.high < naive
    assert deviation.low < 1 < deviation.high
    shifted, _ = bias_and_deviation(errors + 0.5)
    assert shifted.low < 0.5 < shifted.high
    assert shifted.low > 0.3
    assert shifted.mean**2 + deviation.mean**2 == pytest.approx(
        ((errors + 0.5) ** 2).mean() - 0, rel=0.05
    )
    assert bias_and_deviation(errors[:1])[0].mean is None
    assert bias_and_deviation(np.where(errors > 3, np.nan, errors))[0].mean is None


def test_who_is_beaten():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=20)
    losses = {
        "a": 1 + noise,
        "b": 1.1 + noise + 0.01 * rng.normal(size=20),
        "c": 1.01 + rng.normal(size=20),
    }
    assert lowest(losses | {"never": np.full(20, np.nan)}) == min(
        losses, key=lambda name: losses[name].mean()
    )
    # b shares the noise of a: paired, a tenth is far beyond it.
    assert beaten({"a": losses["a"], "b": losses["b"]}) == {"a": False, "b": True}


def test_flags_keep_their_false_alarm_rate():
    right = np.arange(40.0)
    assert flagged(right, right).sum() == 1  # of 40; a second one would be 5% already
    assert flagged(right + 100, right).mean() == 1
    assert np.isnan(flagged(np.array([np.nan]), right)).all()


def test_the_largest_change_counts_what_appears_or_vanishes():
    one = np.array([1.0, np.nan, 2.0])
    assert largest_change(one, one) == 0
    assert largest_change(one, one + np.array([0, 0, 1e-15])) == 0
    assert largest_change(one, np.array([1.0, np.nan, 2.1])) == pytest.approx(0.1)
    assert largest_change(one, np.array([1.0, 0.0, 2.0])) == np.inf


def test_the_direct_method_is_the_first_half_of_doubly_robust():
    values, unknown = np.array([0.4, 0.6]), np.full((2, 2), np.inf)
    halves = {"direct": values, "correction": values - 1}
    assert (
        direct_method(Estimate("doubly-robust", 2 * values - 1, unknown, halves)).values is values
    )
    assert np.isnan(direct_method(Estimate("doubly-robust", values, unknown)).values).all()
