"""Reports: all that is read, computed from an agent that is not deciding.

A report is a pure function of the log up to one row. It is made in the analyst's process and
travels to the daemon as bytes, so that no estimate is ever computed between two decisions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from equipoise.agent.agent import Agent
from equipoise.agent.answers.policy_snapshot import sample_moments
from equipoise.agent.answers.recommendation import KEEP_ROUTING
from equipoise.agent.answers.statements import NOTHING_SPECIAL, Facts, Situation, state
from equipoise.agent.budget.cost import Basis
from equipoise.agent.config import RewardConfig
from equipoise.agent.controls import alarms_of
from equipoise.agent.estimators.base import Estimate
from equipoise.agent.estimators.ipw import naive_log
from equipoise.agent.inference.projection import within_range
from equipoise.agent.monitors.check import GRAVITY, Action, Check, Consequence
from equipoise.agent.monitors.check import Status as CheckStatus
from equipoise.agent.service.api.schema import (
    CertifiedValue,
    CheckAnswer,
    ChecksAnswer,
    Contrast,
    EstimatesAnswer,
    FamilyValue,
    ModelEstimate,
    RecommendationAnswer,
    SegmentAnswer,
    WatermarkAnswer,
)
from equipoise.store.records import RuleRecord

NORMAL_95 = 1.959963984540054


class AlarmAction(msgspec.Struct, frozen=True):
    """What an alarm asks for, on its way to the daemon. models: positions, [] for all."""

    check: str
    action: str
    sentence: str
    models: list[int]

    def consequence(self) -> Consequence:
        """As `Controls.apply_alarm_actions` takes it."""
        check = Check(self.check, "alarm", self.sentence, models=tuple(self.models))
        return Consequence(Action(self.action), check, tuple(self.models))


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What is known after the first `log_rows` rows of the log.

    facts: by family, the configured one among them. rule: what the policy would freeze next.
    basis: what spent requests are valued by. actions: what alarms ask for. off: families that were
    not to be computed.
    """

    log_rows: int
    at: float
    estimates: EstimatesAnswer
    facts: dict[str, Facts]
    checks: ChecksAnswer
    rule: RuleRecord
    basis: Basis
    actions: list[AlarmAction] = []
    off: list[str] = []

    def recommendation(
        self, family: str | None = None, situation: Situation = NOTHING_SPECIAL
    ) -> RecommendationAnswer:
        """What to do with production traffic, by a family of `facts`, the configured one by
        default, while a situation lasts."""
        facts = self.facts[family or self.estimates.estimator]
        return recommendation(facts, situation, self.at, self.log_rows)


def report(agent: Agent, families: Sequence[str], at: float) -> Report:
    """The report of everything the agent has folded. at: seconds since the epoch, now."""
    configured = agent.config.policy.estimator
    names = list(dict.fromkeys([configured, *families]))
    estimates = agent.answers.estimates(names)
    checks = _checked(agent, at)
    consequences = agent.answers.consequences(checks)
    # Whether it is paused is the daemon's to say: it may have changed since this log was read.
    agent.state.paused = agent.state.ended = None
    # The proposal is frozen under the alarms that stand now.
    agent.state.alarms = alarms_of(consequences)
    try:
        rule = agent.answers.proposal(at)
    except Exception as error:  # whatever a policy makes of the sums: the rule in force stays
        rule = agent.rule.record(at)
        checks.append(_alarm(f"No new rule can be frozen ({_named(error)}); the last one stays."))
    return Report(
        log_rows=agent.light.next_seq,
        at=at,
        estimates=_estimates(agent, estimates, at),
        facts={name: _facts(agent, name) for name in names},
        checks=_checks(agent, checks, at),
        rule=rule,
        basis=agent.answers.basis(estimates[configured]),
        actions=[
            AlarmAction(one.check.name, one.action.value, one.check.sentence, list(one.models))
            for one in consequences
        ],
        off=list(agent.answers.off),
    )


def _checked(agent: Agent, at: float) -> list[Check]:
    """What every check says; an alarm in their place where that cannot be computed."""
    try:
        return agent.answers.checks(at)
    except Exception as error:
        return [_alarm(f"The checks cannot be computed ({_named(error)}).")]


def _alarm(sentence: str) -> Check:
    return Check("estimators", "alarm", sentence)


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _estimates(agent: Agent, estimates: dict[str, Estimate], at: float) -> EstimatesAnswer:
    view, config, names = agent.answers.view(), agent.config, agent.models
    size = len(names)
    certified = agent.answers.certified()
    ahead = certified.contrasts
    logged, (counts, _, _) = naive_log(view.moments), sample_moments(view.moments.arms)
    configured, routing = agent.answers.within_certified(estimates[config.policy.estimator])
    behind = agent.answers.behind()

    def ends(index: int) -> dict[str, Any]:
        value = configured.values[index] if index < size else routing[0]
        variance = configured.covariance[index, index] if index < size else routing[1]
        return {
            "value": number(value),
            "standard_error": _root(variance),
            "interval": _interval(config.reward, value, variance),
            "lower": number(certified.lower[index]),
            "upper": number(certified.upper[index]),
        }

    return EstimatesAnswer(
        experiment=config.name,
        at=at,
        log_rows=agent.light.next_seq,
        decisions=agent.state.decisions,
        randomized=agent.light.randomized,
        waiting=behind.waiting,
        watermark=WatermarkAnswer(
            held_back=behind.held,
            decision_id=f"d{behind.number}" if behind.number >= 0 else None,
            at=number(behind.at),
            sentence=behind.sentence,
        ),
        estimator=config.policy.estimator,
        delta=certified.delta,
        sequence=certified.sequence.value,
        assumptions=list(certified.assumptions),
        certified_rows=certified.rows,
        era=agent.rule.era,
        models=[
            ModelEstimate(
                model=name,
                log_mean=number(logged.values[index]),
                exp_rewards=int(counts[index]),
                **ends(index),
            )
            for index, name in enumerate(names)
        ],
        todays_routing=ModelEstimate(
            model=KEEP_ROUTING,
            log_mean=None,
            exp_rewards=0,
            **ends(size),
        ),
        contrasts=[
            Contrast(
                model=names[a],
                other=names[b],
                lower=number(ahead[a, b]),
                upper=number(-ahead[b, a]),
            )
            for a in range(size)
            for b in range(a + 1, size)
        ],
        segments=[_segment(agent, part) for part in range(1, agent.state.certifier.parts)],
        families={
            name: _family(config.reward, names, estimate) for name, estimate in estimates.items()
        },
        fallbacks={
            name: str(estimate.diagnostics["failed"])
            for name, estimate in estimates.items()
            if "failed" in estimate.diagnostics
        },
    )


def _segment(agent: Agent, part: int) -> SegmentAnswer:
    certified, status = agent.answers.certified(part), agent.answers.status(part)
    return SegmentAnswer(
        segment=certified.segment or "",
        status=status.state,
        sentence=status.sentence,
        delta=certified.delta,
        certified_rows=certified.rows,
        values=[
            CertifiedValue(candidate=name, lower=float(low), upper=float(high))
            for name, low, high in zip(
                certified.names, certified.lower, certified.upper, strict=True
            )
        ],
    )


def _family(reward: RewardConfig, names: Sequence[str], estimate: Estimate) -> list[FamilyValue]:
    values = within_range(estimate.values, reward.low, reward.high)
    variances = np.diagonal(estimate.covariance)
    return [
        FamilyValue(
            model=name,
            value=number(values[index]),
            standard_error=_root(variances[index]),
            interval=_interval(reward, estimate.values[index], variances[index]),
        )
        for index, name in enumerate(names)
    ]


def _interval(reward: RewardConfig, value: float, variance: float) -> tuple[float, float] | None:
    """The normal 95% interval, as far as rewards can lie in it; None where a part is unknown."""
    if not (math.isfinite(value) and variance >= 0.0 and math.isfinite(variance)):
        return None
    half = NORMAL_95 * math.sqrt(variance)
    low, high = within_range((value - half, value + half), reward.low, reward.high).tolist()
    return low, high


def _facts(agent: Agent, family: str) -> Facts:
    # The configured family may be left out for an alarm, or for want of replays.
    configured = family == agent.config.policy.estimator
    return agent.answers.facts(None if configured else family)


def recommendation(
    facts: Facts, situation: Situation, at: float, log_rows: int
) -> RecommendationAnswer:
    """Facts and the statements about them, as JSON can say them."""
    statements, claim, comparison = state(facts, situation), facts.claim, facts.comparison
    best = comparison.top[0] if comparison.top else None
    error = None if best is None else number(comparison.errors[best])
    single = claim is not None and claim.kind != "alike"
    return RecommendationAnswer(
        status=statements.status,
        status_models=list(statements.models),
        status_sentence=statements.status_sentence,
        sentence=statements.headline,
        certified_sentence=statements.certified,
        estimate_sentence=statements.estimate,
        outlook_sentence=statements.outlook,
        activity=situation.activity,
        activity_sentence=statements.activity_sentence,
        pills=list(statements.pills),
        family=comparison.family,
        model=None if best is None else comparison.models[best],
        action=situation.final or statements.action,
        final=situation.final,
        leaning=statements.leaning,
        value=None if best is None or error is None else number(comparison.values[best]),
        standard_error=error,
        routing_value=number(comparison.routing),
        routing_standard_error=number(comparison.routing_error),
        claim=None if claim is None else claim.kind,
        certified=claim.models[0] if claim is not None and single else None,
        at=at,
        log_rows=log_rows,
    )


def _checks(agent: Agent, checks: Sequence[Check], at: float) -> ChecksAnswer:
    answers = [
        CheckAnswer(
            name=check.name,
            status=check.status,
            sentence=check.sentence,
            figures=wire(check.figures),
            level=number(check.level),
            models=[agent.models[position] for position in check.models],
        )
        for check in checks
    ]
    gravest: CheckStatus = max(
        (check.status for check in checks), key=GRAVITY.__getitem__, default="unknown"
    )
    return ChecksAnswer(status=gravest, checks=answers, at=at, log_rows=agent.light.next_seq)


def number(value: float) -> float | None:
    """A number on the wire: null where it is unknown or infinite."""
    return float(value) if math.isfinite(value) else None


def wire(value: Any) -> Any:
    """Counters of a check as JSON can say them."""
    if isinstance(value, dict):
        return {str(name): wire(item) for name, item in value.items()}
    if isinstance(value, np.ndarray):
        return wire(value.tolist())
    if isinstance(value, list | tuple):
        return [wire(item) for item in value]
    if isinstance(value, np.generic):
        return wire(value.item())
    return number(value) if isinstance(value, float) else value


def _root(variance: float) -> float | None:
    return number(math.sqrt(variance)) if variance >= 0 else None


def current(agent: Agent) -> tuple[EstimatesAnswer, RecommendationAnswer, ChecksAnswer]:
    """What is known by the configured family after the newest row; nothing is proposed."""
    family, at = agent.config.policy.estimator, 0.0
    estimates, checks = agent.answers.estimates([family]), agent.answers.checks()
    return (
        _estimates(agent, estimates, at),
        recommendation(agent.answers.facts(), agent.answers.situation(), at, agent.light.next_seq),
        _checks(agent, checks, at),
    )
