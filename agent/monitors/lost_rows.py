"""Rows that do not count: lost after the draw, or kept out of certified intervals before it.

`Delivery` and `Missingness` ask whether losing a row depends on the model; `Floors` counts what was
left out, and the weights of what was not, which is no question of chance.

Among randomized rows that lost something (a reward, the assignment itself) the assigned model is
distributed as pi_t whenever losing does not depend on the model, given the request and the past.
That is the same martingale as the assignment audit's, on fewer rows. Nothing needs to be known of
the rate at which rows are lost; it may move, and depend on the request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np

from equipoise.agent.monitors import assignment as shares
from equipoise.agent.monitors.check import Check, Monitor, by_evidence, percent
from equipoise.store.batches import Closure, Flags, Floats, Ints
from equipoise.store.words import plural, verb

FEWEST_ROWS = 30


class LostRows(Monitor):
    """Counts lost rows per model and tests whether losing depends on the model.

    most: the share of lost rows beyond which the check asks to be looked at, whatever the models.
    """

    what: ClassVar[str]
    """What is lost, as the subject of a sentence in the plural."""
    verb: ClassVar[str]
    harm: ClassVar[str]
    """What a loss that depends on the model does."""

    def __init__(self, models: Sequence[str], level: float = 0.01, most: float = 0.2) -> None:
        super().__init__(models, level)
        self.most = most
        count = len(self.models)
        self.sums = shares.empty(count) | {"drawn": np.zeros(count), "lost": np.zeros(count)}

    def update(self, probabilities: Floats, model: Ints, lost: Flags) -> None:
        """n randomized rows that are closed, in decision order.

        probabilities: (n, K) pi, read only where `lost`; model: (n,) assigned; lost: (n,).
        """
        count = len(self.models)
        self.sums["drawn"] += np.bincount(model, minlength=count)
        at = np.flatnonzero(lost)
        self.sums["lost"] += np.bincount(model[at], minlength=count)
        hit = model[at, None] == np.arange(count)
        shares.add(self.sums, slice(0, count), probabilities[at], hit)

    def result(self) -> Check:
        drawn, lost = self.sums["drawn"], self.sums["lost"]
        rows = float(drawn.sum())
        by_model = np.full(len(drawn), np.nan)
        np.divide(lost, drawn, out=by_model, where=drawn > 0)
        evidence = shares.log_evidence(self.sums)
        overall = float(lost.sum()) / rows if rows else float("nan")
        log_evidence = shares.together(evidence)
        figures = {
            "rows": rows,
            "share": overall,
            "shares": by_model.tolist(),
            "log_evidence": log_evidence,
        }
        status = by_evidence(log_evidence, self.level)
        if status == "ok" and rows < FEWEST_ROWS:
            sentence = f"Too few randomized requests are closed to say whether {self.what}."
            return Check(self.name, "unknown", sentence, figures, self.level)
        facts = f"{percent(overall)} of {rows:,.0f} randomized requests {self.verb}"
        if status == "ok":
            if overall > self.most:
                sentence = f"{facts}, alike for all models, but more than {self.most:.0%}."
                return Check(self.name, "watch", sentence, figures, self.level)
            sentence = f"{facts}, alike for all models."
            return Check(self.name, status, sentence, figures, self.level)
        worst = int(np.argmax(evidence))
        others = np.arange(len(drawn)) != worst
        rest = float(lost[others].sum() / max(drawn[others].sum(), 1.0))
        sentence = (
            f"{facts}: {percent(by_model[worst])} of those for {self.models[worst]}, "
            f"{percent(rest)} of the others. "
            + (self.harm if status == "alarm" else "It may still be chance.")
        )
        return Check(self.name, status, sentence, figures, self.level, (worst,))


class Delivery(LostRows):
    """Assignments that were not served as drawn, per model. lost: never delivered, or answered by
    another model than the assigned one.

    Figures, each (K,) by assigned model: decided, the draws that are closed; delivered, those whose
    user got an answer; exposed, those whose user got the answer of the assigned model.
    """

    name = "delivery"
    what = "assignments are carried out less often for some models"
    verb = "were not served as drawn"
    harm = (
        "Requests that still count for this model are no longer a random part of the traffic, "
        "so its value is biased; certified intervals are about being sent to it."
    )

    def __init__(self, models: Sequence[str], level: float = 0.01, most: float = 0.2) -> None:
        super().__init__(models, level, most)
        self.sums |= {"other": np.zeros(len(self.models))}

    def update(
        self, probabilities: Floats, model: Ints, lost: Flags, other: Flags | None = None
    ) -> None:
        """As `LostRows.update`. other: (n,) which of the lost rows another model answered."""
        super().update(probabilities, model, lost)
        if other is not None:
            self.sums["other"] += np.bincount(model[other], minlength=len(self.models))

    def result(self) -> Check:
        check = super().result()
        exposed, other = self.sums["drawn"] - self.sums["lost"], self.sums["other"]
        figures = {
            "decided": self.sums["drawn"].tolist(),
            "delivered": (exposed + other).tolist(),
            "exposed": exposed.tolist(),
        }
        answered = f" Another model answered {other.sum():,.0f} of them." if other.any() else ""
        sentence = check.sentence + answered if check.status != "unknown" else check.sentence
        return replace(check, sentence=sentence, figures={**check.figures, **figures})


class Missingness(LostRows):
    """Rewards that never came, per model. lost: delivered, and expired without a reward.

    declared: what such a reward counts as, in reward units, None for the worst case; or the name of
    a meaning by which answers are about those who rate. Where a value is declared nothing is lost:
    a model that gets fewer rewards is worth what they add up to, and that its share differs is what
    the experiment is about. Where answers are about those who rate nothing is lost either, but a
    share that depends on the model is to be watched: it changes who they are.
    """

    name = "missingness"
    what = "rewards go missing more often for some models"
    verb = "never got a reward"
    harm = (
        "Averages over the rewards that came are biased; certified intervals hold if missing "
        "rewards count as the worst case."
    )

    _cure = (
        "As the worst case counts for each, no difference below that share can be certified:"
        " declare what a missing reward means (reward.missing)."
    )

    def __init__(
        self,
        models: Sequence[str],
        level: float = 0.01,
        most: float = 0.2,
        *,
        declared: float | str | None = None,
    ) -> None:
        super().__init__(models, level, most)
        self._declared = declared

    def result(self) -> Check:
        check = super().result()
        rows = float(self.sums["drawn"].sum())
        if self._declared is None or rows < FEWEST_ROWS:
            if check.status == "watch" and not check.models:
                return replace(check, sentence=f"{check.sentence} {self._cure}")
            return check
        if isinstance(self._declared, str):
            return self._of_raters(check)
        sentence = (
            f"{percent(check.figures['share'])} of {rows:,.0f} randomized requests {self.verb} "
            f"and count as {self._declared:g}, as declared."
        )
        return Check(self.name, "ok", sentence, check.figures, self.level)

    def _of_raters(self, check: Check) -> Check:
        if not check.models:
            share, rows = percent(check.figures["share"]), f"{check.figures['rows']:,.0f}"
            sentence = (
                f"{share} of {rows} randomized requests {self.verb}, alike for all models: answers"
                " are about those who rate, as declared."
            )
            return replace(check, status="ok", sentence=sentence)
        sentence = check.sentence.removesuffix(self.harm).rstrip()
        sentence += " Answers are about those who rate, and who does depends on the model."
        if check.status != "alarm":
            sentence = f"{check.sentence} Answers are about those who rate, as declared."
        return replace(check, status="watch", sentence=sentence)


def smallest_certifiable(lost: float, epsilon: float) -> float:
    """The least difference, of rewards that come, that can ever be certified where so many of the
    rewards count as the worst case; both on the [0, 1] scale. From 1 on there is none.

    The lower end of a lead is at most (1 - lost) difference - lost, and must be above -epsilon.

    >>> round(smallest_certifiable(0.03, 0.01), 4), smallest_certifiable(0.92, 0.01) > 1
    (0.0206, True)
    """
    return float("inf") if lost >= 1.0 else max(lost - epsilon, 0.0) / (1.0 - lost)


ERRORS = 3.0
"""Standard errors by which the largest lead that is plausible exceeds the one that is seen."""


def out_of_reach(check: Check, lead: float, error: float, epsilon: float, scale: float) -> Check:
    """The verdict of `missingness` where every missing reward counts as the worst case: an alarm
    once no lead that is plausible can ever be certified.

    lead, error: of the best model over the runner-up by the rewards that came, with its standard
    error, NaN while unknown; epsilon: the smallest difference that matters. Reward units; scale:
    the range of rewards.
    """
    if check.figures["rows"] < FEWEST_ROWS or check.status == "alarm":
        return check
    share = float(check.figures["share"])
    least = smallest_certifiable(share, epsilon / scale)
    plausible = (lead + ERRORS * error) / scale
    plausible = plausible if np.isfinite(plausible) else 1.0
    if share <= epsilon / scale or min(plausible, 1.0) > least:
        return check
    below = "no difference"
    if least < 1.0:
        below = f"no difference below {least * scale:.3g}"
    seen = f" (the best model leads by {lead:.3g} so far)" if np.isfinite(lead + error) else ""
    facts = f"{percent(share)} of {check.figures['rows']:,.0f} randomized requests"
    sentence = (
        f"{facts} {Missingness.verb}, and as each counts as the worst case {below} can ever be"
        f" certified{seen}: declare what a missing reward means (reward.missing, a new era)."
    )
    return replace(check, status="alarm", sentence=sentence)


LEAST_CERTIFIED = 0.5
_ROUNDING = 1e-9
CLOSURE_WORDS = {
    Closure.OBSERVING: "only observed",
    Closure.PAUSED: "while paused or after the end",
    Closure.BUDGET: "beyond the budget",
    Closure.SEGMENT: "beyond the limit of a segment",
    Closure.USER: "beyond the share of a user",
    Closure.EXCLUDED: "of excluded users",
    Closure.INELIGIBLE: "open to no model",
    Closure.DECIDED: "after the decision",
    Closure.SLICE: "beyond a decider's slice of a budget",
    Closure.LATE: "shipped by a decider after it had lost its lane",
    Closure.REPEATED: "of requests that another decider had decided",
    Closure.AGAIN: "of requests that two deciders decided at once",
}
_COUNTED = Closure.DECIDED
"""Closures below it have a sum each. What was closed otherwise is the rest of `capped`, so that
states from before there was another can be read."""
_OF_LANES = (Closure.SLICE, Closure.LATE, Closure.REPEATED, Closure.AGAIN)


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
        self.sums = {name: np.zeros(1) for name in names}
        self.sums |= {"by": np.zeros(_COUNTED), "lanes": np.zeros(len(_OF_LANES))}

    def load(self, arrays: Mapping[str, Floats]) -> None:
        # States from before there were lanes say nothing of them.
        super().load({"lanes": np.zeros(len(_OF_LANES)), **arrays})

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
        capped = (closed_by > 0) & (closed_by != Closure.AGAIN)
        counts = np.bincount(closed_by, minlength=len(Closure))
        self.sums["by"] += counts[:_COUNTED]
        self.sums["lanes"] += counts[list(_OF_LANES)]
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
        by = dict(zip(Closure, self.sums["by"].tolist(), strict=False))
        by |= dict(zip(_OF_LANES, self.sums["lanes"].tolist(), strict=True))
        rest = self.sums["by"][1:].sum() + self.sums["lanes"][:-1].sum()
        by[Closure.DECIDED] = float(self.sums["capped"][0] - rest)
        figures = {name: float(each[0]) for name, each in self.sums.items() if len(each) == 1}
        rows, squares = figures["rows"], figures.pop("weight_squares")
        weight, largest = figures.pop("weight"), figures["largest"]
        out = figures["capped"] + figures["below"] + figures["closed"]
        share = 1.0 - out / rows if rows else float("nan")
        figures["certified"] = share
        figures["effective_rows"] = weight**2 / squares if squares else 0.0
        figures["largest_allowed"] = self.largest_weight
        figures |= {closure.name.lower(): by[closure] for closure in CLOSURE_WORDS}
        if not rows:
            return Check(self.name, "unknown", "No decision has been made yet.", figures)
        reasons = [
            f"{percent(count / rows)} {words}"
            for count, words in (
                *((by[closure], words) for closure, words in CLOSURE_WORDS.items()),
                (figures["below"], "randomized too rarely"),
                (figures["closed"], "closed to some model"),
            )
            if count
        ]
        counts = verb(rows, "counts", "count")
        sentence = f"{percent(share)} of {plural(rows, 'request')} {counts} towards certified"
        sentence += " intervals"
        sentence += f" ({', '.join(reasons)})" if reasons else ""
        if largest > self.largest_weight * (1.0 + _ROUNDING):
            sentence += (
                f"; one of them counts {largest:,.1f} times, where configuration allows "
                f"{self.largest_weight:,.1f}: a probability fell below its floor."
            )
            return Check(self.name, "alarm", sentence, figures)
        sentence += f"; the largest weight is {largest:,.1f} of {self.largest_weight:,.1f} allowed."
        # What comes once all is decided was not to be certified.
        asked = rows - by[Closure.DECIDED]
        few = asked > 0.0 and rows - out < LEAST_CERTIFIED * asked
        return Check(self.name, "watch" if few else "ok", sentence, figures)
