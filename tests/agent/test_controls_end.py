"""The end of an experiment: for good, with who is to be served, until somebody resumes it."""

from __future__ import annotations

import json

import pytest
from commands import run_command

from equipoise.agent.answers.status import Activity, State
from equipoise.agent.controls import BUDGET
from equipoise.agent.errors import AgentError
from equipoise.agent.experiment import Experiment
from equipoise.agent.lifecycle.eras import Ended, keep_end, read_stops, standing_end
from equipoise.agent.monitors.check import Action, Check, Consequence
from equipoise.agent.service.analyst.reports import current
from equipoise.store.records import Control

DECLARED = {
    "name": "chat",
    "models": [{"name": "large"}, {"name": "small"}],
    "policy": {"assignment": "uniform", "rate": 0.5, "estimator": "ipw"},
}


def served(chat: Experiment, name: str, count: int) -> int:
    """How many of `count` requests were randomized; large is always better."""
    choices = [chat.decide(f"{name}{n}", routed="small", features=[]) for n in range(count)]
    for choice in choices:
        chat.outcome(choice, reward=1.0 if choice.model == "large" else 0.0)
    return sum(choice.randomized for choice in choices)


def test_an_end_outlives_restarts_pauses_and_alarms_until_it_is_resumed_in_a_new_era(tmp_path):
    with Experiment.open(tmp_path / "chat.db", DECLARED, clock=lambda: 7.0) as chat:
        assert served(chat, "a", 100) > 0
        with pytest.raises(AgentError, match="none of large, small"):
            chat.end("medium")
        assert standing_end(chat.agent.store) is None
        ended = chat.end("small", reason="the budget is needed elsewhere")
        assert ended == Ended(
            model="small", certified=False, reason="the budget is needed elsewhere", era=0, at=7.0
        )
    with Experiment.open(tmp_path / "chat.db", DECLARED) as chat:
        assert chat.activity() is Activity.ENDED
        assert chat.status().state is State.ENDED
        assert served(chat, "b", 60) == 0
        chat.pause("a release")
        assert chat.status().state is State.ENDED
        assert chat.agent.state.paused == "the budget is needed elsewhere"
        drift = Consequence(Action.NEW_ERA, Check("drift", "alarm", "it drifts"), ())
        assert not chat.agent.controls.begins_era([drift])
        chat.agent.controls.apply_alarm_actions([drift], 9.0)
        assert chat.agent.rule.era == 0
        # The log says why every request was served as routed, and the answer whom to serve.
        assert read_stops(chat.agent.store)[-1].off == "the budget is needed elsewhere"
        answer = current(chat.agent)[1]
        assert (answer.status, answer.final, answer.action) == ("ended", "small", "small")
        chat.resume("it was not")
        assert chat.activity() is Activity.RANDOMIZING
        assert chat.agent.rule.era == 1
        assert served(chat, "c", 60) > 0
    with Experiment.open(tmp_path / "chat.db", DECLARED) as chat:
        assert chat.activity() is Activity.RANDOMIZING
        assert current(chat.agent)[1].final is None


def test_an_end_that_a_kill_cut_short_is_an_end(tmp_path):
    """It is kept in two rows; the first alone stops the randomizing."""
    ended = Ended(model="large", certified=False, reason="", era=0, at=3.0)
    with Experiment.open(tmp_path / "chat.db", DECLARED) as chat:
        keep_end(chat.agent.store, ended, 3.0)
    with Experiment.open(tmp_path / "chat.db", DECLARED) as chat:
        assert (chat.activity(), chat.agent.state.paused) == (Activity.ENDED, "by an operator")
        assert served(chat, "a", 60) == 0


@pytest.mark.parametrize("reason", ["two\nlines", "\x1b[31mred", "\u202eturned", "x" * 501])
def test_a_reason_is_a_short_line_as_over_http(tmp_path, reason):
    with Experiment.open(tmp_path / "chat.db", DECLARED) as chat:
        for verb in (chat.pause, chat.resume, lambda why: chat.end("large", reason=why)):
            with pytest.raises(AgentError, match="none of which is a control character"):
                verb(reason)
        assert (chat.activity(), standing_end(chat.agent.store)) == (Activity.RANDOMIZING, None)
        assert not chat.agent.store.alerts()
        # What a check says is no reason that somebody gave.
        floors = Consequence(Action.PAUSE, Check("floors", "alarm", "x" * 501), ())
        chat.agent.controls.apply_alarm_actions([floors], 9.0)
        assert chat.activity() is Activity.PAUSED


def test_a_version_that_knows_no_end_finds_a_pause(tmp_path):
    with Experiment.open(tmp_path / "chat.db", DECLARED) as chat:
        chat.end("large", reason="it won")
        kept = chat.agent.store.alerts()[-1]
        assert (kept.check, kept.status, kept.sentence) == ("pause", "paused", "it won")
        chat.resume()
        assert chat.agent.store.alerts()[-1].status == "resumed"


def test_without_a_choice_the_end_is_what_is_recommended(tmp_path):
    """And whether that is certified is kept with it."""
    store = tmp_path / "chat.db"
    with Experiment.open(store, DECLARED) as chat:
        served(chat, "a", 20)
        assert chat.end() == chat.agent.state.ended
        assert (chat.agent.state.ended.model, chat.agent.state.ended.certified) == (None, False)
        chat.resume()
        served(chat, "b", 600)
        chat.refresh()
        assert chat.agent.answers.certified_winner() == "large"
    ended = run_command("end", store, "--reason", "large won", "--json").stdout
    assert '"model":"large","certified":true,"reason":"large won","era":1' in ended
    again = run_command("end", store)
    assert again.stdout == "ended in era 1: serve large, which is certified\n"
    refused = run_command("end", store, "--keep")
    assert refused.returncode == 2
    assert "UTC: large is served (large won); resume it first" in refused.stderr
    with Experiment.open(store, DECLARED) as chat:
        assert chat.agent.state.ended.model == "large"
        assert [each.name for each in chat.agent.store.controls()].count("end") == 3
        chat.resume()
    ended = run_command("end", store, "--keep").stdout
    assert ended == "ended in era 2: keep today's routing\n"
    with Experiment.open(store, DECLARED) as chat:
        refused = run_command("end", store, "--model", "large")
    assert refused.returncode == 2
    assert "end it with --url" in refused.stderr


def test_a_budget_that_an_operator_set_holds_for_whoever_opens_the_store(tmp_path):
    with Experiment.open(tmp_path / "chat.db", DECLARED) as chat:
        chat.agent.store.put(Control(at=1.0, name=BUDGET, value="50"))
    with Experiment.open(tmp_path / "chat.db", DECLARED) as chat:
        assert served(chat, "a", 400) == 50
        assert chat.activity() is Activity.BUDGET_SPENT
    status = run_command("status", tmp_path / "chat.db", "--json").stdout
    assert '"activity":"budget-spent"' in status
    assert '"budget_left":0' in status
    assert '"requests":50,"usd":null' in status
    with Experiment.open(tmp_path / "chat.db", DECLARED) as chat:
        chat.agent.state.observing_only = True
        served(chat, "b", 1)
    status = run_command("status", tmp_path / "chat.db", "--json").stdout
    assert '"activity":"observing"' in status


def test_the_command_sees_the_file_of_the_kill_switch_and_the_pause_behind_it(tmp_path):
    store = tmp_path / "chat.db"
    with Experiment.open(store, DECLARED) as chat:
        chat.pause("a release")
    assert told(store)["activity"] == "paused"
    (tmp_path / "chat.db.kill").touch()
    killed = told(store)
    assert (killed["activity"], killed["status"]) == ("kill-switch", "paused")
    assert "kill switch" in killed["activity_sentence"]
    assert "kill switch" in killed["outlook_sentence"]


def told(store):
    return json.loads(run_command("status", str(store), "--json").stdout)
