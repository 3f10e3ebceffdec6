"""From a frozen rule to decisions: eligibility, caps, uniforms, units, the hard stops.

Nothing here logs; `Agent.decide` does, before anything is answered.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from equipoise.agent.answers.answers import ExperimentState
from equipoise.agent.budget.caps import segment_ranges
from equipoise.agent.decisions.uniforms import Uniforms
from equipoise.agent.lifecycle import stored_config
from equipoise.agent.lifecycle.eras import OBSERVING, StopNotes
from equipoise.agent.lifecycle.rules import Rule
from equipoise.agent.state.sticky_units import follow
from equipoise.policies.draw import draw
from equipoise.store.batches import Closure, DecisionBatch, Flags, RequestBatch, RequestRow
from equipoise.store.lanes import Publication, Tickets
from equipoise.store.records import LANE_BITS

_NO_TICKETS = Tickets(draws=0)
_OBSERVING, _PAUSED, _BUDGET = int(Closure.OBSERVING), int(Closure.PAUSED), int(Closure.BUDGET)
_DECIDED, _SLICE = int(Closure.DECIDED), int(Closure.SLICE)


class Decider:
    """Decides requests under the rule in force; what it returns is not logged yet.

    key: 32 secret bytes. lane: whose uniforms it draws, 0 for those of the log's own numbers.
    would_randomize: requests that were only observed and would have been randomized, since the
    start. tickets: of a lane, how many requests it may randomize; None for none. exhausted: whether
    it has none since the budget of the whole experiment is spent.
    """

    def __init__(self, state: ExperimentState, key: bytes, lane: int = 0) -> None:
        self._state = state
        self._origin = lane << LANE_BITS
        self.tickets: Tickets | None = None
        self.exhausted = False
        self._uniforms = Uniforms(key, state.config.name)
        self._stops = StopNotes(state.store, state.light.pending.next)
        self._config_version = stored_config.version(state.store)
        self.would_randomize = 0
        self._compiled: tuple[Rule | None, Flags | None] = None, None

    def begin(self, at: float) -> None:
        """Note what holds before the first decision of a new store. at: seconds since the epoch."""
        self._stops.begin(self._state.purse.limits.get("requests"), at)

    def reconfigured(self) -> None:
        """The store has a newer configuration: decisions from now on rest on it."""
        self._config_version = stored_config.version(self._state.store)

    def note(self, decisions: DecisionBatch, publication: Publication) -> None:
        """Note what held for decisions that were made by a publication, before they are logged."""
        off = OBSERVING if publication.observing else publication.off
        limit = None if publication.requests is None else float(publication.requests)
        first, at = int(decisions.number[0]), float(decisions.at[0])
        self._stops.note(first, off, limit, publication.config, at)

    def decide(self, requests: RequestBatch) -> DecisionBatch:
        """Decisions of n valid requests, as they are to be logged."""
        state, rule = self._state, self._state.rule
        first = state.store.decisions  # numbers that were lost are not given again
        if not rule.active.all():
            every = np.ones((len(requests), len(state.models)), dtype=bool)
            eligible = every if requests.eligible is None else requests.eligible
            requests = replace(requests, eligible=eligible & rule.active)
        uniform = self._uniforms.of(self._origin + first, len(requests))
        drawn = state.caps.draw(rule.allocation, requests, uniform, state.light.ledger)
        if state.observing_only and not rule.stops:
            self.would_randomize += int(np.count_nonzero(drawn.randomized))
        number = np.arange(first, first + len(requests))
        batch = DecisionBatch(
            number=number,
            unit=requests.unit,
            context=requests.context,
            at=requests.at,
            x=requests.x,
            routed=requests.routed,
            rate=drawn.rate,
            probabilities=drawn.shares,
            uniform=uniform,
            model=drawn.model,
            randomized=drawn.randomized,
            capped=drawn.closed_by > 0,
            rule_id=rule.rule_id,
            era=rule.era,
            eligible=drawn.eligible,
            request_id=requests.request_id,
            unit_id=requests.unit_id,
            context_id=requests.context_id,
            closed_by=drawn.closed_by,
            draw=number + self._origin if self._origin else None,
        )
        if state.config.units is not None:
            leader = state.light.units.leaders(requests, state.light.pending, first)
            batch = follow(replace(batch, leader=leader), state.light.pending)
        return self._within_hard_stops(batch)

    @property
    def takes_rows(self) -> bool:
        """Whether `decide_one` can: units are not sticky, and no segment or user has a limit."""
        state = self._state
        return state.config.units is None and not state.caps.counts_rows

    def decide_one(self, request: RequestRow) -> DecisionBatch:
        """As `decide` of one valid request, the same bits, on plain numbers. Only where
        `takes_rows`; what is the same for a whole rule is worked out with its first request."""
        unit, context, at, x, routed, eligible, request_id, unit_id, context_id = request
        state = self._state
        rule, number = state.rule, state.store.decisions
        known, active = self._compiled
        if known is not rule:
            active = None if rule.active.all() else rule.active[None, :]
            self._compiled = rule, active
        if active is not None:
            eligible = active if eligible is None else eligible & active
        position = self._origin + number
        uniform = self._uniforms.one(position)
        rate, shares, model, randomized, closed_by, eligible = state.caps.draw_one(
            rule.allocation, unit, x, routed, eligible, uniform, state.light.ledger
        )
        if state.observing_only and not rule.stops:
            self.would_randomize += randomized
        reason = self._hard_stop(number, at)
        if reason:
            rate, model, randomized, closed_by = 0.0, routed, False, closed_by or reason
        draw = position if self._origin else None
        row = (number, unit, context, at, x, routed, rate, shares, uniform, model, randomized)
        end = (closed_by > 0, rule.rule_id, rule.era, eligible, request_id, unit_id, context_id)
        return DecisionBatch.of_row((*row, *end, None, closed_by, draw))

    def _hard_stop(self, number: int, at: float) -> int:
        """The `Closure` that nobody may be randomized for now, 0 for none: `_within_hard_stops` of
        one request."""
        state = self._state
        off = OBSERVING if state.observing_only else state.paused
        limit = state.purse.limits.get("requests")
        self._stops.note(number, off, limit, self._config_version, at)
        if off is not None:
            return _OBSERVING if state.observing_only else _PAUSED
        if state.rule.stops:
            return _DECIDED
        if not self._origin:
            return 0 if state.purse.covered else _BUDGET
        if self._has_tickets(self.tickets or _NO_TICKETS):
            return 0
        return _BUDGET if self.exhausted else _SLICE

    def _has_tickets(self, tickets: Tickets) -> bool:
        """Whether any draw for one more request has a ticket: `_within_tickets` of it alone."""
        if tickets.unlimited:
            return True
        drawn, active = self._state.light.ledger.by_model.tolist(), self._state.rule.active
        if tickets.draws is not None and sum(drawn) >= tickets.draws:
            return False
        return not any(
            limit is not None and active[model] and drawn[model] >= limit
            for model, limit in enumerate(tickets.models)
        )

    def _within_hard_stops(self, batch: DecisionBatch) -> DecisionBatch:
        """The batch with every request that may not be randomized served as routed."""
        state = self._state
        off = OBSERVING if state.observing_only else state.paused
        if len(batch):
            first, at = int(batch.number[0]), float(batch.at[0])
            limit = state.purse.limits.get("requests")
            self._stops.note(first, off, limit, self._config_version, at)
        if off is not None:
            reason = Closure.OBSERVING if state.observing_only else Closure.PAUSED
            return _closed(batch, _all(batch), reason)
        if state.rule.stops:
            # A unit that was drawn before keeps its model until it ends: served otherwise from now
            # on, it would count against what it had drawn.
            opens = _all(batch) if batch.leader is None else batch.leader == batch.number
            batch = _closed(batch, opens, Closure.DECIDED)
        if self._origin:
            return self._within_tickets(batch, self.tickets or _NO_TICKETS)
        stopped = state.purse.stopped(batch.routed, batch.model, batch.randomized)
        return batch if stopped is None else _closed(batch, stopped, Closure.BUDGET)

    def _within_tickets(self, batch: DecisionBatch, tickets: Tickets) -> DecisionBatch:
        """The batch with every request served as routed that the lane has no ticket for.

        Where any ticket that a draw might need is used up, everybody is closed: closing some alone
        would leave another traffic than the whole, for as long as the next tickets take to come.
        """
        if tickets.unlimited:
            return batch
        state = self._state
        ledger, active = state.light.ledger, state.rule.active
        drawn = batch.randomized.astype(np.int64)
        # What every row finds: the draws before it, of the rows that are randomized unless closed.
        stopped = np.zeros(len(batch), dtype=bool)
        if tickets.draws is not None:
            stopped |= ledger.by_model.sum() + np.cumsum(drawn) - drawn >= tickets.draws
        for model, limit in enumerate(tickets.models):
            if limit is not None and active[model]:
                onto = drawn * (batch.model == model)
                stopped |= ledger.by_model[model] + np.cumsum(onto) - onto >= limit
        inside = [segment.holds(batch.x) for segment in segment_ranges(state.config)]
        shut = state.caps.shut(ledger)
        for index, limit in enumerate(tickets.segments):
            if shut[index]:
                continue  # nobody is drawn there any more; the rest of the traffic goes on
            within = drawn * inside[index]
            stopped |= ledger.by_segment[index] + np.cumsum(within) - within >= limit
        # Whoever comes after a row that was closed is closed too: nothing comes back in a batch.
        stopped = np.logical_or.accumulate(stopped)
        reason = Closure.BUDGET if self.exhausted else Closure.SLICE
        return _closed(batch, stopped, reason) if stopped.any() else batch


def _all(batch: DecisionBatch) -> Flags:
    return np.ones(len(batch), dtype=bool)


def _closed(batch: DecisionBatch, stopped: Flags, reason: Closure) -> DecisionBatch:
    """The batch with these rows (n,) served as routed."""
    rate = np.where(stopped, 0.0, batch.rate)
    model, randomized = draw(batch.uniform, rate, batch.probabilities, batch.routed)
    before = np.zeros(len(batch), dtype=np.int64)
    before = before if batch.closed_by is None else batch.closed_by
    return replace(
        batch,
        rate=rate,
        model=model,
        randomized=randomized,
        capped=batch.capped | stopped,
        closed_by=np.where(stopped & (before == 0), int(reason), before),
    )
