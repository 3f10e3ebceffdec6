"""`equipoise audit`: whether a store is as it was written, and every decision follows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from equipoise.agent.audit import Audit


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

    from equipoise.agent.anchors import read_anchors
    from equipoise.agent.audit import audit as run
    from equipoise.agent.cli.stores import reading
    from equipoise.agent.keyfile import read_key

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
