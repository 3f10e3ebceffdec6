"""Reasons of pauses and ends stand in logs, terminals and pages: one line, nothing invisible."""

from __future__ import annotations

import msgspec
import pytest

from equipoise.agent.service.api.schema import EndRequest, PauseRequest


@pytest.mark.parametrize("body", [PauseRequest, EndRequest])
@pytest.mark.parametrize(
    "text", ["a\n", "a\nb", "\x1b[2J", "\u202eeno", "\u2028", "\x85", "x" * 501]
)
def test_a_reason_is_one_printable_line(body, text):
    with pytest.raises(msgspec.ValidationError, match=r"\$\.reason"):
        msgspec.json.decode(msgspec.json.encode({"reason": text}), type=body)


@pytest.mark.parametrize("text", ["", "large won", "größer, 50 % teurer", "x" * 500])
def test_a_reason_may_be_in_any_language_or_left_out(text):
    assert (
        msgspec.json.decode(msgspec.json.encode({"reason": text}), type=EndRequest).reason == text
    )
