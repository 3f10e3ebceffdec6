"""Opening a store for a command that only reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from equipoise.agent.config import ExperimentConfig
    from equipoise.store.sqlite import SqliteStore


@contextmanager
def reading(path: Path) -> Iterator[tuple[SqliteStore, ExperimentConfig]]:
    """The store, read-only, and the configuration frozen in it.

    Raises AgentError where the file is a store that no experiment was opened on.
    """
    from equipoise.agent.config import ExperimentConfig
    from equipoise.agent.errors import AgentError
    from equipoise.store.sqlite import SqliteStore

    with SqliteStore(path, read_only=True) as store:
        text = store.settings().get("config")
        if text is None:
            raise AgentError(f"{path} holds no experiment yet")
        yield store, ExperimentConfig.from_json(text)
