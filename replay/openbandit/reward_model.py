"""A cross-fitted ridge regression of clicks: the predictions that doubly robust values rest on.

Features of (row, item): the user's, the item's, the affinity of the two, the position, and an
indicator per item, which the penalty makes a random effect. Linear, so predictions for all items
are sums of a part per row and a part per item. It may be as wrong as it likes: doubly robust
values stay unbiased (the propensities are known), only wider.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from equipoise.replay.openbandit.log import LoggedFeedback
from equipoise.store.batches import Flags, Floats, Ints

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
    for held in np.unique(fold):
        out = fold == held
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
        left = target @ target - (explained[:, None] * (2.0 * keep - keep**2)).sum(axis=0)
        degrees = 1.0 + keep.sum(axis=0)
        score = np.where(degrees < count, left / np.maximum(count - degrees, 1e-9) ** 2, np.inf)
        slopes = vectors @ (along / (values + _PENALTIES[int(np.argmin(score))])) * unit
        return np.concatenate([[origin - slopes @ centre], slopes])

    def predict(self, coefficients: Floats, rows: Flags) -> Floats:
        """(m, K) predictions of the selected rows."""
        u = 1 + self.per_row.shape[1]
        by_row = coefficients[0] + self.per_row[rows] @ coefficients[1:u]
        by_item = self.per_item @ coefficients[u:-1]
        predicted: Floats = by_row[:, None] + by_item + coefficients[-1] * self.affinity[rows]
        return predicted
