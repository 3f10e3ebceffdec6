"""Kill -9 under load: nothing acknowledged is missing, nothing is there twice."""

from __future__ import annotations

from pathlib import Path

from killing import study


def test_killing_at_random_moments_loses_nothing(tmp_path: Path):
    promises, found = study(tmp_path, moments=12, seed=20)
    assert found == []
    assert len(promises.decisions) > 200
    assert len(promises.outcomes) > 200
