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


def check_target(
    path: Path, replace: str | None = None, hint: str = _FORCE, source: Path | None = None
) -> None:
    """Raise AgentError where a folder exists and is not to be replaced, or could not be made.

    replace: name of a file by which a folder of ours is known; hint: what to do where none is
    given. source: the file that is read, which must not go with a folder that is replaced.
    """
    path = path.absolute()
    if source is not None and path.resolve() in source.resolve().parents and path.exists():
        raise AgentError(f"{path} holds {source.name}, which is read: choose another --out")
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
def whole_folder(
    path: Path, *, replace: str | None = None, hint: str = _FORCE, source: Path | None = None
) -> Iterator[Path]:
    """Yield a scratch folder beside `path` that becomes `path` when the block ends well.

    On an error or an interruption nothing is left under `path`; an existing `path` stays as it
    was. A kill leaves at most a hidden scratch folder, which the next run for the same path
    removes; one in the very moment of a replacement leaves the old folder under a hidden name, and
    the next run puts it back first. replace: name of a file by which a folder of ours is known; an
    existing folder that holds it is replaced. hint: what the error says to do where `path` exists.
    source: as in `check_target`.
    Raises AgentError where it does and is not to be replaced.
    """
    path = path.absolute()
    _put_back(path)
    check_target(path, replace, hint, source)
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in _abandoned(path, "partial"):
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
            _remove(old)
        else:
            scratch.rename(path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _put_back(path: Path) -> None:
    """Undo a replacement that was killed half-way; remove what a whole one left."""
    for old in _abandoned(path, "replaced"):
        if path.exists():
            _remove(old)
        else:
            old.rename(path)


def _abandoned(path: Path, word: str) -> list[Path]:
    """Our hidden folders beside `path` whose processes are gone."""
    if not path.parent.is_dir():
        return []
    start = f".{path.name}.{word}-"
    found = [each for each in path.parent.iterdir() if each.name.startswith(start)]
    numbers = [each.name.removeprefix(start) for each in found]
    ours = [each for each, number in zip(found, numbers, strict=True) if number.isdecimal()]
    return sorted(each for each in ours if not _alive(int(each.name.removeprefix(start))))


def _remove(folder: Path) -> None:
    """Remove a folder; of a link only the link."""
    if folder.is_symlink():
        folder.unlink(missing_ok=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    except OverflowError:
        return False
    return True
