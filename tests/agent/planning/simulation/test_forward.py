"""Simulated experiments against closed forms, against what theory forbids, and against symmetry."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from equipoise.agent.inference import levels
from equipoise.agent.inference.certificate import Sequence
from equipoise.agent.planning.simulation.forward import (
    Design,
    anytime_rows,
    contrast_variance,
    draw,
    expected_end,
    fewest_rewards,
    simulate,
    simulate_readings,
)

RATE = 0.5


def fixed_rows(variance, effect, alpha, power):
    """Requests after which a one-sided fixed-n z test at level alpha finds `effect`."""
    return variance * ((stats.norm.isf(alpha) + stats.norm.ppf(power)) / effect) ** 2


def design(values, paths=300, assignment="uniform", sequence="bounded", **changes):
    rows = np.tile(np.array(values, dtype=float), (paths, 1))
    models = rows.shape[1]
    plain = Design(
        assignment=assignment,
        sequence=Sequence(sequence),
        values=rows,
        variances=rows * (1 - rows),
        explained=np.zeros(paths),
        rate=np.full(paths, RATE),
        floor=np.full(paths, 0.1 / models),
        binary=True,
        costs=np.full(models, np.nan),
        lost=np.zeros(models),
        candidates=models + 1,
    )
    return replace(plain, **changes)


def ran(settings, seed=0, **options):
    return simulate(settings, np.random.default_rng(seed), **options)


def median(ends):
    return float(np.median(ends.requests))


@pytest.mark.parametrize("sequence", [each.value for each in Sequence])
@pytest.mark.parametrize("values", [(0.6, 0.5), (0.75, 0.65, 0.6), (0.3, 0.25, 0.1, 0.1)])
def test_median_lies_near_the_closed_form_and_above_the_fixed_n_test(sequence, values):
    """Seeded; the closed form is a rough one: within a factor of 2.5."""
    settings = design(values, sequence=sequence)
    found, models = median(ran(settings)), len(values)
    alpha = levels.decision_level(0.05, models)
    chance = np.full(models, RATE / models)
    variance = contrast_variance(settings.variances[0], chance, 0, 1)
    effect = values[0] - values[1]
    close = anytime_rows(variance, effect, alpha, 2.0 + models / RATE)
    assert close / 2.5 < found < close * 2.5
    # Power 1/2: the fixed-n test knows its sample size, so it is always ahead.
    assert found > fixed_rows(variance, effect, alpha, 0.5)


@pytest.mark.parametrize("assignment", ["uniform", "neyman", "top-two", "track-and-stop"])
@pytest.mark.parametrize("sequence", ["bounded", "per-model"])
def test_no_policy_beats_the_lower_bound(assignment, sequence):
    """Garivier & Kaufmann 2016: the mean of rewards to a sound decision is above the bound. Paths
    that never ended count with the last look, which only lowers the mean."""
    values = (0.7, 0.55, 0.4)
    settings = design(values, assignment=assignment, sequence=sequence)
    ends = ran(settings)
    mean = np.minimum(ends.requests, ends.last_look).mean() * RATE
    assert mean > fewest_rewards(settings.values[0], settings.variances[0], 0.0, 0.05)


def test_the_lower_bound_of_two_equal_arms_is_the_known_one():
    """Two Gaussian arms of variance v: shares 1/2 each, c = d^2 / (8 v)."""
    found = fewest_rewards(np.array([0.6, 0.5]), np.array([0.2, 0.2]), 0.0, 0.05)
    kl = 0.05 * np.log(0.05 / 0.95) + 0.95 * np.log(0.95 / 0.05)
    assert found == pytest.approx(kl * 8 * 0.2 / 0.01)
    assert fewest_rewards(np.array([0.5, 0.5]), np.array([0.2, 0.2]), 0.0, 0.05) == np.inf


def test_an_eighth_of_the_variance_and_half_the_effect():
    assert fixed_rows(2.0, 0.1, 0.05, 0.8) == pytest.approx(8 * fixed_rows(0.25, 0.1, 0.05, 0.8))
    assert fixed_rows(2.0, 0.05, 0.05, 0.8) == pytest.approx(4 * fixed_rows(2.0, 0.1, 0.05, 0.8))
    small, large = median(ran(design((0.55, 0.5)))), median(ran(design((0.6, 0.5))))
    assert 3.0 < small / large < 5.0, "four times as much, less what does not shrink"


def test_a_fixed_n_plan_reaches_its_power():
    """z test of 2,000 simulated experiments at the planned size: standard error 0.009."""
    rng, values = np.random.default_rng(2), np.array([0.58, 0.5])
    chance = np.full(2, RATE / 2)
    variance = contrast_variance(values * (1 - values), chance, 0, 1)
    rows = round(fixed_rows(variance, 0.08, 0.05, 0.8))
    settings = design(values, paths=2000)
    drawn = draw(settings, np.full(2000, float(rows)), np.tile(chance, (2000, 1)), rng)
    mean = drawn.total / drawn.count
    error = np.sqrt((mean * (1 - mean) / drawn.count).sum(axis=1))
    power = float(((mean[:, 0] - mean[:, 1]) / error > 1.645).mean())
    assert power == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize("sequence", [each.value for each in Sequence])
def test_equal_models_are_told_apart_no_oftener_than_delta(sequence):
    """400 paths at delta = 0.05: more than 33 wrong ones have probability 0.004 at a true 5%."""
    settings = design((0.5, 0.5, 0.5), paths=400, sequence=sequence)
    trail = np.repeat(np.geomspace(50, 40_000, 40).round()[:, None], 400, axis=1)
    ends = ran(settings, trail=trail, stop=False)
    assert np.isfinite(ends.requests).sum() <= 33


def test_sequences_read_on_shared_experiments_end_where_each_does_alone():
    """Seeded; medians of 600 paths have a relative standard error of about 3%."""
    settings = design((0.7, 0.5, 0.45), paths=600)
    asked = np.ones((3, 600), dtype=bool)
    asked[1, ::2] = False
    rng = np.random.default_rng(7)
    shared = simulate_readings(settings, list(Sequence), asked, rng)
    assert (shared[1].requests[::2] == 0).all()
    for sequence, ends, mine in zip(Sequence, shared, asked, strict=True):
        alone = ran(replace(settings, sequence=sequence), seed=8)
        assert np.median(ends.requests[mine]) == pytest.approx(median(alone), rel=0.12)
        spent = ends.counts[mine].sum(axis=1).mean()
        assert spent == pytest.approx(alone.counts.sum(axis=1).mean(), rel=0.12)
        assert (ends.model[mine] == 0).mean() > 0.97


def test_the_best_model_is_decided_for():
    ends = ran(design((0.4, 0.6, 0.5)))
    assert np.isfinite(ends.requests).all()
    assert (ends.model == 1).mean() > 0.97


@pytest.mark.parametrize("assignment", ["uniform", "top-two", "track-and-stop"])
def test_relabelling_models_changes_nothing_but_their_order(assignment):
    """Other random numbers, the same law: medians of 600 paths agree within 12%."""
    plain = ran(design((0.7, 0.55, 0.5), 600, assignment, "per-model"))
    turned = ran(design((0.5, 0.7, 0.55), 600, assignment, "per-model"))
    assert median(turned) == pytest.approx(median(plain), rel=0.12)
    spent = plain.counts[:, 0].mean() / plain.counts.sum(axis=1).mean()
    assert turned.counts[:, 1].mean() / turned.counts.sum(axis=1).mean() == pytest.approx(
        spent, abs=0.03
    )


def test_the_mirror_image_needs_as_much():
    """1 - R in place of R turns the order round and changes no requirement: within 12%."""
    values = np.array([0.7, 0.6])
    assert median(ran(design(1.0 - values[::-1], 600))) == pytest.approx(
        median(ran(design(values, 600))), rel=0.12
    )


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
def test_what_a_prediction_leaves_has_its_share_of_the_variance(share):
    """20,000 paths: the relative standard error of a variance is 0.01."""
    settings = design((0.6, 0.3), paths=20_000, explained=np.full(20_000, share))
    chance = np.tile([0.3, 0.2], (20_000, 1))
    drawn = draw(settings, np.full(20_000, 500.0), chance, np.random.default_rng(4))
    # Without a prediction nothing is taken out of what was drawn.
    off = drawn.total - drawn.count * settings.values
    residual = off if drawn.residual is None else drawn.residual
    scaled = residual / np.sqrt(drawn.count * settings.variances)
    np.testing.assert_allclose(scaled.var(axis=0), 1.0 - share, rtol=0.05)
    np.testing.assert_allclose(drawn.unexplained, 1.0 - share)


def test_a_half_width_is_what_the_boundary_then_has():
    settings = design((0.6, 0.5), paths=60)
    wide = median(ran(settings, width=0.2))
    narrow = median(ran(settings, width=0.1))
    assert 2.5 < narrow / wide < 4.5


def test_prediction_shortens_and_the_floor_only_matters_to_adaptive_policies():
    plain = median(ran(design((0.6, 0.5))))
    helped = median(ran(design((0.6, 0.5), explained=np.full(300, 0.5))))
    assert 0.4 < helped / plain < 0.8
    low, high = np.full(300, 0.002), np.full(300, 0.3)
    uniform = [median(ran(design((0.6, 0.5), floor=each))) for each in (low, high)]
    assert uniform[0] == uniform[1]
    values = (0.8, 0.5, 0.5)
    adaptive = [
        median(ran(design(values, assignment="top-two", floor=each))) for each in (low, high)
    ]
    assert adaptive[0] > adaptive[1]


def test_the_same_seed_gives_the_same_paths():
    first, again, other = (ran(design((0.6, 0.5)), seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.requests, again.requests)
    assert (first.requests != other.requests).any()


def test_dropped_paths_keep_their_ends():
    settings = design((0.6, 0.5), paths=100)
    ends = ran(settings)
    kept = ran(settings, stop=False)
    assert len(kept.trail) > len(ends.trail)
    np.testing.assert_allclose(ends.counts.sum(axis=1), ends.requests * RATE, rtol=0.35, atol=30)
    assert median(ends) == pytest.approx(median(kept), rel=0.25)


def test_looks_come_in_order_and_around_the_expected_end():
    settings = design((0.6, 0.5), paths=1)
    ends = ran(settings)
    assert (np.diff(ends.trail[:, 0]) >= 0).all()
    end = expected_end(settings)[0]
    assert ends.trail[0, 0] < 0.05 * end
