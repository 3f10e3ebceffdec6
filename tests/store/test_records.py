"""The record structs at the edges: frozen, strict, and with ids that others may write anyhow."""

from __future__ import annotations

import msgspec
import pytest

from equipoise.store.records import (
    ID_RULE,
    LANE_BITS,
    MOST_LANES,
    Id,
    Outcome,
    RuleRecord,
    decision_id,
    decision_position,
    readable,
)

GIVEN = [
    "a",
    "d12",
    "model/v1.2:x@y+z-1_2",
    "A" * 200,
    "-xYz_9",
    "_private",
    "auth0|5f7c8ec7",
    "MMLUPro_computer science_9239",
    "dGVzdA==",
    "a'b\"c`d",
    "%2F?x=1&y=2#z",
    "=1+1",
    "<b>&amp;</b>",
    '{"id": [1]}',
    "None",
    "null",
    "..",
    " ",
    "用户-é-🙂",
    "\u4e00" * 200,
]


@pytest.mark.parametrize("text", GIVEN)
def test_ids(text: str) -> None:
    assert msgspec.convert(text, Id) == text


NO_IDS = ["", "a\n", "a\x00", "a\tb", "a\x85", "a\u2028b", "\u202ea", "\ufeffa", "a\x7f"]


@pytest.mark.parametrize("text", [*NO_IDS, "A" * 201])
def test_what_is_no_id(text: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(text, Id)


@pytest.mark.parametrize("text", NO_IDS)
def test_the_rule_of_ids_is_said_in_words(text: str) -> None:
    with pytest.raises(msgspec.ValidationError) as refused:
        msgspec.convert({"request_id": text}, Outcome)
    sentence = readable(refused.value)
    assert ID_RULE in sentence
    assert "regex" not in sentence
    assert sentence.endswith("at `$.request_id`")


def test_records_are_frozen_and_refuse_unknown_fields() -> None:
    rule = RuleRecord(rule_id="r", era=0, at=0.0, body="")
    with pytest.raises(AttributeError):
        rule.era = 1  # type: ignore[misc]
    with pytest.raises(msgspec.ValidationError, match="unknown field `rewards`"):
        msgspec.json.decode(b'{"decision_id": "d1", "rewards": 1}', type=Outcome)


@pytest.mark.parametrize(
    "position",
    [0, 7, 10**9, 10**12, (1 << LANE_BITS) - 1, (1 << LANE_BITS) + 5, MOST_LANES << LANE_BITS],
)
def test_a_decision_id_says_its_position(position: int) -> None:
    assert decision_position(decision_id(position)) == position


NO_DECISIONS = ["", "d", "1", "x1", "D1", "d01", "d-1", "d+1", "d 1", "d1 ", "d1_0", "d1.0", "d0x1"]
NO_DECISIONS += ["d1" + 18 * "0", "d" + 5000 * "1", "d\u0661", "d0-1", "d01-1", "d1-01", "d1-"]
NO_DECISIONS += ["d-1-1", f"d1-{1 << LANE_BITS}", f"d{MOST_LANES + 1}-0", "d1-1-1", "d1-1\n"]


@pytest.mark.parametrize("name", NO_DECISIONS)
def test_a_decision_has_one_spelling(name: str) -> None:
    assert decision_position(name) is None
