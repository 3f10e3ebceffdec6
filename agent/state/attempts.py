"""Who answered a decision: what parts of its outcome say of its attempts, merged.

A gateway tries a model, tries it again, falls back to another one, and reports each attempt, or the
application does, in any order. The rule depends on what was said and not on when:

- of one attempt, it was delivered unless some part says that it was not, and it was answered by
  the model that a part names; where nobody names one, by the assigned model if it was delivered,
  by the routed one if it was not;
- of several, the delivered one with the highest number counts, and where none was delivered the
  last one that was tried.

A decision is *delivered* if some attempt was, and *as drawn* if the attempt that counts was
answered by the assigned model. A part that says nothing of attempts (`attempt` 0) changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from equipoise.agent.errors import AgentError
from equipoise.agent.features.values import shown
from equipoise.store.batches import Flags, Ints, OutcomeBatch
from equipoise.store.records import AttemptReport, Outcome

UNNAMED = -1
FIRST = 1
MOST_ATTEMPTS = 1_000_000


class Attempt(NamedTuple):
    """failed: some part says that it was not delivered; served: position of the model that a part
    says has answered, UNNAMED where none says."""

    failed: bool
    served: int

    def merged(self, other: Attempt, assigned: int) -> Attempt:
        """What both say. Logs of older versions may name two models: then the assigned one has
        not answered, and of others the last in the list has."""
        if UNNAMED in (self.served, other.served) or self.served == other.served:
            served = max(self.served, other.served)
        else:
            served = max({self.served, other.served} - {assigned})
        return Attempt(self.failed or other.failed, served)

    def holds(self, other: Attempt) -> bool:
        """Whether the other one says nothing that is not known."""
        return (self.failed or not other.failed) and other.served in (UNNAMED, self.served)


def reported_attempt(batch: OutcomeBatch, row: int) -> tuple[int, Attempt] | None:
    """The attempt that a part speaks of, and what it says; None where it speaks of none."""
    number = int(batch.attempt[row])
    if number == 0:
        return None
    served = int(batch.served[row]) if number > 0 else UNNAMED
    return abs(number), Attempt(not batch.delivered[row], served)


def merged_attempts(parts: Iterable[OutcomeBatch], assigned: int) -> dict[int, Attempt]:
    """What parts (batches of one row) of one decision say, by attempt."""
    attempts: dict[int, Attempt] = {}
    for part in parts:
        part_says = reported_attempt(part, 0)
        if part_says is not None:
            number, attempt = part_says
            attempts[number] = attempts.get(number, attempt).merged(attempt, assigned)
    return attempts


def effective_attempt(
    attempts: Mapping[int, Attempt], assigned: int, routed: int
) -> tuple[bool, int]:
    """Whether a decision of these attempts was delivered, and the model that answered it.

    >>> effective_attempt({1: Attempt(True, 0), 2: Attempt(False, UNNAMED)}, assigned=0, routed=1)
    (True, 0)
    >>> effective_attempt({1: Attempt(True, UNNAMED)}, assigned=0, routed=1)
    (False, 1)
    """
    delivered = [number for number, attempt in attempts.items() if not attempt.failed]
    last = attempts[max(delivered or attempts)]
    if last.served != UNNAMED:
        return bool(delivered), last.served
    return bool(delivered), assigned if delivered else routed


class Attempts:
    """By decision, everything said of its attempts that is more than "the first was delivered by
    the assigned model", which most decisions say and the caller keeps as a flag."""

    def __init__(self) -> None:
        self._by: dict[int, dict[int, Attempt]] = {}

    def __len__(self) -> int:
        return len(self._by)

    def of(self, number: int, plain: bool, assigned: int) -> dict[int, Attempt]:
        """What is known of a decision, by attempt. plain: that flag of the decision."""
        attempts = dict(self._by.get(number, {}))
        if plain:
            usual = Attempt(False, assigned)
            attempts[FIRST] = attempts.get(FIRST, usual).merged(usual, assigned)
        return attempts

    def take(self, number: int, attempt: int, report: Attempt, assigned: int) -> None:
        """Keep what was said of an attempt of a decision."""
        attempts = self._by.setdefault(number, {})
        attempts[attempt] = attempts.get(attempt, report).merged(report, assigned)

    def among(self, numbers: Ints) -> Flags:
        """(n,) which decisions something is kept of."""
        return np.fromiter((n in self._by for n in numbers.tolist()), bool, len(numbers))

    def forget(self, first: int) -> None:
        """Drop decisions before `first`."""
        self._by = {number: attempts for number, attempts in self._by.items() if number >= first}

    def array(self, first: int) -> Ints:
        """(m, 4) number, attempt, failed, served, in this order, of decisions from `first` on."""
        rows = sorted(row for row in self._rows() if row[0] >= first)
        return np.array(rows, dtype=np.int64).reshape(-1, 4)

    def load(self, array: Ints) -> None:
        """Become the state of `array`."""
        self._by = {}
        for number, attempt, failed, served in array.tolist():
            self._by.setdefault(number, {})[attempt] = Attempt(bool(failed), served)

    def _rows(self) -> Iterator[tuple[int, int, int, int]]:
        for number, attempts in self._by.items():
            for attempt, (failed, served) in attempts.items():
                yield number, attempt, int(failed), served


def encode_attempts(attempts: Sequence[AttemptReport]) -> str:
    """One text for one content: no spaces, nothing that is not known."""
    rows = []
    for attempt in attempts:
        given = msgspec.to_builtins(attempt)
        known = {name: value for name, value in given.items() if value is not None}
        rows.append({"model": attempt.model, **known})  # null for a model that is none of ours
    return msgspec.json.encode(rows).decode()


class Report(NamedTuple):
    """What a part says of attempts, as `OutcomeBatch` takes it. served: the field that names who
    answered, and the name; None where none does."""

    attempt: int
    delivered: bool
    served: tuple[str, str] | None


def speaks(outcome: Outcome) -> bool:
    """Whether a part says anything of attempts."""
    said = outcome.served, outcome.attempt, outcome.delivered, outcome.attempts
    return said != (None, None, None, None)


def report_of(outcome: Outcome) -> Report:
    """Raises AgentError where a part says it twice."""
    if outcome.attempts is not None:
        for name in ("served", "attempt", "delivered"):
            if getattr(outcome, name) is not None:
                value = shown(getattr(outcome, name))
                raise AgentError(f"{name}: received {value} beside attempts, expected one of them")
        places = range(len(outcome.attempts))
        delivered = [place for place in places if outcome.attempts[place].status == "delivered"]
        place = (delivered or places)[-1]
        model = outcome.attempts[place].model
        if model is None:  # whatever it answered, no model of ours did
            return Report(-(FIRST + place), False, None)
        return Report(FIRST + place, bool(delivered), (f"attempts[{place}].model", model))
    delivered_ = outcome.delivered is not False
    if outcome.served is not None:
        return Report(outcome.attempt or FIRST, delivered_, ("served", outcome.served))
    if outcome.attempt is None and outcome.delivered is None:
        return Report(0, delivered_, None)
    return Report(-(outcome.attempt or FIRST), delivered_, None)
