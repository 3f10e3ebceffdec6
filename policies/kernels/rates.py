"""Rate kernels: one rate for every request, or one that follows a score of the request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, Self, TypeVar

import numpy as np

from equipoise.policies.kernels.context_forms import Cuts, ResidualScale
from equipoise.policies.snapshot import Floats


class RateKernel(Protocol):
    """e(x): the probability with which a request is randomized."""

    kind: ClassVar[str]

    def rates(self, x: Floats) -> Floats:
        """(n,) probabilities for contexts x (n, d). The result may be shared: do not write it."""
        ...

    def rate_of(self, x: Floats) -> float:
        """As `rates` of one context x (1, d), the same bits."""
        ...

    def clipped(self, low: float, high: float) -> RateKernel:
        """The kernel whose rates are this one's, moved into [low, high]."""
        ...

    def encode(self) -> dict[str, Any]:
        """A dict of JSON types with the `kind` and everything `decode` needs."""
        ...

    @classmethod
    def decode(cls, fields: Mapping[str, Any]) -> Self:
        """The kernel that `encode` wrote, bit for bit."""
        ...


RateClass = TypeVar("RateClass", bound=type[RateKernel])
RATE_KERNELS: dict[str, type[RateKernel]] = {}


def rate_kernel(cls: RateClass) -> RateClass:
    """Register a class of rate kernels under its `kind`."""
    if cls.kind in RATE_KERNELS:
        raise ValueError(f"rate kernel {cls.kind!r} is registered twice")
    RATE_KERNELS[cls.kind] = cls
    return cls


def decode_rate_kernel(fields: Mapping[str, Any]) -> RateKernel:
    """The rate kernel that wrote `fields`. ValueError where its kind is not known."""
    kind = fields.get("kind")
    if kind not in RATE_KERNELS:
        raise ValueError(f"rate kernel kind {kind!r} is not one of {sorted(RATE_KERNELS)}")
    return RATE_KERNELS[kind].decode(fields)


@rate_kernel
@dataclass(frozen=True, slots=True)
class ConstantRate:
    """e(x) = rate, in [0, 1]."""

    kind: ClassVar[str] = "constant-rate"

    rate: float
    _row: Floats = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0.0 <= self.rate <= 1.0:
            raise ValueError(f"rate is {self.rate}, expected 0 to 1")
        row = np.array([self.rate], dtype=np.float64)
        row.flags.writeable = False
        object.__setattr__(self, "_row", row)

    def __reduce__(self) -> tuple[type[Self], tuple[float]]:
        # An unpickled array is writable: build the shared row anew instead.
        return type(self), (self.rate,)

    def rates(self, x: Floats) -> Floats:
        """(n,) the rate, n times."""
        rows = len(x)
        return self._row if rows == 1 else np.full(rows, self.rate)

    def rate_of(self, x: Floats) -> float:
        """The rate."""
        return float(self.rate)

    def clipped(self, low: float, high: float) -> ConstantRate:
        """The rate moved into [low, high]."""
        return ConstantRate(min(max(self.rate, low), high))

    def encode(self) -> dict[str, Any]:
        return {"kind": self.kind, "rate": self.rate}

    @classmethod
    def decode(cls, fields: Mapping[str, Any]) -> Self:
        return cls(float(fields["rate"]))


_BISECTIONS = 200  # more than enough to halve any bracket down to neighbouring floats


class Score(Protocol):
    """What makes one request worth more than another."""

    kind: ClassVar[str]

    def scores(self, x: Floats, stable: bool = True) -> Floats:
        """(n,) scores >= 0 of contexts x (n, d), row-stable unless only an average counts."""
        ...

    def encode(self) -> dict[str, Any]: ...

    @classmethod
    def decode(cls, fields: Mapping[str, Any]) -> Self: ...


SCORES: dict[str, type[Score]] = {Cuts.kind: Cuts, ResidualScale.kind: ResidualScale}


@rate_kernel
@dataclass(frozen=True, slots=True, eq=False)
class ScoredRate:
    """e(x) = base + scale * score(x), moved into [low, high]. scale >= 0."""

    kind: ClassVar[str] = "scored-rate"

    score: Score
    base: float
    scale: float
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not (np.isfinite(self.base) and 0.0 <= self.scale < np.inf):
            raise ValueError(
                f"base is {self.base} and scale is {self.scale}, expected finite, scale >= 0"
            )
        if not 0.0 <= self.low <= self.high <= 1.0:
            raise ValueError(f"rates are kept in [{self.low}, {self.high}], expected in [0, 1]")

    def rates(self, x: Floats) -> Floats:
        """(n,) the rates."""
        return self.of_scores(self.score.scores(x))

    def of_scores(self, scores: Floats) -> Floats:
        """(n,) the rates of requests with these scores (n,)."""
        rates = self.scale * scores
        rates += self.base
        return np.asarray(np.minimum(np.maximum(rates, self.low), self.high), dtype=np.float64)

    def rate_of(self, x: Floats) -> float:
        """The rate of one context x (1, d)."""
        return self.of_score(self.score.scores(x).item())

    def of_score(self, score: float) -> float:
        """As `of_scores` of one score, on plain numbers."""
        rate = self.scale * score + self.base
        # A number that is none passes, as it does in NumPy.
        rate = float(self.low) if rate < self.low else rate
        return float(self.high) if rate > self.high else rate

    def clipped(self, low: float, high: float) -> ScoredRate:
        """The same rates, moved into [low, high] as well."""
        return replace(
            self,
            low=min(max(self.low, low), high),
            high=min(max(self.high, low), high),
        )

    def encode(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "score": self.score.encode(),
            "base": self.base,
            "scale": self.scale,
            "low": self.low,
            "high": self.high,
        }

    @classmethod
    def decode(cls, fields: Mapping[str, Any]) -> Self:
        kind = fields["score"]["kind"]
        if kind not in SCORES:
            raise ValueError(f"score kind {kind!r} is not one of {sorted(SCORES)}")
        score = SCORES[kind].decode(fields["score"])
        return cls(score, *(float(fields[name]) for name in ("base", "scale", "low", "high")))


def calibrated(
    score: Score, contexts: Floats, rate: float, low: float, high: float, uniform: float
) -> ScoredRate | ConstantRate:
    """The rates in [low, high] that follow a score and average `rate` over contexts (n, d).

    uniform: share of the rate that every request gets alike, in [0, 1]. Where clipping moves the
    average, the base makes up for it. One rate for all where the scores are all 0, not finite, or
    there is no context to average over. A rate outside [low, high] is moved inside first.
    """
    rate = min(max(rate, low), high)
    scores = score.scores(contexts, stable=False) if len(contexts) else np.zeros(0)
    mean = float(scores.mean()) if len(scores) else 0.0
    if not 0.0 < mean < np.inf:
        return ConstantRate(rate)
    scale = (1.0 - uniform) * rate / mean
    base = uniform * rate
    raised = scale * scores
    if not np.isfinite(scale):
        return ConstantRate(rate)
    if (base + raised > high).any() or (base + raised < low).any():
        base = _base(raised, rate, low, high)
    return ScoredRate(score, base, scale, low, high)


def _base(raised: Floats, rate: float, low: float, high: float) -> float:
    """The base with which base + raised, kept in [low, high], averages `rate`."""
    # At the lower end every rate is at most low, at the upper one at least high.
    below, above = low - float(raised.max()), high - float(raised.min())
    for _ in range(_BISECTIONS):
        middle = 0.5 * (below + above)
        if not below < middle < above:
            break
        if float(np.clip(middle + raised, low, high).mean()) < rate:
            below = middle
        else:
            above = middle
    return above
