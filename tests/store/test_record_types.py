"""The record structs at the edges: frozen, strict, and with ids that need no quoting."""

from __future__ import annotations

import msgspec
import pytest

from equipoise.store.records import Id, Outcome, RuleRecord


@pytest.mark.parametrize("text", ["a", "d12", "model/v1.2:x@y+z-1_2", "A" * 200])
def test_ids(text: str) -> None:
    assert msgspec.convert(text, Id) == text


@pytest.mark.parametrize("text", ["", "a b", "a\n", "a\x00", "-a", "é", "a'b", "A" * 201])
def test_what_is_no_id(text: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(text, Id)


def test_records_are_frozen_and_refuse_unknown_fields() -> None:
    rule = RuleRecord(rule_id="r", era=0, at=0.0, body="")
    with pytest.raises(AttributeError):
        rule.era = 1  # type: ignore[misc]
    with pytest.raises(msgspec.ValidationError, match="unknown field `rewards`"):
        msgspec.json.decode(b'{"decision_id": "d1", "rewards": 1}', type=Outcome)
