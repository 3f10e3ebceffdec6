"""The one word for what an experiment does: every combination of what may hold at once."""

from itertools import product

from equipoise.agent.answers.status import Activity, activity

STOPS = [each for each in Activity if each is not Activity.RANDOMIZING]


def test_the_first_that_holds_is_the_word() -> None:
    for holds in product((False, True), repeat=len(STOPS)):
        standing = [each for each, on in zip(STOPS, holds, strict=True) if on]
        flags = {each.value.replace("-", "_"): each in standing for each in STOPS}
        word = activity(**flags)
        assert word is (standing[0] if standing else Activity.RANDOMIZING)
        # It never says more than is done: one stop is enough for nothing to be randomized.
        assert word.randomizing is all(each is Activity.RAMP for each in standing)
        assert word.logging is not bool({"kill-switch", "passing-through"} & set(standing))
