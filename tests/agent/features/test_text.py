"""The bounded statistics of texts, and their projections."""

from __future__ import annotations

from collections import Counter
from hashlib import blake2b
from math import log1p
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.agent.features import FeatureError, FeatureSchema, Ngrams, Text, Transform
from equipoise.agent.features.text import STATISTICS, projected

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
        ("headings", "# A\n#b\n## C\nd", 0.5),
        ("emphasis", "**a** b**", 5 / 9),
        ("paragraphs", "a\n\nb\n \nc", log1p(2) / log1p(1000)),
        ("refusal", "I’m sorry, but no", 1.0),
        ("refusal", "x" * 300 + " i cannot", 0.0),
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


GOLDEN = [
    [0.2738761901855469, -0.013946533203125, -0.2738761901855469],
    [0.10058975219726562, 0.38331031799316406, -0.03673744201660156],
]


def signs(tokens: str, bucket: int) -> list[int]:
    digest = blake2b(f"{tokens} {bucket}".encode(), digest_size=8, person=b"projection 1").digest()
    return [1 if byte >> place & 1 else -1 for byte in digest for place in range(7, -1, -1)]


@pytest.mark.parametrize(
    ("tokens", "longest", "text", "runs"),
    [
        ("words", 1, "The cat, the CAT.", [" the", " cat", " ,", " the", " cat", " ."]),
        ("words", 2, "to be\nto", [" to", " be", " \n", " to", " to be", " be \n", " \n to"]),
        ("shapes", 1, "Naïve 12 über_x -", [" A1", " 0", " a2", " -"]),
        ("words", 3, "one", [" one"]),
        ("shapes", 2, "", []),
    ],
)
def test_a_projection_is_the_signed_sum_of_its_runs(
    tokens: str, longest: int, text: str, runs: list[str]
) -> None:
    """Run by run and sign by sign, without an array."""
    expected = [0.0] * 64
    counts = Counter(crc32(run.encode()) % 4096 for run in runs)
    for bucket, count in counts.items():
        for column, sign in enumerate(signs(tokens, bucket)):
            expected[column] += sign * log1p(count) / 16
    found = projected(text, tokens, longest, 64)
    assert found == pytest.approx(expected, abs=1e-4)
    # A projection to fewer columns is the first of them.
    assert projected(text, tokens, longest, 5).tolist() == found[:5].tolist()


def test_a_projection_is_the_same_numbers_forever() -> None:
    """Sums of a store hold these numbers: another transform needs another `schema.TRANSFORM`."""
    text = "## Liste\n\n1. **Grüße**, 東京\n2. don't" + "é" * 3
    found = [projected(text, tokens, 2, 3).tolist() for tokens in ("words", "shapes")]
    assert found == GOLDEN


def test_projections_of_alike_texts_are_close() -> None:
    """With 64 signs the correlation of two texts is off by an eighth."""
    a, b = "the cat sat on the mat by the door", "the dog sat on the mat by the wall"
    c = "import numpy as np ; print ( np . zeros ( 3 ) )"
    one, two, other = (projected(text, "words", 1, 64) for text in (a, b, c))
    assert np.corrcoef(one, two)[0, 1] > 0.5 > abs(np.corrcoef(one, other)[0, 1])


def test_a_declared_projection_takes_texts_and_keeps_none_of_them() -> None:
    feature = Ngrams(name="answer", of="words", size=3, longest=2, max_chars=6, missing=0.5)
    transform = Transform(FeatureSchema(context=[feature]))
    assert transform.context_names == tuple(f"answer.words[{at}]" for at in range(3))
    rows = transform.context_rows([{"answer": "abc de fgh"}, {"answer": None}])
    assert rows.tolist() == [projected("abc de", "words", 2, 3).tolist(), [0.5] * 3]
    assert np.abs(rows).max() < 1.0
    with pytest.raises(FeatureError) as caught:
        transform.context_rows([{"answer": ["a secret of some length"]}])
    assert "secret" not in str(caught.value)
