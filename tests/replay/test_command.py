"""Replays from Python: the results of the command, and no file unless one is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from equipoise.agent.errors import AgentError
from equipoise.replay import replay
from equipoise.replay.command import complete_order, run_replay
from equipoise.replay.order import DEFAULTS

SIZE: dict[str, Any] = {"seeds": 2, "obs": 300, "budget": 60, "jobs": 1}
OPTIONS = ("experiment", "policies", "estimators", "requests", "exp_rate", "store")


def command(out: Path, **options: Any) -> pd.DataFrame:
    """What the command writes for these options, as it would be parsed from its line."""
    run_replay(
        complete_order(
            {
                **dict.fromkeys((*OPTIONS, "alphas", "confoundings")),
                "benchmark": "imagesegments",
                "out": out,
                "as_json": True,
                **SIZE,
                **options,
            }
        )
    )
    return pd.read_parquet(out / "results.parquet")


def test_python_and_the_command_give_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written = command(
        tmp_path / "out",
        policies=["uniform", "top-two"],
        estimators=["ipw", "cvci"],
        alphas=[0.0, 1.0],
        world=["reward=bounded"],
        benchmark="semisynthetic",
        benchmark_options=["models=4", "contexts=50"],
    )
    capsys.readouterr()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    options: dict[str, Any] = {
        "policies": ["uniform", "top-two"],
        "estimators": ("ipw", "cvci"),
        "alpha": [0, 1],
        "world": {"reward": "bounded"},
        "benchmark_options": {"models": 4, "contexts": 50},
        **SIZE,
    }
    results = replay("semisynthetic", **options)
    again = tmp_path / "again"
    results.to_parquet(again, index=False)
    assert again.read_bytes() == (tmp_path / "out" / "results.parquet").read_bytes()
    assert_frame_equal(pd.read_parquet(again), written)
    assert not list(Path().iterdir())
    assert capsys.readouterr() == ("", "")


def test_a_folder_that_is_named_gets_the_files_of_the_command(tmp_path: Path) -> None:
    written = command(tmp_path / "out", experiment="alignment", alphas=[0.0])
    results = replay(experiment="alignment", alpha=0.0, out=tmp_path / "mine", **SIZE)
    assert results["policy"].unique().tolist() == ["uniform"]
    for name in ("results.parquet", "summary.json", "report.html", "findings.md"):
        mine, theirs = ((tmp_path / folder / name).read_bytes() for folder in ("mine", "out"))
        assert mine == theirs, name
    assert len(written) == len(results)
    with pytest.raises(AgentError, match="exists"):
        replay(experiment="alignment", alpha=0.0, out=tmp_path / "mine", **SIZE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exp_rate": 0.0}, "^exp_rate: 0.0 is not within"),
        ({"exp_rate": 1.5}, "^exp_rate: 1.5 is not within"),
        ({"delta": 1.0}, "^delta: 1.0 is not within"),
        ({"epsilon": -0.1}, "^epsilon: -0.1 is negative"),
        ({"obs": -1}, "^obs: -1 is negative"),
        ({"jobs": -1}, "^jobs: -1 is negative"),
        ({"seeds": 0}, "^seeds: 0 is not 1 or more"),
        ({"requests": 0}, "^requests: 0 is not"),
        ({"budget": 0}, "^budget: 0 is not"),
        ({"sequence": "magic"}, "^sequence: 'magic' is not one of bounded, per-model"),
        ({"alpha": [0.5, 1.5]}, r"^alpha: 1.5 is not within \[0, 1\]"),
        ({"confounding": -1}, r"^confounding: -1 is not within \[0, 100\]"),
        ({"policies": ["magic"]}, "magic"),
        ({"estimators": ["magic"]}, "magic"),
        ({"experiment": "magic"}, "magic"),
    ],
)
def test_what_cannot_be_run_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(AgentError, match=message):
        replay(**options)


def test_defaults_are_those_of_the_command() -> None:
    import inspect

    parameters = inspect.signature(replay).parameters
    for name, value in DEFAULTS.items():
        if name in parameters and parameters[name].default is not None:
            assert parameters[name].default == value, name


def test_the_package_imports_nothing_until_it_is_asked() -> None:
    code = "import sys, equipoise.replay; assert 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_name_alone_is_one_name() -> None:
    with pytest.raises(AgentError, match="'foo'"):
        replay(policies="uniform,foo")
