"""Missingness and delivery: found where they depend on the model, silent where they do not."""

from __future__ import annotations

import numpy as np
import pytest

from equipoise.agent.monitors import Delivery, Missingness

MODELS = ("a", "b", "c", "d")


def stream(rng, rows, loss):
    """Randomized rows whose weights and whose rate of loss move together over time.

    loss: (model, share of the stream) -> probability of a loss.
    """
    at = np.arange(rows) / rows
    pi = np.full((rows, 4), 0.1)
    pi[:, 0] += 0.6 * at
    pi[:, 1] += 0.6 * (1 - at)
    model = (rng.random(rows)[:, None] > np.cumsum(pi, axis=1)[:, :-1]).sum(axis=1)
    lost = rng.random(rows) < loss(model, at)
    pi[~lost] = np.nan
    return pi, model, lost


def test_loss_that_moves_with_the_weights_but_not_with_the_model_is_no_alarm():
    """Raw shares differ widely by model here, by Simpson's paradox. Of 100 runs with 10 looks each
    more than 5 have probability 0.05% at the level of 1%."""
    rng = np.random.default_rng(0)
    alarms, spread = 0, []
    for _ in range(100):
        rows, ever = stream(rng, 2000, lambda m, at: 0.02 + 0.5 * at), False
        monitor = Missingness(MODELS)
        for cut in range(0, 2000, 200):
            monitor.update(*(column[cut : cut + 200] for column in rows))
            ever |= monitor.result().status == "alarm"
        alarms += ever
        spread.append(np.ptp(monitor.result().figures["shares"][:2]))
    assert alarms <= 5
    assert np.mean(spread) > 0.1


@pytest.mark.parametrize("kind", [Missingness, Delivery])
def test_loss_that_depends_on_the_model_is_found(kind):
    """12% for one model against 5% for the others, within 10,000 rows; the run is seeded."""
    rng = np.random.default_rng(1)
    monitor = kind(MODELS)
    monitor.update(*stream(rng, 10_000, lambda m, at: np.where(m == 2, 0.12, 0.05)))
    check = monitor.result()
    assert check.status == "alarm"
    assert check.models == (2,)
    assert "11.9% of those for c" in check.sentence


def test_much_loss_asks_for_a_look_even_where_it_is_alike():
    rng = np.random.default_rng(2)
    monitor = Missingness(MODELS, most=0.25)
    monitor.update(*stream(rng, 3000, lambda m, at: 0.3))
    assert monitor.result().status == "watch"
    assert "more than 25%" in monitor.result().sentence
    quiet = Missingness(MODELS, most=0.35)
    quiet.update(*stream(rng, 3000, lambda m, at: 0.3))
    assert quiet.result().status == "ok"


def test_shares_are_counted_per_model():
    pi = np.full((5, 4), 0.25)
    monitor = Delivery(MODELS)
    monitor.update(pi, np.array([0, 0, 1, 2, 2]), np.array([True, False, False, True, True]))
    figures = monitor.result().figures
    assert figures["shares"][:3] == [0.5, 0.0, 1.0]
    assert np.isnan(figures["shares"][3])
    assert figures["share"] == pytest.approx(0.6)
