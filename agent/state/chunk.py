"""What a chunk of the log has gathered, and how it enters the sums when the chunk is complete."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from equipoise.agent.inference.rated import asked
from equipoise.agent.moments.additive import context_groups, unit_groups
from equipoise.agent.moments.scorer import add_rows
from equipoise.agent.moments.state import Dimensions, Moments, Versions
from equipoise.agent.state.open_decisions import OpenDecisions, span
from equipoise.agent.state.replay_index import ReplayIndex
from equipoise.store.batches import DecisionBatch, Flags, Floats, Ints, left_out


def joined(parts: Sequence[tuple[NDArray[Any], ...]]) -> list[tuple[NDArray[Any], ...]]:
    """The parts' columns end to end: a list of one tuple, or of none where there are no rows."""
    filled = [part for part in parts if len(part[0])]
    if not filled:
        return []
    if len(filled) == 1:
        return [filled[0]]
    return [tuple(np.concatenate(column) for column in zip(*filled, strict=True))]


def occurrence(number: Ints) -> Ints:
    """(n,) how many earlier rows hold the same number."""
    order = np.argsort(number, kind="stable")
    ordered = number[order]
    start = np.flatnonzero(np.diff(ordered, prepend=ordered[0] - 1))
    length = np.diff(start, append=len(ordered))
    result = np.empty(len(number), dtype=np.int64)
    result[order] = np.arange(len(ordered)) - np.repeat(start, length)
    return result


def some(values: Ints, rows: Flags) -> Ints:
    """Those of `values` (n,) that a filter (n,) lets through; themselves where it is all."""
    return values if rows.all() else values[rows]


def distinct(values: Ints) -> list[int]:
    """The different values, ascending. Rules and eras: nearly always one."""
    if not len(values):
        return []
    if (values == values[0]).all():
        return [int(values[0])]
    result: list[int] = np.unique(values).tolist()
    return result


def widened(batch: DecisionBatch, active: Flags, models: int) -> tuple[DecisionBatch, Flags]:
    """Decisions from before models were added, as decisions among all K that never gave them any.

    active: models that the batch's era compared. Returns both with K columns.
    """
    more = models - len(active)
    count = len(batch)
    shares = np.hstack([batch.probabilities, np.zeros((count, more))])
    eligible = batch.eligible
    if eligible is not None:
        eligible = np.hstack([eligible, np.zeros((count, more), dtype=bool)])
    wide = replace(batch, probabilities=shares, eligible=eligible)
    return wide, np.append(active, np.zeros(more, dtype=bool))


def open_arrays(
    rewarded: Sequence[Ints],
    completed: Sequence[Ints],
    observed: Sequence[tuple[Floats, Ints, Ints]],
    replayed: Sequence[tuple[Ints, Ints, Floats, Floats]],
    width: int,
) -> dict[str, NDArray[Any]]:
    """The gathered rows by name, for a checkpoint. width: p."""
    none = np.zeros(0, dtype=np.int64)
    ((rewards,),) = joined([(part,) for part in rewarded]) or [(none,)]
    ((numbers,),) = joined([(part,) for part in completed]) or [(none,)]
    ((rows, model, unit),) = joined(observed) or [(np.zeros((0, width)), none, none)]
    ((context, replayed_model, phi, cost),) = joined(replayed) or [
        (none, none, np.zeros((0, width - 1)), np.zeros(0))
    ]
    return {
        "rewarded": rewards,
        "completed": numbers,
        "observed_rows": rows,
        "observed_model": model,
        "observed_unit": unit,
        "replayed_context": context,
        "replayed_model": replayed_model,
        "replayed_phi": phi,
        "replayed_cost": cost,
    }


class Gathered(Protocol):
    """What a chunk of the log has gathered, as `LightFold` holds it."""

    dimensions: Dimensions
    pending: OpenDecisions
    simulated: ReplayIndex
    versions: Versions
    replayed: list[tuple[Ints, Ints, Floats, Floats]]
    observed: list[tuple[Floats, Ints, Ints]]
    rewarded: list[Ints]
    completed: list[Ints]

    def in_order(self, at: Ints) -> Flags: ...

    def rows_of(self, x: Floats, y: Floats, reward: Floats) -> Floats: ...

    def watches(self, rule: int) -> bool: ...

    def asks(self, rule: int) -> float | None: ...

    def routes(self, rule: int) -> bool: ...


class ChunkSums:
    """Adds the rows of a chunk to moments. light: what has gathered them."""

    def __init__(self, light: Gathered) -> None:
        self._light = light

    def columns(self, moments: Moments, at: Ints, model: Ints) -> tuple[Ints, Flags]:
        """(n,) where decisions `at` enter the sums of these models (n,), and whether no model has
        become another version since."""
        known, table = moments.dimensions.former, self._light.pending
        if not known:
            return model, np.ones(len(at), dtype=bool)
        generation = self._light.versions.decided(table.era[at])
        return self._light.versions.columns(generation, model, known), generation >= known

    def rows(self, moments: Moments, start: int) -> None:
        """Add what the chunk has gathered, in place. start: the watermark before it."""
        groups, known = self._light.dimensions.groups, moments.dimensions.former
        models, versions = self._light.dimensions.models, self._light.versions
        for context, coded, phi, cost in joined(self._light.replayed):
            column = versions.columns(coded // models, coded % models, known)
            now = np.flatnonzero(column < models)
            group = context_groups(context[now], groups)
            moments.simulation.update(group, column[now], phi[now], cost[now])
        self.add(moments, start, self.gathered())

    def gathered(self) -> list[tuple[NDArray[Any], ...]]:
        """Columns of what the chunk has gathered, replays aside: rows of usage logs, and the
        numbers of decisions that are complete and that have their reward, in the log's order."""
        none = np.zeros(0, dtype=np.int64)
        light, width = self._light, self._light.dimensions.features
        completed = joined([(numbers,) for numbers in light.completed])
        rewarded = joined([(numbers,) for numbers in light.rewarded])
        return [
            *(joined(light.observed) or [(np.zeros((0, width)), none, none)]),
            *(completed or [(none,)]),
            *(rewarded or [(none,)]),
        ]

    def add(self, moments: Moments, start: int, parts: list[tuple[NDArray[Any], ...]]) -> None:
        """Add rows of `gathered` in place. start: the watermark before the chunk."""
        (rows, coded, unit), (completed,), (rewarded,) = parts
        groups, known = self._light.dimensions.groups, moments.dimensions.former
        models, versions = self._light.dimensions.models, self._light.versions
        if len(rows):
            group = unit_groups(unit, groups)
            column = versions.columns(coded // models, coded % models, known)
            moments.obs.update(group, column, None, rows)
            now = np.flatnonzero(coded // models >= known)
            reward = rows[now, -1]
            moments.routing.update(group[now], np.ones(len(now)), reward)
        # The rows of the table come into the cache in their order here.
        if len(completed):
            at = self._light.pending.rows(completed)
            counts = ~self._light.in_order(at) | (completed < start)
            self._scorers(moments, some(at, counts))
        if len(rewarded):
            at = self._light.pending.rows(rewarded)
            self._rewards(moments, some(at, ~self._light.in_order(at)))

    def passed(self, moments: Moments, start: int, stop: int) -> None:
        """Add decisions start … stop - 1, which the watermark passed, where a reward that never
        comes has a declared value.

        Rewards that come are there at once, and those that do not only when their window ends:
        counted as they come, every young request would have been rewarded. In decision order,
        behind the watermark, all of them are closed.
        """
        table = self._light.pending
        at = np.arange(start, stop) - table.base
        rewarded = (table.has_reward | table.filled)[start - table.base : stop - table.base]
        at = at[rewarded & ~table.summed[at]]
        at = at[self._light.in_order(at)]
        if len(at):
            self._rewards(moments, at)
            self._scorers(moments, at[table.has_outputs[at]])

    def _rewards(self, moments: Moments, at: Ints) -> None:
        """Add what needs no outputs: rows `at` (n,) that got their reward."""
        table, groups = self._light.pending, self._light.dimensions.groups
        at = some(at, self._heard(at) & ~self._left_out(at))
        where = span(at)
        model, group = table.model[where], unit_groups(table.unit[where], groups)
        drawn = table.randomized[where] & table.as_drawn(where)
        picked = np.flatnonzero(drawn & ~self._of_rules(where, self._light.watches))
        if len(picked):
            rows = at[picked]
            if len(self._light.simulated):
                predicted, simulated = self._light.simulated.lookup(
                    table.context[rows], model[picked]
                )
            else:
                predicted = np.zeros((len(picked), self._light.dimensions.features - 1))
                simulated = np.zeros(len(picked), dtype=bool)
            weight = 1.0 / (table.rate[rows] * table.propensity[rows])
            column, _ = self.columns(moments, rows, model[picked])
            models = self._light.dimensions.models
            of = group[picked], column, weight, table.reward[rows], simulated, predicted
            columns: list[NDArray[Any]] = [*of, table.x[rows]]
            now = column < models
            if now.all():
                moments.arms.update(*columns)
            else:
                moments.arms.update(*(each[now] for each in columns))
                columns[1] = column - models
                moments.former.update(*(each[~now] for each in columns))
        now = self.columns(moments, at, model)[1]
        known = self._of_rules(where, self._light.routes)
        routed = now & known & table.delivered[where] & (model == table.routed[where])
        as_routed = np.flatnonzero(routed)
        rows = at[as_routed]
        share = 1.0 - table.rate[rows] + table.rate[rows] * table.routed_share[rows]
        moments.routing.update(group[as_routed], 1.0 / share, table.reward[rows])

    def _left_out(self, at: Ints) -> Flags:
        """(n,) rows that were drawn and are left out, as usage log alone."""
        return left_out(self._light.pending.closed_by[span(at)])

    def _of_rules(self, at: Ints | slice, holds: Callable[[int], bool]) -> Flags:
        """(n,) rows of rules (by ordinal) of which something holds."""
        rule = self._light.pending.rule[at]
        ordinals = distinct(rule)
        result = np.zeros(len(rule), dtype=bool)
        for ordinal in ordinals:
            if holds(ordinal):
                result |= True if len(ordinals) == 1 else rule == ordinal
        return result

    def _heard(self, at: Ints) -> Flags:
        """(n,) rows whose rating counts: not those of users who were not asked, where a rule draws
        whom to ask."""
        table, where = self._light.pending, span(at)
        rule = table.rule[where]
        result = np.ones(len(rule), dtype=bool)
        for ordinal in distinct(rule):
            share = self._light.asks(ordinal)
            if share is not None:
                result &= (rule != ordinal) | asked(table.uniform[where], share)
        return result

    def _scorers(self, moments: Moments, at: Ints) -> None:
        """Add what scorers are fitted to: rows `at` (n,) that have outputs and reward."""
        table, groups = self._light.pending, self._light.dimensions.groups
        watched = self._of_rules(span(at), self._light.watches)
        at = some(at, self._heard(at) & ~(table.randomized[span(at)] & watched))
        where = span(at)
        drawn = table.randomized[where] & table.as_drawn(where)
        experiment = drawn & ~left_out(table.closed_by[where])
        group = unit_groups(table.unit[where], groups)
        rows = self._light.rows_of(table.x[where], table.y[where], table.reward[where])
        picked, observed = np.flatnonzero(experiment), np.flatnonzero(~experiment)
        # OBS rows count for the model that really answered, EXP rows for the assigned one.
        arm = np.where(experiment, table.model[where], table.served[where])
        arm, _ = self.columns(moments, at, arm)
        add_rows([(moments.obs, None)], group[observed], arm[observed], rows, observed)
        if len(picked):
            weight = 1.0 / (table.rate[at[picked]] * table.propensity[at[picked]])
            targets = [(moments.exp, None), (moments.exp_weighted, weight)]
            add_rows(targets, group[picked], arm[picked], rows, picked)


def named(parts: Mapping[str, Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """Arrays of parts in one dict, as `part.name`."""
    return {
        f"{part}.{name}": array for part, named in parts.items() for name, array in named.items()
    }


def parts(arrays: Mapping[str, NDArray[Any]]) -> dict[str, dict[str, NDArray[Any]]]:
    """`named`, undone."""
    parts: dict[str, dict[str, NDArray[Any]]] = {}
    for name, array in arrays.items():
        if "." in name:
            part, rest = name.split(".", 1)
            parts.setdefault(part, {})[rest] = array
    return parts
