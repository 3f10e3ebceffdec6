"""The sums of a simulated step are those of its single rows, by the certified code itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from equipoise.agent.inference.per_model import RewardMoments
from equipoise.agent.inference.score import Rows, ScoreMoments, Tuning
from equipoise.agent.planning.simulation.paths import Draws, PathState

VALUES = np.array([0.7, 0.4, 0.55])
CAPS = (0.0, 3 / 0.4, np.inf)
STEPS = ((300, [0.4, 0.1, 0.5]), (200, [0.02, 0.9, 0.08]), (500, [0.6, 0.3, 0.1]))
RATE = 0.4


def both(rewards, seed=1, lost=0.0):
    """The same rows added up one by one and as steps. lost: share of rewards that never come."""
    rng = np.random.default_rng(seed)
    score, own = ScoreMoments.empty(len(CAPS), 4), RewardMoments.empty(3)
    state = PathState.empty(1, 3, len(CAPS))
    for count, pi in STEPS:
        chance = RATE * np.array(pi)
        randomized = rng.random(count) < RATE
        model = rng.choice(3, size=count, p=pi)
        reward = rewards(rng, model)
        known = np.random.default_rng(count).random(count) >= lost
        # The agent's running means are those of the rewards that came.
        mu = (own.low + 0.5) / (own.count - (own.high - own.low) + 1.0)
        rows = Rows.of(
            np.full(count, RATE),
            np.repeat(np.array([pi]), count, axis=0),
            randomized,
            model,
            np.zeros(count, dtype=int),
            np.full((count, 3), np.nan),
            reward,
            known,
        )
        tuning = Tuning(np.array([*mu, 0.5]), np.zeros(4))
        score.update(rows, tuning, score.centres(), CAPS)
        own.update(own.centres(), model[randomized], rows.low[randomized], rows.high[randomized])

        def drawn(ends, values, model=model, randomized=randomized, count=count, known=known):
            each = [ends[randomized & (model == m)] for m in range(3)]
            off = [[(part - v).sum() for part, v in zip(each, values, strict=True)]]
            squares = [[((part - v) ** 2).sum() for part, v in zip(each, values, strict=True)]]
            return Draws(
                rows=np.array([float(count)]),
                values=values[None, :],
                count=np.array([[float(len(part)) for part in each]]),
                total=np.array([[part.sum() for part in each]]),
                scatter=np.array(squares),
                residual=np.array(off),
                unexplained=np.ones(1),
                lost=np.array(
                    [[float((~known)[randomized & (model == m)].sum()) for m in range(3)]]
                ),
            )

        low, high = (
            drawn(rows.low, VALUES * (1 - lost)),
            drawn(rows.high, VALUES * (1 - lost) + lost),
        )
        state.step(
            replace(low, high=high) if lost else low, chance[None, :], np.array(CAPS)[:, None]
        )
    return score, own, state


def binary(rng, model):
    return (rng.random(len(model)) < VALUES[model]).astype(float)


def graded(rng, model):
    return rng.beta(5 * VALUES[model], 5 * (1 - VALUES[model]))


@pytest.mark.parametrize("lost", [0.0, 0.3])
@pytest.mark.parametrize("rewards", [binary, graded])
def test_steps_add_up_to_the_sums_of_single_rows(rewards, lost):
    score, own, state = both(rewards, lost=lost)
    for sums, ends in ((state.ends, "{}"), (state.end_squares, "{}_squares")):
        for mine, side in zip(sums[:, :, 0], ("low", "high"), strict=True):
            name = ends.format(side)
            theirs = getattr(score, name)[:, :3]
            np.testing.assert_allclose(mine, theirs, rtol=1e-9, err_msg=name)
    cross = score.cross[:, :3, :3]
    off = ~np.eye(3, dtype=bool)
    np.testing.assert_allclose(state.cross[:, 0][:, off], cross[:, off], rtol=1e-9)
    np.testing.assert_allclose(state.count[0], own.count)
    np.testing.assert_allclose(state.total[0], own.low)
    np.testing.assert_allclose(state.lost[0], own.high - own.low, atol=1e-9)
    np.testing.assert_allclose(state.mean_ends()[1][0], own.high / own.count)
    np.testing.assert_allclose(state.rarer()[0], own.rarer().min())
    np.testing.assert_allclose(state.own[:, 0], [own.low_squares, own.high_squares], rtol=1e-9)


def test_plain_moments_are_those_of_the_rewards():
    _, own, state = both(graded)
    mean = own.low / own.count
    np.testing.assert_allclose(state.means()[0], mean)
    np.testing.assert_allclose(state.rarer()[0], own.rarer().min())
    rng = np.random.default_rng(1)
    seen = [[], [], []]
    for count, pi in STEPS:
        randomized = rng.random(count) < RATE
        model = rng.choice(3, size=count, p=pi)
        reward = graded(rng, model)
        for m in range(3):
            seen[m] += reward[randomized & (model == m)].tolist()
    np.testing.assert_allclose(state.variances()[0], [np.var(each, ddof=1) for each in seen])


def test_taking_paths_keeps_their_sums():
    _, _, state = both(binary)
    doubled = state.take(np.array([0, 0]))
    assert doubled.cross.shape == (3, 2, 3, 3)
    np.testing.assert_array_equal(doubled.ends[:, :, 1], state.ends[:, :, 0])
    np.testing.assert_array_equal(doubled.own[:, 1], state.own[:, 0])


def test_a_prediction_takes_its_share_out_of_the_squares():
    def ran(explained):
        state = PathState.empty(1, 3, 3)
        rows = np.array([1000.0])
        count = np.full((1, 3), 100.0)
        scatter = count * VALUES * (1 - VALUES)
        left = np.array([1.0 - explained])
        state.count += 1e6
        state.total += 1e6 * VALUES
        zero = np.zeros((1, 3))
        draws = Draws(rows, VALUES[None, :], count, count * VALUES, scatter, left, zero)
        state.step(draws, np.full((1, 3), 0.1), np.array(CAPS)[:, None])
        paths, a, b = np.array([0]), np.array([0]), np.array([1])
        return [state.contrast(cap, paths, a, b)[1][0] for cap in range(3)]

    plain, half = ran(0.0), ran(0.5)
    assert half[0] == pytest.approx(plain[0]), "without a control variate nothing is predicted"
    assert half[2] == pytest.approx(plain[2] / 2, rel=0.1)
