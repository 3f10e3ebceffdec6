"""What a replay refuses: an option by its name, in Python and on the command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from equipoise.agent.errors import AgentError


class OptionError(AgentError):
    """An option that cannot be honoured.

    Its text names keywords of `replay`, `in_flags` the options of the command.

    >>> error = OptionError("exp_rate", "2 is not within (0, 1]")
    >>> str(error), error.in_flags
    ('exp_rate: 2 is not within (0, 1]', '--exp-rate: 2 is not within (0, 1]')
    """

    def __init__(self, options: str, reason: str) -> None:
        """options: keywords, with commas between."""
        super().__init__(f"{options}: {reason}")
        names = (f"--{_FLAGS.get(name, name.replace('_', '-'))}" for name in options.split(", "))
        self.in_flags = f"{', '.join(names)}: {reason}"


@contextmanager
def in_flags() -> Iterator[None]:
    """Inside, options are refused under the names they have on the command line."""
    try:
        yield
    except OptionError as error:
        raise AgentError(error.in_flags) from None


_FLAGS = {"benchmark_options": "benchmark-option"}
"""Where it is not the keyword with hyphens."""
