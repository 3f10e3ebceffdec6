"""The Agent: decides, observes, refreshes. The daemon and the replay run this same class.

`decide` is a few dot products and one draw under a frozen rule, logged before it is answered.
`observe`, `ingest`, `simulate` and `expire` log what came back and fold it into the sums.
`refresh` estimates, certifies and freezes the next rule. Everything the agent knows is a fold
over its log: opening a store restores the newest checkpoint and folds the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import numpy as np

from equipoise.agent.answers.answers import Answers, ExperimentState
from equipoise.agent.answers.certifier import Certified, Certifier
from equipoise.agent.budget.caps import segment_ranges
from equipoise.agent.budget.ledger import Ledger
from equipoise.agent.config import ExperimentConfig
from equipoise.agent.config.reload import Change
from equipoise.agent.controls import Controls, newest_rule, standing_pause, standing_sentence
from equipoise.agent.decisions.decide import Decider
from equipoise.agent.decisions.uniforms import key_hash
from equipoise.agent.decisions.validation import Validator
from equipoise.agent.errors import SKEW, AgentError, BrokenError, check_times
from equipoise.agent.features import Transform
from equipoise.agent.lifecycle import stored_config
from equipoise.agent.lifecycle.drawn import Drawn
from equipoise.agent.lifecycle.eras import (
    EraAnswer,
    Eras,
    keep_answer,
    read_answers,
    standing_end,
)
from equipoise.agent.lifecycle.opening import freeze_identity, retired, stored_rules
from equipoise.agent.lifecycle.rules import Rule, RuleBook
from equipoise.agent.moments.state import Dimensions, Renewal
from equipoise.agent.monitors.guardrails import GuardrailLimit
from equipoise.agent.monitors.monitor_set import MonitorSet
from equipoise.agent.state.fold import Fold
from equipoise.agent.state.light_fold import LightFold
from equipoise.agent.state.recovery import restore
from equipoise.agent.state.sticky_units import one_by_one
from equipoise.policies.snapshot import Snapshot
from equipoise.store.batches import (
    Batch,
    DecisionBatch,
    ExpiryBatch,
    Flags,
    Ints,
    ObservationBatch,
    OutcomeBatch,
    RequestBatch,
    RequestRow,
    SimulationBatch,
    select,
)
from equipoise.store.contract import Store
from equipoise.store.errors import TornAppendError
from equipoise.store.lanes import Publication, Tickets
from equipoise.store.words import plural, verb

MISCOUNTED = (
    "an older version counted missing rewards wrongly: what it certified of the era before is void"
)
"""Why an era opens where a store holds answers of such a version."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """What became of a batch: rows taken in, exact repeats dropped, rows that came too late, which
    are logged, counted and never used, and usage rows that are left out: unrated ones have no
    reward, decided ones are of requests that the log has as decisions."""

    rows: int
    duplicates: int = 0
    late: int = 0
    unrated: int = 0
    decided: int = 0


class Agent:
    """One experiment over one store.

    config: models, reward, features, policy, budget; frozen in the store at first use.
    key: 32 secret bytes; with the experiment's name and a decision's number it fixes the draw.
    None opens an existing store for reading: everything but `decide` works.
    at: seconds since the epoch, only used to date the first era and rule.
    open_bytes: of memory for decisions that wait for something; more of them lie in a file beside
    the store, if the store is one. None for no limit.
    lane: of a decider, 0 for whoever keeps the whole log; has_lanes: whether that has deciders.
    state: what is decided by; answers: what is known; controls: what may be done to it.
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
        lane: int = 0,
    ) -> None:
        self.duplicates = 0
        self.lane = lane
        self.has_lanes = not lane and bool(store.lane_ends())
        self._open_bytes = open_bytes
        self._dated_ahead: tuple[float, int] | None = None
        """Since when decisions of this number and before are known to be dated in the future."""
        self.broken: BrokenError | None = None
        """Why nothing is logged any more; None while the state is that of the log."""
        self.when_broken: Callable[[BaseException], None] | None = None
        """Called with the exception that broke it."""
        eras = Eras(store, tuple(model.name for model in config.models))
        changes = stored_config.changes(store, config)
        identity = None if key is None else key_hash(key)
        freeze_identity(store, config, identity, changes, eras, at)
        rules = stored_rules(store)
        fold = new_fold(config, rules, store, open_bytes, eras.renewals())
        restore(fold, store)
        for segment in store.read(since=fold.next_seq):
            fold.apply(segment.seq, segment.batch)
        rule = newest_rule(config, rules, fold, at)
        self.state = ExperimentState(
            config, store, eras, rules, fold, rule, standing_pause(store), standing_end(store)
        )
        self.answers = Answers(self.state)
        self.controls = Controls(self.state, self.answers)
        self._validation = self._new_validation()
        self.controls.revalue()
        self.controls.keep_budget()
        self._decider = None if key is None else Decider(self.state, key, lane)
        newest = eras.newest
        if key is not None and newest is not None and newest.era > self.state.rule.era:
            # The process ended between opening an era and its first rule.
            self.controls.freeze_rule(newest.era, at)
        if changes:
            self._apply_changes(changes, at)
        if self._decider is not None:
            self._decider.begin(at)
            if self._miscounted:
                self.controls.open_era(MISCOUNTED, at, ended=None)

    @property
    def config(self) -> ExperimentConfig:
        """The configuration in force."""
        return self.state.config

    @property
    def store(self) -> Store:
        """The log."""
        return self.state.store

    @property
    def models(self) -> tuple[str, ...]:
        """(K,) names in the order of their positions."""
        return self.state.models

    @property
    def fold(self) -> Fold:
        """What was folded from the log, sums included. Raises RuntimeError where another process
        keeps those."""
        return self.state.fold

    @property
    def light(self) -> LightFold:
        """What decisions and outcomes ask for of it."""
        return self.state.light

    @property
    def rule(self) -> Rule:
        """The rule in force."""
        return self.state.rule

    @property
    def late(self) -> int:
        """Parts of outcomes that came too late to be used, restarts included."""
        return self.light.late

    @property
    def would_randomize(self) -> int:
        """Requests that were only observed and would have been randomized, since the start."""
        return 0 if self._decider is None else self._decider.would_randomize

    def decide(self, requests: RequestBatch) -> DecisionBatch:
        """Decide n requests under the rule in force; logged before this returns.

        Raises AgentError for arrays of the wrong shape, numbers that are not finite, and models
        that do not exist; nothing is logged then.
        """
        decider = self._decider
        if decider is None:
            raise AgentError("this agent was opened without its key and cannot decide")
        row = self._validation.plain(requests) if len(requests) == 1 else None
        if row is None:
            self._validation.check_requests(requests)
        state = self.state
        if state.rule.lanes and not self.lane:
            raise AgentError("requests are decided by deciders, whose log this is")
        if state.rule.drawn is not None and len(requests):
            self.end_drawn(float(requests.at[-1]))
        if row is not None and decider.takes_rows:
            return self._log_drawn(decider.decide_one(row))
        if state.config.units is not None and state.caps.counts_models and len(requests) > 1:
            return one_by_one(self.decide, requests)
        return self._log_drawn(decider.decide(requests))

    def decide_one(self, request: RequestRow) -> DecisionBatch:
        """As `decide` of one request, for callers that have it as plain values."""
        decider, rule = self._decider, self.state.rule
        if decider is None or rule.drawn is not None or (rule.lanes and not self.lane):
            return self.decide(RequestBatch.of_row(request))
        if not (decider.takes_rows and self._validation.sound(*request[:6])):
            return self.decide(RequestBatch.of_row(request))
        return self._log_drawn(decider.decide_one(request))

    def take_shipped(self, decisions: DecisionBatch, publication: Publication | None) -> None:
        """Log decisions that a decider made by a publication, None where that is not known any
        more; they carry their numbers."""
        if publication is not None and self._decider is not None:
            self._decider.note(decisions, publication)
        self._log_drawn(decisions)
        self.has_lanes = True

    def observe(self, outcomes: OutcomeBatch, came: float | None = None) -> Accepted:
        """Log parts of outcomes. Exact repeats are dropped; what comes too late is counted.

        came: when they came, seconds by the agent's clock; a part counts from then or from its own
        time, whichever is later, and is late if that is after its decision's window, whether or not
        `expire` has run. None takes the parts' own times.
        Raises UnknownDecisionError, ConflictError or AgentError; nothing is logged then.
        """
        fresh, duplicates = self._validation.outcomes(outcomes)
        self.duplicates += duplicates
        before = self.light.late
        if len(fresh):
            self._close_overdue(fresh, came)
            self._log(fresh)
        late = self.light.late - before
        return Accepted(len(fresh) - late, duplicates, late)

    def check_outcomes(self, outcomes: OutcomeBatch) -> None:
        """Raise AgentError for what no decision could have as its outcome; nothing is logged."""
        self._validation.check_outcomes(outcomes)

    def limit(self, tickets: Tickets, exhausted: bool = False) -> None:
        """Randomize no more than a lane's tickets allow. exhausted: whether the budget is spent."""
        if self._decider is None or not self.lane:
            raise AgentError("only a lane has tickets")
        self._decider.tickets, self._decider.exhausted = tickets, exhausted

    def forget(self, before: int, at: float) -> None:
        """Close decisions of a lane with lower numbers, of which its authority keeps the outcomes.
        at: seconds since the epoch, now."""
        table = self.light.pending
        rows = max(0, min(before - table.base, table.size))
        self.close(table.base + np.flatnonzero(~table.expired[:rows]), at)

    def close(self, numbers: Ints, at: float) -> None:
        """Close decisions (n,) that wait for nothing any more. at: seconds since the epoch, now."""
        if len(numbers):
            self._log(ExpiryBatch(numbers, np.full(len(numbers), at)))

    def continues_drawn(self, drawn: Drawn, active: Flags) -> bool:
        """Whether the era in force is that of rows drawn so elsewhere. active: (K,) models that
        they compare."""
        same = np.array_equal(active, self.rule.active)
        return drawn.continues(self.rule.drawn) and bool(same)

    def close_before_drawn(self, at: float) -> None:
        """Close what has ended before rows that were drawn elsewhere are taken. at: seconds, now.

        Raises AgentError where a decision still waits, since the rows would be certified only after
        it, and where the experiment has ended.
        """
        if self.state.ended is not None:
            raise AgentError(standing_sentence(self.state.ended))
        if self.rule.lanes:
            raise AgentError("rows drawn elsewhere belong into a store that has no deciders")
        self.complete_drawn(at)
        self.expire(at)
        first = self.answers.view().watermark
        waiting = self.light.pending.next - first
        if waiting:
            raise AgentError(
                f"{plural(waiting, 'decision')} {verb(waiting, 'is', 'are')} not closed yet, the"
                f" first is d{first}: rows drawn elsewhere would be certified only after them; take"
                " these into a store of their own, or later"
            )

    def begin_drawn(self, drawn: Drawn, active: Flags, rows: int, at: float) -> None:
        """Begin an era of rows that were drawn elsewhere, unless it is the one in force.

        rows: how many are expected; the rest as in `continues_drawn` and `close_before_drawn`,
        which raises what this does.
        """
        if not self.continues_drawn(drawn, active):
            self.close_before_drawn(at)
            requests = max(rows, 1) * self.config.policy.rate
            self.controls.open_era(drawn.reason, at, active, drawn=drawn, requests=requests)

    def say_drawn(self, drawn: Drawn, at: float) -> None:
        """Keep what the rows of the era in force have shown. at: seconds since the epoch, now."""
        if self.rule.drawn is not None and drawn != self.rule.drawn:
            self.controls.freeze_rule(self.rule.era, at, drawn)

    def withdraw_drawn(self, mapping: str, why: str, at: float) -> None:
        """Take back what was certified of ended eras of rows of a mapping. why: what contradicts
        it, known by now. at: seconds since the epoch."""
        for answer in read_answers(self.store).values():
            parts = [Certified.of_kept(part) for part in answer.parts]
            of = [part.drawn for part in parts if not part.uncertified]
            if any(drawn.startswith(f"{mapping}, as declared on ") for drawn in of):
                kept = [self.state.certifier.withdrawn(part, why).kept for part in parts]
                keep_answer(self.store, EraAnswer(era=answer.era, parts=kept), at)

    def take_drawn(self, decisions: DecisionBatch, outcomes: OutcomeBatch, at: float) -> None:
        """Log decisions that were drawn elsewhere, under the rule in force, with their outcomes;
        what did not come with them never comes. at: seconds since the epoch, now.

        outcomes: of these decisions and of earlier ones whose outcome is not in the log, the last
        n of these. Raises AgentError naming what cannot be; nothing is logged then.
        """
        drawn = self.rule.drawn
        if drawn is None:
            raise AgentError("the era in force is of decisions that are drawn here")
        self._validation.check_drawn(decisions, outcomes)
        if len(decisions):
            self._log(decisions)
        news = ~np.isnan(outcomes.reward) | ~np.isnan(outcomes.outputs).all(axis=1)
        news |= outcomes.attempt != 0
        if news.any():
            self._log(select(outcomes, news))
        if drawn.how != "unit":
            self._complete_drawn(at, outcomes.number)

    def end_drawn(self, at: float) -> None:
        """Begin the next era where the one in force is of rows that were drawn elsewhere: decisions
        are made here from now on. at: seconds since the epoch, now."""
        if self.rule.drawn is None:
            return
        self._complete_drawn(at)
        active = ~retired(self.config)
        self.controls.open_era("decisions are drawn here from now on", at, active)

    def complete_drawn(self, at: float) -> None:
        """Say that the rows of units that were drawn elsewhere are all there. at: seconds, now."""
        if self.rule.drawn is not None:
            self._complete_drawn(at)

    def _complete_drawn(self, at: float, numbers: Ints | None = None) -> None:
        """Close decisions drawn elsewhere, by default all in force, for what did not come."""
        table, era = self.light.pending, self.rule.era
        rows = np.arange(table.size) if numbers is None else table.rows(numbers)
        rows = rows[(table.era[rows] == era) & ~table.expired[rows] & ~table.is_void(rows)]
        complete = table.has_reward[rows] & table.has_outputs[rows]
        self.close(rows[~complete | np.isposinf(table.until[rows])] + table.base, at)

    def ingest(self, observations: ObservationBatch) -> Accepted:
        """Log OBS rows that never went through a decision."""
        self._validation.check_observations(observations)
        self._log(observations)
        return Accepted(len(observations))

    def simulate(self, simulations: SimulationBatch) -> Accepted:
        """Log SIM rows; a (context, model) counts once.

        Raises ConflictError where the same context and model come with other outputs.
        """
        fresh, duplicates = self._validation.simulations(simulations)
        if len(fresh):
            self._log(fresh)
        return Accepted(len(fresh), duplicates)

    def expire(self, now: float) -> int:
        """Close decisions whose outcome window ended before `now` (seconds); how many.

        Those that are dated in the future, by a clock that was set back since, get one window from
        the first call that finds them so.
        """
        check_times(np.array([now]))
        window = self.config.reward.window
        if window is None:
            return 0
        table = self.light.pending
        rows = slice(0, table.size)
        complete = table.has_reward[rows] & table.has_outputs[rows]
        waits = ~complete & ~table.expired[rows]
        closing = waits & (table.at[rows] + window < now)
        grows = ~table.expired[rows] & np.isfinite(table.until[rows])
        ahead = (waits | grows) & (table.at[rows] > now + SKEW)
        if not ahead.any():
            self._dated_ahead = None
        elif self._dated_ahead is None:
            self._dated_ahead = now, table.next
        elif self._dated_ahead[0] + window < now:
            closing |= ahead & (np.arange(table.base, table.next) < self._dated_ahead[1])
            self._dated_ahead = None
        numbers = table.base + np.flatnonzero(closing)
        self.close(numbers, now)
        return len(numbers)

    def refresh(self, at: float = 0.0, *, review: bool = True) -> Snapshot:
        """Estimate, certify, and freeze the next rule from everything logged so far.

        review: ask the checks as well, keep an alert where one turned, and carry out what alarms
        ask for (a pause, an era, a model left out), as the daemon does at each of its refreshes.
        at: seconds since the epoch, now; dates rules and alerts, and 0 is the time of the newest
        decision to the checks. Returns what the policy saw.
        """
        if not review:
            return self.controls.freeze_rule(self.rule.era, at)
        return self.controls.refresh(at)

    def follow(self) -> int:
        """Fold what another writer appended to the store since; how many rows the log has now.

        For an agent that reads beside the daemon. Rules must be adopted first.
        """
        for segment in self.store.read(since=self.light.next_seq):
            self.state.apply(segment.seq, segment.batch)
        return self.light.next_seq

    def checkpoint(self, at: float = 0.0) -> None:
        """Save the state, so that opening the store again need not fold from the start."""
        self.store.checkpoint(self.light.next_seq, self.fold.to_bytes(), at)

    def _close_overdue(self, outcomes: OutcomeBatch, came: float | None) -> None:
        """Close the decisions of parts that come after their window, so that they are late.

        In the log, not in memory: folding it again must find the same parts late, under whatever
        window is declared by then.
        """
        window, table = self.config.reward.window, self.light.pending
        if window is None:
            return
        if len(outcomes) == 1:
            # Nearly all are in time; arrays of one would cost as much as the rest of `observe`.
            own, row = outcomes.at.item(), outcomes.number.item() - table.base
            latest = own if came is None or own > came else came
            if row >= 0 and latest <= table.at[row] + window:
                return
        # Those that are too late anyway need no closing.
        rows = np.flatnonzero(~table.too_late(outcomes.number, self.light.watermark))
        at = table.rows(outcomes.number[rows])
        counts = outcomes.at[rows] if came is None else np.fmax(outcomes.at[rows], came)
        over = counts > table.at[at] + window
        if over.any():
            closed, first = np.unique(outcomes.number[rows[over]], return_index=True)
            self._log(ExpiryBatch(closed, counts[over][first]))

    def _log_drawn(self, batch: DecisionBatch) -> DecisionBatch:
        purse, row = self.state.purse, batch.row
        if row is None:
            self._log(batch, partial(purse.charge, batch.routed, batch.model, batch.randomized))
        elif row[10] and purse.limits:
            self._log(batch, partial(purse.charge_one, row[5], row[9]))
        else:
            self._log(batch)
        return batch

    def _log(self, batch: Batch, then: Callable[[], None] | None = None) -> None:
        """Append and fold, and do what belongs to it. Raises BrokenError where it ends between."""
        if self.broken is not None:
            raise self.broken
        appended = False
        try:
            seq = self.store.append(batch)
            appended = True
            self.state.apply(seq, batch)
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

    def reconfigure(self, config: ExperimentConfig, at: float = 0.0) -> tuple[Change, ...]:
        """Take over a configuration while running, if all it changes may change at any time.

        Returns the changes. Raises AgentError naming what cannot, or can at the next start only:
        what starts an era is done when a store is opened.
        """
        changes = stored_config.changes(self.store, config)
        later = [change.sentence for change in changes if change.effect == "era"]
        if later:
            raise AgentError("; ".join(later))
        self.state.configure(config)
        self._validation = self._new_validation()
        if changes:
            self._apply_changes(changes, at)
        return changes

    def _apply_changes(self, changes: tuple[Change, ...], at: float) -> None:
        """Act by a changed configuration from the next decision on, and keep it."""
        state = self.state
        meaning = [change.key for change in changes if change.effect == "era"]
        if meaning:
            turned = [change.key for change in changes if change.key.endswith(".retired")]
            back = np.array([f"models[{at}].retired" in turned for at in range(len(state.models))])
            before = state.eras.active(state.rule.era) | state.eras.added() | back
            words = (stored_config.in_words(key, state.config) for key in meaning)
            reason = f"configured anew: {', '.join(words)}"
            count = range(len(state.models))
            renewed = tuple(at for at in count if f"models[{at}].version" in meaning)
            left = before & ~retired(state.config)
            self.controls.open_era(reason, at, left, self._ended(), renewed)
        else:
            self.controls.freeze_rule(state.rule.era, at)
        # Last: if the process ends before, the change is found again.
        stored_config.save(state.store, state.config.to_json())
        if self._decider is not None:
            self._decider.reconfigured()

    def _ended(self) -> EraAnswer | None:
        """What was certified of the era that a changed configuration ends, under the one before:
        sums of other models or at another level are not its answer. None where it is void."""
        stored = stored_config.load(self.store)
        if stored is None:
            return None
        config = ExperimentConfig.from_json(stored)
        before = Agent(config, self.store, None, open_bytes=self._open_bytes)
        fits = before.state.certifier.spec.fits(before.rule)
        return before.answers.era_answer() if fits and not before._miscounted else None

    def _new_validation(self) -> Validator:
        state = self.state
        light, store, lane = state.light, state.store, self.lane
        return Validator(state.config, state.transform, light, store, state.gaps, lane)

    @property
    def _miscounted(self) -> bool:
        """Whether certified answers of the era in force were given by a version that counted
        missing rewards wrongly: twice through the range, or draws that were not delivered as
        missing. What it said may not be taken back in silence, so a new era begins."""
        reward = self.config.reward
        if self.rule.missing is not msgspec.UNSET or reward.missing_value is None:
            return False
        if not self.light.next_seq:
            return False
        undelivered = self.fold.watched().delivery.sums["lost"].any()
        return (reward.low, reward.high) != (0.0, 1.0) or bool(undelivered)


def new_fold(
    config: ExperimentConfig,
    rules: RuleBook,
    store: Store,
    open_bytes: int | None,
    renewals: tuple[Renewal, ...],
) -> Fold:
    """A fold of no rows. open_bytes: see `Agent`."""
    transform, models = Transform(config.features), tuple(model.name for model in config.models)
    path: Path | None = getattr(store, "path", None)
    folder = None if path is None else path.absolute().parent
    spec = Certifier(config).spec
    light = LightFold(
        Dimensions(len(models), transform.d, transform.p),
        transform.q,
        transform,
        rules,
        spec,
        config.limits.rate_min,
        len(config.guardrails),
        None if config.units is None else config.units.ttl,
        Ledger(len(models), segment_ranges(config), config.budget.per_user is not None),
        None if folder is None else open_bytes,
        folder,
        renewals,
    )
    panel = MonitorSet(
        models,
        transform.phi_names[transform.d :],
        config.limits,
        [
            GuardrailLimit(each.name, each.limit, each.low, each.high, each.direction == "at-most")
            for each in config.guardrails
        ],
        missing=config.reward.kept_missing,
    )
    return Fold(light, transform, rules, spec, panel)
