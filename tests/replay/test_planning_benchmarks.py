"""What replays of a benchmark really predict, against the curve that a plan splits money by."""

from __future__ import annotations

import numpy as np
import pytest

from equipoise.agent.planning.plan import make_plan
from equipoise.agent.planning.tables import explained_by
from equipoise.replay.planning import of_benchmark

PRICED = {"effect": 0.1, "traffic": 1000.0, "policies": ["uniform"]}


def test_replays_predict_at_least_what_the_curve_says():
    """A linear world of 12 context columns and 4 outputs that follow them: scorer known, outputs
    learnt from n replays. 200 draws a size; the mean's error is below 0.01."""
    rng = np.random.default_rng(0)
    d, q, noise = 12, 4, 0.5
    maps, scorer = rng.standard_normal((d, q)) / np.sqrt(d), rng.standard_normal(q)
    fixed = maps @ scorer
    output_part = noise**2 * (scorer @ scorer)
    rest = 1.0
    total = fixed @ fixed + output_part + rest
    explainable = fixed @ fixed / total
    for replays in (20, 30, 60, 200):
        found = []
        for _ in range(200):
            x = rng.standard_normal((replays, d))
            y = x @ maps + noise * rng.standard_normal((replays, q))
            learnt = np.linalg.lstsq(x, y, rcond=None)[0] @ scorer
            left = ((learnt - fixed) ** 2).sum() + output_part + rest
            found.append(1.0 - left / total)
        curve = explained_by(np.array([float(replays)]), d, explainable)[0]
        assert max(np.mean(found), 0.0) > curve - 0.01
    assert np.mean(found) == pytest.approx(curve, abs=0.05), "and not by much where there are many"


def test_a_benchmark_says_what_its_scorer_reads():
    problem = of_benchmark("imagesegments", [], PRICED)
    assert problem.columns > 0
    assert problem.explainable == problem.attainable
    plan = make_plan(problem)
    assert plan.splits[0].replays == 0
    assert max(each.explained for each in plan.splits) == pytest.approx(problem.attainable, rel=0.1)
    assert sum(each.cheapest for each in plan.splits) == 1
