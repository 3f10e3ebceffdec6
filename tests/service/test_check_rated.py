"""What `serve --check` says of rewards that never come."""

import pytest

from equipoise.agent.config import ConfigError
from equipoise.agent.config.file import file_from_dict
from equipoise.agent.service.run import rated_sentences


def file_of(reward):
    return file_from_dict(
        {
            "name": "s",
            "models": [{"name": "a"}, {"name": "b"}],
            "reward": {"window": 60.0, **reward},
        }
    )


def test_the_check_says_whom_the_answer_is_about():
    (rated,) = rated_sentences(file_of({"missing": "rated", "rated_share": 0.08}))
    assert rated.startswith("answers are about those who rate: what the others think")
    (asked,) = rated_sentences(file_of({"missing": "asked", "ask": 0.25}))
    assert "those who rate when they are asked, and 25% are asked" in asked
    assert not rated_sentences(file_of({"missing": 0.0}))
    assert "warning" in rated_sentences(file_of({"rated_share": 0.08}))[0]


@pytest.mark.parametrize(
    ("reward", "fix"),
    [
        ({"missing": "asked"}, "set it to the share of users to ask"),
        ({"missing": "rated", "ask": 0.25}, "leave it out, or set missing = 'asked'"),
    ],
)
def test_asking_and_its_share_belong_together(reward, fix):
    with pytest.raises(ConfigError, match=fix):
        file_of(reward)
