"""What is known, as JSON: estimates, certificates, eras, recommendation and checks.

The docstring of a struct says what its fields hold; the reference pages are made of it.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec

from equipoise.agent.answers.recommendation import Reading
from equipoise.agent.answers.statements import Pill
from equipoise.agent.answers.status import Activity, State
from equipoise.agent.monitors.check import Status as CheckStatus
from equipoise.agent.service.api.schema import Wire
from equipoise.store.records import Id

Lack: TypeAlias = Literal["replays", "outputs", "rewards", "computation"]
"""What a family waits for that has no value of a model."""
Verdict: TypeAlias = Literal["better", "worse", "alike", "close", "open"]
Status: TypeAlias = State


class ShownValue(Wire, frozen=True, kw_only=True):
    """The value to show of a model. family: the configured one where that has a value, else `ipw`.
    value: its estimate. standard_error: of that. interval: as in `ModelEstimate`."""

    family: str
    value: float
    standard_error: float
    interval: tuple[float, float]


class ModelEstimate(Wire, frozen=True, kw_only=True):
    """What is known of a model. value, standard_error: by the configured family; interval: its 95%
    interval by that error, as far as rewards can lie in it. model: its name. lower, upper:
    certified at any moment, whatever the simulator and the log say. log_mean: plain mean where
    users or the router chose it. exp_rewards: rewards from draws. Today's routing has a row of this
    kind too, under the name `(today's routing)`.

    shown: null where no value has an error yet. waits_for: what the configured family lacks to
    value this model, null where it has; note: the same for people. compared: whether the era in
    force compares it; retired: whether it is declared so. era_draws: randomized requests of that
    era that are closed. log_standard_error: of log_mean."""

    model: str
    value: float | None
    standard_error: float | None
    interval: tuple[float, float] | None
    lower: float | None
    upper: float | None
    log_mean: float | None
    exp_rewards: int
    log_standard_error: float | None = None
    shown: ShownValue | None = None
    waits_for: Lack | None = None
    note: str = ""
    compared: bool = True
    retired: bool = False
    era_draws: int = 0


class FamilyValue(Wire, frozen=True, kw_only=True):
    """A model's value by one family.

    model: its name. value: estimated by this family, null where it cannot be. standard_error: of
    the value, null where it is unknown. interval: as in `ModelEstimate`.
    """

    model: Id
    value: float | None
    standard_error: float | None
    interval: tuple[float, float] | None


class Contrast(Wire, frozen=True, kw_only=True):
    """Certified ends of value(model) - value(other).

    model: the one. other: the other; it may be `(today's routing)`. lower, upper: the ends, null
    while nothing is certified.
    """

    model: Id
    other: Id
    lower: float | None
    upper: float | None


class Comparison(Wire, frozen=True, kw_only=True):
    """Certified ends of value(model) - value(other), and what they say. model: the one compared.
    other: the one it is compared with. lower, upper: the ends. verdict: `better` or `worse`, model
    than other; `alike`, within epsilon of each other; `close`, at most epsilon worse; `open`,
    none of these. Ends hold for every pair at once; those of the model that is decided on are
    raised to what the decision certifies."""

    model: str
    other: str
    lower: float
    upper: float
    verdict: Verdict


class CertifiedValue(Wire, frozen=True, kw_only=True):
    """Certified ends of the value of a model, of today's routing, or of a declared policy.

    candidate: its name. lower, upper: the ends.
    """

    candidate: str
    lower: float
    upper: float


class SegmentAnswer(Wire, frozen=True, kw_only=True):
    """What is certified of a declared segment of the traffic, at its share of delta.

    segment: its name. status: of the decision in it. sentence: the same for people. delta: its
    share of the error level. certified_rows: requests that its ends hold. values: of candidates.
    """

    segment: str
    status: Status
    sentence: str
    delta: float
    certified_rows: int
    values: list[CertifiedValue]


class WatermarkAnswer(Wire, frozen=True, kw_only=True):
    """Rows are certified in decision order. held_back: decisions that have everything and only wait
    for earlier ones; decision_id, at: the oldest that waits, null where none does. sentence: the
    same for people."""

    held_back: int
    decision_id: Id | None
    at: float | None
    sentence: str


class EstimatesAnswer(Wire, frozen=True, kw_only=True):
    """Everything that is estimated. at: when it was computed; log_rows: rows of the log it holds;
    waiting: decisions that wait for their outcome; watermark: what that holds back. delta: the
    error level of the certified ends; sequence, assumptions: what they are made by and rest on;
    certified_rows: requests (or units) of the era that they hold. families: other families that
    were asked for, by name; fallbacks: why families have no values that cannot be computed.

    reward_range: what rewards can be; an end that lies there is not known. maximise: whether larger
    is better. epsilon: the smallest difference that matters. routing_contrasts: certified ends of
    value(model) - value(today's routing). leader: the model decided on, else the one that looks
    best of those compared, null where none has a value; comparisons: of it with every other model
    of the era, and with today's routing. about: which requests values and differences are about, ""
    for all. rating: certified ends of the difference between two models in the share of requests
    that is rated, where answers are about those who rate; rating_sentence: the same for people.

    experiment: its name. decisions: how many were made; randomized: how many of them were drawn.
    estimator: the configured family. era: the one in force. models: a row for each.
    todays_routing: the same for what is deployed. contrasts: certified differences of every pair.
    segments: what is certified of declared segments.
    """

    experiment: str
    at: float
    log_rows: int
    decisions: int
    randomized: int
    waiting: int
    watermark: WatermarkAnswer
    estimator: str
    delta: float
    sequence: str
    assumptions: list[str]
    certified_rows: int
    era: int
    models: list[ModelEstimate]
    todays_routing: ModelEstimate
    contrasts: list[Contrast]
    segments: list[SegmentAnswer]
    families: dict[str, list[FamilyValue]]
    fallbacks: dict[str, str] = msgspec.field(default_factory=dict)
    reward_range: tuple[float, float] = (0.0, 1.0)
    maximise: bool = True
    epsilon: float = 0.0
    routing_contrasts: list[Contrast] = msgspec.field(default_factory=list)
    leader: str | None = None
    comparisons: list[Comparison] = msgspec.field(default_factory=list)
    about: str = ""
    rating: list[Contrast] = msgspec.field(default_factory=list)
    rating_sentence: str = ""


class CertifiedAnswer(Wire, frozen=True, kw_only=True):
    """What was certified of an era when it ended: true of its own time. status, status_models,
    sentence: the decision then. lead: what its model was better by than every other of the era,
    at least; null where that was not certified. requests, randomized: certified ones. values,
    contrasts: certified ends; comparisons: as in `EstimatesAnswer`. epsilon: the smallest
    difference that mattered. delta: the error level. sequence: which one certified.
    assumptions: what that rests on. leader: the model decided on, else the one that was ahead.
    segments: of declared segments."""

    status: Status
    status_models: list[str]
    sentence: str
    lead: float | None
    epsilon: float
    delta: float
    sequence: str
    assumptions: list[str]
    requests: int
    randomized: int
    values: list[CertifiedValue]
    contrasts: list[Contrast]
    leader: str | None
    comparisons: list[Comparison]
    segments: list[SegmentAnswer]


class EraEntry(Wire, frozen=True, kw_only=True):
    """An era. era: its number. opened_at: seconds since the epoch. reason: why it was opened.
    compared: its models. ended_at, ended_reason: null for the era in force. answer: the last
    certified one; null for the era in force, whose answer is `/v1/estimates`, and where none
    was kept, because an older version ended it or because it was declared void."""

    era: int
    opened_at: float
    reason: str
    compared: list[str]
    ended_at: float | None
    ended_reason: str | None
    answer: CertifiedAnswer | None


class ErasAnswer(Wire, frozen=True, kw_only=True):
    """Every era. era: the number of the one in force. eras: the oldest first."""

    era: int
    eras: list[EraEntry]


class RecommendationAnswer(Wire, frozen=True, kw_only=True):
    """What to do with production traffic. action: `keep`, which is today's routing, until a model
    is certified for all of the traffic; then that model, unless today's routing looks better still.
    leaning: what estimates favour, a model or `keep`, not certified; null where too little
    is known, and in a tie. model: the best single model of the family, with value and standard
    error, null where the error is unknown. claim: whether `certified` is the best of the models or
    within epsilon of the best, or `status_models` are alike; null while nothing is certified.
    status, status_models, status_sentence: the decision and what it concerns, with its guarantee.
    sentence: for people, `certified_sentence`, `estimate_sentence` and `outlook_sentence` in a row,
    in which ± is half of a 95% interval. activity, activity_sentence: what happens to requests now.
    pills: the same in a word each. final: who is to be served once the experiment has ended, a
    model or `keep`, which then is the action too, certified or not; null before.

    certified_sentence: what is certified. estimate_sentence: the best estimate. outlook_sentence:
    what a decision would take. certified: the certified model, null while none is. family: the
    estimator family that was asked. value: of `model`, null where its error is unknown.
    standard_error: of the value. routing_value: of today's routing. routing_standard_error: of
    that. at: when it was made, in seconds since the epoch. log_rows: rows of the log that it holds.
    families: what others say, where computed. spread: largest less smallest value of `model`.
    """

    status: Status
    status_models: list[str]
    status_sentence: str
    sentence: str
    certified_sentence: str
    estimate_sentence: str
    outlook_sentence: str
    activity: Activity
    activity_sentence: str
    pills: list[Pill]
    family: str
    model: str | None
    action: str
    leaning: str | None
    value: float | None
    standard_error: float | None
    routing_value: float | None
    routing_standard_error: float | None
    claim: Literal["best", "within", "alike"] | None
    certified: str | None
    at: float
    log_rows: int
    final: str | None = None
    families: list[Reading] = msgspec.field(default_factory=list)
    spread: float | None = None


class CheckAnswer(Wire, frozen=True, kw_only=True):
    """The verdict of one check.

    name: of the check. status: `ok`, `watch`, `alarm` or `unknown`. sentence: the same for people.
    figures: the numbers behind it, by name. level: the error level of an alarm, null where it has
    none. models: those it concerns.
    """

    name: str
    status: CheckStatus
    sentence: str
    figures: dict[str, Any]
    level: float | None
    models: list[str]


class ChecksAnswer(Wire, frozen=True, kw_only=True):
    """Every check. status: the gravest of them. checks: their verdicts. at: when they were made, in
    seconds since the epoch. log_rows: rows of the log that they hold."""

    status: CheckStatus
    checks: list[CheckAnswer]
    at: float
    log_rows: int
