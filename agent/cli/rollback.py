"""`equipoise rollback`: a store's schema back to an older version."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def rollback(
    store: Annotated[Path, typer.Argument(help="The store (a SQLite file); no daemon may run.")],
    to: Annotated[int, typer.Option(min=1, help="The schema version to go back to.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Undo upgrades of a store's schema, so that an older equipoise opens it. No row of the log is
    lost; what else is lost is said. Make a backup first.

    Upgrades happen by themselves when a newer equipoise opens a store for writing.

    Example: equipoise rollback equipoise.db --to 1
    """
    from equipoise.store.sqlite.rollback import roll_back

    lost = roll_back(store, to)
    if as_json:
        import msgspec

        typer.echo(msgspec.json.encode({"schema_version": to, "lost": lost}).decode())
        return
    what = f" Lost are {', '.join(lost)}." if lost else ""
    typer.echo(f"{store} has schema version {to} now.{what}")
