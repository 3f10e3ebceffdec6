"""Records in, records out: the agent for callers who speak names and not arrays.

Model names, text ids and named features are turned into the columns the agent works on, and back.
A request id that was decided before gets the same decision again; with other content it is refused.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from equipoise.agent.agent import Accepted, Agent
from equipoise.agent.decisions.validation import other_content, stored_row
from equipoise.agent.errors import (
    APART_SECONDS,
    LATEST,
    SKEW,
    AgentError,
    AwaitedError,
    ConflictError,
    UnknownDecisionError,
    check_against,
)
from equipoise.agent.features.values import shown_sent
from equipoise.agent.inference.rated import asked
from equipoise.agent.state.attempts import encode_attempts, report_of, speaks
from equipoise.agent.state.replay_index import NO_CONTEXT
from equipoise.policies.draw import propensity
from equipoise.store.batches import (
    Closure,
    DecisionBatch,
    Flags,
    Floats,
    Ints,
    ObservationBatch,
    OutcomeBatch,
    RequestBatch,
    SimulationBatch,
    select,
    text_key,
)
from equipoise.store.records import (
    LANE_BITS,
    Decision,
    Features,
    Observation,
    Outcome,
    Request,
    Simulation,
    decision_id,
    decision_position,
)


class RecordAdapter:
    """decide, observe, ingest and simulate on lists of records.

    clock: seconds since the epoch, for records that carry no time of their own, and for what
    waits. off: seconds by which others' clocks are ahead of it, where it has not
    come back to the machine's yet; times of decisions and outcomes are taken over without them.
    """

    def __init__(
        self,
        agent: Agent,
        clock: Callable[[], float] = time.time,
        off: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.agent = agent
        self._clock, self._off = clock, off
        self.awaits: Callable[[int], bool] = lambda lane: False
        """Whether more decisions of a lane may come; set by its authority."""
        self._position = {name: index for index, name in enumerate(agent.models)}

    def decide(self, requests: Sequence[Request]) -> list[Decision]:
        """One decision per request, in order.

        Raises ConflictError where a request id comes again with other content, AgentError or
        FeatureError where a name, a feature or a value is not acceptable. Nothing is logged then.
        """
        ids = [request.request_id for request in requests]
        if len(set(ids)) < len(ids):
            twice = next(name for name in ids if ids.count(name) > 1)
            raise ConflictError(f"request_id {twice!r} occurs twice in one batch")
        x = self._context([request.features for request in requests])
        routed = self._models("routed", [request.routed for request in requests])
        decided = self.agent.store.find_requests(ids)
        fresh = [row for row, name in enumerate(ids) if name not in decided]
        decisions: dict[str, Decision] = {}
        for row, name in enumerate(ids):
            if name in decided:
                number = decided[name]
                decisions[name] = self._again(number, requests[row], x[row], int(routed[row]))
        if fresh:
            batch = self.agent.decide(
                self._batch([requests[row] for row in fresh], x, routed, fresh)
            )
            for row, decision in zip(fresh, self.records(batch), strict=True):
                decisions[ids[row]] = decision
        return [decisions[name] for name in ids]

    def decide_one(self, request: Request) -> Decision:
        """As `decide` of one request, bit for bit, at a fraction of the cost."""
        agent, name = self.agent, request.request_id
        x = agent.state.transform.context_rows((request.features,))
        routed = self._model("routed", request.routed)
        decided = agent.store.find_requests((name,))
        if decided:
            return self._again(decided[name], request, x[0], routed)
        eligible = None
        if request.eligible is not None:
            eligible = np.zeros((1, len(self._position)), dtype=bool)
            eligible[0, self._models("eligible", request.eligible)] = True
        unit, context = request.unit_id or name, request.context_id
        keys = text_key("unit", unit), text_key("context", context) if context else NO_CONTEXT
        names = (name,), (unit,), (context or "",)
        batch = agent.decide_one((*keys, self._time(request.at), x, routed, eligible, *names))
        row = batch.row
        if row is None:
            return self.records(batch)[0]
        number, _, _, at, _, _, rate, probabilities, uniform, model, randomized = row[:11]
        shares, draw = probabilities[0].tolist(), row[20]
        # The same arithmetic as `propensity`, on plain numbers.
        effective = rate if any(shares) else 0.0
        return Decision(
            decision_id=decision_id(number if draw is None else draw),
            request_id=name,
            model=agent.models[model],
            routed=request.routed,
            randomized=randomized,
            propensity=effective * shares[model] + (1.0 - effective) * (model == routed),
            rate=rate,
            probabilities=dict(zip(agent.models, shares, strict=True)),
            uniform=uniform,
            rule_id=row[12],
            era=row[13],
            at=at,
            ask=None if agent.config.reward.ask is None else bool(self._asked(batch)[0]),
        )

    def observe(
        self,
        outcomes: Sequence[Outcome],
        check: Callable[[Ints], None] | None = None,
        came: float | None = None,
    ) -> Accepted:
        """Take in parts of outcomes, by decision_id or request_id. They come now, whatever time
        they carry: after their window they are late.

        check: called with the number of each decision before anything is taken; raises to refuse.
        came: when they came, where that is not now; seconds since the epoch.
        """
        numbers = self._numbers(outcomes)
        if check is not None:
            check(numbers)
        batch = self._outcomes(outcomes, numbers)
        return self.agent.observe(batch, came=self._clock() if came is None else came)

    def _outcomes(self, outcomes: Sequence[Outcome], numbers: Ints) -> OutcomeBatch:
        """(n,) parts of outcomes of decisions with these numbers."""
        q = self.agent.state.transform.q
        outputs = np.full((len(outcomes), q), np.nan)
        with_outputs = [row for row, item in enumerate(outcomes) if item.outputs is not None]
        if with_outputs:
            outputs[with_outputs] = self._outputs([outcomes[row].outputs for row in with_outputs])
        # Most say nothing of attempts.
        reports = [(row, report_of(item)) for row, item in enumerate(outcomes) if speaks(item)]
        said = {row: self._model(*report.served) for row, report in reports if report.served}
        served = self._assigned(numbers, said)
        attempt, delivered = np.zeros(len(numbers), np.int64), np.ones(len(numbers), bool)
        for row, report in reports:
            attempt[row], delivered[row] = report.attempt, report.delivered
        attempts = [self._attempts(outcome) for outcome in outcomes] if reports else []
        return OutcomeBatch(
            number=numbers,
            served=served,
            attempt=attempt,
            delivered=delivered,
            outputs=outputs,
            reward=np.array(
                [np.nan if item.reward is None else item.reward for item in outcomes],
                dtype=np.float64,
            ),
            at=self._times([outcome.at for outcome in outcomes], live=True),
            metrics=self._metrics([outcome.metrics for outcome in outcomes]),
            attempts=attempts if any(attempts) else None,
        )

    def ingest(self, observations: Sequence[Observation]) -> Accepted:
        """Take in rows of a usage log (OBS).

        A request_id counts once: the same content again is a repeat. A row without a reward is
        counted and left out, unless the value of a missing reward is declared: all that a usage row
        teaches is its reward. So is the row of a request that was decided here, which counts as a
        decision: what came of it is an outcome. Raises ConflictError where an id comes with other
        content, naming both rows.
        """
        missing = self.agent.config.reward.missing_value
        rewards = [missing if item.reward is None else item.reward for item in observations]
        rated = np.array([reward is not None for reward in rewards], dtype=bool)
        batch = ObservationBatch(
            unit=np.zeros(len(observations), dtype=np.int64),
            at=self._times([item.at for item in observations]),
            x=self._context([item.features for item in observations]),
            routed=self._models("routed", [item.routed for item in observations]),
            outputs=self._outputs([item.outputs for item in observations]),
            reward=np.array([np.nan if each is None else each for each in rewards]),
            request_id=[item.request_id or "" for item in observations],
            unit_id=[item.unit_id or item.request_id or "" for item in observations],
        )
        dated = np.array([item.at is not None for item in observations], dtype=bool)
        decided = self._decided(batch) & rated
        fresh = self._new_observations(batch, rated & ~decided, dated)
        rows = batch if fresh.all() else select(batch, fresh)
        first = self.agent.light.next_seq
        # A row that names nobody is somebody of its own, whatever others call theirs.
        units = [
            text_key("unit", unit) if unit else text_key("row", str(first + row))
            for row, unit in enumerate(rows.unit_id or ())
        ]
        accepted = self.agent.ingest(
            replace(
                rows,
                unit=np.array(units, dtype=np.int64),
                request_id=rows.request_id if any(rows.request_id or ()) else None,
            )
        )
        unrated, known = len(batch) - int(rated.sum()), int(decided.sum())
        return Accepted(
            accepted.rows,
            duplicates=len(batch) - len(rows) - unrated - known,
            unrated=unrated,
            decided=known,
        )

    def _decided(self, batch: ObservationBatch) -> Flags:
        """(n,) the rows of requests that the log has decisions of."""
        ids = batch.request_id or ()
        numbers = self.agent.store.find_requests(list({name for name in ids if name}))
        return np.array([name in numbers for name in ids], dtype=bool)

    def _new_observations(self, batch: ObservationBatch, rated: Flags, dated: Flags) -> Flags:
        """(n,) the rows of `rated` that are no repeats. dated: whose times were given and not taken
        from the clock, which is no part of their content."""
        ids = batch.request_id or ()
        repeated = self.agent.store.find_observations([name for name in ids if name])
        logged = self.agent.store.observations(sorted(repeated)) if repeated else {}
        fresh = rated.copy()
        first: dict[str, int] = {}
        for row, name in enumerate(ids):
            if not rated[row]:
                continue
            if name in logged:
                stored = logged[name]
                assert isinstance(stored.batch, ObservationBatch)
                other, at, timed = stored.batch, 0, bool(dated[row])
                place = stored_row(stored.seq, float(other.at[0]))
            elif name and first.setdefault(name, row) != row:
                other, at = batch, first[name]
                timed = bool(dated[row] and dated[at])
                place = f"row {at} of this batch"
            else:
                continue
            names = _differences(batch, row, other, at, timed)
            if names:
                raise ConflictError(
                    f"observation row {row}: request_id {name!r} {other_content(names, place)}"
                )
            fresh[row] = False
        return fresh

    def simulate(self, simulations: Sequence[Simulation]) -> Accepted:
        """Take in SIM rows: what a model would output on a cached context."""
        ids = [item.context_id for item in simulations]
        return self.agent.simulate(
            SimulationBatch(
                context=np.array([text_key("context", name) for name in ids], dtype=np.int64),
                model=self._models("model", [item.model for item in simulations]),
                x=self._context([item.features for item in simulations]),
                outputs=self._outputs([item.outputs for item in simulations]),
                cost=np.array(
                    [np.nan if item.cost is None else item.cost for item in simulations],
                    dtype=np.float64,
                ),
                at=self._times([item.at for item in simulations]),
                context_id=ids,
            )
        )

    def _batch(
        self, requests: Sequence[Request], x: Floats, routed: Ints, rows: list[int]
    ) -> RequestBatch:
        units = [request.unit_id or request.request_id for request in requests]
        contexts = [
            NO_CONTEXT if request.context_id is None else text_key("context", request.context_id)
            for request in requests
        ]
        eligible = None
        if any(request.eligible is not None for request in requests):
            eligible = np.ones((len(requests), len(self._position)), dtype=bool)
            for row, request in enumerate(requests):
                if request.eligible is not None:
                    eligible[row] = False
                    eligible[row, self._models("eligible", request.eligible)] = True
        return RequestBatch(
            unit=np.array([text_key("unit", name) for name in units], dtype=np.int64),
            context=np.array(contexts, dtype=np.int64),
            at=self._times([request.at for request in requests], live=True, history=False),
            x=x[rows],
            routed=routed[rows],
            eligible=eligible,
            request_id=[request.request_id for request in requests],
            unit_id=units,
            context_id=[request.context_id or "" for request in requests],
        )

    def _again(self, number: int, request: Request, x: Floats, routed: int) -> Decision:
        name = request.request_id
        stored = self.agent.store.decision(number)
        if stored is None:
            raise AgentError(f"request_id {name!r} was decided, but its decision is gone")
        unit = (stored.unit_id or ("",))[0] or name
        context = (stored.context_id or ("",))[0]
        same = {
            "routed": int(stored.routed[0]) == routed,
            "features": np.array_equal(stored.x[0], x),
            "unit_id": unit == (request.unit_id or name),
            "context_id": context == (request.context_id or ""),
        }
        if not all(same.values()):
            other = " and ".join(field for field, equal in same.items() if not equal)
            raise ConflictError(
                f"request_id {name!r} was decided as {decision_id(self.position(number))} with"
                f" other content: {other}"
            )
        return self.records(stored)[0]

    def _asked(self, batch: DecisionBatch) -> Flags:
        """(n,) whose users are to be asked, by the rule that decided: nobody's of one without."""
        share = self.agent.state.rules.rule(batch.rule_id).ask
        return asked(batch.uniform, 0.0 if share is None else share)

    def records(self, batch: DecisionBatch) -> list[Decision]:
        models, nothing = self.agent.models, [None] * len(batch)
        asks = nothing if self.agent.config.reward.ask is None else self._asked(batch).tolist()
        numbers = (batch.positions, batch.model, batch.routed, batch.randomized, batch.rate)
        more = (batch.probabilities, batch.uniform, batch.at)
        chances = propensity(batch.rate, batch.probabilities, batch.model, batch.routed)
        columns = [column.tolist() for column in (*numbers, *more, chances)]
        return [
            Decision(
                decision_id=decision_id(position),
                request_id=name,
                model=models[model],
                routed=models[routed],
                randomized=drawn,
                propensity=chance,
                rate=rate,
                # A decision from before a model was added says nothing of it.
                probabilities=dict(zip(models, shares, strict=False)),
                uniform=uniform,
                rule_id=batch.rule_id,
                era=batch.era,
                at=at,
                ask=ask,
            )
            for name, ask, position, model, routed, drawn, rate, shares, uniform, at, chance in zip(
                batch.request_id or nothing, asks, *columns, strict=True
            )
        ]

    def _numbers(self, outcomes: Sequence[Outcome]) -> Ints:
        names = [each.decision_id for each in outcomes if each.decision_id]
        named_here = self.numbers(names)
        by_request = [outcome.request_id for outcome in outcomes if outcome.request_id]
        if not by_request and len(names) == len(outcomes):
            with contextlib.suppress(KeyError):  # one that does not exist is named below
                return np.array([named_here[name] for name in names], dtype=np.int64)
        decided = self.agent.store.find_requests(by_request) if by_request else {}
        numbers = []
        for outcome in outcomes:
            name, request = outcome.decision_id, outcome.request_id
            if name is None and request is None:
                raise AgentError("an outcome needs a decision_id or a request_id")
            named = None if name is None else named_here.get(name)
            if name is not None and named is None:
                raise self._missing(name)
            if request is not None and request not in decided:
                raise UnknownDecisionError(f"request_id {request!r} was never decided")
            number = decided[request or ""] if named is None else named
            if request is not None and decided[request] != number:
                raise ConflictError(
                    f"decision_id {name!r} is not the decision of request_id {request!r}, "
                    f"which is {decision_id(self.position(decided[request]))}"
                )
            numbers.append(number)
        return np.array(numbers, dtype=np.int64)

    def number(self, name: str) -> int | None:
        """The number of a decision in the log, by its id. None for what is no id, and for one of a
        lane that is not in the log; the number of an id without a lane need not exist."""
        position = decision_position(name)
        lane = self.agent.lane
        if position is None or not position >> LANE_BITS:
            return None if lane else position
        if lane:
            return position - (lane << LANE_BITS) if position >> LANE_BITS == lane else None
        return self.agent.store.find_draws((position,)).get(position)

    def numbers(self, names: Sequence[str]) -> dict[str, int]:
        """As `number`, of many ids with one look-up; those of which it is None are left out."""
        if self.agent.lane or len(names) < 2:
            found = {name: self.number(name) for name in names}
            return {name: number for name, number in found.items() if number is not None}
        positions = {name: decision_position(name) for name in names}
        of_lanes = [each for each in positions.values() if each is not None and each >> LANE_BITS]
        if not of_lanes:
            return {name: each for name, each in positions.items() if each is not None}
        drawn = self.agent.store.find_draws(of_lanes)
        numbers = {}
        for name, position in positions.items():
            if position is not None:
                number = drawn.get(position) if position >> LANE_BITS else position
                if number is not None:
                    numbers[name] = number
        return numbers

    def _missing(self, name: str) -> AgentError:
        position = decision_position(name)
        if position is not None and self.awaits(position >> LANE_BITS):
            return AwaitedError(f"decision_id {name!r} is not in the log yet: send it again")
        return UnknownDecisionError(f"decision_id {name!r} does not exist")

    def position(self, number: int) -> int:
        """The position of a decision's uniform, which names it."""
        if self.agent.lane:
            return (self.agent.lane << LANE_BITS) + number
        if not self.agent.has_lanes:
            return number
        decided = self.agent.store.decision(number)
        return number if decided is None else int(decided.positions[0])

    def _assigned(self, numbers: Ints, said: Mapping[int, int]) -> Ints:
        """(n,) the models that decisions assigned, 0 where there is none such; of the rows in
        `said` what that says instead."""
        models, known = self.agent.light.pending.assigned(numbers)
        if not known.all():
            for row in np.flatnonzero(~known).tolist():
                decided = None if row in said else self.agent.store.decision(int(numbers[row]))
                models[row] = 0 if decided is None else decided.model[0]
        for row, model in said.items():
            models[row] = model
        return models

    def closure(self, number: int) -> Closure:
        """What closed a decision to randomizing; OPEN where nothing did, or an old log says not."""
        table = self.agent.light.pending
        if table.base <= number < table.next:
            return Closure(max(int(table.closed_by[number - table.base]), Closure.OPEN))
        decided = self.agent.store.decision(number)
        if decided is None or decided.closed_by is None:
            return Closure.OPEN
        return Closure(int(decided.closed_by[0]))

    def unit(self, number: int) -> int | None:
        """The key of the unit that was decided for; None where there is no such decision."""
        table = self.agent.light.pending
        if table.base <= number < table.next:
            return int(table.unit[number - table.base])
        decided = self.agent.store.decision(number)
        return None if decided is None else int(decided.unit[0])

    def _metrics(self, rows: Sequence[dict[str, float]]) -> Floats | None:
        """(n, G) in the order of the guardrails, NaN where a record has none; None without any."""
        if not any(rows):
            return None
        position = {item.name: at for at, item in enumerate(self.agent.config.guardrails)}
        table = np.full((len(rows), len(position)), np.nan)
        for row, metrics in enumerate(rows):
            for name, value in metrics.items():
                if name not in position:
                    declared = ", ".join(position) or "none"
                    sent = shown_sent(name, "name")
                    raise AgentError(f"metrics: {sent} is no guardrail; declared are {declared}")
                if not math.isfinite(value):
                    raise AgentError(f"metric {name} row {row}: {value} is not a finite number")
                table[row, position[name]] = value
        return table

    def _context(self, rows: Sequence[Features]) -> Floats:
        return self.agent.state.transform.context_rows(rows)

    def _outputs(self, rows: Sequence[Features | None]) -> Floats:
        return self.agent.state.transform.output_rows([{} if row is None else row for row in rows])

    def _attempts(self, outcome: Outcome) -> str:
        """The attempts that a part lists as they are logged, "" where it lists none."""
        for place, attempt in enumerate(outcome.attempts or ()):
            if attempt.model is not None:
                self._model(f"attempts[{place}].model", attempt.model)
        return "" if outcome.attempts is None else encode_attempts(outcome.attempts)

    def _model(self, field: str, name: str) -> int:
        position = self._position.get(name)
        if position is None:
            sent = shown_sent(name, "name")
            raise AgentError(f"{field}: model {sent} is not one of {', '.join(self._position)}")
        return position

    def _models(self, field: str, names: Sequence[str]) -> Ints:
        return np.array([self._model(field, name) for name in names], dtype=np.int64)

    def _time(self, at: float | None) -> float:
        """As `_times` of one decision that is made now."""
        now = self._clock()
        if at is None:
            return now
        off = self._off()
        off = off if abs(off) >= APART_SECONDS else 0.0
        if 0.0 <= at <= LATEST and abs(at - (now + off)) <= SKEW:
            return float(at) - off
        return self._times((at,), live=True, history=False).item()

    def _times(
        self, times: Sequence[float | None], *, live: bool = False, history: bool = True
    ) -> Floats:
        """(n,) the times given, and the clock's where none is. Raises TimeError; history: as
        `check_against` takes it; live: whether windows are measured by them."""
        now = self._clock()
        if not any(each is not None for each in times):
            return np.full(len(times), now)
        at = np.array([now if each is None else each for each in times], dtype=np.float64)
        dated = np.array([each is not None for each in times])
        off = self._off()
        off = off if abs(off) >= APART_SECONDS else 0.0
        check_against(np.where(dated, at, now + off), now + off, history=history)
        if live:
            at[dated] -= off
        return at


def _differences(
    batch: ObservationBatch, row: int, other: ObservationBatch, at: int, timed: bool
) -> list[str]:
    """Names of what two rows say differently. timed: whether their times are compared."""
    names = [] if batch.routed[row] == other.routed[at] else ["routed"]
    for name, mine, theirs in (
        ("features", batch.x[row], other.x[at]),
        ("outputs", batch.outputs[row], other.outputs[at]),
    ):
        # Nearly always the very same bytes; a closer look knows that 0 is -0.
        if mine.tobytes() != theirs.tobytes() and not np.array_equal(mine, theirs):
            names.append(name)
    if batch.reward[row] != other.reward[at]:
        names.append("reward")
    if (batch.unit_id or ())[row] != (other.unit_id or ())[at]:
        names.append("unit_id")
    if timed and batch.at[row] != other.at[at]:
        names.append("at")
    return names
