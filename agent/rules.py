"""Frozen rules: what a decision was made under, with an id, kept in the store.

A rule is immutable: an allocation (gate and assignment kernels) and the centres of the certified
sums. Its id is a hash of its canonical JSON, so the same rule has the same id everywhere, and
any decision can be recomputed from the stored text.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import msgspec
import numpy as np

from equipoise.agent.inference.bounded import Centres
from equipoise.policies.allocation import Allocation
from equipoise.policies.kernels import ConstantRate, ConstantShares
from equipoise.store.contract import Store
from equipoise.store.records import RuleRecord


@dataclass(frozen=True, slots=True)
class Rule:
    """An allocation in force, and the centres of the certified sums of what it decides."""

    rule_id: str
    era: int
    allocation: Allocation
    centres: Centres


def freeze_rule(era: int, since: int, allocation: Allocation, centres: Centres) -> tuple[Rule, str]:
    """The rule and its canonical JSON text, whose hash is the rule's id.

    since: the first decision it may serve; it makes the rule in force the last one stored.
    """
    body = msgspec.json.encode(
        {
            "era": era,
            "since": since,
            "allocation": allocation.encode(),
            "centres": {
                "gain": centres.gain.tolist(),
                "loss": centres.loss.tolist(),
                "contrast": centres.contrast.tolist(),
            },
        },
        order="sorted",
    )
    rule_id = "r" + blake2b(body, digest_size=10, person=b"equipoise-rule").hexdigest()
    return Rule(rule_id, era, allocation, centres), body.decode()


def thaw_rule(record: RuleRecord) -> Rule:
    """The rule of a stored record, bit for bit."""
    body: dict[str, Any] = msgspec.json.decode(record.body)
    centres = body["centres"]
    return Rule(
        record.rule_id,
        body["era"],
        Allocation.decode(body["allocation"]),
        Centres(*(np.array(centres[name]) for name in ("gain", "loss", "contrast"))),
    )


class RuleBook:
    """The rules of one store, by id and by ordinal (order of first use)."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._rules: list[Rule] = []
        self._ordinal: dict[str, int] = {}
        self._context_free = True
        for record in store.rules():
            self._keep(thaw_rule(record))

    def __len__(self) -> int:
        return len(self._rules)

    def learn(self, record: RuleRecord) -> None:
        """Take in a rule that another agent of the same store froze; a known one is no change."""
        if record.rule_id not in self._ordinal:
            self._keep(thaw_rule(record))

    def add(
        self, era: int, since: int, at: float, allocation: Allocation, centres: Centres
    ) -> Rule:
        """Freeze, store and return the rule; the stored one where it exists already."""
        rule, body = freeze_rule(era, since, allocation, centres)
        known = self._ordinal.get(rule.rule_id)
        if known is not None:
            return self._rules[known]
        self._store.put(RuleRecord(rule_id=rule.rule_id, era=era, at=at, body=body))
        self._keep(rule)
        return rule

    @property
    def context_free(self) -> bool:
        """Whether no rule so far looked at a request: e and pi were the same for all of them."""
        return self._context_free

    def ordinal(self, rule_id: str) -> int:
        return self._ordinal[rule_id]

    def centres(self, ordinal: int) -> Centres:
        return self._rules[ordinal].centres

    def rule(self, rule_id: str) -> Rule:
        return self._rules[self._ordinal[rule_id]]

    def _keep(self, rule: Rule) -> None:
        self._ordinal[rule.rule_id] = len(self._rules)
        self._rules.append(rule)
        allocation = rule.allocation
        self._context_free &= isinstance(allocation.gate, ConstantRate) and isinstance(
            allocation.assignment, ConstantShares
        )
