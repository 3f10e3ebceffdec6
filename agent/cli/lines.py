"""Lines of output: whole where a program reads them, folded between words on a terminal."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterable

import typer

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
