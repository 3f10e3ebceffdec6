"""equipoise.toml: read and checked as a whole, and the example that `equipoise init` writes.

The experiment stands at the top level; `[service]`, `[[ingest]]` and `[capacity]` beside it. One
error lists every problem of every part.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from os import PathLike
from pathlib import Path
from typing import Annotated, Any

from equipoise.agent.config.experiment import ExperimentConfig
from equipoise.agent.config.ingest import IngestMapping, mapping_faults
from equipoise.agent.config.parts import Part
from equipoise.agent.config.service import ServiceSettings, ofrep_faults, retention_faults
from equipoise.agent.errors import ConfigError
from equipoise.agent.features.declarations import WRONG, bound, read
from equipoise.agent.features.values import Problem, listed, shown

MOST_PER_SECOND = 1e6


class CapacityConfig(Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `serve --check` reckons with. requests_per_second: expected traffic, on average; rated:
    share of requests whose reward ever comes, None where nobody said."""

    requests_per_second: Annotated[float, bound(gt=0.0, le=MOST_PER_SECOND)] = 10.0
    rated: Annotated[float, bound(gt=0.0, le=1.0)] | None = None


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """Everything a file declares."""

    experiment: ExperimentConfig
    service: ServiceSettings
    ingest: list[IngestMapping]
    capacity: CapacityConfig

    def mapping(self, name: str) -> IngestMapping:
        """The mapping of that name. Raises ConfigError with the names there are."""
        for mapping in self.ingest:
            if mapping.name == name:
                return mapping
        names = listed(mapping.name for mapping in self.ingest)
        raise ConfigError([f"ingest: no mapping is called {shown(name)}, expected one of {names}"])


def load_file(
    path: str | PathLike[str], overrides: Mapping[str, object] | None = None
) -> ConfigFile:
    """Read and check a TOML file. overrides: keys of `[service]` given on the command line.

    Raises ConfigError with every problem, the path in front.
    """
    try:
        data = tomllib.loads(Path(path).read_bytes().decode())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError([unreadable(error)], str(path)) from None
    return file_from_dict(data, overrides, str(path))


def file_from_dict(
    data: Mapping[str, Any],
    overrides: Mapping[str, object] | None = None,
    source: str = "configuration",
) -> ConfigFile:
    """The configuration that tables, lists, texts and numbers declare. Raises ConfigError."""
    rest = dict(data)
    parts = {name: rest.pop(name, {}) for name in ("service", "capacity")}
    mappings = rest.pop("ingest", [])
    if isinstance(parts["service"], dict):
        parts["service"] = parts["service"] | dict(overrides or {})
    sentences: list[str] = []
    experiment = None
    try:
        experiment = ExperimentConfig.from_builtins(rest, source)
    except ConfigError as error:
        sentences += error.problems
    problems: list[Problem] = []
    service = read(parts["service"], ServiceSettings, problems, "service")
    capacity = read(parts["capacity"], CapacityConfig, problems, "capacity")
    ingest = read(mappings, list[IngestMapping], problems, "ingest")
    if experiment is not None and ingest is not WRONG:
        problems += mapping_faults(ingest, experiment)
    if experiment is not None and service is not WRONG:
        units = experiment.units
        ttl = None if units is None else units.ttl
        problems += retention_faults(service.retention, experiment.reward.window, ttl)
        problems += ofrep_faults(service.ofrep, [model.name for model in experiment.models])
    if service is not WRONG and ingest is not WRONG and service.otlp is not None:
        problems += otlp_faults(service.otlp.mapping, ingest)
    sentences += map(str, problems)
    if sentences or experiment is None:
        raise ConfigError(sentences, source)
    return ConfigFile(experiment, service, ingest, capacity)


def otlp_faults(name: str, mappings: list[IngestMapping]) -> Iterator[Problem]:
    """What is wrong with the table that OTLP reads its spans by."""
    found = [mapping for mapping in mappings if mapping.name == name]
    if not found:
        limit = f"the name of an [[ingest]] table ({listed(each.name for each in mappings)})"
        yield Problem("service.otlp.mapping", shown(name), limit)
    elif found[0].kind != "observations":
        yield Problem("service.otlp.mapping", f"one of {found[0].kind}", "one of observations")


def unreadable(error: Exception) -> str:
    """A sentence about a file that cannot be opened, decoded or parsed."""
    if isinstance(error, OSError):
        return f"the file cannot be read: {error.strerror or error}"
    if isinstance(error, UnicodeDecodeError):
        return f"the file is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}"
    return f"the file is not TOML: {error}"


EXAMPLE = """\
# Equipoise beside a router that serves chats. Everything but name and models has a default.
# Check it with `equipoise serve --config equipoise.toml --check`. Every other key, such as limits
# on users and segments, [units], [certify] and [[guardrails]]: `equipoise reference configuration`.

name = "chat"

# What requests may be sent to. price: USD per request. A new version is a new treatment.
[[models]]
name = "large"
price = 0.02
version = "2026-10"

[[models]]
name = "small"
price = 0.002

# What comes back. A reward that has not come after `window` seconds is missing; certified
# intervals then take the worst case for either end, or a value you declare. Without `window` the
# agent waits for ever: one reward that never comes, and nothing after it is certified.
# Thumbs: where only some users rate, the worst case certifies little (3% unrated: no difference
# below 0.03) and, from half unrated on, nothing. Then declare what it means (docs/missing.md):
# missing = 0.0: an answer without a thumb counts as one without a thumb up.
# missing = "rated": the answer is about those who rate.
[reward]
low = 0.0
high = 1.0
window = 86400
missing = "worst-case"

# What is known of a request. Texts become numbers at once; no prompt is ever stored.
[[features.context]]
type = "text"
name = "prompt"
statistics = ["words", "code", "question"]

[[features.context]]
type = "category"
name = "plan"
values = ["free", "paid"]
missing = 0.0

# What is known of an answer.
[[features.outputs]]
type = "number"
name = "seconds"
low = 0.0
log = true

[[features.outputs]]
type = "number"
name = "tokens"
low = 0.0
log = true

# Which requests are randomized (gate), onto which model (assignment), and how sure to be.
[policy]
gate = "fixed-rate"
assignment = "certify"
rate = 0.1
estimator = "hierarchical"
delta = 0.05
epsilon = 0.01

# A hard stop, in randomized requests. Leave it out for none.
# Once it is decided, nothing is randomized any more; "ramp" and "continue" go on.
[budget]
requests = 20000
after_decision = "stop"

# The daemon. In mode "observe" it logs everything and randomizes nothing: a good way to begin.
[service]
store = "equipoise.db"
host = "127.0.0.1"
port = 8080
mode = "run"
durability = "process"
{tokens}
# Expected traffic, for `serve --check`.
[capacity]
requests_per_second = 10
# rated = 0.08  # the share of requests whose reward ever comes

# How `equipoise ingest --mapping NAME` reads logs that are not in our shape.
[[ingest]]
name = "requests"
preset = "openai"

[ingest.fields]
reward = "feedback.thumb"

[ingest.rewards]
up = 1.0
down = 0.0

[ingest.models]
"large-2026-10-01" = "large"

[ingest.features]
prompt = "request.messages[role=user][-1].content"
plan = "user.plan"

[ingest.outputs]
seconds = "latency_seconds"
tokens = "response.usage.completion_tokens"
"""

NO_TOKENS = """
# On loopback no token is needed; anywhere else there must be one. `equipoise init` makes them:
# [[service.tokens]]
# name = "router"
# scope = "route"
# sha256 = "the SHA-256 of the token"
"""


def example_text(tokens: Mapping[str, str] | None = None) -> str:
    """The example. tokens: scope to secret; the file holds their digests only.

    >>> "sha256" in example_text({"admin": "a secret"}), "a secret" in example_text()
    (True, False)
    """
    if tokens is None:
        return EXAMPLE.replace("{tokens}", NO_TOKENS.rstrip("\n") + "\n")
    tables = [
        f'\n[[service.tokens]]\nname = "{scope}"\nscope = "{scope}"\n'
        f'sha256 = "{sha256(secret.encode()).hexdigest()}"\n'
        for scope, secret in tokens.items()
    ]
    return EXAMPLE.replace("{tokens}", "".join(tables))
