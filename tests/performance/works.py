"""The works that are measured, by name: `build("single top-two")` gives a function that does one
round of it and returns its figures.

As a program it reads names from standard input, one a line, and answers each with the figures of
one round: so the interpreter of another checkout does the same works with its own code. Whatever
differs between checkouts is asked for here.
"""

from __future__ import annotations

import gc
import inspect
import json
import resource
import sys
import time
from collections.abc import Callable
from functools import cache

import numpy as np

from equipoise.agent.agent import Agent
from equipoise.agent.config import BudgetConfig, ExperimentConfig, ModelConfig, PolicyConfig
from equipoise.agent.features import FeatureSchema
from equipoise.policies.registry import PRESETS
from equipoise.store.batches import OutcomeBatch, RequestBatch, SimulationBatch
from equipoise.store.memory import MemoryStore

KEY = bytes(range(32))
Figures = dict[str, float]
Work = Callable[[], Figures]


class ForgetfulStore(MemoryStore):
    """A store that keeps no rows: for measuring the agent's own memory over a long stream."""

    def append(self, batch):
        seq = super().append(batch)
        for kept in (self._starts, self._batches, self._decision_starts, self._decision_batches):
            kept.clear()
        return seq


def agent_of(d: int, q: int, models: int, preset: str = "top-two", store=None) -> Agent:
    gate, assignment = PRESETS[preset]
    config = ExperimentConfig(
        name="bench",
        models=[ModelConfig(name=f"m{index}") for index in range(models)],
        features=FeatureSchema.vectors(
            [f"x{index}" for index in range(d)], [f"y{index}" for index in range(q)]
        ),
        policy=PolicyConfig(gate=gate, assignment=assignment, rate=0.2),
        budget=BudgetConfig(),
    )
    agent = Agent(config, store if store is not None else MemoryStore(), KEY)
    rng = np.random.default_rng(0)
    n = 200 * models
    agent.simulate(
        SimulationBatch(
            context=np.repeat(np.arange(200), models),
            model=np.tile(np.arange(models), 200),
            x=np.repeat(rng.normal(size=(200, d)), models, axis=0),
            outputs=rng.normal(size=(n, q)),
            cost=np.full(n, 0.01),
            at=np.zeros(n),
        )
    )
    warm(agent, rng, 20, 200)
    refresh(agent)
    return agent


def refresh(agent: Agent):
    """Freeze the next rule, without asking the checks; a snapshot of what the policy saw."""
    if "review" in inspect.signature(agent.refresh).parameters:
        return agent.refresh(review=False)
    return agent.refresh()


def widths(agent: Agent) -> tuple[int, int]:
    """Context features and outputs."""
    transform = agent.state.transform if hasattr(agent, "state") else agent.transform
    return transform.d, transform.q


def requests(agent: Agent, rng: np.random.Generator, n: int) -> RequestBatch:
    return RequestBatch(
        unit=rng.integers(0, 2**62, n),
        context=np.full(n, -1),
        at=np.zeros(n),
        x=rng.normal(size=(n, widths(agent)[0])),
        routed=rng.integers(0, len(agent.models), n),
    )


def outcomes(agent: Agent, rng: np.random.Generator, decided) -> OutcomeBatch:
    n = len(decided)
    return OutcomeBatch(
        number=decided.number,
        served=decided.model,
        attempt=np.ones(n, dtype=np.int64),
        delivered=np.ones(n, dtype=bool),
        outputs=rng.normal(size=(n, widths(agent)[1])),
        reward=rng.random(n),
        at=decided.at,
    )


def warm(agent: Agent, rng: np.random.Generator, batches: int, size: int) -> None:
    for _ in range(batches):
        agent.observe(outcomes(agent, rng, agent.decide(requests(agent, rng, size))))


def percentiles(times: list[int]) -> Figures:
    """p50 and p99, us, of times in ns."""
    p50, p99 = (float(each) / 1000 for each in np.percentile(times, [50, 99]))
    return {"p50": p50, "p99": p99}


def one_by_one(decide: Callable[[object], object], given: list) -> Figures:
    """Time each of these calls alone."""
    times, clock = [], time.perf_counter_ns
    for each in given:
        start = clock()
        decide(each)
        times.append(clock() - start)
    return percentiles(times)


def single(preset: str, count: int = 4000) -> Work:
    """Single decisions, one call each, logged to memory; p = 32, K = 8."""
    agent, rng = agent_of(16, 15, 8, preset), np.random.default_rng(1)
    prepared = [requests(agent, rng, 1) for _ in range(1000)]
    given = [prepared[index % 1000] for index in range(count)]

    def work() -> Figures:
        gc.collect()
        return one_by_one(agent.decide, given)

    return work


def batches(preset: str, size: str) -> Work:
    """Decisions in batches, logged to memory; p = 32, K = 8."""
    agent, rng = agent_of(16, 15, 8, preset), np.random.default_rng(1)
    n, count = int(size), max(20_000 // int(size), 10)
    prepared = [requests(agent, rng, n) for _ in range(min(count, 100))]

    def work() -> Figures:
        start = time.perf_counter()
        made = [agent.decide(prepared[index % len(prepared)]) for index in range(count)]
        rate = count * n / (time.perf_counter() - start)
        for decided in made:  # not timed: decisions leave again, as they do in a stream
            agent.observe(outcomes(agent, rng, decided))
        return {"rate": rate}

    return work


def refreshes(preset: str, d: str, q: str, models: str) -> Work:
    """Estimate, certify, freeze the next rule after 50 more decisions; median of eight, ms."""
    agent, rng = agent_of(int(d), int(q), int(models), preset), np.random.default_rng(6)

    def work() -> Figures:
        times = []
        for _ in range(8):
            warm(agent, rng, 1, 50)
            start = time.perf_counter()
            refresh(agent)
            times.append(1e3 * (time.perf_counter() - start))
        return {"ms": float(np.median(times))}

    return work


def updates(d: str, q: str, models: str, size: str) -> Work:
    """Outcomes observed and folded in batches."""
    agent, rng = agent_of(int(d), int(q), int(models)), np.random.default_rng(2)
    n = int(size)

    def work() -> Figures:
        prepared = [
            outcomes(agent, rng, agent.decide(requests(agent, rng, n))) for _ in range(50_000 // n)
        ]
        start = time.perf_counter()
        for batch in prepared:
            agent.observe(batch)
        return {"rate": len(prepared) * n / (time.perf_counter() - start)}

    return work


TABLE_ROWS, TABLE_D, TABLE_MODELS = 40_000, 16, 6


@cache
def table() -> tuple[np.ndarray, np.ndarray]:
    """Contexts (n, d) and the reward of every model (n, K), on which replays run."""
    rng = np.random.default_rng(3)
    return rng.normal(size=(TABLE_ROWS, TABLE_D)), rng.random((TABLE_ROWS, TABLE_MODELS))


def replay(preset: str, every: str, size: str = "100") -> Work:
    """Decisions and updates of the agent on the table, in batches, with refreshes between."""
    x, reward = table()
    rows, models = reward.shape
    rng, n, apart = np.random.default_rng(5), int(size), int(every)
    agent = agent_of(x.shape[1], 4, models, preset)
    outputs = rng.normal(size=(n, 4))
    unit, routed = rng.integers(0, 2**62, rows), rng.integers(0, models, rows)
    blank, zeros = np.full(n, -1), np.zeros(n)
    ones, sent = np.ones(n, dtype=np.int64), np.ones(n, dtype=bool)

    def work() -> Figures:
        begun = time.perf_counter()
        for start in range(0, rows - n + 1, n):
            part = slice(start, start + n)
            decided = agent.decide(RequestBatch(unit[part], blank, zeros, x[part], routed[part]))
            earned = reward[np.arange(start, start + n), decided.model]
            agent.observe(
                OutcomeBatch(decided.number, decided.model, ones, sent, outputs, earned, zeros)
            )
            if start % apart == 0:
                refresh(agent)
        return {"rate": rows / (time.perf_counter() - begun)}

    return work


def plan(models: str) -> Work:
    """A plan from numbers, without start-up: processor time and wall."""
    from equipoise.agent.planning.plan import make_plan
    from equipoise.agent.planning.problem import Problem
    from equipoise.agent.planning.request import read_request

    numbers = {"models": int(models), "traffic": 1e3, "reward_rate": 0.5, "effect": 0.05}
    problem = Problem.of_numbers(read_request(numbers))

    def work() -> Figures:
        spent, begun = time.process_time(), time.perf_counter()
        make_plan(problem)
        return {"cpu": time.process_time() - spent, "wall": time.perf_counter() - begun}

    return work


def long_stream(rows: tuple[int, ...] = (1_000, 100_000, 10_000_000)) -> dict[int, Figures]:
    """One stream without its log: single decisions timed at so many log rows, and the memory."""
    agent, rng = agent_of(16, 4, 6, store=ForgetfulStore()), np.random.default_rng(4)
    batch = requests(agent, rng, 1000)
    prepared = [requests(agent, rng, 1) for _ in range(1000)] * 4
    found = {}
    for goal in rows:
        while agent.light.next_seq < goal:
            agent.observe(outcomes(agent, rng, agent.decide(batch)))
        made: list = []
        timed = one_by_one(lambda one, made=made: made.append(agent.decide(one)), prepared)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        found[goal] = {**timed, "peak": peak, "state": len(agent.fold.to_bytes()) / 1024}
        for decided in made:
            agent.observe(outcomes(agent, rng, decided))
    return found


BUILDERS: dict[str, Callable[..., Work]] = {
    "single": single,
    "batches": batches,
    "refresh": refreshes,
    "updates": updates,
    "replay": replay,
    "plan": plan,
}


@cache
def build(name: str) -> Work:
    """The work of this name; its agent is made once and goes on from round to round."""
    kind, *rest = name.split()
    return BUILDERS[kind](*rest)


if __name__ == "__main__":
    for asked in sys.stdin:
        print(json.dumps(build(asked.strip())()), flush=True)
