"""The hot routes as functions of bytes: body in, answer out; no HTTP here.

What cannot be logged is not decided: where the store refuses, is too slow, or the kill switch is
on, the answer is the routed model with the reason, and nothing will be learnt from the request.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import msgspec

from equipoise.agent.gateway import Gateway
from equipoise.agent.service.breaker import Breaker
from equipoise.agent.service.figures import Figures
from equipoise.agent.service.halving import take_apart
from equipoise.agent.service.problems import refuse
from equipoise.agent.service.schema import (
    DecideBatchAnswer,
    DecideBatchRequest,
    DecideRequest,
    DecisionAnswer,
    OutcomesAnswer,
    OutcomesRequest,
    PassThrough,
    Rejected,
)
from equipoise.agent.service.switches import Switches
from equipoise.store.errors import ContradictionError, SequenceError, StoreError
from equipoise.store.records import Decision, Outcome, Request

_NOT_THE_STORES_FAULT = (ContradictionError, SequenceError)


class Hot:
    """Handlers of decide, decide/batch and outcomes over one gateway.

    rows: the most rows of one body. Every handler raises what `problem_of` understands.
    """

    def __init__(
        self, gateway: Gateway, switches: Switches, breaker: Breaker, figures: Figures, rows: int
    ) -> None:
        self._gateway = gateway
        self._switches = switches
        self._breaker = breaker
        self._figures = figures
        self._rows = rows
        self.stopping = False
        self._request = msgspec.json.Decoder(DecideRequest)
        self._requests = msgspec.json.Decoder(DecideBatchRequest)
        self._outcomes = msgspec.json.Decoder(OutcomesRequest)
        self._encode: Callable[[object], bytes] = msgspec.json.Encoder().encode

    def decide(self, body: bytes) -> bytes:
        """One request, one decision."""
        request = self._request.decode(body)
        return self._encode(self._decided([request], self._decide_one)[0])

    def decide_batch(self, body: bytes) -> bytes:
        """Several requests, decided together or not at all."""
        requests = self._requests.decode(body).requests
        self._check_rows("requests", len(requests))
        decisions = self._decided(requests, self._gateway.decide)
        return self._encode(DecideBatchAnswer(decisions=decisions))

    def outcomes(self, body: bytes) -> bytes:
        """One outcome, which is taken or refused; or many, each judged alone."""
        outcomes = self._outcomes.decode(body)
        if isinstance(outcomes, list):
            self._check_rows("the list", len(outcomes))
            return self._encode(self._taken(outcomes))
        counts = self._observe([outcomes])
        return self._encode(OutcomesAnswer(**counts, rejected=[]))

    def _decide_one(self, requests: Sequence[Request]) -> list[Decision]:
        return [self._gateway.decide_one(requests[0])]

    def _decided(
        self,
        requests: Sequence[Request],
        decide: Callable[[Sequence[Request]], list[Decision]],
    ) -> list[DecisionAnswer]:
        reason = self._reason()
        if reason is None:
            newest = self._gateway.agent.fold.pending.next
            try:
                decisions = decide(requests)
            except _NOT_THE_STORES_FAULT:
                raise
            except StoreError as error:
                reason = self._breaker.trip(error)
            else:
                if self._breaker.reason is not None:
                    self._breaker.close()
                self._count(decisions, newest)
                return [_answer(decision) for decision in decisions]
        self._figures.passed_through[reason] += len(requests)
        return [_passed_through(request, reason) for request in requests]

    def _count(self, decisions: Sequence[Decision], newest: int) -> None:
        counted = self._figures.decisions
        for decision in decisions:
            if int(decision.decision_id[1:]) >= newest:
                counted[decision.model, decision.randomized] += 1
            else:
                self._figures.repeated += 1

    def _reason(self) -> PassThrough | None:
        """Why nothing is decided now, before anything was tried."""
        if self._switches.kill_switch.on:
            return "kill-switch"
        if self.stopping:
            return "stopping"
        return self._breaker.reason if self._breaker.open else None

    def _observe(self, outcomes: Sequence[Outcome]) -> dict[str, int]:
        # Without the store nothing can be taken, and the client is told to come again.
        accepted = self._gateway.observe(outcomes)
        counts = {
            "accepted": accepted.rows,
            "duplicates": accepted.duplicates,
            "late": accepted.late,
        }
        self._figures.outcomes.update(counts)
        return counts

    def _taken(self, outcomes: Sequence[Outcome]) -> OutcomesAnswer:
        total: Counter[str] = Counter()
        rejected: list[Rejected] = []
        for rows in _rounds(outcomes):
            total += take_apart(outcomes, rows, self._observe, rejected)
        rejected.sort(key=lambda row: row.index)
        self._figures.outcomes["rejected"] += len(rejected)
        return OutcomesAnswer(
            accepted=total["accepted"],
            duplicates=total["duplicates"],
            late=total["late"],
            rejected=rejected,
        )

    def _check_rows(self, what: str, count: int) -> None:
        if count > self._rows:
            raise refuse(
                413,
                f"{what} has {count} rows, at most {self._rows} are taken at once",
                field=what,
                limit=f"{self._rows} rows",
            )


def _rounds(outcomes: Sequence[Outcome]) -> list[list[int]]:
    """Positions of rows such that no round holds two parts of one decision; order is kept."""
    rounds: list[list[int]] = []
    seen: dict[str | None, int] = {}
    for row, outcome in enumerate(outcomes):
        name = outcome.decision_id or outcome.request_id
        turn = seen.get(name, 0)
        seen[name] = turn + 1
        if turn == len(rounds):
            rounds.append([])
        rounds[turn].append(row)
    return rounds


def _answer(decision: Decision) -> DecisionAnswer:
    return DecisionAnswer(
        decision_id=decision.decision_id,
        request_id=decision.request_id,
        model=decision.model,
        randomized=decision.randomized,
        propensity=decision.propensity,
        probabilities=decision.probabilities,
        rule_id=decision.rule_id,
        era=decision.era,
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
