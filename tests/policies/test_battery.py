"""The laws of allocation policies, over every registered gate and assignment.

A policy joins by being registered. Gates and assignments keep the laws each by itself, and as the
pairs that have a name; that any pair does what its two parts do is one more law. The scenarios of
conftest.py are snapshots a policy must cope with; transforming one (relabelled, mirrored,
rescaled) must transform the answer likewise.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np
import pytest

from equipoise.policies.allocation import Allocation
from equipoise.policies.draw import draw
from equipoise.policies.registry import ASSIGNMENTS, GATES, PRESETS, Policy, policy
from equipoise.policies.snapshot import Flags, Floats, Limits, Snapshot

CONTEXT = 3

Scenario = Callable[[], Snapshot]


def read_only(snapshot: Snapshot) -> Snapshot:
    """The snapshot, locked: a policy that writes to it raises."""
    for holder in (snapshot, snapshot.scorer):
        for field in fields(holder) if holder is not None else ():
            value = getattr(holder, field.name)
            if isinstance(value, np.ndarray):
                value.flags.writeable = False
    return snapshot


def alone() -> list[Policy]:
    """Every gate beside `uniform`, every assignment at the fixed rate, and the named pairs."""
    names = [f"{gate}+uniform" for gate in GATES]
    names += [f"fixed-rate+{assignment}" for assignment in ASSIGNMENTS]
    names += ["+".join(pair) for pair in PRESETS.values()]
    return [policy(name) for name in dict.fromkeys(names)]


every_policy = pytest.mark.parametrize("rule", alone(), ids=lambda rule: rule.name)


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_a_pair_does_what_its_parts_do(assignment: str, scenario: Scenario) -> None:
    """Bit for bit, so that the laws below hold of every pair; and the pair is written as itself."""
    snapshot = scenario()
    models = len(snapshot.models)
    at_fixed_rate = policy(f"fixed-rate+{assignment}")
    shares = answers(at_fixed_rate.freeze(snapshot), models)
    for gate in GATES:
        rule, with_uniform = policy(f"{gate}+{assignment}"), policy(f"{gate}+uniform")
        assert rule.uses_estimate == (GATES[gate].uses_estimate or at_fixed_rate.uses_estimate)
        pair, gated = rule.freeze(snapshot), with_uniform.freeze(snapshot)
        assert pair.encode()["gate"] == gated.encode()["gate"]
        again = Allocation.decode(json.loads(json.dumps(pair.encode(), allow_nan=False)))
        assert again.encode() == pair.encode()
        for allocation in (pair, again):
            for whole, rates, drawn in zip(
                answers(allocation, models), answers(gated, models), shares, strict=True
            ):
                np.testing.assert_array_equal(whole[0], rates[0])
                np.testing.assert_array_equal(whole[1], drawn[1])


def contexts(rows: int = 9) -> Floats:
    return np.random.default_rng(rows).normal(size=(rows, CONTEXT))


def some_eligible(rows: int, models: int) -> Flags:
    """Random flags; the first row has no eligible model, the second all of them."""
    eligible = np.random.default_rng(models).random((rows, models)) < 0.6
    eligible[0], eligible[1] = False, True
    return eligible


def answers(allocation: Allocation, models: int) -> list[tuple[Floats, Floats]]:
    x = contexts()
    return [allocation.allocate(x, None), allocation.allocate(x, some_eligible(len(x), models))]


def same_answers(here: Allocation, there: Allocation) -> None:
    models = here.assignment.models
    for ours, theirs in zip(answers(here, models), answers(there, models), strict=True):
        for array, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(other, array, atol=1e-9)


@every_policy
def test_probabilities_sum_to_one_above_the_floor(rule: Policy, scenario: Scenario) -> None:
    snapshot = read_only(scenario())
    models, floor = len(snapshot.models), snapshot.limits.floor
    allocation = rule.freeze(snapshot)
    x, some = contexts(), some_eligible(9, models)
    for eligible in (None, some):
        mask = np.ones((9, models), dtype=bool) if eligible is None else eligible
        rate, probabilities = allocation.allocate(x, eligible)
        assert rate.shape == (9,)
        assert probabilities.shape == (9, models)
        assert (probabilities[~mask] == 0.0).all()
        assert (probabilities[mask] >= floor).all()
        np.testing.assert_allclose(probabilities.sum(axis=1), mask.any(axis=1), atol=1e-12)


@every_policy
def test_the_floor_is_mixed_in_not_clipped(rule: Policy, scenario: Scenario) -> None:
    """pi(floor) is the straight line between pi(0) and uniform."""
    snapshot = scenario()
    models = len(snapshot.models)
    bare = rule.freeze(replace(snapshot, limits=replace(snapshot.limits, floor=0.0)))
    allocation = rule.freeze(snapshot)
    floor = snapshot.limits.floor
    eligible = some_eligible(9, models)
    count = eligible.sum(axis=1, keepdims=True)
    raw = bare.allocate(contexts(), eligible)[1]
    expected = (1.0 - count * floor) * raw + floor * eligible
    np.testing.assert_allclose(allocation.allocate(contexts(), eligible)[1], expected, atol=1e-12)


@every_policy
def test_rates_stay_within_their_bounds(rule: Policy, scenario: Scenario) -> None:
    snapshot = scenario()
    for low, rate, high in ((0.02, 0.2, 0.8), (0.3, 0.2, 0.8), (0.0, 0.2, 0.1), (0.1, 0.1, 0.1)):
        limits = Limits(rate=rate, rate_min=low, rate_max=high, floor=0.0)
        rates = rule.freeze(replace(snapshot, limits=limits)).allocate(contexts())[0]
        assert ((low <= rates) & (rates <= high)).all()


@pytest.mark.parametrize("name", sorted(GATES))
def test_a_gate_spends_the_budget_over_the_traffic_seen(name: str, scenario: Scenario) -> None:
    snapshot = scenario()
    seen = contexts(50) if snapshot.contexts is None else snapshot.contexts
    for rate, high in ((0.2, 0.8), (0.2, 0.22), (0.7, 0.8), (0.03, 0.8)):
        limits = Limits(rate=rate, rate_min=0.02, rate_max=high, floor=0.0)
        kernel = policy(f"{name}+uniform").freeze(replace(snapshot, limits=limits)).gate
        decided = snapshot.certified and name in ("uncertainty", "contrast")
        assert kernel.rates(seen).mean() == pytest.approx(0.02 if decided else rate, abs=1e-12)


def relabelled(snapshot: Snapshot, order: list[int]) -> Snapshot:
    """The same knowledge with the models in another order."""
    scorer = snapshot.scorer
    if scorer is not None:
        first = len(scorer.theta) - len(order)
        by_model = scorer.noise_keys[-1].startswith("model:")
        moved = np.arange(len(scorer.theta))
        if by_model:
            moved = np.concatenate([np.arange(first), first + np.array(order)])
        scorer = replace(
            scorer,
            theta=scorer.theta[moved],
            covariance=scorer.covariance[np.ix_(moved, moved)],
            design=scorer.design[order][:, :, moved],
            noise_keys=tuple(scorer.noise_keys[index] for index in moved),
            residual_variances=scorer.residual_variances[order],
            value_design=scorer.value_design[order][:, moved],
            spread=scorer.spread[order][:, moved][:, :, moved],
        )
    return replace(
        snapshot,
        models=tuple(snapshot.models[position] for position in order),
        values=snapshot.values[order],
        covariance=snapshot.covariance[np.ix_(order, order)],
        counts=snapshot.counts[order],
        sample_means=snapshot.sample_means[order],
        sample_variances=snapshot.sample_variances[order],
        costs=snapshot.costs[order],
        scorer=scorer,
    )


@every_policy
def test_relabelled_models_get_the_same_answer(rule: Policy, scenario: Scenario) -> None:
    snapshot = scenario()
    models = len(snapshot.models)
    allocation = rule.freeze(snapshot)
    rng = np.random.default_rng(1)
    for order in ([*range(models)][::-1], rng.permutation(models).tolist()):
        other = rule.freeze(relabelled(snapshot, order))
        for eligible in (None, some_eligible(9, models)):
            rate, pi = allocation.allocate(contexts(), eligible)
            moved = None if eligible is None else eligible[:, order]
            other_rate, other_pi = other.allocate(contexts(), moved)
            np.testing.assert_allclose(other_rate, rate, atol=1e-9)
            np.testing.assert_allclose(other_pi, pi[:, order], atol=1e-9)


@pytest.mark.parametrize(
    "name",
    sorted(ASSIGNMENTS),
)
def test_copies_of_a_model_are_treated_alike(name: str, scenarios: dict[str, Scenario]) -> None:
    snapshot = scenarios["copies"]()
    first, second = np.argsort(-snapshot.values)[:2]
    pi = policy(f"fixed-rate+{name}").freeze(snapshot).allocate(contexts())[1]
    np.testing.assert_allclose(pi[:, first], pi[:, second], atol=1e-9)


def mirrored(snapshot: Snapshot) -> Snapshot:
    """The same knowledge about minus the reward, with the other sign."""
    scorer, bounds = snapshot.scorer, snapshot.reward_range
    return replace(
        snapshot,
        values=-snapshot.values,
        sample_means=-snapshot.sample_means,
        sign=-snapshot.sign,
        reward_range=None if bounds is None else (-bounds[1], -bounds[0]),
        scorer=None if scorer is None else replace(scorer, theta=-scorer.theta),
    )


def rescaled(snapshot: Snapshot, unit: float) -> Snapshot:
    """The same knowledge with rewards and epsilon in another unit."""
    scorer, bounds = snapshot.scorer, snapshot.reward_range
    if scorer is not None:
        scorer = replace(
            scorer,
            theta=unit * scorer.theta,
            covariance=unit**2 * scorer.covariance,
            residual_variances=unit**2 * scorer.residual_variances,
        )
    return replace(
        snapshot,
        values=unit * snapshot.values,
        covariance=unit**2 * snapshot.covariance,
        sample_means=unit * snapshot.sample_means,
        sample_variances=unit**2 * snapshot.sample_variances,
        epsilon=unit * snapshot.epsilon,
        reward_range=None if bounds is None else (unit * bounds[0], unit * bounds[1]),
        scorer=scorer,
    )


@every_policy
def test_maximising_equals_minimising_the_negative(rule: Policy, scenario: Scenario) -> None:
    snapshot = scenario()
    same_answers(rule.freeze(snapshot), rule.freeze(mirrored(snapshot)))


@every_policy
@pytest.mark.parametrize("unit", [3.7, 1e-3, 1e6])
def test_the_unit_of_the_reward_does_not_matter(
    rule: Policy, scenario: Scenario, unit: float
) -> None:
    snapshot = scenario()
    same_answers(rule.freeze(snapshot), rule.freeze(rescaled(snapshot, unit)))


@every_policy
def test_nothing_is_assigned_deterministically_at_the_start(
    rule: Policy, scenarios: dict[str, Scenario]
) -> None:
    """With nothing known and no floor, chance alone reaches every eligible model."""
    nothing = scenarios["empty"]()
    snapshot = replace(nothing, limits=replace(nothing.limits, floor=0.0))
    x, eligible = contexts(), some_eligible(9, 5)
    rate, probabilities = rule.freeze(snapshot).allocate(x, eligible)
    assert ((rate > 0.0) & (rate < 1.0)).all()
    assert (probabilities[eligible] > 0.0).all()
    assert (probabilities[eligible.sum(axis=1) > 1] < 1.0).all()
    # The identity of the request that comes first, second, … plays no part.
    assert np.unique(rule.freeze(snapshot).allocate(x)[1], axis=0).shape[0] == 1


@every_policy
def test_decoding_restores_every_bit(rule: Policy, scenario: Scenario) -> None:
    snapshot = scenario()
    allocation = rule.freeze(snapshot)
    text = json.dumps(allocation.encode(), allow_nan=False, sort_keys=True)
    again = Allocation.decode(json.loads(text))
    assert json.dumps(again.encode(), allow_nan=False, sort_keys=True) == text
    assert (again.gate_name, again.assignment_name) == (rule.gate.name, rule.assignment.name)
    models = len(snapshot.models)
    for (rate, pi), (other_rate, other_pi) in zip(
        answers(allocation, models), answers(again, models), strict=True
    ):
        np.testing.assert_array_equal(other_rate, rate)
        np.testing.assert_array_equal(other_pi, pi)


@every_policy
def test_a_row_gives_the_same_bits_alone_and_in_a_batch(rule: Policy, scenario: Scenario) -> None:
    snapshot = scenario()
    models, rows = len(snapshot.models), 70
    allocation = rule.freeze(snapshot)
    x, some = contexts(rows), some_eligible(rows, models)
    uniform, routed = np.random.default_rng(2).random(rows), np.zeros(rows, dtype=np.int64)
    for eligible in (None, some):
        rate, pi = allocation.allocate(x, eligible)
        model, randomized = draw(uniform, rate, pi, routed)
        for start, stop in ((0, 1), (5, 6), (69, 70), (3, 35), (3, 36), (0, 69)):
            rows_here = slice(start, stop)
            part = None if eligible is None else eligible[rows_here]
            a_rate, a_pi = allocation.allocate(x[rows_here], part)
            np.testing.assert_array_equal(a_rate, rate[rows_here])
            np.testing.assert_array_equal(a_pi, pi[rows_here])
            a_model, a_randomized = draw(uniform[rows_here], a_rate, a_pi, routed[rows_here])
            np.testing.assert_array_equal(a_model, model[rows_here])
            np.testing.assert_array_equal(a_randomized, randomized[rows_here])


@every_policy
def test_freezing_is_pure(rule: Policy, scenario: Scenario) -> None:
    """The same snapshot twice gives the same bits, and neither it nor global chance is touched."""
    snapshot = read_only(scenario())
    before = np.random.get_state()[1].tobytes()  # noqa: NPY002
    first = json.dumps(rule.freeze(snapshot).encode(), sort_keys=True)
    assert json.dumps(rule.freeze(snapshot).encode(), sort_keys=True) == first
    fresh = scenario()
    assert json.dumps(rule.freeze(fresh).encode(), sort_keys=True) == first
    assert np.random.get_state()[1].tobytes() == before  # noqa: NPY002


@every_policy
def test_a_policy_that_says_so_ignores_the_estimate(
    rule: Policy, scenarios: dict[str, Scenario]
) -> None:
    """uses_estimate = False: values, covariance, scorer and certified change nothing."""
    snapshot = scenarios["scorer with model effects"]()
    other = replace(
        snapshot,
        values=-3.0 * snapshot.values,
        covariance=np.eye(5),
        scorer=replace(
            snapshot.scorer, theta=-snapshot.scorer.theta, residual_variances=np.arange(5.0)
        ),
        certified=True,
    )
    same = rule.freeze(snapshot).encode() == rule.freeze(other).encode()
    assert same == (not rule.uses_estimate)


@every_policy
def test_a_policy_that_says_so_ignores_the_contexts(
    rule: Policy, scenarios: dict[str, Scenario]
) -> None:
    snapshot = scenarios["scorer with model effects"]()
    assert snapshot.contexts is not None
    moved = replace(snapshot, contexts=3.0 - 2.0 * snapshot.contexts)
    for other in (moved, replace(snapshot, contexts=None)):
        same = rule.freeze(snapshot).encode() == rule.freeze(other).encode()
        assert same == (not rule.uses_contexts)


@pytest.mark.parametrize("name", [*PRESETS, *sorted(ASSIGNMENTS.keys() - PRESETS.keys())])
def test_every_name_freezes(name: str, scenarios: dict[str, Scenario]) -> None:
    allocation = policy(name).freeze(scenarios["known"]())
    assert allocation.assignment.models == 5
    if name in PRESETS:
        assert (allocation.gate_name, allocation.assignment_name) == PRESETS[name]
