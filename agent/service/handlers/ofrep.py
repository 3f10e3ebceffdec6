"""The experiment as a feature flag, by the OpenFeature Remote Evaluation Protocol (OFREP 0.3).

An evaluation of the flag that has the experiment's name is a decision: the unit is the context's
`targetingKey`, its features are the attributes of their names, and variant and value are the model
to serve. The answer carries everything that a provider may ask for, for some read optional fields
without looking: `reason` is one of the words that all SDKs know, `metadata` holds texts, numbers
and booleans only, and a propensity is written with its point (1.0 and not 1).

A bulk evaluation is no decision. Providers keep its answer for a page's life, for other contexts
and for a month in the browser's storage, so what it says must be true of all of them: it is what is
served anyway, and nobody is randomized.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Literal, TypeAlias, cast
from uuid import uuid4

import msgspec

from equipoise.agent.config.service import OfrepSettings
from equipoise.agent.errors import AgentError
from equipoise.agent.features.values import FeatureError, listed, shown, shown_sent
from equipoise.agent.service.api.operations import Operation, Parameter
from equipoise.agent.service.api.problems import Refusal, refusal_of
from equipoise.agent.service.api.schema import DecideRequest, DecisionAnswer, ProblemDocument, Wire
from equipoise.agent.service.hot_path.handlers import HotHandlers
from equipoise.agent.service.http.access import Caller
from equipoise.agent.service.http.endpoints import JSON_HEADER, Call, Whole
from equipoise.store.records import FeatureValue, Request

ErrorCode: TypeAlias = Literal[
    "PARSE_ERROR", "TARGETING_KEY_MISSING", "INVALID_CONTEXT", "FLAG_NOT_FOUND"
]
Metadata: TypeAlias = dict[str, bool | int | float | str]
UNIT = "targetingKey"
OPTIONS = ("request_id", "routed", "eligible", "context_id", "again")
"""Attributes of a context that are no features but fields of a request to decide."""
BULK = "a bulk evaluation is kept by clients, so nobody is randomized by it"


class EvaluationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a provider asks with.

    context: `targetingKey` is the unit; `request_id`, `routed`, `eligible`, `context_id` and
    `again` are as in a request to decide; attributes with the names of features are these; all
    others are ignored, and `ignored` in the metadata names them.
    """

    context: dict[str, Any]


class Evaluation(Wire, frozen=True, kw_only=True):
    """An evaluated flag.

    key: the name of the experiment. value, variant: the model to serve; not there in a bulk
    evaluation where nothing says what is routed, so that the caller's own default holds. reason:
    `SPLIT` where a draw decided, `STATIC` where the routed model is served for a reason.
    metadata: `propensity`, the probability with which `variant` was served; `randomized`;
    `request_id`, `unit` and `routed` as decided with; `decision_id`, `rule_id`, `era` and
    `outcome_token`, which are not there where nothing was logged; `ask`, whether to ask the user
    for a rating, where the experiment says so; `reason`, why nobody could be randomized;
    `ignored`, the attributes that are no features.
    """

    key: str
    value: str | msgspec.UnsetType = msgspec.UNSET
    reason: Literal["SPLIT", "STATIC"]
    variant: str | msgspec.UnsetType = msgspec.UNSET
    metadata: Metadata


class BulkEvaluation(Wire, frozen=True, kw_only=True):
    """What is served without the experiment, for clients that keep it.

    flags: the experiment's flag.
    """

    flags: list[Evaluation]


class EvaluationFailure(ProblemDocument, frozen=True, kw_only=True):
    """A refused evaluation: a problem document with the fields that OFREP asks for.

    key: of the flag, left out for a bulk evaluation. errorCode: OpenFeature's word. errorDetails:
    as `detail`.
    """

    errorCode: ErrorCode  # noqa: N815
    errorDetails: str  # noqa: N815
    key: str | None = None


class Ofrep:
    """Handlers of flag evaluations. experiment: its name, the key of its flag; models: their names;
    features: names of context features; settings: as in force. committed: awaited before a decision
    is answered, where that promises what only the disk keeps."""

    def __init__(
        self,
        hot: HotHandlers,
        experiment: str,
        models: Callable[[], Sequence[str]],
        features: frozenset[str],
        settings: Callable[[], OfrepSettings],
        committed: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._hot = hot
        self._experiment = experiment
        self._models = models
        self._features = features
        self._settings = settings
        self._committed = committed
        self._decoder = msgspec.json.Decoder(EvaluationRequest)

    @Operation(
        "POST",
        "/ofrep/v1/evaluate/flags/{experiment}",
        body=EvaluationRequest,
        failure=EvaluationFailure,
        problems=(404, 429),
        parameters=(Parameter("experiment", "path", "Name of the experiment."),),
        example=lambda request: _example(request),
    )
    async def evaluate_flag(self, call: Call) -> Evaluation:
        """Decide which model serves one request, asked for as a flag."""
        key = call.path["experiment"]
        if key != self._experiment:
            detail = f"no experiment is called {shown_sent(key, 'name')}"
            raise _failure("FLAG_NOT_FOUND", detail, key[:200], status=404)
        ignored: list[str] = []
        try:
            context = self._decoder.decode(call.body).context
            known = {UNIT, *OPTIONS, *self._features}
            ignored = sorted(_short(name) for name in context if name not in known)
            request = self._request(context)
            answer = await self._decided(request, call.caller)
        except Exception as error:
            raise _failure_of(error, key, ignored) from None
        return self._evaluation(answer, request, ignored)

    @Operation(
        "POST",
        "/ofrep/v1/evaluate/flags",
        body=EvaluationRequest,
        answer=BulkEvaluation,
        failure=EvaluationFailure,
        example=lambda request: _example(request),
    )
    async def evaluate_flags(self, call: Call) -> Whole:
        """What is served without the experiment; nobody is randomized."""
        try:
            routed = self._routed(self._decoder.decode(call.body).context)
        except Exception as error:
            raise _failure_of(error) from None
        metadata: Metadata = {"randomized": False, "reason": BULK}
        if routed is not None:
            metadata |= {"propensity": 1.0, "routed": routed}
        model = msgspec.UNSET if routed is None else routed
        flag = Evaluation(
            key=self._experiment, value=model, reason="STATIC", variant=model, metadata=metadata
        )
        body = msgspec.json.encode(BulkEvaluation(flags=[flag]))
        tag = f'"{blake2b(body, digest_size=12).hexdigest()}"'.encode()
        known = b",".join(value for name, value in call.headers if name == b"if-none-match")
        if tag in (each.strip().removeprefix(b"W/") for each in known.split(b",")):
            return Whole(304, b"", [(b"etag", tag)])
        return Whole(200, body, [JSON_HEADER, (b"etag", tag)])

    async def _decided(self, request: DecideRequest, caller: Caller) -> DecisionAnswer:
        answer = self._hot.decided(request, caller)
        if self._committed is not None and answer.decision_id is not None:
            try:
                await self._committed()
            except Exception as error:
                return self._hot.passed_through(request, error)
        return answer

    def _routed(self, context: Mapping[str, Any]) -> str | None:
        """The model that production would serve; None where neither the context nor the
        configuration says. Raises AgentError for no model of ours."""
        named = context.get("routed")
        routed = self._settings().routed if named is None else named
        models = self._models()
        if routed is not None and routed not in models:
            sent = shown_sent(routed, "name")
            raise AgentError(f"routed: model {sent} is not one of {', '.join(models)}")
        return routed

    def _request(self, context: Mapping[str, Any]) -> DecideRequest:
        """The request that a context describes."""
        unit = context.get(UNIT)
        if unit is None or unit == "":
            raise _failure("TARGETING_KEY_MISSING", f"{UNIT}: expected whose request it is")
        if not isinstance(unit, str):
            raise AgentError(f"{UNIT}: received {shown(unit)}, expected a text")
        routed = self._routed(context)
        if routed is None:
            raise AgentError(
                "routed: expected the model that production would serve, as an attribute of the "
                "context or as `routed` of [service.ofrep]"
            )
        options = {name: context[name] for name in OPTIONS if context.get(name) is not None}
        features = {
            name: _feature(name, value)
            for name, value in context.items()
            if name in self._features and value is not None
        }
        return msgspec.convert(
            {
                "request_id": f"ofrep-{uuid4()}",
                **options,
                "routed": routed,
                "unit_id": unit,
                "features": features,
            },
            DecideRequest,
        )

    def _evaluation(
        self, answer: DecisionAnswer, request: Request, ignored: list[str]
    ) -> Evaluation:
        said: dict[str, bool | int | float | str | None] = {
            "propensity": float(answer.propensity),
            "randomized": answer.randomized,
            "request_id": request.request_id,
            "unit": request.unit_id,
            "routed": request.routed,
            "decision_id": answer.decision_id,
            "rule_id": answer.rule_id,
            "era": answer.era,
            "outcome_token": answer.outcome_token,
            "ask": None if isinstance(answer.ask, msgspec.UnsetType) else answer.ask,
            "reason": answer.reason or self._hot.closed_by(answer.decision_id),
            "ignored": listed(ignored) if ignored else None,
        }
        return Evaluation(
            key=self._experiment,
            value=answer.model,
            reason="STATIC" if said["reason"] else "SPLIT",
            variant=answer.model,
            metadata={name: value for name, value in said.items() if value is not None},
        )


def _feature(name: str, value: object) -> FeatureValue:
    try:
        return cast(FeatureValue, msgspec.convert(value, FeatureValue))
    except msgspec.ValidationError:
        limit = "a number, a text, true or false, or a list of numbers"
        raise AgentError(f"{name}: received {shown_sent(value)}, expected {limit}") from None


def _short(name: str) -> str:
    text = shown_sent(name, "name")
    return name if text == repr(name) else text


def _failure(code: ErrorCode, detail: str, key: str | None = None, *, status: int = 400) -> Refusal:
    """A refusal by OFREP's schema. A provider reads 400 and 404 only; there what is wrong with a
    context is said by the code."""
    refusal = Refusal(status, detail, headers={"content-type": "application/json"})
    document = refusal.document
    refusal.document = EvaluationFailure(
        title=document.title,
        status=status,
        detail=document.detail,
        type=document.type,
        errorCode=code,
        errorDetails=document.detail,
        key=key,
    )
    return refusal


def _failure_of(error: Exception, key: str | None = None, ignored: Sequence[str] = ()) -> Exception:
    """What was raised, by OFREP's schema where the caller's body was at fault. ignored: attributes
    that are no features; one of them may be a misspelt one."""
    refusal = refusal_of(error)
    document = refusal.document
    if isinstance(document, EvaluationFailure):
        code = document.errorCode
    elif document.status == 400:
        code = "PARSE_ERROR"
    elif document.status == 404:
        code = "FLAG_NOT_FOUND"  # by `again`: nothing was decided under that request_id
    elif isinstance(error, AgentError | FeatureError | msgspec.ValidationError) or (
        document.status in (409, 422)
    ):
        code = "INVALID_CONTEXT"
    else:
        return refusal
    detail = document.detail
    if ignored and isinstance(error, FeatureError):
        detail += f"; no features are {listed(ignored)}"
    made = _failure(code, detail, key, status=404 if document.status == 404 else 400)
    made.document = msgspec.structs.replace(
        made.document,
        title=document.title,
        type=document.type,
        field=document.field,
        limit=document.limit,
    )
    return made


def _example(request: Mapping[str, Any]) -> dict[str, Any]:
    """The body of /v1/decide as a context."""
    options = {name: request[name] for name in OPTIONS if name in request}
    return {"context": {UNIT: request["unit_id"], **options, **request["features"]}}
