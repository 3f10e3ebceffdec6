"""Ending the process anywhere between decision, outcome and expiry changes no certified number."""

from __future__ import annotations

import sys
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

import numpy as np
import pytest

from equipoise.agent.agent import Agent
from equipoise.agent.config import CertifyConfig, PolicyConfig, SegmentConfig, UnitsConfig
from equipoise.store.batches import take
from equipoise.store.sqlite import SqliteStore

sys.path.insert(0, str(Path(__file__).parent))
from traffic import KEY, Traffic, config

SETTINGS = {
    "segments": {
        "certify": CertifyConfig(segments=[SegmentConfig(name="left", column="a", high=0.0)])
    },
    "asymptotic": {"certify": CertifyConfig(sequence="asymptotic")},
    "units": {"units": UnitsConfig(ttl=30.0)},
    "top-two": {"policy": PolicyConfig(assignment="top-two", rate=0.4)},
}


def steps(agent, seed=3):
    """The calls of a stream, one by one; the caller may replace the agent after each."""
    traffic, rng = Traffic(np.random.default_rng(seed)), np.random.default_rng(seed + 1)
    yield agent.simulate(traffic.simulations())
    for index in range(12):
        requests = traffic.requests(90)
        requests = replace(requests, unit=rng.integers(0, 70, 90))
        decided = yield ("decide", requests)
        outcomes = traffic.outcomes(decided)
        comes = rng.random(90) < 0.85
        blank = np.full(90, np.nan)
        yield ("observe", replace(outcomes, reward=blank))
        only = replace(outcomes, outputs=np.full((90, 2), np.nan))
        yield ("observe", take(only, np.flatnonzero(comes)))
        if index % 2 == 0:
            traffic.at += 200.0
            yield ("expire", traffic.at)
        if index % 2:
            yield ("refresh", float(index))
        if index == 7:
            yield ("controls.open_era", "a new version of slow")
        if index == 9:
            yield ("checkpoint", float(index))


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
    settings = config(**SETTINGS[kind])
    whole = played(tmp_path / "whole.db", settings, reopen=False)
    broken = played(tmp_path / "broken.db", settings, reopen=True)
    assert whole == broken
    assert len(whole[0]) > 45
    assert len({answer[0] for answer in whole[0]}) >= 4
