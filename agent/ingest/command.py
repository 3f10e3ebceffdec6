"""`equipoise ingest`: open the store, read the files, say what became of the rows."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import msgspec

from equipoise.agent.agent import Agent
from equipoise.agent.config import ConfigError
from equipoise.agent.config.file import ConfigFile, load_file
from equipoise.agent.errors import AgentError
from equipoise.agent.gateway import Gateway
from equipoise.agent.ingest.bulk import Ingested, Ingestion
from equipoise.agent.ingest.mapping import IngestMapping, Kind
from equipoise.agent.ingest.readers import STANDARD_INPUT, Format, format_of
from equipoise.agent.ingest.rejects import Rejects
from equipoise.agent.ingest.sinks import DaemonSink, Sink, StoreSink
from equipoise.agent.keyfile import key_path, read_key, write_key
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
    sources = [(name, _format(order, name)) for name in order.files]
    for name in order.files:
        if name != STANDARD_INPUT:
            open(name, "rb").close()
    schema = file.experiment.features
    with (
        Rejects(order.rejects) as rejects,
        _sink(order, file, kind) as sink,
        _progress() as progress,
    ):
        ingestion = Ingestion(sink, schema, kind, mapping, rejects, progress)
        for name, shape in sources:
            ingestion.add(name, shape)
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
    with SqliteStore(path) as store:
        key = read_key(path)
        if key is None:
            if store.settings():
                raise AgentError(f"the key of {path} is missing: restore {key_path(path)}")
            key = write_key(path)
        agent = Agent(file.experiment, store, key, at=time.time())
        yield StoreSink(Gateway(agent), kind)
        agent.checkpoint(time.time())


@contextmanager
def _progress() -> Iterator[Any]:
    """A line on a terminal with the rows read so far; nothing where standard error is a file."""
    if not sys.stderr.isatty():
        yield lambda read: None
        return
    from rich.console import Console

    with Console(stderr=True).status("reading") as shown:
        yield lambda read: shown.update(f"reading: {read:,} rows")
