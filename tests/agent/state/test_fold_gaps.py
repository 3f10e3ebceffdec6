"""Numbers that were lost: no decision has them, no sum knows them, and the fold is the same."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from traffic import KEY, Traffic, config

from equipoise.agent.agent import Agent
from equipoise.agent.errors import AgentError, UnknownDecisionError
from equipoise.agent.maintenance.audit import audit
from equipoise.store.batches import OutcomeBatch
from equipoise.store.errors import LostRowsError
from equipoise.store.records import Gap
from equipoise.store.sql.records import insert_record
from equipoise.store.sqlite import SqliteStore

FIRST, LOST = 200, 37


def lose(store: SqliteStore) -> None:
    """Note that the next numbers were given to decisions that are lost."""
    with store._session.transaction() as connection:
        gap = Gap(
            at=1.0,
            first=store.decisions,
            numbers=LOST,
            row=store.next_seq,
            rows=LOST,
            reason="test",
        )
        insert_record(connection, gap)


def run(agent: Agent, traffic: Traffic, batches: int) -> None:
    for _ in range(batches):
        decided = agent.decide(traffic.requests(20))
        agent.observe(traffic.outcomes(decided))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A log with a gap behind its first 200 decisions, and 1,200 after it."""
    path, traffic = tmp_path / "log.db", Traffic(np.random.default_rng(5))
    with SqliteStore(path) as store:
        agent = Agent(config(), store, KEY)
        run(agent, traffic, FIRST // 20)
        agent.refresh(1.0)
        lose(store)
    with SqliteStore(path) as store:
        agent = Agent(config(), store, KEY)
        first = agent.decide(traffic.requests(20))
        assert first.number.tolist() == list(range(FIRST + LOST, FIRST + LOST + 20))
        agent.observe(traffic.outcomes(first))
        run(agent, traffic, 59)
        agent.refresh(2.0)
        agent.checkpoint(2.0)
    return path


def test_the_state_is_a_fold_of_the_log_however_it_is_cut(path: Path) -> None:
    class FromTheStart(SqliteStore):
        def restore(self) -> None:
            return None

    with SqliteStore(path, read_only=True) as store:
        restored = Agent(config(), store, None)
    with FromTheStart(path, read_only=True) as store:
        folded = Agent(config(), store, None)
    assert folded.fold.to_bytes() == restored.fold.to_bytes()
    assert restored.state.decisions == FIRST + 1200


@pytest.mark.forges
def test_sums_are_those_of_the_same_decisions_without_a_gap(path: Path, tmp_path: Path) -> None:
    """The same rows, numbered without a gap, have the same sums: what is lost counts nowhere."""
    with SqliteStore(path, read_only=True) as gappy, SqliteStore(tmp_path / "whole.db") as store:
        lossy = Agent(config(), gappy, None)  # it reads rules from its store when it needs them
        rows = list(gappy.read())
        rules = gappy.rules()
        whole = Agent(config(), store, KEY)
        for record in rules:
            store.put(record)
            whole.controls.adopt(record)
        for segment in rows:
            batch: Any = segment.batch
            number = np.where(batch.number >= FIRST, batch.number - LOST, batch.number)
            store.append(replace(batch, number=number))
        whole.follow()
        assert whole.state.decisions == lossy.state.decisions
        for mine, other in zip(
            whole.answers.view().certified.sums, lossy.answers.view().certified.sums, strict=True
        ):
            for name, array in mine.arrays().items():
                np.testing.assert_array_equal(array, other.arrays()[name], err_msg=name)
        assert whole.answers.view().moments.to_bytes() == lossy.answers.view().moments.to_bytes()
        assert [(c.name, c.status) for c in whole.answers.checks()] == [
            (c.name, c.status) for c in lossy.answers.checks()
        ]


@pytest.mark.forges
def test_the_audit_is_clean_and_says_what_is_lost(path: Path) -> None:
    with SqliteStore(path, read_only=True) as store:
        result = audit(store, config(), KEY)
        assert result.clean
        assert result.uniforms_redrawn
        assert result.decisions == FIRST + 1200
        (sentence,) = result.losses
        assert f"d{FIRST} to d{FIRST + LOST - 1} will be no decision" in sentence
    with SqliteStore(path) as store, store._session.transaction() as connection:
        connection.execute("DELETE FROM gaps")
    with SqliteStore(path, read_only=True) as store:
        found = audit(store, config(), KEY)
    assert "decision d237 is out of sequence, and 19 more" in found.faults
    assert found.faults[0].startswith("gaps: they are not those that were written")


@pytest.mark.parametrize("number", [FIRST, FIRST + LOST - 1])
def test_an_outcome_of_a_lost_decision_is_told_so(path: Path, number: int) -> None:
    with SqliteStore(path) as store:
        agent = Agent(config(), store, KEY)
        rows = store.next_seq
        outcome = OutcomeBatch(
            number=np.array([number]),
            served=np.array([0]),
            attempt=np.array([1]),
            delivered=np.array([True]),
            outputs=np.full((1, 2), np.nan),
            reward=np.array([1.0]),
            at=np.array([3.0]),
        )
        with pytest.raises(UnknownDecisionError, match="will be no decision"):
            agent.observe(outcome)
        assert store.next_seq == rows


def test_a_loss_is_no_fault_but_an_anchor_from_before_it_is_contradicted(tmp_path: Path) -> None:
    """Else whoever deletes the newest rows would only have to call it a loss."""
    path, older = tmp_path / "log.db", tmp_path / "older.db"
    traffic = Traffic(np.random.default_rng(6))
    with SqliteStore(path) as store:
        run(Agent(config(), store, KEY), traffic, 4)
        before = store.anchor(1.0)
    shutil.copy(path, older)
    with SqliteStore(path) as store:
        run(Agent(config(), store, KEY), traffic, 2)
        after = store.anchor(2.0)
    older.replace(path)
    with pytest.raises(LostRowsError, match="d80 to d119 will be no decision"):
        SqliteStore(path)
    with SqliteStore(path, accept_loss=True) as store:
        run(Agent(config(), store, KEY), traffic, 3)
    with SqliteStore(path, read_only=True) as store:
        found = audit(store, config(), KEY, anchors=[before])
        assert found.faults == []
        assert found.chained_rows == found.rows == store.next_seq
        assert found.decisions == 4 * 20 + 3 * 20
        assert len(found.losses) == 1
        (fault,) = audit(store, config(), KEY, anchors=[before, after]).faults
        assert fault.startswith(f"the first {after.log.position if after.log else 0} rows are not")


@pytest.mark.forges
def test_an_outcome_of_a_lost_decision_in_the_log_is_a_fault(path: Path) -> None:
    with SqliteStore(path) as store:
        store.append(
            OutcomeBatch(
                number=np.array([FIRST + 3]),
                served=np.array([0]),
                attempt=np.array([0]),
                delivered=np.array([True]),
                outputs=np.full((1, 2), np.nan),
                reward=np.array([1.0]),
                at=np.array([3.0]),
            )
        )
        found = audit(store, config(), KEY)
    assert found.faults == [f"decision d{FIRST + 3} is answered for and was lost"]


@pytest.mark.forges
@pytest.mark.parametrize("first", [True, False])
def test_an_altered_rule_is_refused_before_anything_follows_it(path: Path, first: bool) -> None:
    with SqliteStore(path) as store:
        rules = store.rules()
        assert len(rules) > 2
        rule = rules[0 if first else -1].rule_id
        store._session.connection.execute(
            "UPDATE rules SET body = replace(body, '\"since\":', '\"since\":1') WHERE rule_id = ?",
            (rule,),
        )
        for key in (KEY, None):
            with pytest.raises(AgentError, match=f"rule {rule} of the store was altered"):
                Agent(config(), store, key)
