"""Kill -9 of deciders, authority and standby under load: nothing answered is lost or doubled."""

from __future__ import annotations

from pathlib import Path

from lanes_chaos import study


def test_killing_any_process_of_a_fleet_loses_nothing(tmp_path: Path):
    promises, found = study(tmp_path, "sqlite", kills=10, seed=22, gap=0.5)
    assert found.faults == []
    assert len(promises.decisions) > 100
    assert len(promises.outcomes) > 100
    assert found.drawn > 10
    # Who stands by waits for the office, and does not end since somebody has the store.
    assert not any(2 in codes for codes in found.ended.values())
