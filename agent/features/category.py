"""One of a declared list of values."""

from __future__ import annotations

from collections.abc import Iterator

from equipoise.agent.features.feature import Encoder, Feature
from equipoise.agent.features.problems import Problem, listed, shown
from equipoise.agent.features.values import Refused

OTHER = "other"
MOST_VALUES = 256
LONGEST_VALUE = 100


class Category(Feature, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="category"):
    """A value becomes indicators of all declared values but the first, the reference.

    values: texts, in the order of the columns. other: whether an undeclared text counts as the
    last value, "other"; where it does not, such a text is refused.

    >>> plan = Category(name="plan", values=["free", "pro", "team"])
    >>> plan.columns()
    ['plan=pro', 'plan=team']
    """

    values: list[str]
    other: bool = False

    def faults(self) -> Iterator[Problem]:
        yield from super().faults()
        count = len(self.values) + self.other
        if not 2 <= count <= MOST_VALUES:
            limit = f"2 to {MOST_VALUES} values, {OTHER!r} included"
            yield Problem("values", shown(self.values), limit, also=("other",))
        seen: set[str] = set()
        for value in self.values:
            if not 1 <= len(value) <= LONGEST_VALUE or not value.isprintable():
                limit = f"texts of 1 to {LONGEST_VALUE} printable characters"
                yield Problem("values", shown(value), limit)
            elif value in seen:
                yield Problem("values", f"{shown(value)} twice", "each value once", "remove one")
            seen.add(value)
        if self.other and OTHER in seen:
            limit = f"no declared value {OTHER!r}, since other is on"
            yield Problem("values", shown(OTHER), limit, "rename the value or leave out other")

    def columns(self) -> list[str]:
        values = [*self.values, OTHER] if self.other else self.values
        return [f"{self.name}={value}" for value in values[1:]]

    def encoder(self) -> Encoder:
        width = len(self.values) - 1 + self.other
        rows = {
            value: [1.0 if column == position else 0.0 for column in range(1, width + 1)]
            for position, value in enumerate(self.values)
        }
        if self.other:
            other = [0.0] * (width - 1) + [1.0]
            expected = "text"
        else:
            expected = f"one of {listed(map(repr, self.values))}"

        def encode(value: object, columns: list[float]) -> None:
            if not isinstance(value, str):
                raise Refused(expected)
            row = rows.get(value)
            if row is None:
                if not self.other:
                    raise Refused(expected)
                row = other
            columns.extend(row)

        return encode
