"""The sums of the crossing study against the shipped score: a study of its own is no proof."""

import crossing_study as study
import numpy as np

from equipoise.agent.inference.mixture import contrast_bound
from equipoise.agent.inference.score import Rows, ScoreCentres, ScoreMoments, Tuning

CAPS = np.array([0.0, 12.5])


def test_sums_are_those_of_the_shipped_score():
    values, rows = np.array([0.3, 0.5, 0.5, 0.9, 0.55]), 400
    study_rows, study.ROWS = study.ROWS, rows
    try:
        sums, squares = study.pairs(values, np.array([rows]), CAPS, np.random.default_rng(3))
    finally:
        study.ROWS = study_rows
    # The same draws, as the shipped rows.
    rng = np.random.default_rng(3)
    index = rng.random(rows) * len(values) / study.RATE
    reward = rng.random(rows)[:, None] < values
    randomized = index < len(values)
    model = np.where(randomized, index, 0.0).astype(int)
    batch = Rows.of(
        np.full(rows, study.RATE),
        np.full((rows, 5), 0.2),
        randomized,
        model,
        np.zeros(rows, dtype=int),
        np.zeros((rows, 5)),
        reward[np.arange(rows), model].astype(float),
        np.ones(rows, dtype=bool),
    )
    moments = ScoreMoments.empty(2, 6)
    expected = np.append(values, values[0])
    centres = ScoreCentres(np.tile(expected, (2, 1)), np.tile(expected, (2, 1)))
    moments.update(batch, Tuning(expected, np.zeros(6)), centres, tuple(CAPS))
    bound = contrast_bound(CAPS, 6, 5)
    total = (moments.low[:, :, None] - moments.high[:, None, :]) / bound
    spread = moments.contrast_squares() / bound**2
    off = ~np.eye(5, dtype=bool)
    for ours, shipped in ((sums[0], total), (squares[0], spread)):
        theirs = np.moveaxis(shipped[:, :5, :5], 0, -1)
        np.testing.assert_allclose(ours[off], theirs[off], rtol=1e-9, atol=1e-9)
