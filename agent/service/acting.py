"""Handlers of what changes something beside the hot routes: bulk rows, budget, pause, resume."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from equipoise.agent.agent import Accepted
from equipoise.agent.planning.request import PlanRequest
from equipoise.agent.service.analysis import AnalysisError
from equipoise.agent.service.bulk import Bulk
from equipoise.agent.service.daemon import Daemon
from equipoise.agent.service.operations import Call
from equipoise.agent.service.problems import Refusal, problem, refuse
from equipoise.agent.service.reading import unanswered
from equipoise.agent.service.schema import (
    BudgetAnswer,
    BudgetRequest,
    BulkAnswer,
    ModeAnswer,
    PauseRequest,
)
from equipoise.store.records import Observation, Simulation

T = TypeVar("T")


class Acting:
    """Handlers that act on one daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._most_rejects = daemon.settings.limits.rejects

    async def observations(self, call: Call) -> BulkAnswer:
        take = self._taking(self._daemon.gateway.ingest, "observations")
        return await Bulk(Observation, take, self._daemon.settings.limits.rejects).read(
            call.chunks()
        )

    async def simulations(self, call: Call) -> BulkAnswer:
        take = self._taking(self._daemon.gateway.simulate, "simulations")
        return await Bulk(Simulation, take, self._daemon.settings.limits.rejects).read(
            call.chunks()
        )

    async def set_budget(self, call: Call) -> BudgetAnswer:
        body = msgspec.json.decode(call.body, type=BudgetRequest)
        daemon = self._daemon
        answer = daemon.switches.set_budget(body.requests, daemon.clock())
        daemon.log.info("budget", requests=answer.requests, randomized=answer.randomized)
        return answer

    async def pause(self, call: Call) -> ModeAnswer:
        answer = self._daemon.switches.pause(_reason(call), self._daemon.clock())
        self._daemon.log.warning("paused")
        return answer

    async def resume(self, call: Call) -> ModeAnswer:
        daemon, era = self._daemon, self._daemon.agent.rule.era
        try:
            async with daemon.whole():
                answer = daemon.switches.resume(_reason(call), daemon.clock())
        except AnalysisError as error:
            raise unanswered(error) from error
        if daemon.agent.rule.era != era:
            daemon.analysis.adopt(daemon.agent.rule.record(daemon.clock()))
        self._daemon.log.warning("resumed", randomizing=answer.randomizing)
        return answer

    async def plan(self, call: Call) -> msgspec.Raw:
        """A plan from the numbers given, or, where none say otherwise, from what is known."""
        asked = msgspec.json.decode(call.body, type=PlanRequest)
        live = asked.models is None and asked.reward_rate is None
        try:
            made = await self._daemon.analysis.plan(call.body, live)
        except AnalysisError as error:
            raise unanswered(error) from error
        if made.fault:
            self._daemon.log.warning("plan-failed", sentence=made.fault)
            raise Refusal(problem(500, f"the planner failed on this question ({made.fault})"))
        if made.refused:
            raise refuse(422, made.refused, field=made.field, limit=made.limit)
        return msgspec.Raw(made.body)

    def _taking(
        self, take: Callable[[Sequence[T]], Accepted], name: str
    ) -> Callable[[Sequence[T]], dict[str, int]]:
        def taken(rows: Sequence[T]) -> dict[str, int]:
            accepted = take(rows)
            self._daemon.figures.bulk[name] += accepted.rows
            return {"rows": accepted.rows, "duplicates": accepted.duplicates}

        return taken


def _reason(call: Call) -> str:
    return msgspec.json.decode(call.body, type=PauseRequest).reason if call.body else ""
