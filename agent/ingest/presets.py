"""Logs that many people have: which path of their rows fills what, and what their rows are.

A `Preset` is a table of paths, so it can be printed and edited like any `[[ingest]]` table. What no
path can say (a difference of two times, a zero that means unknown, a cache hit) its `rows` adds to
each row under `derived`; with `derived.status` it says whether the row is a model's answer to a
request at all. Which column is which, and which only looks like it: docs/reading-other-logs.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from equipoise.agent.config.ingest import (
    FIELDS,
    IngestMapping,
    parse_path,
)
from equipoise.agent.errors import AgentError
from equipoise.agent.ingest.derived import (
    Row,
    of_dsjson,
    of_helicone,
    of_langfuse,
    of_langfuse_traces,
    of_litellm,
    of_openrouter,
    of_otlp,
    of_tensorzero,
    of_tensorzero_model,
)


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
    otherwise only failed ones belong to it. written: paths that together name an answer as its
    provider wrote it, where no flag tells what a cache handed out: it is of the first row's model.
    """

    name: str
    family: str
    holds: str
    about: str
    fields: Mapping[str, str]
    signs: tuple[str, ...]
    rows: Callable[[Row], Iterable[Row | AgentError]] | None = None
    once: Literal["trace", "request_id"] | None = None
    merged: bool = False
    written: tuple[str, ...] = ()
    _paths: tuple[Any, ...] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_paths", tuple(parse_path(sign) for sign in self.signs))

    def fits(self, row: Any) -> bool:
        """Whether a row of the file has this shape."""
        return isinstance(row, Mapping) and all(path.leads(row) for path in self._paths)


def recognise(rows: Iterable[Any], family: str | None = None) -> Preset | None:
    """The shape of these rows, None where fewer than half of them have one. The first hundred
    or so say enough.

    family: only its shapes, and one row of such a shape is enough. Of shapes that fit as many rows,
    the one with more signs.
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
    return PRESETS[best] if family is not None or 2 * fitting[best] >= count else None


def preset_rows(preset: Preset, row: Any) -> Iterator[Row | AgentError]:
    """The rows that a row of the file holds: those under `data` where it is a page of an API's
    answer; an error in the place of one that cannot be read. Raises AgentError where it is no row
    at all."""
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
        rows=of_litellm,
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
        rows=of_litellm,
        once="trace",
    ),
    Preset(
        name="langfuse",
        family="langfuse",
        holds="observations of Langfuse, from its API or an export",
        about=f"{_OBS}, unless a draw's probability was put into the metadata",
        fields=_OF_LANGFUSE,
        signs=("traceId | trace_id", "type", "startTime | start_time"),
        rows=of_langfuse,
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
        rows=of_langfuse_traces,
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
            "trace": "episode_id",
            "session": "episode_id",
            "prompt": "input.messages[role=user][-1].content",
            "answer": "output.raw | output",
            "seconds": "derived.seconds",
        },
        signs=("function_name", "variant_name", "episode_id"),
        rows=of_tensorzero,
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
        rows=of_tensorzero_model,
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
        rows=of_helicone,
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
        rows=of_openrouter,
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
            "model": "derived.action",
            "reward": "derived.reward",
            "at": "Timestamp",
            "status": "derived.status",
            "response_id": "EventId",
            "propensity": "_label_probability",
            "candidates": "derived.candidates",
            "keep_prob": "derived.keep_prob",
        },
        signs=("_label_cost", "_label_probability", "a", "c"),
        rows=of_dsjson,
    ),
    Preset(
        name="otlp",
        family="otlp",
        holds="batches of OpenTelemetry, as a collector's file exporter writes them",
        about=f"{_OBS}: a span that names a decision of an experiment is its outcome, and no row "
        "of its own",
        fields={
            **_MEASURED,
            "request_id": "request_id",
            "routed": "model",
            "at": "at",
            "unit_id": "unit_id",
            "model": "requested_model",
            "provider_model": "answered_model",
            "trace": "trace_id",
            "response_id": "response_id",
            "session": "conversation_id",
            "seconds": "seconds",
        },
        signs=("resourceSpans | resourceLogs",),
        rows=of_otlp,
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
        # Some servers number their answers from 0 to 999: an id alone is not enough.
        written=("response.id", "response.created"),
    ),
)

PRESETS: Mapping[str, Preset] = MappingProxyType({preset.name: preset for preset in _ALL})
FAMILIES: tuple[str, ...] = tuple(dict.fromkeys(preset.family for preset in _ALL))
"""What `--from` takes beside the names of presets."""


def fields_of(mapping: IngestMapping) -> dict[str, str]:
    """What fills the fields of a mapping's records: those of its preset and its own."""
    preset = PRESETS.get(mapping.preset or "")
    known = FIELDS[mapping.kind]
    given: dict[str, str] = {} if preset is None else dict(preset.fields)
    if mapping.kind == "decisions":
        # There it is the model that answered, which is what was drawn.
        given.pop("routed", None)
    return {name: path for name, path in given.items() if name in known} | mapping.fields
