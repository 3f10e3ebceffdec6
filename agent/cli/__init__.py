"""The commands of the agent, and the frame that all commands stand in: help, version, errors.

`equipoise.replay.cli` is the whole command. Numerical libraries are imported inside the commands,
so that `--help` stays fast.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import typer

PROGRAM = "equipoise"
REFUSED = 2
"""Exit code where an option, a file or a value is refused."""

# Click's class, or that of the copy of click inside newer typers.
_UsageError: Any = typer.BadParameter.__base__


def application(about: str) -> typer.Typer:
    """A group of commands that says its version and its help. about: one sentence."""
    app = typer.Typer(
        name=PROGRAM,
        add_completion=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )

    @app.callback(invoke_without_command=True, help=about)
    def start(
        context: typer.Context,
        version: Annotated[
            bool,
            typer.Option(
                "--version", callback=_print_version, is_eager=True, help="Show the version."
            ),
        ] = False,
    ) -> None:
        if context.invoked_subcommand is None:
            typer.echo(context.get_help(), err=True)
            raise typer.Exit(REFUSED)

    return app


def add_command(app: typer.Typer, command: Callable[..., Any]) -> None:
    """Register a command under its own name. Its docstring's first line stands whole in the list
    of commands, however narrow the terminal."""
    summary, _, _ = (command.__doc__ or "").partition("\n")
    app.command(short_help=summary)(command)


def run(app: typer.Typer) -> None:
    """Run the command that was typed. What is refused becomes a line for each mistake on standard
    error, all of one form, and exit code 2."""
    try:
        code = app(prog_name=PROGRAM, standalone_mode=False)
    except _UsageError as error:
        sentence = " ".join(error.format_message().split())
        end = "" if sentence.endswith((".", "?")) else "."
        path = PROGRAM if error.ctx is None else error.ctx.command_path
        _refuse(f"{sentence[:1].lower()}{sentence[1:]}{end} Try '{path} --help'.")
    except (ValueError, OSError) as error:
        if not _expected(error):
            raise
        _refuse(*str(error).splitlines())
    except typer.Abort:
        sys.exit(130)  # what shells say of a program that was interrupted
    else:
        if isinstance(code, int) and code:
            sys.exit(code)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"{PROGRAM} {version(PROGRAM)}")
        raise typer.Exit


def _refuse(*sentences: str) -> None:
    for sentence in sentences:
        typer.echo(f"{PROGRAM}: {sentence}", err=True)
    sys.exit(REFUSED)


def _expected(error: Exception) -> bool:
    """Whether an exception is our word about bad input, and not a fault of the program."""
    return isinstance(error, OSError) or type(error).__module__.startswith("equipoise.")


_INDENT = "  "


def say(lines: Iterable[str]) -> None:
    """Print lines; on a terminal none is broken within a word, and what goes on is indented."""
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in lines:
        typer.echo(line if columns is None else folded(line, columns))


def folded(line: str, columns: int) -> str:
    """A line as it fits so many columns.

    >>> folded("clean: rows are as they were written", 20)
    'clean: rows are as\\n  they were written'
    """
    return textwrap.fill(
        line,
        columns,
        subsequent_indent=_INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )
