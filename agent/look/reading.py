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

from equipoise.agent.config.ingest import as_flag, as_number, as_seconds, parse_path
from equipoise.agent.errors import AgentError
from equipoise.agent.features.values import shown, suggestion
from equipoise.agent.ingest import files
from equipoise.agent.ingest.derived import ANSWERED, CACHED, FAILED
from equipoise.agent.ingest.presets import FAMILIES, PRESETS, Preset, preset_rows, recognise
from equipoise.agent.look.choosing import Chosen, Fields, Sightings, choose, is_whole
from equipoise.store.batches import Floats

BLOCK_BYTES = 1 << 20
BLOCK_ROWS = 4096
SURVEY_ROWS, SPOTS = 1500, 8
"""Rows that are looked at before the columns are chosen; places of a file they come from."""
MOST_CODES = 1000
"""Distinct values of a column that are told apart; the rest count as one."""
MOST_REASONS = 20
NONE, OTHER = -1, -2
"""Codes of a value that is not there, and of all that are beyond MOST_CODES."""
FATES: Final = (ANSWERED, CACHED, FAILED)
"""What became of a request, by number; a higher number is another reason why a row is none."""
_MAGIC = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst"}
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
    with NaN; numbers: by role; unit: a hash, 0 for none; fate: number of one of FATES. done: bytes
    of the file that were read."""

    rows: int
    model: np.ndarray
    numbers: Mapping[str, Floats]
    unit: np.ndarray
    fate: np.ndarray
    columns: Sequence[np.ndarray]
    done: int


def inspected(path: Path) -> Source:
    """What kind of file this is, by its bytes. Raises AgentError in one line."""
    if not path.exists():
        raise AgentError(f"{path}: there is no such file")
    if path.is_dir():
        raise AgentError(f"{path} is a folder: name the files in it")
    size = path.stat().st_size
    with open(path, "rb") as raw:
        start = raw.read(4)
    packing = next((suffix for magic, suffix in _MAGIC.items() if start.startswith(magic)), "")
    with opened(path, packing) as (file, _):
        try:
            head = file.read(1 << 16)
        except (OSError, EOFError, zlib.error) as error:
            raise AgentError(f"{path} cannot be unpacked: {error}") from None
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
        for row in _some_rows(source, preset):
            seen.add(row)
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
        raise AgentError(f"--from {shape}: {suggestion(shape, names)}")
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
        with opened(source.path, source.packing) as (file, _):
            for lines in _line_blocks(file):
                for line in lines.split(b"\n"):
                    if not line.strip():
                        continue
                    row = _decoded(line)
                    if row is None:
                        _lose(lost, "not JSON")
                    else:
                        yield row
        return
    for _, entry in files.rows(str(source.path), source.format):
        if isinstance(entry, AgentError):
            # Its numbers differ from row to row.
            cells = "cells" in str(entry)
            _lose(lost, "too few or too many cells" if cells else str(entry)[:80])
        else:
            yield _decoded(entry) if isinstance(entry, bytes) else entry


def _lose(lost: Counter[str], reason: str, number: int = 1) -> None:
    lost[reason if reason in lost or len(lost) < MOST_REASONS else "other reasons"] += number


def _decoded(line: bytes) -> Any:
    try:
        return msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
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


class _Codes(dict[Any, int]):
    """Values to codes in the order they come, up to MOST_CODES of them."""

    def __init__(self, most: int = MOST_CODES) -> None:
        super().__init__({None: NONE, "": NONE})
        self._most = most
        self.labels: list[Any] = []

    def __missing__(self, value: Any) -> int:
        if len(self.labels) >= self._most:
            return OTHER
        self[value] = code = len(self.labels)
        self.labels.append(value)
        return code

    def of(self, values: list[Any]) -> np.ndarray:
        try:
            return np.fromiter(map(self.__getitem__, values), np.int32, len(values))
        except TypeError:
            # A list or a mapping where others have a text.
            hashable = [
                tuple(map(str, value))
                if isinstance(value, list)
                else value
                if value.__hash__ is not None
                else str(value)[:200]
                for value in values
            ]
            return np.fromiter(map(self.__getitem__, hashable), np.int32, len(values))


class Reader:
    """Rows of the chosen columns as arrays; it keeps the codes of categories over blocks and files.

    lost: rows that are in no block, by reason. reasons: of fates beyond FATES. bad: values that
    could not be read, by role. odd: rows that the struct did not fit.
    """

    def __init__(self, chosen: Chosen, seen: Sightings) -> None:
        self.chosen = chosen
        self.models = _Codes()
        self.columns: list[_Codes | None] = [
            _Codes() if each.kind in ("category", "tags") else None for each in chosen.columns
        ]
        self.lost: Counter[str] = Counter()
        self.bad: Counter[str] = Counter()
        self.odd = 0
        self._paths = {path: parse_path(path) for path in chosen.paths}
        self._raw = {
            each.path
            for each in chosen.columns
            if each.kind == "length" and seen.paths[each.path].kind == "parts"
        }
        self._fields = Fields(self._paths, self._raw, seen)
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
            with opened(source.path, source.packing) as (file, raw):
                for lines in _line_blocks(file):
                    yield self._block(self._lines(lines), raw.tell())
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
        fate = _told(of("status"), count, self._fates, self._fate)
        fate = np.maximum(fate, _told(of("call"), count, self._calls, self._call))
        cached = _told(of("cached"), count, self._flags, _flag)
        return Block(
            rows=count,
            model=self.models.of([_name(value) for value in of("model")]),
            numbers=self._numbers(of, count),
            unit=_hashes(of("unit"), count),
            fate=np.where((fate == 0) & (cached > 0), FATES.index(CACHED), fate),
            columns=columns,
            done=done,
        )

    def _numbers(self, of: Callable[[str], list[Any]], count: int) -> dict[str, Floats]:
        roles = self.chosen.roles
        numbers: dict[str, Floats] = {}
        for role in ("cost", "input_tokens", "output_tokens", "seconds", "propensity"):
            if role in roles:
                numbers[role] = self._floats(of(role), role)
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
        _forget_zeros(numbers, np.array(unpriced))
        return numbers

    def _fate(self, value: Any) -> int:
        """The number of what became of a request; every other reason has one of its own."""
        if value in FATES:
            return FATES.index(value)
        if self.chosen.whole:
            return self._other(str(value)[:60])
        return FATES.index(FAILED) if _failure(value) else 0

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

    def _column(self, kind: str, values: list[Any], codes: _Codes | None) -> np.ndarray:
        if codes is not None:
            return codes.of(values)
        if kind == "length":
            return np.array([_length(value) for value in values], dtype=np.float64)
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


def _name(value: Any) -> Any:
    return value if isinstance(value, str) or value is None else str(value)[:200]


def _length(value: Any) -> float:
    if value is None:
        return math.nan
    if isinstance(value, msgspec.Raw):
        size = len(memoryview(value))
        return math.nan if size <= 4 and bytes(value) == b"null" else float(size)
    return float(len(value) if isinstance(value, str) else len(msgspec.json.encode(value)))


def _hashes(values: list[Any], count: int) -> np.ndarray:
    if not values:
        return np.zeros(count, np.int64)
    try:
        hashes = np.fromiter(map(hash, values), np.int64, count)
    except TypeError:
        hashes = np.fromiter((hash(str(value)) for value in values), np.int64, count)
    hashes[[value is None or value == "" for value in values]] = 0
    return hashes


def _told(
    values: list[Any], count: int, known: dict[Any, int], tell: Callable[[Any], int]
) -> np.ndarray:
    """A number for each row, worked out once for each distinct value."""
    numbers = np.zeros(count, np.int64)
    for at, value in enumerate(values):
        try:
            number = known.get(value)
        except TypeError:
            number = tell(value)
        if number is None:
            number = tell(value)
            if len(known) < MOST_CODES:
                known[value] = number
        numbers[at] = number
    return numbers


def _forget_zeros(numbers: dict[str, Floats], unpriced: np.ndarray) -> None:
    """Zeros that stand for unknown become so, as in `presets`: every request has input, so 0
    tokens in and 0 out are those of a stream without usage, and its cost of 0 follows from that."""
    tokens_in, tokens_out = numbers.get("input_tokens"), numbers.get("output_tokens")
    if tokens_in is None or tokens_out is None:
        return
    unknown = (np.nan_to_num(tokens_in) == 0) & (np.nan_to_num(tokens_out) == 0)
    for tokens in (tokens_in, tokens_out):
        tokens[unknown] = math.nan
    if "cost" in numbers:
        free = (numbers["cost"] == 0) & (np.isnan(tokens_in) | unpriced)
        numbers["cost"][free] = math.nan


CHATS = ("completion", "responses", "anthropic_messages", "generate_content")
_FAILURES = ("fail", "error", "exception", "timeout", "timed_out", "refused", "cancel")


def _failure(value: Any) -> bool:
    try:
        code = as_number("", value)
    except (AgentError, TypeError):
        return any(word in str(value).casefold() for word in _FAILURES)
    return code is not None and 400 <= code < 600


def _flag(value: Any) -> int:
    try:
        return int(bool(as_flag("", value)))
    except (AgentError, TypeError):
        return int(str(value).casefold() in ("hit", "cached"))
