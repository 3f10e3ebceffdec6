"""Steps that change nothing any more are not taken, and every digit stays."""

from __future__ import annotations

import numpy as np
import pytest

from equipoise.agent.inference.mixture import _STEPS, _newton


def all_steps(at, step):
    for _ in range(_STEPS):
        at = step(at)
    return at


@pytest.mark.parametrize("seed", range(20))
def test_the_last_step_is_known(seed):
    """Roots of x^2 = c: some come to rest, some swing between neighbours, one is unknown."""
    rng = np.random.default_rng(seed)
    wanted = rng.random((3, 4)) * 10.0 ** rng.integers(-3, 4, (3, 4))
    if seed == 0:
        wanted[1, 1] = np.nan

    def step(at):
        return at - (at * at - wanted) / (2.0 * at)

    start = np.full(wanted.shape, 30.0)
    np.testing.assert_array_equal(_newton(start, step), all_steps(start, step))


@pytest.mark.parametrize("begin", range(_STEPS + 2))
def test_a_swing_ends_where_the_last_step_would(begin):
    """From step `begin` on the value goes to and fro."""
    calls = []

    def step(at):
        calls.append(0)
        return at + 1.0 if at < begin else 2.0 * begin + 1.0 - at

    start = np.array([0.0])
    wanted = all_steps(start, step)
    calls.clear()
    assert _newton(start, step) == wanted
    assert len(calls) == min(_STEPS, begin + 2)
