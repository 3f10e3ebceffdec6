"""The OpenAPI 3.1 document, generated from the structs and the table of operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from equipoise.agent.config import ExperimentConfig
from equipoise.agent.features.kinds import Boolean, Category, Feature, Number, Text, Vector
from equipoise.agent.service.api.operations import Operation
from equipoise.agent.service.api.schema import ProblemDocument


def example_request(config: ExperimentConfig) -> dict[str, object]:
    """A valid body with a value for every context feature."""
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
    if isinstance(feature, Text):
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
_REFUSALS = {
    400: "The body is not JSON.",
    401: "A token is needed.",
    403: "The token lacks the scope, or a page of another site asks.",
    404: "There is no such thing.",
    408: "The body came too slowly.",
    409: "The same id came with other content before.",
    413: "The body is too large, or has too many rows.",
    415: "The body says that it is no JSON.",
    421: "The host name is not one of this daemon's.",
    422: "A field is not acceptable; the document names it and its limit.",
    429: "Too many at once, or in this second; try again after the time given.",
    431: "The headers are too large.",
    500: "A fault of the daemon.",
    501: "This daemon cannot do that.",
    503: "Not now; try again after the time given.",
}


def document(operations: Sequence[Operation], version: str) -> dict[str, Any]:
    """The document as JSON-able data."""
    types = [ProblemDocument]
    for operation in operations:
        types += [kind for kind in (operation.body, operation.answer) if kind is not None]
    schemas, components = msgspec.json.schema_components(types, ref_template=_TEMPLATE)
    known = {str(kind): schema for kind, schema in zip(types, schemas, strict=True)}
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(
            operation, known
        )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Equipoise",
            "version": version,
            "description": "Decides which requests to randomize, and onto which model.",
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(operation: Operation, known: dict[str, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "responses": _responses(operation, known),
        # Without tokens in the configuration all is open, hence the empty alternative.
        "security": [{}] if operation.scope is None else [{"token": []}, {}],
    }
    if operation.parameters:
        described["parameters"] = [
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
    if operation.body is not None:
        # A line of NDJSON has the schema of its record; the whole body is no JSON value.
        schema = known[str(operation.body)]
        whole = operation.content == "application/json"
        content: dict[str, Any] = {
            "schema": schema if whole else {"type": "string", "x-line-schema": schema}
        }
        if operation.example is not None:
            content["example"] = operation.example
        described["requestBody"] = {
            "required": not operation.optional_body,
            "content": {operation.content: content},
        }
    return described


def _responses(operation: Operation, known: dict[str, Any]) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for status in operation.ok if operation.answer is not None else ():
        schema = known[str(operation.answer)]
        responses[str(status)] = {
            "description": operation.summary,
            "content": {"application/json": {"schema": schema}},
        }
    for status in sorted({*operation.statuses, *_ALWAYS}):
        responses[str(status)] = {
            "description": _REFUSALS[status],
            "content": {"application/problem+json": {"schema": known[str(ProblemDocument)]}},
        }
    return responses
