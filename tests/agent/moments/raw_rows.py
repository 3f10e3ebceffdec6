"""Every field of the moment classes computed again from raw rows, by other means.

These share no code with the package: they take each cell's rows with a mask and hand them to
`np.average` and `np.cov`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from equipoise.agent.moments.state import Dimensions

Rows: TypeAlias = dict[str, NDArray[Any]]
Arrays: TypeAlias = dict[str, Any]

# All numbers differ, so that no axis can be taken for another.
SHAPE = Dimensions(models=3, context=2, features=5, groups=4)
SOURCES = 3


def take(rows: Rows, index: Any) -> Rows:
    return {name: column[index].copy() for name, column in rows.items()}


def with_source(rows: Rows, groups: int) -> Rows:
    """The rows with the group of their source in whole Moments."""
    return rows | {"group": rows["group"] + groups * rows["source"]}


def spread(values: NDArray[Any], weight: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Weighted mean (q,) and scatter (q, q) of rows (n, q); zeros where there are none."""
    width = values.shape[1]
    if not len(values):
        return np.zeros(width), np.zeros((width, width))
    covariance = np.cov(values.T, aweights=weight, ddof=0).reshape(width, width)
    return np.average(values, axis=0, weights=weight), covariance * weight.sum()


def _by_arm(rows: Rows, groups: int, one: Callable[[Rows], Arrays]) -> Arrays:
    """`one` of the rows of every (group, model), stacked to (G, K, ...)."""
    cells = [
        [
            one(take(rows, (rows["group"] == group) & (rows["model"] == model)))
            for model in range(SHAPE.models)
        ]
        for group in range(groups)
    ]
    return {name: np.array([[c[name] for c in line] for line in cells]) for name in cells[0][0]}


def _by_group(rows: Rows, groups: int, one: Callable[[Rows], Arrays]) -> Arrays:
    cells = [one(take(rows, rows["group"] == group)) for group in range(groups)]
    return {name: np.array([cell[name] for cell in cells]) for name in cells[0]}


def raw_scorer(rows: Rows, groups: int) -> Arrays:
    def arm(cell: Rows) -> Arrays:
        mean, _ = spread(cell["v"], cell["weight"])
        return {
            "count": np.float64(len(cell["v"])),
            "weight": cell["weight"].sum(),
            "mean": mean,
        }

    def whole(cell: Rows) -> Arrays:
        centre, scatter = spread(cell["v"], cell["weight"])
        return {"centre": centre, "scatter": scatter}

    return _by_arm(rows, groups, arm) | _by_group(rows, groups, whole)


def raw_arms(rows: Rows, groups: int) -> Arrays:
    def arm(cell: Rows) -> Arrays:
        reward, weight, simulated = cell["v"][:, -1:], cell["weight"], cell["simulated"]
        mean, scatter = spread(reward, weight)
        plain_mean, plain_scatter = spread(reward, np.ones(len(reward)))
        x = cell["v"][:, : SHAPE.context]
        return {
            "count": np.float64(len(reward)),
            "weight": weight.sum(),
            "weight_sq": (weight**2).sum(),
            "mean": mean[0],
            "scatter": scatter[0, 0],
            "plain_mean": plain_mean[0],
            "plain_scatter": plain_scatter[0, 0],
            "sim_weight": weight[simulated].sum(),
            "sim_sum": weight[simulated] @ cell["predicted"][simulated],
            "live_weight": weight[~simulated].sum(),
            "live_sum": weight[~simulated] @ x[~simulated],
        }

    return _by_arm(rows, groups, arm)


def raw_simulation(rows: Rows, groups: int) -> Arrays:
    def arm(cell: Rows) -> Arrays:
        mean, scatter = spread(cell["v"][:, :-1], np.ones(len(cell["v"])))
        known = cell["cost"][~np.isnan(cell["cost"])]
        return {
            "count": np.float64(len(cell["v"])),
            "mean": mean,
            "scatter": scatter,
            "priced": np.float64(len(known)),
            "cost": np.mean(known) if len(known) else np.float64(0.0),
        }

    return _by_arm(rows, groups, arm)


def raw_routing(rows: Rows, groups: int) -> Arrays:
    def whole(cell: Rows) -> Arrays:
        mean, scatter = spread(cell["v"][:, -1:], cell["weight"])
        return {
            "count": np.float64(len(cell["v"])),
            "weight": cell["weight"].sum(),
            "mean": mean[0],
            "scatter": scatter[0, 0],
        }

    return _by_group(rows, groups, whole)


def raw_moments(rows: Rows, groups: int) -> Arrays:
    parts = {
        "scorers": raw_scorer(with_source(rows, groups), SOURCES * groups),
        "arms": raw_arms(rows, groups),
        "simulation": raw_simulation(rows, groups),
        "routing": raw_routing(rows, groups),
    }
    return {f"{part}.{name}": a for part, found in parts.items() for name, a in found.items()}
