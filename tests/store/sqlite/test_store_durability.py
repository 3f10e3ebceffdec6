"""What survives: closing, killing, and a writer and readers side by side."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from equipoise.store.batches import DecisionBatch, OutcomeBatch
from equipoise.store.contract import Store
from equipoise.store.errors import ReadOnlyStoreError, StoreError, StoreInUseError
from equipoise.store.records import Alert, Era, RuleRecord
from equipoise.store.sqlite import SqliteStore

# Appends decisions and outcomes in turn, batch i with i % 7 + 1 rows, and says what was
# acknowledged after each; every value follows from the row's place, so a log can be checked.
WRITER = """
import sys
import numpy as np
from equipoise.store.batches import DecisionBatch, OutcomeBatch
from equipoise.store.sqlite import SqliteStore

store = SqliteStore(sys.argv[1])
i = int(sys.argv[2])
print("ready", flush=True)
while True:
    n, first = i % 7 + 1, store.decisions
    values = np.full(n, float(i))
    whole = np.full(n, i)
    if i % 2:
        flags = np.zeros(n, dtype=bool)
        batch = DecisionBatch(
            number=np.arange(first, first + n), unit=whole, context=whole, at=values,
            x=values[:, None], routed=whole, rate=values, probabilities=values[:, None],
            uniform=values, model=whole, randomized=flags, capped=flags, rule_id="r", era=0,
            request_id=[f"{i}-{row}" for row in range(n)],
        )
    else:
        batch = OutcomeBatch(
            number=whole, served=whole, attempt=whole, delivered=np.ones(n, dtype=bool),
            outputs=values[:, None], reward=values, at=values,
        )
    print(store.append(batch) + n, flush=True)
    i += 1
"""


def rows_of_first_batches(batches: int) -> list[tuple[type, float]]:
    return [
        (DecisionBatch if i % 2 else OutcomeBatch, float(i))
        for i in range(batches)
        for _ in range(i % 7 + 1)
    ]


def kinds_and_times(store: Store) -> list[tuple[type, float]]:
    return [(type(part.batch), at) for part in store.read() for at in part.batch.at.tolist()]


def test_killing_the_writer_loses_nothing_acknowledged(tmp_path: Path) -> None:
    path, batches = tmp_path / "log.db", 0
    for _ in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(batches)], stdout=subprocess.PIPE
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        time.sleep(0.15)
        writer.send_signal(signal.SIGKILL)
        said = writer.stdout.read()
        writer.wait()
        writer.stdout.close()
        # The last line may have been cut by the kill; only a whole line was acknowledged.
        acknowledged = [int(line) for line in said.split(b"\n")[:-1]]
        assert len(acknowledged) > 20
        with SqliteStore(path) as store:
            assert store.next_seq >= acknowledged[-1]
            sizes = np.cumsum([i % 7 + 1 for i in range(batches + len(acknowledged) + 2)])
            (whole,) = np.flatnonzero(sizes == store.next_seq)  # never half a batch
            batches = int(whole) + 1
            assert kinds_and_times(store) == rows_of_first_batches(batches)
            assert store.decisions == sum(i % 7 + 1 for i in range(1, batches, 2))


def test_everything_is_there_after_closing(
    tmp_path: Path, author: Any, log_of: Any, rows_of: Any
) -> None:
    path, wanted = tmp_path / "log.db", []
    era = Era(era=0, opened_at=0.0, reason="s", models=["é", "b"], key_hash="k", schema_hash="s")
    rule = RuleRecord(rule_id="r", era=0, at=0.5, body='{"e":1}')
    alert = Alert(at=1.0, check="c", status="ok", sentence="All is well.")
    for turn in range(3):
        with SqliteStore(path, durability="power" if turn else "process") as store:
            assert (store.next_seq, store.decisions) == (len(wanted), author.written)
            assert log_of(store) == wanted
            for _ in range(6):
                batch = author.anything(4)
                wanted += rows_of(store.append(batch), batch)
            store.put(era)
            store.put(rule)
            store.put(alert)
            store.freeze("config", "{}")
            store.checkpoint(store.next_seq, b"%d" % turn, at=float(turn))
    with SqliteStore(path, read_only=True) as store:
        assert (store.eras(), store.rules(), store.alerts()) == ([era], [rule], [alert])
        assert store.settings() == {"config": "{}"}
        newest = store.restore()
        assert newest is not None
        assert newest.state == b"2"
    assert sorted(name for name in os.listdir(tmp_path) if "lock" in name) == []


def test_power_syncs_every_commit_and_process_does_not(tmp_path: Path) -> None:
    levels = {}
    for durability in ("process", "power"):
        with SqliteStore(tmp_path / f"{durability}.db", durability=durability) as store:
            levels[durability] = store._session.connection.execute("PRAGMA synchronous").fetchone()[
                0
            ]
            assert store._session.connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert levels == {"process": 1, "power": 2}
    with pytest.raises(StoreError, match="durability is 'none', expected 'process' or 'power'"):
        SqliteStore(tmp_path / "s.db", durability="none")  # type: ignore[arg-type]


def test_a_second_writer_is_refused(tmp_path: Path, author: Any) -> None:
    path = tmp_path / "log.db"
    with SqliteStore(path) as store:
        for name in (path, tmp_path / "." / "log.db"):
            with pytest.raises(StoreInUseError, match="in this process already: use the"):
                SqliteStore(name)
        link = tmp_path / "link.db"
        link.symlink_to(path)
        with pytest.raises(StoreInUseError):
            SqliteStore(link)
        script = f"from equipoise.store.sqlite.store import SqliteStore; SqliteStore({str(path)!r})"
        other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert "StoreInUseError" in other.stderr
        store.append(author.decisions(1))
    with SqliteStore(path) as store:
        assert store.next_seq == 1


def test_a_child_of_a_killed_writer_does_not_hold_the_store(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    script = (
        "import os, sys, time\n"
        "from equipoise.store.sqlite.store import SqliteStore\n"
        "store = SqliteStore(sys.argv[1])\n"
        "child = os.fork()\n"
        "if child: print(child, flush=True)\n"
        "time.sleep(60)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    child = int(writer.stdout.readline())
    try:
        time.sleep(0.05)
        writer.kill()
        writer.wait()
        os.kill(child, 0)  # the child is still alive
        SqliteStore(path).close()
    finally:
        os.kill(child, signal.SIGKILL)
        writer.stdout.close()


def test_a_reader_follows_the_writer(tmp_path: Path, author: Any, log_of: Any) -> None:
    path = tmp_path / "log.db"
    with SqliteStore(path) as writer, SqliteStore(path, read_only=True) as reader:
        for _ in range(5):
            writer.append(author.anything(3))
            assert reader.next_seq == writer.next_seq
            assert reader.decisions == writer.decisions
            assert log_of(reader) == log_of(writer)
        writer.checkpoint(4, b"state", at=0.0)
        newest = reader.restore()
        assert newest is not None
        assert newest.state == b"state"


def test_a_reader_in_a_transaction_does_not_block_the_writer(tmp_path: Path, author: Any) -> None:
    path = tmp_path / "log.db"
    with SqliteStore(path, busy_seconds=0.0) as writer:
        writer.append(author.decisions(3))
        reader = sqlite3.connect(path, isolation_level=None)
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM decisions").fetchone() == (3,)
        writer.append(author.decisions(2))
        assert reader.execute("SELECT count(*) FROM decisions").fetchone() == (3,)
        reader.close()


def test_a_read_only_store_writes_nothing(tmp_path: Path, author: Any) -> None:
    path = tmp_path / "log.db"
    alert = Alert(at=1.0, check="c", status="s", sentence="t")
    with SqliteStore(path) as store:
        store.append(author.decisions(2))
        store.freeze("config", "{}")
        store.put(alert)
    with SqliteStore(path, read_only=True) as store:
        store.freeze("config", "{}")  # what is there already is no write
        store.put(alert)
        writes = (
            lambda: store.append(author.decisions(1)),
            lambda: store.checkpoint(0, b"", 0.0),
            lambda: store.freeze("a", "b"),
            lambda: store.put(Alert(at=0.0, check="c", status="s", sentence="t")),
        )
        for write in writes:
            with pytest.raises(ReadOnlyStoreError, match="was opened read-only"):
                write()
        assert store.next_seq == 2
    assert not (tmp_path / "log.db.lock").exists()


def test_threads_take_turns(tmp_path: Path, new_author: Any) -> None:
    def observe(seed: int) -> None:
        author = new_author(seed)
        for _ in range(20):
            store.append(author.observations(3))
            store.find_requests(["a"])

    with SqliteStore(tmp_path / "log.db") as store:
        threads = [threading.Thread(target=observe, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert store.next_seq == 240
        assert sum(len(segment.batch) for segment in store.read()) == 240


def test_a_closed_store_says_so(tmp_path: Path, author: Any) -> None:
    store = SqliteStore(tmp_path / "log.db")
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.append(author.decisions(1))
    with pytest.raises(StoreError, match="closed"):
        store.eras()
