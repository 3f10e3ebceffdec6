"""What becomes of an assignment: compliance, rewards, delays, drift, and replays that may be wrong.

At request t (from 0) a share s_t in [0, 1] of the drift has happened: 0 before the first request,
1 from request `drift_over` on, and in between t / drift_over (linear) or 0 (change). With
d = |drift| the world at t is a mixture of two fixed worlds:

- rewards of the models that move: E[R] = (1 - d s_t) · mean + d s_t · end, the end being 1 for a
  positive drift and 0 for a negative one. A mixture stays in [0, 1], so nothing clips;
- contexts: a share d s_t of the requests comes from one half of the contexts, the half that is
  worth more on average over the models if drift is positive, less if negative; the rest comes from
  all of them. The replays still show all contexts alike, as replays made before the drift do.

Either way every value at t is linear in s_t, and its running average over any set of requests is
the value at the average of s_t over them.

Two things go wrong independently of everything else, request by request:

- undelivered: the client timed out before it heard the agent's answer, and asked the routed model;
- non-compliance: the model that was asked failed and the fallback answered in its place, either
  the routed model or one model named beforehand. It hits routed traffic like any other, so it was
  there in the usage log too, which records the model that answered.

What a model is worth is then read by intention to treat: the mean reward of requests that are
*sent to* it and delivered, with the fallbacks that this brings. It is
(1 - p) · E[R | served m] + p · E[R | fallback], so it differs from the worth of the model itself,
and the differences between models shrink by 1 - p.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from equipoise.replay.worlds.choice import generator, standardized
from equipoise.replay.worlds.options import ROUTED, WorldError, WorldOptions
from equipoise.store.batches import Flags, Floats, Ints


class Rewards:
    """Draws rewards in [0, 1] around given means; some of them are never seen.

    Every draw takes the same number of words from the generator whatever the means are, so that
    two policies that serve different models stay on common random numbers.
    """

    def __init__(self, options: WorldOptions) -> None:
        self._bounded = options.reward == "bounded"
        self._exact = options.reward == "exact"
        self._concentration = options.concentration
        # P(observed | reward) = sure + slope · reward.
        self._sure = 1.0 - options.missing - max(options.missing_by_reward, 0.0)
        self._slope = options.missing_by_reward
        self._complete = options.missing == 0 and options.missing_by_reward == 0

    def draw(self, mean: Floats, rng: np.random.Generator) -> Floats:
        """(n,) rewards with the given means (n,), NaN where they never arrive."""
        if self._exact:
            reward = mean.copy()
        elif self._bounded:
            reward = self._beta(mean, np.random.default_rng(int(rng.integers(2**63))))
        else:
            reward = (rng.random(len(mean)) < mean).astype(np.float64)
        if not self._complete:
            reward[rng.random(len(mean)) >= self._sure + self._slope * reward] = np.nan
        return reward

    def variance(self, mean: Floats) -> Floats:
        """Variance of rewards with these means (any shape)."""
        spread = mean * (1.0 - mean)
        if self._exact:
            return np.zeros_like(spread)
        return spread / (1.0 + self._concentration) if self._bounded else spread

    def observed(
        self, mean: Floats, in_time: tuple[Floats, Floats] | None = None
    ) -> tuple[Floats, Floats]:
        """E[1{observed}] and E[R 1{observed}] for rewards with these means (any shape), exact.

        in_time: P(in time) of a failure and of a success, linear in the reward between; of shapes
        that broadcast with mean; None where all rewards are.
        """
        square = mean**2 + self.variance(mean)
        if in_time is None:
            return self._sure + self._slope * mean, self._sure * mean + self._slope * square
        cube = mean**3 if self._exact else square
        if self._bounded:
            # E R^3 = E R^2 · (a + 2) / (a + b + 2), a the first parameter of the Beta.
            total = self._concentration
            cube = square * (mean * total + 2.0) / (total + 2.0)
        # P(observed | r) = (sure + slope r)(failures + rise r), a polynomial in r.
        failures, rise = in_time[0], in_time[1] - in_time[0]
        first, second = self._sure * failures, self._slope * rise
        between = self._sure * rise + self._slope * failures
        return (
            first + between * mean + second * square,
            first * mean + between * square + second * cube,
        )

    def _beta(self, mean: Floats, rng: np.random.Generator) -> Floats:
        # A ratio of gammas stays exact at means 0 and 1, where a Beta's parameters are not legal.
        up = rng.standard_gamma(mean * self._concentration)
        down = rng.standard_gamma((1.0 - mean) * self._concentration)
        reward: Floats = up / (up + down)
        return reward


AT_ONCE = 1.0
"""Seconds of the outcome window where every reward comes with its batch or never."""

WINDOWS = 20.0
"""Mean delays that the automatic outcome window waits; a slower reward comes once in 20,000."""


class Delays:
    """Exponential delays whose mean depends on the reward.

    A reward r in [0, 1] is delayed like a success with probability r and like a failure otherwise,
    which for rewards 0 and 1 is what they are. The mean delay is delay · (1 + tilt_m) for
    successes and delay · (1 - tilt_m) for failures; tilt_m is delay_by_reward, its sign turned
    for models worth less than the average one where delay_pattern is opposite.

    active: whether rewards are delayed. window: seconds until a reward counts as missing. timed:
    whether the stream has to keep a clock; without, rewards come with their batch or never.
    tilt: (K,).
    """

    def __init__(self, values: Floats, options: WorldOptions) -> None:
        """values: (K,) of the models."""
        self.active = options.delay > 0
        self.timed = self.active or options.window > 0
        automatic = WINDOWS * options.delay if self.active else AT_ONCE
        self.window = options.window or automatic
        self._mean = options.delay
        self.tilt: Floats = np.full(len(values), options.delay_by_reward)
        if options.delay_pattern == "opposite":
            self.tilt[values < values.mean()] *= -1.0

    def draw(self, model: Ints, reward: Floats, rng: np.random.Generator) -> Floats:
        """(n,) seconds from the request to its reward. Takes the same randomness for any reward."""
        kind = np.where(rng.random(len(reward)) < reward, 1.0, -1.0)
        scale = self._mean * (1.0 + kind * self.tilt[model])
        seconds: Floats = scale * rng.standard_exponential(len(reward))
        return seconds

    def in_time(self) -> tuple[Floats, Floats]:
        """P(within the window) of failures and of successes, each (K,)."""
        failures, successes = (self._within(1.0 + kind * self.tilt) for kind in (-1.0, 1.0))
        return failures, successes

    def _within(self, factor: Floats) -> Floats:
        mean = self._mean * factor
        surely = np.full(len(mean), -np.inf)  # the exponent where there is no delay
        within: Floats = -np.expm1(np.divide(-self.window, mean, out=surely, where=mean > 0))
        return within


class Drift:
    """What moves in a world, how far and when.

    active: whether anything does. moves: (K,) which models' rewards do.
    """

    def __init__(self, base: Floats, values: Floats, options: WorldOptions) -> None:
        """base (C, K): worth of every model in every context; values (K,) before the drift."""
        self.active = options.drift != 0
        self._size = abs(options.drift)
        self._end = 1.0 if options.drift > 0 else 0.0
        self._over = options.drift_over
        self._linear = options.drift_shape == "linear"
        count, models = base.shape
        self.moves: Flags = np.zeros(models, dtype=bool)
        self.half: Ints | None = None
        if not self.active:
            return
        if options.drift_of == "contexts":
            order = np.argsort(base.mean(axis=1), kind="stable")
            size = (count + 1) // 2
            self.half = np.sort(order[-size:] if options.drift > 0 else order[:size])
        elif options.drift_of == "all":
            self.moves[:] = True
        else:
            best = options.drift_of == "best"
            self.moves[int(np.argmax(values) if best else np.argmin(values))] = True

    def share(self, number: Ints) -> Floats:
        """(n,) s_t: the share of the drift that has happened at requests `number` (n,)."""
        if self._linear:
            return np.clip(number / self._over, 0.0, 1.0)
        return (number >= self._over).astype(np.float64)

    def redraw(self, rows: Ints, share: Floats, rng: np.random.Generator) -> Ints:
        """(n,) context rows of requests under a drift of contexts, from rows of all contexts."""
        if self.half is None:
            return rows
        moved = rng.random(len(rows)) < self._size * share
        return np.where(moved, self.half[rng.integers(len(self.half), size=len(rows))], rows)

    def moved(self, mean: Floats, model: Ints | slice, share: Floats | float) -> Floats:
        """Expected rewards after the drift; mean, model and share of shapes that broadcast."""
        weight = self._size * share * self.moves[model]
        moved: Floats = (1.0 - weight) * mean + weight * self._end
        return moved

    def contexts(self, count: int) -> Floats:
        """(C,) probabilities of the contexts when all of the drift has happened."""
        weights = np.full(count, 1.0 / count)
        if self.half is not None:
            weights *= 1.0 - self._size
            weights[self.half] += self._size / len(self.half)
        return weights


@dataclass(frozen=True, slots=True)
class Service:
    """How n decisions were carried out.

    model: (n,) who answered. attempt: (n,) 1, or 2 where the fallback did; the fallback may be the
    model that was asked first. delivered: (n,) false where the assignment was never heard of.
    """

    model: Ints
    attempt: Ints
    delivered: Flags

    @property
    def as_assigned(self) -> Flags:
        """(n,) whether the answer is due to the assignment."""
        as_assigned: Flags = self.delivered & (self.attempt == 1)
        return as_assigned


class Compliance:
    """Fallbacks and lost answers of a world. active: whether there are any."""

    def __init__(self, models: Sequence[str], options: WorldOptions) -> None:
        """Raises WorldError where the fallback is not one of the models."""
        self.active = options.noncompliance > 0 or options.undelivered > 0
        self._fails = options.noncompliance
        self._lost = options.undelivered
        self.fallback: int | None = None
        if options.fallback != ROUTED:
            if options.fallback not in models:
                choices = ", ".join([ROUTED, *models])
                raise WorldError(f"fallback is {options.fallback!r}, must be one of {choices}")
            self.fallback = list(models).index(options.fallback)

    def serve(self, asked: Ints, routed: Ints, rng: np.random.Generator) -> Service:
        """Who answers requests that the agent sent to `asked` (n,), production to `routed`."""
        count = len(asked)
        if not self.active:
            return Service(asked, np.ones(count, dtype=np.int64), np.ones(count, dtype=bool))
        lost = rng.random(count) < self._lost
        fails = rng.random(count) < self._fails
        instead = routed if self.fallback is None else self.fallback
        model = np.where(fails, instead, np.where(lost, routed, asked))
        return Service(model, 1 + fails.astype(np.int64), ~lost)

    def answered(self, choice: Floats) -> Floats:
        """(..., K) who answers routed traffic, from the probabilities (..., K) of routing."""
        if self.fallback is None or not self._fails:
            return choice
        answered = (1.0 - self._fails) * choice
        answered[..., self.fallback] += self._fails
        return answered

    def intended(self, values: Floats, routing: float) -> tuple[Floats, float]:
        """Values (K,) and value of today's routing by intention to treat, from those as served."""
        if not self._fails:
            return values, routing
        instead = routing if self.fallback is None else float(values[self.fallback])
        return (
            (1.0 - self._fails) * values + self._fails * instead,
            (1.0 - self._fails) * routing + self._fails * instead,
        )


_KEPT_WHEN_CUT = 0.5
_LOW_END = 0.005


def replayed_outputs(outputs: Floats, models: Sequence[str], options: WorldOptions) -> Floats:
    """(C, K, q) outputs as the simulator has them, from those of the live models."""
    return truncated(drifted(outputs, models, options), outputs, options.simulator_truncation)


def drifted(outputs: Floats, models: Sequence[str], options: WorldOptions) -> Floats:
    """Each model's outputs shifted by `simulator_drift` deviations, root mean square over q."""
    if options.simulator_drift == 0:
        return outputs
    q = outputs.shape[2]
    directions = np.array(
        [generator(options.world_seed, "drift", name).standard_normal(q) for name in models]
    )
    directions /= np.sqrt((directions**2).mean(axis=1, keepdims=True))
    shifted: Floats = outputs + options.simulator_drift * directions * outputs.std(axis=(0, 1))
    return shifted


def truncated(replayed: Floats, live: Floats, share: float) -> Floats:
    """The given share of rows cut short: the longest by their mean standardized feature.

    A cut row's features move half way to the low end (0.5% quantile) of the live table; a
    feature that is already below it stays. Which models suffer thus depends on how long they
    are, which is what makes truncation a bias and not only noise.
    """
    size = standardized(replayed).mean(axis=2)
    count = round(share * size.size)
    if count == 0:
        return replayed
    cut = np.zeros(size.size, dtype=bool)
    cut[np.argsort(-size, axis=None, kind="stable")[:count]] = True
    low = np.quantile(live, _LOW_END, axis=(0, 1))
    shorter = low + _KEPT_WHEN_CUT * (replayed - low)
    moves = cut.reshape(size.shape)[:, :, None] & (replayed > low)
    return np.where(moves, shorter, replayed)


def present_rows(worth: Floats, models: Sequence[str], options: WorldOptions) -> Flags:
    """(C, K) which replays exist; worth (C, K) decides who goes first under a tilt.

    A row is absent with probability (1 - tilt) · share + tilt · line, where the line has the same
    mean over the rows and falls linearly with the rank of worth, equal worth having equal ranks.
    """
    share, tilt = options.simulator_missing, options.simulator_missing_tilt
    if share == 0:
        return np.ones(worth.shape, dtype=bool)
    _, position, counts = np.unique(worth, return_inverse=True, return_counts=True)
    rank = ((np.cumsum(counts) - counts / 2) / worth.size)[position].reshape(worth.shape)
    # Beyond a share of one half the line ends above 0, so that it still starts at 1.
    line = 2 * share * (1 - rank) if share <= 0.5 else 1 - 2 * (1 - share) * rank
    absent = (1 - tilt) * share + tilt * line
    uniform = np.stack(
        [generator(options.world_seed, "missing", name).random(len(worth)) for name in models],
        axis=1,
    )
    present: Flags = uniform >= absent
    return present
