"""What a request costs on each model: declared, else learnt from replays that say their cost."""

from __future__ import annotations

import numpy as np

from equipoise.agent.config import ExperimentConfig
from equipoise.agent.moments.simulation import SimulationMoments
from equipoise.store.batches import Floats


def declared_prices(config: ExperimentConfig) -> Floats:
    """(K,) USD per request, NaN where none is declared."""
    return np.array([np.nan if model.price is None else model.price for model in config.models])


def model_costs(simulation: SimulationMoments, declared: Floats) -> Floats:
    """(K,) expected USD per request: the declared price, else the mean of priced SIM rows."""
    rows = simulation.priced.sum(axis=0)
    total = (simulation.priced * simulation.cost).sum(axis=0)
    seen = np.divide(total, rows, out=np.full(len(rows), np.nan), where=rows > 0)
    return np.where(np.isnan(declared), seen, declared)
