"""Plans about those who rate, against the real sums of an agent whose users mostly keep silent."""

from __future__ import annotations

import json

import numpy as np
import pytest
from msgspec.structs import replace

from equipoise.agent.config import RewardConfig, config_from_dict
from equipoise.agent.errors import PlanError
from equipoise.agent.inference import levels
from equipoise.agent.inference.certificate import CertificateMoments
from equipoise.agent.inference.levels import EraPrior
from equipoise.agent.inference.prediction import Frozen
from equipoise.agent.inference.rated import RatedRows, contrast_bounds
from equipoise.agent.inference.score import Rows
from equipoise.agent.planning import plan_request
from equipoise.agent.planning.request import read_request

SHARE, RATE, VALUES = 0.2, 0.5, np.array([0.7, 0.5])
CAPS = (0.0, 2.0 / RATE, np.inf)


def decided_at(rng: np.random.Generator, looks: list[int], prior: EraPrior) -> float:
    """Requests at which the sums of one experiment certify the first model, inf beyond the last
    look. Written for this test: rows one look at a time, a rule from the sums so far each time."""
    sums, frozen = CertificateMoments.empty(2, 3, 3, True), Frozen.neutral(2, 3, 3, SHARE)
    before = 0
    for look in looks:
        n, before = look - before, look
        randomized, routed = rng.random(n) < RATE, rng.integers(0, 2, n)
        model = np.where(randomized, rng.integers(0, 2, n), routed)
        rated, reward = rng.random(n) < SHARE, (rng.random(n) < VALUES[model]).astype(float)
        rows = Rows.of(
            np.full(n, RATE),
            np.full((n, 2), 0.5),
            randomized,
            model,
            routed,
            np.full((n, 2), np.nan),
            rated.astype(float),
            np.ones(n, dtype=bool),
        )
        ends = np.column_stack([np.where(rated, reward, 0.0), np.where(rated, 0.0, 1.0)])
        known = np.ones(n, dtype=bool)
        raters = RatedRows(rows, ends, ends)
        sums.update(rows, frozen, CAPS, model, randomized, known, raters)
        frozen = sums.freeze(None)
        alpha = levels.decision_level(0.05, 2)
        lower = contrast_bounds(sums.rated, CAPS, 2, alpha, prior)
        if lower[0, 1] > 0.0:
            return float(look)
    return np.inf


def test_the_plan_is_what_the_real_sums_take():
    """16 experiments against the plan's median and its middle 80%, with room for looks 7% apart: of
    16, fewer than 10 inside has probability below 0.01 if the band is right; it is seeded."""
    fields = {"models": 2, "traffic": 1000.0, "reward_rate": 0.5, "effect": 0.2, "rate": RATE}
    plan = plan_request({**fields, "missing": "rated", "rated": SHARE, "policies": ["uniform"]})
    needed = plan["recommended"]["requests"]
    looks = np.unique(np.geomspace(400, 4 * needed["median"], 32).astype(int)).tolist()
    prior = EraPrior.planned(2, 0.05, RATE, rated=SHARE)
    rng = np.random.default_rng(8)
    found = np.array([decided_at(rng, looks, prior) for _ in range(16)])
    assert np.isfinite(found).mean() > 0.9
    inside = ((found >= 0.85 * needed["low"]) & (found <= 1.15 * needed["high"])).sum()
    assert inside >= 10
    assert np.median(found) == pytest.approx(needed["median"], rel=0.35)


def test_asking_is_rating_at_the_share_that_is_asked_and_answers():
    fields = {"models": 3, "traffic": 100.0, "reward_rate": 0.6, "effect": 0.1}
    asked = plan_request({**fields, "missing": "asked", "ask": 0.25, "rated": 0.4})
    rated = plan_request({**fields, "missing": "rated", "rated": 0.1})
    assert asked["recommended"]["requests"] == rated["recommended"]["requests"]
    every = plan_request({**fields, "missing": "rated", "rated": 1.0})
    ratio = rated["recommended"]["requests"]["median"] / every["recommended"]["requests"]["median"]
    assert 7.0 < ratio < 14.0, "about 1 / .1 times as many"


def test_no_reading_is_offered_that_the_configuration_refuses():
    fields = {"models": 2, "traffic": 100.0, "reward_rate": 0.6, "effect": 0.2}
    plan, plain = (
        plan_request({**fields, **more}) for more in ({"missing": "rated", "rated": 0.3}, {})
    )
    assert "asymptotic" not in json.dumps(plan)
    assert "asymptotic" in json.dumps(plain)


def test_minimising_is_the_mirror_image():
    fields = {"models": 2, "traffic": 100.0, "effect": 0.1, "missing": "rated", "rated": 0.2}
    plain = plan_request({**fields, "reward_rate": 0.7})
    mirror = plan_request({**fields, "reward_rate": 0.3, "maximise": False})
    first, second = (each["recommended"]["requests"]["median"] for each in (plain, mirror))
    assert second == pytest.approx(first, rel=1e-6)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"missing": "asked"}, "ask is None, expected the share of users who are asked"),
        ({"missing": "rated", "ask": 0.1}, "ask is 0.1, expected nothing, or missing = 'asked'"),
        ({"missing": "asked", "ask": 1.5}, "ask is 1.5, expected a share"),
        (
            {"missing": "rated", "sequence": "asymptotic"},
            "sequence is asymptotic, expected bounded or per-model",
        ),
        ({"missing": "odd"}, "missing is 'odd', expected 'worst-case', 'rated', 'asked', 'net'"),
    ],
)
def test_a_wrong_meaning_is_refused_in_a_line(fields, said):
    with pytest.raises(PlanError) as refused:
        read_request({"models": 2, "reward_rate": 0.5, "effect": 0.1, **fields})
    assert said in str(refused.value)


def test_net_counts_silence_as_nothing():
    config = config_from_dict(
        {"name": "s", "models": [{"name": "a"}, {"name": "b"}], "reward": {"missing": "net"}}
    )
    assert (config.reward.low, config.reward.high) == (-1.0, 1.0)
    assert config.reward == RewardConfig(low=-1.0, high=1.0, missing="net")
    fields = {"models": 2, "effect": 0.1, "reward_rate": 0.2, "rated": 0.1}
    net = read_request({**fields, "missing": "net"})
    assert net == replace(
        read_request({**fields, "reward_low": -1.0, "missing": 0.0}), missing="net"
    )
    assert (net.reward_low, net.reward_high, net.missing_value) == (-1.0, 1.0, 0.0)
    with pytest.raises(PlanError, match="0 to 1, expected -1 to 1 with 'net'"):
        read_request({**fields, "missing": "net", "reward_low": 0.0})
