"""Handlers of everything that is read: estimates, recommendation, checks, decisions, rules."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

import msgspec
import numpy as np

from equipoise.agent.agent import Agent
from equipoise.agent.estimators.base import FAMILIES
from equipoise.agent.lanes.authority import Authority, LanesReport
from equipoise.agent.planning.forecast import Forecast, current, outlook
from equipoise.agent.record_adapter import RecordAdapter
from equipoise.agent.service.analyst.client import AnalystClient
from equipoise.agent.service.analyst.connection import AnalystError, CrowdedError, WorkError
from equipoise.agent.service.analyst.reports import Report, eras, number
from equipoise.agent.service.api.estimates import (
    ChecksAnswer,
    ErasAnswer,
    EstimatesAnswer,
    RecommendationAnswer,
)
from equipoise.agent.service.api.operations import Operation, Parameter
from equipoise.agent.service.api.problems import Refusal
from equipoise.agent.service.api.schema import (
    BudgetAnswer,
    ClosedBy,
    LoggedDecision,
    OutcomePart,
    RuleAnswer,
)
from equipoise.agent.service.control import Switches
from equipoise.agent.service.http.endpoints import Call
from equipoise.agent.service.telemetry import Log
from equipoise.agent.state.attempts import UNNAMED, reported_attempt
from equipoise.store.batches import Closure, DecisionBatch, OutcomeBatch
from equipoise.store.opening import ServedStore
from equipoise.store.records import AttemptReport

_RULE = re.compile(r"r[0-9a-f]{20}")


_FAMILY = (Parameter("family", "query", "Estimator families, separated by commas."),)


class Queries:
    """Read-only handlers."""

    def __init__(
        self,
        adapter: RecordAdapter,
        store: ServedStore,
        switches: Switches,
        analysis: AnalystClient,
        log: Log,
        authority: Authority | None = None,
    ) -> None:
        self._authority = authority
        self._adapter = adapter
        self._store = store
        self._switches = switches
        self._analysis = analysis
        self._log = log

    @Operation("GET", "/v1/estimates", problems=(422,), parameters=_FAMILY, weight=1)
    async def estimates(self, call: Call) -> EstimatesAnswer:
        """What every model is worth, estimated and certified."""
        families = _families(call)
        answer = (await self._report(families)).estimates
        values = {name: answer.families[name] for name in [answer.estimator, *families]}
        return msgspec.structs.replace(answer, families=values)

    @Operation("GET", "/v1/eras")
    async def eras(self, call: Call) -> ErasAnswer:
        """Every era, with what was certified when it ended."""
        return eras(self._adapter.agent)

    @Operation("GET", "/v1/recommendation", problems=(422,), parameters=_FAMILY, weight=1)
    async def recommendation(self, call: Call) -> RecommendationAnswer:
        """What to do with production traffic."""
        families = _families(call)
        if len(families) > 1:
            raise Refusal(422, "family: one at a time here", field="family", limit="one family")
        report = await self._report(families)
        made = self._analysis.forecast
        if made is not None:
            made = expected_now(made, self._adapter.agent, self._switches, self._analysis)
        situation = self._switches.situation(outlook(made))
        return report.recommendation(families[0] if families else None, situation)

    @Operation("GET", "/v1/checks", weight=1)
    async def checks(self, call: Call) -> ChecksAnswer:
        """The verdicts of all checks."""
        return (await self._report([])).checks

    @Operation("GET", "/v1/budget")
    async def budget(self, call: Call) -> BudgetAnswer:
        """The budget, what was spent and what is left."""
        return self._switches.budget(self._analysis.basis)

    @Operation("GET", "/v1/lanes")
    async def lanes(self, call: Call) -> LanesReport:
        """The lanes of deciders, and what became of what they shipped."""
        return LanesReport() if self._authority is None else self._authority.report()

    @Operation("GET", "/v1/forecast", weight=1)
    async def forecast(self, call: Call) -> Forecast:
        """When the experiment will be decided, or why that cannot be said.

        What holds now of the newest forecast, which is made now where there is none or an era has
        begun since.
        """
        analysis, era = self._analysis, self._adapter.agent.rule.era
        made = analysis.forecast
        if made is None or made.era != era:
            with self._answering():
                made = await analysis.read_forecast()
        return expected_now(made, self._adapter.agent, self._switches, analysis)

    @Operation(
        "GET",
        "/v1/decisions/{decision_id}",
        problems=(404, 503),
        parameters=(
            Parameter(
                "decision_id",
                "path",
                "Such as d12, or d3-7 of lane 3.",
                "^d([0-9]{1,7}-)?[0-9]{1,18}$",
            ),
        ),
    )
    async def decision(self, call: Call) -> LoggedDecision:
        """A decision as it stands in the log, with its outcome."""
        number = self._adapter.number(call.path["decision_id"])
        if number is None:
            detail = "there is no decision of that id; by request id ask for ?request_id="
            raise Refusal(404, detail, field="decision_id")
        return await self._logged(number, "decision_id")

    @Operation(
        "GET",
        "/v1/decisions",
        problems=(404, 422, 503),
        parameters=(Parameter("request_id", "query", "As it was asked with."),),
    )
    async def decision_of(self, call: Call) -> LoggedDecision:
        """The decision of a request, by the router's own id of it.

        Such an id is anybody's, and may look like one of ours.
        """
        name = call.query.get("request_id")
        if not name:
            limit = "the id of a request, percent-encoded"
            raise Refusal(422, "query: expected request_id", field="request_id", limit=limit)
        number = await asyncio.to_thread(self._store.number_reader(name))
        return await self._logged(number, "request_id")

    async def _logged(self, number: int | None, field: str) -> LoggedDecision:
        """Decisions of others must not wait while SQLite looks for this one: a thread does."""
        agent, store = self._adapter.agent, self._store
        stored, outcomes = None, list[OutcomeBatch]()
        if number is not None:
            readers = store.decision_reader(number), store.parts_reader(number)
            stored, outcomes = await asyncio.to_thread(_both, *readers)
        if stored is None:
            raise Refusal(404, "there is no decision of that id", field=field)
        return LoggedDecision(
            decision=self._adapter.records(stored)[0],
            unit_id=stored.unit_id[0] or None if stored.unit_id else None,
            context_id=stored.context_id[0] or None if stored.context_id else None,
            features=stored.x[0].tolist(),
            capped=bool(stored.capped[0]),
            outcomes=[_part(part, agent.models) for part in outcomes],
            closed_by=_closed_by(stored),
        )

    @Operation(
        "GET",
        "/v1/rules/{rule_id}",
        problems=(404, 503),
        parameters=(Parameter("rule_id", "path", "As in a decision.", "^r[0-9a-f]{20}$"),),
    )
    async def rule(self, call: Call) -> RuleAnswer:
        """A frozen rule."""
        name = call.path["rule_id"]
        known = _RULE.fullmatch(name)
        record = await asyncio.to_thread(self._store.rule, name) if known else None
        if record is None:
            raise Refusal(404, "there is no rule of that id", field="rule_id")
        body = msgspec.json.decode(record.body)
        return RuleAnswer(rule_id=record.rule_id, era=record.era, at=record.at, body=body)

    async def _report(self, families: list[str]) -> Report:
        with self._answering():
            return await self._analysis.read(families)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Turns an analyst that does not answer into the problem that says so."""
        try:
            yield
        except AnalystError as error:
            self._log.warning("analysis", problem=type(error).__name__)
            raise unanswered(error) from error


def expected_now(
    made: Forecast, agent: Agent, switches: Switches, analysis: AnalystClient
) -> Forecast:
    """What holds of a forecast in the situation that the daemon knows of."""
    report, era, limit = analysis.newest, agent.rule.era, agent.controls.budget
    decided: list[str] = []
    undecided, rewards = False, None
    if report is not None and report.rule.era == era:
        claim = report.facts[report.estimates.estimator].claim
        decided = [] if claim is None else list(claim.models)
        if report.estimates.log_rows > made.log_rows:  # else the forecast has seen more
            undecided = claim is None
            compared = [each.exp_rewards for each in report.estimates.models if each.compared]
            rewards = float(min(compared, default=0))
    return current(
        made,
        at=time.time(),
        decided=decided,
        paused=agent.state.paused,
        observing=agent.state.observing_only,
        killed=switches.kill_switch.on,
        ended=agent.state.ended is not None,
        undecided=undecided,
        rewards=rewards,
        budget_left=math.inf if limit is None else limit - agent.light.randomized,
        era=era,
        newest_at=agent.light.pending.newest_at,
    )


def unanswered(error: AnalystError) -> Refusal:
    """What a client gets whom the analyst gave no answer."""
    if isinstance(error, CrowdedError):
        return Refusal(429, str(error), retry_after=5.0)
    why = "its work failed" if isinstance(error, WorkError) else str(error)
    return Refusal(503, f"no answer from the analyst: {why}", retry_after=2.0)


def _both(
    decision: Callable[[], DecisionBatch | None], parts: Callable[[], list[OutcomeBatch]]
) -> tuple[DecisionBatch | None, list[OutcomeBatch]]:
    return decision(), parts()


def _families(call: Call) -> list[str]:
    names = [name for name in call.query.get("family", "").split(",") if name]
    for name in names:
        if name not in FAMILIES:
            limit = ", ".join(FAMILIES)
            raise Refusal(422, f"family: expected some of {limit}", field="family", limit=limit)
    return list(dict.fromkeys(names))


def _closed_by(stored: DecisionBatch) -> ClosedBy | None:
    closure = Closure.OPEN if stored.closed_by is None else Closure(stored.closed_by.item())
    return None if closure is Closure.OPEN else cast(ClosedBy, closure.name.lower())


_read_attempts = msgspec.json.Decoder(list[AttemptReport]).decode


def _part(part: OutcomeBatch, models: tuple[str, ...]) -> OutcomePart:
    outputs, attempt = part.outputs[0], reported_attempt(part, 0)
    served = UNNAMED if attempt is None else attempt[1].served
    return OutcomePart(
        served=None if served == UNNAMED else models[served],
        attempt=None if attempt is None else attempt[0],
        delivered=None if attempt is None else not attempt[1].failed,
        outputs=None if not len(outputs) or np.isnan(outputs).any() else outputs.tolist(),
        reward=number(float(part.reward[0])),
        at=number(float(part.at[0])),
        attempts=_read_attempts(part.attempts[0]) if part.attempts and part.attempts[0] else None,
    )
