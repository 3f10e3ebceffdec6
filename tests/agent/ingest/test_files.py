"""Files of every shape are read row by row, whole or not at all, and never a row too few."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from equipoise.agent.config.ingest import as_number, as_seconds
from equipoise.agent.errors import AgentError
from equipoise.agent.ingest.files import Format, _json, format_of, from_json, rows
from equipoise.agent.ingest.joins import decoded

ROWS = [{"id": f"r{i}", "text": 'é\n"[{]}' * (i % 7), "n": [i, {"a": [i]}]} for i in range(300)]


def read(path: Path, kind: Format | None = None) -> list[Any]:
    found = []
    for number, row in rows(str(path), kind or format_of(str(path))):
        value = json.loads(row) if isinstance(row, bytes) else row
        found.append((number, value if isinstance(value, dict) else str(value)))
    return found


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst", ".zstd"])
@pytest.mark.parametrize("shape", ["lines", "list", "pretty", "objects"])
def test_every_shape_in_every_packing(tmp_path: Path, shape: str, suffix: str) -> None:
    text = {
        "lines": "\n".join(map(json.dumps, ROWS)),
        "list": json.dumps(ROWS, ensure_ascii=False),
        "pretty": json.dumps(ROWS, indent=2, ensure_ascii=False),
        "objects": "\n".join(json.dumps(row, indent=1) for row in ROWS),
    }[shape]
    data = text.encode()
    if suffix == ".gz":
        data = gzip.compress(data)
    elif suffix:
        # Two frames, as rotated files that were joined have them.
        packed = [pa.compress(part, "zstd", asbytes=True) for part in (data[:1000], data[1000:])]
        data = b"".join(packed)
    path = tmp_path / f"a.json{suffix}"
    path.write_bytes(b"\xef\xbb\xbf" + data if not suffix and shape != "objects" else data)
    assert read(path) == [(at, row) for at, row in enumerate(ROWS, 1)]


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
def test_a_list_reads_alike_wherever_its_blocks_end(
    tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("equipoise.agent.ingest.files._BLOCK", block)
    path = tmp_path / "a.json"
    numbers = [{"n": -12.5e-7}, {"n": 1234567890123}, {"t": True, "u": None}, {}]
    path.write_text(json.dumps(ROWS[:20] + numbers, ensure_ascii=False, indent=1))
    assert [row for _, row in read(path)] == ROWS[:20] + numbers
    path.write_text("[1234567890, -5e-7, 77]")
    refused = [f"expected an object, this is of type {each}" for each in ("int", "float", "int")]
    assert [row for _, row in read(path)] == refused


def test_what_is_no_object_is_a_row_that_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"a": 1}, 3, [1], "x", null, {"a": 2}]\n[]{"a": 3}\n{"a": 4}')
    assert read(path) == [
        (1, {"a": 1}),
        (2, "expected an object, this is of type int"),
        (3, "expected an object, this is a list"),
        (4, "expected an object, this is of type str"),
        (5, "expected an object, this is of type NoneType"),
        (6, {"a": 2}),
        (7, {"a": 3}),
        (8, {"a": 4}),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[{"a": 1}, {"a": }]', "entry 2 is not JSON: Expecting value"),
        ('[{"a": 1} {"a": 2}]', "entry 1 is followed by '{', not by a comma or ]"),
        ('[{"a": 1}, {"a": 2}', "its list does not end: after entry 2"),
        ('[{"a": 1}, {"a": "2', "entry 2 is not JSON: Unterminated string"),
        ('[{"a": 1},', "its list does not end: after entry 1"),
        ("[" * 100_000, "entry 1 is not JSON: "),
        ('[{"a": 1' + "2" * 5000 + "}]", "entry 1 is not JSON: Exceeds the limit"),
        ('{\n"a": 1,\n"b": \n}', "entry 1 is not JSON: Expecting value"),
    ],
)
def test_a_list_that_breaks_off_is_refused_by_its_entry(
    tmp_path: Path, text: str, words: str
) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(AgentError) as refused:
        read(path)
    assert str(refused.value).startswith(f"{path}: {words}")
    assert "\n" not in str(refused.value)


def test_a_list_in_one_line_is_read_block_by_block(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for text, words in (
        ('[{"a": x},' + " " * (8 << 20) + "1]", "entry 1 is not JSON"),
        ('[{"a": 1},' + " " * (8 << 20) + "1]", ""),
    ):
        path.write_text(text)
        with open(path, "rb") as file:
            entries = _json(file)
            if words:
                with pytest.raises(AgentError, match=words):
                    next(entries)
            else:
                assert next(entries) == (1, {"a": 1})
            assert file.tell() < 3 << 20


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_packed_file_that_is_cut_or_is_none(tmp_path: Path, suffix: str) -> None:
    generator = random.Random(3)
    lines = "".join(f'{{"a": {generator.random()}}}\n' for _ in range(5000)).encode()
    packed = gzip.compress(lines) if suffix == ".gz" else pa.compress(lines, "zstd", asbytes=True)
    path = tmp_path / f"a.jsonl{suffix}"
    for data in (packed[: len(packed) // 2], b'{"a": 1}\n' * 9, packed[:40] + b"x" * 40):
        path.write_bytes(data)
        with pytest.raises(AgentError, match=rf"^{path} is not a jsonl file: ") as refused:
            read(path)
        assert "\n" not in str(refused.value)


def test_suffixes() -> None:
    assert [format_of(name) for name in ("a.dsjson.zst", "b.NDJSON.gz", "c.csv.zstd", "-")] == [
        "dsjson",
        "jsonl",
        "csv",
        "jsonl",
    ]
    with pytest.raises(AgentError, match=r"^a.txt.zst: the suffix is not one of .jsonl,"):
        format_of("a.txt.zst")


CUT = '{"id": "r%d", "prompt": "why \\ud83d", "\\uDE00": ["\\ud83d\\ude00", "\\\\ud83d"], "n": NaN}'


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_half_a_character_is_read_as_unknown_text(tmp_path: Path, name: str) -> None:
    """As JSON.stringify writes a text that was cut by slice()."""
    texts = [(CUT % at).replace(', "n": NaN', "") for at in range(3)]
    lines = name == "a.jsonl"
    path = tmp_path / name
    path.write_text("\n".join(texts) if lines else f"[{','.join(texts)}]")
    read_rows = [decoded(row) for _, row in rows(str(path), format_of(name))]
    expected = {"prompt": "why \ufffd", "\ufffd": ["\U0001f600", "\\ud83d"]}
    assert read_rows == [{"id": f"r{at}", **expected} for at in range(3)]
    json.dumps(read_rows, ensure_ascii=False).encode()
    # At the very end decoders say that the text is too short.
    assert decoded(b'{"a":"\\uD83D"}') == {"a": "\ufffd"}
    with pytest.raises(AgentError):
        decoded(b'{"a":"\\ud83d"')
    assert from_json((CUT % 1).encode())["n"] is None


def test_parquet_of_times_that_python_has_no_type_for(tmp_path: Path) -> None:
    """Durations of nanoseconds, the year 10000 and DuckDB's infinity, beside sound rows."""
    path = tmp_path / "a.parquet"
    microseconds = [1_780_000_000_000_000, 253_402_300_800_000_000, 2**63 - 1]
    table = {
        "at": pa.array(microseconds, pa.timestamp("us", "UTC")),
        "took": pa.array([1_500_000_001, 2_000_000_000, 0], pa.duration("ns")),
        "tag": pa.array([{"a": each} for each in microseconds]).cast(
            pa.struct([("a", pa.timestamp("us"))])
        ),
    }
    pq.write_table(pa.table(table), path)
    found = read(path)
    assert [at for at, _ in found] == [1, 2, 3]
    assert as_seconds("at", found[0][1]["at"]) == 1_780_000_000.0
    assert [as_number("took", row["took"]) for _, row in found] == [1.5, 2.0, 0.0]
    assert found[1][1]["at"] == "253402300800000000 us since 1970"
    for _, row in found[1:]:
        with pytest.raises(AgentError, match="is not a time"):
            as_seconds("at", row["at"])


@pytest.mark.parametrize(
    ("kind", "marker"),
    [
        ("Delta", "_delta_log/00000000000000000000.json"),
        ("Iceberg", "metadata/v1.metadata.json"),
        ("Hudi", ".hoodie/hoodie.properties"),
    ],
)
def test_a_file_of_a_table_with_a_list_is_refused(tmp_path: Path, kind: str, marker: str) -> None:
    """Delta keeps the file of before an update or a delete beside the new one."""
    path = tmp_path / "logs" / "model=large" / "data" / "part-0.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table({"thumb": [1.0]}), path)
    assert read(path) == [(1, {"thumb": 1.0})]
    listed = tmp_path / "logs" / marker
    listed.parent.mkdir()
    listed.write_text("{}")
    with pytest.raises(AgentError, match=rf"part-0.parquet: it lies in a table of {kind} \(logs\)"):
        read(path)


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-28 13:21:36 UTC",
        "2026-11-28 13:21:36.000000 UTC",
        "2026-11-28 05:21:36.000 -0800",
        "2026-11-28 14:21:36 +0100",
        "2026-11-28 13:21:36 +0000 UTC",
        "2026-11-28T13:21:36.000000000Z",
        "2026-11-28 13:21:36 GMT",
    ],
)
def test_times_with_a_zone_after_a_space(text: str) -> None:
    """BigQuery, Snowflake, Ruby, Go and Rust."""
    assert as_seconds("at", text) == 1_795_872_096.0
    with pytest.raises(AgentError, match="is not a time"):
        as_seconds("at", text.replace("13:", "25:").replace("05:", "25:").replace("14:", "25:"))
