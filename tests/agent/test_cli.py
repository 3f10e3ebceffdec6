"""The frame that all commands stand in: version, completion, whole help, one form of errors."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from commands import run_as_users_do, run_command

import equipoise
from equipoise.replay.cli import app

NAMES = [command.callback.__name__ for command in app.registered_commands if command.callback]
MISTAKES = """
name = "a b"
models = [{name = "x", price = -1}, {name = "x"}]
reward = {low = 2, high = 1}
policy = {rate = 2, gate = "fixedrate", delta = 0.9}
budget = {requests = 0}
checks = {drift = "stopp"}
service = {port = 99999, mode = "off"}
"""


def test_the_version_is_said_in_three_ways() -> None:
    said = f"equipoise {version('equipoise')}\n"
    assert run_command("--version").stdout == said
    module = [sys.executable, "-m", "equipoise", "--version"]
    assert subprocess.run(module, capture_output=True, text=True, check=True).stdout == said
    assert equipoise.__version__ == version("equipoise")
    assert not hasattr(equipoise, "nothing_of_that_name")


def test_a_shell_completes_commands_and_options() -> None:
    # Typer asks which shell it runs in, unless it is told not to; a test runs in any.
    told = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    script = run_as_users_do("--show-completion", "bash", environment=told).stdout
    assert "complete -o default -F _equipoise_completion equipoise" in script

    def completed(words: str, place: int) -> set[str]:
        asked = {"COMP_WORDS": words, "COMP_CWORD": str(place)}
        by_shell = {"_EQUIPOISE_COMPLETE": "complete_bash", **asked}
        return set(run_as_users_do(environment=by_shell).stdout.split())

    assert completed("equipoise re", 1) == {name for name in NAMES if name.startswith("re")}
    assert completed("equipoise plan --reward-", 2) == {
        "--reward-rate",
        "--reward-sd",
        "--reward-low",
        "--reward-high",
    }


def test_no_line_of_the_list_of_commands_is_cut() -> None:
    """However narrow the terminal; a word that is too long for it stands alone."""
    shown = " ".join(run_command("--help", environment={"COLUMNS": "30"}).stdout.split())
    assert len(NAMES) > 10
    for command in app.registered_commands:
        assert command.callback is not None
        assert command.callback.__doc__ is not None
        assert command.callback.__doc__.partition("\n")[0] in shown
    assert "..." not in shown.partition("Commands:")[2]


def test_without_a_command_the_help_is_printed_and_nothing_was_done() -> None:
    alone = run_command()
    assert (alone.returncode, alone.stdout) == (2, "")
    assert alone.stderr == run_command("--help").stdout


def test_every_mistake_of_a_configuration_has_a_line_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "chat.toml").write_text(MISTAKES)
    done = run_command("serve", "--config", "chat.toml", "--check", cwd=tmp_path)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    form = re.compile(r"equipoise: chat\.toml: ([\w.\[\]]+): received (.+), expected .+")
    matches = [form.fullmatch(line) for line in lines]
    assert {match and match[1] for match in matches} == {
        "name",
        "models[0].price",
        "models",
        "reward.high",
        "policy.rate",
        "policy.gate",
        "policy.delta",
        "budget.requests",
        "checks.drift",
        "service.port",
        "service.mode",
    }
    assert len(lines) == 11
