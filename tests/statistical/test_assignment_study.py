"""The study of assignments: its errors against a bootstrap, its ends against known bounds."""

from __future__ import annotations

import assignment_study
import numpy as np
import pytest


def test_the_error_of_a_median_is_that_of_a_bootstrap():
    rng = np.random.default_rng(3)
    values = rng.lognormal(size=900)
    again = np.median(rng.choice(values, (2000, len(values))), axis=1)
    assert assignment_study.median_error(values) == pytest.approx(again.std(), rel=0.35)


def test_runs_that_never_end_have_no_error():
    assert assignment_study.median_error(np.array([1.0, 2.0, np.inf, np.inf])) == np.inf


def test_uniform_shares_cost_no_reward_and_beat_shares_that_starve_the_certificate():
    values = assignment_study.WORLDS["2, ahead by .1"]
    even = assignment_study.run(values, "uniform", 80, 5)
    assert even["decided"] == 1.0
    assert even["wrong"] <= 0.05
    assert abs(even["reward"]) < 0.005
    # No sound rule decides long before the bound, and two models need little more than it.
    assert 0.8 < even["ratio"] < 2.2
    starved = assignment_study.run(values, "track-and-stop", 80, 5)
    assert starved["ratio"] > even["ratio"]
    assert starved["reward"] > even["reward"]
