"""Every command that takes a store takes the URL of one, and never prints its password."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from commands import run_command
from running import CONFIG

from equipoise.store.postgres import PostgresStore


def test_a_whole_life_by_its_url(tmp_path: Path, postgres_url: str, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    url = f"{postgres_url}&password=geheim"
    Path("equipoise.toml").write_text(f'{CONFIG}\n[service]\nstore = "{url}"\nkey = "chat.key"\n')
    rows = [
        {
            "request_id": f"r{n}",
            "routed": "small",
            "features": {"words": n},
            "reward": n % 2,
            "outputs": {"seconds": 1.0},
        }
        for n in range(40)
    ]
    Path("usage.jsonl").write_text("\n".join(map(json.dumps, rows)))
    said = ""

    def run(*order: Any, code: int = 0) -> str:
        nonlocal said
        result = run_command(*order)
        assert result.returncode == code, (order, result.stdout, result.stderr)
        said += result.stdout + result.stderr
        return result.stdout + result.stderr

    checked = json.loads(run("serve", "--config", "equipoise.toml", "--check", "--json"))
    assert checked["store"].endswith("password=***")
    run("ingest", "usage.jsonl", "--json")
    again = json.loads(run("ingest", "usage.jsonl", "--store", url, "--json"))
    assert again["duplicates"] == 40
    assert json.loads(run("status", url, "--json"))["log_rows"] == 40
    assert "40 log rows" in run("audit", url, "--key", "chat.key")
    assert "expected at least 20" in run("plan", "--store", url, code=2)
    run("export", url, "--out", "tables", "--format", "csv")
    assert Path("tables/observations.csv").read_text().count("\n") == 41
    assert "pg_dump" in run("backup", url, "--out", "copy", code=2)
    assert "nothing is missing" in run("repair", url, "--check")
    assert "serve small" in run("end", url, "--key", "chat.key", "--model", "small")
    assert json.loads(run("status", url, "--json"))["ended"]["model"] == "small"
    with PostgresStore(url):
        for order in (["ingest", "usage.jsonl"], ["end", url, "--key", "chat.key", "--keep"]):
            refusal = run(*order, code=2)
            assert "open for writing already" in refusal
            assert refusal.count("\n") == 1
    assert "does not exist" in run("repair", f"{url}&schema=nobody", code=2)
    assert "geheim" not in said
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        *("chat.key", "equipoise.toml", "tables", "usage.jsonl")
    ]
