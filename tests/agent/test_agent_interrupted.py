"""Ending the process anywhere between decision, outcome and expiry changes no certified number."""

from __future__ import annotations

from operator import attrgetter

import pytest
from traffic import KEY, SETTINGS, config, steps

from equipoise.agent.agent import Agent
from equipoise.agent.config import BudgetConfig
from equipoise.store.sqlite import SqliteStore


def played(path, settings, reopen):
    """Certified answers after every call; `reopen` says whether the agent is opened anew first."""
    store = SqliteStore(path)
    agent, answers = Agent(settings, store, KEY), []
    calls = steps(agent)
    next(calls)
    call = calls.send(None)
    while True:
        if reopen:
            # As after kill -9: nothing is closed or saved in an orderly way.
            store.close()
            store = SqliteStore(path)
            agent = Agent(settings, store, KEY)
        name, argument = call
        result = attrgetter(name)(agent)(argument)
        answers.append(
            [
                agent.answers.certified(part).contrasts.tobytes()
                for part in range(agent.state.certifier.parts)
            ]
        )
        try:
            call = calls.send(result)
        except StopIteration:
            break
    state = agent.fold.to_bytes()
    store.close()
    return answers, state


@pytest.mark.parametrize("kind", SETTINGS)
def test_opening_the_store_anew_before_every_call_changes_nothing(kind, tmp_path):
    # Planned as small as it is, so that intervals move within it.
    settings = config(**{"budget": BudgetConfig(planned=100), **SETTINGS[kind]})
    whole = played(tmp_path / "whole.db", settings, reopen=False)
    broken = played(tmp_path / "broken.db", settings, reopen=True)
    assert whole == broken
    assert len(whole[0]) > 45
    assert len({answer[0] for answer in whole[0]}) >= 4
