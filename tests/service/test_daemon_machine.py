"""A short walk of the machine in tests/service/machine.py."""

from __future__ import annotations

from pathlib import Path

from machine import run


def test_what_was_acknowledged_stays_true_in_whatever_order_things_happen(tmp_path: Path):
    """Seeded; one store, kill -9 at the end, then an audit and a look at every decision."""
    model, found = run(tmp_path, examples=5, steps=16, seed=5, most=1)
    assert found == []
    assert model.steps.total() > 50
    assert len(model.decisions) > 20
    happened = {step.partition(":")[0] for step in model.steps}
    assert {"batch", "outcome"} <= happened, happened
