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
            except FileNotFoundError:
                raise AgentError(
                    f"folder {path.parent} does not exist: create it, or name another one"
                ) from None
            except OSError as error:
                raise AgentError(f"{path} cannot be written: {error.strerror}") from None
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
    """Raise AgentError where a folder exists and is not to be replaced, or could not be made.

    replace: name of a file by which a folder of ours is known; hint: what to do where none is
    given.
    """
    path = path.absolute()
    if path.exists():
        if replace is None:
            raise AgentError(f"{path} exists: {hint}")
        if not (path / replace).is_file():
            raise AgentError(f"{path} exists and has no {replace}: not replacing what is not ours")
    parent = next(folder for folder in path.parents if folder.exists())
    if not parent.is_dir():
        raise AgentError(f"{path} cannot be made: {parent} is no folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise AgentError(f"{path} cannot be made: no permission to write in {parent}")


@contextmanager
def whole_folder(path: Path, *, replace: str | None = None, hint: str = _FORCE) -> Iterator[Path]:
    """Yield a scratch folder beside `path` that becomes `path` when the block ends well.

    On an error or an interruption nothing is left under `path`; an existing `path` stays as it
    was. A kill leaves at most a hidden scratch folder, which the next run for the same path
    removes; one in the very moment of a replacement leaves the old folder under a hidden name, and
    the next run puts it back first. replace: name of a file by which a folder of ours is known; an
    existing folder that holds it is replaced. hint: what the error says to do where `path` exists.
    Raises AgentError where it does and is not to be replaced.
    """
    path = path.absolute()
    _put_back(path)
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
            try:
                scratch.rename(path)
            except BaseException:
                old.rename(path)
                raise
            shutil.rmtree(old, ignore_errors=True)
        else:
            scratch.rename(path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _put_back(path: Path) -> None:
    """Undo a replacement that was killed half-way; remove what a whole one left."""
    for old in sorted(path.parent.glob(f".{path.name}.replaced-*")):
        if _alive(int(old.name.rpartition("-")[2])):
            continue
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(path)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
