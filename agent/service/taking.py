"""Taking in a list of outcomes: a few rows at a time, each judged alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

import msgspec

from equipoise.agent.ingest.places import Places
from equipoise.agent.service.figures import Figures
from equipoise.agent.service.halving import take_apart
from equipoise.agent.service.schema import OutcomesAnswer, Rejected
from equipoise.store.records import Outcome

T = TypeVar("T", bound=Outcome)

ROWS_AT_ONCE = 34
"""Rows that are taken without a pause: some 300 microseconds, for which a decision may wait."""


class Taking(Generic[T]):
    """One list. take: takes outcomes all or none, and says what became of them."""

    def __init__(
        self,
        outcomes: Sequence[T],
        take: Callable[[Sequence[T]], dict[str, int]],
        figures: Figures,
    ) -> None:
        self._outcomes = outcomes
        self._take = take
        self._figures = figures
        self._total: Counter[str] = Counter()
        self._rejected: list[Rejected] = []

    def turns(self) -> Iterator[None]:
        """Take everything; yields wherever others may have a turn."""
        for rows in _rounds(self._outcomes):
            for start in range(0, len(rows), ROWS_AT_ONCE):
                some = rows[start : start + ROWS_AT_ONCE]
                for taken in take_apart(self._outcomes, some, self._take, self._rejected):
                    self._total += taken
                    yield

    def answer(self) -> OutcomesAnswer:
        """What became of the rows."""
        self._figures.outcomes["rejected"] += len(self._rejected)
        return OutcomesAnswer(
            accepted=self._total["accepted"],
            duplicates=self._total["duplicates"],
            late=self._total["late"],
            rejected=self._placed(sorted(self._rejected, key=lambda row: row.index)),
        )

    def _placed(self, rejected: list[Rejected]) -> list[Rejected]:
        """The refusals; one that contradicts an earlier row of the list says which."""
        conflicts = {row.index for row in rejected if row.status == 409}
        if not conflicts:
            return rejected
        refused = {row.index for row in rejected}
        places, found = Places[int](), dict[int, str]()
        for index, outcome in enumerate(self._outcomes):
            if index not in refused:
                places.keep(outcome, index)
            elif index in conflicts:
                same = places.of(outcome)
                found[index] = f" (index {same[0]} of this body)" if same else ""
        return [
            msgspec.structs.replace(row, detail=row.detail + found.get(row.index, ""))
            for row in rejected
        ]


def _rounds(outcomes: Sequence[Outcome]) -> list[list[int]]:
    """Positions of rows such that no round holds two parts of one decision; order is kept."""
    rounds: list[list[int]] = []
    seen: dict[str | None, int] = {}
    for row, outcome in enumerate(outcomes):
        name = outcome.decision_id or outcome.request_id
        turn = seen.get(name, 0)
        seen[name] = turn + 1
        if turn == len(rounds):
            rounds.append([])
        rounds[turn].append(row)
    return rounds
