"""Opening an experiment: what a store is frozen to, and the state its log is folded into.

A new store is frozen to its configuration, feature schema and key, and its first era begins. One
that was opened before keeps to them: what a changed configuration may change is told by
`lifecycle.stored_config`, anything else is refused.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec
import numpy as np

from equipoise.agent.config import ExperimentConfig
from equipoise.agent.config.reload import Change
from equipoise.agent.errors import AgentError
from equipoise.agent.lifecycle import stored_config
from equipoise.agent.lifecycle.eras import Eras
from equipoise.agent.lifecycle.rules import RuleBook
from equipoise.store.batches import Flags
from equipoise.store.contract import Store
from equipoise.store.records import Era


class _Budget(msgspec.Struct):
    after_decision: str = "continue"


class _Stored(msgspec.Struct):
    budget: _Budget


def with_after_decision(config: ExperimentConfig, store: Store) -> ExperimentConfig:
    """The configuration, with `budget.after_decision` said where it was left out: `stop` in a new
    store, and in one that is there what that store has. One from before there was a choice goes on
    randomizing after the decision, as it did when it was begun."""
    if config.budget.after_decision is not None:
        return config
    text, after = stored_config.load(store), "stop"
    if text is not None:
        with contextlib.suppress(msgspec.MsgspecError):  # `changes` says what is wrong with it
            after = msgspec.json.decode(text, type=_Stored).budget.after_decision
    budget = msgspec.structs.replace(config.budget, after_decision=after)
    return msgspec.structs.replace(config, budget=budget)


def freeze_identity(
    store: Store,
    config: ExperimentConfig,
    key_hash: str | None,
    changes: tuple[Change, ...],
    eras: Eras,
    at: float,
) -> None:
    """Freeze the configuration, schema and key in a store, and begin the first era of a new one.

    key_hash: of the secret key (`decisions.uniforms.key_hash`); None opens for reading, and writes
    nothing. changes: what `config` changes in an experiment that runs already; they are kept by
    whoever acts on them. at: seconds since the epoch, now.
    Raises AgentError where a reader comes with another configuration, or a writer with the key of
    another store, StoreError where the schema is not that of the store.
    """
    if key_hash is None:
        if changes:
            sentences = "; ".join(change.sentence for change in changes)
            raise AgentError(f"the store was opened with another configuration: {sentences}")
        return
    if not changes:
        stored_config.save(store, config.to_json())
    check_key(store, key_hash)
    schema = config.features.schema_hash
    store.freeze("schema_hash", schema)
    store.freeze("key_hash", key_hash)
    if store.eras():
        return
    store.put(
        Era(
            era=0,
            opened_at=at,
            reason="the experiment opens",
            models=[model.name for model in config.models],
            key_hash=key_hash,
            schema_hash=schema,
        )
    )
    if retired(config).any():
        eras.keep_active(0, ~retired(config))


def check_key(store: Store, key_hash: str) -> None:
    """Raise AgentError where a key is not the one that a store was opened with at first.

    By the names of the files, which tell where to look; its hash would tell nobody anything.
    """
    if store.settings().get("key_hash", key_hash) == key_hash:
        return
    path: Path | None = getattr(store, "path", None)
    if path is None:
        raise AgentError("the key is that of another store: give the one it was opened with")
    raise AgentError(
        f"{path}.key is not the key of {path.name}, but of another store: put its own key back,"
        " from where it was copied to, or from a backup"
    )


def retired(config: ExperimentConfig) -> Flags:
    """(K,) models that are declared retired."""
    return np.array([model.retired for model in config.models])


def stored_rules(store: Store) -> RuleBook:
    """The frozen rules of a store. Raises AgentError where one was altered."""
    rules = RuleBook(store)
    altered = rules.altered()
    if altered:
        raise AgentError(
            f"rule {altered[0]} of the store was altered: its text is not the one that its id is"
            " the hash of; restore a backup"
        )
    return rules
