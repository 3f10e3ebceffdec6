"""Rows a second and memory of `equipoise look`, beside pyarrow's and DuckDB's readers of JSON.

    python tests/performance/look_bench.py --rows 1000000

Every reader runs in a process of its own with one thread, on the same file, in turns. The file is
what LiteLLM's callback logs, about three kilobytes a row. Like `run.py` it asserts nothing. The
columns that look needs are what the other two read, too; `whole` is every column.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "agent" / "look"), str(TESTS / "doors")]

DUCKDB = "duckdb==1.4.4"
_LOOK = """
from pathlib import Path
from equipoise.agent.look.findings import Tally
from equipoise.agent.look.reading import Reader, inspected, survey
begin()
sources = [inspected(Path(FILE))]
reader = Reader(*survey(sources))
tally = Tally(reader)
for block in reader.blocks(sources):
    tally.add(block)
rows = tally.rows
"""
_TESTED = _LOOK.replace("import Tally", "import Tally, settled") + "settled(tally.findings())\n"
_ARROW = """
import pyarrow as pa, pyarrow.json as pj
pa.set_cpu_count(1)
begin()
text = pa.string()
metadata = pa.struct([("user_api_key_user_id", text), ("requester_metadata", pa.struct(
    [("plan", text), ("country", text), ("thumb", text)]))])
message = pa.struct([("role", text), ("content", text)])
schema = pa.schema([("model_group", text), ("startTime", pa.float64()), ("endTime", pa.float64()),
    ("status", text), ("response_cost", pa.float64()), ("prompt_tokens", pa.int64()),
    ("completion_tokens", pa.int64()), ("request_tags", pa.list_(text)),
    ("messages", pa.list_(message)), ("metadata", metadata)])
options = pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior=BEHAVIOUR)
reading = pj.ReadOptions(use_threads=False, block_size=1 << 22)
rows = sum(len(batch) for batch in pj.open_json(FILE, reading, options))
"""
_DUCKDB = """
import duckdb
begin()
db = duckdb.connect()
db.execute("SET threads = 1")
db.execute("SET memory_limit = '4GB'")
columns = COLUMNS
given = "" if columns is None else f", columns = {columns}"
names = "*" if columns is None else ", ".join(columns)
reader = db.execute(f"SELECT {names} FROM read_json('{FILE}', format = 'newline_delimited'{given})")
rows = 0
for batch in reader.fetch_record_batch(100_000):
    rows += len(batch)
"""
_COLUMNS = {
    "model_group": "VARCHAR",
    "startTime": "DOUBLE",
    "endTime": "DOUBLE",
    "status": "VARCHAR",
    "response_cost": "DOUBLE",
    "prompt_tokens": "BIGINT",
    "completion_tokens": "BIGINT",
    "request_tags": "VARCHAR[]",
    "messages": 'STRUCT("role" VARCHAR, "content" VARCHAR)[]',
    "metadata": 'STRUCT(user_api_key_user_id VARCHAR, requester_metadata STRUCT("plan" VARCHAR,'
    " country VARCHAR, thumb VARCHAR))",
}
_FRAME = """
import json, resource, sys, time
FILE, start, cpu = sys.argv[1], 0.0, 0.0
def begin():
    global start, cpu
    start, cpu = time.perf_counter(), time.process_time()
{work}
print(json.dumps([rows, time.perf_counter() - start, time.process_time() - cpu,
    resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
"""


def write(path: Path, count: int) -> None:
    """A log of so many rows."""
    from simulated_logs import World, litellm, rows

    with open(path, "w", encoding="utf-8") as file:
        for number, row in enumerate(rows(count, World(users=20_000, spacing=2.6), 7)):
            file.write(json.dumps(litellm(row, number)) + "\n")


def measured(python: Path, work: str, path: Path) -> tuple[int, float, float, float]:
    """Rows, seconds, processor seconds, largest resident megabytes."""
    single = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    run = subprocess.run(
        [python, "-c", _FRAME.format(work=work), path],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **single},
    )
    rows, seconds, cpu, memory = json.loads(run.stdout.splitlines()[-1])
    return rows, seconds, cpu, memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-duckdb", action="store_true", help="do not install it")
    parser.add_argument("--folder", type=Path, help="keep the logs here")
    options = parser.parse_args()
    own = Path(sys.executable)
    works = {
        "look, reading and sums": (own, _LOOK),
        "look, with tests and plan": (own, _TESTED),
        "pyarrow, these columns": (own, _ARROW.replace("BEHAVIOUR", "'ignore'")),
        "pyarrow, whole": (own, _ARROW.replace("BEHAVIOUR", "'infer'")),
    }
    if not options.no_duckdb:
        from harness import python_with

        duckdb = python_with("duckdb", DUCKDB, "pyarrow==24.0.0")
        works["duckdb, these columns"] = (duckdb, _DUCKDB.replace("COLUMNS", repr(_COLUMNS)))
        works["duckdb, whole"] = (duckdb, _DUCKDB.replace("COLUMNS", "None"))
    with tempfile.TemporaryDirectory() as name:
        folder = options.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"litellm-{options.rows}.jsonl"
        if not path.exists():
            write(path, options.rows)
        print(f"{options.rows:,} rows, {path.stat().st_size / options.rows:,.0f} bytes each")
        times: dict[str, list[tuple[int, float, float, float]]] = {work: [] for work in works}
        for _ in range(options.rounds):
            for work, (python, text) in works.items():
                times[work].append(measured(python, text, path))
        base = statistics.median(each[2] for each in times["look, reading and sums"])
        for work, runs in times.items():
            rows, seconds, cpu, memory = (
                statistics.median(each) for each in zip(*runs, strict=True)
            )
            print(
                f"{work:28} {rows / cpu:>10,.0f} rows/s of a core  {seconds:6.1f} s"
                f"  {memory:6,.0f} MB  {cpu / base:5.1f} times look's processor time"
            )


if __name__ == "__main__":
    main()
