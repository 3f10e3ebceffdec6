"""Evidence that shares of models are not the probabilities they were drawn with.

A row says which of S streams it hit, each with its own known probability p_t. For a declared bias
b the factor q_t / p_t at a hit and (1 - q_t) / (1 - p_t) at a miss, q_t = p_t + b kept inside
(0, 1), has mean 1 whenever p_t is the truth, whatever came before and however p_t moves. Products
of such factors are martingales, so is their average over biases and streams, and by Ville's
inequality it ever reaches 1 / level with probability at most `level`. The factor is the likelihood
ratio of "off by b" against "as logged": no other test of that bias has more power.

The logs of the products are sums over rows: they add over shards, and nothing else is kept.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from equipoise.store.batches import Flags, Floats

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
        wrong = np.where(hit, probability <= 0, probability >= 1)
        impossible = np.count_nonzero(wrong, axis=0)
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
