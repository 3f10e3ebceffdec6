"""The one engine behind stopping, status, page and planner: what is certified, at which level.

It reads the certified sums of the running era by the sequence that was declared, divides delta
over eras, segments and statements, and says in the same breath what the answer assumes. What is
predictable of the next rows (tuning, centres, the opening of the asymptotic sequence) is frozen
here for the next rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Self

import msgspec
import numpy as np

from equipoise.agent.answers.policy_snapshot import KnownRewards
from equipoise.agent.answers.status import Claim, RatedMore, Standing
from equipoise.agent.config import ExperimentConfig
from equipoise.agent.config.parts import Meaning
from equipoise.agent.estimators.base import Estimate
from equipoise.agent.inference import levels, per_model
from equipoise.agent.inference.asymptotic import Opening
from equipoise.agent.inference.certificate import (
    CertificateMoments,
    Chosen,
    Reading,
    Sequence,
    choose,
)
from equipoise.agent.inference.levels import EraPrior, chances_of_best
from equipoise.agent.inference.prediction import Frozen
from equipoise.agent.inference.projection import within_range
from equipoise.agent.lifecycle.drawn import Drawn
from equipoise.agent.lifecycle.eras import KeptAnswer
from equipoise.agent.lifecycle.rules import Rule
from equipoise.agent.state.certified_sums import CertifiedSums, Spec
from equipoise.store.batches import Flags, Floats

ALWAYS = (
    "logged probabilities are those the models were drawn with (checked: assignment)",
    "rewards lie in the declared range",
    "what happens to one request does not depend on what others were assigned",
)
DECLARED = (
    "the mapping's probabilities are those with which each row, or the unit of it, was drawn,"
    " fixed before the draw; the key proves nothing about them (their shares are checked:"
    " assignment)",
    "every row that was drawn is in the log, whatever came of it",
)
IN_ORDER = "rows stand in the order of their draws"
TIMED, UNTIMED = (
    " (their times do not fall)",
    " (their times are missing or equal: nothing shows it)",
)
ROUNDING = 1e-9
"""By which ends that agree may cross, as they are computed."""
LEAST_VARIANCE = 0.01
"""Smallest variance of a reward, on the [0, 1] scale, that an era is planned for."""
ASSUMES: Mapping[Sequence, tuple[str, ...]] = {
    Sequence.BOUNDED: (),
    Sequence.PER_MODEL: (per_model.ASSUMPTION,),
    Sequence.ASYMPTOTIC: ("large samples: exact only in the limit, measured in docs/coverage.md",),
}


OF_RATERS = (
    "the answer is about those who rate: a model that changes who rates changes it",
    "what those who rate say of a model stays the same while the experiment runs (checked: drift)",
)


@dataclass(frozen=True, slots=True)
class Conditions:
    """What the choice of the sequence may look at, all of it known before the rows it certifies.

    context_free: no rule looked at a request; drift_alarm: one stands; widened: an alarm asks for
    the interval with the fewest assumptions. contradicted: of rows that were drawn elsewhere what
    contradicts their probabilities, "" for nothing; then nothing is certified.
    """

    context_free: bool
    drift_alarm: bool = False
    widened: bool = False
    contradicted: str = ""


@dataclass(frozen=True, slots=True)
class Certified:
    """Certified answers in reward units, valid at all times, about one part of the traffic.

    names: (A,) candidates: K models, today's routing, declared policies. segment: None for the
    whole traffic. sequence, reason, assumptions: which one, why, and what it rests on.
    rows, randomized, missing: certified rows; limited, closed: rows before the last of them that
    are not among them, because a limit on a segment or a user was reached, and because they were
    closed to some model from the start. delta: of each kind of statement below.
    lower, upper: (A,) ends of values. contrasts: (A, A) lower ends of V(a) - V(b), all pairs at
    once; the upper end is -contrasts[b, a]. decision: (K, K) the same, larger being better
    whatever the sign of the reward, at the level of "m beats all others".
    fixed: (A, A) half-widths of fixed-n intervals at the level of `contrasts`: a comparison only.
    rating: (K, K) lower ends of the difference in the share of requests that is rated, all pairs at
    once, where answers are about those who rate; None where they are about all.
    drawn: by whom its rows were drawn, "" where this experiment drew them; uncertified: why those
    count for estimates alone, "" where they do not, None for other rows.
    """

    names: tuple[str, ...]
    segment: str | None
    sequence: Sequence
    reason: str
    assumptions: tuple[str, ...]
    rows: int
    randomized: int
    missing: int
    limited: int
    closed: int
    delta: float
    lower: Floats
    upper: Floats
    contrasts: Floats
    decision: Floats
    fixed: Floats
    active: Flags
    sign: int
    epsilon: float
    rating: Floats | None = None
    drawn: str = ""
    uncertified: str | None = None

    @property
    def about(self) -> str:
        """Which requests the answers are about, to follow what is said of a model; "" for all."""
        raters = "" if self.rating is None else f" {Meaning.RATED.about}"
        raters += f" on requests drawn by {self.drawn}" if self.drawn else ""
        if self.limited:
            return (
                f"{raters} on requests that were still open to the experiment"
                f" ({self.limited:,} were closed by limits on segments or users)"
            )
        if self.closed:
            return f"{raters} on requests open to every model compared ({self.closed:,} were not)"
        return raters

    @property
    def kept(self) -> KeptAnswer:
        """As it is kept when its era ends."""
        return KeptAnswer(
            segment=self.segment,
            candidates=list(self.names),
            active=self.active.tolist(),
            sequence=self.sequence.value,
            assumptions=list(self.assumptions),
            rows=self.rows,
            randomized=self.randomized,
            missing=self.missing,
            limited=self.limited,
            closed=self.closed,
            delta=self.delta,
            epsilon=self.epsilon,
            sign=self.sign,
            lower=self.lower.tolist(),
            upper=self.upper.tolist(),
            contrasts=self.contrasts.tolist(),
            decision=self.decision.tolist(),
            rating=None if self.rating is None else self.rating.tolist(),
            drawn=self.drawn or msgspec.UNSET,
            uncertified=self.uncertified or msgspec.UNSET,
        )

    @classmethod
    def of_kept(cls, kept: KeptAnswer) -> Self:
        """What was certified when an era ended; no comparison with fixed-n intervals was kept."""
        contrasts = np.array(kept.contrasts, dtype=float)
        return cls(
            names=tuple(kept.candidates),
            segment=kept.segment,
            sequence=Sequence(kept.sequence),
            reason="as kept when the era ended",
            assumptions=tuple(kept.assumptions),
            rows=kept.rows,
            randomized=kept.randomized,
            missing=kept.missing,
            limited=kept.limited,
            closed=kept.closed,
            delta=kept.delta,
            lower=np.array(kept.lower, dtype=float),
            upper=np.array(kept.upper, dtype=float),
            contrasts=contrasts,
            decision=np.array(kept.decision, dtype=float),
            fixed=np.full_like(contrasts, np.nan),
            active=np.array(kept.active, dtype=bool),
            sign=kept.sign,
            epsilon=kept.epsilon,
            rating=None if kept.rating is None else np.array(kept.rating, dtype=float),
            drawn="" if isinstance(kept.drawn, msgspec.UnsetType) else kept.drawn,
            uncertified=None
            if isinstance(kept.uncertified, msgspec.UnsetType)
            else kept.uncertified,
        )

    @property
    def claim(self) -> Claim | None:
        """What this certifies, None where that is nothing."""
        models = len(self.decision)
        over = self.contrasts[:models, models]
        if self.sign < 0:
            over = self.contrasts[models, :models]
        claim = self.standing.claim(self.delta, over, self.about, whole=not self.limited)
        if claim is None or self.rating is None:
            return claim
        return msgspec.structs.replace(claim, rating=self.rated_more(claim))

    def rated_more(self, claim: Claim | None = None) -> tuple[RatedMore, ...]:
        """Certified differences in how many requests are rated: those between the models of a
        claim, or between its one and the others; of all models that are compared without one."""
        if self.rating is None:
            return ()
        names = self.names[: len(self.decision)]
        said = set(names if claim is None else claim.models)
        alone = claim is not None and len(said) == 1
        return tuple(
            RatedMore(model=names[a], other=names[b], by=float(self.rating[a, b]))
            for a, b in zip(*np.nonzero(self.rating > 0.0), strict=True)
            if self.active[a]
            and self.active[b]
            and (bool({names[a], names[b]} & said) if alone else {names[a], names[b]} <= said)
        )

    @property
    def standing(self) -> Standing:
        """What the status is decided on."""
        models = len(self.decision)
        pairs = self.contrasts[:models, :models]
        return Standing(
            self.names[:models],
            self.decision,
            pairs if self.sign > 0 else pairs.T,
            self.active,
            self.epsilon,
        )


class Certifier:
    """Readings of the certified sums of one experiment."""

    def __init__(self, config: ExperimentConfig) -> None:
        self.spec = Spec.of(config)
        self._declared = Sequence(config.certify.sequence)
        self._config = config
        self._sign = 1 if config.reward.maximise else -1
        self._range = config.reward.high - config.reward.low

    @property
    def parts(self) -> int:
        """How many sets of sums there are: the whole traffic and every segment."""
        return 1 + len(self.spec.segments)

    def delta(self, era: int, part: int) -> float:
        """The share of delta that one part of the traffic may spend in an era."""
        config = self._config
        delta = config.policy.delta
        if config.certify.lifetime:
            delta = levels.era_level(delta, era + 1)
        return levels.segment_levels(delta, len(self.spec.segments))[min(part, 1)]

    def certified(
        self, sums: CertifiedSums, rule: Rule, conditions: Conditions, part: int = 0
    ) -> Certified:
        """Everything that is certified of one part of the traffic: 0 for the whole."""
        reading = self._reading(sums, rule, conditions, part)
        delta, models = self.delta(rule.era, part), self.spec.models
        candidates = len(self.spec.names)
        pair = levels.pair_level(delta, candidates)
        low, high = reading.values(levels.value_level(delta, candidates))
        scale, moments = self._range, reading.moments
        ends = self.spec.low, self.spec.high
        rating = reading.rating(levels.pair_level(delta, models))
        with np.errstate(invalid="ignore", divide="ignore"):
            fixed = reading.fixed_half_widths(pair) * scale
        segments = self._config.certify.segments
        answer = Certified(
            names=self.spec.names,
            segment=None if part == 0 else segments[part - 1].name,
            sequence=reading.chosen.sequence,
            reason=reading.chosen.reason,
            assumptions=(ALWAYS if rule.drawn is None else (*_declared(rule.drawn), *ALWAYS[1:]))
            + (OF_RATERS if self.spec.of_raters else ())
            + ASSUMES[reading.chosen.sequence],
            rows=int(moments.rows),
            randomized=int(moments.randomized),
            missing=int(moments.missing),
            limited=int(moments.limited),
            closed=int(moments.closed),
            delta=delta,
            # 0.1 + 0.2 is more than 0.3: what was scaled back may lie outside by its rounding.
            lower=within_range(self.spec.low + scale * low, *ends),
            upper=within_range(self.spec.low + scale * high, *ends),
            contrasts=scale * reading.contrasts(pair),
            decision=scale * self._decision(reading, delta)[:models, :models],
            fixed=fixed,
            active=rule.active,
            sign=self._sign,
            epsilon=self._config.policy.epsilon,
            rating=None if rating is None else rating[:models, :models],
            drawn="" if rule.drawn is None else rule.drawn.label + rule.drawn.others,
            uncertified=None if rule.drawn is None else "",
        )
        if rule.drawn is None:
            return answer
        why = rule.drawn.uncertified or conditions.contradicted or _crossing(answer)
        return answer if not why else self.withdrawn(answer, why)

    def withdrawn(self, answer: Certified, why: str) -> Certified:
        """An answer of which nothing is certified. why: what contradicts it."""
        apart = np.where(np.eye(len(answer.lower), dtype=bool), 0.0, -self._range)
        models = len(answer.decision)
        return replace(
            answer,
            rows=0,
            randomized=0,
            missing=0,
            lower=np.full_like(answer.lower, self.spec.low),
            upper=np.full_like(answer.upper, self.spec.high),
            contrasts=apart,
            decision=apart[:models, :models],
            rating=None if answer.rating is None else np.full_like(answer.rating, -1.0),
            uncertified=why,
        )

    def winner(
        self, sums: CertifiedSums, rule: Rule, conditions: Conditions, part: int = 0
    ) -> int | None:
        """Position of the model certified within epsilon of the best; cheaper than `certified`."""
        if rule.drawn is not None:
            of_drawn = self.certified(sums, rule, conditions, part).standing.winner()
            return None if of_drawn is None else of_drawn[0]
        reading = self._reading(sums, rule, conditions, part)
        decision = self._range * self._decision(reading, self.delta(rule.era, part))
        models = self.spec.models
        standing = Standing(
            self.spec.names[:models],
            decision[:models, :models],
            decision[:models, :models],
            rule.active,
            self._config.policy.epsilon,
        )
        best = standing.winner()
        return None if best is None else best[0]

    def freeze(
        self,
        sums: CertifiedSums,
        last: Rule | None,
        era: int,
        conditions: Conditions,
        active: Flags,
        rewards: KnownRewards | None = None,
    ) -> tuple[Frozen, ...]:
        """What the next rule of an era freezes, for the whole traffic and every segment.

        rewards: those that came before the rows that the rule decides, None for none.
        """
        known, share = None, self.spec.rated_share if self.spec.of_raters else None
        usable = share is not None or not self.spec.of_raters
        if rewards is not None and usable and self._declared is not Sequence.ASYMPTOTIC:
            policies = [rewards.means[: self.spec.models].mean()] * len(self.spec.policies)
            known = np.append(rewards.means, policies)
            known = np.clip((known - self.spec.low) / self._range, 0.0, 1.0)
        elif share is not None:
            # How many rate is known before anybody did.
            known = np.full(len(self.spec.names), 0.5)
        if sums.era != era or last is None or last.era != era:
            if known is None:
                return self.spec.neutral()
            return tuple(moments.freeze(None, known, share) for moments in self.spec.empty())
        return tuple(
            moments.freeze(
                last.frozen[part].opening
                or self._opening(moments, self.delta(era, part), conditions, active),
                known,
                share,
            )
            for part, moments in enumerate(sums.sums)
        )

    def prior(
        self,
        sums: CertifiedSums,
        last: Rule | None,
        era: int,
        active: Flags,
        thought: Callable[[], Estimate],
        known: KnownRewards | None,
    ) -> EraPrior | None:
        """What the next rule of an era says is thought of it: from its first certified row on, what
        was thought then; None where that rule was of a version without.

        thought: what the models' values are estimated to be; known: the rewards that came so far,
        None where none did.
        """
        if last is not None and last.era == era == sums.era and sums.begun:
            return EraPrior.of_array(sums.prior)
        return self.first_prior(era, active, known, thought)

    def prior_in_force(self, sums: CertifiedSums, rule: Rule) -> EraPrior | None:
        """What was thought of a rule's era when its first certified row was decided; None where
        that was by a version without."""
        if sums.era == rule.era and sums.begun:
            return EraPrior.of_array(sums.prior)
        return rule.prior

    def first_prior(
        self,
        era: int,
        active: Flags,
        known: KnownRewards | None = None,
        thought: Callable[[], Estimate] | None = None,
    ) -> EraPrior:
        """What is thought of an era before a row of it is certified; as in `prior`."""
        config, spread, best = self._config, 0.25, None
        if known is not None and known.variance is not None:
            spread = float(np.clip(known.variance / self._range**2, LEAST_VARIANCE, 0.25))
        if known is not None and thought is not None:
            estimate = thought()
            values, covariance = estimate.values, estimate.covariance
            if not np.isfinite(values[active]).any():
                values, covariance = known.beliefs(self._range)
            best = chances_of_best(self._sign * values, covariance, active)
        budget, planned = config.budget.requests, config.budget.planned
        return EraPrior.planned(
            self.spec.models,
            self.delta(era, 0),
            config.policy.rate,
            declared=None if planned is None else float(planned),
            budget=None if budget is None else float(budget),
            epsilon=config.policy.epsilon / self._range,
            variance=spread,
            rated=(config.reward.rated_share or 0.5) if self.spec.of_raters else 1.0,
            best=best,
        )

    def _opening(
        self, moments: CertificateMoments, delta: float, conditions: Conditions, active: Flags
    ) -> Opening | None:
        if self._declared is not Sequence.ASYMPTOTIC:
            return None
        chosen = self._choose(moments, conditions, active)
        if chosen.sequence is not Sequence.ASYMPTOTIC:
            return None
        alpha = chosen.level(levels.pair_level(delta, len(self.spec.names)))
        return Opening.tuned(moments.score, float(self._config.certify.tuned_rows), alpha)

    def _reading(
        self, sums: CertifiedSums, rule: Rule, conditions: Conditions, part: int
    ) -> Reading:
        models = self.spec.models
        active = np.ones(len(self.spec.names), dtype=bool)
        active[:models] = rule.active
        if rule.drawn is not None:
            # What today's routing would have served is known of requests at most, not of units.
            active[models] = rule.drawn.routed and not self.spec.sticky
        for index, (_, inside, outside) in enumerate(self.spec.policies):
            active[models + 1 + index] = rule.active[inside] and rule.active[outside]
        prior = self.prior_in_force(sums, rule)
        if sums.era == rule.era:
            moments, frozen = sums.sums[part], rule.frozen[part]
        else:
            moments, frozen = self.spec.empty()[part], self.spec.neutral()[part]
        chosen = self._choose(moments, conditions, rule.active, frozen)
        return Reading(moments, frozen, chosen, self.spec.caps, active, prior)

    def _choose(
        self,
        moments: CertificateMoments,
        conditions: Conditions,
        active: Flags,
        frozen: Frozen | None = None,
    ) -> Chosen:
        if self._declared is Sequence.PER_MODEL and moments.limited:
            share = levels.split_level(1.0)[1]
            reason = "per-model was declared, but a limit closed a part of the traffic"
            return Chosen(Sequence.BOUNDED, share, reason)
        if conditions.widened and self._declared is not Sequence.BOUNDED:
            share = levels.split_level(1.0)[1]
            return Chosen(Sequence.BOUNDED, share, "an alarm asks for the fewest assumptions")
        rarer = moments.rewards.rarer()[active]
        if frozen is not None and frozen.opening is None:
            # The condition may hold by now, but no rule has opened the sequence yet.
            rarer = np.zeros_like(rarer)
        chosen = choose(
            self._declared,
            context_free=conditions.context_free,
            drift_alarm=conditions.drift_alarm,
            rarer=rarer,
        )
        if self.spec.of_raters and self._declared is Sequence.BOUNDED:
            return replace(chosen, reason="it assumes that what those who rate say stays the same")
        return chosen

    def _decision(self, reading: Reading, delta: float) -> Floats:
        """(A, A) lower ends at the level of a decision, turned so that larger is better."""
        models = self.spec.models
        active = reading.active[:models]
        if reading.chosen.sequence is Sequence.PER_MODEL:
            # One level for all pairs: the region of a level is what takes long.
            one = levels.decision_level(delta, int(np.count_nonzero(active)))
            lower = reading.contrasts(one)
            return lower if self._sign > 0 else lower.T
        alpha = np.full((len(self.spec.names),) * 2, delta)
        alpha[:models, :models] = levels.decision_levels(delta, active, reading.prior)
        if self._sign > 0:
            return reading.contrasts(alpha)
        return reading.contrasts(alpha.T).T


def _declared(drawn: Drawn) -> tuple[str, ...]:
    return (*DECLARED, IN_ORDER + (TIMED if drawn.timed else UNTIMED))


def _crossing(answer: Certified) -> str:
    """What ends that contradict one another say, "" where none do."""
    pairs = answer.contrasts + answer.contrasts.T
    if (answer.lower > answer.upper).any() or (pairs > ROUNDING).any():
        return "their ends contradict one another: something that is declared of them is not so"
    return ""
