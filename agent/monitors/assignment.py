"""Assignment audit: do models get the shares that their logged probabilities say?

A row says which of S streams it hit, each with its own known probability p_t. For a declared bias
b the factor q_t / p_t at a hit and (1 - q_t) / (1 - p_t) at a miss, q_t = p_t + b kept inside
(0, 1), has mean 1 whenever p_t is the truth, whatever came before and however p_t moves. Products
of such factors are martingales, so is their average over biases and streams, and by Ville's
inequality it ever reaches 1 / level with probability at most `level`. The factor is the likelihood
ratio of "off by b" against "as logged": no other test of that bias has more power.

The logs of the products are sums over rows: they add over shards, and nothing else is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from equipoise.agent.monitors.check import Check, Monitor, by_evidence, percent
from equipoise.store.batches import Flags, Floats, Ints

_SIZES = np.array([0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32])
_CREDENCE = np.array([1.0, 2.0, 3.0, 3.0, 2.0, 1.0, 1.0])
BIASES: Floats = np.concatenate([-_SIZES[::-1], _SIZES])
"""Biases looked for, in share points."""
_LOG_WEIGHTS: Floats = np.log(np.concatenate([_CREDENCE[::-1], _CREDENCE]) / (2 * _CREDENCE.sum()))
_KEPT = 0.25
"""A bias leaves at least this part of p and of 1 - p."""
_BLOCK = 512
_PRODUCT = 8
"""Factors multiplied before a log: their product overflows only below probabilities of 1e-38."""


def empty(streams: int) -> dict[str, Floats]:
    """Sums before any row. evidence (S, B): log products; hits, expected, rows, impossible (S,)."""
    return {
        "evidence": np.zeros((streams, len(BIASES))),
        **{name: np.zeros(streams) for name in ("hits", "expected", "rows", "impossible")},
    }


def factors(probability: Floats) -> tuple[Floats, Floats]:
    """(…, B) factors at a hit and at a miss, of streams with these probabilities (…).

    A certain or an impossible hit tells nothing: both factors are then 1.
    """
    p = probability[..., None]
    open_ = (p > 0) & (p < 1)
    p = np.where(open_, p, 0.5)
    q = np.clip(p + BIASES, _KEPT * p, 1.0 - _KEPT * (1.0 - p))
    q = np.where(open_, q, p)
    return q / p, (1.0 - q) / (1.0 - p)


def add(sums: dict[str, Floats], streams: slice, probability: Floats, hit: Flags) -> None:
    """Take n rows into some of the streams: probability (n, s) of a hit, hit (n, s)."""
    rows = len(probability)
    if not rows:
        return
    hits = np.count_nonzero(hit, axis=0)
    if (probability == probability[0]).all():
        # Rules without a context give every row the same probabilities: two logs a stream do.
        p = probability[0]
        at_hit, at_miss = _log_factors(p.tobytes())
        evidence = hits[:, None] * at_hit + (rows - hits)[:, None] * at_miss
        expected, impossible = rows * p, np.where(p <= 0, hits, np.where(p >= 1, rows - hits, 0))
    else:
        evidence = sum(
            _log_products(probability[start : start + _BLOCK], hit[start : start + _BLOCK])
            for start in range(0, rows, _BLOCK)
        )
        expected = probability.sum(axis=0)
        contradicts = np.where(hit, probability <= 0, probability >= 1)
        impossible = np.count_nonzero(contradicts, axis=0)
    sums["evidence"][streams] += evidence
    sums["hits"][streams] += hits
    sums["expected"][streams] += expected
    sums["rows"][streams] += rows
    sums["impossible"][streams] += impossible


@lru_cache(maxsize=64)
def _log_factors(probability: bytes) -> tuple[Floats, Floats]:
    """Logs of `factors` of a row of probabilities, which comes again and again under one rule."""
    at_hit, at_miss = factors(np.frombuffer(probability))
    return np.log(at_hit), np.log(at_miss)


def _log_products(p: Floats, hit: Flags) -> Floats:
    """(s, B) sums over n rows of the logs of their factors.

    With c the probability of what happened, the factor is 1 + b / c at a hit and 1 - b / c at a
    miss, kept from _KEPT to _KEPT + (1 - _KEPT) / c: `factors` of what happened alone. Logs are
    taken of products of few rows, which neither overflow nor vanish.
    """
    chance = np.where(hit, p, 1.0 - p)
    certain = (p <= 0) | (p >= 1)
    chance[certain] = 1.0
    tilt = np.where(hit, 1.0, -1.0) / chance
    tilt[certain] = 0.0
    factor = tilt[..., None] * BIASES
    factor += 1.0
    np.minimum(factor, (_KEPT + (1.0 - _KEPT) / chance)[..., None], out=factor)
    np.maximum(factor, _KEPT, out=factor)
    starts = np.arange(0, len(p), _PRODUCT)
    result: Floats = np.log(np.multiply.reduceat(factor, starts, axis=0)).sum(axis=0)
    return result


def log_evidence(sums: dict[str, Floats]) -> Floats:
    """(S,) log e-value per stream; +inf where what has probability 0 happened."""
    exponent = sums["evidence"] + _LOG_WEIGHTS
    peak = exponent.max(axis=-1, keepdims=True)
    total = peak[..., 0] + np.log(np.exp(exponent - peak).sum(axis=-1))
    result: Floats = np.where(sums["impossible"] > 0, np.inf, total)
    return result


def together(evidence: Floats) -> float:
    """The log of the average of e-values, from their logs (S,): itself a log e-value."""
    peak = float(evidence.max())
    if not np.isfinite(peak):
        return peak
    return peak + float(np.log(np.exp(evidence - peak).mean()))


def bias(sums: dict[str, Floats]) -> Floats:
    """(S,) share of hits less the mean probability of one, NaN without rows."""
    rows = sums["rows"]
    result: Floats = np.full(len(rows), np.nan)
    np.divide(sums["hits"] - sums["expected"], rows, out=result, where=rows > 0)
    return result


class AssignmentAudit(Monitor):
    """A sample-ratio test that knows the moving weights, valid at every moment.

    Streams: each model's share of the randomized rows against pi_t(m), and the share of randomized
    rows among all against e_t. A gateway that drops, retries or overrides some assignments shows
    here, even where the agent's own draws are right.
    """

    name = "assignment"

    def __init__(self, models: Sequence[str], level: float = 0.01) -> None:
        super().__init__(models, level)
        self.sums = empty(len(self.models) + 1)

    def update(self, rate: Floats, probabilities: Floats, model: Ints, randomized: Flags) -> None:
        """rate: (n,) e; probabilities: (n, K) pi; model: (n,) assigned; randomized: (n,)."""
        count = len(self.models)
        drawn = np.flatnonzero(randomized)
        hit = model[drawn, None] == np.arange(count)
        add(self.sums, slice(0, count), probabilities[drawn], hit)
        add(self.sums, slice(count, None), rate[:, None], randomized[:, None])

    def result(self) -> Check:
        evidence = log_evidence(self.sums)
        biases = bias(self.sums)
        rows = self.sums["rows"]
        figures = {
            "rows": float(rows[-1]),
            "randomized": float(rows[0]),
            "log_evidence": together(evidence),
            "bias": biases[:-1].tolist(),
            "rate_bias": float(biases[-1]),
        }
        if not rows[-1]:
            sentence = "No decision has been made yet, so no share of traffic can be checked."
            return Check(self.name, "unknown", sentence, figures, self.level)
        status = by_evidence(figures["log_evidence"], self.level)
        if status == "ok":
            sentence = (
                f"Models get the traffic that was drawn for them: {rows[0]:,.0f} randomized "
                f"requests agree with their logged probabilities."
            )
            return Check(self.name, status, sentence, figures, self.level)
        worst = int(np.argmax(evidence))
        of_model = worst < len(self.models)
        who = self.models[worst] if of_model else "The experiment"
        total = "randomized requests" if of_model else "requests"
        share = self.sums["hits"][worst] / rows[worst]
        logged = self.sums["expected"][worst] / rows[worst]
        verb = "gets" if status == "alarm" else "may be getting"
        sentence = (
            f"{who} {verb} {percent(share)} of {rows[worst]:,.0f} {total}, where "
            f"the logged probabilities say {percent(logged)}: "
            + (
                "assignments are lost, changed or drawn wrongly, and no interval can be trusted."
                if status == "alarm"
                else "it may still be chance."
            )
        )
        return Check(self.name, status, sentence, figures, self.level, (worst,) if of_model else ())
