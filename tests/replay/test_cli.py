"""The command as a user meets it: whole folders, equal files, one clear line for bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time

import pandas as pd
import pytest
from commands import AS_USERS_DO, run_as_users_do
from commands import run_command as run

SMALL = ["--obs", "800", "--budget", "60", "--exp-rate", "0.2", "--seeds", "2", "--jobs", "1"]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replay")
    result = run("replay", *SMALL, "--out", folder / "a", "--store", folder / "log.db")
    assert result.returncode == 0, result.stderr
    return folder, result


def test_a_replay_writes_its_three_files(first):
    folder, _ = first
    names = sorted(path.name for path in (folder / "a").iterdir())
    assert names == ["report.html", "results.parquet", "summary.json"]


def test_results_hold_every_column_that_scripts_rely_on(first):
    frame = pd.read_parquet(first[0] / "a" / "results.parquet")
    promised = (
        "benchmark alpha confounding policy estimator seed requests exp_used recommended regret "
        "bias rmse rmse_contrast width covered ever_miscovered spend harm decided_at decided_right"
    )
    assert set(promised.split()) <= set(frame.columns)
    runs = frame.groupby(["policy", "estimator", "seed"])["checkpoint"].apply(list)
    assert set(map(tuple, runs)) == {(0, 25, 50, 60)}
    assert frame["exp_used"].max() == 60
    assert set(frame["policy"]) == {"uniform", "top-two", "track-and-stop"}
    assert len(set(frame["estimator"])) == 8


def test_the_table_says_in_words_that_the_log_misleads(first):
    output = first[1].stdout
    assert "usage log alone" in output
    assert "report.html" in output
    assert "hierarchical" in output
    assert "log" in output.split("usage log alone")[0]


def test_the_same_seeds_give_the_same_bytes(first):
    """In another process, which hashes texts otherwise."""
    folder, _ = first
    assert run_as_users_do("replay", *SMALL, "--out", folder / "b").returncode == 0
    for name in ("results.parquet", "summary.json", "report.html"):
        assert (folder / "a" / name).read_bytes() == (folder / "b" / name).read_bytes(), name


def test_two_processes_give_the_bytes_of_one(first):
    folder, _ = first
    assert run("replay", *SMALL[:-1], "2", "--out", folder / "c").returncode == 0
    one, two = (folder / name / "results.parquet" for name in "ac")
    assert one.read_bytes() == two.read_bytes()


def test_an_existing_folder_is_kept_unless_forced_and_ours(first, tmp_path):
    folder, _ = first
    refused = run("replay", *SMALL, "--out", folder / "a")
    assert refused.returncode == 2
    assert "exists" in refused.stderr
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    refused = run("replay", *SMALL, "--force", "--out", tmp_path / "mine")
    assert refused.returncode == 2
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_a_killed_replay_leaves_no_folder(tmp_path):
    process = subprocess.Popen(
        [*AS_USERS_DO, "replay", "--seeds", "50", "--jobs", "1", "--out", str(tmp_path / "out")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".out.partial-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert list(tmp_path.glob(".out.partial-*"))
    assert not (tmp_path / "out").exists()


def test_status_audit_and_export_of_the_kept_store(first, tmp_path):
    store = first[0] / "log.db"
    facts = json.loads(run("status", store, "--json").stdout)
    assert facts["randomized"] == 60
    assert {row["model"] for row in facts["models"]} >= {facts["models"][0]["model"]}
    # Sixty randomized requests certify nothing, and so change nothing that is served.
    assert facts["recommendation"] == "keep"
    assert facts["sentence"].startswith("Not certified: ")
    report = json.loads(run("audit", store, "--json").stdout)
    assert report["clean"]
    assert report["uniforms_redrawn"]
    assert report["randomized"] == 60
    for kind in ("parquet", "csv"):
        result = run("export", store, "--out", tmp_path / kind, "--format", kind)
        assert result.returncode == 0, result.stderr
        assert (tmp_path / kind / f"decisions.{kind}").exists()
    table = pd.read_csv(tmp_path / "csv" / "decisions.csv")
    shares = table[[name for name in table.columns if name.startswith("p_")]]
    assert shares.sum(axis=1).sub(1).abs().max() < 1e-9
    assert int(table["randomized"].sum()) == 60


def test_benchmarks_lists_what_replay_takes():
    rows = json.loads(run("benchmarks", "--json").stdout)
    assert any("imagesegments" in row.values() for row in rows)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["replay", "--benchmark", "nonesuch"], "nonesuch"),
        (["replay", "--benchmark", "imagesegments:/nowhere"], "imagesegments"),
        (["replay", "--policies", "uniform,magic"], "magic"),
        (["replay", "--estimators", "ipw,magic"], "magic"),
        (["replay", "--alpha", "1.5"], "1.5"),
        (["replay", "--alpha", "much"], "much"),
        (["replay", "--confounding", "-1"], "-1"),
        (["replay", "--exp-rate", "0"], "exp-rate"),
        (["replay", "--seeds", "0"], "seeds"),
        (["status", "missing.db"], "missing.db"),
        (["audit", "text.db"], "text.db"),
        (["export", "text.db", "--out", "x"], "text.db"),
        (["nonsense"], "nonsense'. Try 'equipoise --help'."),
        (["audti"], "Did you mean 'audit'? Try 'equipoise --help'."),
        (["audit"], "missing argument 'store'. Try 'equipoise audit --help'."),
        (["plan", "--modelz", "3"], "--models). Try 'equipoise plan --help'."),
        (["ingest", "x", "--kind", "y"], "'y' is not one of observations, outcomes, simulations"),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_code_2(tmp_path, arguments, says):
    (tmp_path / "text.db").write_text("this is not a database, it is a text of some length\n" * 9)
    before = sorted(tmp_path.iterdir())
    result = run(*arguments, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert says in result.stderr
    assert result.stderr.startswith("equipoise: ")
    assert result.stderr.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("command", [[], ["replay"], ["status"], ["audit"], ["export"]])
def test_help_has_an_example(command):
    result = run(*command, "--help")
    assert result.returncode == 0
    assert "Example" in result.stdout or not command
