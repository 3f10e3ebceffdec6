"""Figures of a log against pandas and plain loops, against the truth, and against the planner."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from equipoise.agent.errors import PlanError
from equipoise.agent.look.assignment import Sample
from equipoise.agent.look.findings import (
    Findings,
    ModelRow,
    Reward,
    Tally,
    interval,
    reward_range,
)
from equipoise.agent.look.reading import Reader, inspected, survey
from equipoise.agent.look.settling import compared, settled
from equipoise.replay.cli import app
from tests.agent.look.simulated_logs import World, rows
from tests.agent.look.test_reading import lines_of

MODEL = ModelRow(
    name="a",
    requests=1000,
    share=0.5,
    failed=0,
    cached=0,
    rated=0,
    mean=None,
    low=None,
    high=None,
    design=1.0,
    cost=None,
    spent=None,
    seconds=None,
    slow=None,
    input_tokens=None,
    output_tokens=None,
)


def look(path: Path, sample: int = 100_000, **options: Any) -> tuple[Findings, Sample]:
    sources = [inspected(path)]
    reader = Reader(*survey(sources, **options))
    tally = Tally(reader, sample=sample)
    for block in reader.blocks(sources):
        tally.add(block)
    findings = tally.findings()
    kept = Sample(reader, tally._kept[0])
    kept.settle([reader.models.labels.index(model.name) for model in findings.models])
    return findings, kept


@pytest.fixture(scope="module")
def table() -> list[dict[str, Any]]:
    return list(rows(8000, World(users=300, taste=0.25, rated=0.6), 11))


@pytest.fixture(scope="module")
def path(table: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lines_of(tmp_path_factory.mktemp("look") / "log.jsonl", table)


def test_traffic_is_what_pandas_counts(table: list[dict[str, Any]], path: Path) -> None:
    found, _ = look(path)
    frame = pd.DataFrame(table)
    frame["tokens"] = [row["usage"]["completion_tokens"] for row in table]
    frame["reward"] = frame.thumb.map({"up": 1.0, "down": 0.0})
    frame["day"] = pd.to_datetime(frame.ts, unit="s").dt.strftime("%Y-%m-%d")
    assert (found.rows, found.used, found.reasons, found.users) == (8000, 8000, {}, 300)
    for each in found.models:
        own = frame[frame.model == each.name]
        assert (each.requests, each.rated) == (len(own), own.reward.notna().sum())
        assert each.share == len(own) / 8000
        assert each.mean == pytest.approx(own.reward.mean(), rel=1e-12)
        assert each.cost == pytest.approx(own.cost.mean())
        assert each.spent == pytest.approx(own.cost.sum())
        assert each.output_tokens == pytest.approx(own.tokens.mean())
        assert each.seconds == pytest.approx(own.latency_ms.median() / 1e3)
        assert each.slow == pytest.approx(own.latency_ms.quantile(0.95) / 1e3)
    days = frame.groupby(["day", "model"]).size()
    assert {(day, name): n for day, each in found.days.items() for name, n in each.items()} == (
        days.to_dict()
    )
    assert found.reward is not None
    assert found.reward.binary
    assert found.traffic == pytest.approx(7999 / (frame.ts.max() - frame.ts.min()) * 3600)


def test_intervals_know_that_users_have_several_requests(
    table: list[dict[str, Any]], path: Path
) -> None:
    """The design effect is the clustered variance of a mean by that of independent rows, and is
    about the same from a sample of a quarter of the rows."""
    found, _ = look(path)
    thinned, _ = look(path, sample=2000)
    assert thinned.sampled <= 3000
    frame = pd.DataFrame(table)
    frame["reward"] = frame.thumb.map({"up": 1.0, "down": 0.0})
    for each, other in zip(found.models, thinned.models, strict=True):
        own = frame[(frame.model == each.name) & frame.reward.notna()]
        errors = own.reward - own.reward.mean()
        design = errors.groupby(own.user_id).sum().pow(2).sum() / errors.pow(2).sum()
        assert each.design == pytest.approx(design)
        assert each.design > 1.3
        assert other.design == pytest.approx(design, rel=0.35)
        assert (each.mean, each.requests) == (other.mean, other.requests)


def test_wilsons_interval_by_hand() -> None:
    reward = Reward(rated=10, mean=0.9, sd=0.3, low=0.0, high=1.0, binary=True)
    low, high = interval(0.9, 0.09, 10.0, reward)
    assert (low, high) == pytest.approx((0.5958, 0.9821), abs=1e-4)
    wide = msgspec.structs.replace(reward, binary=False)
    assert interval(0.9, 0.09, 9.0, wide) == pytest.approx((0.704, 1.096), abs=1e-3)


def test_ranges_of_rewards() -> None:
    assert reward_range({0.2, 0.7}) == (0.0, 1.0)
    assert reward_range({-1.0, 0.0, 1.0}) == (-1.0, 1.0)
    assert reward_range({1.0, 4.0}) == (1.0, 5.0)
    assert reward_range({0.0, 7.0}) == (0.0, 10.0)
    assert reward_range({0.0, 55.0}) == (0.0, 100.0)
    assert reward_range({-3.5, 2.0}) == (-3.5, 2.0)
    assert reward_range({7.5}) == (7.5, 8.5)


def test_adjusted_differences_are_plain_least_squares(path: Path) -> None:
    """The same by a full design matrix and loops over users; the robustness value by its formula,
    and by its meaning: a hidden cause that explains as much of both brings the estimate to 0."""
    found, sample = look(path)
    each = found.comparisons[0]
    rated = np.isfinite(sample.reward)
    reward, cluster = sample.reward[rated], sample.cluster[rated]
    chosen = (sample.model[rated] == sample.names.index(each.model)).astype(float)
    columns = [np.ones(len(reward))]
    for factor in sample.factors:
        codes = factor.codes[rated]
        columns += [(codes == level).astype(float) for level in range(1, len(factor.labels))]
    others = np.column_stack(columns)

    def residual(values: Any, on: Any) -> Any:
        return values - on @ np.linalg.lstsq(on, values, rcond=None)[0]

    left, rest = residual(chosen, others), residual(reward, np.column_stack([others, chosen]))
    effect = left @ reward / (left @ left)
    assert each.adjusted == pytest.approx(effect, rel=1e-6)
    sums = [np.sum((left * rest)[cluster == user]) for user in np.unique(cluster)]
    error = math.sqrt(sum(each * each for each in sums)) / (left @ left)
    assert each.adjusted_high == pytest.approx(effect + 1.959964 * error, rel=1e-5)
    squared = effect**2 * (left @ left) / (rest @ rest)
    value = (math.sqrt(squared**2 + 4 * squared) - squared) / 2
    assert each.robustness == pytest.approx(value, rel=1e-6)
    # A cause with partial R² `value` of both takes away |bias| = se * sqrt(df) * value /
    # sqrt(1 - value) of the estimate: all of it.
    plain = math.sqrt((rest @ rest) / (left @ left))
    assert plain * value / math.sqrt(1 - value) == pytest.approx(abs(effect), rel=1e-6)
    assert each.strongest == "length of prompt"
    assert 0.0 < each.explains_reward < each.explains_choice < 0.3


def test_the_log_flatters_the_wrong_model_and_alike_requests_do_not(tmp_path: Path) -> None:
    """Where all that confounds is in columns, the truth (+0.05 for large) is inside."""
    path = lines_of(tmp_path / "log.jsonl", list(rows(12_000, World(rated=1.0), 12)))
    found, _ = look(path)
    small = found.comparisons[0]
    assert (small.model, small.against) == ("small", "large")
    assert small.naive > 0.02
    assert small.low > -0.05
    assert small.adjusted_low is not None
    assert small.adjusted_high is not None
    assert small.adjusted_low < -0.05 < small.adjusted_high < 0.0


def test_the_plan_is_that_of_the_planner(path: Path) -> None:
    """The command that is printed gives the same plan, number by number."""
    found, _ = look(path)
    plan = settled(found)
    assert plan.plan is not None
    words = plan.command.split()
    assert words[:2] == ["equipoise", "plan"]
    done = CliRunner().invoke(app, [*words[1:], "--json"])
    assert done.exit_code == 0, done.output
    theirs, ours = json.loads(done.stdout), msgspec.to_builtins(plan.plan)
    assert theirs == ours
    asked = {each["name"]: each["value"] for each in theirs["inputs"]}
    assert any("rated" in name for name in asked)
    mean = found.reward.mean if found.reward else 0.0
    assert f"--reward-rate {mean:.4g}" in plan.command
    shares = {model.name: model.share for model in found.models}
    assert f"--mix large={shares['large']:.4g},small={shares['small']:.4g}" in plan.command
    assert "--price large=0.011,small=0.002" in plan.command
    assert f"--traffic {found.traffic:.4g}" in plan.command


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([-1, 0, 1], "--reward-low -1 --reward-high 1 --reward-sd "),
        ([1, 3, 5], "--reward-low 1 --reward-high 5 --reward-sd "),
        ([0.25, 0.5, 0.75], "--reward-sd "),
        ([0, 1], "--mix "),
    ],
)
def test_plans_of_other_rewards_are_taken_by_the_planner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: list[float], words: str
) -> None:
    draws = np.random.default_rng(13)
    table = [
        {"model": str(draws.choice(["a", "b"])), "at": 1.7e9 + at, "score": draws.choice(values)}
        for at in range(600)
    ]
    path = lines_of(
        tmp_path / "log.jsonl", [{**row, "score": float(row["score"])} for row in table]
    )
    asked = []
    for module in ("agent.planning.plan", "agent.look.settling"):
        # What both hand to the planner says enough, and takes no time.
        monkeypatch.setattr(
            f"equipoise.{module}.make_plan", lambda each, **_: asked.append(each.request)
        )
    plan = settled(look(path)[0])
    assert plan.why == ""
    assert words in plan.command
    CliRunner().invoke(app, [*plan.command.split()[1:], "--json"])
    assert len(asked) == 2
    assert asked[0] == asked[1]


def test_where_nothing_can_be_planned_it_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("equipoise.agent.look.settling.make_plan", lambda problem: None)

    def plan(changes: dict[str, Any], **options: Any) -> str:
        table = [
            {"model": name, "at": 1.7e9 + at, "score": at % 2, **changes}
            for at in range(100)
            for name in ("a", "b")
        ]
        path = lines_of(tmp_path / "log.jsonl", table)
        return settled(look(path)[0], **options).why

    assert plan({}) == ""
    assert plan({"model": "a"}).startswith("the log holds one model")
    assert plan({"score": None}).startswith("no row has a reward")
    assert plan({"score": 1}).startswith("every reward is the highest there can be")
    assert plan({"score": 0}, minimise=True).startswith("every reward is the lowest there can be")
    assert plan({"at": None}).startswith("no row has a time")
    assert plan({"at": None}, traffic=10.0) == ""
    with pytest.raises(PlanError, match=r"effect is 0\.9, expected at most 0\.5"):
        plan({}, effect=0.9)
    with pytest.raises(PlanError, match="rate is 2"):
        plan({}, rate=2.0)


def test_names_that_a_configuration_cannot_hold_are_changed() -> None:
    found = [
        msgspec.structs.replace(MODEL, name=name, share=share)
        for name, share in (("a b", 0.3), ("a,b", 0.3), ("ok/x-1", 0.2), ("rare", 0.001))
    ]
    assert compared(found) == {"a b": "a-b", "a,b": "a-b-2", "ok/x-1": "ok/x-1"}
