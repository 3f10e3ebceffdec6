"""How long a daemon with a long history takes to be ready after kill -9, and its memory.

The history is written by the agent itself in large batches, with a checkpoint before the last
rows, as a daemon that was killed leaves it.

    python tests/performance/restart_bench.py --rows 5000000 --since-checkpoint 300000
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from service_bench import CONFIG, memory

from equipoise.agent.agent import Agent
from equipoise.agent.config.file import load_file
from equipoise.agent.maintenance.key_file import write_key
from equipoise.store.batches import OutcomeBatch, RequestBatch
from equipoise.store.sqlite import SqliteStore

AT_ONCE = 4096


def write_history(config: Path, path: Path, rows: int, since_checkpoint: int) -> None:
    """Half of the rows are decisions, half their outcomes."""
    experiment = load_file(config, {"store": str(path)}).experiment
    rng = np.random.default_rng(0)
    with SqliteStore(path) as store:
        agent = Agent(experiment, store, write_key(path))
        saved = False
        while store.next_seq < rows:
            first = store.decisions
            made = agent.decide(
                RequestBatch(
                    unit=rng.integers(0, 2**62, AT_ONCE),
                    context=np.full(AT_ONCE, -1),
                    at=np.full(AT_ONCE, time.time()),
                    x=rng.normal(size=(AT_ONCE, 8)),
                    routed=rng.integers(0, 4, AT_ONCE),
                    request_id=[f"h{first + row}" for row in range(AT_ONCE)],
                )
            )
            agent.observe(
                OutcomeBatch(
                    number=made.number,
                    served=made.model,
                    attempt=np.ones(AT_ONCE, dtype=np.int64),
                    delivered=np.ones(AT_ONCE, dtype=bool),
                    outputs=rng.normal(size=(AT_ONCE, 4)),
                    reward=rng.integers(0, 2, AT_ONCE).astype(float),
                    at=np.full(AT_ONCE, time.time()),
                )
            )
            if not saved and store.next_seq >= rows - since_checkpoint:
                agent.checkpoint(time.time())
                saved = True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--since-checkpoint", type=int, default=300_000)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config, path = Path(folder) / "bench.toml", Path(folder) / "bench.db"
        config.write_text(CONFIG)
        start = time.perf_counter()
        write_history(config, path, chosen.rows, chosen.since_checkpoint)
        size = path.stat().st_size / 1e9
        print(f"{chosen.rows:,} rows, {size:.1f} GB, in {time.perf_counter() - start:.0f} s")
        command = [sys.executable, "-c", "from equipoise.replay.cli import main; main()", "serve"]
        command += ["--config", str(config), "--store", str(path), "--port", "0"]
        for turn in ("start", "start after kill -9"):
            start = time.perf_counter()
            daemon = subprocess.Popen(command, stdout=subprocess.PIPE)
            assert daemon.stdout is not None
            daemon.stdout.readline()
            seconds = time.perf_counter() - start
            print(f"{turn}: ready in {seconds:.1f} s, {memory(daemon.pid):.0f} MB resident")
            daemon.kill()
            daemon.communicate()


if __name__ == "__main__":
    main()
