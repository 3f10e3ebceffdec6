"""`track-and-stop`: its start, its stop statistic, its end, and the fault it is known for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from equipoise.policies.assignments.track_and_stop import (
    START_REWARDS,
    optimal_weights,
    stop_statistic,
    stop_threshold,
    track_and_stop,
)
from equipoise.policies.snapshot import Floats, Snapshot

MakeSnapshot = Callable[..., Snapshot]


def shares(snapshot: Snapshot) -> Floats:
    raw = track_and_stop(snapshot).shares
    return np.asarray(raw / raw.sum())


def running(make_snapshot: MakeSnapshot) -> Snapshot:
    return make_snapshot(
        3,
        counts=np.array([40.0, 30.0, 20.0]),
        sample_means=np.array([0.5, 0.55, 0.4]),
        sample_variances=np.array([0.25, 0.2475, 0.24]),
        epsilon=0.02,
    )


def test_the_start_is_uniform_until_every_model_has_ten(make_snapshot: MakeSnapshot) -> None:
    assert START_REWARDS == 10
    snapshot = replace(running(make_snapshot), counts=np.array([40.0, 30.0, 9.0]))
    np.testing.assert_allclose(shares(snapshot), 1 / 3, rtol=1e-15)
    np.testing.assert_allclose(shares(make_snapshot(3)), 1 / 3, rtol=1e-15)


def test_optimal_shares_while_it_runs(make_snapshot: MakeSnapshot) -> None:
    snapshot = running(make_snapshot)
    expected = optimal_weights(snapshot.sample_means, snapshot.sample_variances, 0.02)
    np.testing.assert_array_equal(shares(snapshot), expected)
    smaller = replace(snapshot, sign=-1)
    mirrored = optimal_weights(-snapshot.sample_means, snapshot.sample_variances, 0.02)
    np.testing.assert_array_equal(shares(smaller), mirrored)


def test_the_stop_statistic_by_hand() -> None:
    """Leader 1: gaps .05 + .02 and .15 + .02 over twice the summed variances of the means."""
    statistic = stop_statistic(
        np.array([0.5, 0.55, 0.4]), np.array([0.25, 0.2475, 0.24]), np.array([40.0, 30, 20]), 0.02
    )
    first = 0.07**2 / (2 * (0.2475 / 30 + 0.25 / 40))
    second = 0.17**2 / (2 * (0.2475 / 30 + 0.24 / 20))
    assert statistic == pytest.approx(min(first, second), rel=1e-12)
    assert stop_threshold(90.0, 0.05) == pytest.approx(math.log((1 + math.log(90)) / 0.05))


def test_it_stops_on_the_leader_just_above_the_threshold(make_snapshot: MakeSnapshot) -> None:
    """delta is chosen so that the threshold lies just below and just above the statistic."""
    snapshot = running(make_snapshot)
    counts = snapshot.counts
    statistic = stop_statistic(snapshot.sample_means, snapshot.sample_variances, counts, 0.02)
    delta = (1 + math.log(counts.sum())) / math.exp(statistic)
    stopped = shares(replace(snapshot, delta=delta * (1 + 1e-9)))
    np.testing.assert_array_equal(stopped, [0.0, 1.0, 0.0])
    assert shares(replace(snapshot, delta=delta * (1 - 1e-9))).max() < 1.0


def test_its_fault_is_kept(make_snapshot: MakeSnapshot) -> None:
    """Ten rewards each without a rare outcome: no variance, infinite evidence, a blind stop."""
    snapshot = make_snapshot(
        2,
        counts=np.array([10.0, 10.0]),
        sample_means=np.array([0.0, 0.0]),
        sample_variances=np.zeros(2),
        epsilon=0.01,
    )
    assert stop_statistic(np.zeros(2), np.zeros(2), np.full(2, 10.0), 0.01) == math.inf
    np.testing.assert_allclose(shares(snapshot), 0.5)  # tied leaders share the weight
    uneven = replace(snapshot, sample_means=np.array([0.0, 1.0]))
    np.testing.assert_array_equal(shares(uneven), [0.0, 1.0])


def test_no_gap_is_no_evidence() -> None:
    assert stop_statistic(np.zeros(3), np.zeros(3), np.full(3, 10.0), 0.0) == 0.0
    assert stop_statistic(np.zeros(3), np.ones(3), np.full(3, 10.0), 0.0) == 0.0


def test_one_model_is_certain() -> None:
    assert stop_statistic(np.ones(1), np.ones(1), np.full(1, 10.0), 0.0) == math.inf


def test_tied_leaders_count_the_weaker_evidence() -> None:
    means, counts = np.array([0.5, 0.5, 0.1]), np.array([50.0, 20.0, 30.0])
    variances = np.array([0.1, 0.3, 0.2])
    statistic = stop_statistic(means, variances, counts, 0.1)
    order = [1, 0, 2]
    assert statistic == stop_statistic(means[order], variances[order], counts[order], 0.1)
    tie = 0.1**2 / (2 * (0.1 / 50 + 0.3 / 20))
    assert statistic == pytest.approx(tie, rel=1e-12)


def test_it_finds_the_best_model_with_about_the_right_error() -> None:
    """Played 60 times on Gaussian arms with known order: at most a few wrong stops.

    With plug-in variances and no correction for K - 1 the error may exceed delta = 0.05;
    more than 12 of 60 has probability below 1e-4 even at a true error of 0.07.
    """
    rng = np.random.default_rng(12)
    truth, wrong, lengths = np.array([0.0, 0.5, 1.0]), 0, []
    for _ in range(60):
        counts = np.full(3, 10.0)
        rows = [list(rng.normal(mean, 1.0, 10)) for mean in truth]
        while True:
            means = np.array([np.mean(row) for row in rows])
            variances = np.array([np.var(row, ddof=1) for row in rows])
            counts = np.array([float(len(row)) for row in rows])
            total = float(counts.sum())
            statistic = stop_statistic(means, variances, counts, 0.0)
            if total > 2000 or statistic > stop_threshold(total, 0.05):
                break
            weights = optimal_weights(means, variances, 0.0)
            for arm in rng.choice(3, size=10, p=weights):
                rows[arm].append(rng.normal(truth[arm], 1.0))
        wrong += int(np.argmax(means) != 2)
        lengths.append(total)
    assert wrong <= 12
    assert np.median(lengths) < 400
