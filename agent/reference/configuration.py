"""docs/reference/configuration.md: every key of equipoise.toml, from the structs that read it.

Each table has an example that holds all of its keys. An example is read together with `BASE`, whose
tables it replaces where it has them too.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import msgspec

from equipoise.agent.config.experiment import ExperimentConfig
from equipoise.agent.config.file import CapacityConfig
from equipoise.agent.config.ingest import FIELDS, GRAMMAR, IngestMapping
from equipoise.agent.config.reload import RULES, Effect
from equipoise.agent.config.service import ServiceSettings
from equipoise.agent.features.text import STATISTICS
from equipoise.agent.ingest.presets import PRESETS
from equipoise.agent.monitors.check import DEFAULT_ACTIONS, Action
from equipoise.agent.reference.documented import Field, described, fields_of, is_list, structs_of

BASE = """\
name = "chat"
models = [{name = "large", price = 0.02}, {name = "small", price = 0.002}]
reward = {low = 0.0, high = 1.0, window = 86400}

[features]
context = [
  {type = "number", name = "words", low = 0, log = true},
  {type = "category", name = "plan", values = ["free", "paid"]},
]
outputs = [{type = "number", name = "seconds", low = 0}]
"""

EXAMPLES: Mapping[str, str] = {
    "": """
name = "chat"
checks = {drift = "new-era", fidelity = "report"}
""",
    "[[models]]": """
[[models]]
name = "large"
price = 0.02
version = "2026-10"
max_requests = 5000

[[models]]
name = "small"
price = 0.002

[[models]]
name = "tiny"
retired = true
""",
    "[reward]": """
[reward]
low = 0.0
high = 1.0
maximise = true
window = 86400
missing = "asked"
ask = 0.25
rated_share = 0.08
""",
    "[features]": """
[features]
interactions = [["words", "plan=paid"]]
context = [
  {type = "number", name = "words", low = 0, log = true},
  {type = "category", name = "plan", values = ["free", "paid"]},
]
outputs = [{type = "number", name = "seconds", low = 0}]
""",
    "number": """
[[features.outputs]]
type = "number"
name = "tokens"
low = 0
high = 100000
offset = 5.0
scale = 2.0
log = true
limit = 10.0
winsorize = true
missing = 0.0
""",
    "boolean": """
[[features.context]]
type = "boolean"
name = "has_image"
missing = 0.0
""",
    "category": """
[[features.context]]
type = "category"
name = "plan"
values = ["free", "paid"]
other = true
missing = 0.0
""",
    "text": """
[[features.context]]
type = "text"
name = "prompt"
statistics = ["words", "code", "question"]
max_chars = 20000
missing = 0.0
""",
    "ngrams": """
[[features.context]]
type = "ngrams"
name = "wording"
of = "words"
size = 8
longest = 2
max_chars = 20000
missing = 0.0
""",
    "vector": """
[[features.context]]
type = "vector"
name = "embedding"
length = 16
limit = 5.0
winsorize = true
missing = 0.0
""",
    "[policy]": """
[policy]
gate = "fixed-rate"
assignment = "top-two"
estimator = "hierarchical"
rate = 0.1
rate_min = 0.01
rate_max = 0.5
floor = 0.05
delta = 0.05
epsilon = 0.01
exclude = ["test-account", "user-17"]
""",
    "[budget]": """
[budget]
requests = 20000
money = 250.0
harm = 100.0
horizon = 1209600
planned = 15000
after_decision = "stop"
""",
    "[[budget.segments]]": """
[[budget.segments]]
name = "paying"
column = "plan=paid"
low = 0.5
high = 1.5
max_requests = 2000
""",
    "[budget.per_user]": """
[budget.per_user]
share = 0.2
""",
    "[certify]": """
[certify]
sequence = "bounded"
tuned_rows = 20000
limits = "name"
lifetime = false
""",
    "[[certify.segments]]": """
[[certify.segments]]
name = "paying"
column = "plan=paid"
low = 0.5
high = 1.5
""",
    "[[certify.policies]]": """
[[certify.policies]]
name = "large-for-long"
column = "words"
at_least = 4.0
model = "large"
otherwise = "small"
""",
    "[units]": """
[units]
ttl = 604800
""",
    "[[guardrails]]": """
[[guardrails]]
name = "slow"
low = 0.0
high = 1.0
limit = 0.1
direction = "at-most"
""",
    "[service]": """
[service]
store = "equipoise.db"
host = "127.0.0.1"
port = 8080
uds = "equipoise.sock"
uds_mode = "660"
base_path = "/equipoise"
mode = "run"
durability = "process"
key = "equipoise.db.key"
kill_switch = "stop.now"
anchor = "anchors.jsonl"
refresh_seconds = 1.0
refresh_outcomes = 1000
checkpoint_seconds = 60
expiry_seconds = 5
forecast_seconds = 60
shutdown_seconds = 10
log_level = "info"
names = ["equipoise.example"]
outcomes = "signed"
webhook = ["https://hooks.example/equipoise"]
""",
    "[[service.tokens]]": """
[[service.tokens]]
name = "router"
scope = "route"
env = "ROUTER_TOKEN"

[[service.tokens]]
name = "operator"
scope = "admin"
sha256 = "6f1f2b6f0d6b4a5c8e9d0a1b2c3d4e5f60718293a4b5c6d7e8f9012345678abc"

[[service.tokens]]
name = "reports"
token = "kept-in-a-file-that-nobody-else-reads"
""",
    "[service.limits]": """
[service.limits]
body_bytes = 1048576
bulk_bytes = 268435456
otlp_bytes = 16777216
packed_bytes = 16777216
rows = 1000
connections = 2048
header_seconds = 10
body_seconds = 30
bulk_seconds = 3600
idle_seconds = 75
store_seconds = 1
waiting_rows = 200000
rejects = 10000
decide_per_second = 500.0
analyst_seconds = 120
reads = 32
open_bytes = 16777216
""",
    "[service.retention]": """
[service.retention]
days = 90
archive = "archive"
delete = false
every_seconds = 3600
""",
    "[service.ofrep]": """
[service.ofrep]
routed = "large"
""",
    "[service.lanes]": """
[service.lanes]
folder = "/var/lib/equipoise/lanes"
authority = "http://10.0.0.7:8080"
lease_seconds = 10
publish_seconds = 0.5
ship_seconds = 0.05
stale_seconds = 60
""",
    "[service.otlp]": """
[service.otlp]
mapping = "spans"
evaluation = "Relevance"
only = {"gen_ai.agent.name" = "support"}
settle_seconds = 15
wait_seconds = 86400
waiting = 1000000

[[ingest]]
name = "spans"
features = {words = "attributes.app.words", plan = "resource.app.plan"}
outputs = {seconds = "seconds"}
""",
    "[service.shadow]": """
[service.shadow]
contexts = "contexts.jsonl"
endpoint = "http://127.0.0.1:8000/v1"
key_env = "MODEL_KEY"
budget_usd = 20.0
outputs = {seconds = "seconds"}
max_tokens = 1024
requests_per_minute = 60
concurrency = 2
attempts = 4
timeout_seconds = 60
every_seconds = 60

[[service.shadow.models]]
name = "large"
calls = "large-2026-10-01"
input_usd = 2.5
output_usd = 10.0
""",
    "[capacity]": """
[capacity]
requests_per_second = 10
rated = 0.08
""",
    "[[ingest]]": """
[[ingest]]
name = "requests"
kind = "observations"
preset = "openai"
fields = {reward = "feedback.thumb", request_id = "id"}
features = {words = "prompt_words", plan = "user.plan"}
outputs = {seconds = "latency_seconds"}
models = {"large-2026-10-01" = "large"}
rewards = {up = 1.0, down = 0.0}

[[ingest]]
name = "flag"
kind = "decisions"
drawn = "request"
shares = {large = 0.3, small = 0.7}
coverage = 0.4
fields = {model = "arm", reward = "thumb", request_id = "id", at = "time"}
features = {words = "prompt_words", plan = "user.plan"}
""",
}
EXAMPLES = {**EXAMPLES, "[[service.shadow.models]]": EXAMPLES["[service.shadow]"]}
"""By the heading of the table, or the `type` of a feature."""

_PARTS: Mapping[str, type[msgspec.Struct]] = {
    "": ExperimentConfig,
    "service": ServiceSettings,
    "capacity": CapacityConfig,
}
_EFFECTS: Mapping[Effect, str] = {
    "applied": "applied",
    "restart": "at the next start",
    "era": "a new era",
    "refused": "refused",
}


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the file. heading: as TOML writes it, or the `type` of a feature. path: of its
    keys, as `rule_of` takes it. fields: those that are no tables themselves."""

    heading: str
    path: str
    about: str
    fields: list[Field]


def tables() -> Iterator[Table]:
    """Every table of the file, in the order of the structs."""
    for path, struct in _PARTS.items():
        yield from _tables(struct, path, f"[{path}]" if path else "")
    yield _table(IngestMapping, "ingest[]", "[[ingest]]")


def _tables(struct: type[msgspec.Struct], path: str, heading: str) -> Iterator[Table]:
    yield _table(struct, path, heading)
    for field in fields_of(struct):
        where = f"{path}.{field.name}" if path else field.name
        inner = structs_of(field.kind)
        for each in inner:
            tag = each.__struct_config__.tag
            if tag is not None:
                if field.name == "context":
                    yield _table(each, "features", str(tag))
            elif is_list(field.kind):
                yield from _tables(each, f"{where}[]", f"[[{where}]]")
            else:
                yield from _tables(each, where, f"[{where}]")


def _table(struct: type[msgspec.Struct], path: str, heading: str) -> Table:
    fields = [
        field
        for field in fields_of(struct)
        if not structs_of(field.kind) or field.name in ("context", "outputs")
    ]
    return Table(heading, path, described(struct)[0], fields)


def base_with(example: str) -> dict[str, Any]:
    """The base and an example as one file, as tables: what the example has replaces the base's.
    A further feature comes beside those of the base of another name."""
    base, more = tomllib.loads(BASE), tomllib.loads(example)
    for side, features in more.get("features", {}).items():
        if side in ("context", "outputs") and "interactions" not in more["features"]:
            names = {feature["name"] for feature in features}
            kept = [each for each in base["features"][side] if each["name"] not in names]
            more["features"][side] = kept + features
    if "features" in more:
        more["features"] = base["features"] | more["features"]
    return {**base, **more}


def headings() -> list[str]:
    """Names of the tables, without brackets."""
    return [table.heading.strip("[]") for table in tables() if table.heading]


def page(only: str | None = None) -> str:
    """The whole page as Markdown, or what it says of one table and the tables in it."""
    sections = [] if only else [_INTRODUCTION, f"```toml\n{BASE}```\n"]
    for table in tables():
        if only and not f"{table.heading.strip('[]')}.".startswith(f"{only}."):
            continue
        sections.append(f"## {_title(table)}\n")
        if table.about:
            sections.append(f"{table.about}\n")
        sections.append("\n".join(_keys(table)) + "\n")
        sections += [f"{note}\n" for note in _notes(table.heading)]
        sections.append(f"```toml\n{EXAMPLES[table.heading].strip()}\n```\n")
    if not only:
        sections.append(_changes())
    return "\n".join(sections)


def _title(table: Table) -> str:
    if not table.heading:
        return "The experiment"
    if table.heading.startswith("["):
        return f"`{table.heading}`"
    return f'A feature of type `"{table.heading}"`'


def _keys(table: Table) -> Iterator[str]:
    choices = _choices(table.heading)
    for field in table.fields:
        effect, _ = RULES[_rule(table.path, field.name)]
        accepts = choices.get(field.name, field.accepts.removesuffix(", or null"))
        default = {None: "required", "null": "none unless given"}.get(
            field.default, f"default `{field.default}`"
        )
        if field.name in ("context", "outputs") and table.heading == "[features]":
            accepts, default = "a list of features, of the types below", "default `[]`"
        yield f"- **`{field.name}`**: {accepts}; {default}; a change: {_EFFECTS[effect]}."
        yield f"  {field.meaning}"


def _rule(path: str, name: str) -> str:
    """The key of `RULES` that a change of this key falls under, as `reload_plan` compares files."""
    if path == "features" and name in ("limit", "winsorize"):
        return "features.limits"
    if (path, name) == ("models[]", "name"):
        return "models"
    steps = f"{path}.{name}" if path else name
    while steps not in RULES:
        steps = steps[:-2] if steps.endswith("[]") else steps.rpartition(".")[0]
    return steps


def _choices(heading: str) -> dict[str, str]:
    """The names that registries hold, for keys that take one of them."""
    if heading == "[policy]":
        from equipoise.agent.estimators import FAMILIES
        from equipoise.policies.registry import ASSIGNMENTS, GATES

        import_module("equipoise.policies.gates")
        import_module("equipoise.policies.assignments")
        registries = {"gate": GATES, "assignment": ASSIGNMENTS, "estimator": FAMILIES}
        return {key: _listed(registry) for key, registry in registries.items()}
    if heading == "text":
        return {"statistics": f"a list of: {_listed(STATISTICS)}"}
    if heading == "[[ingest]]":
        return {"preset": _listed(PRESETS)}
    return {}


def _notes(heading: str) -> Iterator[str]:
    if heading == "":
        yield f"`checks` takes one of the actions {_listed(Action)} for each of these checks:"
        yield "\n".join(f"- `{name}`: `{action}`" for name, action in DEFAULT_ACTIONS.items())
        yield "What each check asks is on the page [monitors](../monitors.md)."
    elif heading == "text":
        yield "\n".join(
            f"- `{name}`: {(statistic.__doc__ or '').strip()}"
            for name, statistic in STATISTICS.items()
        )
    elif heading == "[[ingest]]":
        yield f"A path is written as {GRAMMAR}."
        yield "\n".join(f"- fields of {kind}: {_listed(names)}" for kind, names in FIELDS.items())
        yield "Presets, each with what a mapping can fill from it:"
        yield "\n".join(
            f"- `{name}`, {preset.holds}: "
            + ", ".join(f"{field} from `{path}`" for field, path in preset.fields.items())
            for name, preset in PRESETS.items()
        )


def _listed(names: Any) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _changes() -> str:
    rows = [f"| `{key}` | {_EFFECTS[effect]} | {why} |" for key, (effect, why) in RULES.items()]
    return "\n".join([_CHANGES, "| key | effect | why |", "|---|---|---|", *rows, ""])


_INTRODUCTION = """\
# Configuration

Every key of `equipoise.toml`, written by `equipoise reference` from what the program reads; do not
edit it by hand. `equipoise init` writes a file to begin with, and `equipoise serve --config FILE
--check` finds every mistake in one. Everything but `name` and `models` may be left out.

After each key stand the values it takes, its default, and what a change of it means to an
experiment that has begun ([the last section](#what-a-change-means)). Each example holds every key
of its table, and is accepted together with this file, whose tables it replaces:
"""
_CHANGES = """\
## What a change means

`SIGHUP` makes the daemon read its file again. The longest key below that a changed key begins with
says what follows: *applied*, at once or from the next rule on; *a new era*, in which certified sums
start afresh, and which begins when the daemon is started again where models were added or retired;
*refused*, the old value stays. `models[]` is a model that is added.
"""
