"""`equipoise reference`: the pages of docs/reference, from the program that is installed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

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
    from equipoise.agent.reference import configuration, interface

    texts = (
        configuration.page(),
        interface.records_page(),
        interface.http_page(),
        commands_page(context.find_root().command, PROGRAM),
    )
    return dict(zip(PAGES, texts, strict=True))


_REFUSED = "an option, a file or a value is refused; a line on standard error says which"
EXIT_CODES: Mapping[str, Mapping[int, str]] = {
    "audit": {1: "faults were found"},
    "ingest": {1: "some rows were refused"},
    "repair": {1: "with `--check`: something is missing"},
    "replay": {130: "interrupted; the same command goes on from there"},
    "serve": {70: "its state fell behind its log: start it again"},
}
"""Exit codes of single commands, beyond 0 and 2."""


def commands_page(group: Any, program: str) -> str:
    """The page as Markdown. group: the whole command, with its commands by name."""
    sections = [_INTRODUCTION]
    rows = [
        f"| `{name}` | {code} | {when} |"
        for name, codes in EXIT_CODES.items()
        for code, when in codes.items()
    ]
    sections.append("\n".join(["## Exit codes\n", _CODES, *rows, ""]))
    for name, command in group.commands.items():
        sections.append(f"## {program} {name}\n\n{_text(command.help or '')}\n")
        sections.append("\n".join(_parameters(command)) + "\n")
    return "\n".join(sections)


def _text(help_text: str) -> str:
    """The help of a command, its examples as code."""
    paragraphs = []
    for paragraph in help_text.split("\n\n"):
        text = " ".join(paragraph.split())
        example = text.removeprefix("Example: ")
        paragraphs.append(text if text == example else f"```sh\n{example}\n```")
    return "\n\n".join(paragraphs)


def _parameters(command: Any) -> Iterator[str]:
    for parameter in command.params:
        names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
        required = " Required." if parameter.required else ""
        default = parameter.show_default if isinstance(parameter.show_default, str) else None
        if default is None and not (
            parameter.default is None or isinstance(parameter.default, bool)
        ):
            default = str(parameter.default)
        shown = f" Default: {default}." if default else ""
        yield f"- {names}: {parameter.help}{required}{shown}"


_INTRODUCTION = """\
# Commands

Every command, written by `equipoise reference` from the commands themselves; do not edit it by
hand. `equipoise COMMAND --help` says the same. `python -m equipoise` is the command too, and
`equipoise --version` names the version. `equipoise --install-completion` makes your shell complete
commands and options from its next start on; `equipoise --show-completion` prints what it would
install.

What is refused is a line on standard error for each mistake; every line begins with `equipoise: `.
"""
_CODES = f"""\
Every command exits with 0 when it is done, and with 2 where {_REFUSED}. Beyond those:

| command | code | when |
|---|---|---|"""
