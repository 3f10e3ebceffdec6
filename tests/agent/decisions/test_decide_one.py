"""One request on plain numbers beside the same request as a batch: the same log, bit for bit."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from equipoise.agent.agent import Agent
from equipoise.agent.config import (
    BudgetConfig,
    ExperimentConfig,
    ModelConfig,
    PolicyConfig,
    RewardConfig,
)
from equipoise.agent.decisions.decide import Decider
from equipoise.agent.features import FeatureSchema
from equipoise.policies.kernels import ConstantShares
from equipoise.policies.registry import ASSIGNMENTS, GATES
from equipoise.store.batches import DecisionBatch, OutcomeBatch, RequestBatch, take
from equipoise.store.format.frames import to_frame
from equipoise.store.lanes import Tickets
from equipoise.store.memory import MemoryStore

KEY = bytes(range(32))
PAIRS = [(gate, assignment) for gate in sorted(GATES) for assignment in sorted(ASSIGNMENTS)]
REQUESTS = 120


class SlowDecider(Decider):
    takes_rows = False


class Batched(Agent):
    """The same agent, which takes no shortcut."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._decider.__class__ = SlowDecider


def config(models, gate="fixed-rate", assignment="uniform", policy=None, **changes):
    names = [f"m{index}" for index in range(models)]
    caps = changes.pop("caps", {})
    retired = changes.pop("retired", ())
    settings = {
        "name": "alone",
        "models": [
            ModelConfig(
                name=name, price=0.01 * (1 + at), max_requests=caps.get(at), retired=at in retired
            )
            for at, name in enumerate(names)
        ],
        "reward": RewardConfig(low=0.0, high=1.0),
        "features": FeatureSchema.vectors(["a", "b", "c"], ["u"]),
        "policy": PolicyConfig(
            gate=gate,
            assignment=assignment,
            **({"rate": 0.6, "rate_min": 0.05} | (policy or {})),
        ),
        "budget": BudgetConfig(),
    }
    return ExperimentConfig(**(settings | changes))


def requests(rng, models, count, eligible=None, at=0.0):
    """eligible: chance of each model to be, None where requests say nothing."""
    mask = None if eligible is None else rng.random((count, models)) < eligible
    name = rng.integers(0, 2**60)
    return RequestBatch(
        unit=rng.integers(0, 40, count),
        context=rng.integers(-1, 9, count),
        at=at + np.arange(count, dtype=float),
        x=rng.normal(size=(count, 3)),
        routed=rng.integers(0, models, count),
        eligible=mask,
        request_id=[f"r{name}-{row}" if row % 3 else "" for row in range(count)],
        unit_id=[f"u{row}" for row in range(count)],
        context_id=["" for _ in range(count)],
    )


def outcomes(rng, decided):
    count = len(decided)
    return OutcomeBatch(
        number=decided.number,
        served=decided.model,
        attempt=np.ones(count, dtype=np.int64),
        delivered=np.ones(count, dtype=bool),
        outputs=decided.x[:, :1] + decided.model[:, None],
        reward=(rng.random(count) < 0.2 + 0.5 * (decided.model % 3 == 1)).astype(float),
        at=decided.at,
    )


def rows_of(batch):
    """Every row of a batch as a batch of one."""
    for row in range(len(batch)):
        yield RequestBatch(
            **{
                each.name: None
                if (column := getattr(batch, each.name)) is None
                else column[row : row + 1]
                for each in fields(RequestBatch)
            }
        )


def logged(agent):
    """The log and what was folded from it, as bytes."""
    frames = [to_frame(each.seq, each.batch) for each in agent.store.read()]
    controls = [(each.name, each.value) for each in agent.store.controls()]
    return frames, controls, agent.light.to_bytes(), agent.would_randomize


def compare(agents, batch):
    """Decide every request alone by each of the agents; what both decided."""
    decided = []
    for one in rows_of(batch):
        fast, slow = (agent.decide(one) for agent in agents)
        assert slow.row is None
        decided.append(fast)
        for each in fields(DecisionBatch):
            ours, theirs = getattr(fast, each.name), getattr(slow, each.name)
            assert type(ours) is type(theirs), each.name
            if isinstance(ours, np.ndarray):
                assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), each.name
                assert ours.tobytes() == theirs.tobytes(), each.name
            else:
                assert ours == theirs, each.name
    assert logged(agents[0]) == logged(agents[1])
    return decided


def agents_of(settings, **keywords):
    return tuple(kind(settings, MemoryStore(), KEY, **keywords) for kind in (Agent, Batched))


def learn(agents, rng, models, count=90):
    """Some traffic with outcomes, and the rule that follows from it."""
    batch = requests(rng, models, count)
    for agent, seed in zip(agents, (5, 5), strict=True):
        agent.observe(outcomes(np.random.default_rng(seed), agent.decide(batch)))
        agent.refresh(review=False)


@pytest.mark.parametrize(("gate", "assignment"), PAIRS)
def test_one_request_is_decided_like_a_batch_of_one(gate, assignment):
    models = 2 + PAIRS.index((gate, assignment)) % 19
    rng = np.random.default_rng(models)
    agents = agents_of(config(models, gate, assignment))
    learn(agents, rng, models)
    given = [None, 1.0, 0.7, 0.2][PAIRS.index((gate, assignment)) % 4]
    decided = compare(agents, requests(rng, models, 40, at=1e3))
    compare(agents, requests(rng, models, 40, given, at=2e3))
    assert all(each.row is not None for each in decided)
    assert len({each.row[9] for each in decided}) > 1


@pytest.mark.parametrize("models", range(2, 21))
def test_eligible_models_caps_and_excluded_users(models):
    rng = np.random.default_rng(models)
    caps = {0: 3, models - 1: 5} if models % 2 else dict.fromkeys(range(models), 4)
    excluded = {"exclude": ["u0", "u1"]}
    settings = config(models, assignment="top-two", caps=caps, policy=excluded)
    agents = agents_of(settings)
    units = agents[0].state.caps._excluded.tolist()
    for at, eligible in enumerate((None, 0.8, 0.4, None)):
        batch = requests(rng, models, 30, eligible, at=1e3 * at)
        batch.unit[::5] = units[0]
        decided = compare(agents, batch)
        learn(agents, rng, models, 6)
    closed = {each.row[19] for each in decided}
    assert 6 in closed  # excluded
    assert agents[0].state.caps.full(agents[0].light.ledger).any()


def test_a_model_that_is_taken_out_is_not_drawn():
    rng = np.random.default_rng(1)
    agents = agents_of(config(4, assignment="top-two", retired=(2,)))
    decided = compare(agents, requests(rng, 4, REQUESTS))
    decided += compare(agents, requests(rng, 4, REQUESTS, 0.5, at=1e3))
    assert 2 not in {each.row[9] for each in decided if each.row[10]}
    assert agents[0].light.masked


@pytest.mark.forges
def test_pauses_observing_and_the_decision():
    rng = np.random.default_rng(2)
    agents = agents_of(config(3, policy={"exclude": ["u0"]}))

    def closed(at):
        return {each.row[19] for each in compare(agents, requests(rng, 3, REQUESTS, 0.5, at))}

    for agent in agents:
        agent.controls.pause("to look")
    assert closed(1.0) == {2, 7}
    for agent in agents:
        agent.controls.resume()
        agent.state.observing_only = True
    assert closed(2e3) == {1, 7}
    assert agents[0].would_randomize
    for agent in agents:
        agent.state.observing_only = False
        agent.state.rule = replace(agent.rule, after_decision="stop")
    assert closed(3e3) == {8, 7}
    for agent in agents:
        agent.state.observing_only = True
    assert closed(4e3) == {1, 7}


def test_budgets_end_after_the_same_request():
    for budget in ({"requests": 9}, {"money": 0.5}, {"harm": 1.5}, {"requests": 20, "money": 0.3}):
        rng = np.random.default_rng(3)
        agents = agents_of(config(3, budget=BudgetConfig(**budget)))
        decided = compare(agents, requests(rng, 3, REQUESTS))
        assert decided[-1].row[19] == 3, budget
        assert agents[0].state.purse._spent == agents[1].state.purse._spent


@pytest.mark.parametrize("exhausted", [False, True])
def test_tickets_of_a_lane(exhausted):
    for tickets in (
        Tickets(draws=7),
        Tickets(draws=None, models=(4, None, None)),
        Tickets(draws=None, models=(None, None, None)),
        None,
    ):
        rng = np.random.default_rng(4)
        agents = agents_of(config(3), lane=2)
        for agent in agents:
            agent._decider.tickets, agent._decider.exhausted = tickets, exhausted
        decided = compare(agents, requests(rng, 3, REQUESTS))
        assert decided[0].row[20] == 2 << 40
        last = decided[-1].row[19]
        assert last == (0 if tickets is not None and tickets.unlimited else 3 if exhausted else 9)


def test_a_stream_of_single_requests_is_one_of_batches():
    """Ends of chunks, the room of the table, and an agent that is opened again lie between."""
    rng = np.random.default_rng(6)
    settings = config(5, "active", "top-two", caps={1: 60}, budget=BudgetConfig(requests=900))
    agents = agents_of(settings)
    for turn in range(4):
        batch = requests(rng, 5, 2300, None if turn % 2 else 0.8, at=1e4 * turn)
        for one in rows_of(batch):
            agents[0].decide(one)
        agents[1].decide(batch)
        for agent in agents:
            decided = agent.store.decision(2300 * turn + 7)
            agent.observe(outcomes(np.random.default_rng(turn), decided))
            agent.refresh(review=False)
        assert agents[0].light.pending.next == 2300 * (turn + 1)
        assert agents[0].fold.to_bytes() == agents[1].fold.to_bytes()
        if turn == 1:
            agents = tuple(
                kind(settings, each.store, KEY)
                for kind, each in zip((Agent, Batched), agents, strict=True)
            )


def test_what_is_refused_is_refused_in_the_same_words():
    good = requests(np.random.default_rng(7), 3, 1)
    wrong = [
        {"x": np.full((1, 3), np.nan)},
        {"x": np.full((1, 3), 1e300)},
        {"x": np.zeros((1, 4))},
        {"x": np.zeros((2, 3))},
        {"x": np.array([["a", "b", "c"]])},
        {"routed": np.array([3])},
        {"routed": np.array([-1])},
        {"at": np.array([np.nan])},
        {"at": np.array([-1.0])},
        {"at": np.array([1e300])},
        {"unit": np.array([1, 2])},
        {"context": np.array([], dtype=np.int64)},
        {"eligible": np.ones((1, 2), dtype=bool)},
    ]
    agents = agents_of(config(3))
    columns = {each.name: getattr(good, each.name) for each in fields(RequestBatch)}
    for change in wrong:
        said = []
        for agent in agents:
            with pytest.raises(ValueError, match=r".") as caught:
                agent.decide(RequestBatch(**(columns | change)))
            said.append((type(caught.value), str(caught.value)))
            assert agent.store.decisions == 0
        assert said[0] == said[1]
    # Whoever has it as plain values is refused with the same words.
    row = (good.unit.item(), -1, 0.0, np.full((1, 3), np.nan), 0, None, None, None, None)
    with pytest.raises(ValueError, match="finite"):
        agents[0].decide_one(row)


def test_probabilities_are_kept_for_so_many_sets_of_models(monkeypatch):
    monkeypatch.setattr("equipoise.policies.allocation._MOST_SETS", 4)
    rng = np.random.default_rng(8)
    agents = agents_of(config(6, assignment="top-two"))
    compare(agents, requests(rng, 6, REQUESTS, 0.5))
    allocation = agents[0].rule.allocation
    assert isinstance(allocation.assignment, ConstantShares)
    assert 0 < len(allocation._constant) <= 4


def test_columns_are_arrays_when_they_are_asked_for():
    agent = Agent(config(3), MemoryStore(), KEY)
    batch = agent.decide(requests(np.random.default_rng(9), 3, 1))
    assert batch.row is not None
    assert len(batch) == 1
    again = take(batch, np.array([0]))
    assert again.row is None
    assert again.number.tolist() == [0]
    with pytest.raises(AttributeError, match="no attribute 'numbers'"):
        batch.numbers  # noqa: B018
