"""`equipoise reference`: the pages of docs/reference, from the program that is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from equipoise.agent.cli import PROGRAM

PAGES = ("configuration", "records", "http", "commands")


def reference(
    context: typer.Context,
    name: Annotated[
        str | None, typer.Argument(help=f"One of {', '.join(PAGES)}; or a table such as budget.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write all pages into this folder instead.")
    ] = None,
) -> None:
    """Print the reference: settings, records, HTTP, commands.

    Every key of the configuration with its meaning, limit, default and an example; the fields of
    records; every operation of the daemon; every command with its exit codes.

    Example: equipoise reference configuration

    Example: equipoise reference budget
    """
    texts = pages(context)
    if out is not None:
        for each, text in texts.items():
            (out / f"{each}.md").write_text(text)
        typer.echo(f"{out}: {', '.join(f'{each}.md' for each in texts)}")
    elif name in texts:
        typer.echo(texts[name])
    else:
        from equipoise.agent.reference.configuration import headings, page

        if name is None or name not in headings():
            choices = ", ".join((*PAGES, *headings()))
            raise typer.BadParameter(f"expected one of {choices}", param_hint="NAME")
        typer.echo(page(name))


def pages(context: typer.Context) -> dict[str, str]:
    """Every page as Markdown, by its name."""
    from equipoise.agent.reference import commands, configuration, interface

    texts = (
        configuration.page(),
        interface.records_page(),
        interface.http_page(),
        commands.page(context.find_root().command, PROGRAM),
    )
    return dict(zip(PAGES, texts, strict=True))
