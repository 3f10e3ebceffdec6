"""Each shape is told apart, and every field of it says what the producer meant."""

from __future__ import annotations

from typing import Any

import pytest
from otlp_bodies import span, traces

from equipoise.agent.cli.ingest import FAMILIES as FAMILIES_OF_THE_COMMAND
from equipoise.agent.config.ingest import PRESETS as NAMES
from equipoise.agent.config.ingest import as_number, as_seconds, as_text, as_words, parse_path
from equipoise.agent.errors import AgentError
from equipoise.agent.ingest import otlp
from equipoise.agent.ingest.derived import ANSWERED, CACHED, FAILED, find
from equipoise.agent.ingest.presets import FAMILIES, PRESETS, preset_rows, recognise
from tests.agent.ingest import recorded

ROWS: dict[str, list[dict[str, Any]]] = {
    "litellm": [recorded.litellm(1), recorded.attempt(2, 1), recorded.cached(3, 1)],
    "litellm-spend": [recorded.spend(1)],
    "langfuse": [recorded.observation(1), recorded.exported(2)],
    "langfuse-traces": [
        {"id": f"{1:032x}", "timestamp": "x", "observations": [recorded.observation(1)]}
    ],
    "tensorzero": [recorded.inference(1)],
    "tensorzero-model": [recorded.model_inference(1)],
    "helicone": [recorded.helicone(1)],
    "openrouter": [recorded.activity(1), recorded.generation(2)],
    "dsjson": [recorded.dsjson(1)],
    "otlp": [{"resourceSpans": []}, {"resourceLogs": []}],
    "lmsys-chat": [{"conversation_id": "c", "model": "large", "conversation": []}],
    "wildchat": [{"conversation_hash": "h", "model": "large", "conversation": []}],
    "openai": [{"request": {"model": "large"}, "response": {"choices": []}}],
}


def test_every_name_is_known_everywhere() -> None:
    assert tuple(PRESETS) == NAMES
    assert FAMILIES == FAMILIES_OF_THE_COMMAND
    for preset in PRESETS.values():
        assert preset.about
        assert preset.holds
        for path in preset.fields.values():
            parse_path(path)


@pytest.mark.parametrize("name", PRESETS)
def test_a_shape_is_told_from_all_others(name: str) -> None:
    for row in ROWS[name]:
        assert [other for other, preset in PRESETS.items() if preset.fits(row)] == [name] or (
            "data" in row
        )
        found = recognise([row])
        assert found is not None
        assert found.name == name
        within = recognise([row], found.family)
        assert within is found
    others = {preset.family for preset in PRESETS.values()} - {PRESETS[name].family}
    assert all(recognise(ROWS[name], family) is None for family in others)


def test_what_is_no_row_of_any_shape() -> None:
    assert recognise([]) is None
    assert recognise([{"a": 1}, [], None, 3, "text"]) is None
    # Half of the rows are enough, fewer are not; a family is asked for, so one is.
    mixed = [recorded.litellm(1), {"a": 1}, {"b": 1}]
    assert recognise(mixed) is None
    assert recognise(mixed[:2]) is PRESETS["litellm"]
    assert recognise(mixed, "litellm") is PRESETS["litellm"]
    with pytest.raises(AgentError, match=r"expected an object, this is of type list"):
        list(preset_rows(PRESETS["litellm"], []))


def read(name: str, row: dict[str, Any]) -> dict[str, Any]:
    """What a preset makes of a row that holds one."""
    (each,) = preset_rows(PRESETS[name], row)
    return {field: find(each, path) for field, path in PRESETS[name].fields.items()}


@pytest.mark.parametrize(
    ("name", "row"),
    [
        (name, row)
        for name in list(PRESETS)[:8]
        for row in ROWS[name][-1 if "open" in name else 0 :]
    ],
)
def test_an_answer_is_read_whole(name: str, row: dict[str, Any]) -> None:
    if name == "litellm" and row["id"] != "chatcmpl-0001":
        return
    said = read(name, row)
    assert said["status"] == ANSWERED
    assert said["routed"] == "large"
    assert as_text("request_id", said["request_id"])
    at = as_seconds("at", said["at"])
    assert at is not None
    assert 1.7958e9 < at < 1.7959e9
    seconds = as_number("seconds", said["seconds"])
    assert seconds is not None
    assert 0.2 < seconds < 1.3
    if name != "tensorzero":
        counts = [as_number(each, said[each]) for each in ("input_tokens", "output_tokens", "cost")]
        assert counts[:2] == [100.0, 20.0]
        assert counts[2] == pytest.approx(0.00045 if "langfuse" not in name else 0.0003)
    if "prompt" in said and name != "tensorzero-model":
        assert as_words("prompt", said["prompt"], {}) == "why?"  # type: ignore[arg-type]


def test_zero_tokens_of_a_stream_are_unknown() -> None:
    said = read("litellm", recorded.streamed(1))
    assert [said[name] for name in ("input_tokens", "output_tokens", "cost")] == [None] * 3
    # The seconds go to the last token, and a stream that has its usage keeps it.
    assert said["seconds"] == pytest.approx(1.0)
    whole = read("litellm", recorded.litellm(1, stream=True))
    assert (whole["input_tokens"], whole["cost"]) == (100.0, 0.00045)
    spent = recorded.spend(1, prompt_tokens=0, completion_tokens=0, spend=0.0)
    assert read("litellm-spend", spent)["cost"] is None


@pytest.mark.parametrize(
    ("provider", "asked", "known"),
    [
        ("openai", None, False),
        ("hosted_vllm", {}, False),
        ("azure", {"include_usage": False}, False),
        ("openai", {"include_usage": True}, True),
        ("anthropic", None, True),
        (None, None, True),
    ],
)
def test_a_count_that_litellm_has_guessed_is_none(
    provider: str | None, asked: dict[str, bool] | None, known: bool
) -> None:
    """1.110.2 says 12 tokens in where the provider counted 100, and marks nothing; 1.108.7 says 0.
    Providers of OpenAI's protocol send usage only to a stream that asks for it."""
    parameters = {"stream": True} | ({} if asked is None else {"stream_options": asked})
    row = recorded.litellm(1, stream=True, model_parameters=parameters)
    said = read("litellm", row | {"custom_llm_provider": provider})
    counts = [said[name] for name in ("input_tokens", "output_tokens", "cost")]
    assert counts == ([100.0, 20.0, 0.00045] if known else [None] * 3)
    whole = {**row, "custom_llm_provider": provider, "stream": False}
    assert read("litellm", whole)["input_tokens"] == 100.0


def test_a_cost_of_nothing_is_free_only_where_there_was_a_price() -> None:
    free = recorded.litellm(1, response_cost=0.0)
    assert read("litellm", free)["cost"] == 0.0
    unpriced = free | {"response_cost_failure_debug_info": {"error_str": "not mapped"}}
    assert read("litellm", unpriced)["cost"] is None
    unmatched = recorded.observation(1, totalCost=0, costDetails={}, modelId=None)
    assert read("langfuse", unmatched)["cost"] is None


@pytest.mark.parametrize(
    ("name", "row", "status"),
    [
        ("litellm", recorded.cached(2, 1), CACHED),
        ("litellm", recorded.attempt(2, 1), FAILED),
        ("litellm", recorded.litellm(1, call_type="aembedding"), "calls of aembedding"),
        ("litellm", recorded.litellm(1, call_type="aresponses"), ANSWERED),
        ("litellm-spend", recorded.spend(1, cache_hit="True"), CACHED),
        ("litellm-spend", recorded.spend(1, cache_hit="False"), ANSWERED),
        ("litellm-spend", recorded.spend(1, status="failure"), FAILED),
        ("langfuse", recorded.observation(1, type="SPAN"), "of type SPAN"),
        ("langfuse", recorded.observation(1, level="ERROR"), FAILED),
        ("langfuse", recorded.observation(1, endTime=None), "without an end"),
        ("langfuse", recorded.observation(1, metadata={"cache_hit": True}), CACHED),
        ("tensorzero-model", recorded.model_inference(1, cached=True), CACHED),
        ("helicone", recorded.helicone(1, response_status=500), FAILED),
        ("helicone", recorded.helicone(1, cache_reference_id="7f6c1a9e-0"), CACHED),
        ("openrouter", recorded.activity(1, finish_reason_normalized="error"), FAILED),
        ("dsjson", recorded.dsjson(1, _skipLearn=True), "events that were not activated"),
        ("dsjson", {"RewardValue": 1.0, "EventId": "e"}, "rewards that joined no event"),
        ("dsjson", recorded.dsjson(1, _outcomes=[{}]), "events of several slots"),
    ],
)
def test_only_answers_are_answers(name: str, row: dict[str, Any], status: str) -> None:
    assert read(name, row)["status"] == status


def test_who_answered_is_neither_who_was_asked_nor_the_dated_name() -> None:
    served = recorded.litellm(1, model_group="small", model="openai/gpt-4o-mini")
    assert read("litellm", served)["routed"] == "small"
    without_a_router = recorded.litellm(1, model_group=None, model="gpt-4o")
    assert read("litellm", without_a_router)["routed"] == "gpt-4o"
    assert read("litellm-spend", recorded.spend(1, model_group=""))["routed"] == "openai/gpt-4o"


def test_the_user_of_a_call_stands_in_three_places() -> None:
    assert read("litellm", recorded.litellm(1))["unit_id"] == "u1"
    assert read("litellm", recorded.litellm(1, end_user="proxy"))["unit_id"] == "proxy"
    metadata = {"user_api_key_end_user_id": "key"}
    assert read("litellm", recorded.litellm(1, metadata=metadata))["unit_id"] == "key"


def test_a_stop_by_the_user_is_an_answer_that_was_stopped() -> None:
    row = recorded.litellm(1, error_str="Client disconnected the request")
    said = read("litellm", row)
    assert (said["status"], said["stopped"]) == (ANSWERED, True)
    # LiteLLM counts such a stream itself: 8 tokens in where the provider would have said 100.
    assert [said[name] for name in ("input_tokens", "output_tokens", "cost")] == [None] * 3
    assert read("openrouter", recorded.activity(1, cancelled="true"))["stopped"] is True


def test_labels_of_dsjson_win_over_everything_else() -> None:
    row = recorded.dsjson(1, _label_cost=0.25, o=[{"v": 9.0}, {"v": 1.0}], p=[0.9, 0.05, 0.05])
    said = read("dsjson", row)
    assert (said["routed"], said["reward"], said["propensity"]) == ("small", -0.25, 0.2)
    assert said["candidates"] == {"small": 0.9, "large": 0.05, "tiny": 0.05}
    assert read("dsjson", recorded.dsjson(1, pdrop=0.5))["keep_prob"] == 0.5
    # -0.0 of a cost of zero would be another number in a table.
    assert str(read("dsjson", recorded.dsjson(1, _label_cost=0.0))["reward"]) == "0.0"
    nameless = recorded.dsjson(1, c={"_multi": [{"x": 1}, {"x": 2}, {"x": 3}]})
    assert read("dsjson", nameless)["routed"] == "2"
    for wrong in (0, 4, 2.5, "two", None):
        assert read("dsjson", recorded.dsjson(1, _label_Action=wrong))["routed"] is None
    for wrong in ([], [1, 1, 2], [0.2, 0.8], "p", None):
        assert read("dsjson", recorded.dsjson(1, a=wrong))["candidates"] is None


def test_a_trace_gives_its_observations_and_they_keep_its_user() -> None:
    inner = [recorded.observation(1), recorded.observation(2, type="SPAN"), "an id", None]
    del inner[0]["traceId"], inner[0]["userId"]  # type: ignore[attr-defined]
    trace = {"id": "t", "timestamp": "x", "userId": "u", "sessionId": "s", "observations": inner}
    read_rows = list(preset_rows(PRESETS["langfuse-traces"], trace))
    assert [find(each, "derived.status") for each in read_rows] == [ANSWERED, "of type SPAN"]
    assert (read_rows[0]["traceId"], read_rows[0]["userId"]) == ("t", "u")
    assert list(preset_rows(PRESETS["langfuse-traces"], {**trace, "observations": "no"})) == []


def test_a_page_of_an_api_is_its_rows() -> None:
    page = {"data": [recorded.observation(1), recorded.observation(2)], "meta": {"page": 1}}
    assert recognise([page]) is PRESETS["langfuse"]
    assert len(list(preset_rows(PRESETS["langfuse"], page))) == 2


def test_what_was_drawn_at_once_is_a_unit() -> None:
    """A variant is drawn once an episode: its inferences are no draws of their own."""
    rows = [read("tensorzero", recorded.inference(number)) for number in (1, 2)]
    assert rows[0]["unit_id"] == rows[1]["unit_id"] == recorded.inference()["episode_id"]
    assert rows[0]["request_id"] != rows[1]["request_id"]


def test_a_call_whose_span_failed_is_an_answer_where_one_began() -> None:
    """Instrumentations call a stream that its user left an error."""
    error, gone = {"error.type": "_OTHER"}, {"gen_ai.usage.output_tokens": None}
    nothing = gone | {"gen_ai.response.model": None, "gen_ai.response.id": None}
    said = [read("otlp", traces(span(1, error | more))) for more in (gone, nothing)]
    assert [each["status"] for each in said] == [ANSWERED, FAILED]


def test_no_preset_takes_weights_for_probabilities() -> None:
    """Only a decision service logs the probability with which it drew."""
    claims = {name for name, preset in PRESETS.items() if "propensity" in preset.fields}
    assert claims == {"dsjson"}
    assert all("OBS" in preset.about for preset in PRESETS.values())


def test_the_first_path_that_says_something_is_taken() -> None:
    path = parse_path("a.b | c | d[0]")
    assert path.find({"a": {"b": 1}, "c": 2}) == 1
    assert path.find({"a": {"b": None}, "c": ""}) is None
    assert path.find({"a": {"b": ""}, "c": 2}) == 2
    assert path.find({"a": {}, "d": [3]}) == 3
    assert path.find({"a": 1}) is None
    assert path.leads({"a": {"b": None}})
    assert path.leads({"d": [None]})
    assert not path.leads({"a": {}, "d": []})
    assert path.columns == ["a", "a.b", "c", "d"]
    with pytest.raises(AgentError, match="is not valid"):
        parse_path("a | ")


def test_calls_of_a_batch_are_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    call = {"kind": "call", "request_id": "t-s", "model": "large", "at": 1.8e9, "seconds": 1.5}
    call |= {"failed": False, "answered": True, "response_id": "r"}
    call |= {"input_tokens": 0, "output_tokens": 0, "cost": None}
    left = {**call, "failed": True}
    dead = {**left, "answered": False}
    monkeypatch.setattr(otlp, "rows_of", lambda line: line["resourceSpans"])
    batch = {"resourceSpans": [call, left, dead, {**dead, "kind": "evaluation"}]}
    held = list(preset_rows(PRESETS["otlp"], batch))
    said = [find(each, "derived.status") for each in held]
    assert said == [ANSWERED, ANSWERED, FAILED, "evaluations without their call"]
    assert find(held[0], PRESETS["otlp"].fields["input_tokens"]) is None


TIMES = {"start": 260, "end": 275}


def test_a_batch_of_a_collectors_file() -> None:
    def span(number: int, **attributes: object) -> dict[str, object]:
        keyed = [{"key": key.replace("__", "."), "value": each} for key, each in attributes.items()]
        times = {
            "startTimeUnixNano": "1795799526000000000",
            "endTimeUnixNano": "1795799527500000000",
        }
        ids = {"traceId": f"{number:032x}", "spanId": f"{number:016x}"}
        return {**ids, **times, "name": "chat", "kind": 3, "attributes": keyed, "status": {}}

    chat = span(
        1,
        gen_ai__operation__name={"stringValue": "chat"},
        gen_ai__request__model={"stringValue": "large"},
        gen_ai__response__model={"stringValue": "large-2026-10-01"},
        gen_ai__usage__input_tokens={"intValue": "100"},
        gen_ai__usage__output_tokens={"intValue": "20"},
    )
    line = {"resourceSpans": [{"scopeSpans": [{"spans": [chat, span(2)]}]}]}
    assert recognise([line]) is PRESETS["otlp"]
    said = read("otlp", line)
    assert (said["status"], said["routed"], said["output_tokens"]) == (ANSWERED, "large", 20.0)
    assert (said["at"], said["seconds"]) == (1795799526.0, 1.5)
    assert said["trace"] == f"{1:032x}"
