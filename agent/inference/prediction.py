"""What a rule freezes for the certified sums of the rows it decides: predictions and their weights.

A request whose context was replayed is predicted from its own SIM row of each model, any other by
the regression of SIM outputs on the context. Garbage here costs nothing but width: `tuning` fits
the raw prediction to rewards and switches it off where it does not pay.

The variance of psi(m) depends on mu only through E[(1/p - 1) (E[R | x, do(m)] - mu)^2], so the best
mu = offset + factor * raw is the weighted least-squares fit of R on the raw prediction over the
rows that drew m, with weights W (W - 1) (the coefficient of PPI++, Angelopoulos, Duchi & Zrnic
2023, for a score with an intercept). A factor alone would not do: at 0 it leaves mu = 0, far worse
than a running mean; with the offset a useless prediction falls back to the running mean.
The fit at a refresh rests on rows that are closed by then and is used for later decisions only, so
mu stays predictable and no sequence loses its validity, however bad the fit.

Before rows are certified, what is known of each candidate (the mean reward in the log, confounded
as it may be) stands in for them with the weight of KNOWN_ROWS rewards: where rewards come late, or
are nearly all alike, most of an era's width would else be due to its first rows, taken around 1/2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from equipoise.agent.inference.asymptotic import Opening
from equipoise.agent.inference.per_model import RewardCentres
from equipoise.agent.inference.rated import RatedFrozen, neutral_rating
from equipoise.agent.inference.score import Rows, ScoreCentres, Tuning
from equipoise.agent.moments.additive import Additive
from equipoise.store.batches import Flags, Floats

KNOWN_ROWS = 10.0
"""Rewards of a model that what is known from elsewhere weighs as much as."""
TURNED = 2.0
"""Standard errors below 0 from which the common slope is believed to be negative."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """A linear scorer of rewards scaled to [0, 1].

    theta: (p,) coefficients of phi = [1, x, y, ...]; effects: (K,) added per model;
    direct: (K, 1 + d) the same for a context without SIM rows, as coefficients of [1, x].
    rows: rewards that the scorer was fitted on.
    """

    theta: Floats
    effects: Floats
    direct: Floats
    rows: float = 0.0

    @classmethod
    def of(
        cls,
        theta: Floats,
        models: int,
        model_effects: bool,
        maps: Floats,
        low: float,
        high: float,
        rows: float = 0.0,
    ) -> Self:
        """From a fitted scorer in reward units.

        theta: (p,) or, with `model_effects`, (p + K,); maps: (K, p, 1 + d) the regressions that
        predict phi from [1, x]; low, high: declared range of the reward.
        """
        width = maps.shape[1]
        scale = high - low
        scorer = theta[:width] / scale
        scorer[0] -= low / scale
        effects = theta[width:] / scale if model_effects else np.zeros(models)
        direct = np.einsum("p,kpd->kd", scorer, maps)
        direct[:, 0] += effects
        return cls(scorer, effects, direct, rows)

    @property
    def usable(self) -> bool:
        return bool(np.isfinite(self.theta).all() and np.isfinite(self.effects).all())

    def raw(self, x: Floats, phi: Floats | None, known: Flags | None) -> Floats:
        """(n, K) predictions, NaN where a model cannot be predicted.

        x: (n, d); phi: (n, K, p - 1) SIM rows and known: (n, K) which of them exist, or None.
        """
        # A model's predictions lie together, as `Rows` has them.
        result: Floats = (self.direct[:, 1:] @ x.T + self.direct[:, :1]).T
        if phi is not None and known is not None:
            from_row = phi @ self.theta[1:] + (self.theta[0] + self.effects)
            result = np.where(known, from_row, result)
        return result

    def encode(self) -> dict[str, Any]:
        return {
            "theta": self.theta.tolist(),
            "effects": self.effects.tolist(),
            "direct": _to_text(self.direct),
            "rows": self.rows,
        }

    @classmethod
    def decode(cls, fields: Mapping[str, Any]) -> Self:
        direct = np.array(fields["direct"], dtype=np.float64)
        return cls(
            np.array(fields["theta"]), np.array(fields["effects"]), direct, float(fields["rows"])
        )


@dataclass(slots=True)
class TuningMoments(Additive):
    """Sums over rows that drew each of K + 1 candidates, all (K + 1,), with v = W (W - 1).

    weight, weight_sq: sum v, sum v^2. With q the raw prediction and r the reward, both less 1/2:
    q, qq, r, qr, rr: sums of v q, v q^2, v r, v q r, v r^2 over rows with a raw prediction.
    bare, bare_sq, bare_r: sums of v, v^2 and v r over rows without one. Rows without a reward are
    left out: they would only blur the fit, which needs no validity.
    """

    weight: Floats
    weight_sq: Floats
    q: Floats
    qq: Floats
    r: Floats
    qr: Floats
    rr: Floats
    bare: Floats
    bare_sq: Floats
    bare_r: Floats

    @classmethod
    def empty(cls, models: int) -> Self:
        return cls(*(np.zeros(models + 1) for _ in range(10)))

    def update(self, rows: Rows) -> None:
        """Add n rows in place."""
        known = rows.drawn & (rows.low == rows.high)[:, None]
        # Most candidates were not drawn: few of the (n, K + 1) entries count.
        entry = np.flatnonzero(known.T)
        candidate, row = np.divmod(entry, max(len(rows), 1))
        chance = rows.chance.T.ravel()[entry]
        weight = (1.0 / chance - 1.0) / chance
        q, r = rows.predicted.T.ravel()[entry] - 0.5, rows.low[row] - 0.5
        predicted = np.isfinite(q)
        if not predicted.all():
            bare = ~predicted
            some, of, alone = weight[bare], candidate[bare], r[bare]
            for total, value in (
                (self.bare, some),
                (self.bare_sq, some * some),
                (self.bare_r, some * alone),
            ):
                total += np.bincount(of, value, len(total))
            candidate, weight = candidate[predicted], weight[predicted]
            q, r = q[predicted], r[predicted]
        if not len(candidate):
            return
        # Entries are in the order of their candidates.
        starts = np.searchsorted(candidate, np.arange(len(self.weight) + 1))
        here = np.flatnonzero(starts[1:] > starts[:-1])
        wq, wr = weight * q, weight * r
        sums = np.add.reduceat(
            [weight, weight * weight, wq, wq * q, wr, wq * r, wr * r], starts[here], axis=1
        )
        names = (self.weight, self.weight_sq, self.q, self.qq, self.r, self.qr, self.rr)
        for total, value in zip(names, sums, strict=True):
            total[here] += value

    def tuning(self, known: Floats | None = None) -> Tuning:
        """The fit for the next rule: factor in [-1, 1], offset the rest of the running mean.

        known: (K + 1,) what the rewards are expected to be before there are any, 1/2 if None.

        A scorer that is good for one model is mostly good for the others, and a model's own slope
        needs hundreds of rewards; so slopes are drawn to the one slope of all models together by
        empirical Bayes (moments of their spread beyond noise). That slope is in turn shrunk by its
        own noise, max(0, 1 - 1 / t^2) with t its t-statistic, so that garbage is switched off and
        not merely made small. A scorer is mostly right about the direction, but one that was
        learned from a confounded log may point the wrong way, which tells as much: a negative slope
        is used too, shrunk by max(0, 1 - TURNED^2 / t^2). No slope has another sign than the
        common one. The mean is shrunk to what is known of it.
        """
        seen = self.weight > 0
        weight = np.where(seen, self.weight, 1.0)
        mean_q, mean_r = self.q / weight, self.r / weight
        effective = np.where(seen, weight**2 / np.where(seen, self.weight_sq, 1.0), 0.0)
        spread = np.maximum(self.qq / weight - mean_q**2, 0.0)
        shared = self.qr / weight - mean_q * mean_r
        noise = np.maximum(self.rr / weight - mean_r**2, 0.0)
        usable = seen & (spread > 1e-12) & (effective > 3.0)
        slope = _shrunk(
            np.where(usable, shared / np.where(usable, spread, 1.0), 0.0),
            np.where(usable, spread, 0.0),
            noise,
            np.where(usable, effective, 0.0),
        )
        factor = np.where(seen, np.clip(slope, -1.0, 1.0), 0.0)
        # The mean is that of all rows: a row without a prediction says as much about it.
        every, squares = self.weight + self.bare, self.weight_sq + self.bare_sq
        some = every > 0
        mean = (self.r + self.bare_r) / np.where(some, every, 1.0)
        rows = np.where(some, every**2 / np.where(some, squares, 1.0), 0.0)
        if known is None:
            mean = mean * rows / (rows + 1.0) + 0.5
        else:
            mean = (mean * rows + (known - 0.5) * KNOWN_ROWS) / (rows + KNOWN_ROWS) + 0.5
        usual = mean_q + 0.5
        return Tuning(mean - factor * usual, factor, usual)


def _shrunk(slope: Floats, spread: Floats, noise: Floats, rows: Floats) -> Floats:
    """(..., K + 1) slopes drawn to that of all K models together; each of the K + 1 candidates has
    its slope (0 where it has none), the variances of prediction and reward, and effective rows.
    None has another sign than that one."""

    def over_models(values: Floats) -> Floats:
        total: Floats = values[..., :-1].sum(axis=-1, keepdims=True)
        return total

    information = rows * spread
    known = information > 0
    total = over_models(information)
    usable = np.where(total > 0, total, 1.0)
    # Reward variance that a slope leaves; at least a sliver, as a perfect fit is luck.
    residual = np.maximum(noise - slope**2 * spread, 1e-6)
    variance = residual * rows / np.maximum(rows - 2.0, 1.0)
    variance = np.where(known, variance / np.where(known, information, 1.0), np.inf)
    together = over_models(information * slope) / usable
    around = np.maximum(noise - 2.0 * together * slope * spread + together**2 * spread, 1e-6)
    error = over_models(information * around) / usable**2
    t_squared = together**2 / np.maximum(error, 1e-300)
    needed = np.where(together < 0.0, TURNED**2, 1.0)
    together = together * (1.0 - needed / np.maximum(t_squared, needed))
    count = over_models(known.astype(np.float64))
    beyond = np.where(known, (slope - together) ** 2 - np.where(known, variance, 0.0), 0.0)
    between = np.maximum(over_models(beyond) / np.maximum(count, 1.0), 0.0)
    between = np.where(count > 1, between, 0.0)
    trust = np.where(known, between / (between + variance), 0.0)
    result: Floats = np.where(total > 0, together + trust * (slope - together), 0.0)
    return np.where(together < 0.0, np.minimum(result, 0.0), np.maximum(result, 0.0))


@dataclass(frozen=True, slots=True)
class Frozen:
    """Predictable quantities of one set of certified sums (the whole traffic, or a segment).

    tuning: how much of the raw prediction the score uses. centres, rewards: what scores and
    rewards are expected to be. opening: of the asymptotic sequence, None until it opens.
    seen: (K,) rewards of each model that this was frozen from, None for none. rated: where answers
    are about those who rate; `tuning` and `centres` are then of whether a request is rated.
    """

    tuning: Tuning
    centres: ScoreCentres
    rewards: RewardCentres
    opening: Opening | None = None
    seen: Floats | None = None
    rated: RatedFrozen | None = None

    @classmethod
    def neutral(cls, models: int, candidates: int, caps: int, rated: float | None = None) -> Self:
        """Before anything is known. rated: the share of requests that is, to begin with, where
        answers are about those; None where they are about all."""
        if rated is not None:
            tuning, centres = neutral_rating(models, caps, candidates, rated)
            return cls(
                tuning,
                centres,
                RewardCentres.neutral(models),
                rated=RatedFrozen.neutral(models, caps, candidates, rated),
            )
        return cls(
            Tuning.off(models),
            ScoreCentres.neutral(caps, candidates),
            RewardCentres.neutral(models),
        )

    def encode(self) -> dict[str, Any]:
        opening = self.opening
        fields = {
            "offset": self.tuning.offset.tolist(),
            "factor": self.tuning.factor.tolist(),
            "usual": None if self.tuning.usual is None else self.tuning.usual.tolist(),
            "score_low": self.centres.low.tolist(),
            "score_high": self.centres.high.tolist(),
            "reward_low": self.rewards.low.tolist(),
            "reward_high": self.rewards.high.tolist(),
            "seen": None if self.seen is None else self.seen.tolist(),
            "opening": None
            if opening is None
            else [_to_text(part) for part in (opening.low, opening.high, opening.contrast)],
        }
        # Only where there is one: the text of other rules, and so their id, stays what it was.
        return fields if self.rated is None else fields | {"rated": _rated_fields(self.rated)}

    @classmethod
    def decode(cls, fields: Mapping[str, Any]) -> Self:
        def array(name: str) -> Floats:
            return np.array(fields[name], dtype=np.float64)

        opening = fields["opening"]
        return cls(
            Tuning(
                array("offset"),
                array("factor"),
                None if fields["usual"] is None else array("usual"),
            ),
            ScoreCentres(array("score_low"), array("score_high")),
            RewardCentres(array("reward_low"), array("reward_high")),
            None if opening is None else Opening(*(_from_text(part) for part in opening)),
            None if fields["seen"] is None else array("seen"),
            _read_rated(fields["rated"]) if "rated" in fields else None,
        )


def _rated_fields(rated: RatedFrozen) -> dict[str, Any]:
    usual = rated.tuning.usual
    return {
        "offset": rated.tuning.offset.tolist(),
        "factor": rated.tuning.factor.tolist(),
        "usual": None if usual is None else usual.tolist(),
        "low": rated.low.tolist(),
        "high": rated.high.tolist(),
    }


def _read_rated(fields: Mapping[str, Any]) -> RatedFrozen:
    usual = None if fields["usual"] is None else np.array(fields["usual"])
    tuning = Tuning(np.array(fields["offset"]), np.array(fields["factor"]), usual)
    return RatedFrozen(tuning, np.array(fields["low"]), np.array(fields["high"]))


def _to_text(array: Floats) -> Any:
    """Nested lists with null for what is not finite: rho is infinite where nothing has varied yet,
    a model without any SIM row has no coefficients."""
    if array.ndim > 1:
        return [_to_text(row) for row in array]
    return [value if math.isfinite(value) else None for value in array.tolist()]


def _from_text(values: Any) -> Floats:
    array = np.array(values, dtype=np.float64)
    return np.where(np.isnan(array), np.inf, array)
