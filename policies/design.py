"""How much a reward would cut the variance of the contrasts that still matter.

Transductive experimental design (Yu, Bi & Tresp 2006; Soare, Lazaric & Munos 2014; Fiez, Jain,
Jamieson & Ratliff 2019): what is to be learnt are not the coefficients but some contrasts of
values. A contrast between models i and j matters as far as either may be the best one, with
weight alpha_i alpha_j, alpha the posterior probabilities of being the best. With u_i the
direction of V(i), V(i) = u_i theta, and Sigma the covariance of theta, the loss is

    sum over i < j of alpha_i alpha_j Var(V(i) - V(j)) = sum_i alpha_i (u_i - u)' Sigma (u_i - u),

u the alpha-weighted mean of the u_i. A reward with regressors phi and residual variance s^2 takes
phi' M phi / (s^2 + phi' Sigma phi) off it, M = Sigma [sum_i alpha_i (u_i - u)(u_i - u)'] Sigma
(Sherman & Morrison). The regressors that model m would produce at a context are known as a mean,
linear in [1, x], and a covariance S_m; numerator and denominator are taken in expectation over
them, which makes either a quadratic form of [1, x]:

    gain_m(x)   = z' D_m M D_m' z + tr(M S_m),
    spread_m(x) = z' D_m Sigma D_m' z + tr(Sigma S_m) + s_m^2.
"""

from __future__ import annotations

import numpy as np

from equipoise.policies.kernels import Cuts, QuadraticForms
from equipoise.policies.posterior import smoothed_best_probabilities
from equipoise.policies.snapshot import ContextScorer, Floats, Snapshot

_last: tuple[Snapshot, Cuts | None] | None = None
"""The newest snapshot and its cuts: a gate and an assignment ask for the same ones in turn."""


def context_cuts(snapshot: Snapshot) -> Cuts | None:
    """Cut of every model per price, as a function of the context.

    None without a usable scorer, while the value of a model is unknown, or where nothing is left
    to cut.
    """
    global _last
    last = _last
    if last is None or last[0] is not snapshot:
        _last = last = snapshot, _context_cuts(snapshot)
    return last[1]


def _context_cuts(snapshot: Snapshot) -> Cuts | None:
    scorer, alpha = snapshot.scorer, smoothed_best_probabilities(snapshot)
    if scorer is None or alpha is None or len(alpha) == 1 or not _is_usable(scorer):
        return None
    root = _weighted_contrasts(scorer.value_design, alpha) @ scorer.covariance
    loss = root.T @ root
    centre = context_centre(snapshot, scorer)
    design = centred_design(scorer, centre)
    gain = _expected_squares(design, loss, scorer.spread)
    spread = _expected_squares(design, scorer.covariance, scorer.spread)
    spread[:, 0, 0] += scorer.residual_variances
    largest = float(np.abs(gain).max())
    if not (0.0 < largest < np.inf and np.isfinite(spread).all()):
        return None
    # In units of the largest: the unit of the reward then cancels before it can under- or overflow.
    unit = float(np.abs(spread).max())
    gain = gain / largest / snapshot.prices[:, None, None]
    return Cuts(QuadraticForms(centre, np.concatenate([gain, spread / unit])))


def average_cuts(snapshot: Snapshot) -> Floats | None:
    """(K,) cut of every model per price, blind to contexts: the fallback without a scorer.

    A reward of model m is then news of V(m) alone, with the variance of the model's own rewards;
    an unknown variance counts as the largest known one. None as for `context_cuts`, and while no
    variance is known.
    """
    alpha, variances = smoothed_best_probabilities(snapshot), snapshot.sample_variances
    finite = np.isfinite(variances)
    if alpha is None or len(alpha) == 1 or not finite.any():
        return None
    noise = np.where(finite, variances, variances[finite].max())
    root = _weighted_contrasts(np.eye(len(alpha)), alpha) @ snapshot.covariance
    gain = (root**2).sum(axis=0)
    spread = noise + np.diagonal(snapshot.covariance)
    cuts = np.divide(gain, spread, out=np.zeros_like(gain), where=spread > 0.0)
    return np.asarray(cuts / snapshot.prices) if cuts.any() else None


def context_centre(snapshot: Snapshot, scorer: ContextScorer) -> Floats:
    """(d,) mean context of recent traffic, 0 where none has been seen."""
    if snapshot.contexts is None or not len(snapshot.contexts):
        return np.zeros(scorer.design.shape[1] - 1)
    return np.asarray(snapshot.contexts.mean(axis=0), dtype=np.float64)


def centred_design(scorer: ContextScorer, centre: Floats) -> Floats:
    """(K, 1 + d, P) the scorer's design for [1, x - centre]."""
    design = scorer.design.copy()
    design[:, 0] += np.einsum("d,kdp->kp", centre, scorer.design[:, 1:])
    return design


def _weighted_contrasts(directions: Floats, alpha: Floats) -> Floats:
    """(K, P) rows sqrt(alpha_i) (u_i - mean u), for directions u (K, P)."""
    return np.asarray(np.sqrt(alpha)[:, None] * (directions - alpha @ directions))


def _expected_squares(design: Floats, form: Floats, spread: Floats) -> Floats:
    """(K, 1 + d, 1 + d) forms in z of E[phi' form phi | x], form (P, P) symmetric."""
    squares = design @ form @ design.transpose(0, 2, 1)
    squares = 0.5 * (squares + squares.transpose(0, 2, 1))
    squares[:, 0, 0] += np.einsum("kpq,pq->k", spread, form)
    return np.asarray(squares)


def _is_usable(scorer: ContextScorer) -> bool:
    parts = (
        *(scorer.theta, scorer.covariance, scorer.design, scorer.value_design),
        *(scorer.spread, scorer.residual_variances),
    )
    return all(bool(np.isfinite(part).all()) for part in parts)
