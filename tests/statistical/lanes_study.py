"""Coverage of the shipped agent with many deciders: `python tests/statistical/lanes_study.py
[--runs 60] [--faulty 12] [--out docs/lanes.md] [--only TEXT] [--keep FOLDER]`.

A real authority and three deciders in one process. Lanes lag several publications behind, have
clocks that are minutes off, run out of tickets, and are lost: some come back late, some never. A
bad answer makes a request come again to another lane at once. Delays and missing rewards depend
on the reward. Looked at after every turn. The same worlds under an order or a choice of rows that
rests on outcomes must miss the truth, or the study could not see such a fault. Every run is
seeded; a finished world is kept as a small JSON file.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "agent"))

from fleet import Fleet, Lane
from markdown_text import percent, table

from equipoise.agent.config import (
    BudgetConfig,
    CertifyConfig,
    ExperimentConfig,
    ModelConfig,
    PolicyConfig,
    RewardConfig,
)
from equipoise.agent.features import FeatureSchema
from equipoise.agent.lanes.sequencing import Sequencer
from equipoise.store.batches import LEFT_OUT, DecisionBatch, OutcomeBatch, RequestBatch
from equipoise.store.format.frames import body_to_batch

LANES, EPOCH, TURN = 3, 1e6, 60.0
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
FAULTS = {
    "retry": "a retry takes the place of the decision before it",
    "arrival": "rows enter as their outcomes arrive",
    "rewarded": "late rows count if their rewards were good",
    "deadly": "a lane is lost by what a model answered",
}
"""Ways in which outcomes would decide about rows. Of the last one the product can only warn."""


@dataclass(frozen=True)
class World:
    """What happens. up: (K,) share of good answers; slope: (K,) what x in [-1, 1] adds; missing: as
    `reward.missing`; again: share of bad answers after which a request comes again; adopts, ships:
    chance that a lane does so in a turn; lost: that it is lost; back: that what a lost one
    had not shipped comes late, and not never; requests: the hard stop, None for
    none; size: requests of a turn; window: of rewards, seconds; fault: one of FAULTS, "" for
    none."""

    name: str
    up: tuple[float, ...] = (0.5, 0.45, 0.55)
    slope: tuple[float, ...] = (0.2, -0.2, 0.1)
    assignment: str = "uniform"
    sequence: str = "bounded"
    missing: str | float = 0.0
    again: float = 0.6
    adopts: float = 0.4
    ships: float = 0.7
    lost: float = 0.02
    back: float = 0.6
    requests: int | None = None
    size: int = 30
    turns: int = 70
    window: float = 1800.0
    fault: str = ""

    @property
    def config(self) -> ExperimentConfig:
        return ExperimentConfig(
            name="lanes",
            models=[ModelConfig(name=f"m{at}", price=0.01) for at in range(len(self.up))],
            reward=RewardConfig(window=self.window, missing=self.missing),
            features=FeatureSchema.vectors(("a",), ()),
            policy=PolicyConfig(
                gate="fixed-rate", assignment=self.assignment, rate=0.8, estimator="ipw"
            ),
            budget=BudgetConfig(requests=self.requests),
            certify=CertifyConfig(sequence=self.sequence),
        )

    @property
    def comes(self) -> tuple[float, float]:
        """Chances that a bad and a good reward ever come."""
        return (1.0, 1.0) if self.missing == "worst-case" else (0.5, 0.85)

    def values(self, x: float | None = None) -> np.ndarray:
        """(K,) what is certified of each model, in the mean over x or at one."""
        good = np.array(self.up) + (0.0 if x is None else np.array(self.slope) * x)
        return good * self.comes[1]


class LastOfRequests(Sequencer):
    """Leaves out the first decision of a request where another one came with it."""

    def _first_of_requests(self, rows):
        last = {}
        for _, batch in rows:
            for name, position in zip(batch.request_id, batch.positions.tolist(), strict=True):
                if name not in last or RETRIED[position] > RETRIED[last[name]]:
                    last[name] = position
        known = self._agent.store.find_requests(list(last))
        # As if the log had held the retry before the first decision was made.
        return {name: (-1 if name in known else at, -1) for name, at in last.items()}


RETRIED: dict[int, bool] = {}
"""By position, whether the request had been decided before: of the run that is under way."""


class SpoiltFleet(Fleet):
    """A fleet in which outcomes may decide about the rows that came. good: by position, whether the
    answer was."""

    fault = ""

    def ship(self, *lanes: Lane) -> None:
        old = len(self.shipped)
        super().ship(*lanes)
        if self.fault == "rewarded":
            for at, parcel in enumerate(self.shipped[old:], old):
                if parcel.late and parcel.kind == "decisions" and self._was_good(parcel):
                    self.shipped[at] = replace(parcel, late=False)

    def _was_good(self, parcel) -> bool:
        batch = body_to_batch(parcel.body)
        drawn = batch.number[batch.randomized]
        return all(self.good[parcel.lane << 40 | number] for number in drawn.tolist())

    def sequence(self) -> None:
        if self.fault != "arrival":
            super().sequence()
            return
        # Parcels are of one decision each, and wait for their outcome.
        self.main.store.lane_ends = dict
        arrived = {}
        for parcel in self.shipped:
            if parcel.kind == "outcomes":
                for number in body_to_batch(parcel.body).number.tolist():
                    arrived.setdefault((parcel.lane, number), parcel.received)
        due, rest = [], []
        for parcel in self.shipped:
            if parcel.kind == "decisions":
                name = parcel.lane, int(body_to_batch(parcel.body).number[0])
                if name in arrived and not parcel.late:
                    due.append((arrived[name], parcel))
                    continue
            rest.append(parcel)
        for _, parcel in sorted(due, key=lambda each: (each[0], each[1].lane, each[1].place)):
            list(self.sequencer.decisions(iter([parcel])))
        outcomes = [parcel for parcel in rest if parcel.kind != "decisions"]
        done = set(self.sequencer.outcomes(outcomes, self.now))
        self.shipped = [each for each in rest if (each.lane, each.place) not in done]


class Traffic:
    """Requests over lanes, their outcomes and their retries, in turns of a minute."""

    def __init__(self, world: World, seed: int) -> None:
        self.world, self.rng = world, np.random.default_rng([seed, 218])
        RETRIED.clear()
        self.fleet = fleet = SpoiltFleet(world.config, seed.to_bytes(32, "little"), LANES)
        fleet.fault, fleet.good, fleet.now = world.fault, {}, EPOCH
        self.desk = fleet.join()  # decides nothing, and takes what comes for lanes that are lost
        fleet.publish()
        fleet.adopt()
        if world.fault == "retry":
            fleet.sequencer.__class__ = LastOfRequests
        for lane, skew in zip(self._held(), (200.0, 0.0, -200.0), strict=True):
            lane.skew = skew
        self.asked = self.seq = 0
        self.again: dict[int, list[tuple[str, float, int, Lane]]] = {}
        self.due: dict[int, list[tuple[Lane, OutcomeBatch]]] = {}
        self.returns: dict[int, list[Lane]] = {}
        self.deadly: set[int] = set()
        self.truth: dict[int, np.ndarray] = {}
        self.certified = [np.zeros(len(world.up) + 1)]

    def turn(self, turn: int) -> None:
        """Requests, outcomes, losses, shipping, the authority's work, adopting."""
        fleet, world = self.fleet, self.world
        fleet.now = EPOCH + TURN * turn
        held = self._held()
        self._ask(held, turn)
        for lane, outcomes in self.due.pop(turn, []):
            if lane.ended is None and world.fault != "rewarded":
                lane.observe(outcomes)
            else:
                self._report(lane, outcomes)
        self._lose(held, turn)
        fleet.ship(*self.returns.pop(turn, []), *self._some(world.ships), self.desk)
        fleet.sequence()
        fleet.main.expire(fleet.now)
        if turn % 4 == 3:
            fleet.main.refresh(fleet.now, review=False)
        fleet.publish()
        fleet.adopt(*self._some(world.adopts), self.desk)

    def _held(self) -> list[Lane]:
        """Lanes that decide."""
        return [lane for lane in self.fleet.lanes if lane.ended is None and lane is not self.desk]

    def _some(self, share: float) -> list[Lane]:
        held = self._held()
        chosen = [lane for lane in held if self.rng.random() < share]
        return chosen or [held[int(self.rng.integers(len(held)))]]

    def _ask(self, held: list[Lane], turn: int) -> None:
        rng, models = self.rng, len(self.world.up)
        back: dict[int, list[tuple[str, float, int]]] = {}
        for name, x, routed, before in self.again.pop(turn, []):
            others = [lane for lane in held if lane is not before]
            other = others[int(rng.integers(len(others)))]
            back.setdefault(other.number, []).append((name, x, routed))
        where = rng.integers(0, len(held), self.world.size)
        for index, lane in enumerate(held):
            fresh = int(np.count_nonzero(where == index))
            names = [f"r{self.asked + row}" for row in range(fresh)]
            self.asked += fresh
            x, routed = rng.uniform(-1.0, 1.0, fresh), rng.integers(0, models, fresh)
            self._decide(lane, names, x, routed, turn, retried=False)
            if lane.number in back:
                names, x, routed = zip(*back[lane.number], strict=True)
                self._decide(lane, names, np.array(x), np.array(routed), turn, retried=True)

    def _decide(self, lane, names, x, routed, turn, retried) -> None:
        step = 1 if self.world.fault in ("arrival", "rewarded") else max(len(x), 1)
        for start in range(0, len(x), step):
            part = slice(start, start + step)
            size = len(x[part])
            requests = RequestBatch(
                unit=self.rng.integers(0, 2**62, size),
                context=np.full(size, -1),
                at=np.full(size, self.fleet.now - 0.5 + 0.4 * retried),
                x=x[part, None],
                routed=routed[part],
                request_id=list(names[part]),
            )
            self._answer(lane, lane.decide(requests), turn, retried)

    def _answer(self, lane, batch, turn, retried) -> None:
        rng, world, count = self.rng, self.world, len(batch)
        model, x = batch.model, batch.x[:, 0]
        good = rng.random(count) < np.array(world.up)[model] + np.array(world.slope)[model] * x
        for row, position in enumerate(batch.positions.tolist()):
            values = world.values(float(x[row]) if retried else None)
            self.truth[position] = np.append(
                values, values[batch.routed[row]] if retried else values.mean()
            )
            self.fleet.good[position], RETRIED[position] = bool(good[row]), retried
        comes = rng.random(count) < np.where(good, world.comes[1], world.comes[0])
        # Bad answers are noticed at once, good ones later.
        delay = np.where(good, rng.integers(0, 12, count), 0)
        for wait in np.unique(delay[comes]).tolist():
            rows = np.flatnonzero(comes & (delay == wait))
            self.due.setdefault(turn + wait, []).append((lane, _outcomes(batch, rows, good)))
        sent = ~good & (rng.random(count) < world.again) & (not retried)
        for row in np.flatnonzero(sent).tolist():
            # Most at once, some when the log may know of the first.
            wait = turn + 1 + (int(rng.integers(0, 10)) if rng.random() < 0.4 else 0)
            request = batch.request_id[row], float(x[row]), int(batch.routed[row]), lane
            self.again.setdefault(wait, []).append(request)
        if (~good & batch.randomized & (model == 0)).any():
            self.deadly.add(lane.number)

    def _report(self, lane: Lane, outcomes: OutcomeBatch) -> None:
        """An outcome of a lost lane's decision comes to another one, by the decision's id."""
        reports = [
            {
                "outcome": {"decision_id": f"d{lane.number}-{number}", "reward": reward},
                "came": self.fleet.now,
            }
            for number, reward in zip(
                outcomes.number.tolist(), outcomes.reward.tolist(), strict=True
            )
        ]
        self.desk.report(msgspec.json.encode(reports), len(reports))

    def _lose(self, held: list[Lane], turn: int) -> None:
        fleet, rng, deadly = self.fleet, self.rng, self.world.fault == "deadly"
        for lane in held:
            struck = lane.number in self.deadly if deadly else True
            if struck and rng.random() < (0.9 if deadly else self.world.lost):
                fleet.lose(lane)
                if rng.random() < self.world.back:
                    after = 1 if self.world.fault == "rewarded" else int(rng.integers(1, 20))
                    self.returns.setdefault(turn + after, []).append(lane)
                fleet.join().skew = lane.skew
        self.deadly.clear()

    def looks(self):
        """What is certified after every turn, and the truth of the rows that it rests on."""
        main = self.fleet.main
        for turn in range(self.world.turns):
            self.turn(turn)
            for segment in main.store.read(since=self.seq):
                self.seq = segment.seq + len(segment.batch)
                if isinstance(segment.batch, DecisionBatch):
                    batch = segment.batch
                    out = np.zeros(len(batch), dtype=bool)
                    if batch.closed_by is not None:
                        out = np.isin(batch.closed_by, LEFT_OUT)
                    for position in batch.positions[(batch.rate > 0.0) & ~out].tolist():
                        self.certified.append(self.certified[-1] + self.truth[position])
            certified = main.answers.certified()
            rows = int(certified.rows)
            if rows:
                yield certified, self.certified[rows] / rows


def _outcomes(batch: DecisionBatch, rows: np.ndarray, good: np.ndarray) -> OutcomeBatch:
    count = len(rows)
    return OutcomeBatch(
        number=batch.number[rows],
        served=batch.model[rows],
        attempt=np.ones(count, dtype=np.int64),
        delivered=np.ones(count, dtype=bool),
        outputs=np.zeros((count, 0)),
        reward=good[rows].astype(float),
        at=batch.at[rows],
    )


ROUNDING = 1e-9


def simulate(world: World, seed: int) -> dict[str, float]:
    """Whether any value, or any contrast, was ever missed at some look of one run, and what became
    of its rows."""
    traffic = Traffic(world, seed)
    models = len(world.up)
    shown = models if world.sequence == "per-model" else models + 1
    value = contrast = False
    certified = None
    for certified, truth in traffic.looks():
        part = slice(0, shown)
        low, high, true = certified.lower[part], certified.upper[part], truth[part]
        value |= bool((low > true + ROUNDING).any() or (high < true - ROUNDING).any())
        ends = certified.contrasts[part, part]
        contrast |= bool((ends > true[:, None] - true + ROUNDING).any())
    done = traffic.fleet.sequencer.done
    main = traffic.fleet.main
    checks = {check.name: check.status for check in main.fold.watched().checks()}
    width = certified.upper[:models] - certified.lower[:models]
    return {
        "value": value,
        "contrast": contrast,
        "rows": certified.rows,
        "decisions": done.decisions,
        "late": done.late,
        "repeated": done.repeated,
        "slice": float(main.fold.watched().floors.result().figures["slice"]),
        "width": float(width.mean()),
        "alarm": checks["assignment"] == "alarm",
    }


def worlds() -> list[World]:
    """Honest ones, and those in which outcomes decide about rows."""
    flat = (0.0, 0.0, 0.0)
    return [
        World("uniform"),
        World("uniform, worst case for missing", missing="worst-case"),
        World("uniform, tickets run out", requests=700),
        World("uniform, lanes far behind", adopts=0.1, ships=0.3, lost=0.05),
        World("uniform, every bad answer comes again", again=1.0, size=80, sequence="asymptotic"),
        World("top-two", assignment="top-two", missing="worst-case"),
        World("top-two, tickets run out", assignment="top-two", requests=700, missing="worst-case"),
        World("contrast", assignment="contrast", missing="worst-case"),
        World("uniform, asymptotic", sequence="asymptotic"),
        World(
            "top-two, asymptotic", assignment="top-two", sequence="asymptotic", missing="worst-case"
        ),
        World("uniform, per-model", sequence="per-model", slope=flat),
        *(
            World(words, fault=fault, missing="worst-case", sequence="asymptotic", **SHAPES[fault])
            for fault, words in FAULTS.items()
        ),
    ]


SHAPES = {
    "retry": {"again": 1.0, "size": 80},
    "arrival": {"again": 0.0, "size": 100, "turns": 14, "lost": 0.0},
    "rewarded": {
        "again": 0.0,
        "size": 90,
        "turns": 50,
        "lost": 0.4,
        "back": 1.0,
        "ships": 0.1,
        "adopts": 1.0,
    },
    "deadly": {"again": 0.0, "size": 9, "turns": 120, "ships": 1.0, "adopts": 1.0},
}
"""Worlds in which a fault shows in few requests."""


def study(world: World, runs: int, keep: Path) -> list[dict[str, float]]:
    """The runs of a world, those from the file where they are kept first."""
    path = keep / f"lanes-{world.name.replace(' ', '_').replace(',', '')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    result = json.loads(path.read_text()) if path.is_file() else []
    for seed in range(len(result), runs):
        began = time.process_time()
        result.append(simulate(world, seed) | {"seconds": time.process_time() - began})
        path.write_text(json.dumps(result))
    return result


def page(results: list[tuple[World, list[dict[str, float]]]]) -> list[str]:
    """Lines of the measured part."""
    head = ["world", "runs", "rows", "late", "repeated", "slice", "a value missed"]
    head += ["a contrast missed", "assignment alarm"]
    rows = []
    for world, runs in results:
        means = [f"{np.mean([run[n] for run in runs]):,.0f}" for n in COUNTS]
        shares = [percent(np.mean([run[n] for run in runs])) for n in SHARES]
        name = f"*{world.name}*" if world.fault else world.name
        rows.append([name, f"{len(runs)}", *means, *shares])
    seconds = sum(run["seconds"] for _, runs in results for run in runs)
    note = (
        "Rows: certified, late, repeated and without tickets, in the mean of the runs. Share of"
        " runs in which any value, or any contrast, was ever missed at any of the looks; each kind"
        f" of statement is allowed {percent(DELTA)}. Worlds in italics must miss. It took"
        f" {seconds / 60:.0f} minutes of one core."
    )
    return [note, "", *table(head, rows)]


DELTA = 0.05
COUNTS = ("rows", "late", "repeated", "slice")
SHARES = ("value", "contrast", "alarm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=60, help="of each honest world")
    parser.add_argument("--faulty", type=int, default=12, help="of each that must miss")
    parser.add_argument("--out", type=Path, help="also write the table into this page")
    parser.add_argument("--keep", type=Path, default=Path("build/lanes"))
    parser.add_argument("--only", default="", help="worlds whose name has this in it")
    given = parser.parse_args()
    results = []
    for world in worlds():
        if given.only in world.name:
            runs = given.faulty if world.fault else given.runs
            results.append((world, study(world, runs, given.keep)))
            print("\n".join(page(results[-1:])[-1:]), flush=True)
    written = "\n".join(page(results))
    if given.out:
        text = given.out.read_text()
        before, after = text.split(BEGIN)[0], text.split(END)[1]
        given.out.write_text(f"{before}{BEGIN}\n\n{written}\n\n{END}{after}")


if __name__ == "__main__":
    main()
