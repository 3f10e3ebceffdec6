"""Inputs that may not be written: locked arrays of NumPy, pandas and Arrow, wherever data enters.

pandas with copy-on-write, and Arrow, hand out such arrays; a library that corrects values in place
either raises there or, worse, changes the caller's own table.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from traffic import KEY, MODELS, Traffic, config

from equipoise.agent import Experiment
from equipoise.agent.agent import Agent
from equipoise.agent.estimators import FAMILIES
from equipoise.store.contract import Store
from equipoise.store.memory import MemoryStore
from equipoise.store.sqlite import SqliteStore

READERS = ("numpy", "pandas", "arrow")


def frozen(reader: str, array: np.ndarray) -> np.ndarray:
    """The array as somebody hands it on who does not let it be written."""
    given = array.copy()
    if reader == "pandas":
        given = (pd.DataFrame(given) if given.ndim > 1 else pd.Series(given)).to_numpy()
    elif reader == "arrow" and given.ndim == 1 and given.dtype != bool:
        given = pa.array(given).to_numpy()
    given.flags.writeable = False
    return given


def locked(reader: str, batch: Any) -> Any:
    """The batch over arrays that cannot be written."""
    arrays = {
        each.name: frozen(reader, value)
        for each in fields(batch)
        if isinstance(value := getattr(batch, each.name), np.ndarray)
    }
    return replace(batch, **arrays)


def lived(store: Store, reader: str | None) -> Agent:
    """An agent after some traffic of all kinds, given as it is or locked."""
    agent, traffic = Agent(config(), store, KEY), Traffic(np.random.default_rng(3))

    def given(batch: Any) -> Any:
        return batch if reader is None else locked(reader, batch)

    agent.ingest(given(traffic.observations(60)))
    agent.simulate(given(traffic.simulations(12)))
    for index in range(6):
        decided = agent.decide(given(traffic.requests(40, contexts=12)))
        agent.observe(given(traffic.outcomes(decided)))
        if index % 2:
            agent.refresh(review=False)
    agent.expire(traffic.at + 1000.0)
    return agent


@pytest.mark.parametrize("reader", READERS)
def test_an_agent_lives_on_arrays_that_cannot_be_written(reader: str, tmp_path: Path) -> None:
    plain = lived(MemoryStore(), None)
    with SqliteStore(tmp_path / "locked.db") as kept:
        for store in (MemoryStore(), kept):
            agent = lived(store, reader)
            moments = agent.answers.view().moments
            assert moments.to_bytes() == plain.answers.view().moments.to_bytes()


def test_families_estimate_from_moments_that_cannot_be_written() -> None:
    moments = lived(MemoryStore(), None).answers.view().moments
    before = {name: family(moments) for name, family in FAMILIES.items()}
    held = moments.to_bytes()
    parts = [getattr(moments, name) for name in ("scorers", "arms", "simulation", "routing")]
    for array in [each for part in parts for each in part.arrays().values()]:
        array.flags.writeable = False
    for name, family in FAMILIES.items():
        got = family(moments)
        np.testing.assert_array_equal(got.values, before[name].values)
        np.testing.assert_array_equal(got.covariance, before[name].covariance)
    assert moments.to_bytes() == held


@pytest.mark.parametrize("reader", READERS)
def test_a_program_hands_over_rows_of_a_table_that_cannot_be_written(reader: str) -> None:
    with Experiment.open(None, config()) as experiment:
        x, outputs = (frozen(reader, np.array([0.1, 0.2])) for _ in range(2))
        for number in range(40):
            choice = experiment.decide(f"r{number}", "slow", x)
            experiment.outcome(choice, reward=np.float64(number % 2), outputs=outputs)
        rows = [{"routed": MODELS[0], "features": x, "outputs": outputs, "reward": 1.0}] * 3
        assert experiment.ingest(rows).rows == 3
        assert x.tolist() == outputs.tolist() == [0.1, 0.2]
