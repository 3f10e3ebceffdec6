"""Checks that run all the time (METHOD section 4), one a file: a status and a sentence each."""

from __future__ import annotations

from equipoise.agent.monitors.actions import DEFAULT_ACTIONS, Action, Consequence, action_table, due
from equipoise.agent.monitors.assignment import AssignmentAudit
from equipoise.agent.monitors.check import Check, Status
from equipoise.agent.monitors.delivery import Delivery
from equipoise.agent.monitors.drift import Drift
from equipoise.agent.monitors.fidelity import Fidelity
from equipoise.agent.monitors.floors import Floors
from equipoise.agent.monitors.guardrails import Guardrail
from equipoise.agent.monitors.missingness import Missingness
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
