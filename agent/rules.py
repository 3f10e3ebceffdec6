"""Frozen rules: what a decision was made under, with an id, kept in the store.

A rule is immutable: an allocation (gate and assignment kernels), the prediction inside the score,
and everything else that must be known before the rows it decides. Its id is a hash of its canonical
JSON, so the same rule has the same id everywhere, and any decision can be recomputed from the
stored text.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, Self

import msgspec
import numpy as np

from equipoise.agent.errors import AgentError
from equipoise.agent.inference.frozen import Frozen
from equipoise.agent.inference.prediction import Prediction
from equipoise.policies.allocation import Allocation
from equipoise.policies.kernels import ConstantRate, ConstantShares
from equipoise.store.batches import Flags
from equipoise.store.contract import Store
from equipoise.store.records import RuleRecord

_BACK = "restore a backup"


@dataclass(frozen=True, slots=True)
class Rule:
    """An allocation in force, and what is predictable of the certified sums of what it decides.

    since: the first decision it may serve; it makes the rule in force the last one stored.
    prediction: of rewards, None where no scorer is known. frozen: for the whole traffic and each
    segment. active: (K,) models that its era compares. alarms: names of the checks whose alarm
    stood; widened: whether one of them asks for the fewest assumptions, and so for the worst case
    for missing rewards, whatever was declared. missing: declared value of a reward that never
    comes, in reward units, None for the worst case; unset in rules that do not say (0.1.0 up to
    2026-11), whose rows go by the configuration in force.
    """

    era: int
    since: int
    allocation: Allocation
    prediction: Prediction | None
    frozen: tuple[Frozen, ...]
    active: Flags
    alarms: tuple[str, ...] = ()
    widened: bool = False
    missing: float | msgspec.UnsetType | None = msgspec.UNSET
    rule_id: str = ""

    def encode(self) -> str:
        """Canonical JSON text, whose hash is the rule's id."""
        prediction = self.prediction
        body: dict[str, Any] = {
            "era": self.era,
            "since": self.since,
            "allocation": self.allocation.encode(),
            "prediction": None if prediction is None else prediction.encode(),
            "frozen": [frozen.encode() for frozen in self.frozen],
            "active": self.active.tolist(),
            "alarms": list(self.alarms),
            "widened": self.widened,
        }
        if self.missing is not msgspec.UNSET:
            body["missing"] = self.missing
        return msgspec.json.encode(body, order="sorted").decode()

    def record(self, at: float) -> RuleRecord:
        """As it is stored. at: seconds since the epoch."""
        body = self.encode()
        return RuleRecord(rule_id=rule_id(body), era=self.era, at=at, body=body)

    @classmethod
    def decode(cls, record: RuleRecord) -> Self:
        """The rule of a stored record, bit for bit."""
        body: dict[str, Any] = msgspec.json.decode(record.body)
        prediction = body["prediction"]
        return cls(
            body["era"],
            body["since"],
            Allocation.decode(body["allocation"]),
            None if prediction is None else Prediction.decode(prediction),
            tuple(Frozen.decode(frozen) for frozen in body["frozen"]),
            np.array(body["active"], dtype=bool),
            tuple(body["alarms"]),
            body["widened"],
            body.get("missing", msgspec.UNSET),
            record.rule_id,
        )


def rule_id(body: str) -> str:
    """The id of a rule with this canonical text."""
    digest = blake2b(body.encode(), digest_size=10, person=b"equipoise-rule").hexdigest()
    return f"r{digest}"


def _decoded(record: RuleRecord) -> Rule:
    try:
        return Rule.decode(record)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise AgentError(
            f"rule {record.rule_id} of the store cannot be read ({type(error).__name__}): {_BACK}"
        ) from error


class RuleBook:
    """The rules of one store, by id and by ordinal (order of first use)."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._rules: list[Rule] = []
        self._ordinal: dict[str, int] = {}
        self._context_free = True
        self.altered: list[str] = []
        """Ids of rules whose text is not the one that their id is the hash of."""
        for record in store.rules():
            self._keep(_decoded(record))
            if record.rule_id != rule_id(record.body):
                self.altered.append(record.rule_id)

    def __len__(self) -> int:
        return len(self._rules)

    def learn(self, record: RuleRecord) -> None:
        """Take in a rule that another agent of the same store froze; a known one is no change."""
        if record.rule_id not in self._ordinal:
            self._keep(Rule.decode(record))

    def add(self, rule: Rule, at: float) -> Rule:
        """Store the rule and return it with its id; the stored one where it exists already."""
        record = rule.record(at)
        known = self._ordinal.get(record.rule_id)
        if known is not None:
            return self._rules[known]
        self._store.put(record)
        kept = replace(rule, rule_id=record.rule_id)
        self._keep(kept)
        return kept

    @property
    def context_free(self) -> bool:
        """Whether no rule so far looked at a request: e and pi were the same for all of them."""
        return self._context_free

    def ordinal(self, rule_id: str) -> int:
        if rule_id not in self._ordinal:
            raise AgentError(
                f"rule {rule_id}, which decisions follow, is not in the store: {_BACK}"
            )
        return self._ordinal[rule_id]

    def by_ordinal(self, ordinal: int) -> Rule:
        return self._rules[ordinal]

    def rule(self, rule_id: str) -> Rule:
        return self._rules[self._ordinal[rule_id]]

    def _keep(self, rule: Rule) -> None:
        self._ordinal[rule.rule_id] = len(self._rules)
        self._rules.append(rule)
        allocation = rule.allocation
        self._context_free &= isinstance(allocation.gate, ConstantRate) and isinstance(
            allocation.assignment, ConstantShares
        )
