"""`families`: every number of its tables again, by pandas, from results made up for it."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest

from equipoise.replay.studies.families import BUDGETS, OURS, SIX, families
from equipoise.replay.studies.registry import find_study

ALPHAS, OMEGAS, SEEDS, CHECKPOINTS = (0.0, 1.0), (0.0, 0.5, 1.0), 12, (0, 50, *BUDGETS)
META = {"benchmark": "made-up"}


def made_up(ours: float = 1.0, seed: int = 0) -> pd.DataFrame:
    """Results whose losses are random per family; those of `hierarchical` are times `ours`."""
    rng = np.random.default_rng(seed)
    rows = []
    for alpha, omega, family in itertools.product(ALPHAS, OMEGAS, (OURS, *SIX)):
        level = rng.uniform(0.5, 2.0) * (ours if family == OURS else 1.0)
        for run, checkpoint in itertools.product(range(SEEDS), CHECKPOINTS):
            rows.append(
                {
                    "world": "",
                    "alpha": alpha,
                    "confounding": omega,
                    "estimator": family,
                    "seed": run,
                    "checkpoint": checkpoint,
                    "rmse_contrast": level * rng.uniform(0.5, 1.5) / np.sqrt(checkpoint + 1),
                    "regret": 5.0 * level * rng.uniform(0.5, 1.5) / (checkpoint + 50),
                }
            )
    return pd.DataFrame(rows)


def table(found, name: str) -> pd.DataFrame:
    (one,) = (each for each in found.tables if each.name == name)
    return pd.DataFrame(one.rows, columns=one.columns)


def targets(found) -> pd.DataFrame:
    return table(found, "families-tests").set_index("test")


def rmse_by_pandas(results: pd.DataFrame) -> pd.Series:
    at = results[results.checkpoint.isin(BUDGETS)]
    keys = ["alpha", "confounding", "checkpoint", "estimator"]
    return at.groupby(keys).rmse_contrast.agg(lambda each: np.sqrt((each**2).mean()))


def test_it_is_registered():
    plan = find_study("families").plan
    assert plan.seeds >= 100
    assert set(plan.needs) == {OURS, *SIX}


def test_cells_are_root_mean_squares_over_seeds():
    results = made_up()
    cells = table(families(results, META), "families-cells-rmse")
    expected = rmse_by_pandas(results)
    for _, row in cells.iterrows():
        alpha, omega = map(float, row["α, ω"].split(", "))
        for family in (OURS, *SIX):
            assert row[family] == pytest.approx(expected[alpha, omega, row["EXP"], family])
    assert len(cells) == len(ALPHAS) * len(OMEGAS) * len(BUDGETS)
    assert (cells["seeds"] == SEEDS).all()


def test_mean_regrets_are_areas_under_the_curve():
    results = made_up()
    cells = table(families(results, META), "families-cells-regret")
    means = results.groupby(["alpha", "confounding", "estimator", "checkpoint"]).regret.mean()
    for _, row in cells.iterrows():
        alpha, omega = map(float, row["α, ω"].split(", "))
        curve = means[alpha, omega, "ipw"].loc[: row["EXP"]]
        area = np.trapezoid(curve.to_numpy(), curve.index.to_numpy()) / row["EXP"]
        assert row["ipw"] == pytest.approx(area)


def test_the_worst_case_is_over_omega_and_the_best_family_by_its_own_worst():
    results = made_up()
    worst = table(families(results, META), "families-worst-rmse")
    by_omega = rmse_by_pandas(results).unstack("confounding").max(axis=1)
    for _, row in worst.iterrows():
        place = by_omega[float(row["α"]), row["EXP"]]
        six = place[list(SIX)]
        assert row[OURS] == pytest.approx(place[OURS])
        assert row["which"] == six.idxmin()
        assert row["best of six"] == pytest.approx(six.min())
        assert row["ratio"].mean == pytest.approx(place[OURS] / six.min())
        assert row["ratio"].low <= row["ratio"].mean <= row["ratio"].high * 1.2


def test_half_the_loss_everywhere_meets_every_target():
    found = targets(families(made_up(ours=0.1), META))
    assert found[found["met"] != "yes"].empty, found.to_string()


def test_many_times_the_loss_misses_every_target():
    found = targets(families(made_up(ours=10.0), META))
    assert (found["met"] == "NO").all()


def test_a_seed_without_a_value_is_left_out_for_all_families():
    results = made_up()
    gap = (results.seed == 3) & (results.checkpoint == 100) & (results.estimator == "ipw")
    results.loc[gap, "rmse_contrast"] = np.nan
    cells = table(families(results, META), "families-cells-rmse")
    expected = rmse_by_pandas(results[results.seed != 3])
    row = cells[(cells["α, ω"] == "0, 0.5") & (cells["EXP"] == 100)].iloc[0]
    assert row["seeds"] == SEEDS - 1
    assert row[OURS] == pytest.approx(expected[0.0, 0.5, 100, OURS])


def test_regrets_this_small_count_as_equal():
    results = made_up()
    results["regret"] *= 4e-6
    results.loc[results.estimator == OURS, "regret"] *= 50
    found = targets(families(results, META))
    assert found["met"]["(c) regret, against ipw"] == "yes"
    assert found["met"]["(b) regret, within 1.25"] == "yes"
