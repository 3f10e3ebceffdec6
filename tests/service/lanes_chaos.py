"""Kill -9 any process of several deciders and their authority; compare the log with the answers.

python tests/service/lanes_chaos.py --kills 200 --seed 1 --kind postgres

postgres: three deciders with folders and ports of their own, an authority and one that stands by,
over one PostgreSQL server, which is killed too. sqlite: the same over one SQLite store and the hub
beside it. workers: `serve --workers 3`, one port; its children are killed, and now and then the
supervisor. Everybody starts again after a moment, now and then only when its lease has run out.

Clients send requests to whichever decider answers, some of them to a second one too, and what
became of them to any. Then everybody is started once more, and everything that was acknowledged is
looked for in the log.
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import http.client
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from lanes_fleet import (
    BUDGET_STEP,
    LEASE_SECONDS,
    MODEL_CAP,
    PATIENCE,
    SEGMENT_CAP,
    Database,
    Fleet,
    Workers,
    ask,
)
from running import until

from equipoise.agent.agent import Agent
from equipoise.agent.budget.caps import segment_ranges
from equipoise.agent.config import ExperimentConfig
from equipoise.agent.decisions.uniforms import new_key
from equipoise.agent.maintenance.audit import audit
from equipoise.agent.maintenance.key_file import write_key
from equipoise.agent.record_adapter import RecordAdapter
from equipoise.store.batches import Closure, DecisionBatch, OutcomeBatch
from equipoise.store.contract import Store
from equipoise.store.opening import open_store
from equipoise.store.records import decision_id
from equipoise.store.sqlite import SqliteStore

KINDS = ("postgres", "sqlite", "workers")
CLIENTS = 4
TURN_SECONDS = 0.05


@dataclass
class Promises:
    """What was acknowledged. decisions: answers by decision_id, with when each came; outcomes:
    parts by what named their decision; caps: budgets in requests, with when each was asked for."""

    decisions: dict[str, dict[str, Any]] = field(default_factory=dict)
    came: dict[str, float] = field(default_factory=dict)
    words: dict[str, int] = field(default_factory=dict)
    outcomes: set[tuple[str, str]] = field(default_factory=set)
    caps: list[tuple[float, int]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def drawn(self) -> int:
        return sum(1 for answer in self.decisions.values() if answer["randomized"])

    def keep(self, body: dict[str, Any], answer: dict[str, Any]) -> None:
        """Remember a decision. The same one told again must be told the same."""
        name = answer["decision_id"]
        with self.lock:
            self.calls["decided"] += 1
            before = self.decisions.setdefault(name, answer)
            if before != answer:
                self.wrong.append(f"{name}: told {before}, then {answer}")
            self.came.setdefault(name, time.time())
            self.words[name] = body["features"]["words"]


class Client(threading.Thread):
    """Decides and sends outcomes until it is told to stop."""

    def __init__(self, ports: list[int], name: str, seed: int, promises: Promises) -> None:
        super().__init__(daemon=True)
        self._ports, self._name, self._promises = ports, name, promises
        self._random = random.Random(seed)
        self._connections: dict[int, http.client.HTTPConnection] = {}
        self._later: list[tuple[float, str, dict[str, Any]]] = []
        self.stopping = False

    def run(self) -> None:
        try:
            for index in range(10_000_000):
                if self.stopping:
                    break
                self._one(f"{self._name}-{index}")
                while self._later and self._later[0][0] <= time.monotonic():
                    _, _, report = heapq.heappop(self._later)
                    self._report(report)
            while self._later:
                self._report(heapq.heappop(self._later)[2])
        except Exception as error:
            self._promises.wrong.append(f"a client ended: {type(error).__name__}: {error}")
            raise
        finally:
            for connection in self._connections.values():
                connection.close()

    def _one(self, name: str) -> None:
        words = self._random.randrange(100)
        asked = {"request_id": name, "routed": "small", "features": {"words": words}}
        answers = [self._decide(asked)]
        if self._random.random() < 0.3:
            # A caller whose answer was lost asks again, wherever it comes to.
            answers.append(self._decide(asked))
        made = [each for each in answers if each is not None]
        if not made:
            return
        for part in ({"outputs": {"seconds": float(words)}}, {"reward": words / 100}):
            if self._random.random() < 0.15:
                continue
            named = {"request_id": name}
            if self._random.random() < 0.5:
                named = {"decision_id": self._random.choice(made)["decision_id"]}
            delay = self._random.choice([0.0, 0.0, 0.0, self._random.uniform(0.0, 4.0)])
            if self._random.random() < 0.02:
                delay = self._random.uniform(15.0, 25.0)  # about the window
            place = (time.monotonic() + delay, f"{name} {sorted(part)}", {**named, **part})
            heapq.heappush(self._later, place)

    def _decide(self, body: dict[str, Any]) -> dict[str, Any] | None:
        """An acknowledged decision, None where the request was served as routed."""
        for _ in range(200):
            status, answer = self._ask("/v1/decide", body)
            if status == 200 and answer["decision_id"] is not None:
                self._promises.keep(body, answer)
                return answer  # type: ignore[no-any-return]
            if status == 200:
                with self._promises.lock:
                    self._promises.calls[f"passed through: {answer['reason']}"] += 1
                if answer["model"] != body["routed"]:
                    self._promises.wrong.append(f"{body}: passed through as {answer}")
                if self._random.random() < 0.5:
                    return None
                time.sleep(0.02)
            elif status not in (0, 503):
                self._promises.wrong.append(f"{body}: {status} {answer}")
                return None
            if self.stopping:
                return None
        return None

    def _report(self, body: dict[str, Any]) -> None:
        (part,) = body.keys() & {"reward", "outputs"}
        name = body.get("decision_id") or body["request_id"]
        for _ in range(5_000):
            status, answer = self._ask("/v1/outcomes", body)
            if status == 200 and answer["accepted"] + answer["duplicates"] + answer["late"] == 1:
                with self._promises.lock:
                    self._promises.outcomes.add((name, part))
                    self._promises.calls["outcomes"] += 1
                if self._random.random() < 0.1:
                    self._ask("/v1/outcomes", body)
                return
            if status not in (0, 503):
                self._promises.wrong.append(f"{body}: {status} {answer}")
                return
            time.sleep(0.02)
        self._promises.wrong.append(f"{body}: nobody took it")

    def _ask(self, path: str, body: Any) -> tuple[int, Any]:
        """An answer of any decider; (0, None) where there was none."""
        port = self._random.choice(self._ports)
        connection = self._connections.get(port)
        if connection is None:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            self._connections[port] = connection
        try:
            connection.request("POST", path, json.dumps(body))
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            connection.close()
            del self._connections[port]
            with self._promises.lock:
                self._promises.calls[f"no answer: {type(error).__name__}"] += 1
            time.sleep(0.01)
            return 0, None


@dataclass(frozen=True)
class Step:
    """One kill. after: seconds since the one before; away: until it is started again."""

    name: str
    after: float
    away: float


def schedule(victims: list[str], kills: int, rng: random.Random, gap: float) -> list[Step]:
    """Who is killed when; one in ten stays away until its lease has run out."""
    steps = []
    for _ in range(kills):
        name = rng.choice(victims)
        away = rng.choice([0.0, 0.0, 0.0, 0.2, 0.5, 1.0])
        if name != "postgres" and rng.random() < 0.1:
            away = rng.uniform(1.5, 3.0) * LEASE_SECONDS
        steps.append(Step(name, rng.uniform(0.3, 1.7) * gap, away))
    return steps


def torment(fleet: Fleet, steps: list[Step], seed: int, promises: Promises) -> None:
    """Load while everybody is killed; then everybody once more."""
    clients = [
        Client(fleet.ports, f"c{seed}-{number}", seed * 100 + number, promises)
        for number in range(CLIENTS)
    ]
    for client in clients:
        client.start()
    waiting: list[tuple[float, str]] = []
    due = time.monotonic()
    for step in steps:
        due = max(due, time.monotonic() - 1.0) + step.after
        while time.monotonic() < due:
            while waiting and waiting[0][0] <= time.monotonic():
                fleet.revive(heapq.heappop(waiting)[1])
            fleet.tend({name for _, name in waiting})
            raise_budget(fleet, promises)
            time.sleep(TURN_SECONDS)
        if all(step.name != name for _, name in waiting):
            fleet.kill(step.name)
            heapq.heappush(waiting, (time.monotonic() + step.away, step.name))
    while waiting:
        fleet.revive(heapq.heappop(waiting)[1])
    until(lambda: fleet.tend() or fleet.decides(), PATIENCE)
    for client in clients:
        client.stopping = True
    for client in clients:
        client.join(PATIENCE)
        if client.is_alive():
            promises.wrong.append("a client does not end")


def raise_budget(fleet: Fleet, promises: Promises) -> None:
    """Once the budget is as good as used up, ask for more; when that was is remembered."""
    cap = promises.caps[-1][1]
    with promises.lock:
        drawn = promises.drawn()
    if drawn < 0.8 * cap or time.time() - promises.caps[-1][0] < 1.0:
        return
    port = fleet.authority()
    if port is None:
        return
    asked = (time.time(), cap + BUDGET_STEP)
    promises.caps.append(asked)
    with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
        ask(port, "PUT", "/v1/budget", {"requests": asked[1]})


def drain(fleet: Fleet, found: list[str]) -> dict[str, Any]:
    """Wait until everything is in the log; the last report of lanes."""

    def idle() -> dict[str, Any] | None:
        fleet.tend()
        port = fleet.authority()
        if port is None:
            return None
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
            status, report = ask(port, "GET", "/v1/lanes")
            if status == 200 and not any(report["waiting"].values()):
                lanes = report["lanes"]
                if all(lane["held"] or lane["whole"] for lane in lanes):
                    return dict(report)
        return None

    try:
        return dict(until(idle, PATIENCE))
    except AssertionError:
        port = fleet.authority()
        report = None if port is None else ask(port, "GET", "/v1/lanes")[1]
        found.append(f"it is not all in the log: {report}")
        return report or {}


@dataclass
class Findings:
    """What the log holds, and what is wrong with it."""

    decisions: int = 0
    late: int = 0
    repeated: int = 0
    drawn: int = 0
    sliced: int = 0
    ended: dict[str, dict[int, int]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def compare(store: Store, promises: Promises) -> Findings:
    """Look in the log for everything that was acknowledged, and at its caps."""
    found = Findings()
    agent = Agent(ExperimentConfig.from_json(store.settings()["config"]), store, None)
    adapter = RecordAdapter(agent)
    logged: dict[str, Any] = {}
    numbers: dict[int, str] = {}
    requests: dict[str, set[str]] = {}
    parts: Counter[tuple[str, str]] = Counter()
    held: Counter[str] = Counter()
    onto: Counter[str] = Counter()
    short = 0
    (segment_range,) = segment_ranges(agent.config)
    for segment in store.read():
        batch = segment.batch
        if isinstance(batch, DecisionBatch):
            rows, positions = adapter.records(batch), batch.positions.tolist()
            for row, name in enumerate(batch.request_id or ()):
                if name:
                    held[name] += 1
                    # Decided, and killed before it could answer: it is asked again elsewhere.
                    requests.setdefault(name, set()).add(decision_id(positions[row]))
            for row, (told, at) in enumerate(zip(rows, positions, strict=True)):
                name = decision_id(at)
                if name in logged:
                    found.faults.append(f"{name} is in the log twice")
                logged[name] = told
                numbers[int(batch.number[row])] = name
                found.decisions += 1
                if told.randomized:
                    found.drawn += 1
                    onto[told.model] += 1
            short += int((segment_range.holds(batch.x) & batch.randomized).sum())
            closed = [] if batch.closed_by is None else batch.closed_by.tolist()
            found.late += closed.count(int(Closure.LATE))
            found.repeated += closed.count(int(Closure.REPEATED))
            found.sliced += closed.count(int(Closure.SLICE))
        elif isinstance(batch, OutcomeBatch):
            for row, number in enumerate(batch.number.tolist()):
                name = numbers[number]
                words = promises.words.get(name)
                for part, value, sent in (
                    ("reward", batch.reward[row], None if words is None else words / 100),
                    ("outputs", batch.outputs[row, 0], words),
                ):
                    if not np.isnan(value):
                        parts[name, part] += 1
                        if sent is not None and value != sent:
                            found.faults.append(f"{part} of {name} is {value}, {sent} was sent")
    for name, said in promises.decisions.items():
        requests.setdefault(said["request_id"], set()).add(name)
        told = logged.get(name)
        if told is None:
            found.faults.append(f"{name} of {said['request_id']} is not in the log")
            continue
        for key in ("model", "propensity", "probabilities", "randomized", "rule_id", "era"):
            if getattr(told, key) != said[key]:
                found.faults.append(f"{name}: {key} {said[key]}, logged {getattr(told, key)}")
    found.faults += [
        f"{held[name]} decisions hold the request {name}" for name in requests if held[name] != 1
    ]
    found.faults += [
        f"{part} {times} times in the log" for part, times in parts.items() if times > 1
    ]
    for name, part in sorted(promises.outcomes):
        # By its request an outcome goes to any decision of it, the repeated ones among them.
        if not any(parts[each, part] for each in requests.get(name, {name})):
            found.faults.append(f"{part} of {name} is missing")
    found.faults += _over(found.drawn, onto, short, promises)
    return found


def _over(drawn: int, onto: Counter[str], short: int, promises: Promises) -> Iterator[str]:
    """Caps that did not hold, at the end of the log or at any moment among the answers."""
    for what, count, cap in (
        ("requests", drawn, promises.caps[-1][1]),
        ("small", onto["small"], MODEL_CAP),
        ("short", short, SEGMENT_CAP),
    ):
        if count > cap:
            yield f"{what}: {count} drawn in the log, at most {cap} may be"
    moments = sorted(
        promises.came[name] for name, said in promises.decisions.items() if said["randomized"]
    )
    steps = [*promises.caps[1:], (float("inf"), 0)]
    for (_, cap), (until_then, _) in zip(promises.caps, steps, strict=True):
        before = sum(1 for moment in moments if moment < until_then)
        if before > cap:
            yield f"{before} draws were answered while {cap} were allowed"


def is_the_fold(store: Store) -> bool:
    """Whether the authority's own state, saved as it ended, is a fold of its log from the start."""
    saved = store.restore()
    assert saved is not None
    store.restore = lambda: None  # type: ignore[method-assign]
    agent = Agent(ExperimentConfig.from_json(store.settings()["config"]), store, None)
    return saved.seq == agent.light.next_seq > 0 and saved.state == agent.fold.to_bytes()


def study(
    folder: Path, kind: str, kills: int, seed: int, gap: float = 0.7, verbose: bool = False
) -> tuple[Promises, Findings]:
    """Kill so many times; what was promised, and what the log holds."""
    promises = Promises(caps=[(time.time(), BUDGET_STEP)])
    with _fleet(folder, kind) as (fleet, open_log, key):
        steps = schedule(fleet.victims(), kills, random.Random(seed), gap)
        try:
            fleet.start()
            torment(fleet, steps, seed, promises)
            report = drain(fleet, promises.wrong)
        finally:
            promises.wrong += fleet.end()
            if verbose:
                for member in fleet.members:
                    (folder / f"{member.name}.log").write_text("".join(member.lines))
        with open_log() as log:
            found = compare(log, promises)
            found.faults = promises.wrong + found.faults
            found.ended = {each.name: dict(each.codes) for each in fleet.members if each.codes}
            if not is_the_fold(log):
                found.faults.append("the state is not the fold of the log")
        with open_log() as log:
            checked = audit(log, ExperimentConfig.from_json(log.settings()["config"]), key)
            found.faults += [f"audit: {each}" for each in checked.faults]
            if checked.decisions != found.decisions:
                found.faults.append(f"the audit saw {checked.decisions} of {found.decisions}")
        told = {"late": report.get("late"), "repeated": report.get("repeated")}
        if verbose:
            print(f"the last authority's report: {told}, refused {report.get('refused')}")
    return promises, found


@contextlib.contextmanager
def _fleet(folder: Path, kind: str) -> Iterator[tuple[Fleet, Any, bytes]]:
    """The processes, what opens their log, and their key."""
    if kind != "postgres":
        store = folder / "log.db"
        key = write_key(store)
        fleet = Workers(folder, str(store)) if kind == "workers" else Fleet(folder, str(store))
        yield fleet, lambda: SqliteStore(store, read_only=True), key
        return
    sys.path.append(str(Path(__file__).parents[1]))
    from postgres import own_server

    key_file, key = folder / "chat.key", new_key()
    key_file.touch(mode=0o600)
    key_file.write_bytes(key)
    with own_server() as server:
        database = Database(folder, server, key_file)
        yield database, lambda: open_store(database.store, read_only=True), key


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kind", choices=KINDS, default="postgres")
    parser.add_argument("--gap", type=float, default=0.7, help="seconds between kills, about")
    parser.add_argument("--keep", type=Path, help="a folder for everything that was written")
    chosen = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = chosen.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(exist_ok=True)
        print(f"--kind {chosen.kind} --kills {chosen.kills} --seed {chosen.seed}", flush=True)
        begun = time.monotonic()
        promises, found = study(
            folder, chosen.kind, chosen.kills, chosen.seed, chosen.gap, verbose=True
        )
    print(
        f"{chosen.kind}: {chosen.kills} kills in {time.monotonic() - begun:.0f} s: "
        f"{len(promises.decisions):,} decisions and {len(promises.outcomes):,} parts of outcomes "
        f"acknowledged; the log holds {found.decisions:,} decisions, {found.drawn:,} drawn, "
        f"{found.late:,} late, {found.repeated:,} repeated, {found.sliced:,} without tickets; "
        f"{len(promises.caps)} budgets; {len(found.faults)} faults"
    )
    print(dict(promises.calls))
    print("ended by themselves:", found.ended)
    for fault in found.faults[:30]:
        print(f"  {fault}")
    raise SystemExit(bool(found.faults))


if __name__ == "__main__":
    main()
