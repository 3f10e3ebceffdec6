"""Rows of files into a store: every shape, once each, refusals one by one."""

from __future__ import annotations

import csv
import gzip
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import run_as_users_do, run_command

from equipoise.agent.config.ingest import parse_path
from equipoise.agent.errors import AgentError
from equipoise.agent.features.schema import FeatureSchema
from equipoise.agent.ingest.bulk import Ingestion, Rejects
from equipoise.agent.ingest.files import Source
from equipoise.agent.ingest.sinks import BatchResult
from equipoise.store.batches import ObservationBatch, OutcomeBatch, SimulationBatch
from equipoise.store.sqlite import SqliteStore

CONFIG = """
name = "chat"
models = [{name = "large"}, {name = "small"}]
[features]
context = [
  {type = "text", name = "prompt", statistics = ["words"]},
  {type = "category", name = "plan", values = ["free", "paid"], missing = 0.0},
]
outputs = [{type = "number", name = "seconds", low = 0.0}]
[service]
store = "chat.db"
"""
ROW = {
    "routed": "large",
    "features": {"prompt": "hello there", "plan": "paid"},
    "outputs": {"seconds": 1.5},
    "reward": 0.5,
}
Run = Callable[..., Any]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """`equipoise ingest` in a folder with a configuration; what it printed as JSON."""
    (tmp_path / "equipoise.toml").write_text(CONFIG)

    def call(
        *arguments: str,
        expected: int = 0,
        more: str = "",
        given: str = "",
        command: Callable[..., Any] = run_command,
    ) -> Any:
        if more:
            (tmp_path / "equipoise.toml").write_text(CONFIG + more)
        done = command("ingest", *arguments, "--json", cwd=tmp_path, given=given)
        assert done.returncode == expected, done.stderr
        return json.loads(done.stdout) if expected < 2 else done.stderr

    return call


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def log(tmp_path: Path, kind: type) -> list[Any]:
    with SqliteStore(tmp_path / "chat.db", read_only=True) as store:
        return [segment.batch for segment in store.read() if isinstance(segment.batch, kind)]


def rewards(tmp_path: Path) -> list[float]:
    batches = log(tmp_path, ObservationBatch)
    return [] if not batches else np.concatenate([batch.reward for batch in batches]).tolist()


def test_a_log_counts_once_however_often_it_is_read(run: Run, tmp_path: Path) -> None:
    named = [{**ROW, "request_id": f"r{i}", "reward": i / 100} for i in range(60)]
    unnamed = [{**ROW, "reward": i / 100} for i in (1, 1, 1, 2)]
    write_lines(tmp_path / "a.jsonl", named + unnamed)
    counts = {"accepted": 64, "duplicates": 0, "late": 0, "rejected": 0, "rejects": []}
    assert run("a.jsonl") == counts
    assert run("a.jsonl") == {**counts, "accepted": 0, "duplicates": 64}
    # The file grew, and a copy of it came by another way.
    write_lines(tmp_path / "b.jsonl", [*named, *unnamed, {**ROW, "reward": 0.02}])
    assert run("b.jsonl") == {**counts, "accepted": 1, "duplicates": 64}
    assert sorted(rewards(tmp_path)) == sorted(
        [i / 100 for i in range(60)] + [0.01] * 3 + [0.02] * 2
    )


def test_refused_rows_stop_nobody_and_say_why(run: Run, tmp_path: Path) -> None:
    bad = {
        2: ("{", "truncated"),
        3: ({**ROW, "routed": "medium"}, "model 'medium' is not one of large, small"),
        5: ({**ROW, "reward": 7}, "outside the declared range"),
        6: ({**ROW, "reward": "good"}, "reward: 'good' is not a number"),
        8: ({**ROW, "features": {"plan": "free"}}, "context: prompt: received nothing"),
        9: ({**ROW, "outputs": {"seconds": -1}}, "seconds: received -1"),
        11: ({**ROW, "request_id": "two\nlines"}, "no control characters"),
        12: ({**ROW, "rewrad": 1}, "rewrad"),
        13: ("[1, 2]", "Expected `object`"),
        14: ("\x00", "malformed"),
    }
    rows = [bad[line][0] if line in bad else {**ROW, "reward": line / 100} for line in range(1, 16)]
    write_lines(tmp_path / "a.jsonl", rows)
    done = run("a.jsonl", "--rejects", "why.jsonl", expected=1)
    assert (done["accepted"], done["rejected"]) == (5, 10)
    assert sorted(rewards(tmp_path)) == [0.01, 0.04, 0.07, 0.1, 0.15]
    rejects = [json.loads(line) for line in (tmp_path / "why.jsonl").read_text().splitlines()]
    assert [each["row"] for each in rejects] == sorted(bad)
    assert done["rejects"] == rejects[:5]
    for each in rejects:
        assert bad[each["row"]][1] in each["reason"]
        assert "hello" not in each["reason"], "no prompt text leaves the log"


def test_an_empty_line_is_none_and_standard_input_is_read(run: Run, tmp_path: Path) -> None:
    lines = f"\n{json.dumps(ROW)}\n\n{json.dumps({**ROW, 'reward': 0.75})}"
    assert run("-", given=lines, command=run_as_users_do)["accepted"] == 2
    assert run("-", given="")["accepted"] == 0


def test_a_table_has_a_column_for_each_feature(run: Run, tmp_path: Path) -> None:
    header = ["request_id", "routed", "reward", "x_prompt", "x_plan", "y_seconds", "unit_id", "at"]
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerow(
            ["r1", "large", "0.25", 'two "quoted" words,\nand a line', "paid", "2", "7", ""]
        )
        writer.writerow(["r2", "small", "1", "hi", "", "0.5", "", "1700000000.5"])
        writer.writerow(["r3", "small", "good", "hi", "", "0.5", "", ""])
    done = run("a.csv", expected=1)
    assert (done["accepted"], done["rejected"]) == (2, 1)
    assert done["rejects"][0]["reason"] == "reward: 'good' is not a number"
    (batch,) = log(tmp_path, ObservationBatch)
    assert batch.reward.tolist() == [0.25, 1.0]
    assert batch.outputs.tolist() == [[2.0], [0.5]]
    assert batch.x[:, 1].tolist() == [1.0, 0.0], "an empty cell is a missing value"
    assert batch.x[0, 0] > batch.x[1, 0] > 0
    assert batch.at[1] == 1700000000.5
    assert batch.unit_id[0] == "7"


def test_parquet_and_compressed_lines(run: Run, tmp_path: Path) -> None:
    table = {
        "request_id": ["r1", "r2"],
        "routed": ["large", "small"],
        "reward": [0.5, 1.0],
        "x_prompt": ["a", "b c"],
        "x_plan": ["free", None],
        "y_seconds": [1, 2],
    }
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    assert run("a.parquet")["accepted"] == 2
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        same = {"features": {"prompt": "b c"}, "outputs": {"seconds": 2}, "reward": 1}
        again = {"request_id": "r2", "routed": "small", **same}
        file.write(json.dumps(again) + "\n" + json.dumps(ROW))
    done = run("b.jsonl.gz")
    assert (done["accepted"], done["duplicates"]) == (1, 1)


WILDCHAT = """
[[ingest]]
name = "wild"
preset = "wildchat"
[ingest.fields]
reward = "rating"
[ingest.models]
"gpt-4-0314" = "large"
[ingest.features]
prompt = "conversation[role=user][0].content"
[ingest.outputs]
seconds = "seconds"
"""


def test_the_shape_of_wildchat(run: Run, tmp_path: Path) -> None:
    def row(name: str, model: str, rating: float | None) -> dict[str, Any]:
        turns = [
            {"role": "user", "content": "one two three", "hashed_ip": "ab12"},
            {"role": "assistant", "content": "four", "hashed_ip": None},
        ]
        return {
            "conversation_hash": name,
            "model": model,
            "timestamp": datetime(2023, 4, 9, tzinfo=UTC),
            "conversation": turns,
            "turn": 1,
            "rating": rating,
            "seconds": 2.5,
        }

    rows = [row("c1", "gpt-4-0314", 1.0), row("c2", "gpt-9", 0.0), row("c3", "small", None)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "w.parquet")
    done = run("w.parquet", "--mapping", "wild", more=WILDCHAT, expected=1)
    assert [each["row"] for each in done["rejects"]] == [2]
    assert "gpt-9" in done["rejects"][0]["reason"]
    assert (done["accepted"], done["unrated"]) == (1, 1)
    (batch,) = log(tmp_path, ObservationBatch)
    assert batch.unit_id == ["ab12"]
    assert batch.at.tolist() == [datetime(2023, 4, 9, tzinfo=UTC).timestamp()]
    assert batch.outputs.tolist() == [[2.5]]


OPENAI = """
[[ingest]]
name = "calls"
preset = "openai"
[ingest.fields]
reward = "thumb"
[ingest.rewards]
up = 1.0
down = 0.0
[ingest.features]
prompt = "request.messages[role=user][-1].content"
[ingest.outputs]
seconds = "response.usage.completion_tokens"
"""


def test_the_shape_of_request_logs(run: Run, tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "a b c d"}]
    call: Mapping[str, Any] = {
        "request": {"model": "small", "messages": messages},
        "response": {
            "id": "chatcmpl-1",
            "created": 1_700_000_000,
            "usage": {"completion_tokens": 9},
        },
    }
    rows = [{**call, "thumb": "up"}, {**call, "thumb": "sideways"}, {**call, "thumb": "down"}]
    write_lines(tmp_path / "calls.jsonl", rows)
    done = run("calls.jsonl", "--mapping", "calls", more=OPENAI, expected=1)
    # One response, served twice from a cache: two requests, two thumbs.
    assert (done["accepted"], done["duplicates"], done["rejected"]) == (2, 0, 1)
    assert done["rejects"][0]["reason"] == "reward: 'sideways' is not one of up, down"
    (batch,) = log(tmp_path, ObservationBatch)
    assert (batch.reward.tolist(), batch.outputs.tolist()) == ([1.0, 0.0], [[9.0], [9.0]])
    assert batch.at.tolist() == [1_700_000_000.0] * 2


def test_replays_and_outcomes_go_in_the_same_way(run: Run, tmp_path: Path) -> None:
    replay = {"context_id": "c1", "features": ROW["features"], "outputs": ROW["outputs"]}
    rows = [
        {**replay, "model": "large"},
        {**replay, "model": "small"},
        {**replay, "model": "large"},
    ]
    write_lines(tmp_path / "sim.jsonl", rows)
    done = run("sim.jsonl", "--kind", "simulations")
    assert (done["accepted"], done["duplicates"]) == (2, 1)
    assert sum(len(batch) for batch in log(tmp_path, SimulationBatch)) == 2
    decide = """
from pathlib import Path
from equipoise.agent.agent import Agent
from equipoise.agent.config.file import load_file
from equipoise.agent.record_adapter import RecordAdapter
from equipoise.agent.maintenance.key_file import read_key
from equipoise.store.records import Request
from equipoise.store.sqlite import SqliteStore
with SqliteStore("chat.db") as store:
    config = load_file("equipoise.toml").experiment
    desk = RecordAdapter(Agent(config, store, read_key(Path("chat.db"))))
    desk.decide([Request(request_id="r1", routed="large", features={"prompt": "a"})])
"""
    subprocess.run([sys.executable, "-c", decide], cwd=tmp_path, check=True)
    parts = [
        {"request_id": "r1", "outputs": {"seconds": 1.0}},
        {"request_id": "r1", "reward": 0.5},
        {"request_id": "r2", "reward": 0.5},
        {"request_id": "r1", "reward": 0.25},
    ]
    write_lines(tmp_path / "out.jsonl", parts)
    done = run("out.jsonl", "--kind", "outcomes", expected=1)
    assert (done["accepted"], done["rejected"]) == (2, 2)
    assert "was never decided" in done["rejects"][0]["reason"]
    assert "a part is accepted once" in done["rejects"][1]["reason"]
    assert sum(len(batch) for batch in log(tmp_path, OutcomeBatch)) == 2


class Recorder:
    """A sink that takes everything and remembers how it came."""

    rows_at_once = 4

    def __init__(self) -> None:
        self.batches: list[list[str | None]] = []

    def take(self, records: Sequence[Any]) -> BatchResult:
        self.batches.append([record.request_id for record in records])
        return BatchResult(Counter(accepted=len(records)))


def test_two_parts_of_an_outcome_never_come_in_one_batch(tmp_path: Path) -> None:
    """The agent would refuse the batch, and taking it apart row by row would be slow."""
    names = ["a", "a", "b", "c", "d", "e", "f", "b", "g"]
    path = write_lines(tmp_path / "out.jsonl", [{"request_id": name} for name in names])
    sink = Recorder()
    with Rejects(None) as rejects:
        Ingestion(sink, FeatureSchema(), "outcomes", None, rejects).add(
            Source(str(path), str(path), "jsonl")
        )
    assert sink.batches == [["a"], ["a", "b", "c", "d"], ["e", "f", "b", "g"]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.jsonl"], "nowhere.jsonl"),
        (["a.xlsx"], "suffix"),
        (["a.jsonl", "--mapping", "calls"], "no mapping is called 'calls'"),
        (["a.jsonl", "--kind", "outcome"], "not one of observations"),
        (["a.jsonl", "--config", "other.toml"], "other.toml"),
    ],
)
def test_what_is_wrong_beforehand_touches_nothing(
    run: Run, tmp_path: Path, arguments: list[str], words: str
) -> None:
    write_lines(tmp_path / "a.jsonl", [ROW])
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    assert words in run(*arguments, "--rejects", "why.jsonl", expected=2)
    assert not (tmp_path / "chat.db").exists()
    assert not (tmp_path / "why.jsonl").exists()


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl.gz", "a.csv"])
def test_a_file_that_is_none_is_one_clear_line(run: Run, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\xff\xfe\x00 nothing of the kind" * 9)
    message = run(name, "--rejects", "why.jsonl", expected=2)
    assert message.count("\n") == 1
    assert "Traceback" not in message
    assert not list(tmp_path.glob("*why*"))


def test_paths() -> None:
    row = {"a": [{"k": "x", "v": 1}, {"k": "y", "v": [2, 3]}], "b": "text", "c": {"d": None}}
    found = {
        "a[0].v": 1,
        "a[-1].v[1]": 3,
        "a[k=y][0].v[0]": 2,
        "a[k=z]": [],
        "a[k=z][0].v": None,
        "a[9]": None,
        "b[0]": None,
        "b.c": None,
        "c.d": None,
        "nowhere": None,
    }
    assert {path: parse_path(path).find(row) for path in found} == found
    for wrong in ("", ".", "a.", "a..b", "[0]", "a[", "a[x", "a]b", "a[1x]"):
        with pytest.raises(AgentError, match="path"):
            parse_path(wrong)
