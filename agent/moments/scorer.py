"""Moments of phi: of (phi, reward) in OBS and EXP rows, which linear scorers are fitted to, and of
phi in SIM rows, which their values are averaged over."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Self, TypeVar

import numpy as np

from equipoise.agent.moments.additive import (
    Additive,
    Cells,
    Scratch,
    add_means,
    add_scatter,
    between,
    merged_mean,
)
from equipoise.store.batches import Floats, Ints

_scratch = Scratch()


@dataclass(slots=True)
class ScorerMoments(Additive):
    """Counts, weights, means and centred second moments of v = (phi without intercept, reward).

    With G groups, K models and p = len(v) (phi itself has p entries, its intercept included):
    count, weight: (G, K) rows and sum of w. mean: (G, K, p) weighted mean of v per model.
    centre: (G, p) weighted mean of v in the group; scatter: (G, p, p) = sum of
    w (v - centre)(v - centre)^T over the group's rows, whatever their model.
    Within-model (fixed-effect) moments follow by subtracting the spread of the model means
    (Frisch-Waugh-Lovell).
    """

    MEANS = (("weight", "mean", ""),)

    count: Floats
    weight: Floats
    mean: Floats
    centre: Floats
    scatter: Floats

    @classmethod
    def empty(cls, groups: int, models: int, features: int) -> Self:
        """The identity of `+`. features: p, the length of phi with its intercept."""
        return cls(
            count=np.zeros((groups, models)),
            weight=np.zeros((groups, models)),
            mean=np.zeros((groups, models, features)),
            centre=np.zeros((groups, features)),
            scatter=np.zeros((groups, features, features)),
        )

    def update(self, group: Ints, model: Ints, weight: Floats | None, rows: Floats) -> None:
        """Add n rows in place. group, model: (n,); weight: (n,) > 0, None for 1; rows: (n, p)."""
        add_rows([(self, weight)], group, model, rows, np.arange(len(group)))

    def _add(
        self, here: Ints, arms: Floats, by_arm: Floats, origin: Floats, added: Floats
    ) -> tuple[Floats, Floats]:
        """Add sums of the groups `here` (c,), all but their scatter. by_arm: (c, K, p) sums less
        `origin` (c, p). Returns (c,) the weight before, and (c, p) the step to the new mean."""
        before = self.weight[here].sum(axis=1)
        step = origin + by_arm.sum(axis=1) / added[:, None] - self.centre[here]
        self.centre[here] += step * (added / (before + added))[:, None]
        # Rewards that are all alike keep a mean of just their value.
        total, means = self.weight[here] + arms, self.mean[here]
        own = np.divide(1.0, arms, out=np.zeros_like(arms), where=arms > 0)
        step_own = by_arm * own[..., None] + (origin[:, None] - means)
        share = np.divide(arms, total, out=np.zeros_like(total), where=arms > 0)
        self.mean[here] = means + step_own * share[..., None]
        self.weight[here] = total
        return before, step

    def __add__(self, other: Self) -> Self:
        total = Additive.__add__(self, other)
        sides = self.weight.sum(axis=1), self.centre, other.weight.sum(axis=1), other.centre
        total.centre = merged_mean(*sides)
        total.scatter += between(*sides)
        return total

    def part(self, groups: slice) -> Self:
        """A view of some of the groups; for reading only."""
        return type(self)(*(array[groups] for array in self.arrays().values()))


def add_rows(
    targets: Sequence[tuple[ScorerMoments, Floats | None]],
    group: Ints,
    model: Ints,
    rows: Floats,
    at: Ints,
) -> None:
    """Add rows `at` (n,) of `rows` (m, p) in place to moments of one shape, each with its own
    weights (n,); None is for 1, and only the last may have others. group, model: (n,)."""
    if len(group) == 0:
        return
    cells, shape = Cells(group), targets[0][0].count.shape
    here, longest, width = cells.present, int(cells.sizes.max()), rows.shape[1]
    cell, order = group * shape[1] + model, cells.order
    count = np.bincount(cell, minlength=math.prod(shape)).reshape(shape)
    # A rectangle of rows per group, the first of which carries the between-batch term: a single
    # product of centred rows then gives the whole increment. Rows beyond a group's last one repeat
    # its first.
    rank, position = cells.slots()
    position = position + 1
    first = at[order[cells.starts]]
    source = np.repeat(first[:, None], longest + 1, axis=1)
    source[rank, position] = at[order]
    padded = _scratch.array("padded", len(here), longest + 1, width)
    np.take(rows, source, axis=0, out=padded, mode="clip")
    # The batch mean is taken around its first row: where rewards sit near 1e6, plain sums would
    # round the mean itself by more than their spread allows.
    origin = rows[first]
    padded -= origin[:, None]
    chosen = _scratch.array("chosen", len(here), longest + 1, shape[1])
    chosen[...] = 0.0
    product = _scratch.array("product", len(here), width, width)
    of = model[order]
    for moments, weight in targets:
        moments.count += count
        by_model: Floats = count.astype(np.float64)
        if weight is not None:
            by_model = np.asarray(np.bincount(cell, weight, count.size), np.float64).reshape(shape)
        arms = by_model[here]
        chosen[rank, position, of] = 1.0 if weight is None else weight[order]
        by_arm = chosen.transpose(0, 2, 1) @ padded
        added = arms.sum(axis=1)
        before, step = moments._add(here, arms, by_arm, origin, added)
        shift = by_arm.sum(axis=1) / added[:, None]
        padded -= shift[:, None]
        for rectangle, size in zip(padded, cells.sizes.tolist(), strict=True):
            rectangle[size + 1 :] = 0.0
        if weight is not None:
            root = np.zeros(padded.shape[:2])
            root[rank, position] = np.sqrt(weight[order])
            padded *= root[..., None]
        padded[:, 0] = np.sqrt(before * added / (before + added))[:, None] * step
        np.matmul(padded.transpose(0, 2, 1), padded, out=product)
        if len(here) == len(moments.centre):
            moments.scatter += product
        else:
            moments.scatter[here] += product
        # What comes next is taken around this mean.
        origin = origin + shift
        padded[:, 0] = 0.0


@dataclass(slots=True)
class SimulationMoments(Additive):
    """Per group of contexts and per model, with phi = [1, x, y, interactions] less its 1.

    count: (G, K). mean: (G, K, p - 1) mean of phi; scatter: (G, K, p - 1, p - 1) =
    sum (phi - mean)(phi - mean)^T. As x is the head of phi, these hold the regression of the
    rest of phi on z = [1, x] too. priced, cost: (G, K) rows with a price, and their mean price
    in USD.
    """

    MEANS = (("count", "mean", "scatter"), ("priced", "cost", ""))

    count: Floats
    mean: Floats
    scatter: Floats
    priced: Floats
    cost: Floats

    @classmethod
    def empty(cls, groups: int, models: int, features: int) -> Self:
        """features: p, the length of phi with its intercept."""
        return cls(
            count=np.zeros((groups, models)),
            mean=np.zeros((groups, models, features - 1)),
            scatter=np.zeros((groups, models, features - 1, features - 1)),
            priced=np.zeros((groups, models)),
            cost=np.zeros((groups, models)),
        )

    def update(self, group: Ints, model: Ints, rows: Floats, cost: Floats) -> None:
        """Add n rows in place. group, model, cost: (n,), cost NaN where unknown; rows (n, p-1)."""
        if len(group) == 0:
            return
        cells = Cells(group * self.count.shape[1] + model)
        rows, cost = rows[cells.order], cost[cells.order]
        flat, width = self.count.size, rows.shape[1]
        count = self.count.reshape(flat)
        add_scatter(
            cells,
            np.ones(len(rows)),
            rows,
            count,
            self.mean.reshape(flat, width),
            self.scatter.reshape(flat, width, width),
        )
        count[cells.present] += cells.sizes
        with_price = np.isfinite(cost)
        if with_price.any():
            priced = Cells(cells.sorted_cell[with_price])
            add_means(
                priced,
                np.ones(int(with_price.sum())),
                cost[with_price][:, None],
                self.priced.reshape(flat),
                self.cost.reshape(flat, 1),
            )


T = TypeVar("T")


def kept_for_replays(make: Callable[[SimulationMoments], T]) -> Callable[[SimulationMoments], T]:
    """A function of SIM moments that gives its last answer again for the same ones: replays come
    seldom, and every estimate of every report asks. Nobody may write to what it returns."""
    kept: tuple[SimulationMoments, Floats, T] | None = None

    @wraps(make)
    def known(simulation: SimulationMoments) -> T:
        nonlocal kept
        last = kept
        # Every row adds to its count, so the same object with the same counts holds the same rows.
        if (
            last is None
            or last[0] is not simulation
            or not np.array_equal(last[1], simulation.count)
        ):
            last = kept = simulation, simulation.count.copy(), make(simulation)
        return last[2]

    return known
