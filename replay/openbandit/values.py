"""What a policy is worth on a log of another one: IPS, self-normalised IPS, doubly robust.

Influences make every comparison a subtraction: two values from the same log share rows, so the
standard error of their difference is that of the difference of their influences.

Features of (row, item): the user's, the item's, the affinity of the two, the position, and an
indicator per item, which the penalty makes a random effect. Linear, so predictions for all items
are sums of a part per row and a part per item. It may be as wrong as it likes: doubly robust
values stay unbiased (the propensities are known), only wider.

Positions are strata. Propensities belong to (position, item), click rates differ by position,
and a policy may show different items at each: so every estimate is made per position, and the
value of a policy is their mix over the log's position shares.

    IPS    mean of w r                           (Horvitz & Thompson 1952), w = pi(a|x) / p(a)
    SNIPS  sum of w r / sum of w                 (Hajek)
    DR     mean of sum_a pi(a|x) q(x, a) + w (r - q(x, a))      (Dudik, Langford, Li 2011)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from equipoise.agent.features.values import listed
from equipoise.agent.inference.projection import within_range
from equipoise.replay.benchmarks.base import BenchmarkError
from equipoise.replay.findings.findings import Measured
from equipoise.replay.openbandit.log import LoggedFeedback
from equipoise.replay.results.averages import Z95
from equipoise.store.batches import Flags, Floats, Ints

FEW_CLICKS = 10.0
"""Below this many (effective) clicks the spread of the clicks seen says little about the rest."""


@dataclass(frozen=True, slots=True)
class Brief:
    """A value without its influences, as it is shown: estimate and 95% interval, which lie in
    [0, 1] as clicks do, and standard error; NaN where unknown."""

    value: float
    se: float
    low: float
    high: float
    effective_rows: float

    @property
    def measured(self) -> Measured:
        """For tables: null where unknown."""
        if math.isnan(self.value):
            return Measured(None)
        return Measured(self.value, self.low, self.high)


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """An estimate in clicks per row, NaN where unknown. It may lie outside [0, 1], as importance
    weighted and doubly robust ones do: sums and differences are of such values, `brief` and
    `measured` of those nearest in the range.

    influence: (n,) how far each row of the log moved the estimate; their squares sum to its
    variance. weight: (n,) the share of each row in it, summing to 1, or all 0 where unknown.
    clicked: (n,) the same of the clicks: weight times reward.
    """

    value: float
    influence: Floats
    weight: Floats
    clicked: Floats

    @property
    def se(self) -> float:
        """Standard error."""
        return math.sqrt(float(self.influence @ self.influence))

    @property
    def effective_rows(self) -> float:
        """As many rows of equal weight say as much (Kish 1965); 0 where unknown."""
        squares = float(self.weight @ self.weight)
        return float(self.weight.sum()) ** 2 / squares if squares else 0.0

    @property
    def effective_clicks(self) -> float:
        """The same of the clicks."""
        squares = float(self.clicked @ self.clicked)
        return float(self.clicked.sum()) ** 2 / squares if squares else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """95%, within [0, 1]: Wilson's (1927) for a rate seen over as many rows as give this
        standard error.

        Clicks are rare: a normal interval around three of them would reach below 0, and around
        none it would have no width. Under FEW_CLICKS a standard error is not believed to be
        smaller than that of a rate over `effective_rows`. Where the value is outside (0, 1), as
        doubly robust values can be, Wilson's over `effective_rows` for a rate at that end, or the
        normal one where it reaches farther in.
        """
        value, se, few = self.value, self.se, self.effective_clicks < FEW_CLICKS
        if math.isnan(value):
            return math.nan, math.nan
        rate, effective = _shown(value), self.effective_rows
        inside = 0.0 < rate < 1.0
        rows = rate * (1.0 - rate) / se**2 if se > 0.0 and inside else math.inf
        if few or not inside:
            rows = min(rows, effective)
        if math.isinf(rows) or not rows > 0.0:
            low, high = value - Z95 * se, value + Z95 * se
        else:
            low, high = wilson(rate, rows)
            if not inside:
                low, high = min(low, value - Z95 * se), max(high, value + Z95 * se)
        return min(_shown(low), rate), max(_shown(high), rate)

    @property
    def brief(self) -> Brief:
        """What tables need."""
        unknown = math.isnan(self.value)
        return Brief(
            _shown(self.value),
            math.nan if unknown else self.se,
            *self.interval,
            self.effective_rows,
        )

    @property
    def measured(self) -> Measured:
        """For tables: null where unknown."""
        return self.brief.measured


def _shown(value: float) -> float:
    """The nearest that a click rate can be."""
    return float(within_range(value, 0.0, 1.0))


def wilson(rate: float, rows: float) -> tuple[float, float]:
    """Wilson's 95% interval of a rate seen in `rows` (not necessarily whole) rows."""
    scale = 1.0 + Z95**2 / rows
    centre = (rate + Z95**2 / (2.0 * rows)) / scale
    spread = Z95 * math.sqrt(rate * (1.0 - rate) / rows + Z95**2 / (4.0 * rows**2)) / scale
    return max(0.0, centre - spread), min(1.0, centre + spread)


def difference(first: Value, second: Value, *, same_log: bool) -> Measured:
    """first - second with its normal 95% interval; null where one is unknown.

    same_log: both influences are over the rows of one log; else the logs are independent.
    """
    gap = first.value - second.value
    if math.isnan(gap):
        return Measured(None)
    if same_log:
        moved = first.influence - second.influence
        se = math.sqrt(float(moved @ moved))
    else:
        se = math.hypot(first.se, second.se)
    return Measured(gap, gap - Z95 * se, gap + Z95 * se)


def combined(values: Sequence[Value], shares: Sequence[float]) -> Value:
    """The weighted sum of values over the rows of one log; values without a share do not count.

    Unknown where one of the others is.
    """
    used = [(share, value) for share, value in zip(shares, values, strict=True) if share > 0]
    parts = [
        sum((share * getattr(value, name) for share, value in used), np.zeros(()))
        for name in ("value", "influence", "weight", "clicked")
    ]
    return Value(float(parts[0]), *parts[1:])


def unknown(rows: int) -> Value:
    """The value of what the log never shows."""
    return Value(math.nan, np.zeros(rows), np.zeros(rows), np.zeros(rows))


def weighted_rate(weight: Floats, reward: Floats) -> Value:
    """The weighted mean of all rewards (n,) by weights (n,); unknown where they are all 0."""
    total = float(weight.sum())
    if not total > 0.0:
        return unknown(len(reward))
    share = weight / total
    value = float(share @ reward)
    return Value(value, share * (reward - value), share, share * reward)


FOLDS = 5
_PENALTIES = np.geomspace(1.0, 1e6, 25)


def time_blocks(log: LoggedFeedback, folds: int = FOLDS) -> Ints:
    """(n,) fold of every row: blocks in time, so that what was shown on one page stays together."""
    rank = np.empty(len(log), dtype=np.int64)
    rank[np.argsort(log.at, kind="stable")] = np.arange(len(log))
    return rank * folds // len(log)


def cross_fitted_clicks(log: LoggedFeedback, folds: int = FOLDS) -> Floats:
    """(n, K) predicted click rates, each row by a model that saw only the other folds.

    Fewer rows than folds make each row its own fold. Clipped to [0, 1].
    """
    fold = time_blocks(log, min(folds, len(log)))
    predicted = np.empty((len(log), len(log.items)))
    design = _Design.of(log)
    for block in np.unique(fold):
        out = fold == block
        predicted[out] = design.predict(design.fit(~out, log.reward), out)
    return np.clip(predicted, 0.0, 1.0)


@dataclass(frozen=True, slots=True)
class _Design:
    """per_row: (n, u) features that no item changes. per_item: (K, v). affinity: (n, K) or none."""

    per_row: Floats
    per_item: Floats
    affinity: Floats
    item: Ints

    @classmethod
    def of(cls, log: LoggedFeedback) -> _Design:
        at = np.eye(len(log.positions))[log.position]
        # Identities side by side with the features: what they explain is not penalized twice.
        items = np.hstack([log.item_features, np.eye(len(log.items))])
        affinity = log.affinity if log.affinity.shape[1] else np.zeros((len(log), len(log.items)))
        return cls(np.hstack([log.x, at]), items, affinity, log.item)

    def fit(self, rows: Flags, reward: Floats) -> Floats:
        """Intercept and coefficients (1 + u + v + 1,), the penalty by generalized
        cross-validation (Golub, Heath, Wahba 1979)."""
        item = self.item[rows]
        own = self.affinity[rows, item][:, None]
        design = np.hstack([self.per_row[rows], self.per_item[item], own])
        centre, origin = design.mean(axis=0), float(reward[rows].mean())
        spread = design.std(axis=0)
        unit = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 1e-9)
        centred, target = (design - centre) * unit, reward[rows] - origin
        values, vectors = np.linalg.eigh(centred.T @ centred)
        values = np.maximum(values, 0.0)
        along = vectors.T @ (centred.T @ target)
        count = len(target)
        keep = values[:, None] / (values[:, None] + _PENALTIES)  # (p, penalties)
        explained = np.divide(along**2, values, out=np.zeros_like(values), where=values > 1e-9)
        residual = target @ target - (explained[:, None] * (2.0 * keep - keep**2)).sum(axis=0)
        degrees = 1.0 + keep.sum(axis=0)
        score = np.where(degrees < count, residual / np.maximum(count - degrees, 1e-9) ** 2, np.inf)
        slopes = vectors @ (along / (values + _PENALTIES[int(np.argmin(score))])) * unit
        return np.concatenate([[origin - slopes @ centre], slopes])

    def predict(self, coefficients: Floats, rows: Flags) -> Floats:
        """(m, K) predictions of the selected rows."""
        u = 1 + self.per_row.shape[1]
        by_row = coefficients[0] + self.per_row[rows] @ coefficients[1:u]
        by_item = self.per_item @ coefficients[u:-1]
        predicted: Floats = by_row[:, None] + by_item + coefficients[-1] * self.affinity[rows]
        return predicted


ESTIMATORS = ("ips", "snips", "dr")


@dataclass(frozen=True, slots=True)
class Estimated:
    """One estimator's answer. mix: over positions. positions: P values, one a position.

    The influences of all of them are over all n rows.
    """

    mix: Value
    positions: tuple[Value, ...]


def policy_values(
    log: LoggedFeedback,
    target: Floats,
    predicted: Floats | None = None,
    shares: Floats | None = None,
) -> dict[str, Estimated]:
    """Estimates by name, those of ESTIMATORS; `dr` only with predictions.

    target: (n, K) probabilities of the policy to value, at each row's user and position.
    predicted: (n, K) click rates, each row's from a model that did not see the row.
    shares: (P,) weights of the positions, the log's own where absent. A position where the log
    never shows what the policy shows is unknown, NaN, and with it the mix.
    """
    rows = np.arange(len(log))
    weight = target[rows, log.item] / log.propensity
    terms = {"ips": weight * log.reward}
    if predicted is not None:
        terms["dr"] = (target * predicted).sum(axis=1) + weight * (
            log.reward - predicted[rows, log.item]
        )
    shares = log.position_shares if shares is None else shares
    result = {}
    for name in ESTIMATORS:
        if name == "snips" or name in terms:
            parts = tuple(
                _at_position(log, place, weight, terms.get(name))
                for place in range(len(log.positions))
            )
            result[name] = Estimated(combined(parts, shares.tolist()), parts)
    return result


def on_policy(log: LoggedFeedback, shares: Floats | None = None) -> Estimated:
    """The click rate of the logging policy itself: plain means per position."""
    shares = log.position_shares if shares is None else shares
    parts = tuple(
        _at_position(log, place, np.ones(len(log)), None) for place in range(len(log.positions))
    )
    return Estimated(combined(parts, shares.tolist()), parts)


def _at_position(log: LoggedFeedback, place: int, weight: Floats, terms: Floats | None) -> Value:
    """The mean of the terms at one position, or the weighted mean of rewards without terms."""
    here = np.flatnonzero(log.position == place)
    count = len(here)
    if count < 2 or not weight[here].sum() > 0.0:
        return unknown(len(log))
    rate = weighted_rate(weight[here], log.reward[here])
    value, influence = rate.value, rate.influence
    if terms is not None:
        value = float(terms[here].mean())
        influence = (terms[here] - value) / count
    spread = np.zeros((3, len(log)))
    # Standard errors with the divisor n - 1.
    spread[0, here] = influence * math.sqrt(count / (count - 1.0))
    spread[1, here], spread[2, here] = rate.weight, rate.clicked
    return Value(value, *spread)


def uniform(log: LoggedFeedback) -> Floats:
    """Every item alike."""
    return np.full((len(log), len(log.items)), 1.0 / len(log.items))


def always(log: LoggedFeedback, item: int) -> Floats:
    """One item at every position."""
    target = np.zeros((len(log), len(log.items)))
    target[:, item] = 1.0
    return target


def shown_shares(log: LoggedFeedback) -> Floats:
    """(P, K) how often a log showed each item at each position: its policy, averaged over time.

    Given what was shown, the log's click rate is an unbiased estimate of exactly this policy's
    value, as long as which item is shown does not depend on the user.
    """
    counts = np.zeros((len(log.positions), len(log.items)))
    np.add.at(counts, (log.position, log.item), 1.0)
    return np.asarray(counts / counts.sum(axis=1, keepdims=True))


def as_in(log: LoggedFeedback, other: LoggedFeedback) -> Floats:
    """The policy of another log of the same items and positions. Raises BenchmarkError."""
    for name in ("items", "positions"):
        mine, theirs = getattr(log, name), getattr(other, name)
        if mine != theirs:
            raise BenchmarkError(
                f"{name} of the {log.behaviour} log are {listed(mine)} and of the"
                f" {other.behaviour} log are {listed(theirs)}, must be the same"
            )
    return shown_shares(other)[log.position]


def best_item(log: LoggedFeedback) -> Floats:
    """Always the item with the best click rate, found on the other blocks of time.

    A best item that was found on the rows it is valued on would look too good. Items that tie
    share.
    """
    fold = time_blocks(log, FOLDS)
    target = np.zeros((len(log), len(log.items)))
    for block in np.unique(fold):
        rates = item_rates(log, fold != block)
        best = rates >= np.nanmax(rates) - 1e-12
        target[fold == block] = best / np.count_nonzero(best)
    return target


def item_rates(log: LoggedFeedback, rows: Flags) -> Floats:
    """(K,) self-normalised click rates of always showing one item; NaN where unknown."""
    part = log.select(rows)
    values = [
        policy_values(part, always(part, item))["snips"].mix.value for item in range(len(log.items))
    ]
    return np.array(values)
