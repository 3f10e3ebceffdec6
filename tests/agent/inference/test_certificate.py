"""Which sequence is certified: by the declaration and a condition known in advance."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from equipoise.agent.inference.certificate import RARER, Sequence, choose
from equipoise.agent.inference.levels import split_level

ENOUGH, TOO_FEW = np.array([RARER, RARER + 5]), np.array([RARER - 0.5, 1e6])


def test_bounded_needs_nothing_and_spends_everything():
    for free, alarm, rarer in itertools.product(*[(False, True)] * 2, (ENOUGH, TOO_FEW)):
        chosen = choose(Sequence.BOUNDED, context_free=free, drift_alarm=alarm, rarer=rarer)
        assert chosen.sequence is Sequence.BOUNDED
        assert chosen.level(0.02) == 0.02


@pytest.mark.parametrize(
    ("declared", "free", "alarm", "rarer", "expected", "says"),
    [
        (Sequence.PER_MODEL, True, False, TOO_FEW, Sequence.PER_MODEL, "stationary"),
        (Sequence.PER_MODEL, False, False, ENOUGH, Sequence.BOUNDED, "looked at requests"),
        (Sequence.PER_MODEL, True, True, ENOUGH, Sequence.BOUNDED, "drift alarm"),
        (Sequence.ASYMPTOTIC, True, False, ENOUGH, Sequence.ASYMPTOTIC, "every model has"),
        (Sequence.ASYMPTOTIC, False, True, ENOUGH, Sequence.ASYMPTOTIC, "every model has"),
        (Sequence.ASYMPTOTIC, True, False, TOO_FEW, Sequence.BOUNDED, "rarer outcome, below"),
        (Sequence.ASYMPTOTIC, True, False, np.array([5.0, np.nan]), Sequence.BOUNDED, "below"),
    ],
)
def test_the_condition_decides_and_the_levels_add_up(declared, free, alarm, rarer, expected, says):
    chosen = choose(declared, context_free=free, drift_alarm=alarm, rarer=rarer)
    assert chosen.sequence is expected
    assert says in chosen.reason
    preferred, fallback = split_level(0.02)
    assert chosen.level(0.02) == pytest.approx(preferred if expected is declared else fallback)


def test_the_condition_may_be_set():
    few = np.array([3.0, 4.0])
    chosen = choose(
        Sequence.ASYMPTOTIC, context_free=True, drift_alarm=False, rarer=few, needed=3.0
    )
    assert chosen.sequence is Sequence.ASYMPTOTIC
