"""What the agent is measured against: bare NumPy of the same arithmetic, and peers."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from works import TABLE_ROWS, Figures, Work, one_by_one, table

GROUPS = 20


def single(kind: str, d: int = 16, models: int = 8, count: int = 4000) -> Work:
    """One request at a time in plain NumPy: finite, shares, draw, propensity, and the row kept.

    kind: `constant` shares, those of quadratic `forms` of the context, or of posterior `draws`.
    """
    rng = np.random.default_rng(0)
    z, uniforms = np.ones(1 + d), rng.random(count)
    left, right = np.triu_indices(1 + d)
    columns = rng.random((len(left), 2 * models))
    coefficients = rng.normal(size=(1 + d, models * 256))
    constant, rate = np.full(models, 1.0 / models), 0.2
    kept_x, kept = np.empty((count, d)), np.empty((count, 4))
    given = [(index, rng.normal(size=d), int(rng.integers(models))) for index in range(count)]

    def decide(request: tuple[int, np.ndarray, int]) -> int:
        index, x, routed = request
        if not np.isfinite(x).all():
            raise ValueError("not finite")
        shares = constant
        if kind == "forms":
            z[1:] = x
            both = (z[left] * z[right]) @ columns
            shares = both[:models] / both[models:]
            shares = shares / shares.sum()
        elif kind == "draws":
            z[1:] = x
            scores = (z @ coefficients).reshape(models, -1)
            shares = (scores == scores.max(axis=0)).sum(axis=1) / scores.shape[1]
        uniform = uniforms[index]
        cumulated = np.add.accumulate(shares)
        drawn = min(int((cumulated <= uniform / rate).sum()), models - 1)
        model = drawn if uniform < rate else routed
        propensity = rate * shares[model] + (1.0 - rate) * (model == routed)
        kept_x[index] = x
        kept[index] = uniform, model, routed, propensity
        return model

    return lambda: one_by_one(decide, given)


def sums(d: int, q: int, models: int, size: int, *, decide: bool = False) -> Work:
    """Plain NumPy for the same sums: the Gram matrices per group for OBS and twice for EXP,
    per-model sums per group, weighted reward sums; where asked, score and draw before. No checks,
    no centring, no log, no pending table, no certified sums."""
    rng = np.random.default_rng(0)
    p = 1 + d + q
    weights = rng.normal(size=(1 + d, models))
    grams = np.zeros((3, GROUPS, p, p))
    totals = np.zeros((3, GROUPS * models, p))
    rewards = np.zeros((4, GROUPS * models))
    x, v = rng.normal(size=(size, d)), rng.normal(size=(size, p))
    group, drawn = rng.integers(0, GROUPS, size), rng.integers(0, models, size)
    experiment = rng.random(size) < 0.2

    def batch() -> None:
        model = drawn
        if decide:
            z = np.concatenate([np.ones((size, 1)), x], axis=1)
            score = z @ weights
            score -= score.max(axis=1, keepdims=True)
            share = np.exp(score)
            share /= share.sum(axis=1, keepdims=True)
            u = rng.random(size)
            model = (np.cumsum(share, axis=1) < u[:, None]).sum(axis=1)
        for source, rows in enumerate((~experiment, experiment, experiment)):
            picked = np.flatnonzero(rows)
            cell = group[picked] * models + model[picked]
            order = np.argsort(cell, kind="stable")
            part, cell = v[picked[order]], cell[order]
            if source == 2:
                part = part * 5.0
            starts = np.flatnonzero(np.diff(cell, prepend=-1))
            totals[source, cell[starts]] += np.add.reduceat(part, starts, axis=0)
            edges = np.searchsorted(cell, np.arange(GROUPS + 1) * models)
            for g in range(GROUPS):
                rows_of_group = part[edges[g] : edges[g + 1]]
                grams[source, g] += rows_of_group.T @ rows_of_group
        reward = v[picked, -1]
        cell = group[picked] * models + model[picked]
        for index, value in enumerate((reward, reward * reward, 5 * reward, 25 * reward)):
            rewards[index] += np.bincount(cell, value, GROUPS * models)

    count = 50_000 // size

    def work() -> Figures:
        start = time.perf_counter()
        for _ in range(count):
            batch()
        return {"rate": count * size / (time.perf_counter() - start)}

    return work


def plan(models: int) -> Work:
    """The rewards of a plan's simulation drawn, and nothing else."""
    rng = np.random.default_rng(0)
    paths = 7 * max(40, min(720 // models, 110))

    def work() -> Figures:
        spent, begun = time.process_time(), time.perf_counter()
        chance = np.full((paths, models + 1), 1.0 / (models + 1))
        for _ in range(150):
            count = rng.multinomial(2000, chance)
            rng.binomial(count, 0.5)
        return {"cpu": time.process_time() - spent, "wall": time.perf_counter() - begun}

    return work


def mabwiser(size: int) -> Work | None:
    """mabwiser's LinUCB on the table; every batch is predicted, then learned from."""
    try:
        from mabwiser.mab import MAB, LearningPolicy
    except ImportError:
        return None
    x, reward = table()
    models = reward.shape[1]
    mab = MAB(list(range(models)), LearningPolicy.LinUCB(alpha=1.0))
    mab.fit(list(range(models)), [0.5] * models, x[:models])

    def work() -> Figures:
        begun = time.perf_counter()
        for start in range(0, TABLE_ROWS - size + 1, size):
            part = x[start : start + size]
            arms = mab.predict(part)
            mab.partial_fit(arms, reward[np.arange(start, start + size), arms], part)
        return {"rate": TABLE_ROWS / (time.perf_counter() - begun)}

    return work


def river(rows: int = 1000) -> Work:
    """river's LinUCBDisjoint on the table, which takes one request at a time."""
    from river import bandit

    x, reward = table()
    policy = bandit.LinUCBDisjoint(alpha=1.0, seed=1)
    arms = list(range(reward.shape[1]))
    contexts = [dict(enumerate(row)) for row in x[:rows].tolist()]

    def work() -> Figures:
        begun = time.perf_counter()
        for index, context in enumerate(contexts):
            arm = policy.pull(arms, context)
            policy.update(arm, context, reward[index, arm])
        return {"rate": rows / (time.perf_counter() - begun)}

    return work


PEERS: dict[str, Callable[[], Work | None]] = {
    "mabwiser LinUCB": lambda: mabwiser(100),
    "river LinUCBDisjoint": river,
}
