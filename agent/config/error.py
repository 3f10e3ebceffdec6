"""What is raised for a configuration that cannot be used."""

from __future__ import annotations

from collections.abc import Sequence


class ConfigError(ValueError):
    """A configuration with problems.

    problems: every one of them, as sentences that name the key, the value, the limit and the fix.
    source: the file, or what else the configuration came from.
    """

    def __init__(self, problems: Sequence[str], source: str = "configuration") -> None:
        super().__init__(problems, source)
        self.problems = list(problems)
        self.source = source

    def __str__(self) -> str:
        return f"{self.source}: " + "; ".join(self.problems)
