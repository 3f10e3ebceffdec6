"""Eras, within which certified sums belong together, and from where on randomizing was stopped.

A change of what is compared (a model taken out, a new version) and an accepted drift alarm start a
new one. Nothing is silently forgotten inside a sequence, and nothing is carried into the next. What
was certified of an era when it ended stays true of its own time, and is kept among the controls.
An experiment that was ended keeps who is to be served; resuming it begins an era.

Pausing, observing and a changed budget are decided outside of the log. Every decision that such a
stop serves as routed says `capped`; so that this can be checked too, each change is kept among the
controls, with the number of the first decision it holds for.
"""

from __future__ import annotations

import contextlib

import msgspec
import numpy as np

from equipoise.agent.errors import AgentError
from equipoise.agent.moments.state import Renewal
from equipoise.store.batches import Flags
from equipoise.store.contract import Store
from equipoise.store.errors import StoreError
from equipoise.store.records import Control, Era

DRIFT = "drift"
"""How the reason of an era begins that a drift alarm opened."""
ANSWER = "era-answer"
"""The name under which the last answers of eras are kept among the controls."""


class KeptAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What was certified of one part of the traffic when its era ended, in reward units.

    segment: None for the whole traffic. candidates: (A,) names: models, today's routing, declared
    policies. active: (K,) models that were compared. drawn: by whom its rows were drawn, left out
    where this experiment drew them; uncertified: why those count for estimates alone, left out
    where they do not. The other fields are those of `Certified`
    (`agent.answers.certifier`), null where a number is not finite.
    """

    segment: str | None
    candidates: list[str]
    active: list[bool]
    sequence: str
    assumptions: list[str]
    rows: int
    randomized: int
    missing: int
    limited: int
    closed: int
    delta: float
    epsilon: float
    sign: int
    lower: list[float | None]
    upper: list[float | None]
    contrasts: list[list[float | None]]
    decision: list[list[float | None]]
    rating: list[list[float | None]] | None = None
    drawn: str | msgspec.UnsetType = msgspec.UNSET
    uncertified: str | msgspec.UnsetType = msgspec.UNSET


class EraAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The last certified answer of an era. parts: the whole traffic, then every segment."""

    era: int
    parts: list[KeptAnswer]


def keep_answer(store: Store, answer: EraAnswer, at: float) -> None:
    """Keep what was certified of an era that is about to end. at: seconds since the epoch."""
    store.put(Control(at=at, name=ANSWER, value=msgspec.json.encode(answer).decode()))


def read_answers(store: Store) -> dict[int, EraAnswer]:
    """The kept answers by era, the last one of each; eras that ended before answers were kept have
    none. Raises AgentError where one cannot be read."""
    answers: dict[int, EraAnswer] = {}
    for control in store.controls():
        if control.name == ANSWER:
            try:
                answer = msgspec.json.decode(control.value, type=EraAnswer)
            except msgspec.MsgspecError as error:
                raise AgentError(
                    f"a kept answer of the store cannot be read ({error}): restore a backup"
                ) from error
            answers[answer.era] = answer
    return answers


class _Renewed(msgspec.Struct, frozen=True):
    """What is kept of models that became another version."""

    models: list[str]
    at: float
    seq: int
    number: int


class Eras:
    """The eras of one store. models: (K,) names in the order of their positions."""

    def __init__(self, store: Store, models: tuple[str, ...]) -> None:
        self._store = store
        self._models = models
        # Read when first asked for: every report asks for those of the era in force.
        self._active: dict[int, list[str]] = {}
        self._reasons: dict[int, str] = {}

    @property
    def newest(self) -> Era | None:
        eras = self._store.eras()
        return eras[-1] if eras else None

    def reason(self, era: int) -> str:
        """Why an era was opened, "" where the store does not say."""
        if era not in self._reasons:
            kept = [e.reason for e in self._store.eras() if e.era == era]
            if not kept:
                return ""
            self._reasons[era] = kept[0]
        return self._reasons[era]

    def active(self, era: int) -> Flags:
        """(K,) the models that an era compares; none that came after it."""
        names = self._active.get(era)
        if names is None:
            text = self._store.settings().get(f"active:{era}")
            if text is not None:
                # What is kept of an era stays.
                names = self._active[era] = msgspec.json.decode(text, type=list[str])
            else:
                names = next((e.models for e in self._store.eras() if e.era == era), [])
        return np.array([name in names for name in self._models])

    def added(self) -> Flags:
        """(K,) models that the newest era did not know."""
        newest = self.newest
        before = self._models if newest is None else newest.models
        return np.array([name not in before for name in self._models])

    def keep_active(self, era: int, active: Flags) -> None:
        """Keep which models an era compares."""
        names = [name for name, on in zip(self._models, active.tolist(), strict=True) if on]
        self._store.freeze(f"active:{era}", msgspec.json.encode(names).decode())

    def keep_renewals(
        self, era: int, models: tuple[int, ...], at: float, seq: int, number: int
    ) -> tuple[Renewal, ...]:
        """Keep which models become another version with an era. at, seq, number: see `Renewal`."""
        if not models:
            return ()
        kept = _Renewed([self._models[model] for model in models], at, seq, number)
        self._store.freeze(f"versions:{era}", msgspec.json.encode(kept).decode())
        return tuple(Renewal(model, era, at, seq, number) for model in models)

    def renewals(self) -> tuple[Renewal, ...]:
        """Every model that became another version, in order. Of a change that a build before
        these were kept made nothing is known: its sums go on as that build had them."""
        settings, found = self._store.settings(), []
        for era in (each.era for each in self._store.eras()):
            text = settings.get(f"versions:{era}")
            if text is not None:
                kept = msgspec.json.decode(text, type=_Renewed)
                found += [
                    Renewal(self._models.index(name), era, kept.at, kept.seq, kept.number)
                    for name in kept.models
                ]
        return tuple(found)

    def open(self, era: int, reason: str, at: float, active: Flags, like: Era) -> None:
        """Open an era. like: the one before it, whose key and schema stay."""
        record = Era(
            era=era,
            opened_at=at,
            reason=reason,
            models=list(self._models),
            key_hash=like.key_hash,
            schema_hash=like.schema_hash,
        )
        self._store.put(record)
        # After the era: if the process ends in between, the era compares every model, and what
        # asked for fewer (a guardrail) asks again.
        self.keep_active(era, active)


STOPS = "stops"
"""The name under which changes are kept among the controls."""
OBSERVING = "observing only"
_RETRY = 1000
"""Decisions until what could not be kept is tried again."""


END = "end"
"""The name under which the end of an experiment is kept among the controls."""


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """The end of an experiment: nothing is randomized any more until somebody resumes it.

    model: who is to be served from now on, None to leave today's routing as it is. certified:
    whether that model was certified then. reason: of whoever ended it, "" for none. era: the one
    that ended. at: seconds since the epoch.
    """

    model: str | None
    certified: bool
    reason: str
    era: int
    at: float


def standing_end(store: Store) -> Ended | None:
    """The end that stands, None where the experiment goes on."""
    values = [control.value for control in store.controls() if control.name == END]
    return msgspec.json.decode(values[-1], type=Ended | None) if values else None


def keep_end(store: Store, ended: Ended | None, at: float) -> None:
    """Keep that it ended, or, with None, that it goes on."""
    store.put(Control(at=at, name=END, value=msgspec.json.encode(ended).decode()))


class Stops(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What holds from decision number `since` on.

    off: why nothing is randomized, None where it is. requests: the hard stop, None for none.
    config: which version of the configuration. The first note of a store is made before its first
    decision; where it is not, an older version made the decisions before it.
    """

    since: int
    off: str | None = None
    requests: float | None = None
    config: int = 0


def read_stops(store: Store) -> list[Stops]:
    """Every change, in order."""
    return [
        msgspec.json.decode(control.value, type=Stops)
        for control in store.controls()
        if control.name == STOPS
    ]


class StopNotes:
    """Keeps changes as decisions are made. decisions: how many there are already."""

    def __init__(self, store: Store, decisions: int) -> None:
        self._store = store
        notes = read_stops(store)
        self._last = notes[-1] if notes else None
        self._waiting: list[tuple[Stops, float]] = []
        self._again = decisions

    def begin(self, requests: float | None, at: float) -> None:
        """Note what holds before the first decision of a new store; no change later."""
        if self._last is None and not self._again:
            self._last = Stops(since=0, requests=requests)
            self._keep(self._last, at)

    def note(
        self, since: int, off: str | None, requests: float | None, config: int, at: float
    ) -> None:
        """Say what holds for the next decision, `since`; written only where it is new."""
        last = self._last
        if last is None or (off, requests, config) != (last.off, last.requests, last.config):
            self._last = Stops(since=since, off=off, requests=requests, config=config)
            self._waiting.append((self._last, at))
            self._again = since
        if self._waiting and since >= self._again:
            self._again = since + _RETRY
            # A store that cannot be written must not stop a decision: it is tried again.
            with contextlib.suppress(StoreError):
                while self._waiting:
                    self._keep(*self._waiting[0])
                    del self._waiting[0]

    def _keep(self, stops: Stops, at: float) -> None:
        value = msgspec.json.encode(stops).decode()
        self._store.put(Control(at=at, name=STOPS, value=value))
