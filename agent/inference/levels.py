"""Error levels: how delta is divided over what is said, so that all of it holds at once.

METHOD section 4. Each level is one-sided and for one statement; the statements a user may read
together cover together with probability at least 1 - delta, by the union bound.
"""

from __future__ import annotations

import math

FALLBACK_SHARE = 0.1
"""Share of a level that the bounded sequence keeps where another one is the certified one.

A fifth instead of a tenth delays decisions by 2 to 3% where the other sequence opens early and
hastens them by 3% or a little more where it does not (docs/coverage.md): no clear gain.
"""


def decision_level(delta: float, models: int) -> float:
    """One-sided level of each comparison in "this model beats all others".

    Wrong only if some other model is certified above the best one: K - 1 comparisons, each with
    the best model on one side, so the leader may be chosen by the data.
    """
    return delta / max(models - 1, 1)


def pair_level(delta: float, candidates: int) -> float:
    """One-sided level of the lower end of each ordered pair: every contrast that may be shown.

    For shown contrasts with a leader chosen by the data, and for `equivalent`.
    """
    return delta / max(candidates * (candidates - 1), 1)


def value_level(delta: float, candidates: int) -> float:
    """One-sided level of each end of each candidate's value."""
    return delta / (2 * max(candidates, 1))


def segment_levels(delta: float, segments: int) -> tuple[float, float]:
    """(overall, each declared segment): half of delta overall, half over the segments.

    All of delta overall where no segment is declared.
    """
    return (delta, 0.0) if segments == 0 else (delta / 2, delta / (2 * segments))


def era_level(delta: float, era: int) -> float:
    """delta of era 1, 2, … under a lifetime promise: 6 delta / (pi^2 era^2), which sum to delta.

    Raises ValueError for an era below 1.
    """
    if era < 1:
        raise ValueError(f"era is {era}, and eras are counted from 1")
    return 6.0 * delta / (math.pi**2 * era**2)


def split_level(alpha: float) -> tuple[float, float]:
    """(preferred, fallback) levels of two sequences of which either may be the certified one."""
    return alpha * (1.0 - FALLBACK_SHARE), alpha * FALLBACK_SHARE
