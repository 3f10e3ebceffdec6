"""The newest outcome parts: what is found is all there is, or nothing is said."""

from __future__ import annotations

import numpy as np
import pytest

from equipoise.store.batches import OutcomeBatch
from equipoise.store.memory import RecentOutcomes


def parts(*numbers: int, reward: float = 1.0) -> OutcomeBatch:
    count = len(numbers)
    return OutcomeBatch(
        number=np.array(numbers),
        served=np.zeros(count, dtype=np.int64),
        attempt=np.zeros(count, dtype=np.int64),
        delivered=np.ones(count, dtype=bool),
        outputs=np.zeros((count, 1)),
        reward=np.full(count, reward),
        at=np.zeros(count),
    )


def test_parts_come_back_in_log_order():
    recent = RecentOutcomes(0)
    recent.add(parts(3, 4, reward=0.25), 5)
    recent.add(parts(4, reward=0.5), 5)
    found = recent.find(4)
    assert [part.reward.tolist() for part in found] == [[0.25], [0.5]]
    assert [part.number.tolist() for part in found] == [[4], [4]]
    assert recent.find(2) == [], "it was decided since the start and nothing came of it"


def test_the_oldest_part_of_a_decision_goes_first():
    recent = RecentOutcomes(0, limit=3)
    recent.add(parts(7, reward=0.25), 8)
    recent.add(parts(7, 6, reward=0.5), 8)
    recent.add(parts(9, reward=1.0), 10)
    assert recent.find(7) is None, "one of its parts is gone"
    kept = [batch.reward[row] for batch, row in recent._parts[7]]
    assert kept == [0.5]


def test_of_decisions_from_before_nothing_is_known():
    recent = RecentOutcomes(10)
    recent.add(parts(9), 12)
    assert recent.find(9) is None
    assert recent.find(10) == []


def test_what_was_dropped_is_not_taken_for_absent():
    """Against a list of everything, over a stream that drops most of it."""
    rng, recent, everything = np.random.default_rng(0), RecentOutcomes(0, limit=50), []
    decisions, unknown, known = 0, 0, 0
    for step in range(400):
        decisions += int(rng.integers(0, 4))
        if not decisions:
            continue
        low = max(0, decisions - 60)
        numbers = sorted(set(rng.integers(low, decisions, 3).tolist()))
        batch = parts(*numbers, reward=step / 400)
        everything += [(number, step / 400) for number in numbers]
        recent.add(batch, decisions)
        asked = int(rng.integers(0, decisions))
        found = recent.find(asked)
        if found is None:
            unknown += 1
        else:
            known += 1
            truth = [reward for number, reward in everything if number == asked]
            assert [part.reward[0] for part in found] == pytest.approx(truth)
    assert unknown > 50
    assert known > 5
