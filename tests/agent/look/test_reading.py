"""A log is read the same whatever its format, by the struct and without it, and no row is lost."""

from __future__ import annotations

import csv
import gzip
import json
import random
import re
import tracemalloc
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from equipoise.agent.config.ingest import parse_path
from equipoise.agent.errors import AgentError
from equipoise.agent.ingest.presets import PRESETS, preset_rows
from equipoise.agent.look.choosing import RAW
from equipoise.agent.look.reading import FATES, Block, Reader, inspected, survey
from tests.agent.look.simulated_logs import World, litellm, rows

COUNT = 3000


def read(*paths: Path, **options: Any) -> tuple[Reader, list[Block]]:
    sources = [inspected(path) for path in paths]
    reader = Reader(*survey(sources, **options))
    return reader, list(reader.blocks(sources))


def whole(blocks: list[Block], of: str) -> Any:
    return np.concatenate([getattr(block, of) for block in blocks])


def number(blocks: list[Block], role: str) -> Any:
    return np.concatenate([block.numbers[role] for block in blocks])


def lines_of(path: Path, values: list[Any]) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def table() -> list[dict[str, Any]]:
    found = list(rows(COUNT, World(rated=0.5), 1))
    return [{**row, "tokens_out": row.pop("usage")["completion_tokens"]} for row in found]


def written(table: list[dict[str, Any]], path: Path) -> Path:
    """The table in the format that the name says."""
    flat = [{**row, "tags": json.dumps(row["tags"])} for row in table]
    if ".csv" in path.name:
        with open(path.with_suffix(""), "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(flat[0]))
            writer.writeheader()
            writer.writerows(flat)
        data = path.with_suffix("").read_bytes()
    elif ".parquet" in path.name:
        pq.write_table(pa.Table.from_pylist(table), path)
        return path
    elif ".json" in path.suffixes:
        data = json.dumps(table, indent=1).encode()
    else:
        data = "".join(json.dumps(row) + "\n" for row in table).encode()
    if path.suffix == ".gz":
        # Two members, as when logs are appended to.
        data = gzip.compress(data[:1000], mtime=0) + gzip.compress(data[1000:], mtime=0)
    elif path.suffix == ".zst":
        parts = [data[:1000], data[1000:]]
        data = b"".join(pa.compress(part, codec="zstd", asbytes=True) for part in parts)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "name",
    ["a.jsonl", "a.csv", "a.parquet", "a.json", "a.jsonl.gz", "a.jsonl.zst", "a.json.gz", "log"],
)
def test_every_format_gives_what_pandas_counts(
    table: list[dict[str, Any]], tmp_path: Path, name: str
) -> None:
    reader, blocks = read(written(table, tmp_path / name))
    frame = pd.DataFrame(table)
    assert sum(block.rows for block in blocks) == COUNT
    models = [reader.models.labels[code] for code in whole(blocks, "model")]
    assert models == list(frame.model)
    reward = frame.thumb.map({"up": 1.0, "down": 0.0}).to_numpy(float)
    np.testing.assert_array_equal(number(blocks, "reward"), reward)
    np.testing.assert_array_equal(number(blocks, "cost"), frame.cost)
    np.testing.assert_allclose(number(blocks, "seconds"), frame.latency_ms / 1e3, rtol=1e-12)
    np.testing.assert_allclose(number(blocks, "at"), frame.ts, rtol=1e-15)
    np.testing.assert_array_equal(number(blocks, "output_tokens"), frame.tokens_out)
    # Hashes of equal users are equal, of others not.
    assert (pd.factorize(whole(blocks, "unit"))[0] == pd.factorize(frame.user_id)[0]).all()
    columns = [column.path for column in reader.chosen.columns]
    assert columns == ["plan", "country", "tags", "prompt"]
    lengths = np.concatenate([block.columns[3] for block in blocks])
    np.testing.assert_array_equal(lengths, frame.prompt.str.len())
    assert not reader.lost


def test_what_other_languages_and_tools_write(tmp_path: Path) -> None:
    """Prompts that JavaScript cut inside a character, files of pzstd, durations of data frames."""
    lines = [
        json.dumps({"model": "ab"[at % 2], "thumb": at % 3 > 0, "prompt": f"why{at} \ud83d"})
        for at in range(200)
    ]
    cut, packed, timed = tmp_path / "cut.jsonl", tmp_path / "p.jsonl.zst", tmp_path / "t.parquet"
    cut.write_text("\n".join(lines))
    frames = [pa.compress("\n".join(lines).encode(), codec="zstd", asbytes=True)]
    packed.write_bytes(b"\x50\x2a\x4d\x18\x04\0\0\0\x71\x11\0\0" + frames[0])
    took = pa.array([1_500_000_001 + at for at in range(200)], pa.duration("ns"))
    pq.write_table(pa.table({"model": ["a", "b"] * 100, "latency": took}), timed)
    for path in (cut, packed):
        reader, blocks = read(path)
        assert sum(block.rows for block in blocks) == 200
        assert not reader.lost
        assert number(blocks, "reward").sum() == 133
    reader, blocks = read(timed)
    assert reader.chosen.roles["seconds"] == "latency"
    assert set(number(blocks, "seconds")) == {1.5}


def test_lines_that_do_not_fit_the_struct_are_read_without_it(tmp_path: Path) -> None:
    values = [
        {"model": name, "score": 0.5, "usage": {"cost": number / 8}}
        for number in range(400)
        for name in ("a", "b")
    ]
    odd = [{"model": "a", "score": "0.25", "usage": "none"}, {"model": "b"}, [1], 3, "x"]
    path = lines_of(tmp_path / "log.jsonl", [*values, *odd])
    with open(path, "ab") as file:
        file.write(b'{"model": "a", \n\n  \n{"model": "a", "score": 1} {"model"\n')
    reader, blocks = read(path)
    assert sum(block.rows for block in blocks) == 802
    assert reader.odd == 1
    assert reader.lost == Counter({"not an object": 3, "not JSON": 2})
    assert np.nansum(number(blocks, "reward")) == 400.25
    assert np.nansum(number(blocks, "cost")) == 2 * sum(range(400)) / 8


def test_rows_without_a_user_stand_alone(tmp_path: Path) -> None:
    users = ["u1", None, "", "u2", "u1", None] * 50
    table = [{"model": "ab"[at % 2], "user": user} for at, user in enumerate(users)]
    _, blocks = read(lines_of(tmp_path / "log.jsonl", table))
    unit = whole(blocks, "unit")
    assert ((unit == 0) == [not user for user in users]).all()


def odd_payloads() -> list[dict[str, Any]]:
    """What LiteLLM logs beside ordinary answers: hits, failures, other calls, zeros, no prices."""
    plain = [litellm(row, at) for at, row in enumerate(rows(300, World(), 5))]
    changes: list[dict[str, Any]] = [
        {"cache_hit": True, "response_cost": 0.0},
        {"cache_hit": "True"},
        {"cache_hit": "False"},
        {"cache_hit": "None"},
        {"status": "failure", "response_cost": 0},
        {"status": None},
        {"call_type": "aembedding"},
        {"call_type": ""},
        {"prompt_tokens": 0, "completion_tokens": 0, "response_cost": 0.0},
        {"response_cost": 0.0, "response_cost_failure_debug_info": {"error": "no price"}},
        {"response_cost": 0.0},
        {"error_str": "Client disconnected the request"},
        {"stream": True, "custom_llm_provider": "openai"},
        {"stream": True, "custom_llm_provider": "anthropic"},
        {"stream": True, "model_parameters": {"stream_options": {"include_usage": True}}},
        {"endTime": None},
        {"endTime": 5.0},
        {"model_group": "", "model": "openai/gpt-4o"},
        {"model_group": None},
    ]
    return [{**row, **changes[at % len(changes)]} for at, row in enumerate(plain)]


def spend_rows(payloads: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same as rows of LiteLLM_SpendLogs: times as text, JSON in a column."""
    rows = []
    for payload in payloads:
        kept = ("model", "model_group", "call_type", "cache_hit", "prompt_tokens")
        row = {name: payload[name] for name in (*kept, "completion_tokens", "end_user")}
        for name in ("startTime", "endTime"):
            at = payload[name]
            row[name] = None if at is None else datetime.fromtimestamp(at, UTC).isoformat()
        status = json.dumps({"status": payload["status"]})
        rows.append({"request_id": payload["id"], "spend": payload["response_cost"], **row})
        rows[-1] |= {"metadata": status, "user": payload["metadata"]["user_api_key_user_id"]}
    return rows


@pytest.mark.parametrize("name", ["litellm", "litellm-spend"])
def test_the_paths_of_litellm_say_what_its_preset_works_out(tmp_path: Path, name: str) -> None:
    """The fast way and `presets` are two readings of one log; they have to agree row by row."""
    payloads, preset = odd_payloads(), PRESETS[name]
    payloads = payloads if name == "litellm" else spend_rows(payloads)
    assert set(RAW) == {"litellm", "litellm-spend"}
    reader, blocks = read(lines_of(tmp_path / "log.jsonl", payloads))
    assert reader.chosen.preset is preset
    assert reader.odd == 0
    if name == "litellm":
        assert "stream" in [column.path for column in reader.chosen.columns], "known before"
    expected = [row for payload in payloads for row in preset_rows(preset, payload)]

    def of(field: str) -> list[Any]:
        return [parse_path(preset.fields[field]).find(row) for row in expected]

    fates = [*FATES, *reader.reasons]
    assert [fates[code] for code in whole(blocks, "fate")] == of("status")
    models = [reader.models.labels[code] for code in whole(blocks, "model")]
    assert models == of("routed")
    for role in ("cost", "seconds", "input_tokens", "output_tokens"):
        wanted = [np.nan if value is None else value for value in of(role)]
        np.testing.assert_allclose(number(blocks, role), wanted, rtol=1e-9, err_msg=role)


@pytest.mark.parametrize("name", ["langfuse", "helicone", "tensorzero-model"])
def test_presets_with_a_function_of_their_own_are_read_by_it(tmp_path: Path, name: str) -> None:
    values: dict[str, Any] = {
        "langfuse": {
            "id": "o1",
            "traceId": "t1",
            "type": "GENERATION",
            "startTime": "2026-11-01T00:00:00.000Z",
            "endTime": "2026-11-01T00:00:02.500Z",
            "model": "large",
            "usageDetails": {"input": 7, "output": 5},
            "costDetails": {"total": 0.25},
            "totalCost": 0.25,
        },
        "helicone": {
            "request_id": "r1",
            "request_created_at": "2026-11-01T00:00:00Z",
            "response_status": 200,
            "delay_ms": 2500,
            "model": "large",
            "prompt_tokens": 7,
            "completion_tokens": 5,
            "costUSD": 0.25,
        },
        "tensorzero-model": {
            "id": "019a3d00-0000-7000-8000-000000000001",
            "inference_id": "019a3d00-0000-7000-8000-000000000000",
            "model_name": "large",
            "model_provider_name": "openai",
            "response_time_ms": 2500,
            "input_tokens": 7,
            "output_tokens": 5,
            "cost": 0.25,
        },
    }
    path = lines_of(tmp_path / "log.jsonl", [values[name]] * 3)
    reader, blocks = read(path)
    assert reader.chosen.preset is PRESETS[name]
    assert reader.models.labels == ["large"]
    found = {role: number(blocks, role).tolist() for role in blocks[0].numbers if role != "at"}
    assert found == {
        "cost": [0.25] * 3,
        "seconds": [2.5] * 3,
        "input_tokens": [7] * 3,
        "output_tokens": [5] * 3,
    }
    assert np.isfinite(number(blocks, "at")).all()


def test_no_row_is_lost_whatever_is_in_a_file(tmp_path: Path) -> None:
    """Seeded fuzz: lines cut, swapped, filled with other types. Rows read are used or counted."""
    chance = random.Random(20)
    junk: list[Any] = [None, True, -1, 1e300, "", "x" * 300, [], [[]], {}, {"a": [1]}, "2026", "[1"]
    base = [msgspec.json.encode(row) for row in rows(300, World(), 3)]
    refused = 0
    for attempt in range(40):
        lines = []
        for text in base:
            kind = chance.random()
            row = msgspec.json.decode(text)
            if kind < 0.1:
                row[chance.choice(list(row))] = chance.choice(junk)
            elif kind < 0.15:
                row = chance.choice(junk)
            line = msgspec.json.encode(row)
            if 0.15 < kind < 0.2:
                line = line[: chance.randrange(len(line))]
            elif 0.2 < kind < 0.22:
                line = bytes(chance.randrange(256) for _ in range(20)).replace(b"\n", b"")
            lines.append(line)
        path = tmp_path / f"{attempt}.jsonl"
        path.write_bytes(b"\n".join(lines))
        count = sum(bool(line.strip()) for line in lines)
        try:
            reader, blocks = read(path)
        except AgentError:
            refused += 1
            continue
        assert sum(block.rows for block in blocks) + reader.lost.total() == count
    assert refused < 10


def test_what_is_read_does_not_stay(tmp_path: Path) -> None:
    """With the cycle collector off, one cycle through a block's rows would keep every row."""
    path = lines_of(tmp_path / "log.jsonl", [litellm(row, 1) for row in rows(1500, World(), 3)])
    text = path.read_bytes()
    peaks = []
    for times in (1, 4):
        path.write_bytes(text * times)
        sources = [inspected(path)]
        reader = Reader(*survey(sources))
        tracemalloc.start()
        for _ in reader.blocks(sources):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_several_files_are_one_log_if_they_are_of_one_kind(tmp_path: Path) -> None:
    found = list(rows(600, World(), 3))
    first = lines_of(tmp_path / "a.jsonl", found[:200])
    second = written(found[200:], tmp_path / "b.parquet")
    reader, blocks = read(first, second)
    assert sum(block.rows for block in blocks) == 600
    assert len(reader.models.labels) == 2
    other = lines_of(tmp_path / "c.jsonl", [litellm(row, 1) for row in found[:50]])
    with pytest.raises(AgentError, match=r"of no known shape, .*c\.jsonl of litellm: look at one"):
        read(first, other)


@pytest.mark.parametrize(
    ("data", "name", "said"),
    [
        (None, "a.jsonl", "there is no such file"),
        (b"", "a.jsonl", "is empty"),
        (b" \n\n", "a.jsonl", "is empty"),
        (b"\x7fELF\0\0\0", "a.jsonl", "is binary: expected JSON lines, JSON, CSV or Parquet"),
        ("model,b\n".encode("utf-16"), "a.csv", "is UTF-16: write it as UTF-8"),
        (b"\xfc\xfc\xfc,\n", "a.csv", "is neither UTF-8 text nor Parquet"),
        (
            b"hello\nyou\n",
            "a.txt",
            "begins with 'hello': expected JSON lines, JSON, Parquet, or CSV",
        ),
        (gzip.compress(b"{}" * 99, mtime=0)[:20], "a.jsonl.gz", "is cut off near its beginning"),
        (gzip.compress(b"{}" * 99, mtime=0)[:-5] + b"0" * 5, "a.jsonl.gz", "cannot be unpacked: "),
        (gzip.compress(b"model,b\nx,1\n", mtime=0), "a.csv", "is gz: name it a.csv.gz"),
        (b"model,b\nx,1\n", "a.csv.gz", "is not packed: rename it: it is not .gz"),
        (b"PAR1 and nothing more", "a.parquet", "not a Parquet file"),
        (b"[1, 2", "a.json", "its list does not end: after entry 2"),
        (b"nothing\n" * 3 + b"{", "a.jsonl", "begins with 'nothing'"),
        (b"{nothing}\n" * 3, "a.jsonl", "none of the first rows can be read"),
        (b"model,model\nx,1\n", "a.csv", "its header has two columns 'model': rename one"),
    ],
)
def test_a_file_that_is_no_log_gets_one_line(
    tmp_path: Path, data: bytes | None, name: str, said: str
) -> None:
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(AgentError) as caught:
        read(path)
    assert said in str(caught.value)
    assert str(caught.value).count(str(path)) >= 1
    assert "\n" not in str(caught.value)
    with pytest.raises(AgentError, match="is a folder: name the files in it"):
        inspected(tmp_path)


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("a.jsonl.gz", r", after [1-9][\d,]+ whole rows"),
        ("a.jsonl.zst", r", after [1-9][\d,]+ whole rows"),
        ("a.csv.gz", r", after [1-9][\d,]+ whole lines"),
        ("a.json.gz", ""),
    ],
)
def test_a_file_that_is_cut_off_is_named_with_the_rows_before(
    table: list[dict[str, Any]], tmp_path: Path, name: str, where: str
) -> None:
    """EOFError is no ValueError: it would end the command as an interrupt does, without a word."""
    path = written(table, tmp_path / name)
    data = path.read_bytes()
    for size in (len(data) * 9 // 10, len(data) - 3):
        path.write_bytes(data[:size])
        with pytest.raises(AgentError) as caught:
            read(path)
        assert re.fullmatch(
            re.escape(str(path)) + f" ends in the middle{where}: the file is cut off",
            str(caught.value),
        )
