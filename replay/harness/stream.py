"""One replayed stream: the same Agent the daemon runs, fed by a world that knows the truth.

Time passes with the requests. At the end of a batch the agent gets, in this order: the responses
of the batch (outputs without rewards), the rewards that have come by then within their window,
the expiry of decisions whose window has ended, and the rewards that came too late, which it counts
and never uses. So whether a reward counts depends on its own delay alone, never on the batches.

The agent sees what production would see: contexts, what was routed, and the outcome of the model
that was served. Contexts, latent types, routing and the noise of rewards come from generators
that do not depend on the policy, so that policies are compared on common random numbers. The same
holds for what comes between a decision and its reward: fallbacks, lost answers and delays.

At a checkpoint a stream becomes rows of results: what every estimator family says, against the
truth. The truth is the causal value of every model by intention to treat; errors of a family's
values are against what each model's own answers are worth, since families count only draws that
were carried out (the same without fallbacks). In a world that drifts it is the running average of
E[R | past, do(model)] up to the checkpoint: for errors and regret over the decisions made so far
that may be certified, for coverage over those that the certified sums hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any, TypeVar

import numpy as np

from equipoise.agent.agent import Agent
from equipoise.agent.answers.recommendation import KEEP_ROUTING, compare, favoured
from equipoise.agent.config import (
    BudgetConfig,
    CertifyConfig,
    ExperimentConfig,
    ModelConfig,
    PolicyConfig,
    RewardConfig,
    SequenceName,
)
from equipoise.agent.estimators.base import Estimate
from equipoise.agent.estimators.ipw import naive_log
from equipoise.agent.features import FeatureSchema
from equipoise.replay.results.averages import NAIVE
from equipoise.replay.worlds import Truth, World, WorldOptions
from equipoise.replay.worlds.outcomes import Delays
from equipoise.store.batches import (
    DecisionBatch,
    Flags,
    Floats,
    OutcomeBatch,
    RequestBatch,
    select,
    take,
)
from equipoise.store.contract import Store
from equipoise.store.format.sql_rows import joined
from equipoise.store.memory import MemoryStore

GRID = (25, 50, 100, 200, 300, 500, 700, 1000, 1500, 2000, 3000, 4000)
"""EXP counts at which runs are compared; beyond it the last one doubles."""


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """One stream and how it is experimented on.

    obs: rows of usage log before the first decision. requests: live requests at the most; the
    stream ends earlier once the budget is spent. exp_rate: target share of requests randomized.
    budget: hard stop, in randomized requests; None for none. batch: requests decided together.
    refresh: requests between two refreshes. delta, epsilon: of the certified decision.
    sequence: the certified one, as in `CertifyConfig`.
    """

    requests: int
    exp_rate: float = 0.1
    budget: int | None = None
    obs: int = 5000
    batch: int = 100
    refresh: int = 200
    delta: float = 0.05
    epsilon: float = 0.0
    sequence: SequenceName = "bounded"
    world: WorldOptions = field(default_factory=WorldOptions)

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """EXP counts of the common grid that this stream will reach, from 0."""
        # Without a budget the count is random: nine tenths of its mean is reached by every run.
        reach = self.budget or int(0.9 * self.requests * self.exp_rate)
        grid = [0, *(count for count in GRID if count <= reach)]
        while grid[-1] >= GRID[-1] and grid[-1] * 2 <= reach:
            grid.append(grid[-1] * 2)
        if self.budget and grid[-1] != reach:
            grid.append(reach)
        return tuple(grid)


class Arrivals:
    """The rewards that one stream waits for."""

    def __init__(self, delays: Delays, rng: np.random.Generator) -> None:
        """rng: of the delays alone, so that they are common to all policies."""
        self._delays = delays
        self._rng = rng
        self._waiting: OutcomeBatch | None = None
        self._late: Flags = np.zeros(0, dtype=bool)

    def __len__(self) -> int:
        """Rewards that will come, but have not yet."""
        return len(self._late)

    def deliver(self, agent: Agent, outcomes: OutcomeBatch) -> None:
        """Send the batch that was just decided, and everything that is due by its last request.

        outcomes: with all their rewards, NaN where one never comes; at: of their requests, rising.
        """
        agent.observe(replace(outcomes, reward=np.full(len(outcomes), np.nan)))
        self._send_off(outcomes)
        now = float(outcomes.at[-1])
        assert self._waiting is not None
        arrived = self._waiting.at <= now
        in_time, late = select(self._waiting, arrived & ~self._late), arrived & self._late
        agent.observe(_by_arrival(in_time))
        agent.expire(now)
        agent.observe(_by_arrival(select(self._waiting, late)))
        self._waiting, self._late = select(self._waiting, ~arrived), self._late[~arrived]

    def _send_off(self, outcomes: OutcomeBatch) -> None:
        seconds = np.zeros(len(outcomes))
        if self._delays.active:
            seconds = self._delays.draw(outcomes.served, outcomes.reward, self._rng)
        later = replace(
            outcomes,
            outputs=np.full(outcomes.outputs.shape, np.nan),
            at=outcomes.at + seconds,
        )
        comes = ~np.isnan(outcomes.reward)
        coming = select(later, comes)
        if self._waiting is not None:
            coming = joined([self._waiting, coming])
        self._waiting = coming
        self._late = np.concatenate([self._late, seconds[comes] > self._delays.window])


def _by_arrival(outcomes: OutcomeBatch) -> OutcomeBatch:
    order = np.argsort(outcomes.at, kind="stable")
    return take(outcomes, order)


UNSPENDABLE = 1e9
"""USD"""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The agent at one point of the common EXP grid.

    target: the grid's count; requests, exp_used: so far, whether or not their rewards have come;
    spend: USD of the answers to randomized requests, NaN where no
    cost is known; harm: expected reward lost by serving them
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
        return _mean_known(shares), _mean_known(shares[: agent.answers.view().watermark])


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
        # Policies are compared at equal numbers of randomized requests, decided or not.
        budget=BudgetConfig(
            requests=settings.budget,
            money=UNSPENDABLE if priced else None,
            after_decision="continue",
        ),
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
    harm = 0.0
    # Where no cost is known, what was spent is unknown too.
    spend = 0.0 if np.isfinite(world.benchmark.cost).any() else np.nan
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


Traffic = TypeVar("Traffic")


def play(
    agent: Agent,
    traffic: Iterable[tuple[RequestBatch, Traffic]],
    answer: Callable[[Traffic, DecisionBatch], OutcomeBatch],
) -> Iterator[DecisionBatch]:
    """Let an agent decide batch after batch, see the outcomes at once and refresh; yield each
    time what it decided. Whoever has seen enough stops asking.

    traffic: requests, and what their outcomes come from. answer: outcomes of decisions.
    """
    for requests, source in traffic:
        decisions = agent.decide(requests)
        agent.observe(answer(source, decisions))
        agent.refresh(review=False)
        yield decisions


def as_assigned(decisions: DecisionBatch, outputs: Floats, reward: Floats) -> OutcomeBatch:
    """Outcomes of n decisions that were carried out at the first attempt; outputs are (n, q)."""
    return OutcomeBatch(
        number=decisions.number,
        served=decisions.model,
        attempt=np.ones(len(decisions), dtype=np.int64),
        delivered=np.ones(len(decisions), dtype=bool),
        outputs=outputs,
        reward=reward,
        at=decisions.at,
    )


def stream_key(seed: int) -> bytes:
    """The draw key of a replayed stream: a function of its seed, so that runs repeat."""
    return blake2b(f"replay key {seed}".encode(), digest_size=32).digest()


def _generator(seed: int, purpose: str) -> np.random.Generator:
    return np.random.default_rng([seed, *blake2b(purpose.encode(), digest_size=8).digest()])


def _mean_known(numbers: Floats) -> float:
    finite = numbers[~np.isnan(numbers)]
    return float(finite.mean()) if len(finite) else 0.0


DIRECT = "direct-method"
"""The first half of `doubly-robust`, the scorer without its correction, as a row of its own."""


class Certificate:
    """What the certified sums say over one stream: widths, misses, the first decision."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.ever_miscovered = False
        self.decided_at = np.nan
        self.decided_right: bool | None = None

    def columns(self, checkpoint: Checkpoint) -> dict[str, Any]:
        values = self._world.truth(checkpoint.drifted_closed).values
        agent, models = checkpoint.agent, len(values)
        # All ordered pairs at once, today's routing included: they cover together with
        # probability 1 - delta.
        lower = agent.answers.certified().contrasts[:models, :models]
        truth = values[:, None] - values[None, :]
        pairs = np.triu_indices(models, 1)
        covered = bool((lower <= truth + 1e-12).all())
        self.ever_miscovered |= not covered
        winner = agent.answers.certified_winner()
        if winner is not None and np.isnan(self.decided_at):
            self.decided_at = float(checkpoint.exp_used)
            value = values[agent.models.index(winner)]
            best = values.max()
            self.decided_right = bool(value >= best - agent.config.policy.epsilon)
        return {
            "width": float((-lower - lower.T)[pairs].mean() / 2),
            "covered": covered,
            "ever_miscovered": self.ever_miscovered,
            "decided_at": self.decided_at,
            "decided_right": self.decided_right,
        }


def result_rows(
    world: World, checkpoint: Checkpoint, families: Iterable[str], certificate: Certificate
) -> Iterator[dict[str, Any]]:
    """One row per family, and one for the naive comparison of the log.

    families: names of estimator families, and `direct-method` where `doubly-robust` is among them.
    `values` holds the family's value of every model, in the order of the benchmark's models. In a
    world that drifts `truth` holds the true ones, and `regret_now` is the regret against the values
    that the next request will meet.
    """
    agent = checkpoint.agent
    routing = agent.answers.routing()
    estimates: dict[str, Estimate] = {NAIVE: naive_log(agent.answers.view().moments)}
    names = list(families)
    estimates.update(agent.answers.estimates(name for name in names if name != DIRECT))
    if DIRECT in names:
        estimates[DIRECT] = direct_method(estimates["doubly-robust"])
    truth = world.truth(checkpoint.drifted)
    shared = {
        "checkpoint": checkpoint.target,
        "requests": checkpoint.requests,
        "exp_used": checkpoint.exp_used,
        "spend": checkpoint.spend,
        "harm": checkpoint.harm,
        **certificate.columns(checkpoint),
    }
    for name, estimate in estimates.items():
        comparison = compare(agent.models, estimate, routing)
        model = comparison.top[0] if comparison.top else None
        action = favoured(comparison, routing[0])
        regret = simple_regret(truth, model)
        best = float(truth.values.max())
        regret_action = regret
        if action == KEEP_ROUTING:
            regret_action = best - truth.routing
        row = {
            "estimator": name,
            "values": estimate.values.tolist(),
            "recommended": None if model is None else agent.models[model],
            "action": action,
            "regret": regret,
            "regret_action": regret_action + max(truth.routing - best, 0.0),
            **value_errors(estimate.values, world.answered_values(checkpoint.drifted)),
            **shared,
        }
        if world.drift.active:
            now = world.truth(float(world.drift.share(np.array([checkpoint.requests]))[0]))
            row["truth"] = truth.values.tolist()
            row["regret_now"] = simple_regret(now, model)
        yield row


def direct_method(estimate: Estimate) -> Estimate:
    """The direct-method half of an estimate of `doubly-robust`; its errors are not estimated."""
    unknown = np.full(len(estimate.values), np.nan)
    values = estimate.diagnostics.get("direct", unknown)
    return Estimate(DIRECT, values, np.full((len(unknown), len(unknown)), np.nan))


def simple_regret(truth: Truth, model: int | None) -> float:
    """What is lost by serving this model everywhere; None where nothing is known."""
    best = float(truth.values.max())
    if model is None:
        # A coin has to decide, and its expected loss is the mean one.
        return best - float(truth.values.mean())
    return best - float(truth.values[model])


def value_errors(values: Floats, truth: Floats) -> dict[str, float]:
    """bias, rmse over models; rmse_contrast over pairs of models. NaN where a value is unknown."""
    error = values - truth
    contrasts = error[:, None] - error[None, :]
    pairs = np.triu_indices(len(error), 1)
    return {
        "bias": float(error.mean()),
        "rmse": float(np.sqrt((error**2).mean())),
        "rmse_contrast": float(np.sqrt((contrasts[pairs] ** 2).mean())),
    }
