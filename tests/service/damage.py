"""Damage a store in one place, start again, and compare the log with what was acknowledged.

python tests/service/damage.py --faults 2000 --seed 1

A fault is a flipped bit, a wrong length, a torn page, a cut, a missing file, the file of another
store or of an earlier moment; in the tail, the database, SQLite's journal, the mark, the key, or a
checkpoint, rule or setting inside. Each must end in one of two ways: nothing is lost, or one line
says what is, at the start or in the audit. Never a number twice, never a traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import sqlite3
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from running import write_config

from equipoise.agent.agent import Agent
from equipoise.agent.config.file import load_file
from equipoise.agent.maintenance.audit import audit
from equipoise.agent.maintenance.key_file import open_key, write_key
from equipoise.agent.record_adapter import Gateway
from equipoise.store.errors import SlowStoreError
from equipoise.store.format import frames as tail_module
from equipoise.store.journal.store import JournaledStore
from equipoise.store.records import Outcome, Request
from equipoise.store.sqlite import SqliteStore

DECISIONS, IN_SQLITE, STALE_AT = 90, 50, 70
"""Of a store: how many, how many of them SQLite has, and how many there were when it was copied."""
STORE = "log.db"
PAGE = 4096


@dataclass
class Template:
    """A store as it was left. handed_out: the first number that was given to nobody."""

    folder: Path
    stale: Path
    rows: dict[str, str]
    handed_out: int


def make(folder: Path, seed: int, killed: bool) -> Template:
    """Leave a store with acknowledged rows: killed with a part in the tail, or ended in order."""
    store = folder / "store"
    store.mkdir(parents=True)
    code = _in_child(lambda: _write(store, folder / "stale", seed, killed))
    assert code["ended"] == "written", code
    return Template(store, folder / "stale", code["rows"], DECISIONS)


def _write(folder: Path, stale: Path, seed: int, killed: bool) -> dict[str, Any]:
    tail_module.FILE_BYTES = 8192
    rng = random.Random(seed)
    config = load_file(write_config(folder), {}).experiment
    store = JournaledStore(folder / STORE)
    key = write_key(store.path, rng.randbytes(32))
    gateway = Gateway(Agent(config, store, key, at=1.0), lambda: 1.0)
    together, stuck = store._log.append_together, False

    def slow(segments: Any) -> None:
        if stuck:
            raise SlowStoreError("killed before")
        together(segments)

    store._log.append_together = slow  # type: ignore[method-assign]
    for index in range(DECISIONS):
        if index == IN_SQLITE:
            store.settle()
            gateway.agent.checkpoint(2.0)
            gateway.agent.refresh(2.0)
            stuck = killed
        if index == STALE_AT:
            shutil.copytree(folder, stale, copy_function=_copy)
        name = f"r{index}"
        gateway.decide_one(Request(request_id=name, routed="large", features={"words": index}))
        if index % 3:
            gateway.observe([Outcome(request_id=name, outputs={"seconds": 1.0}, reward=0.5)])
    if not killed:
        store.close()
        return {"ended": "written", "rows": _rows(folder / STORE)}
    stuck = False
    # What the log says is read from a copy that takes its tail in.
    with tempfile.TemporaryDirectory() as other:
        copy = Path(other) / "copy"
        shutil.copytree(folder, copy, copy_function=_copy)
        SqliteStore(copy / STORE).close()
        rows = _rows(copy / STORE)
    return {"ended": "written", "rows": rows}  # and the process dies here, its store open


def _copy(source: str, target: str) -> None:
    with contextlib.suppress(FileNotFoundError):  # the store removes a file whose rows SQLite has
        shutil.copy2(source, target)


def _rows(path: Path) -> dict[str, str]:
    """Every row of the log by what it is about, without its place in the log."""
    found = {}
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as opened:
        for table in ("decisions", "outcomes"):
            query = opened.execute(f"SELECT * FROM {table} ORDER BY seq")
            names = [column[0] for column in query.description]
            for row in query.fetchall():
                values = dict(zip(names, row, strict=True))
                del values["seq"]
                name = f"{table} d{values['number']}"
                found[name] = found.get(name, "") + json.dumps(values, sort_keys=True)
    return found


def _in_child(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` returns in a forked process that then dies at once, or how it ended."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            answer = work()
        except BaseException as error:
            ours = isinstance(error, OSError) or type(error).__module__.startswith("equipoise.")
            answer = {
                "ended": "refused" if ours else "traceback",
                "line": str(error),
                "trace": "" if ours else traceback.format_exc(),
            }
        with os.fdopen(writing, "w") as pipe:
            json.dump(answer, pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    return json.loads(text) if text else {"ended": f"died of status {status}"}


def faults(rng: random.Random, template: Template, other: Template) -> tuple[str, Path]:
    """Damage a copy of a template; what was done, and where the copy is."""
    folder = Path(tempfile.mkdtemp(prefix="damage-"))
    shutil.rmtree(folder)
    shutil.copytree(template.folder, folder)
    kind, target = rng.choice(_KINDS), rng.choice(_TARGETS)
    if target in ("checkpoint", "rule", "setting"):
        return _inside(rng, folder, target), folder
    files = sorted(folder.glob(f"{STORE}{target}"))
    if not files:
        return "", folder
    path = rng.choice(files)
    return f"{kind} of {path.name}{_damage(rng, kind, path, template, other)}", folder


_KINDS = ("bit", "length", "page", "cut", "missing", "foreign", "stale", "noise")
_TARGETS = (".tail.*", ".tail.*", "", "-wal", ".mark", ".key", "checkpoint", "rule", "setting")


def _damage(rng: random.Random, kind: str, path: Path, template: Template, other: Template) -> str:
    data = bytearray(path.read_bytes())
    place = rng.randrange(max(len(data), 1))
    if kind == "missing":
        path.unlink()
        return ""
    if kind in ("foreign", "stale"):
        source = (other.folder if kind == "foreign" else template.stale) / path.name
        if source.exists():
            shutil.copy(source, path)
        else:
            path.unlink()
        return ""
    if not data:
        return ""
    if kind == "bit":
        data[place] ^= 1 << rng.randrange(8)
    elif kind == "length":
        place = len(data) + rng.choice((-1, 1)) * rng.randrange(1, 600)
        data = data[:place] if place < len(data) else data + rng.randbytes(place - len(data))
    elif kind == "page":
        place -= place % rng.choice((512, PAGE))
        data[place : place + PAGE] = bytes(min(PAGE, len(data) - place))
    elif kind == "noise":
        size = min(rng.choice((16, 512, PAGE)), len(data) - place)
        data[place : place + size] = rng.randbytes(size)
    else:
        data = data[:place]
    path.write_bytes(bytes(data))
    return f" at {place}"


def _inside(rng: random.Random, folder: Path, target: str) -> str:
    """Another value in a record, written past SQLite's back as far as the program is concerned."""
    table, column = {
        "checkpoint": ("checkpoints", "state"),
        "rule": ("rules", "body"),
        "setting": ("settings", "value"),
    }[target]
    with contextlib.closing(sqlite3.connect(folder / STORE)) as opened:
        # The journal stays: closing the last connection would end it.
        opened.execute("PRAGMA wal_autocheckpoint = 0")
        rows = opened.execute(f"SELECT rowid, {column} FROM {table}").fetchall()
        if not rows:
            return ""
        row, value = rng.choice(rows)
        if rng.random() < 0.2:
            opened.execute(f"DELETE FROM {table} WHERE rowid = ?", (row,))
        else:
            data = bytearray(value if isinstance(value, bytes) else value.encode())
            place = rng.randrange(len(data))
            data[place] = data[place] ^ 1 if rng.random() < 0.5 else 0x20
            if rng.random() < 0.3:
                data = data[:place]
            new = bytes(data) if isinstance(value, bytes) else data.decode("utf-8", "replace")
            opened.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (new, row))
        opened.commit()
    return f"{target} changed"


def begin(folder: Path, accept_loss: bool) -> dict[str, Any]:
    """Start as the daemon does, give one number, fold and audit, and end in order."""
    config = load_file(folder / "chat.toml", {}).experiment
    if accept_loss:
        SqliteStore(folder / STORE, accept_loss=True).close()
    with JournaledStore(folder / STORE) as store:
        key = open_key(store)
        agent = Agent(config, store, key, at=3.0)
        request = Request(request_id="new", routed="small", features={"words": 1.0})
        number = int(Gateway(agent, lambda: 3.0).decide_one(request).decision_id[1:])
        said = [gap.sentence for gap in store.gaps()]
        state = agent.fold.to_bytes()
    with SqliteStore(folder / STORE, read_only=True) as log:
        text = log.settings()
        result = audit(log, config, key)
        again = _WithoutCheckpoints(folder / STORE, read_only=True)
        with again:
            folded = Agent(config, again, None).fold.to_bytes()
        assert text
    return {
        "ended": "opened",
        "number": number,
        "gaps": said,
        "rows": _rows(folder / STORE),
        "audit": result.faults,
        "same_state": state == folded,
    }


class _WithoutCheckpoints(SqliteStore):
    def restore(self) -> None:
        return None


def contents(folder: Path) -> dict[str, bytes]:
    """Every file by name; SQLite's index of its journal is no content."""
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if not path.name.endswith(("-shm", ".lock"))
    }


def judge(template: Template, found: dict[str, Any]) -> tuple[str, list[str]]:
    """How a store that opened went on, and what is wrong with that."""
    missing = [name for name in template.rows if name not in found["rows"]]
    changed = [
        name
        for name, row in template.rows.items()
        if name in found["rows"] and found["rows"][name] != row
    ]
    wrong = []
    if found["number"] < template.handed_out:
        wrong.append(f"d{found['number']} was given again")
    said = bool(found["gaps"] or found["audit"])
    if not found["same_state"] and not (changed and said):
        # A checkpoint holds what rows were; where one was altered since, the audit tells the two.
        wrong.append("the state is not the fold of the log")
    if missing and not said:
        wrong.append(f"{len(missing)} rows are missing in silence: {missing[:3]}")
    if missing:
        return "lost and said", wrong
    if changed:
        return "altered and said" if said else "altered, not noticed", wrong
    return "nothing lost", wrong


def study(folder: Path, count: int, seed: int) -> tuple[Counter[str], list[str]]:
    """So many single faults; how each ended, and everything that is wrong."""
    rng, ends, wrong = random.Random(seed), Counter[str](), list[str]()
    templates = [make(folder / f"k{killed}", seed, bool(killed)) for killed in (0, 1)]
    others = [make(folder / f"o{killed}", seed + 1, bool(killed)) for killed in (0, 1)]
    for template in templates:  # without any fault: all is there
        healthy = folder / f"healthy-{template.folder.parent.name}"
        shutil.copytree(template.folder, healthy)
        found = _in_child(partial(begin, healthy, False))
        if found["ended"] != "opened" or judge(template, found) != ("nothing lost", []):
            wrong.append(f"without a fault: {found}")
    while sum(ends.values()) < count:
        which = rng.choice((0, 1, 1))
        what, damaged = faults(rng, templates[which], others[which])
        try:
            if what:
                label = f"{what} ({'killed' if which else 'ended in order'})"
                end, said = _one(templates[which], damaged)
                ends[end] += 1
                if (done := ends.total()) % 100 == 0:
                    print(f"{done:,} of {count:,} faults", file=sys.stderr, flush=True)
                wrong += [f"{label}: {sentence}" for sentence in said]
        finally:
            shutil.rmtree(damaged)
    return ends, wrong


def _one(template: Template, folder: Path) -> tuple[str, list[str]]:
    before = contents(folder)
    found = _in_child(lambda: begin(folder, False))
    if found["ended"] == "opened":
        return judge(template, found)
    if found["ended"] != "refused":
        return "traceback", [found.get("trace", found["ended"]).strip().replace("\n", " | ")[-600:]]
    wrong = []
    if "\n" in found["line"]:
        wrong.append(f"refused in several lines: {found['line']}")
    if "repair" not in found["line"]:
        return "refused", wrong
    after = contents(folder)
    if after != before:
        names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
        wrong.append(f"the refusal wrote {names}: {found['line']}")
    again = _in_child(lambda: begin(folder, True))
    if again["ended"] == "traceback":
        return "traceback", [*wrong, again["trace"].strip().replace("\n", " | ")[-600:]]
    if again["ended"] != "opened":
        return "refused, and not to be repaired", wrong
    end, more = judge(template, again)
    return f"refused, then repaired: {end}", [*wrong, *more]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--faults", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    if os.access("/dev/shm", os.W_OK):
        tempfile.tempdir = "/dev/shm"  # it is the program that is tried, and not a disk
    with tempfile.TemporaryDirectory() as folder:
        ends, wrong = study(Path(folder), chosen.faults, chosen.seed)
    for end, times in ends.most_common():
        print(f"{times:6,}  {end}")
    print(f"{chosen.faults} faults: {len(wrong)} went wrong")
    print("\n".join(wrong[:20]))
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
