"""Rows that were drawn elsewhere, with known probabilities: from records to decisions in a store.

A file is looked at twice. First as a whole (`survey`): which models it compares, and whether it can
be what was declared. A certified sum takes rows in the order of their draws, so rows must stand in
that order; and rows of one unit that get the same model far more often than independent draws would
were drawn by unit. Then row by row (`DrawnRows`): probabilities are checked, and each row becomes a
decision with its outcome, under a rule that says by whom it was drawn. Its uniform is the middle of
the drawn model's part of [0, 1), so that the draw follows from it as everywhere else.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

import msgspec
import numpy as np

from equipoise.agent.agent import Accepted, Agent
from equipoise.agent.config.file import ConfigFile
from equipoise.agent.config.ingest import IngestMapping
from equipoise.agent.decisions.validation import other_content, stored_row
from equipoise.agent.errors import SKEW, AgentError, ConflictError, check_against, dated
from equipoise.agent.features.values import shown
from equipoise.agent.ingest.drawn_rows import DrawnRow
from equipoise.agent.ingest.files import STANDARD_INPUT, Source
from equipoise.agent.ingest.joins import Log
from equipoise.agent.ingest.records import reader
from equipoise.agent.lifecycle.drawn import Drawn
from equipoise.agent.state.attempts import FIRST
from equipoise.agent.state.replay_index import NO_CONTEXT
from equipoise.store.batches import DecisionBatch, Flags, Floats, OutcomeBatch, text_key
from equipoise.store.words import plural

TOLERANCE = 1e-5
"""By which probabilities that are written with few digits may differ from their sum, or from one
another."""
LEAST = 1e-9
"""Smallest probability of a model that was drawn, and of keeping the row as well."""
BY_UNIT = math.log(1e6)
"""Log evidence from which rows of a unit are said to follow one draw: of files that were drawn by
request, less than one in a million reaches it."""
_STUCK = (0.5, 0.95)
"""Shares of rows that repeat their unit's last model, which the evidence is laid on."""
DRAWN_AT_ONCE = 500
_FIRST_RULE = 500
"""Rows after which the first prediction is frozen; the next follow at twice as many each."""


@dataclass(frozen=True, slots=True)
class Declared:
    """What a mapping declares, and what a whole file shows. drawn: both together. active: (K,)
    models that are compared. rows: how many there are."""

    drawn: Drawn
    active: Flags
    rows: int


@dataclass(slots=True)
class _Unit:
    model: int
    probabilities: Floats
    number: int = -1


def survey(
    placed: Iterable[tuple[str, int, DrawnRow]], declared: Drawn, models: Sequence[str]
) -> Declared:
    """Look at all rows that were declared so. placed: each with its file and its number in it.

    Rows that cannot be read are left to be refused one by one. Raises AgentError where the file as
    a whole is not what was declared.
    """
    position = {name: at for at, name in enumerate(models)}
    active = np.zeros(len(models), dtype=bool)
    if declared.shares is not None:
        active |= np.array(declared.shares) > 0.0
    rows, all_known, routed, kept = 0, True, False, False
    latest, place, disorder = -math.inf, "", ""
    last: dict[str, int] = {}
    evidence, repeats, same, expected = np.zeros(len(_STUCK)), 0, 0, 0.0
    for source, number, row in placed:
        rows += 1
        routed, kept = routed or row.routed is not None, kept or row.keep_prob not in (None, 1.0)
        at, here = row.at, f"{source}, row {number}"
        # One that has not come yet is refused alone.
        if at is not None and at <= declared.declared + SKEW:
            if at < latest and not disorder:
                disorder = f"{here}: at is {dated(at)}, before {place} ({dated(latest)})"
            latest, place = (at, f"row {number}") if at >= latest else (latest, place)
        if row.model not in position:
            continue
        drawn = position[row.model]
        active[drawn] = True
        if row.candidates is not None:
            for name, chance in row.candidates.items():
                active[position.get(name, drawn)] |= chance > 0.0
        elif declared.shares is None:
            all_known = False
        if declared.how == "request" and row.unit_id is not None:
            before, chances = last.get(row.unit_id), _chances(row, declared, models)
            last[row.unit_id] = drawn
            p = 0.0 if before is None else chances.get(models[before], 0.0)
            if before is not None and 0.0 < p < 1.0:
                hit = before == drawn
                repeats, same, expected = repeats + 1, same + hit, expected + p
                for index, stuck in enumerate(_STUCK):
                    q = stuck + (1.0 - stuck) * p
                    evidence[index] += math.log(q / p) if hit else math.log1p(-stuck)
    few = np.count_nonzero(active) <= 2
    drawn_as = msgspec.structs.replace(
        declared, routed=routed, kept=kept, complete=all_known or bool(few)
    )
    if drawn_as.certifies:
        if disorder:
            raise AgentError(f"{disorder}: rows must stand in the order of their draws; sort them")
        together = float(np.logaddexp.reduce(evidence)) - math.log(len(_STUCK))
        if drawn_as.complete and together > BY_UNIT:
            raise AgentError(
                f"of {plural(repeats, 'row')} whose unit had one before, {same:,} got the same"
                f" model, where draws by request give about {expected:,.0f}: a unit was drawn once;"
                ' declare drawn = "unit"'
            )
    if rows and np.count_nonzero(active) < 2:
        raise AgentError(
            "the rows compare a single model: their candidates, or shares, must name two of"
            f" {', '.join(models)}"
        )
    return Declared(drawn_as, active, rows)


def _chances(row: DrawnRow, declared: Drawn, models: Sequence[str]) -> Mapping[str, float]:
    """Probability of each model given that a row was drawn, empty where they are not all known."""
    if declared.shares is not None:
        return dict(zip(models, declared.shares, strict=True))
    chances = row.candidates
    if chances is None and row.propensity is not None and len(models) == 2:
        other = models[models[0] == row.model]
        chances = {row.model: row.propensity, other: declared.coverage - row.propensity}
    return {name: chance / declared.coverage for name, chance in (chances or {}).items()}


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

    def placed() -> Iterator[tuple[str, int, DrawnRow]]:
        for source in sources:
            to_record = reader(source.format, "decisions", file.experiment.features, mapping)
            for usage in log.usages(source):
                with suppress(AgentError):  # it is refused, and named, when it is taken
                    if usage.error is None and usage.reason is None:
                        yield source.name, usage.number, cast(DrawnRow, to_record(usage.row))

    return survey(placed(), drawn, models)


class DrawnRows:
    """Takes rows that were drawn elsewhere into a store. now: seconds since the epoch."""

    def __init__(self, agent: Agent, declared: Declared, now: float) -> None:
        self._agent, self._declared, self._now = agent, declared, now
        self._models = agent.models
        self._position = {name: at for at, name in enumerate(agent.models)}
        self._units: dict[int, _Unit] | None = None
        self._taken, self._next_rule = 0, _FIRST_RULE
        self._latest = -math.inf

    @property
    def sentence(self) -> str:
        """What these rows count for."""
        drawn = self._agent.rule.drawn or self._declared.drawn
        if not drawn.certifies:
            return f"they count for estimates alone: {drawn.uncertified}"
        what = "unit" if drawn.how == "unit" else "row"
        part = (
            "" if drawn.coverage == 1.0 else f", of the {drawn.coverage:.4g} that was drawn at all"
        )
        return f"each {what} counts for certificates, as drawn by {drawn.label}{part}"

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
            if continues:
                self._read_era(self._units)
        if declared.drawn.certifies and self._taken >= self._next_rule:
            # What the next rows are compared with rests on the rows before them.
            agent.controls.freeze_rule(agent.rule.era, self._now)
            self._next_rule = 2 * self._taken

    def finish(self) -> None:
        """After the last row: units have no further rows."""
        if self._agent.rule.drawn is not None and self._declared.rows:
            self._agent.complete_drawn(self._now)

    def take(self, rows: Sequence[DrawnRow]) -> Accepted:
        """Take in rows, each with a request_id: all of them, or none where one is refused.

        Raises AgentError, FeatureError or ConflictError naming field, value and limit.
        """
        state, first = self._agent.state, self._agent.store.decisions
        names = [row.request_id or "" for row in rows]
        known = self._agent.store.find_requests(names)
        x = state.transform.context_rows([row.features for row in rows])
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
                if seen[name] != row:
                    raise ConflictError(f"request_id {name!r} stands twice, with other content")
                continue
            seen[name] = row
            if name in known:
                if self._repeats(known[name], row, x[at], outputs[at]):
                    answered.append((at, known[name]))
                continue
            latest = self._check(row, latest)
            unit = self._unit(row, opened)
            if unit.number < 0:
                unit.number = first + len(fresh)
            units.append(unit)
            answered.append((at, first + len(fresh)))
            fresh.append(at)
        self._check_observed([names[at] for at in fresh])
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
        if self._units is not None:
            self._units.update(opened)
        return Accepted(len(fresh), len(rows) - len(fresh))

    def _read_era(self, units: dict[int, _Unit]) -> None:
        """The units and the newest time of rows of this era that are in the store."""
        era = self._agent.rule.era
        for segment in self._agent.store.read(0):
            batch = segment.batch
            if not isinstance(batch, DecisionBatch) or batch.era != era or not len(batch):
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
            raise AgentError("routed: received nothing, and other rows say it")
        if row.at is None:
            return latest
        check_against(np.array([row.at]), self._now, history=True)
        if row.reward is None and window is not None and row.at + window > self._now:
            raise AgentError(
                f"reward: received nothing, and it may still come until {dated(row.at + window)}"
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
        model, own = self._model("model", row.model), self._probabilities(row)
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
                raise AgentError(
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
            raise AgentError(
                f"unit_id: {shown(row.unit)} was closed with the rows before: read all rows of a"
                " unit at once"
            )
        return unit

    def _probabilities(self, row: DrawnRow) -> Floats:
        """(K,) probability of each model given that the row was drawn, times that of keeping it."""
        drawn, model = self._declared.drawn, self._model("model", row.model)
        if drawn.shares is not None:
            result = np.array(drawn.shares)
            _agrees("propensity", row.propensity, result[model], "the declared share")
        elif row.candidates is not None:
            result = self._of_candidates(row.candidates)
            total = float(result.sum())
            if abs(total - drawn.coverage) > TOLERANCE:
                whole = (
                    "1" if drawn.coverage == 1.0 else f"the declared coverage {drawn.coverage:g}"
                )
                raise AgentError(
                    f"candidates: their probabilities add up to {total:.7g}, expected {whole}"
                    f" within {TOLERANCE:g}"
                )
            _agrees("propensity", row.propensity, result[model], "that among the candidates")
            result = result / total
        elif row.propensity is not None:
            _within("propensity", row.propensity, LEAST, drawn.coverage)
            active = self._declared.active.copy()
            active[model] = False
            own = min(row.propensity / drawn.coverage, 1.0)
            rest = (1.0 - own) / max(int(np.count_nonzero(active)), 1)
            result = np.where(active, rest, 0.0)
            result[model] = own
        else:
            raise AgentError(
                "propensity: received nothing, expected the probability of the drawn model, or"
                " candidates with theirs"
            )
        if result[model] < LEAST:
            raise AgentError(
                f"propensity: {row.model}, which was drawn, had a probability of {result[model]:g},"
                f" expected {LEAST:g} to 1: it is not that of its draw"
            )
        if row.keep_prob is not None:
            _within("keep_prob", row.keep_prob, LEAST / float(result[model]), 1.0)
            result = result * row.keep_prob
        elif drawn.kept:
            raise AgentError("keep_prob: received nothing, and other rows say it")
        return np.asarray(result, dtype=np.float64)

    def _of_candidates(self, candidates: Mapping[str, float]) -> Floats:
        result = np.zeros(len(self._models))
        for name, chance in candidates.items():
            _within(f"candidates: probability of {shown(name)}", chance, 0.0, 1.0)
            result[self._model("candidates", name)] = chance
        return result

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
        names = [] if self._models[int(stored.model[0])] == row.model else ["model"]
        follows = stored.leader is not None and int(stored.leader[0]) != number
        if not follows and not names:
            own, logged = self._probabilities(row), stored.probabilities[0]
            width = min(len(own), len(logged))
            if np.abs(own[:width] - logged[:width]).max() > 1e-12 and rule.drawn.complete:
                names.append("probabilities")
        if not np.array_equal(stored.x[0], x):
            names.append("features")
        if (stored.unit_id or ("",))[0] != row.unit:
            names.append("unit_id")
        place = stored_row(number, float(stored.at[0])).replace("row ", "decision d", 1)
        if names:
            raise ConflictError(f"request_id {name!r} {other_content(names, place)}")
        parts = store.outcome_parts(number)
        told = np.full(1 + len(outputs), np.nan)
        for part in parts:
            values = np.concatenate([part.reward[:1], part.outputs[0]])
            np.copyto(told, values, where=np.isnan(told))
        reward = np.nan if row.reward is None else row.reward
        if np.array_equal(told, np.concatenate([[reward], outputs]), equal_nan=True):
            return False
        table = self._agent.light.pending
        at = number - table.base
        if not parts and at >= 0 and not table.expired[at]:
            return True
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
        position = self._position.get(name or "")
        if position is None:
            raise AgentError(
                f"{field}: model {shown(name)} is not one of {', '.join(self._models)}"
            )
        return position


def _within(field: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise AgentError(f"{field}: {value:g} is not within {low:g} … {high:g}")


def _agrees(field: str, value: float | None, other: float, what: str) -> None:
    if value is not None and not abs(value - other) <= TOLERANCE:
        raise AgentError(f"{field}: {value:g}, and {what} of the drawn model is {other:g}")
