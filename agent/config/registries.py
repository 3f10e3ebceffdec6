"""Whether the names in a policy are registered; the registries are imported only when asked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib import import_module

from equipoise.agent.features.problems import Problem, shown, suggestion


def registry_faults(gate: str, assignment: str, estimator: str) -> Iterator[Problem]:
    """A problem for each name that no registry has, with the names it does have."""
    from equipoise.agent.estimators import FAMILIES
    from equipoise.policies.registry import ASSIGNMENTS, GATES

    # Importing these packages fills the registries.
    import_module("equipoise.policies.gates")
    import_module("equipoise.policies.assignments")

    yield from _unknown("gate", gate, GATES)
    yield from _unknown("assignment", assignment, ASSIGNMENTS)
    yield from _unknown("estimator", estimator, FAMILIES)


def _unknown(key: str, name: str, known: Iterable[str]) -> Iterator[Problem]:
    names = list(known)
    if name not in names:
        limit = f"one of {', '.join(names)}"
        yield Problem(key, shown(name), limit, suggestion(name, names))
