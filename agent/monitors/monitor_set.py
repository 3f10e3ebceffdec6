"""All checks of one experiment: what they are fed, what they say, what follows.

Rows come in the order of the log, chunk by chunk, so that the state of every check is a function
of the log alone. Decisions are taken when they were made, for what only the draw decides; rows
are taken again in decision order once they are closed, for what their outcomes decide.
An alarm stays until a new era: then the checks of what belongs to an era start afresh.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from equipoise.agent.estimators.base import Estimate
from equipoise.agent.monitors.assignment import AssignmentAudit
from equipoise.agent.monitors.check import Check, Monitor
from equipoise.agent.monitors.drift import Drift
from equipoise.agent.monitors.fidelity import Fidelity
from equipoise.agent.monitors.guardrails import Guardrail, GuardrailLimit
from equipoise.agent.monitors.lost_rows import Delivery, Floors, Missingness
from equipoise.agent.monitors.representation import representation
from equipoise.policies.snapshot import Limits
from equipoise.store.batches import Flags, Floats, Ints

REPRESENTATION_FAMILIES = ("representation-exp", "doubly-robust", "ipw", "hierarchical")
"""The families whose estimates `checks` compares; without them that check knows nothing."""
_AFTER = 3
"""The stateless check is listed after the first three."""


@dataclass(frozen=True, slots=True)
class DecisionRows:
    """Columns of n decisions of one era, in order.

    rate, propensity: (n,) e, and pi of the assigned model; probabilities: (n, K) pi;
    model: (n,) assigned; randomized: (n,); closed_by: (n,) a `Closure`; open_to_all: (n,) every
    model was eligible. counted: (n,) not among those that are left out of every sum of draws.
    """

    rate: Floats
    propensity: Floats
    probabilities: Floats
    model: Ints
    randomized: Flags
    closed_by: Ints
    open_to_all: Flags
    counted: Flags


@dataclass(frozen=True, slots=True)
class ClosedRows:
    """Columns of n closed rows of one era, in decision order.

    probabilities: (n, K) pi; model, routed: (n,); randomized, delivered: (n,); known: (n,) whether
    a reward came in time; counts: (n,) whether one came or the declared value stands for it;
    reward: (n,) scaled to [0, 1], anything where none counts; predicted: (n,) the reward predicted
    for the row by what was frozen before its outcome, on [0, 1], NaN where nothing was; tested:
    (n,) whether its model may be looked at for drift; as_routed: (n,) whether it counts as traffic
    as routed; metrics: (n, G) in their own units, NaN where none came. as_drawn: (n,) delivered,
    and answered by the assigned model.
    """

    probabilities: Floats
    model: Ints
    routed: Ints
    randomized: Flags
    delivered: Flags
    known: Flags
    counts: Flags
    reward: Floats
    predicted: Floats
    tested: Flags
    as_routed: Flags
    metrics: Floats
    as_drawn: Flags


class MonitorSet:
    """Owner of the checks.

    models: (K,) names; features: (F,) names of the features of phi that depend on the model;
    limits: what every rule obeys; guardrails: their limits, in the order of the metrics.
    missing: what a reward that never comes means, as `Rule.missing`.
    level: the share of honest experiments in which a check may ever raise an alarm, for each;
    the guardrails share one.
    """

    def __init__(
        self,
        models: Sequence[str],
        features: Sequence[str],
        limits: Limits,
        guardrails: Sequence[GuardrailLimit] = (),
        level: float = 0.01,
        missing: float | str | None = None,
    ) -> None:
        self.models = tuple(models)
        self._missing = missing
        self._features = tuple(features)
        self._limits = limits
        self._declared = tuple(guardrails)
        self._level = level
        self._era = {"decided": 0, "entered": 0}
        self._begin_decisions()
        self._begin_outcomes()

    def begin(self, era: int) -> None:
        """Start afresh every check that has seen nothing of this era yet."""
        if self._is_new("decided", era):
            self._begin_decisions()
        if self._is_new("entered", era):
            self._begin_outcomes()

    def take_decisions(self, era: int, rows: DecisionRows) -> None:
        """Take decisions in the order they were made; those that come late, of an era that has
        ended, are no news of this one."""
        if era < self._era["decided"]:
            return
        if self._is_new("decided", era):
            self._begin_decisions()
        # If what leaves rows out hung on what they drew, the shares of the others would tell.
        some = rows.counted if not rows.counted.all() else slice(None)
        self.assignment.update(
            rows.rate[some], rows.probabilities[some], rows.model[some], rows.randomized[some]
        )
        self.floors.update(
            rows.rate, rows.propensity, rows.randomized, rows.closed_by, rows.open_to_all
        )

    def take_closed(self, era: int, rows: ClosedRows) -> None:
        """Take closed rows in decision order, as `take_decisions`."""
        if era < self._era["entered"]:
            return
        if self._is_new("entered", era):
            self._begin_outcomes()
        reward = np.where(rows.counts & rows.delivered, rows.reward, np.nan)
        as_routed = np.where(rows.as_routed, reward, np.nan)
        residual = np.where(rows.tested, reward - rows.predicted, np.nan)
        self.drift.update(rows.model, residual, as_routed, limited=not rows.tested.all())
        drawn = np.flatnonzero(rows.randomized)
        pi, model = rows.probabilities[drawn], rows.model[drawn]
        delivered = rows.delivered[drawn]
        self.missingness.update(pi, model, delivered & ~rows.known[drawn])
        as_drawn = rows.as_drawn[drawn]
        self.delivery.update(pi, model, ~as_drawn, delivered & ~as_drawn)
        sent = drawn[delivered]
        for position, guardrail in enumerate(self.guardrails):
            guardrail.update(rows.model[sent], rows.metrics[sent, position])

    def take_pairs(
        self, model: Ints, live: Floats, simulated: Floats, scale: Floats, theta: Floats | None
    ) -> None:
        """Take pairs of live and replayed features: as `Fidelity.update`."""
        self.fidelity.update(model, live, simulated, scale, theta)

    def checks(self, estimates: Mapping[str, Estimate] | None = None) -> list[Check]:
        """What every check says. estimates: by family, for the check of representation."""
        checks = [monitor.result() for monitor in self._monitors().values()]
        checks.insert(_AFTER, representation(estimates or {}, self.models, self._level))
        return checks

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The state by name, for a checkpoint."""
        eras = {f"era.{what}": np.array([era]) for what, era in self._era.items()}
        return eras | {
            f"{name}.{part}": array
            for name, monitor in self._monitors().items()
            for part, array in monitor.arrays().items()
        }

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Become the state of `arrays`. Raises ValueError where it is of other checks."""
        parts: dict[str, dict[str, NDArray[Any]]] = {}
        for name, array in arrays.items():
            head, _, tail = name.rpartition(".")
            parts.setdefault(head, {})[tail] = array
        eras = parts.pop("era", {})
        if parts.keys() != self._monitors().keys() or eras.keys() != self._era.keys():
            raise ValueError(
                f"state is of the checks {', '.join(parts)}, must be {', '.join(self._monitors())}"
            )
        self._era = {what: int(era[0]) for what, era in eras.items()}
        for name, monitor in self._monitors().items():
            monitor.load(parts[name])

    def copy(self) -> Self:
        twin = self.__class__.__new__(self.__class__)
        twin.__dict__.update(self.__dict__)
        twin._era = dict(self._era)
        for name, value in self.__dict__.items():
            if isinstance(value, Monitor):
                setattr(twin, name, value.copy())
        twin.guardrails = [guardrail.copy() for guardrail in self.guardrails]
        return twin

    def _monitors(self) -> dict[str, Monitor]:
        """Every check with a state by its name in a checkpoint."""
        return {
            "assignment": self.assignment,
            "fidelity": self.fidelity,
            "drift": self.drift,
            "missingness": self.missingness,
            "delivery": self.delivery,
            "floors": self.floors,
            **{f"guardrail.{each.declared.metric}": each for each in self.guardrails},
        }

    def _is_new(self, what: str, era: int) -> bool:
        before, self._era[what] = self._era[what], era
        return before != era

    def _begin_decisions(self) -> None:
        limits = self._limits
        largest = 1.0 / (limits.rate_min * limits.floor)
        self.assignment = AssignmentAudit(self.models, self._level)
        self.floors = Floors(self.models, limits.rate_min, largest)

    def _begin_outcomes(self) -> None:
        models, level = self.models, self._level
        self.fidelity = Fidelity(models, self._features, level)
        self.drift = Drift(models)
        self.missingness = Missingness(models, level, declared=self._missing)
        self.delivery = Delivery(models, level)
        self.guardrails = [
            Guardrail(models, declared, level / len(self._declared)) for declared in self._declared
        ]
