"""Every command and every example of the README runs as written."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from commands import run_as_users_do, run_command
from forking import run_forked

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [line for kind, text in BLOCKS if kind == "console" for line in text.splitlines()]
# A replay takes every core, and the other tests run beside it.
ONE_CORE = {"LOKY_MAX_CPU_COUNT": "1"}


def test_the_readme_has_what_the_tests_below_expect():
    assert [line for line in COMMANDS if line.startswith("make")] == ["make demo", "make test"]
    assert len([line for line in COMMANDS if line.startswith("equipoise")]) >= 5


def test_make_knows_the_targets_that_are_named():
    targets = [*re.findall(r"`make (\w+)`", README), "demo", "test"]
    makefile = (ROOT / "Makefile").read_text()
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_commands_run_in_the_order_of_the_readme(tmp_path):
    """Each command in a process of its own the first time: a fork of one that has made the imports,
    and `replay`, which has the most of them to make, as users run it."""
    usage, replays = (text for kind, text in BLOCKS if kind == "json")
    (tmp_path / "usage.jsonl").write_text(usage)
    (tmp_path / "replays.jsonl").write_text(replays)
    met = set()
    for line in [*COMMANDS, "equipoise benchmarks", "equipoise worlds"]:
        if line.startswith("equipoise "):
            arguments = line.split()[1:]
            if arguments[0] in met:
                result = run_command(*arguments, cwd=tmp_path, environment=ONE_CORE)
            elif arguments[0] == "replay":
                result = run_as_users_do(*arguments, cwd=tmp_path, environment=ONE_CORE)
            else:
                result = run_forked(*arguments, cwd=tmp_path, **ONE_CORE)
            met.add(arguments[0])
            assert result.returncode == 0, f"{line}\n{result.stderr}"
    assert met >= {"replay", "status", "audit", "export", "plan", "init", "serve"}


@pytest.mark.parametrize("code", [text for kind, text in BLOCKS if kind == "python"])
def test_examples_run_as_they_stand(code, tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "large" in result.stdout


def test_the_quoted_headline_is_what_the_demo_prints(tmp_path):
    makefile = (ROOT / "Makefile").read_text()
    flags = re.search(r"^DEMO_FLAGS \?= (.*)$", makefile, flags=re.MULTILINE)
    assert flags
    result = run_command("replay", *flags[1].split(), cwd=tmp_path, environment=ONE_CORE)
    assert result.returncode == 0, result.stderr
    quoted = " ".join(re.findall(r"^> (.*)$", README, flags=re.MULTILINE))
    assert quoted in " ".join(result.stdout.split())
