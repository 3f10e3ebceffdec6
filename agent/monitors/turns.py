"""Turns: when a check's verdict becomes one to look at, or stops being one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

from equipoise.store.records import Alert

_GRAVITY = {"unknown": 0, "ok": 1, "watch": 2, "alarm": 3}
_GRAVE = ("watch", "alarm")


class Verdict(Protocol):
    """What a check says, inside or on the wire."""

    @property
    def name(self) -> str: ...

    @property
    def status(self) -> str: ...

    @property
    def sentence(self) -> str: ...


V = TypeVar("V", bound=Verdict)


def gravest_by_name(checks: Iterable[V]) -> list[V]:
    """One verdict a name, in order: of several guardrails the one that needs most attention."""
    held: dict[str, V] = {}
    for check in checks:
        other = held.get(check.name)
        if other is None or _GRAVITY[check.status] > _GRAVITY[other.status]:
            held[check.name] = check
    return list(held.values())


def turns(last: dict[str, str], checks: Iterable[Verdict], at: float) -> list[Alert]:
    """An alert for every check that turned to `watch` or `alarm`, or back from them.

    last: status by name of what was kept last, "ok" where nothing was; brought up to date.
    """
    found = []
    for check in gravest_by_name(checks):
        before = last.get(check.name, "ok")
        if check.status != before and (check.status in _GRAVE or before in _GRAVE):
            last[check.name] = check.status
            found.append(
                Alert(at=at, check=check.name, status=check.status, sentence=check.sentence)
            )
    return found


def last_kept(alerts: Iterable[Alert]) -> dict[str, str]:
    """Status by name of the newest of these alerts, which come in the order they were kept."""
    return {alert.check: alert.status for alert in alerts}
