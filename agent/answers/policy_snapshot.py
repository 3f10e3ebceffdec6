"""From sums to the snapshot a policy freezes its next rule from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from equipoise.agent.budget.purse import declared_prices, model_costs
from equipoise.agent.config import ExperimentConfig
from equipoise.agent.estimators.base import Estimate, Scorer
from equipoise.agent.estimators.linear import mean_features, regressions
from equipoise.agent.moments.arms import ArmMoments
from equipoise.agent.moments.state import Moments
from equipoise.agent.state.light_fold import LightFold
from equipoise.policies.snapshot import ContextScorer, Snapshot
from equipoise.store.batches import DecisionBatch, Floats
from equipoise.store.contract import Store

RECENT = 512
"""decisions whose contexts stand for the traffic to come"""
FEWEST_FOR_VARIANCE = 30
"""rewards of today's routing from which their variance is known"""
CONFOUNDING = 0.2
"""standard deviations of the reward by which a log is taken to err about a model"""
FEW = 64
"""decisions up to which replayed contexts stand for it instead"""


def recent_contexts(light: LightFold, store: Store) -> Floats | None:
    """(n, d) contexts of the last 512 decisions, of replays before there are 64; None for neither.

    A function of the log alone: the same after a restart, whatever is still held in memory.
    """
    table, width = light.pending, light.dimensions.context
    if table.next < FEW:
        return light.simulated.contexts(width, RECENT)
    wanted = min(RECENT, table.next)
    rows = np.flatnonzero(~table.is_void(slice(0, table.size)))
    if len(rows) >= wanted:
        return table.x[rows[-wanted:]]
    return _from_log(store, light.next_seq, wanted)


def _from_log(store: Store, end: int, wanted: int) -> Floats | None:
    """(wanted, d) contexts of the last decisions, read from ever further back."""
    window = 4 * wanted
    while True:
        since = max(0, end - window)
        parts = [
            segment.batch.x
            for segment in store.read(since, end)
            if isinstance(segment.batch, DecisionBatch)
        ]
        if since == 0 or sum(map(len, parts)) >= wanted:
            # A log that was cut short may hold fewer, or none at all.
            return np.concatenate(parts)[-wanted:] if parts else None
        window *= 4


def sample_moments(arms: ArmMoments) -> tuple[Floats, Floats, Floats]:
    """EXP counts, means and variances (divisor n - 1) per model, (K,) each, unweighted.

    Means without a reward and variances without two are NaN. For policies alone, which steer by
    them as gateways do and lose no more than requests where shares moved: no answer rests on them.
    """
    count, mean, scatter = _merged(arms.count, arms.plain_mean, arms.plain_scatter)
    mean = np.where(count > 0, mean, np.nan)
    variance = np.where(count > 1, scatter / np.maximum(count - 1, 1), np.nan)
    return count, mean, variance


def logged_moments(arms: ArmMoments) -> tuple[Floats, Floats, Floats]:
    """EXP counts, means and variances per model by the logged probabilities, (K,) each.

    Where every probability of a model was the same these are `sample_moments`; where they moved,
    these stand for all of the traffic and those for when the model was drawn.
    """
    count = arms.count.sum(axis=0)
    weight, mean, scatter = _merged(arms.weight, arms.mean, arms.scatter)
    weighted = weight > 0
    squares = arms.weight_sq.sum(axis=0)
    effective = np.divide(weight**2, squares, out=np.zeros_like(weight), where=weighted)
    spread = np.divide(scatter, weight, out=np.zeros_like(weight), where=weighted)
    variance = np.where(effective > 1, spread * effective / np.maximum(effective - 1, 1e-9), np.nan)
    return count, np.where(weighted, mean, np.nan), variance


def _merged(weight: Floats, mean: Floats, scatter: Floats) -> tuple[Floats, Floats, Floats]:
    """Weight, mean and scatter (K,) of groups (G, K) merged one after the other, as moments are."""
    total = np.vstack([np.zeros_like(weight[0]), np.cumsum(weight, axis=0)])
    before, after = total[:-1], total[1:]
    share = np.divide(weight, after, out=np.zeros_like(after), where=after > 0)
    means = np.zeros_like(total)
    for group, more in enumerate(mean):
        means[group + 1] = means[group] + share[group] * (more - means[group])
    step = mean - means[:-1]
    factor = np.divide(before * weight, after, out=np.zeros_like(after), where=after > 0)
    return total[-1], means[-1], np.cumsum(scatter + factor * step * step, axis=0)[-1]


@dataclass(frozen=True, slots=True)
class KnownRewards:
    """Rewards of OBS and EXP together, for what may be wrong: where squares are taken, how large a
    plan is, whom evidence is kept for. Confounded.

    means: (K + 1,) of each model and of all rows, that of all rows where a model has none; counts:
    (K,) rewards of each model; variance: of today's routing's rewards, None before there are 30.
    Reward units.
    """

    means: Floats
    counts: Floats
    variance: float | None

    @classmethod
    def of(cls, moments: Moments) -> Self | None:
        """None where there is no reward."""
        sources, models = (moments.obs, moments.exp), moments.dimensions.models
        rows = np.sum([part.weight.sum(axis=0)[:models] for part in sources], axis=0)
        rewards = np.sum(
            [(part.weight * part.mean[..., -1]).sum(axis=0)[:models] for part in sources], axis=0
        )
        if not rows.sum() > 0:
            return None
        overall = float(rewards.sum() / rows.sum())
        means = np.divide(rewards, rows, out=np.full(len(rows), overall), where=rows > 0)
        routing, variance = moments.routing, None
        if routing.count.sum() >= FEWEST_FOR_VARIANCE:
            weight = float(routing.weight.sum())
            centre = float((routing.weight * routing.mean).sum() / weight)
            apart = float((routing.weight * (routing.mean - centre) ** 2).sum())
            variance = (float(routing.scatter.sum()) + apart) / weight
        return cls(np.append(means, overall), rows, variance)

    def beliefs(self, scale: float) -> tuple[Floats, Floats]:
        """(K,) values and (K, K) covariance that a log alone suggests: its means, as uncertain as
        users who choose for themselves may make them. scale: of the reward's range."""
        variance = 0.25 * scale**2 if self.variance is None else self.variance
        doubt = variance * (CONFOUNDING**2 + 1.0 / np.maximum(self.counts, 1.0))
        return np.where(self.counts > 0, self.means[:-1], np.nan), np.diag(doubt)


def output_maps(moments: Moments) -> Floats:
    """(K, p, 1 + d): phi predicted from z = [1, x] by the regression of SIM, per model.

    Row 0 and the rows of x reproduce z exactly. Models without SIM rows get NaN.
    """
    d, p = moments.dimensions.context, moments.dimensions.features
    groups = np.ones((1, moments.dimensions.groups))
    slopes = regressions(groups, moments.simulation, d)[0]
    means = moments.simulation.count[..., None] * moments.simulation.mean
    rows = moments.simulation.count.sum(axis=0)[:, None]
    mean = np.divide(means.sum(axis=0), rows, out=np.full(means.shape[1:], np.nan), where=rows > 0)
    result = np.zeros((len(mean), p, 1 + d))
    result[:, 0, 0] = 1.0
    result[:, 1:, 1:] = slopes.transpose(0, 2, 1)
    result[:, 1:, 0] = mean - np.einsum("kdp,kd->kp", slopes, mean[:, :d])
    return result


def output_spread(moments: Moments, maps: Floats) -> Floats:
    """(K, p, p) covariance of phi around its regression `maps` (K, p, 1 + d), over the SIM rows."""
    simulation, d = moments.simulation, moments.dimensions.context
    mean = mean_features(simulation)
    step = np.where(simulation.count[..., None] > 0, simulation.mean - mean, 0.0)
    weighted = simulation.count[..., None] * step
    scatter = simulation.scatter.sum(axis=0)
    scatter += np.einsum("gkp,gkq->kpq", weighted, step)
    slopes = maps[:, 1:, 1:]
    explained = slopes @ scatter[:, :d]
    left = scatter - explained - explained.transpose(0, 2, 1)
    left += slopes @ scatter[:, :d, :d] @ slopes.transpose(0, 2, 1)
    result = np.zeros((len(left), maps.shape[1], maps.shape[1]))
    result[:, 1:, 1:] = left / np.maximum(simulation.count.sum(axis=0), 1.0)[:, None, None]
    return result


class OutputMaps:
    """`output_maps` and `output_spread` of one experiment, made anew when SIM rows have come.

    A (context, model) counts once while the model is the same version, so the counts say whether
    any have come, and how many versions were replaced says whether any have gone.
    """

    def __init__(self) -> None:
        self._count: Floats | None = None
        self._former = 0
        self._made: tuple[Floats, Floats] | None = None
        self._designs: dict[bool, tuple[Floats, Floats, Floats]] = {}

    def of(self, moments: Moments) -> tuple[Floats, Floats]:
        """Maps (K, p, 1 + d) and spread (K, p, p); not to be written to."""
        count, former = moments.simulation.count, moments.dimensions.former
        same = self._count is not None and np.array_equal(self._count, count)
        if self._made is None or not same or former != self._former:
            maps = output_maps(moments)
            self._count, self._made = count.copy(), (maps, output_spread(moments, maps))
            self._former, self._designs = former, {}
        return self._made

    def designs(self, moments: Moments, effects: bool) -> tuple[Floats, Floats, Floats]:
        """`design`, `value_design` and `spread` of a `ContextScorer`, with an effect per model or
        without; not to be written to."""
        maps, around = self.of(moments)
        if effects in self._designs:
            return self._designs[effects]
        size, p = len(maps), maps.shape[1]
        extra = size if effects else 0
        design = np.zeros((size, maps.shape[2], p + extra))
        design[:, :, :p] = maps.transpose(0, 2, 1)
        values = np.zeros((size, p + extra))
        values[:, 0] = 1.0
        values[:, 1:p] = mean_features(moments.simulation)
        spread = np.zeros((size, p + extra, p + extra))
        spread[:, :p, :p] = around
        if effects:
            own = np.arange(size)
            design[own, 0, p + own] = values[own, p + own] = 1.0
        self._designs[effects] = design, values, spread
        return self._designs[effects]


def context_scorer(
    moments: Moments, scorer: Scorer, models: tuple[str, ...], outputs: OutputMaps | None = None
) -> ContextScorer:
    """A fitted scorer as a posterior for the value of every model at a context, and overall."""
    design, values, spread = (outputs or OutputMaps()).designs(moments, scorer.model_effects)
    keys = [f"phi:{index}" for index in range(moments.dimensions.features)]
    if scorer.model_effects:
        keys += [f"model:{name}" for name in models]
    return ContextScorer(
        theta=scorer.theta,
        covariance=scorer.covariance,
        design=design,
        noise_keys=tuple(keys),
        residual_variances=np.full(len(models), scorer.residual_variance),
        value_design=values,
        spread=spread,
    )


def build_snapshot(
    config: ExperimentConfig,
    moments: Moments,
    estimate: Estimate | None,
    *,
    requests: int,
    certified: bool,
    seed: int,
    contexts: Floats | None = None,
    rate: float | None = None,
    outputs: OutputMaps | None = None,
    sound: Moments | None = None,
) -> Snapshot:
    """The snapshot of these sums. estimate: of the family in force, None where the policy
    does not look at one (its values are then unknown to the policy, not zero).
    contexts: (n, d) of recent traffic. rate: what the budget asks for, moved into the limits;
    None for the declared one. outputs: what was made of the same SIM rows before. sound: the sums
    that the estimate rests on, where groups were left out of them."""
    names = tuple(model.name for model in config.models)
    size = len(names)
    count, mean, variance = sample_moments(moments.arms)
    limits, costs = config.limits, np.full(size, np.nan)
    if rate is not None:
        limits = replace(limits, rate=min(max(rate, limits.rate_min), limits.rate_max))
    if config.budget.money is not None:
        costs = model_costs(moments.simulation, declared_prices(config))
    scorer = None
    if estimate is not None and estimate.scorer is not None:
        fitted = estimate.scorer
        parts = (fitted.theta, fitted.covariance, np.asarray(fitted.residual_variance))
        of = moments if sound is None else sound
        usable = all(np.isfinite(part).all() for part in parts) and bool(
            (of.simulation.count.sum(axis=0) > 0).all()
        )
        scorer = context_scorer(of, fitted, names, outputs) if usable else None
    return Snapshot(
        models=names,
        values=estimate.values if estimate else np.full(size, np.nan),
        covariance=estimate.covariance if estimate else np.diag(np.full(size, np.inf)),
        counts=count,
        sample_means=mean,
        sample_variances=variance,
        costs=costs,
        limits=limits,
        requests=requests,
        certified=certified,
        epsilon=config.policy.epsilon,
        delta=config.policy.delta,
        sign=1 if config.reward.maximise else -1,
        seed=seed,
        scorer=scorer,
        contexts=contexts,
        reward_range=(config.reward.low, config.reward.high),
    )
