"""What an experiment can be asked: estimates, certified answers, the status, a recommendation.

Everything here only reads: the answers are functions of the folded log and of the rule in force.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from equipoise.agent.answers.certifier import Certified, Certifier, Conditions
from equipoise.agent.answers.recommendation import Backing, Recommendation, recommend
from equipoise.agent.answers.status import Status, decide
from equipoise.agent.budget import Purse, Spending
from equipoise.agent.config import ExperimentConfig
from equipoise.agent.decisions.policy_snapshot import OutputMaps, build_snapshot, recent_contexts
from equipoise.agent.estimators import LeftOut, Off, estimate, without_far_groups
from equipoise.agent.estimators.base import Estimate
from equipoise.agent.estimators.ipw import routing_value
from equipoise.agent.features import Transform
from equipoise.agent.inference.prediction import Prediction
from equipoise.agent.inference.projection import nearest
from equipoise.agent.lifecycle.eras import Eras
from equipoise.agent.lifecycle.rules import Rule, RuleBook
from equipoise.agent.moments.state import Moments
from equipoise.agent.monitors.check import Action, Check, Consequence, action_table, consequences
from equipoise.agent.monitors.monitor_set import REPRESENTATION_FAMILIES
from equipoise.agent.monitors.progress import Behind, computed, outputs, plan, watermark
from equipoise.agent.state.fold import Fold, View
from equipoise.policies.registry import Policy
from equipoise.policies.snapshot import Snapshot
from equipoise.store.contract import Store

if TYPE_CHECKING:
    from equipoise.agent.planning.forecast import Forecast

RENEWAL = 1.1
"""Growth of the rewards at which a prediction that no policy needs is fitted anew."""
PLAIN = "ipw"
"""The family that rests on the experiment alone."""


class Reader:
    """The answers of one experiment. `Agent`, which owns these parts and writes, is one.

    observing_only: nothing is randomized (mode `observe`); paused: why nothing is, None if it is.
    forecast: the newest one somebody made, for the check `plan`; None without. off: families that
    are not to be computed, and why; before: told of each family before it is computed.
    """

    config: ExperimentConfig
    store: Store
    models: tuple[str, ...]
    transform: Transform
    policy: Policy
    certifier: Certifier
    eras: Eras
    rules: RuleBook
    rule: Rule
    fold: Fold
    purse: Purse
    observing_only: bool
    paused: str | None
    alarms: tuple[str, ...]
    forecast: Forecast | None = None
    outputs: OutputMaps
    off: Off = MappingProxyType({})
    before: Callable[[str], None] | None = None
    _sound: tuple[View, tuple[Moments, tuple[LeftOut, ...]]] | None = None
    _view: View | None
    _view_seq: int

    @property
    def sign(self) -> int:
        """+1 where larger rewards are better, -1 where smaller are."""
        return 1 if self.config.reward.maximise else -1

    def view(self) -> View:
        """Sums up to the newest log row; copies that the caller must not write to."""
        if self._view is None or self._view_seq != self.fold.next_seq:
            self._view, self._view_seq = self.fold.view(), self.fold.next_seq
        return self._view

    def estimates(self, families: Iterable[str]) -> dict[str, Estimate]:
        """Values of the models by each of these families."""
        reward = self.config.reward
        return estimate(
            self.view().moments,
            list(families),
            sound=self.sound(),
            off=self.off,
            before=self.before,
            reward_range=(reward.low, reward.high),
        )

    def sound(self) -> tuple[Moments, tuple[LeftOut, ...]]:
        """The sums without groups in which a value far off drowns all others, and what they were;
        copies that the caller must not write to."""
        view = self.view()
        if self._sound is None or self._sound[0] is not view:
            self._sound = view, without_far_groups(view.moments)
        return self._sound[1]

    def routing(self) -> tuple[float, float]:
        """Value of today's routing and its variance, reward units."""
        return routing_value(self.view().moments)

    def recommendation(self, family: str | None = None) -> Recommendation:
        """The answer of one family, by default the configured one.

        While an alarm says that replays are not what models answer live, families that rest on
        them are left out, and the plain experiment answers instead.
        """
        name = family or self.config.policy.estimator
        fallen = family is None and name != PLAIN
        if fallen and self.asks_for(Action.DROP_SIMULATION, self.rule.alarms):
            answer = self._recommend(self.estimates([PLAIN])[PLAIN])
            why = f" ({name} is left out: replays are not what models answer live.)"
            return replace(answer, sentence=answer.sentence + why)
        looked = self.estimates([name])[name]
        if np.isfinite(looked.values).any():
            return self._recommend(looked)
        failed = looked.diagnostics.get("failed")
        if fallen:
            looked = self.estimates([PLAIN])[PLAIN]
        answer = self._recommend(looked)
        why = f"({name} waits for {self._missing(name)}.)"
        if failed is not None:
            why = f"({name} cannot be computed: {failed}.)"
        return replace(answer, sentence=f"{answer.sentence} {why}")

    def _recommend(self, looked: Estimate) -> Recommendation:
        """What an estimate recommends, once it contradicts nothing that is certified."""
        placed, routing = self.within_certified(looked)
        reward = self.config.reward
        ends = {"low": reward.low, "high": reward.high}
        backing = self._backing()
        answer = recommend(self.models, placed, routing, self.sign, **ends, backing=backing)
        about = self.certified().about
        if not about or answer.model is None:
            return answer
        return replace(answer, sentence=f"{answer.sentence} This is what holds{about}.")

    def _backing(self) -> Backing | None:
        """What is certified of the whole traffic, as a recommendation rests on it."""
        certified = self.certified()
        if certified.limited:
            # It is about requests that were still open: another model may be best on the rest.
            return None
        standing, routing = certified.standing, len(self.models)
        winner, alike = standing.winner(), standing.equivalent()
        limits = standing.epsilon, certified.delta
        # As the status says it: alike comes before the best within epsilon.
        if alike and not (winner is not None and winner[1] > 0.0):
            return Backing(tuple(self.models[each] for each in alike), 0.0, 0.0, -np.inf, *limits)
        if winner is None:
            return None
        best, lead = winner
        pair = (best, routing) if self.sign > 0 else (routing, best)
        by, over = standing.lead(best), float(certified.contrasts[pair])
        return Backing((self.models[best],), lead, by, over, *limits)

    def within_certified(self, looked: Estimate) -> tuple[Estimate, tuple[float, float]]:
        """An estimate, and the value of today's routing with its variance, moved to the nearest
        values that contradict no certified end and no certified contrast (`projection`)."""
        certified, routing = self.certified(), self.routing()
        both = len(self.models) + 1
        values = nearest(
            np.append(looked.values, routing[0]),
            np.append(np.diagonal(looked.covariance), routing[1]),
            certified.lower[:both],
            certified.upper[:both],
            certified.contrasts[:both, :both],
        )
        return replace(looked, values=values[:-1]), (float(values[-1]), routing[1])

    def _missing(self, family: str) -> str:
        """What a family that has no value waits for."""
        replayed = self.view().moments.simulation.count.sum(axis=0) > 0
        if family != PLAIN and not replayed.all():
            names = ", ".join(np.array(self.models)[~replayed].tolist())
            return (
                f"replays (SIM) of {names}: send them to POST /v1/simulations or with"
                f' `equipoise ingest`, or take estimator = "{PLAIN}"'
            )
        moments = self.view().moments
        if family != PLAIN and moments.arms.count.sum() > 0 and not moments.exp.count.any():
            return f'outputs: send them with the response, or take estimator = "{PLAIN}"'
        return "rewards of randomized requests"

    def certified(self, part: int = 0) -> Certified:
        """What is certified: of the whole traffic, or of segment number `part` from 1 on."""
        return self.certifier.certified(self.view().certified, self.rule, self.conditions, part)

    def certified_winner(self) -> str | None:
        """The model certified within epsilon of the best at level delta, at any time."""
        winner = self.certifier.winner(self.view().certified, self.rule, self.conditions)
        return None if winner is None else self.models[winner]

    def status(self, part: int = 0) -> Status:
        """The decision status, with its sentence."""
        certified = self.certified(part)
        era = self.rule.era
        return decide(
            certified.standing,
            certified.delta,
            paused="observing only" if self.observing_only else self.paused,
            era_reason=self.eras.reason(era) if era else "",
            randomized=certified.randomized,
            about=certified.about,
        )

    def spending(self) -> list[Spending]:
        """What the budget allows, what was planned, and what was spent, per limited resource."""
        return self.purse.spending()

    def behind(self) -> Behind:
        """What waits, what that holds back, and which decision does."""
        return self.fold.pending.behind(self.view().watermark)

    def checks(self, at: float | None = None) -> list[Check]:
        """What every check says of the era in force, as far as it is logged; nothing is done.

        at: seconds since the epoch, now; None and 0 take the time of the newest decision.
        """
        panel = self.fold.watched()
        panel.begin(self.rule.era)
        configured = self.config.policy.estimator
        families = self.estimates(dict.fromkeys((*REPRESENTATION_FAMILIES, configured, *self.off)))
        said = panel.checks(families)
        features = self.transform.phi_names
        said.append(computed(families, configured, self.sound()[1], features, PLAIN))
        if self.fold.pending.y.shape[1]:
            moments = self.view().moments
            rewarded, complete = moments.arms.count.sum(), moments.exp.count.sum()
            said.append(outputs(float(rewarded), float(complete)))
        planned = self.config.budget.planned
        if planned is not None:
            certified = self.certified()
            answer = certified.standing
            decided = answer.winner() is not None or bool(answer.equivalent())
            said.append(plan(planned, certified.randomized, decided, self._foreseen()))
        now = at or self.fold.pending.newest_at
        said.append(watermark(self.behind(), now, self.config.reward.window))
        return said

    def _foreseen(self) -> tuple[float, float] | None:
        """Randomized requests in all by the newest forecast of this era, as the check takes it."""
        made = self.forecast
        if made is None or made.era != self.rule.era or made.total is None:
            return None
        low, median = made.total.low, made.total.median
        return np.inf if low is None else low, np.inf if median is None else median

    def consequences(self, checks: Iterable[Check]) -> list[Consequence]:
        """What the alarms among these checks ask for, by the configured actions."""
        return consequences(checks, action_table(self.config.checks))

    @property
    def conditions(self) -> Conditions:
        """What the choice of the certified sequence may look at."""
        alarms = self.rule.alarms
        return Conditions(
            context_free=self._context_free,
            drift_alarm="drift" in alarms,
            widened=self.rule.widened,
        )

    def asks_for(self, action: Action, alarms: Iterable[str]) -> bool:
        """Whether one of these checks' alarms asks for an action."""
        table = action_table(self.config.checks)
        return any(table[name] is action for name in alarms)

    def snapshot(self, looked: Estimate | None = None) -> Snapshot:
        """What a policy would see now. looked: of the configured family, estimated if None and
        the policy needs it."""
        looked = self._looked() if looked is None else looked
        known = self.view().moments
        certified = self.config.policy.gate != "fixed-rate" and self.certified_winner() is not None
        return build_snapshot(
            self.config,
            known,
            looked,
            sound=self.sound()[0],
            requests=self.fold.pending.next,
            certified=certified,
            seed=self.fold.pending.next,
            contexts=recent_contexts(self.fold, self.store) if self.policy.uses_estimate else None,
            rate=self.purse.rate(self.config.limits.rate),
            outputs=self.outputs,
        )

    def _looked(self) -> Estimate | None:
        """The estimate of the configured family, None where the policy does not look at one."""
        family = self.config.policy.estimator
        return self.estimates([family])[family] if self.policy.uses_estimate else None

    def _prediction(self, looked: Estimate | None) -> Prediction | None:
        """The scorer of the configured family, for the regression inside the score.

        looked: its estimate, if the policy asked for one. Without, the one of the rule in force is
        good enough until there are a tenth more rewards: refitting is most of what a refresh costs.
        """
        held, reward = self.rule.prediction, self.config.reward
        moments = self.view().moments
        rows = float(moments.obs.count.sum() + moments.exp.count.sum())
        if looked is None:
            known = held is not None and len(held.effects) == len(self.models)
            if held is not None and known and rows < RENEWAL * held.rows:
                return held
            looked = self.estimates([self.config.policy.estimator])[self.config.policy.estimator]
        scorer = looked.scorer
        if scorer is None:
            return None
        found = Prediction.of(
            scorer.theta,
            len(self.models),
            scorer.model_effects,
            self.outputs.of(self.sound()[0])[0],
            reward.low,
            reward.high,
            rows,
        )
        return found if found.usable else None

    @property
    def _context_free(self) -> bool:
        """Whether e and pi were the same for every request so far."""
        return self.rules.context_free and not self.fold.masked
