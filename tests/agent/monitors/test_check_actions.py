"""Actions: what an alarm asks for, and how that is changed."""

from __future__ import annotations

import pytest

from equipoise.agent.errors import AgentError
from equipoise.agent.monitors import DEFAULT_ACTIONS, Action, Check, action_table, consequences


def test_only_alarms_have_consequences():
    checks = [
        Check("fidelity", "alarm", "They differ.", models=(1,)),
        Check("drift", "watch", "It may move."),
        Check("floors", "unknown", "Nothing yet."),
        Check("guardrail", "alarm", "Too slow.", models=(0, 2)),
    ]
    found = consequences(checks, action_table())
    assert [consequence.action for consequence in found] == [Action.DROP_SIMULATION, Action.PAUSE]
    assert [consequence.models for consequence in found] == [(), (0, 2)]
    assert found[0].check is checks[0]


def test_a_table_is_changed_by_name_and_the_default_stays():
    table = action_table({"assignment": "report", "drift": "widen"})
    assert table["assignment"] is Action.REPORT
    assert table["drift"] is Action.WIDEN
    assert table["guardrail"] is DEFAULT_ACTIONS["guardrail"]
    assert DEFAULT_ACTIONS["assignment"] is Action.PAUSE


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"mood": "report"}, "no check is called 'mood'"),
        ({"drift": "panic"}, "action of check drift is 'panic', must be one of report, widen"),
    ],
)
def test_what_does_not_exist_is_refused(overrides, says):
    with pytest.raises(AgentError, match=says):
        action_table(overrides)
