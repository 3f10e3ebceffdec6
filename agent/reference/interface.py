"""docs/reference/records.md and http.md: records of files, and the operations over HTTP.

Both use the configuration that `equipoise init` writes, so that the examples can be tried.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from typing import Any

import msgspec

from equipoise.agent.reference.documented import described, fields_of, lines, structs_of
from equipoise.agent.service.api.operations import NDJSON, Operation, Parameter
from equipoise.agent.service.api.problems import STATUSES
from equipoise.agent.service.api.schema import Body, ProblemDocument, Wire
from equipoise.agent.service.handlers.admin import Admin
from equipoise.agent.service.handlers.ofrep import Ofrep
from equipoise.agent.service.handlers.otlp import Otlp
from equipoise.agent.service.handlers.queries import Queries
from equipoise.agent.service.hot_path.handlers import HotHandlers
from equipoise.store.records import ID_RULE, Observation, Outcome, Record, Simulation

_ANSWERS = "equipoise.agent.service.api"

FEATURES = {"prompt": "fix this", "plan": "paid"}
OUTPUTS = {"seconds": 2.0, "tokens": 80}
ROWS: dict[str, tuple[type[msgspec.Struct], list[dict[str, Any]]]] = {
    "observations": (
        Observation,
        [
            {
                "request_id": "q1",
                "routed": "large",
                "features": FEATURES,
                "outputs": OUTPUTS,
                "reward": 1.0,
                "unit_id": "user-7",
                "at": 1790000000,
            },
            {"request_id": "q2", "routed": "small", "features": FEATURES, "outputs": OUTPUTS},
        ],
    ),
    "simulations": (
        Simulation,
        [
            {
                "context_id": "c1",
                "model": "small",
                "features": FEATURES,
                "outputs": OUTPUTS,
                "cost": 0.002,
                "at": 1790000000,
            }
        ],
    ),
    "outcomes": (
        Outcome,
        [
            {
                "request_id": "r1",
                "served": "large",
                "attempt": 1,
                "delivered": True,
                "outputs": OUTPUTS,
            },
            {"request_id": "r1", "reward": 1.0},
            {
                "request_id": "r2",
                "attempts": [
                    {"model": "large", "status": "failed", "seconds": 1.2, "cost": 0.0},
                    {"model": "small", "status": "delivered", "seconds": 0.8, "cost": 0.001},
                ],
                "outputs": OUTPUTS,
            },
        ],
    ),
}
"""For each kind of file its record, and lines of it in an order in which they are accepted."""
CSV = """\
request_id,routed,x_prompt,x_plan,y_seconds,y_tokens,reward
q3,large,fix this,paid,2.0,80,1
"""


def operations() -> list[Operation]:
    """Every operation, in the order in which the examples of the page can be sent."""
    declared = [
        member.operation
        for holder in (HotHandlers, Ofrep, Admin, Queries, Otlp)
        for member in vars(holder).values()
        if hasattr(member, "operation")
    ]
    return sorted(declared, key=lambda each: each.scope == "admin")


def records_page() -> str:
    """The page on records as Markdown."""
    sections = [_RECORDS]
    for kind, (record, rows) in ROWS.items():
        sections.append(f"## {kind}\n\n{described(record)[0]}\n")
        sections.append("\n".join(lines(fields_of(record))) + "\n")
        text = "\n".join(json.dumps(row) for row in rows)
        sections.append(f"```json\n{text}\n```\n")
    sections.append(f"An id is {ID_RULE}.\n")
    sections.append(f"{_TABLES}\n```csv\n{CSV}```\n")
    return "\n".join(sections)


def http_page() -> str:
    """The page on the HTTP interface as Markdown."""
    sections = [_HTTP]
    structs: list[type[msgspec.Struct]] = []
    for operation in operations():
        sections += _operation(operation)
        for kind in (operation.body, operation.answer, operation.failure):
            structs += structs_of(kind)
    sections.append(
        "## Objects\n\nFields of bodies and answers. An answer has every field, a problem those"
        f" that apply. An id is {ID_RULE}.\n"
    )
    for struct in _with_inner([*structs, ProblemDocument]):
        about, _ = described(struct)
        sections.append(f"### {struct.__name__}\n\n{about}\n")
        inside = struct.__module__.startswith(_ANSWERS) or issubclass(struct, Wire)
        given = not inside or issubclass(struct, Body | Record)
        sections.append("\n".join(lines(fields_of(struct), given)) + "\n")
    rows = [f"| {status} | {title} | {when} |" for status, (title, _, when) in STATUSES.items()]
    sections.append("\n".join(["## Problems\n", _PROBLEMS, *rows, ""]))
    return "\n".join(sections)


def _operation(operation: Operation) -> Iterator[str]:
    yield f"## {operation.method} {operation.path}\n\n{operation.summary}\n"
    facts = [f"Token: {operation.scope or 'none'}."]
    if operation.body is not None:
        each = ", one JSON object a line" if operation.content == NDJSON else ""
        facts.append(f"Body: {_linked(operation.body)}{each}.")
    facts.append(f"Answer: {_linked(operation.answer)}.")
    facts += [f"`{each.name}` ({each.where}): {each.description}" for each in operation.parameters]
    facts.append(f"Problems: {', '.join(map(str, operation.statuses))}.")
    if operation.failure is not None:
        facts.append(f"400 and 404 are {_linked(operation.failure)}.")
    yield " ".join(facts) + "\n"
    yield f"```sh\n{curl(operation)}\n```\n"


def _linked(kind: Any) -> str:
    names = [f"[{each.__name__}](#{each.__name__.lower()})" for each in structs_of(kind)]
    return " or a list of ".join(dict.fromkeys(names)) or "JSON"


def curl(operation: Operation) -> str:
    """A command that the daemon accepts after those before it on the page."""
    path = operation.path
    for parameter in operation.parameters:
        path += _argument(parameter)
    path = path.replace("{decision_id}", "d0").replace("{rule_id}", "$RULE_ID")
    path = path.replace("{experiment}", "chat")
    command = 'curl -s -H "Authorization: Bearer $EQUIPOISE_TOKEN"'
    if operation.method == "PUT":
        command += " -X PUT"
    body = _body(operation)
    if operation.content == NDJSON:
        command += f' -H "Content-Type: {NDJSON}"'
    elif operation.method == "POST" and not body:
        command += " -X POST"
    quoted = f" \\\n  --data-binary '{body}'" if body else ""
    return f'{command} "localhost:8080{path}"{quoted}'


def _argument(parameter: Parameter) -> str:
    values = {"request_id": "?request_id=r1", "family": "?family=ipw"}
    return values[parameter.name] if parameter.where == "query" else ""


def _body(operation: Operation) -> str:
    request = {"request_id": "r1", "routed": "large", "features": FEATURES, "unit_id": "user-7"}
    if operation.path == "/v1/outcomes":
        reported = {"request_id": "r1", "outputs": OUTPUTS, "reward": 1.0}
        return json.dumps(reported)[:-1] + ', "outcome_token": "\'$OUTCOME_TOKEN\'"}'
    if operation.content == NDJSON:
        _, rows = ROWS[operation.path.rpartition("/")[2]]
        return "\n".join(json.dumps(row) for row in rows)
    if operation.path == "/v1/decide/batch":
        request["request_id"] = "r2"
    example = operation.example
    if example is None:
        return ""
    return json.dumps(example(request) if callable(example) else example)


def _with_inner(structs: list[type[msgspec.Struct]]) -> list[type[msgspec.Struct]]:
    """These structs and those in their fields, each once."""
    ordered: dict[type[msgspec.Struct], None] = {}
    waiting = list(structs)
    while waiting:
        struct = waiting.pop(0)
        if struct not in ordered:
            ordered[struct] = None
            inner = (structs_of(field.kind) for field in fields_of(struct))
            waiting = [*chain.from_iterable(inner), *waiting]
    return list(ordered)


_RECORDS = """\
# Records

The lines of files that `equipoise ingest` reads (`--kind`, `observations` where it is left out),
and the bodies of [HTTP](http.md). Written by `equipoise reference`; do not edit it by hand.
Features and outputs are those of the configuration that `equipoise init` writes. JSON lines use
these names; a log in another shape needs a mapping ([`[[ingest]]`](configuration.md#ingest)), and
there are presets for common ones. Numbers may come as text, times as seconds, milliseconds or ISO
8601.
"""
_TABLES = """\
## Tables

CSV and Parquet have the same columns; a feature is a column `x_NAME`, an output `y_NAME`.
"""
_HTTP = """\
# HTTP

Every operation of the daemon, written by `equipoise reference` from its declarations; do not edit
it by hand. A running daemon has the same as OpenAPI at `/openapi.json`. The examples can be sent in
this order to a daemon with the configuration that `equipoise init` writes. `EQUIPOISE_TOKEN` is a
token of its file `equipoise.tokens` (the last operations need that of scope admin), `OUTCOME_TOKEN`
is the `outcome_token` and `RULE_ID` the `rule_id` of the first answer.

Four paths beside these return no documented object: `/healthz` and `/readyz`, which need no token,
`/metrics` ([metrics](metrics.md)) and `/openapi.json`. The page is at `/`.
"""
_PROBLEMS = """\
What is refused is answered with a [ProblemDocument](#problemdocument), `application/problem+json`.

| status | title | when |
|---|---|---|"""
