"""Reports: all that is read, computed from an agent that is not deciding.

A report is a pure function of the log up to one row. It is made in the analyst's process and
travels to the daemon as bytes, so that no estimate is ever computed between two decisions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations, zip_longest
from typing import Any

import msgspec
import numpy as np

from equipoise.agent.agent import Agent
from equipoise.agent.answers.answers import PLAIN
from equipoise.agent.answers.certifier import Certified
from equipoise.agent.answers.policy_snapshot import sample_moments
from equipoise.agent.answers.recommendation import KEEP_ROUTING, ROUNDING, readings
from equipoise.agent.answers.statements import (
    NOTHING_SPECIAL,
    Facts,
    Situation,
    past_decision,
    rating,
    state,
)
from equipoise.agent.answers.status import Status
from equipoise.agent.budget.cost import Basis
from equipoise.agent.config import RewardConfig
from equipoise.agent.controls import alarms_of
from equipoise.agent.estimators.base import NORMAL_95, Estimate
from equipoise.agent.estimators.ipw import naive_log
from equipoise.agent.inference.certificate import CertificateMoments
from equipoise.agent.inference.projection import within_range
from equipoise.agent.lifecycle.eras import EraAnswer, read_answers
from equipoise.agent.monitors.check import GRAVITY, Action, Check, Consequence
from equipoise.agent.monitors.check import Status as CheckStatus
from equipoise.agent.service.api.estimates import (
    CertifiedAnswer,
    CertifiedValue,
    CheckAnswer,
    ChecksAnswer,
    Comparison,
    Contrast,
    EraEntry,
    ErasAnswer,
    EstimatesAnswer,
    FamilyValue,
    Lack,
    ModelEstimate,
    RecommendationAnswer,
    SegmentAnswer,
    ShownValue,
    Verdict,
    WatermarkAnswer,
)
from equipoise.store.batches import Floats
from equipoise.store.records import RuleRecord

ROUTED = "routed"
"""What is said of the value of today's routing in place of a family: it is a plain mean."""


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

    facts: by family, the configured one among them. rule: what the policy would freeze
    next. basis: what spent requests are valued by. actions: what alarms ask for. off: families that
    were not to be computed.
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
    # Beside the configured family: what is shown of models that it has no value of.
    estimates = agent.answers.estimates(dict.fromkeys([*names, PLAIN]))
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
        facts={name: _facts(agent, name, estimates) for name in names},
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
    logged, (counts, _, _) = naive_log(view.moments), sample_moments(view.moments.arms)
    configured, routing = agent.answers.within_certified(estimates[config.policy.estimator])
    behind = agent.answers.behind()
    shown = _shown_values(agent, configured, estimates)
    lacks = _lacks(agent, configured, counts)
    compared, retired = agent.rule.active, {each.name for each in config.models if each.retired}
    leader = _leader(certified, shown)
    in_force = view.certified.era == agent.rule.era
    draws, rated = _draws(view.certified.overall) if in_force else np.zeros((2, size))

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
                log_standard_error=_root(logged.covariance[index, index]),
                exp_rewards=int(counts[index]),
                shown=shown[index],
                waits_for=lacks[index][0],
                note=lacks[index][1],
                compared=bool(compared[index]),
                retired=name in retired,
                era_draws=int(draws[index]),
                **ends(index),
            )
            for index, name in enumerate(names)
        ],
        todays_routing=ModelEstimate(
            model=KEEP_ROUTING,
            log_mean=None,
            exp_rewards=0,
            shown=_shown(config.reward, ROUTED, routing[0], routing[1]),
            **ends(size),
        ),
        contrasts=contrasts(certified),
        segments=[
            segment(agent.answers.certified(part), agent.answers.status(part))
            for part in range(1, agent.state.certifier.parts)
        ],
        families={
            name: _family(config.reward, names, estimate) for name, estimate in estimates.items()
        },
        fallbacks={
            name: str(estimate.diagnostics["failed"])
            for name, estimate in estimates.items()
            if "failed" in estimate.diagnostics
        },
        reward_range=(config.reward.low, config.reward.high),
        maximise=config.reward.maximise,
        epsilon=certified.epsilon,
        routing_contrasts=[_contrast(certified, index, size) for index in range(size)],
        leader=None if leader is None else names[leader],
        comparisons=[] if leader is None else comparisons(certified, leader),
        about=config.reward.meaning.about,
        rating=_rating(certified),
        rating_sentence=""
        if certified.rating is None
        else rating(
            certified.rated_more(),
            [
                (name, float(rated[at] / max(draws[at], 1.0)), int(draws[at]))
                for at, name in enumerate(names)
                if compared[at]
            ],
        ),
    )


def _draws(sums: CertificateMoments) -> Floats:
    """(2, K) certified draws of each model, and how many of them were rated where that counts."""
    if sums.rated is not None:
        return sums.rated.draws
    return np.stack([sums.rewards.count, np.zeros_like(sums.rewards.count)])


def _rating(certified: Certified) -> list[Contrast]:
    """Certified differences in how many requests are rated; none where that does not count."""
    ahead = certified.rating
    if ahead is None:
        return []
    return [
        Contrast(model=one, other=other, lower=number(ahead[a, b]), upper=number(-ahead[b, a]))
        for (a, one), (b, other) in combinations(enumerate(certified.names[: len(ahead)]), 2)
    ]


def contrasts(certified: Certified) -> list[Contrast]:
    """Certified ends of the difference of every two models."""
    models = len(certified.decision)
    return [_contrast(certified, a, b) for a in range(models) for b in range(a + 1, models)]


def _contrast(certified: Certified, a: int, b: int) -> Contrast:
    ahead = certified.contrasts
    return Contrast(
        model=certified.names[a],
        other=certified.names[b],
        lower=number(ahead[a, b]),
        upper=number(-ahead[b, a]),
    )


def comparisons(certified: Certified, leader: int) -> list[Comparison]:
    """A model with every other of its era, and with today's routing."""
    models = len(certified.decision)
    others = [index for index in range(models) if certified.active[index] and index != leader]
    return [_comparison(certified, leader, other) for other in (*others, models)]


def _comparison(certified: Certified, model: int, other: int) -> Comparison:
    turned = certified.contrasts if certified.sign > 0 else certified.contrasts.T
    low, high = float(turned[model, other]), -float(turned[other, model])
    epsilon, winner = certified.epsilon, certified.standing.winner()
    verdict: Verdict = "open"
    if low > 0.0:
        verdict = "better"
    elif high < 0.0:
        verdict = "worse"
    elif epsilon > 0.0 and low > -epsilon and high < epsilon:
        verdict = "alike"
    if winner is not None and winner[0] == model and other < len(certified.decision):
        # The decision spends its level on these comparisons alone, so it may know more of them.
        known = 0.0 if winner[1] > 0.0 else -epsilon
        low = min(max(low, known), high)
        if verdict == "open":
            verdict = "better" if winner[1] > 0.0 else "close"
    if certified.sign < 0:
        low, high = -high, -low
    names = certified.names
    return Comparison(
        model=names[model], other=names[other], lower=low, upper=high, verdict=verdict
    )


def _leader(certified: Certified, shown: Sequence[ShownValue | None]) -> int | None:
    """Position of the model to compare with the others, None where none has a value."""
    winner, alike = certified.standing.winner(), certified.standing.equivalent()
    if winner is not None:
        return winner[0]
    candidates = alike or np.flatnonzero(certified.active).tolist()
    values = {at: value.value for at in candidates if (value := shown[at]) is not None}
    return max(values, key=lambda at: certified.sign * values[at]) if values else None


def _shown_values(
    agent: Agent, configured: Estimate, estimates: dict[str, Estimate]
) -> list[ShownValue | None]:
    """(K,) what to show of each model: its value by the configured family, else the plain one."""
    reward = agent.config.reward
    plain = configured
    if configured.family != PLAIN:
        plain = agent.answers.within_certified(estimates[PLAIN])[0]
    values: list[ShownValue | None] = []
    for at in range(len(agent.models)):
        each = (
            _shown(reward, estimate.family, estimate.values[at], estimate.covariance[at, at])
            for estimate in (configured, plain)
        )
        values.append(next((value for value in each if value is not None), None))
    return values


def _shown(reward: RewardConfig, family: str, value: float, variance: float) -> ShownValue | None:
    """A value with its error; None where that is unknown, or as large as the range of rewards."""
    interval = _interval(reward, value, variance)
    if interval is None or interval == (reward.low, reward.high):
        return None
    if not variance > (ROUNDING * (reward.high - reward.low)) ** 2:
        return None  # rewards that never differed say nothing about how far their mean may be off
    place = float(within_range([value], reward.low, reward.high)[0])
    return ShownValue(
        family=family, value=place, standard_error=math.sqrt(variance), interval=interval
    )


def _lacks(agent: Agent, configured: Estimate, rewards: Floats) -> list[tuple[Lack | None, str]]:
    """(K,) what the configured family lacks to value each model, and that in words."""
    moments, family = agent.answers.view().moments, configured.family
    replayed = moments.simulation.count.sum(axis=0) > 0
    answered = moments.exp.count.sum(axis=0) > 0
    lacks: list[tuple[Lack | None, str]] = []
    for at in range(len(agent.models)):
        if np.isfinite(configured.values[at]):
            lacks.append((None, ""))
        elif "failed" in configured.diagnostics:
            lacks.append(("computation", f"{family} cannot be computed"))
        elif family != PLAIN and not replayed[at]:
            lacks.append(("replays", f"no replays of it: {family} waits"))
        elif family != PLAIN and rewards[at] and not answered[at]:
            lacks.append(("outputs", f"no outputs of it: {family} waits"))
        else:
            lacks.append(("rewards", f"too few rewards of randomized requests: {family} waits"))
    return lacks


def segment(certified: Certified, status: Status) -> SegmentAnswer:
    """What is certified of a segment."""
    return SegmentAnswer(
        segment=certified.segment or "",
        status=status.state,
        sentence=status.sentence,
        delta=certified.delta,
        certified_rows=certified.rows,
        values=certified_values(certified),
    )


def certified_values(certified: Certified) -> list[CertifiedValue]:
    """Certified ends of the value of every candidate."""
    ends = zip(certified.names, certified.lower.tolist(), certified.upper.tolist(), strict=True)
    return [CertifiedValue(candidate=name, lower=low, upper=high) for name, low, high in ends]


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


def _facts(agent: Agent, family: str, beside: Mapping[str, Estimate]) -> Facts:
    # The configured family may be left out for an alarm, or for want of replays.
    configured = family == agent.config.policy.estimator
    facts = agent.answers.facts(None if configured else family)
    # What is said of those who rate is no family's.
    if facts.comparison.note or facts.comparison.about:
        return facts
    told = readings(facts.comparison, beside.values(), agent.answers.sign)
    comparison = msgspec.structs.replace(facts.comparison, readings=told)
    return msgspec.structs.replace(facts, comparison=comparison)


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
        action=statements.action,
        leaning=statements.leaning,
        value=None if best is None or error is None else number(comparison.values[best]),
        standard_error=error,
        routing_value=number(comparison.routing),
        routing_standard_error=number(comparison.routing_error),
        claim=None if claim is None else claim.kind,
        certified=claim.models[0] if claim is not None and single else None,
        at=at,
        log_rows=log_rows,
        final=situation.final,
        families=list(comparison.readings),
        spread=number(comparison.spread),
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
    estimates = agent.answers.estimates(dict.fromkeys([family, PLAIN]))
    checks = agent.answers.checks()
    return (
        _estimates(agent, estimates, at),
        recommendation(
            _facts(agent, family, estimates),
            agent.answers.situation(),
            at,
            agent.light.next_seq,
        ),
        _checks(agent, checks, at),
    )


def eras(agent: Agent) -> ErasAnswer:
    """Every era of the store; no sums are asked for."""
    answers, records = read_answers(agent.store), agent.store.eras()
    entries = []
    for era, after in zip_longest(records, records[1:]):
        compared = agent.state.eras.active(era.era)[: len(era.models)]
        ended = answers.get(era.era) if after is not None else None
        entries.append(
            EraEntry(
                era=era.era,
                opened_at=era.opened_at,
                reason=era.reason,
                compared=np.array(era.models)[compared].tolist(),
                ended_at=None if after is None else after.opened_at,
                ended_reason=None if after is None else after.reason,
                answer=None if ended is None else certified_answer(ended),
            )
        )
    return ErasAnswer(era=agent.rule.era, eras=entries)


def certified_answer(answer: EraAnswer) -> CertifiedAnswer:
    """The kept answer of an era, with the decision that it was."""
    whole, *segments = [Certified.of_kept(part) for part in answer.parts]
    status, winner = _status(whole), whole.standing.winner()
    lead = -np.inf if winner is None else whole.standing.lead(winner[0])
    leader = _kept_leader(whole)
    return CertifiedAnswer(
        status=status.state,
        status_models=list(status.models),
        sentence=status.sentence,
        lead=lead if 0.0 < lead < np.inf else None,
        epsilon=whole.epsilon,
        delta=whole.delta,
        sequence=whole.sequence.value,
        assumptions=list(whole.assumptions),
        requests=whole.rows,
        randomized=whole.randomized,
        values=certified_values(whole),
        contrasts=contrasts(whole),
        leader=None if leader is None else whole.names[leader],
        comparisons=[] if leader is None else comparisons(whole, leader),
        segments=[segment(part, _status(part)) for part in segments],
    )


def _status(certified: Certified) -> Status:
    state, sentence = past_decision(
        certified.claim, certified.randomized, certified.uncertified or ""
    )
    models = () if certified.claim is None else certified.claim.models
    return Status(state, models, certified.epsilon, certified.delta, sentence)


def _kept_leader(certified: Certified) -> int | None:
    """The model decided on, else the one that the others are least known to be better than."""
    standing = certified.standing
    winner, alike = standing.winner(), standing.equivalent()
    if winner is not None:
        return winner[0]
    if alike:
        return alike[0]
    others = certified.active[None, :] & ~np.eye(len(standing.names), dtype=bool)
    worst = np.where(others, standing.pairs, np.inf).min(axis=1, initial=np.inf)
    worst = np.where(certified.active, worst, -np.inf)
    return int(np.argmax(worst)) if np.isfinite(worst).any() else None
