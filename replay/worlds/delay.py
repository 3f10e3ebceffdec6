"""Rewards that take their time, and may so betray what they are."""

from __future__ import annotations

import numpy as np

from equipoise.replay.worlds.options import WorldOptions
from equipoise.store.batches import Floats, Ints

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
