"""Simulated live experiments, from the first request to the decision, in simulated time.

The real Agent decides and observes over a memory store; traffic, delays, missing rewards, pauses
and budgets are drawn. Nothing sleeps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from equipoise.agent.agent import Agent
from equipoise.agent.config import (
    BudgetConfig,
    CertifyConfig,
    ExperimentConfig,
    ModelConfig,
    PolicyConfig,
    RewardConfig,
    UnitsConfig,
)
from equipoise.agent.features import FeatureSchema
from equipoise.store.batches import OutcomeBatch, RequestBatch
from equipoise.store.memory import MemoryStore

EPOCH = 1.7e9
MOST_RANDOMIZED = 15_000
"""Randomized requests after which a run ends undecided."""
GROWTH, FEWEST = 0.025, 20
"""A refresh comes with so many requests more."""


@dataclass(frozen=True)
class Kind:
    """What an experiment is like.

    values: (K,) of a reward that comes. missing: share of rewards that never come; declared: what
    they count as, None for the worst case. traffic: flat, idle, night or bursts; hours: that
    MOST_RANDOMIZED take at the mean pace. budget: randomized requests, None for no limit. pause,
    silence: (from, for) as shares of the randomized requests at `middle` and of the time so far.
    """

    values: tuple[float, ...]
    missing: float
    declared: float | None
    traffic: str
    hours: float
    window: float
    rate: float
    assignment: str
    sequence: str
    budget: int | None
    event: str
    sticky: bool
    middle: int
    seed: int


def kind(index: int) -> Kind:
    """Experiment number `index`; the lists have lengths of their own, so that all pairs occur."""
    rng = np.random.default_rng([28, index])
    models = 2 + index % 4
    gap = (0.12, 0.25, 0.05, 0.18, 0.0, 0.08, 0.03)[index % 7]
    best = rng.uniform(0.5, 0.85)
    others = best - gap - np.concatenate([[0.0], rng.uniform(0.0, 0.2, models - 2)])
    missing = (0.0, 0.03, 0.0, 0.08, 0.01, 0.0, 0.3, 0.0, 0.92, 0.04, 0.0)[index % 11]
    declared = None if missing < 0.05 or index % 2 else 0.0
    traffic = ("flat", "night", "idle", "bursts", "night")[index % 5]
    hours = float(np.exp(rng.uniform(np.log(1.0), np.log(60.0))))
    if traffic == "night":
        hours = rng.uniform(30.0, 150.0)
    return Kind(
        values=tuple(rng.permutation(np.maximum([best, *others], 0.03)).tolist()),
        missing=missing,
        declared=declared,
        traffic=traffic,
        hours=hours,
        window=hours * 3600.0 * float(rng.uniform(0.005, 0.03)),
        rate=0.5 if index % 13 == 5 else (0.5, 1.0, 0.3)[index % 3],
        assignment=("uniform", "top-two", "uniform", "neyman")[(index // 2) % 4],
        sequence=("bounded", "bounded", "per-model", "asymptotic")[(index // 3) % 4],
        budget=int(rng.choice([600, 1500, 4000])) if index % 6 == 1 else None,
        event=("", "", "pause", "", "silence", "")[index % 6],
        sticky=index % 13 == 5,
        middle=int(rng.choice([300, 700, 1500])),
        seed=index,
    )


def arrivals(kind: Kind, rng: np.random.Generator) -> np.ndarray:
    """Times of requests, seconds from the first on."""
    total, end = MOST_RANDOMIZED / kind.rate, kind.hours * 3600.0
    phase, depth = rng.random(), rng.uniform(0.5, 0.9)
    period, busy = end * rng.uniform(0.01, 0.05), rng.uniform(0.15, 0.5)
    heights = rng.uniform(0.5, 2.0, 1000)
    grid = np.linspace(0.0, end, 50_001)
    middle = 0.5 * (grid[1:] + grid[:-1])
    pace = np.ones_like(middle)
    if kind.traffic == "night":
        pace = 1.0 - depth * (1.0 + np.cos(2 * np.pi * (middle / 86_400.0 + phase))) / 2.0
    elif kind.traffic == "bursts":
        turn = middle / period + phase
        pace = np.where(turn % 1.0 < busy, heights[turn.astype(int) % 1000] / busy, 0.05)
    came = np.concatenate([[0.0], np.cumsum(pace)])
    times = np.interp(np.sort(rng.random(int(total))) * came[-1], came, grid)
    if kind.traffic == "idle":
        first = np.sort(rng.uniform(0.0, 30.0, 8))
        times = np.concatenate([first, times + rng.uniform(0.05, 1.0) * end])
    return times


@dataclass
class Moment:
    """Where an experiment stands. decided: whether; randomized: certified of the era, drawn: in
    all; at: seconds since the epoch; newest: of the newest decision."""

    agent: Agent
    at: float
    newest: float
    randomized: int
    drawn: int
    decided: bool
    paused: bool


def live(kind: Kind) -> Iterator[Moment]:
    """The experiment after each refresh, until it is decided or can go no further."""
    rng = np.random.default_rng([kind.seed, 1])
    models, missing = len(kind.values), kind.declared
    config = ExperimentConfig(
        name=f"live-{kind.seed}",
        models=[ModelConfig(name=f"model-{index}", price=0.01) for index in range(models)],
        reward=RewardConfig(
            window=kind.window, missing="worst-case" if missing is None else missing
        ),
        features=FeatureSchema.vectors(("a",), ()),
        policy=PolicyConfig(assignment=kind.assignment, rate=kind.rate, estimator="ipw"),
        budget=BudgetConfig(requests=kind.budget),
        certify=CertifyConfig(sequence=kind.sequence),
        units=UnitsConfig(ttl=kind.window / 4.0) if kind.sticky else None,
    )
    times = EPOCH + rng.random() * 86_400.0 + arrivals(kind, rng)
    agent = Agent(config, MemoryStore(), bytes(range(32)), at=float(times[0]))
    waiting: list[OutcomeBatch] = []
    sent, event = 0, kind.event
    until = np.inf
    now = float(times[0])
    while True:
        step = max(FEWEST, int(GROWTH * sent))
        stop = min(sent + step, len(times))
        closing = now + kind.window * 1.01
        reach = float(times[stop - 1]) if stop > sent else closing
        # Rewards and windows that end while little traffic comes are seen in time.
        now = min(reach, closing)
        stop = int(np.searchsorted(times, now, side="right"))
        count = stop - sent
        if count:
            chosen = agent.decide(_requests(times[sent:stop], kind, rng, models))
            waiting.append(_outcomes(chosen, kind, rng))
            sent = stop
        waiting = list(_deliver(agent, waiting, now))
        agent.expire(now)
        agent.refresh(now, review=False)
        drawn = int(agent.light.randomized)
        certified = agent.answers.certified()
        standing = certified.standing
        done = standing.winner() is not None or bool(standing.equivalent())
        yield Moment(
            agent,
            now,
            float(times[sent - 1]),
            certified.randomized,
            drawn,
            done,
            agent.state.paused is not None,
        )
        if done or drawn >= MOST_RANDOMIZED:
            return
        spent = kind.budget is not None and drawn >= kind.budget
        if (stop == len(times) or spent) and agent.answers.behind().number < 0:
            return
        # The last units stay open: only a later decision says that their time is over.
        if now > float(times[-1]) + 3.0 * kind.window:
            return
        if event and drawn >= kind.middle:
            lasts = 0.5 * (now - float(times[0])) + 2.0 * kind.window
            if event == "pause":
                agent.controls.pause("a release", now)
                until = now + lasts
            else:
                times = np.concatenate([times[:sent], times[sent:] + lasts])
            event = ""
        if agent.state.paused is not None and now >= until:
            agent.controls.resume(now)


def _requests(at: np.ndarray, kind: Kind, rng: np.random.Generator, models: int) -> RequestBatch:
    count = len(at)
    users = rng.integers(0, 2**40, count)
    if kind.sticky:
        # Every other request is the second one of its unit.
        users[1::2] = users[: len(users[1::2]) * 2 : 2]
    return RequestBatch(
        unit=users,
        context=np.full(count, -1),
        at=at,
        x=rng.standard_normal((count, 1)),
        routed=rng.integers(0, models, count),
    )


def _outcomes(chosen, kind: Kind, rng: np.random.Generator) -> OutcomeBatch:
    count = len(chosen)
    reward = (rng.random(count) < np.array(kind.values)[chosen.model]).astype(float)
    delay = np.minimum(rng.exponential(kind.window / 10.0, count), 0.95 * kind.window)
    lost = rng.random(count) < kind.missing
    return OutcomeBatch(
        number=chosen.number,
        served=chosen.model,
        attempt=np.ones(count, dtype=np.int64),
        delivered=np.ones(count, dtype=bool),
        outputs=np.empty((count, 0)),
        reward=np.where(lost, np.nan, reward),
        at=np.where(lost, np.inf, chosen.at + delay),
    )


def _deliver(agent: Agent, waiting: list[OutcomeBatch], now: float) -> Iterator[OutcomeBatch]:
    """Hand over what has come by now; what is still to come."""
    names = ("number", "served", "attempt", "delivered", "outputs", "reward", "at")

    def part(batch: OutcomeBatch, rows: np.ndarray) -> OutcomeBatch:
        return replace(batch, **{name: getattr(batch, name)[rows] for name in names})

    for batch in waiting:
        came = batch.at <= now
        if came.any():
            agent.observe(part(batch, came))
        left = ~came & np.isfinite(batch.at)
        if left.any():
            yield part(batch, left)
