"""Results as a tidy table: one row per estimate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from equipoise.replay.openbandit.evaluate import Estimated
from equipoise.replay.openbandit.log import LoggedFeedback
from equipoise.replay.openbandit.rejection import kept_rate, path_rate
from equipoise.replay.openbandit.results import LogResults, Replay
from equipoise.replay.openbandit.values import Brief, combined
from equipoise.store.batches import Flags

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
