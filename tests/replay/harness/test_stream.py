"""A stream over a world with delays, faults and drift: what the agent is fed, and what is true."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from equipoise.replay.benchmarks import Benchmark, load
from equipoise.replay.harness.stream import (
    Certificate,
    Checkpoint,
    StreamSettings,
    experiment,
    result_rows,
    run_stream,
)
from equipoise.replay.worlds import World, WorldOptions
from equipoise.store.batches import DecisionBatch, ExpiryBatch, ObservationBatch, OutcomeBatch
from equipoise.store.memory import MemoryStore

SETTINGS = StreamSettings(requests=1000, exp_rate=0.5, obs=200)
Row = dict[str, Any]


@pytest.fixture(scope="module")
def table() -> Benchmark:
    """Three models well apart, so that what is wrong shows within a few thousand requests."""
    drawn = load("semisynthetic", contexts=100, models=3, misfit=0.6, seed=2)
    return replace(drawn, outcome=0.5 * drawn.outcome + np.array([0.5, 0.25, 0.0]))


class Run:
    """One stream to its end: its world, log, checkpoints' rows and the agent as it ended."""

    def __init__(
        self, table: Benchmark, settings: StreamSettings, options: WorldOptions, seed: int = 0
    ) -> None:
        self.world, self.store = World(table, options), MemoryStore()
        config = experiment(self.world, settings, "fixed-rate", "uniform", "ipw")
        certificate = Certificate(self.world)
        self.rows: list[Row] = []
        self.checkpoints: list[Checkpoint] = []
        for checkpoint in run_stream(self.world, config, settings, seed, self.store):
            self.rows += result_rows(self.world, checkpoint, ["ipw"], certificate)
            self.checkpoints.append(checkpoint)
        self.agent = self.checkpoints[-1].agent

    def column(self, kind: type, name: str) -> Any:
        parts = [s.batch for s in self.store.read() if isinstance(s.batch, kind)]
        empty: Sequence[Any] = [np.zeros(0)]
        return np.concatenate([getattr(part, name) for part in parts] or empty)

    def late(self) -> Any:
        """Of every outcome row, whether it was logged after the expiry of its decision."""
        expired: set[int] = set()
        late: list[bool] = []
        for segment in self.store.read():
            if isinstance(segment.batch, ExpiryBatch):
                expired.update(segment.batch.number.tolist())
            elif isinstance(segment.batch, OutcomeBatch):
                late += [number in expired for number in segment.batch.number.tolist()]
        return np.array(late)

    def ipw(self) -> list[Row]:
        return [row for row in self.rows if row["estimator"] == "ipw"]


class TestDelay:
    def test_outputs_come_at_once_and_rewards_by_the_clock(self, table: Benchmark) -> None:
        run = Run(table, SETTINGS, WorldOptions(delay=150, window=400))
        reward = run.column(OutcomeBatch, "reward")
        number, at = run.column(OutcomeBatch, "number"), run.column(OutcomeBatch, "at")
        outputs = run.column(OutcomeBatch, "outputs")
        asked = run.column(DecisionBatch, "at")
        first = np.isnan(reward)
        np.testing.assert_array_equal(np.sort(number[first]), np.arange(len(asked)))
        np.testing.assert_array_equal(at[first], asked[number[first]])
        assert not np.isnan(outputs[first]).any()
        assert np.isnan(outputs[~first]).all()
        waited, late = at[~first] - asked[number[~first]], run.late()[~first]
        assert 0 < waited.min() < waited[~late].max() <= 400 < waited[late].min()
        assert len(set(number[~first].tolist())) == len(number[~first])
        # A batch of 100 requests ends every 100 seconds: nothing is told before it has happened.
        clock = asked[0] - 1
        for segment in run.store.read():
            if isinstance(segment.batch, DecisionBatch):
                clock = segment.batch.at[-1]
            elif isinstance(segment.batch, OutcomeBatch):
                assert segment.batch.at.max() <= clock
                assert np.all(np.diff(segment.batch.at) >= 0)

    def test_what_takes_longer_than_the_window_expires(self, table: Benchmark) -> None:
        """Every decision older than the window is closed, and late rewards are kept apart."""
        options = WorldOptions(delay=150, delay_by_reward=0.8, window=120, missing=0.1)
        run = Run(table, SETTINGS, options)
        reward, number = run.column(OutcomeBatch, "reward"), run.column(OutcomeBatch, "number")
        expired = run.column(ExpiryBatch, "number")
        late = run.late()
        rewarded = number[~np.isnan(reward) & ~late]
        assert not set(expired.tolist()) & set(rewarded.tolist())
        assert set(number[late].tolist()) <= set(expired.tolist())
        count = run.checkpoints[-1].requests
        due = np.arange(count - 1 - 120)
        assert set(due.tolist()) <= set(expired.tolist()) | set(rewarded.tolist())
        assert expired.max() == due[-1]
        assert run.agent.late == late.sum() > 0
        # Share in time of failures and successes: .96 and .36, of the mean rewards in this world.
        failures, successes = (chance[0] for chance in run.world.delays.in_time())
        mean = run.world.truth().routing
        share = 0.9 * ((1 - mean) * failures + mean * successes)
        arrived = np.isin(due, rewarded).mean()
        # 5 standard deviations; the rewards of served models differ from routed ones by less.
        assert arrived == pytest.approx(share, abs=5 * 0.5 / np.sqrt(len(due)) + 0.02)

    def test_certified_sums_hold_the_decisions_before_the_first_open_one(
        self, table: Benchmark
    ) -> None:
        run = Run(table, SETTINGS, WorldOptions(delay=100, window=350, missing=0.2))
        reward, number = run.column(OutcomeBatch, "reward"), run.column(OutcomeBatch, "number")
        closed = np.zeros(run.checkpoints[-1].requests, dtype=bool)
        closed[number[~np.isnan(reward)]] = True
        closed[run.column(ExpiryBatch, "number")] = True
        view = run.agent.answers.view()
        assert view.watermark == int(np.argmin(closed))
        assert 0 < view.watermark < len(closed)
        assert closed[view.watermark :].any()
        assert view.certified.overall.rows == view.watermark

    def test_a_clock_without_delays_changes_nothing(self, table: Benchmark) -> None:
        """Outcomes in two parts and one by one say the same, up to the order of sums."""
        at_once = Run(table, SETTINGS, WorldOptions()).ipw()
        timed = Run(table, SETTINGS, WorldOptions(window=50)).ipw()
        for row, other in zip(at_once, timed, strict=True):
            assert row["exp_used"] == other["exp_used"]
            np.testing.assert_allclose(row["values"], other["values"], atol=1e-12)
            assert row["width"] == pytest.approx(other["width"], abs=1e-12)

    def test_certified_contrasts_hold_when_delay_betrays_the_reward(self, table: Benchmark) -> None:
        """10 streams, all pairs at every checkpoint; more than 3 misses has chance 1e-3 at 5%."""
        options = WorldOptions(delay=200, delay_by_reward=1.0, delay_pattern="opposite", window=500)
        settings = replace(SETTINGS, requests=2000, exp_rate=1.0, refresh=500)
        runs = [Run(table, settings, options, seed).rows[-1] for seed in range(10)]
        assert sum(row["ever_miscovered"] for row in runs) <= 3
        assert all(row["width"] < 0.5 for row in runs)


class TestCompliance:
    OPTIONS = WorldOptions(confounding=1.0, noncompliance=0.25, undelivered=0.1)

    def test_the_agent_is_told_who_answered(self, table: Benchmark) -> None:
        run = Run(table, SETTINGS, replace(self.OPTIONS, fallback=table.models[2]))
        model, routed = run.column(DecisionBatch, "model"), run.column(DecisionBatch, "routed")
        served, attempt = run.column(OutcomeBatch, "served"), run.column(OutcomeBatch, "attempt")
        delivered = run.column(OutcomeBatch, "delivered")
        meant = np.where(delivered, model, routed)
        np.testing.assert_array_equal(served, np.where(attempt == 2, 2, meant))
        assert (served != model).any()
        assert not delivered.all()
        rows = run.column(DecisionBatch, "context")
        outputs = run.column(OutcomeBatch, "outputs")
        np.testing.assert_array_equal(outputs, run.world.outputs[rows, served])

    def test_draws_that_were_carried_out_alone_are_exp(self, table: Benchmark) -> None:
        """EXP rows count for the assigned model, all others for the one that answered."""
        run = Run(table, SETTINGS, self.OPTIONS)
        model, randomized = (run.column(DecisionBatch, n) for n in ("model", "randomized"))
        served, delivered = (run.column(OutcomeBatch, n) for n in ("served", "delivered"))
        exp = randomized & delivered & (served == model)
        moments = run.agent.answers.view().moments
        np.testing.assert_array_equal(
            moments.arms.count.sum(axis=0), np.bincount(model[exp], minlength=3)
        )
        as_routed = delivered & (model == run.column(DecisionBatch, "routed"))
        assert moments.routing.count.sum() == np.count_nonzero(as_routed) + SETTINGS.obs
        np.testing.assert_array_equal(
            moments.obs.count.sum(axis=0) - np.bincount(self.log(run), minlength=3),
            np.bincount(served[~exp], minlength=3),
        )
        assert (randomized & delivered & (served != model)).any()

    @staticmethod
    def log(run: Run) -> Any:
        return run.column(ObservationBatch, "routed")

    def test_spend_and_harm_are_those_of_the_answer(self, table: Benchmark) -> None:
        """Nothing is lost where nothing is ever assigned; money goes to who answered."""
        lost = Run(table, SETTINGS, WorldOptions(undelivered=1.0)).checkpoints[-1]
        assert lost.exp_used > 0
        assert lost.harm == 0
        run = Run(table, SETTINGS, replace(self.OPTIONS, noncompliance=1.0, undelivered=0.0))
        picked = run.column(DecisionBatch, "randomized")
        rows, routed = run.column(DecisionBatch, "context"), run.column(DecisionBatch, "routed")
        cost = table.cost[rows, routed][picked].sum()
        assert run.checkpoints[-1].harm == 0
        assert run.checkpoints[-1].spend == pytest.approx(cost)

    def test_families_find_the_models_own_worth_and_certified_ends_hold_both(
        self, table: Benchmark
    ) -> None:
        """Hajek means of 12,000 draws carried out, and certified ends of all 20,000 delivered;
        false alarm rate 1e-6 and, for the ends, the 5% they promise at one seed."""
        settings = StreamSettings(requests=20_000, exp_rate=1.0, budget=20_000, obs=0, batch=2000)
        options = replace(self.OPTIONS, noncompliance=0.4, fallback=table.models[0])
        run = Run(table, replace(settings, refresh=5000), options)
        estimate = run.agent.answers.estimates(["ipw"])["ipw"]
        error = np.sqrt(np.diag(estimate.covariance))
        z = np.abs(estimate.values - run.world.served_values) / error
        assert z.max() < norm.isf(1e-6 / 6)
        assert (np.abs(estimate.values - run.world.values) / error).max() > 6
        certified = run.agent.answers.certified()
        assert (certified.lower[:3] <= run.world.values).all()
        assert (run.world.values <= certified.upper[:3]).all()
        assert (certified.lower[:3] <= run.world.served_values).all()
        assert (run.world.served_values <= certified.upper[:3]).all()
        row = run.ipw()[-1]
        assert row["rmse"] == pytest.approx(
            np.sqrt(((estimate.values - run.world.served_values) ** 2).mean()), abs=1e-12
        )


class TestDrift:
    SETTINGS = StreamSettings(requests=4000, exp_rate=1.0, obs=0, batch=100, refresh=1000)
    OPTIONS = WorldOptions(drift=-0.9, drift_of="best", drift_shape="change", drift_over=1000)

    def test_the_truth_is_the_running_average_so_far(self, table: Benchmark) -> None:
        run = Run(table, self.SETTINGS, self.OPTIONS)
        for row in run.ipw():
            moved = max(row["requests"] - 1000, 0) / max(row["requests"], 1)
            truth = run.world.truth(moved).values
            np.testing.assert_allclose(row["truth"], truth, atol=1e-12)
            if row["recommended"] is not None:
                pick = run.world.models.index(row["recommended"])
                now = run.world.truth(float(row["requests"] >= 1000)).values
                assert row["regret"] == pytest.approx(truth.max() - truth[pick], abs=1e-12)
                assert row["regret_now"] == pytest.approx(now.max() - now[pick], abs=1e-12)
                assert row["bias"] == pytest.approx(np.mean(row["values"] - truth), abs=1e-12)
        assert run.ipw()[-1]["requests"] == 3000
        assert max(abs(row["regret"] - row["regret_now"]) for row in run.ipw()) > 0.1

    def test_certified_contrasts_hold_the_running_average(self, table: Benchmark) -> None:
        """10 streams, all pairs; more than 3 misses has chance 1e-3 at 5%. The start is missed."""
        runs = [Run(table, self.SETTINGS, self.OPTIONS, seed) for seed in range(10)]
        assert sum(run.rows[-1]["ever_miscovered"] for run in runs) <= 3
        checkpoint = replace(runs[0].checkpoints[-1], drifted=0.0, drifted_closed=0.0)
        assert not Certificate(runs[0].world).columns(checkpoint)["covered"]

    def test_with_delays_coverage_is_about_the_decisions_that_are_closed(
        self, table: Benchmark
    ) -> None:
        run = Run(table, self.SETTINGS, replace(self.OPTIONS, delay=200))
        last, closed = run.checkpoints[-1], run.agent.answers.view().watermark
        assert closed < last.requests
        assert last.drifted == pytest.approx(1 - 1000 / last.requests)
        assert last.drifted_closed == pytest.approx(1 - 1000 / closed)

    def test_capped_decisions_do_not_count(self, table: Benchmark) -> None:
        """The budget ends within a batch: what comes after it is never certified."""
        settings = replace(self.SETTINGS, budget=1250)
        last = Run(table, settings, self.OPTIONS).checkpoints[-1]
        assert last.requests == 1300
        assert last.drifted == pytest.approx(250 / 1250)
        assert last.drifted_closed == last.drifted

    def test_a_world_at_rest_has_no_columns_of_drift(self, table: Benchmark) -> None:
        row = Run(table, SETTINGS, WorldOptions()).rows[-1]
        assert "truth" not in row
        assert "regret_now" not in row


def test_streams_repeat(table: Benchmark) -> None:
    options = WorldOptions(
        delay=80, delay_by_reward=0.5, noncompliance=0.2, undelivered=0.1, drift=0.3, missing=0.1
    )
    states = [Run(table, SETTINGS, options, seed=4).agent.fold.to_bytes() for _ in "ab"]
    assert states[0] == states[1]
