"""The authority's side of the log: what deciders ship gets its numbers and enters, once.

Decisions of a publication enter when nobody can ship more of it, in the order of lane and counter;
so the order rests on no outcome, and a row's rule rests on rows before it alone. What a lane ships
after it was ended enters as `LATE`, behind what came in time of its publication. Outcomes enter
when their decision has.

Nothing is kept here that the log and the hub do not hold: after a crash at any moment the next
authority goes on from both. A row is in the log once, since a lane's counters there only rise; it
leaves the hub when the log holds it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Protocol, TypeAlias

import msgspec
import numpy as np

from equipoise.agent.agent import Accepted, Agent
from equipoise.agent.budget.caps import segment_ranges
from equipoise.agent.errors import (
    SKEW,
    AgentError,
    ConflictError,
    TimeError,
    UnknownDecisionError,
)
from equipoise.agent.record_adapter import RecordAdapter
from equipoise.agent.state.chunk import occurrence
from equipoise.store.batches import (
    Batch,
    Closure,
    DecisionBatch,
    Floats,
    Ints,
    OutcomeBatch,
    select,
    slice_rows,
    take,
    text_key,
)
from equipoise.store.format.frames import body_to_batch
from equipoise.store.format.sql_rows import joined, same_shape
from equipoise.store.lanes import LaneStatus, Parcel, Publication, Report
from equipoise.store.records import LANE_BITS, Outcome, decision_id

ROWS_AT_ONCE = 4096
"""Rows that are appended before others have a turn."""
PORTION_ROWS = 1 << 16
"""Rows that are in memory together, and whose requests are told apart by their times."""
MOMENT_SECONDS = 1.0
"""What came so close together counts as come at one time, that of the last."""
WAIT_SECONDS = 60.0
"""How long an outcome waits for its decision once all that came in time have entered, at least."""

_Bearers: TypeAlias = dict[str, tuple[int, int]]
"""By request id, the position of the decision that bears it in the log, -1 where it is there, and
its number there."""
_NOT_YET = 1 << 62

_reports = msgspec.json.Decoder(list[Report])


class Counts(Protocol):
    """Who is told how many draws of a lane the log holds: `TicketOffice.count`."""

    def __call__(self, lane: int, draws: Sequence[float]) -> None: ...


@dataclass(slots=True)
class Sequenced:
    """What became of what came, since the start.

    decisions, late, repeated: rows that entered, those that came after their lane was ended, and
    those whose request was in the log before their publication was made. bounded: decisions whose
    time was moved into what their publication and the hub allow. outcomes, duplicates: parts taken,
    and dropped as repeats; out_of_time: after their window. refused: parts that contradict what the
    log holds, or name nothing that exists, by the error's sentence.
    """

    decisions: int = 0
    late: int = 0
    repeated: int = 0
    bounded: int = 0
    outcomes: int = 0
    duplicates: int = 0
    out_of_time: int = 0
    refused: dict[str, int] = field(default_factory=dict)

    def refuse(self, why: str, count: int = 1) -> None:
        """Count parts that were refused; of many different reasons the first are told apart."""
        known = why in self.refused or len(self.refused) < _TOLD_APART
        name = why if known else "for other reasons"
        self.refused[name] = self.refused.get(name, 0) + count


_TOLD_APART = 20
_NEVER_CAME = "an outcome of a decision that never came"


def closed_version(newest: int, lanes: Sequence[LaneStatus]) -> int:
    """The newest publication of which nobody can ship any more in time. newest: the newest of all;
    lanes: all that the hub knows, asked for after `newest` was published."""
    held = [lane.adopted for lane in lanes if lane.ended is None]
    return min(held, default=newest + 1) - 1


class Sequencer:
    """Gives numbers to what came. agent: of the whole log; adapter: its names.

    versions: publications that rows may still be of, by version. closed: the newest of which all
    decisions that came in time have entered. count: told of every draw. vouch: called with a report
    and the id of the decision that it turned out to be of; raises AgentError to refuse it.
    """

    def __init__(
        self,
        agent: Agent,
        adapter: RecordAdapter,
        count: Counts,
        vouch: Callable[[Report, str], None] = lambda report, name: None,
    ) -> None:
        self._agent, self._adapter, self._count, self._vouch = agent, adapter, count, vouch
        self.versions: dict[int, Publication] = {}
        self.closed = 0
        self.done = Sequenced()
        self._taken: dict[tuple[int, int], set[int]] = {}
        self._entering: list[tuple[set[int], list[int]]] = []
        self._ends: dict[int, int] | None = None

    def decisions(self, parcels: Iterator[Parcel]) -> Iterator[list[tuple[int, int]]]:
        """Let the decisions of parcels enter, which come in the order of `Hub.decisions`; yields
        (lane, place) of those whose rows the log holds by now, every few thousand rows."""
        for portion in _portions(parcels):
            rows = list(self._fresh(portion))
            names = self._first_of_requests(rows)
            together: list[tuple[Parcel, DecisionBatch]] = []
            finished, waiting = list[tuple[int, int]](), 0
            for parcel, batch in rows:
                if len(batch):
                    told = self._told_apart(parcel, batch, names)
                    # A store takes many rows at the price of few: one append for all that fit.
                    if together and not _fit(together[-1], (parcel, told)):
                        self._enter(together)
                        together = []
                    together.append((parcel, told))
                    waiting += len(batch)
                finished.append((parcel.lane, parcel.place))
                if waiting >= ROWS_AT_ONCE:
                    self._enter(together)
                    yield finished
                    together, finished, waiting = [], [], 0
            self._enter(together)
            if finished:
                yield finished

    def _fresh(self, portion: Sequence[Parcel]) -> Iterator[tuple[Parcel, DecisionBatch]]:
        """The decisions of each parcel that the log does not hold yet, with times that can be."""
        if self._ends is None:
            # Asked once: a log has many lanes after a while, and nobody else writes to it.
            self._ends = self._agent.store.lane_ends()
        ends = self._ends
        for parcel in portion:
            batch = _batch(parcel)
            assert isinstance(batch, DecisionBatch)
            draw = (parcel.lane << LANE_BITS) + batch.number
            known = batch.number < ends.get(parcel.lane, 0)
            if known.any():
                # What came late may have entered before what came in time and waits for others.
                there = self._agent.store.find_draws(draw[known].tolist())
                known[known] = [position in there for position in draw[known].tolist()]
                batch, draw = select(batch, ~known), draw[~known]
            yield parcel, replace(batch, draw=draw, at=self._times(parcel, batch))

    def _times(self, parcel: Parcel, batch: DecisionBatch) -> Floats:
        """(n,) when they were decided, within what is possible: after their publication, but for
        what a caller's clock may be behind, and before the hub had them."""
        publication = self.versions.get(parcel.version)
        low = 0.0 if publication is None else publication.at - SKEW
        at = np.clip(batch.at, min(low, parcel.received), parcel.received)
        self.done.bounded += int(np.count_nonzero(at != batch.at))
        return at

    def _first_of_requests(self, rows: Sequence[tuple[Parcel, DecisionBatch]]) -> _Bearers:
        """By request id, the position of the decision that bears it in the log: the earliest of
        these by their times, -1 where the log has another."""
        first: dict[str, tuple[float, int]] = {}
        for _, batch in rows:
            for name, at, position in zip(
                batch.request_id or (), batch.at.tolist(), batch.positions.tolist(), strict=False
            ):
                if name and (name not in first or (at, position) < first[name]):
                    first[name] = at, position
        known = self._agent.store.find_requests(list(first))
        return {
            name: (-1 if name in known else position, known.get(name, _NOT_YET))
            for name, (_, position) in first.items()
        }

    def _told_apart(self, parcel: Parcel, batch: DecisionBatch, names: _Bearers) -> DecisionBatch:
        """The decisions with what leaves them out of all sums, if anything."""
        count = len(batch)
        publication = self.versions.get(parcel.version)
        held = 0 if publication is None else publication.decisions
        closed_by = np.zeros(count, dtype=np.int64) if batch.closed_by is None else batch.closed_by
        requests = batch.request_id
        repeated = np.zeros(count, dtype=bool)
        if requests is not None:
            pairs = list(zip(requests, batch.positions.tolist(), strict=True))
            again = [bool(name) and names[name][0] != at for name, at in pairs]
            # Left out only if the log held the first when the publication was made: then it was
            # surely decided before. By the clocks of deciders, or in the order of the log, a
            # request that is sent again since its answer did not please could displace the first.
            repeated = np.array(again) & np.array(
                [bool(name) and names[name][1] < held for name, _ in pairs]
            )
            if any(again):
                requests = [
                    "" if more else name for more, name in zip(again, requests, strict=True)
                ]
            closed_by = np.where(np.array(again) & (closed_by == 0), int(Closure.AGAIN), closed_by)
        # Whatever else closed it: a row that is out of its order is in no sum.
        closed_by = np.where(repeated, int(Closure.REPEATED), closed_by)
        if parcel.late:
            closed_by = np.full(len(batch), int(Closure.LATE))
        done = self.done
        done.late += count if parcel.late else 0
        done.repeated += int(
            np.count_nonzero(np.isin(closed_by, (Closure.REPEATED, Closure.AGAIN)))
        )
        return replace(batch, closed_by=closed_by, request_id=requests)

    def _enter(self, together: Sequence[tuple[Parcel, DecisionBatch]]) -> None:
        """Give numbers to the decisions of parcels of one publication, and log them."""
        if not together:
            return
        batch, agent = joined([batch for _, batch in together]), self._agent
        first = agent.store.decisions
        numbered = replace(batch, number=np.arange(first, first + len(batch)))
        try:
            agent.take_shipped(numbered, self.versions.get(together[0][0].version))
        except BaseException:
            self._ends = None
            raise
        self.done.decisions += len(batch)
        ends = {} if self._ends is None else self._ends
        for parcel, part in together:
            end = int(part.positions[-1]) % (1 << LANE_BITS) + 1
            ends[parcel.lane] = max(ends.get(parcel.lane, 0), end)
            self._count(parcel.lane, _draws_of(agent, part))

    def close_again(self, now: float) -> None:
        """Close decisions of requests that were decided twice at once and whose other decision has
        its reward: who names the request rates that one. now: by the agent's clock."""
        table = self._agent.light.pending
        held = slice(0, table.size)
        again = (table.closed_by[held] == Closure.AGAIN) & ~table.expired[held]
        numbers = []
        for row in np.flatnonzero(again & ~table.has_reward[held]).tolist():
            twin = (table.unit[held] == table.unit[row]) & table.has_reward[held]
            if (twin & (table.x[held] == table.x[row]).all(axis=1)).any():
                numbers.append(table.base + row)
        self._agent.close(np.array(numbers, dtype=np.int64), now)

    def outcomes(self, parcels: Sequence[Parcel], now: float) -> list[tuple[int, int]]:
        """Let outcomes enter whose decisions have; (lane, place) of the parcels of which nothing is
        left to wait for. now: by the hub's clock."""
        finished = []
        start = 0
        for stop in range(1, len(parcels) + 1):
            # What came within a moment came at one time, and enters together.
            ends = stop == len(parcels)
            if ends or abs(parcels[stop].received - parcels[start].received) > MOMENT_SECONDS:
                finished += self._outcomes(parcels[start:stop], now)
                start = stop
        return finished

    def _outcomes(self, parcels: Sequence[Parcel], now: float) -> list[tuple[int, int]]:
        finished = []
        self._entering = []
        came = max(parcel.received for parcel in parcels)
        batches: list[OutcomeBatch] = []
        reports: list[tuple[Report, Outcome]] = []
        # What came from then on may be of decisions that are still to enter, however old it is.
        since = min((each.at for v, each in self.versions.items() if v > self.closed), default=now)
        own = [_batch(parcel) for parcel in parcels if parcel.kind == "outcomes"]
        told = [_reports.decode(parcel.body) for parcel in parcels if parcel.kind == "reports"]
        # All at once: each question to a store may be a way over a network.
        named = self._numbers_of(
            [parcel.lane for parcel in parcels if parcel.kind == "outcomes"], own
        )
        known = iter(self._known([report.outcome for each in told for report in each]))
        next_own, next_told = zip(own, named, strict=True), iter(told)
        kinds = [parcel.kind for parcel in parcels]
        for number, parcel in enumerate(parcels):
            waits = parcel.received > since or now - parcel.received < WAIT_SECONDS
            taken = self._taken.setdefault((parcel.lane, parcel.place), set())
            if parcel.kind == "outcomes":
                left = self._own(parcel, waits, batches, taken, *next(next_own))
            else:
                decoded = next(next_told)
                pairs = list(zip(decoded, islice(known, len(decoded)), strict=True))
                left = self._reported(parcel, waits, reports, taken, pairs)
            if not left:
                finished.append((parcel.lane, parcel.place))
            if parcel is parcels[-1] or kinds[number + 1] != parcel.kind:
                # In the order in which they came: of two that contradict each other the first wins.
                self._observe_all(batches, reports, came)
                batches, reports = [], []
        for name in finished:
            self._taken.pop(name, None)
        return finished

    def _observe_all(
        self,
        batches: Sequence[OutcomeBatch],
        reports: Sequence[tuple[Report, Outcome]],
        came: float,
    ) -> None:
        for batch in _together(batches):
            # Parts of one decision may meet here; each is judged by those before it.
            turn = occurrence(batch.number)
            for index in range(int(turn.max()) + 1):
                self._observe(select(batch, turn == index), came)
        for round_ in _rounds(reports):
            self._take(round_, came)
        # Only now: where the store failed in between, all of it is tried again.
        for taken, rows in self._entering:
            taken.update(rows)
        self._entering = []

    def _numbers_of(self, lanes: Sequence[int], batches: Sequence[Batch]) -> list[list[int | None]]:
        """Numbers of the decisions that outcomes of lanes are of, None of those still to come."""
        positions = [
            ((lane << LANE_BITS) + batch.number).tolist()
            for lane, batch in zip(lanes, batches, strict=True)
            if isinstance(batch, OutcomeBatch)
        ]
        numbers = self._agent.store.find_draws([each for some in positions for each in some])
        return [[numbers.get(each) for each in some] for some in positions]

    def _own(
        self,
        parcel: Parcel,
        waits: bool,
        batches: list[OutcomeBatch],
        taken: set[int],
        batch: Batch,
        numbers: Sequence[int | None],
    ) -> int:
        """Gather outcomes of a lane's own decisions; how many still wait. taken: rows of the parcel
        that entered before, while others waited."""
        assert isinstance(batch, OutcomeBatch)
        known = np.array([number is not None for number in numbers], dtype=bool)
        fresh = [row for row in np.flatnonzero(known).tolist() if row not in taken]
        if fresh:
            part = batch if len(fresh) == len(batch) else take(batch, np.array(fresh))
            number = np.array([numbers[row] for row in fresh], dtype=np.int64)
            at = np.minimum(part.at, parcel.received)
            batches.append(replace(part, number=number, at=at))
            self._entering.append((taken, fresh))
        left = int(np.count_nonzero(~known))
        if left and not waits:
            self.done.refuse(_NEVER_CAME, left)
            return 0
        return left

    def _observe(self, batch: OutcomeBatch, came: float) -> None:
        try:
            self._tally(self._agent.observe(batch, came=came))
        except AgentError as error:
            if len(batch) == 1:
                self.done.refuse(_kind(error))
                return
            middle = len(batch) // 2
            self._observe(slice_rows(batch, 0, middle), came)
            self._observe(slice_rows(batch, middle, len(batch)), came)

    def _reported(
        self,
        parcel: Parcel,
        waits: bool,
        reports: list[tuple[Report, Outcome]],
        taken: set[int],
        told: Sequence[tuple[Report, bool]],
    ) -> int:
        """Gather outcomes that name a decision of any lane; how many still wait. taken: as of
        `_own`."""
        left = 0
        for row, (report, is_known) in enumerate(told):
            outcome = report.outcome
            at = min(report.came if outcome.at is None else outcome.at, parcel.received)
            if row in taken:
                continue
            if is_known:
                self._entering.append((taken, [row]))
                dated = msgspec.structs.replace(outcome, at=max(at, 0.0))
                reports.append((report, dated))
            elif waits:
                left += 1
            else:
                self.done.refuse(_NEVER_CAME)
        return left

    def _take(self, reports: Sequence[tuple[Report, Outcome]], came: float) -> None:
        def check(numbers: Ints) -> None:
            for (report, _), number in zip(reports, numbers.tolist(), strict=True):
                self._check(report, number)

        try:
            self._tally(self._adapter.observe([each for _, each in reports], check, came=came))
        except AgentError as error:
            if len(reports) == 1:
                self.done.refuse(_kind(error))
                return
            middle = len(reports) // 2
            self._take(reports[:middle], came)
            self._take(reports[middle:], came)

    def _check(self, report: Report, number: int) -> None:
        """Raise AgentError for a report that is not its sender's to make."""
        known = self._adapter.unit(number)
        if report.unit is not None and known is not None and known != text_key("unit", report.unit):
            raise AgentError("an outcome of a decision that is another unit's")
        if report.token is not None:
            self._vouch(report, decision_id(self._adapter.position(number)))

    def _known(self, outcomes: Sequence[Outcome]) -> list[bool]:
        """Which of these the log has decisions of."""
        store = self._agent.store
        decided = store.find_requests([each.request_id for each in outcomes if each.request_id])
        numbers = self._adapter.numbers([each.decision_id for each in outcomes if each.decision_id])
        return [
            each.request_id in decided
            if each.decision_id is None
            else numbers.get(each.decision_id, store.decisions) < store.decisions
            for each in outcomes
        ]

    def _tally(self, accepted: Accepted) -> None:
        self.done.outcomes += accepted.rows
        self.done.duplicates += accepted.duplicates
        self.done.out_of_time += accepted.late


def _fit(one: tuple[Parcel, DecisionBatch], other: tuple[Parcel, DecisionBatch]) -> bool:
    """Whether two batches can be logged as one: of one publication, and of one shape."""
    return one[0].version == other[0].version and same_shape(one[1], other[1])


def _together(batches: Sequence[OutcomeBatch]) -> Iterator[OutcomeBatch]:
    """The rows in their order, in as few batches as their shapes allow."""
    group: list[OutcomeBatch] = []
    for batch in batches:
        if group and not same_shape(group[-1], batch):
            yield joined(group)
            group = []
        group.append(batch)
    if group:
        yield joined(group)


def _rounds(reports: Sequence[tuple[Report, Outcome]]) -> list[list[tuple[Report, Outcome]]]:
    """The reports in lists that name no decision twice; those of one decision keep their order."""
    rounds: list[list[tuple[Report, Outcome]]] = []
    turns: dict[tuple[str | None, str | None], int] = {}
    for report, outcome in reports:
        # A decision may be named by its id in one and by its request in another: rare, and then
        # the list that holds both is taken in halves.
        name = (outcome.decision_id, outcome.request_id)
        turn = turns.get(name, 0)
        turns[name] = turn + 1
        if turn == len(rounds):
            rounds.append([])
        rounds[turn].append((report, outcome))
    return rounds


def _portions(parcels: Iterator[Parcel]) -> Iterator[list[Parcel]]:
    """Parcels in lists of some thousand rows."""
    portion: list[Parcel] = []
    rows = 0
    for parcel in parcels:
        if portion and rows + parcel.rows > PORTION_ROWS:
            yield portion
            portion, rows = [], 0
        portion.append(parcel)
        rows += parcel.rows
    if portion:
        yield portion


def _draws_of(agent: Agent, batch: DecisionBatch) -> list[float]:
    """What was drawn, as a row of `Limits.all`."""
    drawn = batch.randomized
    onto = np.bincount(batch.model[drawn], minlength=len(agent.models))
    ranges = segment_ranges(agent.config)
    segments = [float(np.count_nonzero(each.holds(batch.x) & drawn)) for each in ranges]
    return [float(np.count_nonzero(drawn)), *onto.astype(float).tolist(), *segments]


def _batch(parcel: Parcel) -> Batch:
    return body_to_batch(parcel.body)


def _kind(error: AgentError) -> str:
    """A reason that many errors share: their names and numbers differ."""
    if isinstance(error, ConflictError):
        return "an outcome that contradicts the one before"
    if isinstance(error, UnknownDecisionError):
        return "an outcome of a decision that does not exist"
    if isinstance(error, TimeError):
        return "an outcome of an impossible time"
    return "an outcome that its decision cannot have"
