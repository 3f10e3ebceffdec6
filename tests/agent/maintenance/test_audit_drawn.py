"""An audit of decisions that were drawn elsewhere: what it finds, and what it cannot know."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from drawn_logs import agent_of, declared, epsilon_greedy, experiment, requests, taken
from traffic import KEY

from equipoise.agent.maintenance.audit import audit
from equipoise.store.batches import DecisionBatch
from equipoise.store.memory import MemoryStore


def test_an_audit_says_what_it_cannot_know():
    agent = agent_of(experiment())
    taken(agent, epsilon_greedy(21, 300), declared())
    agent.decide(requests(10))
    found = audit(agent.store, agent.config, KEY)
    assert found.clean, found.faults
    label = "flags, as declared on 2027-01-15"
    assert found.drawn == {label: 300}
    (line,) = [each for each in found.unproven if "drawn by" in each]
    assert line == (
        f"the probabilities of 300 decisions that were drawn by {label}: they are taken as"
        " declared, and the key proves nothing about them"
    )


@pytest.mark.forges
@pytest.mark.parametrize(
    ("column", "change", "said"),
    [
        ("probabilities", lambda p: p * 0.9, "do not add up to 1"),
        ("probabilities", lambda p: np.roll(p, 1, axis=1), "does not follow from its own uniform"),
        ("uniform", lambda u: u + 1e-6, "does not follow from its own uniform"),
        ("model", lambda m: (m + 1) % 3, "does not follow from its own uniform"),
        ("rate", lambda e: e * 0.5, "its rate is not 1"),
        ("era", lambda e: 0, "is of era 0, its rule of 1"),
    ],
)
def test_an_audit_finds_rows_that_were_changed(column, change, said):
    agent = agent_of(experiment())
    taken(agent, epsilon_greedy(22, 60), declared())
    store = MemoryStore()
    for era in agent.store.eras():
        store.put(era)
    for record in agent.store.rules():
        store.put(record)
    for name, value in agent.store.settings().items():
        store.freeze(name, value)
    for segment in agent.store.read():
        batch = segment.batch
        if isinstance(batch, DecisionBatch):
            batch = replace(batch, **{column: change(getattr(batch, column))})
        store.append(batch)
    found = audit(store, agent.config, KEY)
    assert any(said in fault for fault in found.faults), found.faults
