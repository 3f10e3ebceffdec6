"""`equipoise ingest`: open the store, read the files, say what became of the rows."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import msgspec

from equipoise.agent.agent import Agent
from equipoise.agent.config import ConfigError
from equipoise.agent.config.file import ConfigFile, load_file
from equipoise.agent.errors import AgentError
from equipoise.agent.gateway import Gateway
from equipoise.agent.ingest.bulk import Ingested, Ingestion, check_paths
from equipoise.agent.ingest.mapping import IngestMapping, Kind
from equipoise.agent.ingest.readers import STANDARD_INPUT, Format, format_of
from equipoise.agent.ingest.rejects import Rejects
from equipoise.agent.ingest.sinks import DaemonSink, Sink, StoreSink
from equipoise.agent.keyfile import key_path, read_key, write_key
from equipoise.store.errors import StoreInUseError
from equipoise.store.sqlite import SqliteStore

TOKEN_VARIABLE = "EQUIPOISE_TOKEN"


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What to read and where to put it; as the options of the command."""

    files: list[str]
    config: Path
    store: Path | None = None
    kind: str | None = None
    mapping: str | None = None
    format: str | None = None
    rejects: Path | None = None
    url: str | None = None


def run(order: Order) -> tuple[Ingested, Rejects]:
    """Take the files in, in their order.

    Everything that can be known beforehand is checked before the store is touched. Raises
    ConfigError, AgentError, StoreError or OSError; batches that were taken in before stay, and
    the same command goes on from there.
    """
    file = load_file(order.config)
    mapping = None if order.mapping is None else file.mapping(order.mapping)
    kind = _kind(order, mapping)
    for name in order.files:
        if name != STANDARD_INPUT:
            open(name, "rb").close()
    apart = _apart(order.files)
    sources = [(name, _format(order, name)) for name, _ in apart]
    check_paths(mapping, sources)
    schema = file.experiment.features
    with (
        Rejects(order.rejects) as rejects,
        _sink(order, file, kind) as sink,
        _progress() as progress,
    ):
        missing = file.experiment.reward.missing_value
        ingestion = Ingestion(sink, schema, kind, mapping, rejects, progress, missing)
        for (name, shape), (_, copy) in zip(sources, apart, strict=True):
            ingestion.add(name, shape, copy)
    return ingestion.result, rejects


def _kind(order: Order, mapping: IngestMapping | None) -> Kind:
    if mapping is None:
        return cast(Kind, order.kind or "observations")
    if order.kind is not None and order.kind != mapping.kind:
        raise ConfigError(
            [f"ingest: mapping {mapping.name} is of {mapping.kind}, not {order.kind}"]
        )
    return mapping.kind


def _format(order: Order, name: str) -> Format:
    return format_of(name) if order.format is None else cast(Format, order.format)


@contextmanager
def _sink(order: Order, file: ConfigFile, kind: Kind) -> Iterator[Sink]:
    if order.url is not None:
        if order.store is not None:
            raise AgentError("--url and --store: the daemon has the store, leave one of them out")
        yield DaemonSink(order.url, os.environ.get(TOKEN_VARIABLE), kind)
        return
    path = Path(file.service.store) if order.store is None else order.store
    with _opened(path) as store:
        key = read_key(path)
        if key is None:
            if store.settings():
                raise AgentError(f"the key of {path} is missing: restore {key_path(path)}")
            key = write_key(path)
        agent = Agent(file.experiment, store, key, at=time.time())
        yield StoreSink(Gateway(agent), kind)
        agent.checkpoint(time.time())


def _opened(path: Path) -> SqliteStore:
    try:
        return SqliteStore(path)
    except StoreInUseError as error:
        raise AgentError(
            f"{error}: send them with --url http://HOST:PORT if that is a daemon"
        ) from None


def _apart(files: Sequence[str]) -> list[tuple[str, bool]]:
    """The files, each with whether it is a copy of the one before; copies follow their first."""
    groups: dict[object, list[str]] = {}
    sizes = Counter(os.path.getsize(name) for name in files if os.path.isfile(name))
    for at, name in enumerate(files):
        alone = not os.path.isfile(name) or sizes[os.path.getsize(name)] == 1
        groups.setdefault(at if alone else _digest(name), []).append(name)
    return [(name, at > 0) for group in groups.values() for at, name in enumerate(group)]


def _digest(name: str) -> bytes:
    with open(name, "rb") as file:
        return hashlib.file_digest(file, "blake2b").digest()


@contextmanager
def _progress() -> Iterator[Any]:
    """A line on a terminal with the rows read so far; nothing where standard error is a file."""
    if not sys.stderr.isatty():
        yield lambda read: None
        return
    from rich.console import Console

    with Console(stderr=True).status("reading") as shown:
        yield lambda read: shown.update(f"reading: {read:,} rows")
