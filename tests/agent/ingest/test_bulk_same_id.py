"""The same id again: equal content is a repeat, other content a refusal that names both rows."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from equipoise.agent.agent import Agent
from equipoise.agent.config.file import load_file
from equipoise.agent.errors import ConflictError, UnknownDecisionError
from equipoise.agent.ingest.bulk import Order, run
from equipoise.agent.maintenance.key_file import read_key
from equipoise.agent.record_adapter import RecordAdapter
from equipoise.store.batches import ObservationBatch, SimulationBatch
from equipoise.store.journal import JournaledStore
from equipoise.store.records import Observation, Outcome, Request, Simulation
from equipoise.store.sqlite import SqliteStore

CONFIG = """
name = "chat"
models = [{name = "large"}, {name = "small"}]
[features]
context = [{type = "number", name = "words"}]
outputs = [{type = "number", name = "tokens"}]
[policy]
assignment = "uniform"
rate = 0.5
[service]
store = "chat.db"
"""
FIELDS = ("request_id", "routed", "words", "tokens", "reward", "unit_id", "at")
Row = tuple[str, str, float, float, float, str, float]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("chat.toml").write_text(CONFIG)
    return tmp_path


def ingest(*files: str, **options: Any) -> tuple[tuple[int, int, int], list[tuple[str, int, str]]]:
    order = Order(files=list(files), config=Path("chat.toml"), rejects=Path("why.jsonl"), **options)
    result, _ = run(order)
    lines = Path("why.jsonl").read_text().splitlines()
    rejects = [(each["source"], each["row"], each["reason"]) for each in map(json.loads, lines)]
    assert len(rejects) == result.rejected
    return (result.accepted, result.duplicates, result.rejected), rejects


def record(row: Row) -> dict[str, Any]:
    given = dict(zip(FIELDS, row, strict=True))
    features, outputs = {"words": given.pop("words")}, {"tokens": given.pop("tokens")}
    return {**given, "features": features, "outputs": outputs}


def as_lines(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(json.dumps(record(row)) + "\n" for row in rows))


def as_gzip(path: Path, rows: list[Row]) -> None:
    with gzip.open(path, "wt") as file:
        file.write("".join(json.dumps(record(row)) + "\n" for row in rows))


def columns() -> list[str]:
    prefix = {"words": "x_", "tokens": "y_"}
    return [prefix.get(name, "") + name for name in FIELDS]


def as_csv(path: Path, rows: list[Row]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns(), *rows])


def as_parquet(path: Path, rows: list[Row]) -> None:
    pq.write_table(
        pa.Table.from_pylist([dict(zip(columns(), row, strict=True)) for row in rows]), path
    )


FORMATS: dict[str, Callable[[Path, list[Row]], None]] = {
    "jsonl": as_lines,
    "jsonl.gz": as_gzip,
    "csv": as_csv,
    "parquet": as_parquet,
}


def drawn(rng: random.Random, ids: int) -> Row:
    return (
        f"id {rng.randrange(ids)}",
        rng.choice(("large", "small")),
        float(rng.randrange(2)),
        float(rng.randrange(2)),
        float(rng.randrange(2)),
        rng.choice(("u1", "u2")),
        float(rng.randrange(2)),
    )


def test_every_row_is_new_a_repeat_or_refused_with_both_places(folder: Path) -> None:
    """Against a dictionary: the first row of an id counts, whatever file, format or batch."""
    rng = random.Random(12)
    known: dict[str, tuple[Row, str, int]] = {}
    for turn, kinds in enumerate(itertools.permutations(FORMATS)):
        if turn % 6:
            continue
        names, new, repeats, refused = [], 0, 0, []
        for place, kind in enumerate(kinds):
            name = f"{turn}-{place}.{kind}"
            rows = [drawn(rng, 400) for _ in range(60)]
            # Rows of before, word for word, so that repeats are no rarity.
            rows += [row for row, _, _ in rng.sample(sorted(known.values()), min(20, len(known)))]
            FORMATS[kind](folder / name, rows)
            names.append(name)
            for number, row in enumerate(rows, 1):
                first = known.setdefault(row[0], (row, name, number))
                if first[1:] == (name, number):
                    new += 1
                elif first[0] == row:
                    repeats += 1
                else:
                    refused.append((name, number, row, first))
        counts, rejects = ingest(*names)
        assert counts == (new, repeats, len(refused))
        assert [each[:2] for each in rejects] == [each[:2] for each in refused]
        for (source, _, reason), (_, _, row, first) in zip(rejects, refused, strict=True):
            assert repr(row[0]) in reason
            other = [n for n, a, b in zip(FIELDS, row, first[0], strict=True) if a != b]
            said = {"words": "features", "tokens": "outputs"}
            assert f"has other {' and '.join(_ordered(said.get(n, n) for n in other))} " in reason
            assert "of the store, of 1970-01-01" in reason
            if first[1] in names:
                where = f"row {first[2]}" if first[1] == source else f"{first[1]} row {first[2]}"
                assert reason.endswith(f"; it came first in {where}")
    with SqliteStore(folder / "chat.db", read_only=True) as store:
        kept = [
            (name, float(reward))
            for segment in store.read()
            if isinstance(segment.batch, ObservationBatch)
            for name, reward in zip(
                segment.batch.request_id or (), segment.batch.reward, strict=True
            )
        ]
    assert dict(kept) == {name: row[4] for name, (row, _, _) in known.items()}
    assert len(kept) == len(known)


def _ordered(names: Any) -> list[str]:
    order = ("routed", "features", "outputs", "reward", "unit_id", "at")
    return sorted(names, key=order.index)


def test_ids_that_are_words_for_nothing_are_ids(folder: Path) -> None:
    for word in ("None", "null", "nan", "NaN"):
        rows: list[Row] = [(word, "large", 1.0, 1.0, reward, "u", 0.0) for reward in (1.0, 0.0)]
        for kind in ("jsonl", "csv", "parquet"):
            FORMATS[kind](folder / f"{word}.{kind}", rows)
            counts, rejects = ingest(f"{word}.{kind}", store=folder / f"{word}-{kind}.db")
            assert counts == (1, 0, 1)
            assert rejects[0][1] == 2
            assert rejects[0][2].endswith("it came first in row 1")


def test_a_refused_row_is_no_first_one(folder: Path) -> None:
    """The place that is named is that of the row that is in the store."""
    good: Row = ("a", "large", 1.0, 1.0, 1.0, "u", 0.0)
    as_lines(folder / "a.jsonl", [(*good[:4], 7.0, *good[5:]), good, (*good[:4], 0.0, *good[5:])])
    counts, rejects = ingest("a.jsonl")
    assert counts == (1, 0, 2)
    assert "outside the declared range" in rejects[0][2]
    assert rejects[1][2].endswith("it came first in row 2")


def test_replays_count_once_with_all_that_they_say(folder: Path) -> None:
    def replay(context: str, model: str, tokens: float, cost: float | None = None) -> str:
        features, outputs = {"words": 1.0}, {"tokens": tokens}
        record = {"context_id": context, "model": model, "features": features, "outputs": outputs}
        return json.dumps(record if cost is None else {**record, "cost": cost})

    rows = [
        replay("c|1 x", "large", 10.0, 0.5),
        replay("c|1 x", "large", 900.0, 0.5),
        replay("c|1 x", "small", 3.0),
        replay("c|1 x", "large", 10.0, 0.5),
        replay("c|1 x", "large", 10.0, 0.25),
        replay("c|1 x", "large", 10.0),
    ]
    (folder / "sims.jsonl").write_text("\n".join(rows))
    counts, rejects = ingest("sims.jsonl", kind="simulations")
    assert counts == (2, 2, 2)
    assert [row for _, row, _ in rejects] == [2, 5]
    for (_, _, reason), other in zip(rejects, ("outputs", "cost"), strict=True):
        assert f"context 'c|1 x' on model large has other {other} than row 0 of the store" in reason
        assert reason.endswith("; it came first in row 1")
    # Against the store alone, in another process.
    (folder / "more.jsonl").write_text(rows[1] + "\n" + rows[0])
    counts, rejects = ingest("more.jsonl", kind="simulations")
    assert counts == (0, 1, 1)
    assert "than row 0 of the store, of 20" in rejects[0][2]
    assert "came first" not in rejects[0][2]


def test_replays_beyond_what_the_state_keeps_count_once_too(folder: Path) -> None:
    with SqliteStore(folder / "x.db") as store:
        agent = Agent(load_file(Path("chat.toml")).experiment, store, bytes(32))
        agent.light.simulated._capacity = 2
        gateway = RecordAdapter(agent)
        rows = [
            Simulation(context_id=f"c{i}", model="large", features=[1.0], outputs=[float(i)])
            for i in range(5)
        ]
        assert gateway.simulate(rows).rows == 5
        assert gateway.simulate(rows).duplicates == 5
        with pytest.raises(ConflictError, match="context 'c4' on model large has other outputs"):
            gateway.simulate(
                [Simulation(context_id="c4", model="large", features=[1.0], outputs=[9.0])]
            )
        assert sum(len(s.batch) for s in store.read() if isinstance(s.batch, SimulationBatch)) == 5


@pytest.mark.parametrize("settled", [True, False])
def test_rows_that_wait_for_sqlite_are_compared_too(folder: Path, settled: bool) -> None:
    def row(reward: float, **more: Any) -> Observation:
        features, outputs = [1.0], [2.0]
        return Observation(
            request_id="a", routed="large", features=features, outputs=outputs, reward=reward,
            **more,
        )  # fmt: skip

    with JournaledStore(folder / "x.db") as store:
        config = load_file(Path("chat.toml")).experiment
        gateway = RecordAdapter(Agent(config, store, bytes(32)), clock=lambda: 1e9)
        turn = store._log._session.turn  # SQLite's writer waits for us: rows stay in memory
        if settled:
            gateway.ingest([row(1.0)])
            store.settle()
            turn.acquire()
        else:
            turn.acquire()
            gateway.ingest([row(1.0)])
            assert store.waiting
        try:
            assert gateway.ingest([row(1.0)]).duplicates == 1
            with pytest.raises(ConflictError, match="has other reward than row 0 of the store"):
                gateway.ingest([row(0.0)])
            with pytest.raises(ConflictError, match="has other unit_id and at than row 0"):
                gateway.ingest([row(1.0, unit_id="u", at=5.0)])
        finally:
            turn.release()


def test_a_batch_names_its_own_rows_and_takes_nothing(folder: Path) -> None:
    with SqliteStore(folder / "x.db") as store:
        gateway = RecordAdapter(Agent(load_file(Path("chat.toml")).experiment, store, bytes(32)))
        same = {"routed": "large", "features": [1.0], "outputs": [1.0]}
        rows = [Observation(request_id="a", reward=reward, **same) for reward in (1.0, 1.0, 0.0)]
        with pytest.raises(ConflictError, match=r"row 2: .* other reward than row 0 of this batch"):
            gateway.ingest(rows)
        assert store.next_seq == 0
        replays = [
            Simulation(context_id="c", model="small", features=[1.0], outputs=[tokens])
            for tokens in (1.0, 2.0)
        ]
        with pytest.raises(
            ConflictError, match=r"row 1: .* other outputs than row 0 of this batch"
        ):
            gateway.simulate(replays)
        assert store.next_seq == 0


def test_a_request_of_another_user_is_no_repeat(folder: Path) -> None:
    with SqliteStore(folder / "x.db") as store:
        gateway = RecordAdapter(Agent(load_file(Path("chat.toml")).experiment, store, bytes(32)))
        asked = {"request_id": "r", "routed": "large", "features": [1.0]}
        first = gateway.decide_one(Request(**asked, unit_id="u1", context_id="c"))
        assert gateway.decide_one(Request(**asked, unit_id="u1", context_id="c")) == first
        for changed, name in ({"unit_id": "u2", "context_id": "c"}, "unit_id"), ({}, "unit_id and"):
            for decide in (gateway.decide_one, lambda each: gateway.decide([each])):
                with pytest.raises(ConflictError, match=f"d0 with other content: {name}"):
                    decide(Request(**asked, **changed))


OPENAI = """
[[ingest]]
name = "calls"
preset = "openai"
[ingest.fields]
reward = "score"
[ingest.features]
words = "n"
[ingest.outputs]
tokens = "n"
[[ingest]]
name = "named"
preset = "openai"
[ingest.fields]
reward = "score"
request_id = "response.id"
[ingest.features]
words = "n"
[ingest.outputs]
tokens = "n"
"""


def call(identity: str, score: float, n: int = 1, model: str = "large") -> str:
    response = {"id": identity, "created": 1_700_000_000}
    return json.dumps({"request": {"model": model}, "response": response, "score": score, "n": n})


def test_a_cached_answer_is_a_request_of_its_own(folder: Path) -> None:
    """A response id that a cache serves again names no request, unless it is declared to."""
    Path("chat.toml").write_text(CONFIG + OPENAI)
    rows = [call("c-1", 1.0), call("c-1", 0.0), call("c-1", 1.0), call("c-2", 1.0, model="small")]
    (folder / "a.jsonl").write_text("\n".join(rows))
    (folder / "copy.jsonl").write_text("\n".join(rows))
    # A log that has grown, with its first lines corrected away, is still the same log.
    (folder / "grown.jsonl").write_text("\n".join([*rows[1:], call("c-3", 0.0, 2), rows[0]]))
    assert ingest("a.jsonl", "copy.jsonl", mapping="calls")[0] == (4, 4, 0)
    assert ingest("a.jsonl", mapping="calls")[0] == (0, 4, 0)
    assert ingest("grown.jsonl", mapping="calls")[0] == (1, 4, 0)
    counts, rejects = ingest("a.jsonl", mapping="named", store=folder / "named.db")
    assert counts == (2, 1, 1)
    assert [row for _, row, _ in rejects] == [2]


def test_a_log_in_pieces_is_whole(folder: Path) -> None:
    """Rows without an id that say the same are different requests, in one file as in several."""
    rows = [call("c", float(i % 2)) for i in range(40)]
    for part in range(4):
        (folder / f"{part}.jsonl").write_text(
            "\n".join(rows[10 * part : 10 * part + 10]) + "\n" * part
        )
    Path("chat.toml").write_text(CONFIG + OPENAI)
    parts = [f"{part}.jsonl" for part in range(4)]
    assert ingest(*parts, mapping="calls")[0] == (40, 0, 0)
    assert ingest(*parts, mapping="calls")[0] == (0, 40, 0)


def test_outcomes_that_contradict_name_both_rows(folder: Path) -> None:
    as_lines(folder / "none.jsonl", [])
    ingest("none.jsonl")
    with SqliteStore(folder / "chat.db") as store:
        key = read_key(folder / "chat.db")
        gateway = RecordAdapter(Agent(load_file(Path("chat.toml")).experiment, store, key))
        for name in ("auth0|1 a", "d1"):
            gateway.decide([Request(request_id=name, routed="large", features=[1.0])])
    parts = [
        {"request_id": "auth0|1 a", "outputs": {"tokens": 1.0}},
        {"request_id": "auth0|1 a", "reward": 1.0},
        {"request_id": "d1", "reward": 1.0},
        {"request_id": "auth0|1 a", "reward": 0.0},
        {"request_id": "auth0|1 a", "reward": 1.0},
        {"request_id": "d1", "outputs": {"tokens": 1.0}, "reward": 0.0},
    ]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, parts[:3])))
    (folder / "b.jsonl").write_text("\n".join(map(json.dumps, parts[3:])))
    counts, rejects = ingest("a.jsonl", "b.jsonl", kind="outcomes")
    assert counts == (3, 1, 2)
    assert [each[:2] for each in rejects] == [("b.jsonl", 1), ("b.jsonl", 3)]
    assert rejects[0][2].endswith("; it came first in a.jsonl row 2")
    assert rejects[1][2].endswith("; it came first in a.jsonl row 3")
    with SqliteStore(folder / "chat.db", read_only=True) as store:
        rewards = [float(part.reward[0]) for n in (0, 1) for part in store.outcome_parts(n)]
    assert np.nansum(rewards) == 2.0


def test_our_ids_and_those_of_others_are_never_mixed_up(folder: Path) -> None:
    with SqliteStore(folder / "x.db") as store:
        gateway = RecordAdapter(Agent(load_file(Path("chat.toml")).experiment, store, bytes(32)))
        for name in ("d1", "d0", "d٣"):
            gateway.decide([Request(request_id=name, routed="large", features=[1.0])])

        def told(reward: float, **names: str) -> None:
            assert gateway.observe([Outcome(reward=reward, **names)]).rows == 1

        told(0.1, request_id="d1")
        told(0.2, decision_id="d1")
        told(0.3, request_id="d٣", decision_id="d2")
        rewards = [float(store.outcome_parts(number)[0].reward[0]) for number in range(3)]
        assert rewards == [0.1, 0.2, 0.3]
        for name in ("d٣", "d01", "d+1", "d 1", "D1", "d", "d1\u0661"):
            with pytest.raises(UnknownDecisionError, match="does not exist"):
                gateway.observe([Outcome(decision_id=name, reward=0.5)])
        with pytest.raises(ConflictError, match="'d1' is not the decision of request_id 'd1'"):
            gateway.observe([Outcome(request_id="d1", decision_id="d1", reward=0.5)])
        with pytest.raises(UnknownDecisionError, match="'r' was never decided"):
            gateway.observe([Outcome(request_id="r", decision_id="d0", reward=0.5)])
