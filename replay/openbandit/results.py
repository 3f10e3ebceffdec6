"""What a run on the logs computes: values from every log, cross-checks, replays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from equipoise.replay.openbandit import targets
from equipoise.replay.openbandit.evaluate import Estimated, on_policy, policy_values
from equipoise.replay.openbandit.log import LoggedFeedback
from equipoise.replay.openbandit.rejection import held_out, kept_rate, path_rate, replay_policy
from equipoise.replay.openbandit.reward_model import cross_fitted_clicks
from equipoise.replay.openbandit.values import Brief, Value, combined
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
    wanted = {"uniform": targets.uniform(log), "best-item": targets.best_item(log)}
    elsewhere = None
    if other is not None:
        wanted[other.behaviour] = targets.as_in(log, other)
        elsewhere = on_policy(other, log.position_shares)
    return LogResults(
        log=log,
        own=on_policy(log),
        policies={name: policy_values(log, target, predicted) for name, target in wanted.items()},
        items=[
            {
                name: [value.brief for value in (estimated.mix, *estimated.positions)]
                for name, estimated in policy_values(
                    log, targets.always(log, item), predicted
                ).items()
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
