"""Kill -9 at random moments under load, start again, and compare the log with what was promised.

python tests/service/killing.py --moments 200 --seed 1 --kinds daemon,analyst,full,read-only

daemon: nothing else goes wrong. analyst: its process is killed, again and again, before the daemon
is. full: the disk fills under load (a small tmpfs), and is emptied while the daemon runs or when it
was killed. read-only: the file system refuses writes from some moment on (ext4 on a loop device,
as after a disk error). The last two need root.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import signal
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from running import Running, running, until

from equipoise.agent.agent import Agent
from equipoise.agent.config import ExperimentConfig
from equipoise.store.sqlite import SqliteStore

# Everything that may be interrupted happens all the time.
SERVICE = """
refresh_seconds = 0.25
checkpoint_seconds = 0.15
log_level = "warning"
"""
CLIENTS = 4
KINDS = ("daemon", "analyst", "full", "read-only")
DISK_BYTES = 64 << 20
PASSED_THROUGH_SECONDS = 2.0
"""After which nothing may be acknowledged on a file system that takes no more."""


@dataclass
class Promises:
    """What was acknowledged, what was asked and never answered, what was wrong with an answer.

    lenient: the store may fail, so requests may be passed through and outcomes be refused with 503.
    """

    lenient: bool = False
    decisions: dict[str, dict[str, Any]] = field(default_factory=dict)
    outcomes: set[tuple[str, str]] = field(default_factory=set)
    open: list[tuple[str, Any]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    last: float = 0.0
    refused: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Client(threading.Thread):
    """Decides and sends outcomes, one after the other, until the daemon is gone."""

    def __init__(self, port: int, name: str, seed: int, promises: Promises) -> None:
        super().__init__(daemon=True)
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        self._name, self._random, self._promises = name, random.Random(seed), promises

    def run(self) -> None:
        for index in range(1_000_000):
            name = f"{self._name}-{index}"
            words = self._random.randrange(100)
            asked = {"request_id": name, "routed": "small", "features": {"words": words}}
            calls: list[tuple[str, Any]] = [("/v1/decide", asked)]
            if self._random.random() < 0.8:
                calls.append(("/v1/outcomes", {"request_id": name, "outputs": {"seconds": words}}))
            if self._random.random() < 0.8:
                calls.append(("/v1/outcomes", {"request_id": name, "reward": words / 100}))
            for path, body in calls:
                try:
                    status, answer = ask(self._connection, path, body)
                except (OSError, http.client.HTTPException):
                    with self._promises.lock:
                        self._promises.open.append((path, body))
                    self._connection.close()
                    return
                with self._promises.lock:
                    if not keep(self._promises, path, body, status, answer):
                        break  # not decided: there is nothing to report


def ask(connection: http.client.HTTPConnection, path: str, body: Any) -> tuple[int, Any]:
    connection.request("POST", path, json.dumps(body))
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def keep(promises: Promises, path: str, body: Any, status: int, answer: Any) -> bool:
    """Remember an answer; whether it promises anything."""
    name = body["request_id"]
    if path == "/v1/decide":
        good = status == 200 and answer["decision_id"] is not None
    else:
        good = status == 200 and answer["accepted"] + answer["duplicates"] == 1
    if not good:
        promises.refused += 1
        if not promises.lenient or status not in (200, 503):
            promises.wrong.append(f"{path} {name}: {status} {answer}")
    elif path == "/v1/decide":
        promises.decisions[name] = answer
    else:
        promises.outcomes.add((name, "reward" if "reward" in body else "outputs"))
    if good:
        promises.last = time.monotonic()
    return good


def kill_once(
    folder: Path, moment: int, rng: random.Random, promises: Promises, kind: str = "daemon"
) -> None:
    """Start, send again what was left open, load, and kill at a random moment."""
    with running(folder, SERVICE) as daemon:
        send_open(daemon, promises)
        with _load(daemon, moment, rng, promises):
            if kind == "analyst":
                _kill_analyst(daemon, rng, promises)
            elif kind == "full":
                _fill(daemon, rng, promises)
            time.sleep(rng.uniform(0.0, 0.6))
            daemon.kill()
    (folder / "filler").unlink(missing_ok=True)


@contextlib.contextmanager
def _load(daemon: Running, moment: int, rng: random.Random, promises: Promises) -> Iterator[None]:
    clients = [
        Client(daemon.port, f"k{moment}-{number}", rng.randrange(2**32), promises)
        for number in range(CLIENTS)
    ]
    for client in clients:
        client.start()
    yield
    for client in clients:
        client.join(30)


def _kill_analyst(daemon: Running, rng: random.Random, promises: Promises) -> None:
    """Several times; decisions go on, and in the end estimates are answered again."""
    process = daemon.process.pid
    for _ in range(rng.randint(1, 4)):
        time.sleep(rng.uniform(0.0, 0.4))
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
        for child in map(int, children):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
    if rng.random() < 0.3:
        try:
            until(lambda: daemon.ask("GET", "/v1/estimates").status == 200, 30.0)
        except AssertionError:
            promises.wrong.append("no estimates within 30 s after the analyst was killed")


def _fill(daemon: Running, rng: random.Random, promises: Promises) -> None:
    """Leave no room, or hardly any; half of the time make some again while the daemon runs."""
    time.sleep(rng.uniform(0.0, 0.3))
    path = daemon.folder / "filler"
    free = os.statvfs(daemon.folder).f_bavail * os.statvfs(daemon.folder).f_frsize
    with path.open("wb") as file, contextlib.suppress(OSError):
        os.posix_fallocate(file.fileno(), 0, max(free - rng.choice([0, 4096, 1 << 20]), 4096))
    time.sleep(rng.uniform(0.2, 1.2))
    if rng.random() < 0.5:
        path.unlink()
        try:
            until(lambda: daemon.ask("GET", "/readyz").status == 200, 15.0)
        except AssertionError:
            promises.wrong.append("not ready within 15 s after there was room again")


def send_open(daemon: Running, promises: Promises) -> None:
    """What was asked and not answered is asked again, as a client would."""
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=20)
    for path, body in promises.open:
        status, answer = ask(connection, path, body)
        # Decided and passed through, or never logged: then there is nothing to report.
        if status == 404 and promises.lenient:
            continue
        keep(promises, path, body, status, answer)
    promises.open.clear()
    connection.close()


def faults(store: Path, promises: Promises) -> list[str]:
    """Everything in the log that is not as promised."""
    found: list[str] = []
    database = sqlite3.connect(store)
    names = ["large", "small"]
    logged = {
        name: (f"d{number}", names[model], bool(randomized), rule)
        for name, number, model, randomized, rule in database.execute(
            "SELECT request_id, number, model, randomized, rule_id FROM decisions"
        )
    }
    (rows,) = database.execute("SELECT count(*) FROM decisions").fetchone()
    if rows != len(logged):
        found.append(f"{rows} decisions for {len(logged)} requests")
    for name, said in promises.decisions.items():
        promised = tuple(said[key] for key in ("decision_id", "model", "randomized", "rule_id"))
        if logged.get(name) != promised:
            found.append(f"{name}: promised {promised}, logged {logged.get(name)}")
    parts = Counter(
        (name, part)
        for name, reward, outputs in database.execute(
            "SELECT request_id, reward, outputs FROM outcomes JOIN decisions USING (number)"
        )
        for part, there in (("reward", reward is not None), ("outputs", "null" not in outputs))
        if there
    )
    found += [f"{part} logged {times} times" for part, times in parts.items() if times > 1]
    found += [f"{part} missing" for part in promises.outcomes if part not in parts]
    database.close()
    return found


class _WithoutCheckpoints(SqliteStore):
    def restore(self) -> None:
        return None


def state_is_the_fold(store: Path) -> bool:
    """Whether the daemon's own state, saved as it ended, is a fold of its log from the start."""
    with _WithoutCheckpoints(store, read_only=True) as log:
        agent = Agent(ExperimentConfig.from_json(log.settings()["config"]), log, None)
        saved = SqliteStore.restore(log)
        assert saved is not None
        assert saved.seq == agent.light.next_seq > 0
        return saved.state == agent.fold.to_bytes()


def study(
    folder: Path, moments: int, seed: int, kind: str = "daemon"
) -> tuple[Promises, list[str]]:
    """Kill at so many moments; what was promised, and what is wrong with the log."""
    rng, promises = random.Random(seed), Promises(lenient=kind == "full")
    found = promises.wrong
    for moment in range(moments):
        kill_once(folder, moment, rng, promises, kind)
    with running(folder, SERVICE) as daemon:
        send_open(daemon, promises)
        # An analyst that is still starting has no state to save when the daemon ends.
        until(lambda: daemon.ask("GET", "/v1/estimates").status == 200)
        if daemon.stop() != 0:
            found.append("the daemon did not end in good order")
    found += faults(daemon.store, promises)
    if not state_is_the_fold(daemon.store):
        found.append("the state is not the fold of the log")
    return promises, found


@contextlib.contextmanager
def mounted(folder: Path, *arguments: str) -> Iterator[Path]:
    """A file system of its own on a folder. Raises CalledProcessError where that is not allowed."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", *arguments, folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def study_read_only(folder: Path, moments: int, seed: int) -> tuple[Promises, list[str]]:
    """A file system that refuses every write from some moment on, a fresh one each time.

    With `power` all that was acknowledged is there after a repair. With `process` the cache of the
    file system may be lost; what is asked is that nothing is acknowledged on it any more.
    """
    rng, total = random.Random(seed), Promises()
    image, place = folder / "image", folder / "disk"
    for moment in range(moments):
        power = moment % 2 == 0
        # Another file each time: the device of the last one may still be busy with it.
        image.unlink(missing_ok=True)
        with image.open("wb") as file:
            file.truncate(DISK_BYTES)
        subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
        promises = Promises(lenient=True)
        service = SERVICE + ('durability = "power"\n' if power else "")
        mount = ("-o", "loop,errors=remount-ro", str(image))
        with mounted(place, *mount), running(place, service) as daemon:
            device = subprocess.run(
                ["findmnt", "-no", "SOURCE", place], capture_output=True, text=True, check=True
            )
            switch = Path("/sys/fs/ext4", Path(device.stdout.strip()).name, "trigger_fs_error")
            with _load(daemon, moment, rng, promises):
                time.sleep(rng.uniform(0.1, 0.6))
                switch.write_text("1")
                begun = time.monotonic()
                time.sleep(PASSED_THROUGH_SECONDS + rng.uniform(0.5, 1.0))
                daemon.kill()
        if promises.last > begun + PASSED_THROUGH_SECONDS:
            late = promises.last - begun
            total.wrong.append(f"moment {moment}: acknowledged {late:.1f} s after the disk failed")
        if power:
            repaired = subprocess.run(["fsck.ext4", "-fy", image], capture_output=True, check=False)
            assert repaired.returncode in (0, 1), repaired
            with mounted(place, *mount):
                with running(place, service) as daemon:
                    send_open(daemon, promises)
                    daemon.stop()
                total.wrong += faults(daemon.store, promises)
        total.wrong += promises.wrong
        total.refused += promises.refused
        total.decisions |= promises.decisions
        total.outcomes |= promises.outcomes
    return total, total.wrong


def study_kind(kind: str, moments: int, seed: int) -> tuple[Promises, list[str]]:
    """One kind, on a disk of its own where it needs one."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        if kind == "read-only":
            return study_read_only(folder, moments, seed)
        if kind == "full":
            folder = folder / "disk"
            stack.enter_context(mounted(folder, "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs"))
        return study(folder, moments, seed, kind)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--moments", type=int, default=200, help="of each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", default="daemon", help=f"some of {','.join(KINDS)}")
    chosen = parser.parse_args()
    failed = False
    for kind in chosen.kinds.split(","):
        if kind in ("full", "read-only") and os.geteuid() != 0:
            print(f"{kind}: skipped, it needs root to mount a disk", flush=True)
            continue
        promises, found = study_kind(kind, chosen.moments, chosen.seed)
        print(
            f"{kind}: {chosen.moments} kills: {len(promises.decisions):,} decisions and "
            f"{len(promises.outcomes):,} parts of outcomes acknowledged, "
            f"{promises.refused:,} passed through or refused, {len(found)} faults",
            flush=True,
        )
        print("".join(f"{line}\n" for line in found[:20]), end="")
        failed |= bool(found)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
