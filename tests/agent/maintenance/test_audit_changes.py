"""Changes made to a store behind its back, and what notices each: the table of docs/guarantees.md.

Every change is plain SQL on a copy of one small store, which is then audited three times: as it is;
with the chain made anew from the changed rows, as somebody would who knows how; and so with an
anchor that was taken before. The table is what is found, so the documentation cannot say more.
"""

from __future__ import annotations

import re
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from traffic import KEY, Traffic, config, run

from equipoise.agent.agent import Agent
from equipoise.agent.config import BudgetConfig, ExperimentConfig, PolicyConfig
from equipoise.agent.lifecycle import stored_config
from equipoise.agent.lifecycle.rules import rule_id
from equipoise.agent.maintenance.audit import Audit, audit
from equipoise.store.format.sql_rows import LOG_TABLES, Columns
from equipoise.store.records import Control
from equipoise.store.sql import chain
from equipoise.store.sql.chain import Anchor
from equipoise.store.sqlite import SqliteStore

GUARANTEES = Path(__file__).parents[3] / "docs/guarantees.md"
Change = str | Callable[[sqlite3.Connection], None]

_DECISION = "WHERE number = 77"
_NOT_DRAWN = "WHERE number = (SELECT min(number) FROM decisions WHERE randomized = 0)"
_DRAWN = "WHERE number = (SELECT max(number) FROM decisions WHERE randomized = 1)"
_REWARDED = "WHERE seq = (SELECT min(seq) FROM outcomes WHERE reward = 1.0)"
_USED = "(SELECT rule_id FROM decisions WHERE number = 77)"


def swap(table: str, columns: str, first: str, second: str) -> Callable[..., None]:
    """Exchange columns of two rows."""

    def change(connection: sqlite3.Connection) -> None:
        names = columns.split(", ")
        rows = [
            connection.execute(f"SELECT seq, {columns} FROM {table} {where}").fetchone()
            for where in (first, second)
        ]
        assert rows[0][1:] != rows[1][1:]
        setting = ", ".join(f"{name} = ?" for name in names)
        for target, source in (rows, rows[::-1]):
            connection.execute(
                f"UPDATE {table} SET {setting} WHERE seq = ?", (*source[1:], target[0])
            )

    return change


def other_text(with_id: bool, decisions: bool = False) -> Callable[..., None]:
    """Another floor in a rule's text; with its own id, and with decisions that name that."""

    def change(connection: sqlite3.Connection) -> None:
        old, body = connection.execute(
            f"SELECT rule_id, body FROM rules WHERE rule_id = {_USED}"
        ).fetchone()
        text = re.sub(r'"floor":[0-9.]+', '"floor":0.049', body)
        new = rule_id(text) if with_id else old
        assert text != body
        connection.execute(
            "UPDATE rules SET body = ?, rule_id = ? WHERE rule_id = ?", (text, new, old)
        )
        if decisions:
            connection.execute("UPDATE decisions SET rule_id = ? WHERE rule_id = ?", (new, old))

    return change


def newest_gone(count: int) -> Callable[..., None]:
    def change(connection: sqlite3.Connection) -> None:
        last = max(
            connection.execute(f"SELECT coalesce(max(seq), -1) FROM {table.name}").fetchone()[0]
            for table in LOG_TABLES
        )
        for table in LOG_TABLES:
            connection.execute(f"DELETE FROM {table.name} WHERE seq > ?", (last - count,))

    return change


def added(table: str, values: str) -> Callable[..., None]:
    """One more row at the end of the log, like its newest but for some values (SQL)."""

    def change(connection: sqlite3.Connection) -> None:
        names = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
        given = dict(part.split(" = ", 1) for part in values.split("; "))
        end = " UNION ALL ".join(f"SELECT max(seq) AS s FROM {each.name}" for each in LOG_TABLES)
        given["seq"] = f"(SELECT max(s) + 1 FROM ({end}))"
        chosen = ", ".join(given.get(name, name) for name in names)
        connection.execute(
            f"INSERT INTO {table} ({', '.join(names)})"
            f" SELECT {chosen} FROM {table} ORDER BY seq DESC LIMIT 1"
        )

    return change


def forged_state(connection: sqlite3.Connection) -> None:
    """Another state in the newest checkpoint, with the checksum that belongs to it."""
    from equipoise.store.sql.records import checkpoint_checksum

    key, seq, at, state = connection.execute(
        "SELECT id, seq, at, state FROM checkpoints ORDER BY id DESC LIMIT 1"
    ).fetchone()
    state = state[:-1] + bytes([state[-1] ^ 1])
    connection.execute(
        "UPDATE checkpoints SET state = ?, checksum = ? WHERE id = ?",
        (state, checkpoint_checksum(seq, at, state), key),
    )


CHANGES: dict[str, Change] = {
    "probability of a decision": "UPDATE decisions SET probabilities = '[0.4,0.3,0.3]'"
    f" {_DECISION}",
    "probability by 1e-10": "UPDATE decisions SET probabilities = json_array("
    "json_extract(probabilities, '$[0]') + 1e-10, json_extract(probabilities, '$[1]'),"
    f" json_extract(probabilities, '$[2]')) {_DECISION}",
    "rate of a decision": f"UPDATE decisions SET rate = rate * 1.001 {_DRAWN}",
    "uniform of a decision": f"UPDATE decisions SET uniform = uniform / 2 {_DECISION}",
    "model of a decision": f"UPDATE decisions SET model = (model + 1) % 3 {_DECISION}",
    "a draw hidden as capped": "UPDATE decisions SET capped = 1, rate = 0.0, randomized = 0,"
    f" model = routed {_DRAWN}",
    "features of a decision": f"UPDATE decisions SET x = '[0.5,0.5]' {_DECISION}",
    "routed model of a decision": f"UPDATE decisions SET routed = (routed + 1) % 3 {_DRAWN}",
    "routed and served model, not randomized": "UPDATE decisions SET routed = (routed + 1) % 3,"
    f" model = (model + 1) % 3 {_NOT_DRAWN}",
    "request id of a decision": f"UPDATE decisions SET request_id = 'somebody' {_DECISION}",
    "unit of a decision": f"UPDATE decisions SET unit = 12345 {_DECISION}",
    "context of a decision": f"UPDATE decisions SET context = 49 {_DECISION}",
    "era of a decision": f"UPDATE decisions SET era = 1 {_DECISION}",
    "time of a decision": f"UPDATE decisions SET at = at - 3600.0 {_DECISION}",
    "two decisions swapped": swap(
        "decisions", "x, uniform, model, randomized, rate, routed", _DRAWN, _NOT_DRAWN
    ),
    "a decision deleted in the middle": f"DELETE FROM decisions {_DECISION}",
    "a forged decision": added(
        "decisions",
        "number = number + 1; request_id = 'forged'; rate = 0.3; uniform = 0.1; model = 1;"
        " randomized = 1; capped = 0",
    ),
    "one reward": f"UPDATE outcomes SET reward = 0.0 {_REWARDED}",
    "all rewards of a model": "UPDATE outcomes SET reward = 1.0 WHERE served = 2",
    "two rewards swapped": swap(
        "outcomes",
        "reward",
        _REWARDED,
        "WHERE seq = (SELECT min(seq) FROM outcomes WHERE reward = 0.0)",
    ),
    "a reward outside its range": f"UPDATE outcomes SET reward = 1.5 {_REWARDED}",
    "served model of an outcome": f"UPDATE outcomes SET served = (served + 1) % 3 {_REWARDED}",
    "delivered of an outcome": f"UPDATE outcomes SET delivered = 0 {_REWARDED}",
    "outputs of an outcome": f"UPDATE outcomes SET outputs = '[0.0,0.0]' {_REWARDED}",
    "decision of an outcome": f"UPDATE outcomes SET number = number + 1 {_REWARDED}",
    "a forged outcome": added("outcomes", "number = 3; reward = 1.0 - reward"),
    "an outcome before its decision": "UPDATE outcomes SET number = (SELECT max(number)"
    f" FROM decisions) {_REWARDED}",
    "an outcome deleted": f"DELETE FROM outcomes {_REWARDED}",
    "a forged observation": added("observations", "reward = 1.0"),
    "reward of an observation": "UPDATE observations SET reward = 1.0 WHERE seq ="
    " (SELECT min(seq) FROM observations)",
    "outputs of a simulation": "UPDATE simulations SET outputs = '[0.0,0.0]' WHERE seq ="
    " (SELECT min(seq) FROM simulations)",
    "a forged expiry of a complete decision, which changes nothing": added(
        "expiries", "number = 2"
    ),
    "time of an expiry": "UPDATE expiries SET at = at - 100.0",
    "newest rows deleted": newest_gone(40),
    "the newest row deleted": newest_gone(1),
    "text of a rule": other_text(with_id=False),
    "text and id of a rule": other_text(with_id=True),
    "text and id of a rule, and its decisions": other_text(with_id=True, decisions=True),
    "alarms of a rule": "UPDATE rules SET body = replace(body, '\"alarms\":[]',"
    f' \'"alarms":["drift"]\') WHERE rule_id = {_USED}',
    "era of a rule": f"UPDATE rules SET era = era + 1 WHERE rule_id = {_USED}",
    "time of a rule": f"UPDATE rules SET at = at + 60.0 WHERE rule_id = {_USED}",
    "a used rule deleted": f"DELETE FROM rules WHERE rule_id = {_USED}",
    "an unused rule deleted": "DELETE FROM rules WHERE rule_id NOT IN"
    " (SELECT rule_id FROM decisions)",
    "reason of an era": "UPDATE eras SET reason = 'nothing happened' WHERE era = 1",
    "key hash of the store": "UPDATE settings SET value = '00' WHERE name = 'key_hash'",
    "reward range in the configuration": "UPDATE settings SET value ="
    " json_set(value, '$.reward.high', 2.0) WHERE name = 'config'",
    "a budget that an operator set": "UPDATE controls SET value = '500' WHERE name = 'budget'",
    "a forged budget": "INSERT INTO controls (at, name, value) VALUES (5.0, 'budget', '10')",
    "a pause deleted": "DELETE FROM alerts WHERE check_name = 'pause'",
    "a note of what stopped randomizing": "DELETE FROM controls WHERE name = 'stops' AND"
    " value LIKE '%somebody%'",
    "a damaged checkpoint": "UPDATE checkpoints SET state = substr(state, 2)",
    "a forged checkpoint, with its checksum": forged_state,
    "a checkpoint deleted, and one from nowhere": "UPDATE checkpoints SET id = id + 5 WHERE id ="
    " (SELECT max(id) FROM checkpoints)",
    "the chain deleted": "DELETE FROM chain",
    "a digest of the chain": "UPDATE chain SET digest = replace(digest, substr(digest, 1, 4),"
    " '0000') WHERE id = 256",
}
"""What is changed, as a reader calls it."""


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Anchor]:
    """A store with a bit of everything, and where its chains end."""
    path = tmp_path_factory.mktemp("honest") / "log.db"
    policy = PolicyConfig(gate="fixed-rate", assignment="thompson", rate=0.5)
    settings = config(policy=policy, budget=BudgetConfig(requests=100))
    with SqliteStore(path) as store:
        agent, traffic = Agent(settings, store, KEY), Traffic(np.random.default_rng(4))
        agent.simulate(traffic.simulations(20))
        agent.ingest(traffic.observations(40))
        run(agent, traffic, 4)
        store.put(Control(at=4.0, name="budget", value="120"))
        agent.controls.set_budget(120)
        agent.controls.pause("somebody", traffic.at)
        run(agent, traffic, 1)
        agent.controls.resume(traffic.at)
        agent.checkpoint(traffic.at)
        agent.controls.open_era("by hand", traffic.at)
        agent.refresh()
        for row in range(30):
            asked = replace(traffic.requests(1), request_id=[f"r{row}"])
            agent.observe(traffic.outcomes(agent.decide(asked)))
        run(agent, traffic, 1)
        lost = agent.decide(traffic.requests(5))
        agent.expire(float(lost.at[0]) + 150.0)
        agent.refresh()
        agent.ingest(traffic.observations(3))
        agent.checkpoint(traffic.at)
        return path, store.anchor(traffic.at)


def _alone(table: str, row: chain.Row) -> Columns:
    (found,) = (each for each in LOG_TABLES if each.name == table)
    return Columns(found, [[value] for value in row])


def rechain(connection: sqlite3.Connection) -> None:
    """Make every chain anew from what is there, as somebody would who knows how."""
    connection.execute("BEGIN")
    connection.execute("DELETE FROM chain")
    digest = chain.first_digest(0).hex()
    connection.execute("INSERT INTO chain VALUES (0, 'begins', 0, ?)", (digest,))
    connection.execute("INSERT INTO chain VALUES (-1, 'log', 0, ?)", (digest,))
    rows = chain.rows_between(connection, 0, 2**62)
    held = None
    for index, (table, row) in enumerate(rows):
        # Whoever deletes a row in the middle cannot number the others anew without more.
        if held is not None and held[0] != row[0]:
            break
        held = chain.extend(connection, held, row[0], [_alone(table, row)])
        assert index == row[0]
    for name in chain.RECORDS:
        chain.extend_records(connection, name)
    states = connection.execute("SELECT id, seq, checksum FROM checkpoints").fetchall()
    for key, seq, checksum in states:
        chain.note_state(connection, "checkpoint", key, seq, checksum)
    connection.execute("COMMIT")


def audited(path: Path, anchors: tuple[Anchor, ...] = ()) -> str | None:
    """The first fault that an audit names, None where it finds none."""
    try:
        with SqliteStore(path, read_only=True) as store:
            found: Audit = audit(
                store,
                ExperimentConfig.from_json(stored_config.load(store) or ""),
                KEY,
                anchors=anchors,
            )
    except ValueError as error:  # refused before anything is audited
        return f"refused: {error}"
    return found.faults[0] if found.faults else None


def outcome(change: Change, honest: tuple[Path, Anchor], folder: Path) -> tuple[bool, bool, bool]:
    """Whether a change is noticed: as it is, with its chain made anew, so and with an anchor."""
    path, anchor = honest
    copy = folder / "log.db"
    shutil.copy(path, copy)
    with closing(sqlite3.connect(copy, isolation_level=None)) as connection:
        before = list(connection.iterdump())
        if isinstance(change, str):
            connection.execute(change)
        else:
            change(connection)
        assert list(connection.iterdump()) != before
    plain = audited(copy)
    with closing(sqlite3.connect(copy, isolation_level=None)) as connection:
        rechain(connection)
    return plain is not None, audited(copy) is not None, audited(copy, (anchor,)) is not None


def documented() -> dict[str, tuple[bool, bool, bool]]:
    """The table of the documentation."""
    found = {}
    for line in GUARANTEES.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and cells[0] in CHANGES:
            found[cells[0]] = tuple(cell == "noticed" for cell in cells[1:])
    return found


def test_the_honest_store_is_clean(honest: tuple[Path, Anchor]) -> None:
    assert audited(honest[0]) is None
    assert audited(honest[0], (honest[1],)) is None


def test_the_table_names_every_change() -> None:
    assert list(documented()) == list(CHANGES)
    assert sum(plain for plain, _, _ in documented().values()) >= 33
    assert len(CHANGES) - sum(plain for plain, _, _ in documented().values()) <= 1


@pytest.mark.parametrize("name", CHANGES)
def test_what_notices_a_change(name: str, honest: tuple[Path, Anchor], tmp_path: Path) -> None:
    assert outcome(CHANGES[name], honest, tmp_path) == documented()[name]
