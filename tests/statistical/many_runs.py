"""Many runs of one experiment at once: the rows, their scores and the sums, run axis first.

The rows and the scores come from the shipped `Rows.of` and `scores_under`, the fit of predictions
from the shipped `tuning`; only the sums are taken for all runs together, and
tests/statistical/test_coverage.py shows them equal to those of the shipped moments.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, fields

import numpy as np
from allocations import rule
from streams import Stream, requests

from equipoise.agent.inference.mixture import usual_caps
from equipoise.agent.inference.per_model import RewardMoments
from equipoise.agent.inference.prediction import KNOWN_ROWS, TuningMoments
from equipoise.agent.inference.score import Rows, ScoreMoments, Tuning, scores_under


@dataclass(frozen=True)
class Setup:
    """A world, an allocation, the rate of randomization e, and the caps that are kept.

    known: (R, K + 1) mean rewards in a log from before, of each run, None without a log.
    """

    stream: Stream
    allocation: str = "uniform"
    rate: float = 0.4
    caps: tuple[float, ...] | None = None
    known: np.ndarray | None = None

    def caps_in_force(self):
        return usual_caps(self.stream.models, self.rate) if self.caps is None else self.caps


@dataclass
class Sums:
    """Sums over the first t rows. Scores (C, R, A), cross (C, R, A, A), rewards (R, K), tuning
    (R, K + 1): the arrays of the shipped moments with a run axis."""

    t: int
    low: np.ndarray
    high: np.ndarray
    low_squares: np.ndarray
    high_squares: np.ndarray
    cross: np.ndarray
    rewards: RewardMoments
    tuning: TuningMoments

    @classmethod
    def empty(cls, caps, runs, models):
        size = models + 1
        one = (caps, runs, size)
        return cls(
            0,
            *(np.zeros(one) for _ in range(4)),
            np.zeros((caps, runs, size, size)),
            RewardMoments(*(np.zeros((runs, models)) for _ in range(5))),
            TuningMoments(*(np.zeros((runs, size)) for _ in fields(TuningMoments))),
        )

    def of_run(self, run):
        """The shipped score moments of one run."""
        parts = (self.low, self.high, self.low_squares, self.high_squares, self.cross)
        return ScoreMoments(np.array([float(self.t)]), *(part[:, run] for part in parts))

    def rewards_of(self, runs):
        """The shipped reward moments of some runs, (len(runs), K)."""
        return RewardMoments(*(array[runs] for array in self.rewards.arrays().values()))

    def rarer(self):
        """(R,) the rarer outcome of the model that has least of it."""
        return self.rewards.rarer().min(axis=1)


@dataclass
class Snapshot:
    """What a frozen rule may use: running means and counts, fits and centres, of every run."""

    mean: np.ndarray
    count: np.ndarray
    offset: np.ndarray
    factor: np.ndarray
    centre_low: np.ndarray
    centre_high: np.ndarray
    reward_low: np.ndarray
    reward_high: np.ndarray

    @classmethod
    def of(cls, sums, prediction, known=None):
        rewards = sums.rewards
        seen = np.maximum(rewards.count, 1.0)
        centres = rewards.centres()
        if known is not None:
            centres = rewards.centres(known[:, :-1], KNOWN_ROWS)
        tuning = sums.tuning.tuning(known)
        if prediction == "garbage":
            tuning = Tuning(np.zeros_like(tuning.offset), np.ones_like(tuning.factor))
        t = max(sums.t, 1)
        low = np.clip(sums.low / t, 0, 1) if sums.t else np.full_like(sums.low, 0.5)
        high = np.clip(sums.high / t, 0, 1) if sums.t else np.full_like(sums.high, 0.5)
        if known is not None:
            # As `ScoreMoments.centres` has it.
            count = np.column_stack([rewards.count, np.full(len(known), float(sums.t))])
            share = KNOWN_ROWS / (count + KNOWN_ROWS)
            low, high = (
                np.clip(m / t + share * (known - m / t), 0, 1) for m in (sums.low, sums.high)
            )
            if not sums.t:
                low, high = (np.broadcast_to(known, low.shape) for _ in range(2))
        return cls(
            np.where(rewards.count > 0, rewards.low / seen, 0.5),
            rewards.count.copy(),
            tuning.offset,
            tuning.factor,
            np.moveaxis(low, 0, 1),
            np.moveaxis(high, 0, 1),
            centres.low,
            centres.high,
        )


def behind(snapshots, lags):
    """The snapshot of every run that its own watermark allows. lags: (R,) rules behind."""
    newest = len(snapshots) - 1
    picked = np.maximum(newest - lags, 0)
    runs = np.arange(len(lags))
    names = Snapshot.__dataclass_fields__
    return Snapshot(
        *(np.stack([getattr(s, name) for s in snapshots])[picked, runs] for name in names)
    )


@dataclass
class Block:
    """Rows decided under one rule: scores per cap less their centres, and what the sums need."""

    scores: list
    centred: list
    drawn: np.ndarray
    low: np.ndarray
    high: np.ndarray
    centres: tuple
    fit: tuple

    def __len__(self):
        return self.drawn.shape[1]


def decide(setup, snapshot, start, size, rng):
    """A block of rows: draws, rewards, scores."""
    rows = draw(setup, snapshot, start, size, rng)
    runs, models = snapshot.mean.shape
    return scored(setup, snapshot, rows, (runs, size, models + 1))


def draw(setup, snapshot, start, size, rng):
    """The shipped rows of all runs, laid out run after run."""
    stream = setup.stream
    runs, models = snapshot.mean.shape
    asked = requests(stream, start, size, runs, rng)
    gate, shares = rule(setup.allocation, setup.rate, snapshot.mean, snapshot.count, rng)
    context = (asked.x > 0).astype(int)
    pi = shares[np.arange(runs)[:, None], context]
    rate = gate[context]
    randomized = rng.random((runs, size)) < rate
    edges = pi.cumsum(axis=-1)[..., :-1]
    model = (rng.random((runs, size))[..., None] > edges).sum(axis=-1)
    model = np.where(randomized, model, asked.routed)
    reward = np.take_along_axis(asked.reward, model[..., None], axis=-1)[..., 0]
    return Rows.of(
        rate.ravel(),
        pi.reshape(-1, models),
        randomized.ravel(),
        model.ravel(),
        asked.routed.ravel(),
        asked.predicted.reshape(-1, models),
        reward.ravel(),
        asked.known.ravel(),
    )


def scored(setup, snapshot, rows, shape):
    """The block of rows that are laid out run after run. shape: (runs, n, K + 1)."""
    runs, size, candidates = shape
    tuning = Tuning(*(np.repeat(p, size, axis=0) for p in (snapshot.offset, snapshot.factor)))
    pairs, centred = [], []
    for index, cap in enumerate(setup.caps_in_force()):
        low, high = (part.reshape(shape) for part in next(scores_under(rows, tuning, (cap,))))
        pairs.append((low, high))
        u = low - snapshot.centre_low[:, index, None]
        centred.append((u, high - snapshot.centre_high[:, index, None]))
    return Block(
        pairs,
        centred,
        rows.drawn.reshape(shape)[..., : candidates - 1],
        rows.low.reshape(runs, size),
        rows.high.reshape(runs, size),
        (snapshot.reward_low, snapshot.reward_high),
        _fit_sums(rows, shape),
    )


def _fit_sums(rows, shape):
    """The increments of `TuningMoments.update`, (R, K + 1) each, for the whole block."""
    known = rows.drawn & (rows.low == rows.high)[:, None]
    weight = np.where(known, (1.0 / rows.chance - 1.0) / rows.chance, 0.0).reshape(shape)
    q = (rows.predicted - 0.5).reshape(shape)
    r = np.broadcast_to((rows.low[:, None] - 0.5).reshape(*shape[:2], 1), shape)
    by_q, by_r = weight * q, weight * r
    pairs = ((weight, weight), (by_q, q), (by_r, q), (by_r, r))
    squares, qq, qr, rr = (np.einsum("rna,rna->ra", one, two) for one, two in pairs)
    # The study always has a prediction: the sums over rows without one stay 0.
    bare = np.zeros_like(squares)
    return _total(weight), squares, _total(by_q), qq, _total(by_r), qr, rr, bare, bare, bare


def _total(array):
    """(R, A) sums over the rows of (R, n, A), as a product: numpy is slow along a middle axis."""
    return (np.ones((1, array.shape[1])) @ array)[:, 0]


def add(sums, block, rows):
    """Add a slice of a block's rows to the sums, in place; the fit takes whole blocks."""
    drawn = block.drawn[:, rows]
    if drawn.shape[1] == 0:
        return
    sums.t += drawn.shape[1]
    for index, ((low, high), (u, v)) in enumerate(zip(block.scores, block.centred, strict=True)):
        u, v = u[:, rows], v[:, rows]
        sums.low[index] += _total(low[:, rows])
        sums.high[index] += _total(high[:, rows])
        sums.low_squares[index] += np.einsum("rna,rna->ra", u, u)
        sums.high_squares[index] += np.einsum("rna,rna->ra", v, v)
        sums.cross[index] += u.transpose(0, 2, 1) @ v
    rewards, (centre_low, centre_high) = sums.rewards, block.centres
    low, high = block.low[:, rows, None], block.high[:, rows, None]
    drawn = drawn.astype(float)
    rewards.count += _total(drawn)
    rewards.low += np.einsum("rnk,rn->rk", drawn, low[..., 0])
    rewards.high += np.einsum("rnk,rn->rk", drawn, high[..., 0])
    rewards.low_squares += np.einsum("rnk,rnk->rk", drawn, (low - centre_low[:, None]) ** 2)
    rewards.high_squares += np.einsum("rnk,rnk->rk", drawn, (high - centre_high[:, None]) ** 2)


def add_fit(sums, block):
    for mine, more in zip(sums.tuning.arrays().values(), block.fit, strict=True):
        mine += more


def look_times(rows, single=100, apart=0.04):
    """Every row to `single`, then a share `apart` from each other, to the end."""
    single = min(single, rows)
    late = np.geomspace(single, rows, int(np.log(rows / single) / apart) + 2).astype(int)
    return np.union1d(np.arange(1, single + 1), late)


def block_size(start):
    return 10 if start < 200 else 50 if start < 4000 else 200


def simulate(setup, runs, seed, watchers, looks=None, decide=decide):
    """Run the experiment; every watcher's `look(sums)` is called at every look. Returns the sums.

    A rule is frozen for a block and knows the rows before it, or, where the stream has a lag,
    only those of a random number of blocks before. decide: where the blocks of rows come from.
    """
    rng = np.random.default_rng(seed)
    stream = setup.stream
    looks = look_times(stream.rows) if looks is None else looks
    sums = Sums.empty(len(setup.caps_in_force()), runs, stream.models)
    snapshots = deque(maxlen=stream.lag + 1)
    start = 0
    while start < stream.rows:
        size = min(block_size(start), stream.rows - start)
        snapshots.append(Snapshot.of(sums, stream.prediction, setup.known))
        snapshot = snapshots[-1]
        if stream.lag:
            snapshot = behind(snapshots, rng.integers(0, stream.lag + 1, runs))
        block = decide(setup, snapshot, start, size, rng)
        done = 0
        for row in looks[(looks > start) & (looks <= start + size)] - start:
            add(sums, block, slice(done, row))
            done = row
            for watcher in watchers:
                watcher.look(sums)
        add(sums, block, slice(done, size))
        add_fit(sums, block)
        start += size
    return sums
