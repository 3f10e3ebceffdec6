"""Rows of results: what every estimator family says at a checkpoint, against the truth."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from equipoise.agent.estimators.base import Estimate
from equipoise.agent.estimators.naive_log import naive_log
from equipoise.agent.inference.bounded import contrast_bounds
from equipoise.agent.recommendation import KEEP_ROUTING, recommend
from equipoise.replay.stream import Checkpoint
from equipoise.replay.worlds import World
from equipoise.store.batches import Floats

NAIVE = "naive-log"


class Certificate:
    """What the certified sums say over one stream: widths, misses, the first decision."""

    def __init__(self, world: World) -> None:
        self._values = world.values
        self.ever_miscovered = False
        self.decided_at = np.nan
        self.decided_right: bool | None = None

    def columns(self, checkpoint: Checkpoint) -> dict[str, Any]:
        agent, models = checkpoint.agent, len(self._values)
        delta = agent.config.policy.delta
        # All ordered pairs at once: they cover together with probability 1 - delta.
        lower = contrast_bounds(agent.view().certified, delta / (models * (models - 1)))
        lower = lower[:models, :models]
        truth = self._values[:, None] - self._values[None, :]
        pairs = np.triu_indices(models, 1)
        covered = bool((lower <= truth + 1e-12).all())
        self.ever_miscovered |= not covered
        winner = agent.certified_winner()
        if winner is not None and np.isnan(self.decided_at):
            self.decided_at = float(checkpoint.exp_used)
            value = self._values[agent.models.index(winner)]
            best = self._values.max()
            self.decided_right = bool(value >= best - agent.config.policy.epsilon)
        return {
            "width": float((-lower - lower.T)[pairs].mean() / 2),
            "covered": covered,
            "ever_miscovered": self.ever_miscovered,
            "decided_at": self.decided_at,
            "decided_right": self.decided_right,
        }


def result_rows(
    world: World, checkpoint: Checkpoint, families: Iterable[str], certificate: Certificate
) -> Iterator[dict[str, Any]]:
    """One row per family, and one for the naive comparison of the log.

    `values` holds the family's value of every model, in the order of the benchmark's models.
    """
    agent = checkpoint.agent
    routing = agent.routing()
    estimates: dict[str, Estimate] = {NAIVE: naive_log(agent.view().moments)}
    estimates.update(agent.estimates(families))
    best = float(world.values.max())
    shared = {
        "checkpoint": checkpoint.target,
        "requests": checkpoint.requests,
        "exp_used": checkpoint.exp_used,
        "spend": checkpoint.spend,
        "harm": checkpoint.harm,
        **certificate.columns(checkpoint),
    }
    for name, estimate in estimates.items():
        answer = recommend(agent.models, estimate, routing)
        if answer.model is None:
            # Nothing is known: a coin has to decide, and its expected loss is the mean one.
            regret = best - float(world.values.mean())
        else:
            regret = best - float(world.values[agent.models.index(answer.model)])
        regret_action = regret
        if answer.action == KEEP_ROUTING:
            regret_action = best - world.routing_value
        yield {
            "estimator": name,
            "values": estimate.values.tolist(),
            "recommended": answer.model,
            "action": answer.action,
            "regret": regret,
            "regret_action": regret_action + max(world.routing_value - best, 0.0),
            **value_errors(estimate.values, world.values),
            **shared,
        }


def value_errors(values: Floats, truth: Floats) -> dict[str, float]:
    """bias, rmse over models; rmse_contrast over pairs of models. NaN where a value is unknown."""
    error = values - truth
    contrasts = error[:, None] - error[None, :]
    pairs = np.triu_indices(len(error), 1)
    return {
        "bias": float(error.mean()),
        "rmse": float(np.sqrt((error**2).mean())),
        "rmse_contrast": float(np.sqrt((contrasts[pairs] ** 2).mean())),
    }
