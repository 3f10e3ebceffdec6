"""Column batches: how records travel inside Equipoise, request axis first.

A batch holds n rows of one kind as arrays of length n. Models are positions 0 … K-1 in the
era's model list; units and contexts are 64-bit keys of their ids (`text_key`), one domain a use.
Decisions are numbered 0, 1, 2, … per store; that number names a decision inside,
`decision_id` outside. Unknown numbers are NaN here and null in SQL and JSON.

Every row of every batch gets one total order number, `seq`, when a store appends it.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from hashlib import blake2b
from mmap import mmap
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

Buffer: TypeAlias = bytes | mmap
"""The bytes of a state: in memory, or a file where it is large."""
Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
Flags: TypeAlias = NDArray[np.bool_]
Texts: TypeAlias = Sequence[str]


class Closure(IntEnum):
    """What closed a request to randomizing, before its draw.

    Up to BUDGET, and by DECIDED, everybody is closed at that time. From SEGMENT to INELIGIBLE it
    depends on the request, so that what stays open is another traffic than the whole. DECIDED: the
    rule stops since its era is decided. SLICE: the decider's slice of a budget was used up, and
    everybody is closed there. LATE and REPEATED close nothing before a draw: their rows were
    decided by their rule, and are left out of every sum of draws, since their decider had lost its
    lane before it shipped them, or since the log had a decision of their request by then. AGAIN: a
    request that two deciders decided at about the same time: it counts as any draw, and waits no
    longer than until the other one is rated, of which all is said that names the request.
    """

    OPEN = 0
    OBSERVING = 1
    PAUSED = 2
    BUDGET = 3
    SEGMENT = 4
    USER = 5
    EXCLUDED = 6
    INELIGIBLE = 7
    DECIDED = 8
    SLICE = 9
    LATE = 10
    REPEATED = 11
    AGAIN = 12


LEFT_OUT = (Closure.LATE, Closure.REPEATED)
"""What leaves a row that was drawn out of the sums of draws."""


def left_out(closed_by: Ints) -> Flags:
    """(n,) whether a `Closure` leaves a row that was drawn out of the sums of draws."""
    late, repeated = LEFT_OUT
    result: Flags = (closed_by == late) | (closed_by == repeated)
    return result


@dataclass(frozen=True, slots=True)
class RequestBatch:
    """What the router asks about: n requests that all arrived by `at`.

    routed: (n,) int64, the model production chose.
    unit: (n,) int64 key of the unit (user or session); groups and jackknife clusters follow it.
    context: (n,) int64 key of the cached context, -1 where there is none.
    x: (n, d) context features. at: (n,) seconds since the epoch.
    eligible: (n, K) bool, or None where every model may serve every request.
    request_id, unit_id, context_id: the text names behind the keys, where there are any.
    """

    unit: Ints
    context: Ints
    at: Floats
    x: Floats
    routed: Ints
    eligible: Flags | None = None
    request_id: Texts | None = None
    unit_id: Texts | None = None
    context_id: Texts | None = None

    @classmethod
    def of_row(cls, row: RequestRow) -> Self:
        """The batch of one request."""
        unit, context, at, x, routed, eligible, *names = row
        numbers = np.array((unit,)), np.array((context,)), np.array((at,), dtype=np.float64)
        return cls(*numbers, x, np.array((routed,)), eligible, *names)

    def __len__(self) -> int:
        return len(self.routed)


RequestRow: TypeAlias = tuple[
    int, int, float, Floats, int, Flags | None, Texts | None, Texts | None, Texts | None
]
"""One request as plain values, in the order of the columns of `RequestBatch`: x is (1, d), eligible
(1, K), and the names are lists of one."""


class _OneRow:
    """Of a batch that may hold its only row as plain values.

    row: the columns in the order of the class, of one row: a number instead of an array of one,
    arrays where a row is one (x, probabilities, eligible). None where the columns are arrays. A
    column becomes an array when it is first asked for: who decides and folds one request at a time
    asks for none, and twenty small arrays cost as much as the decision.
    """

    __slots__ = ("row",)
    row: tuple[Any, ...] | None

    if not TYPE_CHECKING:

        def __getattr__(self, name):
            if name == "row":
                return None
            position = _POSITIONS.get(name)
            row = self.row
            if position is None or row is None:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            value = row[position]
            if type(value) in _PLAIN and name not in _WHOLE_BATCH:
                value = np.array((value,))
            object.__setattr__(self, name, value)
            return value


@dataclass(frozen=True, slots=True)
class DecisionBatch(_OneRow):
    """n decisions made under one rule; everything needed to make them again.

    number: (n,) int64, consecutive. rate: (n,) the gate's e(x), the probability of randomizing.
    probabilities: (n, K) the assignment's pi(.|x). uniform: (n,) the one draw u of each decision:
    u < e randomizes, u / e picks the model along the cumulated probabilities.
    model: (n,) the model to serve; randomized: (n,) whether it came from the draw.
    rule_id: the frozen rule that gave e and pi; era: the era it belongs to.
    capped: (n,) true where something set e to 0 after the rule had spoken; closed_by: (n,) what, a
    `Closure`; None in logs that do not say.
    leader: (n,) the decision whose draw this one took over, its own number where it drew itself;
    None where every row did (units are not sticky).
    draw: (n,) the position of each uniform in the stream of the experiment: lane and counter of a
    decider (`decision_position`); None where it is the number.
    The request's own columns are repeated so that a decision can be read alone.
    """

    number: Ints
    unit: Ints
    context: Ints
    at: Floats
    x: Floats
    routed: Ints
    rate: Floats
    probabilities: Floats
    uniform: Floats
    model: Ints
    randomized: Flags
    capped: Flags
    rule_id: str
    era: int
    eligible: Flags | None = None
    request_id: Texts | None = None
    unit_id: Texts | None = None
    context_id: Texts | None = None
    leader: Ints | None = None
    closed_by: Ints | None = None
    draw: Ints | None = None

    def __post_init__(self) -> None:
        _set_row(self, None)

    @classmethod
    def of_row(cls, row: tuple[Any, ...]) -> Self:
        """The batch of one decision. row: see `_OneRow`."""
        batch = cls.__new__(cls)
        _set_row(batch, row)
        return batch

    def __len__(self) -> int:
        return len(self.number) if self.row is None else 1

    @property
    def positions(self) -> Ints:
        """(n,) of the uniforms, as `draw`."""
        return self.number if self.draw is None else self.draw


@dataclass(frozen=True, slots=True)
class OutcomeBatch:
    """Parts of outcomes of decisions: outputs come with the response, the reward later.

    number: (n,) the decision. attempt: (n,) 1, 2, …, the attempt that the part speaks of; negative
    where it does not say who answered that attempt, 0 where it speaks of none. served: (n,) the
    model that answered it, the assigned one where the part does not say. delivered: (n,) false
    where nobody got the answer of that attempt, true where the part does not say.
    outputs: (n, q) output features, a row of NaN where this part does not carry them.
    reward: (n,) in reward units, NaN where this part does not carry it. at: (n,) seconds.
    metrics: (n, G) guardrail metrics in their declared order, NaN where this part does not carry
    one, or None where no part does. attempts: n JSON lists of all attempts in their order, "" where
    the part does not list them; what they come to stands in attempt, served and delivered.
    """

    number: Ints
    served: Ints
    attempt: Ints
    delivered: Flags
    outputs: Floats
    reward: Floats
    at: Floats
    metrics: Floats | None = None
    attempts: Texts | None = None

    def __len__(self) -> int:
        return len(self.number)


@dataclass(frozen=True, slots=True)
class ObservationBatch:
    """OBS rows that never went through a decision: history, bulk ingestion.

    Shapes as in RequestBatch and OutcomeBatch: x (n, d), outputs (n, q), reward (n,).
    """

    unit: Ints
    at: Floats
    x: Floats
    routed: Ints
    outputs: Floats
    reward: Floats
    request_id: Texts | None = None
    unit_id: Texts | None = None

    def __len__(self) -> int:
        return len(self.routed)


@dataclass(frozen=True, slots=True)
class SimulationBatch:
    """SIM rows: a cached context replayed offline on a model; no user, no reward.

    context: (n,) int64 key of the context; x: (n, d); model: (n,); outputs: (n, q); cost: (n,) USD.
    """

    context: Ints
    model: Ints
    x: Floats
    outputs: Floats
    cost: Floats
    at: Floats
    context_id: Texts | None = None

    def __len__(self) -> int:
        return len(self.model)


@dataclass(frozen=True, slots=True)
class ExpiryBatch:
    """Decisions whose outcome window closed without a reward. number: (n,), at: (n,) seconds."""

    number: Ints
    at: Floats

    def __len__(self) -> int:
        return len(self.number)


_PLAIN = frozenset({bool, int, float})
_set_row = vars(_OneRow)["row"].__set__
_POSITIONS = {field.name: at for at, field in enumerate(fields(DecisionBatch))}

Batch: TypeAlias = DecisionBatch | OutcomeBatch | ObservationBatch | SimulationBatch | ExpiryBatch


@dataclass(frozen=True, slots=True)
class Segment:
    """A batch with the seq of its first row; its rows have consecutive seqs.

    frame: the batch as a journal has it, where one does.
    """

    seq: int
    batch: Batch
    frame: bytes | None = None

    @property
    def seqs(self) -> Ints:
        """(n,) the seq of every row."""
        return np.arange(self.seq, self.seq + len(self.batch), dtype=np.int64)


B = TypeVar("B", bound=Batch)

_WHOLE_BATCH = frozenset({"rule_id", "era"})
_COLUMNS: dict[type, tuple[str, ...]] = {
    kind: tuple(field.name for field in fields(kind)) for kind in get_args(Batch)
}


def slice_rows(batch: B, start: int, stop: int) -> B:
    """Rows start <= i < stop of a batch, without copying; the batch itself where that is all."""
    if start == 0 and stop == len(batch):
        return batch
    columns = {}
    for name in _COLUMNS[type(batch)]:
        column = getattr(batch, name)
        shared = column is None or name in _WHOLE_BATCH
        columns[name] = column if shared else column[start:stop]
    return type(batch)(**columns)


def select(batch: B, rows: Flags) -> B:
    """The rows of a batch where `rows` (n,) is true, copied."""
    return take(batch, np.flatnonzero(rows))


def take(batch: B, rows: Ints) -> B:
    """Rows of a batch by position (n,), in that order, copied."""
    columns = {}
    for name in _COLUMNS[type(batch)]:
        column = getattr(batch, name)
        if isinstance(column, np.ndarray):
            column = column[rows]
        elif column is not None and name not in _WHOLE_BATCH:
            column = [column[row] for row in rows.tolist()]
        columns[name] = column
    return type(batch)(**columns)


def named_observations(
    segments: Iterable[Segment], names: Container[str]
) -> Iterator[tuple[str, Segment]]:
    """Each observation of one of these request ids, alone, in the order of the segments."""
    for segment in segments:
        batch = segment.batch
        if isinstance(batch, ObservationBatch):
            for row, name in enumerate(batch.request_id or ()):
                if name and name in names:
                    yield name, Segment(segment.seq + row, slice_rows(batch, row, row + 1))


def replays_of(
    segments: Iterable[Segment], pairs: Container[tuple[int, int]]
) -> Iterator[tuple[tuple[int, int], Segment]]:
    """Each simulation of one of these (context, model), alone, in the order of the segments."""
    for segment in segments:
        batch = segment.batch
        if isinstance(batch, SimulationBatch):
            keys = zip(batch.context.tolist(), batch.model.tolist(), strict=True)
            for row, pair in enumerate(keys):
                if pair in pairs:
                    yield pair, Segment(segment.seq + row, slice_rows(batch, row, row + 1))


def pairs_of(context: Ints, model: Ints) -> list[tuple[int, int]]:
    """The (context, model) (n,) as plain numbers, each once, in order."""
    return list(dict.fromkeys(zip(context.tolist(), model.tolist(), strict=True)))


def text_key(domain: str, text: str) -> int:
    """A non-negative 63-bit key of a text id within a domain."""
    digest = blake2b(text.encode(), digest_size=8, person=domain.encode()[:16]).digest()
    return int.from_bytes(digest, "little") >> 1


def text_keys(domain: str, texts: Iterable[str]) -> Ints:
    """(n,) keys of n texts."""
    return np.array([text_key(domain, text) for text in texts], dtype=np.int64)
