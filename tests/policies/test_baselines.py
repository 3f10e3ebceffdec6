"""Baselines serve what river and mabwiser serve: their shares against the libraries' answers."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from equipoise.policies.baselines import (
    EPSILON,
    POINTS,
    largest_of_dirichlet,
    largest_of_normals,
    river_ucb,
)
from equipoise.policies.registry import ASSIGNMENTS, policy
from equipoise.policies.snapshot import Floats, Snapshot

MakeSnapshot = Callable[..., Snapshot]
PULLS = 4000
BASELINES = [name for name, each in ASSIGNMENTS.items() if each.baseline]


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


def of_rewards(make_snapshot: MakeSnapshot, rewards: list[Floats]) -> Snapshot:
    """What is known after these rewards of each arm."""
    return make_snapshot(
        len(rewards),
        counts=np.array([float(len(each)) for each in rewards]),
        sample_means=np.array([each.mean() if len(each) else np.nan for each in rewards]),
        sample_variances=np.array(
            [each.var(ddof=1) if len(each) > 1 else np.nan for each in rewards]
        ),
    )


def standard(rewards: list[Floats]) -> list[Floats]:
    every = np.concatenate(rewards)
    return [(each - every.mean()) / every.std(ddof=1) for each in rewards]


def rivers_pulls(bandit: Any, rewards: list[Floats]) -> Floats:
    """How often river serves each arm after these rewards, in standard units, whatever their
    order in the list of arms."""
    for arm, each in enumerate(standard(rewards)):
        for reward in each.tolist():
            bandit.update(arm, reward)
    order, arms, pulls = random.Random(5), list(range(len(rewards))), Counter[int]()
    for _ in range(PULLS):
        order.shuffle(arms)
        pulls[bandit.pull(list(arms))] += 1
    return np.array([float(pulls[arm]) for arm in range(len(rewards))])


def agree(pulls: Floats, shares: Floats) -> bool:
    """Chi-square over the arms that may be served, false-alarm rate 1e-4; no pull of another."""
    may = shares > 0.0
    if pulls[~may].any():
        return False
    expected = pulls.sum() * shares[may] / shares[may].sum()
    return may.sum() == 1 or bool(stats.chisquare(pulls[may], expected).pvalue > 1e-4)


def some_rewards(case: str) -> list[Floats]:
    rng = np.random.default_rng(8)
    return {
        "spread": [rng.normal(m, s, 40) for m, s in ((1.0, 0.1), (1.2, 1.0), (0.9, 2.0))],
        "binary": [rng.binomial(1, p, 30).astype(float) for p in (0.5, 0.6, 0.4, 0.55)],
        "one reward": [rng.normal(0.0, 1.0, 30), np.array([0.4]), rng.normal(0.2, 1.0, 30)],
        "no reward": [rng.normal(2.0, 1.0, 30), np.zeros(0), rng.normal(1.0, 0.2, 30)],
        "apart": [np.repeat([0.0, 1.0], [10, 30]), np.repeat([0.0, 1.0], [30, 10])],
        "no difference": [np.full(5, 2.0), np.full(5, 2.0), np.array([1.0, 1.0])],
    }[case]


CASES = ["spread", "binary", "one reward", "no reward", "apart", "no difference"]


@pytest.mark.parametrize("case", CASES)
def test_thompson_is_rivers(make_snapshot: MakeSnapshot, case: str) -> None:
    from river import bandit, proba

    rewards = some_rewards(case)
    own = bandit.ThompsonSampling(reward_obj=proba.Gaussian(), seed=1)
    shares = pi("river-thompson", of_rewards(make_snapshot, rewards))
    assert agree(rivers_pulls(own, rewards), shares)
    if case in ("spread", "binary"):
        assert not agree(
            PULLS * pi("textbook-thompson", of_rewards(make_snapshot, rewards)), shares
        )


@pytest.mark.parametrize("case", CASES)
def test_epsilon_greedy_is_rivers(make_snapshot: MakeSnapshot, case: str) -> None:
    from river import bandit

    rewards = some_rewards(case)
    own = bandit.EpsilonGreedy(epsilon=EPSILON, seed=1)
    shares = pi("river-epsilon-greedy", of_rewards(make_snapshot, rewards))
    assert agree(rivers_pulls(own, rewards), shares)
    assert shares.min() == pytest.approx(EPSILON / len(rewards))


@pytest.mark.parametrize("case", CASES)
def test_ucb_is_rivers(make_snapshot: MakeSnapshot, case: str) -> None:
    from river import bandit

    rewards = some_rewards(case)
    shares = pi("river-ucb", of_rewards(make_snapshot, rewards))
    assert agree(rivers_pulls(bandit.UCB(delta=1.0, seed=1), rewards), shares)


@pytest.mark.parametrize("case", CASES)
def test_softmax_is_mabwisers(make_snapshot: MakeSnapshot, case: str) -> None:
    mab = pytest.importorskip("mabwiser.mab")
    rewards = some_rewards(case)
    arms = list(range(len(rewards)))
    own = mab.MAB(arms, mab.LearningPolicy.Softmax(tau=1), seed=3)
    decisions = np.concatenate([np.full(len(each), arm) for arm, each in enumerate(rewards)])
    own.fit(decisions, np.concatenate(standard(rewards)))
    served = Counter(own.predict() for _ in range(5 * PULLS))
    pulls = np.array([float(served[arm]) for arm in arms])
    snapshot = of_rewards(make_snapshot, rewards)
    assert agree(pulls, pi("mabwiser-softmax", snapshot))
    softmax = np.array([own._imp.arm_to_expectation[arm] for arm in arms])
    np.testing.assert_allclose(pi("textbook-softmax", snapshot), softmax, rtol=1e-9)
    if case == "apart":
        assert not agree(pulls, softmax)


def test_the_largest_of_a_dirichlet_is_not_its_mean() -> None:
    """Shares of 40,000 predictions of mabwiser 2.7.4 with these softmaxes."""
    two = largest_of_dirichlet(np.array([0.7310586, 0.2689414]))
    np.testing.assert_allclose(two, [0.7608, 0.2392], atol=2e-3)
    assert two[0] == pytest.approx(1.0 - stats.beta.cdf(0.5, 0.7310586, 0.2689414), abs=1e-4)
    three = largest_of_dirichlet(np.array([0.665, 0.245, 0.090]))
    np.testing.assert_allclose(three, [0.700, 0.223, 0.076], atol=6e-3)


def test_integrals_are_as_accurate_as_stated() -> None:
    """Closed forms: two normals, and copies; the sum of all is 1."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        means, deviations = rng.normal(0, 1, 2), rng.uniform(1e-3, 2.0, 2)
        exact = stats.norm.cdf((means[0] - means[1]) / math.hypot(*deviations))
        shares = largest_of_normals(means, deviations)
        np.testing.assert_allclose(shares, [exact, 1.0 - exact], atol=0.5 / POINTS)
        many = largest_of_normals(rng.normal(0, 1, 7), rng.uniform(0.01, 2.0, 7))
        assert many.sum() == pytest.approx(1.0, abs=7 * 0.5 / POINTS)
        alpha = rng.dirichlet(np.full(6, 0.3)) + np.finfo(float).eps
        assert largest_of_dirichlet(alpha).sum() == pytest.approx(1.0, abs=6 * 0.5 / POINTS)
    np.testing.assert_allclose(largest_of_normals(np.zeros(5), np.ones(5)), 0.2, atol=1e-6)
    np.testing.assert_allclose(largest_of_dirichlet(np.full(5, 0.2)), 0.2, atol=1e-4)


def test_constants_among_normals() -> None:
    shares = largest_of_normals(np.array([0.0, 0.5, 0.5, 0.2]), np.array([1.0, 0.0, 0.0, 0.0]))
    above = stats.norm.sf(0.5)
    expected = [above, (1 - above) / 2, (1 - above) / 2, 0.0]
    np.testing.assert_allclose(shares, expected, atol=0.5 / POINTS)
    np.testing.assert_array_equal(largest_of_normals(np.array([1.0, 2.0]), np.zeros(2)), [0.0, 1.0])


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
        np.testing.assert_array_equal(np.flatnonzero(river_ucb(snapshot).shares), [best])
    assert len(chosen) > 1


def test_the_textbook_settles_where_river_never_does(make_snapshot: MakeSnapshot) -> None:
    """A gap of 0.3 deviations after 1,000 rewards an arm is 6.7 standard errors; river's draws
    have the deviation of one reward: P = Phi(0.3 / sqrt(2)) = 0.584."""
    arms = {"counts": np.array([1000.0, 1000.0]), "sample_variances": np.array([0.04, 0.04])}
    snapshot = make_snapshot(2, sample_means=np.array([0.56, 0.5]), **arms)
    assert pi("textbook-thompson", snapshot)[0] == pytest.approx(1.0, abs=1e-9)
    expected = stats.norm.cdf(0.3 / math.sqrt(2))
    assert pi("river-thompson", snapshot)[0] == pytest.approx(expected, abs=1e-3)


def test_the_textbook_draws_the_means(make_snapshot: MakeSnapshot) -> None:
    """Two arms: P(best) = Phi(gap / standard error of the difference) in standard units."""
    counts, means = np.array([30.0, 20.0]), np.array([0.55, 0.45])
    variances = np.array([0.25, 0.25])
    snapshot = make_snapshot(2, counts=counts, sample_means=means, sample_variances=variances)
    centre = (counts * means).sum() / 50
    scatter = ((counts - 1) * variances + counts * (means - centre) ** 2).sum() / 49
    exact = stats.norm.cdf(0.1 / math.sqrt(scatter) / math.sqrt(1 / 30 + 1 / 20))
    assert pi("textbook-thompson", snapshot)[0] == pytest.approx(exact, abs=1e-3)


@pytest.mark.parametrize("name", BASELINES)
def test_they_start_uniform_and_need_no_chance(make_snapshot: MakeSnapshot, name: str) -> None:
    np.testing.assert_allclose(pi(name, make_snapshot(3)), 1 / 3)
    same = seen(make_snapshot, sample_means=np.full(3, 0.5), sample_variances=np.zeros(3))
    np.testing.assert_allclose(pi(name, same), 1 / 3)
    close = {
        "sample_means": np.full(3, 0.5),
        "counts": np.full(3, 50.0),
        "sample_variances": np.full(3, 0.2),
    }
    np.testing.assert_allclose(pi(name, seen(make_snapshot, **close)), 1 / 3, atol=1e-6)
    answers = [pi(name, seen(make_snapshot, seed=seed)) for seed in range(2)]
    np.testing.assert_array_equal(*answers)


def test_baselines_say_whose_they_are() -> None:
    assert set(BASELINES) == {
        *("river-ucb", "river-epsilon-greedy", "river-thompson"),
        *("mabwiser-softmax", "textbook-thompson", "textbook-softmax"),
    }
    assert "never settles" in ASSIGNMENTS["river-thompson"].idea
    assert not any("Beta" in ASSIGNMENTS[name].idea for name in BASELINES)


def test_nothing_heavy_is_imported_before_it_is_asked() -> None:
    """Importing the package, and naming a baseline, leaves scipy and river alone."""
    code = (
        "import sys; from equipoise.policies.registry import policy; "
        "assert policy('river-thompson').name; "
        "assert not {'river', 'scipy', 'mabwiser'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
