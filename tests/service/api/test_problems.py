"""Refusals name the field where it stands, and repeat of what was sent no more than short words."""

from __future__ import annotations

import msgspec
import pytest

from equipoise.agent.service.api.problems import refusal_of
from equipoise.store.records import Outcome


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ({"attempts": [{"model": "a", "speed": 1}]}, "attempts[0]", "unknown field `speed` - at"),
        ({"speed": 1}, None, "unknown field `speed`"),
        ({"attempts": [{"my own words": 1}]}, "attempts[0]", "a name of 12 characters - at"),
        ({"my own` - at `$words of mine": 1}, None, "an unknown field, a name of 28 characters"),
    ],
)
def test_an_unknown_field_is_named_where_it_stands(body: object, field: str | None, words: str):
    with pytest.raises(msgspec.ValidationError) as raised:
        msgspec.convert(body, Outcome)
    document = refusal_of(raised.value).document
    assert document.field == field
    assert words in document.detail
    assert "own" not in document.detail
