"""Checks that run all the time (METHOD section 4): a status and a sentence each.

check           what every check returns, when it is an alert, what an alarm does, `Monitor`
assignment      `AssignmentAudit`: do models get the shares that the logged probabilities say?
lost_rows       `Delivery`, `Missingness`, `Floors`: rows lost or left out, and the largest weight
fidelity        `Fidelity`: do replayed outputs look like live ones?
drift           `Drift`: did residuals or rewards change while the log grew?
guardrails      `Guardrail`: a metric that no model may take beyond its limit
representation  do outputs carry all that users react to? (from estimates, no state)
progress        estimators, outputs, plan and watermark: how the experiment gets on (no state)
monitor_set     all checks with a state: what each is fed, what a new era starts afresh
"""

from __future__ import annotations

from equipoise.agent.monitors.assignment import AssignmentAudit
from equipoise.agent.monitors.check import (
    DEFAULT_ACTIONS,
    Action,
    Check,
    Consequence,
    Status,
    action_table,
    consequences,
)
from equipoise.agent.monitors.drift import Drift
from equipoise.agent.monitors.fidelity import Fidelity
from equipoise.agent.monitors.guardrails import Guardrail, GuardrailLimit
from equipoise.agent.monitors.lost_rows import Delivery, Floors, Missingness
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
    "GuardrailLimit",
    "Missingness",
    "Status",
    "action_table",
    "consequences",
    "representation",
]
