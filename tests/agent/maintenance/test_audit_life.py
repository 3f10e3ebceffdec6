"""Any life an experiment can have leaves a log that audits clean, to the last reason for a cap.

Each life is drawn from a seed: models added and retired, versions replaced, eras by hand, pauses,
observing, budgets, caps per model, segment and user, exclusions, sticky units, restarts, expiry,
checkpoints and retention, in any order. There is no false alarm to expect: an audit is exact.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from traffic import KEY, MODELS, Traffic, config

from equipoise.agent.agent import Agent
from equipoise.agent.config import (
    BudgetConfig,
    ExperimentConfig,
    ModelConfig,
    PerUser,
    PolicyConfig,
    SegmentBudget,
    UnitsConfig,
)
from equipoise.agent.maintenance.audit import audit
from equipoise.store.batches import text_keys
from equipoise.store.sqlite import SqliteStore

USERS = [f"u{index}" for index in range(25)]
CHANGES = msgspec.structs.replace


def beginning(rng: np.random.Generator) -> ExperimentConfig:
    units = UnitsConfig(ttl=6.0) if rng.random() < 0.4 else None
    budget = BudgetConfig(
        requests=int(rng.integers(20, 150)) if rng.random() < 0.7 else None,
        segments=[SegmentBudget(name="left", column="a", high=0.1, max_requests=20)]
        if units is None and rng.random() < 0.6
        else [],
        per_user=PerUser(share=0.2) if units is None and rng.random() < 0.6 else None,
        money=5.0 if rng.random() < 0.2 else None,
    )
    models = [
        ModelConfig(name=name, price=0.01, max_requests=30 if rng.random() < 0.3 else None)
        for name in MODELS
    ]
    policy = PolicyConfig(
        assignment=str(rng.choice(["uniform", "top-two", "thompson"])),
        rate=0.3,
        exclude=rng.choice(USERS, 2, replace=False).tolist() if rng.random() < 0.5 else [],
    )
    return config(models=models, budget=budget, policy=policy, units=units)


def other(rng: np.random.Generator, settings: ExperimentConfig) -> ExperimentConfig:
    """A change that a restart takes over."""
    kind = rng.integers(6)
    models = list(settings.models)
    if kind == 0 and len(models) < 5:
        models.append(ModelConfig(name=f"new{len(models)}", price=0.02))
    elif kind == 1:
        at = int(rng.integers(len(models)))
        left = sum(not model.retired for model in models)
        if models[at].retired or left > 2:
            models[at] = CHANGES(models[at], retired=not models[at].retired)
    elif kind == 2:
        models[0] = CHANGES(models[0], version=str(rng.integers(1000)))
    elif kind == 3:
        users = rng.choice(USERS, 3, replace=False).tolist()
        return CHANGES(settings, policy=CHANGES(settings.policy, exclude=users))
    elif kind == 4:
        budget = CHANGES(settings.budget, requests=int(rng.integers(20, 250)))
        return CHANGES(settings, budget=budget)
    else:
        models[-1] = CHANGES(models[-1], max_requests=int(rng.integers(10, 100)))
    return CHANGES(settings, models=models)


class Life:
    def __init__(self, seed: int, path: Path) -> None:
        self.rng, self.path = np.random.default_rng(seed), path
        self.traffic = Traffic(np.random.default_rng(seed + 1000))
        self.settings = beginning(self.rng)
        self.store = SqliteStore(path)
        self.agent = Agent(self.settings, self.store, KEY)
        self.agent.simulate(self.traffic.simulations())
        self.removed = 0

    def traffic_comes(self) -> None:
        rng, size = self.rng, int(self.rng.integers(1, 40))
        asked = self.traffic.requests(size)
        eligible = None
        if rng.random() < 0.3:
            eligible = rng.random((size, len(self.settings.models))) < 0.7
        unit = text_keys("unit", rng.choice(USERS, size).tolist())
        decided = self.agent.decide(replace(asked, unit=unit, eligible=eligible))
        outcomes = self.traffic.outcomes(decided)
        outcomes.reward[rng.random(size) < 0.2] = np.nan
        self.agent.observe(outcomes)
        if rng.random() < 0.3:
            self.agent.ingest(self.traffic.observations(3))

    def something_happens(self) -> None:
        agent, now = self.agent, self.traffic.at
        kind = self.rng.integers(9)
        if kind == 0:
            agent.refresh(now)
        elif kind == 1:
            agent.controls.pause(
                "somebody", now
            ) if agent.state.paused is None else agent.controls.resume(now)
        elif kind == 2:
            agent.state.observing_only = not agent.state.observing_only
        elif kind == 3:
            agent.controls.open_era("by hand", now)
        elif kind == 4:
            agent.controls.set_budget(
                int(self.rng.integers(10, 200)) if self.rng.random() < 0.7 else None
            )
        elif kind == 5:
            self.traffic.at += 150.0
            agent.expire(self.traffic.at)
        elif kind == 6:
            agent.checkpoint(now)
        elif kind == 7:
            agent.controls.review(now)
        else:
            # A log that was cut short takes no new model.
            self.restart(self.settings if self.removed else other(self.rng, self.settings))

    def restart(self, settings: ExperimentConfig) -> None:
        self.store.close()
        self.store = SqliteStore(self.path)
        self.agent = Agent(settings, self.store, KEY, at=self.traffic.at)
        self.settings = settings

    def cut(self) -> None:
        self.store.keep_base(self.agent.light.next_seq, self.agent.fold.to_bytes(), self.traffic.at)
        self.traffic_comes()
        cut = self.store.truncation.trim(self.traffic.at, self.traffic.at, None)
        assert cut is not None
        self.removed += cut.rows


@pytest.mark.parametrize("seed", range(12))
def test_a_life_audits_clean(seed: int, tmp_path: Path) -> None:
    life = Life(seed, tmp_path / "log.db")
    for step in range(40):
        if step == 30 and seed % 3 == 2:
            life.cut()
        life.traffic_comes()
        if step % 2:
            life.something_happens()
    life.store.close()
    with SqliteStore(life.path, read_only=True) as reader:
        found = audit(reader, life.settings, KEY)
    assert found.faults == []
    assert found.begins == life.removed
    assert (found.chained_from, found.chained_rows) == (found.begins, found.rows)
    assert found.capped == sum(found.closed_by.values()) > 0
    unsure = [line for line in found.unproven if "served as routed" in line]
    # What cannot be recomputed is what the declaration says: money, or counts of removed rows.
    assert bool(unsure) <= (life.settings.budget.money is not None or life.removed > 0)
