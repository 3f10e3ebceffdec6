"""The study of `flood.py` in short: whatever one client does, decisions are answered."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from flood import ATTACKS, Router, phase
from running import Running, running


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    with running(tmp_path_factory.mktemp("flood")) as started:
        yield started


@pytest.fixture(scope="module")
def router(daemon: Running) -> Iterator[Router]:
    made = Router(daemon.port)
    yield made
    made.close()


@pytest.mark.parametrize("attack", [*ATTACKS])
def test_a_client_at_its_worst_stops_no_decision(daemon: Running, router: Router, attack: str):
    assert len(phase(daemon, router, attack, 0.5, after=0.0)) > 0
    assert daemon.ask("GET", "/readyz").status == 200
    assert not [line for line in daemon.log if '"level":"error"' in line]
