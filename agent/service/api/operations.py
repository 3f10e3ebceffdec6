"""Operations of the HTTP interface, declared where their handlers are, and OpenAPI 3.1 from them.

    @Operation("GET", "/v1/budget")
    async def budget(self, call: Call) -> BudgetAnswer:
        '''The budget, what was spent and what is left.'''

Routes, the document, token scopes, limits on reads, counters by route and the problems of the
document all follow from that one declaration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, TypeVar, get_type_hints

import msgspec

from equipoise.agent.config import ExperimentConfig
from equipoise.agent.config.service import Scope
from equipoise.agent.features.kinds import (
    Boolean,
    Category,
    Feature,
    Ngrams,
    Number,
    Text,
    Vector,
)
from equipoise.agent.service.api.problems import STATUSES
from equipoise.agent.service.api.schema import ProblemDocument

Method: TypeAlias = Callable[..., Any]
M = TypeVar("M", bound=Method)

JSON, NDJSON = "application/json", "application/x-ndjson"


@dataclass(frozen=True, slots=True)
class Parameter:
    """A path or query parameter, which is text."""

    name: str
    where: Literal["path", "query"]
    description: str
    pattern: str | None = None


@dataclass(frozen=True, slots=True)
class Operation:
    """Declares a handler when it decorates one. path: in Starlette's syntax, which is OpenAPI's.

    scope: what a token needs, None for what is open to all. body, answer: types of the schema; the
    answer is what the handler returns, if nothing else is said. problems: statuses it may refuse
    with, beyond those of every operation, of its kind of body and of its weight. failure: the type
    of 400 and 404, where a protocol asks for another document than ours. parameters: of
    path and query; any other is refused. example: a valid body, or a function that makes it of a
    valid body of /v1/decide. weight: of `limits.reads`, for what the analyst has to answer. name,
    summary: the handler's name in camel case, and the first line of its docstring.
    """

    method: Literal["GET", "POST", "PUT"]
    path: str
    scope: Scope | None = "route"
    body: Any = None
    answer: Any = None
    content: str = JSON
    optional_body: bool = False
    problems: tuple[int, ...] = ()
    failure: Any = None
    parameters: tuple[Parameter, ...] = ()
    example: Any = None
    weight: int = 0
    name: str = ""
    summary: str = ""

    def __call__(self, handler: M) -> M:
        first, *others = handler.__name__.split("_")
        handler.__dict__["operation"] = replace(
            self,
            name=first + "".join(map(str.title, others)),
            summary=(handler.__doc__ or "").partition("\n")[0],
            answer=self.answer or get_type_hints(handler)["return"],
        )
        return handler

    @property
    def statuses(self) -> list[int]:
        """Every status of a refusal."""
        implied = (*_ALWAYS, *((429, 503) if self.weight else ()))
        if self.body is not None:
            implied += (400, 413, 415, 422) if self.content == JSON else (408, 413, 415)
        return sorted({*self.problems, *implied})


def declared(*holders: object) -> Iterator[tuple[Operation, Method]]:
    """The operations of these objects with the methods that handle them, as they are written."""
    for holder in holders:
        for name, member in vars(type(holder)).items():
            operation = getattr(member, "operation", None)
            if isinstance(operation, Operation):
                yield operation, getattr(holder, name)


def example_request(config: ExperimentConfig) -> dict[str, object]:
    """A valid body of /v1/decide with a value for every context feature."""
    return {
        "request_id": "request-1",
        "routed": config.models[0].name,
        "features": {feature.name: _value(feature) for feature in config.features.context},
        "unit_id": "user-1",
    }


def _value(feature: Feature) -> object:
    if isinstance(feature, Boolean):
        return True
    if isinstance(feature, Category):
        return (feature.values or ["other"])[0]
    if isinstance(feature, Text | Ngrams):
        return "How do I sort a list?"
    if isinstance(feature, Vector):
        return [0.0] * feature.length
    if isinstance(feature, Number):
        low = feature.low if feature.low is not None else 0.0 if feature.log else None
        if low is not None and low > 0:
            return low
        return feature.high if feature.high is not None and feature.high < 0 else low or 0.0
    raise TypeError(f"no example for a feature of type {type(feature).__name__}")


_TEMPLATE = "#/components/schemas/{name}"
_ALWAYS = (401, 403, 421, 431, 500)


def document(
    operations: Sequence[Operation], version: str, request: Mapping[str, object], base: str = ""
) -> dict[str, Any]:
    """The OpenAPI document as JSON-able data. request: a body that /v1/decide accepts here. base:
    where a proxy shows the paths."""
    types = [ProblemDocument]
    for operation in operations:
        own = (operation.body, operation.answer, operation.failure)
        types += [kind for kind in own if kind is not None]
    schemas, components = msgspec.json.schema_components(types, ref_template=_TEMPLATE)
    by_type = {str(kind): schema for kind, schema in zip(types, schemas, strict=True)}
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = {
            "operationId": operation.name,
            "summary": operation.summary,
            "responses": _responses(operation, by_type),
            # Without tokens in the configuration all is open, hence the empty alternative.
            "security": [{}] if operation.scope is None else [{"token": []}, {}],
            **_parameters(operation),
            **_body(operation, by_type, request),
        }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Equipoise",
            "version": version,
            "description": "Decides which requests to randomize, and onto which model.",
        },
        **({"servers": [{"url": base}]} if base else {}),
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _parameters(operation: Operation) -> dict[str, Any]:
    described = [
        {
            "name": parameter.name,
            "in": parameter.where,
            "required": parameter.where == "path",
            "description": parameter.description,
            "schema": {"type": "string"}
            if parameter.pattern is None
            else {"type": "string", "pattern": parameter.pattern},
        }
        for parameter in operation.parameters
    ]
    return {"parameters": described} if described else {}


def _body(
    operation: Operation, by_type: dict[str, Any], request: Mapping[str, object]
) -> dict[str, Any]:
    if operation.body is None:
        return {}
    # A line of NDJSON has the schema of its record; the whole body is no JSON value.
    schema = by_type[str(operation.body)]
    whole = operation.content == JSON
    content = {"schema": schema if whole else {"type": "string", "x-line-schema": schema}}
    example = operation.example
    if example is not None:
        content["example"] = example(request) if callable(example) else example
    required = not operation.optional_body
    return {"requestBody": {"required": required, "content": {operation.content: content}}}


def _responses(operation: Operation, by_type: dict[str, Any]) -> dict[str, Any]:
    responses: dict[str, Any] = {
        "200": {
            "description": operation.summary,
            "content": {JSON: {"schema": by_type[str(operation.answer)]}},
        }
    }
    for status in operation.statuses:
        kind, media = ProblemDocument, "application/problem+json"
        if operation.failure is not None and status in (400, 404):
            kind, media = operation.failure, JSON
        responses[str(status)] = {
            "description": STATUSES[status][2],
            "content": {media: {"schema": by_type[str(kind)]}},
        }
    return responses
