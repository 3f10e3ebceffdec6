"""The bounded statistics of texts."""

from __future__ import annotations

from math import log1p

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.agent.features import FeatureSchema, Text, Transform
from equipoise.agent.features.kinds import STATISTICS

TEXTS = st.text(max_size=60) | st.text(alphabet="aB1 \n`-?.é", max_size=60)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("characters", "abc", log1p(3) / log1p(1000)),
        ("words", " two  words\n", log1p(2) / log1p(1000)),
        ("lines", "a\nb\nc", log1p(3) / log1p(1000)),
        ("code", "ab```cde```gh", 3 / 13),
        ("code", "a```cd", 2 / 6),
        ("digits", "a1b2", 0.5),
        ("digits", "é1", 0.5),
        ("uppercase", "AbcD 12!", 0.5),
        ("uppercase", "Éé", 0.5),
        ("non_ascii", "aé", 0.5),
        ("question", "why?", 1.0),
        ("question", "no", 0.0),
        ("list_items", "Take:\n- one\n 2. two\n-not", 0.5),
    ],
)
def test_by_definition(name: str, text: str, expected: float) -> None:
    assert STATISTICS[name](text, 1000) == pytest.approx(expected, abs=1e-15)


def test_an_empty_text_is_zero_throughout() -> None:
    assert {statistic("", 10) for statistic in STATISTICS.values()} == {0.0}


@settings(deadline=None, max_examples=150)
@given(TEXTS, st.sampled_from(sorted(STATISTICS)))
def test_every_statistic_lies_between_0_and_1(text: str, name: str) -> None:
    assert 0.0 <= STATISTICS[name](text[:50], 50) <= 1.0


@settings(deadline=None, max_examples=100)
@given(st.text(alphabet=st.characters(max_codepoint=127), min_size=1, max_size=60))
def test_counting_bytes_is_counting_characters(text: str) -> None:
    letters = sum(map(str.isalpha, text))
    assert STATISTICS["digits"](text, 99) == sum(map(str.isdigit, text)) / len(text)
    capitals = sum(map(str.isupper, text)) / letters if letters else 0.0
    assert STATISTICS["uppercase"](text, 99) == capitals


def test_only_the_first_characters_count() -> None:
    text = Text(name="t", statistics=["characters", "digits", "question"], max_chars=4)
    transform = Transform(FeatureSchema(context=[text]))
    assert transform.context_names == ("t.characters", "t.digits", "t.question")
    short, long = transform.context_rows([{"t": "ab12"}, {"t": "ab12" + "9?" * 1000}])
    assert short.tolist() == long.tolist() == [1.0, 0.5, 0.0]
