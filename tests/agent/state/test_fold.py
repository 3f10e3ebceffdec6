"""State is a fold over the log: rebuilt from anywhere it equals the live state bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from traffic import KEY, MODELS, Traffic, config, run

from equipoise.agent.agent import Agent
from equipoise.agent.moments.codec import StateFormatError, decode, encode
from equipoise.agent.state import fold as state_fold
from equipoise.agent.state import light_fold
from equipoise.agent.state.light_fold import CHUNK
from equipoise.store.batches import DecisionBatch, ObservationBatch, OutcomeBatch, take
from equipoise.store.memory import MemoryStore
from equipoise.store.sqlite import SqliteStore


def live(store, seed: int = 1) -> Agent:
    """An agent that has seen everything a log can hold, ending inside a chunk."""
    agent, traffic = Agent(config(), store, KEY), Traffic(np.random.default_rng(seed))
    agent.simulate(traffic.simulations())
    agent.ingest(traffic.observations(333))
    run(agent, traffic, 7)
    decided = agent.decide(traffic.requests(90))
    outcomes = traffic.outcomes(decided)
    # Outputs first, then rewards for most: the rest expires.
    nothing = np.full(90, np.nan)
    agent.observe(replaced(outcomes, reward=nothing))
    some = np.arange(90) % 5 > 0
    rewards = replaced(outcomes, outputs=np.full((90, 2), np.nan))
    agent.observe(picked(rewards, some))
    traffic.at += 500.0
    assert agent.expire(traffic.at) == 18
    run(agent, traffic, 4, size=33)
    return agent


def replaced(batch, **columns):
    return type(batch)(
        **{name: columns.get(name, getattr(batch, name)) for name in batch.__slots__}
    )


def picked(batch, rows):
    return take(batch, np.arange(len(batch))[rows])


def test_the_log_ends_inside_a_chunk():
    """Otherwise the tests below would not see an unfinished chunk."""
    assert live(MemoryStore()).fold.next_seq % CHUNK != 0


def test_rebuilt_from_the_start_equals_live_bit_for_bit():
    store = MemoryStore()
    agent = live(store)
    assert Agent(config(), store, KEY).fold.to_bytes() == agent.fold.to_bytes()


def test_rebuilt_from_sqlite_equals_memory_bit_for_bit(tmp_path):
    with SqliteStore(tmp_path / "log.db") as store:
        agent = live(store)
        state = agent.fold.to_bytes()
    assert state == live(MemoryStore()).fold.to_bytes()
    with SqliteStore(tmp_path / "log.db") as store:
        again = Agent(config(), store, KEY)
        assert again.fold.to_bytes() == state
        assert again.rule.rule_id == agent.rule.rule_id


@pytest.mark.parametrize("share", [0.1, 0.37, 0.5, 0.83, 1.0])
def test_rebuilt_from_any_checkpoint_equals_live_bit_for_bit(share):
    store = MemoryStore()
    agent = live(store)
    cut = int(store.next_seq * share)
    partial = MemoryStore()
    for segment in store.read(until=cut):
        partial.append(segment.batch)
    for record in [*store.eras(), *store.rules()]:
        partial.put(record)
    store.checkpoint(cut, Agent(config(), partial, KEY).fold.to_bytes(), 0.0)
    rebuilt = Agent(config(), store, KEY)
    assert rebuilt.fold.to_bytes() == agent.fold.to_bytes()
    assert rebuilt.answers.view().moments.to_bytes() == agent.answers.view().moments.to_bytes()


def test_what_left_the_table_leaves_nothing_in_the_rows_that_follow(short_chunks):
    """A table that moved its rows, and one that was loaded: those that still wait hold the same."""
    store = MemoryStore()
    agent, traffic = Agent(config(), store, KEY), Traffic(np.random.default_rng(5))
    run(agent, traffic, 4, size=1000)
    agent.checkpoint()
    agent.decide(traffic.requests(500))
    assert agent.light.pending.base > 0, "no row has left the table"
    again = Agent(config(), store, KEY)
    assert again.fold.to_bytes() == agent.fold.to_bytes()


@pytest.mark.parametrize("without", ["watch.", "pending.probabilities", "late"])
def test_a_checkpoint_of_another_version_is_folded_again(without):
    """A store made before there were checks opens, and knows what it would always have known."""
    store = MemoryStore()
    agent = live(store)
    arrays, fields = decode(agent.fold.to_bytes())
    older = {name: array for name, array in arrays.items() if not name.startswith(without)}
    fewer = {name: value for name, value in fields.items() if name != without}
    assert len(older) + len(fewer) < len(arrays) + len(fields)
    store.checkpoint(store.next_seq, encode(older, fewer), 0.0)
    with pytest.raises(StateFormatError, match=f"another version of equipoise: .*{without}"):
        agent.fold.load_bytes(encode(older, fewer))
    assert Agent(config(), store, KEY).fold.to_bytes() == agent.fold.to_bytes()


def test_a_checkpoint_of_shorter_chunks_goes_on(monkeypatch):
    """Its sums are those of the log folded from the start, but for the order of additions."""
    stores, agents = (MemoryStore(), MemoryStore()), []
    for store in stores:
        traffic = Traffic(np.random.default_rng(6))
        monkeypatch.setattr(light_fold, "CHUNK", 1024 if store is stores[0] else CHUNK)
        agent = Agent(config(), store, KEY)
        run(agent, traffic, 30, size=50)
        agent.checkpoint()
        monkeypatch.setattr(light_fold, "CHUNK", CHUNK)
        agent = Agent(config(), store, KEY)
        run(agent, traffic, 60, size=100)
        agents.append(agent)
    assert agents[0].fold.next_seq > CHUNK
    views = [agent.fold.view() for agent in agents]
    assert views[0].watermark == views[1].watermark
    other = views[1].moments.parts()
    for name, part in views[0].moments.parts().items():
        for field, array in part.arrays().items():
            theirs = other[name].arrays()[field]
            np.testing.assert_allclose(array, theirs, rtol=1e-12, atol=1e-12 * np.abs(theirs).max())
    certified = views[1].certified.arrays()
    for name, array in views[0].certified.arrays().items():
        np.testing.assert_allclose(array, certified[name], rtol=1e-11, atol=1e-10)


@pytest.mark.parametrize("seed", range(4))
def test_parts_that_come_alone_and_together_leave_the_same_bits(seed, short_chunks):
    """Late, repeated, undelivered, by another model, outputs before rewards and after them."""
    states = []
    for alone in (True, False):
        agent, traffic = Agent(config(), MemoryStore(), KEY), Traffic(np.random.default_rng(seed))
        rng = np.random.default_rng(seed + 10)
        for _ in range(14):
            outcomes = traffic.outcomes(agent.decide(traffic.requests(90)))
            odd = rng.random(90)
            parts = replaced(
                outcomes,
                reward=np.where(odd < 0.2, np.nan, outcomes.reward),
                outputs=np.where((odd > 0.9)[:, None], np.nan, outcomes.outputs),
                delivered=(odd < 0.5) | (odd > 0.53),
                served=np.where((odd > 0.6) & (odd < 0.65), 1, outcomes.served),
                attempt=rng.choice([0, 1, 1, 1, 2, -1], 90),
            )
            later = replaced(
                picked(outcomes, odd < 0.2),
                attempt=np.zeros(np.count_nonzero(odd < 0.2), dtype=np.int64),
                outputs=np.full((np.count_nonzero(odd < 0.2), 2), np.nan),
            )
            expire = traffic.at + 500.0 * (rng.random() < 0.3)
            # What says nothing but who answered comes of decisions that are complete, too.
            again = replaced(
                outcomes,
                number=np.maximum(outcomes.number - rng.choice([0, 90, 900]), 0),
                reward=np.full(90, np.nan),
                outputs=np.full((90, 2), np.nan),
                delivered=np.zeros(90, dtype=bool),
                attempt=np.full(90, 3),
            )
            mixed = np.concatenate([[0], 1 + rng.permutation(88), [89]])
            parts = take(parts, mixed)
            for index, batch in enumerate((parts, later, again)):
                every = np.arange(len(batch))
                for rows in every[:, None] if alone else [every]:
                    agent._log(take(batch, rows))
                if index == 0 and expire > traffic.at:
                    traffic.at = expire
                    agent.expire(expire)
        states.append(agent.fold.to_bytes())
    assert states[0] == states[1]
    assert agent.late > 0


def test_batches_of_one_and_of_many_give_the_same_bits():
    one, many = MemoryStore(), MemoryStore()
    states = []
    for store, size in ((one, 1), (many, 300)):
        agent = Agent(config(), store, KEY)
        traffic = Traffic(np.random.default_rng(5))
        requests = traffic.requests(300)
        for start in range(0, 300, size):
            agent.decide(picked_requests(requests, slice(start, start + size)))
        rewards = Traffic(np.random.default_rng(6))
        decided = next(iter(many_decisions(store)))
        outcomes = rewards.outcomes(decided)
        for start in range(0, 300, size):
            agent.observe(picked(outcomes, slice(start, start + size)))
        states.append(agent.fold.to_bytes())
    assert states[0] == states[1]


def picked_requests(batch, rows):
    columns = {name: getattr(batch, name) for name in batch.__slots__}
    return type(batch)(**{k: v if v is None else v[rows] for k, v in columns.items()})


def many_decisions(store):
    parts = [s.batch for s in store.read() if isinstance(s.batch, DecisionBatch)]
    columns = {}
    for name in DecisionBatch.__slots__:
        values = [getattr(part, name) for part in parts]
        array = isinstance(values[0], np.ndarray)
        columns[name] = np.concatenate(values) if array else values[0]
    yield DecisionBatch(**columns)


def test_view_counts_what_the_unfinished_chunk_holds():
    agent = Agent(config(), MemoryStore(), KEY)
    traffic = Traffic(np.random.default_rng(0))
    agent.ingest(traffic.observations(10))
    assert agent.fold.moments.obs.count.sum() == 0
    assert agent.answers.view().moments.obs.count.sum() == 10


def test_view_shares_nothing_with_the_state():
    agent = live(MemoryStore())
    before = agent.fold.to_bytes()
    view = agent.fold.view()
    view.moments.scorers.scatter += 1.0
    view.certified.overall.score.low += 1.0
    assert agent.fold.to_bytes() == before


def test_rows_of_every_source_land_in_their_moments():
    """Counts by raw recount of the log, sums of rewards to 1e-9."""
    store = MemoryStore()
    agent = live(store)
    rows = recount(store)
    moments = agent.answers.view().moments
    for source, name in ((moments.obs, "obs"), (moments.exp, "exp")):
        expected = np.bincount(rows[name][0], minlength=len(MODELS))
        assert (source.count.sum(axis=0) == expected).all()
        total = (source.weight[..., None] * source.mean)[:, :, -1].sum()
        assert total == pytest.approx(sum(rows[name][1]), rel=1e-9)
    assert moments.exp_weighted.weight.sum() == pytest.approx(3 * len(rows["exp"][0]) / 0.3)
    assert (moments.simulation.count.sum(axis=0) == 50).all()


def test_the_value_of_routing_weighs_rows_by_their_chance_of_being_served_as_routed():
    """Against a loop over raw rows, to 1e-9: w = 1 / (1 - e + e pi(routed)), 1 for bulk rows."""
    store = MemoryStore()
    agent = live(store)
    weights, rewards = [], []
    open_rows = {}
    for segment in store.read():
        batch = segment.batch
        if isinstance(batch, ObservationBatch):
            weights += [1.0] * len(batch)
            rewards += batch.reward.tolist()
        elif isinstance(batch, DecisionBatch):
            for row, number in enumerate(batch.number.tolist()):
                rate, routed = batch.rate[row], batch.routed[row]
                chance = 1 - rate + rate * batch.probabilities[row, routed]
                open_rows[number] = [batch.model[row] == routed, 1 / chance, None, False]
        elif isinstance(batch, OutcomeBatch):
            for row, number in enumerate(batch.number.tolist()):
                if not np.isnan(batch.reward[row]):
                    open_rows[number][2] = batch.reward[row]
                open_rows[number][3] |= not np.isnan(batch.outputs[row]).any()
    for as_routed, weight, reward, with_outputs in open_rows.values():
        if as_routed and reward is not None and with_outputs:
            weights.append(weight)
            rewards.append(reward)
    routing = agent.answers.view().moments.routing
    assert routing.count.sum() == len(weights)
    assert routing.weight.sum() == pytest.approx(sum(weights), rel=1e-9)
    assert agent.answers.routing()[0] == pytest.approx(
        np.average(rewards, weights=weights), rel=1e-9
    )


def recount(store):
    decided, rewards, outputs, served = {}, {}, set(), {}
    result = {"obs": ([], []), "exp": ([], [])}
    for segment in store.read():
        batch = segment.batch
        if isinstance(batch, DecisionBatch):
            for row, number in enumerate(batch.number.tolist()):
                decided[number] = (int(batch.model[row]), bool(batch.randomized[row]))
        elif isinstance(batch, OutcomeBatch):
            for row, number in enumerate(batch.number.tolist()):
                if not np.isnan(batch.reward[row]):
                    rewards[number] = float(batch.reward[row])
                if not np.isnan(batch.outputs[row]).any():
                    outputs.add(number)
                served[number] = int(batch.served[row])
        elif isinstance(batch, ObservationBatch):
            result["obs"][0].extend(batch.routed.tolist())
            result["obs"][1].extend(batch.reward.tolist())
    for number in outputs & set(rewards):
        model, randomized = decided[number]
        kind = result["exp" if randomized else "obs"]
        kind[0].append(model)
        kind[1].append(rewards[number])
    return result


def test_pending_table_stays_small_over_a_long_stream():
    agent = Agent(config(), MemoryStore(), KEY)
    traffic = Traffic(np.random.default_rng(2))
    for _ in range(150):
        agent.observe(traffic.outcomes(agent.decide(traffic.requests(200))))
    assert len(agent.light.pending.rate) <= 2 * CHUNK
    assert agent.light.pending.next == 30_000


@pytest.mark.parametrize("seed", range(3))
def test_views_that_go_on_are_those_of_a_fold_that_made_none(
    seed, monkeypatch, short_chunks
) -> None:
    """Whatever was viewed before, and whatever came later of decisions that views had seen."""
    rng, store = np.random.default_rng(seed), MemoryStore()
    agent, traffic = Agent(config(), store, KEY), Traffic(np.random.default_rng(seed))
    agent.simulate(traffic.simulations())
    went_on = retold = 0
    late: list[OutcomeBatch] = []
    for turn in range(60):
        decided = agent.decide(traffic.requests(int(rng.integers(5, 60))))
        told = traffic.outcomes(decided)
        if turn % 7 == 5:
            # The reward alone, which is gathered, and the outputs after views saw it.
            agent.observe(replaced(told, outputs=np.full((len(told), 2), np.nan)))
            late.append(replaced(told, reward=np.full(len(told), np.nan)))
        else:
            agent.observe(told)
        if turn % 7 == 1 and late:
            part = late.pop()
            for rows in [np.full(len(part), True)] if seed % 2 else np.eye(len(part), dtype=bool):
                agent.observe(picked(part, rows))
        if turn in (8, 22, 36, 38, 50):
            agent.ingest(traffic.observations(40))
        if turn % 2:
            monkeypatch.setattr(state_fold, "BLOCK", 16)
            key = agent.fold._begun and agent.fold._begun.key
            seen = agent.fold.view()
            begun = agent.fold._begun
            if key is not None and begun is not None:
                went_on += key == begun.key and begun.counts[2] > 16
                retold += key[1] != begun.key[1]
            fresh = Agent(config(), store, KEY).fold
            assert seen.moments.to_bytes() == fresh.view().moments.to_bytes()
            monkeypatch.setattr(state_fold, "BLOCK", 10**6)
            whole = Agent(config(), store, KEY).fold.view().moments
            for name, array in whole.arms.arrays().items():
                own = seen.moments.arms.arrays()[name]
                np.testing.assert_allclose(own, array, rtol=1e-11, atol=1e-11, err_msg=name)
    assert went_on > 5
    assert retold > 0
