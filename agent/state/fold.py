"""State as a fold over the log.

Log rows carry one total seq and are folded in chunks of 8,192 seqs: the grouping of every
floating-point sum is a function of the log alone, so state rebuilt from the store, from the start
or from a checkpoint, equals the live state bit for bit. Copies of inputs (pending decisions, the
index of SIM rows) are made when a row arrives; sums are taken when its chunk is complete.
`Fold.view` adds the unfinished chunk on copies, so nothing that was logged is invisible.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from equipoise.agent.moments.codec import StateFormatError, decode_like, encode, encode_to
from equipoise.agent.moments.scorer import SimulationMoments
from equipoise.agent.moments.state import Moments
from equipoise.agent.monitors.monitor_set import MonitorSet
from equipoise.agent.state import light_fold
from equipoise.agent.state.certified_sums import Ahead, CertifiedSums, Spec
from equipoise.agent.state.chunk import (
    ChunkSums,
    named,
    parts,
)
from equipoise.agent.state.light_fold import FrozenRules, LightFold
from equipoise.agent.state.monitor_feed import Features, MonitorFeed
from equipoise.store.batches import (
    Batch,
    Buffer,
    Floats,
)

T = TypeVar("T")
BLOCK = 1024
"""Rows that views add to the sums of an open chunk at once."""


@dataclass(frozen=True, slots=True)
class View:
    """Sums up to the newest log row. `certified` belongs to the era of the newest row in it.
    start, predicted: what the watermark passed since the last chunk, as of `MonitorFeed.take`.
    answers, estimates: what was read from it before, by what was asked."""

    moments: Moments
    certified: CertifiedSums
    start: int
    predicted: Floats
    answers: dict[Hashable, Any] = field(default_factory=dict)
    estimates: dict[Any, Any] = field(default_factory=dict)

    def once(self, asked: Hashable, make: Callable[[], T]) -> T:
        """The answer to what is asked, made when it is asked for the first time."""
        if asked not in self.answers:
            self.answers[asked] = make()
        answer: T = self.answers[asked]
        return answer

    @property
    def watermark(self) -> int:
        """The first decision that is not among the certified sums."""
        return self.certified.watermark


@dataclass(slots=True)
class Begun:
    """What views share: the moments, with whole blocks of what the open chunk has gathered.

    key: of what they hold, beside the rows; counts: rows that are in, of each part of `gathered`.
    """

    key: tuple[int, int, int]
    moments: Moments
    counts: list[int]


class Fold:
    """The whole fold: a light one, and the sums of everything that is closed.

    features, rules, spec: those that the light one was made with. panel: the checks, which are fed
    chunk by chunk.
    """

    def __init__(
        self,
        light: LightFold,
        features: Features,
        rules: FrozenRules,
        spec: Spec,
        panel: MonitorSet,
    ) -> None:
        self.light = light
        self.dimensions = dimensions = light.dimensions
        self._rules = rules
        self._sums = ChunkSums(light)
        self._contradicts = -1, -1, ""
        self._replays: tuple[int, SimulationMoments] | None = None
        self._ahead = Ahead()
        self._begun: Begun | None = None
        self.moments = Moments.empty(dimensions)
        self.certified = CertifiedSums(spec)
        self.watch = MonitorFeed(panel, features, spec, dimensions.models, dimensions.features)

    @property
    def next_seq(self) -> int:
        """The first log row that is not folded."""
        return self.light.next_seq

    def apply(self, seq: int, batch: Batch) -> None:
        """Take in a batch whose first row has this seq, which must be `next_seq`."""
        if self.light.took_one(seq, batch):
            return
        for _ in self.light.chunks(seq, batch):
            self.moments = self._renewed(self.moments, self.watch, self.light.next_seq)
            # Before the sums: what the check of the simulator goes by must not know this chunk.
            self._compare(self.watch, self.moments)
            self._sums.rows(self.moments, self.certified.watermark)
            start = self.certified.watermark
            predicted = self._advance(self.certified)
            self._sums.passed(self.moments, start, self.certified.watermark)
            self._feed(self.watch, start, self.certified, predicted)
            self.light.end_chunk(self.certified.watermark)

    def view(self) -> View:
        """Everything that was logged so far, the unfinished chunk included, on copies."""
        light, start = self.light, self.certified.watermark
        moments = self._summed(start)
        inputs = light.pending, self._rules, light.simulated, len(light.versions.renewals)
        certified, predicted = self._ahead.of(self.certified, *inputs)
        self._sums.passed(moments, start, certified.watermark)
        return View(moments, certified, start, predicted)

    def _summed(self, start: int) -> Moments:
        """The moments up to the newest log row, on a copy. start: the watermark.

        What the open chunk has gathered is added in blocks of `BLOCK` rows from the chunk's begin,
        so that a view need not add again what the view before has added: the blocks, and so the
        bits, are the log's alone.
        """
        light, sums = self.light, self._sums
        renewed = len(light.versions.renewals) > self.moments.dimensions.former
        others = any(len(rows) for rows, *_ in (*light.replayed, *light.observed))
        if renewed or others:
            # A new version and a replay say something of decisions that were gathered before, and
            # usage rows share sums with them: the order would then be that of the views.
            self._begun = None
            moments = self._renewed(self._copied(self.moments), None, light.next_seq + 1)
            sums.rows(moments, start)
            return moments
        key = light.next_seq // light_fold.CHUNK, light.retold, self.moments.dimensions.former
        begun, parts = self._begun, sums.gathered()
        if begun is None or begun.key != key:
            begun = self._begun = Begun(key, self._copied(self.moments), [0, 0, 0])
        while any(len(part[0]) >= n + BLOCK for part, n in zip(parts, begun.counts, strict=True)):
            whole = [
                BLOCK * (len(part[0]) >= n + BLOCK)
                for part, n in zip(parts, begun.counts, strict=True)
            ]
            sums.add(begun.moments, start, _rows(parts, begun.counts, whole))
            begun.counts = [n + more for n, more in zip(begun.counts, whole, strict=True)]
        moments = self._copied(begun.moments)
        sums.add(moments, start, _rows(parts, begun.counts, [BLOCK] * 3))
        return moments

    def _copied(self, own: Moments) -> Moments:
        """A copy of these moments. The sums of replays, which are most of it, are those of the copy
        before where no replay came since."""
        kept = self._replays
        grows = any(len(context) for context, *_ in self.light.replayed)
        same = kept is not None and kept[0] == own.dimensions.former
        if (
            grows
            or kept is None
            or not (same and np.array_equal(kept[1].count, own.simulation.count))
        ):
            kept = own.dimensions.former, own.simulation.copy()
        self._replays = None if grows else kept
        parts: dict[str, Any] = {
            name: part.copy() for name, part in own.parts().items() if name != "simulation"
        }
        return replace(own, simulation=kept[1], **parts)

    def watched(self, view: View | None = None) -> MonitorSet:
        """The checks up to the newest log row, the unfinished chunk included, on copies. view: of
        the same rows, made where None."""
        view = self.view() if view is None else view
        watch = self.watch.copy()
        self._compare(watch, self._renewed(self.moments, watch, self.light.next_seq + 1))
        self._feed(watch, view.start, view.certified, view.predicted)
        return watch.monitors

    def contradiction(self, era: int) -> str:
        """What the shares of models say against the probabilities logged in an era, "" for
        nothing."""
        if self._contradicts[:2] != (self.light.next_seq, era):
            monitors = self.watched()
            monitors.begin(era)
            check, said = monitors.assignment.result(), ""
            if check.status == "alarm":
                said = f"their draws contradict their probabilities: {check.sentence.rstrip('.')}"
            self._contradicts = self.light.next_seq, era, said
        return self._contradicts[2]

    def to_bytes(self) -> bytes:
        """The whole state, for a checkpoint; also what "bit for bit" is compared on."""
        return encode(*self._state())

    def write(self, file: BinaryIO) -> int:
        """Write `to_bytes` to a file that can seek, a piece at a time; how many bytes."""
        return encode_to(file, *self._state(), self.light.pending.release)

    def load_bytes(self, state: Buffer) -> None:
        """Become the state of `to_bytes`; StateFormatError, and no change, on any other bytes."""
        arrays, fields = decode_like(state, *self._state())
        part = parts(arrays)
        self._replays, self._ahead, self._begun = None, Ahead(), None
        if not self.certified.holds(part["certified"]):
            raise StateFormatError("the certified sums are of another configuration")
        self.moments = Moments.from_bytes(arrays["moments"].tobytes())
        self.certified.load(part["certified"], fields["era"], fields["watermark"])
        self.watch.load(part["watch"])
        self.light.load(part, fields)

    def _state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        light = self.light.arrays()
        arrays = named(
            {
                "certified": self.certified.arrays(),
                "pending": light["pending"],
                "simulated": light["simulated"],
                "open": light["open"],
                "watch": self.watch.arrays(),
                "ledger": light["ledger"],
            }
        )
        arrays["moments"] = np.frombuffer(self.moments.to_bytes(), dtype=np.uint8)
        fields = self.light.fields()
        # In the order in which states have always been written: their bytes are compared.
        return arrays, {"next_seq": fields.pop("next_seq"), "era": self.certified.era, **fields}

    def _advance(self, certified: CertifiedSums) -> Floats:
        light = self.light
        return certified.advance(light.pending, self._rules, light.simulated)

    def _feed(
        self, watch: MonitorFeed, start: int, certified: CertifiedSums, predicted: Floats
    ) -> None:
        watch.take(self.light.pending, start, certified.watermark, predicted, self._rules)

    def _renewed(self, moments: Moments, watch: MonitorFeed | None, end: int) -> Moments:
        """Sums, in which models that became another version before row `end` start afresh."""
        for renewal in self.light.versions.renewals[moments.dimensions.former :]:
            if renewal.seq < end:
                moments = moments.renewed(renewal.model)
                if watch is not None:
                    watch.renew(renewal.model)
        return moments

    def _compare(self, watch: MonitorFeed, moments: Moments) -> None:
        replayed = any(len(context) for context, *_ in self.light.replayed)
        table, completed = self.light.pending, self.light.completed
        if moments.dimensions.former:
            served = [(rows, table.served[rows]) for rows in map(table.rows, completed)]
            completed = [
                numbers[self._sums.columns(moments, *each)[0] == each[1]]
                for numbers, each in zip(completed, served, strict=True)
            ]
        watch.compare(table, self.light.simulated, completed, replayed, moments)


def _rows(
    parts: list[tuple[NDArray[Any], ...]], first: list[int], most: list[int]
) -> list[tuple[NDArray[Any], ...]]:
    """Of each part at most so many rows from `first` on."""
    return [
        tuple(column[start : start + count] for column in part)
        for part, start, count in zip(parts, first, most, strict=True)
    ]
