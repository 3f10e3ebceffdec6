"""Rows taken together where all are fine, and apart where one is not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from equipoise.agent.errors import AgentError
from equipoise.agent.features.problems import FeatureError
from equipoise.agent.service.problems import Refusal, problem_of
from equipoise.agent.service.schema import Rejected

T = TypeVar("T")


def take_apart(
    items: Sequence[T],
    rows: Sequence[int],
    take: Callable[[Sequence[T]], dict[str, int]],
    rejected: list[Rejected],
) -> Iterator[Counter[str]]:
    """Take the items at these positions; yields what became of them, by name, after every try, so
    that others can have a turn.

    `take` takes all it is given or raises and takes none. Where it refuses, halves are tried until
    the rows it refuses are alone; they are appended to `rejected`. Good rows cost one call, a bad
    one among n costs 2 log2(n) more. Anything but a refusal (a store that fails) is raised.
    """
    try:
        taken = take([items[row] for row in rows])
    except (AgentError, FeatureError, Refusal) as error:
        if len(rows) == 1:
            document = problem_of(error)
            rejected.append(Rejected(index=rows[0], status=document.status, detail=document.detail))
            yield Counter()
            return
    else:
        yield Counter(taken)
        return
    yield Counter()
    middle = len(rows) // 2
    yield from take_apart(items, rows[:middle], take, rejected)
    yield from take_apart(items, rows[middle:], take, rejected)
