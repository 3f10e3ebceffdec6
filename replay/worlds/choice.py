"""Who chooses which model: latent types, what a request is worth, and what anyone can see of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from equipoise.replay.worlds.features import generator
from equipoise.replay.worlds.options import WorldOptions
from equipoise.store.batches import Floats

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
    badness = -standardized(values)
    selection = options.confounding * STRENGTH * GENEROSITY[:, None] * badness
    logits = selection + options.routing_skill * standardized(base)[:, None, :]
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
    z = standardized(x.T)
    score = np.einsum("jc,mj->mc", z, np.array(directions).reshape(len(models), x.shape[1]))
    return np.ascontiguousarray(standardized(score).T)


def standardized(table: Floats) -> Floats:
    """Mean 0 and deviation 1 along the last axis; all 0 where it holds one number only."""
    centred = table - table.mean(axis=-1, keepdims=True)
    deviation = table.std(axis=-1, keepdims=True)
    scaled: Floats = np.zeros_like(centred)
    np.divide(centred, deviation, out=scaled, where=deviation > 1e-12)
    return scaled
