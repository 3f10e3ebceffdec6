"""Rows of results: what every estimator family says at a checkpoint, against the truth.

The truth is the causal value of every model by intention to treat; errors of a family's values
are against what each model's own answers are worth, since families count only draws that were
carried out (the same without fallbacks). In a world that drifts it is
the running average of E[R | past, do(model)] up to the checkpoint: for errors and regret over the
decisions made so far that may be certified, for coverage over those that the certified sums hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from equipoise.agent.answers.recommendation import KEEP_ROUTING, recommend
from equipoise.agent.estimators.base import Estimate
from equipoise.agent.estimators.ipw import naive_log
from equipoise.replay.harness.stream import Checkpoint
from equipoise.replay.worlds import Truth, World
from equipoise.store.batches import Floats

NAIVE = "naive-log"
DIRECT = "direct-method"
"""The first half of `doubly-robust`, the scorer without its correction, as a row of its own."""


class Certificate:
    """What the certified sums say over one stream: widths, misses, the first decision."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.ever_miscovered = False
        self.decided_at = np.nan
        self.decided_right: bool | None = None

    def columns(self, checkpoint: Checkpoint) -> dict[str, Any]:
        values = self._world.truth(checkpoint.drifted_closed).values
        agent, models = checkpoint.agent, len(values)
        # All ordered pairs at once, today's routing included: they cover together with
        # probability 1 - delta.
        lower = agent.answers.certified().contrasts[:models, :models]
        truth = values[:, None] - values[None, :]
        pairs = np.triu_indices(models, 1)
        covered = bool((lower <= truth + 1e-12).all())
        self.ever_miscovered |= not covered
        winner = agent.answers.certified_winner()
        if winner is not None and np.isnan(self.decided_at):
            self.decided_at = float(checkpoint.exp_used)
            value = values[agent.models.index(winner)]
            best = values.max()
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

    families: names of estimator families, and `direct-method` where `doubly-robust` is among them.
    `values` holds the family's value of every model, in the order of the benchmark's models. In a
    world that drifts `truth` holds the true ones, and `regret_now` is the regret against the values
    that the next request will meet.
    """
    agent = checkpoint.agent
    routing = agent.answers.routing()
    estimates: dict[str, Estimate] = {NAIVE: naive_log(agent.answers.view().moments)}
    names = list(families)
    estimates.update(agent.answers.estimates(name for name in names if name != DIRECT))
    if DIRECT in names:
        estimates[DIRECT] = direct_method(estimates["doubly-robust"])
    truth = world.truth(checkpoint.drifted)
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
        model = None if answer.model is None else agent.models.index(answer.model)
        regret = simple_regret(truth, model)
        best = float(truth.values.max())
        regret_action = regret
        if answer.favoured == KEEP_ROUTING:
            regret_action = best - truth.routing
        row = {
            "estimator": name,
            "values": estimate.values.tolist(),
            "recommended": answer.model,
            "action": answer.favoured,
            "regret": regret,
            "regret_action": regret_action + max(truth.routing - best, 0.0),
            **value_errors(estimate.values, world.answered_values(checkpoint.drifted)),
            **shared,
        }
        if world.drift.active:
            now = world.truth(float(world.drift.share(np.array([checkpoint.requests]))[0]))
            row["truth"] = truth.values.tolist()
            row["regret_now"] = simple_regret(now, model)
        yield row


def direct_method(estimate: Estimate) -> Estimate:
    """The direct-method half of an estimate of `doubly-robust`; its errors are not estimated."""
    unknown = np.full(len(estimate.values), np.nan)
    values = estimate.diagnostics.get("direct", unknown)
    return Estimate(DIRECT, values, np.full((len(unknown), len(unknown)), np.nan))


def simple_regret(truth: Truth, model: int | None) -> float:
    """What is lost by serving this model everywhere; None where nothing is known."""
    best = float(truth.values.max())
    if model is None:
        # A coin has to decide, and its expected loss is the mean one.
        return best - float(truth.values.mean())
    return best - float(truth.values[model])


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
