"""The feature schema: named context and output features as declared, with a hash."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from typing import Any, Self, TypeAlias

import msgspec

from equipoise.agent.features.declarations import WRONG, read, sound, twice
from equipoise.agent.features.kinds import Boolean, Category, Ngrams, Number, Text, Vector
from equipoise.agent.features.values import Problem, SchemaError, listed, shown, suggestion

AnyFeature: TypeAlias = Number | Boolean | Category | Text | Ngrams | Vector


def sound_columns(feature: AnyFeature) -> list[str]:
    """The columns of a feature; none of a faulty one: they mean nothing and may be endless."""
    return feature.columns() if sound(feature) else []


TRANSFORM = b"features 1"
"""Version of the transforms themselves; a feature computed in another way is another schema."""
MOST_COLUMNS = 1024
"""Largest p: the moments take memory, and every event time, in its square."""
_AT_THE_DOOR = {"limit": None, "winsorize": False}
"""Keys of a feature that say which rows are taken, and what they are if nothing is declared."""


def without_limits(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema as tables and lists, less what only says which rows are taken."""
    return _less(schema, lambda name, _: name not in _AT_THE_DOOR)


def without_defaults(schema: dict[str, Any]) -> dict[str, Any]:
    """The same, less those of these keys that say nothing: texts of older versions lack them."""
    return _less(
        schema, lambda name, value: name not in _AT_THE_DOOR or value != _AT_THE_DOOR[name]
    )


def _less(schema: dict[str, Any], keep: Callable[[str, Any], bool]) -> dict[str, Any]:
    sides = {
        side: [
            {name: value for name, value in each.items() if keep(name, value)} for each in features
        ]
        for side, features in schema.items()
        if side in ("context", "outputs")
    }
    return {**schema, **sides}


def _text(data: dict[str, Any]) -> str:
    return msgspec.json.encode(data, order="sorted").decode()


class FeatureSchema(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Context features x, output features y, and products of two of their columns.

    context, outputs: declared features; no two columns of either may have the same name.
    interactions: pairs of column names, such as [["length", "price"]].

    >>> schema = FeatureSchema.vectors(["length", "price"], ["words"])
    >>> [feature.name for feature in schema.context]
    ['length', 'price']
    """

    context: list[AnyFeature] = []
    outputs: list[AnyFeature] = []
    interactions: list[list[str]] = []

    @classmethod
    def vectors(cls, context_names: Iterable[str], output_names: Iterable[str]) -> Self:
        """Plain numbers under these names: for benchmarks, whose features are numbers already."""
        return cls(
            context=[Number(name=name) for name in context_names],
            outputs=[Number(name=name) for name in output_names],
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read `to_json`. Raises SchemaError with every problem."""
        try:
            data = msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise SchemaError([f"this is not JSON: {error}"]) from None
        return cls._checked(data)

    def checked(self) -> Self:
        """An equal schema that owns its lists and holds floats where numbers were declared.

        Raises SchemaError with every problem.
        """
        try:
            data = msgspec.to_builtins(self)
        except (TypeError, ValueError, RecursionError) as error:
            raise SchemaError([f"a declaration holds what no file could: {error}"]) from None
        return self._checked(data)

    def to_json(self) -> str:
        """Canonical text: equal schemas have equal texts. Raises SchemaError as `checked` does."""
        return _text(without_defaults(msgspec.to_builtins(self.checked())))

    @property
    def schema_hash(self) -> str:
        """16 hexadecimal digits that differ wherever rows would become other numbers.

        What rows are taken at all (`limit`, `winsorize`) is no part of it: that may change while
        an experiment runs.
        """
        text = _text(without_limits(msgspec.to_builtins(self.checked())))
        return blake2b(text.encode(), digest_size=8, person=TRANSFORM).hexdigest()

    def context_columns(self) -> list[str]:
        """Names of the columns of x."""
        return [name for feature in self.context for name in feature.columns()]

    def output_columns(self) -> list[str]:
        """Names of the columns of y."""
        return [name for feature in self.outputs for name in feature.columns()]

    def faults(self) -> Iterator[Problem]:
        """Everything wrong with the schema whose single features are right."""
        columns: dict[str, None] = {}
        for side, features in (("context", self.context), ("outputs", self.outputs)):
            declared = (feature.name for feature in features)
            yield from twice(side, declared, limit="each feature name once")
            for feature in features:
                names = sound_columns(feature)
                clash = next((name for name in names if name in columns), None)
                if clash is not None:
                    limit = "each column name once, context and outputs together"
                    yield Problem(side, f"{shown(clash)} twice", limit, "rename one of the two")
                columns.update(dict.fromkeys(names))
        size = 1 + len(columns) + len(self.interactions)
        if size > MOST_COLUMNS:
            limit = f"at most {MOST_COLUMNS} columns with intercept and interactions"
            yield Problem("", f"{size} columns", limit, "shorten the vectors or drop features")
        yield from self._interaction_faults(list(columns))

    def _interaction_faults(self, columns: list[str]) -> Iterator[Problem]:
        names, pairs = set(columns), set()
        for pair in self.interactions:
            received = f"[{listed(map(shown, pair))}]"
            unordered = tuple(sorted(pair))
            if len(pair) != 2:
                limit = "pairs of column names"
                yield Problem("interactions", received, limit, also=("interactions",))
            elif unordered in pairs:
                yield Problem("interactions", f"{received} twice", "each pair once", "remove one")
            for name in dict.fromkeys(pair):
                if name not in names:
                    fix, rests_on = suggestion(name, columns), ("context", "outputs")
                    where = f"{shown(name)} in {received}"
                    yield Problem("interactions", where, "names of columns", fix, rests_on)
            pairs.add(unordered)

    @classmethod
    def _checked(cls, data: object) -> Self:
        problems: list[Problem] = []
        schema = read(data, cls, problems)
        if problems or schema is WRONG:
            raise SchemaError([str(problem) for problem in problems])
        checked: Self = schema
        return checked
