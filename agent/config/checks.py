"""What an alarm of each check does, where it is not the default."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from equipoise.agent.features.problems import Problem, shown, suggestion


def check_faults(checks: Mapping[str, str]) -> Iterator[Problem]:
    """A problem for each check that does not exist, and each action that does not.

    checks: name of a check -> action, as `monitors.action_table` takes them.
    """
    if not checks:
        return
    from equipoise.agent.monitors.actions import DEFAULT_ACTIONS, Action

    for name, action in checks.items():
        if name not in DEFAULT_ACTIONS:
            limit = f"one of {', '.join(DEFAULT_ACTIONS)}"
            yield Problem("checks", shown(name), limit, suggestion(name, DEFAULT_ACTIONS))
        elif action not in list(Action):
            limit = f"one of {', '.join(Action)}"
            yield Problem(f"checks.{name}", shown(action), limit, suggestion(action, Action))
