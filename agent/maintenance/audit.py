"""Check a log: that it is what was written, and that every decision follows from what it names.

Three things are looked at. That the store still holds what was written to it: its hash chain, the
states it keeps, and copies of where the chain ended, if there are any. That each row says what it
may say: a decision follows from its rule, its uniform (drawn again where the key is at hand) and
the stops that stood; an outcome is of a decision that was there and says each part once. And what
none of this proves, by name. Nothing the agent holds in memory is trusted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import msgspec
import numpy as np

from equipoise.agent.config import ExperimentConfig
from equipoise.agent.decisions.uniforms import Uniforms, key_hash
from equipoise.agent.errors import AgentError
from equipoise.agent.lifecycle import stored_config
from equipoise.agent.lifecycle.drawn import Drawn
from equipoise.agent.lifecycle.eras import Eras, read_answers
from equipoise.agent.lifecycle.opening import check_key
from equipoise.agent.lifecycle.rules import Rule, rule_id
from equipoise.agent.maintenance.audit_chain import check_chain
from equipoise.agent.maintenance.audit_rows import PartAudit, StopAudit
from equipoise.agent.moments.state import Versions
from equipoise.policies.draw import draw
from equipoise.store.batches import (
    LEFT_OUT,
    Closure,
    DecisionBatch,
    ExpiryBatch,
    Flags,
    Floats,
    ObservationBatch,
    OutcomeBatch,
    Segment,
    SimulationBatch,
    slice_rows,
)
from equipoise.store.contract import Store
from equipoise.store.errors import TrimmedError
from equipoise.store.records import Gap, RuleRecord
from equipoise.store.sql.chain import Anchor
from equipoise.store.sql.store import SqlStore
from equipoise.store.words import plural, verb

TOLERANCE = 1e-9
_SHOWN = 20
NEVER_PROVEN = (
    "that rewards, outputs and features are what really happened: they are as clients sent them",
    "that each rule is the one its policy had to freeze: the estimates of that time are not made"
    " again",
    "that the states in checkpoints follow from the rows: they are whole and no longer than the"
    " log; delete them, and the next start folds every row again",
)


@dataclass(slots=True)
class Audit:
    """What an audit found. `faults` holds sentences, at most 20; `fault_count` counts all.

    begins: the first row of the log; digest: of the removed rows before it, "" where there are
    none. unchecked: decisions that follow one among those rows. capped: decisions that a stop kept
    from being randomized; closed_by: how many of them by what (`Closure`, in lower case), where the
    log says. left_out: decisions that no sum of draws counts, by why (`LEFT_OUT`). chained_from:
    the first row that the hash chain covers, None where there is no chain; chained_rows: how many
    it covers.
    anchors: how many copies of the chain's end were compared. losses: what the log is known to
    lack, which is no fault of what it holds. drawn: decisions that were drawn elsewhere, by whom.
    unproven: what was not proven.
    """

    begins: int = 0
    digest: str = ""
    unchecked: int = 0
    rows: int = 0
    decisions: int = 0
    randomized: int = 0
    capped: int = 0
    closed_by: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    outcomes: int = 0
    rules: int = 0
    chained_from: int | None = None
    chained_rows: int = 0
    anchors: int = 0
    uniforms_redrawn: bool = False
    losses: list[str] = field(default_factory=list)
    drawn: dict[str, int] = field(default_factory=dict)
    fault_count: int = 0
    faults: list[str] = field(default_factory=list)
    unproven: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return self.fault_count == 0

    def fault(self, sentence: str, count: int = 1) -> None:
        self.fault_count += count
        if len(self.faults) < _SHOWN:
            self.faults.append(sentence)

    def faulty(self, subject: str, numbers: np.ndarray, wrong: Flags, what: str) -> None:
        """One sentence about every row where `wrong` (n,). subject: what their numbers count."""
        count = int(np.count_nonzero(wrong))
        if count:
            first = int(numbers[np.flatnonzero(wrong)[0]])
            more = f", and {count - 1} more" if count > 1 else ""
            self.fault(f"{subject}{first} {what}{more}", count)


def audit(
    store: Store,
    config: ExperimentConfig,
    key: bytes | None = None,
    progress: Callable[[str, int], None] = lambda doing, rows: None,
    anchors: Sequence[Anchor] = (),
) -> Audit:
    """Audit a whole store. progress: called with what is being done, and the rows done so far.

    anchors: where its chains ended at earlier moments, from a file or a backup.
    Raises AgentError where the key is not the one the store was opened with, TrimmedError where
    retention removed rows meanwhile.
    """
    draws = None
    if key is not None:
        check_key(store, key_hash(key))
        draws = Uniforms(key, config.name)
    result = Audit(uniforms_redrawn=draws is not None)
    root = store.base_snapshot()
    if root is not None:
        result.begins, result.digest = root.seq, root.digest
    gaps = store.gaps()
    result.losses = [gap.sentence for gap in gaps]
    if isinstance(store, SqlStore):
        chained = check_chain(store, anchors, partial(progress, "comparing with the hash chain"))
        result.chained_from, result.chained_rows = chained.begins, chained.rows
        result.anchors = chained.anchors
        for sentence in chained.faults:
            result.fault(sentence)
    progress("reading rules", 0)
    log_audit = _LogAudit(result, store, config, draws, gaps)
    log_audit.run(partial(progress, "recomputing decisions"))
    after = store.base_snapshot()
    if after is not None and after.seq != result.begins:
        raise TrimmedError("old rows were removed meanwhile: run it again")
    result.unproven += _unproven(result, isinstance(store, SqlStore))
    return result


def _unproven(result: Audit, in_a_file: bool) -> list[str]:
    sentences = []
    if not result.uniforms_redrawn:
        sentences.append("that uniforms are those of the key: it is not beside the store")
    if result.chained_from is None:
        why = "there is no chain yet" if in_a_file else "there is no chain in memory"
        sentences.append(f"that rows are as they were written: {why}")
    elif result.chained_from > result.begins:
        sentences.append(
            f"that rows {result.begins} to {result.chained_from - 1} are as they were written: an"
            " older version wrote them, without a chain"
        )
    if result.chained_from is not None and not result.anchors:
        sentences.append(
            "that nobody rewrote rows and their chain together: name an anchor file or a backup"
            " with --anchor"
        )
    if result.begins:
        removed = plural(result.begins, "removed row")
        sentences.append(f"anything of the {removed} but their digest")
    return [*sentences, *NEVER_PROVEN]


def _consecutive(segments: Iterator[Segment]) -> Iterator[Segment]:
    """The segments, cut where decision numbers leave some out."""
    for segment in segments:
        batch, start = segment.batch, 0
        if isinstance(batch, DecisionBatch):
            for cut in (np.flatnonzero(np.diff(batch.number) != 1) + 1).tolist():
                yield Segment(segment.seq + start, slice_rows(batch, start, cut))
                start = cut
        yield Segment(segment.seq + start, slice_rows(batch, start, len(batch)))


class _LogAudit:
    """One pass over the rows."""

    def __init__(
        self,
        result: Audit,
        store: Store,
        config: ExperimentConfig,
        draws: Uniforms | None,
        gaps: Sequence[Gap],
    ) -> None:
        # The rows that are there now, and then the rules: beside a writer none is missing.
        self._until = store.next_seq
        root = store.base_snapshot()
        self._result, self._store, self._config, self._draws = result, store, config, draws
        self._first = self._number = 0 if root is None else root.decisions
        self._seq = 0 if root is None else root.seq
        self._lost = {gap.first: gap.end for gap in gaps if gap.numbers}
        self._eras = self._check_eras()
        self._order: dict[str, int] = {}
        self._rules = self._check_rules()
        self._newest_rule = -1
        texts = stored_config.versions(store).values()
        configs = [ExperimentConfig.from_json(text) for text in texts] or [config]
        self._parts = PartAudit(config, configs, self._first)
        self._stops = StopAudit(store, config, self._first)
        self._replayed: set[tuple[int, int]] = set()
        names = tuple(model.name for model in config.models)
        self._versions = Versions(len(names), Eras(store, names).renewals())

    def run(self, progress: Callable[[int], None]) -> None:
        result = self._result
        for segment in _consecutive(self._store.read(0, self._until)):
            batch = segment.batch
            if segment.seq != self._seq:
                missing = segment.seq - self._seq
                result.fault(f"log rows {self._seq} to {segment.seq - 1} are missing", missing)
            self._seq = segment.seq + len(batch)
            result.rows += len(batch)
            if isinstance(batch, DecisionBatch):
                while self._number in self._lost:
                    self._number = self._lost[self._number]
                self._decisions(batch)
                rule = self._rules.get(batch.rule_id)
                elsewhere = rule is not None and rule.drawn is not None
                self._parts.decided(batch, self._number, elsewhere)
                self._number += len(batch)
            elif isinstance(batch, (OutcomeBatch, ExpiryBatch)):
                self._answers(batch)
            else:
                self._other(segment.seq, batch)
            progress(result.rows)
        for label, count in result.drawn.items():
            verb_ = verb(count, "was", "were")
            result.unproven.append(
                f"the probabilities of {plural(count, 'decision')} that {verb_} drawn by {label}:"
                " they are taken as declared, and the key proves nothing about them"
            )
        for why, count in self._stops.unproven.items():
            served = f"{plural(count, 'decision')} {verb(count, 'was', 'were')} served as routed"
            result.unproven.append(f"why {served}: {why}")

    def _check_eras(self) -> set[int]:
        result, settings = self._result, self._store.settings()
        eras = self._store.eras()
        if [era.era for era in eras] != list(range(len(eras))):
            result.fault(f"eras are {[era.era for era in eras]}: one is missing")
        names = [model.name for model in self._config.models]
        for era in eras:
            if era.models != names[: len(era.models)]:
                result.fault(f"era {era.era} compares {era.models}, the configuration has {names}")
            for name in ("key_hash", "schema_hash"):
                if getattr(era, name) != settings.get(name):
                    result.fault(f"era {era.era} has another {name} than the store")
        try:
            answers = read_answers(self._store)
        except AgentError as error:
            result.fault(str(error))
        else:
            unknown = sorted(answers.keys() - {era.era for era in eras})
            if unknown:
                result.fault(f"there are kept answers of eras {unknown}, which are not there")
        schema = self._config.features.schema_hash
        if settings.get("schema_hash", schema) != schema:
            result.fault("the features of the configuration are not those of the store")
        return {era.era for era in eras}

    def _check_rules(self) -> dict[str, Rule]:
        result, rules = self._result, dict[str, Rule]()
        for record in self._store.rules():
            result.rules += 1
            rule = _decoded(record)
            if rule_id(record.body) != record.rule_id:
                result.fault(f"rule {record.rule_id} has a text of another id")
            if rule is None:
                result.fault(f"rule {record.rule_id} cannot be read")
                continue
            if rule.era != record.era or (self._eras and rule.era not in self._eras):
                result.fault(f"rule {record.rule_id} is of era {rule.era}, kept under {record.era}")
            self._order[record.rule_id] = len(self._order)
            rules[record.rule_id] = rule
        return rules

    def _decisions(self, batch: DecisionBatch) -> None:
        result, number, count = self._result, self._number, len(batch)
        result.decisions += count
        result.randomized += int(np.count_nonzero(batch.randomized))
        left_out = np.zeros(count, dtype=bool)
        if batch.closed_by is not None:
            left_out = np.isin(batch.closed_by, LEFT_OUT)
        result.capped += int(np.count_nonzero(batch.capped & ~left_out))
        if batch.closed_by is not None:
            for closure in Closure:
                name = closure.name.lower()
                rows = int(np.count_nonzero(batch.closed_by[batch.capped] == closure))
                if rows and closure not in LEFT_OUT:
                    result.closed_by[name] = result.closed_by.get(name, 0) + rows
                rows = int(np.count_nonzero(batch.closed_by == closure))
                if rows and closure in LEFT_OUT:
                    result.left_out[name] = result.left_out.get(name, 0) + rows
        expected = np.arange(number, number + count)
        self._report(batch, batch.number != expected, "is out of sequence")
        rule = self._rules.get(batch.rule_id)
        if rule is None:
            of = plural(count, "decision")
            result.fault(f"rule {batch.rule_id} of {of} is not in the store", count)
            return
        if batch.era != rule.era:
            result.fault(f"decision d{number} is of era {batch.era}, its rule of {rule.era}", count)
        self._report(
            batch, batch.number < rule.since, "was made under a rule that was frozen later"
        )
        order = self._order[batch.rule_id]
        if order < self._newest_rule:
            # What a decider shipped late was made under the rule that it had then.
            self._report(batch, ~left_out, "was made under a rule that was replaced")
        self._newest_rule = max(order, self._newest_rule)
        shape = batch.probabilities.shape[1], batch.x.shape[1]
        if shape[0] != len(rule.active):
            result.fault(f"decision d{number} has {shape[0]} probabilities, its rule", count)
            return
        if rule.drawn is None:
            self._recompute(batch, rule)
        else:
            self._check_drawn(batch, rule, rule.drawn)

    def _check_drawn(self, batch: DecisionBatch, rule: Rule, drawn: Drawn) -> None:
        """What can be told of decisions that were drawn elsewhere."""
        count = len(batch)
        self._result.drawn[drawn.label] = self._result.drawn.get(drawn.label, 0) + count
        off = (batch.rate != 1.0) | batch.capped | ~batch.randomized
        self._report(batch, off, "was drawn elsewhere, and its rate is not 1")
        shares, total = batch.probabilities, batch.probabilities.sum(axis=1)
        inside = (shares >= 0.0).all(axis=1) & (total <= 1.0 + TOLERANCE) & (total > 0.0)
        inside &= (np.abs(total - 1.0) <= TOLERANCE) | drawn.kept
        self._report(batch, ~inside, "has probabilities that do not add up to 1")
        closed = np.broadcast_to(~rule.active, shares.shape)
        closed = closed if batch.eligible is None else closed | ~batch.eligible
        off = np.count_nonzero(closed & (shares > 0.0), axis=1) > 0
        self._report(batch, off, "gives a chance to a model that was no candidate")
        if drawn.shares is not None and not drawn.kept:
            off = np.abs(shares - np.array(drawn.shares)).max(axis=1) > TOLERANCE
            self._report(batch, off, f"has probabilities that rule {batch.rule_id} does not give")
        index = np.arange(count)
        own = shares[index, np.clip(batch.model, 0, shares.shape[1] - 1)]
        middle = np.add.accumulate(shares, axis=1)[index, batch.model] - 0.5 * own
        model, randomized = draw(batch.uniform, batch.rate, shares, batch.routed)
        off = (model != batch.model) | (randomized != batch.randomized)
        off |= (batch.uniform != middle) | (own <= 0.0)
        self._report(batch, off, "does not follow from its own uniform and probabilities")
        if batch.leader is not None and (batch.leader != batch.number).any():
            _, shares, uniform = self._of_leaders(batch, batch.rate, shares, batch.uniform)
            off = (shares != batch.probabilities).any(axis=1) | (uniform != batch.uniform)
            self._report(batch, off, "does not follow the draw of its unit")

    def _recompute(self, batch: DecisionBatch, rule: Rule) -> None:
        number, count = self._number, len(batch)
        rate, shares = rule.allocation.allocate(batch.x, batch.eligible)
        own_rate, own_shares = rate, shares
        uniform = None if self._draws is None else self._draws.at(batch.positions)
        opened: Floats | None = None
        if batch.leader is not None:
            opened = np.full(count, np.nan)
            if (batch.leader != batch.number).any():
                rate, shares, uniform = self._of_leaders(batch, rate, shares, uniform)
                follows = batch.leader != batch.number
                opened[follows] = rate[follows]
        stops = self._stops.check(
            batch,
            number,
            own_rate if opened is None else rate,
            own_shares if opened is None else shares,
            rule.active,
            opened,
            rule.stops,
        )
        self._report(batch, stops.shut, "is capped, and nothing stopped it")
        self._report(batch, stops.loose, "is not capped, and a stop stood")
        self._report(batch, stops.full, "was open to a model that had had all it may get")
        rate = np.where(batch.capped, 0.0, rate)
        name = batch.rule_id
        off = np.abs(rate - batch.rate) > TOLERANCE
        self._report(batch, off, f"has a rate that rule {name} does not give")
        off = np.abs(shares - batch.probabilities).max(axis=1) > TOLERANCE
        self._report(batch, off, f"has probabilities that rule {name} does not give")
        model, randomized = draw(batch.uniform, batch.rate, batch.probabilities, batch.routed)
        off = (model != batch.model) | (randomized != batch.randomized)
        self._report(batch, off, "does not follow from its own uniform and probabilities")
        if uniform is not None:
            off = uniform != batch.uniform
            self._report(batch, off, "has a uniform the key does not give")

    def _of_leaders(
        self, batch: DecisionBatch, rate: Floats, shares: Floats, uniform: Floats | None
    ) -> tuple[Floats, Floats, Floats | None]:
        """What followers of a sticky unit should have: the rate, shares and uniform of the decision
        that opened it, as logged and so audited itself."""
        result = self._result
        rate, shares = rate.copy(), shares.copy()
        uniform = None if uniform is None else uniform.copy()
        assert batch.leader is not None
        for row in np.flatnonzero(batch.leader != batch.number).tolist():
            leader = int(batch.leader[row])
            if 0 <= leader < self._first:
                # Its leader's row was removed: what it was given has nothing to be compared with.
                result.unchecked += 1
                rate[row], shares[row] = batch.rate[row], batch.probabilities[row]
                if uniform is not None:
                    uniform[row] = batch.uniform[row]
                continue
            opened = self._store.decision(leader) if 0 <= leader < int(batch.number[row]) else None
            if opened is None or int(opened.unit[0]) != int(batch.unit[row]):
                result.fault(f"decision d{batch.number[row]} follows d{leader}, not of its unit")
                continue
            # A model that was added since its unit was opened gets nothing of it.
            known = opened.probabilities.shape[1]
            rate[row] = opened.rate[0]
            shares[row, :known], shares[row, known:] = opened.probabilities[0], 0.0
            if uniform is not None:
                uniform[row] = opened.uniform[0]
        return rate, shares, uniform

    def _answers(self, batch: OutcomeBatch | ExpiryBatch) -> None:
        result = self._result
        if isinstance(batch, OutcomeBatch):
            result.outcomes += len(batch)
        orphan = (batch.number < 0) | (batch.number >= self._number)
        self._report(batch, orphan, "is answered for before it was made")
        if orphan.any():
            return
        for wrong, what in self._parts.answered(batch):
            self._report(batch, wrong, what)

    def _other(self, seq: int, batch: ObservationBatch | SimulationBatch) -> None:
        rows = np.arange(seq, seq + len(batch))
        models = len(self._config.models)
        if isinstance(batch, ObservationBatch):
            reward = self._config.reward
            off = ~((batch.reward >= reward.low) & (batch.reward <= reward.high))
            self._result.faulty("row ", rows, off, "has a reward outside the declared range")
            model = batch.routed
        else:
            model = batch.model
            # Each version of a model may answer a context once.
            versions = self._versions
            generation = np.array([versions.logged(row) for row in rows.tolist()])
            column = versions.columns(generation, model, len(versions.renewals))
            pairs = list(zip(batch.context.tolist(), column.tolist(), strict=True))
            again = np.array([pair in self._replayed for pair in pairs])
            self._result.faulty("row ", rows, again, "replays a context a second time")
            self._replayed.update(pairs)
        off = (model < 0) | (model >= models)
        self._result.faulty("row ", rows, off, "names a model that does not exist")

    def _report(
        self, batch: DecisionBatch | OutcomeBatch | ExpiryBatch, wrong: Flags, what: str
    ) -> None:
        self._result.faulty("decision d", batch.number, wrong, what)


def _decoded(record: RuleRecord) -> Rule | None:
    try:
        return Rule.decode(record)
    except (msgspec.MsgspecError, ValueError, TypeError, LookupError):
        return None
