"""Which sequence is certified: by the declaration and a condition known in advance."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from equipoise.agent.inference.certificate import RARER, CertificateMoments, Sequence, choose
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


def test_centres_leave_what_was_known_as_rewards_come():
    """As ten rewards of each model, and ten rows of today's routing."""
    sums = CertificateMoments.empty(2, 3, 1)
    sums.score.rows[:], sums.rewards.count[:] = 1000.0, (90.0, 990.0)
    sums.score.low[:] = sums.score.high[:] = 900.0
    frozen = sums.freeze(None, np.full(3, 0.1))
    expected = 0.9 - 0.8 * np.array([10.0 / 100.0, 10.0 / 1000.0, 10.0 / 1010.0])
    np.testing.assert_allclose(frozen.centres.low[0], expected)
    np.testing.assert_allclose(frozen.centres.high[0], expected)
    np.testing.assert_allclose(sums.freeze(None).centres.low, 0.9)
