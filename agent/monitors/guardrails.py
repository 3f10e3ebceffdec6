"""Guardrails: a metric that no model may take beyond its limit, tested at every moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from equipoise.agent.inference.mixture import lower_mean
from equipoise.agent.monitors.check import Check, Monitor, Status, listed
from equipoise.store.batches import Floats, Ints

FEWEST_ROWS = 30


@dataclass(frozen=True, slots=True)
class GuardrailLimit:
    """The limit of a metric's mean, strictly inside the metric's range.

    metric: its name. low, high: its range; values beyond it count as its ends, so a latency is
    best given as "was above its limit", 0 or 1. at_most: the limit is an upper one.
    Raises ValueError where the limit is not inside the range.
    """

    metric: str
    limit: float
    low: float = 0.0
    high: float = 1.0
    at_most: bool = True

    def __post_init__(self) -> None:
        if not self.low < self.limit < self.high:
            raise ValueError(
                f"limit of guardrail {self.metric} is {self.limit}, must be between {self.low} and"
                f" {self.high}"
            )

    def harm(self, value: Floats) -> Floats:
        """Values of the metric on [0, 1], larger is worse."""
        scaled: Floats = (value - self.low) / (self.high - self.low)
        return scaled if self.at_most else 1.0 - scaled

    def value(self, harm: Floats) -> Floats:
        """The inverse of `harm`."""
        scaled = harm if self.at_most else 1.0 - harm
        return self.low + scaled * (self.high - self.low)


class Guardrail(Monitor):
    """Whether the mean of a metric is beyond its limit for some model, certain at `level` overall.

    Each of the K models is tested at level / K by the bound of a bounded mean
    (`inference.mixture`), around the limit, which is fixed in advance.
    """

    name = "guardrail"

    def __init__(
        self, models: Sequence[str], declared: GuardrailLimit, level: float = 0.01
    ) -> None:
        super().__init__(models, level)
        self.declared = declared
        self._limit = float(declared.harm(np.array(declared.limit)))
        self.sums = {name: np.zeros(len(self.models)) for name in ("rows", "total", "squares")}

    def update(self, model: Ints, value: Floats) -> None:
        """n rows in decision order. model: (n,) assigned; value: (n,), NaN where unknown."""
        present = ~np.isnan(value)
        model, count = model[present], len(self.models)
        declared = self.declared
        excess = declared.harm(np.clip(value[present], declared.low, declared.high))
        off = excess - self._limit
        self.sums["rows"] += np.bincount(model, minlength=count)
        self.sums["total"] += np.bincount(model, excess, count)
        self.sums["squares"] += np.bincount(model, off * off, count)

    def result(self) -> Check:
        rows, total, squares = (self.sums[name] for name in ("rows", "total", "squares"))
        declared = self.declared
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
            "metric": declared.metric,
            "limit": declared.limit,
            "rows": rows.tolist(),
            "means": declared.value(mean).tolist(),
            "bounds": declared.value(np.clip(certain, 0.0, 1.0)).tolist(),
        }
        beyond = np.flatnonzero(certain > self._limit)
        near = np.flatnonzero((mean > self._limit) & (rows >= FEWEST_ROWS))
        side = "above" if declared.at_most else "below"
        if len(beyond):
            return self._beyond("alarm", beyond, f"is certainly {side}", "Pause", figures)
        if len(near):
            return self._beyond("watch", near, f"may be {side}", "Watch", figures)
        if rows.sum() < FEWEST_ROWS:
            few = f"Too few values of {declared.metric} have come to compare it with its limit."
            return Check(self.name, "unknown", few, figures, self.level)
        sentence = f"No model is {side} its limit of {declared.limit:g} for {declared.metric}."
        return Check(self.name, "ok", sentence, figures, self.level)

    def _beyond(
        self, status: Status, at: Ints, verb: str, advice: str, figures: dict[str, object]
    ) -> Check:
        means = self.declared.value(self.sums["total"][at] / self.sums["rows"][at])
        averages = listed(
            [f"{mean:.3g} for {self.models[m]}" for m, mean in zip(at, means, strict=True)]
        )
        names = listed([self.models[m] for m in at])
        sentence = (
            f"{self.declared.metric} {verb} its limit of {self.declared.limit:g}: {averages} on"
            f" average. {advice} {names}."
        )
        return Check(self.name, status, sentence, figures, self.level, tuple(at.tolist()))
