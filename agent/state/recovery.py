"""How a fold comes back: from the newest checkpoint, or from where the log begins."""

from __future__ import annotations

from contextlib import suppress

import numpy as np

from equipoise.agent.errors import AgentError
from equipoise.agent.moments.codec import StateFormatError, decode, encode
from equipoise.agent.moments.state import Moments
from equipoise.agent.state.fold import Fold
from equipoise.store.batches import Buffer
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
    restore_base(fold, store)


def restore_base(fold: Fold, store: Store) -> None:
    """Load the state that the log begins with, if it does not begin at row 0.

    Raises AgentError where that state was written by a version whose states this one does not read.
    """
    root = store.base_snapshot()
    if root is not None:
        try:
            # Nothing is left to fold again: what the state of an older version lacks is filled in.
            fold.load_bytes(grown(_with_attempts(bytes(root.state)), fold.to_bytes()))
        except StateFormatError as error:
            raise AgentError(
                f"the log begins at row {root.seq}, and the state before it cannot be read"
                f" ({error}): open the store with the version that wrote it"
            ) from error


def grown(state: Buffer, own: Buffer) -> Buffer:
    """A state that an older version wrote, as one of this version.

    own: bytes of the same experiment before any row. Columns of open decisions that the older one
    did not keep are zero, other sums are those of no row, and rewards that came without their
    outputs wait to be summed, which the older one never did. A state that lacks nothing is returned
    as it is. Raises StateFormatError where it cannot be read, or holds what this version does not
    know.
    """
    arrays, fields = decode(state)
    fresh, own_fields = decode(own)
    unknown = (arrays.keys() - fresh.keys()) | (fields.keys() - own_fields.keys())
    if unknown:
        raise StateFormatError(f"{', '.join(sorted(unknown)[:5])} are not known here")
    lacking = fresh.keys() - arrays.keys()
    shorter = [
        name
        for name, array in arrays.items()
        # Of replays there is a column more for each version of a model that was replaced.
        if array.shape[1:] != fresh[name].shape[1:] and not name.startswith("simulated.")
    ]
    if shorter:
        raise StateFormatError(f"{shorter[0]} has another shape")
    rows = len(arrays["pending.rate"])
    for name in lacking:
        column = name.startswith("pending.")
        shape = (rows, *fresh[name].shape[1:]) if column else fresh[name].shape
        arrays[name] = np.zeros(shape, fresh[name].dtype) if column else fresh[name]
    if "pending.summed" in lacking:
        arrays["pending.summed"] = arrays["pending.folded"].copy()
    if "open.rewarded" in lacking:
        alone = arrays["pending.has_reward"] & ~arrays["pending.has_outputs"]
        numbers = np.flatnonzero(alone) + int(fields["base"])
        arrays["open.rewarded"] = np.union1d(arrays["open.completed"], numbers)
        arrays["pending.waits"][arrays["open.rewarded"] - int(fields["base"])] = True
        moments = Moments.from_bytes(arrays["moments"].tobytes())
        # That version weighted its third source by 1 / e alone; the arms have 1 / (e pi).
        moments.exp_weighted.weight[:] = moments.arms.weight
        arrays["moments"] = np.frombuffer(moments.to_bytes(), dtype=np.uint8)
    for name in (name for name in fresh if name.startswith("certified.") and "counts" in name):
        more = len(fresh[name]) - len(arrays[name])
        arrays[name] = np.append(arrays[name], np.zeros(max(more, 0)))
    if not lacking and fields.keys() == own_fields.keys():
        return state
    return encode({name: arrays[name] for name in fresh}, {**own_fields, **fields})


def _with_attempts(state: Buffer) -> Buffer:
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
    attempts = [odd + fields["base"], np.ones_like(odd), ~delivered[odd], served[odd]]
    heard = arrays["pending.has_reward"] | arrays["pending.has_outputs"]
    arrays["pending.attempts"] = np.column_stack(attempts).astype(np.int64)
    arrays["pending.confirmed"] = usual & heard
    arrays["pending.reward_at"] = np.full(len(served), np.nan)
    arrays["watch.panel.delivery.other"] = np.zeros_like(arrays["watch.panel.delivery.lost"])
    return encode(arrays, fields)
