"""The page on policies: the one it adds, as written, under the laws of the battery."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from equipoise.policies.registry import ASSIGNMENTS, Policy, policy
from equipoise.policies.snapshot import Snapshot

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "policies.md"
LAWS = (
    "test_probabilities_sum_to_one_above_the_floor",
    "test_the_floor_is_mixed_in_not_clipped",
    "test_relabelled_models_get_the_same_answer",
    "test_maximising_equals_minimising_the_negative",
    "test_decoding_restores_every_bit",
    "test_a_row_gives_the_same_bits_alone_and_in_a_batch",
    "test_freezing_is_pure",
)


@pytest.fixture(scope="module")
def plausible() -> Iterator[Policy]:
    """The policy of the page, registered while these tests run."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) <= 30
    exec(compile(code, str(PAGE), "exec"), {"__name__": "page"})
    yield policy("contrast+plausible")
    del ASSIGNMENTS["plausible"]


@pytest.fixture(scope="module")
def battery() -> object:
    spec = importlib.util.spec_from_file_location("laws", HERE / "test_battery.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["laws"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["laws"]


@pytest.mark.parametrize("law", LAWS)
def test_it_obeys_the_laws(
    law: str, battery: object, plausible: Policy, scenario: Callable[[], Snapshot]
) -> None:
    getattr(battery, law)(plausible, scenario)


def test_it_gives_nothing_to_models_that_cannot_be_best(
    plausible: Policy, make_snapshot: Callable[..., Snapshot]
) -> None:
    snapshot = make_snapshot(
        3, values=np.array([0.6, 0.55, 0.1]), covariance=np.diag([0.01, 0.04, 0.01])
    )
    shares = plausible.assignment.function(snapshot).shares
    np.testing.assert_allclose(shares / shares.sum(), [1 / 3, 2 / 3, 0.0])
