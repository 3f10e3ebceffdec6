"""Simulator fidelity: do replayed outputs look like live ones, feature by feature and as a score?

If a replay is another draw of what the model does live, live and replayed outputs of one request
can be swapped, so each difference d has a symmetric distribution: given its size, its sign is a
fair coin. For an odd h the factor 1 + tanh(h(d)) then has mean 1, without any assumption on tails
or scale (the exact form of the self-normalised bounds of de la Pena 1999). Its log is h - log cosh
h: sums over pairs for h = lambda d, which sees many small differences, and for h = lambda d |d|,
which sees a few large ones among noise; then an average of the products over the fixed grid,
features and models, and Ville's inequality.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from equipoise.agent.monitors.check import Check, Monitor, by_evidence
from equipoise.store.batches import Floats, Ints

BETS: Floats = np.geomspace(0.125, 8.0, 7)
"""Grid of lambda, per standard deviation of a feature, and per its square."""
_POWERS = 2
FEWEST_PAIRS = 30
_BLOCK = 512
_SCORE = "the predicted reward"


class Fidelity(Monitor):
    """Pairs of live and replayed features of the same request and model.

    features: (F,) names of phi without its intercept. Streams: each feature and the score, pooled
    over models and per model; pooled and per model get half of the level each, and within them the
    score and all features together get half each.
    A (context, model) may form one pair only: its replay is one draw, and a second live request
    against it would count the same error twice.
    """

    name = "fidelity"

    def __init__(self, models: Sequence[str], features: Sequence[str], level: float = 0.01) -> None:
        super().__init__(models, level)
        self.features = tuple(features)
        shape = (len(self.models), len(self.features) + 1)
        self.sums = {
            "pairs": np.zeros(shape[0]),
            "shift": np.zeros((*shape, _POWERS)),
            "penalty": np.zeros((*shape, _POWERS, len(BETS))),
            "score": np.zeros(shape[0]),
        }
        streams = np.full((shape[0] + 1, shape[1]), 0.5 / max(len(self.features), 1))
        streams[:, -1] = 0.5
        streams[:-1] /= 2.0 * len(self.models)
        streams[-1] /= 2.0
        self._log_weight = np.log(streams)[..., None] - np.log(2.0 * _POWERS * len(BETS))

    def update(
        self,
        model: Ints,
        live: Floats,
        simulated: Floats,
        scale: Floats,
        theta: Floats | None = None,
    ) -> None:
        """n pairs. model: (n,); live, simulated: (n, F) phi without its intercept.

        scale: (F,) standard deviations of the features and theta: (F,) coefficients of a scorer,
        both known before these pairs were; None while there is no scorer. A feature whose scale is
        0 or unknown, and a difference that is NaN, say nothing.
        """
        usable = np.isfinite(scale) & (scale > 0)
        unit = np.where(usable, scale, 1.0)
        raw = np.nan_to_num(live - simulated, nan=0.0)
        difference = np.zeros((len(model), len(self.features) + 1))
        difference[:, :-1] = np.where(usable, raw / unit, 0.0)
        if theta is not None:
            score = raw @ theta
            spread = float(np.linalg.norm(theta * np.where(usable, scale, 0.0)))
            difference[:, -1] = score / spread if spread > 0 else 0.0
            self.sums["score"] += np.bincount(model, score, len(self.models))
        self.sums["pairs"] += np.bincount(model, minlength=len(self.models))
        order = np.argsort(model, kind="stable")
        for start in range(0, len(model), _BLOCK):
            rows = order[start : start + _BLOCK]
            self._bet(model[rows], difference[rows])

    def _bet(self, model: Ints, difference: Floats) -> None:
        """Add rows in order of their model to the sums of h and of log cosh h.

        log cosh x = |x| + log(1 + exp(-2 |x|)) - log 2, with one log for all rows of a model:
        the product of up to 512 factors from 1 to 2 does not overflow.
        """
        starts = np.flatnonzero(np.diff(model, prepend=-1))
        present, counts = model[starts], np.diff(starts, append=len(model))
        bet_on = np.stack([difference, difference * np.abs(difference)], axis=-1)
        self.sums["shift"][present] += np.add.reduceat(bet_on, starts, axis=0)
        size = np.abs(bet_on)[..., None] * BETS
        total = np.add.reduceat(size, starts, axis=0)
        excess = np.multiply.reduceat(1.0 + np.exp(-2.0 * size), starts, axis=0)
        log_two = counts[:, None, None, None] * np.log(2.0)
        self.sums["penalty"][present] += total + np.log(excess) - log_two

    def result(self) -> Check:
        pairs = self.sums["pairs"]
        total = float(pairs.sum())
        streams = self._log_evidence()
        evidence = float(_log_sum(streams.ravel()))
        safe = np.where(pairs > 0, pairs, np.nan)
        shift = self.sums["shift"][..., 0]
        mean = shift.sum(axis=0) / max(total, 1.0)
        figures = {
            "pairs": pairs.tolist(),
            "shift": dict(zip(self.features, mean[:-1].tolist(), strict=False)),
            "score_shift": (self.sums["score"] / safe).tolist(),
            "log_evidence": evidence,
        }
        status = by_evidence(evidence, self.level)
        if status == "ok" and total < FEWEST_PAIRS:
            sentence = (
                f"{total:,.0f} live requests have been replayed, too few to compare the simulator "
                f"with."
            )
            return Check(self.name, "unknown", sentence, figures, self.level)
        if status == "ok":
            sentence = f"Replayed outputs look like live ones over {total:,.0f} pairs."
            return Check(self.name, status, sentence, figures, self.level)
        row, column = np.unravel_index(int(np.argmax(streams)), streams.shape)
        one = int(row) < len(self.models)
        count = pairs[row] if one else total
        by = float(shift[row, column] if one else shift[:, column].sum()) / count
        what = _SCORE if column == len(self.features) else self.features[column]
        who = f" for {self.models[row]}" if one else ""
        doubt = "" if status == "alarm" else ", which may still be chance"
        sentence = (
            f"Live outputs{who} are not what the simulator replayed: {what} is "
            f"{abs(by):.2g} standard deviations {'higher' if by > 0 else 'lower'} live, over "
            f"{count:,.0f} pairs{doubt}."
        )
        if status == "alarm":
            sentence += " Estimates that rest on the simulator cannot be trusted."
        return Check(self.name, status, sentence, figures, self.level, (int(row),) if one else ())

    def _log_evidence(self) -> Floats:
        """(K + 1, F + 1) weighted log e-values; the last row pools the models."""
        shift, penalty = self.sums["shift"], self.sums["penalty"]
        shift = np.concatenate([shift, shift.sum(axis=0, keepdims=True)])
        penalty = np.concatenate([penalty, penalty.sum(axis=0, keepdims=True)])
        gain = shift[..., None] * BETS
        both = np.concatenate([gain - penalty, -gain - penalty], axis=-1)
        return _log_sum(both.reshape(*both.shape[:2], -1) + self._log_weight)


def _log_sum(logs: Floats) -> Floats:
    """Log of the sum of exponentials over the last axis."""
    peak = logs.max(axis=-1, keepdims=True)
    result: Floats = peak[..., 0] + np.log(np.exp(logs - peak).sum(axis=-1))
    return result
