"""Controls: what people, alarms and refreshes do to a running experiment.

Rules are frozen, eras opened, randomizing paused and resumed, the hard stop changed, and what
alarms ask for is carried out. Nothing that a check finds reaches back: the rows it speaks of were
certified under what was known then. An alarm acts on the rows to come, through the rule that is
frozen after it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

import msgspec
import numpy as np

from equipoise.agent.answers.answers import Answers, ExperimentState
from equipoise.agent.answers.certifier import Certifier
from equipoise.agent.answers.policy_snapshot import build_snapshot
from equipoise.agent.budget.purse import charges_in_force
from equipoise.agent.config import ExperimentConfig
from equipoise.agent.errors import AgentError
from equipoise.agent.features.values import shown
from equipoise.agent.lifecycle.drawn import Drawn
from equipoise.agent.lifecycle.eras import (
    DRIFT,
    Ended,
    EraAnswer,
    keep_answer,
    keep_end,
    standing_end,
)
from equipoise.agent.lifecycle.opening import retired
from equipoise.agent.lifecycle.rules import Rule, RuleBook, same_but_since
from equipoise.agent.monitors.check import (
    Action,
    Consequence,
    Verdict,
    last_statuses,
    listed,
    transitions,
)
from equipoise.agent.state.fold import Fold
from equipoise.policies.registry import policy
from equipoise.policies.snapshot import Snapshot
from equipoise.store.batches import Flags
from equipoise.store.contract import Store
from equipoise.store.records import UNPRINTABLE, Alert, RuleRecord

BUDGET = "budget"
"""The name under which a hard stop in requests that an operator set is kept among the controls."""
BY_CHECK = "check "
"""How the reason of a pause begins that a check asked for."""
NO_REASON = "by an operator"
"""What stands where nobody said why the experiment ended."""
MOST_REASON = 500
"""Characters of a reason that somebody gives."""
_UNPRINTED = re.compile(f"[{UNPRINTABLE}]")
_PAUSE = "pause"
"""The name under which pausing and resuming are kept among the alerts."""


class Controls:
    """The controls of one experiment, over the state that its agent decides by."""

    def __init__(self, state: ExperimentState, answers: Answers) -> None:
        self._state = state
        self._answers = answers
        self._kept: dict[str, str] | None = None
        """Status by check of the newest alert of each, read when first needed."""

    def freeze_rule(
        self, era: int, at: float, drawn: Drawn | None = None, requests: float | None = None
    ) -> Snapshot:
        """Freeze the next rule, the first one of a new era perhaps; what the policy saw.

        at: seconds since the epoch, now. drawn, requests: of a new era, as in `open_era`.
        """
        state = self._state
        self.revalue()
        estimate = self._answers.policy_estimate()
        snapshot = self._answers.snapshot(estimate)
        proposed = self._answers.next_rule(era, snapshot, estimate)
        if drawn is None and era == state.rule.era:
            drawn = state.rule.drawn
        if drawn is not None:
            proposed = proposed.elsewhere(drawn, requests)
        if not same_but_since(proposed, state.rule):
            state.rule = state.rules.add(proposed, at)
        return snapshot

    def set_lanes(self, lanes: bool, at: float) -> None:
        """Freeze a rule for decisions that are made by deciders, or here. at: seconds, now."""
        state = self._state
        if state.rule.lanes != lanes:
            since = state.light.pending.next
            state.rule = state.rules.add(replace(state.rule, lanes=lanes, since=since), at)

    def adopt(self, record: RuleRecord) -> None:
        """Act by a rule that is in the store already."""
        self._state.rules.learn(record)
        self._state.rule = self._state.rules.rule(record.rule_id)
        # Prices and values for the budget are those of the moment of the rule.
        self.revalue()

    def revalue(self) -> None:
        """Put prices and values as they are known now in force for the budget."""
        state, answers = self._state, self._answers
        limited = state.purse.limits
        if not limited:
            return
        values = np.full(len(state.models), np.nan)
        if "harm" in limited:
            family = state.config.policy.estimator
            values = answers.estimates([family])[family].values
        # Requests cost one each, whatever is known; sums that are kept elsewhere are not asked for.
        simulation = None if limited.keys() == {"requests"} else answers.view().moments.simulation
        state.purse.revalue(charges_in_force(limited, state.config, simulation, values))

    def open_era(
        self,
        reason: str,
        at: float = 0.0,
        active: Flags | None = None,
        ended: EraAnswer | msgspec.UnsetType | None = msgspec.UNSET,
        renewed: tuple[int, ...] = (),
        drawn: Drawn | None = None,
        requests: float | None = None,
    ) -> None:
        """Start certified sums afresh from the next decision on, and keep the last answer.

        reason: for people, and kept; active: (K,) models to compare from now on, None for those
        compared so far. renewed: models that become another version with it, of which nothing is
        known any more; whatever else the estimators know stays. ended: what was certified of the
        era that ends, where the sums here are not those of its configuration; None where it is
        void. drawn: what is declared of its rows where they were drawn elsewhere, and requests: how
        many are expected, as `EraPrior` counts them.
        Raises AgentError where fewer than two models would be left.
        """
        active = self._state.rule.active if active is None else active
        if np.count_nonzero(active) < 2:
            raise AgentError(f"an era needs two models to compare, {reason!r} leaves fewer")
        newest = self._state.eras.newest
        if newest is None:
            raise AgentError("the store has no era yet: it was opened for reading")
        answer = self._answers.era_answer() if ended is msgspec.UNSET else ended
        if answer is not None:
            # Before the era: if the process ends in between, it is kept again when the era ends.
            keep_answer(self._state.store, answer, at)
        self._state.eras.open(newest.era + 1, reason, at, active, newest)
        light, era = self._state.light, newest.era + 1
        # Kept after the era: if the process ends in between, the change of the configuration is
        # found again, and opens one more.
        kept = self._state.eras.keep_renewals(era, renewed, at, light.next_seq, light.pending.next)
        for renewal in kept:
            light.renew(renewal)
        self._state.alarms = ()
        self.freeze_rule(era, at, drawn, requests)

    def pause(self, reason: str, at: float = 0.0) -> None:
        """Randomize nothing until `resume`; kept in the store, so a restart stays paused. What has
        ended stays ended. Raises AgentError for a reason that is no line of text."""
        check_reason(reason)
        self._pause(reason, at)

    def _pause(self, reason: str, at: float) -> None:
        if self._state.ended is not None:
            return
        self._state.paused = reason
        self._state.store.put(Alert(at=at, check=_PAUSE, status="paused", sentence=reason))

    def end(
        self, model: str | None, reason: str = "", at: float = 0.0, *, certified: bool
    ) -> Ended:
        """Randomize nothing any more, and keep who is to be served: until `resume`, through every
        restart. Ending again in the same way changes nothing, and gives the end that stands.

        model: None to leave today's routing as it is. certified: whether that model is certified
        best, or within epsilon of it, now. Raises AgentError for a model that does not exist, for
        a reason that is no line of text, and where it has ended in another way.
        """
        state = self._state
        if model is not None and model not in state.models:
            raise AgentError(f"model: {model!r} is none of {', '.join(state.models)}")
        check_reason(reason)
        if (standing := state.ended) is not None:
            if (model, reason or standing.reason) == (standing.model, standing.reason):
                return standing
            raise AgentError(standing_sentence(standing))
        ended = Ended(model=model, certified=certified, reason=reason, era=state.rule.era, at=at)
        keep_end(state.store, ended, at)
        state.ended, state.paused = ended, reason or NO_REASON
        # A pause as well: a version that knows no end must not randomize either.
        state.store.put(Alert(at=at, check=_PAUSE, status="paused", sentence=state.paused))
        return ended

    def resume(self, at: float = 0.0, why: str = "") -> None:
        """Randomize again. After a check has paused, or an end, in a new era: what was found, or
        answered, is past.

        why: for people.
        """
        check_reason(why)
        if self._state.ended is not None:
            # First the era: whatever happens in between, what was answered is not added to.
            self.open_era(f"resumed after the end{f': {why}' if why else ''}", at)
            keep_end(self._state.store, None, at)
            self._state.ended = None
        reason, self._state.paused = self._state.paused, None
        if reason is None:
            return
        alert = Alert(at=at, check=_PAUSE, status="resumed", sentence=why or reason)
        self._state.store.put(alert)
        if reason.startswith(BY_CHECK):
            self.open_era(f"resumed after {reason}", at)

    @property
    def budget(self) -> int | None:
        """The hard stop in requests that is in force, None for none."""
        limit = self._state.purse.limits.get("requests")
        return None if limit is None else int(limit)

    def keep_budget(self) -> None:
        """Put the hard stop in requests that an operator set last in force again."""
        values = [
            control.value for control in self._state.store.controls() if control.name == BUDGET
        ]
        if values:
            self.set_budget(msgspec.json.decode(values[-1], type=int | None))

    def set_budget(self, requests: int | None) -> None:
        """Change the hard stop in requests, counted from the start; None for no such limit."""
        self._state.purse.limit_requests(requests)
        self.revalue()

    def review(self, at: float = 0.0) -> list[Consequence]:
        """Ask every check, keep what changed, and carry out what alarms ask for.

        In force from the rule that is frozen before this returns: none is where no alarm came or
        went. `refresh` does the same and always freezes one.
        """
        return self._reviewed(at, always=False)[0]

    def refresh(self, at: float = 0.0) -> Snapshot:
        """Freeze the next rule under the alarms that stand, and review; what the policy saw."""
        snapshot = self._reviewed(at, always=True)[1]
        assert snapshot is not None
        return snapshot

    def _reviewed(self, at: float, always: bool) -> tuple[list[Consequence], Snapshot | None]:
        """What alarms ask for, and what the policy saw if a rule was frozen (`always`, or since
        alarms changed). The order is the daemon's: a rule under the alarms that stand, then what
        they ask for, which may begin an era with a rule of its own.
        """
        state = self._state
        checks = self._answers.checks(at)
        consequences, before = self._answers.consequences(checks), state.alarms
        state.alarms = alarms_of(consequences)
        snapshot = None
        if always or state.alarms != before:
            snapshot = self.freeze_rule(state.rule.era, at)
        self.keep_alerts(checks, at)
        self.apply_alarm_actions(consequences, at)
        return consequences, snapshot

    def keep_alerts(self, checks: Iterable[Verdict], at: float) -> list[Alert]:
        """Keep an alert for every check that turned to `watch` or `alarm`, or back from them."""
        store = self._state.store
        if self._kept is None:
            self._kept = last_statuses(store.alerts())
        alerts = transitions(self._kept, checks, at)
        for alert in alerts:
            store.put(alert)
        return alerts

    def apply_alarm_actions(self, consequences: Sequence[Consequence], at: float) -> None:
        """Do what alarms ask for. Doing it again while they stand changes nothing."""
        state = self._state
        state.alarms = alarms_of(consequences)
        if state.ended is not None:
            return
        for consequence in consequences:
            check = consequence.check
            pauses_all = consequence.action is Action.PAUSE and not consequence.models
            if pauses_all and state.paused is None:
                self._pause(f"{BY_CHECK}{check.name}: {check.sentence}", at)
        active, reasons = self._next_era(consequences)
        if np.count_nonzero(active) < 2:
            # With a single model left there is nothing to compare.
            if state.paused is None and reasons:
                self._pause(BY_CHECK + "; ".join(reasons), at)
            return
        if reasons:
            self.open_era("; ".join(reasons), at, active)

    def begins_era(self, consequences: Sequence[Consequence]) -> bool:
        """Whether `apply_alarm_actions` would open an era, whose first rule needs the sums."""
        if self._state.ended is not None:
            return False
        active, reasons = self._next_era(consequences)
        return bool(reasons) and int(np.count_nonzero(active)) >= 2

    def _next_era(self, consequences: Sequence[Consequence]) -> tuple[Flags, list[str]]:
        """(K,) models to compare from now on, and why in a new era; no reason for going on as it
        is."""
        state = self._state
        active = state.rule.active.copy()
        reasons: list[str] = []
        full = active & state.caps.full(state.light.ledger)
        if full.any():
            # Requests that a full model cannot get certify nothing: the others go on without it.
            active &= ~full
            names = listed([state.models[index] for index in np.flatnonzero(full).tolist()])
            reasons.append(f"cap: {names} had all randomized requests allowed")
        for consequence in consequences:
            check, models = consequence.check, list(consequence.models)
            if consequence.action is Action.PAUSE and models:
                if active[models].any():
                    active[models] = False
                    reasons.append(f"{check.name}: {check.sentence}")
            elif consequence.action is Action.NEW_ERA:
                name = DRIFT if check.name == "drift" else check.name
                reasons.append(f"{name}: {check.sentence}")
        return active, reasons


def check_reason(reason: str) -> None:
    """Raise AgentError for a reason that HTTP would refuse: it is printed, and stands in a line of
    the log."""
    if len(reason) > MOST_REASON or _UNPRINTED.search(reason):
        limit = f"at most {MOST_REASON} characters, none of which is a control character"
        raise AgentError(f"reason is {shown(reason)}, expected {limit}")


def standing_sentence(ended: Ended) -> str:
    """Why it cannot be ended in another way."""
    date = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(ended.at))
    served = "today's routing stays" if ended.model is None else f"{ended.model} is served"
    why = f" ({ended.reason})" if ended.reason else ""
    return f"the experiment ended on {date}: {served}{why}; resume it first to end it otherwise"


def alarms_of(consequences: Sequence[Consequence]) -> tuple[str, ...]:
    """Names of the checks whose alarms stand, in order."""
    return tuple(sorted({consequence.check.name for consequence in consequences}))


def standing_pause(store: Store) -> str | None:
    """Why randomizing is paused, by the newest entry in the store."""
    ended = standing_end(store)
    if ended is not None:
        return ended.reason or NO_REASON
    alerts = [alert for alert in store.alerts() if alert.check == _PAUSE]
    return alerts[-1].sentence if alerts and alerts[-1].status == "paused" else None


def newest_rule(config: ExperimentConfig, rules: RuleBook, fold: Fold, at: float) -> Rule:
    """The rule that was in force last; in a new store the first one, which is kept."""
    if len(rules):
        return rules.by_ordinal(len(rules) - 1)
    if fold.next_seq:
        raise AgentError("the store has log rows but no rule: it is not an agent's store")
    snapshot = build_snapshot(config, fold.moments, None, requests=0, certified=False, seed=0)
    certifier, active = Certifier(config), ~retired(config)
    first = Rule(
        era=0,
        since=0,
        allocation=policy(f"{config.policy.gate}+{config.policy.assignment}").freeze(snapshot),
        prediction=None,
        frozen=certifier.spec.neutral(),
        active=active,
        missing=config.reward.kept_missing,
        prior=certifier.first_prior(0, active),
        ask=config.reward.ask,
    )
    return rules.add(first, at)
