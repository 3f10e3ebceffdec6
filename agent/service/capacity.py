"""How fast a store will grow, measured by writing one: GB per day, and days until the disk is full.

Features are drawn at random with all their digits, so stores of whole numbers grow more slowly.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from equipoise.agent.agent import Agent
from equipoise.agent.config import ExperimentConfig
from equipoise.agent.draws import KEY_BYTES
from equipoise.store.batches import OutcomeBatch, RequestBatch
from equipoise.store.sqlite import SqliteStore

SECONDS_A_DAY = 86_400
_REQUESTS = 2000
_GB = 1e9


@dataclass(frozen=True, slots=True)
class Growth:
    """bytes_per_request: a decision with its outputs and reward, indexes included. The disk is the
    one that holds the store; GB are 1e9 bytes."""

    requests_per_second: float
    bytes_per_request: float
    gigabytes_per_day: float
    free_gigabytes: float
    days_until_full: float

    def __str__(self) -> str:
        return (
            f"{self.requests_per_second:g} requests/s of {self.bytes_per_request:,.0f} bytes:"
            f" {self.gigabytes_per_day:.3g} GB per day,"
            f" {self.days_until_full:,.0f} days until {self.free_gigabytes:,.0f} GB are full"
        )


def growth(config: ExperimentConfig, store: Path, requests_per_second: float) -> Growth:
    """What a store at that path will take. Nothing is left behind."""
    size = bytes_per_request(config)
    per_day = size * requests_per_second * SECONDS_A_DAY / _GB
    folder = store.absolute().parent
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / _GB
    return Growth(requests_per_second, size, per_day, free, free / per_day)


def bytes_per_request(config: ExperimentConfig) -> float:
    """Bytes on disk that a decision with its outcome takes, by writing 2,000 of each."""
    rng = np.random.default_rng(0)
    with TemporaryDirectory(prefix="equipoise-") as folder:
        path = Path(folder) / "scratch.db"
        with SqliteStore(path) as opened:
            agent = Agent(config, opened, bytes(KEY_BYTES))
        empty = path.stat().st_size
        with SqliteStore(path) as opened:
            agent = Agent(config, opened, bytes(KEY_BYTES))
            ids = [f"{number:032x}" for number in range(_REQUESTS)]
            at = np.full(_REQUESTS, 1.7e9) + rng.random(_REQUESTS)
            requests = RequestBatch(
                unit=rng.integers(0, 2**62, _REQUESTS),
                context=np.full(_REQUESTS, -1),
                at=at,
                x=rng.standard_normal((_REQUESTS, agent.transform.d)),
                routed=rng.integers(0, len(agent.models), _REQUESTS),
                request_id=ids,
                unit_id=ids,
            )
            made = agent.decide(requests)
            for with_outputs in (True, False):
                outputs = rng.standard_normal((_REQUESTS, agent.transform.q))
                agent.observe(
                    OutcomeBatch(
                        number=made.number,
                        served=made.model,
                        attempt=np.ones(_REQUESTS, dtype=np.int64),
                        delivered=np.ones(_REQUESTS, dtype=bool),
                        outputs=outputs if with_outputs else outputs * np.nan,
                        reward=np.full(_REQUESTS, np.nan if with_outputs else config.reward.low),
                        at=at,
                    )
                )
        return (path.stat().st_size - empty) / _REQUESTS
