"""Calls and ratings as they arrive, and what becomes of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from equipoise.agent.ingest.arrivals import Call, Rating
from equipoise.agent.ingest.joining import Joining, Ready
from equipoise.store.records import Observation

SETTLE, WAIT = 10.0, 1000.0
LONG = "chatcmpl-0123456789abcdef0123"


def name(span: int, trace: int = 1) -> str:
    return f"{trace:032x}-{span:016x}"


def call(span: int, trace: int = 1, parent: int | None = None, **others: Any) -> Call:
    row = Observation(
        routed="large", features=[0.5], outputs=[1.0], request_id=name(span, trace), at=5.0
    )
    facts: dict[str, Any] = {
        "span": name(span, trace),
        "parent": None if parent is None else name(parent, trace),
        "answer": f"answer-{span}-{trace}",
        "decision": None,
        "ended": float(span),
        "seconds": 0.5,
        "failed": False,
        "served": "large",
        "reward": None,
        "outputs": [1.0],
        "row": row,
    }
    return Call(**(facts | others))


def rating(reward: float = 0.5, at: float = 1.0, **about: Any) -> Rating:
    return Rating(reward=reward, at=at, **about)


def opened(folder: Path, **others: Any) -> Joining:
    return Joining(folder / "log.db.spans", SETTLE, WAIT, **others)


def finished(joining: Joining, now: float) -> tuple[list[Ready], Counter[str]]:
    """Everything that becomes whole at this time, logged without a refusal."""
    ready, left_out = [], Counter[str]()
    for _ in range(3):  # a rating may follow its call by a round
        this = joining.judge(now)
        joining.finish(this.ready)
        ready += this.ready
        left_out += this.left_out
    return ready, left_out


def said(ready: Iterable[Ready]) -> list[tuple[str, str, Any]]:
    """What was logged: kind, of what, and the reward, or else the outputs."""
    found = []
    for each in ready:
        record: Any = each.record
        about = record.request_id if each.what == "observations" else record.decision_id
        found.append((each.what, about, record.outputs if record.reward is None else record.reward))
    return sorted(found, key=str)
