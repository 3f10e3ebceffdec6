"""`equipoise export`: tidy tables out of a store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


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
    from equipoise.agent.tables import write_tables
    from equipoise.agent.wholefolder import check_target

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
