"""A yes or no."""

from __future__ import annotations

import numpy as np

from equipoise.agent.features.feature import Encoder, Feature
from equipoise.agent.features.values import Refused


class Boolean(Feature, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="boolean"):
    """true becomes 1, false 0. The numbers 0 and 1 are refused: they are no booleans."""

    def columns(self) -> list[str]:
        return [self.name]

    def encoder(self) -> Encoder:
        def encode(value: object, columns: list[float]) -> None:
            if not isinstance(value, bool | np.bool_):
                raise Refused("true or false")
            columns.append(1.0 if value else 0.0)

        return encode
