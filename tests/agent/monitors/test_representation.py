"""Representation: gaps between families, and what cannot be said."""

from __future__ import annotations

import numpy as np
import pytest

from equipoise.agent.estimators.base import Estimate
from equipoise.agent.monitors import representation
from equipoise.agent.monitors.representation import boundary

MODELS = ("a", "b", "c")


def estimates(gap=0.0, tau=0.02, rows=1000.0, reference="doubly-robust", error=0.01):
    values, covariance = np.array([0.4, 0.5, 0.6]), error**2 * np.eye(3)
    pooled = values + np.array([0.0, 0.0, gap])
    return {
        "representation-exp": Estimate(
            "representation-exp", pooled, covariance, {"rows": rows, "penalty": 1.0}
        ),
        reference: Estimate(reference, values, covariance),
        "hierarchical": Estimate("hierarchical", values, covariance, {"tau_model": tau}),
    }


def test_agreement_is_ok():
    check = representation(estimates(), MODELS)
    assert check.status == "ok"
    assert check.figures["reference"] == "doubly-robust"


@pytest.mark.parametrize("sign", [1, -1])
def test_a_gap_beyond_the_boundary_is_an_alarm(sign):
    limit = boundary(1000.0, 0.01 / 3) * np.sqrt(2) * 0.01
    above = representation(estimates(sign * 1.001 * limit), MODELS)
    below = representation(estimates(sign * 0.999 * limit), MODELS)
    assert (above.status, below.status) == ("alarm", "watch")
    assert above.models == (2,)
    assert "what c is worth" in above.sentence


def test_large_effects_of_models_are_worth_a_look():
    assert representation(estimates(tau=0.15), MODELS).status == "watch"


def test_too_few_rows_or_no_reference_is_unknown():
    assert representation(estimates(gap=9.0, rows=50.0), MODELS).status == "unknown"
    assert representation(estimates(rows=np.nan), MODELS).status == "unknown"
    assert representation({}, MODELS).status == "unknown"
    unknown = estimates()
    unknown["doubly-robust"] = Estimate("doubly-robust", np.full(3, np.nan), np.diag([np.inf] * 3))
    assert representation(unknown, MODELS).status == "unknown"
    unknown["ipw"] = estimates(reference="ipw")["ipw"]
    assert representation(unknown, MODELS).figures["reference"] == "ipw"


def test_a_model_without_a_value_takes_no_part():
    some = estimates(gap=5.0)
    some["doubly-robust"].values[2] = np.nan
    check = representation(some, MODELS)
    assert check.status == "ok"
    assert np.isnan(check.figures["standardized_gap"][2])


def test_a_normal_sum_seldom_ever_leaves_the_boundary():
    """At most 10% of normal sums ever leave it, here looked at 60 times up to 20,000 rows. Of 400
    runs more than 60 have probability 0.1%; and it is no idle boundary: more than 4 do."""
    rng = np.random.default_rng(0)
    looks = np.unique(np.geomspace(20, 20_000, 60).astype(int))
    steps = rng.normal(size=(400, len(looks))) * np.sqrt(np.diff([0, *looks]))
    standardized = np.abs(np.cumsum(steps, axis=1)) / np.sqrt(looks)
    left = (standardized > [boundary(float(n), 0.1) for n in looks]).any(axis=1).sum()
    assert 4 < left <= 60
