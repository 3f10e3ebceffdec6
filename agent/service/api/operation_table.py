"""The table of operations: which handler answers what, for whom, with which problems."""

from __future__ import annotations

from collections.abc import Sequence

from equipoise.agent.planning.forecast import Forecast
from equipoise.agent.planning.plan import Plan
from equipoise.agent.planning.request import PlanRequest
from equipoise.agent.service.api.operations import Call, Operation, Parameter
from equipoise.agent.service.api.schema import (
    BudgetAnswer,
    BudgetRequest,
    BulkAnswer,
    ChecksAnswer,
    DecideBatchAnswer,
    DecideBatchRequest,
    DecideRequest,
    DecisionAnswer,
    EstimatesAnswer,
    LoggedDecision,
    ModeAnswer,
    OutcomesAnswer,
    OutcomesRequest,
    PauseRequest,
    RecommendationAnswer,
    RuleAnswer,
)
from equipoise.agent.service.daemon import Daemon
from equipoise.agent.service.handlers.admin import Acting
from equipoise.agent.service.handlers.queries import Reading
from equipoise.store.records import Observation, Simulation

_FAMILY = Parameter("family", "query", "Estimator families, separated by commas.")
_MANY_BODIES = (400, 404, 409, 413, 415, 422, 429)


def operations(daemon: Daemon, example: dict[str, object]) -> Sequence[Operation]:
    """Every operation over one daemon. example: a body that /v1/decide accepts here."""
    return (*_hot(daemon, example), *_reading(Reading(daemon)), *_acting(Acting(daemon)))


def _hot(daemon: Daemon, example: dict[str, object]) -> Sequence[Operation]:
    hot = daemon.hot

    async def decide(call: Call) -> bytes:
        return hot.decide(call.body, call.caller)

    async def decide_batch(call: Call) -> bytes:
        return hot.decide_batch(call.body, call.caller)

    async def outcomes(call: Call) -> bytes:
        return await hot.outcomes_in_turns(call.body, call.caller)

    return (
        Operation(
            "POST",
            "/v1/decide",
            "decide",
            "Decide which model serves one request.",
            decide,
            body=DecideRequest,
            answer=DecisionAnswer,
            statuses=_MANY_BODIES,
            example=example,
        ),
        Operation(
            "POST",
            "/v1/decide/batch",
            "decideBatch",
            "Decide several requests, together or not at all.",
            decide_batch,
            body=DecideBatchRequest,
            answer=DecideBatchAnswer,
            statuses=_MANY_BODIES,
            example={"requests": [example]},
        ),
        Operation(
            "POST",
            "/v1/outcomes",
            "outcomes",
            "Take in what came of decisions: one outcome, or a list.",
            outcomes,
            body=OutcomesRequest,
            answer=OutcomesAnswer,
            statuses=(400, 404, 409, 413, 415, 422, 503),
            example={"request_id": "request-1", "reward": 1.0},
        ),
    )


def _reading(reading: Reading) -> Sequence[Operation]:
    return (
        Operation(
            "GET",
            "/v1/estimates",
            "estimates",
            "What every model is worth, estimated and certified.",
            reading.estimates,
            weight=1,
            answer=EstimatesAnswer,
            statuses=(422, 429, 503),
            parameters=(_FAMILY,),
        ),
        Operation(
            "GET",
            "/v1/recommendation",
            "recommendation",
            "What to do with production traffic.",
            reading.recommendation,
            weight=1,
            answer=RecommendationAnswer,
            statuses=(422, 429, 503),
            parameters=(_FAMILY,),
        ),
        Operation(
            "GET",
            "/v1/checks",
            "checks",
            "The verdicts of all checks.",
            reading.checks,
            weight=1,
            answer=ChecksAnswer,
            statuses=(429, 503),
        ),
        Operation(
            "GET",
            "/v1/budget",
            "budget",
            "The budget, what was spent and what is left.",
            reading.budget,
            answer=BudgetAnswer,
        ),
        Operation(
            "GET",
            "/v1/forecast",
            "forecast",
            "When the experiment will be decided, at today's pace.",
            reading.forecast,
            weight=1,
            answer=Forecast,
            statuses=(429, 503),
        ),
        Operation(
            "GET",
            "/v1/decisions/{decision_id}",
            "decision",
            "A decision as it stands in the log, with its outcome.",
            reading.decision,
            answer=LoggedDecision,
            statuses=(404, 503),
            parameters=(Parameter("decision_id", "path", "Such as d12.", "^d[0-9]{1,18}$"),),
        ),
        Operation(
            "GET",
            "/v1/decisions",
            "decisionOf",
            "The decision of a request, by the router's own id of it.",
            reading.decision_of,
            answer=LoggedDecision,
            statuses=(404, 422, 503),
            parameters=(Parameter("request_id", "query", "As it was asked with."),),
        ),
        Operation(
            "GET",
            "/v1/rules/{rule_id}",
            "rule",
            "A frozen rule.",
            reading.rule,
            answer=RuleAnswer,
            statuses=(404, 503),
            parameters=(Parameter("rule_id", "path", "As in a decision.", "^r[0-9a-f]{20}$"),),
        ),
    )


def _acting(acting: Acting) -> Sequence[Operation]:
    return (
        Operation(
            "POST",
            "/v1/observations",
            "observations",
            "Take in rows of a usage log, one JSON object a line.",
            acting.observations,
            body=Observation,
            answer=BulkAnswer,
            content="application/x-ndjson",
            statuses=(408, 413, 415, 503),
        ),
        Operation(
            "POST",
            "/v1/simulations",
            "simulations",
            "Take in simulated outputs, one JSON object a line.",
            acting.simulations,
            body=Simulation,
            answer=BulkAnswer,
            content="application/x-ndjson",
            statuses=(408, 413, 415, 503),
        ),
        Operation(
            "PUT",
            "/v1/budget",
            "setBudget",
            "Change how many requests may be randomized.",
            acting.set_budget,
            scope="admin",
            body=BudgetRequest,
            answer=BudgetAnswer,
            statuses=(400, 413, 415, 422, 429, 503),
            example={"requests": 1000},
        ),
        Operation(
            "POST",
            "/v1/plan",
            "plan",
            "Ask the planner.",
            acting.plan,
            weight=8,
            body=PlanRequest,
            answer=Plan,
            statuses=(400, 413, 415, 422, 429, 503),
            example={"models": 3, "traffic": 500.0, "reward_rate": 0.4, "effect": 0.05},
        ),
        Operation(
            "POST",
            "/v1/pause",
            "pause",
            "Stop randomizing; requests are still logged.",
            acting.pause,
            scope="admin",
            body=PauseRequest,
            optional_body=True,
            answer=ModeAnswer,
            statuses=(400, 413, 415, 422, 429, 503),
            example={"reason": "a release"},
        ),
        Operation(
            "POST",
            "/v1/resume",
            "resume",
            "Randomize again.",
            acting.resume,
            scope="admin",
            body=PauseRequest,
            optional_body=True,
            answer=ModeAnswer,
            statuses=(400, 413, 415, 422, 429, 503),
            example={"reason": "the release is out"},
        ),
    )
