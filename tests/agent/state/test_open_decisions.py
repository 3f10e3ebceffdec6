"""Open decisions in a file: the same rows, the same bytes, and memory that is given back."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from equipoise.agent.agent import Agent
from equipoise.agent.moments.codec import decode
from equipoise.agent.state import open_decisions
from equipoise.agent.state.open_decisions import OpenDecisions
from equipoise.store.batches import DecisionBatch
from equipoise.store.memory import MemoryStore
from equipoise.store.sqlite import SqliteStore
from tests.agent.traffic import KEY, Traffic, config


def batch(first: int, count: int, rng: np.random.Generator) -> DecisionBatch:
    return DecisionBatch(
        number=np.arange(first, first + count),
        unit=rng.integers(0, 99, count),
        context=np.full(count, -1),
        at=rng.random(count),
        x=rng.random((count, 3)),
        routed=rng.integers(0, 2, count),
        rate=rng.random(count),
        probabilities=np.full((count, 2), 0.5),
        uniform=rng.random(count),
        model=rng.integers(0, 2, count),
        randomized=np.ones(count, dtype=bool),
        capped=np.zeros(count, dtype=bool),
        rule_id="r",
        era=0,
    )


def filled(table: OpenDecisions, rounds: int) -> Iterator[OpenDecisions]:
    """Decisions, of which the older half is closed and leaves now and then; after each round."""
    rng = np.random.default_rng(5)
    every = np.ones(2, dtype=bool)
    for _ in range(rounds):
        table.insert(batch(table.next, 700, rng), 0, 0.01, table.next - 2000, every)
        done = max(table.size - 9000, 0)
        table.folded[:done] = table.has_reward[:done] = True
        table.reward[: table.size] += 1.0
        table.release()
        yield table


def same(table: OpenDecisions, other: OpenDecisions) -> None:
    assert (table.base, table.size) == (other.base, other.size)
    columns = other.arrays(other.base)
    for name, column in table.arrays(table.base).items():
        np.testing.assert_array_equal(columns[name], column, err_msg=name)


def test_a_table_in_a_file_holds_what_one_in_memory_holds(tmp_path: Path) -> None:
    pairs = zip(
        filled(OpenDecisions(3, 2, 2), 40),
        filled(OpenDecisions(3, 2, 2, most_bytes=1 << 20, folder=tmp_path), 40),
        strict=True,
    )
    for plain, filed in pairs:
        same(plain, filed)
    assert filed._file is not None
    assert plain._file is None
    assert plain.base > 0
    assert list(tmp_path.iterdir()) == []


def test_the_models_of_decisions_that_left_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_decisions, "LEFT", 3000)
    table = OpenDecisions(3, 1, 2)
    rng, every, models = np.random.default_rng(5), np.ones(2, dtype=bool), np.zeros(0, np.int64)
    for _ in range(20):
        one = batch(table.next, 700, rng)
        table.insert(one, 0, 0.01, table.next - 100, every)
        models = np.concatenate([models, one.model])
        table.folded[: max(table.size - 100, 0)] = True
        first = max(0, table.base - 3000)
        numbers = rng.integers(-5, table.next + 5, 300)
        known = (numbers >= first) & (numbers < table.next)
        found, is_known = table.assigned(numbers)
        assert (is_known == known).all()
        assert (found[known] == models[numbers[known]]).all()
        assert not found[~known].any()
    assert table.base > 4000
    table.load(table.base, table.arrays(table.base))
    assert table.assigned(np.array([table.base - 1, table.base]))[1].tolist() == [False, True]


def test_a_file_that_finds_no_room_leaves_the_table_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    *_, plain = filled(OpenDecisions(3, 2, 2), 20)
    *_, other = filled(OpenDecisions(3, 2, 2, most_bytes=1 << 20, folder=tmp_path), 20)
    assert other._file is None
    same(plain, other)


def resident() -> int:
    """Bytes."""
    found = re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def test_memory_follows_the_budget_and_not_the_decisions(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    table = OpenDecisions(50, 50, 2, most_bytes=1 << 20, folder=tmp_path)
    every = np.ones(2, dtype=bool)
    before = resident()
    for _ in range(100):
        table.insert(batch_of(table.next, 2000, rng), 0, 0.01, 0, every)
        table.release()
    assert table.size * table.row_bytes > 150e6
    assert resident() - before < 60e6


def batch_of(first: int, count: int, rng: np.random.Generator) -> DecisionBatch:
    made = batch(first, count, rng)
    return DecisionBatch(
        **{
            **{name: getattr(made, name) for name in made.__dataclass_fields__},
            "x": rng.random((count, 50)),
        }
    )


def test_an_agent_whose_table_lies_in_a_file_has_the_state_of_one_in_memory(
    tmp_path: Path,
) -> None:
    """Rewards of every third row only, so that most rows stay open; through a restart too."""
    states = []
    for name, most in (("plain", None), ("file", 1 << 16)):
        with SqliteStore(tmp_path / f"{name}.db") as store:
            agent = Agent(config(), store, KEY, open_bytes=most)
            traffic = Traffic(np.random.default_rng(3))
            for number in range(40):
                made = agent.decide(traffic.requests(200))
                if number % 3 == 0:
                    agent.observe(traffic.outcomes(made))
            assert (agent.light.pending._file is not None) is (most is not None)
            state = agent.fold.to_bytes()
            file = io.BytesIO()
            assert agent.fold.write(file) == len(state)
            assert file.getvalue() == state
            agent.checkpoint()
            again = Agent(config(), store, None, open_bytes=most)
            assert again.fold.to_bytes() == state
            states.append(state)
    assert states[0] == states[1]
    assert decode(states[0])[0]["pending.rate"].shape[0] > 4096


def test_a_store_without_a_path_keeps_the_table_in_memory() -> None:
    agent = Agent(config(), MemoryStore(), KEY, open_bytes=1)
    agent.decide(Traffic(np.random.default_rng(3)).requests(9000))
    assert agent.light.pending._file is None


@pytest.mark.parametrize("piece", [1, 4, 16, 1000])
def test_the_first_open_row_is_found_piece_by_piece(
    monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    *_, table = filled(OpenDecisions(3, 2, 2), 2)
    monkeypatch.setattr("equipoise.agent.state.open_decisions.BLOCK", piece)
    for open_row in (0, 1, 7, 8, 15, 16, 17, 31, table.size - 1, table.size):
        table.has_reward[: table.size] = True
        table.has_reward[open_row:][:1] = False
        for start in (0, 3, 16):
            closed = table.closed(start)
            wanted = len(closed) if closed.all() else int(np.argmin(closed))
            assert table.passed(start) == wanted


def test_rows_that_have_left_are_blank_before_they_are_used_again() -> None:
    rng, every = np.random.default_rng(6), np.ones(2, dtype=bool)
    tables = [OpenDecisions(3, 2, 2, 1, capacity=size) for size in (400, 4000)]
    for _ in range(12):
        part = batch(tables[0].next, 70, rng)
        for table in tables:
            table.insert(part, 0, 0.01, table.next, every)
            rows = slice(table.size - 70, table.size)
            assert not table.summed[rows].any()
            assert np.isnan(table.metrics[rows]).all()
            for column in table._columns.values():
                if column.dtype == bool:
                    column[rows] ^= True
            table.reward[rows] = table.y[rows] = table.metrics[rows] = 3.0
            table.reward_at[rows] = table.until[rows] = 4.0
            table.folded[rows], table.waits[rows] = True, False
    small, large = tables
    assert small.base > large.base
    first = small.base - large.base
    for name, column in small._columns.items():
        np.testing.assert_array_equal(
            column[: small.size], large._columns[name][first : large.size], err_msg=name
        )
