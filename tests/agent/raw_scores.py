"""Certified sums by a plain loop over the raw log, one row and one candidate at a time."""

from __future__ import annotations

import numpy as np

from equipoise.agent.lifecycle.rules import RuleBook
from equipoise.store.batches import DecisionBatch, ExpiryBatch, OutcomeBatch, SimulationBatch


class Log:
    """The log by decision, in plain dicts."""

    def __init__(self, store, transform):
        self.rows, self.simulated = [], {}
        self.rules = RuleBook(store)
        for segment in store.read():
            batch = segment.batch
            if isinstance(batch, DecisionBatch):
                for i in range(len(batch)):
                    leader = int(batch.number[i] if batch.leader is None else batch.leader[i])
                    self.rows.append(
                        {
                            "number": int(batch.number[i]),
                            "leader": leader,
                            "rule": self.rules.rule(batch.rule_id),
                            "reward": None,
                            "expired": False,
                            "delivered": True,
                            "open": batch.eligible is None or bool(batch.eligible[i].all()),
                            "left": batch.closed_by is not None
                            and int(batch.closed_by[i]) in (10, 11),
                            **{
                                name: getattr(batch, name)[i]
                                for name in (
                                    "x",
                                    "rate",
                                    "probabilities",
                                    "model",
                                    "routed",
                                    "randomized",
                                    "context",
                                    "at",
                                )
                            },
                        }
                    )
            elif isinstance(batch, OutcomeBatch):
                for i, number in enumerate(batch.number.tolist()):
                    row = self.rows[number]
                    row["delivered"] &= bool(batch.delivered[i])
                    if not np.isnan(batch.reward[i]) and not row["expired"]:
                        row["reward"] = float(batch.reward[i])
            elif isinstance(batch, ExpiryBatch):
                for number in batch.number.tolist():
                    self.rows[number]["expired"] = True
            elif isinstance(batch, SimulationBatch):
                phi = transform.phi(batch.x, batch.outputs)
                for i in range(len(batch)):
                    key = int(batch.context[i]), int(batch.model[i])
                    self.simulated.setdefault(key, (phi[i], len(self.rows)))

    def prediction(self, row, model):
        """The raw prediction that the row's rule makes of a model."""
        scorer = row["rule"].prediction
        if scorer is None:
            return float("nan")
        known = self.simulated.get((int(row["context"]), model))
        rule = row["rule"]
        in_time = known is not None and not (rule.lanes and known[1] >= rule.since)
        if in_time and known[1] <= row["number"]:
            value = scorer.theta[0] + scorer.effects[model]
            return float(
                value + sum(a * b for a, b in zip(known[0], scorer.theta[1:], strict=True))
            )
        z = [1.0, *row["x"]]
        return float(sum(a * b for a, b in zip(z, scorer.direct[model], strict=True)))


def psi(log, row, candidate, cap, low_high, spec, tuning, sticky=False):
    """One score: candidate is a model, K for today's routing, K + 1 + i for policy i."""
    models = spec.models
    if candidate > models:
        band, inside, outside = spec.policies[candidate - models - 1]
        here = band.low <= row["x"][band.column] < band.high
        return psi(log, row, inside if here else outside, cap, low_high, spec, tuning, sticky)
    end, reward = low_high
    if candidate < models:
        chance = row["rate"] * row["probabilities"][candidate]
        drawn = row["randomized"] and row["model"] == candidate
        raw = log.prediction(row, candidate)
    elif sticky:
        chance, drawn = 1 - row["rate"], not row["randomized"]
        raw = log.prediction(row, int(row["routed"]))
    else:
        chance = 1 - row["rate"] + row["rate"] * row["probabilities"][row["routed"]]
        drawn = row["model"] == row["routed"]
        raw = log.prediction(row, int(row["routed"]))
    usual = 0.5 if tuning.usual is None else tuning.usual[candidate]
    raw = raw if np.isfinite(raw) else usual
    mu = min(max(tuning.offset[candidate] + tuning.factor[candidate] * raw, 0.0), 1.0)
    weight = 1.0 / chance
    room = cap / (weight - 1.0) if weight > 1.0 else np.inf
    mu = min(mu, room) if end == "low" else max(mu, 1.0 - room)
    return mu + (weight * (reward - mu) if drawn else 0.0)


def reward_end(member, worst, spec, missing):
    """A request's reward for one end, by the words of METHOD: what was not delivered is unknown,
    what was delivered and never rated is what was declared."""
    if not member["delivered"]:
        return worst
    if member["reward"] is None:
        return worst if missing is None else missing
    return (member["reward"] - spec.low) / (spec.high - spec.low)


def raw_sums(log, spec, watermark, rate_min, part=0, missing=None, sticky=False):
    """rows, low, high (C, A), low_squares, high_squares, contrast_squares (C, A, A)."""
    shape = len(spec.caps), len(spec.names)
    rows, low, high = 0, np.zeros(shape), np.zeros(shape)
    low_squares, high_squares = np.zeros(shape), np.zeros(shape)
    contrast = np.zeros((*shape, shape[1]))
    for row in log.rows[:watermark]:
        if row["rate"] < rate_min or not row["open"] or row["leader"] != row["number"]:
            continue
        if row["left"]:
            continue
        if part:
            band = spec.segments[part - 1]
            if not band.low <= row["x"][band.column] < band.high:
                continue
        rows += 1
        members = [other for other in log.rows if other["leader"] == row["number"]]
        ends = {}
        for end, worst in (("low", 0.0), ("high", 1.0)):
            ends[end] = sum(reward_end(member, worst, spec, missing) for member in members)
            ends[end] /= len(members)
        frozen = row["rule"].frozen[part]
        for c, cap in enumerate(spec.caps):
            u, v = np.zeros(shape[1]), np.zeros(shape[1])
            for a in range(shape[1]):
                down = psi(log, row, a, cap, ("low", ends["low"]), spec, frozen.tuning, sticky)
                up = psi(log, row, a, cap, ("high", ends["high"]), spec, frozen.tuning, sticky)
                low[c, a] += down
                high[c, a] += up
                u[a] = down - frozen.centres.low[c, a]
                v[a] = up - frozen.centres.high[c, a]
            low_squares[c] += u**2
            high_squares[c] += v**2
            contrast[c] += (u[:, None] - v[None, :]) ** 2
    return rows, low, high, low_squares, high_squares, contrast
