"""Every field of a real log has another spelling: read right, or refused with the reason."""

from __future__ import annotations

import csv
import io
import json
import math
import random
from collections import Counter
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from equipoise.agent.config import ConfigError
from equipoise.agent.config.file import load_file
from equipoise.agent.config.ingest import (
    Rewards,
    as_flag,
    as_number,
    as_seconds,
    as_text,
    as_whole,
    as_words,
)
from equipoise.agent.errors import AgentError
from equipoise.agent.ingest.bulk import Order, run
from equipoise.agent.ingest.files import rows
from equipoise.agent.ingest.presets import fields_of
from equipoise.store.batches import ObservationBatch
from equipoise.store.sqlite import SqliteStore
from tests.agent.ingest import wide_parquet

CONFIG = """
name = "chat"
models = [{name = "large"}, {name = "small"}]
[features]
context = [
  {type = "text", name = "prompt", statistics = ["words"], missing = 0.0},
  {type = "category", name = "plan", values = ["5", "true", "paid"], missing = 0.0},
  {type = "boolean", name = "new", missing = 0.5},
  {type = "vector", name = "embedding", length = 2, missing = 0.0},
]
outputs = [{type = "number", name = "tokens", missing = -1.0}]
[service]
store = "chat.db"
[[ingest]]
name = "log"
[ingest.fields]
request_id = "id"
routed = "model"
reward = "score"
at = "ts"
"""
FEATURES = """
[ingest.features]
prompt = "prompt"
plan = "plan"
new = "new"
embedding = "embedding"
[ingest.outputs]
tokens = "usage.tokens"
"""
MISSING = (None, "", " ", "nan", "NaN", "NA", "N/A", "null", "None", "\\N")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("chat.toml").write_text(CONFIG)
    return tmp_path


def ingest(*files: str, config: str = CONFIG, **options: Any) -> Any:
    Path("chat.toml").write_text(config)
    order = Order(files=list(files), config=Path("chat.toml"), mapping="log", **options)
    result, rejects = run(order)
    return result, [(each.row, each.reason) for each in rejects.first]


def stored(folder: Path) -> ObservationBatch:
    with SqliteStore(folder / "chat.db", read_only=True) as store:
        (segment,) = store.read()
    assert isinstance(segment.batch, ObservationBatch)
    return segment.batch


NUMBERS: list[tuple[Any, float]] = [
    (1, 1.0),
    (0.5, 0.5),
    ("1", 1.0),
    (" 1.0 ", 1.0),
    ("5e-1", 0.5),
    ("-1", -1.0),
    (True, 1.0),
    ("TRUE", 1.0),
    ("False", 0.0),
    ("t", 1.0),
    ("f", 0.0),
    (Decimal("0.25"), 0.25),
    (np.int64(3), 3.0),
    (np.float32(0.5), 0.5),
    (np.bool_(True), 1.0),
    (pa.scalar(7), 7.0),
    (pa.scalar(Decimal("1.50")), 1.5),
]


@pytest.mark.parametrize(("given", "number"), NUMBERS, ids=lambda value: repr(value)[:30])
def test_numbers(given: Any, number: float) -> None:
    assert as_number("x", given) == number


@pytest.mark.parametrize("given", [*MISSING, math.nan, np.float64("nan"), Decimal("NaN")])
def test_nothing(given: Any) -> None:
    assert as_number("x", given) is None
    assert as_flag("x", given) is None
    assert as_seconds("x", given) is None
    assert Rewards({"up": 1.0}).find(given) is None


@pytest.mark.parametrize("given", ["one", "1,5", "1_000", "0x1", "--1", [1], {"a": 1}, b"1"])
def test_what_is_no_number(given: Any) -> None:
    with pytest.raises(AgentError, match=r"x: .* is not a number"):
        as_number("x", given)


def test_flags_and_whole_numbers() -> None:
    for yes in (True, 1, 1.0, "1", "1.0", "true", "TRUE", " Yes", "t", np.bool_(True)):
        assert as_flag("x", yes) is True
    for no in (False, 0, 0.0, "0", "False", "no", "N"):
        assert as_flag("x", no) is False
    for neither in (2, "2", -1, "maybe", [True]):
        with pytest.raises(AgentError, match="neither true nor false"):
            as_flag("x", neither)
    assert [as_whole("x", each) for each in (2, 2.0, "2", "2.0", None)] == [2, 2, 2, 2, None]
    with pytest.raises(AgentError, match="not a whole number"):
        as_whole("x", 1.5)


IDS: list[tuple[Any, str | None]] = [
    ("a1", "a1"),
    (" a1\t", "a1"),
    ("", None),
    (None, None),
    (math.nan, None),
    ("nan", "nan"),
    ("None", "None"),
    (7, "7"),
    (7.0, "7"),
    (1e15, "1000000000000000"),
    (2.0**53 - 1, "9007199254740991"),
    (2**53, "9007199254740992"),
    (1.5, "1.5"),
    (2**60, "1152921504606846976"),
    (Decimal("7.00"), "7"),
    (True, "true"),
    (b"abc", "abc"),
    (b"\xff\x00", "ff00"),
    (UUID(int=5), "00000000-0000-0000-0000-000000000005"),
    (np.int64(7), "7"),
    (np.float64(7), "7"),
    (date(2026, 11, 1), "2026-11-01"),
]


@pytest.mark.parametrize(("given", "text"), IDS, ids=lambda value: repr(value)[:30])
def test_ids_of_any_type(given: Any, text: str | None) -> None:
    assert as_text("request_id", given) == text


@pytest.mark.parametrize("given", [[1], {"a": 1}, math.inf, 1e17, float(2**53 + 1)])
def test_what_is_no_id_of_a_row(given: Any) -> None:
    with pytest.raises(AgentError, match="request_id: "):
        as_text("request_id", given)


def test_times_are_the_same_moment_however_they_are_written() -> None:
    """Against Python's own clock arithmetic, over seven centuries."""
    rng = random.Random(3)
    for _ in range(200):
        moment = datetime(1974, 1, 1, tzinfo=UTC) + timedelta(
            seconds=rng.randrange(30_000_000_000), microseconds=rng.randrange(1_000_000)
        )
        seconds = (moment - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(seconds=1)
        micro = round(seconds * 1e6)
        zone = timezone(timedelta(minutes=rng.randrange(-720, 720)))
        spellings: list[Any] = [
            seconds,
            str(seconds),
            micro // 1000,
            str(micro),
            micro * 1000,
            moment.isoformat(),
            moment.isoformat(sep=" ").replace("+00:00", "Z"),
            moment.astimezone(zone).isoformat(),
            moment.replace(tzinfo=None),
            moment.replace(tzinfo=None).isoformat(),
            f" {seconds} ",
            Decimal(micro) / 1_000_000,
            pa.scalar(micro, pa.timestamp("us", "UTC")),
        ]
        for given in spellings:
            assert as_seconds("at", given) == pytest.approx(seconds, abs=1e-3, rel=0)
    for huge in (10**400, -(10**309)):
        with pytest.raises(AgentError, match=r"^at: .* is too large a number$"):
            as_seconds("at", huge)
    assert as_seconds("at", date(1970, 1, 2)) == 86400.0
    assert as_seconds("at", "19700102") == as_seconds("at", "1970-01-02") == 86400.0
    for wrong in ("yesterday", True, [1], "12:00"):
        with pytest.raises(AgentError, match="is not a time"):
            as_seconds("at", wrong)


def test_words_of_rewards_are_found_in_every_spelling() -> None:
    tables: list[tuple[dict[str, float], dict[float, list[Any]]]] = [
        (
            {"true": 1.0, "false": 0.0},
            {1.0: [True, "true", "TRUE", " True", 1, 1.0, "1", "1.0", np.bool_(1), Decimal(1)]}
            | {0.0: [False, "False", 0, 0.0, "0", np.int8(0), pa.scalar(False)]},
        ),
        (
            {"1": 1.0, "-1": 0.25},
            {1.0: [1, 1.0, "1", "1.0", "+1", True, Decimal("1.00")], 0.25: [-1, "-1.0", "-1"]},
        ),
        ({"1.0": 0.5, "2": 1.0}, {0.5: [1, "1", 1.0, True], 1.0: [2, "2.0", np.float32(2)]}),
        ({"up": 1.0, "Down": 0.0}, {1.0: ["up", "UP", " Up "], 0.0: ["down", "DOWN"]}),
        ({"": 0.0, "👍": 1.0}, {0.0: [""], 1.0: ["👍", " 👍"]}),
        ({"null": 0.5, "1": 1.0}, {0.5: ["null", "NULL"], 1.0: [1]}),
    ]
    for table, expected in tables:
        rewards = Rewards(table)
        for reward, spellings in expected.items():
            assert [rewards.find(each) for each in spellings] == [reward] * len(spellings)
        for other in (5, "5", "sideways", [1]):
            with pytest.raises(AgentError, match=r"reward: .* is not one of"):
                rewards.find(other)
    with pytest.raises(AgentError, match="false is not one of 1, -1"):
        Rewards({"1": 1.0, "-1": 0.0}).find(False)


def test_two_rewards_of_one_word_are_refused_beforehand(folder: Path) -> None:
    for table in ('"1" = 1.0\n"1.0" = 0.5', '"Up" = 1.0\nup = 0.0'):
        with pytest.raises(ConfigError, match="one reward for it, since it is the same as"):
            ingest("a.jsonl", config=f"{CONFIG}[ingest.rewards]\n{table}")
    assert not (folder / "chat.db").exists()


def test_contents_in_parts() -> None:
    left_out: Counter[str] = Counter()
    contents: list[tuple[Any, str | None]] = [
        ("hi", "hi"),
        ([{"type": "text", "text": "a b"}, {"type": "image_url", "image_url": {}}], "a b"),
        ([{"type": "input_text", "text": "a"}, {"type": "input_audio"}, "c"], "a\nc"),
        ([{"type": "text", "text": {"value": "a"}}], "a"),
        ([{"text": "a"}, {"inline_data": {}}], "a"),
        ([{"type": "tool_use", "text": "not said by anybody"}], ""),
        ({"type": "text", "text": "a"}, "a"),
        ([], ""),
        (None, None),
        (5, "5"),
    ]
    for content, text in contents:
        assert as_words("prompt", content, left_out) == text
    assert left_out == {"image_url": 1, "input_audio": 1, "no type": 1, "tool_use": 1}
    with pytest.raises(AgentError, match="not a part of a content"):
        as_words("prompt", [5], left_out)


ROWS: list[dict[str, Any]] = [
    {
        "id": "auth0|5 =+@/:-_ é",
        "model": "large",
        "score": 1,
        "ts": 1698832200,
        "prompt": "one two three",
        "plan": "5",
        "new": True,
        "embedding": [1.5, 2.0],
        "usage": {"tokens": 50},
    },
    {
        "id": "7",
        "model": "small",
        "score": 0.5,
        "ts": "2023-11-01T10:00:00Z",
        "prompt": None,
        "plan": None,
        "new": None,
        "embedding": None,
        "usage": {"tokens": None},
    },
]


def as_jsonl(path: Path) -> None:
    path.write_text("\ufeff" + "\n".join(map(json.dumps, ROWS)))


def as_json_in_columns(path: Path) -> None:
    path.write_text("\n".join(json.dumps({**r, "usage": json.dumps(r["usage"])}) for r in ROWS))


def as_csv(path: Path) -> None:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([f" {name} " for name in ROWS[0]])
    for row in ROWS:
        cells = [
            json.dumps(each) if isinstance(each, list | dict) else each for each in row.values()
        ]
        writer.writerow(cells)
    path.write_text("\ufeff" + text.getvalue().replace("True", "TRUE"))


def as_flattened_csv(path: Path) -> None:
    as_csv(path)
    text = path.read_text().replace(" usage ", "usage.tokens")
    text = text.replace('"{""tokens"": 50}"', "50.0").replace('"{""tokens"": null}"', "NaN")
    path.write_text(text)


def as_parquet(path: Path) -> None:
    score = pa.array([Decimal("1.00"), Decimal("0.50")], pa.decimal128(5, 2))
    ts = pa.array([1698832200 * 10**9, 1698832800 * 10**9 + 1], pa.timestamp("ns"))
    columns: dict[str, Any] = {name: [row[name] for row in ROWS] for name in ROWS[0]}
    columns |= {"score": score, "ts": ts, "model": pa.array(columns["model"]).dictionary_encode()}
    kind = pa.map_(pa.string(), pa.int64())
    columns["usage"] = pa.array([[("tokens", 50)], [("tokens", None)]], kind)
    pq.write_table(pa.table(columns), path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.jsonl", as_jsonl),
        ("b.jsonl", as_json_in_columns),
        ("a.csv", as_csv),
        ("b.csv", as_flattened_csv),
        ("a.parquet", as_parquet),
    ],
)
def test_one_log_in_every_format_is_one_log(folder: Path, name: str, write: Any) -> None:
    write(folder / name)
    result, rejects = ingest(name, config=CONFIG + FEATURES)
    assert (result.accepted, rejects) == (2, [])
    batch = stored(folder)
    assert batch.request_id == ["auth0|5 =+@/:-_ é", "7"]
    assert batch.routed.tolist() == [0, 1]
    assert batch.reward.tolist() == [1.0, 0.5]
    assert batch.at.tolist() == pytest.approx([1698832200.0, 1698832800.0], abs=1e-5)
    words, plan, new, embedding = batch.x[:, 0], batch.x[:, 1:3], batch.x[:, 3], batch.x[:, 4:]
    assert words[0] > 0 == words[1]
    assert plan.tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert new.tolist() == [1.0, 0.5]
    assert embedding.tolist() == [[1.5, 2.0], [0.0, 0.0]]
    assert batch.outputs.tolist() == [[50.0], [-1.0]]


def test_rows_without_a_reward(folder: Path) -> None:
    given = [1, None, "NaN", 0, ""]
    lines = [
        json.dumps({"id": f"r{i}", "model": "large", "score": each, "ts": i})
        for i, each in enumerate(given)
    ]
    (folder / "a.jsonl").write_text("\n".join(lines))
    result, rejects = ingest("a.jsonl")
    assert (result.accepted, result.unrated, result.rejected, rejects) == (2, 3, 0, [])
    # Where the value of a missing reward is declared, it is the reward of every such row.
    declared = CONFIG.replace("[service]", "[reward]\nmissing = 0.25\n[service]")
    result, _ = ingest("a.jsonl", config=declared, store=folder / "declared.db")
    assert (result.accepted, result.unrated) == (5, 0)
    with SqliteStore(folder / "declared.db", read_only=True) as store:
        (segment,) = store.read()
    assert isinstance(segment.batch, ObservationBatch)
    assert segment.batch.reward.tolist() == [1.0, 0.25, 0.25, 0.0, 0.25]


LINE = {
    "id": "a", "model": "large", "score": 1, "ts": 5,
    "request": {"body": {"prompt": "hi"}},
    "messages": [{"role": "human", "content": "hi"}, {"role": "gpt", "content": "yo"}],
    "metadata": '{"usage": {"completion_tokens": 5}}',
    "text": "no JSON",
    "none": [],
}  # fmt: skip
WRONG = {
    "request.body.promt": "'promt' is not there; did you mean 'prompt'?",
    "requst.body.prompt": "'requst' is not there; did you mean 'request'?",
    "metadata.usage.completion_tokns": "'completion_tokns' is not there; did you mean "
    "'completion_tokens'?",
    "metadata.useage": "did you mean 'usage'?",
    "messages[role=user][0].content": "'user' is not there; known are: human, gpt",
    "messages[0].contents": "did you mean 'content'?",
    "messages[7].content": "nothing stands at messages",
    "none[0]": "nothing stands at none",
    "text.length": "nothing stands at text",
    "zzz": "known are: id, model, score, ts",
}


@pytest.mark.parametrize("path", WRONG)
def test_a_path_that_leads_nowhere_is_named_with_what_is_there(folder: Path, path: str) -> None:
    mapping = f'{CONFIG}[ingest.features]\nprompt = "{path}"\n'
    # Broken lines are skipped, and a row that has little does not hide what others have.
    empty = {"id": "z", "request": {"body": {}}, "messages": [{}], "metadata": '{"usage": {}}'}
    lines = f"\n{{\n{json.dumps(LINE)}\n" * 3
    (folder / "a.jsonl").write_text(lines + json.dumps(empty))
    with pytest.raises(AgentError) as refused:
        ingest("a.jsonl", config=mapping)
    sentence = str(refused.value)
    assert sentence.startswith(f"a.jsonl: features.prompt: no row has {path}: ")
    assert WRONG[path] in sentence
    assert "\n" not in sentence
    assert not (folder / "chat.db").exists(), "nothing was taken in"


def test_every_file_is_asked_and_every_kind_of_path(folder: Path) -> None:
    good = {**LINE, "usage": {"tokens": 1}, "prompt": "a", "plan": "5", "new": 1, "embedding": None}
    (folder / "a.jsonl").write_text(json.dumps(good))
    for name in ("prompt", "plan", "new", "embedding", "usage", "id", "model", "score", "ts"):
        other = {key: value for key, value in good.items() if key != name}
        (folder / "b.jsonl").write_text(f"{json.dumps(other)}\n{json.dumps(other)}")
        with pytest.raises(AgentError, match=rf"^b.jsonl: \w+\.\w+: no row has {name}"):
            ingest("a.jsonl", "b.jsonl", config=CONFIG + FEATURES)
    assert not (folder / "chat.db").exists()
    # One row that has it is enough, however late it comes; null is something.
    lines = [json.dumps({**other, "id": i}) for i in range(5000)]
    (folder / "b.jsonl").write_text("\n".join([*lines, json.dumps({**good, "id": "last"})]))
    result, _ = ingest("a.jsonl", "b.jsonl", config=CONFIG + FEATURES)
    assert result.accepted == 5002


def test_standard_input_is_asked_before_it_is_taken(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def given(*rows: dict[str, Any]) -> None:
        data = io.BytesIO("\n".join(map(json.dumps, rows)).encode())
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(data))

    mapping = f'{CONFIG}[ingest.features]\nprompt = "request.body.promt"\n'
    given(LINE, {**LINE, "id": "b"})
    with pytest.raises(AgentError, match=r"^standard input: features.prompt: .*'prompt'\?"):
        ingest("-", config=mapping)
    with SqliteStore(folder / "chat.db", read_only=True) as store:
        assert store.next_seq == 0
    given({**LINE, "score": None}, LINE, {**LINE, "id": "b"})
    result, _ = ingest("-", config=mapping.replace("promt", "prompt"))
    assert (result.accepted, result.unrated) == (2, 1)


def test_a_csv_whose_cells_have_moved(folder: Path) -> None:
    (folder / "a.csv").write_text(
        "id,model,score,ts\na,large,1,5\nb,large,1\nc,large,1,5,6\n\nd,large,1,5\n"
    )
    result, rejects = ingest("a.csv")
    assert result.accepted == 2
    assert rejects == [
        (2, "3 cells, the header has 4"),
        (3, "5 cells, the header has 4"),
    ]
    (folder / "b.csv").write_text("id,score,model,score\na,1,large,0\n")
    with pytest.raises(AgentError, match=r"^b.csv: its header has two columns 'score'"):
        ingest("b.csv")


def test_times_of_nanoseconds_inside_lists_are_read(folder: Path) -> None:
    kind = pa.list_(pa.struct([("at", pa.timestamp("ns", "UTC")), ("text", pa.large_string())]))
    turns = pa.array([[{"at": 1_000_000_001, "text": "a"}]], kind)
    pq.write_table(
        pa.table({"turns": turns, "d": pa.array([5], pa.date32())}), folder / "a.parquet"
    )
    ((number, row),) = rows(str(folder / "a.parquet"), "parquet")
    assert number == 1
    assert isinstance(row, dict)
    assert row["turns"][0]["text"] == "a"
    assert as_seconds("at", row["turns"][0]["at"]) == 1.0
    assert as_seconds("at", row["d"]) == 5 * 86400.0


def test_a_sound_parquet_file_of_a_type_that_is_not_read_is_not_called_another_file(
    folder: Path,
) -> None:
    wide_parquet.write(folder / "a.parquet", pa.table({"request_id": ["a"], "reward": [1.0]}))
    for columns in (None, {"request_id", "reward"}):
        with pytest.raises(AgentError) as caught:
            list(rows("a.parquet", "parquet", columns))
        assert str(caught.value).startswith("a.parquet: this Parquet file cannot be read here: ")
        assert "64 bits" in str(caught.value)


def test_the_presets_name_no_row_by_what_rows_can_share(folder: Path) -> None:
    Path("chat.toml").write_text(CONFIG + '[[ingest]]\nname = "w"\npreset = "wildchat"\n')
    for preset, named in (("wildchat", False), ("openai", False), ("lmsys-chat", True)):
        text = CONFIG.replace('name = "log"', f'name = "log"\npreset = "{preset}"')
        text = text.replace('request_id = "id"\n', "")
        Path("chat.toml").write_text(text)
        fields = fields_of(load_file(Path("chat.toml")).mapping("log"))
        assert ("request_id" in fields) == named


def test_a_column_of_no_name_of_ours_is_named_with_the_nearest(folder: Path) -> None:
    (folder / "a.csv").write_text("request_id,routed,reward,x_promt\na,large,1,hi\nb,large,1,\n")
    order = Order(files=["a.csv"], config=Path("chat.toml"))
    result, rejects = run(order)
    assert (result.accepted, result.rejected) == (1, 1)
    assert rejects.first[0].reason == "column 'x_promt' is unknown: did you mean 'x_prompt'?"


def test_lines_with_our_names_are_spelled_as_freely(folder: Path) -> None:
    lines = [
        {
            "request_id": 7,
            "routed": "large",
            "reward": True,
            "at": "2023-11-01T10:00:00Z",
            "features": {
                "prompt": [{"type": "text", "text": "a b"}, {"type": "image_url"}],
                "plan": 5,
                "new": "TRUE",
                "embedding": "[1, 2]",
            },
            "outputs": {"tokens": "50"},
        },
        {
            "request_id": "8",
            "routed": "small",
            "reward": "0.5",
            "at": 1698832800000,
            "features": {"prompt": None, "plan": None, "new": None, "embedding": None},
            "outputs": {"tokens": None},
        },
        {"request_id": None, "routed": "small", "reward": None, "features": {}, "outputs": {}},
        {"request_id": "9", "routed": "small", "reward": 1, "features": {"plna": 5}, "outputs": {}},
    ]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    result, rejects = run(Order(files=["a.jsonl"], config=Path("chat.toml")))
    assert (result.accepted, result.unrated, result.rejected) == (2, 1, 1)
    assert result.left_out == {"image_url": 1}
    assert "plna: received 5, expected no such feature" in rejects.first[0].reason
    batch = stored(folder)
    assert batch.request_id == ["7", "8"]
    assert batch.reward.tolist() == [1.0, 0.5]
    assert batch.at.tolist() == [1698832800.0, 1698832800.0]
    assert batch.x[:, 3:].tolist() == [[1.0, 1.0, 2.0], [0.5, 0.0, 0.0]]
    assert batch.outputs.tolist() == [[50.0], [-1.0]]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "mapped.jsonl"])
def test_a_feature_that_no_row_gives_is_said(folder: Path, name: str) -> None:
    """A constant column is no error where a value for missing ones is declared, but no secret."""
    features = [{"prompt": "a", "plan": None}, {"plan": "5", "new": None}]
    if name == "a.csv":
        (folder / name).write_text("routed,reward,x_prompt,x_plan\nlarge,1,a,\nlarge,1,,5\n")
    elif name == "a.jsonl":
        row = {"routed": "large", "reward": 1, "outputs": {}}
        text = "\n".join(json.dumps({**row, "features": each}) for each in features)
        (folder / name).write_text(text)
    else:
        row = {"id": 1, "model": "large", "score": 1, "ts": 5, "usage": {"tokens": None}}
        rows = [
            {**row, "id": at, "embedding": None, "new": None, **each}
            for at, each in enumerate(features)
        ]
        (folder / name).write_text("\n".join(map(json.dumps, rows)))
    if name.startswith("a."):
        result, _ = run(Order(files=[name], config=Path("chat.toml")))
    else:
        result, _ = ingest(name, config=CONFIG + FEATURES)
    assert result.accepted == 2
    assert result.empty == ["features.embedding", "features.new", "outputs.tokens"]
