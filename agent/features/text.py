"""A text, of which only bounded statistics are kept."""

from __future__ import annotations

from collections.abc import Iterator

from equipoise.agent.features.feature import Encoder, Feature
from equipoise.agent.features.problems import Problem, shown, suggestion
from equipoise.agent.features.text_statistics import STATISTICS
from equipoise.agent.features.values import Refused

MOST_CHARACTERS = 1_000_000


class Text(Feature, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="text"):
    """A text becomes one column from 0 to 1 per declared statistic; the text itself is dropped.

    statistics: names of `text_statistics.STATISTICS`. max_chars: only so many characters are
    looked at; the length statistics reach 1 there.
    """

    statistics: list[str]
    max_chars: int = 20_000

    def faults(self) -> Iterator[Problem]:
        yield from super().faults()
        if not 1 <= self.max_chars <= MOST_CHARACTERS:
            limit = f"a whole number from 1 to {MOST_CHARACTERS}"
            yield Problem("max_chars", shown(self.max_chars), limit)
        if not self.statistics:
            yield Problem(
                "statistics", "none", "at least one", f"known are: {', '.join(STATISTICS)}"
            )
        for name in dict.fromkeys(self.statistics):
            if name not in STATISTICS:
                fix = suggestion(name, STATISTICS)
                yield Problem("statistics", shown(name), "names of statistics", fix)
            elif self.statistics.count(name) > 1:
                yield Problem("statistics", f"{shown(name)} twice", "each name once", "remove one")

    def columns(self) -> list[str]:
        return [f"{self.name}.{statistic}" for statistic in self.statistics]

    def encoder(self) -> Encoder:
        chosen = [STATISTICS[name] for name in self.statistics]
        max_chars = self.max_chars

        def encode(value: object, columns: list[float]) -> None:
            if not isinstance(value, str):
                raise Refused("text")
            head = value[:max_chars]
            for statistic in chosen:
                columns.append(statistic(head, max_chars))  # noqa: PERF401 - a closure in a hot path

        return encode
