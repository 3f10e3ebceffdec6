"""Raw rows of a linear world with a latent user state, and the moments that hold them.

The tests compute every estimate a second time from these rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest

from equipoise.agent.moments.state import GROUPS, Dimensions, Moments
from equipoise.store.batches import Flags, Floats, Ints


@dataclass(frozen=True)
class Source:
    """n rows: group, model (n,), phi without its intercept (n, p - 1), reward (n,).

    rate: e(x); weight: 1 / (e pi); simulated: has a SIM row; predicted: phi of that row.
    """

    group: Ints
    model: Ints
    phi: Floats
    reward: Floats
    rate: Floats
    weight: Floats
    simulated: Flags
    predicted: Floats

    def __len__(self) -> int:
        return len(self.group)

    def take(self, which: Flags) -> Source:
        return Source(*(getattr(self, name)[which] for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class Rows:
    """One experiment as raw rows. truth: (K,) values of the models in the world."""

    models: int
    context: int
    obs: Source
    exp: Source
    sim_group: Ints
    sim_model: Ints
    sim_phi: Floats
    truth: Floats

    @property
    def features(self) -> int:
        return self.sim_phi.shape[1]

    def moments(self) -> Moments:
        moments = Moments.empty(Dimensions(self.models, self.context, self.features + 1))
        obs, exp, g = self.obs, self.exp, GROUPS
        for source, weight, first in (
            (obs, np.ones(len(obs)), 0),
            (exp, np.ones(len(exp)), g),
            (exp, exp.weight, 2 * g),
        ):
            rows = np.column_stack([source.phi, source.reward])
            moments.scorers.update(first + source.group, source.model, weight, rows)
        moments.arms.update(
            exp.group,
            exp.model,
            exp.weight,
            exp.reward,
            exp.simulated,
            exp.predicted,
            exp.phi[:, : self.context],
        )
        moments.simulation.update(
            self.sim_group, self.sim_model, self.sim_phi, np.full(len(self.sim_group), np.nan)
        )
        moments.routing.update(obs.group, obs.weight, obs.reward)
        return moments

    def part(self, obs: Flags, exp: Flags, sim: Flags) -> Rows:
        """The rows where the flags are true."""
        return replace(
            self,
            obs=self.obs.take(obs),
            exp=self.exp.take(exp),
            sim_group=self.sim_group[sim],
            sim_model=self.sim_model[sim],
            sim_phi=self.sim_phi[sim],
        )

    def without_units(self, group: int) -> Rows:
        everything = np.ones(len(self.sim_group), dtype=bool)
        return self.part(self.obs.group != group, self.exp.group != group, everything)

    def without_contexts(self, group: int) -> Rows:
        obs, exp = (np.ones(len(source), dtype=bool) for source in (self.obs, self.exp))
        return self.part(obs, exp, self.sim_group != group)

    def without_obs(self) -> Rows:
        return replace(self, obs=self.obs.take(np.zeros(len(self.obs), dtype=bool)))

    def without_exp(self) -> Rows:
        return replace(self, exp=self.exp.take(np.zeros(len(self.exp), dtype=bool)))

    def with_rewards(self, obs: Floats | None = None, exp: Floats | None = None) -> Rows:
        """Other rewards in either source."""
        return replace(
            self,
            obs=self.obs if obs is None else replace(self.obs, reward=obs),
            exp=self.exp if exp is None else replace(self.exp, reward=exp),
        )

    def rescaled(self, times: float, plus: float) -> Rows:
        return self.with_rewards(times * self.obs.reward + plus, times * self.exp.reward + plus)

    def relabelled(self, order: Ints) -> Rows:
        """The same rows where model order[j] is now called j."""
        name = np.argsort(order)
        obs, exp = (replace(source, model=name[source.model]) for source in (self.obs, self.exp))
        return replace(
            self, obs=obs, exp=exp, sim_model=name[self.sim_model], truth=self.truth[order]
        )

    def mean_phi(self) -> Floats:
        """(K, p - 1) SIM means."""
        return np.array(
            [self.sim_phi[self.sim_model == model].mean(axis=0) for model in range(self.models)]
        )

    def jackknife(
        self, values: Callable[[Rows], Floats], units: bool = True, contexts: bool = True
    ) -> Floats:
        """Delete-one-group covariance of `values` by computing it again without each group.

        A group without rows is no replicate.
        """
        total = np.zeros((self.models, self.models))
        removals = []
        if units:
            removals.append((self.without_units, np.union1d(self.obs.group, self.exp.group)))
        if contexts:
            removals.append((self.without_contexts, np.unique(self.sim_group)))
        for without, groups in removals:
            replicates = np.array([values(without(group)) for group in groups])
            deviation = replicates - replicates.mean(axis=0)
            total += (len(groups) - 1) / len(groups) * deviation.T @ deviation
        return total


def _simulate(
    seed: int = 0,
    models: int = 3,
    context: int = 2,
    outputs: int = 3,
    obs: int = 400,
    exp: int = 150,
    contexts: int = 60,
    confounding: float = 1.5,
    covered: float = 0.5,
    world: int = 7,
) -> Rows:
    """A linear world: R = 0.3 + phi beta + U + noise, y = shift_m + x slope_m + noise.

    Routing prefers later models when U is high (strength `confounding`); e and pi of EXP follow
    x. covered: share of EXP rows with a SIM row. world: seed of the world's own constants.
    """
    rng = np.random.default_rng([seed, 11])
    fixed = np.random.default_rng([world, models, context, outputs])
    shift = fixed.normal(size=(models, outputs))
    slope = 0.5 * fixed.normal(size=(models, context, outputs))
    beta = fixed.normal(size=context + outputs) * 0.5

    def output(x: Floats, model: Ints) -> Floats:
        mean = shift[model] + np.einsum("nd,ndq->nq", x, slope[model])
        return np.column_stack([x, mean + rng.normal(size=mean.shape)])

    def choose(logits: Floats) -> tuple[Ints, Floats]:
        chances = np.exp(logits - logits.max(axis=1, keepdims=True))
        chances /= chances.sum(axis=1, keepdims=True)
        picked = (rng.random((len(logits), 1)) > np.cumsum(chances, axis=1)).sum(axis=1)
        picked = np.minimum(picked, models - 1)
        return picked, chances[np.arange(len(logits)), picked]

    rank = np.linspace(-1.0, 1.0, models)

    def source(n: int, randomized: bool) -> Source:
        # Being randomized at rate e(x) is what makes EXP's contexts differ from the traffic's.
        x = rng.normal(size=(12 * n + 100 if randomized else n, context))
        rate = 0.1 + 0.2 / (1.0 + np.exp(-x[:, :1].sum(axis=1)))
        kept = np.flatnonzero((rng.random(len(x)) < rate) | (not randomized))[:n]
        x, rate, latent = x[kept], rate[kept], rng.normal(size=n)
        moved = 0.4 * x[:, :1].sum(axis=1) if randomized else confounding * latent
        model, chance = choose(moved[:, None] * rank)
        phi = output(x, model)
        return Source(
            group=rng.integers(0, GROUPS, n),
            model=model,
            phi=phi,
            reward=0.3 + phi @ beta + latent + 0.5 * rng.normal(size=n),
            rate=rate,
            weight=1.0 / (rate * chance) if randomized else np.ones(n),
            simulated=rng.random(n) < covered,
            predicted=output(x, model),
        )

    logged, experiment = source(obs, randomized=False), source(exp, randomized=True)
    x = np.repeat(rng.normal(size=(contexts, context)), models, axis=0)
    model = np.tile(np.arange(models), contexts)
    return Rows(
        models=models,
        context=context,
        obs=logged,
        exp=experiment,
        sim_group=np.repeat(rng.integers(0, GROUPS, contexts), models),
        sim_model=model,
        sim_phi=output(x, model),
        truth=0.3 + shift @ beta[context:],
    )


@pytest.fixture(scope="session")
def simulate() -> Callable[..., Rows]:
    return _simulate
