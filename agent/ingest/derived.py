"""What no path of a log can say: worked out from each row, and added to it under `derived`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, TypeAlias, TypeVar
from uuid import UUID

from equipoise.agent.config.ingest import as_flag, as_number, as_seconds, parse_path
from equipoise.agent.errors import AgentError
from equipoise.agent.ingest import otlp

Row: TypeAlias = Mapping[str, Any]
T = TypeVar("T")

DERIVED: Final = "derived"
"""Of a row: what its preset has worked out."""
ANSWERED: Final = "answered"
CACHED: Final = "cached"
FAILED: Final = "failed"
UNACTIVATED: Final = "events that were not activated"
"""`derived.status` of a row. Only an answered one is an observation; any other text is the reason
why such rows are none, such as "of type SPAN"."""


COUNTS: Final = ("input_tokens", "output_tokens", "cost")
GUESSED_BY: Final = (
    *("stream", "custom_llm_provider"),
    "model_parameters.stream_options.include_usage",
)
"""Paths of LiteLLM by which `is_guessed` tells, the error apart."""

_parsed = lru_cache(maxsize=512)(parse_path)


def find(row: Any, path: str) -> Any:
    """The value at a path of a row, None where there is none."""
    return _parsed(path).find(row)


def _read(reader: Callable[[str, Any], T | None], row: Row, path: str) -> T | None:
    """What a reader makes of a value; in a field of the log's own, what it refuses is unknown."""
    try:
        return reader(path, find(row, path))
    except AgentError:
        return None


def _flag(row: Row, path: str) -> bool:
    return bool(_read(as_flag, row, path))


def _seconds(row: Row, path: str) -> float | None:
    """Of a field of milliseconds."""
    milliseconds = _read(as_number, row, path)
    return None if milliseconds is None else milliseconds / 1e3


def _between(row: Row, start: str, end: str) -> float | None:
    """Seconds from a time to another; None where one is absent or they are the wrong way round."""
    first, last = _read(as_seconds, row, start), _read(as_seconds, row, end)
    return last - first if first is not None and last is not None and last >= first else None


def _counts(
    row: Row, input_path: str, output_path: str, cost_path: str, priced: bool = True
) -> dict[str, float | None]:
    """Tokens and cost, where a zero that stands for unknown is unknown.

    Every request has input: 0 tokens in and 0 out is what gateways write for a stream without
    usage, and its cost of 0 follows from that. priced: whether the log knew a price.
    """
    tokens_in, tokens_out = _read(as_number, row, input_path), _read(as_number, row, output_path)
    cost = _read(as_number, row, cost_path)
    if not tokens_in and not tokens_out:
        tokens_in = tokens_out = None
    if not cost and (tokens_in is None or not priced):
        cost = None
    return {"input_tokens": tokens_in, "output_tokens": tokens_out, "cost": cost}


def _with(row: Row, derived: dict[str, Any]) -> Row:
    return {**row, DERIVED: derived}


_CHATS = ("completion", "responses", "anthropic_messages", "generate_content")
_STOPPED = "client disconnected"
_USAGE_IF_ASKED = frozenset(
    {"openai", "azure", "hosted_vllm", "openai_like", "custom_openai", "text-completion-openai"}
)
"""Providers of LiteLLM whose streams have usage only with `stream_options.include_usage`."""


def was_left(error: Any) -> bool:
    """Whether LiteLLM's `error_str` says that the user left the answer."""
    return _STOPPED in str(error or "").casefold()


def is_guessed(stream: Any, provider: Any, asked: Any, error: Any) -> bool:
    """Whether LiteLLM made up the tokens of an answer itself, from its text: of a stream that was
    left, and since 1.110 of one that did not ask for usage (0 before). Nothing marks them."""
    if error and was_left(error):
        return True
    return bool(stream and provider in _USAGE_IF_ASKED and not asked)


def of_litellm(row: Row) -> Iterator[Row]:
    """StandardLoggingPayload, or a row of LiteLLM_SpendLogs, whose `cache_hit` is the text "True",
    "False" or "None". `response_time` is the time to the first token where streamed, so the seconds
    are those between start and end; a model without a price has a cost of 0.0. Tokens and cost that
    LiteLLM has guessed are unknown."""
    priced = not find(row, "response_cost_failure_debug_info")
    call = str(find(row, "call_type") or "")
    status = CACHED if _flag(row, "cache_hit") else ANSWERED
    if call and not any(name in call for name in _CHATS):
        status = f"calls of {call[:40]}"
    elif find(row, "status | metadata.status") == "failure":
        status = FAILED
    error = find(row, "error_str")
    paths = ("prompt_tokens", "completion_tokens", "response_cost | spend")
    stream, provider, asked = (find(row, path) for path in GUESSED_BY)
    guessed = is_guessed(stream, provider, asked, error)
    counts = dict.fromkeys(COUNTS) if guessed else _counts(row, *paths, priced)
    seconds = _between(row, "startTime", "endTime")
    yield _with(row, {"status": status, "seconds": seconds, "stopped": was_left(error), **counts})


def of_langfuse(row: Row) -> Iterator[Row]:
    """Spans, events and tools are no answers. A cost of 0 without a price is unknown."""
    kind = str(find(row, "type") or "")
    counts = _counts(
        row,
        "usageDetails.input | usage_details.input | usage.input | promptTokens",
        "usageDetails.output | usage_details.output | usage.output | completionTokens",
        "totalCost | total_cost | calculatedTotalCost | costDetails.total | cost_details.total",
        bool(find(row, "costDetails | cost_details | modelId | model_id")),
    )
    status = CACHED if _flag(row, "metadata.cache_hit") else ANSWERED
    if kind != "GENERATION":
        status = f"of type {kind[:40] or 'nothing'}"
    elif find(row, "level") == "ERROR":
        status = FAILED
    elif _read(as_seconds, row, "endTime | end_time") is None:
        status = "without an end"
    seconds = _between(row, "startTime | start_time", "endTime | end_time")
    yield _with(row, {"status": status, "seconds": seconds, **counts})


def of_langfuse_traces(row: Row) -> Iterator[Row]:
    """A trace with its observations and scores inside; an observation is a row, the trace's user
    and session are its own."""
    observations = find(row, "observations")
    own = {name: find(row, name) for name in ("userId", "sessionId")}
    for each in observations if isinstance(observations, Sequence) else ():
        # A list of trace listings names observations by their ids only.
        if isinstance(each, Mapping):
            yield from of_langfuse({"traceId": find(row, "id"), **own, **each})


def of_tensorzero(row: Row) -> Iterator[Row]:
    """ChatInference and JsonInference: answers only; a failed inference is in no table."""
    seconds = _seconds(row, "processing_time_ms")
    yield _with(row, {"status": ANSWERED, "seconds": seconds, "at": _uuid_time(find(row, "id"))})


def of_tensorzero_model(row: Row) -> Iterator[Row]:
    yield _with(
        row,
        {
            "status": CACHED if _flag(row, "cached") else ANSWERED,
            "seconds": _seconds(row, "response_time_ms"),
            "at": _uuid_time(find(row, "id")),
            **_counts(row, "input_tokens", "output_tokens", "cost"),
        },
    )


def _uuid_time(text: Any) -> float | None:
    """Seconds since the epoch that a UUIDv7 begins with: `SELECT *` leaves out the column
    `timestamp`, which ClickHouse works out from the id."""
    try:
        uuid = text if isinstance(text, UUID) else UUID(str(text))
    except ValueError:
        return None
    return (uuid.int >> 80) / 1e3 if uuid.version == 7 else None


_NO_UUID = "00000000-0000-0000-0000-000000000000"


def of_helicone(row: Row) -> Iterator[Row]:
    """A hit refers to the request whose answer it repeats."""
    code, reference = _read(as_number, row, "response_status"), find(row, "cache_reference_id")
    hit = str(reference or _NO_UUID) != _NO_UUID
    failed = code is None or not 200 <= code < 300
    yield _with(
        row,
        {
            "status": FAILED if failed else CACHED if hit else ANSWERED,
            "seconds": _seconds(row, "delay_ms"),
            **_counts(row, "prompt_tokens", "completion_tokens", "costUSD | cost_usd | cost"),
        },
    )


def of_openrouter(row: Row) -> Iterator[Row]:
    """A row of the activity export, or an answer of the generation API, that has its row under
    `data`."""
    inner = find(row, "data")
    row = inner if isinstance(inner, Mapping) else row
    reason = str(find(row, "finish_reason_normalized | finish_reason") or "").casefold()
    yield _with(
        row,
        {
            "status": FAILED if reason == "error" else ANSWERED,
            "seconds": _seconds(row, "generation_time_ms | generation_time | latency"),
            "stopped": _flag(row, "cancelled"),
            **_counts(
                row,
                "native_tokens_prompt | tokens_prompt",
                "native_tokens_completion | tokens_completion",
                "cost_total | total_cost",
            ),
        },
    )


def of_dsjson(row: Row) -> Iterator[Row]:
    """A line of a decision service. Its labels win: what is in `o` was added up for them, and `p`
    is the whole distribution, of which `_label_probability` is the part of the labelled action."""
    actions, chances = find(row, "a"), find(row, "p")
    candidates = find(row, "c._multi")
    candidates = candidates if isinstance(candidates, Sequence) else ()
    label, cost = _read(as_number, row, "_label_Action"), _read(as_number, row, "_label_cost")
    names = [_action_name(each, at) for at, each in enumerate(candidates, 1)]
    drawn: dict[str, Any] | None = None
    if isinstance(actions, Sequence) and isinstance(chances, Sequence):
        drawn = {
            names[at - 1]: chance
            for at, chance in zip(actions, chances, strict=False)
            if isinstance(at, int) and 1 <= at <= len(names)
        }
        # Every candidate once, or nothing is known of the draw.
        drawn = drawn if len(drawn) == len(chances) == len(names) else None
    kept = _read(as_number, row, "pdrop")
    notes = [] if find(row, "o") else ["the service's default reward, nothing was observed"]
    if kept:
        notes.append("a log that was thinned out (pdrop)")
    at = int(label) if label is not None and label == int(label) else 0
    status = ANSWERED
    if "RewardValue" in row and "c" not in row:
        status = "rewards that joined no event"
    elif _flag(row, "_skipLearn"):
        status = UNACTIVATED
    elif find(row, "_outcomes") is not None:
        status = "events of several slots"
    yield _with(
        row,
        {
            "status": status,
            "action": names[at - 1] if 1 <= at <= len(names) else None,
            "features": candidates[at - 1] if 1 <= at <= len(names) else None,
            "reward": None if cost is None else 0.0 - cost,
            "candidates": drawn,
            "keep_prob": 1.0 - (kept or 0.0),
            "notes": notes,
        },
    )


def _action_name(action: Any, number: int) -> str:
    """Its tag or id; its number from 1, as in `a` and `_label_Action`, where it has none."""
    name = find(action, "_tag | i.id | id")
    return str(name) if isinstance(name, str | int) and name != "" else str(number)


def of_otlp(row: Row) -> Iterator[Row | AgentError]:
    """A batch of spans and log records. Instrumentations call a stream that its user left a
    failure: a call has failed only where no model answered. What cannot be read is an error in
    its place."""
    for each in otlp.rows_of(row):
        if isinstance(each, otlp.Rejected):
            yield AgentError(each.reason)
            continue
        status = ANSWERED
        if each["kind"] != "call":
            status = f"{each['kind']}s without their call"
        elif each["failed"] and not each["answered"]:
            status = FAILED
        counts = _counts(each, "input_tokens", "output_tokens", "cost")
        yield _with(each, {"status": status, **counts})
