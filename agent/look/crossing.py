"""How rows of one user, or of one task, hang together: one model for each user, or each task under
several models.

Where every model answers the same tasks (a benchmark, a mirror, answers side by side) the model
depends on no column, though nobody drew it. What tells it from a draw are pairs of rows of one
task: drawn models are the same as often as their shares say, crossed ones are not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeAlias

import msgspec
import numpy as np

from equipoise.agent.look.choosing import Chosen, Sighting, Sightings, reason_against
from equipoise.store.words import plural

Ints: TypeAlias = "np.ndarray[tuple[int], np.dtype[np.int64]]"
MOST_KEYS = 4
"""Columns that are asked whether they name the task."""
FEWEST_TASKS, FEWEST_CLUSTERS = 10, 30
LEAST_PARTNERS = 0.5
"""Other rows of its task that a row has on average, in the whole log; 1 where two models answer
each task. A few requests that were tried again with another model are no crossed design."""
LEAST_EVEN = 0.9
"""Share of tasks with several rows in which every model that answered did so equally often."""
LEAST_Z = 6.0
"""Standard deviations by which pairs of one model are fewer than draws would make them."""


class Crossed(msgspec.Struct, frozen=True):
    """Rows in which tasks come back under other models. column: names the task. tasks: with
    several rows in the sample; even: of these, with each of their models equally often. models:
    that answered them. same, expected: pairs of rows of one task with one model, found and as
    draws would make them."""

    column: str
    tasks: int
    even: int
    models: int
    same: int
    expected: float


def key_paths(chosen: Chosen, seen: Sightings) -> list[str]:
    """Paths that may name the task: the prompt, ids and texts that were known before the answer;
    those that come back in the rows that were looked at first, since later rows may hold what
    these do not."""
    prompt = chosen.roles.get("prompt")

    def may_be(path: str, each: Sighting) -> bool:
        if path == prompt or each.distinct < FEWEST_TASKS or 2 * each.rows < seen.rows:
            return False
        if reason_against(each, chosen.roles, seen.rows) not in ("", "an id", "the user"):
            return False
        whole = all(float(number).is_integer() for number in each.numbers())
        return each.kind == "text" or (each.kind == "number" and whole)

    found = [path for path, each in seen.paths.items() if may_be(path, each)]
    found.sort(key=lambda path: seen.paths[path].distinct == seen.paths[path].rows)
    return [*([prompt] if prompt else []), *found][:MOST_KEYS]


def crossed(model: Ints, keys: Mapping[str, Ints], fraction: float) -> Crossed | None:
    """Whether tasks come back under other models, more evenly than draws would have it. model:
    (rows,) numbers. keys: by column, (rows,) hashes of its values, 0 for none. fraction: of all
    rows that these are a random part of."""
    for column, hashes in keys.items():
        found = _crossed(column, model, hashes, fraction)
        if found is not None:
            return found
    return None


def _crossed(column: str, model: Ints, hashes: Ints, fraction: float) -> Crossed | None:
    there = hashes != 0
    _, task = np.unique(hashes[there], return_inverse=True)
    if not len(task):
        return None
    shares = np.bincount(model) / len(model)
    cells, counts = np.unique(np.stack([task, model[there]], axis=1), axis=0, return_counts=True)
    begin = starts(cells[:, 0])
    sizes = np.add.reduceat(counts, begin)
    least, most = np.minimum.reduceat(counts, begin), np.maximum.reduceat(counts, begin)
    width = np.diff(np.r_[begin, len(cells)])
    several = sizes > 1
    even = int(np.count_nonzero(several & (width > 1) & (least == most)))
    tasks = int(np.count_nonzero(several))
    pairs = float((sizes * (sizes - 1.0)).sum()) / 2.0
    if tasks < FEWEST_TASKS or even < LEAST_EVEN * tasks:
        return None
    if 2.0 * pairs < LEAST_PARTNERS * fraction * len(model):
        return None
    same = float((counts * (counts - 1.0)).sum()) / 2.0
    alike = float(shares @ shares)
    # Pairs that share a row depend on each other where the shares differ.
    triples = float((sizes * (sizes - 1.0) * (sizes - 2.0)).sum())
    third = max(float((shares**3).sum()) - alike * alike, 0.0)
    deviation = math.sqrt(pairs * (alike - alike * alike) + triples * third)
    if pairs * alike - same < LEAST_Z * deviation:
        return None
    answered = np.isin(cells[:, 0], np.flatnonzero(several))
    models = len(np.unique(cells[answered, 1]))
    return Crossed(column, tasks, even, models, int(same), pairs * alike)


def starts(cluster: np.ndarray) -> Ints:
    """Where each run of equal numbers begins."""
    return np.flatnonzero(np.r_[True, cluster[1:] != cluster[:-1]])


def sticky(split: Ints, cluster: Ints) -> bool:
    """Whether nearly every user with several rows has one model in all of them."""
    begin = starts(cluster)
    sizes = np.diff(np.r_[begin, len(split)])
    same = np.minimum.reduceat(split, begin) == np.maximum.reduceat(split, begin)
    several = sizes > 1
    return bool(several.sum() >= FEWEST_CLUSTERS and same[several].mean() > 0.98)


def crossed_words(where: str, found: Crossed) -> str:
    """What is said of rows that are crossed."""
    return (
        f"{where[:1].upper()}{where[1:]}: the same {found.column} comes back under other models"
        f" ({plural(found.tasks, 'value')} in several rows, {found.even:,} of them with each of"
        " their models equally often), as where several models answer the same tasks: a benchmark,"
        " mirrored traffic, answers side by side. There nothing draws the model: do not declare"
        f" these rows as a random split. Compare the models on the same {found.column}."
    )
