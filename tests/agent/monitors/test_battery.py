"""What every check with a state keeps: merging, restarts, cuts, and a sentence at any moment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from equipoise.agent.moments.codec import decode, encode
from equipoise.agent.monitors import (
    DEFAULT_ACTIONS,
    AssignmentAudit,
    Delivery,
    Drift,
    Fidelity,
    Floors,
    Guardrail,
    GuardrailLimit,
    Missingness,
)
from equipoise.agent.monitors.check import Monitor

MODELS = ("a", "b", "c")
ROWS = 1300


@dataclass
class Case:
    """A check and columns for it; `feed` gives it the rows of a slice."""

    make: Callable[[], Monitor]
    feed: Callable[[Monitor, slice], None]

    def fed(self, *cuts: slice) -> Monitor:
        monitor = self.make()
        for cut in cuts:
            self.feed(monitor, cut)
        return monitor


def case(name: str) -> Case:
    rng = np.random.default_rng(5)
    pi = 0.03 + 0.91 * rng.dirichlet(np.ones(3), ROWS)
    rate = rng.uniform(0.05, 0.9, ROWS)
    model = np.array([rng.choice(3, p=row) for row in pi])
    drawn = rng.random(ROWS) < rate
    lost = rng.random(ROWS) < 0.2
    live, simulated = rng.normal(size=(2, ROWS, 2))
    scale, theta = np.array([1.0, 2.0]), np.array([0.3, -0.1])
    reward = rng.random(ROWS)
    propensity = pi[np.arange(ROWS), model]
    some = np.where(rng.random(ROWS) < 0.5, reward, np.nan)
    cases = {
        "assignment": Case(
            lambda: AssignmentAudit(MODELS),
            lambda m, s: m.update(rate[s], pi[s], model[s], drawn[s]),
        ),
        "fidelity": Case(
            lambda: Fidelity(MODELS, ("length", "cost")),
            lambda m, s: m.update(model[s], live[s], simulated[s], scale, theta),
        ),
        "drift": Case(
            lambda: Drift(MODELS), lambda m, s: m.update(model[s], reward[s] - 0.5, some[s])
        ),
        "missingness": Case(
            lambda: Missingness(MODELS), lambda m, s: m.update(pi[s], model[s], lost[s])
        ),
        "delivery": Case(lambda: Delivery(MODELS), lambda m, s: m.update(pi[s], model[s], lost[s])),
        "floors": Case(
            lambda: Floors(MODELS, 0.1, 400.0),
            lambda m, s: m.update(rate[s], propensity[s], drawn[s], lost[s], ~lost[s]),
        ),
        "guardrail": Case(
            lambda: Guardrail(MODELS, GuardrailLimit("error rate", 0.4)),
            lambda m, s: m.update(model[s], some[s]),
        ),
    }
    return cases[name]


ADDITIVE = ("assignment", "fidelity", "missingness", "delivery", "floors", "guardrail")
ALL = (*ADDITIVE, "drift")
WHOLE = slice(0, ROWS)
CUTS = (slice(0, 1), slice(1, 600), slice(600, ROWS))


def assert_same(one: Monitor, two: Monitor) -> None:
    for key, array in one.arrays().items():
        np.testing.assert_allclose(array, two.arrays()[key], rtol=1e-9, atol=1e-9, err_msg=key)
    assert one.result().status == two.result().status
    assert one.result().sentence == two.result().sentence


@pytest.mark.parametrize("name", ALL)
def test_every_check_has_a_default_action(name):
    assert case(name).make().name == name
    assert name in DEFAULT_ACTIONS


@pytest.mark.parametrize("name", ALL)
def test_without_rows_nothing_is_known_and_a_sentence_says_so(name):
    check = case(name).make().result()
    assert check.status == "unknown"
    assert check.sentence.endswith(".")
    assert check.models == ()


@pytest.mark.parametrize("name", ALL)
def test_how_rows_are_cut_does_not_matter(name):
    built = case(name)
    assert_same(built.fed(WHOLE), built.fed(*CUTS))


@pytest.mark.parametrize("name", ADDITIVE)
def test_merged_shards_are_the_whole(name):
    built = case(name)
    first, second = built.fed(slice(0, 500)), built.fed(slice(500, ROWS))
    before = {key: array.copy() for key, array in first.arrays().items()}
    assert_same(first + second, built.fed(WHOLE))
    assert_same(built.make() + second, second)
    for key, array in first.arrays().items():
        np.testing.assert_array_equal(array, before[key], err_msg=f"adding changed {key}")


@pytest.mark.parametrize("name", ALL)
def test_a_restart_from_bytes_goes_on_as_if_nothing_had_happened(name):
    built = case(name)
    first = built.fed(*CUTS[:2])
    again = built.make()
    arrays, _ = decode(encode(first.arrays()))
    again.load(arrays)
    built.feed(first, CUTS[2])
    built.feed(again, CUTS[2])
    for key, array in first.arrays().items():
        assert array.tobytes() == again.arrays()[key].tobytes(), key
    assert repr(first.result()) == repr(again.result())


@pytest.mark.parametrize("name", ALL)
def test_a_copy_stands_on_its_own(name):
    built = case(name)
    original = built.fed(CUTS[0], CUTS[1])
    twin, verdict = original.copy(), repr(original.result())
    built.feed(twin, CUTS[2])
    assert repr(original.result()) == verdict
    assert_same(twin, built.fed(*CUTS))


@pytest.mark.parametrize("name", ALL)
def test_a_state_of_another_shape_is_refused(name):
    arrays = {key: np.zeros((9, *array.shape)) for key, array in case(name).make().arrays().items()}
    with pytest.raises(ValueError, match=f"state of {name} has"):
        case(name).make().load(arrays)


def test_checks_of_other_things_do_not_add():
    with pytest.raises(TypeError, match="missingness cannot be added"):
        Missingness(MODELS) + Missingness(("a", "b", "d"))
    with pytest.raises(TypeError, match="delivery cannot be added"):
        Delivery(MODELS) + Missingness(MODELS)
    with pytest.raises(TypeError, match="order"):
        Drift(MODELS) + Drift(MODELS)
    with pytest.raises(ValueError, match="shift has"):
        Fidelity(MODELS, ("x",)) + Fidelity(MODELS, ("x", "y"))


@pytest.mark.parametrize("level", [0.0, 1.0, -0.1])
def test_a_level_is_a_probability(level):
    with pytest.raises(ValueError, match="must be above 0 and below 1"):
        AssignmentAudit(MODELS, level)
