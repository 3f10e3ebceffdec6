"""The router loop of the README, against the daemon and the configuration of the repository."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from running import running

from equipoise.store.batches import DecisionBatch, ObservationBatch
from equipoise.store.sqlite import SqliteStore

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
(LOOP,) = (block for block in BLOCKS if "router.decide" in block)


def run(folder: Path, url: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", LOOP],
        cwd=folder,
        env={**os.environ, "EQUIPOISE_URL": url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_with_the_daemon_every_request_is_in_its_log(tmp_path: Path) -> None:
    # The helper writes its own [service] table.
    text = (ROOT / "equipoise.toml").read_text()
    experiment = re.sub(r"\[service\].*?(?=\n\[)", "", text, flags=re.DOTALL)
    with running(tmp_path, config=experiment) as daemon:
        shown = run(tmp_path, f"http://127.0.0.1:{daemon.port}")
    assert "dropped=0" in shown
    with SqliteStore(daemon.store, read_only=True) as store:
        batches = [segment.batch for segment in store.read()]
    decided = sum(len(batch) for batch in batches if isinstance(batch, DecisionBatch))
    observed = sum(len(batch) for batch in batches if isinstance(batch, ObservationBatch))
    assert decided + observed == 50
    assert decided > 25, "a time-out of 50 ms is the exception"


def test_without_the_daemon_it_serves_as_before(tmp_path: Path) -> None:
    shown = run(tmp_path, "http://127.0.0.1:9")
    assert "Counter({'large': 50})" in shown
    assert "decided=0" in shown
