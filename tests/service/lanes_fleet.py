"""The processes of a fleet, which a test kills and starts again: deciders and their authorities."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import threading
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

from forking import Forked, fork
from running import until

from equipoise.agent.service.daemon import DEPOSED

DECIDERS = 3
LEASE_SECONDS = 3.0
MODEL_CAP, SEGMENT_CAP, BUDGET_STEP = 2_500, 300, 500
CONFIG = f"""
name = "chat"
[[models]]
name = "large"
price = 0.02
[[models]]
name = "small"
price = 0.01
max_requests = {MODEL_CAP}
[features]
context = [{{type = "number", name = "words", low = 0, scale = 100}}]
outputs = [{{type = "number", name = "seconds"}}]
[reward]
window = 20.0
[policy]
assignment = "uniform"
rate = 0.7
[budget]
requests = {BUDGET_STEP}
[[budget.segments]]
name = "short"
column = "words"
high = 0.1
max_requests = {SEGMENT_CAP}
[service]
refresh_seconds = 0.5
checkpoint_seconds = 0.3
log_level = "info"
shutdown_seconds = 20.0
[service.lanes]
lease_seconds = {LEASE_SECONDS}
publish_seconds = 0.1
ship_seconds = 0.02
stale_seconds = 8.0
"""
PATIENCE = 120.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Member:
    """A process that is killed and started again. name: for the schedule; arguments: of `serve`."""

    def __init__(self, name: str, arguments: list[Any], port: int) -> None:
        self.name, self.port = name, port
        self._arguments = arguments
        self.process: Forked | None = None
        self.lines: list[str] = []
        self.codes: Counter[int] = Counter()
        self._readers: list[threading.Thread] = []

    def start(self) -> None:
        if self.process is not None and self.process.poll() is None:
            return
        self.process = fork(["serve", *self._arguments, "--port", self.port])
        for stream in (self.process.stdout, self.process.stderr):
            reader = threading.Thread(target=self._read, args=(stream,), daemon=True)
            reader.start()
            self._readers.append(reader)

    def _read(self, stream: Any) -> None:
        with stream:
            self.lines.extend(stream)

    def signal(self, number: int) -> None:
        if self.process is not None:
            self.process.send_signal(number)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(PATIENCE)

    def restart(self) -> None:
        """Start it where it ended by itself, as an orchestrator would."""
        code = None if self.process is None else self.process.poll()
        if code is not None:
            self.codes[code] += 1
            self.start()

    def end(self) -> int:
        """Stop it in order; its exit code, None where it was gone."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(PATIENCE)
        for reader in self._readers:
            reader.join(5)
        return code

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        return ask(self.port, method, path, body)


def ask(port: int, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """One request on a connection of its own. Raises OSError or HTTPException."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=15)
    try:
        connection.request(method, path, None if body is None else json.dumps(body))
        response = connection.getresponse()
        text = response.read()
        return response.status, json.loads(text) if text else None
    finally:
        connection.close()


class Fleet:
    """Deciders with ports of their own, and two that may be the authority, over one store."""

    def __init__(self, folder: Path, store: str, key: Path | None = None) -> None:
        self.folder, self.store = folder, store
        self.authorities, self.deciders = [], []
        ports = [free_port() for _ in range(2)]
        for number in range(2):
            name = f"authority-{number + 1}"
            self.authorities.append(self._member(name, "authority", ports[number], None, key))
        for number in range(DECIDERS):
            name = f"decider-{number + 1}"
            self.deciders.append(self._member(name, "decider", free_port(), ports[0], key))

    def _member(
        self, name: str, role: str, port: int, authority: int | None, key: Path | None
    ) -> Member:
        path = self.folder / f"{name}.toml"
        lanes = f'folder = "{self.folder / name}"\n'
        if authority is not None:
            lanes += f'authority = "http://127.0.0.1:{authority}"\n'
        path.write_text(CONFIG + lanes)
        arguments: list[Any] = ["--role", role, "--config", path, "--store", self.store]
        if key is not None:
            arguments += ["--key", key]
        return Member(name, arguments, port)

    @property
    def members(self) -> list[Member]:
        return [*self.authorities, *self.deciders]

    @property
    def ports(self) -> list[int]:
        return [each.port for each in self.deciders]

    def start(self) -> None:
        """Start everybody, and wait until all decide."""
        for member in self.members:
            member.start()
        until(self.decides, PATIENCE)

    def decides(self) -> bool:
        """Whether an authority answers and every decider decides."""
        return self.authority() is not None and all(_is_ready(port) for port in self.ports)

    def authority(self) -> int | None:
        """The port of whoever holds the office."""
        return next((m.port for m in self.authorities if _is_ready(m.port, "/healthz")), None)

    def tend(self, away: Collection[str] = ()) -> None:
        """Start those again that ended by themselves, but for these."""
        for member in self.members:
            if member.name not in away:
                member.restart()

    def victims(self) -> list[str]:
        """Whom to kill, as often as it is named."""
        return [member.name for member in self.members]

    def kill(self, name: str) -> None:
        next(member for member in self.members if member.name == name).kill()

    def revive(self, name: str) -> None:
        next(member for member in self.members if member.name == name).start()

    def end(self) -> list[str]:
        """Stop everybody in order; what went wrong with that. Who stood by has nothing to end."""
        found = []
        for group in (self.deciders, self.authorities):
            for member in group:
                member.signal(signal.SIGTERM)
            for member in group:
                code = member.end()
                if code not in (0, -signal.SIGTERM, DEPOSED):
                    found.append(f"{member.name} ended with {code}: {''.join(member.lines[-5:])}")
        return found


class Workers(Fleet):
    """`serve --workers`: one port; the supervisor's children are killed, and sometimes itself."""

    def __init__(self, folder: Path, store: str) -> None:
        self.folder, self.store = folder, store
        path = folder / "chat.toml"
        path.write_text(CONFIG)
        arguments = ["--workers", DECIDERS, "--config", path, "--store", store]
        self.deciders = [Member("supervisor", arguments, free_port())]
        self.authorities = []

    def decides(self) -> bool:
        (supervisor,) = self.deciders
        return _is_ready(supervisor.port) and _is_ready(supervisor.port, "/v1/lanes")

    def authority(self) -> int | None:
        return self.deciders[0].port

    def victims(self) -> list[str]:
        children = [f"child-{number}" for number in range(DECIDERS + 1)]
        return [*children, *children, *children, "supervisor"]

    def kill(self, name: str) -> None:
        (supervisor,) = self.deciders
        if name == "supervisor":
            supervisor.kill()
            return
        children = _children(supervisor.process.pid)
        if children:
            number = int(name.removeprefix("child-"))
            with contextlib.suppress(ProcessLookupError):
                os.kill(children[number % len(children)], signal.SIGKILL)

    def revive(self, name: str) -> None:
        if name == "supervisor":
            # Its children end by themselves once it is gone; a second set must not mind.
            self.deciders[0].start()


class Database(Fleet):
    """As `Fleet`, over a PostgreSQL server that is killed too."""

    def __init__(self, folder: Path, server: Any, key: Path) -> None:
        self.server = server
        self._starting: threading.Thread | None = None
        self._killed = False
        super().__init__(folder, server.url(schema="chaos"), key)

    def victims(self) -> list[str]:
        return [*super().victims(), "postgres"]

    def _runs(self) -> bool:
        return not self._killed and (self._starting is None or not self._starting.is_alive())

    def kill(self, name: str) -> None:
        if name != "postgres":
            super().kill(name)
        elif self._runs():
            self.server.kill()
            self._killed = True

    def revive(self, name: str) -> None:
        if name != "postgres":
            super().revive(name)
        elif self._killed:
            self._killed = False
            self._starting = threading.Thread(target=self.server.start)
            self._starting.start()


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _is_ready(port: int, path: str = "/readyz") -> bool:
    try:
        return ask(port, "GET", path)[0] == 200
    except (OSError, http.client.HTTPException, ValueError):
        return False
