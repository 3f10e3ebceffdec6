"""Who answered a decision, from parts in any order: fold, views and a plain recount agree."""

from __future__ import annotations

import itertools
import json
import re
import sqlite3

import msgspec
import numpy as np
import pandas as pd
import pytest
from traffic import KEY, MODELS, config

from equipoise.agent.agent import Agent
from equipoise.agent.errors import AgentError, ConflictError
from equipoise.agent.maintenance.export import tables
from equipoise.agent.moments.codec import StateFormatError, decode, encode
from equipoise.agent.record_adapter import RecordAdapter
from equipoise.agent.state.light_fold import CHUNK
from equipoise.agent.state.recovery import _with_attempts
from equipoise.store.memory import MemoryStore
from equipoise.store.records import AttemptReport, Outcome, Request
from equipoise.store.sqlite import SqliteStore

FEATURES = {"a": 0.1, "b": 0.2}
OUTPUTS = {"u": 1.0, "v": 2.0}


def gateway(store=None):
    return RecordAdapter(Agent(config(), store or MemoryStore(), KEY), clock=lambda: 1000.0)


def decide(door, count):
    return door.decide(
        [Request(request_id=f"q{i}", routed="slow", features=FEATURES) for i in range(count)]
    )


def counted(door, number):
    """(delivered, model that answered) as the fold has it."""
    table = door.agent.light.pending
    row = number - table.base
    return bool(table.delivered[row]), MODELS[table.served[row]]


def recounted(parts, assigned, routed):
    """The same from the rule in words, part by part, without the product's code."""
    failed, named, tried = set(), {}, set()
    for part in parts:
        statuses = [each["status"] for each in part.get("attempts", ())]
        if statuses:
            while "delivered" in statuses and statuses[-1] != "delivered":
                statuses.pop()
            model = part["attempts"][len(statuses) - 1]["model"]
            part = {"attempt": len(statuses)} | ({"served": model} if model else {})
            part |= {} if model and statuses[-1] == "delivered" else {"delivered": False}
        if part.keys() & {"served", "attempt", "delivered"}:
            attempt = part.get("attempt", 1)
            tried.add(attempt)
            if part.get("delivered") is False:
                failed.add(attempt)
            if "served" in part:
                named[attempt] = part["served"]
    if not tried:
        return True, assigned
    good = tried - failed
    last = max(good) if good else max(tried)
    return bool(good), named.get(last, assigned if good else routed)


CASES = {
    "a failed try and a good one": [
        {"attempt": 1, "delivered": False},
        {"attempt": 2, "outputs": OUTPUTS},
        {"reward": 0.5},
    ],
    "a fallback": [
        {"attempt": 1, "delivered": False, "served": "fast"},
        {"attempt": 2, "served": "cheap", "outputs": OUTPUTS},
        {"reward": 0.5},
    ],
    "served in another part than delivered": [
        {"delivered": False},
        {"served": "cheap", "outputs": OUTPUTS},
        {"reward": 0.5},
    ],
    "two tries fail": [
        {"attempt": 2, "delivered": False, "served": "cheap"},
        {"attempt": 1, "delivered": False, "served": "fast"},
        {"outputs": OUTPUTS, "reward": 0.5},
    ],
    "a good try, and a later one that nobody got": [
        {"attempt": 1, "served": "fast", "outputs": OUTPUTS},
        {"attempt": 2, "delivered": False, "served": "cheap"},
        {"reward": 0.5},
    ],
    "the last try is taken back": [
        {"attempt": 3, "served": "cheap"},
        {"attempt": 2, "served": "slow", "outputs": OUTPUTS},
        {"attempt": 3, "delivered": False},
        {"reward": 0.5},
    ],
    "a gateway lists what it tried": [
        {
            "attempts": [
                {"model": "fast", "status": "failed", "seconds": 0.25, "cost": 0.0},
                {"model": "fast", "status": "failed"},
                {"model": "cheap", "status": "delivered", "seconds": 1.5, "cost": 0.002},
            ],
            "outputs": OUTPUTS,
        },
        {"reward": 0.5},
    ],
    "a list says more than the one before": [
        {"attempts": [{"model": "fast", "status": "failed"}]},
        {
            "attempts": [
                {"model": "fast", "status": "failed"},
                {"model": "slow", "status": "delivered"},
                {"model": "cheap", "status": "discarded"},
            ]
        },
        {"outputs": OUTPUTS, "reward": 0.5},
    ],
    "no model answered what came from a cache": [
        {"attempts": [{"model": "fast", "status": "cached", "cost": 0.0}], "outputs": OUTPUTS},
        {"reward": 0.5},
    ],
    "the answer came from a model that is not compared": [
        {
            "attempts": [
                {"model": "slow", "status": "failed"},
                {"model": None, "status": "delivered"},
            ],
            "outputs": OUTPUTS,
            "reward": 0.5,
        }
    ],
    "nobody speaks of attempts": [{"outputs": OUTPUTS}, {"reward": 0.5}],
}


@pytest.mark.parametrize("name", CASES)
def test_the_order_of_parts_decides_nothing(name, tmp_path):
    """Every order of the parts, as decisions of one store, against recount and views."""
    orders = list(itertools.permutations(CASES[name]))
    with SqliteStore(tmp_path / "log.db") as store:
        door = gateway(store)
        decided = decide(door, max(30, 3 * len(orders)))
        # Every model is assigned somewhere: routed ones are "slow".
        assert {item.model for item in decided} == set(MODELS)
        for item, order in zip(decided, itertools.cycle(orders), strict=False):
            for part in order:
                outcome = msgspec.convert({"decision_id": item.decision_id, **part}, Outcome)
                assert door.observe([outcome]).rows == 1
        expected = [recounted(CASES[name], item.model, "slow") for item in decided]
        assert [counted(door, number) for number in range(len(decided))] == expected
        again = Agent(config(), store, KEY)
        assert again.fold.to_bytes() == door.agent.fold.to_bytes()
    connection = sqlite3.connect(tmp_path / "log.db")
    query = (
        "SELECT delivered, served FROM decision_log ORDER BY CAST(substr(decision_id, 2) AS INT)"
    )
    assert [(bool(a), b) for a, b in connection.execute(query)] == expected
    drawn = sum(
        item.randomized and told == (True, item.model)
        for item, told in zip(decided, expected, strict=True)
    )
    assert connection.execute("SELECT sum(assigned) FROM exp_summary").fetchone() == (drawn,)
    connection.close()
    assert door.agent.answers.view().moments.exp.count.sum() == drawn


def test_random_parts_in_random_order_and_batches():
    """200 decisions with up to three attempts each, in one chunk; the state is the same bit for bit
    from the log and from a checkpoint in the middle of the parts."""
    rng = np.random.default_rng(12)
    store = MemoryStore()
    door = gateway(store)
    decided = decide(door, 200)
    told = {}
    for item in decided:
        parts = [{"outputs": OUTPUTS}, {"reward": 0.5}]
        for attempt in range(1, int(rng.integers(1, 4))):
            part = {"attempt": attempt}
            if rng.random() < 0.5:
                part["delivered"] = bool(rng.random() < 0.5)
            if rng.random() < 0.6:
                part["served"] = str(rng.choice(MODELS))
            parts.append(part)
        told[item.decision_id] = [parts[at] for at in rng.permutation(len(parts))]
    queue = [(name, part) for name, parts in told.items() for part in parts]
    rng.shuffle(queue)
    before = None
    assert 200 + len(queue) < CHUNK
    while queue:
        batch, names = [], set()
        while queue and queue[-1][0] not in names and len(batch) < 50:
            name, part = queue.pop()
            names.add(name)
            batch.append(Outcome(decision_id=name, **part))
        door.observe(batch)
        if before is None and len(queue) < 300:
            before = store.next_seq, door.agent.fold.to_bytes()
    for number, item in enumerate(decided):
        expected = recounted(told[item.decision_id], item.model, "slow")
        assert counted(door, number) == expected, told[item.decision_id]
    assert Agent(config(), store, KEY).fold.to_bytes() == door.agent.fold.to_bytes()
    store.checkpoint(*before, 0.0)
    again = Agent(config(), store, KEY)
    assert again.fold.to_bytes() == door.agent.fold.to_bytes()
    drawn = sum(
        item.randomized and counted(door, number) == (True, item.model)
        for number, item in enumerate(decided)
    )
    assert 0 < drawn < sum(item.randomized for item in decided)
    assert again.answers.view().moments.exp.count.sum() == drawn


def test_repeats_are_repeats_and_what_is_new_is_kept_beside_them():
    """At once a reward that is known and a delivery that is not: the delivery counts."""
    door = gateway()
    item = decide(door, 1)[0]
    name = item.decision_id
    door.observe([Outcome(decision_id=name, reward=0.5)])
    more = Outcome(decision_id=name, reward=0.5, delivered=False)
    assert door.observe([more]).rows == 1
    assert counted(door, 0) == (False, "slow")
    rows = door.agent.store.next_seq
    for again in (more, Outcome(decision_id=name, delivered=False)):
        assert door.observe([again]).duplicates == 1
    assert door.agent.store.next_seq == rows
    door.observe([Outcome(decision_id=name, attempt=2, served="cheap")])
    assert counted(door, 0) == (True, "cheap")
    with pytest.raises(
        ConflictError, match="served of attempt 2 of decision d0 was cheap, now fast"
    ):
        door.observe([Outcome(decision_id=name, attempt=2, served="fast")])


def test_what_another_model_answered_is_the_worst_case():
    """What the assigned model would have got is unknown: its ends are those of nothing known, and
    hold what its own answers are worth as well as what being sent to it is."""
    door = gateway()
    for item in decide(door, 300):
        by = "cheap" if item.model == "fast" else item.model
        door.observe(
            [Outcome(decision_id=item.decision_id, served=by, outputs=OUTPUTS, reward=0.5)]
        )
    certified = door.agent.answers.view().certified.overall
    fast = MODELS.index("fast")
    assert certified.rows == 300
    assert certified.missing == door.agent.light.pending.model[:300].tolist().count(fast)
    assert certified.rewards.low[fast] == 0.0
    assert certified.rewards.high[fast] == certified.rewards.count[fast] > 0
    assert np.isnan(door.agent.answers.estimates(["ipw"])["ipw"].values[fast])
    check = {each.name: each for each in door.agent.answers.checks()}["delivery"]
    assert check.status == "alarm"
    assert check.models == (MODELS.index("fast"),)
    assert "Another model answered" in check.sentence
    assert check.figures["exposed"][1] == 0 < check.figures["delivered"][1]


def mixed(store=None):
    """Draws carried out, fallbacks, and draws that nobody got, in turn."""
    door = gateway(store)
    for number, item in enumerate(decide(door, 300)):
        parts = [
            Outcome(decision_id=item.decision_id, outputs=OUTPUTS, reward=0.5),
            Outcome(decision_id=item.decision_id, served="cheap", outputs=OUTPUTS, reward=0.5),
            Outcome(decision_id=item.decision_id, attempt=2, delivered=False),
        ]
        door.observe([parts[number % 3]])
    return door


def test_the_state_that_a_truncated_log_begins_with_is_taken_over():
    """Without what older versions did not keep, who answered is what they said it was."""
    door = mixed()
    arrays, fields = decode(door.agent.fold.to_bytes())
    added = {"pending.attempts", "pending.confirmed", "pending.reward_at"}
    older = {k: v for k, v in arrays.items() if k not in added | {"watch.panel.delivery.other"}}
    assert len(older) == len(arrays) - 4
    with pytest.raises(StateFormatError, match="another version"):
        door.agent.fold.load_bytes(encode(older, fields))
    again = gateway()
    again.agent.fold.load_bytes(_with_attempts(encode(older, fields)))
    table, other = door.agent.light.pending, again.agent.light.pending
    for name in ("served", "delivered", "reward", "has_outputs"):
        mine, theirs = getattr(table, name), getattr(other, name)
        np.testing.assert_array_equal(mine[:300], theirs[:300])
    with pytest.raises(ConflictError, match="served of attempt 1 of decision d1 was cheap"):
        again.observe([Outcome(decision_id="d1", served="fast")])
    assert _with_attempts(door.agent.fold.to_bytes()) == door.agent.fold.to_bytes()


def test_tables_and_answers_name_what_a_part_says_and_no_more():
    door = gateway()
    decide(door, 1)
    parts = [{"reward": 0.5}, {"attempt": 2}, {"served": "cheap", "attempt": 3}]
    for part in parts:
        door.observe([Outcome(decision_id="d0", **part)])
    table = tables(door.agent.store, door.agent.config)["outcomes"]
    assert table["attempt"].tolist() == [pd.NA, 2, 3]
    assert table["served"].isna().tolist() == [True, True, False]
    assert table["served"].tolist()[-1] == "cheap"


LIST = [
    AttemptReport(model="fast", status="failed", seconds=0.5),
    AttemptReport(model="cheap", status="delivered", seconds=1.0, cost=0.002),
]


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_a_list_of_attempts_is_kept_as_it_came_and_counts_once(kind, tmp_path):
    store = MemoryStore() if kind == "memory" else SqliteStore(tmp_path / "log.db")
    door = gateway(store)
    decide(door, 2)
    outcome = Outcome(decision_id="d0", attempts=LIST, outputs=OUTPUTS)
    assert door.observe([outcome]).rows == 1
    assert door.observe([outcome]).duplicates == 1
    # The same that counts in the end, and another way to it: worth keeping.
    other = [AttemptReport(model=None, status="failed"), LIST[1]]
    assert door.observe([Outcome(decision_id="d0", attempts=other)]).rows == 1
    assert door.observe([Outcome(decision_id="d0", attempts=other)]).duplicates == 1
    door.observe([Outcome(decision_id="d1", outputs=OUTPUTS)])
    assert counted(door, 0) == (True, "cheap")
    table = tables(store, door.agent.config)["outcomes"]
    lists = [None if pd.isna(text) else json.loads(text) for text in table["attempts"]]
    assert lists == [
        [
            {"model": "fast", "status": "failed", "seconds": 0.5},
            {"model": "cheap", "status": "delivered", "seconds": 1.0, "cost": 0.002},
        ],
        [
            {"model": None, "status": "failed"},
            {"model": "cheap", "status": "delivered", "seconds": 1, "cost": 0.002},
        ],
        None,
    ]
    assert msgspec.convert(lists[1], list[AttemptReport]) == other  # as the daemon reads it
    store.close()


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (
            {"attempts": LIST, "delivered": True},
            "delivered: received true beside attempts, expected one of them",
        ),
        (
            {"attempts": [AttemptReport(model="fats", status="failed"), LIST[1]]},
            "attempts[0].model: model 'fats' is not one of slow, fast, cheap",
        ),
    ],
)
def test_a_list_that_cannot_be_is_refused(parts, words):
    door = gateway()
    decide(door, 1)
    with pytest.raises(AgentError, match=re.escape(words)):
        door.observe([Outcome(decision_id="d0", **parts)])
    assert door.agent.store.next_seq == 1
