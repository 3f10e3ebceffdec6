"""Help and listings on a terminal of 80 columns: short first lines, an example, nothing cut."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from equipoise.replay.cli import app

COMMANDS = sorted(getattr(get_command(app), "commands", {}))


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def output(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments, prog_name="equipoise")
    assert result.exit_code == 0, result.output
    return result.output


def test_the_list_of_commands_cuts_no_line() -> None:
    text = output("--help")
    assert len(COMMANDS) > 10
    for name in COMMANDS:
        (line,) = (each for each in text.splitlines() if each.startswith(f"  {name} "))
        assert line.endswith("."), line
        assert not line.endswith("..."), line


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_fits_and_has_an_example_that_can_be_copied(command: str) -> None:
    lines = output(command, "--help").splitlines()
    assert all(len(line) <= 80 for line in lines)
    examples = [line for line in lines if line.startswith("  Example: ")]
    assert any(f"equipoise {command}" in line for line in examples)
    for line in examples:
        following = lines[lines.index(line) + 1]
        assert following == "", f"an example that goes on below: {line}"


@pytest.mark.parametrize("arguments", [["benchmarks"], ["benchmarks", "frank"], ["worlds"]])
def test_a_listing_cuts_no_word(arguments: list[str]) -> None:
    text = output(*arguments)
    assert "…" not in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_help_and_the_client_import_little() -> None:
    code = (
        "import sys, equipoise.replay.cli, equipoise.agent.client;"
        "print({'numpy', 'msgspec', 'scipy', 'pandas', 'asyncio'} & set(sys.modules) or 'light')"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "light\n"
