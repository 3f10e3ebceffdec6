"""Policies to value on a log, as the probabilities (n, K) they give at each of its rows."""

from __future__ import annotations

import numpy as np

from equipoise.agent.features.problems import listed
from equipoise.replay.benchmarks.base import BenchmarkError
from equipoise.replay.openbandit.evaluate import policy_values
from equipoise.replay.openbandit.log import LoggedFeedback
from equipoise.replay.openbandit.reward_model import FOLDS, time_blocks
from equipoise.store.batches import Flags, Floats


def uniform(log: LoggedFeedback) -> Floats:
    """Every item alike."""
    return np.full((len(log), len(log.items)), 1.0 / len(log.items))


def always(log: LoggedFeedback, item: int) -> Floats:
    """One item at every position."""
    target = np.zeros((len(log), len(log.items)))
    target[:, item] = 1.0
    return target


def shown_shares(log: LoggedFeedback) -> Floats:
    """(P, K) how often a log showed each item at each position: its policy, averaged over time.

    Given what was shown, the log's click rate is an unbiased estimate of exactly this policy's
    value, as long as which item is shown does not depend on the user.
    """
    counts = np.zeros((len(log.positions), len(log.items)))
    np.add.at(counts, (log.position, log.item), 1.0)
    return np.asarray(counts / counts.sum(axis=1, keepdims=True))


def as_in(log: LoggedFeedback, other: LoggedFeedback) -> Floats:
    """The policy of another log of the same items and positions. Raises BenchmarkError."""
    for name in ("items", "positions"):
        mine, theirs = getattr(log, name), getattr(other, name)
        if mine != theirs:
            raise BenchmarkError(
                f"{name} of the {log.behaviour} log are {listed(mine)} and of the"
                f" {other.behaviour} log are {listed(theirs)}, must be the same"
            )
    return shown_shares(other)[log.position]


def best_item(log: LoggedFeedback) -> Floats:
    """Always the item with the best click rate, found on the other blocks of time.

    A best item that was found on the rows it is valued on would look too good. Items that tie
    share.
    """
    fold = time_blocks(log, FOLDS)
    target = np.zeros((len(log), len(log.items)))
    for held in np.unique(fold):
        rates = item_rates(log, fold != held)
        best = rates >= np.nanmax(rates) - 1e-12
        target[fold == held] = best / np.count_nonzero(best)
    return target


def item_rates(log: LoggedFeedback, rows: Flags) -> Floats:
    """(K,) self-normalised click rates of always showing one item; NaN where unknown."""
    part = log.select(rows)
    values = [
        policy_values(part, always(part, item))["snips"].mix.value for item in range(len(log.items))
    ]
    return np.array(values)
