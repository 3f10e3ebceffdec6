"""Exported files are enough: an outsider recomputes certified intervals from them alone."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy.optimize import brentq
from traffic import KEY, MODELS, Traffic, config, run
from typer.testing import CliRunner

from equipoise.agent.agent import Agent
from equipoise.agent.config import (
    CertifyConfig,
    DeclaredPolicy,
    PolicyConfig,
    RewardConfig,
    SegmentConfig,
    UnitsConfig,
)
from equipoise.agent.errors import AgentError
from equipoise.agent.maintenance import export
from equipoise.agent.maintenance.export import tables, write_tables
from equipoise.agent.maintenance.export_sums import MEANINGS, _around
from equipoise.replay.cli import app
from equipoise.store.memory import MemoryStore
from equipoise.store.records import Gap
from equipoise.store.sqlite import SqliteStore

DOCUMENTED = Path(__file__).parents[3] / "docs/export.md"
SETTINGS = {
    "bounded": {"policy": PolicyConfig(gate="contrast", assignment="contrast", rate=0.3)},
    "declared": {
        "policy": PolicyConfig(assignment="top-two", rate=0.4),
        "reward": RewardConfig(low=-1.0, high=3.0, window=100.0, missing=0.5),
        "certify": CertifyConfig(
            segments=[SegmentConfig(name="left", column="a", high=0.1)],
            policies=[
                DeclaredPolicy(
                    name="split", column="a", at_least=0.0, model="fast", otherwise="slow"
                )
            ],
        ),
    },
    "sticky": {"units": UnitsConfig(ttl=3.0)},
}


def played(store, settings):
    """An era before, replays in the middle, lost rewards, undelivered draws, a late reward."""
    agent, traffic = Agent(settings, store, KEY), Traffic(np.random.default_rng(6))
    rng = np.random.default_rng(7)
    run(agent, traffic, 2)
    agent.controls.open_era("by hand", 1.0)
    for index in range(12):
        if index == 4:
            agent.simulate(traffic.simulations(25))
        asked = traffic.requests(40)
        if settings.units is not None:
            asked.unit[:] = rng.integers(0, 60, 40)
        decided = agent.decide(asked)
        outcomes = traffic.outcomes(decided)
        outcomes.delivered[:] = rng.random(40) > 0.05
        outcomes.reward[rng.random(40) < 0.1] = np.nan
        other = rng.random(40) < 0.03
        served = np.where(other, (outcomes.served + 1) % len(MODELS), outcomes.served)
        outcomes = replace(outcomes, served=served)
        agent.observe(outcomes)
        traffic.at += 20.0
        agent.expire(traffic.at)
        if index % 3 == 2:
            agent.refresh(traffic.at)
    traffic.at += 200.0
    agent.expire(traffic.at)
    # One that came too late: it is in the files, and not in the intervals.
    missing = [
        segment.batch.number
        for segment in store.read()
        if type(segment.batch).__name__ == "ExpiryBatch"
    ]
    late = traffic.outcomes(agent.decide(traffic.requests(1)))
    number = np.array([int(np.concatenate(missing)[-1])])
    assert (
        agent.observe(
            type(late)(
                number=number,
                served=np.array([0]),
                attempt=np.array([2]),
                delivered=np.array([True]),
                outputs=np.full((1, 2), np.nan),
                reward=np.array([1.0]),
                at=np.array([traffic.at]),
            )
        ).late
        == 1
    )
    agent.refresh(traffic.at)
    return agent


class Outsider:
    """Reads the files, and knows the formulas of the documentation; nothing of ours."""

    def __init__(self, folder: Path, format_: str) -> None:
        read = pd.read_csv if format_ == "csv" else pd.read_parquet
        self.table = lambda name: read(folder / f"{name}.{format_}")
        self.facts = json.loads((folder / "experiment.json").read_text())
        self.config = self.facts["config"]
        self.caps = [np.inf if cap is None else cap for cap in self.facts["caps"]]
        self.decisions = self.table("decisions").set_index("decision_id")
        self.models = self.facts["candidates"][: self.facts["models"]]
        self._rewards()

    def _rewards(self) -> None:
        """Reward and delivery of each decision, as far as they came in time."""
        outcomes = self.table("outcomes")
        expired = self.table("expiries").groupby("decision_id")["seq"].min()
        first = outcomes[outcomes["attempt"] == 1].groupby("decision_id").first()
        as_drawn = first["delivered"] & (
            first["served"] == self.decisions["model"].reindex(first.index)
        )
        told = outcomes[outcomes["reward"].notna()]
        in_time = ~(told["seq"] > told["decision_id"].map(expired).fillna(np.inf))
        reward = told[in_time].groupby("decision_id")["reward"].first()
        self.decisions["reward"] = reward
        self.decisions["got"] = as_drawn.reindex(self.decisions.index).fillna(True).astype(bool)
        self.decisions["closed"] = self.decisions["reward"].notna() | self.decisions.index.isin(
            expired.index
        )

    def ends(self, members: list[dict], widened: bool) -> tuple[float, float]:
        """The reward of a row on [0, 1], for lower and upper ends; of a unit the mean."""
        low, high = self.config["reward"]["low"], self.config["reward"]["high"]
        missing = None if widened else self.facts["missing"]
        found = []
        for worst in (0.0, 1.0):
            scaled = []
            for row in members:
                if not row["got"]:
                    scaled.append(worst)
                elif np.isnan(row["reward"]):
                    scaled.append(worst if missing is None else missing)
                else:
                    scaled.append((row["reward"] - low) / (high - low))
            found.append(sum(scaled) / len(scaled))
        return found[0], found[1]

    def chances(self, row: dict) -> dict[str, tuple[float, bool, float]]:
        """(chance, drawn, raw prediction) of every model and of today's routing."""
        sticky = self.config["units"] is not None
        found = {}
        for model in self.models:
            drawn = bool(row["randomized"]) and row["model"] == model
            found[model] = row["rate"] * row[f"p_{model}"], drawn, row[f"raw_{model}"]
        routed = row["routed"]
        chance = 1 - row["rate"] + (0 if sticky else row["rate"] * row[f"p_{routed}"])
        drawn = not row["randomized"] if sticky else row["model"] == routed
        found[self.facts["candidates"][len(self.models)]] = chance, drawn, row[f"raw_{routed}"]
        return found

    def contrast(self, first: str, second: str, part: int) -> float:
        """The lower end of V(first) - V(second), in reward units."""
        said, names = self.facts["parts"][part], self.facts["candidates"]
        segment = said["segment"] or ""
        frozen: dict[str, dict[tuple, dict]] = {}
        for table, keys in (
            ("tuning", ["rule_id", "segment", "candidate"]),
            ("centres", ["rule_id", "segment", "cap", "candidate"]),
        ):
            rows = self.table(table).fillna({"segment": ""}).to_dict("records")
            frozen[table] = {tuple(row[key] for key in keys): row for row in rows}
        widened = dict(self.table("rules")[["rule_id", "widened"]].itertuples(index=False))
        of_unit = {}
        if self.config["units"] is not None:
            for row in self.decisions.to_dict("records"):
                of_unit.setdefault(row["leader_id"], []).append(row)
        policies = {each["name"]: each for each in self.facts["policies"]}
        rows = self.decisions[self.decisions["entered"]]
        assert rows["certifiable"].all()
        if part:
            value = rows[said["column"]]
            low = -np.inf if said["low"] is None else said["low"]
            high = np.inf if said["high"] is None else said["high"]
            rows = rows[(value >= low) & (value < high)]
        assert len(rows) == said["rows"]
        totals, squares, bounds = [], [], []
        for cap_at, cap in enumerate(self.caps):
            if np.isinf(cap):
                continue
            total = square = 0.0
            bound = cap + 2 if {first, second} <= set(self.models) else 2 * cap + 2
            for row in rows.reset_index().to_dict("records"):
                rule, name = row["rule_id"], row["decision_id"]
                members = of_unit[name] if of_unit else [row]
                ends = self.ends(members, widened[rule])
                scores = []
                for candidate, end in ((first, 0), (second, 1)):
                    if candidate in policies:
                        policy = policies[candidate]
                        inside = row[policy["column"]] >= policy["at_least"]
                        who = policy["model"] if inside else policy["otherwise"]
                    else:
                        who = candidate
                    chance, drawn, raw = self.chances(row)[who]
                    tuning = frozen["tuning"][rule, segment, who]
                    raw = tuning["usual"] if np.isnan(raw) else raw
                    mu = min(max(tuning["offset"] + tuning["factor"] * raw, 0.0), 1.0)
                    room = np.inf if chance == 1 else cap / (1 / chance - 1)
                    mu = min(mu, room) if end == 0 else max(mu, 1 - room)
                    score = mu + drawn / chance * (ends[end] - mu)
                    centre = frozen["centres"][rule, segment, cap_at, candidate]
                    scores.append((score, score - centre["low" if end == 0 else "high"]))
                total += scores[0][0] - scores[1][0]
                square += ((scores[0][1] - scores[1][1]) / bound) ** 2
            totals.append(total)
            squares.append(square)
            bounds.append(bound)
        lower = self.solve(len(rows), totals, squares, bounds, said["pair_level"])
        scale = self.config["reward"]["high"] - self.config["reward"]["low"]
        assert names.index(first) != names.index(second)
        return scale * min(max(lower, -1.0), 1.0)

    def solve(
        self,
        rows: int,
        totals: list[float],
        squares: list[float],
        bounds: list[float],
        level: float,
    ) -> float:
        """Where the mixture of supermartingales is 1 / level, by bisection."""
        lambdas = np.array(self.facts["lambdas"])
        psi = -np.log1p(-lambdas) - lambdas
        weights = np.concatenate(self.weights(lambdas, bounds, level))
        assert weights.sum() == pytest.approx(1.0)

        def evidence(theta: float) -> float:
            parts = [
                lambdas * (total - rows * theta) / bound - psi * square
                for total, square, bound in zip(totals, squares, bounds, strict=True)
            ]
            exponents = np.concatenate(parts)
            top = exponents.max()
            return float(top + np.log(weights @ np.exp(exponents - top)) - np.log(1 / level))

        return float(brentq(evidence, -50.0, 50.0, xtol=1e-13, rtol=1e-14))

    def weights(self, lambdas, bounds: list[float], level: float, part: float = 1.0) -> list:
        """Per finite cap, by the formula of docs/export.md. part: a half for a value."""
        prior, usual = self.facts["prior"], max(cap for cap in self.caps if np.isfinite(cap))
        shares = [1 - self.facts["last_share"], self.facts["last_share"]]
        noises = [1.0, 2 * prior["variance"]]
        found = []
        for bound, share, noise in zip(bounds, shares, noises, strict=True):
            variance = part * prior["requests"] * usual * noise
            best = min(self.facts["largest_bet"], bound * np.sqrt(2 * np.log(1 / level) / variance))
            weight = np.exp(-((np.log(lambdas / best) / self.facts["spread"]) ** 2) / 2)
            found.append(share * weight / weight.sum())
        return found


@pytest.mark.parametrize(
    ("name", "format_", "pair", "part"),
    [
        ("bounded", "parquet", ("cheap", "slow"), 0),
        ("declared", "csv", ("fast", "slow"), 1),
        ("declared", "parquet", ("split", "cheap"), 0),
        ("declared", "csv", (None, "fast"), 0),
        ("sticky", "parquet", ("cheap", None), 0),
    ],
)
def test_a_certified_contrast_follows_from_the_files_alone(name, format_, pair, part, tmp_path):
    settings = config(**SETTINGS[name])
    path = tmp_path / "log.db"
    with SqliteStore(path) as store:
        agent = played(store, settings)
        certified = agent.answers.certified(part)
    with SqliteStore(path, read_only=True) as store:
        write_tables(store, settings, tmp_path / "out", format_)
    path.unlink()
    outsider = Outsider(tmp_path / "out", format_)
    names = list(certified.names)
    assert outsider.facts["candidates"] == names
    first, second = (names[len(MODELS)] if each is None else each for each in pair)
    mine = outsider.contrast(first, second, part)
    index = names.index(first), names.index(second)
    assert certified.rows > 100
    assert abs(mine) < settings.reward.high - settings.reward.low, "an end that says something"
    assert mine == pytest.approx(certified.contrasts[index], abs=1e-9)
    assert outsider.facts["parts"][part]["contrast_low"][index[0]][index[1]] == pytest.approx(
        mine, abs=1e-9
    )


def test_raw_predictions_are_those_of_the_rules_tables(tmp_path):
    """From `predictions` and `simulations`: with the replay where it was known, else without."""
    settings = config(**SETTINGS["bounded"])
    store = MemoryStore()
    played(store, settings)
    found = tables(store, settings)
    decisions, replays = found["decisions"], found["simulations"]
    scorers = {}
    for line in found["predictions"].itertuples():
        key = line.rule_id, line.kind, line.model if isinstance(line.model, str) else None
        scorers.setdefault(key, {})[line.column] = line.coefficient
    seen = {(row.context, row.model): row for row in replays.itertuples()}
    of_replay = 0
    for row in decisions[decisions["raw_slow"].notna()].itertuples():
        for model in MODELS:
            replay = seen.get((row.context, model))
            if replay is not None and replay.seq < row.seq:
                of_replay += 1
                own = scorers[row.rule_id, "replayed", model]["intercept"]
                shared = scorers[row.rule_id, "replayed", None]
                values = {"a": replay.x_a, "b": replay.x_b, "u": replay.y_u, "v": replay.y_v}
                raw = own + shared["intercept"] + sum(shared[k] * v for k, v in values.items())
            else:
                line = scorers[row.rule_id, "context", model]
                raw = line["intercept"] + line["a"] * row.x_a + line["b"] * row.x_b
            assert getattr(row, f"raw_{model}") == pytest.approx(raw, abs=1e-12)
    assert of_replay > 100


def test_every_column_is_described_and_described_in_the_documentation(tmp_path):
    settings = config(**SETTINGS["declared"])
    store = MemoryStore()
    played(store, settings)
    page = DOCUMENTED.read_text()
    for name, frame in tables(store, settings).items():
        for column in frame.columns:
            general = column if column in MEANINGS[name] else f"{column.split('_')[0]}_*"
            assert general in MEANINGS[name], (name, column)
    for name, columns in MEANINGS.items():
        assert f"`{name}`" in page
        for column, meaning in columns.items():
            assert f"| `{column}` | {meaning} |" in page, (name, column)


def test_both_stores_and_both_formats_say_the_same(tmp_path):
    settings = config(**SETTINGS["bounded"])
    memory = MemoryStore()
    played(memory, settings)
    with SqliteStore(tmp_path / "log.db") as store:
        played(store, settings)
        for format_ in ("csv", "parquet"):
            write_tables(store, settings, tmp_path / format_, format_)
        found = tables(store, settings)
    for name, frame in tables(memory, settings).items():
        pd.testing.assert_frame_equal(found[name], frame)
        left = pd.read_csv(tmp_path / "csv" / f"{name}.csv")
        right = pd.read_parquet(tmp_path / "parquet" / f"{name}.parquet")
        for column in left:
            if right[column].dtype == float:  # bit for bit, through text
                np.testing.assert_array_equal(left[column], right[column])


def test_the_target_is_checked_before_anything_is_read(tmp_path):
    """A store that cannot even be opened: the target is what the message is about."""
    (tmp_path / "out").mkdir()
    (tmp_path / "text.db").write_text("no database")
    for arguments, says in (
        ([], "choose another --out, or replace it with --force"),
        (["--force"], "has no experiment.json: not replacing what is not ours"),
    ):
        result = CliRunner().invoke(
            app, ["export", str(tmp_path / "text.db"), "--out", str(tmp_path / "out"), *arguments]
        )
        assert isinstance(result.exception, AgentError)
        assert says in str(result.exception)


def test_losses_are_a_table_of_their_own(tmp_path):
    store = MemoryStore()
    played(store, config())
    assert "losses" not in tables(store, config())
    gaps = [
        Gap(at=5.0, first=40, numbers=3, row=70, rows=9, reason="a crash", kept="log.db.damaged"),
        Gap(at=6.0, first=0, numbers=0, row=90, rows=1, reason="repaired"),
    ]
    lossy = SimpleNamespace(
        **{name: getattr(store, name) for name in ("settings", "eras", "controls", "alerts")},
        gaps=lambda: gaps,
    )
    found = {name: pa.Table.from_batches(rows, schema) for name, schema, rows in _around(lossy)}
    assert found["losses"].to_pylist() == [
        {**msgspec.to_builtins(gaps[0])},
        {**msgspec.to_builtins(gaps[1]), "first": None, "kept": None},
    ]


def test_a_large_log_says_what_is_written_as_it_goes(tmp_path):
    """In steps, so that memory is bounded, and up to the rows of each table."""
    said = []
    with SqliteStore(tmp_path / "log.db") as store:
        played(store, config())
        rows = write_tables(
            store, config(), tmp_path / "out", "csv", progress=lambda *each: said.append(each)
        )
    assert {table: count for table, count in said if count} == rows
    counts = [count for table, count in said if table == "rules"]
    assert counts == sorted(counts)


@pytest.mark.parametrize("where", ["file/out", "closed/out"])
def test_a_target_that_cannot_be_made_is_refused_at_once(tmp_path, where, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "closed").mkdir()
    # Root may write anywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "closed")
    (tmp_path / "text.db").write_text("no database")
    result = CliRunner().invoke(
        app, ["export", str(tmp_path / "text.db"), "--out", str(tmp_path / where)]
    )
    assert isinstance(result.exception, AgentError)
    assert "out cannot be made" in str(result.exception)


def test_a_replacement_that_was_killed_or_failed_is_undone(tmp_path, monkeypatch):
    """By whatever runs next for the same folder: the old one is back, and then replaced."""
    out = tmp_path / "out"
    settings = config()
    with SqliteStore(tmp_path / "log.db") as store:
        played(store, settings)
        write_tables(store, settings, out, "csv")
        dead = subprocess.Popen(["true"])
        dead.wait()
        out.rename(tmp_path / f".out.replaced-{dead.pid}")
        with pytest.raises(AgentError, match="--force"):
            write_tables(store, settings, out, "csv")
        assert (out / "decisions.csv").is_file()
        monkeypatch.setattr(export, "experiment_json", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_tables(store, settings, out, "parquet", force=True)
        assert (out / "decisions.csv").is_file()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_force_replaces_an_export(tmp_path):
    settings = config()
    with SqliteStore(tmp_path / "log.db") as store:
        agent = played(store, settings)
        write_tables(store, settings, tmp_path / "out", "csv")
        agent.decide(Traffic(np.random.default_rng(1)).requests(3))
        with pytest.raises(AgentError, match="--force"):
            write_tables(store, settings, tmp_path / "out", "csv")
        rows = write_tables(store, settings, tmp_path / "out", "parquet", force=True)
    assert not list((tmp_path / "out").glob("*.csv"))
    assert len(pd.read_parquet(tmp_path / "out" / "decisions.parquet")) == rows["decisions"]
