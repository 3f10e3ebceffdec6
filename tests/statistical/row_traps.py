"""Which rows enter, and in which order: each trap with the rows METHOD allows and with those a
naive log would take, both put to the shipped bounded sequence.

Two models, uniform draws, no prediction (every mu is 1/2). Requests are recorded for all runs
first; then each side of the trap decides which of them become rows, in which order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from many_runs import Setup, scored, simulate
from sequences import Bounded, BoundedValues
from streams import Stream
from watchers import EverMissed

from equipoise.agent.inference import levels
from equipoise.agent.inference.score import Rows

MODELS = 2
NEVER = 10**9


@dataclass(frozen=True)
class Recorded:
    """Rows of every run, (runs, n) each: e, whether and what was drawn, reward and whether known.

    missing: a declared value, None for the worst case.
    """

    rate: np.ndarray
    randomized: np.ndarray
    model: np.ndarray
    reward: np.ndarray
    known: np.ndarray
    missing: float | None = None

    def taken(self, order):
        """The rows at `order` (runs, m) of every run, in that order."""
        names = ("rate", "randomized", "model", "reward", "known")
        parts = {name: np.take_along_axis(getattr(self, name), order, axis=1) for name in names}
        return replace(self, **parts)

    def kept(self, keep):
        """The rows with `keep` (runs, n), as many in every run as the shortest has."""
        order = np.argsort(~keep, axis=1, kind="stable")
        return self.taken(order[:, : keep.sum(axis=1).min()])

    def decide(self, setup, snapshot, start, size, rng):
        """A block for `simulate`; predictions are off."""
        part = slice(start, start + size)
        runs = len(self.rate)
        rate, model = self.rate[:, part].ravel(), self.model[:, part].ravel()
        count = len(rate)
        rows = Rows.of(
            rate,
            np.full((count, MODELS), 1.0 / MODELS),
            self.randomized[:, part].ravel(),
            model,
            np.zeros(count, dtype=int),
            np.zeros((count, MODELS)),
            self.reward[:, part].ravel(),
            self.known[:, part].ravel(),
            self.missing,
        )
        off = np.zeros_like(snapshot.factor)
        snapshot = replace(snapshot, offset=off + 0.5, factor=off)
        return scored(setup, snapshot, rows, (runs, size, MODELS + 1))


def record(values, runs, rows, rate, rng):
    """Recorded requests of a Bernoulli world; who is not randomized is routed to model 0."""
    shape = (runs, rows)
    randomized = rng.random(shape) < rate
    model = np.where(randomized, rng.integers(0, MODELS, shape), 0)
    reward = (rng.random(shape) < np.array(values)[model]).astype(float)
    return Recorded(np.full(shape, rate), randomized, model, reward, np.ones(shape, dtype=bool))


def ever_missed(recorded, values, rate, delta=0.05):
    """Share of runs in which a contrast or a value of the two models is ever missed, each kind at
    delta / 2, and the mean of the score of model 0 at the end."""
    runs, rows = recorded.rate.shape
    setup = Setup(Stream(tuple(values), rows), rate=rate)
    truth = np.array([*values, np.nan])
    contrast, value = truth[:, None] - truth[None, :], truth[None]
    pair = levels.pair_level(delta / 2, MODELS)
    end = levels.value_level(delta / 2, MODELS)
    watchers = [
        EverMissed(Bounded(pair, setup), lambda t: contrast),
        EverMissed(BoundedValues(end, setup), lambda t: value),
        EverMissed(BoundedValues(end, setup, upper=True), lambda t: -value),
    ]
    sums = simulate(setup, runs, 0, watchers, decide=recorded.decide)
    missed = np.any([watcher.missed for watcher in watchers], axis=0)
    return float(missed.mean()), float(sums.low[-1, :, 0].mean() / sums.t)


def delay(runs, rng):
    """Model 0's failures and model 1's successes come at once, the rest 1,500 requests later."""
    values, rate = (0.5, 0.5), 0.4
    recorded = record(values, runs, 3000, rate, rng)
    slow = (recorded.reward > 0) == (recorded.model == 0)
    slow &= recorded.randomized
    arrival = np.arange(3000) + np.where(slow, 1500, 0)
    order = np.argsort(arrival, axis=1, kind="stable")
    return values, rate, recorded, recorded.taken(order)


def missing(share, by_reward, rows=10_000):
    """A share of randomized rewards never comes; by reward: of successes alone, twice as often."""

    def trap(runs, rng):
        values, rate = (0.9, 0.6), 0.2
        recorded = record(values, runs, rows, rate, rng)
        chance = share * (2.0 * recorded.reward if by_reward else 1.0)
        lost = recorded.randomized & (rng.random(recorded.rate.shape) < chance)
        recorded = replace(recorded, known=~lost)
        return values, rate, recorded, recorded.kept(~lost)

    return trap


def declared(runs, rng):
    """30% missing, declared as 0: what is estimated is then the mean with 0 in their place. The
    naive reading takes it for the mean of all rewards."""
    values, rate = (0.9, 0.6), 0.2
    recorded = record(values, runs, 10_000, rate, rng)
    lost = recorded.randomized & (rng.random(recorded.rate.shape) < 0.3)
    recorded = replace(recorded, known=~lost, missing=0.0)
    return tuple(0.7 * v for v in values), rate, recorded, recorded, values


def bulk(runs, rng):
    """Five ingested rows for each decided one, left out or counted as 'their mu'."""
    values, rate = (0.9, 0.6), 0.4
    decided = record(values, runs, 1500, rate, rng)
    none = replace(decided, randomized=np.zeros_like(decided.randomized))
    parts = {
        name: np.stack([getattr(decided, name), *[getattr(none, name)] * 5], axis=2).reshape(
            runs, -1
        )
        for name in ("rate", "randomized", "model", "reward", "known")
    }
    return values, rate, decided, Recorded(**parts)


def capped(runs, rng):
    """e is 0 from row 1,000 to row 3,999 of 6,000; naive: those rows at the nominal e."""
    values, rate = (0.9, 0.6), 0.4
    recorded = record(values, runs, 6000, rate, rng)
    open_gate = (np.arange(6000) < 1000) | (np.arange(6000) >= 4000)
    open_gate = np.broadcast_to(open_gate, recorded.rate.shape)
    recorded = replace(recorded, randomized=recorded.randomized & open_gate)
    return values, rate, recorded.kept(open_gate), recorded


def sticky(runs, rng):
    """300 units of 20 requests, assigned once; a unit's requests share its luck. Rows are units
    with their mean reward, or, naively, requests."""
    values, rate, units, each = (0.5, 0.5), 0.8, 300, 20
    unit = record(values, runs, units, rate, rng)
    shape = (runs, units, each)
    chance = np.where(unit.reward > 0, 0.95, 0.05)[..., None]
    reward = (rng.random(shape) < chance).astype(float)
    one_row = replace(unit, reward=reward.mean(axis=2))
    many = {
        name: np.repeat(getattr(unit, name), each, axis=1)
        for name in ("rate", "randomized", "model", "known")
    }
    return values, rate, one_row, Recorded(reward=reward.reshape(runs, -1), **many)


TRAPS = {
    "delay depends on the reward: decision order, or on arrival": delay,
    "10% missing at random: worst case, or dropped": missing(0.1, by_reward=False, rows=40_000),
    "30% missing at random: worst case, or dropped": missing(0.3, by_reward=False),
    "missing only where successful (20%): worst case, or dropped": missing(0.1, by_reward=True),
    "30% missing declared as 0: for that mean, or read as the mean of all": declared,
    "five bulk rows per decided row: left out, or counted as mu": bulk,
    "e = 0 for a while: rows left out, or counted": capped,
    "sticky units of 20 requests: a row is a unit, or a request": sticky,
}


def run_trap(name, runs, seed):
    """(ever-miss as METHOD has it, ever-miss of the naive rows, the two mean scores, truth)."""
    values, rate, right, naive, *read_as = TRAPS[name](runs, np.random.default_rng(seed))
    good, score = ever_missed(right, values, rate)
    bad, naive_score = ever_missed(naive, read_as[0] if read_as else values, rate)
    return {
        "right": good,
        "naive": bad,
        "right_score": score,
        "naive_score": naive_score,
        "truth": (read_as[0] if read_as else values)[0],
    }
