"""Configuration from a TOML file."""

from __future__ import annotations

import tomllib
from os import PathLike
from pathlib import Path

from equipoise.agent.config.error import ConfigError
from equipoise.agent.config.experiment import ExperimentConfig


def load_config(path: str | PathLike[str]) -> ExperimentConfig:
    """Read and check a TOML file. Raises ConfigError with every problem, the path in front."""
    source = str(path)
    try:
        data = tomllib.loads(Path(path).read_bytes().decode())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError([unreadable(error)], source) from None
    return ExperimentConfig.from_builtins(data, source)


def unreadable(error: Exception) -> str:
    """A sentence about a file that cannot be opened, decoded or parsed."""
    if isinstance(error, OSError):
        return f"the file cannot be read: {error.strerror or error}"
    if isinstance(error, UnicodeDecodeError):
        return f"the file is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}"
    return f"the file is not TOML: {error}"
