"""Watermark: does one decision hold back the certificate of all that came after it?

Rows enter the certified sums in decision order, so the oldest decision that still waits holds back
every later one. That is meant to last for the reward's window at most. It lasts longer where nobody
closes what is over, where a decision is dated in the future, and for ever where there is no window.
"""

from __future__ import annotations

from dataclasses import dataclass

from equipoise.agent.clocks import SKEW, dated
from equipoise.agent.monitors.check import Check, Status

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
    """Judge the oldest decision that waits. now: seconds since the epoch; window: of the reward.

    There is no test in this check, hence no level.
    """
    waits = now - behind.at if behind.number >= 0 else 0.0
    figures = {
        "waiting": behind.waiting,
        "held_back": behind.held,
        "decision_id": f"d{behind.number}" if behind.number >= 0 else None,
        "at": behind.at,
        "seconds": waits,
        "mean_delay": behind.delay,
    }

    def said(status: Status, sentence: str) -> Check:
        return Check("watermark", status, sentence, figures)

    if behind.number < 0:
        return said("ok", "Nothing waits: every decision is closed.")
    holder = f"d{behind.number} of {dated(behind.at)}"
    held = f"{holder} holds back {_rows(behind.held)}" if behind.held else f"{holder} waits"
    if waits < -SKEW:
        cure = (
            "declare reward.window, or nothing is certified until then"
            if window is None
            else f"it is closed {window:g} s after the first sweep (`expire`) that finds it"
        )
        return said("alarm", f"{held}, and is dated {-waits:,.0f} s in the future: {cure}.")
    if window is None:
        return said(*_without_window(behind, held, waits))
    over = now - max(behind.at, behind.until) - window
    if over > GRACE + 0.1 * window:
        status: Status = "alarm" if over > GRACE + window else "watch"
        cure = "nobody closes what is over: call `expire(now)`, as the daemon does by itself"
        return said(status, f"{held}, {over:,.0f} s after its window of {window:g} s: {cure}.")
    return said("ok", f"{held}, inside its window of {window:g} s.")


def _without_window(behind: Behind, held: str, waits: float) -> tuple[Status, str]:
    cure = (
        "There is no reward.window, so one reward that never comes stops certification for good: "
        "declare one (a new era)."
    )
    if behind.held < FEWEST_HELD or waits <= 0.5 * PATIENCE * behind.delay:
        return "ok", f"{held}, without a window, and may wait for ever."
    status: Status = "alarm" if waits > PATIENCE * behind.delay else "watch"
    took = f"those it holds back took {behind.delay:.3g} s on average"
    return status, f"{held} and has waited {waits:,.3g} s; {took}. {cure}"


def _rows(count: int) -> str:
    return "1 request" if count == 1 else f"{count:,} requests"
