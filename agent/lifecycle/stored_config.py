"""The configuration in force, as the store keeps it: every version that was, the newest last.

An experiment may be configured anew while it runs. What a predictable policy may change at any
time is taken over; what changes the meaning of certified sums starts an era; what the log itself
rests on is refused (`equipoise.agent.config.reload` has the rules).
"""

from __future__ import annotations

import re

import msgspec

from equipoise.agent.config import ExperimentConfig
from equipoise.agent.config.reload import Change, experiment_changes
from equipoise.agent.errors import AgentError
from equipoise.store.contract import Store

_FIRST = "config"
_REMOVED = "but refused: its sums begin with rows that retention removed; start a new store"


def load(store: Store) -> str | None:
    """The text of the configuration that was in force last, None in a store without one."""
    texts = versions(store)
    return texts[max(texts)] if texts else None


def version(store: Store) -> int:
    """The number of the configuration in force, 0 for the first."""
    return max(versions(store), default=0)


def save(store: Store, text: str) -> None:
    """Keep a configuration as the newest one; no change where it is that already."""
    texts = versions(store)
    if not texts:
        store.freeze(_FIRST, text)
    elif texts[max(texts)] != text:
        store.freeze(f"{_FIRST}:{max(texts) + 1}", text)


def changes(store: Store, config: ExperimentConfig) -> tuple[Change, ...]:
    """What `config` changes in an experiment that runs already, () in a new store.

    Raises AgentError naming every key that cannot change, with the reason.
    """
    stored = load(store)
    if stored is None or stored == config.to_json():
        return ()
    try:
        before = ExperimentConfig.from_json(stored)
    except (msgspec.MsgspecError, LookupError, TypeError) as error:
        raise AgentError(
            f"the configuration that the store keeps cannot be read ({error}): restore a backup"
        ) from error
    changed = experiment_changes(before, config)
    refused = [change.sentence for change in changed if change.effect == "refused"]
    if store.base_snapshot() is not None:
        refused += [f"{change.sentence}, {_REMOVED}" for change in changed if _begins(change.key)]
    if refused:
        raise AgentError("the store was opened with another configuration: " + "; ".join(refused))
    return changed


def in_words(key: str, config: ExperimentConfig) -> str:
    """A key that changed, for people: what is one of a model names it.

    config: with the change in it.
    """
    found = re.fullmatch(r"models\[(\d+)\](?:\.(\w+))?", key)
    if found is None:
        return key
    model = config.models[int(found[1])]
    if found[2] is None:
        return f"{model.name} added"
    if found[2] == "retired":
        return f"{model.name} {'retired' if model.retired else 'compared again'}"
    return f"{found[2]} of {model.name}"


def _begins(key: str) -> bool:
    """Whether the sums of a changed key have to be made from row 0 on."""
    added = key.startswith("models[") and key.endswith("]")
    return added or key.startswith(("certify.segments", "certify.policies"))


def versions(store: Store) -> dict[int, str]:
    """The text of every configuration that was in force, by its number."""
    texts: dict[int, str] = {}
    for name, value in store.settings().items():
        head, _, number = name.partition(":")
        if head == _FIRST and (not number or number.isdecimal()):
            texts[int(number or 0)] = value
    return texts
