"""What an import loads, and that the declared command exists.

`equipoise --help` and shell completion pay for every import of the command's module, and the
numerical libraries cost up to a second each: they are imported where they are used.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
COMMAND_MODULE, _, COMMAND_FUNCTION = PROJECT["scripts"]["equipoise"].partition(":")
SLOW_TO_IMPORT = frozenset(
    {"numpy", "scipy", "pandas", "river", "plotly", "sklearn", "pyarrow", "joblib", "matplotlib"}
)


def imported_by(module: str) -> list[str]:
    """The full names of the modules that importing `module` loads in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", f"import {module}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # A line reads "import time:  self [us] | cumulative | indented name".
    lines = (line for line in done.stderr.splitlines() if line.startswith("import time:"))
    return [line.rpartition("|")[2].strip() for line in lines]


def test_the_command_does_not_import_numerical_libraries() -> None:
    names = imported_by(COMMAND_MODULE)
    assert COMMAND_MODULE in names
    slow = {name.partition(".")[0] for name in names} & SLOW_TO_IMPORT
    assert not slow, f"importing {COMMAND_MODULE} loads {sorted(slow)}"


def test_the_check_would_notice_a_slow_import() -> None:
    assert "numpy" in imported_by("numpy.linalg")


def test_the_declared_command_is_callable() -> None:
    assert callable(getattr(importlib.import_module(COMMAND_MODULE), COMMAND_FUNCTION))
