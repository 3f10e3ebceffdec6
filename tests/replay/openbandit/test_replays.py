"""Replays of allocation policies on logs, and the command that runs everything."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal
from typer.testing import CliRunner

from equipoise.agent.errors import AgentError
from equipoise.replay import replay as run_replay
from equipoise.replay.benchmarks import BenchmarkError
from equipoise.replay.cli import app
from equipoise.replay.openbandit.log import LoggedFeedback, read_log
from equipoise.replay.openbandit.replays import (
    Replayed,
    agent_context,
    held_out,
    kept_rate,
    path_rate,
    replay_once,
    replay_policy,
)
from equipoise.replay.openbandit.values import as_in, on_policy, policy_values

DATA = Path(__file__).resolve().parents[3] / ".." / "shared" / "data" / "obd"
needs_data = pytest.mark.skipif(not DATA.exists(), reason=f"{DATA} is absent")

CLICKS = np.array([[0.7, 0.2, 0.2], [0.5, 0.1, 0.1]])
"""(P, K) click rates: item a is best by far."""
UNIFORM = np.full((2, 3), 1 / 3)
TILTED = np.array([[0.2, 0.3, 0.5], [0.2, 0.5, 0.3]])


def synthetic(rng: np.random.Generator, count: int, shown: np.ndarray = UNIFORM) -> LoggedFeedback:
    position = rng.integers(0, 2, count)
    item = (rng.random(count)[:, None] > np.cumsum(shown[position], axis=1)).sum(axis=1)
    return LoggedFeedback(
        behaviour="random",
        items=("a", "b", "c"),
        positions=("1", "2"),
        x_names=("young",),
        x=rng.integers(0, 2, (count, 1)).astype(float),
        affinity=np.zeros((count, 0)),
        item_names=(),
        item_features=np.zeros((3, 0)),
        item=item,
        position=position,
        propensity=shown[position, item],
        reward=(rng.random(count) < CLICKS[position, item]).astype(float),
        at=np.arange(count, dtype=float),
    )


@pytest.fixture(scope="module")
def replays() -> list[tuple[LoggedFeedback, Replayed]]:
    """40 uniform logs of 300 rows, each replayed once by top-two."""
    rng = np.random.default_rng(0)
    logs = [synthetic(rng, 300) for _ in range(40)]
    return [(log, replay_policy(log, "top-two", seed)) for seed, log in enumerate(logs)]


def test_kept_rows_are_what_the_policy_would_have_met(
    replays: list[tuple[LoggedFeedback, Replayed]],
) -> None:
    """Sums over 40 replays, each within 4 standard errors of its mean under the policy: the
    number of kept rows, their clicks given their items, how often item a is kept and how often
    position 1. False alarm 3e-4 in all."""
    count = clicks = best = first = 0.0
    spread = np.zeros(4)
    for log, replay in replays:
        rates = CLICKS[log.position, log.item]
        kept = replay.kept
        count += kept.sum() - 100
        spread[0] += 300 * (1 / 3) * (2 / 3)
        clicks += (log.reward - rates)[kept].sum()
        spread[1] += (rates * (1 - rates))[kept].sum()
        # Rows with item a are kept as often as the rule in force chooses it.
        of_a = log.item == 0
        best += (kept - replay.chosen)[of_a].sum()
        spread[2] += (replay.chosen * (1 - replay.chosen))[of_a].sum()
        first += (kept & (log.position == 0)).sum() - kept.sum() / 2
        spread[3] += kept.sum() / 4
    assert (np.abs([count, clicks, best, first]) < 4 * np.sqrt(spread)).all()


def test_the_policy_learns_from_what_it_keeps(
    replays: list[tuple[LoggedFeedback, Replayed]],
) -> None:
    """Means of 40 replays: the best item's share grows, and the click rate with it, well past
    uniform's 0.3 (deterministic for the seed; a policy that learns nothing stays at 1/3)."""
    assert np.mean([replay.final[:, 0].mean() for _, replay in replays]) > 0.42
    assert np.mean([kept_rate(log, [r.kept]).value for log, r in replays]) > 0.32
    paths = [path_rate(log, [r.chosen]).value for log, r in replays]
    assert np.mean(paths) > 0.32


def test_kept_and_weighted_rows_estimate_the_same(
    replays: list[tuple[LoggedFeedback, Replayed]],
) -> None:
    """Differences of 40 pairs average 0 within 4 standard errors (false alarm 6e-5); weighting
    all rows is the more precise."""
    kept = np.array([kept_rate(log, [r.kept]).value for log, r in replays])
    path = np.array([path_rate(log, [r.chosen]).value for log, r in replays])
    gap = kept - path
    assert abs(gap.mean()) < 4 * gap.std(ddof=1) / math.sqrt(40)
    assert path.std() < kept.std()


def test_rows_that_are_not_kept_teach_nothing() -> None:
    log = synthetic(np.random.default_rng(1), 300)
    before = replay_policy(log, "top-two", 3)
    columns = {name: getattr(log, name) for name in LoggedFeedback.__slots__}
    flipped = {**columns, "reward": np.where(before.kept, log.reward, 1 - log.reward)}
    after = replay_policy(LoggedFeedback(**flipped), "top-two", 3)
    np.testing.assert_array_equal(after.kept, before.kept)
    np.testing.assert_array_equal(after.chosen, before.chosen)
    np.testing.assert_array_equal(after.final, before.final)
    flipped["reward"] = np.where(before.kept, 1 - log.reward, log.reward)
    assert not np.array_equal(
        replay_policy(LoggedFeedback(**flipped), "top-two", 3).final, before.final
    )


def test_a_seed_repeats_and_another_differs() -> None:
    log = synthetic(np.random.default_rng(2), 200)
    one, same, other = (replay_policy(log, "thompson", seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(one.kept, same.kept)
    np.testing.assert_array_equal(one.final, same.final)
    assert not np.array_equal(one.kept, other.kept)


def test_the_agent_sees_users_and_positions_and_never_the_item() -> None:
    log = synthetic(np.random.default_rng(3), 50)
    np.testing.assert_array_equal(agent_context(log), np.column_stack([log.x, log.position]))


def test_the_last_rule_is_valued_without_bias_on_rows_it_never_met(
    replays: list[tuple[LoggedFeedback, Replayed]],
) -> None:
    """40 errors of IPS on held-out rows, mean 0 within 4 standard errors (false alarm 6e-5).
    With the propensities as logged the same rows are wrong by more than that: items the policy
    likes are missing among the rows that it did not keep."""
    errors, naive = [], []
    for log, replay in replays:
        rest, rows = held_out(log, replay)
        assert not replay.kept[rows].any()
        assert len(rows) == (~replay.kept).sum()
        final = replay.final[rows]
        truth = (final * CLICKS[rest.position]).sum(axis=1).mean()
        errors.append(policy_values(rest, final)["ips"].mix.value - truth)
        naive.append(policy_values(log.select(rows), final)["ips"].mix.value - truth)
    assert abs(np.mean(errors)) < 4 * np.std(errors, ddof=1) / math.sqrt(40)
    assert abs(np.mean(naive)) > 4 * np.std(naive, ddof=1) / math.sqrt(40)


def test_the_last_rules_value_is_over_the_whole_log_but_from_held_out_rows() -> None:
    log = synthetic(np.random.default_rng(8), 200)
    predicted = np.random.default_rng(9).random((200, 3))
    made = replay_once(log, predicted, "top-two", 4)
    replay = replay_policy(log, "top-two", 4)
    rest, rows = held_out(log, replay)
    by_hand = policy_values(rest, replay.final[rows], predicted[rows])
    for name, value in made.final.items():
        parts = [part.value for part in by_hand[name].positions]
        assert value.value == pytest.approx(float(log.position_shares @ parts))
        assert (value.influence[replay.kept] == 0).all()
        np.testing.assert_allclose(value.weight[rows].sum(), 1)
        np.testing.assert_allclose(value.clicked[log.reward == 0], 0)
    np.testing.assert_array_equal(made.chosen, replay.chosen)


def test_on_a_tilted_log_kept_rows_are_weighted_back() -> None:
    """40 logs under the uniform policy, worth 0.3: within 4 standard errors (false alarm 6e-5).
    Unweighted the kept rows give the log's own click rate, 0.24."""
    rng = np.random.default_rng(4)
    weighted, path, plain = [], [], []
    for seed in range(40):
        log = synthetic(rng, 300, TILTED)
        assert not log.is_uniform
        replay = replay_policy(log, "uniform", seed)
        weighted.append(kept_rate(log, [replay.kept]).value)
        path.append(path_rate(log, [replay.chosen]).value)
        plain.append(log.reward[replay.kept].mean())
    for values in (weighted, path):
        assert abs(np.mean(values) - 0.3) < 4 * np.std(values, ddof=1) / math.sqrt(40)
    assert np.mean(plain) < 0.3 - 4 * np.std(plain, ddof=1) / math.sqrt(40)


def test_more_seeds_cannot_say_more_than_the_log() -> None:
    """40 orders of one log: the standard error approaches the log's own and stays there."""
    log = synthetic(np.random.default_rng(5), 300)
    kept = [replay_policy(log, "uniform", seed).kept for seed in range(40)]
    own = on_policy(log).mix.se
    assert 0.95 * own < kept_rate(log, kept).se < 1.2 * own
    assert kept_rate(log, kept[:1]).se > 1.4 * own


@needs_data
class TestRealLogs:
    def test_a_uniform_replay_keeps_about_three_hundred_rows(self) -> None:
        """Binomial(10,000, 1/34) within 4 standard errors; weighted by all rows, the uniform
        policy gets the log's own click rate exactly."""
        log = read_log(DATA)
        replay = replay_policy(log, "uniform", 0)
        assert abs(replay.kept.sum() - 10000 / 34) < 4 * math.sqrt(10000 / 34)
        assert path_rate(log, [replay.chosen]).value == pytest.approx(0.0046)

    def test_each_logging_policy_is_met_by_the_other_log(self) -> None:
        """The estimates of either log against the click rate of the other, two standard errors
        of their difference: what was found when written, and deterministic."""
        logs = {name: read_log(DATA, name) for name in ("random", "bts")}
        for name, other in (("random", "bts"), ("bts", "random")):
            target = as_in(logs[name], logs[other])
            own = on_policy(logs[other], logs[name].position_shares).mix
            for estimated in policy_values(
                logs[name], target, np.full((10000, 34), 0.005)
            ).values():
                gap = estimated.mix.value - own.value
                assert abs(gap) < 2 * math.hypot(estimated.mix.se, own.se)


def write(root: Path, behaviour: str, rng: np.random.Generator, count: int = 120) -> None:
    folder = root / behaviour / "men"
    folder.mkdir(parents=True)
    log = synthetic(rng, count, UNIFORM if behaviour == "random" else TILTED)
    pd.DataFrame(
        {
            "timestamp": [f"2019-11-24 {i // 60:02d}:{i % 60:02d}:00+00:00" for i in range(count)],
            "item_id": log.item,
            "position": log.position + 1,
            "click": log.reward.astype(int),
            "propensity_score": log.propensity,
            "user_feature_0": log.x[:, 0].astype(int),
        }
    ).to_csv(folder / "men.csv")
    pd.DataFrame({"item_id": range(3), "item_feature_0": [0.1, 0.5, 0.9]}).to_csv(
        folder / "item_context.csv"
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("obd")
    rng = np.random.default_rng(6)
    write(root, "random", rng)
    write(root, "bts", rng)
    return root


@pytest.fixture(scope="module")
def out(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "out"
    arguments = ["--policies", "uniform,river-ucb", "--seeds", "2", "--jobs", "1"]
    made = CliRunner().invoke(
        app, ["replay", "--benchmark", f"openbandit:{data}", *arguments, "--out", str(out)]
    )
    assert made.exit_code == 0, made.output
    assert "Thompson" in made.output
    return out


class TestCommand:
    def test_results_are_tidy(self, out: Path, data: Path) -> None:
        assert sorted(p.name for p in out.iterdir()) == [
            "report.html",
            "results.parquet",
            "summary.json",
        ]
        frame = pd.read_parquet(out / "results.parquet")
        keys = ["behaviour", "kind", "name", "position", "estimator", "seed"]
        assert not frame.duplicated(keys).any()
        assert set(frame["kind"]) == {"log", "policy", "item", "replay", "final-rule"}
        own = frame.query("kind == 'log' and behaviour == 'bts' and position == 'all'").iloc[0]
        log = read_log(data, "bts")
        assert (own["value"], own["rows"]) == (pytest.approx(log.reward.mean()), 120)
        crossed = frame.query("kind == 'policy' and behaviour == 'random' and name == 'bts'")
        assert set(crossed["estimator"]) == {"ips", "snips", "dr"}
        assert set(crossed["position"]) == {"all", "1", "2"}
        replayed = frame.query("kind == 'replay' and name == 'river-ucb'")
        assert set(replayed["estimator"]) == {"kept", "path"}
        assert replayed["seed"].dropna().unique().tolist() == [0, 1]
        known = frame.dropna(subset=["value"])
        assert (known["low"] <= known["value"]).all()
        assert (known["value"] <= known["high"]).all()

    def test_the_summary_holds_the_findings(self, out: Path) -> None:
        summary = json.loads((out / "summary.json").read_text())
        assert summary["benchmark"] == "openbandit"
        names = [table["name"] for table in summary["findings"]["tables"]]
        assert names == ["logs", "cross-check", "policies", "replays", "items"]
        assert "IPS" in (out / "report.html").read_text()

    def test_one_behaviour_alone_has_no_cross_check(self, data: Path, tmp_path: Path) -> None:
        options: dict[str, Any] = {"policies": ["uniform"], "seeds": 1, "jobs": 1}
        run_replay(f"openbandit:{data / 'random'}", out=tmp_path / "a", **options)
        summary = json.loads((tmp_path / "a" / "summary.json").read_text())
        assert [t["name"] for t in summary["findings"]["tables"]][:2] == ["logs", "policies"]
        with pytest.raises(AgentError, match="exists"):
            run_replay(f"openbandit:{data / 'random'}", out=tmp_path / "a", **options)

    def test_a_run_repeats_to_the_byte(self, data: Path, out: Path, tmp_path: Path) -> None:
        again = tmp_path / "again"
        policies = ["uniform", "river-ucb"]
        results = run_replay(f"openbandit:{data}", policies=policies, seeds=2, jobs=1, out=again)
        assert_frame_equal(results, pd.read_parquet(again / "results.parquet"))
        for name in ("summary.json", "report.html"):
            assert (again / name).read_bytes() == (out / name).read_bytes()

    def test_nothing_is_left_of_a_run_that_fails(self, data: Path, tmp_path: Path) -> None:
        write(tmp_path / "bad", "random", np.random.default_rng(7))
        (tmp_path / "bad" / "random" / "men" / "men.csv").write_text("a,b\n1,2\n")
        with pytest.raises(BenchmarkError, match="column 'timestamp' is absent"):
            run_replay(f"openbandit:{tmp_path / 'bad'}", policies=["uniform"], out=tmp_path / "out")
        assert [path.name for path in tmp_path.iterdir()] == ["bad"]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--alpha", "0.2"], "--alpha: a log is replayed as it is"),
            (["--world", "missing=0.1"], "--world: a log is replayed"),
            (["--estimators", "ipw"], "--estimators: a log"),
            (["--budget", "50"], "--budget: a log"),
            (["--store", "log.db"], "--store: a log"),
            (["--policies", "best"], "--policies: policy 'best' is not known"),
            (["--policies", "uncertainty+uniform"], "has the gate 'uncertainty', must be fixed"),
        ],
    )
    def test_what_a_log_cannot_honour_is_refused(
        self, data: Path, tmp_path: Path, options: list[str], message: str
    ) -> None:
        out = str(tmp_path / "out")
        made = CliRunner().invoke(
            app, ["replay", "--benchmark", f"openbandit:{data}", "--out", out, *options]
        )
        assert isinstance(made.exception, AgentError)
        assert message in str(made.exception)
        assert not Path(out).exists()

    def test_the_path_is_needed(self) -> None:
        made = CliRunner().invoke(app, ["replay", "--benchmark", "openbandit"])
        assert "needs a path: openbandit:PATH" in str(made.exception)
