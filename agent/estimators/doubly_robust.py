"""Family `doubly-robust`: the scorer's value plus the weighted mean of what it got wrong."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from equipoise.agent.estimators.base import (
    Estimate,
    covariance,
    deletions,
    family,
    total_covariance,
)
from equipoise.agent.estimators.linear import (
    Frame,
    choose_penalty,
    common_frame,
    extrapolated,
    held_out,
    mean_features,
    mean_features_replicated,
    regressions,
    ridge,
    rows,
    subsets,
    unknown_estimate,
)
from equipoise.agent.moments.state import Moments
from equipoise.store.batches import Floats


@family(
    "doubly-robust",
    "the scorer's value plus the weighted mean of its errors on randomized requests",
    "EXP",
    "SIM",
)
def doubly_robust(moments: Moments) -> Estimate:
    """Cross-fitted augmented inverse propensity weighting (Robins 1994; Bang & Robins 2005).

    V(m) = mean phi_m theta + sum over folds k and EXP rows of m in k of w (R - phi theta^(-k))
    / sum of w, w = 1 / (e pi), with theta^(-k) fitted without fold k and theta their mean,
    weighted by the folds' rows. Both sides use one predictor: phi is the SIM row of the request,
    or the SIM regression of phi on x where it has none, never the live output. A wrong simulator
    or scorer then costs precision, not truth. Never-randomized models have no value here.
    Diagnostics: `direct` (K,) the first term, `correction` (K,) the second, `penalty`, `errors`.
    """
    frame = common_frame(moments, moments.exp)
    if frame is None:
        return unknown_estimate("doubly-robust", moments)
    blocks = frame.products(moments.exp)
    penalty, errors = choose_penalty(blocks)
    present = deletions(rows(blocks))
    masks = np.vstack([np.ones(len(blocks)), present])
    theta, folds = _cross_fitted(blocks, masks, penalty)

    phi = mean_features(moments.simulation)
    correction = _Correction.of(moments, frame)
    everything = np.ones((1, len(blocks)))
    slopes = regressions(everything, moments.simulation, moments.dimensions.context)
    # phi's slopes on x, along the coefficients of every replicate and fold.
    lines = np.matmul(slopes, (folds[..., 1:] * frame.unit)[:, None].swapaxes(-1, -2))
    added = correction.mean(masks, folds, phi[None], lines)
    direct = frame.values(theta, phi)
    values = direct + added

    return Estimate(
        family="doubly-robust",
        values=values[0],
        covariance=total_covariance(
            values[0],
            covariance(values[1:]),
            _of_contexts(moments, frame, correction, theta, folds),
        ),
        diagnostics={
            "extrapolated": extrapolated(moments),
            "rows": float(rows(blocks).sum()),
            "direct": direct[0],
            "correction": added[0],
            "penalty": penalty,
            "errors": errors,
        },
    )


def _cross_fitted(blocks: Floats, masks: Floats, penalty: float) -> tuple[Floats, Floats]:
    """Mean theta (B, p) and theta^(-k) (B, folds, p) over the groups of each mask (B, G)."""
    fold_masks = held_out(len(blocks))
    train = 1.0 - fold_masks
    folds = np.tile(ridge(subsets(train, blocks), penalty), (len(masks), 1, 1))
    # A replicate that lacks a group of fold k itself leaves theta^(-k) as it was.
    replicated = masks[:, None] * train
    changed = (replicated < train).any(axis=-1)
    folds[changed] = ridge(subsets(replicated[changed], blocks), penalty)
    size = (masks * rows(blocks)) @ fold_masks.T
    share = size / np.maximum(size.sum(axis=1, keepdims=True), 1e-300)
    return np.matmul(share[:, None], folds)[:, 0], folds


def _of_contexts(
    moments: Moments, frame: Frame, correction: _Correction, theta: Floats, folds: Floats
) -> Floats:
    """(K, K) jackknife over the groups of contexts of SIM: means and regressions move."""
    simulation = moments.simulation
    phi = mean_features_replicated(simulation)
    values = frame.values(theta[:1], phi)
    if correction.live_weight.any() and len(phi) > 1:
        masks = deletions(simulation.count.sum(axis=1))
        directions = folds[0, :, 1:] * frame.unit
        lines = regressions(masks, simulation, moments.dimensions.context, directions)
        everything = np.ones((1, len(correction.weight)))
        values = values + correction.mean(everything, folds[:1], phi, lines)
    return covariance(values)


@dataclass(frozen=True, slots=True)
class _Correction:
    """EXP sums per group and model, rewards from the frame's origin, features standardized.

    weight, reward: (G, K) sums of w, of w r. simulated: (G, K, p - 1) sum of w z over rows with a
    SIM row. live_weight: (G, K); live: (G, K, d) sum of w x over rows without, from
    `context_origin` (d,).
    """

    frame: Frame
    weight: Floats
    reward: Floats
    simulated: Floats
    live_weight: Floats
    live: Floats

    @classmethod
    def of(cls, moments: Moments, frame: Frame) -> _Correction:
        arms = moments.arms
        origin = frame.origin[: moments.dimensions.context]
        return cls(
            frame=frame,
            weight=arms.weight,
            reward=arms.weight * (arms.mean - frame.origin[-1]),
            simulated=(arms.sim_sum - arms.sim_weight[..., None] * frame.origin[:-1]) * frame.unit,
            live_weight=arms.live_weight,
            live=arms.live_sum - arms.live_weight[..., None] * origin,
        )

    def mean(self, masks: Floats, folds: Floats, phi: Floats, lines: Floats) -> Floats:
        """(B, K) weighted mean of reward less prediction over the groups of each mask (B, G).

        folds: (B, folds, p) theta^(-k). phi: (B, K, p - 1) SIM means and lines: (B, K, d, folds)
        slopes on x of the predictions, both for the rows without a SIM row. Any B may be 1.
        NaN where no row of a model is left.
        """
        fold = np.arange(len(self.weight)) % folds.shape[1]
        slopes = folds[..., 1:].swapaxes(-1, -2)
        simulated = np.matmul(self.simulated, folds[:, fold, 1:, None])[..., 0]
        predicted = self.weight * folds[:, fold, :1] + simulated
        if self.live_weight.any():
            middle = np.matmul(self.frame.standardize(phi), slopes)[..., fold].swapaxes(-1, -2)
            offset = phi[:, None, :, : self.live.shape[-1]] - self.context_origin
            deviation = self.live - self.live_weight[..., None] * offset
            along = np.moveaxis(lines, -1, 1)[:, fold]
            regressed = self.live_weight * middle + (deviation * along).sum(axis=-1)
            predicted = predicted + np.where(self.live_weight > 0, regressed, 0.0)
        above = (masks[..., None] * (self.reward - predicted)).sum(axis=1)
        below = np.broadcast_to(masks @ self.weight, above.shape)
        return np.asarray(np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0))

    @property
    def context_origin(self) -> Floats:
        """(d,) origin of x."""
        return self.frame.origin[: self.live.shape[-1]]
