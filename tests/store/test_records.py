"""The record structs at the edges: frozen, strict, and with ids that others may write anyhow."""

from __future__ import annotations

import msgspec
import pytest

from equipoise.store.records import ID_RULE, Id, Outcome, RuleRecord, readable

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
