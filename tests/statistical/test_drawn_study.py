"""How often certificates of logs that were drawn elsewhere are wrong, in lives through the reader.

False-alarm rate: a certified statement is wrong in at most 5% of lives. In 200 lives each of the
cells of docs/decisions/181-declared-draws.md none was; of draws by unit taken as draws by request,
58% had a value outside its ends. The tests ask 40 lives of each: more than 5 wrong ones have a
chance of .014 at 5%, fewer than 10 one below 1e-4 at 58%.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "agent"))

from drawn_logs import (
    CHANGES,
    agent_of,
    declared,
    epsilon_greedy,
    experiment,
    hash_split,
    taken,
)

from equipoise.agent.config import PolicyConfig, UnitsConfig

LIVES = 40
POLICY = PolicyConfig(rate=0.5, estimator="ipw")


def wrong(agent, truth) -> bool:
    """Whether a certified end, contrast or decision contradicts the truth."""
    certified, values = agent.answers.certified(), np.array(truth)
    count = len(values)
    low, high = certified.lower[:count], certified.upper[:count]
    gaps = values[:, None] - values[None, :]
    return bool(
        (low > values).any()
        or (high < values).any()
        or (certified.contrasts[:count, :count] > gaps + 1e-12).any()
    )


def lives(make, truth, how, looks: int = 1, **settings) -> int:
    """Lives in which any look at a growing file was wrong."""
    count = 0
    for seed in range(LIVES):
        agent = agent_of(experiment(policy=POLICY, **settings))
        rows, ever = make(seed), False
        for stop in np.linspace(0, len(rows), looks + 1).astype(int)[1:].tolist():
            taken(agent, rows[agent.store.decisions : stop], how)
            ever = ever or wrong(agent, truth)
        count += ever
    return count


def test_certificates_of_logs_hold_where_draws_are_as_declared():
    """Probabilities that follow rewards, looked at three times; and units that say the same."""
    truth = (0.1, 0.15, 0.2)
    assert lives(lambda seed: epsilon_greedy(seed, 500, truth), truth, declared(), 3) <= 5
    units = {"units": UnitsConfig(ttl=50.0)}
    assert lives(lambda seed: hash_split(seed, 60, 8), (0.5, 0.5), declared("unit"), **units) <= 5


def test_draws_by_unit_that_are_taken_as_draws_by_request_are_wrong():
    """Without a unit in the log nothing notices: what is declared is all there is."""

    def rows(seed):
        return [CHANGES(row, unit_id=None) for row in hash_split(seed, 40, 20)]

    assert lives(rows, (0.5, 0.5), declared()) >= 10
