"""Random experiments: no declaration, delivery or cap makes a certified sentence false, and no
recommendation leaves what is certified.

    python tests/statistical/certified_properties.py --cases 10000 --seed 0

A case draws models, ranges, meanings of a missing reward, sequences, policies, limits, drift,
deliveries and missing rewards that depend on the model and on the reward, runs the real agent, and
looks at every refresh:

- `interval`: certified values and contrasts hold the running average of what the requests that
  entered were worth (an undelivered draw keeps the worth it would have had);
- `sentence`: a model that is said to be best, or within epsilon of it, without a word on which
  requests, is so on all requests so far;
- `recommendation`: its value lies within the certified interval of its model, and no other model
  is certified to be better.

The first two may fail with probability delta = 0.01 a case by what they promise; bounded sequences
miss far less (docs/coverage.md), so that none of 10,000 is expected. The third may never fail. The
asymptotic sequence, which promises nothing at these sizes, takes part in the third alone.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from joblib import Parallel, delayed

from equipoise.agent.agent import Agent
from equipoise.agent.answers.status import State
from equipoise.agent.config import (
    BudgetConfig,
    CertifyConfig,
    ExperimentConfig,
    ModelConfig,
    PerUser,
    PolicyConfig,
    RewardConfig,
    SegmentBudget,
    SegmentConfig,
    UnitsConfig,
)
from equipoise.agent.features import FeatureSchema
from equipoise.store.batches import Closure, OutcomeBatch, RequestBatch, SimulationBatch
from equipoise.store.memory import MemoryStore

DELTA = 0.01
BATCHES, SIZE = 12, 90
ASSIGNMENTS = ("uniform", "neyman", "thompson", "top-two", "track-and-stop")
ESTIMATORS = ("ipw", "hierarchical", "doubly-robust", "representation-exp", "cvci", "grounded")
ROUNDING = 1e-9


@dataclass(frozen=True)
class World:
    """worth: (K, 2) chance of a good reward per model and kind of request; wave: (BATCHES,) added
    to all of them; lost: (K, 2) chance that a bad and a good reward never comes; failed: (K, 2)
    that the draw is not delivered, alike."""

    worth: np.ndarray
    wave: np.ndarray
    lost: np.ndarray
    failed: np.ndarray

    def chance(self, batch: int, kind: np.ndarray) -> np.ndarray:
        """(n, K) chance of a good reward."""
        return np.clip(self.worth[:, kind].T + self.wave[batch], 0.0, 1.0)


@dataclass
class Case:
    """What went wrong in one case, by kind; and what it was."""

    seed: int
    settings: ExperimentConfig
    faults: list[str] = field(default_factory=list)
    decided: bool = False
    named: bool = False


def draw_case(seed: int) -> tuple[ExperimentConfig, World, bool]:
    """Configuration, world, and whether alarms are acted on."""
    rng = np.random.default_rng([seed, 1])
    models = int(rng.integers(2, 5))
    low = float(rng.choice([0.0, 0.0, -3.0, 1.0]))
    high = low + float(rng.choice([1.0, 1.0, 4.0, 100.0]))
    missing = "worst-case" if rng.random() < 0.4 else low + (high - low) * float(rng.random())
    sequence = str(rng.choice(["bounded", "bounded", "per-model", "asymptotic"]))
    sticky = rng.random() < 0.15
    kind = (
        "none" if sticky else str(rng.choice(["none", "none", "segment", "user", "model", "all"]))
    )
    budget = BudgetConfig()
    if kind == "segment":
        end = {"low": 0.5} if rng.random() < 0.5 else {"high": 0.5}
        cap = int(rng.integers(20, 200))
        budget = BudgetConfig(
            segments=[SegmentBudget(name="s", column="a", max_requests=cap, **end)]
        )
    elif kind == "user":
        budget = BudgetConfig(per_user=PerUser(share=float(rng.choice([0.05, 0.2]))))
    elif kind == "all":
        budget = BudgetConfig(requests=int(rng.integers(50, 600)))
    caps = [
        int(rng.integers(30, 200)) if kind == "model" and m == 0 else None for m in range(models)
    ]
    rate = float(rng.choice([0.3, 0.6, 0.9]))
    settings = ExperimentConfig(
        name=f"case-{seed}",
        models=[ModelConfig(name=f"m{m}", max_requests=caps[m]) for m in range(models)],
        reward=RewardConfig(
            low=low, high=high, window=50.0, missing=missing, maximise=bool(rng.random() < 0.7)
        ),
        features=FeatureSchema.vectors(("a",), ("u",)),
        policy=PolicyConfig(
            assignment=str(rng.choice(ASSIGNMENTS)),
            rate=rate,
            estimator=str(rng.choice(ESTIMATORS)),
            delta=DELTA,
            epsilon=float(rng.choice([0.0, 0.0, 0.1])) * (high - low),
        ),
        budget=budget,
        certify=CertifyConfig(
            sequence=sequence,
            limits=str(rng.choice(["name", "freeze"])),
            segments=[SegmentConfig(name="one", column="a", low=0.5)] if rng.random() < 0.2 else [],
        ),
        units=UnitsConfig(ttl=3.0) if sticky else None,
    )
    # Half the worlds have models far apart, so that many cases are decided.
    worth = rng.beta(0.4, 0.4, (models, 2)) if rng.random() < 0.5 else rng.random((models, 2))
    wave = np.zeros(BATCHES)
    if sequence != "per-model" and rng.random() < 0.5:
        size = float(rng.uniform(0.1, 0.6))
        wave = size * (
            np.linspace(-0.5, 0.5, BATCHES)
            if rng.random() < 0.5
            else 0.5 * np.sin(np.arange(BATCHES) * rng.uniform(0.3, 1.5))
        )
    lost, failed = np.zeros((models, 2)), np.zeros((models, 2))
    if rng.random() < 0.6:
        lost = rng.random((models, 2)) * rng.choice([0.1, 0.6])
    if rng.random() < 0.5:
        failed = rng.random((models, 2)) * rng.choice([0.1, 0.5])
    return settings, World(worth, wave, lost, failed), bool(rng.random() < 0.5)


def run_case(seed: int) -> Case:
    settings, world, acts = draw_case(seed)
    rng = np.random.default_rng([seed, 2])
    case = Case(seed, settings)
    agent = Agent(settings, MemoryStore(), bytes(range(32)))
    reward, models = settings.reward, len(settings.models)
    scale, value = reward.high - reward.low, reward.missing_value
    if rng.random() < 0.5:
        agent.simulate(simulations(models, rng))
    means: list[np.ndarray] = []
    routed: list[np.ndarray] = []
    for batch in range(BATCHES):
        kind, at = (rng.random(SIZE) < 0.5).astype(int), np.full(SIZE, 10.0 * batch)
        users = rng.integers(0, 60, SIZE)
        # Users differ: those with low numbers ask mostly for the first kind.
        kind = np.where(rng.random(SIZE) < 0.5, (users < 30).astype(int), kind)
        requests = RequestBatch(
            unit=users,
            context=np.where(rng.random(SIZE) < 0.5, rng.integers(0, 20, SIZE), -1),
            at=at,
            x=kind[:, None].astype(float),
            routed=rng.integers(0, models, SIZE),
        )
        made = agent.decide(requests)
        chance = world.chance(batch, kind)
        good = rng.random((SIZE, models)) < chance
        # What a request is worth: reward, or the declared value with the chance of never coming.
        worth = chance
        if value is not None:
            rest = (value - reward.low) / scale
            stays = 1.0 - world.lost
            worth = chance * (stays[:, 1] + world.lost[:, 1] * rest)
            worth = worth + (1.0 - chance) * world.lost[:, 0] * rest
        means.append(reward.low + scale * worth)
        routed.append(requests.routed)
        index = np.arange(SIZE)
        got = good[index, made.model].astype(int)
        delivered = rng.random(SIZE) >= world.failed[made.model, got]
        comes = rng.random(SIZE) >= world.lost[made.model, got]
        served = np.where(delivered, made.model, requests.routed)
        got = good[index, served].astype(int)
        agent.observe(
            OutcomeBatch(
                number=made.number,
                served=served,
                attempt=np.ones(SIZE, dtype=np.int64),
                delivered=delivered,
                outputs=rng.normal(size=(SIZE, 1)) + made.model[:, None],
                reward=np.where(comes, reward.low + scale * got, np.nan),
                at=at,
            )
        )
        now = 10.0 * batch + (1000.0 if batch == BATCHES - 1 else 0.0)
        agent.expire(now)
        agent.refresh(now, review=acts)
        look(case, agent, np.vstack(means), np.concatenate(routed))
    return case


def simulations(models: int, rng: np.random.Generator) -> SimulationBatch:
    context = np.repeat(np.arange(20), models)
    model = np.tile(np.arange(models), 20)
    return SimulationBatch(
        context=context,
        model=model,
        x=(context[:, None] % 2).astype(float),
        outputs=rng.normal(size=(len(context), 1)) + model[:, None],
        cost=np.full(len(context), np.nan),
        at=np.zeros(len(context)),
    )


def look(case: Case, agent: Agent, means: np.ndarray, routed: np.ndarray) -> None:
    """What is wrong at one refresh. means: (n, K) worth of every request so far; routed: (n,)."""
    settings = case.settings
    models, scale = len(settings.models), settings.reward.high - settings.reward.low
    certified, sign = agent.answers.certified(), agent.answers.sign
    slack = ROUNDING * scale
    answer = agent.answers.recommendation()
    if np.isfinite(answer.value):
        m = agent.models.index(answer.model)
        inside = certified.lower[m] - slack <= answer.value <= certified.upper[m] + slack

        beaten = certified.contrasts[:models, m] if sign > 0 else certified.contrasts[m, :models]
        if not inside:
            case.faults.append(f"recommendation: {answer.model} at {answer.value} outside")
        if (beaten > slack).any():
            case.faults.append(f"recommendation: {answer.model} is certified worse")
    if settings.certify.sequence == "asymptotic":
        return
    rows, every = entered(agent, len(means))
    if not len(rows):
        return
    whole = np.column_stack([means, means[np.arange(len(means)), routed]])
    truth = unit_means(agent, rows, whole).mean(axis=0)
    low, high = certified.lower[: models + 1], certified.upper[: models + 1]
    active = np.append(agent.rule.active, True)
    if ((low > truth + slack) | (high < truth - slack))[active].any():
        case.faults.append(f"interval: {low} {high} without {truth}")
    contrasts = certified.contrasts[: models + 1, : models + 1]
    both = active[:, None] & active[None, :]
    if (both & (contrasts > truth[:, None] - truth[None, :] + slack)).any():
        case.faults.append("interval: a contrast without the truth")
    status = agent.answers.status()
    named = bool(certified.about)
    case.named |= named
    if status.state is State.DECIDED:
        case.decided = True
        if not named:
            of_all = sign * unit_means(agent, every, whole).mean(axis=0)[:models][agent.rule.active]
            names = [n for n, on in zip(agent.models, agent.rule.active, strict=True) if on]
            best = of_all[names.index(status.models[0])]
            if best < of_all.max() - settings.policy.epsilon - slack:
                case.faults.append(f"sentence: {status.sentence} of {of_all}")


def entered(agent: Agent, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Requests that are in the certified sums of the era, and all of the era up to the last."""
    table, view = agent.light.pending, agent.answers.view()
    assert table.base == 0
    rows = slice(0, min(view.watermark, count))
    own = table.leader[rows] == np.arange(rows.stop)
    era = table.era[rows] == agent.rule.era
    enters = table.certifiable[rows] & era
    if agent.config.certify.limits == "freeze":
        limited = np.isin(table.closed_by[rows], (Closure.SEGMENT, Closure.USER)) & own & era
        enters &= ~np.logical_or.accumulate(limited)
    found = np.flatnonzero(enters)
    last = found[-1] + 1 if len(found) else 0
    return found, np.flatnonzero((own & era)[:last])


def unit_means(agent: Agent, leaders: np.ndarray, worth: np.ndarray) -> np.ndarray:
    """(n, A) mean worth over the requests of each unit; a request alone is its own."""
    leader = agent.light.pending.leader[: len(worth)]
    count = np.bincount(leader, minlength=len(worth))
    total = np.zeros_like(worth)
    np.add.at(total, leader, worth)
    return total[leaders] / count[leaders, None]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    kinds, decided, named = Counter[str](), 0, 0
    seeds = range(options.seed, options.seed + options.cases)
    for start in range(0, len(seeds), 500):
        block = Parallel(n_jobs=options.jobs)(
            delayed(run_case)(s) for s in seeds[start : start + 500]
        )
        for case in block:
            decided, named = decided + case.decided, named + case.named
            for kind in {fault.partition(":")[0] for fault in case.faults}:
                kinds[kind] += 1
                print(f"case {case.seed}: {case.faults[0]}", flush=True)
        print(
            f"{start + len(block):,} cases: {dict(kinds) or 'no fault'}, {decided:,} decided, "
            f"{named:,} with the requests named",
            file=sys.stderr,
            flush=True,
        )
    print(
        f"{len(seeds):,} cases, {decided:,} decided, {named:,} named: {dict(kinds) or 'no fault'}"
    )
    return 1 if kinds else 0


if __name__ == "__main__":
    sys.exit(main())
