"""The compiled feature schema: rows to arrays, arrays to phi."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from equipoise.agent.features.rows import RowEncoder
from equipoise.agent.features.schema import FeatureSchema
from equipoise.store.batches import Floats

Row: TypeAlias = Mapping[str, Any] | Sequence[float] | Floats


class Transform:
    """A feature schema made ready for use; build it once.

    d, q: columns of the context features x and of the output features y; p = 1 + d + q + the
    number of interactions, the length of phi with its intercept.
    context_names (d), output_names (q), phi_names (p - 1): the columns in order; an interaction is
    called `left*right`.
    schema: an own copy of the schema; schema_hash: its hash.

    Raises SchemaError where the schema is wrong.

    >>> from equipoise.agent.features import FeatureSchema
    >>> transform = Transform(FeatureSchema.vectors(["length"], ["words", "price"]))
    >>> x = transform.context_rows([{"length": 3}, [4.0]])
    >>> y = transform.output_rows([{"words": 1, "price": 0.5}, {"words": 2, "price": 0}])
    >>> transform.phi(x, y)
    array([[3. , 1. , 0.5],
           [4. , 2. , 0. ]])
    """

    def __init__(self, schema: FeatureSchema) -> None:
        self.schema = schema.checked()
        self.schema_hash = self.schema.schema_hash
        self._context = RowEncoder("context", self.schema.context)
        self._outputs = RowEncoder("outputs", self.schema.outputs)
        self.context_names = self._context.names
        self.output_names = self._outputs.names
        self.d = self._context.width
        self.q = self._outputs.width
        pairs = self.schema.interactions
        self.p = 1 + self.d + self.q + len(pairs)
        columns = (*self.context_names, *self.output_names)
        self.phi_names = (*columns, *(f"{left}*{right}" for left, right in pairs))
        position = {name: at for at, name in enumerate(columns)}
        self._left = np.array([position[left] for left, _ in pairs], dtype=np.intp)
        self._right = np.array([position[right] for _, right in pairs], dtype=np.intp)

    def context_rows(self, rows: Sequence[Row] | Floats) -> Floats:
        """(n, d) of n rows: mappings of names to values, or vectors that are transformed already.

        Raises FeatureError with the problems (at most five are listed) of the first wrong row.
        """
        return self._context.rows(rows)

    def output_rows(self, rows: Sequence[Row] | Floats) -> Floats:
        """(n, q) of n rows, as `context_rows`."""
        return self._outputs.rows(rows)

    def check_context(self, x: object) -> Floats:
        """An array (n, d) of transformed features as float64; FeatureError if it is none.

        Every number must be finite and within the limit of its column. The array itself is
        returned, not a copy, where it is float64 already.
        """
        return self._context.check(x)

    def check_outputs(self, y: object, absent: bool = False) -> Floats:
        """(n, q), as `check_context`. absent: rows that are NaN throughout are let through."""
        return self._outputs.check(y, absent)

    def phi(self, x: Floats, y: Floats) -> Floats:
        """(n, d), (n, q) -> (n, p - 1): [x, y, products], phi without its intercept; a new array.

        A row of the result depends on its own row alone, to the bit. NaN stays NaN.
        """
        columns = np.concatenate((x, y), axis=1)
        return columns if not len(self._left) else self._with_products(columns)

    def phi_table(self, x: Floats, y: Floats) -> Floats:
        """(C, d), (C, K, q) -> (C, K, p - 1): phi of C contexts under each of K models."""
        contexts, models, _ = y.shape
        columns = np.empty((contexts, models, self.d + self.q))
        columns[:, :, : self.d] = x[:, np.newaxis]
        columns[:, :, self.d :] = y
        return columns if not len(self._left) else self._with_products(columns)

    def _with_products(self, columns: Floats) -> Floats:
        width = columns.shape[-1]
        phi = np.empty((*columns.shape[:-1], self.p - 1))
        phi[..., :width] = columns
        left, right = columns.take(self._left, axis=-1), columns.take(self._right, axis=-1)
        np.multiply(left, right, out=phi[..., width:])
        return phi
