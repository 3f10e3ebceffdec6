"""`equipoise look` on a log of known truth, beside the readers of DuckDB and pyarrow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from harness import ROOT, Report, json_lines, python_with

sys.path[:0] = [str(ROOT / "tests" / "agent" / "look")]

ROWS = 50_000
DUCKDB = "duckdb==1.4.4"
_SUMS = """
import json, sys, duckdb
query = '''SELECT model_group, count(*), sum(response_cost),
    avg(CASE metadata.requester_metadata.thumb WHEN 'up' THEN 1.0 WHEN 'down' THEN 0.0 END)
    FROM read_json(?) GROUP BY 1 ORDER BY 1'''
print(json.dumps(duckdb.execute(query, [sys.argv[1]]).fetchall()))
"""


def drive(folder: Path, report: Report) -> None:
    from simulated_logs import World, litellm, rows

    report.peer = f"{DUCKDB}, LiteLLM's payloads simulated"
    found = rows(ROWS, World(users=4000, spacing=20.0), 31)
    log = json_lines(folder / "usage.jsonl", [litellm(row, at) for at, row in enumerate(found)])
    command = [sys.executable, "-m", "equipoise", "look", str(log), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    look = json.loads(done.stdout)
    python = python_with("duckdb", DUCKDB, "pyarrow==24.0.0")
    sums = subprocess.run([python, "-c", _SUMS, log], capture_output=True, text=True, check=True)
    theirs = {name: rest for name, *rest in json.loads(sums.stdout)}
    for each in look["findings"]["models"]:
        requests, spent, mean = theirs[each["name"]]
        assert each["requests"] == requests
        assert abs(each["spent"] - spent) < 1e-6 * spent
        assert abs(each["mean"] - mean) < 1e-12
    report.add("requests, cost and mean reward of each model are DuckDB's", f"{ROWS:,} rows")
    small = look["findings"]["comparisons"][0]
    assert small["naive"] > 0 > small["adjusted_high"]
    assert small["adjusted_low"] < -0.05 < small["adjusted_high"]
    report.add(
        "small - large, -0.05 in truth: naive, among requests alike",
        f"{small['naive']:+.3f}, {small['adjusted']:+.3f}",
    )
    random = [each for each in look["findings"]["splits"] if each["verdict"] == "looks random"]
    assert [each["where"] for each in random] == ["request_tags has canary"]
    report.add("the canary is found, and nothing else", f"p = {random[0]['p']:.2g}")
