"""Copies of where a store's hash chains ended, kept where the store's owner cannot reach.

A file of anchors only ever grows, one JSON object a line: append-only for the daemon (`chattr +a`),
on another machine, or printed now and then. A backup holds one too, in its manifest.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from equipoise.agent.errors import AgentError
from equipoise.store.chain import Anchor

MANIFEST = "backup.json"


class _Manifest(msgspec.Struct):
    """The part of a backup's manifest that is of interest here."""

    anchor: Anchor | None = None


def append_anchor(path: Path, anchor: Anchor) -> None:
    """Add an anchor to a file, on the disk before this returns. Raises OSError."""
    line = msgspec.json.encode(anchor) + b"\n"
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(file, line)  # one call: a line is there as a whole, or it is the torn last one
        os.fsync(file)
    finally:
        os.close(file)


def read_anchors(path: Path) -> list[Anchor]:
    """The anchors of a file, or of a backup (its folder, or its backup.json).

    Raises AgentError naming the file and the line where there is none to be read.
    """
    path = path / MANIFEST if path.is_dir() else path
    try:
        content = path.read_bytes()
    except OSError as error:
        raise AgentError(f"{path} cannot be read: {error.strerror}") from None
    if path.name == MANIFEST:
        try:
            anchor = msgspec.json.decode(content, type=_Manifest).anchor
        except msgspec.MsgspecError as error:
            raise AgentError(f"{path} is no manifest of a backup: {error}") from None
        if anchor is None:
            raise AgentError(f"{path} holds no anchor: an older version made that backup")
        return [anchor]
    found = []
    lines = content.split(b"\n")[:-1]
    for number, line in enumerate(lines, 1):  # what follows the last end of line was torn off
        try:
            found.append(msgspec.json.decode(line, type=Anchor))
        except msgspec.MsgspecError as error:
            raise AgentError(f"{path} line {number} is no anchor: {error}") from None
    if not found:
        raise AgentError(f"{path} holds no anchor")
    return found
