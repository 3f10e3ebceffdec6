"""What a frozen rule is made of: kernels, immutable data with a pure function of a context.

A kernel is *row-stable*: a row gives the same bits alone and inside any batch, so a decision can
be recomputed without knowing which requests it shared a call with. A kernel encodes to a dict
of JSON types whose `kind` says who decodes it; decoding restores it bit for bit. A new kind is
one class and one registration.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, Self, TypeVar

from equipoise.policies.snapshot import Flags, Floats


class RateKernel(Protocol):
    """e(x): the probability with which a request is randomized."""

    kind: ClassVar[str]

    def rates(self, x: Floats) -> Floats:
        """(n,) probabilities for contexts x (n, d). The result may be shared: do not write it."""
        ...

    def clipped(self, low: float, high: float) -> RateKernel:
        """The kernel whose rates are this one's, moved into [low, high]."""
        ...

    def encode(self) -> dict[str, Any]:
        """A dict of JSON types with the `kind` and everything `decode` needs."""
        ...

    @classmethod
    def decode(cls, fields: Mapping[str, Any]) -> Self:
        """The kernel that `encode` wrote, bit for bit."""
        ...


class AssignmentKernel(Protocol):
    """pi(. | x): the probabilities with which a randomized request goes to each of K models."""

    kind: ClassVar[str]

    @property
    def models(self) -> int:
        """K."""
        ...

    def probabilities(self, x: Floats, eligible: Flags | None, floor: float) -> Floats:
        """(n, K) probabilities for contexts x (n, d), mixed with the floor.

        eligible: (n, K), or None where every model is. Rows sum to 1 over the eligible models; a
        row without one is all 0. The result may be shared: do not write it. ValueError where
        floor * K > 1.
        """
        ...

    def encode(self) -> dict[str, Any]:
        """A dict of JSON types with the `kind` and everything `decode` needs."""
        ...

    @classmethod
    def decode(cls, fields: Mapping[str, Any]) -> Self:
        """The kernel that `encode` wrote, bit for bit."""
        ...


RateClass = TypeVar("RateClass", bound=type[RateKernel])
AssignmentClass = TypeVar("AssignmentClass", bound=type[AssignmentKernel])

RATE_KERNELS: dict[str, type[RateKernel]] = {}
ASSIGNMENT_KERNELS: dict[str, type[AssignmentKernel]] = {}


def rate_kernel(cls: RateClass) -> RateClass:
    """Register a class of rate kernels under its `kind`."""
    if cls.kind in RATE_KERNELS:
        raise ValueError(f"rate kernel {cls.kind!r} is registered twice")
    RATE_KERNELS[cls.kind] = cls
    return cls


def assignment_kernel(cls: AssignmentClass) -> AssignmentClass:
    """Register a class of assignment kernels under its `kind`."""
    if cls.kind in ASSIGNMENT_KERNELS:
        raise ValueError(f"assignment kernel {cls.kind!r} is registered twice")
    ASSIGNMENT_KERNELS[cls.kind] = cls
    return cls


def decode_rate_kernel(fields: Mapping[str, Any]) -> RateKernel:
    """The rate kernel that wrote `fields`. ValueError where its kind is not known."""
    kind = fields.get("kind")
    if kind not in RATE_KERNELS:
        raise ValueError(f"rate kernel kind {kind!r} is not one of {sorted(RATE_KERNELS)}")
    return RATE_KERNELS[kind].decode(fields)


def decode_assignment_kernel(fields: Mapping[str, Any]) -> AssignmentKernel:
    """The assignment kernel that wrote `fields`. ValueError where its kind is not known."""
    kind = fields.get("kind")
    if kind not in ASSIGNMENT_KERNELS:
        known = sorted(ASSIGNMENT_KERNELS)
        raise ValueError(f"assignment kernel kind {kind!r} is not one of {known}")
    return ASSIGNMENT_KERNELS[kind].decode(fields)
