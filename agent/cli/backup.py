"""`equipoise backup` and `equipoise restore`: a store with its key, in one folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def backup(
    store: Annotated[Path, typer.Argument(help="The store (a SQLite file).")],
    out: Annotated[Path, typer.Option(help="Folder to create; it must not exist.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Copy a store and its key while a daemon writes it; every file of mode 0600.

    The copy is a whole store up to a moment: `audit` and `status` work on it.

    Example: equipoise backup equipoise.db --out backups/monday
    """
    from equipoise.agent.backups import back_up

    _print(back_up(store, out), out, as_json)


def restore(
    folder: Annotated[Path, typer.Argument(help="A folder that `backup` made.")],
    store: Annotated[Path, typer.Option(help="Where to put the store; nothing may be there.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Put a store and its key back, after checking that they are whole. Nothing is replaced.

    Example: equipoise restore backups/monday --store equipoise.db
    """
    from equipoise.agent.backups import put_back

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
