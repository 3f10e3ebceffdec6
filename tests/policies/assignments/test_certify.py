"""`certify`: its shares are the minimum of what they claim to minimise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize

from equipoise.policies.assignments.certify import POWER, cautious, certify, certifying_shares
from equipoise.policies.assignments.track_and_stop import optimal_weights
from equipoise.policies.snapshot import Floats, Snapshot

MakeSnapshot = Callable[..., Snapshot]
CASES = [
    ([0.016, 0.018, 0.04], [762.0, 545.0, 502.0]),
    ([0.3, 0.4, 0.55, 0.6], [100.0, 100.0, 100.0, 100.0]),
    ([0.95, 0.99, 0.97], [30.0, 300.0, 90.0]),
    ([0.1, 0.12, 0.08, 0.2], [200.0, 300.0, 100.0, 200.0]),
]


def told(values: list[float], counts: list[float]) -> tuple[Floats, ...]:
    """best, gaps, apart, variances, level, as `certifying_shares` takes them."""
    level, count = np.array(values), np.array(counts)
    variances = cautious(level * (1.0 - level), count)
    noise = variances / count
    draws = level + np.random.default_rng(0).standard_normal((20_000, len(level))) * np.sqrt(noise)
    best = (np.bincount(draws.argmax(axis=1), minlength=len(level)) + 0.5) / 20_000
    apart = noise[:, None] + noise[None, :]
    return best / best.sum(), level[:, None] - level[None, :], apart, variances, level


def expected(shares: Floats, best: Floats, gaps: Floats, apart: Floats, *own: Floats) -> float:
    """The criterion of the module's docstring, pair by pair."""
    variances, level = own
    size, total = len(best), 0.0
    for leader in range(size):
        needed = []
        for other in range(size):
            if other != leader:
                low = variances[leader] + max(level[leader] - size * shares[leader], 0.0) ** 2
                high = variances[other] + max(1 - level[other] - size * shares[other], 0.0) ** 2
                noise = low / shares[leader] + high / shares[other]
                needed.append(noise / (gaps[leader, other] ** 2 + apart[leader, other]))
        total += best[leader] * sum(each**POWER for each in needed) ** (1.0 / POWER)
    return total


@pytest.mark.parametrize(("values", "counts"), CASES)
def test_no_other_shares_are_expected_to_decide_sooner(
    values: list[float], counts: list[float]
) -> None:
    arguments = told(values, counts)
    found = certifying_shares(*arguments)
    assert found.sum() == pytest.approx(1.0)
    ours, rng = expected(found, *arguments), np.random.default_rng(1)

    def criterion(logits: Floats) -> float:
        shares = np.exp(logits - logits.max())
        return float(np.log(expected(shares / shares.sum(), *arguments)))

    for _ in range(4):
        start = rng.normal(size=len(values))
        other = minimize(criterion, start, method="Nelder-Mead", options={"maxiter": 4000})
        assert np.log(ours) <= other.fun + 1e-4


def test_rare_rewards_and_rare_failures_want_nearly_uniform_shares() -> None:
    """A model that is worth next to nothing needs a share of 1 / K for its control variate; the
    shares of Gaussian theory would be far from it."""
    arguments = told([0.01, 0.02, 0.05, 0.01], [500.0] * 4)
    found = certifying_shares(*arguments)
    assert (abs(found - 0.25) < 0.07).all()
    gaussian = optimal_weights(arguments[4], arguments[3], 0.0)
    assert gaussian.max() > 0.4
    assert gaussian.min() < 0.1


def test_in_the_middle_of_the_range_a_sure_leader_gets_the_optimal_weights() -> None:
    """At .5 nothing is cut for shares above .5 / K: Garivier & Kaufmann's shares, up to the power
    mean."""
    values = np.array([0.5, 0.5, 0.6])
    variances, sure = values * (1.0 - values), np.array([0.0, 0.0, 1.0])
    gaps = values[:, None] - values[None, :]
    found = certifying_shares(sure, gaps, np.zeros((3, 3)), variances, values)
    np.testing.assert_allclose(found, optimal_weights(values, variances, 0.0), atol=1e-3)


def test_it_starts_uniform_and_minimising_is_maximising_the_mirror_image(
    make_snapshot: MakeSnapshot,
) -> None:
    unknown = make_snapshot(3, sample_variances=np.full(3, np.nan))
    np.testing.assert_allclose(certify(unknown).shares, certify(unknown).shares[0])
    snapshot = make_snapshot(
        3,
        values=np.array([0.2, 0.5, 0.45]),
        covariance=np.diag([0.001, 0.002, 0.001]),
        sample_variances=np.array([0.1, 0.2, 0.2]),
        counts=np.array([50.0, 60.0, 70.0]),
        reward_range=(0.0, 1.0),
    )
    mirror = replace(snapshot, values=1.0 - snapshot.values, sign=-1)
    np.testing.assert_allclose(certify(mirror).shares, certify(snapshot).shares, atol=1e-9)
    wide = replace(
        snapshot,
        values=10.0 + 5.0 * snapshot.values,
        covariance=25.0 * snapshot.covariance,
        sample_variances=25.0 * snapshot.sample_variances,
        epsilon=5.0 * snapshot.epsilon,
        reward_range=(10.0, 15.0),
    )
    np.testing.assert_allclose(certify(wide).shares, certify(snapshot).shares, atol=1e-9)
