"""Pairs of live and replayed rows: each (context, model) once, whichever comes first."""

from __future__ import annotations

import numpy as np
import pytest

from equipoise.agent.moments.codec import decode, encode
from equipoise.agent.state.replay_index import MOST_AT_ONCE, WAITING, Pairs, ReplayIndex

MODELS, WIDTH = 3, 2


def phi_of(context, model):
    return np.column_stack([context + 0.5, 10.0 * model])


class Bench:
    """A matcher beside its index."""

    def __init__(self) -> None:
        self.pairs, self.index = Pairs(MODELS, WIDTH), ReplayIndex(MODELS, WIDTH)

    def replay(self, *rows: tuple[int, int]) -> None:
        context, model = np.array(rows).T
        self.index.add(context, model, phi_of(context, model))

    def live(self, *rows: tuple[int, int], replayed: bool = False) -> list[tuple[int, int]]:
        """The (context, model) of the pairs these live rows bring about."""
        context, model = np.array(rows, dtype=np.int64).reshape(-1, 2).T
        found, live, row = self.pairs.take(
            self.index, context, model, lambda at: phi_of(context[at], model[at]), replayed
        )
        np.testing.assert_array_equal(live, self.index.phi(row, found))
        return [(int(one - 0.5), int(m)) for one, m in zip(live[:, 0], found, strict=True)]


def test_a_live_row_meets_a_known_replay_once():
    bench = Bench()
    bench.replay((7, 1), (8, 2))
    assert bench.live((7, 1), (8, 1), (7, 1), (8, 2), (-1, 0)) == [(7, 1), (8, 2)]
    assert bench.live((7, 1), (8, 2)) == []


def test_a_live_row_waits_for_its_replay():
    bench = Bench()
    assert bench.live((5, 0), (5, 0), (6, 2), (-1, 1)) == []
    bench.replay((5, 0), (6, 1))
    assert bench.live((6, 1), replayed=True) == [(5, 0), (6, 1)]
    assert bench.pairs.arrays()["model"].tolist() == [-1, -1, 2]
    assert bench.live((5, 0), replayed=True) == []


def test_waiting_rows_without_their_replay_wait_on():
    bench = Bench()
    bench.live((5, 0), (6, 2))
    bench.replay((5, 0))
    assert bench.live(replayed=True) == [(5, 0)]
    bench.replay((6, 2))
    assert bench.live(replayed=True) == [(6, 2)]


def test_no_chunk_forms_more_than_its_share_and_what_waits_is_not_lost():
    bench = Bench()
    rows = [(context, 1) for context in range(2 * MOST_AT_ONCE + 22)]
    bench.live(*rows)
    bench.replay(*rows)
    assert bench.live(replayed=True) == rows[:MOST_AT_ONCE]
    bench.replay((999, 0))
    assert bench.live((999, 0)) == rows[MOST_AT_ONCE : 2 * MOST_AT_ONCE]
    assert bench.live((999, 0)) == [*rows[2 * MOST_AT_ONCE :], (999, 0)]
    assert bench.live() == []


def test_the_oldest_waiting_rows_make_room():
    bench = Bench()
    rows = [(context, 0) for context in range(WAITING + 10)]
    for start in range(0, len(rows), 700):
        bench.live(*rows[start : start + 700])
    bench.replay(*rows[:12])
    assert bench.live(replayed=True) == [(10, 0), (11, 0)]


def test_it_grows_with_the_index():
    bench = Bench()
    bench.replay(*[(context, 2) for context in range(500)])
    assert bench.live((499, 2), (3, 2), (499, 2)) == [(499, 2), (3, 2)]
    assert bench.live((3, 2)) == []


@pytest.mark.parametrize("rows", [5, 700, WAITING + 300])
def test_a_restart_from_bytes_and_a_copy_go_on_alike(rows):
    bench = Bench()
    waiting = [(context, context % MODELS) for context in range(rows)]
    for start in range(0, rows, 600):
        bench.live(*waiting[start : start + 600])
    bench.replay(*waiting[-4:-2], *waiting[-700:-100], (10**6, 0))
    bench.live((10**6, 0), replayed=True)
    twin = Bench()
    twin.index = bench.index
    twin.pairs.load(decode(encode(bench.pairs.arrays()))[0])
    copied = Bench()
    copied.index, copied.pairs = bench.index, bench.pairs.copy()
    bench.replay(*waiting[-6:])
    said = [one.live((10**6, 0), (3, 1)) for one in (bench, twin, copied)]
    then = [one.live((7, 1), replayed=True) for one in (bench, twin, copied)]
    assert said[0] == said[1] == said[2]
    assert then[0] == then[1] == then[2]
    assert bool(said[0]) == (rows > 5)
    assert len(said[0] + then[0]) >= 2
    states = [encode(one.pairs.arrays()) for one in (bench, twin, copied)]
    assert states[0] == states[1] == states[2]


def test_a_state_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="state of pairs has"):
        Pairs(MODELS, WIDTH).load(Pairs(MODELS, WIDTH + 1).arrays())
