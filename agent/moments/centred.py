"""Means and second moments of weighted rows per cell, squared only after centring.

Raw sums of squares cancel: rewards near 1e6 with variance 1e-3 would lose every digit. These are
the batch update and the merge of Chan, Golub & LeVeque (1983).
"""

from __future__ import annotations

import numpy as np

from equipoise.agent.moments.cells import Cells
from equipoise.agent.moments.scratch import Scratch
from equipoise.store.batches import Floats

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
    held = before[here]
    added = cells.sums(weight)
    after = held + added
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
    padded[slot, 0] = np.sqrt(held * added / after)[:, None] * step
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
    held = total[here]
    added = cells.sums(weight)
    after = held + added
    origin = values[cells.starts]
    rank, _ = cells.slots()
    shifted = values - origin[rank]
    shift = cells.sums(weight * shifted) / added
    spread = cells.sums(weight * (shifted - shift[rank]) ** 2)
    step = origin + shift - mean[here]
    total[here] = after
    mean[here] += step * (added / after)
    scatter[here] += spread + step * step * (held * added / after)


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
