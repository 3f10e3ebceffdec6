"""Results as a tidy table: one row per estimate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from equipoise.replay.openbandit.log import LoggedFeedback
from equipoise.replay.openbandit.rejection import held_out, kept_rate, path_rate, replay_policy
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
)
from equipoise.store.batches import Flags, Floats


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
    shown: Callable[[Iterator[Replay], int], Iterable[Replay]] = lambda done, total: done,
) -> dict[str, LogResults]:
    """Results by behaviour. jobs: processes, 0 for one per core. shown: wraps the replays as they
    finish, for a progress bar."""
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
    for (name, _, policy, _), replay in zip(cells, shown(replays, len(cells)), strict=True):
        results[name].replays.setdefault(policy, []).append(replay)
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
