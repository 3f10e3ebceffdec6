"""Certified sums of the running era: rows enter in decision order, behind the watermark.

A row is a decision with e >= rate_min that was open to every model its era compares, or, with
sticky units, the unit that this decision opened. Row t enters when it and every row before it is
closed: its reward has come or has expired, and its unit, if any, can grow no more. F_{t-1} so
holds all earlier rows with their eventual outcomes, whichever came first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from equipoise.agent.config import ExperimentConfig
from equipoise.agent.config.parts import Meaning
from equipoise.agent.features.transform import ColumnRange
from equipoise.agent.inference.certificate import CertificateMoments
from equipoise.agent.inference.mixture import usual_caps
from equipoise.agent.inference.prediction import Frozen
from equipoise.agent.inference.rated import RatedRows, asked, ends_of_rating
from equipoise.agent.inference.score import Rows
from equipoise.agent.lifecycle.rules import Rule
from equipoise.agent.state.chunk import distinct
from equipoise.agent.state.open_decisions import OpenDecisions, span
from equipoise.agent.state.replay_index import ReplayIndex
from equipoise.store.batches import Closure, Flags, Floats, Ints


class Rules(Protocol):
    """What entering rows needs of the frozen rules."""

    def by_ordinal(self, ordinal: int) -> Rule: ...


@dataclass(frozen=True, slots=True)
class Spec:
    """What is certified, from the configuration.

    models: K; names: (A,) candidates, models first, then today's routing, then declared policies.
    caps: of the bounded sequence, the last infinite. segments: declared parts of the traffic.
    policies: each a band of requests and the positions of the models inside and outside of it.
    low, high: declared range of the reward; missing: declared value of a missing reward on the
    [0, 1] scale, None for the worst case. sticky: whether rows are units. freezes: whether no row
    enters once a limit on a part of the traffic was reached, rather than those still open.
    meaning: of a missing reward; rated_share: of requests, as was declared, None for unknown.
    """

    models: int
    names: tuple[str, ...]
    caps: tuple[float, ...]
    segments: tuple[ColumnRange, ...]
    policies: tuple[tuple[ColumnRange, int, int], ...]
    low: float
    high: float
    missing: float | None
    sticky: bool
    freezes: bool = False
    meaning: Meaning = Meaning.WORST_CASE
    rated_share: float | None = None

    @classmethod
    def of(cls, config: ExperimentConfig) -> Self:
        columns = config.features.context_columns()
        certify, reward, models = config.certify, config.reward, config.model_names
        missing = reward.missing_value
        if missing is not None:
            missing = (missing - reward.low) / (reward.high - reward.low)
        return cls(
            models=len(models),
            names=config.candidates,
            caps=usual_caps(len(models), config.policy.rate * (reward.ask or 1.0)),
            segments=tuple(
                ColumnRange.of(segment.column, segment.low, segment.high, columns)
                for segment in certify.segments
            ),
            policies=tuple(
                (
                    ColumnRange(columns.index(policy.column), policy.at_least, np.inf),
                    models.index(policy.model),
                    models.index(policy.otherwise),
                )
                for policy in certify.policies
            ),
            low=reward.low,
            high=reward.high,
            missing=missing,
            sticky=config.units is not None,
            freezes=certify.limits == "freeze",
            meaning=reward.meaning,
            rated_share=reward.rated_share,
        )

    @property
    def of_raters(self) -> bool:
        """Whether answers are about the requests that are rated."""
        return self.meaning.of_raters

    def scaled(self, reward: Floats) -> Floats:
        return (reward - self.low) / (self.high - self.low)

    def missing_reward(self, rule: Rule) -> float | None:
        """What a reward that never comes counts as for rows of a rule, in reward units, by what
        was declared when the rule was frozen; None where no value is declared."""
        if not isinstance(rule.missing, msgspec.UnsetType):
            return None if isinstance(rule.missing, str) else rule.missing
        return None if self.missing is None else self.low + self.missing * (self.high - self.low)

    def missing_under(self, rule: Rule) -> float | None:
        """`missing_reward` on the [0, 1] scale."""
        value = self.missing_reward(rule)
        return None if value is None else (value - self.low) / (self.high - self.low)

    def shares(self, x: Floats) -> Floats:
        """(n, P, K) what each declared policy would do."""
        result = np.zeros((len(x), len(self.policies), self.models))
        for index, (band, inside, outside) in enumerate(self.policies):
            chosen = np.where(band.holds(x), inside, outside)
            result[np.arange(len(x)), index, chosen] = 1.0
        return result

    def fits(self, rule: Rule) -> bool:
        """Whether a rule was frozen for these sums; one of an era that was configured otherwise
        was not, and nobody asks for that era's sums any more."""
        shape = len(self.caps), len(self.names)
        return len(rule.frozen) == 1 + len(self.segments) and all(
            frozen.centres.low.shape == shape and (frozen.rated is not None) == self.of_raters
            for frozen in rule.frozen
        )

    def neutral(self) -> tuple[Frozen, ...]:
        """What the first rule of an era freezes, for the whole traffic and every segment."""
        share = 0.5 if self.rated_share is None else self.rated_share
        rated = share if self.of_raters else None
        one = Frozen.neutral(self.models, len(self.names), len(self.caps), rated)
        return (one,) * (1 + len(self.segments))

    def empty(self) -> list[CertificateMoments]:
        size = len(self.names), len(self.caps)
        parts = range(1 + len(self.segments))
        return [CertificateMoments.empty(self.models, *size, self.of_raters) for _ in parts]


LEAST_CHANCE = 2.0**-40
"""Stands for no chance at all where a score divides by it."""
REFERENCE_REWARDS = 100.0
"""Rewards of a model from which a rule may be the reference of its residuals."""


class CertifiedSums:
    """Owner of the certified sums. era: the one they belong to; watermark: the first decision
    that has not entered. sums: of the whole traffic, then of each segment.

    reference: (K,) ordinal of the rule whose prediction a model's residuals are taken against, -1
    where there is none yet: the first of the era that had seen enough of the model's rewards. It
    stays for the era, since a prediction that is still being learnt would look like drift.
    left_out: (parts, 2) rows of the era that passed the watermark and are in no sum: closed by a
    limit on a part of the traffic, and closed to some model from the start.
    prior: (2 + K,) what was thought of the era when its first row was decided, NaN for none.
    """

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.era = 0
        self.watermark = 0
        self.sums = spec.empty()
        self.reference = np.full(spec.models, -1, dtype=np.int64)
        self.left_out = np.zeros((1 + len(spec.segments), 2))
        self.prior = np.full(2 + spec.models, np.nan)

    @property
    def overall(self) -> CertificateMoments:
        return self.sums[0]

    @property
    def begun(self) -> bool:
        """Whether a row of the era is in any of the sums: a limit may have closed the whole before
        its first row, and a segment not."""
        return any(sums.rows for sums in self.sums)

    def copy(self) -> Self:
        twin = type(self)(self.spec)
        twin.era, twin.watermark = self.era, self.watermark
        twin.sums = [sums.copy() for sums in self.sums]
        twin.reference = self.reference.copy()
        twin.left_out, twin.prior = self.left_out.copy(), self.prior.copy()
        return twin

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The state by name, for a checkpoint; views, not copies."""
        named: dict[str, NDArray[Any]] = {
            "reference": self.reference,
            "left_out": self.left_out,
            "prior": self.prior,
        }
        for index, sums in enumerate(self.sums):
            named |= {f"{index}_{name}": array for name, array in sums.arrays().items()}
        return named

    def holds(self, arrays: Mapping[str, NDArray[Any]]) -> bool:
        """Whether `load` can take these: sums of as many candidates, caps and segments."""
        own = self.arrays()
        return own.keys() == arrays.keys() and all(
            own[name].shape == array.shape for name, array in arrays.items()
        )

    def load(self, arrays: Mapping[str, NDArray[Any]], era: int, watermark: int) -> None:
        self.era, self.watermark = era, watermark
        self.reference = np.array(arrays["reference"], dtype=np.int64)
        self.left_out = np.array(arrays["left_out"])
        self.prior = np.array(arrays["prior"])
        for index, sums in enumerate(self.sums):
            head = f"{index}_"
            sums.load({n[len(head) :]: a for n, a in arrays.items() if n.startswith(head)})

    def advance(
        self, table: OpenDecisions, rules: Rules, simulated: ReplayIndex, whole: bool = False
    ) -> Floats:
        """Let every closed row enter, up to the first open one. whole: only those of rules of which
        no further row can come.

        Returns (n,) what the reference of its model predicts of the reward of each randomized row
        that the watermark passed, on [0, 1]; NaN for other rows, and where there is none yet.
        """
        start = self.watermark - table.base
        count = table.passed(start)
        rule = table.rule[start : start + count]
        edges = np.flatnonzero(np.diff(rule)) + 1
        if whole:
            count, edges = int(edges[-1]) if len(edges) else 0, edges[:-1]
        predicted = np.full(count, np.nan)
        if not count:
            return predicted
        for first, last in zip([0, *edges.tolist()], [*edges.tolist(), count], strict=True):
            frozen = rules.by_ordinal(int(rule[first]))
            if frozen.era < self.era:
                # Shipped late by a decider of an era that has ended: no row of it enters any more.
                continue
            if frozen.era != self.era:
                # Nothing is carried over: a new era has its own estimand and its own delta.
                self.era, self.sums = frozen.era, self.spec.empty()
                self.reference[:] = -1
                self.left_out[:] = 0.0
                self.prior[:] = np.nan
            rows = np.flatnonzero(table.certifiable[start + first : start + last])
            fits = self.spec.fits(frozen)
            parts = self._parts(table, slice(start + first, start + last), rows, fits)
            if len(rows) and fits:
                at = rows + start + first
                self._enter(frozen, table, at, simulated, parts)
                self._refer(int(rule[first]), frozen)
                predicted[first + rows] = self._referred(rules, table, at, simulated)
            if frozen.after_decision == "ramp" and fits:
                # Drawn for the checks alone: what changed has to be seen, nothing more certified.
                drawn = np.flatnonzero(table.randomized[start + first : start + last])
                at = drawn + start + first
                predicted[first + drawn] = self._referred(rules, table, at, simulated)
        self.watermark += count
        return predicted

    def _parts(self, table: OpenDecisions, run: slice, rows: Ints, counts: bool) -> list[Ints]:
        """Which of `rows` (n,), certifiable ones of a run, enter each part, by their positions.

        Counts the rows that are left out, and those among them that came before a row that enters:
        from then on the sums speak of another traffic than the whole.
        """
        x, closed_by = table.x[run], table.closed_by[run]
        inside = [np.ones(len(x), dtype=bool), *(band.holds(x) for band in self.spec.segments)]
        enters = [np.flatnonzero(band[rows]) for band in inside]
        if not (closed_by.any() or self.left_out.any()) and table.open_to_all[run].all():
            return enters
        own = table.leader[run] == np.arange(run.start, run.stop) + table.base
        limited = own & ((closed_by == Closure.SEGMENT) | (closed_by == Closure.USER))
        closed = (
            own
            & ~limited
            & (
                (closed_by == Closure.EXCLUDED)
                | (closed_by == Closure.INELIGIBLE)
                | ((closed_by == 0) & ~table.open_to_all[run])
            )
        )
        if not (limited.any() or closed.any() or self.left_out.any()):
            return enters
        for part, band in enumerate(inside):
            out = np.cumsum(np.vstack([limited & band, closed & band]), axis=1)
            out = out + self.left_out[part, :, None]
            if self.spec.freezes:
                # Known before the draw of every later row: limits rest on earlier draws alone.
                enters[part] = enters[part][out[0, rows[enters[part]]] == 0.0]
            if counts and len(enters[part]):
                self.sums[part].counts[2:] = out[:, rows[enters[part][-1]]]
            if len(x):
                self.left_out[part] = out[:, -1]
        return enters

    def _refer(self, ordinal: int, rule: Rule) -> None:
        """Make a rule the reference of every model that has none, if it knew enough of it."""
        seen = rule.frozen[0].seen
        if seen is not None:
            self.reference[(self.reference < 0) & (seen >= REFERENCE_REWARDS)] = ordinal

    def _referred(
        self, rules: Rules, table: OpenDecisions, at: Ints, simulated: ReplayIndex
    ) -> Floats:
        """(n,) what the references predict of rows `at`, NaN where nothing is referred to."""
        result = np.full(len(at), np.nan)
        drawn = np.flatnonzero(table.randomized[at])
        model = table.model[at[drawn]]
        reference = self.reference[model]
        for ordinal in distinct(reference):
            if ordinal >= 0:
                picked = np.flatnonzero(reference == ordinal)
                rule, rows, of = rules.by_ordinal(ordinal), drawn[picked], model[picked]
                raw = predictions(rule, table, at[rows], simulated)[np.arange(len(of)), of]
                result[rows] = rule.frozen[0].tuning.apply_own(raw, of)
        return result

    def _enter(
        self,
        rule: Rule,
        table: OpenDecisions,
        at: Ints,
        simulated: ReplayIndex,
        parts: Sequence[Ints],
    ) -> None:
        """Add rows `at` (n,), decided under one rule, to the parts that they enter."""
        spec = self.spec
        if rule.prior is not None and not self.begun:
            self.prior[:] = rule.prior.array()
        where = span(at)
        x, model, randomized = table.x[where], table.model[where], table.randomized[where]
        missing = None if rule.widened else spec.missing_under(rule)
        raters: list[Floats] = []
        if spec.of_raters:
            if spec.sticky:
                *raters, known = table.unit_rated_ends(at, spec.scaled)
            else:
                *raters, known = table.rated_ends(where, spec.scaled)
            low, high = ends_of_rating(*raters)
        elif spec.sticky:
            low, high, known = table.unit_rewards(at, spec.scaled, missing)
        else:
            low, high, known = table.reward_ends(where, spec.scaled, missing)
        rows = Rows.of(
            table.rate[where],
            table.probabilities[where],
            randomized,
            model,
            table.routed[where],
            predictions(rule, table, at, simulated),
            low,
            np.ones(len(at), dtype=bool),
            shares=spec.shares(x),
        )
        rows = _of_units(rows, randomized) if spec.sticky else rows
        # A model that this era does not compare is never drawn: its column says nothing. One that
        # it compares has a chance: certifiable rows are open to it, and rules have a floor.
        never = rows.chance <= 0.0
        if never.any():
            rows.chance[never] = 1.0
        rows = replace(rows, low=low, high=high)
        counted = randomized
        if rule.ask is not None:
            # Who was not asked is as if not drawn: a rating of their own accord does not count.
            heard = asked(table.uniform[where], rule.ask)
            counted = randomized & heard
            rows = replace(rows, chance=rows.chance * rule.ask, drawn=rows.drawn & heard[:, None])
        for index, picked in enumerate(parts):
            own = rows if len(picked) == len(rows) else _picked(rows, picked)
            self.sums[index].update(
                own,
                rule.frozen[index],
                spec.caps,
                model[picked],
                counted[picked],
                known[picked],
                RatedRows(own, *(end[picked] for end in raters)) if raters else None,
            )


class Ahead:
    """Certified sums with every closed row, on copies, for who looks before a chunk is complete.

    Rows of one rule enter together. Those of rules that had ended before an earlier look entered a
    copy then: the next one goes on from there, where nothing came to such a row since.
    """

    def __init__(self) -> None:
        self._key: tuple[int, int, bytes] | None = None
        self._kept: tuple[CertifiedSums, Floats] | None = None

    def of(
        self,
        sums: CertifiedSums,
        table: OpenDecisions,
        rules: Rules,
        simulated: ReplayIndex,
        renewals: int,
    ) -> tuple[CertifiedSums, Floats]:
        """A copy of the sums with every closed row, and what `advance` says of these.

        renewals: how many models became another version.
        """
        start, kept = sums.watermark, self._kept
        if kept is None or self._key != self._of(table, start, kept[0].watermark, renewals):
            kept = sums, np.zeros(0)
        ahead, predicted = kept[0].copy(), kept[1]
        if table.ttl is None:
            more = ahead.advance(table, rules, simulated, whole=True)
            if len(more):
                predicted = np.concatenate([predicted, more])
                self._kept = ahead.copy(), predicted
                self._key = self._of(table, start, ahead.watermark, renewals)
        more = ahead.advance(table, rules, simulated)
        return ahead, np.concatenate([predicted, more])

    @staticmethod
    def _of(table: OpenDecisions, start: int, stop: int, renewals: int) -> tuple[int, int, bytes]:
        """What sums of decisions start … stop - 1 rest on that is not known when those are made."""
        rows = slice(start - table.base, stop - table.base)
        columns = table.reward, table.has_reward, table.delivered, table.served
        return start, renewals, b"".join(column[rows].tobytes() for column in columns)


def predictions(rule: Rule, table: OpenDecisions, at: Ints, simulated: ReplayIndex) -> Floats:
    """(n, K) raw predictions of the rule's scorer, NaN where there is none.

    From rows of the simulator that were known when the decision was made, and no others: what
    arrives later might depend on how the request ended.
    """
    prediction = rule.prediction
    if prediction is None:
        return np.full((len(at), table.probabilities.shape[1]), np.nan)
    where = span(at)
    context = table.context[where]
    if not len(simulated) or (context < 0).all():
        return prediction.raw(table.x[where], None, None)
    phi, known = simulated.lookup_all(context, at + table.base, rule.known_before)
    return prediction.raw(table.x[at], phi, known)


def _of_units(rows: Rows, randomized: Flags) -> Rows:
    """Today's routing by units: what a unit gets that is not randomized, each request as routed.

    Where every unit is randomized nothing is known of it, so the chance is not 0 but next to it:
    the scores are then the whole range, but for `LEAST_CHANCE` times the cap.
    """
    chance, drawn = rows.chance.copy(), rows.drawn.copy()
    models = chance.shape[1] - 1
    chance[:, models] = np.maximum(1.0 - rows.chance[:, :models].sum(axis=1), LEAST_CHANCE)
    drawn[:, models] = ~randomized
    return replace(rows, chance=chance, drawn=drawn)


def _picked(rows: Rows, at: Ints) -> Rows:
    return Rows(
        rows.chance[at],
        rows.drawn[at],
        rows.predicted[at],
        rows.low[at],
        rows.high[at],
        rows.shares[at],
    )
