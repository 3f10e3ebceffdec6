"""What randomizing one request costs, by the model it was routed to and the one it goes to."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from equipoise.agent.config import ExperimentConfig
from equipoise.agent.moments.simulation import SimulationMoments
from equipoise.agent.prices import declared_prices, model_costs
from equipoise.store.batches import Floats

RESOURCES = ("requests", "money", "harm")


def request_charges(models: int) -> Floats:
    """(K, K) one each."""
    return np.ones((models, models))


def money_charges(prices: Floats) -> Floats:
    """(K, K) USD for the answer, from prices (K,); a model without one counts as the dearest.

    inf where no price is known: nothing can be afforded then.
    """
    known = np.isfinite(prices)
    dearest = float(prices[known].max()) if known.any() else np.inf
    return np.tile(np.where(known, prices, dearest), (len(prices), 1))


def harm_charges(values: Floats, sign: int, span: float) -> Floats:
    """(K, K) expected reward lost against the routed model, in reward units; a gain is no refund.

    values: (K,), the estimates in force; where one is unknown the loss may be the whole `span` of
    the reward. sign: -1 where smaller rewards are better.
    """
    lost = sign * (values[:, None] - values[None, :])
    lost = np.where(np.isfinite(lost), np.clip(lost, 0.0, span), span)
    np.fill_diagonal(lost, 0.0)
    return lost


def charges_in_force(
    resources: Iterable[str],
    config: ExperimentConfig,
    simulation: SimulationMoments,
    values: Floats,
) -> dict[str, Floats]:
    """Charges by resource. values: (K,) estimates, read for harm alone."""
    reward, models = config.reward, len(config.models)
    found: dict[str, Floats] = {}
    for name in resources:
        if name == "requests":
            found[name] = request_charges(models)
        elif name == "money":
            found[name] = money_charges(model_costs(simulation, declared_prices(config)))
        else:
            sign = 1 if reward.maximise else -1
            found[name] = harm_charges(values, sign, reward.high - reward.low)
    return found
