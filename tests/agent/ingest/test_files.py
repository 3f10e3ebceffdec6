"""Files of every shape are read row by row, whole or not at all, and never a row too few."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from equipoise.agent.errors import AgentError
from equipoise.agent.ingest.files import Format, _json, format_of, rows

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
