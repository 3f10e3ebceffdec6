"""A replay that is killed or interrupted goes on where it was, and ends in the same bytes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from commands import run_command

EAGER = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
    "import time, equipoise.replay.harness.cell_cache as finished; finished._PAUSE = 0.0;"
    "write = finished.FinishedCells.write;"
    "finished.FinishedCells.write = lambda cells: (write(cells), time.sleep(0.1));"
    "from equipoise.replay.cli import main; main()"
)
"""A replay that writes every cell at once, and then leaves time to stop it, whatever its shell says
about Ctrl-C."""

CELLS = 40
OPTIONS = (
    *("--benchmark", "semisynthetic", "--policies", "uniform", "--estimators", "ipw,obs-only"),
    *("--obs", "300", "--exp-rate", "1", "--budget", "100", "--seeds", str(CELLS)),
)
FILES = ("results.parquet", "summary.json", "report.html")


def start(out: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", EAGER, "replay", *OPTIONS, "--out", str(out), *more],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(out: Path, *more: str) -> str:
    done = run_command("replay", *OPTIONS, "--out", out, *more)
    assert done.returncode == 0, done.stderr
    return done.stderr


def cells_in(folder: Path) -> int:
    return sum(pd.read_parquet(part)["seed"].nunique() for part in folder.glob("*.parquet"))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    assert "earlier" not in finish(out, "--jobs", "1")
    return out


@pytest.mark.parametrize(
    ("how", "jobs", "code"),
    [(signal.SIGINT, "1", 130), (signal.SIGKILL, "2", -9)],
)
def test_the_same_command_goes_on(uninterrupted, tmp_path, how, jobs, code):
    out = tmp_path / "out"
    process = start(out, "--jobs", jobs)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob(".out.cells/*.parquet"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, how)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == code, errors
    assert not out.exists()
    if how == signal.SIGINT:
        *_, last = errors.strip().splitlines()
        assert last.endswith("give the same command again to go on from there.")
        assert "Traceback" not in errors
    kept = cells_in(tmp_path / ".out.cells")
    assert 4 <= kept < CELLS
    resumed = finish(out, "--jobs", "1")
    (found,) = re.findall(r"(\d+) of 40 cells were finished earlier", resumed)
    assert int(found) == kept
    for name in FILES:
        assert (out / name).read_bytes() == (uninterrupted / name).read_bytes(), name
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_another_option_starts_anew(tmp_path):
    process = start(tmp_path / "out", "--jobs", "1")
    while not list(tmp_path.glob(".out.cells/*.parquet")) and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert "earlier" not in finish(tmp_path / "out", "--jobs", "1", "--obs", "301", "--seeds", "2")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
