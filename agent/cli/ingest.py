"""`equipoise ingest`: usage logs, outcomes and replays from files into a store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from equipoise.agent.ingest.bulk import Ingested, Rejects
    from equipoise.agent.ingest.joins import Joined

FAMILIES = (
    "litellm",
    "langfuse",
    "tensorzero",
    "helicone",
    "openrouter",
    "dsjson",
    "otlp",
    "lmsys-chat",
    "wildchat",
    "openai",
)
"""As in `agent/ingest/presets.py`, which this file does not import to print its help."""
KINDS = ("observations", "outcomes", "simulations", "decisions")
FORMATS = ("jsonl", "json", "csv", "parquet", "dsjson")


def ingest(
    files: Annotated[
        list[str] | None, typer.Argument(help="Files to read; - is standard input.")
    ] = None,
    config: Annotated[Path, typer.Option(help="The configuration file.")] = Path("equipoise.toml"),
    store: Annotated[
        str | None,
        typer.Option(
            help="The store, a file or URL; created if it does not exist.",
            show_default="service.store",
        ),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            help="What the rows are: a usage log, outcomes, offline replays, or drawn elsewhere.",
            metavar="|".join(KINDS),
            show_default="from the mapping, or observations",
        ),
    ] = None,
    mapping: Annotated[
        str | None, typer.Option(help="Name of an [[ingest]] table that describes the log.")
    ] = None,
    from_: Annotated[
        str | None,
        typer.Option(
            "--from",
            help=f"What wrote the log: {', '.join(FAMILIES)}.",
            metavar="PRODUCT",
        ),
    ] = None,
    show: Annotated[
        bool, typer.Option("--show", help="Print --from as an [[ingest]] table, and do nothing.")
    ] = False,
    scores: Annotated[
        list[str] | None,
        typer.Option(help="Join the rewards of this file by the ids of requests or traces."),
    ] = None,
    scores_from: Annotated[
        str | None,
        typer.Option(
            help="Name of an [[ingest]] table of kind outcomes that describes the scores.",
            show_default="ids and values by the names that gateways give them",
        ),
    ] = None,
    score: Annotated[
        str | None, typer.Option(help="Which score, where a file of scores holds several.")
    ] = None,
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="Format of the files.",
            metavar="|".join(FORMATS),
            show_default="by file suffix",
        ),
    ] = None,
    rejects: Annotated[
        Path | None,
        typer.Option(help="Write refused rows here: row number and reason, as JSON lines."),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(help="Send the rows to this daemon, with the token in EQUIPOISE_TOKEN."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Read log files into a store, each row once.

    JSON lines use the field names of Equipoise; tables have columns x_NAME for features and y_NAME
    for outputs; logs of gateways are read with --from, any other log needs a mapping. Files may be
    compressed (.gz, .zst), and JSON may be lines or a list. A row is identified by its request_id,
    or by its content if it has none: reading it again changes nothing, and different content under
    the same id is refused with both rows named. Rows without a reward are counted and skipped,
    unless reward.missing declares their value. Refused rows do not stop the others. If a daemon has
    the store open, send the rows to it with --url.

    Exit code 0: all rows are in; 1: some were refused; 2: a file or an option is wrong.

    Example: equipoise ingest usage.jsonl --store experiment.db

    Example: equipoise ingest usage.csv --url http://127.0.0.1:8080

    Example: zcat log.gz | equipoise ingest - --mapping requests

    Example: equipoise ingest litellm.jsonl --from litellm --scores thumbs.csv

    Example: equipoise ingest litellm.jsonl --from litellm --show
    """
    from equipoise.agent.ingest.bulk import Order, run, table

    if show and from_ is None:
        raise typer.BadParameter("say which table, such as --from litellm", param_hint="--show")
    if not files and not show:
        raise typer.BadParameter("name a file, or - for standard input", param_hint="FILES")
    for name, value, choices in (("--kind", kind, KINDS), ("--format", format_, FORMATS)):
        if value is not None and value not in choices:
            raise typer.BadParameter(
                f"{value!r} is not one of {', '.join(choices)}", param_hint=name
            )
    order = Order(
        files=files or [],
        config=config,
        store=store,
        kind=kind,
        mapping=mapping,
        preset=from_,
        format=format_,
        scores=scores or [],
        scores_from=scores_from,
        score=score,
        rejects=rejects,
        url=url,
    )
    if show:
        typer.echo(table(order), nl=False)
        return
    result, refused = run(order)
    _print(result, refused, rejects, as_json)
    if refused.count:
        raise typer.Exit(1)


def _print(result: Ingested, refused: Rejects, path: Path | None, as_json: bool) -> None:
    import msgspec

    from equipoise.store.words import plural, verb

    if as_json:
        facts = {**msgspec.to_builtins(result), "rejects": refused.first}
        if not facts["preset"] and not facts["scores"]:
            del facts["rows"]
        for name in (
            "unrated",
            "decided",
            "skipped",
            "left_out",
            "empty",
            "notes",
            "scores",
            "preset",
            "drawn",
        ):
            if not facts[name]:
                del facts[name]
        typer.echo(msgspec.json.encode(facts).decode())
        return
    typer.echo(
        f"{plural(result.accepted, 'row')} {verb(result.accepted, 'is', 'are')} new,"
        f" {result.duplicates:,} {verb(result.duplicates, 'was', 'were')} there before"
        + (f", {result.late:,} came too late" if result.late else "")
        + (
            f", {result.rejected:,} {verb(result.rejected, 'was', 'were')} refused"
            if result.rejected
            else ""
        )
    )
    if result.drawn:
        typer.echo(f"Drawn elsewhere: {result.drawn}.")
    if result.preset:
        from equipoise.agent.ingest.presets import PRESETS

        preset = PRESETS[result.preset]
        typer.echo(f"read as {preset.holds}" + ("" if result.drawn else f": {preset.about}"))
    if result.skipped:
        total = sum(result.skipped.values())
        reasons = ", ".join(f"{count:,} {why}" for why, count in result.skipped.most_common())
        typer.echo(
            f"{plural(total, 'row')} {verb(total, 'is no observation', 'are no observations')}: "
            f"{reasons}"
        )
    for note, count in result.notes.most_common():
        typer.echo(f"{plural(count, 'row')} of {note}")
    if result.unrated:
        joined = "" if result.scores is not None or not result.preset else ", or join --scores FILE"
        typer.echo(
            f"{plural(result.unrated, 'row')} without a reward"
            f" {verb(result.unrated, 'was', 'were')} left out: a usage row teaches by its "
            f"reward; declare reward.missing if a row without one has a known value{joined}"
        )
    if result.scores is not None:
        _print_scores(result.scores)
    if result.decided:
        typer.echo(
            f"{plural(result.decided, 'row')} {verb(result.decided, 'is', 'are')} of requests that "
            "were decided here and were left out: a request counts once; report what came of it "
            "with --kind outcomes"
        )
    if result.left_out:
        parts = ", ".join(f"{count:,} {kind}" for kind, count in result.left_out.items())
        typer.echo(f"contents have parts that are no text and were left out: {parts}")
    if result.empty:
        names = ", ".join(result.empty)
        typer.echo(f"no row has a value of {names}: every row gets the value of a missing one")
    for reject in refused.first:
        typer.echo(f"{reject.source}, row {reject.row}: {reject.reason}", err=True)
    if refused.count > len(refused.first):
        more = "" if path is not None else "; --rejects FILE lists them all"
        typer.echo(f"… and {refused.count - len(refused.first):,} more{more}", err=True)


def _print_scores(scores: Joined) -> None:
    from equipoise.store.words import plural

    parts = (
        (scores.superseded, "superseded by a later one of the same row"),
        (scores.others, "of another name"),
        (scores.left_out, "of rows that are no observations"),
        (scores.unmatched, "of no row of the log"),
        (scores.refused, "refused"),
    )
    rest = "".join(f", {count:,} {what}" for count, what in parts if count)
    typer.echo(f"{plural(scores.read, 'score')}: {scores.joined:,} joined{rest}")
