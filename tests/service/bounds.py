"""What memory and start-up take: `python -m tests.service.bounds decisions 4000 400000`.

decisions: open decisions in a window of a day, one reward in ten missing: resident memory of the
daemon and of its analyst after each count. rules: so many frozen rules in a store, and how long a
daemon takes to start on it. Prints a table; nothing is asserted, for a machine that is busy with
other things would fail.
"""

from __future__ import annotations

import re
import sqlite3
import sys
import tempfile
import time
from pathlib import Path

from equipoise.agent.lifecycle.rules import rule_id
from tests.service.running import Running, running

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
BATCH = 500


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
    {"decisions": decisions, "rules": rules}[kind]([int(number) for number in numbers])
