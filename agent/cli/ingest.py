"""`equipoise ingest`: usage logs, outcomes and replays from files into a store."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import msgspec
import typer

from equipoise.agent.agent import Agent
from equipoise.agent.config import ConfigError
from equipoise.agent.config.file import ConfigFile, load_file
from equipoise.agent.config.ingest import IngestMapping, Kind
from equipoise.agent.errors import AgentError
from equipoise.agent.ingest.bulk import Ingested, Ingestion, Rejects, check_paths
from equipoise.agent.ingest.readers import STANDARD_INPUT, Format, format_of
from equipoise.agent.ingest.sinks import DaemonSink, Sink, StoreSink
from equipoise.agent.maintenance.key_file import open_key
from equipoise.agent.record_adapter import Gateway
from equipoise.store.errors import StoreInUseError
from equipoise.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from equipoise.agent.ingest.bulk import Ingested, Rejects


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
        agent = Agent(file.experiment, store, open_key(store), at=time.time())
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


KINDS = ("observations", "outcomes", "simulations")
FORMATS = ("jsonl", "csv", "parquet")


def ingest(
    files: Annotated[list[str], typer.Argument(help="Files to read; - for standard input.")],
    config: Annotated[Path, typer.Option(help="The configuration.")] = Path("equipoise.toml"),
    store: Annotated[
        Path | None,
        typer.Option(help="The store, made where there is none.", show_default="service.store"),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            help="observations (usage log), outcomes, or simulations (replays).",
            metavar="|".join(KINDS),
            show_default="that of the mapping, or observations",
        ),
    ] = None,
    mapping: Annotated[
        str | None, typer.Option(help="Name of an [[ingest]] table, for logs in another shape.")
    ] = None,
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="jsonl, csv or parquet.",
            metavar="|".join(FORMATS),
            show_default="by suffix",
        ),
    ] = None,
    rejects: Annotated[
        Path | None, typer.Option(help="File for refused rows: JSON lines with row and reason.")
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(help="Send the rows to this daemon; EQUIPOISE_TOKEN may hold its token."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Take rows of files into a store, each once however often the file is read.

    JSON lines have the names of our records; tables have columns x_NAME and y_NAME for features
    and outputs; other logs need a mapping. A row counts once by its request_id, or else by its
    content: the same again is a repeat, other content under a known id is refused, and
    both rows are named. Rows without a reward are counted and left out, unless reward.missing
    declares their value. Refused rows do not stop the others. While a daemon holds the store, send
    the rows to it with --url.

    Exit code 0: all rows are in; 1: some were refused; 2: a file or an option is wrong.

    Example: equipoise ingest usage.jsonl --config equipoise.toml --store experiment.db

    Example: equipoise ingest replays.parquet --kind simulations --url http://127.0.0.1:8080

    Example: zcat log.gz | equipoise ingest - --mapping requests --rejects rejects.jsonl
    """

    for name, value, known in (("--kind", kind, KINDS), ("--format", format_, FORMATS)):
        if value is not None and value not in known:
            raise typer.BadParameter(f"{value!r} is not one of {', '.join(known)}", param_hint=name)
    result, refused = run(
        Order(
            files=files,
            config=config,
            store=store,
            kind=kind,
            mapping=mapping,
            format=format_,
            rejects=rejects,
            url=url,
        )
    )
    _print(result, refused, rejects, as_json)
    if result.rejected:
        raise typer.Exit(1)


def _print(result: Ingested, refused: Rejects, path: Path | None, as_json: bool) -> None:
    import msgspec

    if as_json:
        facts = {**msgspec.to_builtins(result), "rejects": refused.first}
        for name in ("unrated", "left_out", "empty"):
            if not facts[name]:
                del facts[name]
        typer.echo(msgspec.json.encode(facts).decode())
        return
    typer.echo(
        f"{result.accepted:,} rows are new, {result.duplicates:,} were there before"
        + (f", {result.late:,} came too late" if result.late else "")
        + (f", {result.rejected:,} were refused" if result.rejected else "")
    )
    if result.unrated:
        typer.echo(
            f"{result.unrated:,} have no reward and were left out: a usage row teaches by its "
            "reward; declare reward.missing if a row without one has a known value"
        )
    if result.left_out:
        parts = ", ".join(f"{count:,} {kind}" for kind, count in result.left_out.items())
        typer.echo(f"contents have parts that are no text and were left out: {parts}")
    if result.empty:
        names = ", ".join(result.empty)
        typer.echo(f"no row has a value of {names}: every row gets the value of a missing one")
    for reject in refused.first:
        typer.echo(f"{reject.source}, row {reject.row}: {reject.reason}", err=True)
    if result.rejected > len(refused.first):
        more = "" if path is not None else "; --rejects FILE lists them all"
        typer.echo(f"… and {result.rejected - len(refused.first):,} more{more}", err=True)
