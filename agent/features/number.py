"""A number with declared bounds, offset and scale."""

from __future__ import annotations

import math
from collections.abc import Iterator

from equipoise.agent.features.feature import Encoder, Feature, finite_fault, limit_fault
from equipoise.agent.features.problems import Problem, shown
from equipoise.agent.features.values import LARGEST, LIMIT, Refused, as_number, within


class Number(Feature, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="number"):
    """A number v becomes (v - offset) / scale, or (log(1 + v) - offset) / scale where `log`.

    low, high: bounds of v, both included; a value outside is refused. With `log`, low is 0 unless
    declared, and must be above -1. offset and scale are declared, never learned: a transform that
    followed the data would make old sums meaningless.
    limit: largest magnitude of what v becomes; 1e9 unless declared, or what low and high allow if
    that is more. winsorize: whether a finite value beyond bounds or limit counts as the nearest
    value that is allowed, instead of being refused.

    >>> columns = []
    >>> Number(name="length", low=0, offset=100, scale=50).encoder()(150, columns)
    >>> columns
    [1.0]
    """

    low: float | None = None
    high: float | None = None
    offset: float = 0.0
    scale: float = 1.0
    log: bool = False
    limit: float | None = None
    winsorize: bool = False

    def faults(self) -> Iterator[Problem]:
        yield from super().faults()
        yield from finite_fault("low", self.low)
        yield from finite_fault("high", self.high)
        if not abs(self.offset) <= LARGEST:
            yield Problem("offset", shown(self.offset), f"a number within ±{LARGEST:g}")
        if not 0 < self.scale <= LARGEST:
            yield Problem("scale", shown(self.scale), f"a number above 0, at most {LARGEST:g}")
        yield from limit_fault(self.limit)
        low, high = self._bounds()
        if self.log and low <= -1:
            fix = "raise it, or leave out log"
            yield Problem("low", shown(self.low), "a number above -1, since log is on", fix)
        if low >= high:
            limit = f"a number above low, which is {shown(low)}"
            yield Problem("high", shown(self.high), limit, also=("low", "log"))

    def columns(self) -> list[str]:
        return [self.name]

    def limits(self) -> list[float]:
        return [max(self._limit(), abs(self.missing or 0.0))]

    def encoder(self) -> Encoder:
        (low, high), offset, scale = self._bounds(), self.offset, self.scale
        log1p = math.log1p if self.log else None
        expected, limit, winsorize = _expected(low, high), self._limit(), self.winsorize
        plain = not offset and scale == 1 and log1p is None
        beyond = within(limit, expected, "" if plain else " after offset and scale")

        def encode(value: object, columns: list[float]) -> None:
            number = value if type(value) is float else as_number(value, expected)
            # False for NaN too.
            if not low <= number <= high:
                if not (winsorize and math.isfinite(number)):
                    raise Refused(expected)
                number = min(max(number, low), high)
            column = ((log1p(number) if log1p else number) - offset) / scale
            if not -limit <= column <= limit:
                if not (winsorize and math.isfinite(number)):
                    raise Refused(beyond)
                column = math.copysign(limit, column)
            columns.append(column)

        return encode

    def _limit(self) -> float:
        """Largest magnitude of a transformed value: as declared, else LIMIT, or what the declared
        bounds allow."""
        if self.limit is not None:
            return self.limit
        ends = [end for end in self._bounds() if math.isfinite(end)]
        become = [
            ((math.log1p(end) if self.log else end) - self.offset) / self.scale for end in ends
        ]
        return min(max([LIMIT, *map(abs, become)]), LARGEST)

    def _bounds(self) -> tuple[float, float]:
        lowest = 0.0 if self.log else -math.inf
        return (
            lowest if self.low is None else self.low,
            math.inf if self.high is None else self.high,
        )


def _expected(low: float, high: float) -> str:
    if math.isinf(low) and math.isinf(high):
        return "a finite number"
    if math.isinf(high):
        return f"a finite number of at least {shown(low)}"
    if math.isinf(low):
        return f"a finite number of at most {shown(high)}"
    return f"a number from {shown(low)} to {shown(high)}"
