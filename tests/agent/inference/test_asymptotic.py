"""The asymptotic sequence: published numbers, roots found another way, and where it is tightest."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import integrate, optimize, stats

from equipoise.agent.inference.asymptotic import (
    Opening,
    contrast_bounds,
    one_sided_half_width,
    tuned_rho,
    value_bounds,
)
from equipoise.agent.inference.score import ScoreMoments
from tests.agent.inference.rows import MODELS, columns, tuning


def half_width(rows, squares, rho, alpha):
    """(...) the two-sided half-width as METHOD states it; squares is V = t sigma^2."""
    spread = squares + 1.0 / rho**2
    return np.sqrt(2.0 * spread * np.log(np.sqrt(spread) * rho / alpha)) / rows


# (v, alpha, v_opt, two-sided, one-sided): `normal_mixture_bound(v, alpha, v_opt, alpha, ...)` of
# confseq 0.0.11 (Howard, Waudby-Smith & Ramdas), its own C++ source compiled for these numbers.
# The third row is also among the values its tests state: 30.35209 and 27.66071.
CONFSEQ = [
    (1, 0.05, 100, 9.0843794373, 8.8832592727),
    (20, 0.05, 100, 15.0437632471, 13.9591127331),
    (100, 0.05, 100, 30.3520899038, 27.6607088307),
    (3000, 0.05, 100, 185.8745633490, 172.4269855460),
    (1e6, 0.05, 100, 4156.1357079646, 3957.3943010220),
    (20, 0.0025, 100, 18.9387053993, 18.1293706487),
    (100, 0.0025, 100, 39.6726062600, 37.7545463764),
    (1e6, 0.0025, 100, 4885.7747884684, 4730.3003636272),
    (1, 0.4, 100, 8.1618663370, 10.2392347292),
    (100, 0.4, 100, 20.7261661219, 17.0912210573),
    (100, 0.05, 2500, 50.9995996990, 49.0413274407),
    (3000, 0.05, 2500, 166.3250008871, 151.5565779465),
    (3000, 0.0025, 2500, 217.3830441840, 206.8780925332),
    (1e6, 0.0025, 2500, 4544.8288869157, 4377.2775309270),
]


@pytest.mark.parametrize(("v", "alpha", "v_opt", "two", "one"), CONFSEQ)
def test_widths_are_those_published_in_confseq(v, alpha, v_opt, two, one):
    """The sum's bound is t times the half-width; confseq's rho is our 1 / rho^2."""
    rows, v_opt = 17.0, np.array(float(v_opt))
    wide = half_width(rows, np.array(v), tuned_rho(v_opt, alpha), alpha)
    assert rows * wide == pytest.approx(two, rel=1e-9)
    wide = one_sided_half_width(rows, np.array(v), tuned_rho(v_opt, 2 * alpha), alpha)
    assert rows * wide == pytest.approx(one, rel=1e-9)


@pytest.mark.parametrize("alpha", [0.001, 0.05, 0.4])
@pytest.mark.parametrize("squares", [0.0, 3.0, 4000.0])
def test_widths_are_where_the_mixtures_reach_one_over_alpha(alpha, squares):
    """The mixtures themselves, by quadrature over the normal and the half-normal prior."""
    rho, rows = 0.3, 10.0

    def mixture(total, lowest, weight):
        centre = total * rho**2 / (squares * rho**2 + 1)
        spread = rho / np.sqrt(squares * rho**2 + 1)
        value, _ = integrate.quad(
            lambda x: (
                weight
                * stats.norm.pdf(x, scale=rho)
                * np.exp(x * total - x * x * squares / 2 - np.log(1 / alpha))
            ),
            max(lowest, centre - 12 * spread),
            max(centre, 0) + 12 * spread,
            epsabs=1e-12,
            epsrel=1e-11,
            limit=200,
        )
        return value

    two = rows * half_width(rows, np.array(squares), np.array(rho), alpha)
    one = rows * one_sided_half_width(rows, np.array(squares), np.array(rho), alpha)
    assert mixture(two, -np.inf, 1.0) == pytest.approx(1.0, abs=1e-7)
    assert mixture(one, 0.0, 2.0) == pytest.approx(1.0, abs=1e-7)


@pytest.mark.parametrize("alpha", [1e-8, 0.001, 0.05, 0.2])
def test_rho_is_within_a_thousandth_of_the_smallest_width(alpha):
    variance = np.array(250.0)
    best = optimize.minimize_scalar(
        lambda log_rho: float(half_width(1.0, variance, np.exp(log_rho), alpha)),
        bounds=(-12, 4),
        method="bounded",
        options={"xatol": 1e-9},
    ).fun
    ours = half_width(1.0, variance, tuned_rho(variance, alpha), alpha)
    assert best <= ours <= 1.001 * best


def test_width_in_units_of_the_reward_is_the_same_at_every_scale():
    for width in (half_width, one_sided_half_width):
        plain = width(50.0, np.array(9.0), tuned_rho(np.array(20.0), 0.05), 0.05)
        for scale in (1e-4, 1e4):
            rho = tuned_rho(np.array(20.0) * scale**2, 0.05)
            scaled = width(50.0, np.array(9.0) * scale**2, rho, 0.05)
            assert scaled == pytest.approx(scale * plain, rel=1e-12)


def test_no_width_before_the_first_row_or_without_a_usable_rho():
    assert one_sided_half_width(0.0, np.array(1.0), np.array(1.0), 0.05) == np.inf
    rho = np.array([np.inf, 0.0, np.nan, 1.0])
    widths = one_sided_half_width(5.0, np.ones(4), rho, 0.05)
    assert (widths[:3] == np.inf).all()
    assert np.isfinite(widths[3])
    assert tuned_rho(np.array(0.0), 0.05) == np.inf


def made(c=None, caps=(0.0, np.inf)):
    moments = ScoreMoments.empty(len(caps), MODELS + 3)
    moments.update((columns(1) if c is None else c).rows(), tuning(1), moments.centres(), caps)
    return moments


def test_bounds_are_the_means_of_the_uncapped_score_less_the_width():
    moments, alpha = made(), 0.01
    opening = Opening.tuned(moments, 1000.0, alpha)
    low, high = value_bounds(moments, opening, alpha)
    contrast = contrast_bounds(moments, opening, alpha)
    mean_low, mean_high = (part[-1] for part in moments.means())
    for a in range(MODELS + 3):
        for squares, rho, end, mean in (
            (moments.low_squares[-1, a], opening.low[a], low[a], mean_low[a]),
            (moments.high_squares[-1, a], opening.high[a], 1 - high[a], 1 - mean_high[a]),
        ):
            assert rho == pytest.approx(tuned_rho(squares * 5.0, 2 * alpha), rel=1e-12)
            wide = one_sided_half_width(200.0, squares, rho, alpha)
            assert end == pytest.approx(np.clip(mean - wide, 0, 1), abs=1e-12)
        for b in range(MODELS + 3):
            squares = moments.contrast_squares()[-1, a, b]
            wide = one_sided_half_width(200.0, squares, opening.contrast[a, b], alpha)
            expected = 0.0 if a == b else np.clip(mean_low[a] - mean_high[b] - wide, -1, 1)
            assert contrast[a, b] == pytest.approx(expected, abs=1e-12)


def test_nothing_is_known_without_rows_or_without_spread():
    empty = ScoreMoments.empty(2, MODELS + 3)
    for moments in (empty, made(columns(1, count=1))):
        opening = Opening.tuned(empty, 1000.0, 0.05)
        low, high = value_bounds(moments, opening, 0.05)
        assert (low == 0).all()
        assert (high == 1).all()
        contrast = contrast_bounds(moments, opening, 0.05)
        assert (contrast[~np.eye(MODELS + 3, dtype=bool)] == -1).all()


def test_minimising_is_maximising_the_mirror_image():
    c, caps = columns(2), (0.0, np.inf)
    moments, other = ScoreMoments.empty(2, MODELS + 3), ScoreMoments.empty(2, MODELS + 3)
    tuned, mirrored = tuning(2), tuning(2)
    mirrored = type(tuned)(1 - tuned.offset - tuned.factor, tuned.factor)
    moments.update(c.rows(), tuned, moments.centres(), caps)
    other.update(c.mirrored().rows(), mirrored, other.centres(), caps)
    one, two = (Opening.tuned(m, 500.0, 0.02) for m in (moments, other))
    low, high = value_bounds(moments, one, 0.02)
    other_low, other_high = value_bounds(other, two, 0.02)
    np.testing.assert_allclose(other_low, 1 - high, atol=1e-9)
    np.testing.assert_allclose(other_high, 1 - low, atol=1e-9)
    np.testing.assert_allclose(
        contrast_bounds(other, two, 0.02), contrast_bounds(moments, one, 0.02).T, atol=1e-9
    )
