"""All settings together: means over settings run by run, and the worst setting."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from equipoise.replay.findings.page import facts
from equipoise.replay.findings.report import worst, write_report
from equipoise.replay.results.averages import runs_by_scenario, together
from equipoise.replay.results.summary import summarize

Results = tuple[pd.DataFrame, dict[str, Any]]


@pytest.fixture(scope="module")
def several(synthesize: Callable[..., Results]) -> Results:
    return synthesize(alphas=[0.0, 1.0], confoundings=[0.0, 1.0], policies=["uniform"])


def test_the_mean_over_settings_is_taken_run_by_run(several: Results) -> None:
    frame = several[0]
    mine = [runs["uniform", "ipw"] for runs in runs_by_scenario(frame).values()]
    joint = together(mine)
    rows = frame[(frame["estimator"] == "ipw") & (frame["checkpoint"] == 500)]
    expected = rows.groupby("seed")["rmse_contrast"].mean().to_numpy()
    at = joint.checkpoints.tolist().index(500)
    np.testing.assert_allclose(joint.numbers["rmse_contrast"][:, at], expected)
    # Nothing is known of ipw before the first randomized request, in any setting.
    assert np.isnan(joint.numbers["rmse_contrast"][:, 0]).all()


def test_seeds_and_checkpoints_that_a_setting_lacks_are_left_out(several: Results) -> None:
    frame = several[0]
    short = (frame["alpha"] == 0.0) & (frame["confounding"] == 0.0)
    lacking = frame[~(short & ((frame["seed"] == 2) | (frame["checkpoint"] == 300)))]
    mine = [runs["uniform", "ipw"] for runs in runs_by_scenario(lacking).values()]
    joint = together(mine)
    assert joint.seeds == (0, 1, 3, 4)
    assert 300 not in joint.checkpoints
    assert joint.numbers["regret"].shape == (4, len(joint.checkpoints))
    rows = lacking[(lacking["estimator"] == "ipw") & (lacking["checkpoint"] == 500)]
    expected = rows[rows["seed"] != 2].groupby("seed")["rmse_contrast"].mean().to_numpy()
    at = joint.checkpoints.tolist().index(500)
    np.testing.assert_allclose(joint.numbers["rmse_contrast"][:, at], expected)


def test_the_worst_setting_is_found_and_its_interval_holds_it(several: Results) -> None:
    mine = [runs["uniform", "naive-log"] for runs in runs_by_scenario(several[0]).values()]
    at, regret = worst(mine, mine[0].seeds)
    assert at == 1, "the first setting with confounding"
    assert regret.mean == pytest.approx(0.141)
    assert regret.low <= regret.mean <= regret.high
    at, regret = worst(mine, mine[0].seeds[:1])
    assert regret.low is None, "a single run has no interval"


def test_the_report_of_several_settings_opens_with_all_of_them(
    several: Results, tmp_path: Path
) -> None:
    results, meta = several
    path = tmp_path / "report.html"
    write_report(path, results, summarize(results, meta), meta)
    text = path.read_text(encoding="utf-8")
    assert text.index("regret over all 4 settings") < text.index("Where it holds")
    tables = re.findall(r'<table class="found">.*?</table>', text, re.DOTALL)
    (table,) = (each for each in tables if "worst setting" in each)
    naive = re.search(r"uniform × usage log alone</th>(.*?)</tr>", table)
    assert naive is not None
    assert "α = 0, ω = 1" in naive[1]
    assert '<span class="number">0.141</span>' in naive[1]
    # Half of the settings have no confounding.
    assert re.search(r'class="number">0\.07[01]<', naive[1])
    # Only the error differs between runs: they all recommend the same models.
    assert naive[1].count('class="interval">[') == 1


def test_facts_leave_out_what_is_not_known_and_name_the_rest() -> None:
    text = facts({"options": {"budget": [100, 300], "world": ["missing=0.1"], "delta": 0.05}})
    assert re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", text) == [
        ("Randomized", "100, 300 requests at most"),
        ("World", "missing=0.1"),
        ("Error rate δ", "0.05"),
    ]
    assert facts({}) == ""
