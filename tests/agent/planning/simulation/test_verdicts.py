"""Shares of experiments that end in yes, no, or neither, against experiments run by an agent."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from traffic import config

from equipoise.agent.agent import Agent
from equipoise.agent.config import ModelConfig, PolicyConfig, RewardConfig
from equipoise.agent.features import FeatureSchema
from equipoise.agent.inference.certificate import Sequence
from equipoise.agent.planning.problem import Problem
from equipoise.agent.planning.request import read_request
from equipoise.agent.planning.simulation.verdicts import verdicts
from equipoise.agent.planning.tables import Tables
from equipoise.store.batches import OutcomeBatch, RequestBatch
from equipoise.store.memory import MemoryStore

MODELS, RATE, BASE, DIFFERENCE = 2, 0.8, 0.4, 0.3
LOOKS = (100, 160, 220, 300, 400)
RUNS = 40


def lived(values, rng):
    """One experiment of the real agent: by each look "yes", "no" or "", as its certifier says it.

    values: (K,) chances of a reward; the model asked about is the first.
    """
    settings = config(
        models=[ModelConfig(name=f"m{index}") for index in range(len(values))],
        features=FeatureSchema.vectors((), ()),
        policy=PolicyConfig(assignment="uniform", rate=RATE, estimator="ipw"),
        reward=RewardConfig(window=10.0),
    )
    agent = Agent(settings, MemoryStore(), rng.bytes(32))
    said, before, found = [], 0, ""
    for look in LOOKS:
        n, before = look - before, look
        unit, zeros = rng.integers(0, 2**62, n), np.zeros(n, dtype=np.int64)
        at, x = np.full(n, float(look)), np.zeros((n, 0))
        decided = agent.decide(RequestBatch(unit=unit, context=zeros, at=at, x=x, routed=zeros))
        reward = (rng.random(n) < np.array(values)[decided.model]).astype(float)
        ones, y = np.ones(n, dtype=np.int64), np.zeros((n, 0))
        agent.observe(OutcomeBatch(decided.number, decided.model, ones, ones > 0, y, reward, at))
        agent.refresh(float(look))
        certified = agent.answers.certified()
        better = agent.answers.certified_winner() == "m0"
        # The upper end of the lead over m is minus the lower end of m's lead over it.
        not_by_as_much = (certified.contrasts[1 : len(values), 0] > -DIFFERENCE).any()
        if not found:
            found = "no" if not_by_as_much else "yes" if better else ""
        said.append(found)
    return said


def planned(lead, paths=1500, looks=LOOKS):
    fields = {"models": MODELS, "traffic": 1.0, "reward_rate": BASE, "effect": DIFFERENCE}
    problem = Problem.of_numbers(read_request({**fields, "rate": RATE}))
    case = Tables(problem).base(lead)
    design = problem.design("uniform", Sequence.BOUNDED, [case], paths)
    return verdicts(design, 0, DIFFERENCE, looks, len(looks) - 1, np.random.default_rng(5))


@pytest.mark.parametrize(("lead", "seed"), [(DIFFERENCE, 1), (0.0, 2)])
def test_as_many_experiments_end_in_yes_and_in_no_as_an_agent_s_do(lead, seed):
    """40 experiments of the agent at five looks against 1,500 simulated ones, where B is better by
    D and where it is equal: each of ten shares of each answer is held by Fisher's exact test at
    0.001, so a right planner fails with probability below 0.02; it is seeded."""
    rng = np.random.default_rng(seed)
    found = np.array([lived([BASE + lead, BASE], rng) for _ in range(RUNS)])
    simulated = planned(lead)
    for answer, shares in (("yes", simulated.yes), ("no", simulated.no)):
        counts = (found == answer).sum(axis=0)
        for count, share in zip(counts.tolist(), shares.tolist(), strict=True):
            many = round(share * 1500)
            table = [[count, RUNS - count], [many, 1500 - many]]
            assert stats.fisher_exact(table).pvalue > 0.001, (answer, counts, shares)
    answered = simulated.yes if lead else simulated.no
    assert ((answered > 0.2) & (answered < 0.8)).any(), "the looks lie where it is settled"


def test_the_first_answer_ends_an_experiment_and_no_outweighs_yes():
    """Of a model that leads by half of D both become certain; which is first is chance."""
    said = planned(DIFFERENCE / 2, paths=300, looks=(300, 600, 1200, 2400, 4800, 9600))
    assert (said.yes + said.no <= 1.0 + 1e-12).all()
    assert (np.diff(said.yes) >= 0.0).all()
    assert (np.diff(said.no) >= 0.0).all()
    assert min(said.yes[-1], said.no[-1]) > 0.1
    assert said.yes[-1] + said.no[-1] == pytest.approx(1.0)
    once = planned(DIFFERENCE / 2, paths=300, looks=(9600,))
    assert (once.yes.tolist(), once.no.tolist()) == ([0.0], [1.0])
