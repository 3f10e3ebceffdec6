"""What an authority and its deciders share, and every hub keeps.

The *authority* is the one writer of the log. A *decider* leases a *lane*, an integer from 1 on that
is never given again, and numbers its decisions 0, 1, 2, … within it. It acts by the newest
*publication*: which rule holds, whether anything is randomized, and how many draws each lane may
still make. What it has decided and been told it ships in *parcels*, in order. The authority gives
decisions their numbers once nobody can ship more of the same publication, and forgets the parcels
when the log holds their rows.

A lease that is not renewed in time may be ended by the authority, once, for good. What its decider
ships afterwards is marked `late`. Whoever holds an ended lease or term is told so, whatever it asks
for, so that a process that slept cannot act on what it once held.

All times are seconds since the epoch by the hub's own clock; processes compare them with each other
and never with their own clocks, but for differences (`Lease.seconds`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol, Self, TypeAlias

import msgspec

from equipoise.store.errors import StoreError
from equipoise.store.records import LANE_BITS, Outcome

ParcelKind: TypeAlias = Literal["decisions", "outcomes", "reports"]


class HubError(StoreError):
    """The hub cannot be reached, or refuses."""


class HubRefusedError(HubError):
    """The database refuses who asks, by login or rights: no waiting changes that."""


class LaneEndedError(HubError):
    """The lane was ended: it lost its lease, or was given back."""


class TermEndedError(HubError):
    """Another authority was elected, or none is for want of renewing."""


class Tickets(msgspec.Struct, frozen=True, array_like=True):
    """How many requests a lane may randomize, counted from its first decision on.

    draws: in all, None for any number. models: (K,) onto each model, None for any number. segments:
    (S,) in each segment with a cap.
    """

    draws: int | None = None
    models: tuple[int | None, ...] = ()
    segments: tuple[int, ...] = ()

    @property
    def unlimited(self) -> bool:
        """Whether nothing is counted."""
        return (
            self.draws is None
            and not self.segments
            and not any(each is not None for each in self.models)
        )


class Spent(msgspec.Struct, frozen=True, array_like=True):
    """What a lane has randomized so far: counts as in `Tickets`."""

    draws: int = 0
    models: tuple[int, ...] = ()
    segments: tuple[int, ...] = ()


class Publication(msgspec.Struct, frozen=True, kw_only=True):
    """What deciders act by until the next one.

    version: 1, 2, 3, …, one more each time. at: when it was published, given by the hub. rule_id:
    the rule in force; era: its era. config: number of the configuration in force. off: why nothing
    is randomized, None where it is; observing: whether that is mode `observe`. requests: the hard
    stop of the whole experiment, None for none. closed_segments: positions of segments whose cap is
    reached. tickets: by lane; a lane that is not named has none. uncounted: whether nothing limits
    draws, so that one that is not named has any number. exhausted: whether the budget of the whole
    experiment is spent. counted: by lane, how many of its
    draws the log held when it was published, at least. decisions: how many the log held then, of
    all lanes; whatever is decided by this publication is decided after them. documents: names of
    the texts that it needs, which the hub holds: `rule:<id>`, `config:<number>`, `era:<number>`.
    seconds: how long deciders may act by it without a newer one.
    """

    version: int
    at: float = 0.0
    rule_id: str
    era: int
    config: int = 0
    off: str | None = None
    observing: bool = False
    requests: int | None = None
    closed_segments: tuple[int, ...] = ()
    tickets: dict[int, Tickets] = {}
    counted: dict[int, Spent] = {}
    uncounted: bool = False
    exhausted: bool = False
    decisions: int = 0
    documents: tuple[str, ...] = ()
    seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class Lease:
    """A lane that is held. token: grows with every lease of the hub, and proves this one. seconds:
    for how long from the moment that the call was made; by the holder's own clock."""

    lane: int
    token: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Term:
    """An authority's office. token: grows with every term. seconds: as in `Lease`."""

    token: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Parcel:
    """What a lane ships: rows of one kind that were logged one after another.

    place: 0, 1, 2, … in the lane, one for each parcel. kind: `decisions` (body: `batch_to_body` of
    a DecisionBatch numbered by the lane's counters), `outcomes` (of the lane's own decisions, by
    its counters), or `reports` (a JSON list of `Report`, of decisions of any lane). version: of the
    publication that decisions were made under; of others 0. rows: how many. A hub reads no body.

    first: counter of the first decision, the others follow without a gap; of other kinds 0.
    request_ids: (rows,) of decisions, "" where there is none, or () for none at all. They are for
    `find_requests`, and parcels that a hub hands out have none.

    received: when the hub got it; late: whether the lane had been ended by then; arrival: grows by
    the order in which parcels of all lanes came. These are the hub's to say.
    """

    lane: int
    place: int
    kind: ParcelKind
    version: int
    rows: int
    body: bytes
    received: float = 0.0
    late: bool = False
    arrival: int = 0
    first: int = 0
    request_ids: tuple[str, ...] = ()

    def positions(self) -> Iterator[tuple[str, int]]:
        """Each request that is named, with the position of its decision."""
        for row, request_id in enumerate(self.request_ids):
            if request_id:
                yield request_id, position(self.lane, self.first + row)


def position(lane: int, counter: int) -> int:
    """Where a decision of a lane takes its uniform from the stream of the experiment."""
    return lane << LANE_BITS | counter


def unshipped(
    parcels: Sequence[Parcel], lane: int, places: int, adopted: int | None
) -> list[Parcel]:
    """Those that a hub has still to keep, which has had `places` of the lane.

    adopted: of the lane so far, None where it was ended. Raises HubError where one is missing, is
    of another lane or does not fit its own numbers, or has decisions of a publication whose rows
    the lane had said were all shipped: they may have their numbers already.
    """
    for parcel in parcels:
        if parcel.lane != lane:
            raise HubError(f"lane {lane}, parcel {parcel.place}: it is of lane {parcel.lane}")
    new = sorted((each for each in parcels if each.place >= places), key=lambda each: each.place)
    for place, parcel in enumerate(new, places):
        name = f"lane {lane}, parcel {parcel.place}"
        if parcel.place != place:
            raise HubError(f"{name}: parcel {place} comes next")
        if parcel.request_ids and len(parcel.request_ids) != parcel.rows:
            raise HubError(f"{name}: {len(parcel.request_ids)} request_ids for {parcel.rows} rows")
        if parcel.kind == "decisions" and adopted is not None and parcel.version < adopted:
            raise HubError(
                f"{name}: decisions of publication {parcel.version}, and the lane had adopted"
                f" {adopted}"
            )
    return new


class Report(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An outcome of a decision that the lane it came to does not know.

    came: seconds since the epoch, by the decider's clock. token: the outcome token that came with
    it and was not compared yet, since only a request_id names the decision; unit: whose the sender
    says that it is.
    """

    outcome: Outcome
    came: float
    token: str | None = None
    unit: str | None = None


@dataclass(frozen=True, slots=True)
class LaneStatus:
    """A lane as the hub knows it.

    name: of its decider, for people. joined: when. until: when its lease runs out. ended: when it
    was ended, None while it is held; lost: whether the authority ended it, and not its decider.
    adopted: the newest publication that it acts by: whatever it decided under earlier ones has been
    shipped. places: parcels shipped. spent: as it said last. whole: whether it said that nothing of
    it is left to ship.
    """

    lane: int
    name: str
    joined: float
    until: float
    ended: float | None
    lost: bool
    adopted: int
    places: int
    spent: Spent
    whole: bool


class Hub(Protocol):
    """One experiment's meeting point. Every method is one transaction: done as a whole or not.

    Any number of processes may use one, each with a hub of its own; a hub is for one thread at a
    time. Raises HubError where it cannot be reached, within its `seconds` of patience; what was
    asked for may then be done or not, and asking again is safe for all of it.
    """

    # What deciders ask for.

    def join(self, name: str, seconds: float, asked: str = "") -> Lease:
        """Lease a lane that nobody had. name: of the decider, for people. Its `adopted` is the
        newest publication of this moment: it cannot act by an earlier one. Raises HubError where no
        authority has published anything yet.

        asked: a name of this request that nobody else gives. Whoever got no answer asks again by
        the same name, gets the lane that it was given then, and leaves none behind that nobody
        holds. Where that was ended by now it is whole, and the answer is another one.
        """

    def ship(
        self,
        lease: Lease,
        parcels: Sequence[Parcel],
        *,
        adopted: int,
        spent: Spent,
        whole: bool = False,
    ) -> Lease:
        """Keep parcels, each place once (a place that the hub has had is no error, and is not kept
        again, even where it was forgotten since), and renew the lease. Without parcels it renews
        alone.

        adopted, spent, whole: as in `LaneStatus`; `adopted` is kept together with the parcels and
        never falls. Raises LaneEndedError where the lane was ended; nothing is kept then. HubError
        as of `unshipped`.
        """

    def ship_late(self, lease: Lease, parcels: Sequence[Parcel], spent: Spent, whole: bool) -> None:
        """As `ship` for a lane that was ended; its parcels are marked late, and may be of any
        publication. Raises LaneEndedError where the lease was never this lane's, or the lane is
        forgotten and this would be news of it; HubError where the lane is held."""

    def leave(self, lease: Lease, spent: Spent) -> None:
        """Give a lane back of which everything was shipped. Again is no error. Raises
        LaneEndedError where the authority has ended it."""

    def newest(self) -> Publication | None:
        """The newest publication."""

    def publications(self, since: int) -> list[Publication]:
        """Every publication of this version and above that is not forgotten, in order."""

    def document(self, name: str) -> str | None:
        """A text by its name."""

    def find_requests(self, request_ids: Sequence[str]) -> dict[str, int]:
        """Positions of decisions of those requests among the parcels that are not forgotten; the
        lowest of a request that was decided twice."""

    # What the authority asks for.

    def elect(self, name: str, seconds: float) -> Term | None:
        """Become the authority where there is none, or its term ran out; None where there is."""

    def keep(self, term: Term) -> Term:
        """Renew a term. Raises TermEndedError."""

    def resign(self, term: Term) -> None:
        """End a term. Again is no error."""

    def publish(self, term: Term, publication: Publication, documents: Mapping[str, str]) -> float:
        """Publish the next version with texts that are not there yet; when, by the hub's clock.

        Texts that it does not name are forgotten. The same again in the same term is no error.
        Raises TermEndedError; HubError where the version does not follow the newest, or a text that
        it names is neither given nor there.
        """

    def forget_publications(self, term: Term, before: int) -> None:
        """Forget publications of earlier versions than this; never the newest. Raises
        TermEndedError."""

    def lanes(self) -> list[LaneStatus]:
        """Every lane that is held, or of which parcels are there, or that is not `whole`."""

    def end_lapsed(self, term: Term, grace: float) -> list[int]:
        """End every lane whose lease ran out `grace` seconds ago or longer; which. (Those that were
        ended by a call whose answer was lost are `lost` in `lanes`.) Raises TermEndedError."""

    def forget_lanes(self, term: Term, lanes: Sequence[int]) -> None:
        """Forget those of the lanes that are ended, whole, and without parcels. Raises
        TermEndedError."""

    def decisions(self, version: int) -> Iterator[Parcel]:
        """Parcels of decisions of this and earlier versions, by (version, lane, place); late ones
        of whatever version last. Read as they are asked for, a few MB at a time: any number of
        rows fits, and a parcel that comes meanwhile may be among them or not."""

    def outcomes(self, limit: int) -> list[Parcel]:
        """The first parcels of outcomes and reports, in the order in which they came, at most so
        many."""

    def later_outcomes(self, after: Parcel, limit: int) -> list[Parcel]:
        """As `outcomes`, those behind one, which may be forgotten by now. A parcel that came while
        its neighbours did may stand before one that was read earlier: passes begin with `outcomes`,
        which finds it."""

    def forget(self, term: Term, parcels: Sequence[tuple[int, int]]) -> None:
        """Forget parcels by (lane, place), whose rows the log holds. Raises TermEndedError."""

    def waiting(self) -> dict[str, int]:
        """Rows of parcels that are not forgotten, by kind."""

    def now(self) -> float:
        """The hub's clock, seconds since the epoch. PostgreSQL's is its server's."""

    def close(self) -> None:
        """Release what the hub holds. Closing again is no error."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
