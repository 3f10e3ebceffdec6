"""How few randomized requests could do: the lower bound of Garivier & Kaufmann, per scenario.

Any procedure that names a model within epsilon of the best with probability 1 - delta, whatever
the values are, needs on average at least T kl(delta, 1 - delta) requests, where

    1 / T = max over shares w of min over i != best of
            (gap_i + epsilon)^2 / (2 (v_best / w_best + v_i / w_i))

(Garivier & Kaufmann 2016, Gaussian rewards of known variance; with epsilon the best model is one
of several right answers, and the one that is easiest to prove). With the variance of the reward
itself it bounds an A/B test. With the residual variance it bounds a learner who already knows how
outputs make rewards, but not what each model adds to that; who knows more than that from a log,
and happens to be right, can do with fewer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from equipoise.policies.optimal_weights import optimal_weights
from equipoise.replay.worlds import World
from equipoise.store.batches import Floats

DELTA = 0.05


def lower_bound(values: Floats, variances: Floats, epsilon: float, delta: float = DELTA) -> float:
    """Randomized requests to name a model within epsilon of the best. values, variances: (K,)."""
    best = int(values.argmax())
    others = np.arange(len(values)) != best
    shares = optimal_weights(values, variances, epsilon)
    gaps = values[best] - values[others] + epsilon
    noise = variances[best] / shares[best] + variances[others] / shares[others]
    time = 1.0 / float((gaps**2 / (2.0 * noise)).min())
    kl = (1.0 - 2.0 * delta) * math.log((1.0 - delta) / delta)
    return time * kl


def scenario_bounds(
    scenario: Mapping[str, Any], models: Sequence[str], epsilons: Sequence[float]
) -> list[tuple[float, float]]:
    """Per epsilon: the bound with the residual variance, and with that of the reward itself."""
    values, residual, plain = (
        np.array([scenario[name][model] for model in models])
        for name in ("values", "residual_variances", "variances")
    )
    return [
        (lower_bound(values, residual, epsilon), lower_bound(values, plain, epsilon))
        for epsilon in epsilons
    ]


def reward_variances(world: World) -> dict[str, dict[str, float]]:
    """Per model: `variances` of its rewards over all traffic, `residual_variances` around the best
    linear function of context and outputs plus a constant per model."""
    means = world.means.mean(axis=1)
    spread = world.means * (1.0 - world.means)
    if world.options.reward == "bounded":
        spread = spread / (1.0 + world.options.concentration)
    noise = (spread.mean(axis=1) + world.means.var(axis=1)).mean(axis=0)
    misfit = _misfit(world, means)
    return {
        "variances": dict(zip(world.models, (noise + means.var(axis=0)).tolist(), strict=True)),
        "residual_variances": dict(zip(world.models, (noise + misfit).tolist(), strict=True)),
    }


def _misfit(world: World, means: Floats) -> Floats:
    """(K,) mean square of what a linear scorer with model effects leaves of E[R | context, m]."""
    contexts, models = means.shape
    x = np.broadcast_to(world.benchmark.x[:, None], (contexts, models, world.benchmark.x.shape[1]))
    features = np.concatenate([x, world.outputs], axis=2)
    centred = (features - features.mean(axis=0)).reshape(contexts * models, -1)
    target = (means - means.mean(axis=0)).ravel()
    slopes, *_ = np.linalg.lstsq(centred, target, rcond=None)
    left = (target - centred @ slopes).reshape(contexts, models)
    return np.asarray((left**2).mean(axis=0))
