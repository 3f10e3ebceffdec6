"""The registries of gates and assignments, and the names by which policies are asked for.

A policy is a gate and an assignment, each a pure function from a snapshot to a kernel:

    @assignment("cheapest", uses_estimate=False)
    def cheapest(snapshot: Snapshot) -> AssignmentKernel:
        return ConstantShares(snapshot.costs == snapshot.costs.min())

is all it takes: `policy("cheapest")` is fixed-rate x cheapest, `policy("uncertainty+cheapest")`
another pair. The battery of laws in the tests runs over everything that is registered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from equipoise.policies.allocation import Allocation
from equipoise.policies.kernels import AssignmentKernel, RateKernel
from equipoise.policies.snapshot import Snapshot

GateFunction: TypeAlias = Callable[[Snapshot], RateKernel]
AssignmentFunction: TypeAlias = Callable[[Snapshot], AssignmentKernel]


@dataclass(frozen=True, slots=True)
class Gate:
    """A registered gate: which requests to randomize.

    uses_estimate: whether it reads anything that rests on an estimator family (values,
    covariance, scorer, certified). uses_contexts: whether it reads the contexts of recent traffic
    too. idea: what it does, in a line.
    """

    name: str
    function: GateFunction
    uses_estimate: bool
    idea: str = ""
    uses_contexts: bool = True


@dataclass(frozen=True, slots=True)
class Assignment:
    """A registered assignment: onto which model. uses_estimate, uses_contexts, idea as for a gate.

    baseline: whether it is there to be compared with: what a library or a textbook serves.
    """

    name: str
    function: AssignmentFunction
    uses_estimate: bool
    idea: str = ""
    baseline: bool = False
    uses_contexts: bool = True


GATES: dict[str, Gate] = {}
ASSIGNMENTS: dict[str, Assignment] = {}
PRESETS: dict[str, tuple[str, str]] = {
    "uniform": ("fixed-rate", "uniform"),
    "neyman": ("fixed-rate", "neyman"),
    "thompson": ("fixed-rate", "thompson"),
    "top-two": ("fixed-rate", "top-two"),
    "track-and-stop": ("fixed-rate", "track-and-stop"),
    "active": ("active", "uniform"),
    "contrast": ("contrast", "contrast"),
    "certify": ("fixed-rate", "certify"),
}
_DEFAULT_GATE = "fixed-rate"


def gate(
    name: str, *, uses_estimate: bool = True, uses_contexts: bool = True, idea: str = ""
) -> Callable[[GateFunction], GateFunction]:
    """Register a pure function from snapshot to rate kernel as the gate `name`.

    idea: what it does, for listings; the first line of the function's docstring unless given.
    """
    _check_name("gate", name, name in GATES)

    def register(function: GateFunction) -> GateFunction:
        told = idea or _first_line(function)
        GATES[name] = Gate(name, function, uses_estimate, told, uses_contexts)
        return function

    return register


def assignment(
    name: str,
    *,
    uses_estimate: bool = True,
    uses_contexts: bool = True,
    idea: str = "",
    baseline: bool = False,
) -> Callable[[AssignmentFunction], AssignmentFunction]:
    """Register a pure function from snapshot to assignment kernel as the assignment `name`; idea as
    for a gate, baseline as in `Assignment`."""
    _check_name("assignment", name, name in ASSIGNMENTS)

    def register(function: AssignmentFunction) -> AssignmentFunction:
        told = idea or _first_line(function)
        ASSIGNMENTS[name] = Assignment(name, function, uses_estimate, told, baseline, uses_contexts)
        return function

    return register


@dataclass(frozen=True, slots=True)
class Policy:
    """A gate and an assignment."""

    gate: Gate
    assignment: Assignment

    @property
    def name(self) -> str:
        """The pair as `gate+assignment`."""
        return f"{self.gate.name}+{self.assignment.name}"

    @property
    def uses_estimate(self) -> bool:
        """Whether gate or assignment reads what an estimator family says."""
        return self.gate.uses_estimate or self.assignment.uses_estimate

    @property
    def uses_contexts(self) -> bool:
        """Whether gate or assignment reads the contexts of recent traffic; one that reads no
        estimate reads none."""
        parts = self.gate, self.assignment
        return any(part.uses_estimate and part.uses_contexts for part in parts)

    def freeze(self, snapshot: Snapshot) -> Allocation:
        """The allocation this policy wants, within the snapshot's limits.

        Pure: the same snapshot gives the same bits. ValueError where a limit is impossible.
        """
        limits = snapshot.limits
        if not 0.0 <= limits.rate_min <= limits.rate_max <= 1.0:
            raise ValueError(
                f"rate_min is {limits.rate_min} and rate_max is {limits.rate_max}, "
                "expected 0 <= rate_min <= rate_max <= 1"
            )
        shares = self.assignment.function(snapshot)
        if shares.models != len(snapshot.models):
            raise ValueError(
                f"assignment {self.assignment.name!r} is for {shares.models} models, "
                f"expected {len(snapshot.models)}"
            )
        return Allocation(
            gate=self.gate.function(snapshot).clipped(limits.rate_min, limits.rate_max),
            assignment=shares,
            floor=limits.floor,
            gate_name=self.gate.name,
            assignment_name=self.assignment.name,
        )


def policy(name: str) -> Policy:
    """The policy called `name`: a preset, `gate+assignment`, or an assignment at the fixed rate.

    ValueError with the names that exist where it is none of these.
    """
    if name in PRESETS:
        gate_name, assignment_name = PRESETS[name]
    elif "+" in name:
        gate_name, _, assignment_name = name.partition("+")
    else:
        gate_name, assignment_name = _DEFAULT_GATE, name
    if gate_name not in GATES or assignment_name not in ASSIGNMENTS:
        raise ValueError(
            f"policy {name!r} is not known; presets: {', '.join(PRESETS)}; or gate+assignment "
            f"with gates: {', '.join(sorted(GATES))}; assignments: {', '.join(sorted(ASSIGNMENTS))}"
        )
    return Policy(GATES[gate_name], ASSIGNMENTS[assignment_name])


def describe() -> list[dict[str, str]]:
    """A row per preset, then per gate and assignment: its name, what it does, what it needs."""

    def needs(part: Gate | Assignment | Policy) -> str:
        return "an estimator family" if part.uses_estimate else ""

    presets = [
        {
            "name": name,
            "kind": f"policy, {policy(name).name}",
            "what it does": _idea(policy(name)),
            "needs": needs(policy(name)),
        }
        for name in PRESETS
    ]
    parts: list[tuple[str, Gate | Assignment]] = [
        *(("gate", each) for _, each in sorted(GATES.items())),
        *(("assignment", each) for _, each in sorted(ASSIGNMENTS.items())),
    ]
    return presets + [
        {"name": each.name, "kind": kind, "what it does": each.idea, "needs": needs(each)}
        for kind, each in parts
    ]


def _idea(policy: Policy) -> str:
    if policy.gate.name == _DEFAULT_GATE:
        return policy.assignment.idea
    return f"{policy.assignment.idea}; {policy.gate.idea}"


def _first_line(function: Callable[..., object]) -> str:
    return (function.__doc__ or "").partition("\n")[0]


def _check_name(kind: str, name: str, taken: bool) -> None:
    if taken:
        raise ValueError(f"{kind} {name!r} is registered twice")
    if not name or "+" in name or "," in name:
        raise ValueError(f"{kind} is called {name!r}, expected a name without '+' and ','")
