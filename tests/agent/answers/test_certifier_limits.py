"""A limit that closes a part of the traffic: what is certified says what it is about.

Half the requests are of a segment in which the first model is worth .95, on the others .40; the
second is worth .60 on both. On the traffic the first is better, .675; on what a limit of the
segment leaves open the second is.
"""

from __future__ import annotations

import numpy as np
import pytest
from traffic import KEY

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
)
from equipoise.agent.features import FeatureSchema
from equipoise.agent.inference.certificate import Sequence
from equipoise.agent.maintenance.audit import audit
from equipoise.store.batches import Closure, OutcomeBatch, RequestBatch, text_keys
from equipoise.store.memory import MemoryStore

GOOD = SegmentBudget(name="good", column="a", low=0.5, max_requests=300)
WORTH = np.array([[0.40, 0.60], [0.95, 0.60]])
NAMED = "on requests that were still open to the experiment"


def settings(budget, sequence="bounded", limits="name", segments=(), **policy):
    return ExperimentConfig(
        name="limits",
        models=[ModelConfig(name="m0"), ModelConfig(name="m1")],
        features=FeatureSchema.vectors(("a",), ()),
        reward=RewardConfig(low=0.0, high=1.0),
        policy=PolicyConfig(**{"assignment": "uniform", "rate": 0.8, "estimator": "ipw", **policy}),
        budget=budget,
        certify=CertifyConfig(sequence=sequence, limits=limits, segments=list(segments)),
    )


def run(config, requests=4000, seed=1, review=False, users=None, size=200, agent=None):
    rng = np.random.default_rng(seed)
    agent = agent or Agent(config, MemoryStore(), KEY)
    for start in range(0, requests, size):
        good = rng.random(size) < 0.5
        unit = rng.integers(0, 2**60, size) if users is None else rng.integers(0, users, size)
        made = agent.decide(
            RequestBatch(
                unit=unit,
                context=np.full(size, -1),
                at=np.full(size, float(start)),
                x=good[:, None].astype(float),
                routed=rng.integers(0, 2, size),
            )
        )
        worth = WORTH[good.astype(int), made.model]
        agent.observe(
            OutcomeBatch(
                number=made.number,
                served=made.model,
                attempt=np.ones(size, dtype=np.int64),
                delivered=np.ones(size, dtype=bool),
                outputs=np.zeros((size, 0)),
                reward=(rng.random(size) < worth).astype(float),
                at=np.full(size, float(start)),
            )
        )
        agent.refresh(float(start), review=review)
    return agent


def test_without_a_limit_nothing_is_named():
    agent = run(settings(BudgetConfig()))
    assert agent.answers.certified().limited == agent.answers.certified().closed == 0
    assert NAMED not in agent.answers.status().sentence + agent.answers.recommendation().sentence


def test_every_sentence_names_what_was_still_open():
    """The estimand is that of the rows: the mean over requests that were open when they came."""
    agent = run(settings(BudgetConfig(segments=[GOOD])))
    certified, table = agent.answers.certified(), agent.light.pending
    rows = slice(0, table.size)
    limited = table.closed_by[rows] == Closure.SEGMENT
    last = np.flatnonzero(table.certifiable[rows])[-1]
    assert certified.limited == np.count_nonzero(limited[:last]) > 1000
    open_rows = table.certifiable[rows]
    truth = WORTH[table.x[rows][open_rows, 0].astype(int)].mean(axis=0)
    assert truth[1] > truth[0]
    assert (certified.lower[:2] <= truth).all()
    assert (certified.upper[:2] >= truth).all()
    for sentence in (agent.answers.status().sentence, agent.answers.recommendation().sentence):
        assert f"{NAMED} ({certified.limited:,} were closed by limits" in sentence
    assert audit(agent.store, agent.config, KEY).clean


def test_a_new_era_counts_what_was_closed_anew():
    config = settings(BudgetConfig(segments=[GOOD]))
    agent = run(config)
    closed_before = agent.answers.certified().limited
    since = agent.light.pending.next
    agent.controls.open_era("the traffic is another one")
    run(config, 1000, seed=2, agent=agent)
    table = agent.light.pending
    rows = slice(since - table.base, table.size)
    limited = table.closed_by[rows] == Closure.SEGMENT
    last = np.flatnonzero(table.certifiable[rows])[-1]
    assert agent.answers.certified().limited == np.count_nonzero(limited[:last])
    assert 0 < np.count_nonzero(limited[:last]) < closed_before


def test_frozen_answers_stay_about_the_whole_traffic():
    """No row enters after the first that was closed: the sums are those of the requests before."""
    agent = run(settings(BudgetConfig(segments=[GOOD]), limits="freeze"))
    table = agent.light.pending
    first = int(np.argmax(table.closed_by[: table.size] == Closure.SEGMENT))
    certified = agent.answers.certified()
    assert certified.rows == np.count_nonzero(table.certifiable[:first])
    assert certified.limited == 0
    assert NAMED not in agent.answers.status().sentence
    assert agent.answers.status().models != ("m1",)


def test_what_is_thought_stays_where_a_limit_froze_the_whole_before_its_first_row():
    """A segment goes on: what its levels and bets follow is that of its own first row's rule."""
    bad = SegmentConfig(name="bad", column="a", high=0.5)
    config = settings(BudgetConfig(segments=[GOOD]), limits="freeze", segments=[bad])
    agent = run(config)
    agent.controls.open_era("the limit is reached already")
    opened, certifier = agent.rule.prior, agent.state.certifier
    assert opened.best.max() > 0.6
    for seed in (2, 3, 4):
        # The first request of seed 2 is closed by the limit.
        run(config, 1000, seed=seed, agent=agent)
        certified = agent.answers.view().certified
        assert certified.overall.rows == 0
        assert certified.sums[1].rows > 100
        assert certifier.prior_in_force(certified, agent.rule).encode() == opened.encode()
        assert agent.rule.prior.encode() == opened.encode()


@pytest.mark.parametrize("sequence", ["bounded", "per-model"])
def test_a_limit_is_no_drift(sequence):
    """What a limit leaves open differs from what was; the check knows, so no era opens and no
    model is chosen on the rest as if it were the traffic."""
    agent = run(settings(BudgetConfig(segments=[GOOD]), sequence), 6000, review=True)
    drift = next(check for check in agent.answers.checks() if check.name == "drift")
    assert drift.status != "alarm"
    assert "limits closed a part of the traffic" in drift.sentence
    assert agent.rule.era == 0
    status = agent.answers.status()
    assert status.state is not State.DECIDED or NAMED in status.sentence


def test_per_model_means_need_traffic_that_no_limit_changed():
    agent = run(settings(BudgetConfig(segments=[GOOD]), "per-model"), 3000)
    certified = agent.answers.certified()
    assert certified.sequence is Sequence.BOUNDED
    assert "a limit closed a part" in certified.reason
    assert (
        run(settings(BudgetConfig(), "per-model")).answers.certified().sequence
        is Sequence.PER_MODEL
    )


def test_a_share_per_user_is_a_limit_too():
    agent = run(settings(BudgetConfig(per_user=PerUser(share=0.05))), 3000, users=60)
    assert (agent.light.pending.closed_by[:3000] == Closure.USER).sum() > 500
    assert NAMED in agent.answers.recommendation().sentence


def test_a_spent_budget_and_a_pause_close_everybody_and_are_not_named():
    spent = run(settings(BudgetConfig(requests=500)))
    assert spent.light.pending.closed_by[:4000].max() == Closure.BUDGET
    assert spent.answers.certified().limited == 0
    paused = run(settings(BudgetConfig()), 1000)
    paused.controls.pause("a person said so")
    assert NAMED not in paused.answers.status().sentence


def test_excluded_users_are_named_as_closed():
    agent = run(settings(BudgetConfig(), exclude=["u1"]), 400)
    assert agent.answers.certified().closed == 0
    key = int(text_keys("unit", ["u1"])[0])
    config = settings(BudgetConfig(), exclude=["u1"])
    agent, rng = Agent(config, MemoryStore(), KEY), np.random.default_rng(0)
    requests = RequestBatch(
        unit=np.where(np.arange(100) % 4 == 0, key, rng.integers(0, 2**60, 100)),
        context=np.full(100, -1),
        at=np.zeros(100),
        x=np.zeros((100, 1)),
        routed=np.zeros(100, dtype=np.int64),
    )
    made = agent.decide(requests)
    assert (made.closed_by == np.where(np.arange(100) % 4 == 0, Closure.EXCLUDED, 0)).all()
    agent.observe(
        OutcomeBatch(
            number=made.number,
            served=made.model,
            attempt=np.ones(100, dtype=np.int64),
            delivered=np.ones(100, dtype=bool),
            outputs=np.zeros((100, 0)),
            reward=np.ones(100),
            at=np.zeros(100),
        )
    )
    assert agent.answers.certified().closed == 25
    assert "open to every model compared (25 were not)" in agent.answers.status().sentence


def test_what_is_certified_of_the_rest_changes_nothing_that_is_served():
    """The model that is best on what a limit leaves open is worse on the traffic: it is named so,
    and today's routing is kept."""
    agent = run(settings(BudgetConfig(segments=[GOOD]), rate=0.9), 9000, size=300)
    assert agent.answers.status().models == ("m1",)
    assert NAMED in agent.answers.status().sentence
    answer = agent.answers.recommendation()
    assert answer.action == "keep"
    assert "Not certified" in answer.sentence


def test_after_a_limit_drift_looks_at_traffic_as_routed_alone():
    """Counted by hand: residuals of models up to the first closed row; rewards as routed of rows
    that their rule would have left as routed, by the uniform of each, had nothing closed them."""
    agent = run(settings(BudgetConfig(segments=[GOOD])), 3000)
    table = agent.light.pending
    rows = slice(0, 3000)
    closed = table.closed_by[rows] > 0
    first = int(np.argmax(closed))
    drift = next(check for check in agent.answers.checks() if check.name == "drift")
    *of_models, as_routed = drift.figures["rows"]
    assert 0 < sum(of_models) <= np.count_nonzero(table.randomized[:first])
    assert np.count_nonzero(table.randomized[rows]) > 1.5 * sum(of_models)
    uniform, routed = table.uniform[rows], table.routed[rows]
    drawn = np.where(uniform < 0.8, (uniform / 0.8 >= 0.5).astype(int), routed)
    assert as_routed == np.count_nonzero(drawn == routed)
    assert as_routed < np.count_nonzero(table.model[rows] == routed)


def test_no_model_is_looked_at_again_in_the_era():
    """However the rows are cut: after the first closed one, open ones are not tested either."""
    agent = run(settings(BudgetConfig(segments=[GOOD])), 2000)
    table, watch = agent.light.pending, run(settings(BudgetConfig()), 200).fold.watch
    closed = table.closed_by[:2000] > 0
    first = int(np.argmax(closed))
    still_open = first + 1 + int(np.argmin(closed[first + 1 :]))
    assert watch._tested(table, 0, slice(0, first)).all()
    assert not watch._tested(table, 0, slice(first, first + 1)).any()
    assert not watch._tested(table, 0, slice(still_open, still_open + 1)).any()
    assert watch._tested(table, 1, slice(still_open, still_open + 1)).all()
