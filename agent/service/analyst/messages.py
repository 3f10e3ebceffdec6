"""Messages between the daemon and its analyst: msgpack with a length in front."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from equipoise.agent.planning.forecast import Forecast
from equipoise.agent.service.analyst.reports import Report
from equipoise.store.records import RuleRecord

if TYPE_CHECKING:
    pass


HEADER = struct.Struct("<I")


class Open(msgspec.Struct, frozen=True, tag="open"):
    """The first message: what to follow. open_bytes: of memory for open decisions."""

    store: str
    config: str
    open_bytes: int | None = None


class _Following(msgspec.Struct, frozen=True):
    """rules: those adopted since the last message, in order; known: how many the daemon knows in
    all, for a state that numbers them otherwise is of no use. off: families that are not to be
    computed, and why."""

    rules: list[RuleRecord]
    known: int
    off: dict[str, str]


class Ask(_Following, frozen=True, tag="ask"):
    """Follow the log and report."""

    families: list[str]


class Save(_Following, frozen=True, tag="save"):
    """Follow the log and write the whole state to a file that is there."""

    path: str


class Plan(_Following, frozen=True, tag="plan"):
    """Follow the log and plan: from what the experiment knows, or from numbers alone. data: the
    fields of a request to the planner, as JSON."""

    data: bytes
    live: bool


class Foresee(_Following, frozen=True, tag="foresee"):
    """Follow the log and say when it will be decided."""


class Answer(msgspec.Struct, frozen=True, tag="answer"):
    """To `Open` (without a report) and `Ask`. seconds: what the work took."""

    seconds: float
    report: Report | None = None


class State(msgspec.Struct, frozen=True, tag="state"):
    """To `Save`: the state after the rows before `seq`, so many bytes, is in the file."""

    seq: int
    size: int


class Planned(msgspec.Struct, frozen=True, tag="planned"):
    """To `Plan`: the plan as JSON, or why there is none. fault: a failure that the asker did not
    cause; the analyst goes on."""

    body: bytes = b""
    field: str = ""
    limit: str = ""
    refused: str = ""
    fault: str = ""


class Foreseen(msgspec.Struct, frozen=True, tag="foreseen"):
    """To `Foresee`."""

    forecast: Forecast


class Doing(msgspec.Struct, frozen=True, tag="doing"):
    """Ahead of an answer: the family that is computed next, "" once all are. If the process dies
    or hangs now, it does so over that."""

    family: str


class Failure(msgspec.Struct, frozen=True, tag="failure"):
    """The work failed; the sentence is for the daemon's log."""

    sentence: str


Question: TypeAlias = Open | Ask | Save | Plan | Foresee


Reply: TypeAlias = Answer | State | Planned | Foreseen | Doing | Failure
