"""Single faults in the files of a store: nothing lost in silence, no number given twice."""

from __future__ import annotations

from pathlib import Path

from damage import study


def test_every_fault_is_outlived_or_said(tmp_path: Path):
    """Seeded: the same faults every time. `python tests/service/damage.py` tries thousands."""
    ends, wrong = study(tmp_path, count=24, seed=11)
    assert wrong == []
    assert len(ends) > 2, "faults of several kinds happened"
