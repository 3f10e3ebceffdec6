"""Every store that a test of the agent's life made is audited when the test is over.

Adding, retiring and replacing models, eras, units, retention, exclusions, caps, pauses, changed
configurations and restarts are each tested somewhere; what they leave behind must be a log that
an audit finds clean. A test that forges its log says so with `@pytest.mark.forges`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from equipoise.agent.agent import Agent
from equipoise.agent.config import ExperimentConfig
from equipoise.agent.lifecycle import stored_config
from equipoise.agent.maintenance.audit import audit
from equipoise.agent.state import light_fold, replay_index
from equipoise.store.address import is_url
from equipoise.store.contract import Store
from equipoise.store.memory import MemoryStore
from equipoise.store.opening import open_store
from equipoise.store.sql.store import SqlStore


@pytest.fixture
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> int:
    """Chunks of 1,024 log rows, of which a stream of a few thousand ends several."""
    monkeypatch.setattr(light_fold, "CHUNK", 1024)
    monkeypatch.setattr(replay_index, "MOST_AT_ONCE", 64)
    return 1024


@pytest.fixture(autouse=True)
def audited(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Audit, at the end of a test, every store that an agent with a key was opened on."""
    opened: list[tuple[Store, bytes]] = []
    begin = Agent.__init__

    def noting(self: Agent, config: Any, store: Store, key: Any, **more: Any) -> None:
        begin(self, config, store, key, **more)
        # The rules of a lane say from which number of the whole log on they hold.
        if key is not None and not more.get("lane"):
            opened.append((store, key))

    monkeypatch.setattr(Agent, "__init__", noting)
    yield
    if request.node.get_closest_marker("forges") is not None:
        return
    seen: set[object] = set()
    for store, key in opened:
        where = getattr(store, "where", None)
        name = id(store) if where is None else where
        if name in seen or not (where is None or is_url(where) or Path(where).exists()):
            continue
        seen.add(name)
        if isinstance(store, MemoryStore):
            assert_clean(store, key)
        elif where is not None:
            with open_store(where, read_only=True) as reader:
                assert_clean(reader, key)


def assert_clean(store: Store, key: bytes) -> None:
    text = stored_config.load(store)
    assert text is not None
    found = audit(store, ExperimentConfig.from_json(text), key)
    assert found.faults == []
    if isinstance(store, SqlStore) and found.rows:
        assert (found.chained_from, found.chained_rows) == (found.begins, found.rows)
