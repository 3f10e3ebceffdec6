"""The records of the log as frozen typed structs: the shape of rows at files, HTTP and for people.

Inside, rows travel as column batches (`equipoise.store.batches`); these structs are the edges.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Literal, TypeAlias

import msgspec

from equipoise.store.words import plural, verb

LONGEST_ID = 200
"""Characters, so at most 800 bytes: every look-up, index entry and log line carries ids whole."""
UNPRINTABLE = r"\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff"
Id: TypeAlias = Annotated[
    str, msgspec.Meta(pattern=rf"^[^{UNPRINTABLE}]+$(?!\n)", max_length=LONGEST_ID)
]
"""A name that others gave: of a request, a unit, a context, or a model that they asked for.

Any printable text, for it is theirs: `auth0|5f7c`, `-xYz_9`, `MMLU computer science`, `用户`.
Control characters and line separators would break logs and tables; marks of writing direction and
of byte order are invisible, so two ids that look the same would be two. The look-ahead is there
because `$` alone lets a final newline through."""
_OF_IDS = re.compile(r"`str` matching regex '\^\[\^.*\]\+\$\(\?!\\\\n\)'")
ID_RULE = (
    f"1 to {LONGEST_ID} printable characters: no control characters, line ends, or invisible marks"
)
Seconds: TypeAlias = Annotated[float, msgspec.Meta(ge=0.0, le=1e11)]
"""Since the epoch; the limit is about the year 5138."""
Attempt: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
FeatureValue: TypeAlias = float | bool | str | list[float]
Features: TypeAlias = dict[str, FeatureValue] | list[float]


def readable(error: msgspec.ValidationError) -> str:
    """The sentence of a record that does not fit, with the rule of ids in words."""
    return _OF_IDS.sub(ID_RULE, str(error))


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all records: immutable, keyword-only, unknown fields refused."""


class Request(Record, frozen=True, kw_only=True):
    """A request before it is served: who asks (unit), what (features), who was to answer.

    request_id: your name of it. routed: the model that would serve it today. features: value of
    every declared context feature by name, or the list of context columns. unit_id: who asks, such
    as a user or a session; each request is a unit of its own where it is left out. context_id:
    name of the cached context that it is, where replays of it exist. eligible: the models that may
    serve it, all of them where it is left out. at: when it came, in seconds since the epoch; now
    where it is left out.

    >>> Request(request_id="r1", routed="large", features={"words": 12}).unit_id is None
    True
    """

    request_id: Id
    routed: Id
    features: Features
    unit_id: Id | None = None
    context_id: Id | None = None
    eligible: list[Id] | None = None
    at: Seconds | None = None


class Decision(Record, frozen=True, kw_only=True):
    """The answer to a request.

    decision_id: its name in the log. request_id: as it was asked with. model: what to serve.
    routed: what would have served it. randomized: whether the model came from a draw. propensity:
    the probability with which `model` was served. rate: the probability with which the request was
    randomized. probabilities: of each model where it is. uniform: the number that was drawn, from 0
    to 1. rule_id: the frozen rule that it follows. era: the span of the log that it belongs to. at:
    when, in seconds since the epoch. ask: whether the product is to ask the user for a rating; None
    where it is not for the experiment to say.
    """

    decision_id: Id
    request_id: Id | None
    model: Id
    routed: Id
    randomized: bool
    propensity: float
    rate: float
    probabilities: dict[str, float]
    uniform: float
    rule_id: str
    era: int
    at: float
    ask: bool | None = None


AttemptStatus: TypeAlias = Literal["delivered", "failed", "discarded", "cached"]
"""delivered: the user got its answer. failed: it gave none. discarded: it gave one that nobody got,
as another was faster or the user had left. cached: the user got what a model had once answered to
another request, so no model answered this one."""


LANE_BITS = 40
"""Bits of a position that count within a lane: a trillion decisions."""
MOST_LANES = (1 << (63 - LANE_BITS)) - 1
_NUMBERS = 10**18
_OF_A_LANE = re.compile(r"d([1-9][0-9]{0,6})-(0|[1-9][0-9]{0,17})")


def decision_id(position: int) -> str:
    """The name of a decision, by the position of its uniform: its number, or lane and counter.

    >>> decision_id(7), decision_id((3 << LANE_BITS) + 7)
    ('d7', 'd3-7')
    """
    lane, counter = position >> LANE_BITS, position & ((1 << LANE_BITS) - 1)
    return f"d{lane}-{counter}" if lane else f"d{counter}"


def decision_position(name: str) -> int | None:
    """The position behind a name, None where the text is none. One spelling each: d1 and neither
    d01 nor another script's digits.

    >>> decision_position("d3-7") == (3 << LANE_BITS) + 7, decision_position("d01")
    (True, None)
    """
    try:
        number = int(name[1:])
    except ValueError:
        number = -1
    if 0 <= number < _NUMBERS and name == f"d{number}":
        return number
    matched = _OF_A_LANE.fullmatch(name)
    if matched is None:
        return None
    lane, counter = int(matched[1]), int(matched[2])
    return None if lane > MOST_LANES or counter >> LANE_BITS else (lane << LANE_BITS) + counter


class AttemptReport(Record, frozen=True, kw_only=True):
    """One attempt to serve a request.

    model: whom it was sent to, null for one that the experiment does not have. status: what came of
    it. seconds: how long it took. cost: USD.
    """

    model: Id | None
    status: AttemptStatus
    seconds: Annotated[float, msgspec.Meta(ge=0.0, le=1e9)] | None = None
    cost: Annotated[float, msgspec.Meta(ge=0.0, le=1e9)] | None = None


class Outcome(Record, frozen=True, kw_only=True):
    """One part of what came of a decision: outputs with the response, the reward later.

    decision_id: of the decision; this or `request_id` names it. request_id: of the request that was
    decided. served: the model that answered, where it may be another than the one drawn. attempt:
    which attempt to serve it this part speaks of; the first where only `served` or `delivered` is
    given. delivered: whether that attempt reached the user; true where only `served` or `attempt`
    is given. attempts: every attempt in its order, in place of these three; the last that was
    delivered counts, and where none was, the last. outputs: value of every declared output feature
    by name, or the list of output columns. reward: what the user thought of it, in the declared
    range. metrics: value of a guardrail by its name. at: when, in seconds since the epoch; now
    where it is left out.

    A part with none of served, attempt, delivered and attempts speaks of no attempt.

    >>> Outcome(request_id="r1", reward=0.9).reward
    0.9
    """

    decision_id: Id | None = None
    request_id: Id | None = None
    served: Id | None = None
    attempt: Attempt | None = None
    delivered: bool | None = None
    attempts: Annotated[list[AttemptReport], msgspec.Meta(min_length=1, max_length=100)] | None = (
        None
    )
    outputs: Features | None = None
    reward: float | None = None
    metrics: dict[str, float] = {}
    at: Seconds | None = None


class Observation(Record, frozen=True, kw_only=True):
    """A row of a usage log: served as routed, outside any decision of ours (OBS).

    routed: the model that served it. features: value of every declared context feature by name, or
    the list of context columns. outputs: the same for output features. reward: in the declared
    range; a row without one is counted and left out, unless `reward.missing` declares a value for
    it. request_id: your name of it; a row counts once by it. unit_id: who asked; the request itself
    where it is left out. at: when, in seconds since the epoch; now where it is left out.

    >>> Observation(routed="large", features=[12.0], outputs=[2.5], reward=0.7).routed
    'large'
    """

    routed: Id
    features: Features
    outputs: Features
    reward: float | None = None
    request_id: Id | None = None
    unit_id: Id | None = None
    at: Seconds | None = None


class Simulation(Record, frozen=True, kw_only=True):
    """A cached context replayed offline on a model (SIM): what it would output.

    context_id: your name of the context; a context and a model count once together. model: that it
    was replayed on. features: value of every declared context feature by name, or the list of
    context columns. outputs: the same for output features. cost: of the replay, in USD. at: when,
    in seconds since the epoch; now where it is left out.

    >>> Simulation(context_id="c1", model="small", features=[12.0], outputs=[0.4], cost=0.002).cost
    0.002
    """

    context_id: Id
    model: Id
    features: Features
    outputs: Features
    cost: float | None = None
    at: Seconds | None = None


class Era(Record, frozen=True, kw_only=True):
    """A span with one model list, schema and key; certified sums start afresh in each."""

    era: int
    opened_at: float
    reason: str
    models: list[str]
    key_hash: str
    schema_hash: str


class Alert(Record, frozen=True, kw_only=True):
    """A check's verdict at a moment: which check, its status, and a sentence for people."""

    at: float
    check: str
    status: str
    sentence: str


class Control(Record, frozen=True, kw_only=True):
    """What an operator set while the experiment ran, and when: the newest of a name is in force."""

    at: float
    name: str
    value: str


class RuleRecord(Record, frozen=True, kw_only=True):
    """A frozen rule as stored: `body` is its canonical JSON, `rule_id` a hash of that."""

    rule_id: str
    era: int
    at: float
    body: str


class Gap(Record, frozen=True, kw_only=True):
    """Log rows that were lost, and decision numbers that are given to no decision any more.

    The numbers are `first` … `first + numbers - 1`; `rows` rows of all kinds are missing before row
    `row`, as far as is known. kept: names of the files that were put aside, where there are any.
    """

    at: float
    first: int
    numbers: int
    row: int
    rows: int
    reason: str
    kept: str = ""

    @property
    def end(self) -> int:
        """The next number that a decision may have."""
        return self.first + self.numbers

    @property
    def sentence(self) -> str:
        """For people."""
        rows = f"{plural(self.rows, 'log row')} {verb(self.rows, 'is', 'are')}"
        missing = f"{rows} missing before row {self.row:,}" if self.rows else ""
        last = "" if self.numbers == 1 else f" to d{self.end - 1}"
        void = f"d{self.first}{last} will be no decision" if self.numbers else ""
        aside = f"; put aside: {self.kept}" if self.kept else ""
        return f"{', '.join(filter(None, (missing, void)))}: {self.reason}{aside}"


def lost_before(gaps: Sequence[Gap], end: int) -> int:
    """How many of the decision numbers before `end` were lost."""
    return sum(min(gap.end, end) - min(gap.first, end) for gap in gaps)
