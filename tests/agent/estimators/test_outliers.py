"""One row far off: every family answers as if the row had never come, or says that it cannot."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from equipoise.agent.estimators import FAMILIES, estimate, without_far_groups
from equipoise.agent.estimators.base import own_families

SIMULATED = [name for name in own_families() if name != "ipw"]


def with_row(rows, source, value, feature, row=7):
    """The rows with one feature of one row replaced, and its group of units or contexts."""
    if source == "sim":
        phi = rows.sim_phi.copy()
        phi[row, feature] = value
        return replace(rows, sim_phi=phi), rows.sim_group[row]
    part = getattr(rows, source)
    phi = part.phi.copy()
    phi[row, feature] = value
    return replace(rows, **{source: replace(part, phi=phi)}), part.group[row]


def without(rows, source, group):
    """The rows without a group, by leaving the rows themselves out."""
    keep = {
        "obs": np.ones(len(rows.obs.group), dtype=bool),
        "exp": np.ones(len(rows.exp.group), dtype=bool),
        "sim": np.ones(len(rows.sim_group), dtype=bool),
    }
    of = rows.sim_group if source == "sim" else getattr(rows, source).group
    keep[source] = of != group
    return rows.part(keep["obs"], keep["exp"], keep["sim"])


@pytest.mark.parametrize("value", [1e4, 1e6, 1e9, 1e12, -1.7e18, 1e50])
@pytest.mark.parametrize("source", ["obs", "exp", "sim"])
def test_a_row_far_off_costs_its_group_and_nothing_else(simulate, source, value):
    rows = simulate(seed=51)
    poisoned, group = with_row(rows, source, value, feature=2)
    got = estimate(poisoned.moments())
    honest = estimate(without(rows, source, group).moments())
    for name in SIMULATED:
        np.testing.assert_allclose(got[name].values, honest[name].values, rtol=1e-6)
        np.testing.assert_allclose(
            got[name].covariance, honest[name].covariance, rtol=1e-4, atol=1e-12
        )
        (left,) = got[name].diagnostics["left_out"]
        groups = rows.sim_group if source == "sim" else getattr(rows, source).group
        assert (left.groups, left.present, left.feature) == (1, len(np.unique(groups)), 2)
    # It looks at no feature, so it goes without nothing.
    np.testing.assert_array_equal(got["ipw"].values, estimate(rows.moments())["ipw"].values)


def test_honest_rows_are_left_alone(simulate):
    """Seeded; 40 honest worlds, and heavy tails within reason."""
    for seed in range(40):
        rows = simulate(seed=seed)
        rows = replace(rows, sim_phi=np.exp(rows.sim_phi))
        moments = rows.moments()
        sound, left = without_far_groups(moments)
        assert left == ()
        assert sound is moments


def test_where_values_far_off_are_in_too_many_groups_every_family_but_ipw_falls_back(simulate):
    rows = simulate(seed=52)
    for group in range(7):
        row = int(np.flatnonzero(rows.exp.group == group)[0])
        rows, _ = with_row(rows, "exp", 1e12, feature=1, row=row)
    got = estimate(rows.moments())
    for name in SIMULATED:
        assert np.isnan(got[name].values).all()
        assert np.isinf(np.diagonal(got[name].covariance)).all()
        assert "too many groups" in got[name].diagnostics["failed"]
    assert np.isfinite(got["ipw"].values).all()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (np.linalg.LinAlgError("Singular matrix"), "LinAlgError: Singular matrix"),
        (MemoryError("no room"), "MemoryError: no room"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
    ],
)
def test_a_family_that_cannot_be_computed_falls_back_alone(simulate, monkeypatch, error, said):
    def broken(moments):
        raise error

    monkeypatch.setitem(FAMILIES, "cvci", broken)
    moments = simulate(seed=53).moments()
    got = estimate(moments)
    assert got["cvci"].diagnostics["failed"] == said
    assert np.isnan(got["cvci"].values).all()
    for name in own_families():
        if name != "cvci":
            assert np.isfinite(got[name].values).all()
            assert "failed" not in got[name].diagnostics


@pytest.mark.parametrize("spoil", ["infinite", "far outside", "negative variance", "theta"])
def test_lost_digits_are_no_estimate(simulate, monkeypatch, spoil):
    moments = simulate(seed=54).moments()
    good = FAMILIES["grounded"](moments)
    values, covariance, scorer = good.values.copy(), good.covariance.copy(), good.scorer
    if spoil == "infinite":
        values[0] = np.inf
    elif spoil == "far outside":
        values[0] = -1e6
    elif spoil == "negative variance":
        covariance[0, 0] = -1.0
    else:
        scorer = replace(scorer, theta=scorer.theta * np.nan)
    bad = replace(good, values=values, covariance=covariance, scorer=scorer)
    monkeypatch.setitem(FAMILIES, "grounded", lambda moments: bad)
    got = estimate(moments, ["grounded"], reward_range=(0.0, 1.0))["grounded"]
    assert "failed" in got.diagnostics
    assert np.isnan(got.values).all()
    assert got.scorer is None
