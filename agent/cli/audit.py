"""`equipoise audit`: recompute every probability and draw of a store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def audit(
    store: Annotated[Path, typer.Argument(help="The store (a SQLite file).")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Recompute every probability from its rule and every draw from its uniform.

    With the key file beside the store the uniforms themselves are drawn again.
    Exit code 0: clean; 1: faults were found; 2: the store cannot be read.

    Example: equipoise audit experiment.db
    """
    from dataclasses import asdict

    from rich.console import Console

    from equipoise.agent.audit import audit as run
    from equipoise.agent.cli.stores import reading
    from equipoise.agent.keyfile import read_key

    with reading(store) as (opened, config), Console(stderr=True).status("auditing") as shown:
        result = run(
            opened,
            config,
            read_key(store),
            lambda rows: shown.update(f"auditing: {rows:,} of {opened.next_seq:,} rows"),
        )
    if as_json:
        import msgspec

        typer.echo(msgspec.json.encode({**asdict(result), "clean": result.clean}).decode())
    else:
        if result.begins:
            typer.echo(
                f"the log begins at row {result.begins:,}; SHA-256 of what came before:"
                f" {result.digest}"
            )
        for sentence in result.losses:
            typer.echo(f"lost: {sentence}")
        if result.unchecked:
            typer.echo(f"{result.unchecked:,} decisions follow one that was removed: not checked")
        typer.echo(
            f"{result.rows:,} log rows, {result.decisions:,} decisions under {result.rules:,} "
            f"rules ({result.randomized:,} randomized, {result.capped:,} capped), "
            f"{result.outcomes:,} outcome parts"
        )
        drawn = (
            "" if result.uniforms_redrawn else " (no key beside the store: uniforms not redrawn)"
        )
        if result.clean:
            typer.echo(f"clean: every probability and every draw recomputes{drawn}")
        for fault in result.faults:
            typer.echo(f"fault: {fault}")
        if not result.clean:
            typer.echo(f"{result.fault_count:,} faults{drawn}")
    if not result.clean:
        raise typer.Exit(1)
