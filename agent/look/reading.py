"""A usage log as it lies there, as blocks of columns, a megabyte at a time.

Three steps: `inspected` finds out what kind of file it is from its bytes; `survey` looks at rows
from several places and chooses the paths of model, reward, time and all the rest; `Reader` reads
every row. JSON lines go through a struct that has no other fields than those paths, so that
whatever else a line holds is skipped and never becomes an object. A line that does not fit the
struct is read anew without it, and one that cannot be read is counted.
"""

from __future__ import annotations

import gc
import gzip
import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, Final

import msgspec
import numpy as np

from equipoise.agent.config.ingest import as_number, as_seconds, parse_path
from equipoise.agent.errors import AgentError
from equipoise.agent.features.values import shown, suggestion
from equipoise.agent.ingest import files
from equipoise.agent.ingest.derived import ANSWERED, CACHED, COUNTS, FAILED, is_guessed
from equipoise.agent.ingest.presets import FAMILIES, PRESETS, Preset, preset_rows, recognise
from equipoise.agent.look.choosing import GUESSED, Chosen, Sightings, choose, is_whole
from equipoise.agent.look.crossing import key_paths
from equipoise.agent.look.values import (
    CHATS,
    Codes,
    Fields,
    flag,
    forget_zeros,
    hashes,
    is_failure,
    length,
    named,
    told,
)
from equipoise.store.batches import Floats
from equipoise.store.words import plural

BLOCK_BYTES = 1 << 20
BLOCK_ROWS = 4096
SURVEY_ROWS, SPOTS = 1500, 8
"""Rows that are looked at before the columns are chosen; places of a file they come from."""
MOST_REASONS = 20
FATES: Final = (ANSWERED, CACHED, FAILED)
"""What became of a request, by number; a higher number is another reason why a row is none."""
_MAGIC = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst"}
_SKIPPABLE = b"\x2a\x4d\x18"
"""Of a frame of zstd that holds no data, after a byte of 0x50 to 0x5f: pzstd begins with one."""
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Source:
    """A file and what it turned out to be. size: bytes on disk. packing: .gz, .zst or nothing."""

    path: Path
    size: int
    packing: str
    format: files.Format


@dataclass(frozen=True, slots=True)
class Block:
    """Some rows as columns, all of length (rows,). model, columns: codes, NONE or OTHER, or numbers
    with NaN; numbers: by role; unit: a hash, 0 for none; keys: the same of paths that may name the
    task; fate: number of one of FATES. done: bytes of the file that were read."""

    rows: int
    model: np.ndarray
    numbers: Mapping[str, Floats]
    unit: np.ndarray
    fate: np.ndarray
    columns: Sequence[np.ndarray]
    keys: Sequence[np.ndarray]
    done: int


def inspected(path: Path) -> Source:
    """What kind of file this is, by its bytes. Raises AgentError in one line."""
    if str(path) == "-":
        raise AgentError("-: look reads files, several times; save standard input to one first")
    if not path.exists():
        raise AgentError(f"{path}: there is no such file")
    if path.is_dir():
        raise AgentError(f"{path} is a folder: name the files in it")
    size = path.stat().st_size
    with open(path, "rb") as raw:
        start = raw.read(4)
    packing = next((suffix for magic, suffix in _MAGIC.items() if start.startswith(magic)), "")
    if start[1:] == _SKIPPABLE and 0x50 <= start[0] <= 0x5F:
        packing = ".zst"
    with opened(path, packing) as (file, _):
        try:
            head = file.read(1 << 16)
        except _BROKEN as error:
            cut = isinstance(error, EOFError) or "truncated" in str(error).casefold()
            how = "is cut off near its beginning" if cut else f"cannot be unpacked: {error}"
            raise AgentError(f"{path} {how}") from None
    text = head.removeprefix(_BOM).lstrip()
    if not text:
        raise AgentError(f"{path} is empty")
    if head[:4] == b"PAR1":
        return _as("parquet", path, size, packing)
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise AgentError(f"{path} is UTF-16: write it as UTF-8")
    if text[:1] == b"[" or text.split(b"\n", 1)[0].strip() == b"{":
        return _as("json", path, size, packing)
    if text[:1] == b"{":
        page = _decoded(text.split(b"\n", 1)[0])
        whole = isinstance(page, dict) and isinstance(page.get("data"), list)
        return _as("json", path, size, packing) if whole else Source(path, size, packing, "jsonl")
    if b"\0" in head:
        raise AgentError(f"{path} is binary: expected JSON lines, JSON, CSV or Parquet")
    lines = text.split(b"\n", 5)
    if _decoded(lines[0]) is not None and any(line.lstrip()[:1] == b"{" for line in lines):
        # Lines of JSON, the first of which is no object.
        return Source(path, size, packing, "jsonl")
    try:
        line = lines[0].decode().strip()
    except UnicodeDecodeError:
        raise AgentError(f"{path} is neither UTF-8 text nor Parquet") from None
    if "," not in line:
        expected = "expected JSON lines, JSON, Parquet, or CSV with commas and a header"
        raise AgentError(f"{path} begins with {shown(line)}: {expected}")
    return _as("csv", path, size, packing)


def _as(format_: files.Format, path: Path, size: int, packing: str) -> Source:
    """A source for the reader of `ingest`, which goes by suffixes."""
    suffix = path.suffix.lower().replace(".zstd", ".zst")
    if packing != (suffix if suffix in _MAGIC.values() else ""):
        fix = f"name it {path.name}{packing}" if packing else f"rename it: it is not {suffix}"
        raise AgentError(f"{path} is {packing[1:] or 'not packed'}: {fix}")
    return Source(path, size, packing, format_)


@contextmanager
def opened(path: Path, packing: str) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """The bytes of a file, unpacked, and the file itself, whose place says how far it is read."""
    with open(path, "rb") as raw:
        if packing == ".zst":
            import pyarrow as pa

            with pa.CompressedInputStream(raw, "zstd") as stream:
                yield stream, raw
        elif packing == ".gz":
            with gzip.GzipFile(fileobj=raw) as file:
                yield file, raw  # type: ignore[misc]
        else:
            yield raw, raw


CHUNK, FEWEST_OF_SHAPE = 100, 50
"""Rows that are asked together whose they are, and how many say enough."""


def _one_shape(source: Source, preset: Preset | None, rows: Sequence[Mapping[str, Any]]) -> None:
    """Raise AgentError where later rows of a file are of another shape than the first ones: read
    as one, half of them would have no model or no reward."""
    if is_whole(preset) or len(rows) < FEWEST_OF_SHAPE:
        return
    shape = recognise(rows)
    if shape is not preset and (shape is None or preset is None or shape.family != preset.family):
        first, later = (each.name if each else "no known shape" for each in (preset, shape))
        raise AgentError(
            f"{source.path}: its first rows are of {first}, later ones of {later}: split the file"
            " and look at one kind at a time"
        )


_BROKEN = (OSError, EOFError, zlib.error)
"""What unpacking raises where a file is cut off or damaged. EOFError would end a command without
a word, as if it had been interrupted."""


def _lines_of(source: Source) -> Iterator[tuple[bytes, int]]:
    """Whole lines of a file, some at a time, and how far it is read. Raises AgentError where it is
    cut off or damaged."""
    with opened(source.path, source.packing) as (file, raw):
        try:
            for lines in _line_blocks(file):
                yield lines, raw.tell()
        except _BROKEN as error:
            raise AgentError(_broken(source) or f"{source.path} cannot be read: {error}") from None


def _broken(source: Source) -> str:
    """Where a packed file ends too early or is damaged, in words; "" where it is sound."""
    whole = 0
    try:
        with opened(source.path, source.packing) as (file, _):
            # One read at a time keeps what stands before the place that cannot be read.
            while chunk := file.read1(1 << 16):  # type: ignore[attr-defined]
                whole += chunk.count(b"\n")
    except _BROKEN as error:
        after = {"jsonl": plural(whole, "whole row"), "csv": plural(whole, "whole line")}
        where = f", after {after[source.format]}" if source.format in after else ""
        cut = isinstance(error, EOFError) or "truncated" in str(error).casefold()
        if cut:
            return f"{source.path} ends in the middle{where}: the file is cut off"
        return f"{source.path} cannot be unpacked{where}: {error}"
    return ""


def survey(
    sources: Sequence[Source],
    shape: str | None = None,
    given: Mapping[str, str] | None = None,
    columns: Sequence[str] = (),
    rewards: Mapping[str, float] | None = None,
) -> tuple[Chosen, Sightings]:
    """Look at rows of every file and choose the columns. shape: whose log it is, as the user says.
    Raises AgentError where files differ in shape, where a path is in no row, or where no model is
    found."""
    presets = [_preset(source, shape) for source in sources]
    for source, preset in zip(sources, presets, strict=True):
        if preset is not presets[0]:
            names = [each.name if each else "no known shape" for each in (presets[0], preset)]
            differ = f"{sources[0].path} holds rows of {names[0]}, {source.path} of {names[1]}"
            raise AgentError(f"{differ}: look at one kind at a time")
    seen = Sightings()
    for source, preset in zip(sources, presets, strict=True):
        before = seen.rows
        found = _some_rows(source, preset)
        while chunk := list(islice(found, CHUNK)):
            for row in chunk:
                seen.add(row)
            _one_shape(source, preset, chunk)
        if seen.rows == before:
            raise AgentError(f"{source.path}: none of the first rows can be read")
    try:
        return choose(seen, presets[0], given or {}, columns, rewards or {}), seen
    except AgentError as error:
        raise AgentError(f"{sources[0].path}: {error}") from None


def _preset(source: Source, shape: str | None) -> Preset | None:
    """Whose log a file is, by its first rows or as the user says. Raises AgentError."""
    if shape is not None and shape not in PRESETS and shape not in FAMILIES:
        names = dict.fromkeys([*FAMILIES, *PRESETS])
        near = suggestion(shape, names)
        known = near if near.startswith("did") else f"known are: {', '.join(names)}"
        raise AgentError(f"--from {shape}: {known}")
    first = [row for row in islice(_raw_rows(source, Counter()), 100) if isinstance(row, dict)]
    found = recognise(first, shape if shape in FAMILIES else None)
    if shape is not None and (found is None or shape not in (found.name, found.family)):
        raise AgentError(f"{source.path}: its rows are not of {shape}; leave out --from to guess")
    return found


def _some_rows(source: Source, preset: Preset | None) -> Iterator[Mapping[str, Any]]:
    """The first rows and, where the file can be jumped in, some from later places."""
    yield from islice(_rows(source, preset, Counter()), SURVEY_ROWS)
    if source.format == "jsonl" and not source.packing and not is_whole(preset):
        with open(source.path, "rb") as file:
            for spot in range(1, SPOTS):
                file.seek(source.size * spot // SPOTS)
                file.readline()
                for line in islice(file, SURVEY_ROWS // SPOTS):
                    row = _decoded(line)
                    if isinstance(row, dict):
                        yield row


def _raw_rows(source: Source, lost: Counter[str]) -> Iterator[Any]:
    """What a file holds, before anything is made of it; rows that cannot be read are counted."""
    if source.format == "jsonl":
        for lines, _ in _lines_of(source):
            for line in lines.split(b"\n"):
                if not line.strip():
                    continue
                row = _decoded(line)
                if row is None:
                    _lose(lost, "not JSON")
                else:
                    yield row
        return
    for entry in _entries(source):
        if isinstance(entry, AgentError):
            # Its numbers differ from row to row.
            cells = "cells" in str(entry)
            _lose(lost, "too few or too many cells" if cells else str(entry)[:80])
        else:
            yield _decoded(entry) if isinstance(entry, bytes) else entry


def _entries(source: Source) -> Iterator[Any]:
    try:
        for _, entry in files.rows(str(source.path), source.format):
            yield entry
    except (AgentError, OSError) as error:
        # A file that is cut off is said to be none of its kind.
        raise AgentError((source.packing and _broken(source)) or str(error)) from None


def _lose(lost: Counter[str], reason: str, number: int = 1) -> None:
    lost[reason if reason in lost or len(lost) < MOST_REASONS else "other reasons"] += number


def _decoded(line: bytes) -> Any:
    try:
        return msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        if b"NaN" not in line and b"Infinity" not in line and not files.is_cut(line):
            return None
    try:
        # Python and pandas write NaN for what is missing, though JSON has none.
        return files.from_json(line)
    except (ValueError, RecursionError):
        return None


def _rows(source: Source, preset: Preset | None, lost: Counter[str]) -> Iterator[Mapping[str, Any]]:
    """Rows as objects: what a preset's function makes of them, where one has to."""
    for row in _raw_rows(source, lost):
        if not isinstance(row, Mapping):
            _lose(lost, "not an object")
            continue
        page = row.get("data")
        if preset is not None and is_whole(preset):
            try:
                for each in preset_rows(preset, row):
                    if isinstance(each, AgentError):
                        _lose(lost, str(each)[:80])
                    else:
                        yield each
            except AgentError as error:
                _lose(lost, str(error)[:80])
        elif isinstance(page, list) and len(row) <= 3:
            # A page of an API's answer.
            kept = [each for each in page if isinstance(each, dict)]
            if len(kept) < len(page):
                _lose(lost, "not an object", len(page) - len(kept))
            yield from kept
        else:
            yield row


class Reader:
    """Rows of the chosen columns as arrays; it keeps the codes of categories over blocks and files.

    keys: paths that may name the task. lost: rows that are in no block, by reason. reasons: of
    fates beyond FATES. bad: values that could not be read, by role. odd: rows that the struct did
    not fit.
    """

    def __init__(self, chosen: Chosen, seen: Sightings) -> None:
        self.chosen = chosen
        self.models = Codes()
        self.columns: list[Codes | None] = [
            Codes() if each.kind in ("category", "tags") else None for each in chosen.columns
        ]
        self.lost: Counter[str] = Counter()
        self.bad: Counter[str] = Counter()
        self.odd = 0
        self.keys = key_paths(chosen, seen)
        self._paths = {path: parse_path(path) for path in [*chosen.paths, *self.keys]}
        self._raw = {
            each.path
            for each in chosen.columns
            if each.kind == "length" and seen.paths[each.path].kind == "parts"
        }
        self._fields = Fields(self._paths, self._raw, seen.paths)
        self.reasons: list[str] = []
        self._fates: dict[Any, int] = {None: 0, "": 0}
        self._calls: dict[Any, int] = {None: 0, "": 0}
        self._flags: dict[Any, int] = {None: 0, "": 0}

    def blocks(
        self, sources: Sequence[Source], progress: Callable[[int, int], None] = lambda _a, _b: None
    ) -> Iterator[Block]:
        """Every row of every file. progress: gets the bytes read so far, and rows."""
        before = rows = 0
        on = gc.isenabled()
        # Rows are trees: nothing here needs the cycle collector, which would walk them all.
        gc.disable()
        try:
            for source in sources:
                for block in self._of_file(source):
                    rows += block.rows
                    yield block
                    progress(before + block.done, rows)
                before += source.size
        finally:
            if on:
                gc.enable()

    def _of_file(self, source: Source) -> Iterator[Block]:
        if source.format == "jsonl" and not self.chosen.whole:
            for lines, done in _lines_of(source):
                yield self._block(self._lines(lines), done)
            return
        found = _rows(source, self.chosen.preset, self.lost)
        while rows := list(islice(found, BLOCK_ROWS)):
            values = {
                path: [steps.find(row) for row in rows] for path, steps in self._paths.items()
            }
            yield self._block(values, 0)

    def _lines(self, lines: bytes) -> dict[str, list[Any]]:
        try:
            return self._fields.values(self._fields.decoder.decode_lines(lines))
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            pass
        fit, odd = [], []
        decode = self._fields.decoder.decode
        for line in lines.split(b"\n"):
            if not line.strip():
                continue
            try:
                fit.append(decode(line))
                continue
            except (msgspec.DecodeError, UnicodeError, RecursionError):
                row = _decoded(line)
            if isinstance(row, dict):
                odd.append(row)
            else:
                _lose(self.lost, "not JSON" if row is None else "not an object")
        values = self._fields.values(fit)
        for path, steps in self._paths.items():
            values[path].extend(steps.find(row) for row in odd)
        self.odd += len(odd)
        return values

    def _block(self, values: Mapping[str, list[Any]], done: int) -> Block:
        roles = self.chosen.roles
        count = len(next(iter(values.values()), []))

        def of(role: str) -> list[Any]:
            return values[roles[role]] if role in roles else []

        columns = [
            self._column(column.kind, values[column.path], codes)
            for column, codes in zip(self.chosen.columns, self.columns, strict=True)
        ]
        fate = told(of("status"), count, self._fates, self._fate)
        fate = np.maximum(fate, told(of("call"), count, self._calls, self._call))
        cached = told(of("cached"), count, self._flags, flag)
        return Block(
            rows=count,
            model=self.models.of([named(value) for value in of("model")]),
            numbers=self._numbers(of, count),
            unit=hashes(of("unit"), count),
            fate=np.where((fate == 0) & (cached > 0), FATES.index(CACHED), fate),
            columns=columns,
            keys=[hashes(values[path], count) for path in self.keys],
            done=done,
        )

    def _numbers(self, of: Callable[[str], list[Any]], count: int) -> dict[str, Floats]:
        roles = self.chosen.roles
        numbers: dict[str, Floats] = {}
        for role in ("cost", "input_tokens", "output_tokens", "seconds", "propensity"):
            if role in roles:
                numbers[role] = self._floats(of(role), role)
                low = numbers[role] < 0.0
                if role != "propensity" and low.any():
                    self.bad[f"{role} below 0"] += int(np.count_nonzero(low))
                    numbers[role][low] = math.nan
        if "seconds" in numbers and self.chosen.milliseconds:
            numbers["seconds"] = numbers["seconds"] / 1e3
        if "reward" in roles:
            numbers["reward"] = self._rewards(of("reward"))
        for role in ("at", "ended"):
            if role in roles:
                numbers[role] = self._times(of(role), role)
        if "ended" in numbers:
            ended = numbers.pop("ended")
            if "at" in numbers:
                took = ended - numbers["at"]
                numbers["seconds"] = np.where(took >= 0, took, math.nan)
        unpriced = [bool(value) for value in of("unpriced")] or [False] * count
        forget_zeros(numbers, np.array(unpriced))
        told_by = [of(role) or [None] * count for role in GUESSED]
        guessed = np.array([is_guessed(*each) for each in zip(*told_by, strict=True)], dtype=bool)
        for role in COUNTS if guessed.any() else ():
            if role in numbers:
                numbers[role][guessed] = math.nan
        return numbers

    def _fate(self, value: Any) -> int:
        """The number of what became of a request; every other reason has one of its own."""
        if value in FATES:
            return FATES.index(value)
        if self.chosen.whole:
            return self._other(str(value)[:60])
        return FATES.index(FAILED) if is_failure(value) else 0

    def _call(self, value: Any) -> int:
        """Calls of LiteLLM that are no chats."""
        if any(name in str(value) for name in CHATS):
            return 0
        return self._other(f"calls of {str(value)[:40]}")

    def _other(self, reason: str) -> int:
        if reason not in self.reasons:
            if len(self.reasons) >= MOST_REASONS:
                reason = "other reasons"
            if reason not in self.reasons:
                self.reasons.append(reason)
        return len(FATES) + self.reasons.index(reason)

    def _column(self, kind: str, values: list[Any], codes: Codes | None) -> np.ndarray:
        if codes is not None:
            return codes.of(values)
        if kind == "length":
            return np.array([length(value) for value in values], dtype=np.float64)
        return self._floats(values, "")

    def _floats(self, values: list[Any], role: str) -> Floats:
        try:
            return np.array(values, dtype=np.float64)
        except (ValueError, TypeError, OverflowError):
            return np.array([self._number(value, role) for value in values], dtype=np.float64)

    def _number(self, value: Any, role: str) -> float:
        try:
            number = as_number(role, value)
        except (AgentError, TypeError):
            self.bad[role] += bool(role)
            return math.nan
        return math.nan if number is None else number

    def _rewards(self, values: list[Any]) -> Floats:
        words = self.chosen.rewards
        if not words:
            return self._floats(values, "reward")
        found = np.full(len(values), math.nan)
        for at, value in enumerate(values):
            if value is None or value == "":
                continue
            reward = words.get(str(value).strip())
            if reward is None:
                self.bad["reward"] += 1
            else:
                found[at] = reward
        return found

    def _times(self, values: list[Any], role: str) -> Floats:
        try:
            times = np.array(values, dtype=np.float64)
        except (ValueError, TypeError, OverflowError):
            return np.array([self._time(value, role) for value in values], dtype=np.float64)
        for least, unit in ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3)):
            times = np.where(times > least, times / unit, times)
        return times

    def _time(self, value: Any, role: str) -> float:
        try:
            time = as_seconds(role, value)
        except (AgentError, ValueError, OverflowError):
            self.bad[role] += 1
            return math.nan
        return math.nan if time is None else time


def _line_blocks(file: IO[bytes]) -> Iterator[bytes]:
    """Whole lines, about BLOCK_BYTES at a time."""
    rest: list[bytes] = []
    first = True
    while chunk := file.read(BLOCK_BYTES):
        if first:
            chunk, first = chunk.removeprefix(_BOM), False
        end = chunk.rfind(b"\n")
        if end < 0:
            rest.append(chunk)
            continue
        yield b"".join([*rest, chunk[: end + 1]])
        rest = [chunk[end + 1 :]]
    last = b"".join(rest)
    if last.strip():
        yield last
