"""Floors: how much of the traffic counts towards certified intervals, and at what weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from equipoise.agent.monitors.check import Check, Monitor, percent
from equipoise.store.batches import Closure, Flags, Floats, Ints

LEAST_CERTIFIED = 0.5
_ROUNDING = 1e-9
_WORDS = {
    Closure.OBSERVING: "only observed",
    Closure.PAUSED: "while paused",
    Closure.BUDGET: "beyond the budget",
    Closure.SEGMENT: "beyond the limit of a segment",
    Closure.USER: "beyond the share of a user",
    Closure.EXCLUDED: "of excluded users",
    Closure.INELIGIBLE: "open to no model",
}


class Floors(Monitor):
    """Shares of rows certified, capped, below the floor and closed; the largest weight so far.

    rate_min: smallest gate probability of a certified row. largest_weight: what configuration
    allows, 1 / (rate_min * floor). There is no chance in this check, hence no level.
    """

    name = "floors"
    maxima = frozenset({"largest"})

    def __init__(self, models: Sequence[str], rate_min: float, largest_weight: float) -> None:
        super().__init__(models)
        self.level = float("nan")
        self.rate_min = rate_min
        self.largest_weight = largest_weight
        names = ("rows", "capped", "below", "closed", "largest", "weight", "weight_squares")
        self.sums = {name: np.zeros(1) for name in names} | {"by": np.zeros(len(Closure))}

    def update(
        self,
        rate: Floats,
        propensity: Floats,
        randomized: Flags,
        closed_by: Ints,
        open_to_all: Flags,
    ) -> None:
        """n decisions. rate: (n,) e; propensity: (n,) pi of the assigned model; closed_by: (n,) a
        `Closure`; open_to_all: (n,) whether every model was eligible."""
        capped = closed_by > 0
        self.sums["by"] += np.bincount(closed_by, minlength=len(Closure))
        below = ~capped & (rate < self.rate_min)
        closed = ~capped & ~below & ~open_to_all
        certified = ~capped & ~below & open_to_all
        weighted = certified & randomized
        weight = 1.0 / (rate[weighted] * propensity[weighted])
        sums = self.sums
        sums["rows"] += len(rate)
        for name, flags in (("capped", capped), ("below", below), ("closed", closed)):
            sums[name] += np.count_nonzero(flags)
        sums["largest"][0] = max(float(sums["largest"][0]), float(weight.max(initial=0.0)))
        sums["weight"] += weight.sum()
        sums["weight_squares"] += (weight * weight).sum()

    def result(self) -> Check:
        by = dict(zip(Closure, self.sums["by"].tolist(), strict=True))
        figures = {name: float(array[0]) for name, array in self.sums.items() if name != "by"}
        rows, squares = figures["rows"], figures.pop("weight_squares")
        weight, largest = figures.pop("weight"), figures["largest"]
        out = figures["capped"] + figures["below"] + figures["closed"]
        share = 1.0 - out / rows if rows else float("nan")
        figures["certified"] = share
        figures["effective_rows"] = weight**2 / squares if squares else 0.0
        figures["largest_allowed"] = self.largest_weight
        if not rows:
            return Check(self.name, "unknown", "No decision has been made yet.", figures)
        reasons = [
            f"{percent(count / rows)} {words}"
            for count, words in (
                *((by[closure], words) for closure, words in _WORDS.items()),
                (figures["below"], "randomized too rarely"),
                (figures["closed"], "closed to some model"),
            )
            if count
        ]
        sentence = f"{percent(share)} of {rows:,.0f} requests count towards certified intervals"
        sentence += f" ({', '.join(reasons)})" if reasons else ""
        if largest > self.largest_weight * (1.0 + _ROUNDING):
            sentence += (
                f"; one of them counts {largest:,.1f} times, where configuration allows "
                f"{self.largest_weight:,.1f}: a probability fell below its floor."
            )
            return Check(self.name, "alarm", sentence, figures)
        sentence += f"; the largest weight is {largest:,.1f} of {self.largest_weight:,.1f} allowed."
        return Check(self.name, "watch" if share < LEAST_CERTIFIED else "ok", sentence, figures)
