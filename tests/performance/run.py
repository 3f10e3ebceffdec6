"""`make bench`: how fast the agent is, as ratios to named baselines of the same run.

Machines are noisy, so nothing here asserts; it prints. Every ratio has both sides measured in
this process, one after the other, the better of several repeats each.

    make bench                 all sections
    python tests/performance/run.py decide updates
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

from equipoise.agent.agent import Agent
from equipoise.agent.config import BudgetConfig, ExperimentConfig, ModelConfig, PolicyConfig
from equipoise.agent.features import FeatureSchema
from equipoise.policies.registry import PRESETS
from equipoise.store.batches import OutcomeBatch, RequestBatch, SimulationBatch
from equipoise.store.memory import MemoryStore

KEY = bytes(range(32))


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
    agent.refresh(review=False)
    return agent


def requests(agent: Agent, rng: np.random.Generator, n: int) -> RequestBatch:
    return RequestBatch(
        unit=rng.integers(0, 2**62, n),
        context=np.full(n, -1),
        at=np.zeros(n),
        x=rng.normal(size=(n, agent.state.transform.d)),
        routed=rng.integers(0, len(agent.models), n),
    )


def outcomes(agent: Agent, rng: np.random.Generator, decided) -> OutcomeBatch:
    n = len(decided)
    return OutcomeBatch(
        number=decided.number,
        served=decided.model,
        attempt=np.ones(n, dtype=np.int64),
        delivered=np.ones(n, dtype=bool),
        outputs=rng.normal(size=(n, agent.state.transform.q)),
        reward=rng.random(n),
        at=decided.at,
    )


def warm(agent: Agent, rng: np.random.Generator, batches: int, size: int) -> None:
    for _ in range(batches):
        agent.observe(outcomes(agent, rng, agent.decide(requests(agent, rng, size))))


def best(work: Callable[[], int], repeats: int = 5) -> float:
    """Most rows per second over the repeats; `work` returns its rows."""
    rates = []
    for _ in range(repeats):
        start = time.perf_counter()
        rows = work()
        rates.append(rows / (time.perf_counter() - start))
    return max(rates)


def line(what: str, value: str, note: str = "") -> None:
    print(f"  {what:<58}{value:>16}  {note}", flush=True)


def section_decide() -> None:
    print("In-process decisions (p = 32, K = 8, logged to memory)")
    rng = np.random.default_rng(1)
    for preset in ("uniform", "top-two", "thompson", "active", "contrast"):
        agent = agent_of(16, 15, 8, preset)
        for size in (1, 64, 1024):
            count = max(20_000 // size, 10)
            prepared = [requests(agent, rng, size) for _ in range(min(count, 400))]

            def work(agent=agent, prepared=prepared, count=count, size=size) -> int:
                for index in range(count):
                    agent.decide(prepared[index % len(prepared)])
                return count * size

            line(f"{preset}, batches of {size}", f"{best(work, 3):,.0f}/s")
        one = [requests(agent, rng, 1) for _ in range(1000)]
        times = []
        for index in range(20_000):
            start = time.perf_counter_ns()
            agent.decide(one[index % 1000])
            times.append(time.perf_counter_ns() - start)
        p50, p99 = np.percentile(times, [50, 99]) / 1000
        line(f"{preset}, one at a time, p50 / p99", f"{p50:.1f} / {p99:.1f} us", "target p99 < 50")


def section_refresh() -> None:
    print("Refresh: estimate, certify, freeze the next rule (off the hot path)")
    rng = np.random.default_rng(6)
    for d, q, models in ((16, 15, 8), (16, 47, 20)):
        for preset in ("top-two", "contrast"):
            agent = agent_of(d, q, models, preset)
            times, frozen = [], []
            for _ in range(20):
                warm(agent, rng, 1, 50)
                start = time.perf_counter()
                snapshot = agent.refresh(review=False)
                times.append(1e3 * (time.perf_counter() - start))
                start = time.perf_counter()
                agent.state.policy.freeze(snapshot)
                frozen.append(1e3 * (time.perf_counter() - start))
            line(
                f"{preset}, p = {1 + d + q}, K = {models}, median",
                f"{np.median(times):.1f} ms",
                f"of which the policy {np.median(frozen):.1f} ms; target 20",
            )


def section_updates() -> None:
    print("Updates (observe and fold) against a bare numpy kernel of the same moments")
    rng = np.random.default_rng(2)
    for d, q, models in ((16, 15, 8), (16, 4, 6)):
        for size in (100, 1024):
            agent = agent_of(d, q, models)
            count = 200_000 // size
            prepared = [
                outcomes(agent, rng, agent.decide(requests(agent, rng, size))) for _ in range(count)
            ]
            half = count // 2

            def work(agent=agent, prepared=prepared, half=half, size=size) -> int:
                for batch in prepared[:half]:
                    agent.observe(batch)
                del prepared[:half]
                return half * size

            ours = best(work, 2)
            bare = bare_kernel(rng, d, q, models, size, decide=False)
            line(
                f"updates, p = {1 + d + q}, K = {models}, batches of {size}",
                f"{ours:,.0f}/s",
                f"{ours / bare:.0%} of bare numpy ({bare:,.0f}/s)",
            )


def bare_kernel(
    rng: np.random.Generator, d: int, q: int, models: int, size: int, decide: bool
) -> float:
    """Rows per second of plain numpy for the same sums: score, draw, and the Gram matrices per
    group for OBS and twice for EXP, per-model sums per group, weighted reward sums. No checks,
    no centring, no log, no pending table, no certified sums."""
    p, groups = 1 + d + q, 20
    weights = rng.normal(size=(1 + d, models))
    grams = np.zeros((3, groups, p, p))
    sums = np.zeros((3, groups * models, p))
    reward_sums = np.zeros((4, groups * models))

    def work() -> int:
        total = 0
        for _ in range(60_000 // size):
            x = pool_x[:size]
            v = pool_v[:size]
            if decide:
                z = np.concatenate([np.ones((size, 1)), x], axis=1)
                score = z @ weights
                score -= score.max(axis=1, keepdims=True)
                share = np.exp(score)
                share /= share.sum(axis=1, keepdims=True)
                u = generator.random(size)
                model = (np.cumsum(share, axis=1) < u[:, None]).sum(axis=1)
            else:
                model = pool_model[:size]
            group = pool_group[:size]
            experiment = pool_u[:size] < 0.2
            for source, rows in enumerate((~experiment, experiment, experiment)):
                picked = np.flatnonzero(rows)
                cell = group[picked] * models + model[picked]
                order = np.argsort(cell, kind="stable")
                part, cell = v[picked[order]], cell[order]
                if source == 2:
                    part = part * 5.0
                starts = np.flatnonzero(np.diff(cell, prepend=-1))
                sums[source, cell[starts]] += np.add.reduceat(part, starts, axis=0)
                edges = np.searchsorted(cell, np.arange(groups + 1) * models)
                for g in range(groups):
                    rows_of_group = part[edges[g] : edges[g + 1]]
                    grams[source, g] += rows_of_group.T @ rows_of_group
            reward = v[picked, -1]
            cell = group[picked] * models + model[picked]
            for index, value in enumerate((reward, reward * reward, 5 * reward, 25 * reward)):
                reward_sums[index] += np.bincount(cell, value, groups * models)
            total += size
        return total

    generator = np.random.default_rng(0)
    pool_x, pool_v = rng.normal(size=(size, d)), rng.normal(size=(size, p))
    pool_group = rng.integers(0, groups, size)
    pool_model, pool_u = rng.integers(0, models, size), rng.random(size)
    return best(work, 3)


def section_peers() -> None:
    print("Replay: contextual decisions + updates, d = 16, K = 6, beside peers on the same table")
    rng = np.random.default_rng(3)
    size, rows = 100, 40_000
    x, reward = rng.normal(size=(rows, 16)), rng.random((rows, 6))
    bare = bare_kernel(rng, 16, 4, 6, size, decide=True)
    ours: dict[str, float] = {}
    for preset, refresh in (("top-two", 2000), ("top-two", 10_000), ("thompson", 10_000)):
        name = f"{preset}, refresh every {refresh:,}"
        ours[name] = replay_rate(preset, refresh, x, reward, size)
        note = f"{ours[name] / bare:.0%} of bare numpy ({bare:,.0f}/s)"
        line(f"equipoise {name}", f"{ours[name]:,.0f}/s", note)
    for name, peer in (("mabwiser LinUCB", mabwiser_rate), ("river LinUCBDisjoint", river_rate)):
        rate = peer(x, reward, size)
        if rate is None:
            line(name, "not installed")
            continue
        ratios = ", ".join(f"{own / rate:.1f}x" for own in ours.values())
        line(name, f"{rate:,.0f}/s", f"ours: {ratios}; targets 1.5x mabwiser, 20x river")


def replay_rate(preset: str, refresh: int, x: np.ndarray, reward: np.ndarray, size: int) -> float:
    """Decisions and updates per second of the agent on a table of contexts and rewards."""
    rows, models = reward.shape
    rng = np.random.default_rng(5)
    agent = agent_of(x.shape[1], 4, models, preset)
    outputs = rng.normal(size=(size, 4))
    unit, routed = rng.integers(0, 2**62, rows), rng.integers(0, models, rows)
    blank, zeros = np.full(size, -1), np.zeros(size)
    ones, sent = np.ones(size, dtype=np.int64), np.ones(size, dtype=bool)

    def work() -> int:
        for start in range(0, rows, size):
            part = slice(start, start + size)
            decided = agent.decide(RequestBatch(unit[part], blank, zeros, x[part], routed[part]))
            earned = reward[np.arange(start, start + size), decided.model]
            agent.observe(
                OutcomeBatch(decided.number, decided.model, ones, sent, outputs, earned, zeros)
            )
            if start % refresh == 0:
                agent.refresh(review=False)
        return rows

    return best(work, 3)


def mabwiser_rate(x: np.ndarray, reward: np.ndarray, size: int) -> float | None:
    try:
        from mabwiser.mab import MAB, LearningPolicy
    except ImportError:
        return None
    models = reward.shape[1]
    mab = MAB(list(range(models)), LearningPolicy.LinUCB(alpha=1.0))
    mab.fit(list(range(models)), [0.5] * models, x[:models])

    def work() -> int:
        for start in range(0, len(x), size):
            part = x[start : start + size]
            arms = mab.predict(part)
            mab.partial_fit(arms, reward[np.arange(start, start + size), arms], part)
        return len(x)

    return best(work, 2)


def river_rate(x: np.ndarray, reward: np.ndarray, size: int) -> float | None:
    from river import bandit

    models, rows = reward.shape[1], 3000
    policy = bandit.LinUCBDisjoint(alpha=1.0, seed=1)
    arms = list(range(models))
    contexts = [dict(enumerate(row)) for row in x[:rows].tolist()]

    def work() -> int:
        for index, context in enumerate(contexts):
            arm = policy.pull(arms, context)
            policy.update(arm, context, reward[index, arm])
        return rows

    return best(work, 1)


def section_memory() -> None:
    print("Memory over a long stream (the log itself is not kept)")
    import resource

    agent = agent_of(16, 4, 6, store=ForgetfulStore())
    rng = np.random.default_rng(4)
    batch = requests(agent, rng, 1000)
    sizes = []
    for _ in range(5):
        for _ in range(2000):
            agent.observe(outcomes(agent, rng, agent.decide(batch)))
        sizes.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        state = len(agent.fold.to_bytes()) / 1024
        decided, events = agent.light.pending.next / 1e6, agent.light.next_seq / 1e6
        line(
            f"{decided:.1f}M decisions, {events:.1f}M events",
            f"{sizes[-1]:,.0f} MiB peak",
            f"state {state:,.0f} KiB",
        )


def section_help() -> None:
    command = [sys.executable, "-c", "from equipoise.replay.cli import main; main()", "--help"]
    times = []
    for _ in range(7):
        start = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        times.append(time.perf_counter() - start)
    print("Command line")
    line("equipoise --help, median of 7", f"{np.median(times):.3f} s", "target 0.3")


def section_plan() -> None:
    from equipoise.agent.planning.plan import make_plan
    from equipoise.agent.planning.problem import Problem
    from equipoise.agent.planning.request import read_request

    print("Plans from numbers, CPU seconds without start-up; bare: its rewards drawn, nothing else")
    rng = np.random.default_rng(0)
    for models in (2, 7, 17, 64):
        numbers = {"models": models, "traffic": 1e3, "reward_rate": 0.5, "effect": 0.05}
        problem = Problem.of_numbers(read_request(numbers))
        paths = 7 * max(40, min(720 // models, 110))

        def bare(models=models, paths=paths) -> None:
            chance = np.full((paths, models + 1), 1.0 / (models + 1))
            for _ in range(150):
                count = rng.multinomial(2000, chance)
                rng.binomial(count, 0.5)

        def spent(work: Callable[[], object]) -> float:
            times = []
            for _ in range(4):
                start = time.process_time()
                work()
                times.append(time.process_time() - start)
            return min(times[1:])

        own, least = spent(lambda problem=problem: make_plan(problem)), spent(bare)
        line(f"{models} models", f"{own:.2f} s", f"{own / least:.1f} x bare, target 1 s")


SECTIONS = {
    "decide": section_decide,
    "refresh": section_refresh,
    "updates": section_updates,
    "peers": section_peers,
    "plan": section_plan,
    "memory": section_memory,
    "help": section_help,
}

if __name__ == "__main__":
    for chosen in sys.argv[1:] or SECTIONS:
        SECTIONS[chosen]()
