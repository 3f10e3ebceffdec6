"""Every request and response of the HTTP interface, version 1, as frozen structs.

These structs are the one schema: bodies are decoded into them, answers encoded from them, and the
OpenAPI document is generated from them. Numbers are in the units of the experiment's reward unless
said otherwise, times are seconds since the epoch, and `null` is unknown.

Every error is a `ProblemDocument` (RFC 9457, `application/problem+json`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import msgspec

from equipoise.agent.answers.recommendation import Reading
from equipoise.agent.answers.statements import Pill
from equipoise.agent.answers.status import Activity, State
from equipoise.agent.budget.cost import Spent
from equipoise.agent.lifecycle.eras import Ended
from equipoise.agent.monitors.check import Status as CheckStatus
from equipoise.store.records import UNPRINTABLE, AttemptReport, Decision, Id, Outcome, Request

Mode: TypeAlias = Literal["observe", "run"]
PassThrough: TypeAlias = Literal[
    "kill-switch",
    "store-slow",
    "store-full",
    "store-read-only",
    "store-failed",
    "stopping",
    "restarting",
]
"""Why a request was passed through: it is not in the log and nothing will be learnt from it."""
MOST_BUDGET = 2**63 - 1
Reason: TypeAlias = Annotated[
    str, msgspec.Meta(max_length=500, pattern=rf"^[^{UNPRINTABLE}]*$(?!\n)")
]
ClosedBy: TypeAlias = Literal[
    "observing", "paused", "budget", "segment", "user", "excluded", "ineligible", "decided"
]
"""`Closure` in words."""
Lack: TypeAlias = Literal["replays", "outputs", "rewards", "computation"]
"""What a family waits for that has no value of a model."""
Verdict: TypeAlias = Literal["better", "worse", "alike", "close", "open"]
Status: TypeAlias = State


class Wire(msgspec.Struct, frozen=True, kw_only=True):
    """Base of answers: immutable, every key always present. Readers ignore keys they know not."""


class Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of request bodies: a key that is not known is refused, for it may be a typing error."""


class DecideRequest(Request, frozen=True, kw_only=True):
    """A request to decide. The same `request_id` again gets the same decision; with other content
    it is refused (409). `features` are named values, or the vector of context columns. `at` must be
    within 300 seconds of the agent's clock. again: only what was decided before is asked for; where
    nothing was, nothing is decided now (404)."""

    again: bool = False


class DecideBatchRequest(Body, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Several requests, decided together or not at all, each request_id once.

    requests: the requests, at most `service.limits.rows` of them.
    """

    requests: list[DecideRequest]


class DecisionAnswer(Wire, frozen=True, kw_only=True):
    """What to serve.

    decision_id: name of the decision in the log, to be given with its outcome; null where the
    request was passed through (see `reason`). outcome_token: what shows that whoever reports the
    outcome was told of this decision; null likewise. request_id: as it was asked with. rule_id: the
    frozen rule that the decision follows. era: the span of the log that it belongs to. model: the
    model to serve. randomized: whether it came from a draw. propensity: the probability with which
    `model` was served. probabilities: the assignment's probability of each model for a request that
    is randomized. reason: why the request was passed through, null otherwise; then `model` is the
    routed model, `propensity` 1 and nothing was logged. ask: whether to ask the user for a rating;
    only where `reward.missing` is `asked`.
    """

    decision_id: Id | None
    request_id: Id | None
    model: Id
    randomized: bool
    propensity: float
    probabilities: dict[str, float]
    rule_id: str | None
    era: int | None
    reason: PassThrough | None = None
    outcome_token: str | None = None
    ask: bool | msgspec.UnsetType = msgspec.UNSET


class DecideBatchAnswer(Wire, frozen=True, kw_only=True):
    """One answer per request, in order.

    decisions: the answers.
    """

    decisions: list[DecisionAnswer]


class OutcomeReport(Outcome, frozen=True, kw_only=True):
    """What came of a decision. outcome_token: as it came with the decision; a token of scope admin,
    a daemon without tokens, or one with `outcomes = "open"` needs none, and a wrong one is always
    refused (403)."""

    outcome_token: Annotated[str, msgspec.Meta(max_length=100)] | None = None


OutcomesRequest: TypeAlias = OutcomeReport | list[OutcomeReport]
"""One outcome or many. Outputs come with the response, the reward later; each part counts once.
`served`, `attempt` and `delivered` speak of one attempt, `attempts` of all: the delivered one with
the highest number counts, in whatever order parts come. `at` may not lie in the future."""


class Rejected(Wire, frozen=True, kw_only=True):
    """A row that was refused. index: its position in the list, or its line (from 0). status: the
    HTTP status it would have got alone. detail: which field, the value, the limit."""

    index: int
    status: int
    detail: str


class OutcomesAnswer(Wire, frozen=True, kw_only=True):
    """What became of outcomes. accepted: rows logged. duplicates: exact repeats, dropped. late:
    after their window, logged, counted and never used. rejected: refused rows of a list; one
    outcome that is refused is a problem document instead, with status 403 (its token), 404
    (unknown), 409 (contradicts) or 422.
    """

    accepted: int
    duplicates: int = 0
    late: int = 0
    rejected: list[Rejected] = []


class BulkAnswer(Wire, frozen=True, kw_only=True):
    """What became of the lines of a bulk body. rows: how many are in the log now; duplicates: exact
    repeats; unrated: usage rows without a reward, left out unless `reward.missing` declares their
    value; rejected: refused lines; rejects: the first hundred of those, with the reason."""

    rows: int
    duplicates: int
    rejected: int
    rejects: list[Rejected] = []
    unrated: int = 0


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
    fallbacks: dict[str, str] = {}
    reward_range: tuple[float, float] = (0.0, 1.0)
    maximise: bool = True
    epsilon: float = 0.0
    routing_contrasts: list[Contrast] = []
    leader: str | None = None
    comparisons: list[Comparison] = []
    about: str = ""
    rating: list[Contrast] = []
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
    families: list[Reading] = []
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


class BudgetRequest(Body, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """requests: how many requests may be randomized in all, from the start of the experiment; a
    hard stop. null for no limit, 0 to stop."""

    requests: Annotated[int, msgspec.Meta(ge=0, le=MOST_BUDGET)] | None


class LimitAnswer(Wire, frozen=True, kw_only=True):
    """A hard stop. resource: requests (in all, or in a segment), money in USD, or harm in reward
    units. limit: the hard stop. spent: by the draws; expected: by the probabilities; planned: the
    part of the limit that belongs to the traffic so far. null where a price is unknown."""

    resource: str
    limit: float
    spent: float | None
    expected: float | None
    planned: float | None


class BudgetAnswer(Wire, frozen=True, kw_only=True):
    """The budget in force, what was spent, what is left (null for no limit).

    requests: how many requests may be randomized in all. randomized: how many were. left: the rest.
    limits: every hard stop. after_decision: what goes on once the status is decided or equivalent.
    spent: what randomizing has cost so far, in all eras; prices and values are those known now, for
    past requests too.
    """

    requests: int | None
    randomized: int
    left: int | None
    after_decision: Literal["stop", "ramp", "continue"]
    limits: list[LimitAnswer]
    spent: Spent


class OutcomePart(Wire, frozen=True, kw_only=True):
    """One accepted part of an outcome. outputs: as transformed, null where not in this part.
    attempt: which one it speaks of, null for none; served: null where it does not say who answered
    it. A part after an expiry is late. attempts: every attempt in its order, where it lists them.

    delivered: whether that attempt reached the user. reward: null where not in this part. at: when
    it came, in seconds since the epoch.
    """

    served: Id | None
    attempt: int | None
    delivered: bool | None
    outputs: list[float] | None
    reward: float | None
    at: float | None
    attempts: list[AttemptReport] | None = None


class LoggedDecision(Wire, frozen=True, kw_only=True):
    """A decision as it stands in the log, with every part of its outcome.

    decision: what was answered. unit_id: who asked. context_id: the cached context that it is.
    features: as transformed, a number for each context column. capped: whether something closed it
    to randomizing. closed_by: what did; null for nothing, and where an older log does not say.
    outcomes: every part that was accepted.
    """

    decision: Decision
    unit_id: str | None
    context_id: str | None
    features: list[float]
    capped: bool
    outcomes: list[OutcomePart]
    closed_by: ClosedBy | None = None


class RuleAnswer(Wire, frozen=True, kw_only=True):
    """A frozen rule.

    rule_id: its name. era: the span of the log that it belongs to. at: when it was made, in seconds
    since the epoch. body: what its id is a hash of.
    """

    rule_id: str
    era: int
    at: float
    body: dict[str, Any]


class PauseRequest(Body, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """reason: kept in the log, for people. An empty body is fine."""

    reason: Reason = ""


class EndRequest(Body, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """model: who is to be served from now on; keep: today's routing stays as it is. With neither it
    is the action of the recommendation. reason: kept, for people. An empty body is fine."""

    model: Id | None = None
    keep: bool = False
    reason: Reason = ""


class ModeAnswer(Wire, frozen=True, kw_only=True):
    """mode: as configured. paused: whether an operator or a check paused it, or it has ended;
    reason: why, as it was given. kill_switch: whether the file is there. activity: what is done
    with requests now. activity_sentence: the same for people. randomizing: whether any may be
    randomized. ended: the end that stands, with who is to be served. While paused, decisions are
    logged with e = 0."""

    mode: Mode
    paused: bool
    reason: str
    kill_switch: bool
    randomizing: bool
    activity: Activity
    activity_sentence: str = ""
    ended: Ended | None = None


class Health(Wire, frozen=True, kw_only=True):
    """The process answers."""

    status: Literal["alive"] = "alive"
    version: str


class Readiness(Wire, frozen=True, kw_only=True):
    """200 where decisions are logged and answered; 503 where requests would be passed through or
    the daemon stops. problems: why, one sentence each; losses: what the log is known to lack."""

    ready: bool
    problems: list[str]
    mode: ModeAnswer
    log_rows: int
    rule_id: str
    losses: list[str] = []


class ProblemDocument(Wire, frozen=True, kw_only=True, omit_defaults=True):
    """A refusal (RFC 9457).

    title: of the kind of problem. status: as in the answer's first line. detail: what is wrong with
    this request, for people. type: a name for the kind of problem, stable between versions
    (`about:blank` where the status says all). field: the key in the body that is wrong, where that
    can be said. limit: what it must keep, likewise. retry_after: seconds after which to try again.
    """

    title: str
    status: int
    detail: str
    type: str = "about:blank"
    field: str | None = None
    limit: str | None = None
    retry_after: float | None = None
