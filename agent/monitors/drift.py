"""Drift: did a model's residuals, or the rewards of today's traffic, change while the log grew?

A change of the mean shows in the sum of deviations from the running mean: it leaves its own
minimum (maximum) by more than the threshold (Page 1954). Without forgetting (alpha = 1) everything
in river's `PageHinkley` is a cumulative sum or extreme, so a column is a dozen array operations and
the state of a detector is seven numbers. Detections are river's own; a test holds them together.
Why river's class itself is not used, nor its ADWIN, is in docs/decisions/043-page-hinkley.md.

The test knows no level: its parameters were chosen by measuring how often it speaks up on streams
that do not drift (tests/statistical/monitors_study.py prints the table).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from equipoise.agent.monitors.check import Check, Monitor, percent
from equipoise.store.batches import Floats, Ints
from equipoise.store.words import plural

WARM_UP = 100
"""Rows that set a stream's origin and are not tested."""
CLIP = 5.0
"""Deviations beyond which a value counts as this: a rare outcome is no drift."""
TOLERATED = 0.1
"""Change in standard deviations that is let pass."""
THRESHOLD = 70.0
NEAR = 0.8
FALSE_ALARMS = 0.01
"""What no kind of stationary stream of 20,000 rows reached in 500 runs: 0 to 0.4% alarmed."""
_PSEUDO_ROWS = 2.0
_PSEUDO_VARIANCE = 0.25
_WIDTH = 128
FIELDS = ("seen", "mean", "increase", "decrease", "lowest", "highest", "detected")
"""The state of a detector: rows since it began afresh, their mean, the sums of deviations less and
plus the tolerance, their extremes, and whether the last row was a detection."""
FEWEST = 30
"""Rows since it began afresh before which nothing is detected."""


class Drift(Monitor):
    """One detector per model on its residuals, and one on the rewards of traffic as routed.

    Values are on the [0, 1] scale of rewards. A stream's first 100 rows set its origin; later ones
    are tested in units of the standard deviation so far, so how rows are cut into updates does
    not matter. Order does: two of these do not add. An alarm stays until a new era starts afresh.
    """

    name = "drift"

    def __init__(self, models: Sequence[str]) -> None:
        super().__init__(models, FALSE_ALARMS)
        streams = len(self.models) + 1
        names = ("rows", "origin", "squares", "alarms", "alarmed_at", "rose")
        # Without forgetting: with it the test alarms on most stationary streams of 20,000 rows.
        self.sums = {name: np.zeros(streams) for name in names} | fresh(streams)
        self.sums["limited"] = np.zeros(1)

    def update(
        self, model: Ints, residual: Floats, routed_reward: Floats, *, limited: bool = False
    ) -> None:
        """n rows in decision order, scaled to [0, 1].

        model: (n,) whose output it is; residual: (n,) reward less a prediction frozen before,
        NaN where there is none; routed_reward: (n,) reward, NaN unless served as routed. limited:
        whether a limit has closed a part of the traffic, so that models are looked at no more.
        """
        if limited:
            self.sums["limited"][0] = 1.0
        routed = routed_reward[~np.isnan(routed_reward)]
        if len(routed):
            self._take([len(self.models)], [routed])
        rows = np.flatnonzero(~np.isnan(residual))
        if not len(rows):
            return
        of = model[rows]
        by_model = residual[rows[np.argsort(of, kind="stable")]]
        counts = np.bincount(of, minlength=len(self.models))
        present = np.flatnonzero(counts).tolist()
        self._take(present, np.split(by_model, np.cumsum(counts[present])[:-1]))

    def result(self) -> Check:
        rows, alarms = self.sums["rows"], self.sums["alarms"]
        evidence = [progress(self.sums, s, THRESHOLD) for s in range(len(rows))]
        figures = {
            "rows": rows.tolist(),
            "alarms": alarms.tolist(),
            "alarmed_at": np.where(alarms > 0, self.sums["alarmed_at"], np.nan).tolist(),
            "progress": evidence,
        }
        if alarms.any():
            alarmed = np.flatnonzero(alarms)
            worst = int(alarmed[np.argmax(self.sums["alarmed_at"][alarmed])])
            at = self.sums["alarmed_at"][worst]
            way = "up" if self.sums["rose"][worst] else "down"
            sentence = (
                f"{self._subject(worst)} went {way}, noticed at row {at:,.0f} of "
                f"{rows[worst]:,.0f}: what was learned before may not hold now."
            )
            models = tuple(m for m in alarmed.tolist() if m < len(self.models))
            return Check(self.name, "alarm", sentence, figures, self.level, models)
        if not (rows > WARM_UP).any():
            sentence = f"No model has {WARM_UP} rewards yet, so nothing can be said about drift."
            return Check(self.name, "unknown", sentence, figures, self.level)
        worst = int(np.argmax(evidence))
        if evidence[worst] >= NEAR:
            sentence = (
                f"{self._subject(worst)} may be moving: {percent(evidence[worst])} of what makes "
                f"an alarm has been reached."
            )
            return Check(self.name, "watch", sentence, figures, self.level)
        sentence = f"Rewards and residuals are steady over {plural(rows.sum(), 'value')}."
        if self.sums["limited"][0]:
            sentence += (
                " Since limits closed a part of the traffic, only rewards of traffic as routed are"
                " compared."
            )
        return Check(self.name, "ok", sentence, figures, self.level)

    def __add__(self, other: Self) -> Self:
        raise TypeError("checks of drift depend on the order of rows and do not add")

    def _subject(self, stream: int) -> str:
        if stream < len(self.models):
            return f"Rewards of {self.models[stream]}, against what was predicted,"
        return "Rewards of traffic as routed"

    def _take(self, streams: list[int], values: list[Floats]) -> None:
        """Take values into streams: many short streams at once, long ones in several rounds."""
        waiting = []
        for stream, column in zip(streams, values, strict=True):
            rest = column
            if self.sums["rows"][stream] < WARM_UP:
                rest = self._warm_up(stream, column)
            if len(rest):
                waiting.append((stream, rest))
        # One model may have nearly all rows; a rectangle as long as that would be mostly empty.
        lengths = [len(rest) for _, rest in waiting]
        most = max(lengths, default=0)
        width = most if most * len(lengths) <= 2 * sum(lengths) else _WIDTH
        while waiting:
            self._test(waiting, width)
            waiting = [(stream, rest[width:]) for stream, rest in waiting if len(rest) > width]

    def _test(self, waiting: list[tuple[int, Floats]], width: int) -> None:
        """Test the next values of streams that are warm, at most `width` of each."""
        sums = self.sums
        which = np.array([stream for stream, _ in waiting])
        length = np.array([min(len(rest), width) for _, rest in waiting])
        columns = np.arange(int(length.max()))
        inside = columns < length[:, None]
        off = np.zeros(inside.shape)
        off[inside] = np.concatenate([rest[:width] for _, rest in waiting])
        off -= sums["origin"][which, None]
        before, earlier = sums["rows"][which], sums["squares"][which, None]
        squares = earlier + np.cumsum(off * off, axis=1)
        squares_before = np.concatenate([earlier, squares[:, :-1]], axis=1)
        rows_before = _PSEUDO_ROWS + before[:, None] + columns
        spread = np.sqrt((squares_before + _PSEUDO_ROWS * _PSEUDO_VARIANCE) / rows_before)
        scaled = np.minimum(np.maximum(off / spread, -CLIP), CLIP)
        for detection in run(sums, which, scaled, length, TOLERATED, THRESHOLD):
            stream = which[detection.row]
            sums["alarms"][stream] += 1
            sums["alarmed_at"][stream] = before[detection.row] + detection.position + 1
            sums["rose"][stream] = float(detection.rose)
        sums["squares"][which] = squares[np.arange(len(which)), length - 1]
        sums["rows"][which] = before + length

    def _warm_up(self, stream: int, values: Floats) -> Floats:
        """Take in what is left of the warm-up; the values after it.

        The origin is the mean of the warm-up rows; the sum of squares is kept around it.
        """
        sums = self.sums
        before = int(sums["rows"][stream])
        warm = values[: WARM_UP - before]
        mean, count = sums["origin"][stream], before + len(warm)
        moved = mean + (warm - mean).sum() / count
        sums["squares"][stream] += ((warm - mean) ** 2).sum() - count * (moved - mean) ** 2
        sums["origin"][stream] = moved
        sums["rows"][stream] = count
        return values[len(warm) :]


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
    detections: list[Detection] = []
    first = _until_detection(state, which, values, length, tolerated, threshold)
    for row, detected in enumerate(first):
        while detected is not None:
            detections.append(Detection(row, detected.position, detected.rose))
            start = detected.position + 1
            rest = values[row : row + 1, start : length[row]]
            if not rest.size:
                break
            one, left = which[row : row + 1], np.array([rest.shape[1]])
            (later,) = _until_detection(state, one, rest, left, tolerated, threshold)
            detected = later and Detection(row, start + later.position, later.rose)
    return detections


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
    if len(again):
        for name, array in fresh(1).items():
            state[name][again] = array[0]
    earlier, mean, increase, decrease, lowest, highest = (
        state[name][which, None] for name in FIELDS[:-1]
    )
    steps = np.arange(1.0, values.shape[1] + 1.0)
    rows = earlier + steps
    means = (earlier * mean + np.cumsum(values, axis=1)) / rows
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
