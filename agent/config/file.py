"""A whole `equipoise.toml`: the experiment, the daemon, the mappings of logs, the capacity.

The experiment stands at the top level; `[service]`, `[[ingest]]` and `[capacity]` beside it. The
file is checked as a whole: one error lists every problem of every part.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from equipoise.agent.config.error import ConfigError
from equipoise.agent.config.experiment import ExperimentConfig
from equipoise.agent.config.load import unreadable
from equipoise.agent.config.parts import Part
from equipoise.agent.features.declarations import WRONG, read
from equipoise.agent.features.problems import Problem, listed, shown
from equipoise.agent.ingest.mapping import IngestMapping, mapping_faults
from equipoise.agent.service.retention import retention_faults
from equipoise.agent.service.settings import ServiceSettings

MOST_PER_SECOND = 1e6


class CapacityConfig(Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `serve --check` reckons with. requests_per_second: expected traffic, on average."""

    requests_per_second: float = 10.0

    def faults(self) -> Iterator[Problem]:
        if not 0 < self.requests_per_second <= MOST_PER_SECOND:
            limit = f"a number above 0, at most {MOST_PER_SECOND:g}"
            yield Problem("requests_per_second", shown(self.requests_per_second), limit)


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
    found: list[Problem] = []
    service = read(parts["service"], ServiceSettings, found, "service")
    capacity = read(parts["capacity"], CapacityConfig, found, "capacity")
    ingest = read(mappings, list[IngestMapping], found, "ingest")
    if experiment is not None and ingest is not WRONG:
        found += mapping_faults(ingest, experiment)
    if experiment is not None and service is not WRONG:
        units = experiment.units
        ttl = None if units is None else units.ttl
        found += retention_faults(service.retention, experiment.reward.window, ttl)
    sentences += map(str, found)
    if sentences or experiment is None:
        raise ConfigError(sentences, source)
    return ConfigFile(experiment, service, ingest, capacity)
