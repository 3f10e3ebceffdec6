"""Plan: is the experiment still undecided after what it was planned to take?"""

from __future__ import annotations

from equipoise.agent.monitors.check import Check

NEAR = 0.8
"""Share of the plan from which an undecided experiment asks for a look."""


def plan(planned: int, randomized: int, decided: bool) -> Check:
    """Compare the randomized requests of an era with those planned until its decision.

    planned: what `equipoise plan` said to plan for; randomized: certified so far; decided: whether
    the status is `decided` or `equivalent`. There is no chance in this check, hence no level.
    """
    share = randomized / planned
    figures = {"planned": planned, "randomized": randomized, "share": share}
    spent = f"{randomized:,} of {planned:,} planned randomized requests were made"
    if decided:
        return Check("plan", "ok", f"The question is decided; {spent}.", figures)
    if not randomized:
        sentence = f"No randomized request of this era counts yet, of {planned:,} planned."
        return Check("plan", "unknown", sentence, figures)
    if share > 1.0:
        sentence = f"The plan slips: {spent}, and nothing is decided. Plan again from the store."
        return Check("plan", "alarm", sentence, figures)
    if share >= NEAR:
        return Check("plan", "watch", f"The plan may slip: {spent}, nothing is decided.", figures)
    return Check("plan", "ok", f"{spent}; nothing is decided yet.", figures)
