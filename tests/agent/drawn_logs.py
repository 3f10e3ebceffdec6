"""Logs that were drawn elsewhere, with known truth, as tests of `drawn` need them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from traffic import KEY, config

from equipoise.agent.agent import Agent
from equipoise.agent.config import ExperimentConfig, RewardConfig
from equipoise.agent.errors import AgentError
from equipoise.agent.features import FeatureSchema
from equipoise.agent.features.values import FeatureError
from equipoise.agent.ingest.drawn import DRAWN_AT_ONCE, DrawnRows
from equipoise.agent.ingest.drawn_rows import DrawnRow
from equipoise.agent.ingest.draws import survey
from equipoise.agent.lifecycle.drawn import Drawn
from equipoise.store.batches import RequestBatch
from equipoise.store.contract import Store
from equipoise.store.memory import MemoryStore

NOW = 1.8e9
BEGAN = 1.7e9
"""When the rows were drawn: years before they are read."""
CHANGES = msgspec.structs.replace


def experiment(**changes: object) -> ExperimentConfig:
    """Three models, a context feature, and no outputs."""
    schema = FeatureSchema.vectors(("a",), ())
    reward = RewardConfig(low=0.0, high=1.0, window=100.0)
    return config(**{"features": schema, "reward": reward, **changes})


def declared(how: str = "request", **more: object) -> Drawn:
    return Drawn(mapping="flags", how=how, declared=NOW, **more)  # type: ignore[arg-type]


def epsilon_greedy(
    seed: int,
    rows: int,
    values: Sequence[float] = (0.3, 0.5, 0.7),
    names: Sequence[str] = ("slow", "fast", "cheap"),
    epsilon: float = 0.3,
) -> list[DrawnRow]:
    """A bandit whose probabilities follow the rewards before: most goes to the best so far."""
    rng = np.random.default_rng(seed)
    count, total = np.ones(len(values)), np.full(len(values), 0.5)
    found = []
    for at in range(rows):
        chances = np.full(len(values), epsilon / len(values))
        chances[np.argmax(total / count)] += 1.0 - epsilon
        model = int(rng.choice(len(values), p=chances))
        reward = float(rng.random() < values[model])
        count[model], total[model] = count[model] + 1, total[model] + reward
        found.append(
            DrawnRow(
                model=names[model],
                features=[float(rng.random())],
                candidates=dict(zip(names, chances.tolist(), strict=True)),
                reward=reward,
                request_id=f"r{at}",
                at=BEGAN + at,
            )
        )
    return found


def hash_split(
    seed: int, units: int, per_unit: int, values: Sequence[float] = (0.5, 0.5)
) -> list[DrawnRow]:
    """A flag: a unit gets one of two models for good, and units differ among themselves."""
    rng = np.random.default_rng(seed)
    names, model = ("slow", "fast"), rng.integers(0, 2, units)
    taste = rng.random(units)
    found = []
    for at in range(units * per_unit):
        unit = at % units
        value = values[model[unit]]
        # A unit says the same nearly always; over units the mean is the value.
        reward = float((taste[unit] < value) != (rng.random() < 0.02))
        found.append(
            DrawnRow(
                model=names[model[unit]],
                features=[0.0],
                candidates={"slow": 0.5, "fast": 0.5},
                reward=reward,
                request_id=f"r{at}",
                unit_id=f"u{unit}",
                at=BEGAN + at,
            )
        )
    return found


def agent_of(settings: ExperimentConfig, store: Store | None = None) -> Agent:
    return Agent(settings, store or MemoryStore(), KEY, at=BEGAN)


def taken(agent: Agent, rows: Sequence[DrawnRow], how: Drawn, at_once: int = 0) -> DrawnRows:
    """Read a log into an agent's store, as `equipoise ingest` does."""
    found = survey((("log", at + 1, row) for at, row in enumerate(rows)), how, agent.models)
    reader = DrawnRows(agent, found, NOW)
    size = at_once or DRAWN_AT_ONCE
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        reader.begin(part)
        reader.take(part)
    reader.finish()
    return reader


def requests(count: int = 5, at: float = NOW) -> RequestBatch:
    """Live requests, all as routed to the first model."""
    return RequestBatch(
        unit=np.arange(count),
        context=np.full(count, -1),
        at=np.full(count, at),
        x=np.zeros((count, 1)),
        routed=np.zeros(count, dtype=np.int64),
    )


def read(agent: Agent, rows: Sequence[DrawnRow], how: Drawn) -> tuple[DrawnRows, list[str]]:
    """As `taken`, row by row; also why rows were refused."""
    found = survey((("log", at + 1, row) for at, row in enumerate(rows)), how, agent.models)
    reader, refused = DrawnRows(agent, found, NOW), []
    for start in range(0, len(rows), DRAWN_AT_ONCE):
        part = rows[start : start + DRAWN_AT_ONCE]
        reader.begin(part)
        for row in part:
            try:
                reader.take([row])
            except (AgentError, FeatureError) as error:
                refused.append(str(error))
    reader.finish()
    return reader, refused


def split(
    seed: int,
    rows: int,
    logged: Sequence[float] = (0.5, 0.5),
    values: Sequence[float] = (0.5, 0.5),
    real: Sequence[float] | None = None,
) -> list[DrawnRow]:
    """Two models by chance; logged: the probabilities that rows say, real: those they had."""
    rng = np.random.default_rng(seed)
    names = ("slow", "fast")
    model = (rng.random(rows) < (real or logged)[1]).astype(int)
    reward = rng.random(rows) < np.array(values)[model]
    return [
        DrawnRow(
            model=names[model[at]],
            features=[0.0],
            candidates=dict(zip(names, logged, strict=True)),
            reward=float(reward[at]),
            request_id=f"s{at}",
            at=BEGAN + at,
        )
        for at in range(rows)
    ]
