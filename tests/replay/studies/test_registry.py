"""Every experiment on a small world: its files, and its numbers against pandas on its results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from equipoise.replay.command import complete_order, run_replay
from equipoise.replay.results.averages import mean_with_interval
from equipoise.replay.studies.registry import studies

SIZES: dict[str, dict[str, Any]] = {
    "alignment": {"alphas": [0.0, 1.0]},
    "grid": {"alphas": [0.25, 1.0], "confoundings": [0.0, 1.0, 2.0]},
    "misspecified": {},
    "exp-budget": {"estimators": ["ipw", "obs-only", "representation-exp"]},
    "simulator": {"estimators": ["ipw", "obs-only", "doubly-robust"]},
}


def order_of(name: str, out: Path, **more: Any):
    given: dict[str, Any] = {
        **dict.fromkeys(("policies", "estimators", "alphas", "confoundings", "exp_rate")),
        "benchmark": "semisynthetic",
        "experiment": name,
        "seeds": 5,
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
    return complete_order({**given, **SIZES.get(name, {}), **more})


class Ran:
    """What an experiment left behind."""

    def __init__(self, name: str, folder: Path) -> None:
        run_replay(order_of(name, folder))
        self.folder = folder
        self.results = pd.read_parquet(folder / "results.parquet")
        self.summary = json.loads((folder / "summary.json").read_text())
        self.findings = self.summary["findings"]

    def table(self, name: str) -> pd.DataFrame:
        (found,) = (each for each in self.findings["tables"] if each["name"] == name)
        return pd.DataFrame(found["rows"], columns=found["columns"]).set_index(found["columns"][0])

    def truth(self, world: str = "") -> np.ndarray:
        (found,) = (each for each in self.summary["scenarios"] if each["world"] == world)
        return np.array([found["values"][model] for model in self.summary["models"]])


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    known: dict[str, Ran] = {}

    def run(name: str) -> Ran:
        if name not in known:
            known[name] = Ran(name, tmp_path_factory.mktemp(name) / "out")
        return known[name]

    return run


def agrees(entry: dict[str, float], values: Any, least: float = -np.inf) -> None:
    """An entry is the mean of these seeds and its interval, which stays above `least`."""
    expected = mean_with_interval(np.asarray(values, dtype=float)[:, None], least)
    assert entry["mean"] == pytest.approx(expected.mean[0], abs=1e-12)
    assert entry["low"] == pytest.approx(expected.low[0], abs=1e-12)
    assert entry["high"] == pytest.approx(expected.high[0], abs=1e-12)


def per_seed(results: pd.DataFrame, column: str, **where: Any) -> np.ndarray:
    """(R,) a column where these hold, seeds in order."""
    for name, value in where.items():
        results = results[results[name] == value]
    found = results.sort_values("seed")
    assert found["seed"].tolist() == list(range(5))
    return np.stack(found[column].tolist())


@pytest.mark.parametrize("name", SIZES)
def test_the_folder_holds_four_files_that_agree(ran, name):
    found = ran(name)
    names = sorted(path.name for path in found.folder.iterdir())
    assert names == ["findings.md", "report.html", "results.parquet", "summary.json"]
    assert found.summary["experiment"] == found.findings["experiment"] == name
    assert found.findings["sentences"]
    assert found.findings["figures"]
    assert found.findings["title"] in (found.folder / "findings.md").read_text()
    assert found.findings["title"] in (found.folder / "report.html").read_text()
    assert set(found.results["policy"]) == {"uniform"}
    assert found.summary["options"]["exp_rate"] == 1.0
    # At a rate of 1 no checkpoint is overshot.
    assert (found.results["exp_used"] == found.results["checkpoint"]).all()


def test_alignment_has_regret_and_its_area(ran):
    found = ran("alignment")
    regret, area = found.table("regret-100-1"), found.table("area-1")
    assert regret.index.tolist() == [0.0, 1.0]
    for alpha in (0.0, 1.0):
        for family in ("naive-log", "ipw", "hierarchical"):
            where = {"alpha": alpha, "estimator": family}
            agrees(
                regret.loc[alpha, family],
                per_seed(found.results, "regret", checkpoint=100, **where),
                least=0.0,
            )
            curves = np.stack(
                [
                    per_seed(found.results, "regret", checkpoint=at, **where)
                    for at in (0, 25, 50, 100)
                ],
                axis=1,
            )
            mean = np.trapezoid(curves, [0, 25, 50, 100], axis=1) / 100
            agrees(area.loc[alpha, family], mean, least=0.0)


def test_grid_pairs_differences_cell_by_cell(ran):
    found = ran("grid")
    (figure,) = found.findings["figures"]
    left, right = figure["panels"]
    table = found.table("grid-100")
    assert (left["y"], left["x"]) == ([0.25, 1.0], [0.0, 1.0, 2.0])
    for row, alpha in enumerate(left["y"]):
        for column, omega in enumerate(left["x"]):
            regret = {
                family: per_seed(
                    found.results,
                    "regret",
                    alpha=alpha,
                    confounding=omega,
                    estimator=family,
                    checkpoint=100,
                )
                for family in ("representation-exp", "obs-only", "cvci", "grounded")
            }
            best = min(("obs-only", "cvci", "grounded"), key=lambda name: regret[name].mean())
            assert table.loc[f"{alpha:g}, {omega:g}", "best OBS-based"] == best
            agrees(left["cells"][row][column], regret["representation-exp"] - regret[best])
            agrees(right["cells"][row][column], regret["grounded"] - regret["obs-only"])


def test_misspecified_sets_the_direct_method_against_its_correction(ran):
    found = ran("misspecified")
    values = {
        (world, family): per_seed(
            found.results, "values", world=world, estimator=family, checkpoint=100
        )
        for world in ("all features", "1 hidden")
        for family in ("direct-method", "doubly-robust")
    }
    gaps = {
        world: np.sqrt(
            ((values[world, "direct-method"] - values[world, "doubly-robust"]) ** 2).mean(axis=1)
        )
        for world in ("all features", "1 hidden")
    }
    table = found.table("gap-0.5-2")
    agrees(table.loc["100: all features", "gap"], gaps["all features"], least=0.0)
    agrees(table.loc["100: 1 hidden", "gap"], gaps["1 hidden"], least=0.0)
    agrees(table.loc["100: 1 hidden", "excess"], gaps["1 hidden"] - gaps["all features"])
    caught = (gaps["1 hidden"] > gaps["all features"].max()).mean()
    assert table.loc["100: 1 hidden", "flagged"]["mean"] == pytest.approx(caught)
    errors = values["1 hidden", "direct-method"] - found.truth("1 hidden")
    entry = found.table("errors-100-0.5-2").loc["1 hidden: direct-method"]
    assert entry["RMSE"]["mean"] == pytest.approx(np.sqrt((errors**2).mean()))
    variance = errors.var(axis=0, ddof=1).mean()
    assert entry["standard deviation"]["mean"] == pytest.approx(np.sqrt(variance))
    squared = (errors**2).mean() - variance
    assert entry["bias"]["mean"] == pytest.approx(np.sqrt(max(squared, 0.0)))


def test_exp_budget_splits_errors_into_bias_and_deviation(ran):
    found = ran("exp-budget")
    rows = [25, 50, 100]
    bias, deviation, rmse, contrasts, regret = (
        found.table(f"{name}-0.5-1")
        for name in ("bias", "deviation", "rmse", "contrasts", "regret")
    )
    assert bias.index.tolist() == rows
    for mark in rows:
        where = {"estimator": "obs-only", "checkpoint": mark}
        errors = per_seed(found.results, "values", **where) - found.truth()
        variance = errors.var(axis=0, ddof=1).mean()
        squared = max((errors**2).mean() - variance, 0.0)
        assert rmse.loc[mark, "obs-only"]["mean"] == pytest.approx(np.sqrt((errors**2).mean()))
        assert deviation.loc[mark, "obs-only"]["mean"] == pytest.approx(np.sqrt(variance))
        assert bias.loc[mark, "obs-only"]["mean"] == pytest.approx(np.sqrt(squared))
        per_run = per_seed(found.results, "rmse_contrast", **where)
        root = np.sqrt((per_run**2).mean())
        assert contrasts.loc[mark, "obs-only"]["mean"] == pytest.approx(root)
        agrees(regret.loc[mark, "obs-only"], per_seed(found.results, "regret", **where), least=0.0)


def test_simulator_moves_what_uses_it_and_nothing_else(ran):
    found = ran("simulator")
    table = found.table("rmse_contrast-0.5-1")
    assert len(table) == 12
    for world in ("drift 1", "truncation 0.6", "missing tilted 0.3"):
        for family in ("obs-only", "doubly-robust"):
            moved, still = (
                per_seed(
                    found.results,
                    "rmse_contrast",
                    world=each,
                    estimator=family,
                    checkpoint=100,
                )
                for each in (world, "faithful")
            )
            agrees(table.loc[world, family], moved - still)
    assert abs(table.loc["drift 1", "obs-only"]["mean"]) > 1e-3
    assert all(entry == {"mean": 0.0, "low": 0.0, "high": 0.0} for entry in table["ipw"])
    assert (found.table("unmoved-0.5-1") == 0).all().all()
    assert "no mismatch moves" in found.findings["sentences"][0]


def test_every_experiment_is_tried_here_or_says_what_it_asks():
    assert set(SIZES) <= set(studies())
    assert all(each.title.endswith("?") for each in studies().values())
