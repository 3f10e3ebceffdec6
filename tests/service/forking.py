"""Processes of the `equipoise` command that are forked from one that has imported it all.

A daemon that starts spends most of its time on imports, which are the same every time. One server
process a test worker makes them once; every start is a fork of it, with its own arguments,
environment, folder and streams, and from there on a process like any other.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TextIO

# What the interpreter and the loader read while they start: a fork is too late for them.
READ_AT_START = ("PYTHON", "LD_", "OMP_", "OPENBLAS_")
_ENOUGH_BYTES = 1 << 20


class Forked:
    """A process as `subprocess.Popen` shows one, as far as tests look at it."""

    def __init__(self, pid: int, status: socket.socket, stdout: TextIO, stderr: TextIO) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.stdout = stdout
        self.stderr = stderr
        self._status = status

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], 0)[0]:
            self._take()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("equipoise", timeout or 0.0)
            self._take()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What is left of its streams, when it is over."""
        with self.stdout, self.stderr, ThreadPoolExecutor(2) as readers:
            written = [readers.submit(stream.read) for stream in (self.stdout, self.stderr)]
            try:
                self.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
            return written[0].result(), written[1].result()

    def _take(self) -> None:
        self.returncode = _number(self._status)
        self._status.close()


def _number(sender: socket.socket) -> int:
    data = sender.recv(8, socket.MSG_WAITALL)
    assert len(data) == 8, "the server of forks is gone"
    return int.from_bytes(data, "big", signed=True)


def _say(receiver: socket.socket, number: int) -> None:
    receiver.sendall(number.to_bytes(8, "big", signed=True))


_server: tuple[int, socket.socket, dict[str, str]] | None = None


def _read_at_start() -> dict[str, str]:
    return {name: text for name, text in os.environ.items() if name.startswith(READ_AT_START)}


def _connected() -> socket.socket:
    """The server of this worker, started where there is none for what counts at a start."""
    global _server
    if _server is None or _server[0] != os.getpid() or _server[2] != _read_at_start():
        ours, its = socket.socketpair()
        with its:
            process = subprocess.Popen(
                [sys.executable, __file__, str(its.fileno())], pass_fds=[its.fileno()]
            )
        _server = os.getpid(), ours, _read_at_start()

        def end() -> None:
            ours.close()
            process.wait(10)

        atexit.register(end)
    return _server[1]


def fork(arguments: list[Any], cwd: str | Path | None = None, **environment: str) -> Forked:
    """`equipoise ARGUMENTS` with this process's environment, and more of it."""
    server = _connected()
    ours, its = socket.socketpair()
    out, err = os.pipe(), os.pipe()
    order = {
        "arguments": [str(each) for each in arguments],
        "environment": {**os.environ, **environment},
        "cwd": str(cwd or os.getcwd()),
    }
    given = [its.fileno(), out[1], err[1]]
    socket.send_fds(server, [json.dumps(order).encode()], given)
    its.close()
    os.close(out[1])
    os.close(err[1])
    return Forked(_number(ours), ours, os.fdopen(out[0]), os.fdopen(err[0]))


def run_forked(
    *arguments: Any, cwd: str | Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`equipoise ARGUMENTS` to its end, where the test's own process is no place for it."""
    process = fork(list(arguments), cwd, **environment)
    out, err = process.communicate()
    assert process.returncode is not None
    return subprocess.CompletedProcess([*arguments], process.returncode, out, err)


def _serve(listener: socket.socket) -> list[str]:
    """Fork for every order until nobody is there to give one. Returns in each child: arguments."""
    alive: dict[int, tuple[int, socket.socket]] = {}
    while True:
        for readable in select.select([listener, *alive], [], [])[0]:
            if readable is not listener:  # nothing writes to it: its process has ended
                pid, status = alive.pop(readable)
                os.close(readable)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with suppress(OSError):  # whoever started it may not be interested
                    _say(status, code)
                status.close()
                continue
            data, files, _, _ = socket.recv_fds(listener, _ENOUGH_BYTES, 3)
            if not data:
                os._exit(0)
            order = json.loads(data)
            read, write = os.pipe()  # closed by the system when the child is gone
            pid = os.fork()
            if pid == 0:
                for each in (read, *alive):
                    os.close(each)
                for _, status in alive.values():
                    status.close()
                listener.close()
                os.close(files[0])
                os.dup2(files[1], 1)
                os.dup2(files[2], 2)
                os.close(files[1])
                os.close(files[2])
                os.environ.clear()
                os.environ.update(order["environment"])
                os.chdir(order["cwd"])
                return list(order["arguments"])
            os.close(write)
            os.close(files[1])
            os.close(files[2])
            status = socket.socket(fileno=files[0])
            _say(status, pid)
            alive[read] = pid, status


def _preload() -> None:
    """What a daemon imports, some of it where it is first needed; and what commands about its
    store do. A module that is missing here is imported by every process itself."""
    import apscheduler.executors.asyncio  # noqa: F401
    import sqlite_utils  # noqa: F401
    import uvicorn.lifespan.on
    import uvicorn.loops.uvloop  # noqa: F401

    from equipoise.agent.maintenance.audit import audit  # noqa: F401
    from equipoise.agent.planning import plan_request  # noqa: F401
    from equipoise.agent.service.run import run  # noqa: F401
    from equipoise.replay.cli import main  # noqa: F401


def _main() -> NoReturn:
    sys.path.pop(0)  # this folder, which a start of the command does not see
    _preload()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    gc.collect()
    gc.freeze()  # a child does not copy what it never changes
    sys.argv = ["equipoise", *_serve(socket.socket(fileno=int(sys.argv[1])))]
    from equipoise.replay.cli import main

    main()
    sys.exit()


if __name__ == "__main__":
    _main()
