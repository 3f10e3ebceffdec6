"""What the agent refuses, as exceptions that name the field, the value and the limit."""

from __future__ import annotations


class AgentError(ValueError):
    """Input that the agent refuses; nothing was logged."""


class UnknownDecisionError(AgentError):
    """An outcome for a decision that does not exist."""


class ConflictError(AgentError):
    """The same id again with other content, or a part of an outcome that contradicts itself."""


class BrokenError(RuntimeError):
    """The state is behind the log, after an exception between the two: only opening the store
    again helps. Nothing is logged any more."""


class LateOutcomeError(AgentError):
    """An outcome after its window expired; counted, never used."""
