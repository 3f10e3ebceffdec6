"""The filter never forgets a name, and rarely suspects a new one; a store that uses it errs not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.store.errors import ContradictionError
from equipoise.store.journal import JournaledStore
from equipoise.store.memory import BloomFilter

SEEN = BloomFilter()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.db"


@given(st.lists(st.text(max_size=20), max_size=50))
def test_a_name_that_was_added_is_in_it(names: list[str]) -> None:
    SEEN.add(names)
    assert all(name in SEEN for name in names)


def test_a_new_name_is_rarely_suspected() -> None:
    """200,000 names of 2^27 bits: the chance of a false alarm is 9e-8; 1 in 50,000 would fail."""
    seen = BloomFilter()
    seen.add(f"known-{number}" for number in range(200_000))
    assert all(f"known-{number}" in seen for number in range(0, 200_000, 7))
    assert sum(f"new-{number}" in seen for number in range(50_000)) <= 1


def test_names_from_before_the_start_are_known_while_and_after_they_are_read(
    path: Path, author: Any
) -> None:
    names = [f"r{number}" for number in range(3000)]
    with JournaledStore(path) as store:
        store.append(author.decisions(len(names), request_id=names))
    with JournaledStore(path) as store:
        assert store.find_requests([names[7], "new"]) == {names[7]: 7}
        store._learner.join(20)
        assert store._filters_whole
        for number in range(0, 3000, 17):
            assert store.find_requests([names[number]]) == {names[number]: number}
        assert store.find_requests(["new", names[-1]]) == {names[-1]: 2999}
        store.append(author.decisions(1, request_id=["new"]))
        assert store.settle(seconds=10)
        assert store.find_requests(["new"]) == {"new": 3000}
        with pytest.raises(ContradictionError, match="'r5'"):
            store.append(author.decisions(1, request_id=[names[5]]))


def test_a_store_that_is_closed_while_names_are_read(path: Path, author: Any) -> None:
    names = [f"r{number}" for number in range(3000)]
    with JournaledStore(path) as store:
        store.append(author.decisions(len(names), request_id=names))
    JournaledStore(path).close()
    with JournaledStore(path) as store:
        assert store.decisions == 3000
