"""How a fold comes back: from the newest checkpoint, or from where the log begins."""

from __future__ import annotations

from contextlib import suppress

from equipoise.agent.errors import AgentError
from equipoise.agent.fold import Fold
from equipoise.agent.moments.codec import StateFormatError
from equipoise.store.contract import Store


def restore(fold: Fold, store: Store) -> None:
    """Load the newest state that can be read; the log is folded from there on.

    Raises AgentError where the log no longer begins at row 0 and the state it begins with was
    written by a version whose states this one does not read.
    """
    checkpoint = store.restore()
    if checkpoint is not None:
        # The log is the truth: what another version kept of it is folded again.
        with suppress(StateFormatError):
            fold.load_bytes(checkpoint.state)
            return
    root = store.root()
    if root is not None:
        try:
            fold.load_bytes(root.state)
        except StateFormatError as error:
            raise AgentError(
                f"the log begins at row {root.seq}, and the state before it cannot be read"
                f" ({error}): open the store with the version that wrote it"
            ) from error
