"""Gates: which requests to randomize.

Active statistical inference (Zrnic & Candes 2024): the variance of a mean whose predictor is
subtracted is E[sigma^2(x) / e(x)], least at a given mean rate for e proportional to sigma(x). It
is estimated from what a scorer predicts, so half of the rate stays uniform. A bounded reward with
mean mu varies by at most (mu - low)(high - mu), a binary one by exactly that; the residual scale
is taken proportional to the root of it.
"""

from __future__ import annotations

import numpy as np

from equipoise.policies.design import centred_design, context_centre, context_cuts
from equipoise.policies.kernels import ConstantRate, QuadraticForms, RateKernel, calibrated
from equipoise.policies.kernels.context_forms import ResidualScale
from equipoise.policies.registry import gate
from equipoise.policies.snapshot import ContextScorer, Floats, Snapshot

UNIFORM = 0.5
"""Share of the rate that every request gets alike: no weight more than doubles by the gate."""


@gate("active", idea="randomizes more where rewards are hard to predict")
def active(snapshot: Snapshot) -> RateKernel:
    """e proportional to the predicted residual scale over the root of the price, half uniform.

    Over models: the root of the mean of variance over price. Prices are per model, so they weigh
    models here and cancel where all cost the same. The target rate for every request without a
    scorer, a declared range of the reward, or traffic.
    """
    limits, scorer = snapshot.limits, snapshot.scorer
    if scorer is None or snapshot.reward_range is None or snapshot.contexts is None:
        return ConstantRate(limits.rate)
    centre = context_centre(snapshot, scorer)
    forms = _variances(scorer, centred_design(scorer, centre), snapshot.reward_range)
    forms /= snapshot.prices[:, None, None]
    if not np.isfinite(forms).all():
        return ConstantRate(limits.rate)
    score = ResidualScale(QuadraticForms(centre, forms))
    return calibrated(
        score, snapshot.contexts, limits.rate, limits.rate_min, limits.rate_max, UNIFORM
    )


def _variances(scorer: ContextScorer, design: Floats, bounds: tuple[float, float]) -> Floats:
    """(K, 1 + d, 1 + d) forms of E[(mu - low)(high - mu)], in squared ranges."""
    low, high = min(bounds), max(bounds)
    mean = design @ scorer.theta
    above, below = mean.copy(), -mean
    above[:, 0] -= low
    below[:, 0] += high
    forms = above[:, :, None] * below[:, None, :]
    forms = 0.5 * (forms + forms.transpose(0, 2, 1))
    # What the context does not tell about the output moves the mean, and is no residual.
    forms[:, 0, 0] -= np.einsum("p,kpq,q->k", scorer.theta, scorer.spread, scorer.theta)
    return np.asarray(forms / (high - low) ** 2)


@gate("contrast", idea="randomizes more where a request tells the models apart, less once decided")
def contrast(snapshot: Snapshot) -> RateKernel:
    """e proportional to the best attainable cut (`policies.design`) per price, half of it uniform.

    rate_min once a decision is certified: no contrast matters then. The target rate for every
    request where the context tells nothing: without a scorer or traffic, or while a model is
    unknown.
    """
    limits = snapshot.limits
    if snapshot.certified:
        return ConstantRate(limits.rate_min)
    cuts = context_cuts(snapshot)
    if cuts is None or snapshot.contexts is None:
        return ConstantRate(limits.rate)
    return calibrated(
        cuts, snapshot.contexts, limits.rate, limits.rate_min, limits.rate_max, UNIFORM
    )


@gate("fixed-rate", uses_estimate=False, idea="randomizes the same share of all requests")
def fixed_rate(snapshot: Snapshot) -> ConstantRate:
    """The target rate, whatever is known."""
    return ConstantRate(snapshot.limits.rate)


@gate(
    "uncertainty",
    uses_contexts=False,
    idea="randomizes the target share until a decision is certified, then the least",
)
def uncertainty(snapshot: Snapshot) -> ConstantRate:
    """The target rate while no decision is certified, rate_min while one is.

    Drift or a new model withdraws the certificate, and the rate rises again by itself.
    """
    limits = snapshot.limits
    return ConstantRate(limits.rate_min if snapshot.certified else limits.rate)
