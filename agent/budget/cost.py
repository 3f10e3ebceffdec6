"""What randomizing has cost so far: requests, USD, and rewards against what routing would have got.

Counts of randomized requests by routed and assigned model are the ledger's, of all eras. What they
are worth follows from a `Basis`: prices and values as they are known now, for past requests too, so
that the figures are those that a budget in money stops by. A price that changed revalues the past.

    USD          sum over pairs (routed r, assigned m) of count[r, m] price[m]
    extra USD    the same with price[m] - price[r]
    gained       sum over models m of count[m] (V[m] - V[routing]), more being better

The values are of one estimator family, with the covariance of their errors; the value of today's
routing comes from other requests, and its error is independent of theirs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from equipoise.store.batches import Flags, Floats


class Basis(msgspec.Struct, frozen=True, kw_only=True):
    """What counts are valued by. log_rows: the log up to here.

    prices: (K,) USD per request, None where unknown. rewards, totals: (K,) how many rewards of
    randomized requests came, and their sums. family: of the values. values, covariance: (K,) and
    (K, K), reward units, NaN where unknown; routing: the value of today's routing and its
    variance. sign: -1 where smaller rewards are better. replays_usd: known costs of replays.
    """

    log_rows: int
    prices: list[float | None]
    rewards: list[int]
    totals: list[float]
    family: str
    values: list[float]
    covariance: list[list[float]]
    routing: tuple[float, float]
    sign: int
    replays_usd: float


class Amounts(msgspec.Struct, frozen=True, kw_only=True):
    """requests: randomized, and with sticky units those that follow one. usd: for their answers, by
    the price of the model that was assigned; extra_usd: what that is more than for the models that
    were routed, negative where it is less; null where a price is unknown. rewards, reward_sum: of
    these requests, and of rows that were drawn elsewhere, as many as came. gained: rewards gained
    against today's routing, more being better and negative where they were lost; every request
    counts, rated or not; null where a value or its error is unknown. gained_error: its standard
    error."""

    requests: int
    usd: float | None
    extra_usd: float | None
    rewards: int | None
    reward_sum: float | None
    gained: float | None
    gained_error: float | None


class ModelAmounts(Amounts, frozen=True, kw_only=True):
    """The same of the requests that were randomized onto one model. model: its name."""

    model: str


class Spent(Amounts, frozen=True, kw_only=True):
    """The same of all of them. models: each alone. unpriced: models without a price. family: whose
    values `gained` rests on; log_rows: the rows of the log that those and the rewards hold; null
    while nothing was estimated. replays_usd: known costs of replays, beside all this."""

    models: list[ModelAmounts]
    unpriced: list[str]
    family: str | None
    log_rows: int | None
    replays_usd: float | None

    def __str__(self) -> str:
        rows = [(each.model, each) for each in self.models]
        lines = [_line(name, amounts) for name, amounts in (*rows, ("in all", self))]
        if self.unpriced:
            lines.append(f"no price: {', '.join(self.unpriced)}")
        return "\n".join(lines)


def spent_so_far(
    models: Sequence[str],
    counts: Floats,
    basis: Basis | None,
    prices: Sequence[float | None] | None = None,
) -> Spent:
    """Counts (K, K) by routed (row) and assigned model (column), valued by a basis.

    basis: None while nothing was estimated. prices: (K,) declared since; a known one replaces
    that of the basis.
    """
    size = len(models)
    known = [None] * size if basis is None else basis.prices
    known = [
        new if new is not None else old for new, old in zip(prices or known, known, strict=True)
    ]
    charges: Floats = np.array([math.nan if each is None else each for each in known])
    parts = [_amounts(counts, basis, charges, np.arange(size) == index) for index in range(size)]
    return Spent(
        **_amounts(counts, basis, charges, np.ones(size, dtype=bool)),
        models=[ModelAmounts(model=name, **part) for name, part in zip(models, parts, strict=True)],
        unpriced=[name for name, price in zip(models, known, strict=True) if price is None],
        family=None if basis is None else basis.family,
        log_rows=None if basis is None else basis.log_rows,
        replays_usd=None if basis is None else basis.replays_usd,
    )


def _amounts(counts: Floats, basis: Basis | None, prices: Floats, of: Flags) -> dict[str, Any]:
    """`Amounts` of what was randomized onto the models `of` (K,), as its fields."""
    taken = np.where(of, counts, 0.0)
    onto, routed = taken.sum(axis=0), taken.sum(axis=1)
    usd = _weighted(onto, prices)
    # A request that was randomized onto its own routed model costs nothing more, at any price.
    served = _weighted(onto - np.diag(taken), prices)
    instead = _weighted(routed - np.diag(taken), prices)
    amounts: dict[str, Any] = {
        "requests": int(onto.sum()),
        "usd": usd,
        "extra_usd": None if served is None or instead is None else served - instead,
        "rewards": None,
        "reward_sum": None,
        "gained": None,
        "gained_error": None,
    }
    if basis is not None:
        amounts["rewards"] = int(np.array(basis.rewards)[of].sum())
        amounts["reward_sum"] = float(np.array(basis.totals)[of].sum())
        amounts["gained"], amounts["gained_error"] = _gained(onto, basis)
    return amounts


def _gained(onto: Floats, basis: Basis) -> tuple[float | None, float | None]:
    """Rewards gained by (K,) requests against today's routing, and the standard error of that."""
    total = float(onto.sum())
    if total == 0.0:
        return 0.0, 0.0
    rows = np.flatnonzero(onto)
    share = onto[rows]
    value, variance = basis.routing
    gained = float(share @ np.array(basis.values)[rows]) - total * value
    covariance = np.array(basis.covariance)[np.ix_(rows, rows)]
    square = float(share @ covariance @ share) + total**2 * variance
    if not (math.isfinite(gained) and math.isfinite(square) and square >= 0.0):
        return None, None
    return basis.sign * gained, math.sqrt(square)


def _weighted(counts: Floats, prices: Floats) -> float | None:
    """Sum of counts times prices, None where a price that is counted is unknown."""
    rows = np.flatnonzero(counts)
    total = float(counts[rows] @ prices[rows])
    return total if math.isfinite(total) else None


def _line(name: str, amounts: Amounts) -> str:
    def shown(value: float | None, form: str) -> str:
        return "unknown" if value is None else format(value, form)

    gained = "unknown"
    if amounts.gained is not None:
        gained = f"{amounts.gained:+.1f} ± {amounts.gained_error:.1f}"
    return (
        f"{name}: {amounts.requests:,} randomized, {shown(amounts.usd, '.4f')} USD,"
        f" {shown(amounts.extra_usd, '+.4f')} USD extra, {shown(amounts.rewards, ',')} rewards,"
        f" gained {gained}"
    )
