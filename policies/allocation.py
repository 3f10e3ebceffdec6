"""The allocation: the frozen pair of gate and assignment that a rule applies to every request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, Self

import numpy as np

from equipoise.policies.kernels import (
    AssignmentKernel,
    ConstantRate,
    ConstantShares,
    RateKernel,
    decode_assignment_kernel,
    decode_rate_kernel,
)
from equipoise.policies.kernels.context_forms import Cuts, best_of
from equipoise.policies.kernels.rates import ScoredRate
from equipoise.policies.kernels.shares import CutShares, check_floor, mix_floor, mix_one
from equipoise.policies.snapshot import Flags, Floats

_MOST_SETS = 1024
"""Of eligible models that an allocation remembers the probabilities of."""


@dataclass(frozen=True, slots=True, eq=False)
class Allocation:
    """Which requests to randomize (gate), and onto which model (assignment, above the floor).

    Immutable and row-stable: the same context gives the same bits alone and in any batch.
    gate_name, assignment_name: the policies that froze it, for people.
    """

    gate: RateKernel
    assignment: AssignmentKernel
    floor: float
    gate_name: str
    assignment_name: str
    _shared: tuple[ScoredRate, Cuts] | None = field(init=False, repr=False)
    _constant: dict[bytes | None, tuple[Floats, list[float]]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_floor(self.floor, self.assignment.models)
        object.__setattr__(self, "_constant", {})
        object.__setattr__(self, "_shared", _shared_cuts(self.gate, self.assignment))

    def allocate(self, x: Floats, eligible: Flags | None = None) -> tuple[Floats, Floats]:
        """Rates (n,) and probabilities (n, K) for contexts x (n, d).

        eligible: (n, K), or None where every model is. A row without an eligible model has
        probabilities 0 and is never randomized, whatever its rate. Results may be shared between
        calls: do not write them.
        """
        if self._shared is not None:
            # The dearest step of both, done once; the same bits as asking each of them.
            gate, cuts = self._shared
            each = cuts.each(x)
            return gate.of_scores(best_of(each)), mix_floor(each, eligible, self.floor)
        return self.gate.rates(x), self.assignment.probabilities(x, eligible, self.floor)

    def allocate_one(
        self, x: Floats, eligible: Flags | None = None
    ) -> tuple[float, Floats, list[float]]:
        """As `allocate` of one context x (1, d), the same bits: its rate, its probabilities (1, K),
        and these cumulated, K sums.

        What is the same for every context is worked out once for each set of eligible models.
        """
        if self._shared is not None:
            scored, cuts = self._shared
            each = cuts.of_one(x)
            total = sum(each)
            # Of a number that is none, NumPy's largest is none either.
            best = max(each) if total == total else total
            shared = mix_one(each, eligible, self.floor)
            return scored.of_score(best), np.array([shared]), list(accumulate(shared))
        rate = self.gate.rate_of(x)
        assignment = self.assignment
        if not isinstance(assignment, ConstantShares):
            shares = assignment.probabilities(x, eligible, self.floor)
            return rate, shares, list(accumulate(shares[0].tolist()))
        models = None if eligible is None else eligible.tobytes()
        kept = self._constant.get(models)
        if kept is None:
            shares = assignment.probabilities(x, eligible, self.floor)
            if len(self._constant) >= _MOST_SETS:
                self._constant.clear()
            kept = self._constant[models] = shares, list(accumulate(shares[0].tolist()))
        return rate, *kept

    def at_rate(self, rate: float) -> Self:
        """The same assignment for requests that are all randomized at this rate, in [0, 1]."""
        return replace(self, gate=ConstantRate(rate))

    def encode(self) -> dict[str, Any]:
        """A dict of JSON types; `decode` restores the allocation bit for bit."""
        return {
            "gate": self.gate.encode(),
            "assignment": self.assignment.encode(),
            "floor": self.floor,
            "gate_name": self.gate_name,
            "assignment_name": self.assignment_name,
        }

    @classmethod
    def decode(cls, fields: Mapping[str, Any]) -> Self:
        """The allocation that `encode` wrote. ValueError where a kernel's kind is not known."""
        return cls(
            gate=decode_rate_kernel(fields["gate"]),
            assignment=decode_assignment_kernel(fields["assignment"]),
            floor=float(fields["floor"]),
            gate_name=str(fields["gate_name"]),
            assignment_name=str(fields["assignment_name"]),
        )


def _shared_cuts(gate: RateKernel, assignment: AssignmentKernel) -> tuple[ScoredRate, Cuts] | None:
    """The gate and the cuts, where gate and assignment follow the same ones."""
    if not (isinstance(gate, ScoredRate) and isinstance(assignment, CutShares)):
        return None
    score, cuts = gate.score, assignment.cuts
    if not isinstance(score, Cuts) or score.models != cuts.models:
        return None
    same = np.array_equal(score.forms.forms, cuts.forms.forms)
    return (gate, cuts) if same and np.array_equal(score.forms.centre, cuts.forms.centre) else None
