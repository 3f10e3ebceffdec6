"""Guardrails: a metric that no model may take beyond its limit, tested at every moment."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from equipoise.agent.inference.mixture import lower_mean
from equipoise.agent.monitors.check import Check, Monitor, Status, listed
from equipoise.store.batches import Floats, Ints

FEWEST_ROWS = 30


class Guardrail(Monitor):
    """Whether the mean of a metric is beyond `limit` for some model, certain at `level` overall.

    metric: its name. low, high: the metric's declared range; values beyond it count as its ends,
    so a latency is best given as "was above its limit", 0 or 1. at_most: the limit is an upper
    one. Each of the K models is tested at level / K by the bound of a bounded mean
    (`inference.mixture`), around the limit, which is fixed in advance.
    Raises ValueError where the limit is not inside the range.
    """

    name = "guardrail"

    def __init__(
        self,
        models: Sequence[str],
        metric: str,
        limit: float,
        *,
        low: float = 0.0,
        high: float = 1.0,
        at_most: bool = True,
        level: float = 0.01,
    ) -> None:
        super().__init__(models, level)
        if not low < limit < high:
            raise ValueError(
                f"limit of guardrail {metric} is {limit}, must be between {low} and {high}"
            )
        self.metric, self.limit, self.at_most = metric, limit, at_most
        self.low, self.high = low, high
        self.sums = {name: np.zeros(len(self.models)) for name in ("rows", "total", "squares")}

    def update(self, model: Ints, value: Floats) -> None:
        """n rows in decision order. model: (n,) assigned; value: (n,), NaN where unknown."""
        known = ~np.isnan(value)
        model, count = model[known], len(self.models)
        excess = self._harm(np.clip(value[known], self.low, self.high))
        off = excess - self._limit
        self.sums["rows"] += np.bincount(model, minlength=count)
        self.sums["total"] += np.bincount(model, excess, count)
        self.sums["squares"] += np.bincount(model, off * off, count)

    def result(self) -> Check:
        rows, total, squares = (self.sums[name] for name in ("rows", "total", "squares"))
        share = self.level / len(self.models)
        mean = np.full(len(rows), np.nan)
        np.divide(total, rows, out=mean, where=rows > 0)
        certain = np.array(
            [
                float(lower_mean(float(n), sum_, square, 1.0, share))
                for n, sum_, square in zip(rows, total, squares, strict=True)
            ]
        )
        figures = {
            "metric": self.metric,
            "limit": self.limit,
            "rows": rows.tolist(),
            "means": self._value(mean).tolist(),
            "bounds": self._value(np.clip(certain, 0.0, 1.0)).tolist(),
        }
        beyond = np.flatnonzero(certain > self._limit)
        near = np.flatnonzero((mean > self._limit) & (rows >= FEWEST_ROWS))
        side = "above" if self.at_most else "below"
        if len(beyond):
            return self._says("alarm", beyond, f"is certainly {side}", "Pause", figures)
        if len(near):
            return self._says("watch", near, f"may be {side}", "Watch", figures)
        if rows.sum() < FEWEST_ROWS:
            sentence = f"Too few values of {self.metric} have come to compare it with its limit."
            return Check(self.name, "unknown", sentence, figures, self.level)
        kept = f"No model is {side} its limit of {self.limit:g} for {self.metric}."
        return Check(self.name, "ok", kept, figures, self.level)

    def _says(
        self, status: Status, at: Ints, verb: str, advice: str, figures: dict[str, object]
    ) -> Check:
        means = self._value(self.sums["total"][at] / self.sums["rows"][at])
        found = listed(
            [f"{mean:.3g} for {self.models[m]}" for m, mean in zip(at, means, strict=True)]
        )
        names = listed([self.models[m] for m in at])
        sentence = (
            f"{self.metric} {verb} its limit of {self.limit:g}: {found} on average. "
            f"{advice} {names}."
        )
        return Check(self.name, status, sentence, figures, self.level, tuple(at.tolist()))

    @property
    def _limit(self) -> float:
        return float(self._harm(np.array(self.limit)))

    def _harm(self, value: Floats) -> Floats:
        """On [0, 1], larger is worse."""
        scaled: Floats = (value - self.low) / (self.high - self.low)
        return scaled if self.at_most else 1.0 - scaled

    def _value(self, harm: Floats) -> Floats:
        scaled = harm if self.at_most else 1.0 - harm
        return self.low + scaled * (self.high - self.low)
