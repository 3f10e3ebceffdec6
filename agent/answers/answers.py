"""What an experiment can be asked: estimates, certified answers, the status, a recommendation.

Everything here only reads: the answers are functions of the folded log and of the rule in force.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

import msgspec
import numpy as np

from equipoise.agent.answers.certifier import Certified, Certifier, Conditions
from equipoise.agent.answers.policy_snapshot import (
    KnownRewards,
    OutputMaps,
    build_snapshot,
    logged_moments,
    recent_contexts,
)
from equipoise.agent.answers.recommendation import (
    KEEP,
    ROUNDING,
    Comparison,
    Recommendation,
    compare,
    favoured,
)
from equipoise.agent.answers.statements import (
    Facts,
    Prices,
    Progress,
    Situation,
    decision,
    state,
)
from equipoise.agent.answers.status import Activity, Status, activity
from equipoise.agent.budget import Exhausted, Purse, Spending
from equipoise.agent.budget.caps import Caps, Quotas, model_caps
from equipoise.agent.budget.cost import Basis, Spent, spent_so_far
from equipoise.agent.budget.purse import declared_prices, model_costs
from equipoise.agent.config import ExperimentConfig
from equipoise.agent.estimators import LeftOut, Off, without_far_groups
from equipoise.agent.estimators import estimate as estimate_families
from equipoise.agent.estimators.base import Estimate, Estimates
from equipoise.agent.estimators.ipw import balanced, routing_value
from equipoise.agent.features import Transform
from equipoise.agent.inference.prediction import Prediction
from equipoise.agent.inference.projection import nearest
from equipoise.agent.lifecycle.eras import Ended, EraAnswer, Eras
from equipoise.agent.lifecycle.rules import Rule, RuleBook, same_but_since
from equipoise.agent.moments.state import Moments
from equipoise.agent.monitors.check import (
    Action,
    Check,
    Checks,
    Consequence,
    action_table,
    consequences,
)
from equipoise.agent.monitors.lost_rows import Missingness, out_of_reach
from equipoise.agent.monitors.monitor_set import REPRESENTATION_FAMILIES
from equipoise.agent.monitors.progress import Behind, computed, outputs, plan, watermark
from equipoise.agent.state.fold import Fold, View
from equipoise.policies.registry import policy
from equipoise.policies.snapshot import Snapshot
from equipoise.store.batches import Batch, Buffer
from equipoise.store.contract import Store
from equipoise.store.records import RuleRecord, lost_before

RENEWAL = 1.1
"""Growth of the rewards at which a prediction that no policy needs is fitted anew."""
PLAIN = "ipw"
"""The family that rests on the experiment alone."""


class ExperimentState:
    """One experiment over one store, as memory has it: read by `Answers`, changed by `Controls` and
    `Agent`.

    light: what decisions and outcomes ask for. rule: the one in force. alarms: names of the checks
    that stand at alarm. paused: why nothing is randomized, None if it is; observing_only: nothing
    is (mode `observe`); killed: the file of the kill switch was there when a store without its
    daemon was opened; ended: the end of the experiment, which stands beside a pause. gaps: what
    the log is known to lack; no more is found out while it is open.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        store: Store,
        eras: Eras,
        rules: RuleBook,
        fold: Fold,
        rule: Rule,
        paused: str | None,
        ended: Ended | None = None,
    ) -> None:
        self.store = store
        self.eras = eras
        self.rules = rules
        self.light = fold.light
        self._fold = fold
        self._keeps_sums = True
        self.rule = rule
        self.alarms = rule.alarms
        self.paused = paused
        self.ended = ended
        self.observing_only = False
        self.killed = False
        self.gaps = store.gaps()
        self.configure(config)

    def configure(self, config: ExperimentConfig) -> None:
        """Take over a configuration, and what it alone decides."""
        self.config = config
        self.models = tuple(model.name for model in config.models)
        self.transform = Transform(config.features)
        self.policy = policy(f"{config.policy.gate}+{config.policy.assignment}")
        self.certifier = Certifier(config)
        self.purse = Purse(config.budget, self.light.ledger)
        self.caps = Caps(config.policy.exclude, model_caps(config), Quotas.of(config))

    @property
    def fold(self) -> Fold:
        """The whole fold. Raises RuntimeError where another process keeps the sums."""
        if not self._keeps_sums:
            raise RuntimeError("this fold was told to keep no sums")
        return self._fold

    @property
    def keeps_sums(self) -> bool:
        """Whether the sums are kept here, and not by another who folds the same log."""
        return self._keeps_sums

    def lighten(self) -> None:
        """Keep no more sums: they are another's to keep. What decisions and outcomes ask for stays,
        and is what it would be with them; `load_sums` and the rows since bring the sums back."""
        self._keeps_sums = False

    def load_sums(self, state: Buffer) -> None:
        """Become the state of `Fold.to_bytes`, sums included."""
        self._fold.load_bytes(state)
        self._keeps_sums = True

    def apply(self, seq: int, batch: Batch) -> None:
        """Fold rows of the log, the first of which has this seq."""
        (self._fold if self._keeps_sums else self.light).apply(seq, batch)

    @property
    def decisions(self) -> int:
        """Decisions in the log; numbers that were lost are none."""
        end = self.light.pending.next
        return end - lost_before(self.gaps, end)


@dataclass(frozen=True, slots=True)
class Foreseen:
    """Certified randomized requests in all until the decision, by the newest forecast: the lower
    end of an 80% interval and the median, inf where they are beyond what was simulated. era: the
    one that it is about."""

    era: int
    low: float
    median: float


class Answers:
    """What is known of one experiment.

    forecast: the newest one that somebody made, for the check `plan`; None without. off: families
    that are not to be computed, and why; before: called with each family before it is computed.
    """

    def __init__(self, state: ExperimentState) -> None:
        self.state = state
        self.forecast: Foreseen | None = None
        self.off: Off = MappingProxyType({})
        self.before: Callable[[str], None] | None = None
        self._outputs = OutputMaps()
        self._view: View | None = None
        self._view_of = (-1, 0)

    @property
    def sign(self) -> int:
        """+1 where larger rewards are better, -1 where smaller are."""
        return 1 if self.state.config.reward.maximise else -1

    def view(self) -> View:
        """Sums up to the newest log row; copies that the caller must not write to."""
        now = self.state.light.next_seq, len(self.state.light.versions.renewals)
        if self._view is None or self._view_of != now:
            self._view, self._view_of = self.state.fold.view(), now
        return self._view

    def estimates(self, families: Iterable[str]) -> Estimates:
        """Values of the models by each of these families."""
        reward, view, names = self.state.config.reward, self.view(), list(families)
        # The plain experiment looks at none of what is made of the sums for the others.
        others = any(name != PLAIN for name in names)
        made = estimate_families(
            view.moments,
            names,
            sound=self.sound() if others else (view.moments, ()),
            even=view.once("even", lambda: balanced(self.sound()[0])) if others else view.moments,
            off=self.off,
            before=self.before,
            reward_range=(reward.low, reward.high),
            made=view.estimates,
        )
        return Estimates(made, self.state.models)

    def sound(self) -> tuple[Moments, tuple[LeftOut, ...]]:
        """The sums without groups in which a value far off drowns all others, and what they were;
        copies that the caller must not write to."""
        return self.view().once("sound", lambda: without_far_groups(self.view().moments))

    def routing(self) -> tuple[float, float]:
        """Value of today's routing and its variance, reward units."""
        return self.view().once("routing", lambda: routing_value(self.view().moments))

    def recommendation(self, family: str | None = None) -> Recommendation:
        """The answer of one family, by default the configured one, with what happens to requests
        now as far as the store knows it."""
        facts = self.facts(family)
        comparison, statements = facts.comparison, state(facts, self.situation())
        best = comparison.top[0] if comparison.top else None
        error = math.nan if best is None else comparison.errors[best]
        return Recommendation(
            family=comparison.family,
            model=None if best is None else comparison.models[best],
            favoured=favoured(comparison, self.routing()[0], self.sign),
            leaning=statements.leaning,
            action=statements.action,
            value=math.nan if best is None or math.isnan(error) else comparison.values[best],
            error=error,
            routing_value=comparison.routing,
            routing_error=comparison.routing_error,
            sentence=statements.headline,
        )

    def facts(self, family: str | None = None) -> Facts:
        """What statements are made from, by one family, by default the configured one.

        While an alarm says that replays are not what models answer live, families that rest on
        them are left out, and the plain experiment answers instead.
        """
        certified = self.certified()
        comparison, progress = self._comparison(family), self._progress(certified)
        return Facts(certified.claim, comparison, progress, self._prices())

    def _prices(self) -> Prices | None:
        """What a request costs, by model and as it is routed; None where no price is known."""
        names, routed = self.state.models, self.state.light.ledger.spent.sum(axis=1)
        costs = model_costs(self.view().moments.simulation, declared_prices(self.state.config))
        known = np.isfinite(costs)
        if not known.any():
            return None
        routing = None
        if routed.any() and known[routed > 0.0].all():
            routing = float(routed[known] @ costs[known] / routed.sum())
        models = zip(names, costs.tolist(), known.tolist(), strict=True)
        return Prices({name: cost for name, cost, told in models if told}, routing)

    def _progress(self, certified: Certified) -> Progress:
        state, era = self.state, self.state.rule.era
        reason, made = state.eras.reason(era) if era else "", state.light.randomized
        renewed = tuple(map(state.models.__getitem__, state.light.versions.renewed))
        about, why = certified.about, certified.uncertified
        return Progress(certified.randomized, made, era, reason, about, renewed, why)

    def situation(self) -> Situation:
        """What happens to requests now, as far as the store knows it."""
        ended, paused = self.state.ended, self.state.paused
        final = None if ended is None else ended.model or KEEP
        return Situation(self.activity(), paused or "", final=final, paused=paused is not None)

    def _comparison(self, family: str | None) -> Comparison:
        name = family or self.state.config.policy.estimator
        may_fall_back = family is None and name != PLAIN
        if may_fall_back and self.asks_for(Action.DROP_SIMULATION, self.state.rule.alarms):
            note = f"({name} is left out: replays are not what models answer live.)"
            return self._compared(self.estimates([PLAIN])[PLAIN], note)
        estimate = self.estimates([name])[name]
        if np.isfinite(estimate.values).any() and (estimate.says_error or not may_fall_back):
            return self._compared(estimate)
        failure = estimate.diagnostics.get("failed")
        if may_fall_back:
            estimate = self.estimates([PLAIN])[PLAIN]
        note = f"({name} waits for {self._missing(name)}.)"
        if failure is not None:
            note = f"({name} cannot be computed: {failure}.)"
        return self._compared(estimate, note)

    def _compared(self, estimate: Estimate, note: str = "") -> Comparison:
        """An estimate, once it contradicts nothing that is certified, with what is to be added."""
        placed, routing = self.within_certified(estimate)
        reward = self.state.config.reward
        ends = {"low": reward.low, "high": reward.high}
        comparison = compare(self.state.models, placed, routing, self.sign, **ends)
        return msgspec.structs.replace(comparison, note=note, about=reward.meaning.about)

    def within_certified(self, estimate: Estimate) -> tuple[Estimate, tuple[float, float]]:
        """An estimate, and the value of today's routing with its variance, moved to the nearest
        values that contradict no certified end and no certified contrast (`projection`)."""
        certified, routing = self.certified(), self.routing()
        both = len(self.state.models) + 1
        values = nearest(
            np.append(estimate.values, routing[0]),
            np.append(np.diagonal(estimate.covariance), routing[1]),
            certified.lower[:both],
            certified.upper[:both],
            certified.contrasts[:both, :both],
        )
        return replace(estimate, values=values[:-1]), (float(values[-1]), routing[1])

    def _missing(self, family: str) -> str:
        """What a family that has no value waits for."""
        replayed = self.view().moments.simulation.count.sum(axis=0) > 0
        if family != PLAIN and not replayed.all():
            names = ", ".join(np.array(self.state.models)[~replayed].tolist())
            return (
                f"replays (SIM) of {names}: send them to POST /v1/simulations or with"
                f' `equipoise ingest`, or take estimator = "{PLAIN}"'
            )
        moments = self.view().moments
        if family != PLAIN and moments.arms.count.sum() > 0 and not moments.complete:
            return f'outputs: send them with the response, or take estimator = "{PLAIN}"'
        return "rewards of randomized requests"

    def certified(self, part: int = 0) -> Certified:
        """What is certified: of the whole traffic, or of segment number `part` from 1 on."""
        view, state, asked = self.view(), self.state, self.conditions
        of = state.certifier, state.rule.rule_id, asked, part
        answer = partial(state.certifier.certified, view.certified, state.rule, asked, part)
        return view.once(of, answer)

    def era_answer(self) -> EraAnswer:
        """What is certified of the era in force, as it is kept when that ends."""
        parts = range(self.state.certifier.parts)
        return EraAnswer(era=self.state.rule.era, parts=[self.certified(at).kept for at in parts])

    def certified_winner(self) -> str | None:
        """The model certified within epsilon of the best at level delta, at any time."""
        view, state, asked = self.view(), self.state, self.conditions
        whole = view.answers.get((state.certifier, state.rule.rule_id, asked, 0))
        if isinstance(whole, Certified):
            best = whole.standing.winner()
            return None if best is None else state.models[best[0]]
        winner = state.certifier.winner(view.certified, state.rule, asked)
        return None if winner is None else state.models[winner]

    def status(self, part: int = 0) -> Status:
        """The decision status of the whole traffic, or of segment number `part` from 1 on."""
        certified = self.certified(part)
        return decision(
            certified.claim,
            self._progress(certified),
            self.situation(),
            epsilon=certified.epsilon,
            delta=certified.delta,
        )

    def activity(self, *, kill_switch: bool = False, passing_through: bool = False) -> Activity:
        """What is done with requests now. kill_switch, passing_through: as the daemon knows them;
        the rest is known here."""
        state = self.state
        stopped = state.purse.exhausted
        return activity(
            kill_switch=kill_switch or state.killed,
            passing_through=passing_through,
            ended=state.ended is not None,
            observing=state.observing_only,
            paused=state.paused is not None,
            decided=state.rule.stops,
            unpriced=stopped is Exhausted.UNPRICED,
            budget_spent=stopped is Exhausted.SPENT,
            ramp=state.rule.after_decision == "ramp",
        )

    def spent(self) -> Spent:
        """What randomizing has cost so far, in all eras."""
        return spent_so_far(self.state.models, self.state.light.ledger.spent, self.basis())

    def basis(self, estimate: Estimate | None = None) -> Basis:
        """What that is valued by now. estimate: of the configured family, made where None.

        The family is the one that the recommendation rests on; a value without a known error is
        not known.
        """
        state, name = self.state, self.state.config.policy.estimator
        left_out = self.asks_for(Action.DROP_SIMULATION, state.rule.alarms)
        if left_out and name != PLAIN:
            estimate = self.estimates([PLAIN])[PLAIN]
        elif estimate is None:
            estimate = self.estimates([name])[name]
        if not estimate.says_error:
            estimate = self.estimates([PLAIN])[PLAIN]
        placed, routing = self.within_certified(estimate)
        arms, replays = self.view().moments.arms, self.view().moments.simulation
        reward = state.config.reward
        # Rewards that never differed say nothing about how far their mean may be off.
        least = (ROUNDING * (reward.high - reward.low)) ** 2
        unknown = np.where(np.diagonal(placed.covariance) > least, 0.0, np.nan)
        prices = model_costs(replays, declared_prices(state.config))
        return Basis(
            log_rows=state.light.next_seq,
            prices=[float(price) if np.isfinite(price) else None for price in prices],
            rewards=arms.count.sum(axis=0).astype(int).tolist(),
            totals=(arms.count * arms.plain_mean).sum(axis=0).tolist(),
            family=placed.family,
            values=(placed.values + unknown).tolist(),
            covariance=placed.covariance.tolist(),
            routing=(routing[0], routing[1] if routing[1] > least else np.nan),
            sign=self.sign,
            replays_usd=float((replays.priced * replays.cost).sum()),
        )

    def spending(self) -> list[Spending]:
        """What the budget allows, what was planned, and what was spent, per limited resource."""
        return self.state.purse.spending()

    def behind(self) -> Behind:
        """What waits, what that holds back, and which decision does."""
        view, table = self.view(), self.state.light.pending
        return view.once("behind", lambda: table.behind(view.watermark))

    def checks(self, at: float | None = None) -> Checks:
        """What every check says of the era in force, as far as it is logged; nothing is done.

        at: seconds since the epoch, now; None and 0 take the time of the newest decision.
        """
        state = self.state
        monitors = state.fold.watched(self.view())
        monitors.begin(state.rule.era)
        configured = state.config.policy.estimator
        families = self.estimates(dict.fromkeys((*REPRESENTATION_FAMILIES, configured, *self.off)))
        checks = Checks(self._in_reach(check) for check in monitors.checks(families))
        features = state.transform.phi_names
        checks.append(computed(families, configured, self.sound()[1], features, PLAIN))
        if state.light.pending.y.shape[1]:
            moments = self.view().moments
            checks.append(outputs(float(moments.arms.count.sum()), moments.complete))
        planned = state.config.budget.planned
        if planned is not None:
            certified = self.certified()
            decided = certified.standing.decided
            checks.append(plan(planned, certified.randomized, decided, self._foreseen()))
        now = at or state.light.pending.newest_at
        checks.append(watermark(self.behind(), now, state.config.reward.window))
        return checks

    def _in_reach(self, check: Check) -> Check:
        """`missingness` with what its share leaves to be certified; every other check as it is."""
        reward, epsilon = self.state.config.reward, self.state.config.policy.epsilon
        if check.name != Missingness.name or reward.kept_missing is not None:
            return check
        arms, active = self.view().moments.arms, np.flatnonzero(self.state.rule.active)
        count, mean, variance = (part[active] for part in logged_moments(arms))
        lead = error = float("nan")
        if len(active) > 1 and (count > 1).all():
            order = np.argsort(-self.sign * mean)[:2]
            weight = arms.weight.sum(axis=0)[active]
            alike = weight**2 / arms.weight_sq.sum(axis=0)[active]
            lead = float(abs(mean[order[0]] - mean[order[1]]))
            error = float(np.sqrt((variance / alike)[order].sum()))
        return out_of_reach(check, lead, error, epsilon, reward.high - reward.low)

    def _foreseen(self) -> tuple[float, float] | None:
        """(low, median) of the newest forecast of this era."""
        one = self.forecast
        return None if one is None or one.era != self.state.rule.era else (one.low, one.median)

    def consequences(self, checks: Iterable[Check]) -> list[Consequence]:
        """What the alarms among these checks ask for, by the configured actions."""
        # Nothing that others drew pauses what is drawn here.
        ours = self.state.rule.drawn is None
        return consequences(checks, action_table(self.state.config.checks, ours))

    @property
    def conditions(self) -> Conditions:
        """What the choice of the certified sequence may look at."""
        rule = self.state.rule
        against = "" if rule.drawn is None else self.state.fold.contradiction(rule.era)
        return Conditions(self._context_free, "drift" in rule.alarms, rule.widened, against)

    def asks_for(self, action: Action, alarms: Iterable[str]) -> bool:
        """Whether one of these checks' alarms asks for an action."""
        table = action_table(self.state.config.checks)
        return any(table[name] is action for name in alarms)

    def snapshot(self, estimate: Estimate | None = None) -> Snapshot:
        """What a policy would see now. estimate: of the configured family, made if None and the
        policy needs it."""
        state = self.state
        estimate = self.policy_estimate() if estimate is None else estimate
        gated, looks = state.config.policy.gate != "fixed-rate", state.policy.uses_contexts
        return build_snapshot(
            state.config,
            self.view().moments,
            estimate,
            sound=None if estimate is None else self.sound()[0],
            requests=state.light.pending.next,
            certified=gated and self.certified_winner() is not None,
            seed=state.light.pending.next,
            contexts=recent_contexts(state.light, state.store) if looks else None,
            rate=state.purse.rate(state.config.limits.rate),
            outputs=self._outputs,
        )

    def policy_estimate(self) -> Estimate | None:
        """The estimate of the configured family, None where the policy does not look at one."""
        return self._thought() if self.state.policy.uses_estimate else None

    def _thought(self, estimate: Estimate | None = None) -> Estimate:
        family = self.state.config.policy.estimator
        return estimate or self.estimates([family])[family]

    def next_rule(self, era: int, snapshot: Snapshot, estimate: Estimate | None) -> Rule:
        """The next rule of an era, frozen from what is known; nothing is stored.

        estimate: the one that the snapshot rests on.
        """
        state = self.state
        active = state.eras.active(era)
        certified, known = self.view().certified, KnownRewards.of(self.view().moments)
        frozen = state.certifier.freeze(certified, state.rule, era, self.conditions, active, known)
        thought = partial(self._thought, estimate)
        prior = state.certifier.prior(certified, state.rule, era, active, thought, known)
        allocation, after = state.policy.freeze(snapshot), self._after_decision(era)
        if after == "ramp":
            allocation = allocation.at_rate(state.config.limits.rate_min)
        return Rule(
            era=era,
            since=state.light.pending.next,
            allocation=allocation,
            prediction=self._prediction(estimate),
            frozen=frozen,
            active=active,
            alarms=state.alarms,
            widened=self.asks_for(Action.WIDEN, state.alarms),
            missing=state.config.reward.kept_missing,
            after_decision=after,
            prior=prior,
            ask=state.config.reward.ask,
            lanes=state.rule.lanes,
        )

    def _after_decision(self, era: int) -> str | None:
        """What goes on of an era that is decided; None where it is not, or all of it goes on."""
        after = self.state.config.budget.after
        if after == "continue" or era != self.state.rule.era:
            return None
        return after if self.certified().standing.decided else None

    def proposal(self, at: float) -> RuleRecord:
        """The next rule as a record, for whoever writes to the store."""
        estimate, rule = self.policy_estimate(), self.state.rule
        proposed = self.next_rule(rule.era, self.snapshot(estimate), estimate)
        # What is the same but for its beginning goes on: no rule is kept twice.
        return (rule if same_but_since(proposed, rule) else proposed).record(at)

    def _prediction(self, estimate: Estimate | None) -> Prediction | None:
        """The scorer of the configured family, for the regression inside the score.

        estimate: what the policy asked for, if it did. Without, the prediction of the rule in force
        is good enough until there are a tenth more rewards: refitting is most of what a refresh
        costs.
        """
        state = self.state
        current, reward, count = state.rule.prediction, state.config.reward, len(state.models)
        moments = self.view().moments
        rows = float(moments.obs.count.sum() + moments.exp.count.sum())
        if estimate is None:
            same_models = current is not None and len(current.effects) == count
            # One that was frozen before a model became another version speaks of the old one.
            newest = same_models and state.rule.era >= state.light.versions.era
            if current is not None and newest and rows < RENEWAL * current.rows:
                return current
            estimate = self._thought()
        scorer = estimate.scorer
        if scorer is None:
            return None
        prediction = Prediction.of(
            scorer.theta,
            count,
            scorer.model_effects,
            self._outputs.of(self.sound()[0])[0],
            *(reward.low, reward.high, rows),
        )
        return prediction if prediction.usable else None

    @property
    def _context_free(self) -> bool:
        """Whether e and pi were the same for every request so far."""
        return self.state.rules.context_free and not self.state.light.masked
