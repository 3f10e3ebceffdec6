"""One lane of a decider: its agent, its names, and what it acts by.

The agent of a lane decides as that of a whole log does, by the rule that its authority publishes.
Caps are counted by the authority, in tickets; outcomes of decisions that the lane does not know are
handed on to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import msgspec
import numpy as np

from equipoise.agent.agent import Accepted, Agent
from equipoise.agent.budget.caps import Caps, Quotas, model_caps, segment_ranges
from equipoise.agent.config import ExperimentConfig
from equipoise.agent.decisions.uniforms import key_hash
from equipoise.agent.record_adapter import RecordAdapter
from equipoise.store.batches import DecisionBatch, Ints
from equipoise.store.lanes import Lease, Publication, Report, Spent, Tickets
from equipoise.store.lanes.lane_journal import LeftLane
from equipoise.store.lanes.lane_store import LaneStore
from equipoise.store.records import Era, Outcome, RuleRecord, decision_position

MOST_RULES = 2_000
"""Rules that one lane adopts: a lane forgets none, so then a new one follows."""
_UNLIMITED = float(2**62)


def lane_config(config: ExperimentConfig) -> ExperimentConfig:
    """The configuration as a lane decides by it: caps are the authority's to count, by tickets."""
    models = [msgspec.structs.replace(model, max_requests=None) for model in config.models]
    budget = msgspec.structs.replace(
        config.budget, requests=None, money=None, harm=None, horizon=None, planned=None
    )
    return msgspec.structs.replace(config, models=models, budget=budget)


def experiment_id(config: ExperimentConfig, key: bytes) -> str:
    """32 hexadecimal digits that name an experiment and its key."""
    name = f"{config.name}\0{key_hash(key)}".encode()
    return blake2b(name, digest_size=16, person=b"equipoise-lanes").hexdigest()


class LaneRecords(RecordAdapter):
    """As `RecordAdapter`, over one lane: outcomes of decisions that it does not know are reported
    to the authority, which tells repeats and contradictions apart."""

    def __init__(self, agent: Agent, store: LaneStore, clock: Callable[[], float]) -> None:
        super().__init__(agent, clock)
        self._store = store

    def number(self, name: str) -> int | None:
        """As of `RecordAdapter`; None too for what the lane has forgotten."""
        number = super().number(name)
        return None if number is None or number < self._store.oldest else number

    def observe(
        self,
        outcomes: Sequence[Outcome],
        check: Callable[[Ints], None] | None = None,
        came: float | None = None,
    ) -> Accepted:
        """As `RecordAdapter.observe`; `check` gets -1 for a decision that is not known here."""
        came = self._clock() if came is None else came
        decided = self._store.find_requests([o.request_id for o in outcomes if o.request_id])
        known = [self._knows(outcome, decided) for outcome in outcomes]
        own = [outcome for outcome, here in zip(outcomes, known, strict=True) if here]
        others = [outcome for outcome, here in zip(outcomes, known, strict=True) if not here]
        numbers = np.full(len(outcomes), -1, dtype=np.int64)
        numbers[known] = self._numbers(own)
        if check is not None:
            check(numbers)
        reports = self._reports(others, came)
        accepted = Accepted(0)
        if own:
            batch = self._outcomes(own, numbers[known])
            accepted = self.agent.observe(batch, came=came)
        if reports:
            self._store.report(len(reports), msgspec.json.encode(reports))
        return Accepted(accepted.rows + len(reports), accepted.duplicates, accepted.late)

    def _knows(self, outcome: Outcome, decided: dict[str, int]) -> bool:
        """Whether an outcome is of a decision of this lane, or cannot be of any."""
        name = outcome.decision_id
        if name is None:
            return outcome.request_id is None or outcome.request_id in decided
        return decision_position(name) is None or self.number(name) is not None

    def _reports(self, outcomes: Sequence[Outcome], came: float) -> list[Report]:
        if not outcomes:
            return []
        # Checked as if they were of the first decision: what is right of any is right of that one.
        batch = self._outcomes(outcomes, np.full(len(outcomes), -1, dtype=np.int64))
        self.agent.check_outcomes(batch)
        fields = Outcome.__struct_fields__
        return [
            Report(
                outcome=Outcome(**{name: getattr(each, name) for name in fields}),
                came=came,
                # Who named the decision had its token compared already.
                token=getattr(each, "outcome_token", None) if each.decision_id is None else None,
                unit=getattr(each, "unit_id", None),
            )
            for each in outcomes
        ]


@dataclass(slots=True)
class Lane:
    """A lane that is held, or was. until: when its lease may have run out, fresh: when its
    publication is too old, both by the monotonic clock."""

    lease: Lease
    config: ExperimentConfig
    store: LaneStore
    agent: Agent
    records: LaneRecords
    publication: Publication
    number: int
    """Of the configuration that it decides by."""
    until: float = 0.0
    fresh: float = 0.0
    rules: int = 1
    told: int = 0
    """The newest publication that the hub knows it to act by."""

    def decides(self) -> bool:
        """Whether it may draw now."""
        now = time.monotonic()
        # Rows that were drawn elsewhere are their authority's to end.
        return now < self.until and now < self.fresh and self.agent.rule.drawn is None

    @property
    def worn(self) -> bool:
        """Whether another lane is to follow."""
        return self.rules >= MOST_RULES or self.agent.broken is not None

    def counted(self) -> Spent:
        """What it has randomized so far."""
        ledger = self.agent.light.ledger
        models = tuple(int(count) for count in ledger.by_model)
        segments = tuple(int(count) for count in ledger.by_segment)
        return Spent(sum(models), models, segments)

    def act_by(self, publication: Publication, records: Sequence[Era | RuleRecord]) -> None:
        """Adopt a publication, in the thread that decides. records: of it, eras first."""
        agent, store = self.agent, self.store
        for record in records:
            store.put(record)
            if isinstance(record, RuleRecord):
                agent.controls.adopt(record)
                self.rules += 1
        state = agent.state
        state.observing_only = publication.observing
        state.paused = None if publication.observing else publication.off
        unnamed = Tickets() if publication.uncounted else Tickets(draws=0)
        agent.limit(publication.tickets.get(self.lease.lane, unnamed), publication.exhausted)
        state.caps = lane_caps(self.config, publication.closed_segments)
        self.publication = publication
        store.version = publication.version


def lane_caps(config: ExperimentConfig, closed: Sequence[int]) -> Caps:
    """The caps of a lane: segments whose cap is reached are closed, the rest its tickets count."""
    quotas = Quotas.of(config)
    left = [0 if at in closed else int(_UNLIMITED) for at in range(len(quotas.segments))]
    limits = Quotas(quotas.segments, tuple(left), None)
    return Caps(config.policy.exclude, model_caps(config), limits)


def spent_in_all(spent: Spent, left: LeftLane, config: ExperimentConfig) -> Spent:
    """What a killed decider had spent: what it said last, and the draws of its entries since."""
    models = np.zeros(len(config.models), dtype=np.int64)
    models[: len(spent.models)] = spent.models
    ranges = segment_ranges(config)
    segments = np.zeros(len(ranges), dtype=np.int64)
    segments[: len(spent.segments)] = spent.segments
    for entry in left.since:
        if isinstance(entry.content, DecisionBatch):
            drawn = entry.content.randomized
            models += np.bincount(entry.content.model[drawn], minlength=len(models))
            for at, segment in enumerate(ranges):
                segments[at] += int(np.count_nonzero(segment.holds(entry.content.x[drawn])))
    return Spent(int(models.sum()), tuple(models.tolist()), tuple(segments.tolist()))
