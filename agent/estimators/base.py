"""What an estimator family returns, the registry of families, and what several of them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from equipoise.agent.moments.state import Moments
from equipoise.store.batches import Flags, Floats

NORMAL_95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Scorer:
    """A fitted linear scorer of rewards, for policies that look at contexts.

    theta: (P,) coefficients of phi = [1, x, y, interactions] (the first p), followed by one
    effect per model where `model_effects` (P = p + K). covariance: (P, P).
    residual_variance: variance of a reward around the scorer, reward units squared.
    """

    theta: Floats
    covariance: Floats
    residual_variance: float
    model_effects: bool = False


@dataclass(frozen=True, slots=True)
class Estimate:
    """Values of the K models from one family.

    values: (K,) in reward units, NaN where unknown. covariance: (K, K), +inf on the diagonal
    (0 off it) where unknown. diagnostics: named numbers or arrays that explain the values.
    """

    family: str
    values: Floats
    covariance: Floats
    diagnostics: Mapping[str, Any] = field(default_factory=dict)
    scorer: Scorer | None = None

    @property
    def says_error(self) -> bool:
        """Whether any value comes with an error: families of replays know none without them."""
        known = np.isfinite(self.values) & np.isfinite(np.diagonal(self.covariance))
        return bool(known.any())


Family: TypeAlias = Callable[[Moments], Estimate]
FAMILIES: dict[str, Family] = {}


@dataclass(frozen=True, slots=True)
class FamilyNotes:
    """What people choose a family by.

    idea: in a line. sources: of OBS, EXP and SIM, those it uses. without_log: what it is where
    there is no usage log; empty where that is nothing worth saying. variant_of: the family that it
    is a setting of, "" for one of its own; who asks for all families is not given variants.
    """

    idea: str
    sources: tuple[str, ...]
    without_log: str = ""
    variant_of: str = ""


NOTES: dict[str, FamilyNotes] = {}


def family(
    name: str, idea: str = "", *sources: str, without_log: str = "", variant_of: str = ""
) -> Callable[[Family], Family]:
    """Register a function of the moments as the estimator family `name`, with its notes."""

    def register(function: Family) -> Family:
        if name in FAMILIES:
            raise ValueError(f"estimator family {name!r} is registered twice")
        FAMILIES[name] = function
        NOTES[name] = FamilyNotes(idea, sources, without_log, variant_of)
        return function

    return register


def own_families() -> list[str]:
    """Names of the families that are no variant of another."""
    return [name for name, notes in NOTES.items() if not notes.variant_of]


def describe() -> list[dict[str, str]]:
    """A row per family for a listing: its name, what it is, and the sources it uses."""
    return [
        {
            "family": name,
            "what it is": notes.idea,
            "uses": ", ".join(notes.sources),
            "without a usage log": notes.without_log,
        }
        for name, notes in NOTES.items()
    ]


def deletions(weight: Floats) -> Floats:
    """Masks (h, G) that leave out each of the h non-empty groups in turn. weight: (G,).

    An empty group has nothing to delete: it is no replicate and does not count in h.
    """
    return np.asarray(1.0 - np.eye(len(weight))[weight > 0])


def covariance(replicates: Floats) -> Floats:
    """Jackknife covariance (K, K) of replicates (h, K): (h - 1) / h times their scatter.

    +inf on the diagonal, 0 off it, where h < 2 or a replicate is unknown: a variance from one
    group does not exist.
    """
    h, models = replicates.shape
    if h < 2:
        return unknown_covariance(models)
    known: Flags = np.asarray(np.isfinite(replicates).all(axis=0))
    deviation = np.where(known, replicates - np.where(known, replicates, 0.0).mean(axis=0), 0.0)
    spread: Floats = (h - 1) / h * (deviation.T @ deviation)
    return with_unknown(spread, ~known)


def total_covariance(values: Floats, *parts: Floats) -> Floats:
    """Sum of independent covariances (K, K), unknown wherever a part or the value (K,) is."""
    unknown = ~np.isfinite(values)
    total = np.zeros((len(values), len(values)))
    for part in parts:
        unknown = unknown | ~np.isfinite(np.diagonal(part))
        total += part
    return with_unknown(total, unknown)


def with_unknown(spread: Floats, unknown: Flags) -> Floats:
    """`spread` (K, K) with +inf variance and zero covariances where `unknown` (K,) is true."""
    both_known = ~(unknown[:, None] | unknown[None, :])
    result = np.where(both_known, spread, 0.0)
    np.fill_diagonal(result, np.where(unknown, np.inf, np.diagonal(result)))
    return result


def unknown_covariance(models: int) -> Floats:
    """(K, K) covariance of values nobody knows."""
    return with_unknown(np.zeros((models, models)), np.ones(models, dtype=bool))


class Estimates(dict[str, Estimate]):
    """Estimates by family; printed, each model's value with its 95% interval, reward units.

    models: (K,) names.
    """

    def __init__(self, estimates: Mapping[str, Estimate], models: tuple[str, ...]) -> None:
        super().__init__(estimates)
        self.models = models

    def __str__(self) -> str:
        lines = []
        for family, estimate in self.items():
            errors = NORMAL_95 * np.sqrt(np.diagonal(estimate.covariance))
            for name, value, error in zip(self.models, estimate.values, errors, strict=True):
                text = f"{value:.3f} ± {error:.3f}" if np.isfinite(value) else "unknown"
                lines.append(f"{family}: {name} {text}")
        return "\n".join(lines)
