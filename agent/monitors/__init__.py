"""Checks that run all the time (METHOD section 4), one a file: a status and a sentence each."""

from __future__ import annotations

from equipoise.agent.monitors.assignment import AssignmentAudit
from equipoise.agent.monitors.check import (
    DEFAULT_ACTIONS,
    Action,
    Check,
    Consequence,
    Status,
    action_table,
    due,
)
from equipoise.agent.monitors.drift import Drift
from equipoise.agent.monitors.fidelity import Fidelity
from equipoise.agent.monitors.floors import Floors
from equipoise.agent.monitors.guardrails import Guardrail
from equipoise.agent.monitors.lost_rows import Delivery, Missingness
from equipoise.agent.monitors.representation import representation

__all__ = [
    "DEFAULT_ACTIONS",
    "Action",
    "AssignmentAudit",
    "Check",
    "Consequence",
    "Delivery",
    "Drift",
    "Fidelity",
    "Floors",
    "Guardrail",
    "Missingness",
    "Status",
    "action_table",
    "due",
    "representation",
]
