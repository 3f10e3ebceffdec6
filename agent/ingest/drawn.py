"""Rows that were drawn elsewhere, with known probabilities: from records to decisions in a store.

A file is looked at twice. First as a whole (`survey`): which models it compares, and whether it can
be what was declared. A certified sum takes rows in the order of their draws, so rows must stand in
that order; and rows of one unit that get the same model far more often than independent draws would
were drawn by unit. Then row by row (`DrawnRows`): probabilities are checked, and each row becomes a
decision with its outcome, under a rule that says by whom it was drawn. Its uniform is the middle of
the drawn model's part of [0, 1), so that the draw follows from it as everywhere else.

A row is refused for its draw alone. What came after it (reward, served, delivered, outputs) and
cannot be is missing from the row, which stays: rows must not leave with their outcome. A row that
left for a fault that its draw may have had a part in leaves doubt, and nothing is certified then.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import msgspec
import numpy as np

from equipoise.agent.agent import Accepted, Agent
from equipoise.agent.config.file import ConfigFile
from equipoise.agent.config.ingest import IngestMapping
from equipoise.agent.decisions.validation import other_content, stored_row
from equipoise.agent.errors import AgentError, ConflictError, check_against, dated
from equipoise.agent.features.values import FeatureError, shown
from equipoise.agent.ingest.drawn_rows import DrawnRow, answered
from equipoise.agent.ingest.draws import (
    BeforeDrawError,
    Declared,
    Draw,
    Evidence,
    Survey,
    doubt_of,
    draw_of,
    position_of,
)
from equipoise.agent.ingest.files import STANDARD_INPUT, Source
from equipoise.agent.ingest.joins import Log
from equipoise.agent.ingest.records import reader
from equipoise.agent.lifecycle.drawn import LEAST_OPEN, Drawn
from equipoise.agent.lifecycle.eras import read_answers
from equipoise.agent.state.attempts import FIRST
from equipoise.agent.state.replay_index import NO_CONTEXT
from equipoise.store.batches import DecisionBatch, Floats, OutcomeBatch, text_key
from equipoise.store.words import plural

DRAWN_AT_ONCE = 500
_FIRST_RULE = 500
"""Rows after which the first prediction is frozen; the next follow at twice as many each."""


@dataclass(slots=True)
class _Unit:
    model: int
    probabilities: Floats
    number: int = -1


def declared_of(
    file: ConfigFile, mapping: IngestMapping | None, sources: Sequence[Source], log: Log
) -> Declared:
    """What a mapping and whole files say of rows that were drawn elsewhere."""
    models = file.experiment.model_names
    for source in sources:
        if source.path == STANDARD_INPUT:
            raise AgentError(
                "rows drawn elsewhere are read twice, standard input once: name a file"
            )
    shares = None if mapping is None or not mapping.shares else mapping.shares
    drawn = Drawn(
        mapping="a log" if mapping is None else mapping.name,
        how="unknown" if mapping is None else mapping.drawn or "unknown",
        declared=time.time(),
        shares=None if shares is None else tuple(shares.get(name, 0.0) for name in models),
        coverage=1.0 if mapping is None else mapping.coverage,
    )
    found = Survey(drawn, models)
    for source in sources:
        to_record = reader(source.format, "decisions", file.experiment.features, mapping)
        for usage in log.usages(source):
            if usage.reason is not None:
                found.skipped(usage.reason)
                continue
            try:
                if usage.error is not None:
                    raise usage.error
                row = cast(DrawnRow, to_record(usage.row))
            except AgentError as error:  # it is refused, and named, when it is taken
                found.lost(error)
            else:
                found.add(source.name, usage.number, row)
    return found.result()


class NotYetError(AgentError):
    """A row whose time has not come: it is to be read later."""


class DrawnRows:
    """Takes rows that were drawn elsewhere into a store. now: seconds since the epoch."""

    def __init__(self, agent: Agent, declared: Declared, now: float) -> None:
        self._agent, self._declared, self._now = agent, declared, now
        self._models = agent.models
        self._position = {name: at for at, name in enumerate(agent.models)}
        self._units: dict[int, _Unit] | None = None
        self._evidence = Evidence()
        self._taken, self._next_rule = 0, _FIRST_RULE
        self._latest = -math.inf
        self._fresh, self._draws, self._open, self._there = 0, 0, 0, 0
        self._own: tuple[Drawn, int] | None = None
        self._repaired: Counter[str] = Counter()
        self._first_repair: dict[str, str] = {}
        self._refused: dict[str, str] = {}
        self._left_out: set[str] = set()

    @property
    def sentence(self) -> str:
        """What these rows count for."""
        agent = self._agent
        if not self._fresh:
            if self._own is None:
                return "none of them was taken"
            drawn, era = self._own
            by = f"none is new; they were drawn by {drawn.label}"
            why = drawn.uncertified or self._against(era)
            return f"{by}, and count for estimates alone: {why}" if why else by
        drawn = agent.rule.drawn or self._declared.drawn
        why = drawn.uncertified or self._against(agent.rule.era)
        if why:
            return f"they count for estimates alone: {why}{self._missing}"
        what = "unit" if drawn.how == "unit" else "row"
        counted = f"each {what} counts for certificates"
        if self._open < self._draws:
            counted = (
                f"{self._open:,} of {plural(self._draws, f'new {what}')} count for certificates"
                f" (the others were not open to every model with {LEAST_OPEN:g} or more)"
            )
        part = (
            "" if drawn.coverage == 1.0 else f", of the {drawn.coverage:.4g} that was drawn at all"
        )
        return f"{counted}, as drawn by {drawn.label}{drawn.others}{part}{self._missing}"

    def _against(self, era: int) -> str:
        """Why nothing is certified of an era of rows that were drawn elsewhere, "" where it is."""
        agent = self._agent
        if era == agent.rule.era:
            return agent.answers.certified().uncertified or ""
        kept = read_answers(agent.store).get(era)
        why = msgspec.UNSET if kept is None else kept.parts[0].uncertified
        return "" if isinstance(why, msgspec.UnsetType) else why

    @property
    def _missing(self) -> str:
        """What came after draws and could not be; the rows are there without it."""
        return "".join(
            f"; of {plural(count, 'row')} {what} (the first: {self._first_repair[what]})"
            for what, count in sorted(self._repaired.items())
        )

    def begin(self, rows: Sequence[DrawnRow]) -> None:
        """Before rows are taken: what is known of their era, and the prediction of its next rows.

        Raises AgentError where one of them is new and decisions in the store still wait.
        """
        agent, declared = self._agent, self._declared
        names = [row.request_id or "" for row in rows]
        if len(agent.store.find_requests(names)) == len(set(names)):
            return
        continues = agent.continues_drawn(declared.drawn, declared.active)
        if not continues:
            agent.close_before_drawn(self._now)
        if self._units is None:
            self._units = {}
            self._read_store(self._units, continues)
            if continues and agent.rule.drawn is not None:
                agent.say_drawn(agent.rule.drawn.joined(declared.drawn), self._now)
        drawn = agent.rule.drawn if continues else declared.drawn
        if drawn is None or not (drawn.certifies and drawn.timed):
            # Where nothing tells the order of rows, none may rest on others of their file.
            return
        if self._taken >= self._next_rule:
            # What the next rows are compared with rests on the rows before them.
            agent.controls.freeze_rule(agent.rule.era, self._now)
            self._next_rule = 2 * self._taken

    def finish(self) -> None:
        """After the last row: units have no further rows, and all that the rows show is known."""
        agent = self._agent
        if agent.rule.drawn is None or not self._declared.rows:
            return
        agent.complete_drawn(self._now)
        drawn = agent.rule.drawn
        came = self._fresh or self._refused or self._left_out
        if not came or not agent.continues_drawn(self._declared.drawn, self._declared.active):
            return
        new = self._declared.left_out + len(self._left_out)
        # Rows of a log that has grown were refused before.
        left_out = max(new, drawn.left_out) if self._there else new + drawn.left_out
        doubt = drawn.doubt
        if drawn.certifies and self._refused:
            doubt = doubt_of(len(self._refused), next(iter(self._refused.values())))
        if drawn.certifies and not doubt and (doubt := self._contradiction(drawn)):
            agent.withdraw_drawn(drawn.mapping, doubt, self._now)
        agent.say_drawn(msgspec.structs.replace(drawn, doubt=doubt, left_out=left_out), self._now)

    def _contradiction(self, drawn: Drawn) -> str:
        """What all rows of this mapping in the store show against it."""
        said = self._evidence.against(drawn)
        if not said and drawn.routed:
            said = self._evidence.routed_follows
        return f"with the rows read before, {said}" if said else ""

    def take(self, rows: Sequence[DrawnRow]) -> Accepted:
        """Take in rows, each with a request_id: all of them, or none where one is refused.

        Raises AgentError, FeatureError or ConflictError naming field, value and limit.
        """
        try:
            return self._take(rows)
        except (ConflictError, NotYetError):
            raise
        except (BeforeDrawError, FeatureError):
            self._left_out.update(row.request_id or "" for row in rows if len(rows) == 1)
            raise
        except AgentError as error:
            if len(rows) == 1:
                self._refused.setdefault(rows[0].request_id or "", str(error))
            raise

    def _take(self, rows: Sequence[DrawnRow]) -> Accepted:
        state, first = self._agent.state, self._agent.store.decisions
        names = [row.request_id or "" for row in rows]
        known = self._agent.store.find_requests(names)
        x = state.transform.context_rows([row.features for row in rows])
        said = rows
        repaired = [self._repair(row) for row in rows]
        rows = [row for row, _ in repaired]
        outputs = np.full((len(rows), state.transform.q), np.nan)
        told = [at for at, row in enumerate(rows) if row.outputs]
        if told and state.transform.q:
            outputs[told] = state.transform.output_rows([rows[at].outputs for at in told])
        seen: dict[str, DrawnRow] = {}
        fresh: list[int] = []
        answered: list[tuple[int, int]] = []
        units: list[_Unit] = []
        opened: dict[int, _Unit] = {}
        latest = self._latest
        for at, row in enumerate(rows):
            name = names[at]
            if name in seen:
                if seen[name] != said[at]:
                    raise ConflictError(f"request_id {name!r} stands twice, with other content")
                continue
            seen[name] = said[at]
            if name in known:
                if self._repeats(known[name], row, x[at], outputs[at]):
                    answered.append((at, known[name]))
                continue
            # The draw first: what it refuses is refused again in every reading.
            unit = self._unit(row, opened)
            latest = self._check(row, latest)
            if unit.number < 0:
                unit.number = first + len(fresh)
            units.append(unit)
            answered.append((at, first + len(fresh)))
            fresh.append(at)
        self._check_observed([names[at] for at in fresh])
        self._there += len(known)
        if not answered:
            return Accepted(0, len(rows))
        if fresh:
            declared = self._declared
            self._agent.begin_drawn(declared.drawn, declared.active, declared.rows, self._now)
        decisions = self._decisions(rows, fresh, units, x, first)
        # Those whose decision was logged when the process ended come first: numbers ascend.
        answered.sort(key=lambda each: each[1])
        self._agent.take_drawn(decisions, self._outcomes(rows, answered, outputs), self._now)
        self._latest, self._taken = latest, self._taken + len(fresh)
        self._fresh += len(fresh)
        for at in fresh:
            for what, why in repaired[at][1]:
                self._repaired[what] += 1
                self._first_repair.setdefault(what, why)
        self._bet(decisions, counted=True)
        if self._units is not None:
            self._units.update(opened)
        return Accepted(len(fresh), len(rows) - len(fresh))

    def _repair(self, row: DrawnRow) -> tuple[DrawnRow, list[tuple[str, str]]]:
        """A row without what came after its draw and cannot be, each part with why it cannot."""
        reward, transform = self._agent.config.reward, self._agent.state.transform
        faults = dict(row.unread)
        if row.reward is not None and not reward.low <= row.reward <= reward.high:
            limits = f"[{reward.low}, {reward.high}]"
            faults["reward"] = f"reward: {row.reward:g} is outside the declared range {limits}"
        if row.served is not None and row.served not in self._position:
            faults["served"] = f"served: model {shown(row.served)} is not one of these"
        if row.outputs and transform.q:
            try:
                transform.check_outputs(transform.output_rows([row.outputs]))
            except (AgentError, FeatureError) as error:
                faults["outputs"] = str(error)
        if not faults:
            return row, []
        changes: dict[str, object] = {"unread": {}}
        said = []
        for part, why in faults.items():
            if part == "outputs":
                changes["outputs"], what = {}, "the outputs are missing"
            elif part == "reward" and reward.kept_missing is None:
                changes["reward"], what = None, "the reward is missing"
            else:
                # A value that is declared for rewards that never came is not that of this one.
                changes |= {"served": None, "delivered": False, "reward": None}
                what = f"{part} cannot be, and the answer is taken as not delivered"
            said.append((what, why))
        return msgspec.structs.replace(row, **changes), said

    def _bet(self, batch: DecisionBatch, counted: bool = False) -> None:
        """Lay evidence on decisions of this mapping. counted: whether they are new."""
        drawn = self._agent.state.rules.rule(batch.rule_id).drawn if len(batch) else None
        if drawn is None or drawn.mapping != self._declared.drawn.mapping:
            return
        by_unit = drawn.how == "unit" and batch.leader is not None
        own = np.ones(len(batch), dtype=bool)
        if by_unit and batch.leader is not None:
            own = batch.leader == batch.number
        if counted:
            shares = batch.probabilities[:, self._declared.active]
            self._draws += int(np.count_nonzero(own))
            self._open += int(np.count_nonzero(own & (shares >= LEAST_OPEN).all(axis=1)))
        drawn = msgspec.structs.replace(drawn, doubt="")  # of such rows there is evidence as well
        if not drawn.certifies or drawn.how != self._declared.drawn.how:
            return
        chances, units = batch.probabilities.tolist(), batch.unit.tolist()
        models, routed = batch.model.tolist(), batch.routed.tolist()
        for at in np.flatnonzero(own).tolist():
            unit = None if by_unit else units[at]
            says = routed[at] if drawn.routed else None
            self._evidence.add(models[at], chances[at], unit, says)

    def _read_store(self, units: dict[int, _Unit], continues: bool) -> None:
        """What rows of this mapping in the store show; of those of the era that goes on also the
        units and the newest time."""
        era = self._agent.rule.era
        for segment in self._agent.store.read(0):
            batch = segment.batch
            if not isinstance(batch, DecisionBatch) or not len(batch):
                continue
            self._bet(batch)
            if not continues or batch.era != era:
                continue
            self._taken += len(batch)
            self._latest = max(self._latest, float(batch.at.max()))
            if batch.leader is not None and self._declared.drawn.how == "unit":
                for at in np.flatnonzero(batch.leader == batch.number).tolist():
                    units[int(batch.unit[at])] = _Unit(
                        int(batch.model[at]), batch.probabilities[at], int(batch.number[at])
                    )
        self._next_rule = max(_FIRST_RULE, 2 * self._taken)

    def _check(self, row: DrawnRow, latest: float) -> float:
        """Refuse a row for what it says beside its probabilities; the newest time from now on."""
        drawn, window = self._declared.drawn, self._agent.config.reward.window
        if drawn.routed and row.routed is None:
            raise BeforeDrawError("routed: received nothing, and other rows say it")
        if row.at is None:
            return latest
        try:
            check_against(np.array([row.at]), self._now, history=True)
        except AgentError as error:
            raise BeforeDrawError(str(error)) from None
        open_ = window is not None and row.at + window > self._now
        # Also with a reward: those that are there already are no random part.
        if window is not None and open_ and (row.reward is None or drawn.certifies):
            what = "received nothing, and it" if row.reward is None else "that of others"
            raise NotYetError(
                f"reward: {what} may still come until {dated(row.at + window)}"
                " (reward.window): read the row after that"
            )
        if drawn.certifies and row.at < latest:
            raise AgentError(
                f"at: {dated(row.at)} is before {dated(latest)}, the newest row so far: rows must"
                " come in the order of their draws"
            )
        return max(latest, row.at)

    def _unit(self, row: DrawnRow, opened: dict[int, _Unit]) -> _Unit:
        """The unit of a row, with the draw that the row follows. opened: by this batch."""
        own, model = self._probabilities(row), self._model("model", row.model)
        if self._declared.drawn.how != "unit":
            if row.sticky:
                raise AgentError(
                    "sticky: the model was kept from an earlier draw, and the probabilities of the"
                    ' row are not those of that draw; declare drawn = "unit" and read the unit from'
                    " its first row on"
                )
            return _Unit(model, own)
        key = text_key("unit", row.unit)
        unit = opened.get(key) or (self._units or {}).get(key)
        if unit is None:
            if row.sticky:
                raise BeforeDrawError(
                    f"sticky: the first row of unit {shown(row.unit)} follows an earlier draw, with"
                    " probabilities that are not in the log"
                )
            unit = opened[key] = _Unit(model, own)
            return unit
        if unit.model != model:
            raise AgentError(
                f"model: {row.model}, and unit {shown(row.unit)} had drawn"
                f" {self._models[unit.model]}: a unit keeps its draw"
            )
        table = self._agent.light.pending
        at = unit.number - table.base
        if 0 <= unit.number < table.next and (at < 0 or table.expired[at]):
            raise BeforeDrawError(
                f"unit_id: {shown(row.unit)} was closed with the rows before: read all rows of a"
                " unit at once"
            )
        return unit

    def _probabilities(self, row: DrawnRow) -> Floats:
        """(K,) probability of each model given that the row was drawn, times that of keeping it."""
        drawn = self._declared.drawn
        draw = draw_of(row, drawn, self._position)
        if row.keep_prob is None and drawn.kept:
            raise AgentError("keep_prob: received nothing, and other rows say it")
        return self._shares(draw) * draw.kept

    def _shares(self, draw: Draw) -> Floats:
        if draw.shares is not None:
            return draw.shares
        active = self._declared.active.copy()
        active[draw.model] = False
        rest = (1.0 - draw.own) / max(int(np.count_nonzero(active)), 1)
        result = np.where(active, rest, 0.0)
        result[draw.model] = draw.own
        return np.asarray(result, dtype=np.float64)

    def _repeats(self, number: int, row: DrawnRow, x: Floats, outputs: Floats) -> bool:
        """Whether a row whose decision is in the log still lacks its outcome there.

        Raises ConflictError where it says something else than the log.
        """
        name, store = row.request_id or "", self._agent.store
        stored = store.decision(number)
        if stored is None:
            raise AgentError(f"request_id {name!r} was decided, but decision d{number} is gone")
        rule = self._agent.state.rules.rule(stored.rule_id)
        if rule.drawn is None:
            raise ConflictError(f"request_id {name!r} was decided here, as d{number}")
        declared = self._declared.drawn
        if (rule.drawn.mapping, rule.drawn.how, rule.drawn.coverage) != (
            *(declared.mapping, declared.how, declared.coverage),
        ):
            raise ConflictError(
                f"request_id {name!r} is there as drawn by {rule.drawn.label}, by"
                f" {rule.drawn.how}, of a coverage of {rule.drawn.coverage:g}: read it as something"
                " else into a store of its own"
            )
        self._own = rule.drawn, stored.era
        model = int(stored.model[0])
        names = [] if self._models[model] == row.model else ["model"]
        follows = stored.leader is not None and int(stored.leader[0]) != number
        if not follows and not names:
            own, logged = self._probabilities(row), stored.probabilities[0]
            width = min(len(own), len(logged))
            apart = np.abs(own[:width] - logged[:width])
            # Of the others nothing is said where a row has the drawn model's alone.
            if (apart if rule.drawn.complete else apart[model]).max() > 1e-12:
                names.append("probabilities")
        if not np.array_equal(stored.x[0], x):
            names.append("features")
        if (stored.unit_id or ("",))[0] != row.unit:
            names.append("unit_id")
        if row.at is not None and row.at != float(stored.at[0]):
            names.append("at")
        said = None if row.routed is None else self._model("routed", row.routed)
        if rule.drawn.routed and said != int(stored.routed[0]):
            names.append("routed")
        place = stored_row(number, float(stored.at[0])).replace("row ", "decision d", 1)
        if names:
            raise ConflictError(f"request_id {name!r} {other_content(names, place)}")
        parts = store.outcome_parts(number)
        told = np.full(1 + len(outputs), np.nan)
        for part in parts:
            values = np.concatenate([part.reward[:1], part.outputs[0]])
            np.copyto(told, values, where=np.isnan(told))
        reward = np.nan if row.reward is None else row.reward
        part_now = self._outcomes([row], [(0, number)], outputs[None])
        news = not np.isnan([reward, *outputs]).all() or bool(part_now.attempt[0])
        table, at = self._agent.light.pending, number - self._agent.light.pending.base
        if not parts and news and at >= 0 and not table.expired[at]:
            return True
        there, ours = answered(parts[0]) if parts else (0, True, -1), answered(part_now)
        if there != ours:
            names.append("delivered" if there[2] == ours[2] else "served")
        if names:
            raise ConflictError(f"request_id {name!r} {other_content(names, place)}")
        if np.array_equal(told, np.concatenate([[reward], outputs]), equal_nan=True):
            return False
        names = [] if np.array_equal(told[:1], [reward], equal_nan=True) else ["reward"]
        names += [] if np.array_equal(told[1:], outputs, equal_nan=True) else ["outputs"]
        raise ConflictError(f"request_id {name!r} {other_content(names, place)}")

    def _check_observed(self, names: list[str]) -> None:
        """Refuse rows that are in the log as a usage log: their rewards would count twice."""
        observed = self._agent.store.find_observations(names)
        if observed:
            name = next(each for each in names if each in observed)
            raise ConflictError(f"request_id {name!r} is in the store as a row of a usage log")

    def _decisions(
        self,
        rows: Sequence[DrawnRow],
        fresh: Sequence[int],
        units: Sequence[_Unit],
        x: Floats,
        first: int,
    ) -> DecisionBatch:
        agent, count = self._agent, len(fresh)
        model = np.array([unit.model for unit in units], dtype=np.int64)
        shares = np.array([unit.probabilities for unit in units]).reshape(count, len(self._models))
        index = np.arange(count)
        chance = shares[index, model]
        uniform = np.add.accumulate(shares, axis=1)[index, model] - 0.5 * chance
        routed = np.array(
            [
                unit.model if rows[at].routed is None else self._model("routed", rows[at].routed)
                for at, unit in zip(fresh, units, strict=True)
            ],
            dtype=np.int64,
        )
        eligible = shares > 0.0
        names = [rows[at].unit for at in fresh]
        return DecisionBatch(
            number=first + index,
            unit=np.array([text_key("unit", name) for name in names], dtype=np.int64),
            context=np.full(count, NO_CONTEXT, dtype=np.int64),
            at=np.array([self._time(rows[at]) for at in fresh], dtype=np.float64),
            x=x[list(fresh)],
            routed=routed,
            rate=np.ones(count),
            probabilities=shares,
            uniform=uniform,
            model=model,
            randomized=np.ones(count, dtype=bool),
            capped=np.zeros(count, dtype=bool),
            rule_id=agent.rule.rule_id,
            era=agent.rule.era,
            eligible=None if eligible[:, self._declared.active].all() else eligible,
            request_id=[rows[at].request_id or "" for at in fresh],
            unit_id=names,
            context_id=[""] * count,
            leader=None
            if agent.config.units is None
            else np.array(
                [unit.number for unit in units]
                if self._declared.drawn.how == "unit"
                else first + index,
                dtype=np.int64,
            ),
            closed_by=np.zeros(count, dtype=np.int64),
        )

    def _outcomes(
        self, rows: Sequence[DrawnRow], answered: Sequence[tuple[int, int]], outputs: Floats
    ) -> OutcomeBatch:
        of = [rows[at] for at, _ in answered]
        served = [row.model if row.served is None else row.served for row in of]
        attempt = [
            FIRST if row.served is not None else 0 if row.delivered is None else -FIRST
            for row in of
        ]
        return OutcomeBatch(
            number=np.array([number for _, number in answered], dtype=np.int64),
            served=np.array([self._model("served", name) for name in served], dtype=np.int64),
            attempt=np.array(attempt, dtype=np.int64),
            delivered=np.array([row.delivered is not False for row in of], dtype=bool),
            outputs=outputs[[at for at, _ in answered]].reshape(len(of), outputs.shape[1]),
            reward=np.array(
                [np.nan if row.reward is None else row.reward for row in of], dtype=np.float64
            ),
            at=np.array([self._time(row) for row in of], dtype=np.float64),
        )

    def _time(self, row: DrawnRow) -> float:
        return self._now if row.at is None else row.at

    def _model(self, field: str, name: str | None) -> int:
        return position_of(field, name, self._position)
