"""The budget in force: who may still be randomized, and at which rate the rest is spent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from equipoise.agent.budget.ledger import Ledger
from equipoise.agent.config import ExperimentConfig
from equipoise.agent.config.parts import BudgetConfig
from equipoise.agent.moments.scorer import SimulationMoments
from equipoise.store.batches import Flags, Floats, Ints


def declared_prices(config: ExperimentConfig) -> Floats:
    """(K,) USD per request, NaN where none is declared."""
    return np.array([np.nan if model.price is None else model.price for model in config.models])


def model_costs(simulation: SimulationMoments, declared: Floats) -> Floats:
    """(K,) expected USD per request: the declared price, else the mean of priced SIM rows."""
    rows = simulation.priced.sum(axis=0)
    total = (simulation.priced * simulation.cost).sum(axis=0)
    mean = np.divide(total, rows, out=np.full(len(rows), np.nan), where=rows > 0)
    return np.where(np.isnan(declared), mean, declared)


RESOURCES = ("requests", "money", "harm")


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
    simulation: SimulationMoments | None,
    values: Floats,
) -> dict[str, Floats]:
    """Charges by resource. simulation: prices of replays, read for money alone; values: (K,)
    estimates, read for harm alone."""
    reward, models = config.reward, len(config.models)
    charges: dict[str, Floats] = {}
    for name in resources:
        if name == "requests":
            charges[name] = np.ones((models, models))
        elif name == "money":
            assert simulation is not None
            charges[name] = money_charges(model_costs(simulation, declared_prices(config)))
        else:
            sign = 1 if reward.maximise else -1
            charges[name] = harm_charges(values, sign, reward.high - reward.low)
    return charges


_ROUNDING = 1e-9
"""share of a limit by which a sum of charges may miss it through rounding alone"""


@dataclass(frozen=True, slots=True)
class Spending:
    """One limited resource: requests (in all, or in a segment), USD of money, or reward units of
    harm.

    spent: by the draws; expected: by the probabilities that were logged; planned: the part of the
    limit that belongs to the traffic so far, the whole limit without a horizon. Charges are those
    in force: a price or value that is estimated anew values past requests anew.
    """

    resource: str
    limit: float
    spent: float
    expected: float
    planned: float

    @property
    def left(self) -> float:
        """What may still be spent."""
        return self.limit - self.spent


class Exhausted(StrEnum):
    """Why no further request is covered: a limit is reached, or a charge is not known."""

    SPENT = "spent"
    UNPRICED = "unpriced"


class Purse:
    """Limits of one experiment over a ledger, at the charges of the last `revalue`.

    ledger: owned by the fold. charges: (K, K) by resource, for every resource with a limit.
    """

    def __init__(self, config: BudgetConfig, ledger: Ledger) -> None:
        limits = {name: getattr(config, name) for name in RESOURCES}
        self.limits = {name: float(each) for name, each in limits.items() if each is not None}
        self._horizon = config.horizon
        self._segments = config.segments
        self._ledger = ledger
        self._charges: dict[str, Floats] = {}
        self._spent: dict[str, float] = {}
        self._worst: dict[str, float] = {}

    def limit_requests(self, requests: int | None) -> None:
        """Another hard stop in requests, None for none; in force from the next `revalue`."""
        self.limits.pop("requests", None)
        if requests is not None:
            self.limits = {"requests": float(requests), **self.limits}

    def revalue(self, charges: Mapping[str, Floats]) -> None:
        """Put new charges in force, for past requests too."""
        self._charges = {name: charges[name] for name in self.limits}
        self._worst = {name: float(each.max()) for name, each in self._charges.items()}
        self._spent = {name: self._value(name, self._ledger.spent) for name in self.limits}

    def stopped(self, routed: Ints, model: Ints, randomized: Flags) -> Flags | None:
        """(n,) requests that the budget no longer covers, None where it covers them all.

        routed, model, randomized: (n,) what would be served. A request is covered while the
        dearest draw possible would not take the sum beyond a limit: that depends on draws before
        it alone, and whoever comes after a request that is not covered is not covered either.
        """
        result: Flags | None = None
        for name, limit in self.limits.items():
            room = limit * (1.0 + _ROUNDING) - self._spent[name] - self._worst[name]
            if room >= (len(routed) - 1) * self._worst[name]:
                continue
            if np.isinf(self._worst[name]):
                return np.ones(len(routed), dtype=bool)
            charge = np.where(randomized, self._charges[name][routed, model], 0.0)
            before = np.zeros(len(charge))
            np.cumsum(charge[:-1], out=before[1:])
            stopped = before > room
            result = stopped if result is None else result | stopped
        return result if result is not None and result.any() else None

    @property
    def covered(self) -> bool:
        """Whether the next request is covered, whatever is drawn for it: what `stopped` says of a
        request alone."""
        for name, limit in self.limits.items():
            worst = self._worst[name]
            room = limit * (1.0 + _ROUNDING) - self._spent[name] - worst
            if room < 0.0 or worst == np.inf:
                return False
        return True

    @property
    def exhausted(self) -> Exhausted | None:
        """Why the next request is not covered, whatever is drawn for it; None where it is."""
        if not self.limits.keys() <= self._worst.keys():
            return None  # nothing was valued yet: an agent that does not decide
        if any(np.isinf(worst) for worst in self._worst.values()):
            return Exhausted.UNPRICED
        rooms = (
            limit * (1.0 + _ROUNDING) - self._spent[name] - self._worst[name]
            for name, limit in self.limits.items()
        )
        return Exhausted.SPENT if any(room < 0.0 for room in rooms) else None

    def charge(self, routed: Ints, model: Ints, randomized: Flags) -> None:
        """Count n decisions that were made."""
        for name in self.limits:
            charges = self._charges[name]
            if len(routed) == 1:
                if randomized[0]:
                    self._spent[name] += float(charges[routed[0], model[0]])
            else:
                self._spent[name] += float(charges[routed[randomized], model[randomized]].sum())

    def charge_one(self, routed: int, model: int) -> None:
        """Count a decision that was randomized."""
        for name in self.limits:
            self._spent[name] += float(self._charges[name][routed, model])

    def by_model(self, name: str) -> Floats:
        """(K,) mean charge of a request that is randomized onto each model, by who is routed."""
        routed = self._ledger.expected.sum(axis=1)
        routed = routed if routed.sum() > 0.0 else np.ones(len(routed))
        result: Floats = routed / routed.sum() @ self._charges[name]
        return result

    def covers(self, name: str) -> bool:
        """Whether the dearest draw possible would still be within a limit."""
        room = self.limits[name] * (1.0 + _ROUNDING) - self._spent[name]
        return room >= self._worst[name]

    def dearest(self, name: str) -> float:
        """The charge of the dearest draw possible."""
        return self._worst[name]

    def rate(self, rate: float) -> float:
        """The rate that spends what is left in the time left; `rate` without a horizon or traffic.

        The smallest over the resources. 0 once the horizon is over.
        """
        arrivals = self._ledger.arrivals
        if self._horizon is None or arrivals.total == 0:
            return rate
        coming = arrivals.expected(arrivals.first + self._horizon)
        if coming <= 0.0:
            return 0.0
        return min(
            max(limit - self._spent[name], 0.0) / (coming * self._mean_charge(name))
            for name, limit in self.limits.items()
        )

    def spending(self) -> list[Spending]:
        """Every limited resource as it stands."""
        share = 1.0
        if self._horizon is not None:
            arrivals = self._ledger.arrivals
            coming = arrivals.expected(arrivals.first + self._horizon)
            share = arrivals.total / max(arrivals.total + coming, 1.0)
        return [
            Spending(
                resource=name,
                limit=limit,
                spent=self._value(name, self._ledger.spent),
                expected=self._value(name, self._ledger.expected),
                planned=share * limit,
            )
            for name, limit in self.limits.items()
        ] + [
            Spending(
                resource=f"requests in {segment.name}",
                limit=float(segment.max_requests),
                spent=float(self._ledger.by_segment[index]),
                expected=float(self._ledger.expected_by_segment[index]),
                planned=float(segment.max_requests),
            )
            for index, segment in enumerate(self._segments)
        ]

    def _value(self, name: str, counts: Floats) -> float:
        # A count of 0 costs nothing, even where a charge is not known.
        counted = counts > 0.0
        return float((counts[counted] * self._charges[name][counted]).sum())

    def _mean_charge(self, name: str) -> float:
        """Of a randomized request: by the probabilities so far, of all pairs before any."""
        expected = self._ledger.expected
        if expected.sum() > 0.0:
            mean = self._value(name, expected) / float(expected.sum())
        else:
            mean = float(self._charges[name].mean())
        return max(mean, 1e-300)
