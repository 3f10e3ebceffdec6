"""What a chunk of the log has gathered, and how it enters the sums when the chunk is complete."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from equipoise.agent.inference.rated import asked
from equipoise.agent.moments.additive import context_groups, unit_groups
from equipoise.agent.moments.state import Dimensions, Moments, Versions
from equipoise.agent.state.open_decisions import OpenDecisions
from equipoise.agent.state.replay_index import ReplayIndex
from equipoise.store.batches import LEFT_OUT, DecisionBatch, Flags, Floats, Ints


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
        for rows, coded, unit in joined(self._light.observed):
            group = unit_groups(unit, groups)
            column = versions.columns(coded // models, coded % models, known)
            moments.scorers.update(group, column, np.ones(len(rows)), rows)
            now = np.flatnonzero(coded // models >= known)
            reward = rows[now, -1]
            moments.routing.update(group[now], np.ones(len(now)), reward)
        table = self._light.pending
        for (numbers,) in joined([(numbers,) for numbers in self._light.rewarded]):
            at = table.rows(numbers)
            self._rewards(moments, at[~self._light.in_order(at)])
        for (numbers,) in joined([(numbers,) for numbers in self._light.completed]):
            at = table.rows(numbers)
            self._scorers(moments, at[~self._light.in_order(at) | (numbers < start)])

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
        at = at[self._heard(at)]
        at = at[~self._left_out(at)]
        model, group = table.model[at], unit_groups(table.unit[at], groups)
        picked = np.flatnonzero(table.randomized[at] & table.as_drawn(at) & ~self._watched(at))
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
            for arms, first, some in (
                (moments.arms, 0, column < models),
                (moments.former, models, column >= models),
            ):
                arms.update(
                    group[picked][some],
                    column[some] - first,
                    weight[some],
                    table.reward[rows][some],
                    simulated[some],
                    predicted[some],
                    table.x[rows][some],
                )
        now = self.columns(moments, at, model)[1]
        known = self._of_rules(at, self._light.routes)
        as_routed = np.flatnonzero(now & known & table.delivered[at] & (model == table.routed[at]))
        rows = at[as_routed]
        share = 1.0 - table.rate[rows] + table.rate[rows] * table.routed_share[rows]
        moments.routing.update(group[as_routed], 1.0 / share, table.reward[rows])

    def _left_out(self, at: Ints) -> Flags:
        """(n,) rows that were drawn and are left out, as usage log alone."""
        return np.isin(self._light.pending.closed_by[at], LEFT_OUT)

    def _watched(self, at: Ints) -> Flags:
        """(n,) rows of rules whose draws are for the checks alone."""
        return self._of_rules(at, self._light.watches)

    def _of_rules(self, at: Ints, holds: Callable[[int], bool]) -> Flags:
        """(n,) rows of rules (by ordinal) of which something holds."""
        rules, place = np.unique(self._light.pending.rule[at], return_inverse=True)
        return np.array([holds(int(rule)) for rule in rules], dtype=bool)[place]

    def _heard(self, at: Ints) -> Flags:
        """(n,) rows whose rating counts: not those of users who were not asked, where a rule draws
        whom to ask."""
        table = self._light.pending
        rules, place = np.unique(table.rule[at], return_inverse=True)
        shares = [self._light.asks(int(rule)) for rule in rules]
        if all(share is None for share in shares):
            return np.ones(len(at), dtype=bool)
        share = np.array([1.0 if each is None else each for each in shares])[place]
        return asked(table.uniform[at], share)

    def _scorers(self, moments: Moments, at: Ints) -> None:
        """Add what scorers are fitted to: rows `at` (n,) that have outputs and reward."""
        table, groups = self._light.pending, self._light.dimensions.groups
        at = at[self._heard(at)]
        at = at[~(table.randomized[at] & self._watched(at))]
        experiment = table.randomized[at] & table.as_drawn(at) & ~self._left_out(at)
        group = unit_groups(table.unit[at], groups)
        rows = self._light.rows_of(table.x[at], table.y[at], table.reward[at])
        picked, observed = np.flatnonzero(experiment), np.flatnonzero(~experiment)
        source = np.concatenate([observed, picked, picked])
        offset = np.repeat([0, groups, 2 * groups], [len(observed), len(picked), len(picked)])
        weight = np.ones(len(source))
        drawn = at[picked]
        weight[len(observed) + len(picked) :] = 1.0 / (table.rate[drawn] * table.propensity[drawn])
        # OBS rows count for the model that really answered, EXP rows for the assigned one.
        arm = np.where(experiment, table.model[at], table.served[at])
        arm, _ = self.columns(moments, at, arm)
        moments.scorers.update(group[source] + offset, arm[source], weight, rows[source])


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
