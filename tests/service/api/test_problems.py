"""What a client is told of a body that cannot be read."""

from __future__ import annotations

import msgspec
import pytest

from equipoise.agent.service.api.problems import refusal_of


@pytest.mark.parametrize("end", ['"}', ' and more", "number": 123456789}'])
def test_a_text_cut_inside_a_character_is_named(end: str) -> None:
    """A decoder calls half a surrogate pair near the end a body that is too short."""
    with pytest.raises(msgspec.DecodeError) as caught:
        msgspec.json.decode('{"prompt": "why \\ud83d' + end)
    refusal = refusal_of(caught.value)
    assert refusal.document.status == 400
    assert "cut inside a character" in refusal.document.detail
    with pytest.raises(msgspec.DecodeError) as caught:
        msgspec.json.decode("{]")
    assert "cut inside" not in refusal_of(caught.value).document.detail
