"""What schemathesis needs to know of this interface (SCHEMATHESIS_HOOKS): how NDJSON is written."""

from __future__ import annotations

import json
from typing import Any

import schemathesis


@schemathesis.serializer("application/x-ndjson")
def lines(_: schemathesis.SerializationContext, value: Any) -> bytes:
    rows = value if isinstance(value, list) else [value]
    return b"\n".join(json.dumps(row).encode() for row in rows)


@schemathesis.hook
def before_load_schema(_: schemathesis.HookContext, document: dict[str, Any]) -> None:
    """A body of lines is a list of records here; OpenAPI 3.1 can only call it text."""
    for path in document["paths"].values():
        for operation in path.values():
            content = operation.get("requestBody", {}).get("content", {})
            line = content.get("application/x-ndjson", {}).get("schema", {}).pop("x-line-schema", 0)
            if line:
                schema = {"type": "array", "items": line, "minItems": 1}
                content["application/x-ndjson"]["schema"] = schema
