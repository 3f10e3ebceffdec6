"""Every request and response of the HTTP interface, version 1, as frozen structs.

These structs are the one schema: bodies are decoded into them, answers encoded from them, and the
OpenAPI document is generated from them. Numbers are in the units of the experiment's reward unless
said otherwise, times are seconds since the epoch, and `null` is unknown.

Every error is a `ProblemDocument` (RFC 9457, `application/problem+json`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import msgspec

from equipoise.agent.answers.status import Activity
from equipoise.agent.budget.cost import Spent
from equipoise.agent.lifecycle.eras import Ended
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
    "lane-lost",
    "no-decider",
]
"""Why a request was passed through: it is not in the log and nothing will be learnt from it.
lane-lost: a decider without a lane, or without word from its hub. no-decider: an authority, which
leaves deciding to deciders."""
MOST_BUDGET = 2**63 - 1
Reason: TypeAlias = Annotated[
    str, msgspec.Meta(max_length=500, pattern=rf"^[^{UNPRINTABLE}]*$(?!\n)")
]
ClosedBy: TypeAlias = Literal[
    "observing",
    "paused",
    "budget",
    "segment",
    "user",
    "excluded",
    "ineligible",
    "decided",
    "slice",
    "late",
    "repeated",
    "again",
]
"""`Closure` in words."""


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
    refused (403). unit_id: whose it is, as decided with; refused (409) where it was another's."""

    outcome_token: Annotated[str, msgspec.Meta(max_length=100)] | None = None
    unit_id: Id | None = None


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
    """What became of the lines of a bulk body. rows: how many are in the log now. duplicates: exact
    repeats. unrated: usage rows without a reward, left out unless `reward.missing` declares their
    value. decided: usage rows of requests that were decided here, left out. rejected: refused
    lines. rejects: the first hundred of those, with the reason."""

    rows: int
    duplicates: int
    rejected: int
    rejects: list[Rejected] = []
    unrated: int = 0
    decided: int = 0


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


class OtlpAnswer(Wire, frozen=True, kw_only=True):
    """What came by OTLP since the start, by what became of it, and what waits now.

    waiting_calls: for their evaluation, or for the spans around them. waiting_evaluations: for
    their span. calls, evaluations: that came, each once; repeats: what came again. ignored: spans
    and log records that are neither. other: calls without the attributes of `otlp.only`, and
    evaluations of another name. rejected: what was refused when it came. observations, outcomes,
    rewards: that were logged; duplicates: that were in the log before; decided: rows of requests
    that were decided here. around: spans that name a decision and are no call. inner: calls within
    another call, which counts. again: calls whose answer was there before. failed: calls of a
    decision that got no answer; superseded: that got one before the last. unrated: calls whose
    evaluation never came; late: evaluations that came after that. spare: evaluations of a call that
    had one; unmatched: whose call never came; ambiguous: by the id of a response that several
    traces have. trimmed: attempts beyond the most that an outcome may have, and durations beyond
    their limit, left out. refused: what the log does not take; the daemon's log
    says why. last_refusal: the newest reason.
    """

    waiting_calls: int
    waiting_evaluations: int
    calls: int
    evaluations: int
    repeats: int
    ignored: int
    other: int
    rejected: int
    observations: int
    outcomes: int
    rewards: int
    duplicates: int
    decided: int
    around: int
    inner: int
    again: int
    failed: int
    superseded: int
    unrated: int
    late: int
    spare: int
    unmatched: int
    ambiguous: int
    trimmed: int
    refused: int
    last_refusal: str = ""


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
