"""Checks of how the experiment gets on: estimators, outputs, plan and watermark.

They judge what others have computed, without a state or a test of their own, so they have no level.

`watermark`: rows enter the certified sums in decision order, so the oldest decision that still
waits holds back every later one. That is meant to last for the reward's window at most. It lasts
longer where nobody closes what is over, where a decision is dated in the future, and for ever where
there is no window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from equipoise.agent.errors import SKEW, dated
from equipoise.agent.estimators.base import Estimate
from equipoise.agent.estimators.outliers import LeftOut
from equipoise.agent.monitors.check import Check, Status, listed, percent
from equipoise.store.words import plural, verb


def computed(
    estimates: Mapping[str, Estimate],
    configured: str,
    left_out: Sequence[LeftOut],
    features: Sequence[str],
    plain: str,
) -> Check:
    """An alarm where a family cannot be computed, worth a look where rows were left out.

    estimates: by family; configured: the family that recommends; left_out: what was left out of the
    sums; features: (p - 1,) names; plain: the family that recommends where `configured` fails.
    """
    failed = {
        name: str(estimate.diagnostics["failed"])
        for name, estimate in estimates.items()
        if "failed" in estimate.diagnostics
    }
    figures = {
        "failed": failed,
        "left_out": {each.source: each.groups / each.present for each in left_out},
    }
    losses = "; ".join(each.sentence(features) for each in left_out)
    if failed:
        reasons = dict.fromkeys(failed.values())
        sentence = "; ".join(
            f"{listed([name for name in failed if failed[name] == reason])} cannot be computed: "
            f"{reason}"
            for reason in reasons
        )
        sentence = f"{sentence}."
        if configured in failed and configured != plain:
            sentence += f" {plain} recommends meanwhile."
        if losses:
            sentence += f" {_whole(losses)}."
        return Check("estimators", "alarm", sentence, figures)
    if losses:
        sentence = f"{_whole(losses)}: every family but {plain} goes without them."
        return Check("estimators", "watch", sentence, figures)
    return Check("estimators", "ok", "Every family can be computed, from all of the log.", figures)


def _whole(text: str) -> str:
    return text[:1].upper() + text[1:]


FEWEST_ROWS = 30
FEW = 0.95
"""Share of rewarded requests with outputs below which the check asks for a look."""
MOST_MISS = 0.5
"""Share below which it raises an alarm: what scorers are fitted to is no longer the experiment."""


def outputs(rewarded: float, complete: float) -> Check:
    """Compare the randomized requests that have a reward with those that have outputs too.

    rewarded, complete: their numbers. Families that score outputs are fitted to the second kind
    alone; `ipw` and certified intervals use the first.
    """
    share = complete / rewarded if rewarded else float("nan")
    figures = {"rewarded": rewarded, "complete": complete, "share": share}
    if rewarded < FEWEST_ROWS:
        rows = f"{plural(rewarded, 'randomized request')} {verb(rewarded, 'has', 'have')}"
        sentence = f"{rows} a reward: too few to look at outputs."
        return Check("outputs", "unknown", sentence, figures)
    facts = f"{percent(share)} of {rewarded:,.0f} rewarded randomized requests have outputs"
    if share >= FEW:
        return Check("outputs", "ok", f"{facts}.", figures)
    harm = (
        "Families that score outputs leave the others out; send `outputs` with the response"
        " (certified intervals and ipw need none)."
    )
    return Check("outputs", "watch" if share >= MOST_MISS else "alarm", f"{facts}. {harm}", figures)


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
    exceed the plan, for forecasts from few rewards swing.
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


PATIENCE = 20.0
"""Without a window: how many times as long as the rewards it holds back took a decision may wait.
Of exponential delays two in a billion last longer."""
FEWEST_HELD = 100
"""Rows held back below which a decision without a window is given time."""
GRACE = 60.0
"""Seconds after its window in which a decision may be closed."""


@dataclass(frozen=True, slots=True)
class Behind:
    """What lies behind the watermark.

    waiting: decisions without a reward, inside their window; held: others, which only wait for
    those. number, at: the decision at which the watermark stands and its time, seconds since the
    epoch; -1 and NaN where nothing waits. until: the end of its open unit, -inf where none is.
    delay: mean seconds that the rewards of rows behind it took, NaN where none came.
    """

    waiting: int = 0
    held: int = 0
    number: int = -1
    at: float = float("nan")
    until: float = -float("inf")
    delay: float = float("nan")

    @property
    def sentence(self) -> str:
        """What waits, and what that holds back."""
        count = f"{self.waiting:,} wait for their outcome"
        if self.waiting == 1:
            count = "1 waits for its outcome"
        if not self.held:
            return count + "."
        unit = "" if self.waiting else f", for its unit may grow until {dated(self.until)}"
        return f"{count}; d{self.number} of {dated(self.at)} holds back {_rows(self.held)}{unit}."


def watermark(behind: Behind, now: float, window: float | None) -> Check:
    """Judge the oldest decision that waits. now: seconds since the epoch; window: of the reward."""
    waits = now - behind.at if behind.number >= 0 else 0.0
    figures = {
        "waiting": behind.waiting,
        "held_back": behind.held,
        "decision_id": f"d{behind.number}" if behind.number >= 0 else None,
        "at": behind.at,
        "seconds": waits,
        "mean_delay": behind.delay,
    }

    def check(status: Status, sentence: str) -> Check:
        return Check("watermark", status, sentence, figures)

    if behind.number < 0:
        return check("ok", "Nothing waits: every decision is closed.")
    holder = f"d{behind.number} of {dated(behind.at)}"
    effect = f"{holder} holds back {_rows(behind.held)}" if behind.held else f"{holder} waits"
    if waits < -SKEW:
        cure = (
            "declare reward.window, or nothing is certified until then"
            if window is None
            else f"it is closed {window:g} s after the first sweep (`expire`) that finds it"
        )
        return check("alarm", f"{effect}, and is dated {-waits:,.0f} s in the future: {cure}.")
    if window is None:
        return check(*_without_window(behind, effect, waits))
    over = now - max(behind.at, behind.until) - window
    if over > GRACE + 0.1 * window:
        status: Status = "alarm" if over > GRACE + window else "watch"
        cure = "nobody closes what is over: call `expire(now)`, as the daemon does by itself"
        return check(status, f"{effect}, {over:,.0f} s after its window of {window:g} s: {cure}.")
    return check("ok", f"{effect}, inside its window of {window:g} s.")


def _without_window(behind: Behind, effect: str, waits: float) -> tuple[Status, str]:
    cure = (
        "There is no reward.window, so one reward that never comes stops certification for good: "
        "declare one (a new era)."
    )
    if behind.held < FEWEST_HELD or waits <= 0.5 * PATIENCE * behind.delay:
        return "ok", f"{effect}, without a window, and may wait for ever."
    status: Status = "alarm" if waits > PATIENCE * behind.delay else "watch"
    took = f"those it holds back took {behind.delay:.3g} s on average"
    return status, f"{effect} and has waited {waits:,.3g} s; {took}. {cure}"


def _rows(count: int) -> str:
    return plural(count, "request")
