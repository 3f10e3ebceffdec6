"""Plan: is the experiment still undecided after what it was planned to take?"""

from __future__ import annotations

import numpy as np

from equipoise.agent.monitors.check import Check

NEAR = 0.8
"""Share of the plan from which an undecided experiment asks for a look."""


def plan(
    planned: int,
    randomized: int,
    decided: bool,
    foreseen: tuple[float, float] | None = None,
) -> Check:
    """Compare the randomized requests of an era with those planned until its decision.

    planned: what `equipoise plan` said to plan for; randomized: certified so far; decided: whether
    the status is `decided` or `equivalent`; foreseen: of the requests that the newest forecast
    expects in all, the tenth that needs fewest and the median. An alarm needs all but a tenth to
    exceed the plan, for forecasts from few rewards swing. There is no test in this check, hence no
    level.
    """
    share = randomized / planned
    fewest, median = foreseen or (np.nan, np.nan)
    figures = {
        "planned": planned,
        "randomized": randomized,
        "share": share,
        "foreseen": median,
        "foreseen_at_least": fewest,
    }
    spent = f"{randomized:,} of {planned:,} planned randomized requests were made"
    if decided:
        return Check("plan", "ok", f"The question is decided; {spent}.", figures)
    if not randomized:
        sentence = f"No randomized request of this era counts yet, of {planned:,} planned."
        return Check("plan", "unknown", sentence, figures)
    if share > 1.0:
        sentence = f"The plan slips: {spent}, and nothing is decided. Plan again from the store."
        return Check("plan", "alarm", sentence, figures)
    if fewest > planned:
        sentence = f"The plan will slip: {spent}, and {_wording(fewest, median)}."
        return Check("plan", "alarm", sentence, figures)
    if median > planned:
        sentence = f"The plan may slip: {spent}, and {_wording(fewest, median)}."
        return Check("plan", "watch", sentence, figures)
    if share >= NEAR:
        return Check("plan", "watch", f"The plan may slip: {spent}, nothing is decided.", figures)
    return Check("plan", "ok", f"{spent}; nothing is decided yet.", figures)


def _wording(fewest: float, median: float) -> str:
    def number(value: float) -> str:
        return f"{value:,.0f}" if np.isfinite(value) else "more than can be foreseen"

    return (
        f"by the newest forecast half of such experiments take more than {number(median)}, and"
        f" nine in ten more than {number(fewest)}"
    )
