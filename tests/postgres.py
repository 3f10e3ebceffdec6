"""A real PostgreSQL server for the tests: one a run, shared by all workers, gone at its end.

`postgres_url` is a database schema of its own for a test, `postgres` a server that a test may also
kill: one of its own. Where no server is installed the tests skip and say so.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

PLACES = ("/usr/lib/postgresql/*/bin", "/usr/local/pgsql/bin")
"""Where servers lie that are not on the PATH."""
START_SECONDS = 30.0
OPTIONS = {
    "listen_addresses": "",
    "fsync": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "jit": "off",
    "dynamic_shared_memory_type": "mmap",
    "shared_buffers": "32MB",
    "max_connections": "150",
    "log_min_messages": "fatal",
}
"""No TCP. A commit waits for its write to the log as ever, so that kill -9 loses nothing; no write
waits for the disk."""


def programs() -> Path | None:
    """The folder of the newest server that is installed here, None where none is."""
    found = [Path(each).parent for each in [shutil.which("initdb")] if each]
    for place in PLACES:
        found += sorted(Path("/").glob(place[1:]), reverse=True)
    for folder in found:
        real = (folder / "initdb").resolve().parent
        if (real / "postgres").exists():
            return real
    return None


def _account() -> dict[str, Any]:
    """Who a server runs as: PostgreSQL refuses to be root."""
    if os.getuid() != 0:
        return {}
    import pwd

    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise RuntimeError("neither postgres nor nobody is a user here")


def _control(server: PostgresServer, *order: str | Path) -> None:
    folder = programs()
    assert folder is not None
    subprocess.run(
        [folder / "pg_ctl", "-D", server.data, "-w", "-t", str(START_SECONDS), "-s", *order],
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        **_account(),
    )


@dataclass(frozen=True)
class PostgresServer:
    """A server in a folder: what it keeps in `data`, its socket beside it."""

    folder: Path

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def pid(self) -> int:
        return int((self.data / "postmaster.pid").read_text().split()[0])

    def url(self, database: str = "postgres", schema: str | None = None) -> str:
        named = "" if schema is None else f"&schema={schema}"
        return f"postgresql://postgres@/{database}?host={self.folder}{named}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = [f"-c {name}='{value}'" for name, value in OPTIONS.items()]
        order = ["-l", self.folder / "log", "-o", " ".join([*options, f"-k '{self.folder}'"])]
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                return _control(self, "start", *order)
            except subprocess.CalledProcessError:  # what a killed one had started ends by itself
                if time.monotonic() > deadline:
                    raise

    def kill(self) -> None:
        """kill -9 of the server; what it started ends when that is gone."""
        pid = self.pid
        os.kill(pid, signal.SIGKILL)
        while _is_alive(pid):
            time.sleep(0.005)
        # The number may be that of another process by now, which a start would wait for.
        (self.data / "postmaster.pid").unlink()

    def stop(self) -> None:
        """End it at once; no error where it is gone."""
        if (self.data / "postmaster.pid").exists():
            _control(self, "stop", "-m", "immediate")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:  # dead, and its parent has not asked for its end yet?
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]
    except OSError:
        return not Path("/proc/self").exists()


def _folder() -> Path:
    """A folder where the server's user may go: those of pytest are closed to others. In memory,
    where there is room; the name is short, for that of a socket is."""
    shared = Path("/dev/shm")
    roomy = shared.is_dir() and shutil.disk_usage(shared).free > 2 << 30
    folder = Path(tempfile.mkdtemp(prefix="eq-pg-", dir=shared if roomy else None))
    account = _account()
    if account:
        os.chown(folder, account["user"], account["group"])
    folder.chmod(0o755)
    return folder


def _create(folder: Path) -> PostgresServer:
    """The files of a new server."""
    server, installed = PostgresServer(folder), programs()
    assert installed is not None
    subprocess.run(
        [
            *(installed / "initdb", "-D", server.data, "-U", "postgres", "-A", "trust"),
            *("-E", "UTF8", "--no-locale", "--no-sync", "--no-instructions"),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
        cwd="/",
        **_account(),
    )
    return server


_WATCH = """
import contextlib, fcntl, os, shutil, signal, sys, time
users, folder, note = sys.argv[1:]
with open(users) as file:
    fcntl.flock(file, fcntl.LOCK_EX)  # whoever used it is gone, killed or not
    with contextlib.suppress(OSError, ValueError):
        at = os.path.join(folder, "data", "postmaster.pid")
        with open(at) as line:
            os.kill(int(line.readline()), signal.SIGQUIT)
        while os.path.exists(at):
            time.sleep(0.02)
    with contextlib.suppress(OSError):
        os.unlink(note)
    shutil.rmtree(folder, ignore_errors=True)
"""


def _watch(server: PostgresServer, users: Path, note: Path) -> None:
    """Have the server end when nobody holds the lock of its users any more, however they ended."""
    order = [sys.executable, "-c", _WATCH, str(users), str(server.folder), str(note)]
    os.posix_spawn(sys.executable, order, dict(os.environ), setsid=True)


@contextlib.contextmanager
def _shared(place: Path) -> Iterator[PostgresServer]:
    """The server of this run: whoever comes first starts it, and it ends with whoever goes last."""
    place.mkdir(parents=True, exist_ok=True)
    note, names = place / "postgres.folder", place / "postgres.users"
    with (place / "postgres.lock").open("a") as lock, names.open("a") as users:
        fcntl.flock(lock, fcntl.LOCK_EX)
        fcntl.flock(users, fcntl.LOCK_SH)
        if not note.exists():
            server = _create(_folder())
            _watch(server, names, note)
            server.start()
            note.write_text(str(server.folder))
        fcntl.flock(lock, fcntl.LOCK_UN)
        yield PostgresServer(Path(note.read_text()))


def _require() -> None:
    if programs() is None:
        pytest.skip("no PostgreSQL server is installed here (Debian: apt install postgresql)")


@pytest.fixture(scope="session")
def postgres_database(
    tmp_path_factory: pytest.TempPathFactory, worker_id: str
) -> Iterator[tuple[PostgresServer, str]]:
    """The server of this run, and the name of a database of this worker's own."""
    _require()
    base = tmp_path_factory.getbasetemp()
    with _shared((base if worker_id == "master" else base.parent) / "postgres") as server:
        name = f"tests_{worker_id}"
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        yield server, name


_NUMBERS = itertools.count(1)


@pytest.fixture
def postgres_url(postgres_database: tuple[PostgresServer, str]) -> str:
    """A URL whose schema nobody else uses; nothing is in it."""
    server, database = postgres_database
    return server.url(database, f"experiment_{next(_NUMBERS)}")


@pytest.fixture(scope="session")
def new_postgres_url(postgres_database: tuple[PostgresServer, str]) -> Any:
    """() -> a URL as `postgres_url`, another one each time."""
    server, database = postgres_database
    return lambda: server.url(database, f"experiment_{next(_NUMBERS)}")


@contextlib.contextmanager
def own_server() -> Iterator[PostgresServer]:
    """A new server, running, until the end of the block."""
    with tempfile.TemporaryDirectory() as place, _shared(Path(place)) as server:
        yield server


@pytest.fixture
def postgres(postgres_database: tuple[PostgresServer, str]) -> Iterator[PostgresServer]:
    """A server of the test's own, which it may kill and start again."""
    with own_server() as server:
        yield server
