"""Assignment audit: do models get the shares that their logged probabilities say?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from equipoise.agent.monitors import shares
from equipoise.agent.monitors.check import Check, by_evidence, percent
from equipoise.agent.monitors.monitor import Monitor
from equipoise.store.batches import Flags, Floats, Ints


class AssignmentAudit(Monitor):
    """A sample-ratio test that knows the moving weights, valid at every moment.

    Streams: each model's share of the randomized rows against pi_t(m), and the share of randomized
    rows among all against e_t. A gateway that drops, retries or overrides some assignments shows
    here, even where the agent's own draws are right.
    """

    name = "assignment"

    def __init__(self, models: Sequence[str], level: float = 0.01) -> None:
        super().__init__(models, level)
        self.sums = shares.empty(len(self.models) + 1)

    def update(self, rate: Floats, probabilities: Floats, model: Ints, randomized: Flags) -> None:
        """rate: (n,) e; probabilities: (n, K) pi; model: (n,) assigned; randomized: (n,)."""
        count = len(self.models)
        drawn = np.flatnonzero(randomized)
        hit = model[drawn, None] == np.arange(count)
        shares.add(self.sums, slice(0, count), probabilities[drawn], hit)
        shares.add(self.sums, slice(count, None), rate[:, None], randomized[:, None])

    def result(self) -> Check:
        evidence = shares.log_evidence(self.sums)
        bias = shares.bias(self.sums)
        rows = self.sums["rows"]
        figures = {
            "rows": float(rows[-1]),
            "randomized": float(rows[0]),
            "log_evidence": shares.together(evidence),
            "bias": bias[:-1].tolist(),
            "rate_bias": float(bias[-1]),
        }
        if not rows[-1]:
            sentence = "No decision has been made yet, so no share of traffic can be checked."
            return Check(self.name, "unknown", sentence, figures, self.level)
        status = by_evidence(figures["log_evidence"], self.level)
        if status == "ok":
            sentence = (
                f"Models get the traffic that was drawn for them: {rows[0]:,.0f} randomized "
                f"requests agree with their logged probabilities."
            )
            return Check(self.name, status, sentence, figures, self.level)
        worst = int(np.argmax(evidence))
        known = worst < len(self.models)
        who = self.models[worst] if known else "The experiment"
        total = "randomized requests" if known else "requests"
        share = self.sums["hits"][worst] / rows[worst]
        logged = self.sums["expected"][worst] / rows[worst]
        verb = "gets" if status == "alarm" else "may be getting"
        sentence = (
            f"{who} {verb} {percent(share)} of {rows[worst]:,.0f} {total}, where "
            f"the logged probabilities say {percent(logged)}: "
            + (
                "assignments are lost, changed or drawn wrongly, and no interval can be trusted."
                if status == "alarm"
                else "it may still be chance."
            )
        )
        return Check(self.name, status, sentence, figures, self.level, (worst,) if known else ())
