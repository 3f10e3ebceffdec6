"""Outputs: do the requests that got a reward also say what the model answered?"""

from __future__ import annotations

from equipoise.agent.monitors.check import Check, percent

FEWEST_ROWS = 30
FEW = 0.95
"""Share of rewarded requests with outputs below which the check asks for a look."""
MOST_MISS = 0.5
"""Share below which it raises an alarm: what scorers are fitted to is no longer the experiment."""


def outputs(rewarded: float, complete: float) -> Check:
    """Compare the randomized requests that have a reward with those that have outputs too.

    rewarded, complete: their numbers. Families that score outputs are fitted to the second kind
    alone; `ipw` and certified intervals use the first. There is no test in this check, hence no
    level.
    """
    share = complete / rewarded if rewarded else float("nan")
    figures = {"rewarded": rewarded, "complete": complete, "share": share}
    if rewarded < FEWEST_ROWS:
        sentence = f"{rewarded:,.0f} randomized requests have a reward: too few to look at outputs."
        return Check("outputs", "unknown", sentence, figures)
    facts = f"{percent(share)} of {rewarded:,.0f} rewarded randomized requests have outputs"
    if share >= FEW:
        return Check("outputs", "ok", f"{facts}.", figures)
    harm = (
        "Families that score outputs leave the others out; send `outputs` with the response"
        " (certified intervals and ipw need none)."
    )
    return Check("outputs", "watch" if share >= MOST_MISS else "alarm", f"{facts}. {harm}", figures)
