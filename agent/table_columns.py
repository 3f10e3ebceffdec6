"""What every column of an export holds: written beside the tables, and in docs/export.md."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_REQUEST = {
    "seq": "number of the row in the log; rows of all kinds share one order",
    "request_id": "id of the request, empty where it had none",
    "unit": "key of the user or session",
    "unit_id": "id behind it, empty where it had none",
    "at": "seconds since the epoch",
    "x_*": "context features, a column each",
    "routed": "model that the router had chosen",
}
_OUTPUTS = {"y_*": "output features, a column each; empty where this row carries none"}
_RULE = {"rule_id": "the rule that froze it", "segment": "part of the traffic, empty for all of it"}

MEANINGS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "decisions": {
            **_REQUEST,
            "decision_id": "d and its number, counted from 0",
            "context": "key of the cached context, -1 where there is none",
            "context_id": "id behind it, empty where it had none",
            "eligible_*": "whether a model might serve the request, empty where every one might",
            "rate": "e, the probability of being randomized",
            "p_*": "pi, the probability of each model given that it is randomized",
            "uniform": "u, the one number drawn: u < e randomizes, u / e picks the model",
            "model": "model to serve",
            "randomized": "whether it came from the draw",
            "capped": "whether a stop set e to 0 after the rule had spoken",
            "closed_by": "what closed the request to randomizing: open, observing, paused, budget, "
            "segment, user, excluded, ineligible; empty in older logs",
            "rule_id": "the rule it was made under",
            "era": "the era of that rule",
            "leader_id": "decision whose draw this one took over, its own where it drew itself",
            "raw_*": "reward of each model that its rule predicted, on [0, 1], before the tuning",
            "certifiable": "whether certified sums may count it, known before the draw",
            "entered": "whether those of the era in force have counted it",
        },
        "outcomes": {
            "seq": _REQUEST["seq"],
            "decision_id": "the decision it belongs to",
            "served": "model that really answered",
            "attempt": "1 for the first try",
            "delivered": "whether the assignment was delivered",
            **_OUTPUTS,
            "reward": "in reward units, empty where this part carries none",
            "at": _REQUEST["at"],
            "metric_*": "guardrail metrics, empty where this part carries none",
        },
        "observations": {**_REQUEST, **_OUTPUTS, "reward": "in reward units"},
        "simulations": {
            "seq": _REQUEST["seq"],
            "context": "key of the cached context",
            "context_id": "id behind it",
            "model": "model it was replayed on",
            "x_*": _REQUEST["x_*"],
            **_OUTPUTS,
            "cost": "USD, empty where it is not known",
            "at": _REQUEST["at"],
        },
        "expiries": {
            "seq": _REQUEST["seq"],
            "decision_id": "decision whose window closed: a reward that comes later is not used",
            "at": _REQUEST["at"],
        },
        "rules": {
            "rule_id": "hash of its text",
            "era": "era it decides in",
            "since": "number of the first decision it may make",
            "at": "when it was stored, seconds since the epoch",
            "gate": "policy that gives e",
            "assignment": "policy that gives pi",
            "floor": "least pi of an eligible model",
            "alarms": "checks whose alarm stood",
            "widened": "whether missing rewards count as the worst case, whatever is declared",
            "active_*": "whether its era compares a model",
            "body": "its whole text, JSON",
        },
        "predictions": {
            "rule_id": _RULE["rule_id"],
            "kind": "replayed: for a context with a replay that was known; context: for any other",
            "model": "the model, empty for what all share",
            "column": "intercept, or the feature it multiplies",
            "coefficient": "on rewards scaled to [0, 1]",
        },
        "tuning": {
            **_RULE,
            "candidate": "model, or today's routing",
            "offset": "mu = clip(offset + factor * raw, 0, 1)",
            "factor": "see offset",
            "usual": "raw prediction to assume where there is none",
        },
        "centres": {
            **_RULE,
            "cap": "position in caps of experiment.json",
            "candidate": "model, today's routing, or declared policy",
            "low": "what low scores were expected to be; squares are taken around it",
            "high": "the same of high scores",
        },
        "reward_centres": {
            **_RULE,
            "model": "model",
            "low": "what rewards were expected to be, for lower ends, on [0, 1]",
            "high": "the same for upper ends",
            "seen": "rewards of the model until then",
        },
        "openings": {
            **_RULE,
            "end": "low or high end of a value, or contrast",
            "candidate": "whose value, or the one whose contrast",
            "other": "with whom, empty for a value",
            "rho": "of the asymptotic sequence, frozen when it opened",
        },
        "eras": {
            "era": "number, from 0",
            "opened_at": _REQUEST["at"],
            "reason": "why it was opened",
            "models": "model list, JSON",
            "active": "models it compares, JSON, empty for all",
            "key_hash": "hash of the key of its draws",
            "schema_hash": "hash of the feature schema",
        },
        "configurations": {
            "version": "0 for the first, the last is in force",
            "config": "the experiment as declared, JSON",
        },
        "controls": {
            "at": _REQUEST["at"],
            "name": "what was set: budget, or stops (from which decision on what stopped)",
            "value": "JSON",
        },
        "alerts": {
            "at": _REQUEST["at"],
            "check": "name of the check, or pause",
            "status": "its verdict",
            "sentence": "for people",
        },
        "columns": {
            "table": "name of a table",
            "column": "name of a column; * stands for a name of yours",
            "meaning": "what it holds",
        },
    }
)
"""By table and column."""
