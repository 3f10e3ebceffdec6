"""Handlers of everything that is read: estimates, recommendation, checks, decisions, rules."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import numpy as np

from equipoise.agent.estimators.base import FAMILIES
from equipoise.agent.planning.forecast import Forecast
from equipoise.agent.service.analyst.connection import AnalysisError, CrowdedError, WorkError
from equipoise.agent.service.analyst.reports import Report, number
from equipoise.agent.service.api.operations import Call
from equipoise.agent.service.api.problems import Refusal, problem, refuse
from equipoise.agent.service.api.schema import (
    BudgetAnswer,
    ChecksAnswer,
    EstimatesAnswer,
    LoggedDecision,
    OutcomePart,
    RecommendationAnswer,
    RuleAnswer,
)
from equipoise.agent.service.daemon import Daemon
from equipoise.agent.state.attempts import UNNAMED, reported_attempt
from equipoise.store.batches import OutcomeBatch

_DECISION = re.compile(r"d(0|[1-9][0-9]{0,17})")
_RULE = re.compile(r"r[0-9a-f]{20}")


class Reading:
    """Read-only handlers over one daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    async def estimates(self, call: Call) -> EstimatesAnswer:
        families = _families(call)
        made = (await self._report(families)).estimates
        shown = {name: made.families[name] for name in [made.estimator, *families]}
        return msgspec.structs.replace(made, families=shown)

    async def recommendation(self, call: Call) -> RecommendationAnswer:
        families = _families(call)
        if len(families) > 1:
            raise refuse(422, "family: one at a time here", field="family", limit="one family")
        report = await self._report(families)
        answer = report.recommendations[families[0] if families else report.estimates.estimator]
        switches = self._daemon.switches
        if switches.paused:
            why = f" ({switches.reason})" if switches.reason else ""
            before = "" if answer.status == "paused" else f" Before: {answer.status_sentence}"
            return msgspec.structs.replace(
                answer,
                status="paused",
                status_sentence=f"Paused{why}.{before}",
                sentence=f"Paused{why}. {answer.sentence}",
            )
        return answer

    async def checks(self, call: Call) -> ChecksAnswer:
        return (await self._report([])).checks

    async def budget(self, call: Call) -> BudgetAnswer:
        return self._daemon.switches.budget()

    async def forecast(self, call: Call) -> Forecast:
        """The newest forecast, made now where there is none or an era has begun since."""
        analysis, era = self._daemon.analysis, self._daemon.agent.rule.era
        if analysis.forecast is not None and analysis.forecast.era == era:
            return analysis.forecast
        with self._answering():
            return await analysis.read_forecast()

    async def decision(self, call: Call) -> LoggedDecision:
        """A decision by its id, from memory or from SQLite."""
        found = _DECISION.fullmatch(call.path["decision_id"])
        if found is None:
            detail = "there is no decision of that id; by request id ask for ?request_id="
            raise refuse(404, detail, field="decision_id")
        return self._logged(int(found[1]), "decision_id")

    async def decision_of(self, call: Call) -> LoggedDecision:
        """The decision of a request, whose id is anybody's and may look like one of ours."""
        name = call.query.get("request_id")
        if not name:
            limit = "the id of a request, percent-encoded"
            raise refuse(422, "query: expected request_id", field="request_id", limit=limit)
        return self._logged(self._daemon.store.find_requests([name]).get(name), "request_id")

    def _logged(self, number: int | None, field: str) -> LoggedDecision:
        store, gateway = self._daemon.store, self._daemon.gateway
        stored = None if number is None else store.decision(number)
        if stored is None:
            raise refuse(404, "there is no decision of that id", field=field)
        outcomes = store.outcome_parts(int(stored.number[0]))
        return LoggedDecision(
            decision=gateway.records(stored)[0],
            unit_id=stored.unit_id[0] or None if stored.unit_id else None,
            context_id=stored.context_id[0] or None if stored.context_id else None,
            features=stored.x[0].tolist(),
            capped=bool(stored.capped[0]),
            outcomes=[_part(part, self._daemon.agent.models) for part in outcomes],
        )

    async def rule(self, call: Call) -> RuleAnswer:
        name = call.path["rule_id"]
        record = self._daemon.store.rule(name) if _RULE.fullmatch(name) else None
        if record is None:
            raise refuse(404, "there is no rule of that id", field="rule_id")
        body = msgspec.json.decode(record.body)
        return RuleAnswer(rule_id=record.rule_id, era=record.era, at=record.at, body=body)

    async def _report(self, families: list[str]) -> Report:
        with self._answering():
            return await self._daemon.analysis.read(families)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Turns an analyst that does not answer into the problem that says so."""
        try:
            yield
        except AnalysisError as error:
            self._daemon.log.warning("analysis", problem=type(error).__name__)
            raise unanswered(error) from error


def unanswered(error: AnalysisError) -> Refusal:
    """What a client gets whom the analyst gave no answer."""
    if isinstance(error, CrowdedError):
        return Refusal(problem(429, str(error), retry_after=5.0))
    why = "its work failed" if isinstance(error, WorkError) else str(error)
    return Refusal(problem(503, f"no answer from the analyst: {why}", retry_after=2.0))


def _families(call: Call) -> list[str]:
    names = [name for name in call.query.get("family", "").split(",") if name]
    for name in names:
        if name not in FAMILIES:
            limit = ", ".join(FAMILIES)
            raise refuse(422, f"family: expected some of {limit}", field="family", limit=limit)
    return list(dict.fromkeys(names))


def _part(part: OutcomeBatch, models: tuple[str, ...]) -> OutcomePart:
    outputs, told = part.outputs[0], reported_attempt(part, 0)
    served = UNNAMED if told is None else told[1].served
    return OutcomePart(
        served=None if served == UNNAMED else models[served],
        attempt=None if told is None else told[0],
        delivered=None if told is None else not told[1].failed,
        outputs=None if not len(outputs) or np.isnan(outputs).any() else outputs.tolist(),
        reward=number(float(part.reward[0])),
        at=number(float(part.at[0])),
    )
