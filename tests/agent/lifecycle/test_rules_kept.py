"""Rules of a long life: read when asked for, not kept twice, removed when nothing needs them."""

from __future__ import annotations

import numpy as np
import pytest
from traffic import KEY, Traffic, config, run

from equipoise.agent.agent import Agent
from equipoise.agent.config import PolicyConfig
from equipoise.agent.lifecycle import rules as rules_module
from equipoise.agent.lifecycle.rules import RuleBook, unused_rules
from equipoise.agent.maintenance.audit import audit
from equipoise.agent.moments.codec import decode
from equipoise.store.sqlite import SqliteStore


def test_rules_are_read_when_they_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(rules_module, "HELD_BYTES", 1)
    with SqliteStore(tmp_path / "log.db") as store:
        agent = Agent(config(), store, KEY)
        run(agent, Traffic(np.random.default_rng(1)), 30, size=60)
        read = []
        known = SqliteStore.rule
        monkeypatch.setattr(SqliteStore, "rule", lambda *a: (read.append(a[1]), known(*a))[1])
        book = RuleBook(store)
        assert read == []
        kept = store.rules()
        assert len(book) == book.count == len(kept) > rules_module.FEWEST_HELD
        for ordinal, record in enumerate(kept):
            assert book.ordinal(record.rule_id) == ordinal
            assert book.by_ordinal(ordinal).encode() == record.body
            assert book.rule(record.rule_id) is book.by_ordinal(ordinal)
        assert read == [record.rule_id for record in kept]
        assert len(book._held) == rules_module.FEWEST_HELD
        # The first has left memory, and comes back the same.
        assert book.by_ordinal(0).encode() == kept[0].body


@pytest.mark.forges
@pytest.mark.parametrize("assignment", ["uniform", "top-two"])
def test_whether_any_rule_looked_at_a_request_is_known_after_a_restart(tmp_path, assignment):
    with SqliteStore(tmp_path / "log.db") as store:
        agent = Agent(
            config(policy=PolicyConfig(gate="fixed-rate", assignment=assignment)), store, KEY
        )
        traffic = Traffic(np.random.default_rng(1))
        agent.simulate(traffic.simulations())
        run(agent, traffic, 12, size=60)
        looked = any('"kind":"constant-shares"' not in record.body for record in store.rules())
        assert agent.state.rules.context_free is RuleBook(store).context_free is (not looked)
        # One that does, among many that do not.
        odd = store.rules()[2].body.replace("constant-shares", "another")
        if assignment == "uniform":
            store._session.connection.execute("UPDATE rules SET body = ? WHERE id = 3", (odd,))
            assert RuleBook(store).context_free is False


def test_a_rule_that_is_the_same_but_for_its_beginning_is_not_kept_again(tmp_path):
    with SqliteStore(tmp_path / "log.db") as store:
        agent = Agent(config(policy=PolicyConfig(assignment="uniform")), store, KEY)
        traffic = Traffic(np.random.default_rng(1))
        run(agent, traffic, 5, size=60)
        agent.refresh()
        known, rule = len(store.rules()), agent.rule
        for _ in range(5):
            agent.decide(traffic.requests(10))
            agent.refresh()
            assert agent.answers.proposal(1.0).rule_id == rule.rule_id
        assert len(store.rules()) == known
        assert agent.rule is rule
        agent.observe(traffic.outcomes(agent.decide(traffic.requests(600))))
        agent.refresh()
        assert len(store.rules()) == known + 1
        assert audit(store, agent.config, KEY).faults == []


def test_retention_removes_rules_that_nothing_refers_to_and_no_other(tmp_path, short_chunks):
    """What is left is found another way: by reading every row and the state itself."""
    with SqliteStore(tmp_path / "log.db") as store:
        agent, traffic = Agent(config(), store, KEY), Traffic(np.random.default_rng(1))
        for turn in range(40):
            made = agent.decide(traffic.requests(100))
            if turn != 11:  # these wait for ever, and hold their rule
                agent.observe(traffic.outcomes(made))
            agent.refresh()
            if turn == 25:
                store.keep_base(agent.light.next_seq, agent.fold.to_bytes(), 1.0)
        before = dict(store.rule_ids())
        assert unused_rules(store) == []
        assert store.truncation.trim(2.0, 3.0, None) is not None
        unused = unused_rules(store)
        store.remove_rules(unused)
        after = dict(store.rule_ids())
        gone = {name for ordinal, name in before.items() if ordinal not in after}
        assert len(gone) == len(unused) > 5
        assert all(before[ordinal] == name for ordinal, name in after.items())

        root = decode(store.base_snapshot().state)[0]
        needed = {before[ordinal] for ordinal in root["pending.rule"].tolist()}
        needed |= {
            before[ordinal] for ordinal in root["certified.reference"].tolist() if ordinal >= 0
        }
        for segment in store.read():
            needed |= {getattr(segment.batch, "rule_id", agent.rule.rule_id)}
        assert not gone & needed

        state, rule = agent.fold.to_bytes(), agent.rule
        assert audit(store, agent.config, KEY).faults == []
        again = Agent(config(), store, KEY)
        assert again.fold.to_bytes() == state
        assert again.rule.rule_id == rule.rule_id
        assert len(again.state.rules) == len(agent.state.rules)
        # Ordinals go on where they were.
        again.observe(traffic.outcomes(again.decide(traffic.requests(600))))
        again.refresh()
        assert store.rule_ids()[-1] == (len(agent.state.rules), again.rule.rule_id)
        assert unused_rules(store) == []
