"""A whole experiment into another store: rows, chain, key, and what many deciders agreed on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from equipoise.agent.errors import AgentError
from equipoise.agent.maintenance.key_file import key_path, read_key, write_key
from equipoise.store.address import Where, beside, is_url, shown
from equipoise.store.errors import StoreError
from equipoise.store.lanes import HubError
from equipoise.store.lanes.copying import copy_hub
from equipoise.store.lanes.opening import SUFFIX, hub_within, open_hub
from equipoise.store.moving import check_target, holds_hub, move
from equipoise.store.opening import exists, open_store
from equipoise.store.sql.connection import Connection


def migrate(
    source: Where,
    target: Where,
    key: str | os.PathLike[str] | None = None,
    to_key: str | os.PathLike[str] | None = None,
    progress: Callable[[str, int], None] = lambda doing, rows: None,
) -> dict[str, object]:
    """Copy an experiment to where nothing is; what was copied.

    Nobody may write to the source, which stays as it is. key, to_key: files of the secret key here
    and there, beside the stores unless given. Every row is compared by its digest before the copy
    appears. Raises StoreError and AgentError; then there is no store at the target.
    """
    if not exists(source):
        raise StoreError(f"store {shown(source)} does not exist")
    check_target(target)
    secret, place = read_key(source, key), key_path(target, to_key)
    same = place.exists() and secret is not None and place.read_bytes() == secret
    if place.exists() and not same:
        raise AgentError(f"{place} exists and is not the key of this experiment: move it away")
    with open_store(source) as opened:
        hub = _has_hub(source)
        written: list[Path] = []

        def finish(connection: Connection | None) -> None:
            if secret is not None and not same:
                write_key(target, secret, to_key)
                written.append(place)
            if hub:
                if connection is None:
                    written.append(beside(target, SUFFIX))
                _copy_hub(source, target, connection)

        try:
            moved = move(opened, target, time.time(), finish, progress)
        except BaseException:
            for path in written:
                path.unlink(missing_ok=True)
            raise
    log = moved.anchor.log
    return {
        "log_rows": moved.log_rows,
        "decisions": moved.decisions,
        "table_rows": moved.table_rows,
        "digest": None if log is None else log.digest,
        "key": None if secret is None else str(place),
        "deciders": hub,
    }


def _has_hub(source: Where) -> bool:
    """Whether deciders ever met here. Raises AgentError while one of them holds a lane."""
    if not (holds_hub(source) if is_url(source) else beside(source, SUFFIX).exists()):
        return False
    try:
        with open_hub(str(source)) as hub:
            held = [lane.name for lane in hub.lanes() if lane.ended is None]
    except HubError as error:
        raise AgentError(str(error)) from error
    if held:
        raise AgentError(
            f"deciders hold lanes ({', '.join(held)}): stop them, and the authority when it has"
            " ended those of deciders that died"
        )
    return True


def _copy_hub(source: Where, target: Where, connection: Connection | None) -> None:
    # In the transaction of the store: a store without its hub would give lanes twice.
    try:
        with open_hub(str(source)) as old, hub_within(str(target), connection) as new:
            copy_hub(old, new)
    except HubError as error:
        raise AgentError(str(error)) from error
