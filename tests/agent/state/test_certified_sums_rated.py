"""Certified sums of those who rate, of a real agent, against a plain loop over its log."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from raw_scores import Log, psi

from equipoise.agent.config import RewardConfig, UnitsConfig
from tests.agent.state.test_certified_sums import experiment, lively

THETAS = (0.0, 0.3, 1.0)


def prediction(log, row, candidate, tuning, spec):
    """What a tuning makes of the raw prediction of a model or of today's routing, in [0, 1]."""
    raw = log.prediction(row, candidate if candidate < spec.models else int(row["routed"]))
    usual = 0.5 if tuning.usual is None else tuning.usual[candidate]
    raw = raw if np.isfinite(raw) else usual
    return min(max(tuning.offset[candidate] + tuning.factor[candidate] * raw, 0.0), 1.0)


def score(log, row, candidate, cap, end, theta, reward, frozen, spec, sticky):
    """psi(theta) of one candidate: mu + W (Y - mu) with mu = a + (1 - b) theta drawn to its end."""
    models = spec.models
    if candidate > models:
        band, inside, outside = spec.policies[candidate - models - 1]
        candidate = inside if band.low <= row["x"][band.column] < band.high else outside
    if candidate < models:
        chance = row["rate"] * row["probabilities"][candidate]
        drawn = row["randomized"] and row["model"] == candidate
    elif sticky:
        chance, drawn = 1 - row["rate"], not row["randomized"]
    else:
        chance = 1 - row["rate"] + row["rate"] * row["probabilities"][row["routed"]]
        drawn = row["model"] == row["routed"]
    b = prediction(log, row, candidate, frozen.tuning, spec)
    a = min(prediction(log, row, candidate, frozen.rated.tuning, spec), b)
    mu, weight = a + (1 - b) * theta, 1.0 / chance
    factor = min(1.0, cap / (weight - 1.0)) if weight > 1.0 else 1.0
    mu = factor * mu if end == "low" else 1.0 - factor * (1.0 - mu)
    return mu + (weight * (reward - mu) if drawn else 0.0)


def request(member, end, theta, spec):
    """A request's Y(theta): its reward if rated, theta if not, unknown if not delivered."""
    if not member["delivered"]:
        return 0.0 if end == "low" else 1.0
    if member["reward"] is None:
        return theta
    return (member["reward"] - spec.low) / (spec.high - spec.low)


def rated(member, end):
    """A request's S for one end."""
    if not member["delivered"]:
        return 0.0 if end == "low" else 1.0
    return float(member["reward"] is not None)


@pytest.mark.parametrize("sticky", [False, True])
def test_sums_of_those_who_rate_equal_a_loop_over_the_raw_log(sticky):
    """At every theta, and at every two for contrasts; beside them the sums of who rates."""
    settings = experiment(
        reward=RewardConfig(low=1.0, high=5.0, window=100.0, missing="rated"),
        units=UnitsConfig(ttl=250.0) if sticky else None,
    )
    agent = lively(settings)
    certified = agent.answers.view().certified
    log, spec = Log(agent.store, agent.state.transform), certified.spec
    for part in range(3):
        sums = certified.sums[part]
        shape = len(THETAS), len(spec.caps), len(spec.names)
        low, high, contrast = np.zeros(shape), np.zeros(shape), 0.0
        who, squares = np.zeros(shape[1:]), np.zeros(shape[1:])
        for row in log.rows[: certified.watermark]:
            if row["rate"] < settings.limits.rate_min or not row["open"]:
                continue
            if row["leader"] != row["number"]:
                continue
            band = spec.segments[part - 1] if part else None
            if band is not None and not band.low <= row["x"][band.column] < band.high:
                continue
            members = [other for other in log.rows if other["leader"] == row["number"]]
            frozen = row["rule"].frozen[part]
            u, v = np.zeros(shape), np.zeros(shape)
            for at, theta in np.ndenumerate(THETAS):
                for end, sides, centre, values in (
                    ("low", u, frozen.rated.low, low),
                    ("high", v, frozen.rated.high, high),
                ):
                    reward = np.mean([request(member, end, theta, spec) for member in members])
                    for c, cap in enumerate(spec.caps):
                        for a in range(shape[2]):
                            values_of = (log, row, a, cap, end, theta, reward, frozen, spec)
                            value = score(*values_of, sticky)
                            values[*at, c, a] += value
                            expected = centre[0, c, a] + theta * centre[1, c, a]
                            sides[*at, c, a] = value - expected
            # (theta of a, theta of b, cap, a, b).
            contrast += (u[:, None, :, :, None] - v[None, :, :, None, :]) ** 2
            ends = {end: np.mean([rated(each, end) for each in members]) for end in ("low", "high")}
            for c, cap in enumerate(spec.caps):
                for a in range(shape[2]):
                    one = (log, row, a, cap, ("low", ends["low"]), spec, frozen.tuning, sticky)
                    who[c, a] += psi(*one)
                    squares[c, a] += (psi(*one) - frozen.centres.low[c, a]) ** 2
        moments = sums.rated
        theta = np.array(THETAS)[:, None, None]
        np.testing.assert_allclose(moments.low[0] + theta * moments.low[1], low, rtol=1e-9)
        np.testing.assert_allclose(moments.high[0] + theta * moments.high[1], high, rtol=1e-9)
        np.testing.assert_allclose(sums.score.low, who, rtol=1e-9)
        np.testing.assert_allclose(sums.score.low_squares, squares, rtol=1e-9)
        for (i, x), (j, y) in product(enumerate(THETAS), repeat=2):
            one, other, cross = moments.low_products, moments.high_products, moments.cross
            total = (one[0] + 2 * x * one[1] + x * x * one[2])[:, :, None]
            total = total + (other[0] + 2 * y * other[1] + y * y * other[2])[:, None, :]
            total = total - 2 * (
                cross[0, 0] + x * cross[1, 0] + y * cross[0, 1] + x * y * cross[1, 1]
            )
            off = ~np.eye(shape[2], dtype=bool)
            np.testing.assert_allclose(total[:, off], contrast[i, j][:, off], rtol=1e-7, atol=1e-9)
