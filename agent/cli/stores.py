"""Opening a store for a command that only reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from equipoise.agent.config import ExperimentConfig
    from equipoise.store.sqlite import SqliteStore


@contextmanager
def reading(path: Path) -> Iterator[tuple[SqliteStore, ExperimentConfig]]:
    """The store, read-only, and the configuration frozen in it.

    What a killed daemon left in the tail is taken in first: nothing acknowledged is missing.

    Raises AgentError where the file is a store that no experiment was opened on.
    """
    from equipoise.agent.config import ExperimentConfig
    from equipoise.agent.errors import AgentError
    from equipoise.agent.lifecycle import stored_config
    from equipoise.store.sqlite import SqliteStore

    _take_in_tail(path)
    with SqliteStore(path, read_only=True) as store:
        text = stored_config.load(store)
        if text is None:
            raise AgentError(f"{path} holds no experiment yet")
        yield store, ExperimentConfig.from_json(text)


def _take_in_tail(path: Path) -> None:
    from equipoise.store.errors import ReadOnlyStoreError, StoreInUseError
    from equipoise.store.format.frames import tail_files
    from equipoise.store.format.mark import read_mark
    from equipoise.store.sqlite import SqliteStore

    # A store that its writer left in order is only read; but a copy from an earlier day, put in its
    # place, is not as it was left.
    mark = read_mark(path)
    if path.is_file() and (tail_files(path) or mark is not None):
        # A daemon that is running takes its own tail in, a few milliseconds from now.
        with suppress(StoreInUseError, ReadOnlyStoreError):
            SqliteStore(path).close()
