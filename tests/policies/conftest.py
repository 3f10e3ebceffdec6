"""Snapshots for the tests of policies: one to fill in, and the scenarios of the battery."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from equipoise.policies.snapshot import ContextScorer, Limits, Snapshot

CONTEXT = 3
LIMITS = Limits(rate=0.2, rate_min=0.02, rate_max=0.8, floor=0.05)


def _snapshot(models: int, /, **changes: Any) -> Snapshot:
    """A snapshot of `models` models of which nothing is known, with `changes` made to it."""
    fields: dict[str, Any] = {
        "models": tuple(f"model-{position}" for position in range(models)),
        "values": np.full(models, np.nan),
        "covariance": np.diag(np.full(models, np.inf)),
        "counts": np.zeros(models),
        "sample_means": np.full(models, np.nan),
        "sample_variances": np.full(models, np.nan),
        "costs": np.full(models, np.nan),
        "limits": LIMITS,
    }
    return Snapshot(**(fields | changes))


@pytest.fixture(scope="session")
def make_snapshot() -> Callable[..., Snapshot]:
    """`make_snapshot(models, **fields)`: nothing is known but what the fields say."""
    return _snapshot


def traffic(rows: int = 200) -> np.ndarray:
    """(rows, d) contexts, far from 0 and of different spreads."""
    rng = np.random.default_rng(3)
    return np.array([5.0, -1.0, 0.2]) + rng.normal(size=(rows, CONTEXT)) * [2.0, 1.0, 0.1]


def empty(models: int = 5) -> Snapshot:
    """Nothing is known; the names are not in order."""
    return _snapshot(
        models, models=tuple(f"model-{letter}" for letter in "dbaec"[:models]), seed=11
    )


def known(models: int = 5) -> Snapshot:
    """Every model has a value, with errors that correlate, and different costs."""
    rng = np.random.default_rng(models)
    factor = rng.normal(size=(models, models))
    values = rng.normal(0.5, 0.1, size=models)
    return replace(
        empty(models),
        values=values,
        covariance=0.002 * (factor @ factor.T + np.eye(models)),
        counts=rng.integers(12, 60, size=models).astype(np.float64),
        sample_means=values + rng.normal(0, 0.05, size=models),
        sample_variances=rng.uniform(0.1, 0.3, size=models),
        costs=rng.uniform(0.001, 0.02, size=models),
        requests=900,
        epsilon=0.01,
        contexts=traffic(),
        reward_range=(-2.0, 3.0),
    )


def partly_known() -> Snapshot:
    """One model has no reward yet, one has a single reward."""
    base = known()
    values, means, variances = base.values.copy(), base.sample_means.copy(), base.sample_variances
    counts, costs, covariance = base.counts.copy(), base.costs.copy(), base.covariance.copy()
    variances = variances.copy()
    values[1] = means[1] = costs[1] = np.nan
    covariance[1, :] = covariance[:, 1] = 0.0
    covariance[1, 1] = np.inf
    variances[[1, 3]] = np.nan
    counts[[1, 3]] = 0.0, 1.0
    return replace(
        base, values=values, covariance=covariance, counts=counts, sample_means=means,
        sample_variances=variances, costs=costs,
    )  # fmt: skip


def with_scorer(effects: bool) -> Snapshot:
    """A scorer over contexts as well, with an effect per model or without."""
    base, rng = known(), np.random.default_rng(5)
    models, shared = len(base.models), 6
    design = rng.normal(size=(models, 1 + CONTEXT, shared))
    keys = tuple(f"phi:{index}" for index in range(shared))
    if effects:
        own = np.zeros((models, 1 + CONTEXT, models))
        own[np.arange(models), 0, np.arange(models)] = 1.0
        design = np.concatenate([design, own], axis=2)
        keys += tuple(f"model:{name}" for name in base.models)
    size = len(keys)
    root = 0.3 * rng.normal(size=(models, size, 3))
    root[:, shared:] = 0.0
    factor = rng.normal(size=(size, size))
    scorer = ContextScorer(
        theta=rng.normal(size=size),
        covariance=0.1 * factor @ factor.T,
        design=design,
        noise_keys=keys,
        residual_variances=rng.uniform(0.1, 0.3, size=models),
        value_design=design[:, 0] + design[:, 1:].transpose(0, 2, 1) @ traffic().mean(axis=0),
        spread=root @ root.transpose(0, 2, 1),
    )
    return replace(base, scorer=scorer)


def copies() -> Snapshot:
    """The two best models are copies of each other, their errors too: a singular covariance."""
    base = known()
    order = np.argsort(-base.values)
    source = np.arange(5)
    source[order[1]] = order[0]
    return replace(
        base,
        values=base.values[source],
        covariance=base.covariance[np.ix_(source, source)],
        counts=base.counts[source],
        sample_means=np.where(source == order[0], 0.9, base.sample_means),
        sample_variances=base.sample_variances[source],
        costs=base.costs[source],
    )


def noiseless() -> Snapshot:
    """No reward of a model ever differed from another of the same model, and epsilon is 0."""
    base = known()
    return replace(
        base,
        covariance=np.zeros((5, 5)),
        sample_variances=np.zeros(5),
        epsilon=0.0,
        sample_means=np.round(base.sample_means, 1),
    )


SCENARIOS: dict[str, Callable[[], Snapshot]] = {
    "empty": empty,
    "one model, empty": lambda: empty(1),
    "one model": lambda: known(1),
    "two models": lambda: known(2),
    "known": known,
    "partly known": partly_known,
    "scorer": lambda: with_scorer(effects=False),
    "scorer with model effects": lambda: with_scorer(effects=True),
    "copies": copies,
    "noiseless": noiseless,
    "smaller is better": lambda: replace(known(), sign=-1),
    "certified": lambda: replace(known(), certified=True),
    "no floor": lambda: replace(known(), limits=replace(LIMITS, floor=0.0)),
    "largest floor": lambda: replace(known(), limits=replace(LIMITS, floor=1.0 / 5.0)),
}


@pytest.fixture(params=SCENARIOS)
def scenario(request: pytest.FixtureRequest) -> Callable[[], Snapshot]:
    """Each scenario in turn, as a function that builds it afresh."""
    return SCENARIOS[request.param]


@pytest.fixture(scope="session")
def scenarios() -> dict[str, Callable[[], Snapshot]]:
    """Every scenario by name."""
    return SCENARIOS
