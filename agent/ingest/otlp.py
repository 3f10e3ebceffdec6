"""OTLP, the wire format of OpenTelemetry: batches of spans and log records as plain rows.

A model call is a span, a rating an event `gen_ai.evaluation.result`, on a span or as a log record.
The attributes have had several names, all of status Development: `NAMES` is the one table of them.
What other spans say (HTTP, databases, tools, agents) is left out, and counted.

    for row in rows_of(json.loads(line)):  # a line of a collector's file is a whole batch
        ...

Numbers in OTLP's JSON may be text, times are nanoseconds, ids hexadecimal; rows have numbers,
seconds and lower-case ids. A span's status says how the instrumentation ended, which differs from
one to the next: it is kept as `failed`, and nothing is concluded from it.
"""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

import msgspec

from equipoise.agent.errors import AgentError
from equipoise.agent.features.values import shown_sent
from equipoise.store.records import LONGEST_ID

Signal: TypeAlias = Literal["traces", "logs"]
Row: TypeAlias = dict[str, Any]
M = TypeVar("M")


class Name(NamedTuple):
    """attribute: its name. convention: whose it is, and the versions that use it."""

    attribute: str
    convention: str


_GENAI = "OpenTelemetry GenAI, from 1.37"
_GENAI_27 = "OpenTelemetry GenAI, from 1.27"
_GENAI_OLD = "OpenTelemetry semantic conventions, until 1.36"
_GENAI_26 = "OpenTelemetry semantic conventions, until 1.26"
_INFERENCE = "OpenInference 0.1"
_LLMETRY = "OpenLLMetry, until 0.40"
_LITELLM = "LiteLLM 1"
_OURS = "Equipoise"


def _names(**table: list[tuple[str, str]]) -> Mapping[str, tuple[Name, ...]]:
    return MappingProxyType(
        {field: tuple(Name(*each) for each in names) for field, names in table.items()}
    )


NAMES = _names(
    operation=[
        ("gen_ai.operation.name", _GENAI_27),
        ("llm.request.type", _LLMETRY),
        ("openinference.span.kind", _INFERENCE),
    ],
    provider=[
        ("gen_ai.provider.name", _GENAI),
        ("gen_ai.system", _GENAI_OLD),
        ("llm.provider", _INFERENCE),
        ("llm.system", _INFERENCE),
    ],
    requested_model=[
        ("gen_ai.request.model", _GENAI_27),
        ("llm.request.model_name", _INFERENCE),
    ],
    answered_model=[
        ("gen_ai.response.model", _GENAI_27),
        ("llm.response.model_name", _INFERENCE),
        ("llm.model_name", _INFERENCE),
    ],
    response_id=[("gen_ai.response.id", _GENAI_27)],
    conversation_id=[("gen_ai.conversation.id", _GENAI), ("session.id", _INFERENCE)],
    unit_id=[("user.id", _INFERENCE), ("enduser.id", _GENAI_27)],
    input_tokens=[
        ("gen_ai.usage.input_tokens", _GENAI_27),
        ("gen_ai.usage.prompt_tokens", _GENAI_26),
        ("llm.token_count.prompt", _INFERENCE),
    ],
    output_tokens=[
        ("gen_ai.usage.output_tokens", _GENAI_27),
        ("gen_ai.usage.completion_tokens", _GENAI_26),
        ("llm.token_count.completion", _INFERENCE),
    ],
    cached_tokens=[
        ("gen_ai.usage.cache_read.input_tokens", _GENAI),
        ("gen_ai.usage.cache_read_input_tokens", _LLMETRY),
        ("llm.token_count.prompt_details.cache_read", _INFERENCE),
    ],
    reasoning_tokens=[
        ("gen_ai.usage.reasoning.output_tokens", _GENAI),
        ("gen_ai.usage.reasoning_tokens", _LLMETRY),
        ("llm.token_count.completion_details.reasoning", _INFERENCE),
    ],
    cost=[("llm.cost.total", _INFERENCE), ("gen_ai.cost.total_cost", _LITELLM)],
    first_token_seconds=[("gen_ai.response.time_to_first_chunk", _GENAI)],
    finish_reason=[
        ("gen_ai.response.finish_reasons", _GENAI_27),
        ("llm.finish_reason", _INFERENCE),
    ],
    error=[("error.type", "OpenTelemetry, stable")],
    decision_id=[("equipoise.decision_id", _OURS)],
    outcome_token=[("equipoise.outcome_token", _OURS)],
    evaluation=[("gen_ai.evaluation.name", _GENAI)],
    score=[("gen_ai.evaluation.score.value", _GENAI)],
    label=[("gen_ai.evaluation.score.label", _GENAI)],
)
"""Field of a row to the attributes that fill it, the preferred one first."""

EVALUATION_EVENT = "gen_ai.evaluation.result"
CALLS = frozenset(
    {
        "chat",
        "text_completion",
        "generate_content",
        "LLM",  # OpenInference
        "completion",  # the rest as LiteLLM and OpenLLMetry write them
        "acompletion",
        "atext_completion",
        "responses",
        "aresponses",
        "anthropic_messages",
    }
)
"""Operations that have a model answer; embeddings, tools, retrievals and agents are none."""
FIELDS: Mapping[str, str] = MappingProxyType(
    {"request_id": "request_id", "routed": "model", "unit_id": "unit_id", "at": "at"}
)
"""Fields of an observation to paths in a row of a call."""

_NUMBERS = frozenset(
    {
        "input_tokens",
        "output_tokens",
        "cached_tokens",
        "reasoning_tokens",
        "first_token_seconds",
        "cost",
    }
)
_IDS = frozenset({"response_id", "conversation_id"})
_CALL_FIELDS = [
    name
    for name in NAMES
    if name not in ("operation", "finish_reason", "error", "evaluation", "score", "label")
]
_SPELLED = re.compile(r"-?[0-9.]+(?:[eE][-+]?[0-9]+)?|NaN|-?Infinity")
_DATED = re.compile(r"-(\d{4}-\d{2}-\d{2}|\d{3,4}|\d{6}|\d{8})(?:-v\d+(?::\d+)?)?")


class _Wire(msgspec.Struct, rename="camel", omit_defaults=True, gc=False):
    """A message of OTLP as its JSON has it; what is not needed here is skipped."""


class AnyValue(_Wire):
    string_value: str | None = None
    bool_value: bool | None = None
    int_value: int | str | None = None
    double_value: float | str | None = None
    array_value: ArrayValue | None = None
    kvlist_value: KeyValueList | None = None
    bytes_value: str | None = None


class ArrayValue(_Wire):
    values: list[AnyValue] = []


class KeyValue(_Wire):
    key: str = ""
    value: AnyValue | None = None


class KeyValueList(_Wire):
    values: list[KeyValue] = []


class Event(_Wire):
    time_unix_nano: int | str = 0
    name: str = ""
    attributes: list[KeyValue] = []


class Status(_Wire):
    message: str = ""
    code: int | str = 0


class Span(_Wire):
    trace_id: str = ""
    span_id: str = ""
    parent_span_id: str = ""
    name: str = ""
    start_time_unix_nano: int | str = 0
    end_time_unix_nano: int | str = 0
    attributes: list[KeyValue] = []
    events: list[Event] = []
    status: Status | None = None


class LogRecord(_Wire):
    time_unix_nano: int | str = 0
    observed_time_unix_nano: int | str = 0
    attributes: list[KeyValue] = []
    trace_id: str = ""
    span_id: str = ""
    event_name: str = ""


class Resource(_Wire):
    attributes: list[KeyValue] = []


class ScopeSpans(_Wire):
    spans: list[Span] = []


class ResourceSpans(_Wire):
    resource: Resource | None = None
    scope_spans: list[ScopeSpans] = []


class Traces(_Wire):
    resource_spans: list[ResourceSpans] = []


class ScopeLogs(_Wire):
    log_records: list[LogRecord] = []


class ResourceLogs(_Wire):
    resource: Resource | None = None
    scope_logs: list[ScopeLogs] = []


class Logs(_Wire):
    resource_logs: list[ResourceLogs] = []


MESSAGES: Mapping[Signal, type[Traces] | type[Logs]] = {"traces": Traces, "logs": Logs}


def from_json(body: bytes, signal: Signal) -> Traces | Logs:
    """The batch of an export. Raises msgspec.DecodeError, UnicodeError or RecursionError."""
    return msgspec.json.decode(body, type=MESSAGES[signal])


class Rejected(NamedTuple):
    """A span or log record that cannot be read. reason: the field, the value and the limit."""

    reason: str


def rows(
    message: Traces | Logs,
    ignored: Counter[str] | None = None,
    parents: dict[str, str] | None = None,
) -> Iterator[Row | Rejected]:
    """Every model call and every evaluation of a batch, in its order; a call before the evaluations
    that stand in its events.

    A call has kind "call", and the keys of `NAMES` beside request_id (of its span), trace_id,
    span_id, parent_span_id, model (who answered, by the name that was asked for), at, seconds,
    failed, answered (whether anything of an answer came, though the span may have failed after it),
    attributes and resource; an evaluation has kind "evaluation", and trace_id, span_id (of
    what it is about), response_id, decision_id, outcome_token, name, score, label, failed, at. A
    span that is no call but names a decision has kind "decision". None where nothing is said.
    ignored: counts what is none of these. parents: filled with the parent of every span,
    calls or not, both as request_id writes them, "" for one that has none; spans whose ids cannot
    be read have no place.
    """
    counted = Counter[str]() if ignored is None else ignored
    if isinstance(message, Traces):
        for batch in message.resource_spans:
            resource = _flat([] if batch.resource is None else batch.resource.attributes)
            for scope in batch.scope_spans:
                for span in scope.spans:
                    if parents is not None:
                        parents.update(_place(span))
                    yield from _of_span(span, resource, counted)
        return
    for each in message.resource_logs:
        for part in each.scope_logs:
            for record in part.log_records:
                yield from _of_record(record, counted)


def rows_of(line: Mapping[str, Any]) -> Iterator[Row | Rejected]:
    """The rows of a batch that lies in a file as JSON, decoded. A call has its evaluations beside
    it: scores and labels, by name. Of a call within another only the outer one is a row, and an
    answer that is there twice counts once, and what cannot be read of it is refused alone.

    Raises AgentError where the line is no batch.
    """
    signal: Signal = "logs" if "resourceLogs" in line else "traces"
    try:
        message = msgspec.convert(line, MESSAGES[signal], strict=False)
    except (msgspec.ValidationError, RecursionError) as error:
        raise AgentError(f"this is no batch of OTLP: {error}") from None
    held = list(rows(message))
    read = [row for row in held if not isinstance(row, Rejected)]
    spans = {row["span_id"] for row in read if row["kind"] == "call"}
    scores: dict[str, Row] = {}
    for row in read:
        if row["kind"] == "evaluation" and row["span_id"] in spans and not row["failed"]:
            beside = scores.setdefault(row["span_id"], {"scores": {}, "labels": {}})
            for field in ("score", "label"):
                if row[field] is not None:
                    beside[f"{field}s"][row["name"]] = row[field]
    answers: set[str] = set()
    for each in held:
        if isinstance(each, Rejected):
            yield each
            continue
        row = each
        if row["kind"] == "evaluation" and row["span_id"] not in spans:
            yield row
        if row["kind"] != "call" or row["parent_span_id"] in spans:
            continue
        answer = row["response_id"]
        if answer is None or answer not in answers:
            yield {**row, **scores.get(row["span_id"], {"scores": {}, "labels": {}})}
        if answer is not None:
            answers.add(answer)


def recognised(row: Mapping[str, Any]) -> bool:
    """Whether a row of a file is a batch of OTLP."""
    return "resourceSpans" in row or "resourceLogs" in row


def _of_span(span: Span, resource: Row, ignored: Counter[str]) -> Iterator[Row | Rejected]:
    try:
        attributes = _flat(span.attributes)
        row = _call(span, attributes, resource)
    except AgentError as error:
        yield Rejected(f"span {shown_sent(span.span_id)}: {error}")
        return
    if row is not None:
        yield row
    elif not any(event.name == EVALUATION_EVENT for event in span.events):
        ignored["spans"] += 1
    for event in span.events:
        if event.name != EVALUATION_EVENT:
            continue
        try:
            said = _flat(event.attributes)
            yield _evaluation(said, span.trace_id, span.span_id, event.time_unix_nano)
        except AgentError as error:
            yield Rejected(f"span {shown_sent(span.span_id)}: {EVALUATION_EVENT}: {error}")


def _of_record(record: LogRecord, ignored: Counter[str]) -> Iterator[Row | Rejected]:
    try:
        attributes = _flat(record.attributes)
        if EVALUATION_EVENT not in (record.event_name, attributes.get("event.name")):
            ignored["records"] += 1
            return
        time = _nanoseconds("timeUnixNano", record.time_unix_nano)
        time = time or _nanoseconds("observedTimeUnixNano", record.observed_time_unix_nano)
        yield _evaluation(attributes, record.trace_id, record.span_id, time)
    except AgentError as error:
        yield Rejected(f"{EVALUATION_EVENT}: {error}")


def _place(span: Span) -> Row:
    try:
        trace, name, parent = _ids(span)
    except AgentError:
        return {}
    return {f"{trace}-{name}": f"{trace}-{parent}" if parent else ""}


def _ids(span: Span) -> tuple[str, str, str | None]:
    """Of its trace, its own and of its parent. Raises AgentError."""
    trace, name = _hex("traceId", span.trace_id, 32), _hex("spanId", span.span_id, 16)
    if trace is None or name is None:
        raise AgentError("traceId and spanId: received nothing, expected hexadecimal digits")
    parent = _hex("parentSpanId", span.parent_span_id, 16)
    if parent == name:
        raise AgentError(f"parentSpanId: received {parent!r}, the id of the span itself")
    return trace, name, parent


def _call(span: Span, attributes: Row, resource: Row) -> Row | None:
    """The row of a span that had a model answer, or that names a decision; None of any other."""
    is_call = _is_call(attributes)
    decision = _text("decision_id", attributes)
    if not is_call and decision is None:
        return None
    trace, name, parent = _ids(span)
    row: Row = {
        "kind": "call" if is_call else "decision",
        "trace_id": trace,
        "span_id": name,
        "parent_span_id": parent,
    }
    if not is_call:
        token = _text("outcome_token", attributes)
        return {**row, "decision_id": decision, "outcome_token": token}
    start = _nanoseconds("startTimeUnixNano", span.start_time_unix_nano)
    end = _nanoseconds("endTimeUnixNano", span.end_time_unix_nano)
    status = span.status.code if span.status is not None else 0
    for field in _CALL_FIELDS:
        row[field] = _number(field, attributes) if field in _NUMBERS else _text(field, attributes)
    # OpenInference has these two only within what was sent and received, as JSON.
    if row["requested_model"] is None:
        row["requested_model"] = _inside(attributes.get("llm.invocation_parameters"), "model")
    if row["response_id"] is None and "openinference.span.kind" in attributes:
        inside = _inside(attributes.get("output.value"), "id")
        row["response_id"] = None if inside is None or len(inside) > LONGEST_ID else inside
    reasons = _found("finish_reason", attributes)
    error = _text("error", attributes)
    row |= {
        "request_id": f"{trace}-{name}",
        "model": _model(row["requested_model"], row["answered_model"]),
        "at": start / 1e9 if start else None,
        "seconds": (end - start) / 1e9 if start and end >= start else None,
        "finish_reason": reasons[0] if isinstance(reasons, list) and reasons else reasons or None,
        "error": error,
        "failed": error is not None or status in (2, "2", "STATUS_CODE_ERROR"),
        "answered": row["output_tokens"] is not None
        or (row["response_id"] is not None and row["answered_model"] is not None),
        "attributes": attributes,
        "resource": resource,
    }
    return row


def _is_call(attributes: Row) -> bool:
    operation = _found("operation", attributes)
    if operation is not None:
        return operation in CALLS
    # The oldest spans of a model call name no operation.
    return "gen_ai.system" in attributes and "gen_ai.request.model" in attributes


def _model(requested: str | None, answered: str | None) -> str | None:
    """Who answered, by the name that was asked for: providers answer with the dated name of the
    model, gateways with the name of another one where they fell back."""
    if requested is None or answered is None:
        return answered or requested
    plain = requested.rpartition("/")[2].removesuffix("-latest")
    bare = answered.rpartition("/")[2]
    same = bare == plain or (bare.startswith(plain) and _DATED.fullmatch(bare, len(plain)))
    return requested if same else answered


class _Inside(msgspec.Struct):
    model: str | None = None
    id: str | None = None


_decode_inside = msgspec.json.Decoder(_Inside).decode


def _inside(text: Any, name: Literal["model", "id"]) -> str | None:
    """A text in a JSON object that an attribute holds, None where there is none."""
    if not isinstance(text, str) or not text.startswith("{"):
        return None
    try:
        value: str | None = getattr(_decode_inside(text), name)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    return value or None


def _evaluation(attributes: Row, trace: str, span: str, time: int | str) -> Row:
    name = _text("evaluation", attributes)
    if name is None:
        raise AgentError("gen_ai.evaluation.name: received nothing, expected a name")
    at = _nanoseconds("timeUnixNano", time)
    return {
        "kind": "evaluation",
        "trace_id": _hex("traceId", trace, 32),
        "span_id": _hex("spanId", span, 16),
        "response_id": _text("response_id", attributes),
        "decision_id": _text("decision_id", attributes),
        "outcome_token": _text("outcome_token", attributes),
        "name": name,
        "score": _number("score", attributes),
        "label": _text("label", attributes),
        "failed": _text("error", attributes) is not None,
        "at": at / 1e9 if at else None,
    }


def _flat(attributes: Sequence[KeyValue]) -> Row:
    return {each.key: None if each.value is None else _plain(each.value) for each in attributes}


def _plain(value: AnyValue) -> Any:
    if value.string_value is not None:
        return value.string_value
    if value.int_value is not None:
        try:
            return int(_spelled(value.int_value))
        except ValueError:
            received = shown_sent(value.int_value)
            raise AgentError(f"intValue: {received} is no whole number") from None
    if value.double_value is not None:
        try:
            return float(_spelled(value.double_value))
        except ValueError:
            received = shown_sent(value.double_value)
            raise AgentError(f"doubleValue: {received} is no number") from None
    if value.bool_value is not None:
        return value.bool_value
    if value.array_value is not None:
        return [_plain(each) for each in value.array_value.values]
    if value.kvlist_value is not None:
        return _flat(value.kvlist_value.values)
    return value.bytes_value


def _spelled(value: float | str) -> float | str:
    """A number as JSON of Protobuf writes it. Raises ValueError for what only Python reads."""
    if isinstance(value, str) and not _SPELLED.fullmatch(value):
        raise ValueError
    return value


def _found(field: str, attributes: Row) -> Any:
    for name, _ in NAMES[field]:
        value = attributes.get(name)
        if value is not None and value != "":
            return value
    return None


def _text(field: str, attributes: Row) -> str | None:
    value = _found(field, attributes)
    if value is None or isinstance(value, str):
        if value is not None and field in _IDS and len(value) > LONGEST_ID:
            name = NAMES[field][0].attribute
            raise AgentError(f"{name}: received {len(value)} characters, at most {LONGEST_ID}")
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise AgentError(f"{NAMES[field][0].attribute}: received {shown_sent(value)}, expected text")


def _number(field: str, attributes: Row) -> float | int | None:
    value = _found(field, attributes)
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            value = False  # refused below
    # A score is refused with its value, where it is read as the reward.
    if field != "score" and isinstance(value, int) and not -(2**63) <= value < 2**63:
        value = False
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return None if value != value else value
    raise AgentError(f"{NAMES[field][0].attribute}: received what is no number")


def _nanoseconds(field: str, value: int | str) -> int:
    """Nanoseconds since the epoch, 0 where none are given."""
    try:
        time = int(value or 0)
    except ValueError:
        time = -1
    if not 0 <= time < 2**64:
        raise AgentError(f"{field}: received {shown_sent(value)}, expected nanoseconds")
    return time


def _hex(field: str, value: str, digits: int) -> str | None:
    """An id in lower-case hexadecimal digits, None where there is none. Some exporters write
    base64, as JSON of Protobuf elsewhere has it."""
    text = value.lower()
    if len(text) != digits or text.strip("0123456789abcdef"):
        try:
            # Of `digits / 2` bytes, with the padding.
            fits = len(value) == 4 * -(-digits // 6)
            text = base64.b64decode(value, validate=True).hex() if fits else ""
        except ValueError:  # of base64, or of text that is not ASCII
            text = ""
        if value and len(text) != digits:
            received = shown_sent(value)
            raise AgentError(f"{field}: received {received}, expected {digits} hexadecimal digits")
    return text if text.strip("0") else None
