"""Small made-up traffic for tests of the agent: a linear world with a hidden trait."""

from __future__ import annotations

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
    SegmentConfig,
    UnitsConfig,
)
from equipoise.agent.features import FeatureSchema
from equipoise.store.batches import (
    DecisionBatch,
    ObservationBatch,
    OutcomeBatch,
    RequestBatch,
    SimulationBatch,
    take,
)

MODELS = ("slow", "fast", "cheap")
KEY = bytes(range(32))


def config(**changes: object) -> ExperimentConfig:
    """An experiment of three models with two context and two output features."""
    settings: dict[str, object] = {
        "name": "test",
        "models": [ModelConfig(name=name, price=0.01) for name in MODELS],
        "reward": RewardConfig(low=0.0, high=1.0, window=100.0),
        "features": FeatureSchema.vectors(("a", "b"), ("u", "v")),
        "policy": PolicyConfig(gate="fixed-rate", assignment="uniform", rate=0.3),
        "budget": BudgetConfig(),
    }
    settings.update(changes)
    return ExperimentConfig(**settings)  # type: ignore[arg-type]


@dataclass
class Traffic:
    """Requests and outcomes from a generator; the same seed gives the same traffic."""

    rng: np.random.Generator
    at: float = 0.0

    def requests(self, n: int, contexts: int = 50) -> RequestBatch:
        self.at += 1.0
        context = self.rng.integers(0, contexts, n)
        return RequestBatch(
            unit=self.rng.integers(0, 2**62, n),
            context=context,
            at=np.full(n, self.at),
            x=self.context(context),
            routed=self.rng.integers(0, len(MODELS), n),
        )

    @staticmethod
    def context(number: np.ndarray) -> np.ndarray:
        return np.column_stack([np.sin(number * 1.7), np.cos(number * 0.9)])

    @classmethod
    def outputs(cls, number: np.ndarray, model: np.ndarray) -> np.ndarray:
        return np.column_stack([np.sin(number + 2.0 * model), np.cos(3.0 * number - model)])

    def outcomes(self, decisions: DecisionBatch) -> OutcomeBatch:
        n = len(decisions)
        outputs = self.outputs(decisions.context, decisions.model)
        mean = 0.4 + 0.15 * decisions.model + 0.1 * outputs[:, 0]
        return OutcomeBatch(
            number=decisions.number,
            served=decisions.model,
            attempt=np.ones(n, dtype=np.int64),
            delivered=np.ones(n, dtype=bool),
            outputs=outputs,
            reward=(self.rng.random(n) < mean).astype(float),
            at=decisions.at,
        )

    def observations(self, n: int) -> ObservationBatch:
        context = self.rng.integers(0, 50, n)
        routed = self.rng.integers(0, len(MODELS), n)
        return ObservationBatch(
            unit=self.rng.integers(0, 2**62, n),
            at=np.zeros(n),
            x=self.context(context),
            routed=routed,
            outputs=self.outputs(context, routed),
            reward=self.rng.random(n),
        )

    def simulations(self, contexts: int = 50) -> SimulationBatch:
        context = np.repeat(np.arange(contexts), len(MODELS))
        model = np.tile(np.arange(len(MODELS)), contexts)
        return SimulationBatch(
            context=context,
            model=model,
            x=self.context(context),
            outputs=self.outputs(context, model),
            cost=np.full(len(context), 0.02),
            at=np.zeros(len(context)),
        )


def run(agent: Agent, traffic: Traffic, batches: int, size: int = 40) -> None:
    """Decide and observe `batches` batches, refreshing every third."""
    for index in range(batches):
        agent.observe(traffic.outcomes(agent.decide(traffic.requests(size))))
        if index % 3 == 2:
            agent.refresh(review=False)


SETTINGS = {
    "segments": {
        "certify": CertifyConfig(segments=[SegmentConfig(name="left", column="a", high=0.0)])
    },
    "asymptotic": {"certify": CertifyConfig(sequence="asymptotic")},
    "units": {"units": UnitsConfig(ttl=30.0)},
    "top-two": {"policy": PolicyConfig(assignment="top-two", rate=0.4)},
}


def steps(agent, seed=3):
    """The calls of a stream, one by one; the caller may replace the agent after each."""
    traffic, rng = Traffic(np.random.default_rng(seed)), np.random.default_rng(seed + 1)
    yield agent.simulate(traffic.simulations())
    for index in range(12):
        requests = traffic.requests(90)
        requests = replace(requests, unit=rng.integers(0, 70, 90))
        decided = yield ("decide", requests)
        outcomes = traffic.outcomes(decided)
        comes = rng.random(90) < 0.85
        blank = np.full(90, np.nan)
        yield ("observe", replace(outcomes, reward=blank))
        only = replace(outcomes, outputs=np.full((90, 2), np.nan))
        yield ("observe", take(only, np.flatnonzero(comes)))
        if index % 2 == 0:
            traffic.at += 200.0
            yield ("expire", traffic.at)
        if index % 2:
            yield ("refresh", float(index))
        if index == 7:
            yield ("controls.open_era", "a new version of slow")
        if index == 9:
            yield ("checkpoint", float(index))
