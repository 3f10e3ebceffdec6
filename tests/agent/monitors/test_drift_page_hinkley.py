"""The column-wise Page-Hinkley is river's own detector: same detections, same statistics."""

from __future__ import annotations

import numpy as np
import pytest
from river.drift import PageHinkley

from equipoise.agent.monitors.drift import FEWEST, fresh, progress, run

TOLERATED, THRESHOLD = 0.1, 12.0


def rivers(values):
    """Positions where river's detector detects, whether it rose there, and the detector."""
    detector = PageHinkley(FEWEST, TOLERATED, THRESHOLD, 1.0)
    found = []
    for at, value in enumerate(values.tolist()):
        detector.update(value)
        if detector.drift_detected:
            found.append((at, detector._sum_increase - detector._min_increase > THRESHOLD))
    return found, detector


def ours(state, values, which=0):
    """(position, whether it rose) of the detections of one detector."""
    row, length = np.array([which]), np.array([len(values)])
    found = run(state, row, values[None], length, TOLERATED, THRESHOLD)
    return [(one.position, one.rose) for one in found]


@pytest.mark.parametrize("seed", range(8))
def test_detections_and_statistics_are_rivers_however_rows_are_cut(seed):
    """Levels that jump up and down, so that it detects, begins afresh, and detects again."""
    rng = np.random.default_rng(seed)
    levels = np.repeat(rng.normal(0.0, 1.5, 12), rng.integers(20, 200, 12))
    values = np.clip(levels + rng.normal(size=len(levels)), -5, 5)
    expected, detector = rivers(values)
    state, found, start = fresh(3), [], 0
    while start < len(values):
        stop = start + int(rng.integers(1, 300))
        part = ours(state, values[start:stop], which=1)
        found += [(start + at, rose) for at, rose in part]
        start = stop
    assert len(expected) >= 2
    assert found == expected
    kept = [state[name][1] for name in ("increase", "decrease", "lowest", "highest", "seen")]
    names = ("_sum_increase", "_sum_decrease", "_min_increase", "_max_decrease")
    theirs = [getattr(detector, name) for name in names]
    assert kept == pytest.approx([*theirs, detector._x_mean.n], abs=1e-9)
    untouched = fresh(3)
    for name, array in state.items():
        assert (array[[0, 2]] == untouched[name][[0, 2]]).all()


def test_nothing_is_detected_before_thirty_rows_and_the_thirtieth_counts():
    values = np.concatenate([np.zeros(10), np.full(25, 5.0)])
    expected, _ = rivers(values)
    state = fresh(1)
    assert ours(state, values) == expected
    assert expected[0][0] == FEWEST - 1


def test_a_detection_on_the_last_row_of_a_column_is_remembered():
    values = np.concatenate([np.zeros(40), np.full(60, 3.0)])
    stop = rivers(values)[0][0][0] + 1
    state = fresh(1)
    assert ours(state, values[:stop])[-1][0] == stop - 1
    assert ours(state, values[stop : stop + 1]) == []
    assert state["seen"][0] == 1
    assert progress(state, 0, THRESHOLD) == 0.0


def test_many_detectors_at_once_are_each_alone():
    """Columns of different lengths, some with several detections, some with none; what stands
    beyond the end of a column would be a detection in each."""
    rng = np.random.default_rng(9)
    length = np.array([400, 1, 37, 250, 399])
    values = np.full((5, 400), 50.0)
    for row, count in enumerate(length):
        jump = 2.0 * (np.arange(count) // 90 % 2) if row % 2 == 0 else 0.0
        values[row, :count] = jump + rng.normal(size=count)
    which = np.array([4, 0, 2, 1, 5])
    together, alone = fresh(6), fresh(6)
    found = run(together, which, values, length, TOLERATED, THRESHOLD)
    for row, one in enumerate(which):
        expected = ours(alone, values[row, : length[row]], one)
        assert [(item.position, item.rose) for item in found if item.row == row] == expected
    assert len(found) >= 4
    for name, array in together.items():
        assert array.tobytes() == alone[name].tobytes()
