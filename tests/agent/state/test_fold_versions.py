"""A model that becomes another version: nothing that is known of it is of the one before."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import msgspec
import numpy as np
import pytest
from traffic import KEY, MODELS, Traffic, config, run

from equipoise.agent.agent import Agent
from equipoise.agent.config import BudgetConfig, ModelConfig, PolicyConfig
from equipoise.agent.errors import ConflictError
from equipoise.agent.estimators import FAMILIES
from equipoise.agent.maintenance.audit import audit
from equipoise.agent.maintenance.export import tables
from equipoise.agent.moments.additive import unit_groups
from equipoise.agent.moments.codec import decode
from equipoise.agent.moments.state import Moments
from equipoise.agent.state.light_fold import CHUNK
from equipoise.store.batches import DecisionBatch, ObservationBatch, OutcomeBatch, take
from equipoise.store.contract import Segment
from equipoise.store.memory import MemoryStore
from equipoise.store.sqlite import SqliteStore

POLICY = PolicyConfig(assignment="uniform", rate=0.5)
SLOW, FAST = 0, 1


def settings(*versions: str):
    models = [
        ModelConfig(name=name, price=0.01, version=version)
        for name, version in zip(MODELS, versions, strict=True)
    ]
    return config(models=models, policy=POLICY)


FIRST, SECOND, THIRD = settings("1", "1", "1"), settings("1", "2", "1"), settings("2", "3", "1")


def observations(traffic, n, at):
    return replace(traffic.observations(n), at=np.full(n, at))


def other_replays(traffic):
    """Replays of a version of `fast` that answers otherwise."""
    rows = traffic.simulations()
    only = take(rows, np.flatnonzero(rows.model == FAST))
    return replace(only, outputs=only.outputs + 0.5)


def stream(store, more=0):
    """Three versions of one model, two of another; late outcomes and a late log around each
    change, the first of which comes after 960 rows and `more`. Yields the agent and the
    configuration in force after every call that logs."""
    traffic = Traffic(np.random.default_rng(5))
    agent = Agent(FIRST, store, KEY, at=0.0)
    agent.simulate(traffic.simulations())
    agent.ingest(observations(traffic, 150, 0.0))
    yield agent, FIRST
    run(agent, traffic, 6, size=50)
    waiting = [agent.decide(traffic.requests(60))]
    yield agent, FIRST
    if more:
        agent.ingest(observations(traffic, more, 1001.0))
        yield agent, FIRST
    for number, settings_ in enumerate((SECOND, THIRD), 1):
        began = 1000.0 * number
        agent = Agent(settings_, store, KEY, at=began)
        yield agent, settings_
        traffic.at = began
        agent.ingest(observations(traffic, 40, began - 1.0))
        agent.ingest(observations(traffic, 30, began + 1.0))
        yield agent, settings_
        agent.observe(traffic.outcomes(waiting.pop()))
        agent.simulate(other_replays(traffic))
        yield agent, settings_
        run(agent, traffic, 11, size=60)
        waiting = [agent.decide(traffic.requests(50))]
        yield agent, settings_
    agent.observe(traffic.outcomes(waiting.pop()))
    yield agent, THIRD


def by_hand(store):
    """Per present version: rewards and weights of EXP, outputs of OBS rows, from the log alone.

    Eras: `fast` changed with 1 and 2, `slow` with 2.
    """
    begins, dates = np.array([2, 2, 0]), np.array([2000.0, 2000.0, -np.inf])
    decided, rows = {}, {"exp": [], "obs": [], "routing": []}
    for segment in store.read():
        batch = segment.batch
        if isinstance(batch, DecisionBatch):
            for at in range(len(batch)):
                decided[int(batch.number[at])] = (batch, at)
        elif isinstance(batch, ObservationBatch):
            rows["routing"] += [(1.0, one) for one in batch.reward[batch.at >= dates.max()]]
            for at, model in enumerate(batch.routed.tolist()):
                if batch.at[at] >= dates[model]:
                    rows["obs"].append((model, 1.0, batch.reward[at], batch.unit[at]))
        elif isinstance(batch, OutcomeBatch):
            for at, number in enumerate(batch.number.tolist()):
                decision, row = decided[number]
                model = int(decision.model[row])
                if decision.era == begins.max() and model == decision.routed[row]:
                    e, pi = decision.rate[row], decision.probabilities[row, model]
                    rows["routing"].append((1.0 / (1.0 - e + e * pi), batch.reward[at]))
                if decision.era < begins[model]:
                    continue
                drawn = bool(decision.randomized[row])
                weight = (
                    1.0 / (decision.rate[row] * decision.probabilities[row, model])
                    if drawn
                    else 1.0
                )
                source = rows["exp" if drawn else "obs"]
                source.append((model, weight, batch.reward[at], decision.unit[row]))
    return rows


@pytest.fixture(scope="module")
def lived():
    store = MemoryStore()
    *_, (agent, _) = stream(store)
    return store, agent


def test_sums_of_a_model_are_those_of_its_newest_version_recomputed_from_the_log(lived):
    store, agent = lived
    moments, rows = agent.answers.view().moments, by_hand(store)
    assert moments.dimensions.former == 3
    for model in range(3):
        exp = np.array([row[1:3] for row in rows["exp"] if row[0] == model])
        obs = np.array([row[2] for row in rows["obs"] if row[0] == model])
        arms = moments.arms
        assert arms.count[:, model].sum() == moments.exp.count[:, model].sum() == len(exp) > 20
        assert moments.obs.count[:, model].sum() == len(obs) > 20
        value = agent.answers.estimates(["ipw"])["ipw"].values[model]
        assert value == pytest.approx(exp.prod(axis=1).sum() / exp[:, 0].sum())
        log = moments.obs
        logged = (log.weight[:, model] * log.mean[:, model, -1]).sum() / len(obs)
        assert logged == pytest.approx(obs.mean())
    routed = np.array(rows["routing"])
    assert moments.routing.count.sum() == len(routed) > 100
    assert agent.answers.routing()[0] == pytest.approx(
        routed.prod(axis=1).sum() / routed[:, 0].sum()
    )
    groups = unit_groups(np.array([row[3] for row in rows["obs"] if row[0] == FAST]), 20)
    assert moments.obs.count[:, FAST].tolist() == np.bincount(groups, minlength=20).tolist()
    # Whatever was said of former versions still informs the slopes, in columns of its own.
    outcomes = sum(len(s.batch) for s in store.read() if isinstance(s.batch, OutcomeBatch))
    observed = sum(len(s.batch) for s in store.read() if isinstance(s.batch, ObservationBatch))
    assert moments.obs.count.sum() + moments.exp.count.sum() == outcomes + observed
    assert moments.arms.count.sum() + moments.former.count.sum() == moments.exp.count.sum()


def test_replays_count_for_the_version_that_answered_them(lived):
    _, agent = lived
    moments = agent.answers.view().moments
    assert moments.simulation.count.sum(axis=0).tolist() == [0, 50, 50]
    traffic = Traffic(np.random.default_rng(1))
    rows = other_replays(traffic)
    phi = agent.state.transform.phi(rows.x, rows.outputs)
    weight = moments.simulation.count[:, FAST]
    np.testing.assert_allclose(
        weight @ moments.simulation.mean[:, FAST] / 50, phi.mean(axis=0), atol=1e-12
    )
    found, known = agent.light.simulated.lookup_all(
        rows.context[:3], np.full(3, agent.light.pending.next)
    )
    np.testing.assert_array_equal(found[:, FAST], phi[:3])
    assert known.tolist() == [[False, True, True]] * 3
    first = agent.state.transform.phi(rows.x[:3], rows.outputs[:3] - 0.5)
    found, known = agent.light.simulated.lookup_all(rows.context[:3], np.zeros(3, np.int64))
    np.testing.assert_allclose(found[:, FAST], first)
    assert known.all()


def test_a_replay_that_comes_twice_is_one_and_of_the_same_version(lived):
    _, agent = lived
    traffic = Traffic(np.random.default_rng(1))
    assert agent.simulate(other_replays(traffic)).duplicates == 50
    old = traffic.simulations()
    with pytest.raises(ConflictError):
        agent.simulate(take(old, np.flatnonzero(old.model == FAST)))


@pytest.mark.parametrize("more", [0, 64], ids=["in a chunk", "between two"])
def test_a_restart_at_every_point_finds_the_same_bits(tmp_path, short_chunks, more):
    """From the log alone, and from a checkpoint made before, at and after each change."""
    path, states = tmp_path / "log.db", []
    with SqliteStore(path) as store:
        for agent, settings_ in stream(store, more):
            states.append((agent.light.next_seq, agent.fold.to_bytes()))
            again = Agent(settings_, store, None)
            assert again.fold.to_bytes() == states[-1][1]
            view, other = (each.answers.view().moments.to_bytes() for each in (agent, again))
            assert view == other
            rule = agent.rule
            agent.checkpoint()
        assert audit(store, THIRD, KEY).clean
        eras = tables(store, THIRD)["eras"]["renewed"]
        assert [
            msgspec.json.decode(each)["models"] if isinstance(each, str) else None for each in eras
        ] == [
            None,
            ["fast"],
            ["slow", "fast"],
        ]
    sizes = [seq for seq, _ in states]
    assert 960 + more in sizes
    ended = [one // short_chunks for one in sizes]
    assert any(one < other for one, other in pairwise(ended)), "no chunk ended"
    memory = MemoryStore()
    for agent, settings_ in stream(memory, more):
        # Without any checkpoint.
        assert Agent(settings_, memory, None).fold.to_bytes() == agent.fold.to_bytes()
    assert agent.rule.rule_id == rule.rule_id
    moments = agent.fold.moments
    assert moments.dimensions.former == 3
    assert Moments.from_bytes(moments.to_bytes()).to_bytes() == moments.to_bytes()


def changed(waiting=0):
    """600 requests of which `fast` earns .9, then it becomes worth .1. waiting: further ones that
    are decided before and answered after."""
    models = [ModelConfig(name=name, price=0.01, version="1") for name in MODELS]
    newer = [models[0], ModelConfig(name="fast", price=0.01, version="2"), models[2]]
    before, after = (
        # With a limit in USD what is known is asked for before the change is carried out.
        config(models=each, policy=POLICY, budget=BudgetConfig(money=1e6))
        for each in (models, newer)
    )
    store, traffic = MemoryStore(), Traffic(np.random.default_rng(8))

    def earn(agent, worth, batches):
        for _ in range(batches):
            decided = agent.decide(traffic.requests(60))
            outcomes = traffic.outcomes(decided)
            rate = np.where(decided.model == FAST, worth, 0.5)
            reward = (traffic.rng.random(60) < rate).astype(float)
            agent.observe(replace(outcomes, reward=reward))
            agent.refresh(review=False)

    agent = Agent(before, store, KEY)
    agent.simulate(traffic.simulations())
    earn(agent, 0.9, 10)
    late = agent.decide(traffic.requests(waiting)) if waiting else None
    agent = Agent(after, store, KEY, at=traffic.at)
    return agent, traffic, late if waiting else earn


def test_right_after_the_change_nothing_is_known_of_the_new_version():
    agent, _, earn = changed()
    for name, estimate in agent.answers.estimates(FAMILIES).items():
        # Without replays of it only a mean could say anything, and that has no row.
        assert np.isnan(estimate.values[FAST]), name
    assert agent.answers.recommendation("ipw").model != "fast"
    sentence = agent.answers.recommendation("ipw").sentence
    assert "knows nothing of fast yet" in sentence
    assert "but of fast only what the newest version answered" in sentence
    earn(agent, 0.1, 5)
    estimate = agent.answers.estimates(["ipw"])["ipw"]
    error = np.sqrt(estimate.covariance[FAST, FAST])
    assert abs(estimate.values[FAST] - 0.1) < 3.0 * error < 0.2


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_says_what_the_new_version_is_worth(family):
    agent, traffic, earn = changed()
    agent.simulate(other_replays(traffic))
    earn(agent, 0.1, 10)
    estimate = agent.answers.estimates([family])[family]
    assert estimate.values.shape == (3,)
    assert "failed" not in estimate.diagnostics
    if family in ("ipw", "hierarchical", "hierarchical-cautious", "doubly-robust"):
        # Those with something of every model; the others have slopes alone, which know no model.
        assert estimate.values[FAST] == pytest.approx(0.1, abs=0.12)
    if estimate.scorer is not None and estimate.scorer.model_effects:
        sizes = agent.light.dimensions.features + 3
        assert len(estimate.scorer.theta) == len(estimate.scorer.covariance) == sizes


def test_the_prediction_inside_the_score_forgets_at_once():
    agent, _, _ = changed()
    before, after = (
        agent.state.rules.by_ordinal(at).prediction for at in range(len(agent.state.rules))[-2:]
    )
    # First one far above those of the others; then that of any model, around the intercept.
    assert before.effects[FAST] > 0.1 > max(before.effects[[0, 2]])
    assert abs(after.effects[FAST]) < 1e-9 < max(abs(after.effects[[0, 2]]))
    assert agent.rule.era == 1


def test_pairs_of_live_and_replayed_answers_are_of_one_version():
    """New replays come before the last answers of the old version, and meet those of the new."""

    def met():
        agent.ingest(observations(traffic, CHUNK, traffic.at))
        return decode(agent.fold.to_bytes())[0]["watch.pairs.met"][:, FAST].sum()

    agent, traffic, late = changed(waiting=200)
    agent.simulate(other_replays(traffic))
    assert (late.model == FAST).sum() > 30
    agent.observe(traffic.outcomes(late))
    assert met() == 0
    new = agent.decide(traffic.requests(200))
    agent.observe(traffic.outcomes(new))
    assert met() == len(np.unique(new.context[new.model == FAST])) > 20


def test_how_the_log_is_cut_says_nothing_about_versions(monkeypatch):
    """Rows of the log before and after the change, read as one batch."""
    store = MemoryStore()
    for agent, settings_ in stream(store, 10):
        state, read = agent.fold.to_bytes(), store.read

        def whole(since=0, until=None, read=read):
            kept = None
            for segment in read(since):
                both = [each.batch for each in (kept, segment) if each is not None]
                if len(both) == 2 and all(isinstance(one, ObservationBatch) for one in both):
                    columns = ((getattr(one, name) for one in both) for name in COLUMNS)
                    joined = ObservationBatch(*map(np.concatenate, map(tuple, columns)))
                    kept = Segment(kept.seq, joined)
                    continue
                if kept is not None:
                    yield kept
                kept = segment
            yield kept

        with monkeypatch.context() as patched:
            patched.setattr(store, "read", whole)
            assert Agent(settings_, store, None).fold.to_bytes() == state
            sizes = [len(each.batch) for each in store.read()]
    assert 10 + 40 + 30 in sizes


COLUMNS = ("unit", "at", "x", "routed", "outputs", "reward")
