"""What one replayed stream is: how much log, how many requests, how many of them randomized."""

from __future__ import annotations

from dataclasses import dataclass, field

from equipoise.agent.config import SequenceName
from equipoise.replay.worlds import WorldOptions

GRID = (25, 50, 100, 200, 300, 500, 700, 1000, 1500, 2000, 3000, 4000)
"""EXP counts at which runs are compared; beyond it the last one doubles."""


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """One stream and how it is experimented on.

    obs: rows of usage log before the first decision. requests: live requests at the most; the
    stream ends earlier once the budget is spent. exp_rate: target share of requests randomized.
    budget: hard stop, in randomized requests; None for none. batch: requests decided together.
    refresh: requests between two refreshes. delta, epsilon: of the certified decision.
    sequence: the certified one, as in `CertifyConfig`.
    """

    requests: int
    exp_rate: float = 0.1
    budget: int | None = None
    obs: int = 5000
    batch: int = 100
    refresh: int = 200
    delta: float = 0.05
    epsilon: float = 0.0
    sequence: SequenceName = "bounded"
    world: WorldOptions = field(default_factory=WorldOptions)

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """EXP counts of the common grid that this stream will reach, from 0."""
        # Without a budget the count is random: nine tenths of its mean is reached by every run.
        reach = self.budget or int(0.9 * self.requests * self.exp_rate)
        grid = [0, *(count for count in GRID if count <= reach)]
        while grid[-1] >= GRID[-1] and grid[-1] * 2 <= reach:
            grid.append(grid[-1] * 2)
        if self.budget and grid[-1] != reach:
            grid.append(reach)
        return tuple(grid)
