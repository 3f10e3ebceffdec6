"""A world: latent user types that move both the choice of model and the rating.

The construction is linear in every mean, so nothing clips and the truth is a finite sum:

- a request has a context c, uniform over the benchmark's, and a latent type u in {0, 1, 2, 3},
  uniform, with generosity g_u in {-1, -1/3, 1/3, 1};
- base(c, m) = alpha · outcome + (1 - alpha) · taste, both in [0, 1];
- E[R | c, m, u] = rating + (1 - 2 rating) · base(c, m) + rating · g_u, in [0, 1];
- P(routed = m | c, u) = softmax over m of confounding · 1.5 · g_u · b_m + routing_skill · z(c, m)
  + routing_context · s(c, m), b the standardized *badness* of the models (their values with the
  sign turned), z the base standardized within the context, s linear in the visible features.

Generous users pick worse models, so the mean reward per model in the log is misleading: with
enough confounding it turns the order round, while the causal values stay what they are.

Delays, fallbacks and drift are in files of their own; each keeps the truth a finite sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from equipoise.replay.benchmarks.base import Benchmark
from equipoise.replay.worlds.choice import GENEROSITY, View, choice, taste
from equipoise.replay.worlds.options import WorldError, WorldOptions
from equipoise.replay.worlds.outcomes import (
    Compliance,
    Delays,
    Drift,
    Rewards,
    present_rows,
    replayed_outputs,
)
from equipoise.store.batches import Floats, Ints, ObservationBatch, RequestBatch, SimulationBatch

START = 1_700_000_000.0
"""Seconds since the epoch of the first live request; one request arrives per second."""

_KEYS = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class Hidden:
    """What nobody sees of n requests.

    rows: (n,) context rows; types: (n,) latent types; drifted: (n,) share of the drift that has
    happened by then, None in a world without drift.
    """

    rows: Ints
    types: Ints
    drifted: Floats | None = None

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True)
class Truth:
    """values: (K,) causal value of each model; routing: of today's routing, all in reward units."""

    values: Floats
    routing: float


class World:
    """Traffic, outcomes and replays drawn from a benchmark, with exact truth.

    values: (K,) causal value of each model, in reward units: E[R | sent to the model], fallbacks
    included, before any drift. served_values: (K,) E[R | answered by the model], the same without
    fallbacks. routing_value: value of today's routing. `truth` gives them under drift.
    output_names, outputs (C, K, q): what the agent sees of a live output. types T = 4 latent types.
    delays, compliance, drift: what happens between a decision and its reward, and over time.

    Raises WorldError where the options ask for more output features to hide than there are, or for
    a fallback that is no model.
    """

    def __init__(self, benchmark: Benchmark, options: WorldOptions | None = None) -> None:
        options = WorldOptions() if options is None else options
        features = len(benchmark.output_names)
        if 0 < options.hidden_outputs >= features:
            raise WorldError(
                f"hidden_outputs is {options.hidden_outputs}, must be below {features},"
                f" the number of output features of {benchmark.name}"
            )
        self.benchmark = benchmark
        self.options = options
        self.models = benchmark.models
        self.context_names = benchmark.context_names
        seen = slice(benchmark.tasted)
        likes = taste(
            benchmark.outputs[..., seen], benchmark.output_names[seen], options.world_seed
        )
        self.base: Floats = options.alpha * benchmark.outcome + (1.0 - options.alpha) * likes
        """(C, K) in [0, 1]: the part of a reward that depends on the model."""
        shared = options.rating + (1.0 - 2.0 * options.rating) * self.base
        self.served_values: Floats = shared.mean(axis=0)
        self.compliance = Compliance(self.models, options)
        self.means: Floats = shared[:, None, :] + options.rating * GENEROSITY[:, None]
        """(C, T, K) E[R | context, type, do(model)]."""
        self.choice: Floats = choice(
            self.base, self.served_values, benchmark.x, self.models, options
        )
        """(C, T, K) P(routed = model | context, type)."""
        self.delays = Delays(self.served_values, options)
        self.drift = Drift(self.base, self.served_values, options)
        thresholds = np.cumsum(self.choice, axis=2)[:, :, :-1]
        flat = thresholds.reshape(-1, len(self.models) - 1)
        self._thresholds: Floats = np.ascontiguousarray(flat)  # `take` copies any other layout
        view = View(benchmark.outputs, self.base, options.hidden_outputs, options.warp)
        self.output_names = tuple(benchmark.output_names[i] for i in view.kept)
        self.outputs: Floats = view(benchmark.outputs)
        self._view = view
        self.rewards = Rewards(options)

    @cached_property
    def values(self) -> Floats:
        return self._start.values

    @cached_property
    def contrasts(self) -> Floats:
        """(K, K) values[i] - values[j]."""
        return self.values[:, None] - self.values[None, :]

    @cached_property
    def routing_value(self) -> float:
        """E[R] when every request is sent where it was routed, before any drift."""
        return self._start.routing

    @cached_property
    def naive_limit(self) -> Floats:
        """(K,) the mean observed reward per model of an endless log, NaN for a model never chosen.

        It is E[R | answered by m], or that among rewards that arrive in time where some do not.
        """
        in_time = self.delays.in_time() if self.delays.active else None
        seen, rewarded = self.rewards.observed(self.means, in_time)
        answered = self.compliance.answered(self.choice)
        weight = (answered * seen).sum(axis=(0, 1))
        total = (answered * rewarded).sum(axis=(0, 1))
        limit: Floats = np.full(len(weight), np.nan)
        np.divide(total, weight, out=limit, where=weight > 0)
        return limit

    def truth(self, drifted: float = 0.0) -> Truth:
        """Values where `drifted` in [0, 1] of the drift has happened.

        They are linear in it: at the mean of `drifted` over a set of requests they are the average
        of E[R | past, do(model)] over that set, the estimand of a stream that drifts.
        """
        if not self.drift.active or drifted == 0:
            return self._start
        start, end = self._start, self._end
        return Truth(
            (1.0 - drifted) * start.values + drifted * end.values,
            (1.0 - drifted) * start.routing + drifted * end.routing,
        )

    @cached_property
    def _start(self) -> Truth:
        routing = float((self.choice * self.means).sum(axis=2).mean())
        return Truth(*self.compliance.intended(self.served_values, routing))

    def answered_values(self, drifted: float = 0.0) -> Floats:
        """(K,) as `truth`, of the answers of each model alone: what families of estimators read
        from the draws that were carried out. Without fallbacks both are the same."""
        if not self.drift.active or drifted == 0:
            return self.served_values
        return (1.0 - drifted) * self.served_values + drifted * self._served_end.values

    @cached_property
    def _end(self) -> Truth:
        """When all of the drift has happened."""
        served = self._served_end
        return Truth(*self.compliance.intended(served.values, served.routing))

    @cached_property
    def _served_end(self) -> Truth:
        """The same of the models that answered."""
        means = self.drift.moved(self.means, slice(None), 1.0)
        contexts = self.drift.contexts(len(means))
        routing = float(contexts @ (self.choice * means).sum(axis=2).mean(axis=1))
        return Truth(contexts @ means.mean(axis=1), routing)

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
        drifted = None
        if self.drift.active:
            drifted = self.drift.share(np.arange(first, first + n))
            rows = self.drift.redraw(rows, drifted, rng)
            cell = rows * len(GENEROSITY) + types
        uniform = rng.random(n)
        routed = (uniform[:, None] >= self._thresholds.take(cell, axis=0)).sum(axis=1)
        batch = RequestBatch(
            unit=rng.integers(_KEYS, size=n),
            context=rows,
            at=np.arange(START + first, START + first + n),
            x=self.benchmark.x.take(rows, axis=0),
            routed=routed,
        )
        return batch, Hidden(rows, types, drifted)

    def observations(self, n: int, rng: np.random.Generator) -> ObservationBatch:
        """n rows of usage log that end before the first live request, served as routed.

        Every reward has come by now, or its outcome window has ended; `routed` is the model that
        answered.
        """
        batch, hidden = self.requests(n, rng, first=-n)
        model = batch.routed
        if self.compliance.active:
            model = self.compliance.serve(model, model, rng).model
        outputs, reward = self.serve(hidden, model, rng)
        if self.delays.active:
            reward[self.delays.draw(model, reward, rng) > self.delays.window] = np.nan
        return ObservationBatch(
            unit=batch.unit,
            at=batch.at,
            x=batch.x,
            routed=model,
            outputs=outputs,
            reward=reward,
        )

    def serve(self, hidden: Hidden, model: Ints, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """Outputs (n, q) and rewards (n,) of serving model (n,); NaN where none ever arrives."""
        reward = self.rewards.draw(self.expected(hidden, model), rng)
        return self.outputs[hidden.rows, model], reward

    def expected(self, hidden: Hidden, model: Ints) -> Floats:
        """(n,) E[R | context, type, do(model)] of hidden requests; model (n,) or one number."""
        expected: Floats = self.means[hidden.rows, hidden.types, model]
        if hidden.drifted is not None:
            expected = self.drift.moved(expected, model, hidden.drifted)
        return expected

    def harm(self, hidden: Hidden, routed: Ints, model: Ints) -> Floats:
        """(n,) expected reward lost by serving model instead of routed; negative where won."""
        return self.expected(hidden, routed) - self.expected(hidden, model)

    def cost(self, hidden: Hidden, model: Ints) -> Floats:
        """(n,) USD of serving model, NaN where unknown."""
        cost: Floats = self.benchmark.cost[hidden.rows, model]
        return cost
