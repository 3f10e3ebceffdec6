"""The feature schema: named context and output features to fixed-length arrays.

The transform is declared in the configuration and frozen in the store: it learns nothing from
data, so that sums taken under it stay meaningful, and a changed schema is another schema.
"""

from __future__ import annotations

from equipoise.agent.features.kinds import Boolean, Category, Ngrams, Number, Text, Vector
from equipoise.agent.features.schema import FeatureSchema
from equipoise.agent.features.transform import Row, Transform
from equipoise.agent.features.values import FeatureError, Problem, SchemaError

__all__ = [
    "Boolean",
    "Category",
    "FeatureError",
    "FeatureSchema",
    "Ngrams",
    "Number",
    "Problem",
    "Row",
    "SchemaError",
    "Text",
    "Transform",
    "Vector",
]
