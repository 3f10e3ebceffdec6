"""One replayed stream: the same Agent the daemon runs, fed by a world that knows the truth.

The agent sees what production would see: contexts, what was routed, and the outcome of the model
that was served. Contexts, latent types, routing and the noise of rewards come from generators
that do not depend on the policy, so that policies are compared on common random numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from equipoise.agent.agent import Agent
from equipoise.agent.config import (
    BudgetConfig,
    ExperimentConfig,
    ModelConfig,
    PolicyConfig,
    RewardConfig,
)
from equipoise.agent.features import FeatureSchema
from equipoise.agent.intake import select
from equipoise.replay.settings import StreamSettings
from equipoise.replay.worlds import World
from equipoise.store.batches import OutcomeBatch
from equipoise.store.contract import Store
from equipoise.store.memory import MemoryStore

WINDOW = 1.0
"""Seconds of stream time after which a reward that has not come counts as missing: in these
worlds a reward arrives with its batch or never."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The agent at one point of the common EXP grid.

    target: the grid's count; requests, exp_used: so far; spend: USD of randomized requests;
    harm: expected reward lost by serving them the assigned instead of the routed model.
    """

    target: int
    requests: int
    exp_used: int
    spend: float
    harm: float
    agent: Agent


def experiment(
    world: World, settings: StreamSettings, gate: str, assignment: str, estimator: str
) -> ExperimentConfig:
    """The configuration under which a replayed agent runs."""
    benchmark = world.benchmark
    return ExperimentConfig(
        name=f"replay-{benchmark.name}",
        models=[ModelConfig(name=name) for name in benchmark.models],
        reward=RewardConfig(low=0.0, high=1.0, window=WINDOW),
        features=FeatureSchema.vectors(benchmark.context_names, world.output_names),
        policy=PolicyConfig(
            gate=gate,
            assignment=assignment,
            rate=settings.exp_rate,
            estimator=estimator,
            delta=settings.delta,
            epsilon=settings.epsilon,
        ),
        budget=BudgetConfig(requests=settings.budget),
    )


def run_stream(
    world: World,
    config: ExperimentConfig,
    settings: StreamSettings,
    seed: int,
    store: Store | None = None,
) -> Iterator[Checkpoint]:
    """Run one stream and yield at every checkpoint. The agent is live: read it at once."""
    hidden_rng, reward_rng, log_rng = (_generator(seed, name) for name in ("who", "what", "log"))
    agent = Agent(config, store or MemoryStore(), stream_key(seed))
    agent.simulate(world.simulations())
    if settings.obs:
        log = world.observations(settings.obs, log_rng)
        # A row of a log without its reward says nothing; a log holds no such rows.
        agent.ingest(select(log, ~np.isnan(log.reward)))
    agent.refresh()
    targets = list(settings.checkpoints)
    requests = exp_used = 0
    spend = harm = 0.0
    while True:
        while targets and exp_used >= targets[0]:
            yield Checkpoint(targets.pop(0), requests, exp_used, spend, harm, agent)
        if not targets or requests >= settings.requests:
            break
        count = min(settings.batch, settings.requests - requests)
        batch, hidden = world.requests(count, hidden_rng, first=requests)
        decisions = agent.decide(batch)
        outputs, reward = world.serve(hidden, decisions.model, reward_rng)
        agent.observe(
            OutcomeBatch(
                number=decisions.number,
                served=decisions.model,
                attempt=np.ones(count, dtype=np.int64),
                delivered=np.ones(count, dtype=bool),
                outputs=outputs,
                reward=reward,
                at=decisions.at,
            )
        )
        if np.isnan(reward).any():
            agent.expire(float(decisions.at[-1]) + 2 * WINDOW)
        picked = decisions.randomized
        exp_used += int(np.count_nonzero(picked))
        spend += float(np.nansum(world.cost(hidden, decisions.model)[picked]))
        harm += float(world.harm(hidden, decisions.routed, decisions.model)[picked].sum())
        before, requests = requests, requests + count
        if before // settings.refresh != requests // settings.refresh:
            agent.refresh()


def stream_key(seed: int) -> bytes:
    """The draw key of a replayed stream: a function of its seed, so that runs repeat."""
    return blake2b(f"replay key {seed}".encode(), digest_size=32).digest()


def _generator(seed: int, purpose: str) -> np.random.Generator:
    return np.random.default_rng([seed, *blake2b(purpose.encode(), digest_size=8).digest()])
