"""A store as bandit feedback: context, action, probability and reward, one row after the other.

The rows are those that certified sums count. Each has the probability that its action had over the
whole draw, randomized or not: P(m) = e pi(m) + (1 - e) 1{m was routed}. The log is folded once,
from where it begins, and a row is written as the watermark passes it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from equipoise.agent.agent import new_fold
from equipoise.agent.config import ExperimentConfig
from equipoise.agent.config.parts import ROUTING
from equipoise.agent.errors import AgentError
from equipoise.agent.inference.rated import asked
from equipoise.agent.lifecycle.eras import Eras
from equipoise.agent.lifecycle.rules import Rule, RuleBook
from equipoise.agent.state.certified_sums import Spec
from equipoise.agent.state.light_fold import LightFold
from equipoise.agent.state.open_decisions import OpenDecisions
from equipoise.agent.state.recovery import restore_base
from equipoise.store.batches import (
    Closure,
    DecisionBatch,
    Flags,
    Floats,
    Ints,
    ObservationBatch,
    Texts,
)
from equipoise.store.contract import Store

ROWS_AT_ONCE = 16_384
OPEN_BYTES = 1 << 26
"""Of memory that decisions which wait for something may take; more of them lie in a file."""

_CLOSED = {closure: f"closed: {closure.name.lower()}" for closure in Closure}


@dataclass(frozen=True, slots=True)
class Actions:
    """What can be served, and who would serve what.

    names: (A,) the models, and with sticky units today's routing, which is what a unit gets that is
    not randomized. candidates: (C,) the models that the era compares, today's routing, and declared
    policies between such models; positions: of each among those of `Spec.names`.
    """

    names: tuple[str, ...]
    candidates: tuple[str, ...]
    positions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Feedback:
    """n rows of bandit feedback.

    number, at, x (n, d), routed, rule (ordinal): of the decision, or of that which opened the unit.
    action: (n,) what was assigned; probabilities: (n, A) of every action before the draw. low,
    high: (n,) the reward for lower and for upper ends, in reward units. chosen: (n, C) the action
    of each candidate. request_id: "" where there was none.
    """

    number: Ints
    request_id: list[str]
    at: Floats
    x: Floats
    routed: Ints
    rule: Ints
    action: Ints
    probabilities: Floats
    low: Floats
    high: Floats
    chosen: Ints

    def __len__(self) -> int:
        return len(self.number)

    @property
    def pscore(self) -> Floats:
        """(n,) the probability that the action had."""
        scores: Floats = self.probabilities[np.arange(len(self)), self.action]
        return scores


class BanditLog:
    """Reads a store as feedback of one era; counts what it leaves out.

    era: None for the one in force. left_out: decisions by why they are not among the rows, those of
    a sticky unit whose row another one opened ("in the row of its unit") included; usage_rows: rows
    of the usage log, of whose models no probability is known.
    Raises AgentError where there is no such era, or where no row can say what is certified.
    """

    def __init__(self, store: Store, config: ExperimentConfig, era: int | None = None) -> None:
        eras = [each.era for each in store.eras()]
        if era is not None and era not in eras:
            held = f"{eras[0]} to {eras[-1]}" if eras else "none"
            raise AgentError(f"era {era} is not in the store, which has eras {held}")
        self.era = (eras[-1] if eras else 0) if era is None else era
        self.rows = self.usage_rows = 0
        self.left_out: Counter[str] = Counter()
        self.spec = spec = Spec.of(config)
        if spec.of_raters and spec.sticky:
            raise AgentError(
                f"reward.missing is {spec.meaning.value} and units are sticky: a unit counts by the"
                " share of its requests that is rated, which these formats cannot say; choose"
                " --format parquet"
            )
        self._store, self._rules = store, RuleBook(store)
        self.rule_ids = dict(store.rule_ids())
        eras_of = Eras(store, config.model_names)
        self._active = eras_of.active(self.era)
        self._rate_min = config.limits.rate_min
        self.actions = self._new_actions(config)
        self._fold = new_fold(config, self._rules, store, OPEN_BYTES, eras_of.renewals())
        self._names: deque[tuple[Ints, Texts]] = deque()
        self._first = 0
        self._limited = False

    def _new_actions(self, config: ExperimentConfig) -> Actions:
        models, spec = config.model_names, self.spec
        known = [
            *self._active.tolist(),
            True,
            *(
                bool(self._active[inside] and self._active[outside])
                for _, inside, outside in spec.policies
            ),
        ]
        positions = tuple(int(at) for at in np.flatnonzero(known))
        names = (*models, ROUTING) if spec.sticky else models
        return Actions(names, tuple(spec.names[at] for at in positions), positions)

    def blocks(self) -> Iterator[Feedback]:
        """The rows in the order of their decisions, ROWS_AT_ONCE or more at a time."""
        group: list[Feedback] = []
        for block in self._read():
            group.append(block)
            if sum(map(len, group)) >= ROWS_AT_ONCE:
                yield _joined(group)
                group = []
        if group:
            yield _joined(group)

    def _read(self) -> Iterator[Feedback]:
        store, light, until = self._store, self._fold.light, self._store.next_seq
        restore_base(self._fold, store)
        base = store.base_snapshot()
        self._first = 0 if base is None else base.decisions
        self._left("removed by age", self._first)
        decisions = 0
        for segment in store.read(light.next_seq, until):
            batch = segment.batch
            if isinstance(batch, DecisionBatch):
                decisions += len(batch)
                if batch.request_id is not None:
                    self._names.append((batch.number, batch.request_id))
            elif isinstance(batch, ObservationBatch):
                self.usage_rows += len(batch)
            for _ in light.chunks(segment.seq, batch):
                stop = self._closed(light)
                yield from self._passed(light, stop)
                light.end_chunk(stop)
        yield from self._passed(light, self._closed(light))
        passed = sum(self.left_out.values()) - self._first + self.rows
        self._left("at or behind the first that waits for its reward", decisions - passed)

    def _closed(self, light: LightFold) -> int:
        """Where the watermark would stand now."""
        return light.watermark + light.pending.passed(light.watermark - light.pending.base)

    def _left(self, reason: str, rows: int) -> None:
        if rows:
            self.left_out[reason] += rows

    def _passed(self, light: LightFold, stop: int) -> Iterator[Feedback]:
        """The rows among the decisions from the watermark up to `stop`."""
        table = light.pending
        for start in range(light.watermark, stop, ROWS_AT_ONCE):
            number = np.arange(start, min(start + ROWS_AT_ONCE, stop))
            ids = self._request_ids(number)
            keep = ~table.is_void(number - table.base) & (number >= self._first)
            number = number[keep]
            reason = self._reasons(table, number)
            taken = reason == ""
            for why, count in zip(*np.unique(reason[~taken], return_counts=True), strict=True):
                self._left(str(why), int(count))
            number = number[taken]
            if len(number):
                self.rows += len(number)
                yield self._feedback(table, number, [ids.get(each, "") for each in number.tolist()])

    def _request_ids(self, number: Ints) -> dict[int, str]:
        """By number, the request ids of decisions (n,), ascending; each may be asked for once."""
        found: dict[int, str] = {}
        last = number[-1]
        while self._names and self._names[0][0][0] <= last:
            numbers, names = self._names[0]
            inside = slice(*np.searchsorted(numbers, (number[0], last + 1)))
            found.update(zip(numbers[inside].tolist(), names[inside], strict=True))
            if numbers[-1] > last:
                break
            self._names.popleft()
        return found

    def _reasons(self, table: OpenDecisions, number: Ints) -> Any:
        """(n,) why a decision is left out, the first that holds; "" where it is a row."""
        if not len(number):
            return np.zeros(0, dtype=object)
        at = number - table.base
        ordinals, place = np.unique(table.rule[at], return_inverse=True)
        rules = [self._rules.by_ordinal(int(ordinal)) for ordinal in ordinals]

        def by_rule(values: list[Any]) -> Any:
            return np.array(values)[place]

        own = table.leader[at] == number
        closed_by = table.closed_by[at]
        rate, shares = table.rate[at], table.probabilities[at]
        ramp: Flags = by_rule([rule.after_decision == "ramp" for rule in rules])
        undrawn: Flags = shares[:, self._active].min(axis=1) <= 0.0
        of_era = table.era[at] == self.era
        limits = (closed_by == Closure.SEGMENT) | (closed_by == Closure.USER)
        behind: Flags = np.zeros(len(number), dtype=bool)
        if self.spec.freezes:
            # Known before the draw of every later row: limits rest on earlier draws alone.
            limited = limits & own & of_era
            behind |= np.logical_or.accumulate(limited) | self._limited
            self._limited |= bool(limited.any())
        tests: list[tuple[Flags, Any]] = [
            (~of_era, "of another era"),
            (~own, "in the row of its unit"),
            (closed_by > 0, np.array([_CLOSED[Closure(each)] for each in closed_by.tolist()])),
            (~table.open_to_all[at], "a compared model was not eligible"),
            (ramp, "drawn after the decision, for the checks"),
            (rate < self._rate_min, "randomized with less than limits.rate_min"),
            (undrawn, "a compared model could not be drawn"),
            (~table.certifiable[at], "certified sums do not count it"),
            (behind, "behind the first that a limit closed"),
        ]
        if self.spec.of_raters:
            ask = by_rule([1.0 if rule.ask is None else rule.ask for rule in rules])
            heard = asked(table.uniform[at], ask)
            tests += [
                (~heard, "not asked for a rating"),
                (table.as_drawn(at) & ~table.has_reward[at], "not rated"),
            ]
        reason = np.full(len(number), "", dtype=object)
        for test, words in reversed(tests):
            reason = np.where(test, words, reason)
        return reason

    def _feedback(self, table: OpenDecisions, number: Ints, ids: list[str]) -> Feedback:
        at, models, spec = number - table.base, self.spec.models, self.spec
        rate, routed, rule = table.rate[at], table.routed[at], table.rule[at]
        model, every = table.model[at], np.arange(len(at))
        probabilities = rate[:, None] * table.probabilities[at]
        if spec.sticky:
            probabilities = np.column_stack([probabilities, 1.0 - rate])
            model = np.where(table.randomized[at], model, models)
            today = np.full(len(at), models)
        else:
            probabilities[every, routed] += 1.0 - rate
            today = routed
        low, high = np.empty((2, len(at)))
        for ordinal in np.unique(rule).tolist():
            picked = np.flatnonzero(rule == ordinal)
            frozen = self._rules.by_ordinal(ordinal)
            low[picked], high[picked] = self._ends(table, at[picked], frozen)
        x = table.x[at]
        declared = [shares.argmax(axis=1) for shares in spec.shares(x).transpose(1, 0, 2)]
        fixed = [np.full(len(at), each) for each in range(models)]
        chosen = [*fixed, today, *declared]
        return Feedback(
            number=number,
            request_id=ids,
            at=table.at[at],
            x=x,
            routed=routed,
            rule=rule,
            action=model,
            probabilities=probabilities,
            low=low,
            high=high,
            chosen=np.column_stack([chosen[each] for each in self.actions.positions]),
        )

    def _ends(self, table: OpenDecisions, at: Ints, rule: Rule) -> tuple[Floats, Floats]:
        """(n,) rewards for lower and upper ends, in reward units, as certified sums take them."""
        spec = self.spec
        missing = None if rule.widened else spec.missing_under(rule)
        if spec.sticky:
            low, high, known = table.unit_rewards(at, spec.scaled, missing)
            exact = np.zeros(len(at), dtype=bool)
        else:
            low, high, known = table.reward_ends(at, spec.scaled, missing)
            # As they were logged or declared, not by way of [0, 1] and back.
            exact = known | (table.filled[at] & (low == high))
        scale = spec.high - spec.low
        ends = [np.where(exact, table.reward[at], spec.low + scale * end) for end in (low, high)]
        return ends[0], ends[1]


class Estimates:
    """Sums for the estimates of each candidate: what a reader of the file must get as well."""

    def __init__(self, log: BanditLog) -> None:
        self._log = log
        self._sums = np.zeros((4, len(log.actions.candidates)))
        self._drawn = np.zeros(len(log.actions.candidates), dtype=np.int64)

    def add(self, rows: Feedback) -> None:
        same = rows.action[:, None] == rows.chosen
        weight = same / rows.pscore[:, None]
        self._drawn += same.sum(axis=0)
        self._sums += np.array(
            [
                weight.sum(axis=0),
                (weight * weight).sum(axis=0),
                rows.low @ weight,
                rows.high @ weight,
            ]
        )

    def report(self) -> dict[str, dict[str, Any]]:
        """By candidate: ips and snips, each [for lower, for upper ends], None where nothing is
        known; rows that drew its action, and how many equally weighted ones they are worth."""
        count, found = self._log.rows, {}
        for name, drawn, sums in zip(
            self._log.actions.candidates, self._drawn.tolist(), self._sums.T.tolist(), strict=True
        ):
            weight, squares, *ends = sums
            # Only those who rate are rows: their number is no mean over requests.
            mean = bool(count) and not self._log.spec.of_raters
            found[name] = {
                "ips": [end / count for end in ends] if mean else None,
                "snips": [end / weight for end in ends] if weight else None,
                "rows": drawn,
                "effective_rows": weight * weight / squares if weight else 0.0,
            }
        return found


def _joined(blocks: list[Feedback]) -> Feedback:
    if len(blocks) == 1:
        return blocks[0]
    columns: dict[str, Any] = {}
    for name in Feedback.__slots__:
        parts = [getattr(block, name) for block in blocks]
        texts = isinstance(parts[0], list)
        columns[name] = (
            [text for part in parts for text in part] if texts else np.concatenate(parts)
        )
    return Feedback(**columns)
