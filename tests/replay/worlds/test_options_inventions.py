"""What a replay invents is named, and around a table of one's own it is nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import run_command as run

from equipoise.replay import replay
from equipoise.replay.benchmarks import load
from equipoise.replay.benchmarks.base import OptionError
from equipoise.replay.worlds import WorldOptions
from equipoise.replay.worlds.options import inventions


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(4)
    rows = [
        {
            "context_id": f"c{context}",
            "model": model,
            "reward": round(float(np.clip(mean + rng.normal(0, 0.2), 0, 1)), 3),
            "y_length": round(float(rng.normal()), 3),
        }
        for context in range(60)
        for model, mean in (("large", 0.7), ("medium", 0.6), ("small", 0.4))
    ]
    path = tmp_path_factory.mktemp("table") / "own.csv"
    pd.DataFrame(rows).assign(words=3).to_csv(path, index=False)
    return path


def small(table: Path, folder: Path, *options: object) -> tuple[str, dict[str, object]]:
    done = run(
        *("replay", "--benchmark", f"table:{table}", "--policies", "uniform", "--budget", 60),
        *("--seeds", 2, "--jobs", 1, "--out", folder, *options),
    )
    assert done.returncode == 0, done.stderr
    return " ".join(done.stdout.split()), json.loads((folder / "summary.json").read_text())


def test_the_rewards_of_a_replay_are_those_of_the_table(table: Path, tmp_path: Path) -> None:
    output, summary = small(table, tmp_path / "out", "--store", tmp_path / "log.db")
    own = pd.read_csv(table)
    (scenario,) = summary["scenarios"]
    truth = {each["model"]: each["value"] for each in scenario["models"]}
    assert truth == pytest.approx(own.groupby("model").reward.mean().to_dict())
    run("export", tmp_path / "log.db", "--out", tmp_path / "tables", "--format", "csv")
    seen = pd.read_csv(tmp_path / "tables" / "outcomes.csv").reward.dropna().round(9)
    assert len(seen) >= 60
    assert set(seen) <= set(own.reward.round(9))
    page = (tmp_path / "out" / "report.html").read_text()
    headline = page.split('<p class="headline">')[1].split("</p>")[0]
    for text in (output, headline):
        assert "Rewards are those of the table, nothing is invented" in text
        assert "best model is large" in text
    assert "today" not in output.lower()
    assert "harm" not in output.lower()
    assert "There is no usage log, which obs-only, cvci and grounded need" in output
    assert "Left out: columns of no known kind (words; features begin with x_ or y_): 1." in output
    assert "Intervals need at least 5 runs" in output
    assert "Plan one: equipoise plan --benchmark table:" in output


def test_what_is_asked_for_is_named(table: Path, tmp_path: Path) -> None:
    options = ("--confounding", 1, "--alpha", 0.5, "--obs", 300, "--estimators", "ipw")
    output, summary = small(table, tmp_path / "out", *options)
    assert "Invented: users, routing and usage log." in output
    assert "their taste makes up 50% of a reward" in output
    assert "a usage log of 300 requests" in output
    assert "The usage log recommends" in summary["headline"]
    assert "harm" in output.lower()


def test_every_option_of_a_world_has_a_name() -> None:
    """Each option that changes rewards, traffic or replays adds an invention of its own."""
    benchmark = load("semisynthetic", contexts=20, models=2)
    plain = WorldOptions(alpha=1, confounding=0, rating=0, reward="exact")
    known = inventions(benchmark, [plain], 0, 1.0)
    assert [each.name for each in known] == ["models and outcomes", "prices"]
    for options in (
        {"alpha": 0.5}, {"rating": 0.1}, {"reward": "bounded"}, {"missing": 0.1}, {"delay": 1.0},
        {"missing_by_reward": 0.1}, {"window": 3.0}, {"noncompliance": 0.1}, {"undelivered": 0.1},
        {"drift": 0.1}, {"simulator_drift": 0.5}, {"simulator_truncation": 0.1},
        {"simulator_missing": 0.1}, {"hidden_outputs": 1}, {"warp": 1.0},
    ):  # fmt: skip
        base = {"alpha": 1, "confounding": 0, "rating": 0, "reward": "exact"}
        changed = inventions(benchmark, [WorldOptions(**{**base, **options})], 0, 1.0)
        assert len(changed) == len(known) + 1, options
    routed = inventions(benchmark, [plain], 10, 1.0)
    assert [each.name for each in routed[2:]] == ["routing", "usage log"]


def test_errors_name_keywords_in_python_and_flags_on_the_command_line() -> None:
    with pytest.raises(OptionError, match=r"^exp_rate: 0 is not within"):
        replay(exp_rate=0)
    done = run("replay", "--exp-rate", "0")
    assert done.stderr.strip() == "equipoise: --exp-rate: 0.0 is not within (0, 1]"
    for arguments in (["--seeds", "0"], ["--alpha", "much"], ["--world", "alpha=1"]):
        done = run("replay", *arguments)
        assert done.returncode == 2
        assert done.stderr.strip().startswith(f"equipoise: {arguments[0]}: ")
        assert "\n" not in done.stderr.strip()


@pytest.mark.parametrize(("command", "name"), [("policies", "policy"), ("estimators", "family")])
def test_policies_and_families_are_listed_with_what_they_are(command: str, name: str) -> None:
    rows = json.loads(run(command, "--json").stdout)
    assert all(row["what it is" if command == "estimators" else "what it does"] for row in rows)
    shown = run(command, environment={"COLUMNS": "80"}).stdout
    assert max(map(len, shown.splitlines())) <= 80
    for row in rows:
        first = next(iter(row.values()))
        assert first in shown.splitlines()
        kind = "--policies" if command == "policies" else "--estimators"
        if row.get("kind", name).startswith((name, "assignment")):
            order = run("replay", kind, f"{first},bogus")
            assert "'bogus'" in order.stderr
            assert f"'{first}'" not in order.stderr
