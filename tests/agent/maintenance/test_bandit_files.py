"""Files of bandit feedback: what stands in each line and column, and how a folder comes to be."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from raw_feedback import RawRows
from traffic import KEY, Traffic, config
from typer.testing import CliRunner

from equipoise.agent.agent import Agent
from equipoise.agent.config import ModelConfig, RewardConfig
from equipoise.agent.errors import AgentError
from equipoise.agent.maintenance import export_bandit
from equipoise.agent.maintenance.bandit_files import write_feedback
from equipoise.agent.maintenance.export import write_tables
from equipoise.replay.cli import app
from equipoise.store.memory import MemoryStore
from equipoise.store.sqlite import SqliteStore
from tests.agent.maintenance.test_export_bandit import SETTINGS, played


@pytest.fixture(params=sorted(SETTINGS))
def exported(request, tmp_path):
    """(agent, folder) of a store that was exported in three formats."""
    settings = config(**SETTINGS[request.param])
    with SqliteStore(tmp_path / "log.db") as store:
        agent = played(store, settings)
    with SqliteStore(tmp_path / "log.db", read_only=True) as store:
        write_tables(store, settings, tmp_path / "tables", "parquet")
        for format_ in ("dsjson", "obp"):
            write_feedback(store, settings, tmp_path / format_, format_)
    return agent, tmp_path


def lines(folder, name="decisions.dsjson"):
    return [json.loads(line) for line in (folder / "dsjson" / name).read_text().splitlines()]


def arrays(folder):
    """The columns as obp takes them."""
    frame = pq.read_table(folder / "obp" / "bandit_feedback.parquet").to_pandas()
    return {
        name: np.stack(column)
        if name[:4] in ("cont", "pi_b", "acti") and name != "action"
        else column.to_numpy()
        for name, column in frame.items()
    }


def test_every_row_follows_from_the_raw_rows(exported):
    agent, folder = exported
    raw = RawRows(folder / "tables")
    assert len(raw.rows) == agent.answers.certified(0).rows > 100
    low, high = lines(folder), lines(folder, "decisions_high.dsjson")
    told = arrays(folder)
    assert len(raw.rows) == len(low) == len(high) == len(told["action"])
    for at, row in enumerate(raw.rows):
        line, action = low[at], raw.actions.index(row["action"])
        chances = [row["chances"][name] for name in raw.actions]
        assert sum(chances) == pytest.approx(1.0, abs=1e-12)
        # The drawn one first in `a` and `p`; actions count from 1, and the index from 0.
        assert line["EventId"] == row["id"]
        assert line["a"][0] == line["_label_Action"] == action + 1
        assert line["_labelIndex"] == action == told["action"][at]
        assert sorted(line["a"]) == list(range(1, len(raw.actions) + 1))
        assert line["p"] == pytest.approx([chances[each - 1] for each in line["a"]], abs=1e-15)
        assert line["p"][0] == line["_label_probability"] == told["pscore"][at]
        assert told["pi_b"][at] == pytest.approx(chances, abs=1e-15)
        assert -line["_label_cost"] == pytest.approx(row["low"], abs=1e-12) == told["reward"][at]
        assert -high[at]["_label_cost"] == pytest.approx(row["high"], abs=1e-12)
        assert -high[at]["_label_cost"] == told["reward_high"][at]
        assert {**high[at], "_label_cost": 0} == {**line, "_label_cost": 0}
        chosen = {name: float(row["chosen"][name] == row["action"]) for name in raw.candidates}
        assert line["p_pred"] == chosen
        for name in raw.candidates:
            given = told[f"action_dist_{name}"][at]
            assert given.sum() == given[raw.actions.index(row["chosen"][name])] == 1.0
    assert len({line["EventId"] for line in low}) == len(low)
    assert (told["position"] == 0).all()
    assert told["action"].dtype == told["position"].dtype == np.int64


def test_where_less_is_better_the_cost_is_the_reward(tmp_path):
    settings = config(reward=RewardConfig(maximise=False, window=100.0))
    store = MemoryStore()
    agent, traffic = Agent(settings, store, KEY), Traffic(np.random.default_rng(3))
    agent.observe(traffic.outcomes(agent.decide(traffic.requests(40))))
    write_feedback(store, settings, tmp_path / "dsjson", "dsjson")
    costs = {line["_label_cost"] for line in lines(tmp_path)}
    assert costs == {0.0, 1.0}
    # Every reward is known, so there is one file.
    assert {path.name for path in (tmp_path / "dsjson").iterdir()} == {
        "decisions.dsjson",
        "experiment.json",
    }


def test_the_command_replaces_what_an_export_wrote_and_nothing_else(tmp_path):
    settings = config(**SETTINGS["plain"])
    with SqliteStore(tmp_path / "log.db") as store:
        played(store, settings)
    command = ["export", str(tmp_path / "log.db"), "--out", str(tmp_path / "out")]

    def invoke(*more):
        return CliRunner().invoke(app, [*command, *more])

    first = invoke("--format", "dsjson")
    assert first.exit_code == 0
    assert "left out: 80 decisions of another era" in first.output
    assert "left out: 30 rows of the usage log" in first.output
    again = invoke("--format", "obp")
    assert isinstance(again.exception, AgentError)
    assert "replace it with --force" in str(again.exception)
    forced = invoke("--format", "obp", "--force", "--json")
    said = json.loads(forced.stdout)
    assert said["files"] == {"bandit_feedback.parquet": said["rows"]}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "bandit_feedback.parquet",
        "experiment.json",
    ]
    other = invoke("--format", "obp", "--force", "--era", "9")
    assert isinstance(other.exception, AgentError)
    assert (tmp_path / "out" / "bandit_feedback.parquet").exists()
    assert invoke("--format", "csv", "--era", "0", "--force").exit_code == 2
    assert invoke("--format", "xml").exit_code == 2
    (tmp_path / "mine").mkdir()
    mine = CliRunner().invoke(
        app, [*command[:3], str(tmp_path / "mine"), "--format", "dsjson", "--force"]
    )
    assert "not replacing what is not ours" in str(mine.exception)


def test_nothing_half_written_is_left(tmp_path, monkeypatch):
    settings = config(**SETTINGS["plain"])
    store = MemoryStore()
    played(store, settings)
    monkeypatch.setattr(export_bandit, "ROWS_AT_ONCE", 64)
    said = []

    def interrupt(rows, left):
        said.append(rows)
        if len(said) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_feedback(store, settings, tmp_path / "out", "dsjson", progress=interrupt)
    assert said[0] < said[1]
    assert list(tmp_path.iterdir()) == []


def test_both_stores_say_the_same_however_they_are_read(tmp_path, monkeypatch):
    settings = config(**SETTINGS["declared"])
    memory = MemoryStore()
    played(memory, settings)
    write_feedback(memory, settings, tmp_path / "memory", "dsjson")
    monkeypatch.setattr(export_bandit, "ROWS_AT_ONCE", 50)
    with SqliteStore(tmp_path / "log.db") as store:
        played(store, settings)
        write_feedback(store, settings, tmp_path / "sqlite", "dsjson")
    for name in ("decisions.dsjson", "decisions_high.dsjson", "experiment.json"):
        one, other = (tmp_path / each / name for each in ("memory", "sqlite"))
        if name.endswith("json") and "dsjson" not in name:
            left, right = (json.loads(path.read_text()) for path in (one, other))
            assert left["left_out"] == right["left_out"]
        else:
            assert one.read_text() == other.read_text()


def test_models_whose_names_are_nearly_alike_are_other_features(tmp_path):
    """Values of features lose what names of features keep: ":" becomes "_" there."""
    names = ("a:b", "a/b", "a_b")
    settings = config(models=[ModelConfig(name=name, price=0.01) for name in names])
    store = MemoryStore()
    agent, traffic = Agent(settings, store, KEY), Traffic(np.random.default_rng(3))
    decided = agent.decide(traffic.requests(20))
    agent.observe(traffic.outcomes(decided))
    write_feedback(store, settings, tmp_path / "dsjson", "dsjson")
    assert '"_label_cost":0.0' in (tmp_path / "dsjson" / "decisions.dsjson").read_text()
    for line, routed in zip(lines(tmp_path), decided.routed.tolist(), strict=True):
        told = line["c"]
        assert told["_multi"] == [{"m": {f"model={name}": 1.0}} for name in names]
        assert told["r"] == {f"routed={names[routed]}": 1.0}
        assert sorted(told["x"]) == ["x_a", "x_b"]


def test_the_second_file_begins_with_the_rows_before_the_first_unknown_one(tmp_path, monkeypatch):
    monkeypatch.setattr(export_bandit, "ROWS_AT_ONCE", 10)
    store = MemoryStore()
    agent, traffic = Agent(config(), store, KEY), Traffic(np.random.default_rng(3))
    told = traffic.outcomes(agent.decide(traffic.requests(40)))
    told.delivered[35] = False
    agent.observe(told)
    write_feedback(store, config(), tmp_path / "dsjson", "dsjson")
    low, high = (lines(tmp_path, name) for name in ("decisions.dsjson", "decisions_high.dsjson"))
    assert len(low) == len(high) == 40
    assert [at for at in range(40) if low[at] != high[at]] == [35]
    assert (low[35]["_label_cost"], high[35]["_label_cost"]) == (0.0, -1.0)
