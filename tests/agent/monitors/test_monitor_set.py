"""The panel: what each check is fed, what an era starts afresh, state, and who may alarm."""

from __future__ import annotations

import numpy as np
import pytest

from equipoise.agent.moments.codec import decode, encode
from equipoise.agent.monitors import Action, GuardrailLimit, action_table, consequences
from equipoise.agent.monitors.monitor_set import ClosedRows, DecisionRows, MonitorSet
from equipoise.policies.snapshot import Limits

MODELS = ("a", "b", "c")
LIMITS = Limits(rate=0.3, rate_min=0.01, rate_max=1.0, floor=0.05)
GUARDS = (GuardrailLimit("err.p99", 0.2), GuardrailLimit("ok", 0.9))


def panel() -> MonitorSet:
    return MonitorSet(MODELS, ("length", "cost"), LIMITS, GUARDS)


def decided(n: int, seed: int = 0) -> DecisionRows:
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(3, 5.0), n)
    model = np.array([rng.choice(3, p=row) for row in shares])
    drawn = rng.random(n) < 0.3
    ones = np.ones(n, dtype=bool)
    chance = shares[np.arange(n), model]
    return DecisionRows(
        np.full(n, 0.3), chance, shares, model, drawn, np.zeros(n, dtype=np.int64), ones, ones
    )


def entered(n: int, seed: int = 0, **given) -> ClosedRows:
    rng = np.random.default_rng(seed)
    rows = decided(n, seed)
    columns = {
        "probabilities": rows.probabilities,
        "model": rows.model,
        "routed": rng.integers(0, 3, n),
        "randomized": rows.randomized,
        "delivered": rng.random(n) < 0.9,
        "known": rng.random(n) < 0.8,
        "reward": rng.random(n),
        "predicted": rng.random(n),
        "metrics": np.column_stack([rng.random(n) < 0.1, rng.random(n) < 0.5]).astype(float),
    }
    columns |= given
    answered = np.random.default_rng(seed + 1).random(n) < 0.9
    rest = {
        "counts": columns["known"],
        "tested": np.ones(n, dtype=bool),
        "as_routed": columns["model"] == columns["routed"],
        "as_drawn": columns["delivered"] & answered,
    }
    return ClosedRows(**{**rest, **columns})


def figures(one: MonitorSet) -> dict:
    return {check.name: check.figures for check in reversed(one.checks())}


def test_each_check_gets_its_rows_and_no_others():
    one, rows = panel(), entered(400)
    one.take_decisions(0, decided(400))
    one.take_closed(0, rows)
    found = figures(one)
    drawn, reached = rows.randomized, rows.randomized & rows.delivered
    assert found["assignment"]["rows"] == 400
    assert found["floors"]["rows"] == 400
    assert found["missingness"]["rows"] == found["delivery"]["rows"] == drawn.sum()
    lost = (reached & ~rows.known).sum()
    assert found["missingness"]["share"] == pytest.approx(lost / drawn.sum())
    otherwise = drawn & ~rows.as_drawn
    assert found["delivery"]["share"] == pytest.approx(otherwise.sum() / drawn.sum())
    for name, part in (
        ("decided", drawn),
        ("delivered", reached),
        ("exposed", drawn & rows.as_drawn),
    ):
        assert found["delivery"][name] == np.bincount(rows.model[part], minlength=3).tolist()
    assert found["delivery"]["delivered"] != found["delivery"]["exposed"]
    assert found["guardrail"]["rows"] == np.bincount(rows.model[reached]).tolist()
    used = rows.known & rows.delivered
    per_model = np.bincount(rows.model[used], minlength=3).tolist()
    assert found["drift"]["rows"] == [*per_model, (used & (rows.model == rows.routed)).sum()]


def test_rows_without_a_prediction_say_nothing_about_a_model():
    one = panel()
    one.take_closed(0, entered(300, predicted=np.full(300, np.nan)))
    assert figures(one)["drift"]["rows"][:3] == [0, 0, 0]
    assert figures(one)["drift"]["rows"][3] > 0


def test_drift_of_a_model_against_what_was_predicted_names_it():
    """A fall of one model's rewards by a third, where predictions follow the requests."""
    rng = np.random.default_rng(1)
    one = panel()
    for index in range(30):
        rows = entered(300, seed=index)
        easy = rng.random(300)
        fell = (rows.model == 1) & (index >= 20)
        reward = (rng.random(300) < np.where(fell, easy * 0.6, easy)).astype(float)
        elsewhere = (rows.model + 1) % 3
        one.take_closed(0, entered(300, index, reward=reward, predicted=easy, routed=elsewhere))
        if index == 19:
            assert not [check for check in one.checks() if check.status == "alarm"]
    (check,) = [check for check in one.checks() if check.status == "alarm"]
    assert (check.name, check.models) == ("drift", (1,))


def test_a_new_era_starts_what_belongs_to_it_afresh():
    """Decisions of an era come before its rows are closed: each side turns by itself."""
    one = panel()
    one.take_decisions(0, decided(100))
    one.take_closed(0, entered(100))
    one.take_pairs(np.zeros(3, dtype=int), np.ones((3, 2)), np.zeros((3, 2)), np.ones(2), None)
    one.take_decisions(1, decided(40))
    found = figures(one)
    assert found["assignment"]["rows"] == found["floors"]["rows"] == 40
    assert found["missingness"]["rows"] > 0
    assert sum(found["fidelity"]["pairs"]) == 3
    one.take_closed(1, entered(50))
    found = figures(one)
    assert found["assignment"]["rows"] == 40
    assert found["missingness"]["rows"] == entered(50).randomized.sum()
    assert sum(found["fidelity"]["pairs"]) == 0
    one.take_closed(1, entered(50))
    assert figures(one)["missingness"]["rows"] == 2 * entered(50).randomized.sum()


def test_a_restart_from_bytes_and_a_copy_stand_on_their_own():
    one = panel()
    one.take_decisions(2, decided(300))
    one.take_closed(1, entered(300))
    one.take_pairs(np.zeros(3, dtype=int), np.ones((3, 2)), np.zeros((3, 2)), np.ones(2), None)
    twin, again = one.copy(), panel()
    again.load(decode(encode(one.arrays()))[0])
    before = encode(one.arrays())
    for other in (twin, again):
        other.take_decisions(2, decided(100, seed=5))
        other.take_closed(1, entered(100, seed=5))
    assert encode(one.arrays()) == before
    one.take_decisions(2, decided(100, seed=5))
    one.take_closed(1, entered(100, seed=5))
    assert encode(one.arrays()) == encode(twin.arrays()) == encode(again.arrays()) != before
    assert repr(one.checks()) == repr(again.checks())


def test_a_state_of_other_checks_is_refused():
    with pytest.raises(ValueError, match="state is of the checks"):
        panel().load(MonitorSet(MODELS, ("length", "cost"), LIMITS).arrays())
    with pytest.raises(ValueError, match="state of fidelity has"):
        panel().load(MonitorSet(MODELS, ("length",), LIMITS, GUARDS).arrays())


def test_guardrails_share_one_level_and_keep_their_direction():
    declared = GuardrailLimit("score", 0.5, at_most=False)
    one = MonitorSet(MODELS, (), LIMITS, (*GUARDS, declared))
    checks = [check for check in one.checks() if check.name == "guardrail"]
    assert sum(check.level for check in checks) == pytest.approx(0.01)
    n, everything = 600, np.ones(600, dtype=bool)
    metrics = np.column_stack([np.full(n, 0.1), np.full(n, 0.5), np.full(n, 0.1)])
    one.take_closed(0, entered(n, randomized=everything, delivered=everything, metrics=metrics))
    found = consequences(one.checks(), action_table())
    assert [(item.check.figures["metric"], item.action) for item in found] == [
        ("score", Action.PAUSE)
    ]
    assert found[0].models == (0, 1, 2)
