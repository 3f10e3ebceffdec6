"""What an authority publishes: the rule in force, and how much each lane may still draw.

A cap is kept at every moment by *tickets*: a draw needs one, and no more are out than the cap has
left. A lane holds at most a small share of what is left, so that little stays unspent with a
decider that gets no traffic; what a lost lane held counts as spent until all of it has come in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np

from equipoise.agent.agent import Agent
from equipoise.agent.budget.caps import model_caps
from equipoise.agent.config import ExperimentConfig
from equipoise.agent.lifecycle import stored_config
from equipoise.store.lanes import LaneStatus, Publication, Tickets
from equipoise.store.lanes.contract import Spent

SLICES = 2
"""A lane is given one part in so many, for each lane, of what is left."""


def refuse_lanes(config: ExperimentConfig) -> str | None:
    """Why an experiment cannot have deciders, None where it can."""
    what = [
        name
        for name, declared in (
            ("[units]", config.units is not None),
            ("budget.per_user", config.budget.per_user is not None),
        )
        if declared
    ]
    if not what:
        return None
    return (
        f"{' and '.join(what)}: the requests of a user would have to meet in one decider, and lanes"
        " do not see to that; run one daemon without --workers, or leave it out"
    )


@dataclass(frozen=True, slots=True)
class Limits:
    """What may still be drawn: in all, onto each model (K,), in each segment (S,); inf for any
    number. drawn: by the log, as `Spent`."""

    draws: float
    models: tuple[float, ...]
    segments: tuple[float, ...]

    @classmethod
    def of(cls, agent: Agent) -> Limits:
        """Of an experiment, by the draws that its log holds. A budget in money or harm allows as
        many draws as it has room for at the dearest charge."""
        state, ledger = agent.state, agent.light.ledger
        draws = math.inf
        for spending in state.purse.spending():
            if spending.resource in state.purse.limits:
                worst = state.purse.dearest(spending.resource)
                room = max(spending.left, 0.0)
                left = 0.0 if math.isinf(worst) else math.inf if worst <= 0.0 else room / worst
                # A sum of charges may miss its limit through rounding alone.
                draws = min(draws, math.floor(left * (1.0 + 1e-9)))
        models = np.maximum(model_caps(state.config) - ledger.by_model, 0.0)
        caps = [segment.max_requests for segment in state.config.budget.segments]
        segments = np.maximum(np.array(caps, dtype=float) - ledger.by_segment, 0.0)
        return cls(draws, tuple(models.tolist()), tuple(segments.tolist()))

    @property
    def all(self) -> tuple[float, ...]:
        """Every limit in one row."""
        return self.draws, *self.models, *self.segments


@dataclass(slots=True)
class TicketOffice:
    """Gives tickets to lanes. models, segments: K, S. Rows are as `Limits.all`.

    offered: by lane, the tickets it has by the newest publication. granted: by lane, the most it
    may draw by any publication that it may still act by; more than `offered` while tickets that
    were taken back are not given up. counted: by lane, how many of its draws the log holds.
    uncounted: the newest publication by which nothing limits draws, 0 for none.
    """

    models: int
    segments: int
    offered: dict[int, list[float]] = field(default_factory=dict)
    granted: dict[int, list[float]] = field(default_factory=dict)
    counted: dict[int, list[float]] = field(default_factory=dict)
    uncounted: int = 0
    _taken_back: dict[int, int] = field(default_factory=dict)

    def resume(self, publications: Sequence[Publication]) -> None:
        """Go on from what authorities before this one had given. publications: all that lanes may
        act by, in order."""
        for each in publications:
            for lane, tickets in each.tickets.items():
                row = self._padded(
                    [_amount(tickets.draws), *map(_amount, tickets.models)], tickets.segments
                )
                before = self.granted.get(lane, row)
                self.granted[lane] = [max(pair) for pair in zip(before, row, strict=True)]
                self.offered[lane] = row
            for lane, spent in each.counted.items():
                self.counted[lane] = self._padded([spent.draws, *spent.models], spent.segments)
        self.uncounted = max((p.version for p in publications if p.uncounted), default=0)
        for lane, row in self.offered.items():
            if row != self.granted[lane]:
                self._taken_back[lane] = publications[-1].version

    def count(self, lane: int, draws: Sequence[float]) -> None:
        """The log holds so many more draws of a lane, as a row."""
        before = self.counted.get(lane, self._zeros)
        self.counted[lane] = [old + new for old, new in zip(before, draws, strict=True)]

    def forget(self, lanes: Sequence[int]) -> None:
        """These lanes can draw no more, and all that they drew is in the log."""
        for lane in lanes:
            for rows in (self.offered, self.granted, self.counted, self._taken_back):
                rows.pop(lane, None)

    def grant(self, limits: Limits, lanes: Sequence[LaneStatus], version: int) -> None:
        """Give tickets to lanes that are held, as far as the limits allow, and take back what the
        limits no longer cover. lanes: all that the hub knows; version: of the next publication."""
        held = [lane for lane in lanes if lane.ended is None]
        for lane in held:
            self._settle(lane)
            if lane.lane not in self.offered:
                # One that acts by a publication that counts nothing may have drawn any number.
                unlimited = lane.adopted <= self.uncounted
                row = [math.inf] * len(self._zeros) if unlimited else self._zeros
                self.offered[lane.lane], self.granted[lane.lane] = row, list(row)
        if all(map(math.isinf, limits.all)):
            self.uncounted = version
        for column, limit in enumerate(limits.all):
            if math.isinf(limit):
                for lane in held:
                    self.offered[lane.lane][column] = self.granted[lane.lane][column] = limit
                continue
            free, most = self._slice(column, limit, held)
            if free < 0.0:
                for lane in held:
                    self._take_back(lane, column, version)
                continue
            unspent = {lane.lane: self._unspent(lane, column) for lane in held}
            # The poorest first: where little is left everybody gets some.
            for lane in sorted(held, key=lambda each: unspent[each.lane]):
                if free <= 0.0 or lane.lane in self._taken_back:
                    continue
                if unspent[lane.lane] <= most / 2.0:
                    more = min(most - unspent[lane.lane], free)
                    self.offered[lane.lane][column] += more
                    self.granted[lane.lane][column] = self.offered[lane.lane][column]
                    free -= more

    def _slice(self, column: int, limit: float, held: Sequence[LaneStatus]) -> tuple[float, float]:
        """Tickets that nobody has, below 0 where more are out than the limit allows, and how many
        one lane may have unspent."""
        # All that is out and not in the log yet may have been drawn.
        out = self._out(column)
        if out > limit:
            return -1.0, 0.0
        free = float(math.floor(limit - out))
        unspent = sum(self._unspent(lane, column) for lane in held)
        return free, max(1.0, (free + unspent) // (SLICES * max(len(held), 1)))

    def _settle(self, lane: LaneStatus) -> None:
        """A lane that acts by a publication which took tickets back can use them no more."""
        version = self._taken_back.get(lane.lane)
        if version is not None and lane.adopted >= version:
            del self._taken_back[lane.lane]
            row = [
                max(offered, self._spent(lane, column))
                for column, offered in enumerate(self.offered[lane.lane])
            ]
            self.offered[lane.lane], self.granted[lane.lane] = row, list(row)

    def _take_back(self, lane: LaneStatus, column: int, version: int) -> None:
        row = self.offered[lane.lane]
        spent = max(self._spent(lane, column), self._counted(lane.lane, column))
        if row[column] > spent:
            row[column] = spent
            self._taken_back[lane.lane] = version

    def wants(self, limits: Limits, lanes: Sequence[LaneStatus]) -> bool:
        """Whether a lane that is held has no tickets yet, or half of them spent, and there are more
        to give."""
        held = [lane for lane in lanes if lane.ended is None]
        if any(lane.lane not in self.offered for lane in held):
            return True
        for column, limit in enumerate(limits.all):
            if not math.isinf(limit):
                free, most = self._slice(column, limit, held)
                fewest = min((self._unspent(lane, column) for lane in held), default=most)
                if free >= 1.0 and fewest <= most / 2.0:
                    return True
        return False

    def closed_segments(self, limits: Limits, lanes: Sequence[LaneStatus]) -> tuple[int, ...]:
        """Segments in which a lane that is held has no tickets, and there are no more to give: what
        others have left there must not keep everybody waiting for it."""
        first = 1 + self.models
        held = [lane for lane in lanes if lane.ended is None and lane.lane in self.offered]
        return tuple(
            at
            for at, limit in enumerate(limits.segments)
            if limit - self._out(first + at) < 1.0
            and (limit < 1.0 or any(self._unspent(lane, first + at) < 1.0 for lane in held))
        )

    def tickets(self, lanes: Sequence[LaneStatus]) -> dict[int, Tickets]:
        """As published, of every lane that is not forgotten."""
        return {
            lane: Tickets(
                _whole(row[0]),
                tuple(map(_whole, row[1 : 1 + self.models])),
                tuple(int(each) for each in row[1 + self.models :]),
            )
            for lane, row in self.offered.items()
            if lane in {each.lane for each in lanes}
        }

    def counts(self, lanes: Sequence[LaneStatus]) -> dict[int, Spent]:
        """As published: what the log holds of each lane."""
        whole = {lane: [int(each) for each in row] for lane, row in self.counted.items()}
        return {
            lane: Spent(row[0], tuple(row[1 : 1 + self.models]), tuple(row[1 + self.models :]))
            for lane, row in whole.items()
            if lane in {each.lane for each in lanes}
        }

    @property
    def _zeros(self) -> list[float]:
        return [0.0] * (1 + self.models + self.segments)

    def _padded(self, head: Sequence[float], segments: Sequence[float]) -> list[float]:
        """A row of so many models as there are now: one that was added had nothing yet."""
        missing = [0.0] * (1 + self.models - len(head))
        return [*map(float, head), *missing, *map(float, segments)]

    def _counted(self, lane: int, column: int) -> float:
        return self.counted[lane][column] if lane in self.counted else 0.0

    def _out(self, column: int) -> float:
        """What all lanes may draw that the log does not hold yet."""
        return sum(row[column] - self._counted(lane, column) for lane, row in self.granted.items())

    def _unspent(self, lane: LaneStatus, column: int) -> float:
        return max(self.offered[lane.lane][column] - self._spent(lane, column), 0.0)

    def _spent(self, lane: LaneStatus, column: int) -> float:
        said = lane.spent
        row = self._padded([said.draws, *said.models], said.segments)
        # A lane that has said nothing yet has no segments in what it said.
        return row[column] if column < len(row) else 0.0


def _whole(number: float) -> int | None:
    return None if math.isinf(number) else int(number)


def _amount(tickets: int | None) -> float:
    return math.inf if tickets is None else float(tickets)


def publication(
    agent: Agent, version: int, office: TicketOffice, lanes: Sequence[LaneStatus], seconds: float
) -> tuple[Publication, Mapping[str, str]]:
    """The next publication, and the texts that it needs. seconds: as of `Publication`."""
    state = agent.state
    number = stored_config.version(state.store)
    rule, era = state.store.rule(state.rule.rule_id), state.eras.newest
    assert rule is not None
    assert era is not None
    documents = {
        f"config:{number}": state.config.to_json(),
        f"era:{rule.era}": msgspec.json.encode(era).decode(),
        f"rule:{rule.rule_id}": msgspec.json.encode(rule).decode(),
    }
    made = Publication(
        version=version,
        rule_id=rule.rule_id,
        era=rule.era,
        config=number,
        off=state.paused,
        observing=state.observing_only,
        requests=agent.controls.budget,
        closed_segments=office.closed_segments(Limits.of(agent), lanes),
        tickets=office.tickets(lanes),
        counted=office.counts(lanes),
        uncounted=office.uncounted == version,
        exhausted=Limits.of(agent).draws < 1.0,
        decisions=state.store.decisions,
        documents=tuple(documents),
        seconds=seconds,
    )
    return made, documents
