"""`equipoise audit`, `backup`, `restore`, `export`, `repair`: commands that look after a store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from equipoise.agent.maintenance.audit import Audit


def audit(
    store: Annotated[Path, typer.Argument(help="The store (a SQLite file).")],
    anchor: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE|BACKUP", help="Compare with these anchors. May be given more than once."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Check that a store holds what was written to it, and recompute every decision.

    Every row against the hash chain; every probability from its rule and every draw from its
    uniform (with the key file beside the store the uniforms too); why each decision was served as
    routed; outcomes once a part. What is not proven is listed.
    Exit code 0: clean; 1: faults were found; 2: the store cannot be read.

    Example: equipoise audit experiment.db --anchor anchors.jsonl
    """
    from dataclasses import asdict

    from rich.console import Console

    from equipoise.agent.cli.stores import reading
    from equipoise.agent.maintenance.audit import audit as run
    from equipoise.agent.maintenance.audit_chain import read_anchors
    from equipoise.agent.maintenance.key_file import read_key

    anchors = [each for path in anchor or () for each in read_anchors(path)]
    with reading(store) as (opened, config), Console(stderr=True).status("auditing") as shown:
        result = run(
            opened,
            config,
            read_key(store),
            lambda rows: shown.update(f"auditing: {rows:,} of {opened.next_seq:,} rows"),
            anchors,
        )
    if as_json:
        import msgspec

        typer.echo(msgspec.json.encode({**asdict(result), "clean": result.clean}).decode())
    else:
        for line in _sentences(result):
            typer.echo(line)
    if not result.clean:
        raise typer.Exit(1)


def _sentences(result: Audit) -> list[str]:
    said = []
    if result.begins:
        said.append(
            f"the log begins at row {result.begins:,}; SHA-256 of what came before: {result.digest}"
        )
    said += [f"lost: {sentence}" for sentence in result.losses]
    if result.unchecked:
        said.append(f"{result.unchecked:,} decisions follow one that was removed: not checked")
    said.append(
        f"{result.rows:,} log rows, {result.decisions:,} decisions under {result.rules:,} "
        f"rules ({result.randomized:,} randomized, {result.capped:,} capped), "
        f"{result.outcomes:,} outcome parts"
    )
    if result.chained_from is not None:
        compared = f", compared with {result.anchors:,} anchors" if result.anchors else ""
        rows, first = result.chained_rows, result.chained_from
        said.append(f"hash chain: {rows:,} rows from row {first:,} on{compared}")
    drawn = "" if result.uniforms_redrawn else " (no key beside the store: uniforms not redrawn)"
    if result.clean:
        said.append(
            "clean: rows are as they were written, as far as they are chained; every probability"
            f" and every draw recomputes{drawn}"
        )
    said += [f"fault: {fault}" for fault in result.faults]
    if not result.clean:
        said.append(f"{result.fault_count:,} faults{drawn}")
    return [*said, *(f"not proven: {sentence}" for sentence in result.unproven)]


def backup(
    store: Annotated[Path, typer.Argument(help="The store (a SQLite file).")],
    out: Annotated[Path, typer.Option(help="Folder to create; it must not exist.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Copy a store and its key while a daemon writes it; every file of mode 0600.

    The copy is a whole store up to a moment: `audit` and `status` work on it.

    Example: equipoise backup equipoise.db --out backups/monday
    """
    from equipoise.agent.maintenance.backups import back_up

    _print(back_up(store, out), out, as_json)


def restore(
    folder: Annotated[Path, typer.Argument(help="A folder that `backup` made.")],
    store: Annotated[Path, typer.Option(help="Where to put the store; nothing may be there.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Put a store and its key back, after checking that they are whole. Nothing is replaced.

    Example: equipoise restore backups/monday --store equipoise.db
    """
    from equipoise.agent.maintenance.backups import put_back

    _print(put_back(folder, store), store, as_json)


def _print(facts: dict[str, object], where: Path, as_json: bool) -> None:
    if as_json:
        import msgspec

        typer.echo(msgspec.json.encode({"path": str(where), **facts}).decode())
        return
    key = "with its key" if facts["key"] else "without a key (there is none beside the store)"
    typer.echo(f"{where}: {facts['log_rows']:,} log rows, {key}")
    losses = facts.get("losses")
    for sentence in losses if isinstance(losses, list) else ():
        typer.echo(f"lost: {sentence}")


def export(
    store: Annotated[Path, typer.Argument(help="The store (a SQLite file).")],
    out: Annotated[Path, typer.Option(help="Folder to create; it must not exist.")],
    format_: Annotated[
        str, typer.Option("--format", help="parquet or csv", metavar="parquet|csv")
    ] = "parquet",
    force: Annotated[
        bool, typer.Option("--force", help="Replace a folder that an export made before.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Write a store as tidy tables, one file each, with all that certified intervals rest on.

    Decisions, outcomes, observations, simulations and expiries; rules with what they froze; eras,
    configurations, controls, alerts; what each column holds. Models by name, features as columns
    x_* and y_*, probabilities as columns p_*. experiment.json has what is certified now.

    Example: equipoise export experiment.db --out tables --format csv
    """
    from equipoise.agent.cli.stores import reading
    from equipoise.agent.maintenance.atomic_files import check_target
    from equipoise.agent.maintenance.export import write_tables

    if format_ not in ("parquet", "csv"):
        raise typer.BadParameter(f"{format_!r} is not one of parquet, csv", param_hint="--format")
    # Before the store is opened: a long log is not read for nothing.
    check_target(out, "experiment.json" if force else None)
    with reading(store) as (opened, config):
        written = write_tables(opened, config, out, format_, force=force)
    if as_json:
        import msgspec

        typer.echo(msgspec.json.encode({"out": str(out), "rows": written}).decode())
    else:
        for name, rows in written.items():
            typer.echo(f"{out / f'{name}.{format_}'}: {rows:,} rows")


def repair(
    store: Annotated[Path, typer.Argument(help="The store (a SQLite file); no daemon may run.")],
    check: Annotated[
        bool, typer.Option(help="Only say what is missing; exit code 1 where anything is.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Take in all that is left of a store whose start is refused, and accept the loss of the rest.

    Every whole frame of the tail is taken in, beyond damaged ones too. What is lost is printed and
    noted in the store, where status, audit and readyz show it; numbers of lost decisions are never
    given again. Damaged and foreign files are kept under names that end in .damaged. A store that
    lacks nothing is left as it is. Make a copy of the folder first, and look for a backup: this
    cannot be undone.

    Example: equipoise repair equipoise.db --check
    """
    from equipoise.store.errors import LostRowsError, MissingStoreError
    from equipoise.store.sqlite import SqliteStore

    if not store.is_file():
        raise MissingStoreError(f"store {store} does not exist")
    refusal = ""
    try:
        if check:
            SqliteStore(store).close()
    except LostRowsError as error:
        refusal = str(error)
    losses, taken, kept = [], 0, []
    if not check:
        with SqliteStore(store, accept_loss=True) as opened:
            leftovers = opened.leftovers
            losses = [gap.sentence for gap in leftovers.gaps]
            taken, kept = leftovers.recovered, leftovers.put_aside
    if as_json:
        import msgspec

        facts = {"losses": losses, "rows_taken_in": taken, "put_aside": kept, "refusal": refusal}
        typer.echo(msgspec.json.encode(facts).decode())
    elif check:
        typer.echo(refusal or f"{store}: nothing is missing")
    else:
        typer.echo(f"{store}: {taken:,} rows taken in from the tail")
        for sentence in losses or ["nothing"]:
            typer.echo(f"lost: {sentence}")
        if kept:
            typer.echo(f"put aside: {', '.join(kept)}")
    if refusal:
        raise typer.Exit(1)
