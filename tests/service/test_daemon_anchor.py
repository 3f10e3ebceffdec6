"""A daemon that says where its hash chain stands, and what an audit makes of it."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from commands import run_command
from running import running, until

from equipoise.store.format.sql_rows import LOG_TABLES, Columns
from equipoise.store.sql import chain

SERVICE = 'checkpoint_seconds = 0.3\nmode = "observe"\nanchor = "{}"\n'


def audited(store: Path, *arguments: object) -> tuple[int, dict]:
    done = run_command("audit", store, "--json", *arguments)
    return done.returncode, json.loads(done.stdout)


def test_rows_and_chain_rewritten_together_show_against_the_anchor(tmp_path: Path) -> None:
    anchors = tmp_path / "anchors.jsonl"
    with running(tmp_path, SERVICE.format(anchors)) as daemon:
        for index in range(20):
            daemon.decide(f"s{index}")
            daemon.ask("POST", "/v1/outcomes", {"request_id": f"s{index}", "reward": 0.0})
        until(anchors.exists)
        daemon.ask("POST", "/v1/pause", {"reason": "lunch"})
        for index in range(20, 40):
            daemon.decide(f"s{index}")
    lines = [json.loads(line) for line in anchors.read_text().splitlines()]
    assert lines[-1]["log"]["position"] == 60
    assert anchors.stat().st_mode & 0o777 == 0o600
    code, found = audited(daemon.store, "--anchor", anchors)
    assert (code, found["faults"]) == (0, [])
    assert (found["chained_from"], found["chained_rows"]) == (0, 60)
    assert found["anchors"] == len(lines)
    assert found["capped"] == 40
    assert not any("served as routed" in line for line in found["unproven"])
    assert not any("--anchor" in line for line in found["unproven"])

    shutil.copy(daemon.store, tmp_path / "forged.db")
    with closing(sqlite3.connect(tmp_path / "forged.db", isolation_level=None)) as connection:
        connection.execute("BEGIN")
        connection.execute("UPDATE outcomes SET reward = 1.0 WHERE number = 3")
        connection.execute("DELETE FROM chain WHERE id > 0")
        connection.execute(
            "UPDATE chain SET position = 0, digest = (SELECT digest FROM chain WHERE id = 0)"
            " WHERE id = -1"
        )
        for table, row in chain.rows_between(connection, 0, 60):
            (found,) = (each for each in LOG_TABLES if each.name == table)
            columns = Columns(found, [[value] for value in row])
            chain.extend(connection, None, row[0], [columns])
        connection.execute("COMMIT")
    assert audited(tmp_path / "forged.db")[0] == 0
    code, found = audited(tmp_path / "forged.db", "--anchor", anchors)
    assert code == 1
    assert "are not what they were" in found["faults"][0]
