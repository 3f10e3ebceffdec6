"""What memory and start-up take: `python tests/service/bounds.py decisions 4000 400000`.

log: a long log, whose decisions are rated and closed: what the daemon keeps of it (the agent as the
daemon has it, its store with the tail, and SQLite's writer) in this process, and the analyst's own
process that follows, after each count. Decisions and outcomes come a thousand at a time, which is
what lets ten million take minutes; they take 6 GB of disk.

decisions: open decisions in a window of a day, one reward in ten missing: resident memory of the
daemon and of its analyst after each count. rules: so many frozen rules in a store, and how long a
daemon takes to start on it. Prints a table; nothing is asserted, for a machine that is busy with
other things would fail.
"""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

import msgspec
import numpy as np
from running import Running, running

from equipoise.agent.agent import Agent
from equipoise.agent.config import ExperimentConfig
from equipoise.agent.lifecycle.rules import rule_id
from equipoise.agent.service.analyst.process import (
    HEADER,
    Ask,
    Doing,
    Failure,
    Open,
    Question,
    Reply,
)
from equipoise.store.batches import OutcomeBatch, RequestBatch
from equipoise.store.journal import JournaledStore

CONFIG = """
name = "chat"
models = [{name = "large", price = 0.02}, {name = "small", price = 0.01}]
[reward]
window = 86400.0
[features]
context = [{type = "number", name = "words", low = 0, scale = 100}]
outputs = [{type = "number", name = "seconds"}]
[policy]
assignment = "uniform"
rate = 0.5
"""
LONG = """
name = "long"
models = [{name = "m0", price = 0.01}, {name = "m1", price = 0.02}, {name = "m2", price = 0.01},
          {name = "m3", price = 0.04}]
[features]
context = [{type = "vector", name = "x", length = 8}]
outputs = [{type = "vector", name = "y", length = 4}]
[policy]
rate = 0.2
"""
BATCH, AT_ONCE = 500, 1000


def resident(process: int) -> float:
    """Megabytes."""
    text = Path(f"/proc/{process}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+)", text)
    assert found is not None
    return int(found[1]) / 1024


def play(daemon: Running, first: int, last: int) -> None:
    """Decisions with outputs, nine rewards in ten."""
    for start in range(first, last, BATCH):
        names = [f"q{number}" for number in range(start, min(start + BATCH, last))]
        requests = [
            {"request_id": name, "routed": "large", "features": {"words": 10.0 + at % 90}}
            for at, name in enumerate(names)
        ]
        answer = daemon.ask("POST", "/v1/decide/batch", {"requests": requests})
        assert answer.status == 200, answer.body
        outcomes = [
            {"request_id": name, "outputs": {"seconds": 1.0}, "reward": at % 2}
            for at, name in enumerate(names)
            if at % 10
        ]
        answer = daemon.ask("POST", "/v1/outcomes", outcomes)
        assert answer.status == 200, answer.body
        assert not answer.json["rejected"], answer.body


def analyst(daemon: Running) -> int:
    path = Path(f"/proc/{daemon.process.pid}/task/{daemon.process.pid}/children")
    return int(path.read_text().split()[0])


def decisions(counts: list[int], service: str = "") -> None:
    """One daemon, more and more open decisions."""
    print("| open decisions | daemon MB | analyst MB | most of each, MB |\n|---|---|---|---|")
    with (
        tempfile.TemporaryDirectory() as folder,
        running(Path(folder), f"checkpoint_seconds = 5\n{service}", config=CONFIG) as daemon,
    ):
        known = 0
        for count in counts:
            most = [0.0, 0.0]
            for start in range(known, count, 10_000):
                play(daemon, start, min(start + 10_000, count))
                time.sleep(0.5)
                now = [resident(daemon.process.pid), resident(analyst(daemon))]
                most = [max(pair) for pair in zip(most, now, strict=True)]
            known = count
            assert daemon.ask("GET", "/v1/estimates").status == 200
            for _ in range(30):
                time.sleep(0.5)
                now = [resident(daemon.process.pid), resident(analyst(daemon))]
                most = [max(pair) for pair in zip(most, now, strict=True)]
            print(
                f"| {count:,} | {now[0]:.0f} | {now[1]:.0f} | {most[0]:.0f}, {most[1]:.0f} |",
                flush=True,
            )


def log(counts: list[int], folder: str | None = None) -> None:
    """One agent and its store, longer and longer; in a temporary folder unless one is given."""
    print("| decisions | daemon's side MB | analyst MB | log MB | seconds |\n|---|---|---|---|---|")
    rng, begin = np.random.default_rng(0), time.monotonic()
    x, routed = rng.normal(size=(AT_ONCE, 8)), np.arange(AT_ONCE) % 4
    with (
        tempfile.TemporaryDirectory(dir=folder) as name,
        JournaledStore(Path(name, "log.db")) as store,
    ):
        agent = Agent(
            ExperimentConfig.from_json(msgspec.json.encode(tomllib.loads(LONG)).decode()),
            store,
            b"k" * 32,
            open_bytes=16 << 20,
        )
        agent.state.lighten()
        process = subprocess.Popen(
            [sys.executable, "-m", "equipoise.agent.service.analyst.process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        _exchange(process, Open(store.where, agent.config.to_json(), 16 << 20))
        known = 0
        for count in counts:
            for first in range(known, count, AT_ONCE):
                names = [f"{rng.integers(2**60):x}-{at}" for at in range(first, first + AT_ONCE)]
                at = np.full(AT_ONCE, 1.7e9 + first / 1000)
                unit, context = rng.integers(0, 2**62, AT_ONCE), np.full(AT_ONCE, -1)
                made = agent.decide(RequestBatch(unit, context, at, x, routed, None, names))
                agent.observe(
                    OutcomeBatch(
                        number=made.number,
                        served=made.model,
                        attempt=np.zeros(AT_ONCE, dtype=np.int64),
                        delivered=np.ones(AT_ONCE, dtype=np.bool_),
                        outputs=rng.normal(size=(AT_ONCE, 4)),
                        reward=rng.integers(0, 2, AT_ONCE).astype(np.float64),
                        at=at + 1.0,
                    )
                )
                if first % 20_000 == 0:
                    store.settle()
                    _exchange(process, Ask([], len(agent.state.rules), {}, []))
            store.settle()
            _exchange(process, Ask([], len(agent.state.rules), {}, []))
            known = count
            size = sum(file.stat().st_size for file in Path(name).iterdir()) / 2**20
            now = f"{resident(os.getpid()):.0f} | {resident(process.pid):.0f} | {size:,.0f}"
            print(f"| {count:,} | {now} | {time.monotonic() - begin:.0f} |", flush=True)
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


def _exchange(process: subprocess.Popen[bytes], question: Question) -> None:
    body = msgspec.msgpack.encode(question)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(HEADER.pack(len(body)) + body)
    process.stdin.flush()
    reply: Reply = Doing("")
    while isinstance(reply, Doing):
        size = HEADER.unpack(process.stdout.read(HEADER.size))[0]
        reply = msgspec.msgpack.decode(process.stdout.read(size), type=Reply)
    assert not isinstance(reply, Failure), reply


def _other_rule(era: int, at: float, body: str, number: int) -> tuple[str, int, float, str]:
    """A rule that begins somewhere else, under the id that its text has."""
    body = re.sub(r'"since":\d+', f'"since":{10**6 + number}', body)
    return rule_id(body), era, at, body


def rules(counts: list[int]) -> None:
    """A store with so many rules more than it uses, and the time until the daemon listens."""
    print("| rules | start, s | daemon MB | analyst MB |\n|---|---|---|---|")
    for count in counts:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            with running(folder, config=CONFIG) as daemon:
                play(daemon, 0, 2000)
            store = sqlite3.connect(folder / "log.db")
            known = store.execute("SELECT era, at, body FROM rules ORDER BY id LIMIT 1").fetchone()
            with store:
                store.executemany(
                    "INSERT INTO rules (rule_id, era, at, body) VALUES (?, ?, ?, ?)",
                    (_other_rule(*known, at) for at in range(count)),
                )
                # The newest is the one in force.
                row = store.execute(
                    "SELECT rule_id, era, at, body FROM rules WHERE id ="
                    " (SELECT max(id) - ? FROM rules)",
                    (count,),
                ).fetchone()
                store.execute("DELETE FROM rules WHERE rule_id = ?", (row[0],))
                store.execute("INSERT INTO rules (rule_id, era, at, body) VALUES (?, ?, ?, ?)", row)
                store.execute("DELETE FROM checkpoints")
            store.close()
            begin = time.monotonic()
            with running(folder, config=CONFIG) as daemon:
                took = time.monotonic() - begin
                play(daemon, 2000, 2500)
                assert daemon.ask("GET", "/v1/estimates").status == 200
                memory = resident(daemon.process.pid), resident(analyst(daemon))
            print(f"| {count:,} | {took:.1f} | {memory[0]:.0f} | {memory[1]:.0f} |", flush=True)


if __name__ == "__main__":
    kind, *numbers = sys.argv[1:]
    {"decisions": decisions, "log": log, "rules": rules}[kind]([int(number) for number in numbers])
