"""How a fold comes back: from the newest checkpoint, or from where the log begins."""

from __future__ import annotations

from contextlib import suppress

import numpy as np

from equipoise.agent.errors import AgentError
from equipoise.agent.fold import Fold
from equipoise.agent.moments.codec import StateFormatError, decode, encode
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
            fold.load_bytes(_upgraded(root.state))
        except StateFormatError as error:
            raise AgentError(
                f"the log begins at row {root.seq}, and the state before it cannot be read"
                f" ({error}): open the store with the version that wrote it"
            ) from error


def _upgraded(state: bytes) -> bytes:
    """A state of a version that kept no attempts, with what it said of them; others as they are.

    For the state before the first row alone, which no log can bring back: sums in it count as
    served what that version counted so.
    """
    arrays, fields = decode(state)
    if "pending.attempts" in arrays or "pending.delivered" not in arrays:
        return state
    pending = {name: arrays[f"pending.{name}"] for name in ("delivered", "served", "model")}
    delivered, served = pending["delivered"], pending["served"]
    usual = delivered & (served == pending["model"])
    odd = np.flatnonzero(~usual)
    told = [odd + fields["base"], np.ones_like(odd), ~delivered[odd], served[odd]]
    heard = arrays["pending.has_reward"] | arrays["pending.has_outputs"]
    arrays["pending.attempts"] = np.column_stack(told).astype(np.int64)
    arrays["pending.confirmed"] = usual & heard
    arrays["pending.reward_at"] = np.full(len(served), np.nan)
    arrays["watch.panel.delivery.other"] = np.zeros_like(arrays["watch.panel.delivery.lost"])
    return encode(arrays, fields)
