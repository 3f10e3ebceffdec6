"""A usage log as it lies there, as blocks of columns, a few megabytes at a time.

Three steps: `opened` finds out what kind of file it is from its bytes; `survey` looks at rows from
several places and chooses the paths of model, reward, time and all the rest; `blocks` reads every
row. JSON lines go through a struct that has no other fields than those paths, so that whatever else
a line holds is skipped and never becomes an object. A line that does not fit the struct is read
anew without it, and one that cannot be read is counted.
"""

from __future__ import annotations

import csv
import gc
import gzip
import io
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

import msgspec
import numpy as np

from equipoise.agent.config.ingest import FieldPath, as_flag, as_number, as_seconds, parse_path
from equipoise.agent.errors import AgentError
from equipoise.agent.features.values import shown
from equipoise.agent.look.choosing import Chosen, Sightings, choose, recognised
from equipoise.store.batches import Floats

Shape: TypeAlias = Literal["json lines", "json", "csv", "parquet"]
BLOCK_BYTES = 1 << 20
BLOCK_ROWS = 4096
SURVEY_ROWS, SPOTS = 1500, 8
"""Rows that are looked at before the columns are chosen; places of a file they come from."""
MOST_CODES = 1000
"""Distinct values of a column that are told apart; the rest count as one."""
NONE, OTHER = -1, -2
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
csv.field_size_limit(1 << 24)


@dataclass(frozen=True, slots=True)
class Source:
    """A file and what it turned out to be. size: bytes on disk. header: of a CSV file."""

    path: Path
    size: int
    packing: str
    shape: Shape
    delimiter: str = ","


@dataclass(frozen=True, slots=True)
class Block:
    """Some rows as columns, all of length (rows,). model, columns: codes, NONE or OTHER, or numbers
    with NaN; unit: a hash, 0 for none; failed, cached: flags; lost: reason to rows that are in none
    of the columns; odd: rows that the struct did not fit."""

    rows: int
    model: np.ndarray
    numbers: Mapping[str, Floats]
    unit: np.ndarray
    failed: np.ndarray
    cached: np.ndarray
    columns: Sequence[np.ndarray]
    done: int
    odd: int


def inspected(path: Path) -> Source:
    """What kind of file this is, by its bytes. Raises AgentError in one line."""
    if not path.exists():
        raise AgentError(f"{path}: there is no such file")
    if path.is_dir():
        raise AgentError(f"{path} is a folder: name the files in it")
    size = path.stat().st_size
    with open(path, "rb") as raw:
        start = raw.read(4)
    packing = next((name for magic, name in _MAGIC.items() if start.startswith(magic)), "")
    if start == b"PAR1":
        return Source(path, size, packing, "parquet")
    with opened(path, packing) as file:
        try:
            head = file.read(1 << 16)
        except (OSError, EOFError) as error:
            raise AgentError(f"{path}: {packing or 'the file'} cannot be read: {error}") from None
    if head[:4] == b"PAR1":
        return Source(path, size, packing, "parquet")
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not text:
        raise AgentError(f"{path} is empty")
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise AgentError(f"{path} is UTF-16: write it as UTF-8")
    if b"\0" in head:
        raise AgentError(f"{path} is binary: expected JSON lines, JSON, CSV or Parquet")
    if text[:1] == b"[":
        return Source(path, size, packing, "json")
    if text[:1] == b"{":
        first, newline, after = text.partition(b"\n")
        try:
            # A document over several lines, or one object that holds the rows.
            whole = msgspec.json.decode(first)
            several = bool(after.strip()) or not _rows_within(whole)
            return Source(path, size, packing, "json lines" if several else "json")
        except (msgspec.DecodeError, UnicodeError):
            # The first line may be longer than what was read.
            lines = not newline or after.lstrip()[:1] == b"{"
            return Source(path, size, packing, "json lines" if lines else "json")
    try:
        line = text.split(b"\n", 1)[0].decode()
    except UnicodeDecodeError:
        raise AgentError(f"{path} is neither UTF-8 text nor Parquet") from None
    delimiter = max(",;\t|", key=line.count)
    if not line.count(delimiter):
        expected = "expected JSON lines, JSON, Parquet, or CSV with a header"
        raise AgentError(f"{path} begins with {shown(line)}: {expected}")
    return Source(path, size, packing, "csv", delimiter)


@contextmanager
def opened(path: Path, packing: str) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked."""
    if packing == "zstd":
        import pyarrow as pa

        with pa.CompressedInputStream(str(path), "zstd") as stream:
            yield stream
    elif packing == "gzip":
        with gzip.open(path) as file:
            yield file  # type: ignore[misc]
    else:
        with open(path, "rb") as file:
            yield file


def survey(
    sources: Sequence[Source],
    preset: str | None = None,
    given: Mapping[str, str] | None = None,
    columns: Sequence[str] = (),
    rewards: Mapping[str, float] | None = None,
) -> tuple[Chosen, Sightings]:
    """Look at rows of every file and choose the columns. Raises AgentError where files differ in
    shape, where a path is in no row, or where no model is found."""
    together, first = Sightings(), None
    for source in sources:
        seen = Sightings() if len(sources) > 1 else together
        for row in _some_rows(source):
            seen.add(row)
            if seen is not together:
                together.add(row)
        if not seen.rows:
            raise AgentError(f"{source.path}: no row can be read as {source.shape}")
        shape = _shape(seen)
        if first is None:
            first = shape
        elif shape != first and preset is None:
            differ = f"{sources[0].path} holds {first}, {source.path} {shape}"
            raise AgentError(f"{differ}: look at one kind at a time")
    try:
        return choose(together, preset, given or {}, columns, rewards or {}), together
    except AgentError as error:
        raise AgentError(f"{sources[0].path}: {error}") from None


def _shape(seen: Sightings) -> str:
    found = recognised(seen)
    if found is not None:
        return f"rows of {found.name}"
    names = sorted({each.keys[0] for each in seen.paths.values()})
    return f"rows of {', '.join(names[:6])}"


def _some_rows(source: Source) -> Iterator[Mapping[str, Any]]:
    """The first rows and, where the file can be jumped in, some from later places."""
    yield from islice(_mappings(source), SURVEY_ROWS)
    if source.shape == "json lines" and not source.packing:
        with open(source.path, "rb") as file:
            for spot in range(1, SPOTS):
                file.seek(source.size * spot // SPOTS)
                file.readline()
                for line in islice(file, SURVEY_ROWS // SPOTS):
                    row = _row(line)
                    if row is not None:
                        yield row


def _row(line: bytes) -> Mapping[str, Any] | None:
    try:
        row = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _mappings(source: Source) -> Iterator[Mapping[str, Any]]:
    with opened(source.path, source.packing) as file:
        if source.shape == "json lines":
            for line in file:
                row = _row(line.removeprefix(b"\xef\xbb\xbf"))
                if row is not None:
                    yield row
        else:
            for rows in _tables(source, file, Counter()):
                yield from rows


def _tables(
    source: Source, file: IO[bytes], lost: Counter[str]
) -> Iterator[list[Mapping[str, Any]]]:
    """The rows of a file that is no JSON lines, some thousand at a time."""
    if source.shape == "json":
        rows = _document(source, file)
    elif source.shape == "csv":
        rows = _csv(source, file, lost)
    else:
        rows = _parquet(source, file)
    while some := list(islice(rows, BLOCK_ROWS)):
        kept: list[Mapping[str, Any]] = [row for row in some if isinstance(row, dict)]
        if len(kept) < len(some):
            lost["not an object"] += len(some) - len(kept)
        yield kept


def _document(source: Source, file: IO[bytes]) -> Iterator[Any]:
    try:
        whole = msgspec.json.decode(file.read().removeprefix(b"\xef\xbb\xbf"))
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise AgentError(f"{source.path} is not JSON: {error}") from None
    if isinstance(whole, list):
        return iter(whole)
    return iter(_rows_within(whole) or [whole])


def _rows_within(whole: object) -> list[Any]:
    """The longest list of objects that an object holds, such as that of {"data": [...]}."""
    if not isinstance(whole, dict):
        return []
    lists = [each for each in whole.values() if isinstance(each, list) and each]
    rows = [each for each in lists if all(isinstance(row, dict) for row in each)]
    # Messages of a chat are a list of objects, too: a row has more beside it than an export has.
    return max(rows, key=len, default=[]) if len(whole) <= 4 and "messages" not in whole else []


def _csv(source: Source, file: IO[bytes], lost: Counter[str]) -> Iterator[dict[str, Any]]:
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    try:
        reader = csv.reader(text, delimiter=source.delimiter)
        header = [name.strip() for name in next(reader, [])]
        twice = next((name for name in header if header.count(name) > 1), None)
        if twice is not None:
            raise AgentError(f"{source.path}: its header has two columns {twice!r}: rename one")
        for cells in reader:
            if len(cells) == len(header):
                yield dict(zip(header, cells, strict=True))
            elif cells:
                lost[f"not {len(header)} cells"] += 1
    except UnicodeDecodeError as error:
        raise AgentError(f"{source.path} is not UTF-8: {error.reason}") from None
    except csv.Error as error:
        raise AgentError(f"{source.path} is no CSV: {error}") from None
    finally:
        text.detach()


def _parquet(source: Source, file: IO[bytes]) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(io.BytesIO(file.read()) if source.packing else source.path)
        for batch in table.iter_batches(BLOCK_ROWS):
            yield from batch.to_pylist(maps_as_pydicts="lossy")
    except (pa.ArrowException, ValueError) as error:
        raise AgentError(f"{source.path} cannot be read as Parquet: {error}") from None


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

    lost: rows that are in no block, by reason. bad: values that could not be read, by role.
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
        self._fields = _Fields(self._paths, self._raw, seen)
        self._failures: dict[Any, bool] = {None: False}
        self._flags: dict[Any, bool] = {None: False}

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
        with opened(source.path, source.packing) as file:
            if source.shape == "json lines":
                for lines in _line_blocks(file):
                    values, odd = self._lines(lines)
                    yield self._block(values, 0, odd)
                return
            for rows in _tables(source, file, self.lost):
                values = {
                    path: [steps.find(row) for row in rows] for path, steps in self._paths.items()
                }
                yield self._block(values, 0, 0)

    def _lines(self, lines: bytes) -> tuple[dict[str, list[Any]], int]:
        try:
            return self._fields.values(self._fields.decoder.decode_lines(lines)), 0
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            pass
        fit, odd = [], []
        decode = self._fields.decoder.decode
        for line in lines.splitlines():
            if not line.strip():
                continue
            try:
                fit.append(decode(line))
                continue
            except (msgspec.DecodeError, UnicodeError, RecursionError):
                pass
            try:
                row = msgspec.json.decode(line)
            except (msgspec.DecodeError, UnicodeError, RecursionError):
                self.lost["not JSON"] += 1
                continue
            if isinstance(row, dict):
                odd.append(row)
            else:
                self.lost["not an object"] += 1
        values = self._fields.values(fit)
        for path, steps in self._paths.items():
            values[path].extend(steps.find(row) for row in odd)
        return values, len(odd)

    def _block(self, values: Mapping[str, list[Any]], done: int, odd: int) -> Block:
        roles = self.chosen.roles
        self.odd += odd
        count = len(next(iter(values.values()), []))

        def of(role: str) -> list[Any]:
            return values[roles[role]] if role in roles else []

        numbers: dict[str, Floats] = {}
        for role in ("cost", "input_tokens", "output_tokens", "seconds"):
            if role in roles:
                numbers[role] = self._floats(of(role), role)
        if "seconds" in numbers and self.chosen.milliseconds:
            numbers["seconds"] = numbers["seconds"] / 1e3
        if "reward" in roles:
            numbers["reward"] = self._rewards(of("reward"))
        for role in ("at", "ended"):
            if role in roles:
                numbers[role] = self._times(of(role), role)
        if "ended" in numbers and "at" in numbers:
            numbers["seconds"] = numbers.pop("ended") - numbers["at"]
        columns = [
            self._column(column.kind, values[column.path], codes)
            for column, codes in zip(self.chosen.columns, self.columns, strict=True)
        ]
        return Block(
            rows=count,
            model=self.models.of([_name(value) for value in of("model")]),
            numbers=numbers,
            unit=_hashes(of("unit"), count),
            failed=_told(of("status"), count, self._failures, _failure),
            cached=_told(of("cached"), count, self._flags, _flag),
            columns=columns,
            done=done,
            odd=odd,
        )

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
            chunk, first = chunk.removeprefix(b"\xef\xbb\xbf"), False
        end = chunk.rfind(b"\n")
        if end < 0:
            rest.append(chunk)
            continue
        yield b"".join([*rest, chunk[: end + 1]])
        rest = [chunk[end + 1 :]]
    last = b"".join(rest)
    if last.strip():
        yield last


class _Fields:
    """A struct of nothing but the fields that are needed, and how to get at their values."""

    def __init__(self, paths: Mapping[str, FieldPath], raw: set[str], seen: Sightings) -> None:
        tops = {each.keys[0] for each in seen.paths.values()}
        keys_of: dict[str, tuple[str, ...]] = {}
        # A top-level name is taken whole, and followed from there, where a path below it leads
        # through a list or through JSON in a text, or where its value is asked for, too.
        whole: set[str] = set()
        for path, steps in paths.items():
            sighting = seen.paths.get(path)
            if sighting is not None:
                keys_of[path] = sighting.keys
            else:
                top = next((name for name in steps.columns[::-1] if name in tops), None)
                keys_of[path] = (top or steps.columns[0],)
            if sighting is None or not sighting.plain:
                whole.add(keys_of[path][0])
        ways = set(keys_of.values())
        whole |= {keys[0] for keys in ways for end in range(1, len(keys)) if keys[:end] in ways}
        tree: dict[str, Any] = {}
        self._ways: dict[str, tuple[tuple[str, ...], FieldPath | None]] = {}
        for path, keys in keys_of.items():
            if keys[0] in whole:
                tree[keys[0]] = object
                self._ways[path] = keys[:1], paths[path]
                continue
            node = tree
            for key in keys[:-1]:
                node = node.setdefault(key, {})
            node[keys[-1]] = msgspec.Raw if path in raw else object
            self._ways[path] = keys, None
        self.decoder = msgspec.json.Decoder(_struct("Row", tree))
        self._names: dict[tuple[str, ...], Callable[[Any], Any]] = {}
        self._name(tree, ())

    def _name(self, tree: Mapping[str, Any], before: tuple[str, ...]) -> None:
        for at, (key, inner) in enumerate(tree.items()):
            self._names[(*before, key)] = attrgetter(f"f{at}")
            if isinstance(inner, dict):
                self._name(inner, (*before, key))

    def values(self, rows: list[Any]) -> dict[str, list[Any]]:
        """The values of every path in these rows, None where there is none."""
        found: dict[tuple[str, ...], list[Any]] = {(): rows}
        result = {}
        for path, (keys, rest) in self._ways.items():
            values = self._at(keys, found)
            if rest is not None:
                values = [rest.find({keys[0]: value}) for value in values]
            result[path] = values
        return result

    def _at(self, keys: tuple[str, ...], found: dict[tuple[str, ...], list[Any]]) -> list[Any]:
        """The values below these names. found: those that are known already.

        No inner function: one that calls itself is a cycle, and would keep the rows for ever.
        """
        if keys not in found:
            get, parents = self._names[keys], self._at(keys[:-1], found)
            if len(keys) == 1:
                found[keys] = list(map(get, parents))
            else:
                found[keys] = [None if row is None else get(row) for row in parents]
        return found[keys]


def _struct(name: str, tree: Mapping[str, Any]) -> type[msgspec.Struct]:
    fields, names = [], {}
    for at, (key, inner) in enumerate(tree.items()):
        kind = _struct(f"{name}{at}", inner) | None if isinstance(inner, dict) else inner
        default = msgspec.Raw(b"null") if kind is msgspec.Raw else None
        fields.append((f"f{at}", kind, default))
        names[f"f{at}"] = key
    return msgspec.defstruct(name, fields, rename=names, gc=False)


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
    values: list[Any], count: int, known: dict[Any, bool], tell: Callable[[Any], bool]
) -> np.ndarray:
    """A flag for each row, worked out once for each distinct value."""
    if not values:
        return np.zeros(count, np.bool_)
    flags = np.empty(count, np.bool_)
    for at, value in enumerate(values):
        if value.__hash__ is None:
            flags[at] = tell(value)
            continue
        flag = known.get(value)
        if flag is None:
            flag = tell(value)
            if len(known) < MOST_CODES:
                known[value] = flag
        flags[at] = flag
    return flags


_FAILURES = ("fail", "error", "exception", "timeout", "timed_out", "refused", "cancel")


def _failure(value: Any) -> bool:
    try:
        code = as_number("", value)
    except (AgentError, TypeError):
        return any(word in str(value).casefold() for word in _FAILURES)
    return code is not None and 400 <= code < 600


def _flag(value: Any) -> bool:
    try:
        return bool(as_flag("", value))
    except (AgentError, TypeError):
        return str(value).casefold() in ("hit", "cached")
