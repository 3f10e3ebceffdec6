"""What all tests share: their helpers can be imported by name, and the longest tests come first."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

HELPERS = (
    "",
    "agent",
    "agent/inference",
    "agent/moments",
    "agent/planning",
    "service",
    "statistical",
)
sys.path.extend(str(Path(__file__).parent / folder) for folder in HELPERS)
pytest_plugins = ("postgres",)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long single tests at the end would leave every other worker idle."""
    items.sort(key=lambda item: item.path.name != "test_readme.py")
