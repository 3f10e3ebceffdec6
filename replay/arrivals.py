"""Rewards on their way: an agent sees each when it comes, and what never comes in time expires.

Time passes with the requests. At the end of a batch the agent gets, in this order: the responses
of the batch (outputs without rewards), the rewards that have come by then within their window,
the expiry of decisions whose window has ended, and the rewards that came too late, which it counts
and never uses. So whether a reward counts depends on its own delay alone, never on the batches.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from equipoise.agent.agent import Agent
from equipoise.replay.worlds.delay import Delays
from equipoise.store.batches import Flags, OutcomeBatch
from equipoise.store.slicing import select, take


class Arrivals:
    """The rewards that one stream waits for."""

    def __init__(self, delays: Delays, rng: np.random.Generator) -> None:
        """rng: of the delays alone, so that they are common to all policies."""
        self._delays = delays
        self._rng = rng
        self._waiting: OutcomeBatch | None = None
        self._late: Flags = np.zeros(0, dtype=bool)

    def __len__(self) -> int:
        """Rewards that will come, but have not yet."""
        return len(self._late)

    def deliver(self, agent: Agent, outcomes: OutcomeBatch) -> None:
        """Send the batch that was just decided, and everything that is due by its last request.

        outcomes: with all their rewards, NaN where one never comes; at: of their requests, rising.
        """
        agent.observe(replace(outcomes, reward=np.full(len(outcomes), np.nan)))
        self._send_off(outcomes)
        now = float(outcomes.at[-1])
        assert self._waiting is not None
        due = self._waiting.at <= now
        in_time, late = select(self._waiting, due & ~self._late), due & self._late
        agent.observe(_by_arrival(in_time))
        agent.expire(now)
        agent.observe(_by_arrival(select(self._waiting, late)))
        self._waiting, self._late = select(self._waiting, ~due), self._late[~due]

    def _send_off(self, outcomes: OutcomeBatch) -> None:
        seconds = np.zeros(len(outcomes))
        if self._delays.active:
            seconds = self._delays.draw(outcomes.served, outcomes.reward, self._rng)
        later = replace(
            outcomes,
            outputs=np.full(outcomes.outputs.shape, np.nan),
            at=outcomes.at + seconds,
        )
        comes = ~np.isnan(outcomes.reward)
        coming = select(later, comes)
        if self._waiting is not None:
            names = [name for name in OutcomeBatch.__slots__ if name != "metrics"]
            columns = [[getattr(part, name) for name in names] for part in (self._waiting, coming)]
            coming = OutcomeBatch(*map(np.concatenate, zip(*columns, strict=True)))
        self._waiting = coming
        self._late = np.concatenate([self._late, seconds[comes] > self._delays.window])


def _by_arrival(outcomes: OutcomeBatch) -> OutcomeBatch:
    order = np.argsort(outcomes.at, kind="stable")
    return take(outcomes, order)
