"""From a configuration file to a running daemon, and back to an orderly end."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path

import msgspec

from equipoise.agent.config import ConfigError, ExperimentConfig
from equipoise.agent.errors import AgentError
from equipoise.agent.features.declarations import WRONG, read
from equipoise.agent.features.problems import Problem
from equipoise.agent.keyfile import key_path, read_key, write_key
from equipoise.agent.service.app import build
from equipoise.agent.service.daemon import Daemon
from equipoise.agent.service.logs import Log
from equipoise.agent.service.server import listen
from equipoise.agent.service.server import serve as serve_front
from equipoise.agent.service.settings import ServiceSettings
from equipoise.agent.service.tokens import Tokens
from equipoise.store.journaled import JournaledStore


def load(path: Path, overrides: Mapping[str, object]) -> tuple[ExperimentConfig, ServiceSettings]:
    """The experiment and the `[service]` table of a TOML file; overrides replace keys of it.

    Raises ConfigError with every problem of both.
    """
    try:
        data = tomllib.loads(path.read_bytes().decode())
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError([f"the file cannot be read: {why}"], str(path)) from None
    found: list[Problem] = []
    table = data.pop("service", {})
    if isinstance(table, dict):
        table = {**table, **overrides}
    settings = read(table, ServiceSettings, found, "service")
    problems = [str(problem) for problem in found]
    try:
        config = ExperimentConfig.from_builtins(data, str(path))
    except ConfigError as error:
        raise ConfigError([*error.problems, *problems], str(path)) from None
    if problems or settings is WRONG:
        raise ConfigError(problems, str(path))
    return config, settings


def check_only(path: Path, overrides: Mapping[str, object]) -> str:
    """A sentence about a configuration that is fine. Raises ConfigError."""
    config, settings = load(path, overrides)
    names = ", ".join(config.model_names)
    return f"{path}: {config.name} compares {names}; mode {settings.mode}, store {settings.store}"


def run(path: Path, overrides: Mapping[str, object]) -> None:
    """Serve until a signal. Raises ConfigError, StoreError, AgentError or ListenError."""
    config, settings = load(path, overrides)
    log = Log(settings.log_level)
    tokens = Tokens(settings.tokens)
    listener = listen(settings)
    try:
        store = JournaledStore(
            settings.store,
            settings.durability,
            busy_seconds=settings.limits.store_seconds,
            waiting_rows=settings.limits.waiting_rows,
        )
        try:
            store_path = Path(settings.store)
            key = read_key(store_path)
            if key is None:
                if store.settings():
                    raise AgentError(
                        f"the key of {store_path} is missing: restore {key_path(store_path)}"
                    )
                key = write_key(store_path)
            daemon = Daemon(config, settings, store, key, log)
            front = build(daemon, tokens)
        except BaseException:
            store.close()
            raise

        def reload() -> None:
            reread(path, overrides, daemon, tokens)

        serve_front(front, settings, listener, daemon.refused, reload, log)
    finally:
        listener.close()


def reread(path: Path, overrides: Mapping[str, object], daemon: Daemon, tokens: Tokens) -> None:
    """Take over what may change while the daemon runs; say what may not."""
    log, old = daemon.log, daemon.settings
    try:
        config, new = load(path, overrides)
        tokens_given = new.tokens
        if config.to_json() != daemon.agent.config.to_json():
            log.error("reload-refused", reason="the experiment changed: start the daemon again")
            return
        tokens.replace(tokens_given)
    except ValueError as error:
        problems = error.problems if isinstance(error, ConfigError) else [str(error)]
        log.error("reload-refused", problems=problems)
        return
    fixed = ("store", "host", "port", "durability", "kill_switch", "limits")
    needs_restart = [name for name in fixed if getattr(old, name) != getattr(new, name)]
    kept = {name: getattr(old, name) for name in fixed}
    daemon.apply(msgspec.structs.replace(new, **kept))
    log.info("reloaded", needs_restart=needs_restart)
