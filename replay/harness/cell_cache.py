"""Finished cells of a sweep, kept on disk while it runs, so that nothing is run twice.

A cell is known by a digest of all that determines its results: the benchmark's contents, the
settings, the cell itself and the code. A sweep whose options changed finds none of its cells.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from equipoise.replay.benchmarks import Benchmark
from equipoise.replay.benchmarks.base import OptionError

Rows: TypeAlias = list[dict[str, Any]]

_CELLS = b"equipoise cells"
_PAUSE = 1.0
_SHARE = 0.01
"""Cells go to disk every second, later after every hundredth of the time run so far: a kill costs
no more than that, and the number of parts grows with the logarithm of time only."""


class FinishedCells:
    """Rows of finished cells by key, in a folder of parts that are each written whole.

    folder: where parts of an earlier run are found and new ones go; None keeps them in memory.
    """

    def __init__(
        self, folder: Path | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder = folder
        self._clock = clock
        self._parts: list[Path | pa.Table] = []
        self._where: dict[str, tuple[int, int, int]] = {}  # part, first row, rows
        self._pending: dict[str, Rows] = {}
        self._started = self._written = clock()
        if folder is not None:
            for path in sorted(folder.glob("*.parquet")):
                self._find(path)

    def __contains__(self, key: str) -> bool:
        return key in self._where or key in self._pending

    def add(self, key: str, rows: Rows) -> None:
        """Keep the rows of a finished cell; they reach the disk within a hundredth of the run."""
        self._pending[key] = rows
        now = self._clock()
        if now - self._written >= max(_PAUSE, _SHARE * (now - self._started)):
            self.write()

    def write(self) -> None:
        """Put what is still in memory into a part of its own."""
        if not self._pending:
            return
        counts = {key: len(rows) for key, rows in self._pending.items()}
        table = as_table([row for rows in self._pending.values() for row in rows])
        self._index(counts)
        if self._folder is None:
            self._parts.append(table)
        else:
            name = blake2b("".join(counts).encode(), digest_size=12).hexdigest()
            path = self._folder / f"{name}.parquet"
            scratch = path.with_suffix(".tmp")
            pq.write_table(
                table.replace_schema_metadata({_CELLS: json.dumps(counts)}),
                scratch,
                compression="zstd",
            )
            os.replace(scratch, path)
            self._parts.append(path)
        self._pending = {}
        self._written = self._clock()

    def table(self, keys: Sequence[str]) -> pa.Table:
        """The rows of these cells, in this order; all of them must be finished."""
        self.write()
        used = sorted({self._where[key][0] for key in keys})
        tables = [self._read(self._parts[part]) for part in used]
        starts = np.cumsum([0, *(len(table) for table in tables)])
        start = dict(zip(used, starts.tolist(), strict=False))
        places = [self._where[key] for key in keys]
        rows = np.concatenate(
            [start[part] + first + np.arange(count) for part, first, count in places]
        )
        whole = pa.concat_tables(tables, promote_options="permissive").combine_chunks()
        return whole.take(pa.array(rows))

    def _find(self, path: Path) -> None:
        """Take up a part of an earlier run; one that cannot be read is as good as none."""
        try:
            metadata = pq.read_schema(path).metadata
            counts: dict[str, int] = json.loads(metadata[_CELLS])
            pq.read_metadata(path)
        except (OSError, pa.ArrowException, TypeError, KeyError, ValueError):
            path.unlink()
            return
        self._index(counts)
        self._parts.append(path)

    def _index(self, counts: dict[str, int]) -> None:
        first = 0
        for key, count in counts.items():
            self._where[key] = (len(self._parts), first, count)
            first += count

    @staticmethod
    def _read(part: Path | pa.Table) -> pa.Table:
        if isinstance(part, Path):
            return pq.read_table(part).replace_schema_metadata(None)
        return part


def as_table(rows: Rows) -> pa.Table:
    """Rows as a table with every column that any of them has; null where a row lacks it."""
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: [row.get(name) for row in rows] for name in names})


@contextmanager
def cells_beside(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out` for finished cells, locked against a second run.

    It disappears when the block ends well. After an error or an interruption, or a kill, it stays
    if a cell had finished, and the next run into `out` finds it. Raises OptionError where
    another run is writing to `out`.
    """
    out = out.absolute()
    folder = out.with_name(f".{out.name}.cells")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OptionError("out", f"another run is writing to {out}") from None
        for stale in folder.glob("*.tmp"):
            stale.unlink()
        try:
            yield folder
        except BaseException:
            if not holds_cells(folder):
                shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)


def holds_cells(folder: Path) -> bool:
    """Whether any finished cell is kept in the folder."""
    return any(folder.glob("*.parquet"))


def digest_of(*determinants: object) -> str:
    """A digest of values whose `repr` says all about them."""
    return blake2b(repr(determinants).encode(), digest_size=16).hexdigest()


def benchmark_digest(benchmark: Benchmark) -> str:
    """A digest of everything a stream can see or be scored with."""
    names = (
        *(benchmark.name, benchmark.models, benchmark.context_names),
        *(benchmark.output_names, benchmark.context_ids, benchmark.tasted),
    )
    digest = blake2b(repr(names).encode(), digest_size=16)
    for table in (benchmark.x, benchmark.outputs, benchmark.outcome, benchmark.cost):
        digest.update(np.ascontiguousarray(table).tobytes())
    return digest.hexdigest()


LIBRARIES = ("equipoise", "numpy", "scipy", "river")
"""What computes the results, by the names under which it is installed."""


def library_versions() -> dict[str, str]:
    """The installed versions of all that computes the results."""
    return {name: version(name) for name in LIBRARIES}


PACKAGE = Path(__file__).resolve().parents[2]


@cache
def code_digest(package: Path = PACKAGE) -> str:
    """A digest of the version and sources of our four packages, and of the numerical libraries'
    versions.

    Sources, because a version says nothing about what somebody changed in a working copy.
    package: the folder that holds them.
    """
    digest = blake2b(digest_size=16)
    for name, installed in library_versions().items():
        digest.update(f"{name} {installed} ".encode())
    for layer in ("agent", "policies", "replay", "store"):
        for path in sorted((package / layer).rglob("*.py")):
            digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
