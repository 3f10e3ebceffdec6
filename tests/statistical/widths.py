"""Widths of the sequences, always over the fixed-n interval at the same level."""

from __future__ import annotations

import numpy as np
from many_runs import Setup, simulate
from naive import NaiveT, NaiveZ
from sequences import Bounded, PerModel
from streams import Stream

from equipoise.agent.inference import levels
from equipoise.agent.inference import mixture as capped
from equipoise.agent.inference.asymptotic import (
    Opening,
    contrast_bounds,
    one_sided_half_width,
    tuned_rho,
)
from equipoise.agent.inference.certificate import fixed_half_width
from equipoise.agent.inference.score import Rows, ScoreMoments, Tuning

DELTA = 0.05
MODELS = 4
TUNED = 3000.0
"""Rows the asymptotic sequence is tuned for; any number gives the same ratios."""
TIMES = (0.2, 0.5, 1.0, 3.0, 10.0, 30.0)
SCALES = (1e-4, 1.0, 1e4)


def half_width(rows, squares, rho, alpha):
    """(...) the two-sided half-width as METHOD states it; squares is V = t sigma^2."""
    spread = squares + 1.0 / rho**2
    return np.sqrt(2.0 * spread * np.log(np.sqrt(spread) * rho / alpha)) / rows


def asymptotic(runs, seed):
    """Level -> scale -> ratios at TIMES, from the formulas: no data enter. Two-sided as METHOD
    states it, and one-sided as it is used for contrasts."""
    found = {}
    cases = {
        "two-sided 5%": (half_width, 0.05, 0.025),
        "two-sided 0.5%": (half_width, 0.005, 0.0025),
        "one-sided 5% / 12": (one_sided_half_width, DELTA / 12, DELTA / 12),
        "one-sided 5% / 20": (one_sided_half_width, DELTA / 20, DELTA / 20),
        "one-sided 5% / 3": (one_sided_half_width, DELTA / 3, DELTA / 3),
    }
    for name, (width, alpha, tail) in cases.items():
        for scale in SCALES:
            tuned_level = alpha if width is half_width else 2.0 * alpha
            rho = tuned_rho(np.array(scale**2 * TUNED), tuned_level)
            ratios = []
            for times in TIMES:
                rows = TUNED * times
                squares = np.array(scale**2 * rows)
                plain = fixed_half_width(np.array(rows), squares, tail)
                ratios.append(float(width(rows, squares, rho, alpha) / plain))
            found[f"{name}, scale {scale:g}"] = ratios
    return {"times": TIMES, "ratios": found}


class _Widths:
    """Remembers the width of a sequence over that of its fixed-n interval at the first look at
    which every model has `rewards` rewards."""

    def __init__(self, sequence, plain, rewards):
        self.sequence, self.plain, self.rewards = sequence, plain, rewards
        self.ratio = None

    def look(self, sums):
        if self.ratio is None:
            self.ratio = np.full(sums.low.shape[1], np.nan)
        here = np.isnan(self.ratio) & (sums.rewards.count.min(axis=1) >= self.rewards)
        runs = np.flatnonzero(here)
        if len(runs):
            self.ratio[runs] = _sum(self.sequence.lower(sums, runs)) / _sum(
                self.plain.lower(sums, runs)
            )


def _sum(lower):
    """(R,) mean width of the intervals of all pairs of models: minus the sum of both ends."""
    lower = lower[:, :MODELS, :MODELS]
    wide = -(lower + lower.transpose(0, 2, 1))
    return wide[:, ~np.eye(MODELS, dtype=bool)].mean(axis=1)


def per_model(runs, seed):
    """Mean and 95% quantile of the ratio to Welch's interval at 200 rewards of each model."""
    found = {}
    level = levels.pair_level(DELTA, MODELS)
    for value in (0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95):
        for allocation in ("uniform", "leader 0.2"):
            rows = 3000 if allocation == "uniform" else 12_000
            setup = Setup(Stream((value,) * MODELS, rows), allocation, rate=0.4)
            watcher = _Widths(PerModel(level), NaiveT(level), 200)
            simulate(setup, runs, seed, [watcher])
            found[f"{value:g} {allocation}"] = [
                float(np.nanmean(watcher.ratio)),
                float(np.nanquantile(watcher.ratio, 0.95)),
            ]
    return found


class _AtEnd:
    def __init__(self, sequence, plain):
        self.sequence, self.plain = sequence, plain

    def ratio(self, sums):
        runs = np.arange(sums.low.shape[1])
        lower, plain = self.sequence.lower(sums, runs), self.plain.lower(sums, runs)
        wide = -(lower + lower.transpose(0, 2, 1))[:, 0, MODELS - 1].mean() / 2.0
        base = -(plain + plain.transpose(0, 2, 1))[:, 0, MODELS - 1].mean() / 2.0
        return [float(wide / base), float(wide)]


def bounded(runs, seed):
    """Ratio to the z interval of the scores, and half-width, of the contrast of the best with
    another model after 4,000 randomized requests: by success rate and by floor."""
    found = {}
    level = levels.pair_level(DELTA, MODELS + 1)
    rate = 0.4
    for value in (0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99):
        for floor in (1.0, 0.5, 0.2, 0.1):
            stream = Stream((value,) * MODELS, int(4000 / rate))
            setup = Setup(stream, f"leader {floor:g}", rate)
            sums = simulate(setup, runs, seed, [])
            found[f"{value:g} {floor:g}"] = _AtEnd(Bounded(level, setup), NaiveZ(level)).ratio(sums)
    return found


def scale(runs, seed):
    """Scale -> largest difference, over runs, of any bound in units of the scale from the bound at
    scale 1, with a range of [-1, 2] times the scale."""
    bounds = {factor: [] for factor in SCALES}
    for run in range(min(runs, 10)):
        for factor in SCALES:
            rng = np.random.default_rng([seed, run])
            low, span = -1.0 * factor, 3.0 * factor
            reward = factor * (3.0 * rng.random(2000) - 1.0)
            model = rng.integers(0, MODELS, 2000)
            randomized = rng.random(2000) < 0.4
            rows = Rows.of(
                np.full(2000, 0.4),
                np.full((2000, MODELS), 1.0 / MODELS),
                randomized,
                model,
                rng.integers(0, MODELS, 2000),
                np.zeros((2000, MODELS)),
                (reward - low) / span,
                np.ones(2000, dtype=bool),
            )
            caps = capped.usual_caps(MODELS, 0.4)
            moments = ScoreMoments.empty(len(caps), MODELS + 1)
            moments.update(rows, Tuning.off(MODELS), moments.centres(), caps)
            opening = Opening.tuned(moments, 2000.0, DELTA)
            found = [
                capped.contrast_bounds(moments, caps, MODELS, DELTA) * span,
                contrast_bounds(moments, opening, DELTA) * span,
                np.array(capped.value_bounds(moments, caps, DELTA)) * span + low,
            ]
            bounds[factor].append(np.concatenate([part.ravel() for part in found]) / factor)
    reference = np.array(bounds[1.0])
    return {
        f"{factor:g}": float(np.abs(np.array(b) - reference).max()) for factor, b in bounds.items()
    }


CELLS = {
    "asymptotic": asymptotic,
    "per-model": per_model,
    "bounded": bounded,
    "scale": scale,
}
