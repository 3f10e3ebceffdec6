"""One replayed stream: the same Agent the daemon runs, fed by a world that knows the truth.

The agent sees what production would see: contexts, what was routed, and the outcome of the model
that was served. Contexts, latent types, routing and the noise of rewards come from generators
that do not depend on the policy, so that policies are compared on common random numbers. The same
holds for what comes between a decision and its reward: fallbacks, lost answers and delays.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from equipoise.agent.agent import Agent
from equipoise.agent.config import (
    BudgetConfig,
    CertifyConfig,
    ExperimentConfig,
    ModelConfig,
    PolicyConfig,
    RewardConfig,
)
from equipoise.agent.features import FeatureSchema
from equipoise.replay.arrivals import Arrivals
from equipoise.replay.settings import StreamSettings
from equipoise.replay.worlds import World
from equipoise.store.batches import DecisionBatch, Floats, OutcomeBatch
from equipoise.store.contract import Store
from equipoise.store.memory import MemoryStore
from equipoise.store.slicing import select

UNSPENDABLE = 1e9
"""USD"""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The agent at one point of the common EXP grid.

    target: the grid's count; requests, exp_used: so far, whether or not their rewards have come;
    spend: USD of the answers to randomized requests; harm: expected reward lost by serving them
    the assigned instead of the routed model, where the assignment was carried out.
    drifted: share of the world's drift that has happened, averaged over the decisions that may be
    certified; drifted_closed: over those of them that the certified sums hold by now.
    """

    target: int
    requests: int
    exp_used: int
    spend: float
    harm: float
    agent: Agent
    drifted: float = 0.0
    drifted_closed: float = 0.0


class DriftClock:
    """How much of a world's drift fell on the decisions that certified sums may hold."""

    def __init__(self, world: World, rate_min: float) -> None:
        self._drift = world.drift
        self._rate_min = rate_min
        self._shares: list[Floats] = []

    def record(self, decisions: DecisionBatch) -> None:
        """Take in n decisions; call it for every batch, in order."""
        if self._drift.active:
            share = self._drift.share(decisions.number)
            self._shares.append(np.where(decisions.rate >= self._rate_min, share, np.nan))

    def read(self, agent: Agent) -> tuple[float, float]:
        """Mean share over all such decisions, and over those before the agent's watermark."""
        if not self._shares:
            return 0.0, 0.0
        shares = np.concatenate(self._shares)
        return _mean_known(shares), _mean_known(shares[: agent.view().watermark])


def experiment(
    world: World,
    settings: StreamSettings,
    gate: str,
    assignment: str,
    estimator: str,
    priced: bool = False,
) -> ExperimentConfig:
    """The configuration under which a replayed agent runs.

    priced: rules weigh prices, as under a budget in money that is never spent.
    """
    benchmark = world.benchmark
    return ExperimentConfig(
        name=f"replay-{benchmark.name}",
        models=[ModelConfig(name=name) for name in benchmark.models],
        reward=RewardConfig(low=0.0, high=1.0, window=world.delays.window),
        features=FeatureSchema.vectors(benchmark.context_names, world.output_names),
        policy=PolicyConfig(
            gate=gate,
            assignment=assignment,
            rate=settings.exp_rate,
            estimator=estimator,
            delta=settings.delta,
            epsilon=settings.epsilon,
        ),
        budget=BudgetConfig(requests=settings.budget, money=UNSPENDABLE if priced else None),
        certify=CertifyConfig(sequence=settings.sequence),
    )


def run_stream(
    world: World,
    config: ExperimentConfig,
    settings: StreamSettings,
    seed: int,
    store: Store | None = None,
) -> Iterator[Checkpoint]:
    """Run one stream and yield at every checkpoint. The agent is live: read it at once."""
    hidden_rng, reward_rng, log_rng, service_rng, delay_rng = (
        _generator(seed, name) for name in ("who", "what", "log", "how", "when")
    )
    agent = Agent(config, store or MemoryStore(), stream_key(seed))
    agent.simulate(world.simulations())
    if settings.obs:
        log = world.observations(settings.obs, log_rng)
        # A row of a log without its reward says nothing; a log holds no such rows.
        agent.ingest(select(log, ~np.isnan(log.reward)))
    agent.refresh(review=False)
    arrivals = Arrivals(world.delays, delay_rng) if world.delays.timed else None
    clock = DriftClock(world, config.limits.rate_min)
    targets = list(settings.checkpoints)
    requests = exp_used = 0
    spend = harm = 0.0
    while True:
        while targets and exp_used >= targets[0]:
            target, drifted = targets.pop(0), clock.read(agent)
            yield Checkpoint(target, requests, exp_used, spend, harm, agent, *drifted)
        if not targets or requests >= settings.requests:
            break
        count = min(settings.batch, settings.requests - requests)
        batch, hidden = world.requests(count, hidden_rng, first=requests)
        decisions = agent.decide(batch)
        clock.record(decisions)
        service = world.compliance.serve(decisions.model, decisions.routed, service_rng)
        outputs, reward = world.serve(hidden, service.model, reward_rng)
        outcomes = OutcomeBatch(
            number=decisions.number,
            served=service.model,
            attempt=service.attempt,
            delivered=service.delivered,
            outputs=outputs,
            reward=reward,
            at=decisions.at,
        )
        if arrivals is not None:
            arrivals.deliver(agent, outcomes)
        else:
            agent.observe(outcomes)
            if np.isnan(reward).any():
                # A reward comes with its batch or never: there is nothing to wait for.
                agent.expire(float(decisions.at[-1]) + 2 * world.delays.window)
        picked = decisions.randomized
        exp_used += int(np.count_nonzero(picked))
        spend += float(np.nansum(world.cost(hidden, service.model)[picked]))
        carried_out = picked & service.as_assigned
        harm += float(world.harm(hidden, decisions.routed, decisions.model)[carried_out].sum())
        before, requests = requests, requests + count
        if before // settings.refresh != requests // settings.refresh:
            agent.refresh(review=False)


def stream_key(seed: int) -> bytes:
    """The draw key of a replayed stream: a function of its seed, so that runs repeat."""
    return blake2b(f"replay key {seed}".encode(), digest_size=32).digest()


def _generator(seed: int, purpose: str) -> np.random.Generator:
    return np.random.default_rng([seed, *blake2b(purpose.encode(), digest_size=8).digest()])


def _mean_known(numbers: Floats) -> float:
    known = numbers[~np.isnan(numbers)]
    return float(known.mean()) if len(known) else 0.0
