"""What a configuration will take: disk, measured by writing a store; memory, state and start-up.

Features are drawn at random with all their digits, so stores of whole numbers grow more slowly.
Memory and times are rules of thumb, measured on one machine (docs/performance.md, "Memory").
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from equipoise.agent.agent import Agent
from equipoise.agent.config import ExperimentConfig
from equipoise.agent.config.service import SECONDS_A_DAY, ServiceSettings
from equipoise.agent.decisions.uniforms import KEY_BYTES
from equipoise.agent.features import Problem, Transform
from equipoise.agent.lifecycle.rules import Rule
from equipoise.agent.moments.state import Dimensions, Moments
from equipoise.agent.state.certified_sums import Spec
from equipoise.agent.state.open_decisions import OpenDecisions
from equipoise.policies.allocation import Allocation
from equipoise.policies.kernels import ConstantRate, ConstantShares
from equipoise.store.batches import OutcomeBatch, RequestBatch
from equipoise.store.sqlite import SqliteStore
from equipoise.store.words import plural

DAEMON_BYTES, ANALYST_BYTES = 190e6, 65e6
"""Resident with next to nothing in the log."""
SUMS_TIMES = 5.0
"""The fold's own sums, the copy a report is made from, and what families make of them."""
ROWS_ON_THE_WAY = 20_000
START_SECONDS, FOLD_SECONDS, STATE_SECONDS = 3.0, 3e-5, 1e-8
"""To start at all; a row since the last checkpoint; a byte of its state."""
_REQUESTS = 2000
_MB, _GB = 1e6, 1e9


@dataclass(frozen=True, slots=True)
class Growth:
    """bytes_per_request: a decision with its outputs and reward, indexes included. The disk is the
    one that holds the store, None where a
    database server has it; GB are 1e9 bytes."""

    requests_per_second: float
    bytes_per_request: float
    gigabytes_per_day: float
    free_gigabytes: float | None
    days_until_full: float | None

    def __str__(self) -> str:
        grows = (
            f"{self.requests_per_second:g} requests/s of {self.bytes_per_request:,.0f} bytes:"
            f" {self.gigabytes_per_day:.3g} GB per day"
        )
        if self.free_gigabytes is None or self.days_until_full is None:
            return f"{grows} in the database, beside its write-ahead log"
        full = plural(self.days_until_full, "day")
        return f"{grows}, {full} until {self.free_gigabytes:,.0f} GB are full"


def growth(config: ExperimentConfig, store: Path | None, requests_per_second: float) -> Growth:
    """What a store at that path will take, None for one in a database. Nothing is left behind."""
    size = bytes_per_request(config)
    per_day = size * requests_per_second * SECONDS_A_DAY / _GB
    if store is None:
        return Growth(requests_per_second, size, per_day, None, None)
    folder = store.absolute().parent
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / _GB
    return Growth(requests_per_second, size, per_day, free, free / per_day)


def _deciders(count: int, each: float) -> str:
    """Their memory: of a decider it is that of a daemon at the most."""
    return f"{plural(count, 'decider')} of up to {each / _MB:,.0f} MB each"


@dataclass(frozen=True, slots=True)
class Needs:
    """What runs beside the disk; bytes unless said otherwise.

    open_decisions: that wait for something at the declared traffic, where every window has one
    that waits; None where nothing bounds them. sums: of the state alone; state: with the open
    decisions; most_state: that SQLite keeps. file: of open decisions beyond
    their memory, of both processes. daemon, analyst: resident memory of each.
    start_seconds: until it listens, after a kill. rule_bytes, rules_a_day: of frozen rules, at the
    most.
    """

    open_decisions: float | None
    sums: int
    state: float
    most_state: int
    file: float
    daemon: float
    analyst: float
    start_seconds: float
    rule_bytes: int
    rules_a_day: float

    def __str__(self) -> str:
        return self.sentence()

    def sentence(self, deciders: int | None = None, *, authority: bool = True) -> str:
        """The same in words. deciders: processes beside an authority, None for one process alone;
        authority: whether that one is on this machine too."""
        if not authority:
            return f"memory: {_deciders(deciders or 1, self.daemon)}"
        waiting = "no bound on open decisions: declare reward.window"
        if self.open_decisions is not None:
            waiting = f"up to {self.open_decisions:,.0f} open decisions"
            if self.file:
                waiting += f", in files of up to {self.file / _GB:.2g} GB beside the store"
        who = "daemon" if deciders is None else "authority"
        also = f" {_deciders(deciders, self.daemon)};" if deciders else ""
        lines = [
            f"memory: {who} {self.daemon / _MB:,.0f} MB, analyst {self.analyst / _MB:,.0f} MB,"
            f" twice while clients ask for plans;{also} {waiting}",
            f"state {self.state / _MB:,.0f} MB, start within {self.start_seconds:,.0f} s;"
            f" rules of {self.rule_bytes / 1e3:,.1f} kB, up to"
            f" {self.rule_bytes * self.rules_a_day / _GB:.2g} GB per day",
        ]
        if self.state > self.most_state:
            lines.append(
                f"no checkpoint can hold that state: SQLite keeps {self.most_state / _MB:,.0f} MB;"
                f" a start then folds the log from the last one that could: shorten reward.window"
            )
        return "\n".join(lines)

    def problem(self, config: ExperimentConfig) -> Problem | None:
        """Why this cannot work on this machine, None where it can."""
        models = len(config.models)
        columns = len(config.features.context_columns()) + len(config.features.output_columns())
        received = f"{columns} columns for {models} models"
        fix = "fewer columns or models"
        if self.sums > self.most_state:
            limit = (
                f"a state of at most {self.most_state / _MB:,.0f} MB, which is what SQLite keeps:"
                f" this is {self.sums / _MB:,.0f} MB"
            )
            return Problem("features", received, limit, fix)
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if self.daemon + self.analyst > memory:
            limit = (
                f"what fits into the {memory / _MB:,.0f} MB of this machine: daemon and analyst"
                f" take about {(self.daemon + self.analyst) / _MB:,.0f} MB"
            )
            return Problem("features", received, limit, fix)
        return None


def needs(config: ExperimentConfig, settings: ServiceSettings, requests_per_second: float) -> Needs:
    """What the daemon will need beside the disk."""
    transform, models = Transform(config.features), len(config.models)
    # Nothing is touched, so nothing is taken.
    moments = Moments.empty(Dimensions(models, transform.d, transform.p))
    sums = sum(
        array.nbytes for part in moments.parts().values() for array in part.arrays().values()
    )
    del moments
    table = OpenDecisions(transform.d, transform.q, models, len(config.guardrails), capacity=1)
    window, ttl = config.reward.window, config.units.ttl if config.units else 0.0
    waiting = None if window is None else requests_per_second * max(window, ttl)
    open_bytes = (waiting or 0.0) * table.row_bytes
    state = sums + open_bytes
    resident = min(2.0 * open_bytes, settings.limits.open_bytes)
    since_checkpoint = 2.0 * requests_per_second * settings.checkpoint_seconds
    # A scorer is (K, p) and a little; what is frozen of the score is (A, A).
    rule = Rule(
        0, 0, _uniform(models), None, Spec.of(config).neutral(), np.ones(models, dtype=bool)
    )
    prediction = 24 * models * (1 + transform.d) + 24 * transform.p
    rules_a_day = SECONDS_A_DAY / max(settings.refresh_seconds, 0.25)
    with closing(sqlite3.connect(":memory:")) as connection:
        most_state = connection.getlimit(sqlite3.SQLITE_LIMIT_LENGTH)
    return Needs(
        open_decisions=waiting,
        sums=sums,
        state=state,
        most_state=most_state,
        # Tables have up to four times the room of what is open.
        file=0.0 if 2.0 * open_bytes <= settings.limits.open_bytes else 8.0 * open_bytes,
        daemon=DAEMON_BYTES + resident + 4.0 * table.row_bytes * ROWS_ON_THE_WAY,
        analyst=ANALYST_BYTES + resident + SUMS_TIMES * sums,
        start_seconds=START_SECONDS
        + since_checkpoint * FOLD_SECONDS
        + min(state, most_state) * STATE_SECONDS,
        rule_bytes=len(rule.encode()) + prediction,
        rules_a_day=rules_a_day,
    )


def _uniform(models: int) -> Allocation:
    shares = np.full(models, 1.0 / models)
    return Allocation(
        ConstantRate(0.1), ConstantShares(shares), 1.0 / models, "fixed-rate", "uniform"
    )


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
                x=rng.standard_normal((_REQUESTS, agent.state.transform.d)),
                routed=rng.integers(0, len(agent.models), _REQUESTS),
                request_id=ids,
                unit_id=ids,
            )
            decisions = agent.decide(requests)
            for with_outputs in (True, False):
                outputs = rng.standard_normal((_REQUESTS, agent.state.transform.q))
                agent.observe(
                    OutcomeBatch(
                        number=decisions.number,
                        served=decisions.model,
                        attempt=np.ones(_REQUESTS, dtype=np.int64),
                        delivered=np.ones(_REQUESTS, dtype=bool),
                        outputs=outputs if with_outputs else outputs * np.nan,
                        reward=np.full(_REQUESTS, np.nan if with_outputs else config.reward.low),
                        at=at,
                    )
                )
        return (path.stat().st_size - empty) / _REQUESTS
