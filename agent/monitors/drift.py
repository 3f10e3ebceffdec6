"""Drift: did a model's residuals, or the rewards of today's traffic, change while the stream ran?

The detector is river's Page-Hinkley test, without forgetting. ADWIN, river's other candidate, keeps
a window that can neither be pickled nor read, so it could not survive a restart; Page-Hinkley is a
handful of numbers. It knows no level: its parameters were chosen by measuring how often it speaks
up on streams that do not drift (tests/statistical/monitors_study.py prints the table).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from equipoise.agent.monitors.check import Check, percent
from equipoise.agent.monitors.monitor import Monitor
from equipoise.store.batches import Floats, Ints

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
_DETECTOR = ("_sum_increase", "_sum_decrease", "_min_increase", "_max_decrease")


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
        self.sums = {name: np.zeros(streams) for name in names}
        self._detectors = [_detector() for _ in range(streams)]

    def update(self, model: Ints, residual: Floats, routed_reward: Floats) -> None:
        """n rows in decision order, scaled to [0, 1].

        model: (n,) whose output it is; residual: (n,) reward less a prediction frozen before,
        NaN where there is none; routed_reward: (n,) reward, NaN unless served as routed.
        """
        for m in range(len(self.models)):
            self._stream(m, residual[(model == m) & ~np.isnan(residual)])
        self._stream(len(self.models), routed_reward[~np.isnan(routed_reward)])

    def result(self) -> Check:
        rows, alarms = self.sums["rows"], self.sums["alarms"]
        evidence = [_progress(detector) for detector in self._detectors]
        figures = {
            "rows": rows.tolist(),
            "alarms": alarms.tolist(),
            "alarmed_at": np.where(alarms > 0, self.sums["alarmed_at"], np.nan).tolist(),
            "progress": evidence,
        }
        if alarms.any():
            found = np.flatnonzero(alarms)
            worst = int(found[np.argmax(self.sums["alarmed_at"][found])])
            at = self.sums["alarmed_at"][worst]
            way = "up" if self.sums["rose"][worst] else "down"
            sentence = (
                f"{self._subject(worst)} went {way}, noticed at row {at:,.0f} of "
                f"{rows[worst]:,.0f}: what was learned before may not hold now."
            )
            models = tuple(m for m in found.tolist() if m < len(self.models))
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
        sentence = f"Rewards and residuals are steady over {rows.sum():,.0f} values."
        return Check(self.name, "ok", sentence, figures, self.level)

    def arrays(self) -> dict[str, Floats]:
        state = [
            [getattr(d, name) for name in _DETECTOR] + [d._x_mean.n, d._x_mean.get()]
            for d in self._detectors
        ]
        flags = [float(d.drift_detected) for d in self._detectors]
        return {**self.sums, "detector": np.array(state), "detected": np.array(flags)}

    def load(self, arrays: Mapping[str, Floats]) -> None:
        own = dict(arrays)
        state, flags = own.pop("detector"), own.pop("detected")
        super().load(own)
        self._detectors = [_detector() for _ in self._detectors]
        rows = zip(self._detectors, state.tolist(), flags.tolist(), strict=True)
        for detector, (*numbers, count, mean), flag in rows:
            for name, number in zip(_DETECTOR, numbers, strict=True):
                setattr(detector, name, number)
            detector._x_mean = detector._x_mean._from_state(count, mean)
            detector._drift_detected = bool(flag)

    def copy(self) -> Self:
        twin = super().copy()
        twin.load(self.arrays())
        return twin

    def __add__(self, other: Self) -> Self:
        raise TypeError("checks of drift depend on the order of rows and do not add")

    def _subject(self, stream: int) -> str:
        if stream < len(self.models):
            return f"Rewards of {self.models[stream]}, against what was predicted,"
        return "Rewards of traffic as routed"

    def _stream(self, stream: int, values: Floats) -> None:
        sums = self.sums
        before = int(sums["rows"][stream])
        warm, values = np.split(values, [max(WARM_UP - before, 0)])
        # The origin is the mean of the warm-up rows; the sum of squares is kept around it.
        if len(warm):
            mean, count = sums["origin"][stream], before + len(warm)
            moved = mean + (warm - mean).sum() / count
            sums["squares"][stream] += ((warm - mean) ** 2).sum() - count * (moved - mean) ** 2
            sums["origin"][stream] = moved
            sums["rows"][stream] = count
        if not len(values):
            return
        before = int(sums["rows"][stream])
        off = values - sums["origin"][stream]
        squares = sums["squares"][stream] + np.cumsum(off * off)
        earlier = np.concatenate([[sums["squares"][stream]], squares[:-1]])
        seen = _PSEUDO_ROWS + before + np.arange(len(values))
        spread = np.sqrt((earlier + _PSEUDO_ROWS * _PSEUDO_VARIANCE) / seen)
        detector = self._detectors[stream]
        for at, value in enumerate(np.clip(off / spread, -CLIP, CLIP).tolist()):
            detector.update(value)
            if detector.drift_detected:
                sums["alarms"][stream] += 1
                sums["alarmed_at"][stream] = before + at + 1
                sums["rose"][stream] = float(_risen(detector) > THRESHOLD)
        sums["squares"][stream] = squares[-1]
        sums["rows"][stream] = before + len(values)


def _detector() -> Any:
    """Without forgetting: with it the test alarms on most stationary streams of 20,000 rows."""
    from river.drift import PageHinkley  # Takes a second, and most imports of this make no check.

    return PageHinkley(min_instances=30, delta=TOLERATED, threshold=THRESHOLD, alpha=1.0)


def _risen(detector: Any) -> float:
    return float(detector._sum_increase - detector._min_increase)


def _progress(detector: Any) -> float:
    """Share of the threshold that is reached."""
    if detector._x_mean.n == 0:
        return 0.0
    fallen = float(detector._max_decrease - detector._sum_decrease)
    return max(_risen(detector), fallen) / THRESHOLD
