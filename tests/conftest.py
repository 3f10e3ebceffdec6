"""What all tests share: `commands.py` can be imported, and the longest tests come first."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long single tests at the end would leave every other worker idle."""
    items.sort(key=lambda item: item.path.name != "test_readme.py")
