"""How a row of somebody's log becomes a record: the `[[ingest]]` tables of equipoise.toml."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Literal, TypeAlias

import msgspec

from equipoise.agent.config.experiment import ExperimentConfig
from equipoise.agent.config.parts import Part
from equipoise.agent.errors import AgentError
from equipoise.agent.features.problems import Problem, listed, shown, suggestion
from equipoise.agent.ingest.paths import GRAMMAR, Path, parse_path
from equipoise.agent.ingest.values import reward_faults

Kind: TypeAlias = Literal["observations", "outcomes", "simulations"]

FIELDS: Mapping[Kind, tuple[str, ...]] = MappingProxyType(
    {
        "observations": ("routed", "reward", "request_id", "unit_id", "at"),
        "outcomes": ("request_id", "decision_id", "reward", "served", "attempt", "delivered", "at"),
        "simulations": ("context_id", "model", "cost", "at"),
    }
)
"""What a mapping can fill beside features and outputs."""

PRESETS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "lmsys-chat": {"request_id": "conversation_id", "routed": "model"},
        "wildchat": {
            "routed": "model",
            "at": "timestamp",
            "unit_id": "conversation[0].hashed_ip",
        },
        "openai": {
            "routed": "request.model",
            "at": "response.created",
            "unit_id": "request.user",
        },
    }
)
"""Fields of logs that many people have. Their rewards are yours: name the column you joined.

lmsys-chat, wildchat: the Parquet files of LMSYS-Chat-1M and WildChat; the text of a prompt is
`conversation[role=user][0].content`, of an answer `conversation[role=assistant][0].content`.
openai: a line for each call with the bodies of the chat completions API under `request` and
`response`; the prompt is `request.messages[role=user][-1].content`, the answer
`response.choices[0].message.content`, its length `response.usage.completion_tokens`.

A preset names rows by an id only where no two rows can share it. WildChat's conversation_hash is
one of the content, and the id of a response is served again with it from a cache; their rows are
named by their whole content, like all rows without an id (`Namer`). Where your ids are unique,
declare the path of `request_id`.
"""


class IngestMapping(Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A mapping by name.

    kind: of the records. preset: fields of a common log, which `fields` override. fields, features,
    outputs: name to path (`agent/ingest/paths.py`). models: the log's model names to ours, where
    they differ; rows of other models are rejected. rewards: values of the reward's column, as
    text, to rewards, where it holds words: `true` finds true, "TRUE" and 1, `1` finds "1.0" too.
    """

    name: str
    kind: Kind = "observations"
    preset: str | None = None
    fields: dict[str, str] = msgspec.field(default_factory=dict)
    features: dict[str, str] = msgspec.field(default_factory=dict)
    outputs: dict[str, str] = msgspec.field(default_factory=dict)
    models: dict[str, str] = msgspec.field(default_factory=dict)
    rewards: dict[str, float] = msgspec.field(default_factory=dict)

    @property
    def all_fields(self) -> dict[str, str]:
        """Fields with those of the preset."""
        taken = FIELDS[self.kind]
        preset = PRESETS.get(self.preset or "", {})
        return {name: path for name, path in preset.items() if name in taken} | self.fields

    @property
    def declared(self) -> dict[str, Path]:
        """The paths that the user wrote, by what they fill; a preset's may be absent."""
        return {
            f"{table}.{name}": parse_path(path)
            for table in ("fields", "features", "outputs")
            for name, path in getattr(self, table).items()
        }

    def faults(self) -> Iterator[Problem]:
        yield from reward_faults(self.rewards)
        if not self.name:
            yield Problem("name", shown(self.name), "a name", "`equipoise ingest --mapping NAME`")
        if self.preset is not None and self.preset not in PRESETS:
            limit = f"one of {', '.join(PRESETS)}"
            yield Problem("preset", shown(self.preset), limit, suggestion(self.preset, PRESETS))
        for name in self.fields:
            if name not in FIELDS[self.kind]:
                fix = suggestion(name, FIELDS[self.kind])
                limit = f"a field of {self.kind}"
                yield Problem("fields", shown(name), limit, fix, ("kind",))
        for table in ("fields", "features", "outputs"):
            for name, path in getattr(self, table).items():
                try:
                    parse_path(path)
                except AgentError:
                    yield Problem(f"{table}.{name}", shown(path), f"a path: {GRAMMAR}")


def mapping_faults(
    mappings: list[IngestMapping], experiment: ExperimentConfig
) -> Iterator[Problem]:
    """What only shows beside the experiment: models and features that it does not have."""
    declared = {"features": experiment.features.context, "outputs": experiment.features.outputs}
    names = [mapping.name for mapping in mappings]
    for at, mapping in enumerate(mappings):
        key = f"ingest[{at}]"
        if names.index(mapping.name) != at:
            yield Problem(f"{key}.name", shown(mapping.name), "each name once", "rename one")
        for theirs, ours in mapping.models.items():
            if ours not in experiment.model_names:
                limit = f"one of {listed(experiment.model_names)}"
                yield Problem(f"{key}.models", f"{shown(ours)} for {shown(theirs)}", limit)
        for table, features in declared.items():
            mapped, known = getattr(mapping, table), [feature.name for feature in features]
            for name in mapped:
                if name not in known:
                    limit = f"a name in features.{'context' if table == 'features' else 'outputs'}"
                    yield Problem(f"{key}.{table}", shown(name), limit, suggestion(name, known))
            for feature in features:
                needed = feature.missing is None and mapping.kind != "outcomes"
                if needed and feature.name not in mapped:
                    yield Problem(f"{key}.{table}.{feature.name}", "nothing", "a path", "add it")
