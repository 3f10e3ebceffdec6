"""A number with declared bounds, offset and scale."""

from __future__ import annotations

import math
from collections.abc import Iterator

from equipoise.agent.features.feature import Encoder, Feature, finite_fault
from equipoise.agent.features.problems import Problem, shown
from equipoise.agent.features.values import LARGEST, Refused, as_number


class Number(Feature, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="number"):
    """A number v becomes (v - offset) / scale, or (log(1 + v) - offset) / scale where `log`.

    low, high: bounds of v, both included; a value outside is refused. With `log`, low is 0 unless
    declared, and must be above -1. offset and scale are declared, never learned: a transform that
    followed the data would make old sums meaningless.

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

    def faults(self) -> Iterator[Problem]:
        yield from super().faults()
        yield from finite_fault("low", self.low)
        yield from finite_fault("high", self.high)
        if not abs(self.offset) <= LARGEST:
            yield Problem("offset", shown(self.offset), f"a number within ±{LARGEST:g}")
        if not 0 < self.scale <= LARGEST:
            yield Problem("scale", shown(self.scale), f"a number above 0, at most {LARGEST:g}")
        low, high = self._bounds()
        if self.log and low <= -1:
            fix = "raise it, or leave out log"
            yield Problem("low", shown(self.low), "a number above -1, since log is on", fix)
        if low >= high:
            limit = f"a number above low, which is {shown(low)}"
            yield Problem("high", shown(self.high), limit, also=("low", "log"))

    def columns(self) -> list[str]:
        return [self.name]

    def encoder(self) -> Encoder:
        (low, high), offset, scale = self._bounds(), self.offset, self.scale
        log1p = math.log1p if self.log else None
        expected = _expected(low, high)

        def encode(value: object, columns: list[float]) -> None:
            number = value if type(value) is float else as_number(value, expected)
            # False for NaN too.
            if not low <= number <= high:
                raise Refused(expected)
            column = ((log1p(number) if log1p else number) - offset) / scale
            if not -LARGEST <= column <= LARGEST:
                raise Refused(f"{expected} within ±{LARGEST:g} after offset and scale")
            columns.append(column)

        return encode

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
