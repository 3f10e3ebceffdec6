"""The experiments between policies: their parts by hand, and both of them on a small world."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from equipoise.agent.errors import AgentError
from equipoise.replay.benchmarks import load_from_texts
from equipoise.replay.command import complete_order, run_replay
from equipoise.replay.studies.allocation import (
    AB_TEST,
    OURS,
    PRICED,
    lower_bound,
    spend_at,
)
from equipoise.replay.studies.gates import PAIRS
from equipoise.replay.studies.registry import prepare
from equipoise.replay.studies.streams import CHALLENGERS, reward_variances, settled
from equipoise.replay.worlds import World, WorldOptions


def order_of(name: str, out: Path, **more: Any):
    given: dict[str, Any] = {
        **dict.fromkeys(("policies", "estimators", "exp_rate")),
        "alphas": [0.5],
        "confoundings": [1.0],
        "benchmark": "semisynthetic",
        "experiment": name,
        "seeds": 3,
        "obs": 200,
        "requests": None,
        "budget": 100,
        "delta": 0.05,
        "epsilon": 0.0,
        "world": [],
        "jobs": 1,
        "out": out,
        "store": None,
        "force": False,
        "as_json": True,
    }
    return complete_order({**given, **more})


class Ran:
    """What an experiment left behind."""

    def __init__(self, name: str, folder: Path) -> None:
        run_replay(order_of(name, folder))
        self.folder = folder
        self.results = pd.read_parquet(folder / "results.parquet")
        self.summary = json.loads((folder / "summary.json").read_text())

    def table(self, name: str) -> pd.DataFrame:
        tables = self.summary["findings"]["tables"]
        (found,) = (each for each in tables if each["name"] == name)
        return pd.DataFrame(found["rows"], columns=found["columns"])

    def curves(self, label: str, column: str) -> np.ndarray:
        """(R, C) of one arm, read by its family."""
        family = label.partition(",")[0].rpartition(" / ")[2]
        rows = self.results[self.results["policy"] == label]
        rows = rows[rows["estimator"] == family]
        return rows.pivot(index="seed", columns="checkpoint", values=column).to_numpy()

    def mattering(self, label: str) -> np.ndarray:
        """(R, C) mean squared error of the best model's contrasts with its closest challengers."""
        (scenario,) = self.summary["scenarios"]
        truth = np.array([scenario["values"][model] for model in self.summary["models"]])
        order = np.argsort(-truth)[: 1 + CHALLENGERS]
        values = self.curves(label, "values")
        errors = np.array(
            [[np.asarray(each, dtype=float)[order] - truth[order] for each in r] for r in values]
        )
        return ((errors[..., :1] - errors[..., 1:]) ** 2).mean(axis=-1)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    known: dict[str, Ran] = {}

    def run(name: str) -> Ran:
        if name not in known:
            known[name] = Ran(name, tmp_path_factory.mktemp(name) / "out")
        return known[name]

    return run


@pytest.mark.parametrize("name", ["allocation", "gates"])
def test_the_folder_is_whole_and_every_arm_ran_every_seed(ran, name: str) -> None:
    found = ran(name)
    names = sorted(path.name for path in found.folder.iterdir())
    assert names == ["findings.md", "report.html", "results.parquet", "summary.json"]
    labels = found.summary["options"]["arms"]
    assert sorted(set(found.results["policy"])) == sorted(labels)
    for label in labels:
        assert found.curves(label, "regret").shape == (3, 4)
    assert found.summary["findings"]["sentences"]
    assert found.summary["findings"]["figures"]


def test_the_area_is_the_mean_regret(ran) -> None:
    found = ran("allocation")
    entry = found.table("area").iloc[0][OURS.label]
    grid = np.sort(found.results["checkpoint"].unique())
    areas = np.trapezoid(found.curves(OURS.label, "regret"), grid, axis=1) / grid[-1]
    assert entry["mean"] == pytest.approx(areas.mean())


def test_harm_is_per_randomized_request(ran) -> None:
    found = ran("allocation")
    entry = found.table("harm").iloc[0][AB_TEST.label]
    harm = found.curves(AB_TEST.label, "harm")[:, -1]
    used = found.curves(AB_TEST.label, "exp_used")[:, -1]
    assert entry["mean"] == pytest.approx((harm / used).mean())


def test_prices_move_money_to_cheaper_models(ran) -> None:
    found = ran("allocation")
    with_prices, without = (
        found.curves(arm.label, "spend")[:, -1].mean() for arm in (PRICED, OURS)
    )
    assert with_prices < 0.9 * without
    row = found.table("money").iloc[0]
    at = np.searchsorted(np.sort(found.results["checkpoint"].unique()), row["EXP"])
    rmse = np.sqrt(found.mattering(OURS.label)[:, at].mean())
    assert row["RMSE"] == pytest.approx(rmse, abs=1e-4)
    spent = found.curves(OURS.label, "spend")[:, at].mean()
    assert row["USD"] == pytest.approx(spent, abs=0.05)


def test_gates_are_compared_at_equal_exp_and_assignment(ran) -> None:
    found = ran("gates")
    table = found.table("ratios").set_index("setting, assignment / family, EXP")
    for assignment, family in PAIRS:
        row = table.loc[f"α = 0.5, ω = 1, {assignment} / {family}, 100"]
        for gate in ("active", "contrast"):
            ours, plain = (
                found.mattering(f"{name}+{assignment} / {family}")[:, -1].mean()
                for name in (gate, "fixed-rate")
            )
            assert row[gate]["mean"] == pytest.approx(math.sqrt(ours / plain))
    assert (found.results["exp_used"] >= found.results["checkpoint"]).all()


def test_arms_come_with_the_experiment(tmp_path: Path) -> None:
    for more in ({"policies": ["uniform"]}, {"estimators": ["ipw", "hierarchical"]}):
        with pytest.raises(AgentError, match="arms of its own"):
            prepare(order_of("allocation", tmp_path / "out", **more))


def test_prices_are_left_out_where_nobody_knows_any(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    rng = np.random.default_rng(0)
    rows = [
        f"c{context},{model},{rng.random():.3f},{context % 7},{rng.random():.3f}"
        for context in range(20)
        for model in "ab"
    ]
    path.write_text("\n".join(["context_id,model,reward,x_a,y_b", *rows]))
    order = order_of("allocation", tmp_path / "out", benchmark=f"table:{path}")
    prepared = prepare(order)
    assert not any(cell.priced for cell in prepared.sweep)
    assert PRICED.label not in prepared.meta["options"]["arms"]


def test_the_bound_for_two_models_by_hand() -> None:
    """1 / T = gap^2 / (2 (sqrt v1 + sqrt v2)^2), times kl(.05, .95)."""
    values, variances = np.array([0.3, 0.5]), np.array([0.04, 0.25])
    kl = 0.9 * math.log(19.0)
    expected = 2.0 * (0.2 + 0.5) ** 2 / 0.2**2 * kl
    assert lower_bound(values, variances, 0.0) == pytest.approx(expected)
    closer = lower_bound(values, variances, 0.1)
    assert closer == pytest.approx(expected * (0.2 / 0.3) ** 2)


def test_variances_of_rewards_are_those_of_the_world() -> None:
    world = World(load_from_texts("semisynthetic", []), WorldOptions(alpha=0.5, confounding=1.0))
    found = reward_variances(world)
    names = list(world.models)
    plain = np.array([found["variances"][name] for name in names])
    residual = np.array([found["residual_variances"][name] for name in names])
    np.testing.assert_allclose(plain, world.values * (1.0 - world.values))
    # What is noise given context and model is left by any scorer.
    mean = world.means.mean(axis=1)
    assert (residual >= (mean * (1.0 - mean)).mean(axis=0) - 1e-12).all()
    assert (residual <= plain + 1e-12).all()
    bounded = World(world.benchmark, WorldOptions(alpha=0.5, reward="bounded"))
    less = reward_variances(bounded)["variances"]
    means = bounded.means
    expected = (means * (1 - means) / 11.0).mean(axis=(0, 1)) + means.var(axis=(0, 1))
    np.testing.assert_allclose([less[name] for name in names], expected)


def test_counts_start_at_the_first_checkpoint() -> None:
    grid = np.array([0, 25, 50, 100])
    curves = np.array(
        [[0.0, 0.0, 0.0, 0.0], [0.9, 0.001, 0.9, 0.001], [0.9] * 4, [0.9, 0.9, 0.001, 0.001]]
    )
    np.testing.assert_array_equal(settled(curves, grid, 0.01), [25, 100, np.inf, 50])


def test_spend_at_a_precision_is_interpolated() -> None:
    rmse = np.array([[np.nan, 4.0, 2.0, 1.0], [4.0, 4.0, 4.0, 4.0], [1.0, 3.0, 1.0, 1.0]])
    spend = np.tile([0.0, 10.0, 20.0, 40.0], (3, 1))
    found = spend_at(rmse, spend, np.full(3, 1.5))
    np.testing.assert_allclose(found, [30.0, np.inf, 17.5])
