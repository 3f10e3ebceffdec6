"""The floor under assignment probabilities, by mixing with the uniform distribution.

pi = (1 - k * floor) * share + floor over the k eligible models. Raising small shares to the floor
and renormalising would push others below it; mixing cannot, and it keeps pi a smooth function of
the shares.
"""

from __future__ import annotations

import numpy as np

from equipoise.policies.snapshot import Flags, Floats

_ROUNDING = 1e-12  # lets floor = 1 / K pass where K * (1 / K) rounds above 1


def check_floor(floor: float, models: int) -> None:
    """ValueError unless 0 <= floor <= 1 / models."""
    if not 0.0 <= floor * models <= 1.0 + _ROUNDING:
        raise ValueError(f"floor is {floor}, expected 0 to 1/{models} with {models} models")


def mix_floor(shares: Floats, eligible: Flags | None, floor: float) -> Floats:
    """(n, K) probabilities: the shares over the eligible models, mixed with the floor.

    shares: (n, K), or (K,) for every row of eligible alike; non-negative, in any unit; a row
    without mass on its eligible models counts as uniform over them. eligible: (n, K), or None
    where every model is; a row without an eligible model comes back all 0. ValueError where
    floor * K > 1.
    """
    models = shares.shape[-1]
    check_floor(floor, models)
    if eligible is None:
        count: Floats | float = float(models)
        raw = shares
    else:
        count = np.add.reduce(eligible, axis=1, dtype=np.float64, keepdims=True)
        raw = np.where(eligible, shares, 0.0)
    # A row that is contiguous is summed in one order, whatever the rows around it.
    raw = np.ascontiguousarray(raw)
    total = np.add.reduce(raw, axis=1, keepdims=True)
    if not total.all():
        bare = total == 0.0
        raw = np.where(bare, 1.0 if eligible is None else eligible.astype(np.float64), raw)
        # 1 for rows with no eligible model at all: 0 / 1 keeps them 0.
        total = np.where(bare, np.maximum(count, 1.0), total)
    # Divided first: a share of the total is at most 1, whatever the unit.
    mixed = raw / total * np.maximum(1.0 - count * floor, 0.0)
    return np.asarray(mixed + (floor if eligible is None else floor * eligible), dtype=np.float64)
