"""Whatever a file holds: one clear line for what is wrong, and no row lost in silence."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from equipoise.agent.config.ingest import IngestMapping
from equipoise.agent.errors import AgentError
from equipoise.agent.features.schema import FeatureSchema
from equipoise.agent.features.values import FeatureError
from equipoise.agent.ingest.bulk import Ingested, Ingestion, Rejects
from equipoise.agent.ingest.files import Format, Source
from equipoise.agent.ingest.joins import Joined, Log, ScorePaths, Scores
from equipoise.agent.ingest.presets import PRESETS, recognise
from equipoise.agent.ingest.records import Record
from equipoise.agent.ingest.sinks import BatchResult
from tests.agent.ingest import recorded

FORMATS: tuple[Format, ...] = ("jsonl", "json", "csv", "parquet", "dsjson")
ROWS = [
    recorded.litellm(1),
    recorded.streamed(2),
    recorded.attempt(3, 1),
    recorded.cached(4, 1),
    recorded.spend(1),
    recorded.observation(1),
    recorded.exported(2),
    {"id": "t", "timestamp": "x", "observations": [recorded.observation(3)]},
    recorded.inference(1),
    recorded.model_inference(1),
    recorded.helicone(1),
    recorded.activity(1),
    recorded.generation(1),
    recorded.dsjson(1),
    recorded.dsjson(2, pdrop=0.5),
    {"RewardValue": 1.0, "EventId": "e"},
]
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["", "nan", "None", "True", "0", "1e400", "2026-13-01", "{", "[]", '{"a":1}']),
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


class Taken:
    """A sink that takes whatever has an id of its own, and refuses the rest."""

    rows_at_once = 7

    def take(self, records: Any) -> BatchResult:
        result = BatchResult()
        for at, record in enumerate(records):
            if getattr(record, "reward", 0.0) != getattr(record, "reward", 0.0):
                result.refused.append((at, "reward: received NaN", False))
            else:
                result.counts["accepted"] += 1
        return result


@st.composite
def broken(draw: st.DrawFn) -> Any:
    """A row of some shape of which some values are others, or are gone."""
    row = dict(draw(st.sampled_from(ROWS)))
    for name in draw(st.lists(st.sampled_from(sorted(row)), max_size=4)):
        if draw(st.booleans()):
            row[name] = draw(values)
        else:
            row.pop(name, None)
    return row


def taken(folder: Path, preset: str, data: bytes, kind: Format, scores: bytes) -> Ingested | str:
    """What became of a file, or the line that refuses it."""
    path, other = folder / "a", folder / "s"
    path.write_bytes(data)
    other.write_bytes(scores)
    source = Source("a", str(path), kind)
    mapping = IngestMapping(name="log", preset=preset)
    rejects = Rejects(None)
    try:
        joined = None
        if scores:
            rated = [Source("s", str(other), "jsonl")]
            joined = Scores(rated, ScorePaths(), None, rejects.add)
        log = Log([source], mapping, joined)
        ingestion = Ingestion(
            Taken(), FeatureSchema(), "observations", mapping, rejects, missing=0.0, log=log
        )
        ingestion.add(source)
    except (AgentError, FeatureError) as error:
        return str(error)
    result = ingestion.result
    result.scores = None if joined is None else joined.result
    assert all("\n" not in reject.reason for reject in rejects.first)
    assert result.rejected + (joined.result.refused if joined else 0) == rejects.count
    return result


def whole(result: Ingested) -> bool:
    seen = result.accepted + result.duplicates + result.late + result.rejected + result.unrated
    scores = result.scores or Joined()
    counts = {name: getattr(scores, name) for name in Joined.__slots__}
    read = counts.pop("read")
    return result.rows == seen + sum(result.skipped.values()) and read == sum(counts.values())


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


quietly = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))


@seed(7)
@quietly
@given(
    data=st.binary(max_size=300) | st.text(max_size=300).map(str.encode),
    preset=st.sampled_from(sorted(PRESETS)),
    kind=st.sampled_from(FORMATS),
)
def test_any_bytes(folder: Path, data: bytes, preset: str, kind: Format) -> None:
    result = taken(folder, preset, data, kind, b"")
    assert whole(result) if isinstance(result, Ingested) else "\n" not in result


@seed(8)
@quietly
@given(
    rows=st.lists(broken() | values, max_size=8),
    preset=st.sampled_from(sorted(PRESETS)),
    shape=st.sampled_from(["lines", "list", "pretty", "page"]),
    scores=st.lists(
        st.fixed_dictionaries(
            {"value": scalars},
            optional={
                "trace_id": st.sampled_from(["trace-1", f"{1:032x}", "t"]) | scalars,
                "id": st.sampled_from(["chatcmpl-0001", "e1", "gen-1"]) | scalars,
                "timestamp": scalars,
            },
        )
        | values,
        max_size=5,
    ),
)
def test_any_rows_of_any_shape(
    folder: Path, rows: list[Any], preset: str, shape: str, scores: list[Any]
) -> None:
    text = {
        "lines": "\n".join(map(json.dumps, rows)),
        "list": json.dumps(rows),
        "pretty": json.dumps(rows, indent=1),
        "page": json.dumps({"data": rows}),
    }[shape]
    rated = "\n".join(map(json.dumps, scores)).encode()
    result = taken(folder, preset, text.encode("utf-8", "surrogatepass"), "jsonl", rated)
    assert whole(result) if isinstance(result, Ingested) else "\n" not in result
    recognise(rows)


def test_the_counts_of_this_file_can_fail(folder: Path) -> None:
    lines = [json.dumps(row) for row in (ROWS[0], ROWS[1], ROWS[3])]
    result = taken(folder, "litellm", "\n".join([*lines, "{", "3"]).encode(), "jsonl", b"")
    assert isinstance(result, Ingested)
    assert (result.rows, result.accepted, result.rejected) == (5, 2, 2)
    assert whole(result)
    result.skipped.clear()
    assert not whole(result)


def test_a_record_is_what_a_sink_takes() -> None:
    assert Taken().take(list[Record]()).counts == {}
