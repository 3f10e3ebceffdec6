"""Every command and every example of the README runs as written."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [line for kind, text in BLOCKS if kind == "console" for line in text.splitlines()]
ENTRY = [sys.executable, "-c", "from equipoise.replay.cli import main; main()"]


def test_the_readme_has_what_the_tests_below_expect():
    assert [line for line in COMMANDS if line.startswith("make")] == ["make demo", "make test"]
    assert len([line for line in COMMANDS if line.startswith("equipoise")]) >= 5


def test_make_knows_the_targets_that_are_named():
    targets = [*re.findall(r"`make (\w+)`", README), "demo", "test"]
    makefile = (ROOT / "Makefile").read_text()
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_commands_run_in_the_order_of_the_readme(tmp_path):
    usage, replays = (text for kind, text in BLOCKS if kind == "json")
    (tmp_path / "usage.jsonl").write_text(usage)
    (tmp_path / "replays.jsonl").write_text(replays)
    for line in COMMANDS:
        if line.startswith("equipoise "):
            result = subprocess.run(
                [*ENTRY, *line.split()[1:]],
                cwd=tmp_path,
                capture_output=True,
                text=True,
                check=False,
            )
            assert result.returncode == 0, f"{line}\n{result.stderr}"
    for name in ("benchmarks", "worlds"):
        subprocess.run([*ENTRY, name], cwd=tmp_path, capture_output=True, check=True)


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
    result = subprocess.run(
        [*ENTRY, "replay", *flags[1].split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    quoted = " ".join(re.findall(r"^> (.*)$", README, flags=re.MULTILINE))
    assert quoted in " ".join(result.stdout.split())
