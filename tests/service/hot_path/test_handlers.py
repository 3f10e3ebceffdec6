"""Over HTTP: ids that others write anyhow, and the same id with other content."""

from __future__ import annotations

import json
import sqlite3
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from commands import run_command
from forking import run_forked
from running import Running, running, until

from equipoise.agent.client import Client

IDS = [
    "auth0|5f7c8ec7",
    "-xYz_9",
    "_private",
    "MMLUPro_computer science_9239",
    "dGVzdA==",
    "a/b/../c?x=1&y=2#z%2F",
    "user@host:80+1",
    "=HYPERLINK(1)",
    "<script>alert('1')</script>",
    '"; DROP TABLE decisions; --',
    "{braces}\\back",
    "d1",
    "d0",
    "None",
    "..",
    " ",
    "用户-é-🙂",
    "x" * 200,
    "\u4e00" * 200,
]
NO_IDS = ["", "a\nb", "a\x00", "a\x7f", "\u202ea", "a\u2028", "x" * 201]
ROW = {"routed": "large", "features": {"words": 1.0}, "outputs": {"seconds": 1.0}}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with running(tmp_path_factory.mktemp("ids")) as started:
        yield started


def lines(daemon: Running, path: str, rows: list[Any]) -> Any:
    body = b"\n".join(json.dumps(row).encode() for row in rows)
    answer = daemon.ask("POST", path, body)
    assert answer.status == 200, answer.body
    return answer.json


def logged(daemon: Running, name: str) -> Any:
    return daemon.ask("GET", f"/v1/decisions?{urlencode({'request_id': name})}")


def test_an_id_is_anybodys_text_from_the_router_to_the_export(daemon: Running) -> None:
    with Client(f"http://127.0.0.1:{daemon.port}", timeout=20.0) as client:
        for name in IDS:
            choice = client.decide(
                name, "large", {"words": 3.0}, unit_id=f"unit {name}"[:200], context_id=name
            )
            assert (choice.reason, choice.request_id) == ("", name)
            client.outcome(choice, outputs={"seconds": 1.0}, reward=IDS.index(name) / 100)
        assert client.flush(20.0)
        assert client.counters.refused == 0
        assert client.counters.delivered == len(IDS)
    for name in IDS:
        answer = logged(daemon, name).json
        assert answer["decision"]["request_id"] == name
        assert (answer["unit_id"], answer["context_id"]) == (f"unit {name}"[:200], name)
        # The outcome went to the request of that name, whatever decision it looks like.
        assert [part["reward"] for part in answer["outcomes"]] == [IDS.index(name) / 100]
        by_number = daemon.ask("GET", f"/v1/decisions/{answer['decision']['decision_id']}")
        assert by_number.json == answer
        other = daemon.ask("GET", f"/v1/decisions/{quote(name, safe='')}")
        assert other.status in (200, 404, 307, 405)
        if other.status == 200:
            assert other.json["decision"]["decision_id"] == name
    rows = [{**ROW, "request_id": name, "unit_id": name, "reward": 0.5} for name in IDS]
    assert lines(daemon, "/v1/observations", rows)["decided"] == len(IDS)
    rows = [{**row, "request_id": f"{row['request_id'][:199]}+"} for row in rows]
    assert lines(daemon, "/v1/observations", rows)["rows"] == len(IDS)
    assert lines(daemon, "/v1/observations", rows)["duplicates"] == len(IDS)
    replay = {"features": {"words": 1.0}, "outputs": {"seconds": 1.0}, "model": "small"}
    rows = [{**replay, "context_id": name} for name in IDS]
    assert lines(daemon, "/v1/simulations", rows)["rows"] == len(IDS)
    assert daemon.ask("GET", "/").status == 200
    done = run_command("export", daemon.store, "--out", daemon.folder / "out")
    assert done.returncode == 0, done.stderr
    with sqlite3.connect(daemon.store) as opened:
        until(lambda: opened.execute("SELECT count(*) FROM decisions").fetchone()[0] == len(IDS))
        names = [name for (name,) in opened.execute("SELECT request_id FROM decisions")]
    assert names == IDS
    for line in daemon.log:
        assert isinstance(json.loads(line), dict)


@pytest.mark.parametrize("name", NO_IDS)
def test_what_is_no_id_is_refused_with_the_rule_in_words(daemon: Running, name: str) -> None:
    body = {"request_id": name, "routed": "large", "features": {"words": 1.0}}
    outcome = {"request_id": name, "reward": 1.0}
    for path, sent in (("/v1/decide", body), ("/v1/outcomes", outcome)):
        answer = daemon.ask("POST", path, sent)
        assert answer.status == 422
        assert answer.json["field"] == "request_id"
        assert "regex" not in answer.json["detail"]
        assert "printable" in answer.json["detail"] or "length <= 200" in answer.json["detail"]
    (refused,) = lines(daemon, "/v1/observations", [{**ROW, "request_id": name, "reward": 1.0}])[
        "rejects"
    ]
    assert refused["status"] == 422
    assert logged(daemon, name).status in (404, 422)


def test_a_body_names_both_lines_of_one_id(daemon: Running) -> None:
    """The first row of an id counts, across the blocks in which a body is taken in."""
    rows: list[dict[str, Any]] = [
        {**ROW, "request_id": f"b{i % 300}", "reward": float(i // 600)} for i in range(900)
    ]
    rows[5]["reward"] = 7.0  # refused, so that line 305 is the first of b5
    answer = lines(daemon, "/v1/observations", rows)
    assert (answer["rows"], answer["duplicates"], answer["rejected"]) == (300, 299, 301)
    assert answer["rejects"][0]["index"] == 5
    for refused in answer["rejects"][1:]:
        line = refused["index"]
        first = 305 if line == 605 else line - 600
        assert refused["status"] == 409
        assert f"request_id 'b{line % 300}' has other reward than row" in refused["detail"]
        assert "of the store, of 20" in refused["detail"]
        assert refused["detail"].endswith(f"(index {first} of this body)")
    (refused,) = lines(daemon, "/v1/observations", [rows[600]])["rejects"]
    assert (refused["status"], "of this body" in refused["detail"]) == (409, False)


def test_a_replay_again_is_a_repeat_or_a_conflict(daemon: Running) -> None:
    def replay(seconds: float, cost: float) -> dict[str, Any]:
        outputs = {"seconds": seconds}
        return {**ROW, "context_id": "c", "model": "large", "outputs": outputs, "cost": cost}

    rows = [replay(1.0, 0.5), replay(9.0, 0.5), replay(1.0, 0.5), replay(1.0, 0.25)]
    for row in rows:
        del row["routed"]
    answer = lines(daemon, "/v1/simulations", rows)
    assert (answer["rows"], answer["duplicates"], answer["rejected"]) == (1, 1, 2)
    for refused, other in zip(answer["rejects"], ("outputs", "cost"), strict=True):
        assert refused["status"] == 409
        assert f"context 'c' on model large has other {other} than row" in refused["detail"]
        assert refused["detail"].endswith("(index 0 of this body)")


def test_a_list_of_outcomes_names_both_rows(daemon: Running) -> None:
    for name in ("o1", "o2"):
        daemon.decide(name)
    parts: list[dict[str, Any]] = [
        {"request_id": "o1", "outputs": {"seconds": 1.0}},
        {"request_id": "o2", "reward": 1.0},
        {"request_id": "o1", "reward": 7.0},
        {"request_id": "o1", "reward": 0.5},
        {"request_id": "o1", "reward": 0.5},
        {"request_id": "o1", "reward": 1.0},
    ]
    answer = daemon.ask("POST", "/v1/outcomes", parts).json
    assert (answer["accepted"], answer["duplicates"]) == (3, 1)
    assert [(row["index"], row["status"]) for row in answer["rejected"]] == [(2, 422), (5, 409)]
    assert answer["rejected"][1]["detail"].endswith("(index 3 of this body)")
    (again,) = daemon.ask("POST", "/v1/outcomes", [parts[5]]).json["rejected"]
    assert (again["status"], "of this body" in again["detail"]) == (409, False)


def test_a_usage_row_without_a_reward_is_counted_apart(daemon: Running) -> None:
    for row in ({**ROW, "reward": None}, ROW):
        answer = lines(daemon, "/v1/observations", [row])
        assert (answer["rows"], answer["unrated"], answer["rejected"]) == (0, 1, 0)


def test_the_command_names_rows_of_files_through_a_daemon(daemon: Running) -> None:
    rows = [{**ROW, "request_id": f"u{i % 150}", "reward": float(i == 299)} for i in range(300)]
    path = daemon.folder / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["ingest", path, "--config", daemon.folder / "chat.toml"]

    def ingest(*more: str) -> subprocess.CompletedProcess[str]:
        return run_forked(*command, *more)

    done = ingest("--url", f"http://127.0.0.1:{daemon.port}", "--json")
    assert done.returncode == 1, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["accepted"], facts["duplicates"], facts["rejected"]) == (150, 149, 1)
    (reject,) = facts["rejects"]
    assert reject["row"] == 300
    assert reject["reason"].endswith("; it came first in row 150")
    assert "of this body" not in reject["reason"]
    # Beside a daemon the store is not ours to write.
    done = ingest("--store", str(Path(daemon.store)))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "another writer" in done.stderr
    assert "send them with --url" in done.stderr
