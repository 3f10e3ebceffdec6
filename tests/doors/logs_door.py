"""Logs in: `equipoise ingest --from NAME` on what the producers themselves wrote.

LiteLLM's Router with a callback that writes a file, Langfuse's SDK against a stand-in of its
server, and Vowpal Wabbit, each with the truth beside it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from harness import PEERS, Report, json_lines, python_with

from equipoise.store.batches import ObservationBatch
from equipoise.store.sqlite import SqliteStore

LITELLM = "litellm[proxy]==1.108.7"
LANGFUSE = "langfuse==5.0.4"
VW = ("vowpalwabbit==9.11.9", "vw-estimators==0.2.2", "numpy==2.4.6", "scipy==1.17.1")
REQUESTS, TRACES, EVENTS = 120, 200, 600
WROTE = {"gpt-4o": "large", "gpt-4o-mini": "small"}
CONFIG = """
name = "logs"
models = [{name = "large"}, {name = "small"}%s]
[reward]
low = 0.0
high = 1.0
window = 86400
"""
OUTPUTS = """
[features]
outputs = [
  {type = "number", name = "seconds", low = 0},
  {type = "number", name = "tokens", low = 0, missing = -1.0},
  {type = "number", name = "cost", low = 0, missing = -1.0},
]
"""


def drive(folder: Path, report: Report) -> None:
    report.peer = f"{LITELLM}, {LANGFUSE} and {VW[0]}."
    _litellm(_made(folder / "litellm", CONFIG % "" + OUTPUTS), report)
    _langfuse(_made(folder / "langfuse", CONFIG % "" + OUTPUTS), report)
    _vw(_made(folder / "vw", CONFIG % ', {name = "tiny"}'), report)


def _litellm(folder: Path, report: Report) -> None:
    _peer(python_with("litellm", LITELLM), "logs_litellm.py", folder, REQUESTS)
    truth, log = _rows(folder / "truth.jsonl"), _rows(folder / "litellm.jsonl")
    answers = {each["id"]: WROTE[each["wrote"]] for each in truth if "wrote" in each}
    kinds = Counter(each["kind"] for each in truth)
    assert min(kinds[kind] for kind in ("cached", "failed", "embedding", "stream", "usage")) > 3
    # Thumbs by the id that the client saw; cache hits repeat it, and the last thumb counts.
    thumbs, given = [], dict[str, float]()
    for number, each in enumerate(truth):
        if "id" in each:
            thumbs.append({"response_id": each["id"], "thumb": "up" if number % 3 else "down"})
            given[each["id"]] = float(number % 3 > 0)
    json_lines(folder / "thumbs.jsonl", thumbs)
    table = '[[ingest]]\nname = "thumbs"\nkind = "outcomes"\n[ingest.fields]\n'
    table += (
        'request_id = "response_id"\nreward = "thumb"\n[ingest.rewards]\nup = 1.0\ndown = 0.0\n'
    )
    with open(folder / "equipoise.toml", "a") as file:
        file.write(table)
    options = ("--scores", "thumbs.jsonl", "--scores-from", "thumbs")
    facts = _ingest(folder, "litellm.jsonl", "--from", "litellm", *options)
    failures = [each for each in log if each["status"] == "failure"]
    answered = {each["trace_id"] for each in log if each["status"] == "success"}
    attempts = sum(each["trace_id"] in answered for each in failures)
    assert facts["rows"] == len(log)
    assert facts["skipped"] == {
        "failed attempts of answered requests": attempts,
        "calls of requests that failed": len(failures) - attempts,
        "cache hits": kinds["cached"],
        "calls of aembedding": kinds["embedding"],
    }
    assert (facts["accepted"], facts["rejected"]) == (len(answers), 0)
    assert facts["scores"]["joined"] == len(answers)
    assert facts["scores"]["superseded"] == kinds["cached"]
    stored = _stored(folder)
    models = {name: model for name, (model, _, _) in stored.items()}
    assert models == answers, "every row names the model that wrote the text"
    assert {name: reward for name, (_, reward, _) in stored.items()} == given
    tokens = Counter(
        (next(each["kind"] for each in truth if each.get("id") == name), outputs[1])
        for name, (_, _, outputs) in stored.items()
    )
    assert set(tokens) == {("plain", 20.0), ("usage", 20.0), ("stream", -1.0)}
    seconds = {each["id"]: each["endTime"] - each["startTime"] for each in log}
    assert all(abs(outputs[0] - seconds[name]) < 1e-6 for name, (_, _, outputs) in stored.items())
    report.add(
        "LiteLLM's Router, callback to a file",
        f"{len(log)} rows of {REQUESTS} requests: {len(answers)} answers, all of the model that "
        f"wrote them, {kinds['cached']} cache hits and {attempts} attempts left out",
    )
    again = _ingest(folder, "litellm.jsonl", "--from", "litellm", *options)
    assert (again["accepted"], again["duplicates"]) == (0, len(answers))
    packed = folder / "litellm.json.zst"
    import pyarrow as pa

    packed.write_bytes(pa.compress(json.dumps(log).encode(), "zstd", asbytes=True))
    assert _ingest(folder, packed.name, "--from", "litellm", *options)["duplicates"] == len(answers)
    report.add("the same log again, and as a list in zstd", "nothing counted twice")


def _langfuse(folder: Path, report: Report) -> None:
    _peer(python_with("langfuse", LANGFUSE), "logs_langfuse.py", folder, TRACES)
    truth = _rows(folder / "truth.jsonl")
    options = ("--scores", "scores.json", "--score", "helpful")
    facts = _ingest(folder, "observations.jsonl", "--from", "langfuse", *options)
    steps = sum(each["steps"] for each in truth)
    rated = {each["trace"]: each for each in truth if each["thumb"] is not None}
    assert facts["rows"] == steps + TRACES
    assert facts["skipped"] == {"earlier calls of requests": steps - TRACES, "of type SPAN": TRACES}
    assert facts["accepted"] == facts["scores"]["joined"] == len(rated)
    assert facts["unrated"] == TRACES - len(rated)
    traces = {each["id"]: each["traceId"] for each in _rows(folder / "observations.jsonl")}
    stored = {traces[name]: each for name, each in _stored(folder).items()}
    assert set(stored) == set(rated)
    for trace, (model, reward, outputs) in stored.items():
        assert (model, reward) == (rated[trace]["model"], rated[trace]["thumb"])
        assert outputs[1] == 19.0 + rated[trace]["steps"], "tokens of the last step"
    report.add(
        "Langfuse's SDK, observations and scores of its API",
        f"{steps} calls of {TRACES} traces: {len(rated)} rated requests, each of the model of its "
        f"last call, by its last score of {facts['scores']['read']}",
    )


def _vw(folder: Path, report: Report) -> None:
    _peer(python_with("vw", *VW), "logs_vw.py", folder, EVENTS)
    truth: dict[str, Any] = json.loads((folder / "truth.json").read_text())
    facts = _ingest(folder, "log.dsjson")
    assert (facts["accepted"], facts["rejected"]) == (EVENTS, 0)
    assert facts["skipped"] == {"rewards that joined no event": 1}
    stored = _stored(folder).values()
    for name, said in truth.items():
        rewards = [reward for model, reward, _ in stored if model == name]
        assert len(rewards) == said["labels"]
        assert abs(sum(rewards) + said["cost"]) < 1e-6
    weight = sum(said["weight"] for said in truth.values())
    kept = next(count for note, count in facts["notes"].items() if "pdrop" in note)
    assert weight == EVENTS + kept, "pdrop 0.5 counts twice for VW, and is said here"
    report.add(
        "Vowpal Wabbit's dsjson",
        f"{EVENTS} events: actions and summed labels as VW reads them; {kept} of pdrop are said",
    )


def _made(folder: Path, config: str) -> Path:
    folder.mkdir()
    (folder / "equipoise.toml").write_text(config)
    return folder


def _peer(python: Path, script: str, folder: Path, count: int) -> None:
    started = time.monotonic()
    command = [python, PEERS / script, folder, str(count)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    print(f"  {script}: {time.monotonic() - started:.0f} s", flush=True)


def _ingest(folder: Path, *arguments: str) -> dict[str, Any]:
    code = "from equipoise.replay.cli import main; main()"
    command = [sys.executable, "-c", code, "ingest", *arguments, "--store", "log.db", "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    facts: dict[str, Any] = json.loads(ran.stdout)
    return facts


def _stored(folder: Path) -> dict[str, tuple[str, float, list[float]]]:
    """What the store holds: model, reward and outputs of each row, by its name."""
    found = {}
    with SqliteStore(folder / "log.db", read_only=True) as store:
        for segment in store.read():
            batch = segment.batch
            if isinstance(batch, ObservationBatch):
                assert batch.request_id is not None
                for name, model, reward, outputs in zip(
                    batch.request_id, batch.routed, batch.reward, batch.outputs, strict=True
                ):
                    called = ("large", "small", "tiny")[int(model)]
                    found[str(name)] = (called, float(reward), [float(each) for each in outputs])
    return found


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
