"""Numbers in words say neither more nor less than they are."""

from __future__ import annotations

import numpy as np
import pytest

from equipoise.agent.answers.wording import at_least, duration, figure, percent


def test_a_bound_is_never_more_than_it_is():
    rng = np.random.default_rng(5)
    for number in (10.0 ** rng.uniform(-12, 3, 2000)).tolist():
        assert 0.99 * number <= float(at_least(number)) <= number * (1 + 1e-9)


@pytest.mark.parametrize(
    ("hours", "words"),
    [
        (0.0, "less than a minute"),
        (1 / 60, "1 minute"),
        (0.5, "30 minutes"),
        (1.0, "1 hour"),
        (30.0, "30 hours"),
        (48.0, "2 days"),
        (17520.0, "2 years"),
        (1e7, "1,140 years"),
        (None, "longer than was simulated"),
    ],
)
def test_durations_are_words(hours, words):
    assert duration(hours) == words


def test_no_number_has_an_exponent():
    rng = np.random.default_rng(6)
    for number in (10.0 ** rng.uniform(-9, 12, 2000)).tolist():
        text = figure(number)
        assert "e" not in text
        assert float(text.replace(",", "")) == pytest.approx(number, rel=0.006)
    assert percent(0.99999999) != "100%"
