"""Names of policies, and what it takes to add one."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from equipoise.policies import registry
from equipoise.policies.kernels import ConstantRate, ConstantShares
from equipoise.policies.registry import ASSIGNMENTS, assignment, gate, policy
from equipoise.policies.snapshot import Limits, Snapshot


@pytest.fixture(autouse=True)
def _registries_of_this_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "GATES", dict(registry.GATES))
    monkeypatch.setattr(registry, "ASSIGNMENTS", dict(registry.ASSIGNMENTS))


def test_presets_are_pairs() -> None:
    for name in ("uniform", "neyman", "thompson", "top-two", "track-and-stop"):
        assert policy(name).name == f"fixed-rate+{name}"
    assert policy("uncertainty+top-two").gate.name == "uncertainty"
    assert policy("river-ucb").name == "fixed-rate+river-ucb"
    assert set(ASSIGNMENTS) >= {"uniform", "river-ucb", "river-epsilon-greedy", "river-thompson"}


def test_policies_say_whether_they_read_the_estimate() -> None:
    reads = {name: policy(name).uses_estimate for name in ASSIGNMENTS}
    assert reads["thompson"]
    assert reads["top-two"]
    assert reads["neyman"]
    assert not reads["uniform"]
    assert not reads["track-and-stop"]
    assert not reads["river-thompson"]
    assert policy("uncertainty+uniform").uses_estimate


@pytest.mark.parametrize(
    "name", ["", "thomson", "fixed-rate+", "+uniform", "a+b", "uniform+uniform"]
)
def test_an_unknown_name_lists_the_known_ones(name: str) -> None:
    with pytest.raises(
        ValueError,
        match=r"is not known; presets: uniform, neyman.*gates: active, contrast, fixed-rat",
    ) as e:
        policy(name)
    assert repr(name) in str(e.value)
    assert "track-and-stop, uniform" in str(e.value)


def test_a_new_policy_is_one_function(make_snapshot: Callable[..., Snapshot]) -> None:
    @assignment("cheapest", uses_estimate=False)
    def cheapest(snapshot: Snapshot) -> ConstantShares:
        return ConstantShares(snapshot.costs == snapshot.costs.min())

    @gate("half", uses_estimate=False)
    def half(snapshot: Snapshot) -> ConstantRate:
        return ConstantRate(0.5)

    limits = Limits(rate=0.2, rate_min=0.1, rate_max=0.4, floor=0.1)
    snapshot = make_snapshot(3, costs=np.array([2.0, 1.0, 3.0]), limits=limits)
    rate, pi = policy("cheapest").freeze(snapshot).allocate(np.zeros((1, 0)))
    np.testing.assert_allclose((rate[0], *pi[0]), [0.2, 0.1, 0.8, 0.1], rtol=1e-15)
    allocation = policy("half+cheapest").freeze(snapshot)
    assert allocation.allocate(np.zeros((2, 0)))[0].tolist() == [0.4, 0.4]  # clipped to rate_max
    assert (allocation.gate_name, allocation.assignment_name) == ("half", "cheapest")
    assert not policy("half+cheapest").uses_estimate
    assert "cheapest" in registry.ASSIGNMENTS


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ValueError, match="assignment 'uniform' is registered twice"):
        assignment("uniform")
    with pytest.raises(ValueError, match="gate 'fixed-rate' is registered twice"):
        gate("fixed-rate")
    with pytest.raises(ValueError, match=r"gate is called 'a\+b'"):
        gate("a+b")
    with pytest.raises(ValueError, match="assignment is called 'a,b'"):
        assignment("a,b")


def test_impossible_limits_are_refused(make_snapshot: Callable[..., Snapshot]) -> None:
    snapshot = make_snapshot(4)
    limits = snapshot.limits
    with pytest.raises(ValueError, match=r"floor is 0\.3, expected 0 to 1/4 with 4 models"):
        policy("uniform").freeze(replace(snapshot, limits=replace(limits, floor=0.3)))
    for low, high in ((0.5, 0.4), (-0.1, 0.4), (0.1, 1.2)):
        wrong = replace(snapshot, limits=replace(limits, rate_min=low, rate_max=high))
        with pytest.raises(ValueError, match=f"rate_min is {low} and rate_max is {high}"):
            policy("uniform").freeze(wrong)


def test_an_assignment_for_other_models_is_refused(make_snapshot: Callable[..., Snapshot]) -> None:
    @assignment("pair", uses_estimate=False)
    def pair(snapshot: Snapshot) -> ConstantShares:
        return ConstantShares(np.ones(2))

    with pytest.raises(ValueError, match="'pair' is for 2 models, expected 3"):
        policy("pair").freeze(make_snapshot(3))


def test_a_policy_can_be_sent_to_another_process() -> None:
    rule = policy("uncertainty+thompson")
    assert pickle.loads(pickle.dumps(rule)) == rule
