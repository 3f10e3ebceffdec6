"""A list of numbers of fixed length, such as an embedding."""

from __future__ import annotations

from collections.abc import Iterator

from equipoise.agent.features.feature import Encoder, Feature
from equipoise.agent.features.problems import Problem, shown
from equipoise.agent.features.values import Refused, append_list, plain

LONGEST = 1024


class Vector(Feature, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="vector"):
    """length: how many finite numbers the value has; each becomes a column as it is."""

    length: int

    def faults(self) -> Iterator[Problem]:
        yield from super().faults()
        if not 1 <= self.length <= LONGEST:
            yield Problem("length", shown(self.length), f"a whole number from 1 to {LONGEST}")

    def columns(self) -> list[str]:
        return [f"{self.name}[{position}]" for position in range(self.length)]

    def encoder(self) -> Encoder:
        length = self.length
        expected = f"a list of {length} finite numbers"

        def encode(value: object, columns: list[float]) -> None:
            numbers = plain(value)
            if not isinstance(numbers, list | tuple):
                raise Refused(expected)
            append_list(numbers, columns, length, expected)

        return encode
