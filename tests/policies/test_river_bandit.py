"""River's policies as assignments: what they answer, and that they got the state they need."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from equipoise.policies.registry import policy
from equipoise.policies.river_bandit import EPSILON, PULLS, river_ucb
from equipoise.policies.snapshot import Floats, Snapshot

MakeSnapshot = Callable[..., Snapshot]


def pi(name: str, snapshot: Snapshot) -> Floats:
    kernel = policy(name).freeze(snapshot).assignment
    return np.asarray(kernel.probabilities(np.zeros((1, 0)), None, 0.0)[0])


def seen(make_snapshot: MakeSnapshot, **changes: object) -> Snapshot:
    fields = {
        "counts": np.array([30.0, 30.0, 400.0]),
        "sample_means": np.array([0.2, 0.6, 0.5]),
        "sample_variances": np.array([0.16, 0.24, 0.25]),
    }
    return make_snapshot(3, **(fields | changes))


def test_ucb_takes_the_largest_upper_bound(make_snapshot: MakeSnapshot) -> None:
    np.testing.assert_array_equal(pi("river-ucb", seen(make_snapshot)), [0.0, 1.0, 0.0])
    few = seen(make_snapshot, counts=np.array([3.0, 30.0, 400.0]))
    np.testing.assert_array_equal(pi("river-ucb", few), [1.0, 0.0, 0.0])


def test_ucb_against_a_direct_computation(make_snapshot: MakeSnapshot) -> None:
    rng = np.random.default_rng(0)
    chosen = set()
    for _ in range(30):
        counts = rng.integers(2, 300, 4).astype(np.float64)
        means, variances = rng.random(4), rng.uniform(0.05, 0.3, 4)
        snapshot = make_snapshot(4, counts=counts, sample_means=means, sample_variances=variances)
        total = counts.sum()
        centre = (counts * means).sum() / total
        scatter = ((counts - 1) * variances + counts * (means - centre) ** 2).sum() / (total - 1)
        bound = means / math.sqrt(scatter) + np.sqrt(2 * math.log(total) / counts)
        best = int(np.argmax(bound))
        chosen.add(best)
        assert river_ucb(snapshot).shares[best] == PULLS
    assert len(chosen) > 1


def test_ucb_tries_models_without_a_reward_at_random(make_snapshot: MakeSnapshot) -> None:
    """Two of three are new: chi-square against one half each, false-alarm rate 1e-4."""
    snapshot = seen(
        make_snapshot,
        counts=np.array([0.0, 0.0, 9.0]),
        sample_means=np.array([np.nan, np.nan, 0.5]),
        sample_variances=np.array([np.nan, np.nan, 0.25]),
    )
    shares = pi("river-ucb", snapshot)
    assert shares[2] == 0.0
    assert stats.chisquare(PULLS * shares[:2]).pvalue > 1e-4


def test_epsilon_greedy_explores_by_epsilon(make_snapshot: MakeSnapshot) -> None:
    """The best arm's share is 1 - epsilon * 2 / 3; binomial, false-alarm rate 1e-4."""
    shares = pi("river-epsilon-greedy", seen(make_snapshot))
    expected = 1.0 - EPSILON * 2.0 / 3.0
    assert stats.binomtest(round(PULLS * shares[1]), PULLS, expected).pvalue > 1e-4
    assert shares.argmax() == 1


def test_thompson_draws_the_means(make_snapshot: MakeSnapshot) -> None:
    """Two arms: P(best) = Phi(gap / sd of the difference) in standard units; false alarm 1e-4."""
    counts, means = np.array([30.0, 20.0]), np.array([0.55, 0.45])
    variances = np.array([0.25, 0.25])
    snapshot = make_snapshot(2, counts=counts, sample_means=means, sample_variances=variances)
    centre = (counts * means).sum() / 50
    scatter = ((counts - 1) * variances + counts * (means - centre) ** 2).sum() / 49
    exact = stats.norm.cdf(0.1 / math.sqrt(scatter) / math.sqrt(1 / 30 + 1 / 20))
    shares = pi("river-thompson", snapshot)
    assert stats.binomtest(round(PULLS * shares[0]), PULLS, exact).pvalue > 1e-4


def test_thompson_here_is_settled_where_rivers_own_never_is(make_snapshot: MakeSnapshot) -> None:
    """A gap of 0.3 deviations after 1,000 rewards an arm is 6.7 standard errors. river draws with
    the deviation of one reward: P = Phi(0.3 / sqrt(2)) = 0.584; false-alarm rate 1e-4."""
    from river import bandit, proba

    arms = {"counts": np.array([1000.0, 1000.0]), "sample_variances": np.array([0.04, 0.04])}
    snapshot = make_snapshot(2, sample_means=np.array([0.56, 0.5]), **arms)
    assert pi("river-thompson", snapshot)[0] == 1.0
    own = bandit.ThompsonSampling(reward_obj=proba.Gaussian(seed=1), seed=1)
    rewards = np.random.default_rng(1).standard_normal((1000, 2))
    rewards = (rewards - rewards.mean(0)) / rewards.std(0, ddof=1) + [0.3, 0.0]
    for row in rewards.tolist():
        for arm, reward in enumerate(row):
            own.update(arm, reward)
    pulls = sum(own.pull([0, 1]) == 0 for _ in range(1000))
    assert stats.binomtest(pulls, 1000, stats.norm.cdf(0.3 / math.sqrt(2))).pvalue > 1e-4


@pytest.mark.parametrize("name", ["river-ucb", "river-epsilon-greedy", "river-thompson"])
def test_they_start_uniform_and_depend_on_the_seed_alone(
    make_snapshot: MakeSnapshot, name: str
) -> None:
    np.testing.assert_allclose(pi(name, make_snapshot(3)), 1 / 3)
    same = seen(make_snapshot, sample_means=np.full(3, 0.5), sample_variances=np.zeros(3))
    np.testing.assert_allclose(pi(name, same), 1 / 3)
    close = {"sample_means": np.full(3, 0.5), "counts": np.full(3, 50.0)}
    answers = [pi(name, seen(make_snapshot, seed=seed, **close)) for seed in range(3)]
    np.testing.assert_array_equal(answers[0], pi(name, seen(make_snapshot, seed=0, **close)))
    assert not all(np.array_equal(answers[0], other) for other in answers[1:])
    # Equal arms, offered in shuffled order: chi-square over three seeds, false-alarm rate 1e-4.
    assert stats.chisquare(PULLS * np.sum(answers, axis=0)).pvalue > 1e-4


def test_river_is_imported_only_when_it_is_asked() -> None:
    """Importing the package, and freezing any other policy, leaves river alone."""
    code = (
        "import sys; from equipoise.policies.registry import policy; "
        "assert 'river' not in sys.modules; assert policy('river-ucb').name; "
        "assert 'river' not in sys.modules and 'scipy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
