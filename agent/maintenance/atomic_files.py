"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from equipoise.agent.errors import AgentError


def write_new(files: Mapping[Path, tuple[str, int]]) -> None:
    """Write each path with its text and mode. Raises AgentError where one exists already.

    On any error the files that were made are removed again.
    """
    created: list[Path] = []
    try:
        for path, (text, mode) in files.items():
            try:
                file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            except FileExistsError:
                raise AgentError(f"{path} exists: it is not replaced") from None
            created.append(path)
            with os.fdopen(file, "w") as opened:
                opened.write(text)
                opened.flush()
                os.fsync(opened.fileno())
    except BaseException:
        for path in created:
            path.unlink(missing_ok=True)
        raise


_FORCE = "choose another --out, or replace it with --force"


def check_target(path: Path, replace: str | None = None, hint: str = _FORCE) -> None:
    """Raise AgentError where a folder exists and is not to be replaced. replace: name of a file by
    which a folder of ours is known; hint: what to do where none is given."""
    path = path.absolute()
    if path.exists():
        if replace is None:
            raise AgentError(f"{path} exists: {hint}")
        if not (path / replace).is_file():
            raise AgentError(f"{path} exists and has no {replace}: not replacing what is not ours")


@contextmanager
def whole_folder(path: Path, *, replace: str | None = None, hint: str = _FORCE) -> Iterator[Path]:
    """Yield a scratch folder beside `path` that becomes `path` when the block ends well.

    On an error or an interruption nothing is left under `path`; an existing `path` stays as it
    was. A kill leaves at most a hidden scratch folder, which the next run for the same path
    removes. replace: name of a file by which a folder of ours is known; an existing folder that
    holds it is replaced. hint: what the error says to do where `path` exists. Raises AgentError
    where it does and is not to be replaced.
    """
    path = path.absolute()
    check_target(path, replace, hint)
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f".{path.name}.partial-*"):
        if not _alive(int(stale.name.rpartition("-")[2])):
            shutil.rmtree(stale, ignore_errors=True)
    scratch = path.with_name(f".{path.name}.partial-{os.getpid()}")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        yield scratch
        if path.exists():
            old = path.with_name(f".{path.name}.replaced-{os.getpid()}")
            path.rename(old)
            scratch.rename(path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            scratch.rename(path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
