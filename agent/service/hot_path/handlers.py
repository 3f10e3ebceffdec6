"""The hot routes as functions of bytes: body in, answer out; no HTTP here.

What cannot be logged is not decided: where the store refuses, is too slow, or the kill switch is
on, the answer is the routed model with the reason, and nothing will be learnt from the request.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar, cast

import msgspec

from equipoise.agent.errors import AgentError, BrokenError
from equipoise.agent.features.values import FeatureError
from equipoise.agent.ingest import sinks
from equipoise.agent.ingest.bulk import Places
from equipoise.agent.record_adapter import RecordAdapter
from equipoise.agent.service.api.operations import Operation
from equipoise.agent.service.api.problems import Refusal, refusal_of
from equipoise.agent.service.api.schema import (
    ClosedBy,
    DecideBatchAnswer,
    DecideBatchRequest,
    DecideRequest,
    DecisionAnswer,
    OutcomeReport,
    OutcomesAnswer,
    OutcomesRequest,
    PassThrough,
    Rejected,
)
from equipoise.agent.service.control import Breaker, KillSwitch
from equipoise.agent.service.hot_path.batching import FEWEST_TOGETHER
from equipoise.agent.service.http.access import ANYBODY, Caller, OutcomeTokens, Rates
from equipoise.agent.service.telemetry import Counters
from equipoise.store.batches import Closure, Ints, text_key
from equipoise.store.errors import ContradictionError, SequenceError, StoreError, WriteError
from equipoise.store.records import Decision, Outcome, Request, decision_id

T = TypeVar("T")


def take_by_bisection(
    items: Sequence[T],
    rows: Sequence[int],
    take: Callable[[Sequence[T]], dict[str, int]],
    rejected: list[Rejected],
) -> Iterator[Counter[str]]:
    """As `sinks.take_by_bisection`; refusals are appended to `rejected`."""
    refusals = (AgentError, FeatureError, Refusal)
    for counts, refusal in sinks.take_by_bisection(items, rows, take, refusals):
        if refusal is not None:
            row, error = refusal
            document = refusal_of(error).document
            rejected.append(Rejected(index=row, status=document.status, detail=document.detail))
        yield counts


ROWS_AT_ONCE = 100
"""Rows that are taken without a pause: some 400 microseconds, for which a decision may wait."""


class OutcomeRows:
    """A list of outcomes, each judged alone. take: takes rows all or none, and counts what became
    of them."""

    def __init__(
        self,
        outcomes: Sequence[OutcomeReport],
        take: Callable[[Sequence[OutcomeReport]], dict[str, int]],
        counters: Counters,
    ) -> None:
        self._outcomes = outcomes
        self._take = take
        self._counters = counters
        self._total: Counter[str] = Counter()
        self._rejected: list[Rejected] = []

    def turns(self) -> Iterator[None]:
        """Take everything; yields wherever others may have a turn."""
        for rows in _rounds(self._outcomes):
            for start in range(0, len(rows), ROWS_AT_ONCE):
                some = rows[start : start + ROWS_AT_ONCE]
                for counts in take_by_bisection(self._outcomes, some, self._take, self._rejected):
                    self._total += counts
                    yield

    def answer(self) -> OutcomesAnswer:
        """What became of the rows."""
        self._counters.outcomes["rejected"] += len(self._rejected)
        return OutcomesAnswer(
            accepted=self._total["accepted"],
            duplicates=self._total["duplicates"],
            late=self._total["late"],
            rejected=self._placed(sorted(self._rejected, key=lambda row: row.index)),
        )

    def _placed(self, rejected: list[Rejected]) -> list[Rejected]:
        """The refusals; one that contradicts an earlier row of the list says which."""
        conflicts = {row.index for row in rejected if row.status == 409}
        if not conflicts:
            return rejected
        refused = {row.index for row in rejected}
        places, same_id = Places[int](), dict[int, str]()
        for index, outcome in enumerate(self._outcomes):
            if index not in refused:
                places.keep(outcome, index)
            elif index in conflicts:
                first = places.of(outcome)
                same_id[index] = f" (index {first[0]} of this body)" if first else ""
        return [
            msgspec.structs.replace(row, detail=row.detail + same_id.get(row.index, ""))
            for row in rejected
        ]


def _rounds(outcomes: Sequence[Outcome]) -> list[list[int]]:
    """Positions of rows such that no round holds two parts of one decision; order is kept."""
    names = [outcome.decision_id or outcome.request_id for outcome in outcomes]
    if len(set(names)) == len(names):
        return [list(range(len(names)))] if names else []
    rounds: list[list[int]] = []
    parts: dict[str | None, int] = {}
    for row, name in enumerate(names):
        turn = parts.get(name, 0)
        parts[name] = turn + 1
        if turn == len(rounds):
            rounds.append([])
        rounds[turn].append(row)
    return rounds


_NOT_THE_STORES_FAULT = (ContradictionError, SequenceError)


class HotHandlers:
    """Handlers of decide, decide/batch and outcomes.

    adapter: decides and takes outcomes; None while a decider has none. rows: the most rows of one
    body. tokens: names of decisions that cannot be guessed. rates: how many requests a caller may
    have decided, None for any number. off: why nothing is decided here now, None where it is. Every
    handler raises what `refusal_of` understands.
    """

    def __init__(
        self,
        adapter: RecordAdapter | None,
        kill_switch: KillSwitch,
        breaker: Breaker,
        counters: Counters,
        rows: int,
        tokens: OutcomeTokens,
        rates: Rates | None = None,
        off: Callable[[], PassThrough | None] = lambda: None,
    ) -> None:
        self.adapter = adapter
        self.off = off
        self._kill_switch = kill_switch
        self._breaker = breaker
        self._counters = counters
        self._rows = rows
        self._tokens = tokens
        self._rates = rates
        self.stopping = False
        self._request = msgspec.json.Decoder(DecideRequest)
        self._requests = msgspec.json.Decoder(DecideBatchRequest)
        self._outcomes = msgspec.json.Decoder(OutcomesRequest)
        self._encode: Callable[[object], bytes] = msgspec.json.Encoder().encode

    @Operation(
        "POST",
        "/v1/decide",
        body=DecideRequest,
        answer=DecisionAnswer,
        problems=(404, 409, 429),
        example=dict,
    )
    def decide(self, body: bytes, caller: Caller = ANYBODY) -> bytes:
        """Decide which model serves one request."""
        request = self._request.decode(body)
        if request.again:
            return self._encode(self._earlier(request))
        return self._encode(self._decided((request,))[0])

    def decided(self, request: DecideRequest, caller: Caller) -> DecisionAnswer:
        """The answer to one request that came by another protocol. Raises as `decide`."""
        if request.again:
            return self._earlier(request)
        if self._rates is not None:
            self._rates.take(caller.name, 1)
        return self._decided([request])[0]

    def passed_through(self, request: Request, error: Exception) -> DecisionAnswer:
        """The answer to a request that was decided and could not be put on the disk."""
        reason = self._trip(error)
        self._counters.passed_through[reason] += 1
        return _passed_through(request, reason)

    def closed_by(self, decision_id: str | None) -> ClosedBy | None:
        """What closed a request to randomizing before its draw."""
        if decision_id is None:
            return None
        number = self._adapter.number(decision_id)
        if number is None:
            return None
        closure = self._adapter.closure(number)
        return None if closure is Closure.OPEN else cast(ClosedBy, closure.name.lower())

    def decide_each(self, bodies: Sequence[bytes]) -> list[bytes | Exception]:
        """As `decide` of every body in turn, at the cost of hardly more than one of them."""
        if len(bodies) == 1:
            return [self._alone(bodies[0])]
        if len(bodies) < FEWEST_TOGETHER:
            return [self._alone(body) for body in bodies]
        answers: list[bytes | Exception] = [b""] * len(bodies)
        requests: dict[str, tuple[int, Request]] = {}
        late = []
        for place, body in enumerate(bodies):
            try:
                request = self._request.decode(body)
            except ValueError as error:
                answers[place] = error
                continue
            if request.request_id in requests or request.again:
                late.append(place)  # who repeats a request gets what its first one got
            else:
                requests[request.request_id] = place, request
        if requests:
            try:
                decisions = self._decided([request for _, request in requests.values()])
            except Exception:
                # All or none: who it is about is found out one by one.
                late = sorted([*late, *(place for place, _ in requests.values())])
            else:
                for (place, _), decision in zip(requests.values(), decisions, strict=True):
                    answers[place] = self._encode(decision)
        for place in late:
            answers[place] = self._alone(bodies[place])
        return answers

    def _alone(self, body: bytes) -> bytes | Exception:
        try:
            return self.decide(body)
        except Exception as error:
            return error

    @Operation(
        "POST",
        "/v1/decide/batch",
        body=DecideBatchRequest,
        answer=DecideBatchAnswer,
        problems=(404, 409, 429),
        example=lambda request: {"requests": [request]},
    )
    def decide_batch(self, body: bytes, caller: Caller = ANYBODY) -> bytes:
        """Decide several requests, together or not at all."""
        requests = self._requests.decode(body).requests
        self._check_rows("requests", len(requests))
        if self._rates is not None:
            self._rates.take(caller.name, len(requests))
        if any(request.again for request in requests):
            earlier = [self._earlier(request) for request in requests if request.again]
            if len(earlier) < len(requests):
                raise Refusal(422, "again: for all requests of a batch or for none", field="again")
            return self._encode(DecideBatchAnswer(decisions=earlier))
        return self._encode(DecideBatchAnswer(decisions=self._decided(requests)))

    @Operation(
        "POST",
        "/v1/outcomes",
        body=OutcomesRequest,
        answer=OutcomesAnswer,
        problems=(404, 409, 503),
        example={"request_id": "request-1", "reward": 1.0},
    )
    def outcomes(self, body: bytes, caller: Caller = ANYBODY) -> bytes:
        """Take in what came of decisions: one outcome, or a list.

        One is taken or refused; of a list each is judged alone.
        """
        answer = self._outcome_rows(body, caller)
        if isinstance(answer, OutcomeRows):
            for _ in answer.turns():
                pass
            answer = answer.answer()
        return self._encode(answer)

    async def outcomes_in_turns(self, body: bytes, caller: Caller = ANYBODY) -> bytes:
        """As `outcomes`, letting other requests in after every few rows."""
        answer = self._outcome_rows(body, caller)
        if isinstance(answer, OutcomeRows):
            for _ in answer.turns():
                await asyncio.sleep(0)
            answer = answer.answer()
        return self._encode(answer)

    def _outcome_rows(self, body: bytes, caller: Caller) -> OutcomesAnswer | OutcomeRows:
        """The answer to one outcome; a list, of which nothing is taken yet."""
        outcomes = self._outcomes.decode(body)
        if not isinstance(outcomes, list):
            return OutcomesAnswer(**self._observe(caller, [outcomes]), rejected=[])
        self._check_rows("the list", len(outcomes))
        return OutcomeRows(outcomes, partial(self._observe, caller), self._counters)

    def _earlier(self, request: DecideRequest) -> DecisionAnswer:
        """The decision that was made before; nothing is logged, so no switch stands in the way."""
        agent = self._adapter.agent
        if not agent.store.find_requests((request.request_id,)):
            where = f"was not decided in lane {agent.lane}" if agent.lane else "was never decided"
            raise Refusal(404, f"request_id {request.request_id!r} {where}")
        return self._answer(self._adapter.decide_one(request))

    def _decided(self, requests: Sequence[Request]) -> list[DecisionAnswer]:
        """The answers to requests, decided together; all passed through where the store fails."""
        reason = self._reason()
        if reason is None:
            adapter = self._adapter
            newest = adapter.agent.light.pending.next
            try:
                if len(requests) == 1:
                    decisions = [adapter.decide_one(requests[0])]
                else:
                    decisions = adapter.decide(requests)
            except _NOT_THE_STORES_FAULT:
                raise
            except StoreError as error:
                reason = self._breaker.trip(error)
            except BrokenError:
                reason = "restarting"
            else:
                if self._breaker.reason is not None:
                    self._breaker.close()
                if len(decisions) == 1:
                    self._count_one(decisions[0], adapter.agent.light.pending.next > newest)
                else:
                    self._count(decisions, newest)
                return [self._answer(decision) for decision in decisions]
        self._counters.passed_through[reason] += len(requests)
        return [_passed_through(request, reason) for request in requests]

    def pass_through(self, path: str, body: bytes, error: Exception) -> bytes | None:
        """The answer to a request that was decided and could not be put on the disk: it is passed
        through. None for what is no request to decide."""
        reason = self._trip(error)
        if path == "/v1/decide":
            requests: Sequence[Request] = [self._request.decode(body)]
        elif path == "/v1/decide/batch":
            requests = self._requests.decode(body).requests
        else:
            return None
        self._counters.passed_through[reason] += len(requests)
        answers = [_passed_through(request, reason) for request in requests]
        if path == "/v1/decide":
            return self._encode(answers[0])
        return self._encode(DecideBatchAnswer(decisions=answers))

    def _trip(self, error: Exception) -> PassThrough:
        return self._breaker.trip(
            error if isinstance(error, StoreError) else WriteError(type(error).__name__)
        )

    def _count(self, decisions: Sequence[Decision], newest: int) -> None:
        for decision in decisions:
            number = self._adapter.number(decision.decision_id) or 0
            self._count_one(decision, number >= newest)

    def _count_one(self, decision: Decision, fresh: bool) -> None:
        if fresh:
            self._counters.decisions[decision.model, decision.randomized] += 1
        else:
            self._counters.repeated += 1

    def _reason(self) -> PassThrough | None:
        """Why nothing is decided now, before anything was tried."""
        if self._kill_switch.on:
            return "kill-switch"
        if self.adapter is not None and self.adapter.agent.broken is not None:
            return "restarting"
        if self.stopping:
            return "stopping"
        if self._breaker.open:
            return self._breaker.reason
        return self.off()

    @property
    def _adapter(self) -> RecordAdapter:
        """Raises Refusal 503 while there is none."""
        if self.adapter is None:
            raise Refusal(503, "this decider holds no lane yet", retry_after=1.0)
        return self.adapter

    def _observe(self, caller: Caller, outcomes: Sequence[OutcomeReport]) -> dict[str, int]:
        def check(numbers: Ints) -> None:
            for outcome, number in zip(outcomes, numbers.tolist(), strict=True):
                if outcome.outcome_token is not None or self._tokens.asks(caller):
                    # Below 0 in a decider: what it does not know. Of a request_id alone, which
                    # decision that is its authority finds out, and compares the token then.
                    name = outcome.decision_id
                    if name is None and number >= 0:
                        name = decision_id(self._adapter.position(number))
                    if name is not None or outcome.outcome_token is None:
                        self._tokens.check(name or "", outcome.outcome_token, caller)
                if outcome.unit_id is not None:
                    self._check_unit(number, outcome.unit_id)

        # Without the store nothing can be taken, and the client is told to come again.
        accepted = self._adapter.observe(outcomes, check)
        counts = {
            "accepted": accepted.rows,
            "duplicates": accepted.duplicates,
            "late": accepted.late,
        }
        self._counters.outcomes.update(counts)
        return counts

    def _answer(self, decision: Decision) -> DecisionAnswer:
        return DecisionAnswer(
            decision_id=decision.decision_id,
            request_id=decision.request_id,
            model=decision.model,
            randomized=decision.randomized,
            propensity=decision.propensity,
            probabilities=decision.probabilities,
            rule_id=decision.rule_id,
            era=decision.era,
            outcome_token=self._tokens.of(decision.decision_id),
            ask=msgspec.UNSET if decision.ask is None else decision.ask,
        )

    def _check_unit(self, number: int, unit: str) -> None:
        """Refuse an outcome of another unit than the one that was decided for."""
        known = self._adapter.unit(number)
        if known is not None and known != text_key("unit", unit):
            raise Refusal(409, f"unit_id: decision d{number} is another unit's", field="unit_id")

    def _check_rows(self, what: str, count: int) -> None:
        if count > self._rows:
            raise Refusal(
                413,
                f"{what} has {count} rows, at most {self._rows} are taken at once",
                field=what,
                limit=f"{self._rows} rows",
            )


def _passed_through(request: Request, reason: PassThrough) -> DecisionAnswer:
    return DecisionAnswer(
        decision_id=None,
        request_id=request.request_id,
        model=request.routed,
        randomized=False,
        propensity=1.0,
        probabilities={request.routed: 1.0},
        rule_id=None,
        era=None,
        reason=reason,
    )
