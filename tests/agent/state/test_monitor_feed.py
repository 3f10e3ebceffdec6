"""Every check runs on the log through the real agent: alarms are reached, state is a fold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from traffic import KEY, MODELS, Traffic, config, run

from equipoise.agent.agent import Agent
from equipoise.agent.config import BudgetConfig, GuardrailConfig
from equipoise.agent.errors import ConflictError
from equipoise.agent.features import FeatureSchema
from equipoise.agent.monitors import Action
from equipoise.store.batches import DecisionBatch, OutcomeBatch, select, take
from equipoise.store.memory import MemoryStore
from equipoise.store.sqlite import SqliteStore

pytestmark = pytest.mark.usefixtures("short_chunks")
CHUNK = 1024
ERROR = GuardrailConfig(name="error.rate", limit=0.2)
SCORE = GuardrailConfig(name="score", limit=1.0, low=-2.0, high=3.0, direction="at-least")
OTHER_KEY = bytes([5]) * 32
"""Honest draws of KEY happen to look odd at 4,000 decisions: one experiment in ten does."""
GUARDED = config(guardrails=[ERROR, SCORE])


def with_metrics(traffic, outcomes):
    """Errors of a tenth, scores about 1.4, some of them unknown."""
    n = len(outcomes)
    error = (traffic.rng.random(n) < 0.1).astype(float)
    metrics = np.column_stack([error, 1.4 + 0.3 * np.tanh(traffic.rng.normal(size=n))])
    metrics[traffic.rng.random((n, 2)) < 0.1] = np.nan
    return replace(outcomes, metrics=metrics)


def rewards_only(outcomes):
    return replace(outcomes, outputs=np.full(outcomes.outputs.shape, np.nan), metrics=None)


def live(store, seed: int = 4) -> Agent:
    """All that checks are fed with: replays before and after, parts, losses, late rows."""
    agent, traffic = Agent(GUARDED, store, KEY), Traffic(np.random.default_rng(seed))
    replays = traffic.simulations(120)
    agent.simulate(select(replays, replays.context < 40))
    agent.ingest(traffic.observations(150))
    for index in range(14):
        decided = agent.decide(traffic.requests(97, contexts=120))
        outcomes = with_metrics(traffic, traffic.outcomes(decided))
        outcomes = replace(outcomes, delivered=traffic.rng.random(97) < 0.9)
        agent.observe(replace(outcomes, reward=np.full(97, np.nan)))
        comes = traffic.rng.random(97) < 0.9
        agent.observe(select(rewards_only(outcomes), comes))
        traffic.at += 60.0
        agent.expire(traffic.at)
        if index % 4 == 3:
            lost = select(outcomes, ~comes)
            traffic.at += 200.0
            agent.expire(traffic.at)
            assert agent.observe(rewards_only(lost)).late == np.count_nonzero(~comes)
            few = (replays.context >= 40 + 5 * index) & (replays.context < 60 + 5 * index)
            agent.simulate(select(replays, few))
            agent.refresh()
    return agent


def test_the_stream_below_feeds_every_check():
    agent = live(MemoryStore())
    assert agent.light.next_seq > 3 * CHUNK
    assert agent.light.next_seq % CHUNK > 0
    figures = {check.name: check.figures for check in agent.answers.checks()}
    assert sum(figures["fidelity"]["pairs"]) > 80
    assert figures["assignment"]["rows"] == 14 * 97
    assert sum(figures["guardrail"]["rows"]) > 100
    assert figures["missingness"]["share"] > 0.02
    assert figures["delivery"]["share"] > 0.02
    assert figures["drift"]["rows"][-1] > 100
    assert agent.late > 20


def test_checks_rebuilt_from_the_log_are_the_same_bit_for_bit(tmp_path):
    with SqliteStore(tmp_path / "log.db") as store:
        agent = live(store)
        state, said = agent.fold.to_bytes(), repr(agent.answers.checks())
    assert live(MemoryStore()).fold.to_bytes() == state
    with SqliteStore(tmp_path / "log.db") as store:
        again = Agent(GUARDED, store, KEY)
        assert again.fold.to_bytes() == state
        assert repr(again.answers.checks()) == said


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.77, 0.99])
def test_checks_rebuilt_from_any_checkpoint_are_the_same_bit_for_bit(share):
    store = MemoryStore()
    agent = live(store)
    cut = int(store.next_seq * share)
    partial = MemoryStore()
    for segment in store.read(until=cut):
        partial.append(segment.batch)
    for record in [*store.eras(), *store.rules()]:
        partial.put(record)
    store.checkpoint(cut, Agent(GUARDED, partial, KEY).fold.to_bytes(), 0.0)
    again = Agent(GUARDED, store, KEY)
    assert again.fold.to_bytes() == agent.fold.to_bytes()
    assert repr(again.answers.checks()) == repr(agent.answers.checks())


def test_replays_that_wait_for_their_turn_survive_a_restart_between_chunks():
    """More replays at once than a chunk may compare, and a checkpoint before the next chunk."""
    store = MemoryStore()
    agent, traffic = Agent(config(), store, KEY), Traffic(np.random.default_rng(17))
    agent.ingest(traffic.observations(CHUNK))
    agent.observe(traffic.outcomes(agent.decide(traffic.requests(400, contexts=900))))
    agent.simulate(traffic.simulations(900))
    agent.ingest(traffic.observations(-agent.light.next_seq % CHUNK))
    agent.checkpoint()
    again = Agent(config(), store, KEY)
    pairs = []
    for _ in range(4):
        rows = traffic.observations(CHUNK)
        agent.ingest(rows)
        again.fold.apply(again.light.next_seq, rows)
        assert again.fold.to_bytes() == agent.fold.to_bytes()
        pairs.append(sum(said(agent)["fidelity"].figures["pairs"]))
    assert pairs == sorted(pairs)
    assert 200 < pairs[-1] <= 400


def test_an_experiment_without_outputs_has_nothing_to_compare():
    bare = config(features=FeatureSchema.vectors(("a", "b"), ()))
    agent, traffic = Agent(bare, MemoryStore(), KEY), Traffic(np.random.default_rng(18))
    for batch in (traffic.simulations(), traffic.observations(CHUNK)):
        empty = replace(batch, outputs=np.zeros((len(batch), 0)))
        agent.simulate(empty) if hasattr(batch, "model") else agent.ingest(empty)
    outcomes = traffic.outcomes(agent.decide(traffic.requests(300)))
    agent.observe(replace(outcomes, outputs=np.zeros((300, 0))))
    assert said(agent)["fidelity"].status == "unknown"
    assert said(agent)["assignment"].figures["rows"] == 300


def test_asking_changes_nothing_and_sees_the_unfinished_chunk():
    agent, traffic = Agent(config(), MemoryStore(), KEY), Traffic(np.random.default_rng(1))
    agent.ingest(traffic.observations(CHUNK))
    agent.simulate(traffic.simulations(25))
    agent.observe(traffic.outcomes(agent.decide(traffic.requests(30))))
    before = agent.fold.to_bytes()
    first = agent.answers.checks()
    figures = {check.name: check.figures for check in first}
    assert figures["assignment"]["rows"] == 30
    assert sum(figures["fidelity"]["pairs"]) > 5
    assert repr(agent.answers.checks()) == repr(first)
    assert agent.fold.to_bytes() == before


def test_a_replay_is_compared_with_the_model_that_answered():
    """Replays that are exact show no difference at all, whoever was routed."""
    agent, traffic = Agent(config(), MemoryStore(), KEY), Traffic(np.random.default_rng(16))
    agent.ingest(traffic.observations(CHUNK))
    agent.simulate(traffic.simulations())
    run(agent, traffic, 5, size=100)
    figures = said(agent)["fidelity"].figures
    assert sum(figures["pairs"]) > 50
    assert figures["shift"] == {"u": 0.0, "v": 0.0}


def test_every_check_speaks_and_honest_traffic_raises_no_alarm():
    """Each check alarms on at most 1% of honest experiments: seeded, so it does or does not."""
    agent = live(MemoryStore())
    checks = agent.answers.checks()
    names = ["assignment", "fidelity", "drift", "representation", "missingness", "delivery"]
    guards = ["guardrail", "guardrail"]
    names += ["floors", *guards, "estimators", "outputs", "watermark"]
    assert [check.name for check in checks] == names
    assert [check.figures["metric"] for check in checks[-5:-3]] == ["error.rate", "score"]
    assert all(check.status != "alarm" for check in checks), checks
    assert agent.answers.consequences(checks) == []


def said(agent):
    """Checks by name, the first guardrail for all of them."""
    return {check.name: check for check in reversed(agent.answers.checks())}


def the_alarm(agent, name, action):
    """The check raised the only alarm, and asks for its action alone."""
    checks = agent.answers.checks()
    assert [check.name for check in checks if check.status == "alarm"] == [name], checks
    (consequence,) = agent.answers.consequences(checks)
    assert consequence.action is action
    return consequence


def tampered(store, change):
    """A copy of a store whose decisions were changed behind the agent's back."""
    copy = MemoryStore()
    for name, value in store.settings().items():
        copy.freeze(name, value)
    for record in [*store.eras(), *store.rules()]:
        copy.put(record)
    for segment in store.read():
        batch = segment.batch
        if isinstance(batch, OutcomeBatch):
            # Whoever changes a decision does not report who answered it.
            batch = replace(batch, attempt=np.zeros(len(batch), dtype=np.int64))
        copy.append(change(batch) if isinstance(batch, DecisionBatch) else batch)
    return copy


@pytest.mark.forges
def test_a_biased_assignment_pauses_the_experiment():
    """A fifth of what was drawn for the second model goes to the first."""
    store = MemoryStore()
    agent = Agent(config(), store, OTHER_KEY)
    run(agent, Traffic(np.random.default_rng(2)), 40, size=100)
    assert said(agent)["assignment"].status == "ok"
    rng = np.random.default_rng(3)

    def change(batch):
        moved = batch.randomized & (batch.model == 1) & (rng.random(len(batch)) < 0.2)
        return replace(batch, model=np.where(moved, 0, batch.model))

    found = the_alarm(
        Agent(config(), tampered(store, change), OTHER_KEY), "assignment", Action.PAUSE
    )
    assert found.models == ()
    assert found.check.models in ((0,), (1,))


@pytest.mark.forges
def test_a_probability_below_its_floor_is_noticed():
    store = MemoryStore()
    run(Agent(config(), store, KEY), Traffic(np.random.default_rng(2)), 3)

    def change(batch):
        shares = batch.probabilities.copy()
        first = int(np.flatnonzero(batch.randomized)[0])
        shares[first, batch.model[first]] = 1e-4
        return replace(batch, probabilities=shares)

    checks = said(Agent(config(), tampered(store, change), KEY))
    assert checks["floors"].status == "alarm"
    assert "a probability fell below its floor" in checks["floors"].sentence


@pytest.mark.parametrize("first", [True, False], ids=["replayed before", "replayed after"])
def test_a_simulator_that_truncates_leaves_the_recommendation(first):
    """Replays never exceed 0.5 where live outputs reach 1; without that it stays quiet."""
    for most, status in ((0.5, "alarm"), (2.0, "ok")):
        agent, traffic = Agent(config(), MemoryStore(), KEY), Traffic(np.random.default_rng(6))
        agent.ingest(traffic.observations(CHUNK))
        replays = traffic.simulations(400)
        noise = 0.05 * np.random.default_rng(7).normal(size=replays.outputs.shape)
        replays = replace(replays, outputs=np.minimum(replays.outputs + noise, most))
        if first:
            agent.simulate(replays)
        run(agent, traffic, 10, size=100)
        for index in range(10):
            traffic_now = traffic.requests(100, contexts=400)
            agent.observe(traffic.outcomes(agent.decide(traffic_now)))
            if not first:
                served = np.isin(replays.context, traffic_now.context)
                agent.simulate(select(replays, served & (replays.context % 10 == index)))
        if status == "alarm":
            the_alarm(agent, "fidelity", Action.DROP_SIMULATION)
        check = said(agent)["fidelity"]
        assert check.status == status
        assert sum(check.figures["pairs"]) > 30


def test_no_pair_is_compared_by_a_scale_that_knows_it():
    """The first chunk has rewards enough, but none before it: its pairs are not formed."""
    agent, traffic = Agent(config(), MemoryStore(), KEY), Traffic(np.random.default_rng(14))
    agent.simulate(traffic.simulations())
    agent.observe(traffic.outcomes(agent.decide(traffic.requests(437))))
    assert agent.light.next_seq == CHUNK
    assert sum(said(agent)["fidelity"].figures["pairs"]) == 0
    agent.observe(traffic.outcomes(agent.decide(traffic.requests(20))))
    assert sum(said(agent)["fidelity"].figures["pairs"]) > 0


def lossy(agent, traffic, column, share, batches=40):
    """A stream in which a share of the second model's rows loses something."""
    for _ in range(batches):
        outcomes = traffic.outcomes(agent.decide(traffic.requests(100)))
        lost = (outcomes.served == 1) & (traffic.rng.random(100) < share)
        if column == "reward":
            outcomes = replace(outcomes, reward=np.where(lost, np.nan, outcomes.reward))
        else:
            outcomes = replace(outcomes, delivered=~lost)
        agent.observe(outcomes)
    agent.expire(traffic.at + 1000.0)
    agent.ingest(traffic.observations(CHUNK))


def test_rewards_that_one_model_loses_widen_the_intervals():
    agent, traffic = Agent(config(), MemoryStore(), KEY), Traffic(np.random.default_rng(9))
    lossy(agent, traffic, "reward", 0.25)
    assert the_alarm(agent, "missingness", Action.WIDEN).check.models == (1,)


def test_assignments_that_one_model_loses_widen_the_intervals():
    agent, traffic = Agent(config(), MemoryStore(), KEY), Traffic(np.random.default_rng(10))
    lossy(agent, traffic, "delivered", 0.25)
    assert the_alarm(agent, "delivery", Action.WIDEN).check.models == (1,)


def test_a_model_over_its_limit_is_paused_and_no_other():
    """Both ways of a limit: errors of the third model, scores of the first."""
    agent, traffic = Agent(GUARDED, MemoryStore(), KEY), Traffic(np.random.default_rng(11))
    for _ in range(60):
        outcomes = with_metrics(traffic, traffic.outcomes(agent.decide(traffic.requests(100))))
        bad = (outcomes.served == 2) & (traffic.rng.random(100) < 0.5)
        outcomes.metrics[bad, 0] = 1.0
        outcomes.metrics[outcomes.served == 0, 1] -= 1.5
        agent.observe(outcomes)
    found = agent.answers.consequences(agent.answers.checks())
    assert [(one.action, one.models) for one in found] == [
        (Action.PAUSE, (2,)),
        (Action.PAUSE, (0,)),
    ]
    assert "Pause cheap." in found[0].check.sentence


def test_actions_are_configured():
    agent = Agent(config(checks={"missingness": "report"}), MemoryStore(), KEY)
    lossy(agent, Traffic(np.random.default_rng(9)), "reward", 0.25)
    the_alarm(agent, "missingness", Action.REPORT)


def test_a_spent_budget_is_seen_in_the_floors():
    settings = config(budget=BudgetConfig(requests=50))
    agent = Agent(settings, MemoryStore(), KEY)
    run(agent, Traffic(np.random.default_rng(12)), 20)
    assert said(agent)["floors"].status == "watch"
    assert "beyond the budget" in said(agent)["floors"].sentence


def test_requests_closed_to_a_model_are_seen_in_the_floors():
    agent, traffic = Agent(config(), MemoryStore(), KEY), Traffic(np.random.default_rng(15))
    eligible = np.ones((50, len(MODELS)), dtype=bool)
    eligible[:20, 2] = False
    agent.decide(replace(traffic.requests(50), eligible=eligible))
    figures = said(agent)["floors"].figures
    assert (figures["rows"], figures["closed"], figures["certified"]) == (50, 20, 0.6)


def test_a_metric_after_its_decision_was_closed_and_entered_is_late():
    """Logged once, told apart from a repeat and from a contradiction, and used by no check."""
    agent, traffic = Agent(GUARDED, MemoryStore(), KEY), Traffic(np.random.default_rng(13))
    outcomes = traffic.outcomes(agent.decide(traffic.requests(100)))
    agent.observe(outcomes)
    agent.ingest(traffic.observations(CHUNK))
    assert agent.fold.certified.watermark == 100
    before = repr(agent.answers.checks())
    late = replace(rewards_only(outcomes), reward=np.full(100, np.nan), metrics=np.ones((100, 2)))
    accepted = agent.observe(late)
    assert (accepted.rows, accepted.late, agent.late) == (0, 100, 100)
    again = agent.observe(take(late, np.arange(3)))
    assert (again.rows, again.late, again.duplicates, agent.late) == (0, 0, 3, 100)
    with pytest.raises(ConflictError, match=r"metric score of decision d7 was 1.0, now 1.5"):
        agent.observe(replace(take(late, np.array([7])), metrics=np.array([[1.0, 1.5]])))
    assert repr(agent.answers.checks()) == before
    assert np.isnan(agent.light.pending.metrics[:100]).all()


def test_models_are_named_in_the_sentences():
    agent = live(MemoryStore())
    assert agent.fold.watch.monitors.models == MODELS
