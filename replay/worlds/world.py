"""A world: latent user types that move both the choice of model and the rating.

The construction is linear in every mean, so nothing clips and the truth is a finite sum:

- a request has a context c, uniform over the benchmark's, and a latent type u in {0, 1, 2, 3},
  uniform, with generosity g_u in {-1, -1/3, 1/3, 1};
- base(c, m) = alpha · outcome + (1 - alpha) · taste, both in [0, 1];
- E[R | c, m, u] = rating + (1 - 2 rating) · base(c, m) + rating · g_u, in [0, 1];
- P(routed = m | c, u) = softmax over m of confounding · 1.5 · g_u · b_m + routing_skill · z(c, m),
  b the standardized *badness* of the models (their values with the sign turned), z the base
  standardized within the context.

Generous users pick worse models, so the mean reward per model in the log is misleading: with
enough confounding it turns the order round, while the causal values stay what they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from equipoise.replay.benchmarks.base import Benchmark
from equipoise.replay.worlds.features import View, taste
from equipoise.replay.worlds.options import WorldOptions
from equipoise.replay.worlds.rewards import Rewards
from equipoise.replay.worlds.simulator import present_rows, replayed_outputs
from equipoise.store.batches import (
    Floats,
    Ints,
    ObservationBatch,
    RequestBatch,
    SimulationBatch,
)

GENEROSITY = np.array([-1.0, -1.0 / 3.0, 1.0 / 3.0, 1.0])
"""(T,) generosity of the latent types."""

STRENGTH = 1.5
"""Logits per unit of confounding, generosity and standardized badness."""

START = 1_700_000_000.0
"""Seconds since the epoch of the first live request; one request arrives per second."""

_KEYS = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class Hidden:
    """What nobody sees of n requests. rows: (n,) context rows; types: (n,) latent types."""

    rows: Ints
    types: Ints

    def __len__(self) -> int:
        return len(self.rows)


class World:
    """Traffic, outcomes and replays drawn from a benchmark, with exact truth.

    values: (K,) causal value of each model, E[R | do(model)], in reward units.
    routing_value: value of today's routing. output_names, outputs (C, K, q): what the agent sees
    of a live output. types T = 4 latent types.

    Raises ValueError where the options ask for more output features to hide than there are.
    """

    def __init__(self, benchmark: Benchmark, options: WorldOptions | None = None) -> None:
        options = WorldOptions() if options is None else options
        features = len(benchmark.output_names)
        if 0 < options.hidden_outputs >= features:
            raise ValueError(
                f"hidden_outputs is {options.hidden_outputs}, must be below {features},"
                f" the number of output features of {benchmark.name}"
            )
        self.benchmark = benchmark
        self.options = options
        self.models = benchmark.models
        self.context_names = benchmark.context_names
        likes = taste(benchmark.outputs, benchmark.output_names, options.world_seed)
        self.base: Floats = options.alpha * benchmark.outcome + (1.0 - options.alpha) * likes
        """(C, K) in [0, 1]: the part of a reward that depends on the model."""
        shared = options.rating + (1.0 - 2.0 * options.rating) * self.base
        self.values: Floats = shared.mean(axis=0)
        self.means: Floats = shared[:, None, :] + options.rating * GENEROSITY[:, None]
        """(C, T, K) E[R | context, type, do(model)]."""
        self.choice: Floats = _choice(self.base, self.values, options)
        """(C, T, K) P(routed = model | context, type)."""
        thresholds = np.cumsum(self.choice, axis=2)[:, :, :-1]
        flat = thresholds.reshape(-1, len(self.models) - 1)
        self._thresholds: Floats = np.ascontiguousarray(flat)  # `take` copies any other layout
        view = View(benchmark.outputs, self.base, options.hidden_outputs, options.warp)
        self.output_names = tuple(benchmark.output_names[i] for i in view.kept)
        self.outputs: Floats = view(benchmark.outputs)
        self._view = view
        self._rewards = Rewards(options)

    @cached_property
    def contrasts(self) -> Floats:
        """(K, K) values[i] - values[j]."""
        return self.values[:, None] - self.values[None, :]

    @cached_property
    def routing_value(self) -> float:
        """E[R] when every request is served as it was routed."""
        return float((self.choice * self.means).sum(axis=2).mean())

    @cached_property
    def naive_limit(self) -> Floats:
        """(K,) the mean observed reward per model of an endless log, NaN for a model never chosen.

        It is E[R | routed = m], or that among rewards that arrive where some are missing.
        """
        seen, rewarded = self._rewards.observed(self.means)
        weight = (self.choice * seen).sum(axis=(0, 1))
        total = (self.choice * rewarded).sum(axis=(0, 1))
        limit: Floats = np.full(len(weight), np.nan)
        np.divide(total, weight, out=limit, where=weight > 0)
        return limit

    def simulations(self) -> SimulationBatch:
        """Every replay the simulator has, contexts in order, under the simulator's faults."""
        replayed = replayed_outputs(self.benchmark.outputs, self.models, self.options)
        present = present_rows(self.base, self.models, self.options)
        rows, model = np.nonzero(present)
        return SimulationBatch(
            context=rows.astype(np.int64),
            model=model.astype(np.int64),
            x=self.benchmark.x[rows],
            outputs=self._view(replayed)[rows, model],
            cost=self.benchmark.cost[rows, model],
            at=np.full(len(rows), START),
            context_id=[self.benchmark.context_ids[row] for row in rows.tolist()],
        )

    def requests(
        self, n: int, rng: np.random.Generator, first: int = 0
    ) -> tuple[RequestBatch, Hidden]:
        """n requests and what is hidden of them. first: how many requests came before.

        The context key is the row of the context; every request is a unit of its own.
        """
        # One draw for the pair: drawing integers is the dearest step here.
        cell = rng.integers(len(self._thresholds), size=n)
        rows, types = np.divmod(cell, len(GENEROSITY))
        uniform = rng.random(n)
        routed = (uniform[:, None] >= self._thresholds.take(cell, axis=0)).sum(axis=1)
        batch = RequestBatch(
            unit=rng.integers(_KEYS, size=n),
            context=rows,
            at=np.arange(START + first, START + first + n),
            x=self.benchmark.x.take(rows, axis=0),
            routed=routed,
        )
        return batch, Hidden(rows, types)

    def observations(self, n: int, rng: np.random.Generator) -> ObservationBatch:
        """n rows of usage log that end before the first live request, served as routed."""
        batch, hidden = self.requests(n, rng, first=-n)
        outputs, reward = self.serve(hidden, batch.routed, rng)
        return ObservationBatch(
            unit=batch.unit,
            at=batch.at,
            x=batch.x,
            routed=batch.routed,
            outputs=outputs,
            reward=reward,
        )

    def serve(self, hidden: Hidden, model: Ints, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """Outputs (n, q) and rewards (n,) of serving model (n,); NaN where none ever arrives."""
        reward = self._rewards.draw(self.expected(hidden, model), rng)
        return self.outputs[hidden.rows, model], reward

    def expected(self, hidden: Hidden, model: Ints) -> Floats:
        """(n,) E[R | context, type, do(model)] of hidden requests; model (n,) or one number."""
        expected: Floats = self.means[hidden.rows, hidden.types, model]
        return expected

    def harm(self, hidden: Hidden, routed: Ints, model: Ints) -> Floats:
        """(n,) expected reward lost by serving model instead of routed; negative where won."""
        return self.expected(hidden, routed) - self.expected(hidden, model)

    def cost(self, hidden: Hidden, model: Ints) -> Floats:
        """(n,) USD of serving model, NaN where unknown."""
        cost: Floats = self.benchmark.cost[hidden.rows, model]
        return cost


def _choice(base: Floats, values: Floats, options: WorldOptions) -> Floats:
    """(C, T, K) choice probabilities; see the head of this file."""
    badness = -_standardized(values)
    selection = options.confounding * STRENGTH * GENEROSITY[:, None] * badness
    logits = selection + options.routing_skill * _standardized(base)[:, None, :]
    logits -= logits.max(axis=2, keepdims=True)
    weights = np.exp(logits)
    choice: Floats = weights / weights.sum(axis=2, keepdims=True)
    return choice


def _standardized(table: Floats) -> Floats:
    """Mean 0 and deviation 1 along the models (last axis); all 0 where the models are equal."""
    centred = table - table.mean(axis=-1, keepdims=True)
    deviation = table.std(axis=-1, keepdims=True)
    scaled: Floats = np.zeros_like(centred)
    np.divide(centred, deviation, out=scaled, where=deviation > 1e-12)
    return scaled
