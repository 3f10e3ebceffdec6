"""All certified sums of one set of rows, which sequence is certified, and the bounds at a level.

The user declares a preference when the experiment opens. `bounded` needs nothing. Another sequence
is used at a look if its condition holds there; where it does not, the bounded one is. Both are
run all the time at levels that add up to the declared one (`levels.split_level`), so the certified
interval holds at all times even though the condition is looked at again and again: a miss is a
miss of one of the two.

`per-model`: the user declares that traffic is stationary; it is off while a drift alarm stands and
from the first rule that looked at a request.
`asymptotic`: every model that is compared has had RARER of the rarer outcome, min(sum R, sum 1 - R)
over its randomized rewards on the [0, 1] scale; that amount never falls, so the sequence opens once
in an era. tests/statistical/coverage_study.py shows what the number is worth.

The sums are of one era and either of the whole traffic or of one declared segment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Self

import numpy as np
from scipy import special

from equipoise.agent.inference import asymptotic, per_model, rated
from equipoise.agent.inference.asymptotic import Opening
from equipoise.agent.inference.levels import EraPrior, Level, split_level
from equipoise.agent.inference.mixture import contrast_bounds, value_bounds
from equipoise.agent.inference.per_model import RewardMoments
from equipoise.agent.inference.prediction import KNOWN_ROWS, Frozen, TuningMoments
from equipoise.agent.inference.rated import RatedMoments, RatedRows
from equipoise.agent.inference.score import Rows, ScoreMoments
from equipoise.agent.moments.additive import Additive
from equipoise.store.batches import Flags, Floats, Ints

RARER = 25.0
"""Amount of the rarer outcome that each model needs before the asymptotic sequence is certified.

From 25 on at most 1.8% of runs ever missed, at a nominal 4.5%, over success rates of .01 to .99
under uniform and top-two draws; from 10 on up to 4.9%, from 5 on up to 8.2% (docs/coverage.md).
"""
FIXED_N = "fixed-n comparison: holds at one sample size chosen in advance, not under peeking"
"""What is said beside every `fixed_half_width`; tests/statistical/coverage_study.py shows how far
more often such intervals miss when they are looked at again and again."""


class Sequence(StrEnum):
    BOUNDED = "bounded"
    PER_MODEL = "per-model"
    ASYMPTOTIC = "asymptotic"


@dataclass(frozen=True, slots=True)
class Chosen:
    """The certified sequence of a look, its share of the level, and why it is the one."""

    sequence: Sequence
    share: float
    reason: str

    def level(self, alpha: Level) -> Level:
        """The level at which the chosen sequence is to be read, for a declared one-sided alpha."""
        return alpha * self.share


def choose(
    declared: Sequence,
    *,
    context_free: bool,
    drift_alarm: bool,
    rarer: Floats,
    needed: float = RARER,
) -> Chosen:
    """The certified sequence of a look.

    context_free: no rule of the era looked at a request. drift_alarm: one stands. rarer: (K,)
    `RewardMoments.rarer` of the models that are compared.
    """
    preferred, fallback = split_level(1.0)
    if declared is Sequence.BOUNDED:
        return Chosen(declared, 1.0, "it needs no further assumption")
    if declared is Sequence.PER_MODEL:
        if not context_free:
            return Chosen(
                Sequence.BOUNDED, fallback, "per-model was declared, but a rule looked at requests"
            )
        if drift_alarm:
            return Chosen(
                Sequence.BOUNDED, fallback, "per-model was declared, but a drift alarm stands"
            )
        return Chosen(declared, preferred, "traffic was declared stationary")
    fewest = float(np.min(rarer, initial=np.inf))
    if not fewest >= needed:
        return Chosen(
            Sequence.BOUNDED,
            fallback,
            f"asymptotic was declared, but a model has {fewest:g} of its rarer outcome, "
            f"below {needed:g}",
        )
    return Chosen(declared, preferred, f"every model has {needed:g} of its rarer outcome")


@dataclass(slots=True)
class CertificateMoments:
    """Sums over certified rows of K models and A candidates (models, today's routing, policies).

    score: of the score psi, for every candidate and pair. rewards: of the unweighted rewards per
    model. tuning: the regression inside psi. counts: (4,) randomized rows, rows without a reward,
    and rows before the last one in these sums that are not in them: because a limit on a part of
    the traffic was reached, and because they were closed to some model from the start.

    Where answers are about those who rate, `score` and `tuning` are of whether a request is rated,
    `rated` and `rated_tuning` of the rewards, and `rewards` holds those that came, with draws that
    were not delivered.
    """

    score: ScoreMoments
    rewards: RewardMoments
    tuning: TuningMoments
    counts: Floats
    rated: RatedMoments | None = None
    rated_tuning: TuningMoments | None = None

    @classmethod
    def empty(cls, models: int, candidates: int, caps: int, of_raters: bool = False) -> Self:
        """of_raters: whether answers are about those who rate."""
        return cls(
            ScoreMoments.empty(caps, candidates),
            RewardMoments.empty(models),
            TuningMoments.empty(models),
            np.zeros(4),
            RatedMoments.empty(caps, candidates, models) if of_raters else None,
            TuningMoments.empty(models) if of_raters else None,
        )

    @property
    def rows(self) -> float:
        return float(self.score.rows[0])

    @property
    def randomized(self) -> float:
        return float(self.counts[0])

    @property
    def missing(self) -> float:
        return float(self.counts[1])

    @property
    def limited(self) -> float:
        return float(self.counts[2])

    @property
    def closed(self) -> float:
        return float(self.counts[3])

    def update(
        self,
        rows: Rows,
        frozen: Frozen,
        caps: tuple[float, ...],
        model: Ints,
        randomized: Flags,
        known: Flags,
        raters: RatedRows | None = None,
    ) -> None:
        """Add n rows decided under one rule, in place. model: (n,) assigned; randomized: (n,);
        known: (n,) whether the reward came (of a unit: all its rewards). raters: the same rows,
        where answers are about those who rate."""
        if not len(rows):
            return
        self.score.update(rows, frozen.tuning, frozen.centres, caps)
        self.tuning.update(rows)
        drawn = np.flatnonzero(randomized)
        low, high = rows.low, rows.high
        if raters is not None:
            assert self.rated is not None
            assert self.rated_tuning is not None
            assert frozen.rated is not None
            self.rated.update(raters, frozen.tuning, frozen.rated, caps)
            self.rated.count(raters, model[drawn], drawn)
            self.rated_tuning.update(raters.rewards)
            low, high = raters.low[:, 0], raters.high[:, 0]
            # The mean of those that came, and of what was not delivered at its worst.
            drawn = drawn[raters.low[drawn, 1] == 0.0]
            self.counts[0] += np.count_nonzero(randomized) - len(drawn)
        low, high = low[drawn], high[drawn]
        self.rewards.update(frozen.rewards, model[drawn], low, high)
        self.counts[0] += len(drawn)
        self.counts[1] += len(known) - np.count_nonzero(known)

    def freeze(
        self, opening: Opening | None, known: Floats | None = None, share: float | None = None
    ) -> Frozen:
        """What the next rule freezes.

        known: (A,) what is known of the candidates' rewards from elsewhere, on [0, 1]; None for
        nothing. Not for the asymptotic sequence: it takes a small variance at its word. share: of
        requests that are rated, where answers are about those; scores are of S then.
        """
        models, of_rated = len(self.rewards.count), None
        if self.rated is not None and self.rated_tuning is not None:
            both = None if known is None or share is None else share * known[: models + 1]
            of_rated = self.rated.freeze(self.rated_tuning.tuning(both), share)
        expected = known
        if known is not None and self.rated is not None:
            expected = None if share is None else np.full(len(known), share)
        if known is None or expected is None:
            tuning, centres = self.tuning.tuning(), self.score.centres()
            rewards = self.rewards.centres()
        else:
            seen = np.full(len(known), self.rows)
            seen[:models] = self.rewards.count
            tuning = self.tuning.tuning(expected[: models + 1])
            centres = self.score.centres(expected, KNOWN_ROWS / (seen + KNOWN_ROWS))
            rewards = self.rewards.centres(known[:models], KNOWN_ROWS)
        return Frozen(tuning, centres, rewards, opening, self.rewards.count.copy(), of_rated)

    def arrays(self) -> dict[str, Floats]:
        """Every sum by name; views, not copies."""
        return {"counts": self.counts} | {
            f"{name}_{field}": array
            for name, part in self._parts().items()
            for field, array in part.arrays().items()
        }

    def load(self, arrays: Mapping[str, Floats]) -> None:
        for name, array in self.arrays().items():
            array[...] = arrays[name]

    def copy(self) -> Self:
        parts: dict[str, Any] = {name: part.copy() for name, part in self._parts().items()}
        return replace(self, **parts, counts=self.counts.copy())

    def __add__(self, other: Self) -> Self:
        theirs = other._parts()
        parts: dict[str, Any] = {name: part + theirs[name] for name, part in self._parts().items()}
        return replace(self, **parts, counts=self.counts + other.counts)

    def _parts(self) -> dict[str, Additive]:
        parts: dict[str, Additive] = {
            "score": self.score,
            "rewards": self.rewards,
            "tuning": self.tuning,
        }
        if self.rated is not None and self.rated_tuning is not None:
            parts |= {"rated": self.rated, "rated_tuning": self.rated_tuning}
        return parts


@dataclass(frozen=True, slots=True)
class Reading:
    """Bounds of one set of sums by the chosen sequence, on the [0, 1] scale.

    active: (A,) candidates that this era compares; the others are only known to be in range.
    Where the chosen sequence does not speak of a candidate (per-model: today's routing and
    declared policies), the bounded one does, at the share of the level that it keeps.
    prior: what the era is planned for, None for eras that began without.
    """

    moments: CertificateMoments
    frozen: Frozen
    chosen: Chosen
    caps: tuple[float, ...]
    active: Flags
    prior: EraPrior | None = None

    def values(self, alpha: float) -> tuple[Floats, Floats]:
        """(A,) lower and upper ends, each at one-sided level alpha."""
        low, high = self._values(alpha)
        return np.where(self.active, low, 0.0), np.where(self.active, high, 1.0)

    def contrasts(self, alpha: Floats | float) -> Floats:
        """(A, A) lower ends of V(a) - V(b), each at its one-sided level. alpha: (A, A) or one."""
        both = self.active[:, None] & self.active[None, :]
        lower = np.where(both, self._contrasts(alpha), -1.0)
        np.fill_diagonal(lower, 0.0)
        return lower

    def fixed_half_widths(self, alpha: float) -> Floats:
        """(A, A) `fixed_half_width` of the same contrasts: a comparison only."""
        raters = self.moments.rated
        if raters is None:
            squares = self.moments.score.contrast_squares()[-1]
        else:
            squares = raters.fixed_squares()
        return fixed_half_width(np.asarray(self.moments.rows), squares, alpha)

    def rating(self, alpha: float) -> Floats | None:
        """(A, A) lower ends of E[S | a] - E[S | b], S = 1 if rated, each at one-sided level alpha;
        None where answers are not about those who rate."""
        if self.moments.rated is None:
            return None
        both = self.active[:, None] & self.active[None, :]
        models = len(self.moments.rewards.count)
        lower = contrast_bounds(self.moments.score, self.caps, models, alpha)
        lower = np.where(both, lower, -1.0)
        np.fill_diagonal(lower, 0.0)
        return lower

    def _values(self, alpha: float) -> tuple[Floats, Floats]:
        level, sequence = self.chosen.level(alpha), self.chosen.sequence
        score, models = self.moments.score, len(self.moments.rewards.count)
        if sequence is Sequence.ASYMPTOTIC and self.frozen.opening is not None:
            return asymptotic.value_bounds(score, self.frozen.opening, level)
        if sequence is Sequence.PER_MODEL:
            low, high = self._bounded_values(split_level(alpha)[1])
            own = per_model.value_bounds(self.moments.rewards, level)
            low[:models], high[:models] = own
            return low, high
        return self._bounded_values(level)

    def _bounded_values(self, alpha: float) -> tuple[Floats, Floats]:
        if self.moments.rated is not None:
            return rated.value_bounds(self.moments.rated, self.caps, alpha, self.prior)
        return value_bounds(self.moments.score, self.caps, alpha, self.prior)

    def _bounded_contrasts(self, alpha: Floats | float) -> Floats:
        models = len(self.moments.rewards.count)
        if self.moments.rated is not None:
            return rated.contrast_bounds(self.moments.rated, self.caps, models, alpha, self.prior)
        return contrast_bounds(self.moments.score, self.caps, models, alpha, self.prior)

    def _contrasts(self, alpha: Floats | float) -> Floats:
        level, sequence = self.chosen.level(alpha), self.chosen.sequence
        score, models = self.moments.score, len(self.moments.rewards.count)
        if sequence is Sequence.ASYMPTOTIC and self.frozen.opening is not None:
            return asymptotic.contrast_bounds(score, self.frozen.opening, level)
        if sequence is Sequence.PER_MODEL:
            lower = self._bounded_contrasts(split_level(alpha)[1])
            assert isinstance(level, float)  # it inverts a region for each level
            lower[:models, :models] = per_model.contrast_bounds(self.moments.rewards, level)
            return lower
        return self._bounded_contrasts(level)


def fixed_half_width(rows: Floats, squares: Floats, alpha: float) -> Floats:
    """(...) one-sided half-width z_(1 - alpha) sigma / sqrt(t) of a mean of t rows: no certificate.

    rows: (...) t; squares: (...) centred sum of squares; NaN where t < 2. For the two-sided
    interval at level a, use alpha = a / 2.
    """
    rows, squares = np.broadcast_arrays(np.asarray(rows, float), np.asarray(squares, float))
    enough = rows > 1
    usable = np.where(enough, rows, 2.0)
    width = special.ndtri(1.0 - alpha) * np.sqrt(squares / (usable - 1.0) / usable)
    return np.where(enough, width, np.nan)
