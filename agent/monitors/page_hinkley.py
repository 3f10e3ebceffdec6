"""The Page-Hinkley test over whole columns: what river's detector says, hundreds of rows at a time.

A change of the mean shows in the sum of deviations from the running mean: it leaves its own
minimum (maximum) by more than the threshold (Page 1954). river's `PageHinkley` takes one Python
call a row; without forgetting (alpha = 1) everything in it is a cumulative sum or extreme, so a
column is a dozen array operations. Equal to river's up to rounding; a test holds them together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from equipoise.store.batches import Floats, Ints

FIELDS = ("seen", "mean", "increase", "decrease", "lowest", "highest", "detected")
"""The state of a detector: rows since it began afresh, their mean, the sums of deviations less and
plus the tolerance, their extremes, and whether the last row was a detection."""
FEWEST = 30
"""Rows since it began afresh before which nothing is detected."""


def fresh(detectors: int) -> dict[str, Floats]:
    """The state of some detectors before any row, by field, each (detectors,)."""
    state = {name: np.zeros(detectors) for name in FIELDS}
    state["lowest"][:] = np.inf
    state["highest"][:] = -1.0
    return state


@dataclass(frozen=True, slots=True)
class Detection:
    """row: which of the given rows of values; position: the value; rose: up, or else down."""

    row: int
    position: int
    rose: bool


def run(
    state: dict[str, Floats],
    which: Ints,
    values: Floats,
    length: Ints,
    tolerated: float,
    threshold: float,
) -> list[Detection]:
    """Take values into some of the detectors; every detection, by row and in order.

    which: (s,) different detectors; values: (s, n), of which row i has length[i] >= 1.
    A detector begins afresh with the value after a detection.
    """
    found: list[Detection] = []
    first = _until_detection(state, which, values, length, tolerated, threshold)
    for row, detected in enumerate(first):
        while detected is not None:
            found.append(Detection(row, detected.position, detected.rose))
            start = detected.position + 1
            rest = values[row : row + 1, start : length[row]]
            if not rest.size:
                break
            one, left = which[row : row + 1], np.array([rest.shape[1]])
            (later,) = _until_detection(state, one, rest, left, tolerated, threshold)
            detected = later and Detection(row, start + later.position, later.rose)
    return found


def progress(state: dict[str, Floats], which: int, threshold: float) -> float:
    """The larger of both statistics as a share of the threshold."""
    if not state["seen"][which]:
        return 0.0
    risen = state["increase"][which] - state["lowest"][which]
    fallen = state["highest"][which] - state["decrease"][which]
    return float(max(risen, fallen)) / threshold


def _until_detection(
    state: dict[str, Floats],
    which: Ints,
    values: Floats,
    length: Ints,
    tolerated: float,
    threshold: float,
) -> list[Detection | None]:
    """The first detection of each row; the state is the one after it, else after the last value."""
    again = which[state["detected"][which] > 0]
    for name, array in fresh(1).items():
        state[name][again] = array[0]
    seen, mean, increase, decrease, lowest, highest = (
        state[name][which, None] for name in FIELDS[:-1]
    )
    steps = np.arange(1.0, values.shape[1] + 1.0)
    rows = seen + steps
    means = (seen * mean + np.cumsum(values, axis=1)) / rows
    deviation = np.cumsum(values - means, axis=1)
    increase = increase + deviation - tolerated * steps
    decrease = decrease + deviation + tolerated * steps
    lowest = np.minimum(np.minimum.accumulate(increase, axis=1), lowest)
    highest = np.maximum(np.maximum.accumulate(decrease, axis=1), highest)
    risen, fallen = increase - lowest > threshold, highest - decrease > threshold
    last = length - 1
    detections: list[Detection | None] = [None] * len(which)
    if risen.any() or fallen.any():
        detected = (risen | fallen) & (rows >= FEWEST) & (steps <= length[:, None])
        for row in np.flatnonzero(detected.any(axis=1)).tolist():
            last[row] = at = int(np.argmax(detected[row]))
            detections[row] = Detection(row, at, bool(risen[row, at]))
    index = np.arange(len(which))
    for name, array in zip(
        FIELDS, (rows, means, increase, decrease, lowest, highest), strict=False
    ):
        state[name][which] = array[index, last]
    state["detected"][which] = [float(one is not None) for one in detections]
    return detections
