"""A request counts once, whatever rows its gateway wrote; a score is of one row, or is counted."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from otlp_bodies import span, traces

from equipoise.agent.config import ConfigError
from equipoise.agent.config.file import load_file
from equipoise.agent.config.ingest import FIELDS, IngestMapping
from equipoise.agent.errors import AgentError
from equipoise.agent.ingest.bulk import Ingested, Order, run, table
from equipoise.agent.ingest.files import Source, format_of
from equipoise.agent.ingest.joins import (
    ANY,
    ATTEMPTS,
    CACHE_HITS,
    CACHED_STEPS,
    EMPTY,
    FAILURES,
    STEPS,
    Joined,
    Log,
    ScorePaths,
    Scores,
)
from equipoise.agent.ingest.presets import PRESETS, fields_of
from equipoise.store.batches import ObservationBatch
from equipoise.store.sqlite import SqliteStore
from tests.agent.ingest import recorded
from tests.agent.ingest.recorded import attempt, cached, litellm, observation, score
from tests.commands import run_command

CONFIG = """
name = "chat"
models = [{name = "large"}, {name = "small"}]
[reward]
low = 0.0
high = 1.0
window = 86400
[features]
context = [{type = "text", name = "prompt", statistics = ["words"], missing = 0.0}]
outputs = [
  {type = "number", name = "seconds", missing = -1.0},
  {type = "number", name = "tokens", missing = -1.0},
  {type = "number", name = "cost", missing = -1.0},
]
[service]
store = "chat.db"
"""


def lines(path: Path, rows: list[Any]) -> Source:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Source(path.name, str(path), format_of(str(path)))


def log_of(preset: str, *sources: Source, scores: Scores | None = None) -> Log:
    return Log(sources, IngestMapping(name="log", preset=preset), scores)


def reasons(log: Log, *sources: Source) -> list[str | None]:
    return [usage.reason for source in sources for usage in log.usages(source)]


def scored(path: Path, rows: list[Any], name: str | None = None, **paths: str) -> Scores:
    refused: list[tuple[str, int, str]] = []
    scores = Scores(
        [lines(path, rows)], ScorePaths(**paths), name, lambda *each: refused.append(each)
    )
    scores.refused = refused  # type: ignore[attr-defined]
    return scores


def test_attempts_of_a_router_are_no_requests(tmp_path: Path) -> None:
    """Three failures and one success share a trace; a request that failed for good has none."""
    rows = [
        litellm(1),
        *[attempt(number, 5) for number in (2, 3, 4)],
        litellm(5, model_group="small"),
        *[attempt(number, 9) for number in (6, 7)],
        cached(8, 1),
        litellm(10, call_type="aembedding"),
    ]
    source = lines(tmp_path / "a.jsonl", rows)
    expected = [
        None,
        *[ATTEMPTS] * 3,
        None,
        *[FAILURES] * 2,
        CACHE_HITS,
        "calls of aembedding",
    ]
    assert reasons(log_of("litellm", source), source) == expected
    # The answer may stand in a file that comes later, or before its failures.
    for order in (rows[1:4], rows[4:5]), (rows[4:5], rows[1:4]):
        files = [lines(tmp_path / f"{at}.jsonl", part) for at, part in enumerate(order)]
        assert Counter(reasons(log_of("litellm", *files), *files)) == {ATTEMPTS: 3, None: 1}


def test_turns_of_a_conversation_are_requests_though_they_share_a_trace(tmp_path: Path) -> None:
    turns = [litellm(number, trace_id="conversation") for number in (1, 2, 3)]
    source = lines(tmp_path / "a.jsonl", turns)
    assert reasons(log_of("litellm", source), source) == [None] * 3


def test_the_last_call_of_a_trace_stands_for_it(tmp_path: Path) -> None:
    steps = [observation(number, traceId="t") for number in (1, 3, 2)]
    rows = [
        *steps,
        observation(4, traceId="t", type="SPAN"),
        observation(5, traceId="t", level="ERROR"),
        observation(6, traceId="u", level="ERROR"),
        observation(7, traceId="v"),
        observation(8, traceId="v", metadata={"cache_hit": True}),
        observation(9, traceId=None),
        observation(10, traceId=None),
    ]
    source = lines(tmp_path / "a.jsonl", rows)
    expected = [STEPS, None, STEPS, "of type SPAN", ATTEMPTS, FAILURES]
    expected += [CACHED_STEPS, CACHE_HITS, None, None]
    assert reasons(log_of("langfuse", source), source) == expected
    # A row that lies in two exports is the same row, and one of two that are as late counts.
    again = lines(tmp_path / "b.jsonl", rows[:3])
    log = log_of("langfuse", source, again)
    assert reasons(log, source, again) == [*expected, STEPS, None, STEPS]
    same = lines(tmp_path / "c.jsonl", [steps[0], {**steps[0], "id": "other"}])
    assert reasons(log_of("langfuse", same), same) == [STEPS, None]


def test_a_trace_without_calls_is_counted(tmp_path: Path) -> None:
    trace = {"id": "t", "timestamp": "x", "observations": []}
    source = lines(tmp_path / "a.jsonl", [trace, 3, "x", [1]])
    usages = list(log_of("langfuse-traces", source).usages(source))
    assert [usage.reason for usage in usages] == [EMPTY, None, None, None]
    assert [usage.error is not None for usage in usages] == [False, True, True, True]


def test_a_score_finds_its_row_by_any_id_and_the_last_one_counts(tmp_path: Path) -> None:
    rows = [litellm(number) for number in (1, 2, 3, 4)]
    scores = scored(
        tmp_path / "s.jsonl",
        [
            {"id": "chatcmpl-0001", "score": 0.1, "time": "2026-11-28T10:00:00Z"},
            {"id": "chatcmpl-0001", "score": 0.9, "time": "2026-11-28T09:00:00Z"},
            {"call_id": "call-2", "value": "0.1", "at": 1},
            {"call_id": "call-2", "value": "0.2", "at": 2},
            {"trace_id": "trace-2", "rating": 0.3, "at": 1.5},
            {"trace_id": "trace-3", "reward": True},
            {"response_id": "nobody's", "reward": 1},
            {"response_id": "chatcmpl-0004", "reward": "up"},
            {"reward": 1.0},
            {"response_id": "chatcmpl-0004"},
            "no object",
            {"response_id": "chatcmpl-0001", "score": "inf"},
        ],
    )
    source = lines(tmp_path / "a.jsonl", rows)
    log = log_of("litellm", source, scores=scores)
    assert [usage.reward for usage in log.usages(source)] == [0.1, 0.2, 1.0, None]
    assert scores.result == Joined(
        read=12, joined=3, superseded=3, unmatched=1, refused=5, others=0, left_out=0
    )
    assert [reason for _, _, reason in scores.refused] == [  # type: ignore[attr-defined]
        "score: 'up' is not a number",
        "nothing at " + ScorePaths().id,
        "nothing at " + ScorePaths().value,
        "expected an object",
        "score: inf is not a finite number",
    ]


@pytest.mark.parametrize(
    ("column", "rewards"),
    [
        ("trace_id", [1.0, None, None]),
        ("litellm_call_id", [None, 1.0, None]),
        ("request_id", [None, None, 1.0]),
        ("response_id", [None, None, 1.0]),
    ],
)
def test_a_score_names_ids_of_one_kind(
    tmp_path: Path, column: str, rewards: list[float | None]
) -> None:
    rows = [
        litellm(1, trace_id="12"),
        litellm(2, litellm_call_id="12"),
        litellm(3, id="12", response={}),
    ]
    source = lines(tmp_path / "a.jsonl", rows)
    scores = scored(tmp_path / "s.jsonl", [{column: "12", "value": 1.0}])
    log = log_of("litellm", source, scores=scores)
    assert [usage.reward for usage in log.usages(source)] == rewards
    assert (scores.result.joined, scores.result.unmatched) == (1, 0)


def test_scores_of_one_id_in_two_kinds_stay_two(tmp_path: Path) -> None:
    rows = [litellm(1, trace_id="12"), litellm(3, id="12", response={})]
    source = lines(tmp_path / "a.jsonl", rows)
    pair = [{"trace_id": "12", "value": 0.25}, {"response_id": "12", "value": 0.75}]
    scores = scored(tmp_path / "s.jsonl", pair)
    log = log_of("litellm", source, scores=scores)
    assert [usage.reward for usage in log.usages(source)] == [0.25, 0.75]


def test_a_line_of_spans_keeps_those_that_can_be_read(tmp_path: Path) -> None:
    bad = {"gen_ai.usage.output_tokens": "many"}
    source = lines(tmp_path / "a.jsonl", [traces(span(1), span(2, bad), span(3))])
    log = log_of("otlp", source)
    usages = list(log.usages(source))
    assert [usage.error is None for usage in usages] == [True, False, True]
    assert "gen_ai.usage.output_tokens" in str(usages[1].error)
    assert {usage.number for usage in usages} == {usages[0].number}


def test_of_scores_without_a_time_the_one_further_down_counts(tmp_path: Path) -> None:
    source = lines(tmp_path / "a.jsonl", [litellm(1)])
    for ids in (
        ({"call_id": "call-1"}, {"call_id": "call-1"}),
        ({"call_id": "call-1"}, {"trace_id": "trace-1"}),
    ):
        rows = [{**ids[0], "score": 0.0}, {**ids[1], "score": 1.0}]
        log = log_of("litellm", source, scores=scored(tmp_path / "s.jsonl", rows))
        assert [usage.reward for usage in log.usages(source)] == [1.0]


def test_rows_without_an_id_of_their_own_keep_their_scores_apart(tmp_path: Path) -> None:
    """The id of a response is served again from a cache, so it names no row of this shape."""
    rows = [
        {
            "request": {"model": "large"},
            "response": {"id": f"r{at % 3}", "choices": [], "created": at},
        }
        for at in range(6)
    ]
    source = lines(tmp_path / "a.jsonl", rows)
    scores = scored(tmp_path / "s.jsonl", [{"id": "r0", "score": 0.5}, {"id": "r2", "score": 0.25}])
    log = log_of("openai", source, scores=scores)
    assert [usage.reward for usage in log.usages(source)] == [None, None, None, 0.5, None, 0.25]


def test_a_rating_of_a_conversation_is_of_its_last_answer(tmp_path: Path) -> None:
    turns = [litellm(number, trace_id="conversation") for number in (1, 3, 2)]
    late = [cached(9, 1, trace_id="conversation"), attempt(10, 1, trace_id="conversation")]
    source = lines(tmp_path / "a.jsonl", turns + late)
    scores = scored(tmp_path / "s.jsonl", [{"trace_id": "conversation", "score": 1.0}])
    log = log_of("litellm", source, scores=scores)
    assert [usage.reward for usage in log.usages(source)] == [None, 1.0, None, None, None]


def test_the_id_that_a_cache_repeats_is_of_who_wrote_the_answer(tmp_path: Path) -> None:
    source = lines(tmp_path / "a.jsonl", [litellm(1), cached(2, 1), cached(3, 1)])
    scores = scored(tmp_path / "s.jsonl", [{"response_id": "chatcmpl-0001", "score": 1.0}])
    log = log_of("litellm", source, scores=scores)
    assert [usage.reward for usage in log.usages(source)] == [1.0, None, None]
    # A rating of the hit itself, by its call, is of no answer of a model.
    hit = scored(tmp_path / "s.jsonl", [{"call_id": "call-3", "score": 0.0}])
    log = log_of("litellm", source, scores=hit)
    assert [usage.reward for usage in log.usages(source)] == [None] * 3
    assert (hit.result.joined, hit.result.left_out) == (0, 1)


def test_scores_of_langfuse_in_three_shapes(tmp_path: Path) -> None:
    first, second, step = observation(1), observation(3), observation(2, traceId=f"{3:032x}")
    source = lines(tmp_path / "a.jsonl", [first, second, step])
    trace = {"kind": "trace", "id": second["traceId"], "traceId": second["traceId"]}
    shapes: list[list[dict[str, Any]]] = [
        [score(first, 0.5), score(second, 0.25, subject=trace), score(step, 1.0)],
        [
            {"id": "s1", "traceId": "x", "observationId": first["id"], "value": 0.5, "name": "h"},
            {"id": "s2", "traceId": second["traceId"], "value": 0.25, "name": "h"},
            {"id": "s3", "traceId": "x", "observationId": step["id"], "value": 1.0, "name": "h"},
        ],
        [
            {"id": "s1", "trace_id": "x", "observation_id": first["id"], "value": "0.5"},
            {"id": "s2", "trace_id": second["traceId"], "observation_id": "", "value": "0.25"},
            {"id": "s3", "trace_id": "x", "observation_id": step["id"], "value": "1"},
        ],
    ]
    for shape in shapes:
        scores = scored(tmp_path / "s.jsonl", shape)
        log = log_of("langfuse", source, scores=scores)
        assert [usage.reward for usage in log.usages(source)] == [0.5, 0.25, None]
        # The score of an earlier step is counted, and counts for no request.
        assert (scores.result.joined, scores.result.left_out) == (2, 1)
    page = [{"data": shapes[1], "meta": {}}]
    assert scored(tmp_path / "s.jsonl", page).result.read == 3


def test_words_are_rewards_only_by_a_table(tmp_path: Path) -> None:
    first = observation(1)
    old = {"observationId": first["id"], "value": 2, "dataType": "CATEGORICAL"}
    words = [score(first, "good", dataType="CATEGORICAL"), {**old, "stringValue": "good"}]
    for word in words:
        refused = scored(tmp_path / "s.jsonl", [word])
        assert refused.result.refused == 1
        table = ScorePaths(rewards={"good": 0.75, "bad": 0.0})
        scores = Scores([lines(tmp_path / "s.jsonl", [word])], table, None, lambda *_: None)
        assert [each.value for each in scores.by_id.values()] == [0.75]


def test_one_of_several_scores_is_named(tmp_path: Path) -> None:
    first = observation(1)
    rows = [score(first, 1.0), score(first, 0.0, name="toxic")]
    with pytest.raises(AgentError, match=r"several scores, name one by --score: helpful, toxic$"):
        scored(tmp_path / "s.jsonl", rows)
    with pytest.raises(AgentError, match=r"no score is called 'kind'; there are helpful, toxic$"):
        scored(tmp_path / "s.jsonl", rows, "kind")
    scores = scored(tmp_path / "s.jsonl", rows, "helpful")
    assert (scores.result.others, len(scores.by_id)) == (1, 1)
    feedback = {"target_id": "t", "metric_name": "thumb", "value": True, "id": "f"}
    assert [*scored(tmp_path / "s.jsonl", [feedback], "thumb").by_id] == [(ANY, "t")]


def test_ids_in_capitals_are_the_same_ids(tmp_path: Path) -> None:
    row = recorded.inference(1)
    source = lines(tmp_path / "a.jsonl", [{**row, "id": row["id"].upper()}])
    scores = scored(tmp_path / "s.jsonl", [{"target_id": row["id"], "value": 1.0}])
    log = log_of("tensorzero", source, scores=scores)
    assert [usage.reward for usage in log.usages(source)] == [1.0]
    # Only UUIDs: other ids may differ by their capitals alone.
    source = lines(tmp_path / "a.jsonl", [litellm(1, id="ABC"), litellm(2, id="abc")])
    scores = scored(tmp_path / "s.jsonl", [{"id": "abc", "value": 1.0}])
    log = log_of("litellm", source, scores=scores)
    assert [usage.reward for usage in log.usages(source)] == [None, 1.0]


def test_scores_of_no_row_are_an_error_with_ids_of_both(tmp_path: Path) -> None:
    source = lines(tmp_path / "a.jsonl", [litellm(number) for number in range(1, 9)])
    scores = scored(tmp_path / "s.jsonl", [{"id": f"resp_{at}", "score": 1} for at in range(9)])
    with pytest.raises(AgentError) as refused:
        log_of("litellm", source, scores=scores)
    assert str(refused.value) == (
        "s.jsonl: no score is of a row of the log: scores name 'resp_0', 'resp_1', 'resp_2'; the "
        "log has request_id 'chatcmpl-0001', 'chatcmpl-0002', 'chatcmpl-0003'; response_id "
        "'chatcmpl-0001', 'chatcmpl-0002', 'chatcmpl-0003'; call_id 'call-1', 'call-2', 'call-3'; "
        "trace 'trace-1', 'trace-2', 'trace-3'"
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("chat.toml").write_text(CONFIG)
    return tmp_path


def ingest(*files: str, **options: Any) -> Ingested:
    result, _ = run(Order(files=list(files), config=Path("chat.toml"), **options))
    total = result.accepted + result.duplicates + result.late + result.rejected + result.unrated
    assert result.rows == total + result.decided + sum(result.skipped.values())
    if result.scores is not None:
        counts = {name: getattr(result.scores, name) for name in Joined.__slots__}
        assert counts.pop("read") == sum(counts.values())
    return result


def test_a_log_of_a_gateway_is_taken_in_by_its_name(folder: Path) -> None:
    rows = [litellm(1), recorded.streamed(2), attempt(3, 4), litellm(4, model_group="small")]
    lines(folder / "a.jsonl", [*rows, cached(5, 1), litellm(6, model_group="unknown")])
    lines(folder / "s.jsonl", [{"call_id": f"call-{at}", "score": at / 10} for at in (1, 2, 4, 6)])
    options: dict[str, Any] = {"preset": "litellm", "scores": ["s.jsonl"]}
    result = ingest("a.jsonl", **options)
    assert (result.rows, result.accepted, result.rejected) == (6, 3, 1)
    assert result.skipped == {ATTEMPTS: 1, CACHE_HITS: 1}
    assert (result.preset, result.empty) == ("litellm", [])
    assert result.scores is not None
    assert (result.scores.joined, result.scores.read) == (4, 4)
    with SqliteStore(folder / "chat.db", read_only=True) as store:
        (batch,) = [each.batch for each in store.read()]
    assert isinstance(batch, ObservationBatch)
    assert batch.reward.tolist() == pytest.approx([0.1, 0.2, 0.4])
    outputs = batch.outputs.tolist()
    assert outputs[0] == pytest.approx([1.0, 20.0, 0.00045])
    assert outputs[1] == pytest.approx([1.0, -1.0, -1.0])
    # The same again changes nothing, in one file or in two.
    again = ingest("a.jsonl", **options)
    assert (again.accepted, again.duplicates) == (0, 3)
    lines(folder / "b.jsonl", rows[:2])
    assert ingest("b.jsonl", "a.jsonl", **options).duplicates == 5


def test_every_shape_is_taken_in(folder: Path) -> None:
    shapes: dict[str, list[dict[str, Any]]] = {
        "litellm": [recorded.spend(at) for at in (1, 2)],
        "langfuse": [recorded.exported(at) for at in (1, 2)],
        "tensorzero": [recorded.inference(at) for at in (1, 2)],
        "helicone": [recorded.helicone(at) for at in (1, 2)],
        "openrouter": [recorded.generation(at) for at in (1, 2)],
        "dsjson": [recorded.dsjson(at) for at in (1, 2)],
    }
    own = ("helicone", "dsjson")
    for family, rows in shapes.items():
        lines(folder / "a.jsonl", rows)
        ids = [
            row.get("id") or row.get("request_id") or row.get("data", {}).get("id") for row in rows
        ]
        lines(folder / "s.jsonl", [{"id": each, "score": 0.5} for each in ids])
        scores = [] if family in own else ["s.jsonl"]
        result = ingest("a.jsonl", preset=family, store=Path(f"{family}.db"), scores=scores)
        assert (result.accepted, result.rejected) == (2, 0), family
    # Columns of JSON text and of quoted numbers, as tables of databases are exported.
    spent = [recorded.spend(at, spend="0.00045", prompt_tokens="100") for at in (1, 2)]
    pq.write_table(pa.Table.from_pylist(spent), "a.parquet")
    with open("b.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, spent[0])
        writer.writeheader()
        writer.writerows([recorded.spend(at) for at in (3, 4)])
    lines(folder / "s.jsonl", [{"call_id": f"call-{at}", "score": 0.5} for at in (1, 2, 3, 4)])
    options: dict[str, Any] = {"preset": "litellm", "scores": ["s.jsonl"], "store": Path("t.db")}
    result = ingest("a.parquet", "b.csv", **options)
    assert (result.accepted, result.empty) == (4, [])
    (folder / "a.csv").write_text(
        ",".join(recorded.activity()) + "\n" + ",".join(recorded.activity().values()) + "\n"
    )
    lines(folder / "s.jsonl", [{"generation_id": "gen-1", "score": 1}])
    result = ingest("a.csv", preset="openrouter", store=Path("csv.db"), scores=["s.jsonl"])
    assert result.accepted == 1


def test_a_file_of_the_decision_service_says_what_it_is(folder: Path) -> None:
    thinned = recorded.dsjson(3, pdrop=0.5, o=[])
    lines(folder / "a.dsjson", [recorded.dsjson(1), recorded.dsjson(2, o=[]), thinned])
    config = CONFIG.partition("[features]")[0] + '[service]\nstore = "chat.db"\n'
    Path("chat.toml").write_text(config)
    result = ingest("a.dsjson")
    assert result.accepted == 3
    assert result.notes == {
        "the service's default reward, nothing was observed": 2,
        "a log that was thinned out (pdrop)": 1,
    }


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"preset": "litelm"}, "--from litelm: expected one of litellm, langfuse, tensorzero,"),
        ({"preset": "langfuse"}, "a.jsonl is no log of langfuse; it looks like --from litellm: "),
        ({"preset": "litellm", "mapping": "x"}, "--from and --mapping: leave one of them out"),
        ({"score": "helpful"}, "--scores-from and --score say how --scores FILE is read: name it"),
        ({"scores": ["a.jsonl"], "kind": "simulations"}, "--scores: joined to observations"),
        (
            {"preset": "litellm", "kind": "outcomes"},
            "configuration: ingest: mapping litellm is of observations",
        ),
    ],
)
def test_wrong_orders_are_refused_before_the_store_is_touched(
    folder: Path, options: dict[str, Any], words: str
) -> None:
    lines(folder / "a.jsonl", [litellm(1)])
    with pytest.raises((AgentError, ConfigError)) as refused:
        ingest("a.jsonl", **options)
    assert str(refused.value).startswith(words)
    assert "\n" not in str(refused.value)
    assert not (folder / "chat.db").exists()


def test_a_feature_that_the_log_does_not_have_needs_a_path(folder: Path) -> None:
    config = CONFIG.replace('statistics = ["words"], missing = 0.0}', 'statistics = ["words"]}')
    Path("chat.toml").write_text(config)
    lines(folder / "a.jsonl", [recorded.spend(1, proxy_server_request="{}")])
    with pytest.raises(AgentError, match=r"^a.jsonl: features.prompt: no row has messages\[role"):
        ingest("a.jsonl", preset="litellm")
    plan = '{type = "category", name = "plan", values = ["a", "b"]}, {type = "text"'
    Path("chat.toml").write_text(CONFIG.replace('{type = "text"', plan))
    with pytest.raises(AgentError, match=r"called features.plan: give it a path .* --show` prints"):
        ingest("a.jsonl", preset="litellm")
    # Where a missing value is declared, it is taken, and said.
    Path("chat.toml").write_text(CONFIG)
    lines(folder / "s.jsonl", [{"id": "chatcmpl-0001", "score": 1}])
    result = ingest("a.jsonl", preset="litellm", scores=["s.jsonl"])
    assert (result.accepted, result.empty) == (1, ["features.prompt"])


def test_a_path_with_another_way_leads_somewhere_where_either_does(folder: Path) -> None:
    table = '[[ingest]]\nname = "own"\n[ingest.fields]\nrouted = "served | model"\nreward = "r"\n'
    Path("chat.toml").write_text(CONFIG + table)
    lines(folder / "a.jsonl", [{"model": "large", "r": 1}, {"model": "small", "r": 0}])
    assert ingest("a.jsonl", mapping="own").accepted == 2
    lines(folder / "a.jsonl", [{"modle": "large", "r": 1}])
    with pytest.raises(AgentError, match=r"^a.jsonl: fields.routed: no row has served \| model: "):
        ingest("a.jsonl", mapping="own")


def test_scores_of_ones_own_shape_are_described_by_a_table(folder: Path) -> None:
    table = '[[ingest]]\nname = "thumbs"\nkind = "outcomes"\n[ingest.fields]\nrequest_id = "msg"\n'
    table += 'reward = "thumb"\nat = "when"\n[ingest.rewards]\nup = 1.0\ndown = 0.0\n'
    Path("chat.toml").write_text(CONFIG + table)
    lines(folder / "a.jsonl", [litellm(1), litellm(2)])
    (folder / "s.csv").write_text("msg,thumb,when\nchatcmpl-0001,UP,1\nchatcmpl-0002,down,2\n")
    result = ingest("a.jsonl", preset="litellm", scores=["s.csv"], scores_from="thumbs")
    assert (result.accepted, result.unrated) == (2, 0)
    Path("chat.toml").write_text(CONFIG + table.replace('reward = "thumb"\n', ""))
    with pytest.raises(AgentError, match=r"^--scores-from thumbs: expected an \[\[ingest\]\]"):
        ingest("a.jsonl", preset="litellm", scores=["s.csv"], scores_from="thumbs")


@pytest.mark.parametrize("name", PRESETS)
def test_the_table_that_is_shown_is_one_that_is_read(folder: Path, name: str) -> None:
    plan = '{type = "category", name = "plan.of-it", values = ["a", "b"], missing = 0.0}, '
    config = CONFIG.replace('{type = "text"', plan + '{type = "text"')
    Path("chat.toml").write_text(config)
    shown = table(Order(files=[], config=Path("chat.toml"), preset=name))
    Path("chat.toml").write_text(config + shown)
    mapping = load_file(Path("chat.toml")).mapping(
        PRESETS[name].family if "-" not in name else name
    )
    assert mapping.preset == mapping.name
    assert fields_of(mapping) == {
        field: path
        for field, path in PRESETS[mapping.name].fields.items()
        if field in FIELDS[mapping.kind]
    }
    # What is commented out is read too, with its paths.
    uncommented = shown.replace("# routed =", "routed =").replace("# at =", "at =")
    Path("chat.toml").write_text(config + uncommented)
    assert fields_of(load_file(Path("chat.toml")).mapping(mapping.name)) == fields_of(mapping)


def test_names_of_models_that_are_not_ours_are_shown(folder: Path) -> None:
    lines(folder / "a.jsonl", [litellm(1), *[litellm(n, model_group='q"x') for n in (2, 3)]])
    shown = table(Order(files=["a.jsonl"], config=Path("chat.toml"), preset="litellm"))
    assert '\n# "q\\"x" = "large"  # 2 rows\n' in shown
    assert '"large" = ' not in shown
    edited = shown.replace('# "q\\"x" = "large"', '"q\\"x" = "small"')
    Path("chat.toml").write_text(CONFIG + edited)
    lines(folder / "s.jsonl", [{"trace_id": f"trace-{n}", "score": 1} for n in (1, 2, 3)])
    assert ingest("a.jsonl", mapping="litellm", scores=["s.jsonl"]).accepted == 3


def test_what_became_of_the_rows_is_said(folder: Path) -> None:
    lines(folder / "a.jsonl", [litellm(1), attempt(2, 1), cached(3, 1), recorded.streamed(4)])
    (folder / "s.csv").write_text("id,score\nchatcmpl-0001,1\nchatcmpl-0001,0\nzz,1\nx,up\n")
    command = ["ingest", "a.jsonl", "--config", "chat.toml", "--from", "litellm"]
    ran = run_command(*command, "--scores", "s.csv", cwd=folder)
    assert ran.returncode == 1
    assert ran.stdout.splitlines() == [
        "1 row is new, 0 were there before",
        f"read as LiteLLM's StandardLoggingPayload: {PRESETS['litellm'].about}",
        "2 rows are no observations: 1 failed attempts of answered requests, 1 cache hits",
        "1 row without a reward was left out: a usage row teaches by its reward; declare "
        "reward.missing if a row without one has a known value",
        "4 scores: 1 joined, 1 superseded by a later one of the same row, 1 of no row of the log, "
        "1 refused",
    ]
    assert ran.stderr == "s.csv, row 4: score: 'up' is not a number\n"
    given = "".join(json.dumps(row) + "\n" for row in (litellm(1), cached(3, 1)))
    ran = run_command(*command[:1], "-", *command[2:], "--json", cwd=folder, given=given)
    facts = json.loads(ran.stdout)
    assert (facts["rows"], facts["unrated"], facts["skipped"]) == (2, 1, {"cache hits": 1})
    assert facts["preset"] == "litellm"
    ran = run_command(*command[:1], *command[2:], cwd=folder)
    assert ran.returncode == 2
    assert "name a file, or - for standard input" in ran.stderr
