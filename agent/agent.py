"""The Agent: decides, observes, refreshes. The daemon and the replay run this same class.

`decide` is a few dot products and one draw under a frozen rule, logged before it is answered.
`observe`, `ingest`, `simulate` and `expire` log what came back and fold it into the sums.
`refresh` estimates, certifies and freezes the next rule. Everything the agent knows is a fold
over its log: opening a store restores the newest checkpoint and folds the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import msgspec
import numpy as np

from equipoise.agent.answers.certifier import Certifier
from equipoise.agent.budget import Purse
from equipoise.agent.budget.caps import Closed, Quotas, bands_of, model_caps
from equipoise.agent.budget.ledger import Ledger
from equipoise.agent.budget.purse import charges_in_force
from equipoise.agent.config import ExperimentConfig
from equipoise.agent.config.reload import Change
from equipoise.agent.controls import Steering, standing_pause
from equipoise.agent.decisions.policy_snapshot import OutputMaps, build_snapshot
from equipoise.agent.decisions.uniforms import Draws, key_hash
from equipoise.agent.decisions.validation import Intake
from equipoise.agent.errors import SKEW, AgentError, BrokenError, check_times
from equipoise.agent.estimators.base import Estimate
from equipoise.agent.features import Transform
from equipoise.agent.lifecycle.eras import OBSERVING, Eras, StopNotes
from equipoise.agent.lifecycle.rules import Rule, RuleBook, same_but_since
from equipoise.agent.lifecycle.stored_config import changes, keep, version
from equipoise.agent.moments.state import Dimensions
from equipoise.agent.monitors.check import Action
from equipoise.agent.monitors.monitor_set import Panel
from equipoise.agent.state.fold import Fold
from equipoise.agent.state.recovery import restore
from equipoise.agent.state.sticky_units import follow, one_by_one
from equipoise.policies.draw import draw
from equipoise.policies.registry import policy
from equipoise.policies.snapshot import Snapshot
from equipoise.store.batches import (
    Batch,
    Closure,
    DecisionBatch,
    ExpiryBatch,
    Flags,
    ObservationBatch,
    OutcomeBatch,
    RequestBatch,
    SimulationBatch,
)
from equipoise.store.contract import Store
from equipoise.store.errors import TornAppendError
from equipoise.store.records import Era, RuleRecord, lost_before

MISCOUNTED = (
    "an older version counted missing rewards wrongly: what it certified of the era before is void"
)
"""Why an era opens where a store holds answers of such a version."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """What became of a batch: rows taken in, exact repeats dropped, and rows that came too late,
    which are logged, counted and never used."""

    rows: int
    duplicates: int = 0
    late: int = 0


class Agent(Steering):
    """One experiment over one store.

    config: models, reward, features, policy, budget; frozen in the store at first use.
    key: 32 secret bytes; with the experiment's name and a decision's number it fixes the draw.
    None opens an existing store for reading: everything but `decide` works.
    at: seconds since the epoch, only used to date the first era and rule.
    open_bytes: of memory for decisions that wait for something; more of them lie in a file beside
    the store, if the store is one. None for no limit.
    Raises AgentError or StoreError where config or key are not those the store was opened with.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        store: Store,
        key: bytes | None,
        *,
        at: float = 0.0,
        open_bytes: int | None = None,
    ) -> None:
        self.config = config
        self.store = store
        self.models = tuple(model.name for model in config.models)
        self.transform = Transform(config.features)
        self.policy = policy(f"{config.policy.gate}+{config.policy.assignment}")
        self.observing_only = False
        self.outputs = OutputMaps()
        self.would_randomize = 0
        """Requests that were only observed and would have been randomized, since the start."""
        self.duplicates = 0
        self.gaps = store.gaps()
        """What the log is known to lack; no more is found out while it is open."""
        self._ahead: tuple[float, int] | None = None
        """Since when decisions of this number and before are known to be dated in the future."""
        self.broken: BrokenError | None = None
        """Why nothing is logged any more; None while the state is that of the log."""
        self.when_broken: Callable[[BaseException], None] | None = None
        """Told of the exception that broke it."""
        self._draws = None if key is None else Draws(key, config.name)
        self.certifier = Certifier(config)
        self.eras = Eras(store, self.models)
        changed = changes(store, config)
        self._freeze(key, at, changed)
        self.paused = standing_pause(store)
        self.rules = RuleBook(store)
        altered = self.rules.altered()
        if altered:
            raise AgentError(
                f"rule {altered[0]} of the store was altered: its text is not the one that its id"
                " is the hash of; restore a backup"
            )
        path: Path | None = getattr(store, "path", None)
        folder = None if path is None else path.absolute().parent
        self.fold = Fold(
            Dimensions(len(self.models), self.transform.d, self.transform.p),
            self.transform.q,
            self.transform,
            self.rules,
            self.certifier.spec,
            config.limits.rate_min,
            Panel(
                self.models,
                self.transform.phi_names[self.transform.d :],
                config.limits,
                config.guardrails,
                missing=config.reward.missing_value,
            ),
            len(config.guardrails),
            None if config.units is None else config.units.ttl,
            Ledger(len(self.models), bands_of(config), config.budget.per_user is not None),
            None if folder is None else open_bytes,
            folder,
        )
        self._intake = Intake(config, self.transform, self.fold, store, self.gaps)
        restore(self.fold, store)
        self.follow()
        self.purse = Purse(config.budget, self.fold.ledger)
        self._closed = Closed(config.policy.exclude, model_caps(config), Quotas.of(config))
        self._view = None
        self._view_seq = -1
        self._revalue()
        self.rule = self._last_rule(at)
        self.alarms = self.rule.alarms
        newest = self.eras.newest
        if key is not None and newest is not None and newest.era > self.rule.era:
            # The process ended between opening an era and its first rule.
            self._freeze_rule(newest.era, at)
        if changed:
            self._reconfigured(changed, at)
        self._stops = StopNotes(store, self.fold.pending.next)
        self._version = version(store)
        if key is not None:
            self._stops.begin(self.purse.limits.get("requests"), at)
        if key is not None and self._miscounted:
            self.open_era(MISCOUNTED, at)

    @property
    def late(self) -> int:
        """Parts of outcomes that came too late to be used, restarts included."""
        return self.fold.late

    @property
    def decisions(self) -> int:
        """Decisions in the log; numbers that were lost are none."""
        end = self.fold.pending.next
        return end - lost_before(self.gaps, end)

    @property
    def full_models(self) -> Flags:
        """(K,) models that have had all the randomized requests they may get."""
        return self._closed.full(self.fold.ledger)

    def decide(self, requests: RequestBatch) -> DecisionBatch:
        """Decide n requests under the rule in force; logged before this returns.

        Raises AgentError for arrays of the wrong shape, numbers that are not finite, and models
        that do not exist; nothing is logged then.
        """
        if self._draws is None:
            raise AgentError("this agent was opened without its key and cannot decide")
        self._intake.check_requests(requests)
        if self.config.units is not None and self._closed.counts_models and len(requests) > 1:
            return one_by_one(self.decide, requests)
        rule = self.rule
        first = self.store.decisions  # numbers that were lost are not given again
        if not rule.active.all():
            every = np.ones((len(requests), len(self.models)), dtype=bool)
            eligible = every if requests.eligible is None else requests.eligible
            requests = replace(requests, eligible=eligible & rule.active)
        uniform = self._draws.uniforms(first, len(requests))
        drawn = self._closed.draw(rule.allocation, requests, uniform, self.fold.ledger)
        if self.observing_only:
            self.would_randomize += int(np.count_nonzero(drawn.randomized))
        batch = DecisionBatch(
            number=np.arange(first, first + len(requests)),
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
        )
        if self.config.units is not None:
            leader = self.fold.units.leaders(requests, self.fold.pending, first)
            batch = follow(replace(batch, leader=leader), self.fold.pending)
        batch = self._within_budget(batch)
        charge = partial(self.purse.charge, batch.routed, batch.model, batch.randomized)
        self._log(batch, charge)
        return batch

    def observe(self, outcomes: OutcomeBatch, came: float | None = None) -> Accepted:
        """Log parts of outcomes. Exact repeats are dropped; what comes too late is counted.

        came: when they came, seconds by the agent's clock; a part counts from then or from its own
        time, whichever is later, and is late if that is after its decision's window, whether or not
        `expire` has run. None takes the parts' own times.
        Raises UnknownDecisionError, ConflictError or AgentError; nothing is logged then.
        """
        kept, duplicates = self._intake.outcomes(outcomes)
        self.duplicates += duplicates
        before = self.fold.late
        if len(kept):
            self._close_overdue(kept, came)
            self._log(kept)
        late = self.fold.late - before
        return Accepted(len(kept) - late, duplicates, late)

    def ingest(self, observations: ObservationBatch) -> Accepted:
        """Log OBS rows that never went through a decision."""
        self._intake.check_observations(observations)
        self._log(observations)
        return Accepted(len(observations))

    def simulate(self, simulations: SimulationBatch) -> Accepted:
        """Log SIM rows; a (context, model) counts once.

        Raises ConflictError where the same context and model come with other outputs.
        """
        kept, duplicates = self._intake.simulations(simulations)
        if len(kept):
            self._log(kept)
        return Accepted(len(kept), duplicates)

    def expire(self, now: float) -> int:
        """Close decisions whose outcome window ended before `now` (seconds); how many.

        Those that are dated in the future, by a clock that was set back since, get one window from
        the first call that finds them so.
        """
        check_times(np.array([now]))
        window = self.config.reward.window
        if window is None:
            return 0
        table = self.fold.pending
        rows = slice(0, table.size)
        complete = table.has_reward[rows] & table.has_outputs[rows]
        waits = ~complete & ~table.expired[rows]
        closing = waits & (table.at[rows] + window < now)
        grows = ~table.expired[rows] & np.isfinite(table.until[rows])
        ahead = (waits | grows) & (table.at[rows] > now + SKEW)
        if not ahead.any():
            self._ahead = None
        elif self._ahead is None:
            self._ahead = now, table.next
        elif self._ahead[0] + window < now:
            closing |= ahead & (np.arange(table.base, table.next) < self._ahead[1])
            self._ahead = None
        numbers = table.base + np.flatnonzero(closing)
        if len(numbers):
            self._log(ExpiryBatch(numbers, np.full(len(numbers), now)))
        return len(numbers)

    def refresh(self, at: float = 0.0, *, review: bool = True) -> Snapshot:
        """Estimate, certify, and freeze the next rule from everything logged so far.

        review: ask the checks as well, keep an alert where one turned, and carry out what alarms
        ask for (a pause, an era, a model left out), as the daemon does at each of its refreshes.
        at: seconds since the epoch, now; dates rules and alerts, and 0 is the time of the newest
        decision to the checks. Returns what the policy saw.
        """
        if not review:
            return self._freeze_rule(self.rule.era, at)
        _, seen = self._reviewed(at, always=True)
        assert seen is not None
        return seen

    def proposed(self, era: int, snapshot: Snapshot, looked: Estimate | None) -> Rule:
        """The next rule of an era, frozen from what is known; nothing is stored.

        looked: the estimate that the snapshot rests on.
        """
        active = self.eras.active(era)
        certified = self.view().certified
        return Rule(
            era=era,
            since=self.fold.pending.next,
            allocation=self.policy.freeze(snapshot),
            prediction=self._prediction(looked),
            frozen=self.certifier.freeze(certified, self.rule, era, self.conditions, active),
            active=active,
            alarms=self.alarms,
            widened=self.asks_for(Action.WIDEN, self.alarms),
            missing=self.config.reward.missing_value,
        )

    def proposal(self, at: float) -> RuleRecord:
        """The next rule as a record, for whoever writes to the store."""
        looked = self._looked()
        made = self.proposed(self.rule.era, self.snapshot(looked), looked)
        # What is the same but for its beginning goes on: no rule is kept twice.
        return (self.rule if same_but_since(made, self.rule) else made).record(at)

    def learn(self, record: RuleRecord) -> None:
        """Act by a rule that is in the store already."""
        self.rules.learn(record)
        self.rule = self.rules.rule(record.rule_id)
        # Prices and values for the budget are those of the moment of the rule.
        self._revalue()

    def follow(self) -> int:
        """Fold what another writer appended to the store since; how many rows the log has now.

        For an agent that reads beside the daemon. Rules must be learnt first (`rules.learn`).
        """
        for segment in self.store.read(since=self.fold.next_seq):
            self.fold.apply(segment.seq, segment.batch)
        return self.fold.next_seq

    def checkpoint(self, at: float = 0.0) -> None:
        """Save the state, so that opening the store again need not fold from the start."""
        self.store.checkpoint(self.fold.next_seq, self.fold.to_bytes(), at)

    def _close_overdue(self, outcomes: OutcomeBatch, came: float | None) -> None:
        """Close the decisions of parts that come after their window, so that they are late.

        In the log, not in memory: folding it again must find the same parts late, under whatever
        window is declared by then.
        """
        window, table = self.config.reward.window, self.fold.pending
        if window is None:
            return
        if len(outcomes) == 1:
            # Nearly all are in time; arrays of one would cost as much as the rest of `observe`.
            own, row = outcomes.at.item(), outcomes.number.item() - table.base
            latest = own if came is None or own > came else came
            if row >= 0 and latest <= table.at[row] + window:
                return
        # Those that are too late anyway need no closing.
        held = np.flatnonzero(~table.too_late(outcomes.number, self.fold.certified.watermark))
        at = table.rows(outcomes.number[held])
        counts = outcomes.at[held] if came is None else np.fmax(outcomes.at[held], came)
        over = counts > table.at[at] + window
        if over.any():
            closed, first = np.unique(outcomes.number[held[over]], return_index=True)
            self._log(ExpiryBatch(closed, counts[over][first]))

    def _log(self, batch: Batch, then: Callable[[], None] | None = None) -> None:
        """Append and fold, and do what belongs to it. Raises BrokenError where it ends between."""
        if self.broken is not None:
            raise self.broken
        appended = False
        try:
            seq = self.store.append(batch)
            appended = True
            self.fold.apply(seq, batch)
            if then is not None:
                then()
        except BaseException as error:
            if not appended and not isinstance(error, TornAppendError):
                raise
            self.broken = BrokenError(
                f"{type(error).__name__} after rows were logged: the state is behind the log until "
                f"the store is opened again"
            )
            if self.when_broken is not None:
                self.when_broken(error)
            if not isinstance(error, Exception):
                raise  # an interrupt stays one, to whoever waits for it
            raise self.broken from error

    def _freeze_rule(self, era: int, at: float) -> Snapshot:
        self._revalue()
        looked = self._looked()
        snapshot = self.snapshot(looked)
        made = self.proposed(era, snapshot, looked)
        if not same_but_since(made, self.rule):
            self.rule = self.rules.add(made, at)
        return snapshot

    def _within_budget(self, batch: DecisionBatch) -> DecisionBatch:
        """The batch with every request that may not be randomized served as routed."""
        reason = Closure.BUDGET
        off = OBSERVING if self.observing_only else self.paused
        if len(batch):
            first, at = int(batch.number[0]), float(batch.at[0])
            limit = self.purse.limits.get("requests")
            self._stops.note(first, off, limit, self._version, at)
        if off is not None:
            reason = Closure.OBSERVING if self.observing_only else Closure.PAUSED
            stopped: Flags | None = np.ones(len(batch), dtype=bool)
        else:
            stopped = self.purse.stopped(batch.routed, batch.model, batch.randomized)
        if stopped is None:
            return batch
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

    def _revalue(self) -> None:
        """Put prices and values as they are known now in force for the budget."""
        limited = self.purse.limits
        values = np.full(len(self.models), np.nan)
        if "harm" in limited:
            family = self.config.policy.estimator
            values = self.estimates([family])[family].values
        if limited:
            # Requests cost one each, whatever is known.
            moments = self.fold.moments if limited.keys() == {"requests"} else self.view().moments
            simulation = moments.simulation
            self.purse.revalue(charges_in_force(limited, self.config, simulation, values))

    def reconfigure(self, config: ExperimentConfig, at: float = 0.0) -> tuple[Change, ...]:
        """Take over a configuration while running, if all it changes may change at any time.

        Returns the changes. Raises AgentError naming what cannot, or can at the next start only:
        what starts an era is done when a store is opened.
        """
        found = changes(self.store, config)
        later = [change.sentence for change in found if change.effect == "era"]
        if later:
            raise AgentError("at the next start, in a new era: " + "; ".join(later))
        self.config = config
        self.transform = Transform(config.features)
        self._intake = Intake(config, self.transform, self.fold, self.store)
        self.policy = policy(f"{config.policy.gate}+{config.policy.assignment}")
        self.certifier = Certifier(config)
        self.purse = Purse(config.budget, self.fold.ledger)
        self._closed = Closed(config.policy.exclude, model_caps(config), Quotas.of(config))
        if found:
            self._reconfigured(found, at)
            self._version = version(self.store)
        return found

    def _reconfigured(self, found: tuple[Change, ...], at: float) -> None:
        """Act by a changed configuration from the next decision on, and keep it."""
        meaning = [change.key for change in found if change.effect == "era"]
        if meaning:
            turned = [change.key for change in found if change.key.endswith(".retired")]
            back = np.array([f"models[{at}].retired" in turned for at in range(len(self.models))])
            before = self.eras.active(self.rule.era) | self.eras.added() | back
            reason = f"configured anew: {', '.join(meaning)}"
            self.open_era(reason, at, before & ~self._retired)
        else:
            self._freeze_rule(self.rule.era, at)
        # Last: if the process ends before, the change is found again.
        keep(self.store, self.config.to_json())

    @property
    def _miscounted(self) -> bool:
        """Whether certified answers of the era in force were given by a version that counted
        missing rewards wrongly: twice through the range, or draws that were not delivered as
        missing. What it said may not be taken back in silence, so a new era begins."""
        reward = self.config.reward
        if self.rule.missing is not msgspec.UNSET or reward.missing_value is None:
            return False
        if not self.fold.next_seq:
            return False
        undelivered = self.fold.watched().delivery.sums["lost"].any()
        return (reward.low, reward.high) != (0.0, 1.0) or bool(undelivered)

    @property
    def _retired(self) -> Flags:
        """(K,) models that are declared retired."""
        return np.array([model.retired for model in self.config.models])

    def _freeze(self, key: bytes | None, at: float, changed: tuple[Change, ...]) -> None:
        schema = self.config.features.schema_hash
        if changed and key is None:
            sentences = "; ".join(change.sentence for change in changed)
            raise AgentError(f"the store was opened with another configuration: {sentences}")
        if key is None:
            return
        if not changed:
            keep(self.store, self.config.to_json())
        self.store.freeze("schema_hash", schema)
        self.store.freeze("key_hash", key_hash(key))
        if not self.store.eras():
            self.store.put(
                Era(
                    era=0,
                    opened_at=at,
                    reason="the experiment opens",
                    models=list(self.models),
                    key_hash=key_hash(key),
                    schema_hash=schema,
                )
            )
            if self._retired.any():
                self.eras.keep_active(0, ~self._retired)

    def _last_rule(self, at: float) -> Rule:
        if len(self.rules):
            return self.rules.by_ordinal(len(self.rules) - 1)
        if self.fold.next_seq:
            raise AgentError("the store has log rows but no rule: it is not an agent's store")
        snapshot = build_snapshot(
            self.config, self.fold.moments, None, requests=0, certified=False, seed=0
        )
        first = Rule(
            era=0,
            since=0,
            allocation=self.policy.freeze(snapshot),
            prediction=None,
            frozen=self.certifier.spec.neutral(),
            active=~self._retired,
            missing=self.config.reward.missing_value,
        )
        return self.rules.add(first, at)
