"""The summary of a replay and its table: numbers against hand computations, sentences in words."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scipy.stats import binomtest, sem, t

from equipoise.replay.findings.report import print_summary
from equipoise.replay.results.averages import (
    RESAMPLES,
    ResultsError,
    area_under,
    bootstrap_interval,
    mean_with_interval,
    resampled_means,
    runs_by_scenario,
    settles_at,
    share_with_interval,
)
from equipoise.replay.results.summary import summarize

Results = tuple[pd.DataFrame, dict[str, Any]]


def row(summary: dict[str, Any], policy: str, estimator: str) -> dict[str, Any]:
    (found,) = (
        each
        for each in summary["rows"]
        if (each["policy"], each["estimator"]) == (policy, estimator)
    )
    return found


def printed(summary: dict[str, Any], width: int = 100) -> str:
    console = Console(width=width, color_system=None, force_terminal=False)
    with console.capture() as capture:
        print_summary(console, summary)
    return capture.get()


def edited(results: pd.DataFrame, **where: Any) -> pd.Series:
    """A mask of the rows with these values, for tests that plant something."""
    mask = pd.Series(True, index=results.index)
    for name, value in where.items():
        mask &= results[name] == value
    return mask


def test_means_are_those_of_the_last_rows(demo: Results) -> None:
    results, meta = demo
    summary = summarize(results, meta)
    last = results[edited(results, policy="top-two", estimator="cvci", checkpoint=1000)]
    found = row(summary, "top-two", "cvci")
    for name in ("regret", "rmse_contrast", "bias", "exp_used", "spend", "harm", "width"):
        assert found[name]["mean"] == pytest.approx(last[name].mean(), rel=1e-9, abs=1e-12)
    assert found["right"]["mean"] == (last["regret"] == 0).mean()
    assert found["runs"] == 5


def test_every_group_has_a_row_and_the_log_comes_first(demo: Results) -> None:
    summary = summarize(*demo)
    assert len(summary["rows"]) == 3 * 8
    assert summary["rows"][0]["estimator"] == "naive-log"
    names = [each["estimator"] for each in summary["rows"][1:8]]
    assert names[0] == "ipw"
    assert names[-1] == "hierarchical"


def test_the_summary_is_strict_json_and_always_the_same(demo: Results) -> None:
    results, meta = demo
    text = json.dumps(summarize(results, meta), allow_nan=False)
    assert text == json.dumps(summarize(results.copy(), meta), allow_nan=False)


def test_a_round_trip_through_parquet_changes_nothing(demo: Results, tmp_path: Any) -> None:
    results, meta = demo
    results.to_parquet(tmp_path / "results.parquet", index=False)
    again = pd.read_parquet(tmp_path / "results.parquet")
    assert summarize(again, meta) == summarize(results, meta)


def test_intervals_of_means_are_students_and_resampled_means_a_loop() -> None:
    values = np.random.default_rng(3).exponential(size=(12, 2))
    values[4, 1] = np.nan
    drawn = np.random.default_rng(0).integers(0, 12, (RESAMPLES, 12))
    means = np.array([np.nanmean(values[picked], axis=0) for picked in drawn])
    found = mean_with_interval(values)
    assert found.mean == pytest.approx(np.nanmean(values, axis=0), rel=1e-12)
    for column in range(2):
        known = values[np.isfinite(values[:, column]), column]
        ends = t.interval(0.95, len(known) - 1, known.mean(), sem(known))
        assert (found.low[column], found.high[column]) == pytest.approx(ends, rel=1e-9)
    assert resampled_means(values) == pytest.approx(means, rel=1e-9)


@pytest.mark.parametrize("runs", [5, 10, 40])
def test_intervals_cover_as_often_as_they_say(runs: int) -> None:
    """4,000 normal samples: misses against the binomial, false alarms below 1e-4.

    A percentile bootstrap covers .85 of five runs and .91 of ten, and fails. The expanded one,
    for what is no mean, is told from it at five runs: at least .90, where the plain one has .85.
    """
    values = np.random.default_rng(11).normal(size=(runs, 4000))
    found = mean_with_interval(values)
    hits = int(np.count_nonzero((found.low <= 0) & (found.high >= 0)))
    assert binomtest(hits, 4000, 0.95).pvalue > 1e-4
    drawn = resampled_means(values)
    ends = np.array([bootstrap_interval(each, runs) for each in drawn.T])
    expanded = int(np.count_nonzero((ends[:, 0] <= 0) & (ends[:, 1] >= 0)))
    assert binomtest(expanded, 4000, 0.90, alternative="less").pvalue > 1e-4
    plain = np.quantile(drawn, (0.025, 0.975), axis=0)
    if runs == 5:
        plain_hits = int(np.count_nonzero((plain[0] <= 0) & (plain[1] >= 0)))
        assert binomtest(plain_hits, 4000, 0.90, alternative="less").pvalue < 1e-4


@pytest.mark.parametrize("runs", [1, 2, 4])
def test_fewer_than_five_runs_have_no_interval(
    runs: int, synthesize: Callable[..., Results]
) -> None:
    values = np.random.default_rng(3).random((runs, 1))
    for found in (mean_with_interval(values), share_with_interval(np.round(values))):
        assert np.isfinite(found.mean).all()
        assert np.isnan([found.low, found.high]).all()
    assert np.isnan(bootstrap_interval(values[:, 0], runs)).all()
    summary = summarize(*synthesize(seeds=runs))
    intervals = [
        each["interval"]
        for entry in summary["rows"]
        for each in (*entry.values(), *entry["settled"].values())
        if isinstance(each, dict) and "interval" in each
    ]
    assert intervals
    assert set(intervals) == {None}
    assert any("need at least 5 runs" in note for note in summary["notes"])


@pytest.mark.parametrize(("right", "runs"), [(5, 5), (0, 5), (3, 7), (50, 100)])
def test_shares_have_wilsons_interval(right: int, runs: int) -> None:
    found = share_with_interval(np.array([[1.0]] * right + [[0.0]] * (runs - right)))
    expected = binomtest(right, runs).proportion_ci(method="wilson")
    assert found.low[0] == pytest.approx(expected.low, abs=1e-9)
    assert found.high[0] == pytest.approx(expected.high, abs=1e-9)


def test_one_seed_has_no_interval(synthesize: Callable[..., Results]) -> None:
    found = row(summarize(*synthesize(seeds=1)), "uniform", "cvci")
    for name in ("regret", "right", "regret_area", "harm", "covered"):
        assert found[name]["interval"] is None
        assert found[name]["mean"] is not None
    assert found["settled"]["0.01"]["interval"] is None


def test_a_curve_settles_where_it_stays_below() -> None:
    at = np.array([0, 25, 50, 100])
    curves = np.array(
        [
            [0.3, 0.01, 0.2, 0.01],
            [0.3, 0.01, 0.0, 0.01],
            [0.0, 0.0, 0.0, 0.5],
            [0.0, 0.0, 0.0, np.nan],
            [0.01, 0.01, 0.01, 0.01],
        ]
    )
    assert settles_at(curves, at, 0.01).tolist() == [100, 25, np.inf, np.inf, 0]


def test_area_is_trapezoidal() -> None:
    assert area_under(np.array([[0.4, 0.2, 0.0]]), np.array([0, 10, 30])) == pytest.approx(5.0)


def test_a_run_that_ended_early_keeps_its_last_answer(demo: Results) -> None:
    results, meta = demo
    gone = edited(results, policy="uniform", estimator="ipw", seed=2) & (
        results["checkpoint"] > 200
    )
    shorter = results[~gone]
    runs = runs_by_scenario(shorter)[0.5, 1.0]["uniform", "ipw"]
    kept = results[edited(results, policy="uniform", estimator="ipw", seed=2, checkpoint=200)]
    assert runs.numbers["rmse"][2, -3:].tolist() == [kept["rmse"].item()] * 3
    assert runs.reached.tolist() == [5, 5, 5, 5, 5, 4, 4, 4, 4]
    assert runs.extent == 9
    assert row(summarize(shorter, meta), "uniform", "ipw")["runs"] == 5


def test_what_comes_before_the_first_row_is_unknown(demo: Results) -> None:
    results, _ = demo
    late = results[(results["seed"] != 1) | (results["checkpoint"] >= 100)]
    runs = runs_by_scenario(late)[0.5, 1.0]["uniform", "cvci"]
    assert np.isnan(runs.numbers["regret"][1, :3]).all()
    assert np.isfinite(runs.numbers["regret"][1, 3:]).all()


def test_the_confounded_log_misleads_in_words(demo: Results) -> None:
    summary = summarize(*demo)
    assert summary["naive"]["misleads"]
    assert "misleads: it puts nearest-five first" in summary["naive"]["sentence"]
    assert summary["headline"].startswith(
        "The usage log recommends nearest-five, which is worth 0.412; the best model is forest at "
        "0.553. With about 1,000 randomized requests, 18 of 21 policy × estimator pairs find forest"
    )
    assert summary["headline"].endswith("the log alone never does.")
    assert row(summary, "uniform", "naive-log")["verdict"] == "wrong"
    assert row(summary, "uniform", "hierarchical")["verdict"] == "right"


def test_an_honest_log_is_called_honest(synthesize: Callable[..., Results]) -> None:
    summary = summarize(*synthesize(confoundings=[0.0]))
    assert not summary["naive"]["misleads"]
    assert "does not mislead" in summary["naive"]["sentence"]
    assert "it is right" in summary["headline"]
    assert "never" not in summary["headline"]


def test_todays_routing_can_be_the_answer(synthesize: Callable[..., Results]) -> None:
    summary = summarize(*synthesize(routing_value=0.7))
    routing = summary["scenarios"][0]["routing"]
    assert routing["beats_best"]
    assert "No single model beats what is deployed" in summary["headline"]
    assert routing["advised_by"] == 21
    assert "21 of 21 pairs advise to keep it" in routing["sentence"]


def test_several_settings_are_counted(synthesize: Callable[..., Results]) -> None:
    summary = summarize(*synthesize(confoundings=[0.0, 1.0], alphas=[0.0, 1.0]))
    assert summary["naive"]["scenarios_misled"] == 2
    assert summary["headline"].startswith("In 2 of 4 settings the usage log recommends a model")
    assert len(summary["rows"]) == 4 * 24


def test_models_that_tie_are_all_best(demo: Results) -> None:
    results, meta = demo
    tied = {**meta["scenarios"][0]["values"], "logistic": 0.553}
    truth = {**meta, "scenarios": [{**meta["scenarios"][0], "values": tied}]}
    scenario = summarize(results, truth)["scenarios"][0]
    assert scenario["best"]["models"] == ["forest", "logistic"]
    assert "forest or logistic at 0.553" in scenario["headline"]


def test_no_answer_is_silent_and_not_right(demo: Results) -> None:
    results, meta = demo
    results = results.copy()
    mask = edited(results, policy="uniform", estimator="ipw")
    results.loc[mask, ["recommended", "action"]] = None
    results.loc[mask, "regret"] = 0.0
    found = row(summarize(results, meta), "uniform", "ipw")
    assert found["verdict"] == "silent"
    assert found["recommended"] is None
    assert found["right"]["mean"] == 0
    assert "no answer" in printed(summarize(results, meta))


def test_what_most_runs_say_is_named(demo: Results) -> None:
    results, meta = demo
    results = results.copy()
    mask = edited(results, policy="uniform", estimator="cvci", checkpoint=1000)
    results.loc[mask & (results["seed"] < 2), "recommended"] = "stump"
    results.loc[mask & (results["seed"] < 2), "regret"] = 0.222
    found = row(summarize(results, meta), "uniform", "cvci")
    assert found["recommended"] == "forest"
    assert found["recommended_share"] == 0.6
    assert found["right"]["mean"] == pytest.approx(0.6)
    assert found["verdict"] == "right"
    assert "right 3/5 0.089 forest" in printed(summarize(results, meta))


def test_a_difference_below_epsilon_does_not_count(demo: Results) -> None:
    results, meta = demo
    results = results.copy()
    mask = edited(results, policy="uniform", estimator="cvci", checkpoint=1000)
    results.loc[mask, "recommended"] = "adaptive-tree"
    results.loc[mask, "regret"] = 0.015
    assert row(summarize(results, meta), "uniform", "cvci")["verdict"] == "near"
    tolerant = {**meta, "options": {**meta["options"], "epsilon": 0.015}}
    assert row(summarize(results, tolerant), "uniform", "cvci")["verdict"] == "right"


def test_unknown_numbers_are_null(demo: Results) -> None:
    results, meta = demo
    results = results.assign(rmse_contrast=np.nan, width=np.inf)
    found = row(summarize(results, meta), "uniform", "cvci")
    assert found["rmse_contrast"] == {"mean": None, "interval": None}
    assert found["width"] == {"mean": None, "interval": None}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda frame: frame.drop(columns="harm"), "harm"),
        (lambda frame: pd.concat([frame, frame.iloc[:1]]), "two rows"),
        (lambda frame: frame.iloc[:0], "no rows"),
        (lambda frame: frame.assign(alpha=0.7), r"\(0.7, 1.0\)"),
    ],
)
def test_results_that_cannot_be_averaged_are_refused(
    demo: Results, spoil: Callable[[pd.DataFrame], pd.DataFrame], message: str
) -> None:
    results, meta = demo
    with pytest.raises(ResultsError, match=message):
        summarize(spoil(results), meta)


@pytest.mark.parametrize("width", [80, 100, 160])
@pytest.mark.parametrize("policies", [1, 3, 7])
def test_the_table_fits(synthesize: Callable[..., Results], width: int, policies: int) -> None:
    names = [f"policy-{number}" for number in range(policies)]
    lines = printed(summarize(*synthesize(policies=names)), width).splitlines()
    assert max(map(len, lines)) <= min(width, 100)
    assert all(any(name in line for line in lines) for name in names)


def test_the_table_says_wrong_without_colours(demo: Results) -> None:
    lines = printed(summarize(*demo)).splitlines()
    (naive,) = (line for line in lines if line.startswith(" usage log alone ") and "WRONG" in line)
    assert naive.count("WRONG 0/5 0.141") == 3
    (first,) = (line for line in lines if line.strip().startswith("hierarchical"))
    assert "right" in first
    assert lines.index(naive) < lines.index(first)
    assert "report.html" in "".join(lines[-3:])


def test_names_from_files_cannot_style_or_steer_the_terminal(
    synthesize: Callable[..., Results],
) -> None:
    models = ["[bold red]x[/]", "two", "\x1b[2Jwipe\nout"]
    text = printed(summarize(*synthesize(models=models)))
    assert "[bold red]x[/]" in text
    assert "\N{REPLACEMENT CHARACTER}[2Jwipe\N{REPLACEMENT CHARACTER}out" in text
    assert "\x1b" not in text
