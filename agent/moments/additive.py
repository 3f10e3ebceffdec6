"""What all moments share: arrays that add, cells (group x model), centred second moments.

Raw sums of squares cancel: rewards near 1e6 with variance 1e-3 would lose every digit. Updates and
merges are those of Chan, Golub & LeVeque (1983).

Sums over the rows of a cell are taken by `np.add.reduceat` along the sorted rows: no Python loop
over cells, no scatter-add, and an order of additions that depends on the rows alone. Padded rows
and their products take a few hundred kilobytes, which the system hands out page by page; on arrays
that are kept (`Scratch`) the same work takes a third of the time.
"""

from __future__ import annotations

import math
import threading
from dataclasses import fields
from typing import Any, ClassVar, Self

import numpy as np

from equipoise.store.batches import Floats, Ints


class Additive:
    """Base of the moment classes: dataclasses whose fields are float64 arrays.

    `a + b` gives the moments of both sets of rows; the empty moments are its identity.
    `update` adds rows in place: one owner (the agent's fold) updates, everyone else gets copies.
    MEANS: names of a weight, a mean under it, and the scatter around that mean ("" for none);
    every other field is a plain sum.
    """

    __slots__ = ()
    __dataclass_fields__: ClassVar[dict[str, Any]]
    MEANS: ClassVar[tuple[tuple[str, str, str], ...]] = ()

    def arrays(self) -> dict[str, Floats]:
        """Field name -> array, in the order of declaration; views, not copies."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def require_same_shape(self, other: object) -> None:
        """Raise TypeError or ValueError where `other` cannot be added to these moments.

        numpy would spread a single group or model over all the others.
        """
        if not isinstance(other, type(self)):
            raise TypeError(f"{type(self).__name__} and {type(other).__name__} cannot be added")
        theirs = other.arrays()
        for name, array in self.arrays().items():
            if array.shape != theirs[name].shape:
                raise ValueError(
                    f"moments of different shape cannot be added: {name} has {array.shape} and "
                    f"{theirs[name].shape}"
                )

    def copy(self) -> Self:
        return type(self)(*(array.copy() for array in self.arrays().values()))

    def __add__(self, other: Self) -> Self:
        self.require_same_shape(other)
        mine, theirs = self.arrays(), other.arrays()
        total = {name: mine[name] + theirs[name] for name in mine}
        for weight, mean, scatter in self.MEANS:
            sides = mine[weight], mine[mean], theirs[weight], theirs[mean]
            total[mean] = merged_mean(*sides)
            if scatter:
                total[scatter] += between(*sides)
        return type(self)(**total)


class Scratch(threading.local):
    """Named float arrays of any shape, valid until the same name is asked for again."""

    def __init__(self) -> None:
        self._flat: dict[str, Floats] = {}

    def array(self, name: str, *shape: int) -> Floats:
        """An array of this shape with arbitrary contents; its memory is kept and grows."""
        size = math.prod(shape)
        flat = self._flat.get(name)
        if flat is None or len(flat) < size:
            flat = self._flat[name] = np.empty(size)
        return flat[:size].reshape(shape)


class Cells:
    """The rows of one update, sorted by cell.

    cell: (n,) int64 cell of each row. `order` (n,) sorts rows by cell, stably; `present` (c,) are
    the cells that occur, ascending; `starts` (c,) where each begins in sorted order.
    """

    __slots__ = ("_slots", "order", "present", "sizes", "sorted_cell", "starts")

    def __init__(self, cell: Ints) -> None:
        # Sixteen bits are sorted by counting, several times faster than by comparing.
        small = len(cell) and int(cell.view(np.uint64).max()) < 1 << 16
        self.order = np.argsort(cell.astype(np.uint16) if small else cell, kind="stable")
        self.sorted_cell = cell[self.order]
        first = np.empty(len(cell), dtype=bool)
        first[:1] = True
        np.not_equal(self.sorted_cell[1:], self.sorted_cell[:-1], out=first[1:])
        self.starts = np.flatnonzero(first)
        self.present = self.sorted_cell[self.starts]
        ends = np.empty_like(self.starts)
        ends[:-1] = self.starts[1:]
        ends[-1:] = len(cell)
        self.sizes = ends - self.starts
        self._slots: tuple[Ints, Ints] | None = None

    def sums(self, rows: Floats) -> Floats:
        """Sum over the rows of each present cell: (n, ...) sorted rows -> (c, ...)."""
        return np.asarray(np.add.reduceat(rows, self.starts, axis=0))

    def slots(self) -> tuple[Ints, Ints]:
        """Where each sorted row goes in a padded (c, longest, ...) array: cell rank, position."""
        if self._slots is None:
            rank = np.arange(len(self.sizes)).repeat(self.sizes)
            self._slots = rank, np.arange(len(self.sorted_cell)) - self.starts[rank]
        return self._slots


_scratch = Scratch()


def add_means(cells: Cells, weight: Floats, rows: Floats, total: Floats, mean: Floats) -> None:
    """Add sorted rows (n, p) with weights (n,) to `total` (C,) and `mean` (C, p) in place."""
    here = cells.present
    added = cells.sums(weight)
    sums = cells.sums(weight[:, None] * rows)
    after = total[here] + added
    total[here] = after
    # mean + (sum - w mean) / total keeps the digits of a mean far from zero.
    mean[here] += (sums - added[:, None] * mean[here]) / after[:, None]


def add_scatter(
    cells: Cells, weight: Floats, rows: Floats, before: Floats, centre: Floats, scatter: Floats
) -> None:
    """Add sorted rows (n, p) to `centre` (C, p) and `scatter` (C, p, p) in place.

    weight: (n,); before: (C,) the weight each cell held before these rows.
    """
    here = cells.present
    weight_before = before[here]
    added = cells.sums(weight)
    after = weight_before + added
    # The batch mean is taken around its first row: where rewards sit near 1e6, plain sums would
    # round the mean itself by more than their spread allows.
    origin = rows[cells.starts]
    rank, position = cells.slots()
    shifted = rows - origin[rank]
    shift = cells.sums(weight[:, None] * shifted) / added[:, None]
    step = origin + shift - centre[here]
    # One extra row per cell carries the between-batch term, so that a single product of centred
    # rows gives the whole increment.
    width = rows.shape[1]
    # Where most cells occur, adding to all of them in place is cheaper than gathering some; an
    # absent cell gets exact zeros.
    dense = 2 * len(here) > len(scatter)
    slot = here if dense else np.arange(len(here))
    many = len(scatter) if dense else len(here)
    padded = _scratch.array("padded", many, int(position.max()) + 2, width)
    padded[...] = 0.0
    padded[slot[rank], position + 1] = np.sqrt(weight)[:, None] * (shifted - shift[rank])
    padded[slot, 0] = np.sqrt(weight_before * added / after)[:, None] * step
    product = _scratch.array("product", many, width, width)
    np.matmul(padded.transpose(0, 2, 1), padded, out=product)
    if dense:
        scatter += product
    else:
        scatter[here] += product
    centre[here] += step * (added / after)[:, None]


def add_variation(
    cells: Cells, weight: Floats, values: Floats, total: Floats, mean: Floats, scatter: Floats
) -> None:
    """Add sorted scalars (n,) to `total`, `mean` and `scatter`, all (C,), in place."""
    here = cells.present
    weight_before = total[here]
    added = cells.sums(weight)
    after = weight_before + added
    origin = values[cells.starts]
    rank, _ = cells.slots()
    shifted = values - origin[rank]
    shift = cells.sums(weight * shifted) / added
    spread = cells.sums(weight * (shifted - shift[rank]) ** 2)
    step = origin + shift - mean[here]
    total[here] = after
    mean[here] += step * (added / after)
    scatter[here] += spread + step * step * (weight_before * added / after)


def merged_mean(weight_a: Floats, mean_a: Floats, weight_b: Floats, mean_b: Floats) -> Floats:
    """Mean of the union of two weighted sets: weights (...,), means (...,) or (..., p).

    Where one side is empty the other's mean comes back untouched, so that an empty state is an
    exact identity.
    """
    total = weight_a + weight_b
    share = np.divide(weight_b, total, out=np.zeros_like(total), where=total > 0)
    if mean_a.ndim > share.ndim:
        share, weight_a, weight_b = share[..., None], weight_a[..., None], weight_b[..., None]
    mean = mean_a + share * (mean_b - mean_a)
    return np.where(weight_a == 0, mean_b, np.where(weight_b == 0, mean_a, mean))


def between(weight_a: Floats, mean_a: Floats, weight_b: Floats, mean_b: Floats) -> Floats:
    """Scatter that merging adds: w_a w_b / (w_a + w_b) times the outer product of the step.

    Means (..., p) give (..., p, p); means of the weights' own shape give that shape.
    """
    total = weight_a + weight_b
    factor = np.divide(weight_a * weight_b, total, out=np.zeros_like(total), where=total > 0)
    step = mean_b - mean_a
    if step.ndim == factor.ndim:
        return factor * step * step
    # The outer product first: it is symmetric to the last bit, and stays so.
    return factor[..., None, None] * (step[..., :, None] * step[..., None, :])


_UNIT_GROUPS = np.uint64(0x9E3779B97F4A7C15)


_CONTEXT_GROUPS = np.uint64(0xD1B54A32D192ED03)


def unit_groups(units: Ints, groups: int) -> Ints:
    """(n,) group 0 … groups - 1 of each unit key."""
    return _mix(units, _UNIT_GROUPS, groups)


def context_groups(contexts: Ints, groups: int) -> Ints:
    """(n,) group of each context key."""
    return _mix(contexts, _CONTEXT_GROUPS, groups)


def _mix(keys: Ints, domain: np.uint64, groups: int) -> Ints:
    z = keys.view(np.uint64) ^ domain
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return (z % np.uint64(groups)).astype(np.int64)
