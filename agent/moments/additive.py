"""What all moments share: copies, comparison bit for bit, access by name."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, ClassVar, Self

from equipoise.store.batches import Floats


class Additive:
    """Base of the moment classes: dataclasses whose fields are float64 arrays.

    `a + b` gives the moments of both sets of rows; the empty moments are its identity.
    `update` adds rows in place: one owner (the agent's fold) updates, everyone else gets copies.
    """

    __slots__ = ()
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def arrays(self) -> dict[str, Floats]:
        """Field name -> array, in the order of declaration; views, not copies."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def require_same_shape(self, other: object) -> None:
        """Raise TypeError or ValueError where `other` cannot be added to these moments.

        numpy would spread a single group or model over all the others.
        """
        if not isinstance(other, type(self)):
            raise TypeError(f"{type(self).__name__} and {type(other).__name__} cannot be added")
        theirs = other.arrays()
        for name, array in self.arrays().items():
            if array.shape != theirs[name].shape:
                raise ValueError(
                    f"moments of different shape cannot be added: {name} has {array.shape} and "
                    f"{theirs[name].shape}"
                )

    def copy(self) -> Self:
        return type(self)(*(array.copy() for array in self.arrays().values()))

    def same_bits(self, other: Self) -> bool:
        """Whether every array of both has the same shape and bytes."""
        pairs = zip(self.arrays().values(), other.arrays().values(), strict=True)
        return all(a.shape == b.shape and a.tobytes() == b.tobytes() for a, b in pairs)
