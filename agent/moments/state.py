"""All moments of one experiment together: what estimators read and shards add up."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Self, TypeVar

import numpy as np

from equipoise.agent.moments.additive import Additive
from equipoise.agent.moments.arms import ArmMoments, RoutingMoments
from equipoise.agent.moments.codec import StateFormatError, decode, encode
from equipoise.agent.moments.scorer import ScorerMoments, SimulationMoments
from equipoise.store.batches import Floats, Ints

A = TypeVar("A", bound=Additive)

GROUPS = 20
"""Hashed groups of units, for folds (4 groups each) and delete-one-group jackknives."""


@dataclass(frozen=True, slots=True)
class Dimensions:
    """Shape of an experiment: K models, d context features, p = len(phi) with its intercept.

    x is phi[1 : 1 + d]; the model-dependent rest (outputs and interactions) follows it.
    former: F, versions of models that were replaced, in the order they were.
    """

    models: int
    context: int
    features: int
    groups: int = GROUPS
    former: int = 0


@dataclass(frozen=True, slots=True)
class Renewal:
    """A model that became another version of itself.

    model: its position. era: the first of the new version; at: when that began, seconds; seq and
    number: the first log row and the first decision from then on.
    """

    model: int
    era: int
    at: float
    seq: int
    number: int


class Versions:
    """Which version of a model a row speaks of.

    A row's generation is how many renewals came before it. models: K. renewals: (F,) in order.
    """

    def __init__(self, models: int, renewals: tuple[Renewal, ...] = ()) -> None:
        self.models = models
        self.renewals = renewals

    @property
    def renewed(self) -> list[int]:
        """The models that became another version, each once."""
        return sorted({renewal.model for renewal in self.renewals})

    @property
    def era(self) -> int:
        """The era that the newest version began with, 0 without any."""
        return self.renewals[-1].era if self.renewals else 0

    def columns(self, generation: Ints, model: Ints, known: int) -> Ints:
        """(n,) columns of sums that know the first `known` renewals: the model itself for its
        newest version, K + j for the one that renewal j replaced."""
        columns = model.copy()
        for at in reversed(range(known)):
            former = (model == self.renewals[at].model) & (generation <= at)
            columns[former] = self.models + at
        return columns

    def logged(self, seq: int) -> int:
        """The generation of what is made when row `seq` is logged."""
        return sum(renewal.seq <= seq for renewal in self.renewals)

    def dated(self, seq: int, at: Floats) -> Ints:
        """(n,) generations of rows from `seq` on that were logged after the fact: by their dates,
        for a log is often brought in late."""
        dates = [renewal.at for renewal in self.renewals[: self.logged(seq)]]
        ends = np.maximum.accumulate(np.array(dates)) if dates else np.zeros(0)
        return np.searchsorted(ends, at, side="right")

    def decided(self, era: Ints) -> Ints:
        """(n,) generations of decisions, by their eras."""
        begins = np.array([renewal.era for renewal in self.renewals], dtype=np.int64)
        return np.searchsorted(begins, era, side="right")


@dataclass(slots=True)
class Moments:
    """Moments of METHOD section 2. `scorers` stacks three sources of G groups each.

    Where a model became another version, its column is that of the new one. What users do with
    outputs (slopes) does not depend on who made them, so the rows of the version before stay in
    `scorers`, in a column of their own after the K models, with an effect of its own; `former` has
    their arms (G, F), which only say how many rows those columns are worth.
    """

    dimensions: Dimensions
    scorers: ScorerMoments
    arms: ArmMoments
    simulation: SimulationMoments
    routing: RoutingMoments
    former: ArmMoments

    @classmethod
    def empty(cls, dimensions: Dimensions) -> Self:
        g, k, p = dimensions.groups, dimensions.models, dimensions.features
        return cls(
            dimensions=dimensions,
            scorers=ScorerMoments.empty(3 * g, k + dimensions.former, p),
            arms=ArmMoments.empty(g, k, p, dimensions.context),
            simulation=SimulationMoments.empty(g, k, p),
            routing=RoutingMoments.empty(g),
            former=ArmMoments.empty(g, dimensions.former, p, dimensions.context),
        )

    def renewed(self, model: int) -> Self:
        """The same after a model became another version: of that one nothing is known, nor of the
        routing, which may choose it. What the version before left becomes the newest column of
        the former ones."""
        scorers, arms = self.scorers.copy(), self.arms.copy()
        simulation = self.simulation.copy()
        for name, array in scorers.arrays().items():
            if name in ("count", "weight", "mean"):
                setattr(scorers, name, np.concatenate([array, array[:, [model]]], axis=1))
                getattr(scorers, name)[:, model] = 0.0
        former = joined_arms(self.former, _column(arms, model))
        for array in (*arms.arrays().values(), *simulation.arrays().values()):
            array[:, model] = 0.0
        dimensions = replace(self.dimensions, former=self.dimensions.former + 1)
        routing = RoutingMoments.empty(dimensions.groups)
        return type(self)(dimensions, scorers, arms, simulation, routing, former)

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

    @property
    def complete(self) -> float:
        """EXP rows of the present versions that have both outputs and reward."""
        return float(self.exp.count[:, : self.dimensions.models].sum())

    def _source(self, index: int) -> ScorerMoments:
        groups = self.dimensions.groups
        return self.scorers.part(slice(index * groups, (index + 1) * groups))

    def parts(self) -> dict[str, Additive]:
        """The kinds of sums by name."""
        names = ["scorers", "arms", "simulation", "routing"]
        if self.dimensions.former:
            names.append("former")
        return {name: getattr(self, name) for name in names}

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
        fields = asdict(self.dimensions)
        if not fields["former"]:
            # As it was before there were any: bytes of states are compared.
            del fields["former"]
        return encode(arrays, fields)

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


def joined_arms(one: A, other: A) -> A:
    """The columns of both, those of the first one first; arrays are (G, models, ...)."""
    theirs = other.arrays()
    return type(one)(
        *(np.concatenate([array, theirs[name]], axis=1) for name, array in one.arrays().items())
    )


def _column(part: A, model: int) -> A:
    """A copy of one model's column."""
    return type(part)(*(array[:, [model]] for array in part.arrays().values()))
