"""All moments of one experiment together: what estimators read and shards add up."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from equipoise.agent.moments.additive import Additive
from equipoise.agent.moments.arms import ArmMoments, RoutingMoments
from equipoise.agent.moments.codec import StateFormatError, decode, encode
from equipoise.agent.moments.scorer import ScorerMoments, SimulationMoments

GROUPS = 20
"""Hashed groups of units, for folds (4 groups each) and delete-one-group jackknives."""


@dataclass(frozen=True, slots=True)
class Dimensions:
    """Shape of an experiment: K models, d context features, p = len(phi) with its intercept.

    x is phi[1 : 1 + d]; the model-dependent rest (outputs and interactions) follows it.
    """

    models: int
    context: int
    features: int
    groups: int = GROUPS


@dataclass(slots=True)
class Moments:
    """Moments of METHOD section 2. `scorers` stacks three sources of G groups each."""

    dimensions: Dimensions
    scorers: ScorerMoments
    arms: ArmMoments
    simulation: SimulationMoments
    routing: RoutingMoments

    @classmethod
    def empty(cls, dimensions: Dimensions) -> Self:
        g, k, p = dimensions.groups, dimensions.models, dimensions.features
        return cls(
            dimensions=dimensions,
            scorers=ScorerMoments.empty(3 * g, k, p),
            arms=ArmMoments.empty(g, k, p, dimensions.context),
            simulation=SimulationMoments.empty(g, k, p),
            routing=RoutingMoments.empty(g),
        )

    @property
    def obs(self) -> ScorerMoments:
        """OBS rows, w = 1."""
        return self._source(0)

    @property
    def exp(self) -> ScorerMoments:
        """EXP rows, w = 1: a model's rows stand for the requests and times it was drawn at."""
        return self._source(1)

    @property
    def exp_weighted(self) -> ScorerMoments:
        """EXP rows, w = 1 / (e pi): a model's rows stand for all of the traffic."""
        return self._source(2)

    def _source(self, index: int) -> ScorerMoments:
        groups = self.dimensions.groups
        return self.scorers.part(slice(index * groups, (index + 1) * groups))

    def parts(self) -> dict[str, Additive]:
        """The kinds of sums by name."""
        return {name: getattr(self, name) for name in ("scorers", "arms", "simulation", "routing")}

    def copy(self) -> Self:
        copies: dict[str, Any] = {name: part.copy() for name, part in self.parts().items()}
        return replace(self, **copies)

    def __add__(self, other: Self) -> Self:
        if not isinstance(other, Moments):
            return NotImplemented
        if self.dimensions != other.dimensions:
            raise ValueError(
                f"moments of different shape cannot be added: {self.dimensions} and "
                f"{other.dimensions}"
            )
        theirs = other.parts()
        sums: dict[str, Any] = {name: part + theirs[name] for name, part in self.parts().items()}
        return replace(self, **sums)

    def to_bytes(self) -> bytes:
        """Versioned bytes of every array (see `codec`)."""
        arrays = {
            f"{part}.{name}": array
            for part, moments in self.parts().items()
            for name, array in moments.arrays().items()
        }
        return encode(arrays, asdict(self.dimensions))

    @classmethod
    def from_bytes(cls, state: bytes) -> Self:
        """Read `to_bytes`. Raises StateFormatError on damaged, foreign or newer bytes."""
        arrays, fields = decode(state)
        try:
            moments = cls.empty(Dimensions(**fields))
        except (TypeError, ValueError) as error:
            raise StateFormatError(f"state is not of moments: {error}") from error
        for part, target in moments.parts().items():
            for name, array in target.arrays().items():
                stored = arrays.get(f"{part}.{name}")
                if stored is None or stored.shape != array.shape or stored.dtype.kind != "f":
                    raise StateFormatError(
                        f"state lacks array {part}.{name}, float64 of {array.shape}"
                    )
                array[...] = stored
        return moments
