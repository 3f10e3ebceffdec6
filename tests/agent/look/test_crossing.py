"""Every model on every task is no random split, and rows that look a little like it may be one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from equipoise.agent.look.crossing import Crossed, crossed
from equipoise.agent.look.findings import Findings, Tally
from equipoise.agent.look.reading import Reader, inspected, survey
from tests.agent.look.test_reading import lines_of

DATA = Path(__file__).resolve().parents[3] / ".." / "shared" / "data"


def found(model: np.ndarray, task: np.ndarray, fraction: float = 1.0) -> Crossed | None:
    return crossed(model, {"task": task + 1}, fraction)


def every(models: int, tasks: int, times: int = 1) -> tuple[np.ndarray, np.ndarray]:
    model = np.tile(np.repeat(np.arange(models), tasks), times)
    return model, np.tile(np.arange(tasks), models * times)


@pytest.mark.parametrize(("models", "tasks", "times"), [(2, 100, 1), (5, 250, 1), (15, 60, 3)])
def test_every_model_on_every_task_is_crossed(models: int, tasks: int, times: int) -> None:
    said = found(*every(models, tasks, times))
    assert said is not None
    assert (said.column, said.tasks, said.even, said.models) == ("task", tasks, tasks, models)
    assert said.same == models * tasks * times * (times - 1) / 2
    assert said.same < said.expected


def test_two_of_many_models_side_by_side_and_a_gap_are_crossed() -> None:
    draws = np.random.default_rng(1)
    pairs = np.array([draws.choice(20, 2, replace=False) for _ in range(2000)])
    assert found(pairs.ravel(), np.repeat(np.arange(2000), 2)) is not None
    model, task = every(5, 250)
    there = draws.random(1250) < 0.97
    assert found(model[there], task[there]) is not None


def test_a_sample_of_a_long_crossed_log_is_still_seen() -> None:
    model, task = every(2, 500_000)
    kept = np.random.default_rng(2).random(1_000_000) < 0.05
    said = found(model[kept], task[kept], 0.05)
    assert said is not None
    assert said.even == said.tasks


def test_drawn_models_are_not_crossed_however_often_a_task_comes_back() -> None:
    """100 logs: prompts twice each, of two equal models or of many, users with many rows each."""
    draws = np.random.default_rng(3)
    for attempt in range(100):
        rows = 4000
        models, each = [(2, 2), (2, 3), (12, 2), (3, 40)][attempt % 4]
        shares = draws.dirichlet(np.full(models, 3.0))
        assert found(draws.choice(models, rows, p=shares), np.arange(rows) // each) is None


def test_one_model_a_user_and_a_few_second_attempts_are_not_crossed() -> None:
    draws = np.random.default_rng(4)
    assert found(np.repeat(draws.integers(0, 2, 500), 4), np.repeat(np.arange(500), 4)) is None
    # One request in ten is tried again with the other model, under its own id.
    model = draws.integers(0, 2, 5000)
    again = draws.random(5000) < 0.1
    task = np.r_[np.arange(5000), np.flatnonzero(again)]
    assert found(np.r_[model, 1 - model[again]], task) is None
    assert found(model, np.full(5000, -1)) is None


def looked(files: Iterable[Path], **given: str) -> Findings:
    sources = [inspected(path) for path in files]
    chosen, seen = survey(sources, given=given)
    reader = Reader(chosen, seen)
    tally = Tally(reader)
    for block in reader.blocks(sources):
        tally.add(block)
    return tally.findings()


def graded(key: str, tasks: int = 150, **more: Any) -> list[Mapping[str, Any]]:
    """Rows of a table of answers: every model on every task, one model after the other."""
    draws = np.random.default_rng(5)
    rows = []
    for model in ("large", "middle", "small"):
        for task in range(tasks):
            tag = ("maths", "code", "law")[task % 3]
            score = float(draws.random() < 0.5)
            name = f"{task:06d}-{'abc'[task % 3] * 8}"
            rows.append({"model": model, key: name, "tag": tag, "score": score, **more})
    return rows


@pytest.mark.parametrize("key", ["request_id", "question_id", "hash", "doc", "instruction"])
def test_a_table_of_answers_is_no_random_split(tmp_path: Path, key: str) -> None:
    findings = looked([lines_of(tmp_path / "answers.jsonl", graded(key))])
    assert [(each.where, each.verdict) for each in findings.splits] == [("all requests", "crossed")]
    assert findings.tried == {"crossed": 1}
    assert findings.splits[0].crossed is not None
    assert findings.splits[0].crossed.column == key


def test_numbers_and_messages_name_a_task_too(tmp_path: Path) -> None:
    rows = [{**row, "id": at % 150} for at, row in enumerate(graded("other"))]
    for row in rows:
        del row["other"]
    only = looked([lines_of(tmp_path / "number.jsonl", rows)])
    assert only.splits[0].verdict == "crossed"
    chats = [
        {key: value for key, value in row.items() if key != "id"}
        | {"messages": [{"role": "user", "content": f"Say {row['id']} in the words of a poet"}]}
        for row in rows
    ]
    chat = looked([lines_of(tmp_path / "chats.jsonl", chats)])
    assert chat.splits[0].verdict == "crossed"
    # Rows without messages are not one task that all models share.
    empty = [row if at % 3 else {**row, "messages": None} for at, row in enumerate(chats)]
    kept = looked([lines_of(tmp_path / "empty.jsonl", empty)]).splits[0].crossed
    assert kept is not None
    assert kept.tasks == 100


def test_a_result_that_depends_on_the_model_does_not_hide_it(tmp_path: Path) -> None:
    rows = [
        {**row, "kind": "long" if row["model"] == "large" else "short"} for row in graded("doc")
    ]
    findings = looked([lines_of(tmp_path / "answers.jsonl", rows)])
    assert [each.verdict for each in findings.splits] == ["crossed"]


def test_a_random_split_with_prompts_that_come_back_is_still_one(tmp_path: Path) -> None:
    draws = np.random.default_rng(6)
    rows = [
        {
            "id": f"r{at}",
            "prompt": f"please explain question number {int(draws.integers(200))}",
            "model": ("large", "small")[int(draws.integers(2))],
            "plan": ("free", "paid")[int(draws.integers(2))],
            "score": int(draws.integers(2)),
        }
        for at in range(3000)
    ]
    findings = looked([lines_of(tmp_path / "usage.jsonl", rows)])
    assert [each.verdict for each in findings.splits] == ["looks random"]
    assert findings.splits[0].crossed is None


@pytest.mark.skipif(not (DATA / "frank").exists(), reason="the cached benchmarks are not here")
def test_benchmarks_as_they_are_published_are_no_random_split() -> None:
    for path in sorted((DATA / "frank").glob("*.json")):
        assert looked([path]).splits[0].verdict == "crossed"
    rated = looked([DATA / "frank" / "human_annotations.json"], reward="Factuality")
    assert [each.verdict for each in rated.splits] == ["crossed"]
    outputs = sorted((DATA / "alpacaeval" / "results").glob("*/model_outputs.json"))
    said = looked(outputs, model="generator").splits[0].crossed
    assert said is not None
    assert (said.column, said.models) == ("instruction", len(outputs))


def test_the_answer_says_not_to_declare_it(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from equipoise.replay.cli import app

    log = tmp_path / "answers.json"
    log.write_text(json.dumps(graded("doc", latency=1.0)), encoding="utf-8")
    text = " ".join(CliRunner().invoke(app, ["look", str(log)]).stdout.split())
    assert "the same doc comes back under other models (150 values in several rows" in text
    assert "do not declare these rows as a random split" in text
    assert "declare it and they count as EXP" not in text
    assert "Then `equipoise ingest` counts them as EXP" not in text
    assert "something drew them at random" not in text
