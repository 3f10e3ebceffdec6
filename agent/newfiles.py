"""New files, all or none, never in place of one that exists."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from equipoise.agent.errors import AgentError


def write_new(files: Mapping[Path, tuple[str, int]]) -> None:
    """Write each path with its text and mode. Raises AgentError where one exists already.

    On any error the files that were made are removed again.
    """
    made: list[Path] = []
    try:
        for path, (text, mode) in files.items():
            try:
                file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            except FileExistsError:
                raise AgentError(f"{path} exists: it is not replaced") from None
            made.append(path)
            with os.fdopen(file, "w") as opened:
                opened.write(text)
                opened.flush()
                os.fsync(opened.fileno())
    except BaseException:
        for path in made:
            path.unlink(missing_ok=True)
        raise
