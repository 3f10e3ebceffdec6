"""Every example in a docstring is a test.

`pytest --doctest-modules` would import each file a second time under its folder's name
(`agent` instead of `equipoise.agent`), so the modules are walked by their import names.
"""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

PACKAGES = ("agent", "policies", "store", "replay")


def _stop(name: str) -> None:
    """Let the import error of a package surface: pkgutil would skip it in silence."""
    raise


def _module_names() -> list[str]:
    names = []
    for package in PACKAGES:
        top = importlib.import_module(f"equipoise.{package}")
        names.append(top.__name__)
        walked = pkgutil.walk_packages(top.__path__, f"{top.__name__}.", onerror=_stop)
        # Importing a __main__ would run it.
        names += [found.name for found in walked if not found.name.endswith(".__main__")]
    return names


@pytest.mark.parametrize("name", _module_names())
def test_examples_hold(name: str) -> None:
    module = importlib.import_module(name)
    result = doctest.testmod(
        module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.FAIL_FAST
    )
    assert result.failed == 0, f"an example in {name} does not hold; see the captured output"
