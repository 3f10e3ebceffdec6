"""The moment classes under test, one row of `CASES` each: listing a class is all its checks need.

A case says how to make empty moments and random rows, how to add rows, and how every field follows
from the raw rows (`raw_rows`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pytest

from equipoise.agent.moments.arms import ArmMoments, RoutingMoments
from equipoise.agent.moments.scorer import ScorerMoments, SimulationMoments
from equipoise.agent.moments.state import Moments
from tests.agent.moments.raw_rows import (
    SHAPE,
    SOURCES,
    Arrays,
    Rows,
    raw_arms,
    raw_moments,
    raw_routing,
    raw_scorer,
    raw_simulation,
    take,
    with_source,
)

K, D, P = SHAPE.models, SHAPE.context, SHAPE.features


@dataclass(frozen=True)
class Case:
    """empty(groups); rows(generator, n); update(moments, rows); raw(rows, groups) -> every field.

    weighted: fields in which a row of weight 2 is the same as the row twice.
    """

    name: str
    empty: Callable[[int], Any]
    rows: Callable[[np.random.Generator, int], Rows]
    update: Callable[[Any, Rows], None]
    raw: Callable[[Rows, int], Arrays]
    weighted: tuple[str, ...] = ()

    def of(self, batches: Iterable[Rows], groups: int = SHAPE.groups) -> Any:
        """The moments of these batches, added in this order."""
        moments = self.empty(groups)
        for batch in batches:
            self.update(moments, batch)
        return moments


def arrays_of(moments: Any) -> Arrays:
    """Every array by its name, through the parts of whole Moments too."""
    found: Arrays = {}
    whole = isinstance(moments, Moments)
    # Of whole moments those that are kept: sums of former versions only where there are any.
    names = moments.parts() if whole else [field.name for field in fields(moments)]
    for part in names:
        value = getattr(moments, part)
        if isinstance(value, np.ndarray):
            found[part] = value
        else:
            found |= {f"{part}.{name}": a for name, a in arrays_of(value).items()}
    return found


def joined(*batches: Rows) -> Rows:
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def cut(rows: Rows, at: Iterable[int]) -> list[Rows]:
    """The rows as consecutive batches that end at these positions."""
    index = np.arange(len(rows["group"]))
    return [take(rows, part) for part in np.split(index, sorted(at))]


def one_group(moments: Any, group: int) -> Any:
    """A copy of one group as moments of a single group."""
    if isinstance(moments, Moments):
        step = moments.dimensions.groups
        return Moments(
            replace(moments.dimensions, groups=1),
            _groups(moments.scorers, slice(group, None, step)),
            *(
                _groups(part, slice(group, group + 1))
                for part in (moments.arms, moments.simulation, moments.routing, moments.former)
            ),
        )
    return _groups(moments, slice(group, group + 1))


def _groups(moments: Any, groups: slice) -> Any:
    return type(moments)(*(array[groups].copy() for array in arrays_of(moments).values()))


def assert_close(actual: Any, expected: Any, tolerance: float = 1e-12) -> None:
    """Equal to `tolerance` of each field's natural scale.

    Random rows have unit spread and weights of order one, so that a field's natural scale is its
    largest entry, and at least 1.
    """
    found = actual if isinstance(actual, dict) else arrays_of(actual)
    wanted = expected if isinstance(expected, dict) else arrays_of(expected)
    assert found.keys() == wanted.keys()
    for name, array in found.items():
        assert array.shape == wanted[name].shape, name
        scale = max(1.0, np.abs(wanted[name]).max(initial=0.0))
        np.testing.assert_allclose(
            array, wanted[name], rtol=0, atol=tolerance * scale, err_msg=name
        )


def assert_same_bits(actual: Any, expected: Any) -> None:
    found, wanted = arrays_of(actual), arrays_of(expected)
    assert found.keys() == wanted.keys()
    for name, array in found.items():
        assert array.shape == wanted[name].shape, name
        assert array.tobytes() == wanted[name].tobytes(), name


def random_rows(generator: np.random.Generator, n: int) -> Rows:
    """Columns for every class: unit spread around 2, weights in 1 … 5, some prices unknown.

    Model 2 is never drawn in group 0, so that one cell is always empty.
    """
    group = generator.integers(SHAPE.groups, size=n)
    model = generator.integers(SHAPE.models, size=n)
    model[(group == 0) & (model == 2)] = 1
    simulated = generator.random(n) < 0.6
    v = generator.normal(2.0, 1.0, size=(n, SHAPE.features))
    v[:, 0] += model
    predicted = generator.normal(2.0, 1.0, size=(n, SHAPE.features - 1))
    predicted[~simulated] = np.nan
    return {
        "source": generator.integers(SOURCES, size=n),
        "group": group,
        "model": model,
        "weight": generator.uniform(1.0, 5.0, size=n),
        "v": v,
        "simulated": simulated,
        "predicted": predicted,
        "cost": np.where(generator.random(n) < 0.3, np.nan, generator.uniform(0.0, 2.0, size=n)),
    }


def update_scorer(moments: ScorerMoments, rows: Rows) -> None:
    moments.update(rows["group"], rows["model"], rows["weight"], rows["v"])


def update_arms(moments: ArmMoments, rows: Rows) -> None:
    moments.update(
        rows["group"],
        rows["model"],
        rows["weight"],
        rows["v"][:, -1],
        rows["simulated"],
        rows["predicted"],
        rows["v"][:, : SHAPE.context],
    )


def update_simulation(moments: SimulationMoments, rows: Rows) -> None:
    moments.update(rows["group"], rows["model"], rows["v"][:, :-1], rows["cost"])


def update_routing(moments: RoutingMoments, rows: Rows) -> None:
    moments.update(rows["group"], rows["weight"], rows["v"][:, -1])


def update_moments(moments: Moments, rows: Rows) -> None:
    update_scorer(moments.scorers, with_source(rows, moments.dimensions.groups))
    update_arms(moments.arms, rows)
    update_simulation(moments.simulation, rows)
    update_routing(moments.routing, rows)


CASES = (
    Case(
        "ScorerMoments",
        lambda groups: ScorerMoments.empty(groups, K, P),
        random_rows,
        update_scorer,
        raw_scorer,
        ("weight", "mean", "centre", "scatter"),
    ),
    Case(
        "ArmMoments",
        lambda groups: ArmMoments.empty(groups, K, P, D),
        random_rows,
        update_arms,
        raw_arms,
        ("weight", "mean", "scatter", "sim_weight", "sim_sum", "live_weight", "live_sum"),
    ),
    Case(
        "SimulationMoments",
        lambda groups: SimulationMoments.empty(groups, K, P),
        random_rows,
        update_simulation,
        raw_simulation,
    ),
    Case(
        "RoutingMoments",
        lambda groups: RoutingMoments.empty(groups),
        random_rows,
        update_routing,
        raw_routing,
        ("weight", "mean", "scatter"),
    ),
    Case(
        "Moments",
        lambda groups: Moments.empty(replace(SHAPE, groups=groups)),
        random_rows,
        update_moments,
        raw_moments,
        tuple(
            f"{part}.{name}"
            for part, names in {
                "scorers": ("weight", "mean", "centre", "scatter"),
                "arms": ("weight", "mean", "scatter", "sim_sum", "live_sum"),
                "routing": ("weight", "mean", "scatter"),
            }.items()
            for name in names
        ),
    ),
)

every_case = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
