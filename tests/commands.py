"""The `equipoise` command inside the process of the test, which has made its imports already.

Each command also runs in a process of its own somewhere (`run_as_users_do`, `run_forked`).
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from subprocess import CompletedProcess
from subprocess import run as run_process
from typing import Any
from unittest.mock import patch

from equipoise.replay.cli import main

AS_USERS_DO = [sys.executable, "-c", "from equipoise.replay.cli import main; main()"]


@contextmanager
def _folder(path: str | Path | None) -> Iterator[None]:
    before = os.getcwd()
    try:
        if path is not None:
            os.chdir(path)
        yield
    finally:
        os.chdir(before)


def run_command(
    *arguments: Any,
    cwd: str | Path | None = None,
    given: str = "",
    environment: Mapping[str, str] | None = None,
) -> CompletedProcess[str]:
    """`equipoise ARGUMENTS`: its exit code and what it wrote. given: its standard input."""
    order = ["equipoise", *map(str, arguments)]
    written = io.BytesIO(), io.BytesIO()
    streams = [io.TextIOWrapper(each, "utf-8", write_through=True) for each in written]
    with (
        _folder(cwd),
        patch.object(sys, "argv", order),
        patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(given.encode()), "utf-8")),
        patch.dict(os.environ, environment or {}),
        redirect_stdout(streams[0]),
        redirect_stderr(streams[1]),
    ):
        code: int | str | None = 0
        try:
            main()
        except SystemExit as end:
            code = end.code
    assert isinstance(code, int)
    out, err = (each.getvalue().decode() for each in written)
    return CompletedProcess(order, code, out, err)


def run_as_users_do(
    *arguments: Any,
    cwd: str | Path | None = None,
    given: str = "",
    environment: Mapping[str, str] | None = None,
) -> CompletedProcess[str]:
    """As `run_command`, by a fresh interpreter."""
    return run_process(
        [*AS_USERS_DO, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        input=given,
        check=False,
    )
