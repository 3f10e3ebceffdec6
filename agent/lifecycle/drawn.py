"""Rows that were drawn elsewhere: what their mapping declares of the draws.

A feature flag, a bandit service or a hand-made A/B test has drawn them, with probabilities that
this experiment did not compute. They are decisions of an era of their own, under rules that say so;
what is declared here is frozen with those rules. docs/doors/drawn.md says what it means.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec

from equipoise.agent.config.ingest import How
from equipoise.store.words import plural, verb

LEAST_OPEN = 0.01
"""Smallest probability of each model that is compared with which a row is certified. Known before
the draw, so that leaving the others out selects nothing; one row of 0.001 among 3,000 of a half
brought a lower end from 0.61 to 0."""


class Drawn(msgspec.Struct, frozen=True, kw_only=True):
    """What is declared of the draws of an era.

    mapping: the name of the ingest mapping. how: `request`, where each row was drawn for itself,
    with probabilities that were fixed before; `unit`, where a user or session was, once, and all
    its rows follow; `unknown`. declared: when, in seconds since the epoch. shares: (K,)
    probabilities of the models where they never changed, None where each row says its own.
    coverage: share of the traffic that was drawn at all; the rows are of that share. complete:
    whether each row gives the probability of every model. routed: whether the rows say what would
    have been served without a draw. kept: whether the log is a sample, a row of which counts by
    the probability that it was kept.

    What the rows themselves showed: doubt: what of it contradicts this, or leaves it open, "" for
    nothing. timed: whether times tell their order. left_out: rows that were refused for what was
    known before their draw.
    """

    mapping: str
    how: How
    declared: float
    shares: tuple[float, ...] | None = None
    coverage: float = 1.0
    complete: bool = True
    routed: bool = False
    kept: bool = False
    doubt: str = ""
    timed: bool = True
    left_out: int = 0

    @property
    def uncertified(self) -> str:
        """Why these rows count for estimates alone; "" where they count for certificates."""
        if self.how == "unknown":
            return "how they were drawn is not declared"
        if self.kept:
            return "the log is a sample, and of the rows that were left out nothing is known"
        if not self.complete:
            return "they say the probability of the drawn model alone, of more than two models"
        return self.doubt

    @property
    def certifies(self) -> bool:
        """Whether these rows count for certificates."""
        return not self.uncertified

    @property
    def label(self) -> str:
        """Whose draws they are, to follow "drawn by"."""
        date = datetime.fromtimestamp(self.declared, UTC)
        return f"{self.mapping}, as declared on {date:%Y-%m-%d}"

    @property
    def others(self) -> str:
        """Rows beside those that count, to follow what is said of them; "" for none."""
        if not self.left_out:
            return ""
        few = f"{plural(self.left_out, 'row')} {verb(self.left_out, 'was', 'were')}"
        return f" ({few} refused for what was known before the draw)"

    @property
    def body(self) -> dict[str, Any]:
        """As it stands in the text of a rule: what the rows did not show is left out."""
        body: dict[str, Any] = msgspec.to_builtins(self)
        plain = {"doubt": "", "timed": True, "left_out": 0}
        return {
            name: value for name, value in body.items() if name not in plain or value != plain[name]
        }

    @property
    def reason(self) -> str:
        """Why their era begins."""
        return f"rows drawn by {self.label}"

    def continues(self, other: Drawn | None) -> bool:
        """Whether rows declared so belong to the era of `other`, whatever they show."""
        return other is not None and self == msgspec.structs.replace(
            other,
            declared=self.declared,
            doubt=self.doubt,
            timed=self.timed,
            left_out=self.left_out,
        )

    def joined(self, other: Drawn) -> Drawn:
        """What both showed, of rows of one era: what was declared first stands."""
        return msgspec.structs.replace(
            self,
            doubt=self.doubt or other.doubt,
            timed=self.timed and other.timed,
            left_out=self.left_out + other.left_out,
        )
