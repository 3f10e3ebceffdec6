"""Who chooses which model: latent types, what a request is worth, and what an agent gets to see."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from equipoise.replay.worlds.options import WorldOptions
from equipoise.store.batches import Floats

_TASTE_RANGE = (0.005, 0.995)


def generator(seed: int, purpose: str, name: str = "") -> np.random.Generator:
    """A generator of its own per purpose and name, so that reordering names changes nothing."""
    digest = blake2b(f"{purpose}\0{name}".encode(), digest_size=16).digest()
    return np.random.default_rng([seed, int.from_bytes(digest, "little")])


def standardized(table: Floats) -> Floats:
    """A (C, K, q) table with mean 0 and deviation 1 per feature; constant features become 0."""
    mean, deviation = table.mean(axis=(0, 1)), table.std(axis=(0, 1))
    # The deviation of a constant is not always exactly 0 in floating point.
    varies = deviation > 1e-12 * np.maximum(np.abs(mean), 1.0)
    return np.where(varies, (table - mean) / np.where(varies, deviation, 1.0), 0.0)


def taste(outputs: Floats, names: Sequence[str], seed: int) -> Floats:
    """(C, K) in [0, 1]: what a reward owes to visible structure, whatever the task's outcome.

    A linear function of the standardized output features with standard normal weights, one per
    feature name, scaled by its 0.5% and 99.5% quantiles and clipped. Without any feature that
    varies it is 0.5.
    """
    weights = np.array([generator(seed, "taste", name).standard_normal() for name in names])
    score = np.einsum("cmq,q->cm", standardized(outputs), weights)
    low, high = np.quantile(score, _TASTE_RANGE)
    if high <= low:
        return np.full(score.shape, 0.5)
    clipped: Floats = np.clip((score - low) / (high - low), 0.0, 1.0)
    return clipped


def telling_order(outputs: Floats, worth: Floats) -> list[int]:
    """Positions of the q output features by absolute correlation with worth (C, K), falling."""
    z = standardized(outputs)
    covariance = np.einsum("cmq,cm->q", z, worth - worth.mean())
    return [int(i) for i in np.argsort(-np.abs(covariance), kind="stable")]


class View:
    """What an agent sees of an output: some features withheld, the others bent.

    The same view applies to live outputs and to replayed ones; its location and scale are those
    of the live table, so that a faulty simulator stays visible.
    """

    def __init__(self, outputs: Floats, worth: Floats, hidden: int, warp: float) -> None:
        """outputs (C, K, q) of the live models, worth (C, K), hidden < q features to withhold."""
        withheld = telling_order(outputs, worth)[:hidden]
        self.kept = [i for i in range(outputs.shape[2]) if i not in withheld]
        visible = outputs[:, :, self.kept]
        self._mean = visible.mean(axis=(0, 1))
        deviation = visible.std(axis=(0, 1))
        self._deviation = np.where(deviation > 0, deviation, 1.0)
        self._warp = warp

    def __call__(self, outputs: Floats) -> Floats:
        """(C, K, q) to (C, K, q - hidden)."""
        visible = outputs[:, :, self.kept]
        if self._warp == 0:
            return np.ascontiguousarray(visible)
        z = (visible - self._mean) / self._deviation
        bent: Floats = self._mean + self._deviation * np.tanh(self._warp * z) / self._warp
        return bent


GENEROSITY = np.array([-1.0, -1.0 / 3.0, 1.0 / 3.0, 1.0])
"""(T,) generosity of the latent types."""

STRENGTH = 1.5
"""Logits per unit of confounding, generosity and standardized badness."""


def choice(
    base: Floats, values: Floats, x: Floats, models: Sequence[str], options: WorldOptions
) -> Floats:
    """(C, T, K) P(routed = m | context, type), a softmax over the models of the sum of

    - confounding · 1.5 · generosity · badness of the model, from values (K,);
    - routing_skill · worth of the model on the request, from base (C, K): a choice that knows what
      nobody can see beforehand, so that no adjustment for the context removes it;
    - routing_context · what draws this context to this model, from x (C, d): a choice that only
      follows what the agent sees too.
    """
    badness = -_standardized(values)
    selection = options.confounding * STRENGTH * GENEROSITY[:, None] * badness
    logits = selection + options.routing_skill * _standardized(base)[:, None, :]
    if options.routing_context:
        drawn = attraction(x, models, options.world_seed)
        logits += options.routing_context * drawn[:, None, :]
    logits -= logits.max(axis=2, keepdims=True)
    weights = np.exp(logits)
    shares: Floats = weights / weights.sum(axis=2, keepdims=True)
    return shares


def attraction(x: Floats, models: Sequence[str], seed: int) -> Floats:
    """(C, K) how far visible features x (C, d) draw each context to each model.

    A linear function of x with standard normal weights, a set per model name; mean 0 and
    deviation 1 over the contexts. All 0 where x does not vary.
    """
    directions = [
        generator(seed, "attraction", name).standard_normal(x.shape[1]) for name in models
    ]
    z = _standardized(x.T)
    score = np.einsum("jc,mj->mc", z, np.array(directions).reshape(len(models), x.shape[1]))
    return np.ascontiguousarray(_standardized(score).T)


def _standardized(table: Floats) -> Floats:
    """Mean 0 and deviation 1 along the last axis; all 0 where it holds one number only."""
    centred = table - table.mean(axis=-1, keepdims=True)
    deviation = table.std(axis=-1, keepdims=True)
    scaled: Floats = np.zeros_like(centred)
    np.divide(centred, deviation, out=scaled, where=deviation > 1e-12)
    return scaled
