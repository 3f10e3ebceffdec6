"""What a check says: a status, a sentence for a product owner, and the figures behind it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Status: TypeAlias = Literal["ok", "watch", "alarm", "unknown"]


@dataclass(frozen=True, slots=True)
class Check:
    """The verdict of one check at one moment.

    name: which check. status: `unknown` while it has seen too little, `watch` where there is
    reason to look, `alarm` where its level is reached. sentence: plain words. figures: named
    numbers, or sequences in the order of the models; NaN where unknown. level: the share of honest
    experiments in which this check may ever raise an alarm, NaN where it promises none.
    models: positions of the models that an alarm concerns; () for none in particular.
    """

    name: str
    status: Status
    sentence: str
    figures: Mapping[str, Any] = field(default_factory=dict)
    level: float = float("nan")
    models: tuple[int, ...] = ()


def by_evidence(log_evidence: float, level: float) -> Status:
    """The status of a test by its log e-value: Ville's inequality makes 1 / level the threshold.

    Reaching a tenth of the evidence is `watch`: honest experiments do so with probability 10 level.

    >>> [by_evidence(math.log(e), 0.01) for e in (5, 10, 100)]
    ['ok', 'watch', 'alarm']
    """
    needed = -math.log(level)
    if log_evidence >= needed - 1e-12:
        return "alarm"
    return "watch" if log_evidence >= needed - math.log(10.0) - 1e-12 else "ok"


def percent(share: float) -> str:
    """A share in words.

    >>> percent(0.0213), percent(float("nan"))
    ('2.1%', 'an unknown share')
    """
    return "an unknown share" if math.isnan(share) else f"{share:.1%}"


def listed(names: Sequence[str]) -> str:
    """Names in a sentence.

    >>> listed(["a"]), listed(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
