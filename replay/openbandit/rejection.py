"""Replay of our allocation policies on a log, by rejection (Li, Chu, Langford, Wang 2011).

The Agent of the daemon decides every logged row, in an order drawn by the seed. Where its item is
the logged one the row is kept and the agent sees the click; any other row stays an open decision,
from which it learns nothing. On a uniform log every row is kept with probability 1/K whatever the
user, the position and the click: the kept rows are what the policy would have met live.

On a log that is not uniform that no longer holds, and thinning the rows until it does would keep
n * min p of them, one or two of 10,000. There a kept row counts 1/p in the click rate, which is
then right on average for the rules that were in force; but the rules themselves grew on a sample
in which items the log rarely shows come up rarely.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from equipoise.agent.agent import Agent
from equipoise.agent.config import ExperimentConfig, ModelConfig, PolicyConfig, RewardConfig
from equipoise.agent.features import FeatureSchema
from equipoise.policies.registry import policy
from equipoise.replay.harness.stream import stream_key
from equipoise.replay.openbandit.log import LoggedFeedback
from equipoise.replay.openbandit.values import Value, weighted_rate
from equipoise.store.batches import Flags, Floats, Ints, OutcomeBatch, RequestBatch, SimulationBatch
from equipoise.store.memory import MemoryStore

STEERING = "hierarchical"
"""The family whose estimates policies look at: clicks are rare, so items must be pooled."""

KEPT_PER_REFRESH = 10
"""Rows that are kept, on average, between two refreshes of the rule."""


@dataclass(frozen=True, slots=True, eq=False)
class Replayed:
    """One replay of a policy. All arrays are over the n rows of the log, in its own order.

    kept: (n,) where the agent chose the logged item. chosen: (n,) the probability with which the
    agent then in force chooses the logged item. final: (n, K) the last rule at every row.
    """

    policy: str
    seed: int
    kept: Flags
    chosen: Floats
    final: Floats


def replay_policy(log: LoggedFeedback, name: str, seed: int) -> Replayed:
    """Replay a policy once. The seed fixes the order of the rows and the agent's draws.

    Raises ConfigError where the log has more items than the agent takes models.
    """
    x = agent_context(log)
    agent = Agent(configuration(log, name), MemoryStore(), stream_key(seed))
    agent.simulate(_contexts(x, len(log.items)))
    agent.refresh(review=False)
    order = np.random.default_rng([seed, 0x0B]).permutation(len(log))
    kept, chosen = np.zeros(len(log), dtype=bool), np.empty(len(log))
    # On a uniform log 1/K of the rows is kept; elsewhere it depends on the policy, as it may.
    batch = KEPT_PER_REFRESH * len(log.items)
    for start in range(0, len(log), batch):
        rows = order[start : start + batch]
        requests = RequestBatch(
            unit=rows,
            context=np.full(len(rows), -1),
            at=start + np.arange(len(rows), dtype=np.float64),
            x=x[rows],
            routed=log.item[rows],
        )
        decisions = agent.decide(requests)
        same = decisions.model == log.item[rows]
        kept[rows] = same
        chosen[rows] = decisions.probabilities[np.arange(len(rows)), log.item[rows]]
        agent.observe(_clicks(decisions.number[same], log, rows[same]))
        agent.refresh(review=False)
    _, final = agent.rule.allocation.allocate(x)
    return Replayed(name, seed, kept, chosen, np.array(final))


def configuration(log: LoggedFeedback, name: str) -> ExperimentConfig:
    """The agent's configuration: every item a model, every request randomized."""
    return ExperimentConfig(
        name=f"openbandit-{log.behaviour}",
        models=[ModelConfig(name=item) for item in log.items],
        reward=RewardConfig(low=0.0, high=1.0),
        features=FeatureSchema.vectors(context_names(log), ()),
        policy=PolicyConfig(
            gate="fixed-rate",
            assignment=policy(name).assignment.name,
            rate=1.0,
            rate_min=1.0,
            estimator=STEERING,
        ),
    )


def context_names(log: LoggedFeedback) -> tuple[str, ...]:
    """Names of the columns of `agent_context`."""
    return (*log.x_names, *(f"position-{name}" for name in log.positions[1:]))


def agent_context(log: LoggedFeedback) -> Floats:
    """(n, d + P - 1) what the agent sees of a row: the user's features and the position."""
    return np.hstack([log.x, np.eye(len(log.positions))[log.position][:, 1:]])


def kept_rate(log: LoggedFeedback, kept: Sequence[Flags]) -> Value:
    """The click rate of the rows that replays of one policy kept, (n,) each, pooled.

    A row that many replays kept counts many times, and its influence with it: replays of one log
    are no independent samples of the world, so that more seeds cannot hide how small the log is.
    """
    weight = np.sum(kept, axis=0).astype(np.float64)
    return weighted_rate(weight if log.is_uniform else weight / log.propensity, log.reward)


def path_rate(log: LoggedFeedback, chosen: Sequence[Floats]) -> Value:
    """What keeping rows by chance estimates, from all rows: each weighs pi(a|x) / p(a).

    pi: `Replayed.chosen` of each replay, (n,) each, under the rule then in force. The same mean
    value of the rules along the path as `kept_rate`, without the noise of the agent's draws.
    """
    return weighted_rate(np.sum(chosen, axis=0) / log.propensity, log.reward)


def held_out(log: LoggedFeedback, replay: Replayed) -> tuple[LoggedFeedback, Ints]:
    """The rows a replay did not keep, as a log of its own, and their places in the log.

    The final rule never saw their clicks, so its value can be estimated on them. Not being kept
    says something about the item: a row with item a stays with probability 1 - pi(a|x) under the
    rule then in force, so its propensity is p(a) (1 - pi(a|x)) over the share of rows that stay,
    which is exactly 1 - 1/K on a uniform log and is estimated elsewhere.
    """
    rows = np.flatnonzero(~replay.kept)
    stays = 1.0 - (1.0 / len(log.items) if log.is_uniform else float(replay.kept.mean()))
    propensity = log.propensity[rows] * (1.0 - replay.chosen[rows]) / stays
    return log.select(rows, propensity), rows


def _clicks(numbers: Ints, log: LoggedFeedback, rows: Ints) -> OutcomeBatch:
    count = len(rows)
    return OutcomeBatch(
        number=numbers,
        served=log.item[rows],
        attempt=np.ones(count, dtype=np.int64),
        delivered=np.ones(count, dtype=bool),
        outputs=np.zeros((count, 0)),
        reward=log.reward[rows],
        at=np.zeros(count),
    )


def _contexts(x: Floats, items: int) -> SimulationBatch:
    """The traffic's contexts under every item: what families average over; no output is known."""
    distinct, count = len(x), min(len(x), 500)
    picked = x[np.linspace(0, distinct - 1, count).astype(np.int64)]
    rows = count * items
    return SimulationBatch(
        context=np.repeat(np.arange(count), items),
        model=np.tile(np.arange(items), count),
        x=np.repeat(picked, items, axis=0),
        outputs=np.zeros((rows, 0)),
        cost=np.full(rows, np.nan),
        at=np.zeros(rows),
    )
