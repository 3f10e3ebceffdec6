"""Frozen rules: what a decision was made under, with an id, kept in the store.

A rule is immutable: an allocation (gate and assignment kernels), the prediction inside the score,
and everything else that must be known before the rows it decides. Its id is a hash of its canonical
JSON, so the same rule has the same id everywhere, and any decision can be recomputed from the
stored text.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, Self

import msgspec
import numpy as np

from equipoise.agent.errors import AgentError
from equipoise.agent.inference.levels import EraPrior
from equipoise.agent.inference.prediction import Frozen, Prediction
from equipoise.agent.lifecycle.drawn import Drawn
from equipoise.agent.moments.codec import decode
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
    for missing rewards, whatever value was declared. missing: declared value of a reward that never
    comes, in reward units, None for the worst case, `rated` or `asked`; unset in rules that do not
    say (0.1.0 up to 2026-11), whose rows go by the configuration in force. after_decision: whether
    its era was decided when it was frozen, and what goes on: nothing (`stop`), or rate_min of the
    requests (`ramp`); None before a decision, and where all of it goes on. prior: what is thought
    of the era; that of its first certified row holds for all of it. None in rules before 2026-12.
    ask: chance with which the user of a decision is asked for a rating, None where nobody is.
    drawn: where its decisions were drawn elsewhere, what is declared of that; its allocation then
    gives their probabilities only if those never changed. lanes: whether deciders act by it, whose
    decisions get their numbers after they were made.
    """

    era: int
    since: int
    allocation: Allocation
    prediction: Prediction | None
    frozen: tuple[Frozen, ...]
    active: Flags
    alarms: tuple[str, ...] = ()
    widened: bool = False
    missing: float | str | msgspec.UnsetType | None = msgspec.UNSET
    rule_id: str = ""
    after_decision: str | None = None
    prior: EraPrior | None = None
    ask: float | None = None
    drawn: Drawn | None = None
    lanes: bool = False

    @property
    def known_before(self) -> int | None:
        """The decision from which on replays that came were not known to its decisions, for all
        that their numbers say; None where the numbers say it."""
        return self.since if self.lanes else None

    @property
    def stops(self) -> bool:
        """Whether no request is randomized any more, since its era is decided."""
        return self.after_decision == "stop"

    @property
    def uncertified(self) -> str | None:
        """Why its rows count for estimates alone, "" where they do not; None where the experiment
        draws them itself."""
        return None if self.drawn is None else self.drawn.uncertified

    def elsewhere(self, drawn: Drawn, requests: float | None = None) -> Self:
        """This rule for decisions that were drawn elsewhere. requests: rows that are expected, of
        an era that has none yet."""
        even = self.active / np.count_nonzero(self.active)
        shares = even if drawn.shares is None else np.array(drawn.shares)
        allocation = Allocation(
            ConstantRate(1.0), ConstantShares(shares), 0.0, "elsewhere", "elsewhere"
        )
        prior = self.prior
        if prior is not None and requests is not None:
            prior = replace(prior, requests=requests)
        return replace(
            self, allocation=allocation, after_decision=None, prior=prior, ask=None, drawn=drawn
        )

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
        if self.after_decision is not None:
            body["after_decision"] = self.after_decision
        if self.prior is not None:
            body["prior"] = self.prior.encode()
        if self.ask is not None:
            body["ask"] = self.ask
        if self.drawn is not None:
            body["drawn"] = self.drawn.body
        if self.lanes:
            body["lanes"] = True
        return msgspec.json.encode(body, order="sorted").decode()

    def record(self, at: float) -> RuleRecord:
        """As it is stored. at: seconds since the epoch."""
        body = self.encode()
        return RuleRecord(rule_id=rule_id(body), era=self.era, at=at, body=body)

    @classmethod
    def decode(cls, record: RuleRecord) -> Self:
        """The rule of a stored record, bit for bit."""
        body: dict[str, Any] = msgspec.json.decode(record.body)
        prediction, prior = body["prediction"], body.get("prior")
        drawn = body.get("drawn")
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
            body.get("after_decision"),
            None if prior is None else EraPrior.decode(prior),
            body.get("ask"),
            None if drawn is None else msgspec.convert(drawn, Drawn),
            body.get("lanes", False),
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
    """The rules of one store, by id and by ordinal (order of first use).

    Ids are held, and of the rules themselves those used last: a store may have a hundred thousand,
    of which few are asked for. Ordinals are the store's own and stay when old rules are removed.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._ordinal: dict[str, int] = {}
        self._ids: dict[int, str] = {}
        self._next = 0
        self._held: OrderedDict[int, tuple[Rule, int]] = OrderedDict()
        self._held_bytes = 0
        self._context_free: bool | None = None
        for ordinal, name in store.rule_ids():
            self._ordinal[name], self._ids[ordinal] = ordinal, name
            self._next = ordinal + 1

    def __len__(self) -> int:
        """The ordinal that the next rule will have."""
        return self._next

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._ids)

    def altered(self) -> list[str]:
        """Ids of rules whose text is not the one that their id is the hash of."""
        unseen = dict.fromkeys(self._ordinal)
        for body in self._store.bodies():
            unseen.pop(rule_id(body), None)
        # Those that were removed meanwhile are not among them.
        records = [self._store.rule(name) for name in unseen]
        return [
            record.rule_id
            for record in records
            if record is not None and record.rule_id != rule_id(record.body)
        ]

    def learn(self, record: RuleRecord) -> None:
        """Take in a rule of the store that another agent froze; a known one is no change."""
        if record.rule_id not in self._ordinal:
            self._keep(_decoded(record), len(record.body))

    def add(self, rule: Rule, at: float) -> Rule:
        """Store the rule and return it with its id; the stored one where it exists already."""
        record = rule.record(at)
        ordinal = self._ordinal.get(record.rule_id)
        if ordinal is not None:
            return self.by_ordinal(ordinal)
        self._store.put(record)
        stored = replace(rule, rule_id=record.rule_id)
        self._keep(stored, len(record.body))
        return stored

    @property
    def context_free(self) -> bool:
        """Whether no rule so far looked at a request: e and pi were the same for all of them."""
        if self._context_free is None:
            # The newest one tells most often; else all of them are looked at, once.
            newest = self._ids.get(self._next - 1)
            self._context_free = newest is None or (
                _context_free(self.rule(newest)) and all(map(_looks_at_none, self._store.bodies()))
            )
        return self._context_free

    def ordinal(self, rule_id: str) -> int:
        if rule_id not in self._ordinal:
            raise AgentError(
                f"rule {rule_id}, which decisions follow, is not in the store: {_BACK}"
            )
        return self._ordinal[rule_id]

    def by_ordinal(self, ordinal: int) -> Rule:
        cached = self._held.get(ordinal)
        if cached is not None:
            self._held.move_to_end(ordinal)
            return cached[0]
        record = self._store.rule(self._ids[ordinal])
        if record is None:
            raise KeyError(self._ids[ordinal])
        rule = _decoded(record)
        self._hold(ordinal, rule, len(record.body))
        return rule

    def rule(self, rule_id: str) -> Rule:
        return self.by_ordinal(self._ordinal[rule_id])

    def _keep(self, rule: Rule, size: int) -> None:
        ordinal, self._next = self._next, self._next + 1
        self._ordinal[rule.rule_id], self._ids[ordinal] = ordinal, rule.rule_id
        self._hold(ordinal, rule, size)
        if self._context_free:
            self._context_free = _context_free(rule)

    def _hold(self, ordinal: int, rule: Rule, size: int) -> None:
        self._held[ordinal] = rule, size
        self._held_bytes += size
        while self._held_bytes > HELD_BYTES and len(self._held) > FEWEST_HELD:
            _, (_, old) = self._held.popitem(last=False)
            self._held_bytes -= old


HELD_BYTES = 4 << 20
"""Of text that the rules in memory were read from."""
FEWEST_HELD = 8


def _context_free(rule: Rule) -> bool:
    allocation = rule.allocation
    if rule.drawn is not None and rule.drawn.shares is None:
        return False
    return isinstance(allocation.gate, ConstantRate) and isinstance(
        allocation.assignment, ConstantShares
    )


class _Kernel(msgspec.Struct):
    kind: str


class _Allocation(msgspec.Struct):
    gate: _Kernel
    assignment: _Kernel


class _Looks(msgspec.Struct):
    allocation: _Allocation
    drawn: Drawn | None = None


_looks = msgspec.json.Decoder(_Looks)


def _looks_at_none(body: str) -> bool:
    """As `_context_free`, of a rule's text, of which little is read."""
    looks = _looks.decode(body)
    allocation = looks.allocation
    if looks.drawn is not None and looks.drawn.shares is None:
        return False
    return (allocation.gate.kind, allocation.assignment.kind) == _CONSTANT


_CONSTANT = (ConstantRate.kind, ConstantShares.kind)


def same_but_since(rule: Rule, other: Rule) -> bool:
    """Whether two rules do and freeze the same, whenever each began."""
    # Mostly rewards came meanwhile, which shows before the text of both is made.
    for one, two in zip(rule.frozen, other.frozen, strict=False):
        if not np.array_equal(one.rewards.low, two.rewards.low, equal_nan=True):
            return False
    return replace(rule, since=other.since).encode() == other.encode()


def unused_rules(store: Store) -> list[int]:
    """Ordinals of rules that nothing can ask for again: those from before the rule of the first
    decision that the log still holds, but for what the state before it refers to.

    One that looked at requests is left: whether any did is asked for the whole experiment.
    """
    root = store.base_snapshot()
    if root is None:
        return []
    first = store.decision(root.decisions)
    if first is None:
        return []
    arrays, _ = decode(root.state)
    needed = {*arrays["pending.rule"].tolist(), *arrays["certified.reference"].tolist()}
    ids = dict(store.rule_ids())
    end = next((ordinal for ordinal, name in ids.items() if name == first.rule_id), 0)
    unused = [ordinal for ordinal in ids if ordinal < end and ordinal not in needed]
    # From the last one on: most likely it is still of the kind that is in force.
    for ordinal in reversed(unused):
        record = store.rule(ids[ordinal])
        if record is not None and not _looks_at_none(record.body):
            unused.remove(ordinal)
            break
    return unused
