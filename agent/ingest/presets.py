"""Logs that many people have: which path of their rows fills what, and what their rows are.

A `Preset` is a table of paths, so it can be printed and edited like any `[[ingest]]` table. What no
path can say (a difference of two times, a zero that means unknown, a cache hit) its `rows` adds to
each row under `derived`; with `derived.status` it says whether the row is a model's answer to a
request at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias, TypeVar
from uuid import UUID

from equipoise.agent.config.ingest import (
    FIELDS,
    IngestMapping,
    as_flag,
    as_number,
    as_seconds,
    parse_path,
)
from equipoise.agent.errors import AgentError

Row: TypeAlias = Mapping[str, Any]
T = TypeVar("T")

DERIVED: Final = "derived"
"""Of a row: what its preset has worked out."""
ANSWERED: Final = "answered"
CACHED: Final = "cached"
FAILED: Final = "failed"
"""`derived.status` of a row. Only an answered one is an observation; any other text is the reason
why such rows are none, such as "of type SPAN"."""


@dataclass(frozen=True, slots=True)
class Preset:
    """A shape of rows.

    name: as `preset` of an `[[ingest]]` table and `--from` say it. family: the product, whose
    shapes `--from FAMILY` tells apart. holds: what a row is. about: which rows could be EXP, and
    why the rest is OBS. fields: what to where in a row; beside the fields of observations (routed
    is who answered) these, where the log has them:

    - `status`: answered, cached, failed, or why the row is no answer; absent means answered
    - `model`: as it was asked for. `provider_model`: as the provider calls it
    - `trace`, `call_id`, `response_id`, `session`: ids that scores may name
    - `prompt`, `answer`: texts. `seconds`: to the last token. `cost`: USD. `input_tokens`,
      `output_tokens`; unknown is absent, never zero
    - `streamed`, `cached`, `stopped` (by the user): flags
    - `propensity`, `candidates`, `keep_prob`: of a draw, as the log claims it

    signs: paths that all lead somewhere in every row of this shape. rows: a row of the file to the
    rows that it holds, with `derived`; None where the row is what it is. once: the field whose id
    rows of one request share. merged: whether the last answered row stands for all that share it;
    otherwise only failed ones belong to it.
    """

    name: str
    family: str
    holds: str
    about: str
    fields: Mapping[str, str]
    signs: tuple[str, ...]
    rows: Callable[[Row], Iterable[Row]] | None = None
    once: Literal["trace", "request_id"] | None = None
    merged: bool = False
    _paths: tuple[Any, ...] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_paths", tuple(parse_path(sign) for sign in self.signs))

    def fits(self, row: Any) -> bool:
        """Whether a row of the file has this shape."""
        return isinstance(row, Mapping) and all(path.leads(row) for path in self._paths)


def recognise(rows: Iterable[Any], family: str | None = None) -> Preset | None:
    """The shape of these rows, None where fewer than half of them have one. The first hundred
    or so say enough.

    family: only its shapes. Of shapes that fit as many rows, the one with more signs.
    """
    presets = [preset for preset in PRESETS.values() if family in (None, preset.family)]
    fitting, count = Counter[str](), 0
    for row in rows:
        # A page of an API's answer is as many rows of its shape.
        page = row.get("data") if isinstance(row, Mapping) else None
        each = page[0] if isinstance(page, list) and page else row
        count += 1
        fitting.update(p.name for p in presets if p.fits(row) or p.fits(each))
    if not fitting:
        return None
    best = max(fitting, key=lambda name: (fitting[name], len(PRESETS[name].signs)))
    return PRESETS[best] if 2 * fitting[best] >= count else None


def preset_rows(preset: Preset, row: Any) -> Iterator[Row]:
    """The rows that a row of the file holds: those under `data` where it is a page of an API's
    answer. Raises AgentError where it is no row at all."""
    if not isinstance(row, Mapping):
        raise AgentError(f"expected an object, this is of type {type(row).__name__}")
    page = row.get("data")
    if isinstance(page, list) and not preset.fits(row):
        for each in page:
            yield from preset_rows(preset, each)
    elif preset.rows is None:
        yield row
    else:
        yield from preset.rows(row)


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


def _litellm(row: Row) -> Iterator[Row]:
    """StandardLoggingPayload, or a row of LiteLLM_SpendLogs, whose `cache_hit` is the text "True",
    "False" or "None". `response_time` is the time to the first token where streamed, so the seconds
    are those between start and end; a model without a price has a cost of 0.0."""
    priced = not find(row, "response_cost_failure_debug_info")
    call, error = str(find(row, "call_type") or ""), str(find(row, "error_str") or "")
    status = CACHED if _flag(row, "cache_hit") else ANSWERED
    if call and not any(name in call for name in _CHATS):
        status = f"calls of {call[:40]}"
    elif find(row, "status | metadata.status") == "failure":
        status = FAILED
    derived = {
        "status": status,
        "seconds": _between(row, "startTime", "endTime"),
        "stopped": _STOPPED in error.casefold(),
    }
    counts = ("prompt_tokens", "completion_tokens", "response_cost | spend")
    yield _with(row, derived | _counts(row, *counts, priced))


def _langfuse(row: Row) -> Iterator[Row]:
    """Spans, events and tools are no answers. A cost of 0 without a price is unknown."""
    kind = str(find(row, "type") or "")
    usage = "usageDetails | usage_details | usage"
    counts = _counts(
        row,
        f"{_each(usage, 'input')} | promptTokens",
        f"{_each(usage, 'output')} | completionTokens",
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


def _each(paths: str, name: str) -> str:
    return " | ".join(f"{path}.{name}" for path in paths.split(" | "))


def _langfuse_traces(row: Row) -> Iterator[Row]:
    """A trace with its observations and scores inside; an observation is a row, the trace's user
    and session are its own."""
    observations = find(row, "observations")
    own = {name: find(row, name) for name in ("userId", "sessionId")}
    for each in observations if isinstance(observations, Sequence) else ():
        # A list of trace listings names observations by their ids only.
        if isinstance(each, Mapping):
            yield from _langfuse({"traceId": find(row, "id"), **own, **each})


def _tensorzero(row: Row) -> Iterator[Row]:
    """ChatInference and JsonInference: answers only; a failed inference is in no table."""
    seconds = _seconds(row, "processing_time_ms")
    yield _with(row, {"status": ANSWERED, "seconds": seconds, "at": _uuid_time(find(row, "id"))})


def _tensorzero_model(row: Row) -> Iterator[Row]:
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


def _helicone(row: Row) -> Iterator[Row]:
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


def _openrouter(row: Row) -> Iterator[Row]:
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


def _dsjson(row: Row) -> Iterator[Row]:
    """A line of a decision service. Its labels win: what is in `o` was added up for them, and `p`
    is the whole distribution, of which `_label_probability` is the part of the labelled action."""
    actions, chances = find(row, "a"), find(row, "p")
    candidates = find(row, "c._multi")
    candidates = candidates if isinstance(candidates, Sequence) else ()
    label, cost = _read(as_number, row, "_label_Action"), _read(as_number, row, "_label_cost")
    names = [_action_name(each, at) for at, each in enumerate(candidates, 1)]
    drawn = None
    if isinstance(actions, Sequence) and isinstance(chances, Sequence):
        pairs = [
            (names[at - 1], chance)
            for at, chance in zip(actions, chances, strict=False)
            if isinstance(at, int) and 1 <= at <= len(names)
        ]
        drawn = dict(pairs) if len(pairs) == len(chances) == len(set(names)) else None
    kept = _read(as_number, row, "pdrop")
    notes = [] if find(row, "o") else ["the service's default reward, nothing was observed"]
    if kept:
        notes.append("a log that was thinned out (pdrop), each counted once")
    at = int(label) if label is not None and label == int(label) else 0
    status = ANSWERED
    if "RewardValue" in row and "c" not in row:
        status = "rewards that joined no event"
    elif _flag(row, "_skipLearn"):
        status = "events that were not activated"
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


_MESSAGES = "messages[role=user][-1].content"
_ANSWER = "response.choices[0].message.content"
_OBS = "all rows are OBS"
_MEASURED = {
    "status": "derived.status",
    "seconds": "derived.seconds",
    "cost": "derived.cost",
    "input_tokens": "derived.input_tokens",
    "output_tokens": "derived.output_tokens",
}
_OF_LITELLM = {
    "routed": "model_group | model",
    "at": "startTime",
    "model": "model_group",
    "provider_model": "model",
    "deployment": "model_id",
    "call_id": "litellm_call_id | metadata.litellm_call_id",
    "response_id": "response.id",
    "answer": _ANSWER,
    "cached": "cache_hit",
    **_MEASURED,
}
_OF_LANGFUSE = {
    "request_id": "id",
    "routed": "providedModelName | provided_model_name | model",
    "at": "startTime | start_time",
    "unit_id": "userId | user_id",
    "provider_model": "providedModelName | provided_model_name | model",
    "trace": "traceId | trace_id",
    "session": "sessionId | session_id",
    "prompt": "input.messages[role=user][-1].content | input[role=user][-1].content | input",
    "answer": "output.choices[0].message.content | output.content | output",
    **_MEASURED,
}
_CONVERSATION = {
    "prompt": "conversation[role=user][0].content",
    "answer": "conversation[role=assistant][0].content",
}

_ALL = (
    Preset(
        name="litellm",
        family="litellm",
        holds="LiteLLM's StandardLoggingPayload",
        about="a payload with the decision id of an experiment in its metadata or tags could be "
        f"EXP; otherwise {_OBS}: weights of a router say nothing of retries, fallbacks and "
        "cooldowns",
        fields={
            "request_id": "id",
            "unit_id": "end_user | metadata.user_api_key_end_user_id | model_parameters.user",
            "trace": "trace_id",
            "session": "session_id",
            "prompt": _MESSAGES,
            "streamed": "stream",
            "stopped": "derived.stopped",
            **_OF_LITELLM,
        },
        signs=("call_type", "response_cost", "startTime", "status"),
        rows=_litellm,
        once="trace",
    ),
    Preset(
        name="litellm-spend",
        family="litellm",
        holds="rows of LiteLLM_SpendLogs",
        about=f"{_OBS}: the table holds no probability",
        fields={
            "request_id": "request_id",
            "unit_id": "end_user",
            "trace": "session_id",
            "session": "session_id",
            "prompt": f"{_MESSAGES} | proxy_server_request.{_MESSAGES}",
            **_OF_LITELLM,
        },
        signs=("request_id", "spend", "startTime", "call_type"),
        rows=_litellm,
        once="trace",
    ),
    Preset(
        name="langfuse",
        family="langfuse",
        holds="observations of Langfuse, from its API or an export",
        about=f"{_OBS}, unless a draw's probability was put into the metadata",
        fields=_OF_LANGFUSE,
        signs=("traceId | trace_id", "type", "startTime | start_time"),
        rows=_langfuse,
        once="trace",
        merged=True,
    ),
    Preset(
        name="langfuse-traces",
        family="langfuse",
        holds="traces of Langfuse with their observations",
        about=f"{_OBS}, unless a draw's probability was put into the metadata",
        fields=_OF_LANGFUSE,
        signs=("observations", "timestamp", "id"),
        rows=_langfuse_traces,
        once="trace",
        merged=True,
    ),
    Preset(
        name="tensorzero",
        family="tensorzero",
        holds="TensorZero's ChatInference or JsonInference",
        about="the variant was drawn once an episode, by weights that no row holds and that "
        f"failures change: {_OBS}, an episode one unit",
        fields={
            "request_id": "id",
            "routed": "variant_name",
            "at": "derived.at | timestamp",
            "unit_id": "episode_id",
            "status": "derived.status",
            "model": "function_name",
            "trace": "episode_id",
            "session": "episode_id",
            "prompt": "input.messages[role=user][-1].content",
            "answer": "output.raw | output",
            "seconds": "derived.seconds",
        },
        signs=("function_name", "variant_name", "episode_id"),
        rows=_tensorzero,
    ),
    Preset(
        name="tensorzero-model",
        family="tensorzero",
        holds="TensorZero's ModelInference",
        about=f"{_OBS}: one inference may call several models, and no row holds a probability",
        fields={
            "request_id": "id",
            "routed": "model_name",
            "at": "derived.at | timestamp",
            "provider_model": "model_provider_name",
            "trace": "inference_id",
            "prompt": "input_messages[role=user][-1].content",
            "answer": "output",
            **_MEASURED,
            "cached": "cached",
        },
        signs=("inference_id", "model_name", "model_provider_name"),
        rows=_tensorzero_model,
        once="trace",
        merged=True,
    ),
    Preset(
        name="helicone",
        family="helicone",
        holds="requests of Helicone",
        about=f"{_OBS}, unless a draw's probability was sent as a property",
        fields={
            "request_id": "request_id",
            "routed": "model | response_model | request_model",
            "at": "request_created_at",
            "unit_id": "request_user_id",
            "reward": "feedback_rating",
            "model": "request_model",
            "response_id": "response_body.id | response_id",
            "session": "request_properties.Helicone-Session-Id",
            "prompt": f"request_body.{_MESSAGES}",
            "answer": "response_body.choices[0].message.content",
            **_MEASURED,
        },
        signs=("request_id", "request_created_at", "response_status"),
        rows=_helicone,
    ),
    Preset(
        name="openrouter",
        family="openrouter",
        holds="OpenRouter's activity export, or answers of its generation API",
        about=f"{_OBS}: the export names who answered, never who might have",
        fields={
            "request_id": "generation_id | id",
            "routed": "model_permaslug | model",
            "at": "created_at",
            "unit_id": "user | external_user",
            "response_id": "generation_id | id",
            **_MEASURED,
            "streamed": "streamed",
            "stopped": "derived.stopped",
        },
        signs=(
            "generation_id | data.id | id",
            "created_at | data.created_at",
            "cost_total | data.total_cost | total_cost",
            "tokens_prompt | data.tokens_prompt",
        ),
        rows=_openrouter,
    ),
    Preset(
        name="dsjson",
        family="dsjson",
        holds="lines of a Vowpal Wabbit decision service",
        about="each line holds the probability of its action: EXP where the mapping declares how "
        "the draws were made, OBS otherwise",
        fields={
            "request_id": "EventId",
            "routed": "derived.action",
            "reward": "derived.reward",
            "at": "Timestamp",
            "status": "derived.status",
            "response_id": "EventId",
            "propensity": "_label_probability",
            "candidates": "derived.candidates",
            "keep_prob": "derived.keep_prob",
        },
        signs=("_label_cost", "_label_probability", "a", "c"),
        rows=_dsjson,
    ),
    Preset(
        name="lmsys-chat",
        family="lmsys-chat",
        holds="LMSYS-Chat-1M",
        about=_OBS,
        fields={"request_id": "conversation_id", "routed": "model", **_CONVERSATION},
        signs=("conversation_id", "model", "conversation"),
    ),
    Preset(
        name="wildchat",
        family="wildchat",
        holds="WildChat",
        about=_OBS,
        fields={
            "routed": "model",
            "at": "timestamp",
            "unit_id": "conversation[0].hashed_ip",
            **_CONVERSATION,
        },
        signs=("conversation_hash", "model", "conversation"),
    ),
    Preset(
        name="openai",
        family="openai",
        holds="bodies of chat completions under `request` and `response`",
        about=_OBS,
        fields={
            "routed": "request.model",
            "at": "response.created",
            "unit_id": "request.user",
            "provider_model": "response.model",
            "response_id": "response.id",
            "prompt": f"request.{_MESSAGES}",
            "answer": _ANSWER,
            "input_tokens": "response.usage.prompt_tokens",
            "output_tokens": "response.usage.completion_tokens",
        },
        signs=("request.model", "response.choices"),
    ),
)

PRESETS: Mapping[str, Preset] = MappingProxyType({preset.name: preset for preset in _ALL})
FAMILIES: tuple[str, ...] = tuple(dict.fromkeys(preset.family for preset in _ALL))
"""What `--from` takes beside the names of presets."""


def fields_of(mapping: IngestMapping) -> dict[str, str]:
    """What fills the fields of a mapping's records: those of its preset and its own."""
    preset = PRESETS.get(mapping.preset or "")
    known = FIELDS[mapping.kind]
    given = {} if preset is None else preset.fields
    return {name: path for name, path in given.items() if name in known} | mapping.fields
