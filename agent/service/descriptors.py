"""File descriptors: every connection takes one, and the store needs some that nobody may take.

Shells and containers often allow 1,024, fewer than the connections that are taken by default. The
soft limit may be raised up to the hard one by anybody, so `serve` does; where that is not enough
fewer connections are taken, and `serve --check` says so.
"""

from __future__ import annotations

import contextlib
import resource
from dataclasses import dataclass

FILES = 128
"""Store, tail, pipes and libraries: some 30, and more while files are changed or copied."""
BACKLOG = 2048
"""Connections that the kernel keeps for us. All may be taken in one turn of the loop before those
beyond the limit are closed again."""


@dataclass(frozen=True, slots=True)
class Descriptors:
    """soft, hard: limits of the process. needed: for `wanted` connections; connections: as many of
    those as can be taken once the soft limit is raised."""

    soft: int
    hard: int
    needed: int
    wanted: int
    connections: int

    @property
    def sentence(self) -> str:
        """What is wrong, "" where nothing is."""
        if self.connections >= self.wanted:
            return ""
        return (
            f"service.limits.connections is {self.wanted}, which needs {self.needed} file "
            f"descriptors; the hard limit is {self.hard}: {self.connections} connections are taken "
            "(raise LimitNOFILE or ulimit -Hn)"
        )


def descriptors(wanted: int) -> Descriptors:
    """What the limits of this process mean for so many connections."""
    soft, hard = (
        2**31 if each == resource.RLIM_INFINITY else each
        for each in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    needed = wanted + min(wanted, BACKLOG) + FILES
    room = hard - FILES
    taken = wanted if hard >= needed else max(1, min(room // 2, wanted))
    return Descriptors(soft, hard, needed, wanted, taken)


def raise_limit(wanted: int) -> Descriptors:
    """Raise the soft limit as far as needed and allowed; what that comes to."""
    found = descriptors(wanted)
    target = min(found.needed, found.hard)
    if found.soft < target:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.suppress(OSError, ValueError):  # some kernels have a lower one of their own
            resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
            return found
        room = max(1, min((found.soft - FILES) // 2, wanted))
        return Descriptors(found.soft, found.soft, found.needed, wanted, room)
    return found
