"""A real daemon for tests: started as users start it, spoken to over HTTP, stopped by its id."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from forking import READ_AT_START, Forked, fork

COMMAND = [sys.executable, "-c", "from equipoise.replay.cli import main; main()"]
CONFIG = """
name = "chat"
models = [{name = "large", price = 0.02}, {name = "small", price = 0.01}]
[features]
context = [{type = "number", name = "words", low = 0, scale = 100}]
outputs = [{type = "number", name = "seconds"}]
[policy]
assignment = "uniform"
rate = 0.5
"""
READY_SECONDS = 30.0
Process: TypeAlias = subprocess.Popen[str] | Forked


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Running:
    """A daemon process. folder: holds its configuration, its store and what it wrote."""

    def __init__(self, folder: Path, process: Process, port: int) -> None:
        self.folder = folder
        self.process = process
        self.port = port
        self.log: list[str] = []
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()

    @property
    def store(self) -> Path:
        return self.folder / "log.db"

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        self.log.extend(self.process.stderr)

    def ask(
        self, method: str, path: str, body: Any = None, token: str | None = None, **headers: str
    ) -> Answer:
        """One request on a connection of its own; a body that is no bytes is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            if token is not None:
                headers["Authorization"] = f"Bearer {token}"
            connection.request(method, path, data, headers)
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def decide(self, name: str, routed: str = "large", words: float = 10.0) -> Any:
        body = {"request_id": name, "routed": routed, "features": {"words": words}}
        answer = self.ask("POST", "/v1/decide", body)
        assert answer.status == 200, answer.body
        return answer.json

    def kill(self) -> None:
        self.process.kill()
        self._end(5.0)

    def _end(self, seconds: float) -> int:
        code = self.process.wait(seconds)
        self._reader.join(5)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
        return code

    def stop(self, number: int = signal.SIGTERM, seconds: float = 20.0) -> int:
        """Stop it by a signal; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self._end(seconds)


def write_config(folder: Path, service: str = "", config: str = CONFIG) -> Path:
    path = folder / "chat.toml"
    path.write_text(f"{config}\n[service]\n{service}")
    return path


def start(
    folder: Path,
    service: str = "",
    *arguments: str,
    before: Callable[[], None] | None = None,
    config: str = CONFIG,
    environment: dict[str, str] | None = None,
    afresh: bool = False,
) -> Running:
    """Start a daemon on a free port and wait until it listens.

    before: run in the child. afresh: by an interpreter of its own, as users start it, instead of
    by a fork of one that has made the imports; what an interpreter reads when it starts asks for
    that by itself.
    """
    path = write_config(folder, service, config)
    environment = environment or {}
    order = ["serve", "--config", path, "--port", "0", "--store", folder / "log.db", *arguments]
    process: Process
    if afresh or before is not None or any(each.startswith(READ_AT_START) for each in environment):
        process = subprocess.Popen(
            [*COMMAND, *order],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=before,
            env={**os.environ, **environment},
        )
    else:
        process = fork(order, **environment)
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line.startswith("listening on http://"):
        _, words = process.communicate()
        raise AssertionError(f"the daemon did not start: {line}{words}")
    return Running(folder, process, int(line.rsplit(":", 1)[1]))


@contextmanager
def running(folder: Path, *arguments: Any, **options: Any) -> Iterator[Running]:
    daemon = start(folder, *arguments, **options)
    try:
        yield daemon
    finally:
        if daemon.process.returncode is None:
            daemon.stop()


def refused(folder: Path, service: str = "", *arguments: str) -> str:
    """What a daemon that does not start says, in one line."""
    path = write_config(folder, service)
    order = ["serve", "--config", path, "--port", "0", "--store", folder / "log.db", *arguments]
    result = fork(order)
    _, words = result.communicate(READY_SECONDS)
    assert result.returncode == 2, words
    assert words.count("\n") == 1, words
    return words


def until(question: Callable[[], Any], seconds: float = 180.0) -> Any:
    """The first true answer; the time is for a machine that has much else to do."""
    end = time.monotonic() + seconds
    while True:
        answer = question()
        if answer:
            return answer
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
