"""`equipoise ingest --url`: the same rows, to the daemon that has the store open."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from forking import run_forked
from running import running

TOKEN = "route-token-of-length"
ROW: dict[str, Any] = {
    "routed": "large",
    "features": {"words": 3},
    "outputs": {"seconds": 1},
    "reward": 0.5,
}


def ingest(folder: Path, *arguments: str, token: str | None = None) -> tuple[int, Any]:
    environment = {} if token is None else {"EQUIPOISE_TOKEN": token}
    order = ("ingest", *arguments, "--config", "chat.toml", "--json")
    done = run_forked(*order, cwd=folder, **environment)
    return done.returncode, json.loads(done.stdout) if done.returncode < 2 else done.stderr


def write(folder: Path, name: str, rows: list[Any]) -> None:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_rows_go_to_the_daemon_and_count_once(tmp_path: Path) -> None:
    rows = [{**ROW, "reward": i % 2} for i in range(250)]
    rows[120] = {**ROW, "routed": "medium"}
    rows[249] = {**ROW, "reward": 7}
    write(tmp_path, "a.jsonl", rows)
    with running(tmp_path) as daemon:
        url = f"http://127.0.0.1:{daemon.port}"
        code, done = ingest(tmp_path, "a.jsonl", "--url", url, "--rejects", "why.jsonl")
        assert code == 1
        assert (done["accepted"], done["duplicates"], done["rejected"]) == (248, 0, 2)
        lines = (tmp_path / "why.jsonl").read_text().splitlines()
        assert [json.loads(line)["row"] for line in lines] == [121, 250]
        code, done = ingest(tmp_path, "a.jsonl", "--url", url)
        assert (done["accepted"], done["duplicates"]) == (0, 248)
        daemon.decide("r1")
        write(tmp_path, "o.jsonl", [{"request_id": "r1", "reward": 1}, {"request_id": "r2"}])
        code, done = ingest(tmp_path, "o.jsonl", "--kind", "outcomes", "--url", url)
        assert (code, done["accepted"], done["rejected"]) == (1, 1, 1)
        assert daemon.ask("GET", "/readyz").json["log_rows"] == 250


def test_what_the_daemon_refuses_as_a_whole_is_one_line(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", [ROW])
    service = f'tokens = [{{name = "router", token = "{TOKEN}"}}]'
    with running(tmp_path, service) as daemon:
        url = f"http://127.0.0.1:{daemon.port}"
        code, message = ingest(tmp_path, "a.jsonl", "--url", url)
        assert (code, message.count("\n")) == (2, 1)
        assert "status 401" in message
        assert ingest(tmp_path, "a.jsonl", "--url", url, token=TOKEN)[1]["accepted"] == 1
        code, message = ingest(tmp_path, "a.jsonl", "--url", url, "--store", "x.db")
        assert code == 2
        code, message = ingest(tmp_path, "a.jsonl", "--store", "log.db")
        assert "another writer" in message
    code, message = ingest(tmp_path, "a.jsonl", "--url", url)
    assert (code, message.count("\n")) == (2, 1)
    assert "does not answer" in message
    assert ingest(tmp_path, "a.jsonl", "--url", "localhost")[0] == 2
