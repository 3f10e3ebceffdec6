"""Values that move while the stream runs, so slowly or suddenly that the truth stays a finite sum.

At request t (from 0) a share s_t in [0, 1] of the drift has happened: 0 before the first request,
1 from request `drift_over` on, and in between t / drift_over (linear) or 0 (change). With
d = |drift| the world at t is a mixture of two fixed worlds:

- rewards of the models that move: E[R] = (1 - d s_t) · mean + d s_t · end, the end being 1 for a
  positive drift and 0 for a negative one. A mixture stays in [0, 1], so nothing clips;
- contexts: a share d s_t of the requests comes from one half of the contexts, the half that is
  worth more on average over the models if drift is positive, less if negative; the rest comes from
  all of them. The replays still show all contexts alike, as replays made before the drift do.

Either way every value at t is linear in s_t, and its running average over any set of requests is
the value at the average of s_t over them.
"""

from __future__ import annotations

import numpy as np

from equipoise.replay.worlds.options import WorldOptions
from equipoise.store.batches import Flags, Floats, Ints


class Drift:
    """What moves in a world, how far and when.

    active: whether anything does. moves: (K,) which models' rewards do.
    """

    def __init__(self, base: Floats, values: Floats, options: WorldOptions) -> None:
        """base (C, K): worth of every model in every context; values (K,) before the drift."""
        self.active = options.drift != 0
        self._size = abs(options.drift)
        self._end = 1.0 if options.drift > 0 else 0.0
        self._over = options.drift_over
        self._linear = options.drift_shape == "linear"
        count, models = base.shape
        self.moves: Flags = np.zeros(models, dtype=bool)
        self.half: Ints | None = None
        if not self.active:
            return
        if options.drift_of == "contexts":
            order = np.argsort(base.mean(axis=1), kind="stable")
            size = (count + 1) // 2
            self.half = np.sort(order[-size:] if options.drift > 0 else order[:size])
        elif options.drift_of == "all":
            self.moves[:] = True
        else:
            best = options.drift_of == "best"
            self.moves[int(np.argmax(values) if best else np.argmin(values))] = True

    def share(self, number: Ints) -> Floats:
        """(n,) s_t: the share of the drift that has happened at requests `number` (n,)."""
        if self._linear:
            return np.clip(number / self._over, 0.0, 1.0)
        return (number >= self._over).astype(np.float64)

    def redraw(self, rows: Ints, share: Floats, rng: np.random.Generator) -> Ints:
        """(n,) context rows of requests under a drift of contexts, from rows of all contexts."""
        if self.half is None:
            return rows
        moved = rng.random(len(rows)) < self._size * share
        return np.where(moved, self.half[rng.integers(len(self.half), size=len(rows))], rows)

    def moved(self, mean: Floats, model: Ints | slice, share: Floats | float) -> Floats:
        """Expected rewards after the drift; mean, model and share of shapes that broadcast."""
        weight = self._size * share * self.moves[model]
        moved: Floats = (1.0 - weight) * mean + weight * self._end
        return moved

    def contexts(self, count: int) -> Floats:
        """(C,) probabilities of the contexts when all of the drift has happened."""
        weights = np.full(count, 1.0 / count)
        if self.half is not None:
            weights *= 1.0 - self._size
            weights[self.half] += self._size / len(self.half)
        return weights
