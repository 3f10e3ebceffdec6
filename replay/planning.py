"""Plans from benchmarks, and the planner's promise against what replays needed.

`of_benchmark` says what a benchmark and a world are to a planner: values, variances, prices,
today's routing. `validate` plans experiments from true values and runs each once: a benchmark cut
to a few models, a world, a policy, a sequence and a goal, until the goal is certified. What is
averaged is the ratio of the realised to the planned median number of requests, and how often the
realised number lies in the planned 80% band.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table

from equipoise.agent.agent import Agent
from equipoise.agent.config import SequenceName
from equipoise.agent.errors import AgentError, PlanError
from equipoise.agent.inference.certificate import Sequence as CertifiedSequence
from equipoise.agent.planning.problem import Problem
from equipoise.agent.planning.request import read_request
from equipoise.agent.planning.simulation.forward import Design, simulate
from equipoise.agent.planning.simulation.paths import ASSIGNMENTS
from equipoise.policies.registry import policy
from equipoise.replay.benchmarks import Benchmark, has_own_rewards, load_from_texts
from equipoise.replay.harness.stream import (
    StreamSettings,
    as_assigned,
    experiment,
    play,
    stream_key,
)
from equipoise.replay.harness.sweep import show_progress
from equipoise.replay.worlds import Hidden, World, WorldOptions
from equipoise.replay.worlds.options import UNCHANGED_WORLD, parse_options
from equipoise.store.batches import DecisionBatch, Floats, Ints, OutcomeBatch
from equipoise.store.memory import MemoryStore


def restricted(benchmark: Benchmark, models: Sequence[int] | Ints) -> Benchmark:
    """The benchmark with these models only, in this order."""
    indices = list(models)
    return replace(
        benchmark,
        models=tuple(benchmark.models[index] for index in indices),
        outputs=benchmark.outputs[:, indices],
        outcome=benchmark.outcome[:, indices],
        cost=benchmark.cost[:, indices],
    )


def certainty(
    world: World, settings: StreamSettings, policies: Sequence[str], own: str | None
) -> dict[str, Any]:
    """Randomized requests by which half of such experiments certify, as plans foresee it.

    policies: of the replay; the first one whose shares a plan knows is taken. own: the benchmark,
    where its rewards are left as they are. median: None where most never end. command: of a plan
    for the same difference.
    """
    known = [name for name in policies if name in ASSIGNMENTS] or ["uniform"]
    design = replace(
        design_of(world, known[0], settings.sequence, settings.exp_rate, 0.0),
        delta=settings.delta,
        epsilon=settings.epsilon,
    )
    values = np.sort(world.values)[::-1]
    median = np.inf
    if values[0] - values[1] + settings.epsilon > 0:
        ends = simulate(design, np.random.default_rng(SEED))
        median = float(np.median(ends.requests)) * settings.exp_rate
    command = f"equipoise plan --models {len(values)} --reward-rate {values[1]:.2g}"
    command += f" --effect {max(values[0] - values[1], 0.001):.2g} --traffic 1000"
    if own is None and settings.epsilon:
        command += f" --epsilon {settings.epsilon:g}"
    if own is not None:
        command = f"equipoise plan --benchmark {shlex.quote(own)} --traffic 1000"
    return {
        "policy": known[0],
        "median": median if np.isfinite(median) else None,
        "command": command,
    }


def _is_binary(world: World) -> bool:
    """Whether rewards are 0 or 1."""
    kind, means = world.options.reward, world.means
    return kind == "bernoulli" or (kind == "exact" and bool(((means == 0) | (means == 1)).all()))


def reward_variances(world: World) -> Floats:
    """(K,) variance of a reward of each model over contexts, types and noise."""
    mean = world.means
    total: Floats = (world.rewards.variance(mean) + mean**2).mean(axis=(0, 1)) - mean.mean(
        axis=(0, 1)
    ) ** 2
    return total


def prices(benchmark: Benchmark) -> Floats:
    """(K,) mean cost of a request in USD, NaN where none is known."""
    finite = np.isfinite(benchmark.cost)
    total = np.where(finite, benchmark.cost, 0.0).sum(axis=0)
    rows = finite.sum(axis=0)
    result: Floats = np.full(len(total), np.nan)
    np.divide(total, rows, out=result, where=rows > 0)
    return result


def attainable_share(world: World) -> float:
    """Share of a reward's variance that a linear scorer of context and outputs explains at best.

    Of the variance within a model, averaged over models: what replays (SIM) could take out of the
    certified interval once the scorer is learned.
    """
    contexts, models = world.outputs.shape[:2]
    x = np.repeat(world.benchmark.x[:, None, :], models, axis=1)
    features = np.concatenate([x, world.outputs], axis=2)
    features = features - features.mean(axis=0)
    target = world.means.mean(axis=1) - world.means.mean(axis=(0, 1))
    flat, wanted = features.reshape(contexts * models, -1), target.reshape(-1)
    fitted = flat @ np.linalg.lstsq(flat, wanted, rcond=1e-9)[0]
    residual = ((wanted - fitted) ** 2).mean()
    share = ((wanted**2).mean() - residual) / reward_variances(world).mean()
    return float(np.clip(share, 0.0, 0.95))


def of_benchmark(name: str, world_options: list[str], fields: Mapping[str, Any]) -> Problem:
    """The problem of a benchmark (NAME or NAME:PATH) in a world, from its true values.

    given: fields of a plan's request; models, rewards and prices are the benchmark's.
    Raises BenchmarkError, WorldError or PlanError.
    """
    benchmark = load_from_texts(name, [])
    if has_own_rewards(name):
        options = parse_options([*UNCHANGED_WORLD, *world_options])
        world = World(benchmark, replace(options, alpha=1.0, confounding=0.0))
    else:
        world = World(benchmark, parse_options(world_options))
    fixed = {"models": len(benchmark.models), "reward_low": 0.0, "reward_high": 1.0}
    own = {*fixed, "reward_rate", "reward_sd", "price", "prices", "maximise"}
    own |= {"names", "mix", "candidate"}
    refused = sorted(set(fields) & own)
    if refused:
        raise PlanError(refused[0], fields[refused[0]], f"none: {benchmark.name} has its own")
    request = read_request({**fixed, **fields})
    # Between the two that are hardest to tell apart.
    worth = float(np.sort(world.values)[-2:].mean())
    rated, missing = Problem.of_missing(request, len(benchmark.models), worth)
    return Problem(
        source="benchmark",
        request=request,
        names=benchmark.models,
        values=world.values,
        variances=None if _is_binary(world) else reward_variances(world),
        rated=rated,
        missing=missing,
        prices=prices(benchmark),
        routing=world.routing_value,
        scale=1.0,
        candidates=len(benchmark.models) + 1,
        explained=float(fields.get("explained", 0.0)),
        attainable=attainable_share(world),
        read=benchmark.x.shape[1] + benchmark.outputs.shape[2],
    )


RATIO, BAND = (0.8, 1.25), (0.7, 0.9)
"""What is promised: of the median ratio, and of the share inside the stated 80% band."""
OPENING, CLOSING = "<!-- validation: written by a command -->", "<!-- end of validation -->"

POLICIES = ("uniform", "top-two", "track-and-stop", "neyman")
SEQUENCES: tuple[SequenceName, ...] = ("bounded", "per-model", "asymptotic", "bounded")
WIDTH_EVERY = 5
"""Every fifth experiment aims at a half-width, the others at a decision."""
PATHS = 300
LONGEST = 12_000
"""Experiments planned to need more requests in the median are drawn anew: they take too long."""
PATIENCE = 5.0
"""A replay gives up at this many times the planned median: its ratio is then above that."""
LOOKS = 50
"""Refreshes, and so looks, up to the planned median."""


@dataclass(frozen=True, slots=True)
class Planned:
    """An experiment and what was planned for it, in requests that are randomized.

    replays: whether the agent has replays (SIM) and `hierarchical` to predict rewards with, which
    the plan then credits with the share of variance that a linear scorer could explain at best.
    width: half-width goal on the [0, 1] scale, None for a decision. effect: best less second.
    median, low, high: of the requirement; undecided: share of paths that never ended.
    """

    benchmark: str
    models: tuple[int, ...]
    alpha: float
    policy: str
    sequence: SequenceName
    rate: float
    width: float | None
    effect: float
    replays: bool
    seed: int
    median: float
    low: float
    high: float
    undecided: float


@dataclass(frozen=True, slots=True)
class Realised:
    """What a replay needed: randomized requests, inf where it gave up; right: whether the decided
    model was the best one."""

    planned: Planned
    needed: float
    right: bool | None

    @property
    def ratio(self) -> float:
        return self.needed / self.planned.median

    @property
    def inside(self) -> bool:
        """Whether the realised number lies in the planned 80% band."""
        return self.planned.low <= self.needed <= self.planned.high


def planned_experiments(
    benchmark: Benchmark, count: int, seed: int, replays: bool = False
) -> Iterator[Planned]:
    """`count` experiments on a benchmark, the same for the same seed."""
    rng = np.random.default_rng([seed, *benchmark.name.encode()])
    index = 0
    while index < count:
        drawn = _drawn(benchmark, index, rng, replays)
        if drawn is not None:
            yield drawn
            index += 1


def _drawn(
    benchmark: Benchmark, index: int, rng: np.random.Generator, replays: bool
) -> Planned | None:
    size = int(rng.integers(2, 5))
    models = tuple(rng.choice(len(benchmark.models), size=size, replace=False).tolist())
    alpha, rate = float(rng.choice([0.0, 0.5, 1.0])), float(rng.choice([0.3, 0.6, 1.0]))
    width = float(rng.uniform(0.08, 0.2)) if index % WIDTH_EVERY == WIDTH_EVERY - 1 else None
    world = World(restricted(benchmark, models), WorldOptions(alpha=alpha))
    values = np.sort(world.values)[::-1]
    effect = float(values[0] - values[1])
    name, sequence = POLICIES[index % len(POLICIES)], SEQUENCES[index // 4 % len(SEQUENCES)]
    if width is None and effect < 0.04:
        return None
    explained = attainable_share(world) if replays else 0.0
    ends = simulate(design_of(world, name, sequence, rate, explained), rng, width=width)
    if not np.median(ends.requests) <= LONGEST:
        return None
    low, median, high = np.quantile(ends.requests, [0.1, 0.5, 0.9], method="nearest") * rate
    lost = float(np.isinf(ends.requests).mean())
    seed = int(rng.integers(2**31))
    place = benchmark.name, models, alpha, name, sequence, rate, width, effect, replays, seed
    return Planned(*place, float(median), float(low), float(high), lost)


def design_of(
    world: World, assignment: str, sequence: str, rate: float, explained: float
) -> Design:
    """PATHS experiments on a world's true values."""
    models, paths = len(world.models), PATHS
    return Design(
        assignment=assignment,
        sequence=CertifiedSequence(sequence),
        values=np.repeat(world.values[None, :], paths, axis=0),
        variances=np.repeat(reward_variances(world)[None, :], paths, axis=0),
        explained=np.full(paths, explained),
        rate=np.full(paths, rate),
        floor=np.full(paths, 0.1 / models),
        binary=_is_binary(world),
        costs=np.full(models, np.nan),
        lost=np.zeros(models),
        candidates=models + 1,
    )


def realise(benchmark: Benchmark, planned: Planned) -> Realised:
    """Run one planned experiment with the agent until its goal is certified."""
    world = World(restricted(benchmark, planned.models), WorldOptions(alpha=planned.alpha))
    settings = StreamSettings(
        requests=LONGEST, exp_rate=planned.rate, obs=0, sequence=planned.sequence
    )
    rule = policy(planned.policy)
    family = "hierarchical" if planned.replays else "ipw"
    config = experiment(world, settings, rule.gate.name, rule.assignment.name, family)
    agent = Agent(config, MemoryStore(), stream_key(planned.seed))
    if planned.replays:
        agent.simulate(world.simulations())
    rng = np.random.default_rng(planned.seed)
    batch = max(int(planned.median / planned.rate / LOOKS), 10)
    most = math.ceil(PATIENCE * planned.median / planned.rate)
    traffic = (world.requests(batch, rng, first=first) for first in range(0, most, batch))

    def answer(hidden: Hidden, decisions: DecisionBatch) -> OutcomeBatch:
        return as_assigned(decisions, *world.serve(hidden, decisions.model, rng))

    for _ in play(agent, traffic, answer):
        done, right = _reached(agent, world, planned.width)
        if done:
            return Realised(planned, float(agent.light.randomized), right)
    return Realised(planned, np.inf, None)


def _reached(agent: Agent, world: World, width: float | None) -> tuple[bool, bool | None]:
    if width is None:
        winner = agent.answers.certified_winner()
        best = world.models[int(np.argmax(world.values))]
        return winner is not None, None if winner is None else winner == best
    lower = agent.answers.certified().contrasts
    means = agent.answers.estimates(["ipw"])["ipw"].values
    order = np.argsort(-np.where(np.isfinite(means), means, -np.inf))
    a, b = int(order[0]), int(order[1])
    return -(lower[a, b] + lower[b, a]) / 2.0 <= width, None


_CUTS: tuple[tuple[str, Callable[[Realised], str]], ...] = (
    ("benchmark", lambda each: each.planned.benchmark),
    ("policy", lambda each: each.planned.policy),
    ("sequence", lambda each: each.planned.sequence),
    ("replays", lambda each: "with" if each.planned.replays else "without"),
    ("goal", lambda each: "decision" if each.planned.width is None else "half-width"),
)


def rows(replays: Sequence[Realised]) -> list[dict[str, Any]]:
    """One row for all, then one per value of each cut."""
    result = [_row("all", "", replays)]
    for name, key in _CUTS:
        result.extend(
            _row(name, value, [each for each in replays if key(each) == value])
            for value in dict.fromkeys(map(key, replays))
        )
    return result


def _row(cut: str, value: str, replays: Sequence[Realised]) -> dict[str, Any]:
    ratios = np.array([each.ratio for each in replays])
    low, median, high = np.quantile(ratios, [0.1, 0.5, 0.9], method="nearest")
    decided = [each.right for each in replays if each.right is not None]
    return {
        "cut": cut,
        "value": value,
        "experiments": len(replays),
        "ratio": float(median),
        "ratio_low": _number(float(low)),
        "ratio_high": _number(float(high)),
        "inside": float(np.mean([each.inside for each in replays])),
        "unfinished": int(np.isinf(ratios).sum()),
        "wrong": int(len(decided) - sum(decided)),
    }


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None


def markdown(table: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| | experiments | realised / planned: median (10% to 90%) | inside the 80% band |"
        " gave up | wrong |",
        "|---|---|---|---|---|---|",
    ]
    for row in table:
        name = row["cut"] if not row["value"] else f"{row['cut']}: {row['value']}"
        high = "not reached" if row["ratio_high"] is None else f"{row['ratio_high']:.2f}"
        lines.append(
            f"| {name} | {row['experiments']} | {row['ratio']:.2f} ({row['ratio_low']:.2f} to"
            f" {high}) | {row['inside']:.0%} | {row['unfinished']} | {row['wrong']} |"
        )
    return "\n".join(lines) + "\n"


def write_into(path: Path, table: str) -> None:
    """Put a table between the markers of a page, or make a page of it.

    Raises AgentError where the file exists and has no markers: it is not ours to overwrite.
    """
    block = f"{OPENING}\n\n{table}\n{CLOSING}"
    if not path.exists():
        path.write_text(block + "\n", encoding="utf-8")
        return
    text = path.read_text(encoding="utf-8")
    before, opened, rest = text.partition(OPENING)
    _, closed, after = rest.partition(CLOSING)
    if not (opened and closed):
        raise AgentError(f"{path} has no line {OPENING!r} to put the table after")
    path.write_text(before + block + after, encoding="utf-8")


SEED = 7
HELPED = 3


def validate(benchmarks: Sequence[str], count: int, out: Path | None, as_json: bool) -> None:
    """Plan `count` experiments on each benchmark (NAME or NAME:PATH), run them, print a table.

    A third as many again are planned with replays.

    out: a page to put the Markdown table into. Raises BenchmarkError or AgentError.
    """
    loaded = [load_from_texts(name, []) for name in benchmarks]
    replays: list[Realised] = []
    with show_progress((count + max(count // HELPED, 1)) * len(loaded)) as advance:
        advance(0)
        for benchmark in loaded:
            plans = planned_experiments(benchmark, count, SEED)
            helped = planned_experiments(benchmark, max(count // HELPED, 1), SEED + 1, True)
            for planned in chain(plans, helped):
                replays.append(realise(benchmark, planned))
                advance(len(replays))
    table = rows(replays)
    if out is not None:
        write_into(out, markdown(table))
    if as_json:
        runs = [{**asdict(each.planned), "needed": each.needed} for each in replays]
        print(msgspec.json.encode({"rows": table, "runs": runs}).decode())
        return
    grid = Table("", "experiments", "realised / planned", "inside 80% band", "gave up", "wrong")
    for row in table:
        grid.add_row(
            f"{row['cut']} {row['value']}",
            str(row["experiments"]),
            f"{row['ratio']:.2f}",
            f"{row['inside']:.0%}",
            str(row["unfinished"]),
            str(row["wrong"]),
        )
    Console().print(grid)
