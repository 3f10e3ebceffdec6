"""A store as bandit feedback: JSON lines of a decision service, which Vowpal Wabbit reads, and
Parquet with the arrays that the estimators of Open Bandit Pipeline take.

The rows are those that certified sums count. Each has the probability that its action had over the
whole draw, randomized or not: P(m) = e pi(m) + (1 - e) 1{m was routed}. The log is folded once,
from where it begins, and a row is written as the watermark passes it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from shutil import copyfile
from typing import Any, Protocol

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from equipoise.agent.agent import new_fold
from equipoise.agent.config import ExperimentConfig
from equipoise.agent.config.parts import ROUTING
from equipoise.agent.errors import AgentError
from equipoise.agent.features import Transform
from equipoise.agent.inference.rated import asked
from equipoise.agent.lifecycle.eras import Eras
from equipoise.agent.lifecycle.rules import Rule, RuleBook
from equipoise.agent.maintenance.atomic_files import whole_folder
from equipoise.agent.state.certified_sums import Spec
from equipoise.agent.state.fold import LightFold
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

FORMATS = ("dsjson", "obp")
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
        """The rows in the order of their decisions, some thousands at a time."""
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
        closed = light.pending.closed(light.watermark - light.pending.base)
        return light.watermark + (len(closed) if closed.all() else int(np.argmin(closed)))

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
        ramp = by_rule([rule.after_decision == "ramp" for rule in rules])
        of_era = table.era[at] == self.era
        limits = (closed_by == Closure.SEGMENT) | (closed_by == Closure.USER)
        behind = np.zeros(len(number), dtype=bool)
        if self.spec.freezes:
            # Known before the draw of every later row: limits rest on earlier draws alone.
            limited = limits & own & of_era
            behind = np.logical_or.accumulate(limited) | self._limited
            self._limited |= bool(limited.any())
        tests: list[tuple[Flags, Any]] = [
            (~of_era, "of another era"),
            (~own, "in the row of its unit"),
            (closed_by > 0, np.array([_CLOSED[Closure(each)] for each in closed_by.tolist()])),
            (~table.open_to_all[at], "a compared model was not eligible"),
            (ramp, "drawn after the decision, for the checks"),
            (rate < self._rate_min, "randomized with less than limits.rate_min"),
            ((shares[:, self._active] <= 0.0).any(axis=1), "a compared model was never drawn"),
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


class Writer(Protocol):
    """Writes feedback into a folder. files: what was written, by name."""

    files: dict[str, int]

    def write(self, rows: Feedback) -> None: ...


class DecisionServiceLines:
    """`decisions.dsjson`, one JSON object a line, with costs for lower ends; and
    `decisions_high.dsjson` with those for upper ends, where any reward has two. A cost is -reward,
    or the reward itself where smaller rewards are better."""

    NAME, HIGH = "decisions.dsjson", "decisions_high.dsjson"

    def __init__(
        self, folder: Path, stack: ExitStack, log: BanditLog, config: ExperimentConfig
    ) -> None:
        self._folder, self._stack = folder, stack
        self._columns = [f"x_{name}" for name in Transform(config.features).context_names]
        self._models, self._actions = config.model_names, log.actions
        self._rule_ids = log.rule_ids
        self._encode = msgspec.json.Encoder().encode
        self._action_features = [{"m": {"model": name}} for name in log.actions.names]
        every = range(len(log.actions.names))
        self._orders = [[first, *(each for each in every if each != first)] for first in every]
        self._low = stack.enter_context((folder / self.NAME).open("wb"))
        self._high: Any = None
        self._sign = -1.0 if config.reward.maximise else 1.0
        self.files = {self.NAME: 0}

    def write(self, rows: Feedback) -> None:
        if self._high is None and (rows.low != rows.high).any():
            self._low.flush()
            copyfile(self._folder / self.NAME, self._folder / self.HIGH)
            self._high = self._stack.enter_context((self._folder / self.HIGH).open("ab"))
            self.files[self.HIGH] = self.files[self.NAME]
        rests = self._rests(rows)
        self._low.write(_lines(self._sign * rows.low, rests))
        self.files[self.NAME] += len(rows)
        if self._high is not None:
            self._high.write(_lines(self._sign * rows.high, rests))
            self.files[self.HIGH] += len(rows)

    def _rests(self, rows: Feedback) -> list[bytes]:
        """Every line behind its cost."""
        encode, candidates = self._encode, self._actions.candidates
        same = (rows.action[:, None] == rows.chosen).astype(np.float64).tolist()
        lines = []
        for number, name, at, x, routed, rule, action, probabilities, predicted in zip(
            rows.number.tolist(),
            rows.request_id,
            rows.at.tolist(),
            rows.x.tolist(),
            rows.routed.tolist(),
            rows.rule.tolist(),
            rows.action.tolist(),
            rows.probabilities.tolist(),
            same,
            strict=True,
        ):
            order = self._orders[action]
            lines.append(
                encode(
                    {
                        "_label_probability": probabilities[action],
                        "_label_Action": action + 1,
                        "_labelIndex": action,
                        "Timestamp": f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%S.%f}0Z",
                        "Version": "1",
                        "EventId": name or f"d{number}",
                        "a": [each + 1 for each in order],
                        "c": {
                            "x": dict(zip(self._columns, x, strict=True)),
                            "r": {"routed": self._models[routed]},
                            "_multi": self._action_features,
                        },
                        "p": [probabilities[each] for each in order],
                        "VWState": {"m": self._rule_ids[rule]},
                        "p_pred": dict(zip(candidates, predicted, strict=True)),
                    }
                )
            )
        return lines


def _lines(cost: Floats, rests: list[bytes]) -> bytes:
    costs = (cost + 0.0).tolist()  # no -0.0
    return b"".join(
        b'{"_label_cost":%s,%s\n' % (repr(cost).encode(), rest[1:])
        for cost, rest in zip(costs, rests, strict=True)
    )


class BanditFeedbackTable:
    """`bandit_feedback.parquet`: a column for each array that obp takes, lists where it has two
    dimensions, and one of `action_dist` for each candidate."""

    NAME = "bandit_feedback.parquet"

    def __init__(
        self, folder: Path, stack: ExitStack, log: BanditLog, config: ExperimentConfig
    ) -> None:
        self._models, self._actions = len(config.models), len(log.actions.names)
        self._candidates = log.actions.candidates
        width = Transform(config.features).d + self._models
        every = pa.list_(pa.float64(), self._actions)
        self._schema = pa.schema(
            [
                ("request_id", pa.string()),
                ("decision_id", pa.string()),
                ("at", pa.float64()),
                ("context", pa.list_(pa.float64(), width)),
                ("action", pa.int64()),
                ("position", pa.int64()),
                ("reward", pa.float64()),
                ("reward_high", pa.float64()),
                ("pscore", pa.float64()),
                ("pi_b", every),
                *((f"action_dist_{name}", every) for name in self._candidates),
            ]
        )
        path = folder / self.NAME
        self._writer = stack.enter_context(pq.ParquetWriter(path, self._schema))
        self.files = {self.NAME: 0}

    def write(self, rows: Feedback) -> None:
        one_hot, actions = np.eye(self._models), np.eye(self._actions)
        columns = [
            [name or None for name in rows.request_id],
            [f"d{number}" for number in rows.number.tolist()],
            rows.at,
            np.hstack([rows.x, one_hot[rows.routed]]),
            rows.action,
            np.zeros(len(rows), dtype=np.int64),
            rows.low,
            rows.high,
            rows.pscore,
            rows.probabilities,
            *(actions[chosen] for chosen in rows.chosen.T),
        ]
        arrays = [
            pa.FixedSizeListArray.from_arrays(pa.array(column.ravel()), type=field.type)
            if isinstance(column, np.ndarray) and column.ndim == 2
            else pa.array(column, field.type)
            for column, field in zip(columns, self._schema, strict=True)
        ]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
        self.files[self.NAME] += len(rows)


_WRITERS = {"dsjson": DecisionServiceLines, "obp": BanditFeedbackTable}


def write_feedback(
    store: Store,
    config: ExperimentConfig,
    out: Path,
    format_: str,
    *,
    era: int | None = None,
    force: bool = False,
    progress: Callable[[int, int], None] = lambda rows, read: None,
) -> dict[str, Any]:
    """Write bandit feedback into a new folder, whole or not at all.

    format_: of FORMATS. era: None for the one in force. force: replace a folder that an export made
    before. progress: called with the rows written and the decisions left out so far. Returns what
    experiment.json says, and `files`: rows by file. Raises AgentError, before anything is read,
    where `out` exists otherwise or the era does not.
    """
    source: Path | None = getattr(store, "path", None)
    log = BanditLog(store, config, era)
    estimates = Estimates(log)
    with whole_folder(out, replace="experiment.json" if force else None, source=source) as folder:
        with ExitStack() as stack:
            writer: Writer = _WRITERS[format_](folder, stack, log, config)
            for rows in _gathered(log.blocks()):
                writer.write(rows)
                estimates.add(rows)
                progress(log.rows, sum(log.left_out.values()))
        said = _facts(log, config, format_, estimates)
        (folder / "experiment.json").write_bytes(
            msgspec.json.format(msgspec.json.encode(said), indent=1) + b"\n"
        )
    return {**said, "files": writer.files}


def _facts(
    log: BanditLog, config: ExperimentConfig, format_: str, estimates: Estimates
) -> dict[str, Any]:
    """What is in the files, as experiment.json says it."""
    reward, names = config.reward, Transform(config.features).context_names
    return {
        "format": format_,
        "experiment": config.name,
        "era": log.era,
        "row": "unit" if log.spec.sticky else "request",
        "reward": {
            "low": reward.low,
            "high": reward.high,
            "maximise": reward.maximise,
            "missing": reward.missing,
        },
        "actions": log.actions.names,
        "context": [*names, *(f"routed={name}" for name in config.model_names)],
        "rows": log.rows,
        "left_out": dict(sorted(log.left_out.items())),
        "usage_rows": log.usage_rows,
        "estimates": estimates.report(),
    }


def _gathered(blocks: Iterator[Feedback]) -> Iterator[Feedback]:
    """The same rows in blocks of ROWS_AT_ONCE or more, but for the last."""
    group: list[Feedback] = []
    for block in blocks:
        group.append(block)
        if sum(map(len, group)) >= ROWS_AT_ONCE:
            yield _joined(group)
            group = []
    if group:
        yield _joined(group)


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
