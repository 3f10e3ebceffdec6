"""Places of hubs, and other processes that use them."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from equipoise.store.lanes.contract import Hub
from equipoise.store.lanes.memory import MemoryHub
from equipoise.store.lanes.opening import open_hub

CHILD = """
import os, signal, sys
from equipoise.store.lanes.contract import *
from equipoise.store.lanes.opening import open_hub

for line in sys.stdin:
    try:
        result = repr(eval(line))
    except Exception as error:
        result = type(error).__name__
        print(result, error, file=sys.stderr, flush=True)
    print(result, flush=True)
"""

PATIENCE = 60.0
"""Seconds, on a machine with other work to do."""


class Child:
    """Another process, which evaluates what it is sent: `hub` is set by `(hub := …)`."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def send(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def ask(self, line: str) -> str:
        self.send(line)
        return self.answer()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


@dataclass
class Place:
    """Where a hub is. where: as of `open_hub`, None of the one in memory."""

    where: str | None
    _opened: list[Hub] = field(default_factory=list)

    def open(self) -> Hub:
        """Another hub of this place, or the one in memory."""
        if self.where is None:
            self._opened = self._opened or [MemoryHub()]
        else:
            self._opened.append(open_hub(self.where, seconds=PATIENCE))
        return self._opened[-1]

    def close(self) -> None:
        for hub in self._opened:
            hub.close()


def _place(kind: str, tmp_path: Path, new_postgres_url: Callable[[], str] | None) -> Place:
    if kind == "memory":
        return Place(None)
    if kind == "sqlite":
        return Place(str(tmp_path / "s.db"))
    assert new_postgres_url is not None
    return Place(new_postgres_url())


def _with_server(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue("new_postgres_url") if request.param == "postgres" else None


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """A new place of each kind."""
    with contextlib.closing(_place(request.param, tmp_path, _with_server(request))) as made:
        yield made


@pytest.fixture(params=["sqlite", "postgres"])
def shared_place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """A new place of each kind that processes can share."""
    with contextlib.closing(_place(request.param, tmp_path, _with_server(request))) as made:
        yield made


@pytest.fixture
def hub(place: Place) -> Hub:
    return place.open()


@pytest.fixture(scope="module")
def children() -> Iterator[list[Child]]:
    """Four processes."""
    started = [Child() for _ in range(4)]
    yield started
    for child in started:
        child.end()


@pytest.fixture
def new_child() -> Iterator[Callable[[], Child]]:
    """() -> a process that a test may kill."""
    started: list[Child] = []

    def start() -> Child:
        started.append(Child())
        return started[-1]

    yield start
    for child in started:
        child.end()
