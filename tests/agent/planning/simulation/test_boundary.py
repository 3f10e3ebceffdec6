"""The batched boundaries are the certified ones, and hope is necessary for a decision."""

from __future__ import annotations

import numpy as np
import pytest

from equipoise.agent.inference import asymptotic, levels, per_model
from equipoise.agent.inference.certificate import RARER, Sequence
from equipoise.agent.inference.mixture import contrast_bounds
from equipoise.agent.inference.per_model import RewardMoments
from equipoise.agent.inference.score import ScoreMoments
from equipoise.agent.planning.simulation.boundary import boundary, needed_caps
from equipoise.agent.planning.simulation.forward import Design, advance
from equipoise.agent.planning.simulation.paths import PathState

PATHS, MODELS, RATE = 40, 3, 0.5


def advanced(sequence=Sequence.ASYMPTOTIC, rows=(200, 400, 600), seed=3, lost=(0.0, 0.0, 0.0)):
    lost = np.array(lost)
    values = np.tile([0.75, 0.5, 0.45], (PATHS, 1))
    design = Design(
        assignment="top-two",
        sequence=sequence,
        values=values * (1.0 - lost),
        variances=values * (1 - values),
        explained=np.zeros(PATHS),
        rate=np.full(PATHS, RATE),
        floor=np.full(PATHS, 0.05),
        binary=True,
        costs=np.full(MODELS, np.nan),
        lost=lost,
        candidates=MODELS + 1,
    )
    caps = needed_caps(sequence, MODELS, design.rate)
    state, rng = PathState.empty(PATHS, MODELS, len(caps)), np.random.default_rng(seed)
    for count in rows:
        advance(design, state, np.full(PATHS, float(count)), caps, rng)
    return state, caps


def score_of(state, path):
    """The sums of one path as the certified code keeps them."""
    return ScoreMoments(
        state.rows[path : path + 1],
        *state.ends[:, :, path],
        *state.end_squares[:, :, path],
        state.cross[:, path],
    )


def pairs():
    paths, a, b = np.meshgrid(np.arange(PATHS), np.arange(MODELS), np.arange(MODELS), indexing="ij")
    other = a != b
    return paths[other], a[other], b[other]


LOST = [(0.0, 0.0, 0.0), (0.02, 0.1, 0.3)]
"""Shares of requests whose reward never comes and counts as the worst case."""


@pytest.mark.parametrize("lost", LOST)
def test_bounded_is_the_certified_bound(lost):
    state, caps = advanced(lost=lost)
    paths, a, b = pairs()
    mine = boundary(Sequence.BOUNDED, 0.01, 0.01, 1.0, caps).lower(state, paths, a, b)
    for path in range(PATHS):
        theirs = contrast_bounds(score_of(state, path), tuple(caps[:, path]), MODELS, alpha=0.01)
        here = paths == path
        np.testing.assert_allclose(mine[here], theirs[a[here], b[here]], atol=1e-9)


@pytest.mark.parametrize("lost", LOST)
def test_per_model_table_is_the_certified_bound_to_a_thousandth(lost):
    state, caps = advanced(Sequence.PER_MODEL, lost=lost)
    paths, a, b = pairs()
    mine = boundary(Sequence.PER_MODEL, 0.01, 0.01, 1.0, caps).lower(state, paths, a, b)
    alpha = levels.split_level(0.01)[0]
    moments = RewardMoments(state.count, state.total, state.total + state.lost, *state.own)
    theirs = per_model.contrast_bounds(moments, alpha)[paths, a, b]
    np.testing.assert_allclose(mine, theirs, atol=1e-3)


def test_asymptotic_is_the_certified_bound_once_open_and_the_bounded_one_before():
    state, caps = advanced()
    paths, a, b = pairs()
    found = boundary(Sequence.ASYMPTOTIC, 0.01, 0.002, 2000.0, caps)
    found.update(state)
    mine = found.lower(state, paths, a, b)
    preferred, fallback = levels.split_level(0.01)
    before = boundary(Sequence.BOUNDED, fallback, fallback, 1.0, caps).lower(state, paths, a, b)
    opened = state.rarer() >= RARER
    assert opened.any()
    assert not opened.all()
    opening_level = levels.split_level(0.002)[0]
    for path in range(PATHS):
        here = paths == path
        if not opened[path]:
            np.testing.assert_allclose(mine[here], before[here])
            continue
        moments = score_of(state, path)
        opening = asymptotic.Opening.tuned(moments, 2000.0, opening_level)
        theirs = asymptotic.contrast_bounds(moments, opening, preferred)
        np.testing.assert_allclose(mine[here], theirs[a[here], b[here]], atol=1e-9)


@pytest.mark.parametrize("sequence", list(Sequence))
@pytest.mark.parametrize(("above", "alpha"), [(0.0, 0.05), (-0.1, 0.05), (0.0, 1e-12)])
@pytest.mark.parametrize("lost", [(0.0, 0.0, 0.0), (0.005, 0.01, 0.005)])
def test_whoever_may_be_decided_is_hopeful(sequence, above, alpha, lost):
    seen = 0
    for rows in ((60, 60), (200, 400), (1000, 1000), (2000, 1000), (2500, 1500)):
        state, caps = advanced(sequence, rows, lost=lost)
        found = boundary(sequence, alpha, 0.01, 2000.0, caps)
        found.update(state)
        paths, a, b = pairs()
        decided = found.lower(state, paths, a, b) > above
        hopeful = found.hopeful(state, paths, a, b, np.full(1, above))
        assert not (decided & ~hopeful).any()
        beyond = found.beyond(state, paths, a, b, np.full(1, above))
        np.testing.assert_array_equal(beyond, decided)
        seen += int(decided.sum())
        assert hopeful.mean() < 0.95, "a condition that always holds spares nothing"
    assert seen > 10
