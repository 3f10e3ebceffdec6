"""Replays of allocation policies on a log, by rejection, and all results as a tidy table.

Rejection (Li, Chu, Langford, Wang 2011): the Agent of the daemon decides every logged row, in an
order drawn by the seed. Where its item is the logged one the row is kept and the agent sees the
click; any other row stays an open decision, from which it learns nothing. On a uniform log every
row is kept with probability 1/K whatever the user, the position and the click: the kept rows are
what the policy would have met live.

On a log that is not uniform that no longer holds, and thinning the rows until it does would keep
n * min p of them, one or two of 10,000. There a kept row counts 1/p in the click rate, which is
then right on average for the rules that were in force; but the rules themselves grew on a sample
in which items the log rarely shows come up rarely.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from equipoise.agent.agent import Agent
from equipoise.agent.config import (
    BudgetConfig,
    ExperimentConfig,
    ModelConfig,
    PolicyConfig,
    RewardConfig,
)
from equipoise.agent.features import FeatureSchema
from equipoise.policies.registry import policy
from equipoise.replay.harness.stream import as_assigned, play, stream_key
from equipoise.replay.openbandit.log import LoggedFeedback
from equipoise.replay.openbandit.values import (
    Brief,
    Estimated,
    Value,
    always,
    as_in,
    best_item,
    combined,
    cross_fitted_clicks,
    on_policy,
    policy_values,
    uniform,
    weighted_rate,
)
from equipoise.store.batches import (
    DecisionBatch,
    Flags,
    Floats,
    Ints,
    OutcomeBatch,
    RequestBatch,
    SimulationBatch,
    select,
)
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

    def answer(rows: Ints, decisions: DecisionBatch) -> OutcomeBatch:
        same = decisions.model == log.item[rows]
        kept[rows] = same
        chosen[rows] = decisions.probabilities[np.arange(len(rows)), log.item[rows]]
        clicks = log.reward[rows[same]]
        return as_assigned(select(decisions, same), np.zeros((len(clicks), 0)), clicks)

    starts = range(0, len(log), batch)
    traffic = (_requests(log, x, start, order[start : start + batch]) for start in starts)
    for _ in play(agent, traffic, answer):
        pass
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
        # What every item earns is asked for, whichever is best.
        budget=BudgetConfig(after_decision="continue"),
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


def _requests(log: LoggedFeedback, x: Floats, start: int, rows: Ints) -> tuple[RequestBatch, Ints]:
    requests = RequestBatch(
        unit=rows,
        context=np.full(len(rows), -1),
        at=start + np.arange(len(rows), dtype=np.float64),
        x=x[rows],
        routed=log.item[rows],
    )
    return requests, rows


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


@dataclass(frozen=True, slots=True, eq=False)
class Replay:
    """One replay, small enough to be sent between processes.

    kept, chosen: (n,) as in `Replayed`. final: value of the last rule by estimator, over all n
    rows.
    """

    policy: str
    seed: int
    kept: Flags
    chosen: Floats
    final: dict[str, Value]


@dataclass(frozen=True, slots=True, eq=False)
class LogResults:
    """What one log says.

    own: its own click rate. policies: name -> estimator -> value; the other log's policy is named
    by its behaviour. items: K times estimator -> values, over all positions and at each. elsewhere:
    the other log's own click rate over this log's position shares, None where there is no other
    log. replays: by policy.
    """

    log: LoggedFeedback
    own: Estimated
    policies: dict[str, dict[str, Estimated]]
    items: list[dict[str, list[Brief]]]
    elsewhere: Estimated | None
    replays: dict[str, list[Replay]]

    def kept_rate(self, policy: str) -> Value:
        """The click rate of the rows that the replays of a policy kept."""
        return kept_rate(self.log, [replay.kept for replay in self.replays[policy]])

    def path_rate(self, policy: str) -> Value:
        """The click rate of the replays of a policy, from all rows."""
        return path_rate(self.log, [replay.chosen for replay in self.replays[policy]])

    def final(self, policy: str, estimator: str) -> Value:
        """Of the last rules of a policy's replays, on the rows each of them did not learn from."""
        replays = self.replays[policy]
        parts = [replay.final[estimator] for replay in replays]
        return combined(parts, [1.0 / len(parts)] * len(parts))


def value_log(log: LoggedFeedback, other: LoggedFeedback | None, predicted: Floats) -> LogResults:
    """Everything but the replays."""
    wanted = {"uniform": uniform(log), "best-item": best_item(log)}
    elsewhere = None
    if other is not None:
        wanted[other.behaviour] = as_in(log, other)
        elsewhere = on_policy(other, log.position_shares)
    return LogResults(
        log=log,
        own=on_policy(log),
        policies={name: policy_values(log, target, predicted) for name, target in wanted.items()},
        items=[
            {
                name: [value.brief for value in (estimated.mix, *estimated.positions)]
                for name, estimated in policy_values(log, always(log, item), predicted).items()
            }
            for item in range(len(log.items))
        ],
        elsewhere=elsewhere,
        replays={},
    )


def replay_once(log: LoggedFeedback, predicted: Floats, policy: str, seed: int) -> Replay:
    """Replay, and value the last rule on the rows it never learned from."""
    replay = replay_policy(log, policy, seed)
    rest, rows = held_out(log, replay)
    estimates = policy_values(rest, replay.final[rows], predicted[rows], log.position_shares)
    final = {}
    for name, estimated in estimates.items():
        spread = np.zeros((3, len(log)))
        mix = estimated.mix
        spread[:, rows] = mix.influence, mix.weight, mix.clicked
        final[name] = Value(mix.value, *spread)
    return Replay(policy, seed, replay.kept, replay.chosen, final)


def compute(
    logs: Mapping[str, LoggedFeedback],
    policies: Sequence[str],
    seeds: int,
    jobs: int,
    progress: Callable[[Iterator[Replay], int], Iterable[Replay]] = lambda done, total: done,
) -> dict[str, LogResults]:
    """Results by behaviour. jobs: processes, 0 for one per core. progress: wraps the replays as
    they finish, for a progress bar."""
    from joblib import Parallel, delayed

    results: dict[str, LogResults] = {}
    cells = []
    for name, log in logs.items():
        other = next((logs[key] for key in logs if key != name), None)
        predicted = cross_fitted_clicks(log)
        results[name] = value_log(log, other, predicted)
        cells += [(name, predicted, policy, seed) for policy in policies for seed in range(seeds)]
    pool = Parallel(n_jobs=min(jobs or -1, len(cells)), return_as="generator")
    replays = pool(
        delayed(replay_once)(logs[name], predicted, policy, seed)
        for name, predicted, policy, seed in cells
    )
    for (name, _, rule, _), replay in zip(cells, progress(replays, len(cells)), strict=True):
        results[name].replays.setdefault(rule, []).append(replay)
    return results


MIX = "all"
"""In the column `position`: over the log's position shares."""


def tidy(results: Mapping[str, LogResults]) -> pd.DataFrame:
    """One row per estimate, over all logs.

    behaviour: the log. kind: log (its own click rate), policy, item, replay or final-rule. name:
    of the policy or item. position: a name, or "all". estimator: ips, snips, dr; mean for plain
    click rates; of replays: kept, or path for all rows weighted. seed: of one replay, null for
    all of them together. value, se, low, high: clicks per row, 95%, null where unknown. rows,
    clicks: logged rows behind the estimate. effective_rows: after weighting.
    """
    rows: list[dict[str, Any]] = []
    for result in results.values():
        log, every = result.log, np.ones(len(result.log), dtype=bool)
        rows += _by_position(log, "log", log.behaviour, "mean", _briefs(result.own), every)
        for name, valued in result.policies.items():
            for estimator, estimated in valued.items():
                rows += _by_position(log, "policy", name, estimator, _briefs(estimated), every)
        for place, estimates in enumerate(result.items):
            for estimator, values in estimates.items():
                only = log.item == place
                rows += _by_position(log, "item", log.items[place], estimator, values, only)
        for name, replays in result.replays.items():
            for replay in replays:
                rows += _of_replays(log, name, [replay], replay.seed)
            rows += _of_replays(log, name, replays, None)
    frame = pd.DataFrame(rows)
    frame["seed"] = frame["seed"].astype("Int64")
    return frame


def _of_replays(
    log: LoggedFeedback, name: str, replays: Sequence[Replay], seed: int | None
) -> list[dict[str, Any]]:
    kept = np.any([replay.kept for replay in replays], axis=0)
    every = np.ones(len(log), dtype=bool)
    rows = []
    for estimator, value, used in (
        ("kept", kept_rate(log, [replay.kept for replay in replays]), kept),
        ("path", path_rate(log, [replay.chosen for replay in replays]), every),
    ):
        rows.append(_row(log, "replay", name, estimator, value.brief, used, seed=seed))
    for estimator in replays[0].final:
        parts = [replay.final[estimator] for replay in replays]
        value = combined(parts, [1.0 / len(parts)] * len(parts))
        rows.append(_row(log, "final-rule", name, estimator, value.brief, every, seed=seed))
    return rows


def _briefs(estimated: Estimated) -> list[Brief]:
    return [value.brief for value in (estimated.mix, *estimated.positions)]


def _by_position(
    log: LoggedFeedback, kind: str, name: str, estimator: str, values: list[Brief], used: Flags
) -> list[dict[str, Any]]:
    """Rows of a value over all positions, which comes first, and at each."""
    rows = [_row(log, kind, name, estimator, values[0], used)]
    for place, value in enumerate(values[1:]):
        here = used & (log.position == place)
        where = log.positions[place]
        rows.append(_row(log, kind, name, estimator, value, here, where=where))
    return rows


def _row(
    log: LoggedFeedback,
    kind: str,
    name: str,
    estimator: str,
    value: Brief,
    used: Flags,
    where: str = MIX,
    seed: int | None = None,
) -> dict[str, Any]:
    return {
        "behaviour": log.behaviour,
        "kind": kind,
        "name": name,
        "position": where,
        "estimator": estimator,
        "seed": seed,
        "value": value.value,
        "se": value.se,
        "low": value.low,
        "high": value.high,
        "rows": int(np.count_nonzero(used)),
        "clicks": int(log.reward[used].sum()),
        "effective_rows": value.effective_rows,
    }
