"""`equipoise repair`: open a store that lacks rows, and note what is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


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
            found = opened.found
            losses = [gap.sentence for gap in found.gaps]
            taken, kept = found.taken, found.kept
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
