"""A list of numbers of fixed length, such as an embedding."""

from __future__ import annotations

from collections.abc import Iterator

from equipoise.agent.features.feature import Encoder, Feature, limit_fault
from equipoise.agent.features.problems import Problem, shown
from equipoise.agent.features.values import LIMIT, Refused, append_list, plain

LONGEST = 1024


class Vector(Feature, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="vector"):
    """length: how many finite numbers the value has; each becomes a column as it is.

    limit: largest magnitude of one, 1e9 unless declared. winsorize: whether a number beyond it
    counts as the limit instead of being refused.
    """

    length: int
    limit: float | None = None
    winsorize: bool = False

    def faults(self) -> Iterator[Problem]:
        yield from super().faults()
        if not 1 <= self.length <= LONGEST:
            yield Problem("length", shown(self.length), f"a whole number from 1 to {LONGEST}")
        yield from limit_fault(self.limit)

    def columns(self) -> list[str]:
        return [f"{self.name}[{position}]" for position in range(self.length)]

    def limits(self) -> list[float]:
        return [max(self._limit(), abs(self.missing or 0.0))] * self.length

    def encoder(self) -> Encoder:
        length, limits, winsorize = self.length, [self._limit()] * self.length, self.winsorize
        expected = f"a list of {length} finite numbers"

        def encode(value: object, columns: list[float]) -> None:
            numbers = plain(value)
            if not isinstance(numbers, list | tuple):
                raise Refused(expected)
            append_list(numbers, columns, expected, limits, winsorize)

        return encode

    def _limit(self) -> float:
        return LIMIT if self.limit is None else self.limit
