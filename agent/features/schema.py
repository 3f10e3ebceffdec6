"""The feature schema: named features as declared, read from TOML, with a hash.

msgspec stops at the first wrong value. Someone who writes a configuration wants the whole list, so
`read` walks the struct types field by field: a wrong value becomes a `Problem` with its full key,
a harmless value takes its place, and reading goes on. A struct may have a method
`faults() -> Iterator[Problem]` that judges values whose types are right; its verdicts on values
that were wrong themselves, or that rest on such values, are withheld.
"""

from __future__ import annotations

import types
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final, Literal, Self, TypeAlias, Union, get_args, get_origin

import msgspec

from equipoise.agent.features.kinds import Boolean, Category, Number, Text, Vector
from equipoise.agent.features.values import Problem, SchemaError, listed, shown, suggestion


class _Wrong:
    """The type of WRONG."""


WRONG: Final = _Wrong()
"""What `read` returns for data that is no value of the type."""

_EXPECTED: dict[Any, str] = {
    float: "a number",
    int: "a whole number",
    bool: "true or false",
    str: "text",
}
_HARMLESS: dict[Any, Any] = {str: "", int: 0, float: 0.0, bool: False, list: []}


def read(data: object, kind: Any, problems: list[Problem], key: str = "") -> Any:
    """`data` as a value of type `kind`, or WRONG; what is wrong is appended to `problems`.

    kind: a struct type, a union of structs with tags, a list of such, a table of such by text, or
    any type msgspec converts.
    key: where the data stands, the prefix of every problem's key.
    """
    if get_origin(kind) is list:
        return _read_list(data, get_args(kind)[0], problems, key)
    if get_origin(kind) is dict:
        return _read_table(data, get_args(kind)[1], problems, key)
    structs = _structs(kind)
    if data is None and structs and types.NoneType in get_args(kind):
        return None
    if len(structs) > 1:
        return _read_tagged(data, structs, problems, key)
    if structs:
        return _read_struct(data, structs[0], problems, key)
    try:
        return msgspec.convert(data, kind)
    # A lone surrogate, which is no text, ends in a ValueError.
    except (msgspec.ValidationError, ValueError):
        problems.append(Problem(key, shown(data), expected(kind)))
        return WRONG


def expected(kind: Any) -> str:
    """What a message says is expected where a value of the type belongs."""
    if kind in _EXPECTED:
        return _EXPECTED[kind]
    origin = get_origin(kind)
    if origin is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if origin in (Union, types.UnionType):
        parts = [part for part in get_args(kind) if part is not types.NoneType]
        return " or ".join(map(expected, parts))
    return "a list" if origin is list else "a table"


@lru_cache
def _fields(struct: type[msgspec.Struct]) -> tuple[msgspec.structs.FieldInfo, ...]:
    return msgspec.structs.fields(struct)


def _structs(kind: Any) -> list[type[msgspec.Struct]]:
    parts = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    return [part for part in parts if isinstance(part, type) and issubclass(part, msgspec.Struct)]


def _read_list(data: object, kind: Any, problems: list[Problem], key: str) -> Any:
    if not isinstance(data, list | tuple):
        problems.append(Problem(key, shown(data), "a list"))
        return WRONG
    items = [read(item, kind, problems, f"{key}[{at}]") for at, item in enumerate(data)]
    return [item for item in items if item is not WRONG]


def _read_table(data: object, kind: Any, problems: list[Problem], key: str) -> Any:
    if not isinstance(data, Mapping):
        problems.append(Problem(key, shown(data), "a table"))
        return WRONG
    wrong = [name for name in data if not isinstance(name, str)]
    problems += [Problem(_join(key, name), shown(name), "text as a key") for name in wrong]
    items = {
        name: read(value, kind, problems, _join(key, name))
        for name, value in data.items()
        if isinstance(name, str)
    }
    return {name: value for name, value in items.items() if value is not WRONG}


def _read_tagged(
    data: object, structs: list[type[msgspec.Struct]], problems: list[Problem], key: str
) -> Any:
    if not isinstance(data, Mapping):
        problems.append(Problem(key, shown(data), "a table"))
        return WRONG
    tag_field = str(structs[0].__struct_config__.tag_field)
    tags = {str(struct.__struct_config__.tag): struct for struct in structs}
    tag = data.get(tag_field)
    if not isinstance(tag, str) or tag not in tags:
        limit = f"one of {', '.join(tags)}"
        problems.append(Problem(_join(key, tag_field), shown(tag), limit))
        return WRONG
    fields = {name: value for name, value in data.items() if name != tag_field}
    return _read_struct(fields, tags[tag], problems, key)


def _read_struct(
    data: object, struct: type[msgspec.Struct], problems: list[Problem], key: str
) -> Any:
    if not isinstance(data, Mapping):
        problems.append(Problem(key, shown(data), "a table"))
        return WRONG
    start = len(problems)
    fields = _fields(struct)
    names = [field.name for field in fields]
    for name in data:
        if name not in names:
            received = shown(data[name])
            problems.append(
                Problem(_join(key, name), received, "no such key", suggestion(name, names))
            )
    values: dict[str, Any] = {}
    complete = True
    for field in fields:
        where = _join(key, field.name)
        if field.name in data:
            value = read(data[field.name], field.type, problems, where)
        elif field.required:
            problems.append(Problem(where, "nothing", expected(field.type), "add it"))
            value = WRONG
        else:
            continue
        if value is not WRONG:
            values[field.name] = value
        elif field.required:
            values[field.name] = _HARMLESS[get_origin(field.type) or field.type]
            complete = False
    built = struct(**values)
    wrong = [problem.key for problem in problems[start:]]
    problems += _verdicts(built, wrong, key)
    return built if complete else WRONG


def _verdicts(built: msgspec.Struct, wrong: list[str], key: str) -> list[Problem]:
    """The problems that a struct finds in itself, less those that rest on what is wrong already."""
    found: list[Problem] = []
    for problem in getattr(built, "faults", tuple)():
        where = _join(key, problem.key) if problem.key else key
        rests_on = [_join(key, other) for other in problem.also]
        known = [*wrong, *(earlier.key for earlier in found if earlier.key != where)]
        if where in wrong or any(_within(other, known) for other in rests_on):
            continue
        found.append(Problem(where, problem.received, problem.expected, problem.fix))
    return found


def _within(key: str, wrong: list[str]) -> bool:
    return any(one == key or one.startswith((f"{key}.", f"{key}[")) for one in wrong)


def _join(key: str, name: object) -> str:
    part = name if isinstance(name, str) and len(name) <= 60 and name.isprintable() else shown(name)
    return f"{key}.{part}" if key else part


AnyFeature: TypeAlias = Number | Boolean | Category | Text | Vector

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
        side: [{name: value for name, value in each.items() if keep(name, value)} for each in found]
        for side, found in schema.items()
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
            counts = Counter(feature.name for feature in features)
            for name in (name for name, count in counts.items() if count > 1):
                yield Problem(side, f"{shown(name)} twice", "each feature name once", "rename one")
            for feature in features:
                # The columns of a faulty feature mean nothing, and may be endlessly many.
                names = [] if any(feature.faults()) else feature.columns()
                twice = next((name for name in names if name in columns), None)
                if twice is not None:
                    limit = "each column name once, context and outputs together"
                    yield Problem(side, f"{shown(twice)} twice", limit, "rename one of the two")
                columns.update(dict.fromkeys(names))
        size = 1 + len(columns) + len(self.interactions)
        if size > MOST_COLUMNS:
            limit = f"at most {MOST_COLUMNS} columns with intercept and interactions"
            yield Problem("", f"{size} columns", limit, "shorten the vectors or drop features")
        yield from self._interaction_faults(list(columns))

    def _interaction_faults(self, columns: list[str]) -> Iterator[Problem]:
        known, pairs = set(columns), set()
        for pair in self.interactions:
            received = f"[{listed(map(shown, pair))}]"
            unordered = tuple(sorted(pair))
            if len(pair) != 2:
                limit = "pairs of column names"
                yield Problem("interactions", received, limit, also=("interactions",))
            elif unordered in pairs:
                yield Problem("interactions", f"{received} twice", "each pair once", "remove one")
            for name in dict.fromkeys(pair):
                if name not in known:
                    received_name = f"{shown(name)} in {received}"
                    fix, rests_on = suggestion(name, columns), ("context", "outputs")
                    limit = "names of columns"
                    yield Problem("interactions", received_name, limit, fix, rests_on)
            pairs.add(unordered)

    @classmethod
    def _checked(cls, data: object) -> Self:
        problems: list[Problem] = []
        schema = read(data, cls, problems)
        if problems or schema is WRONG:
            raise SchemaError([str(problem) for problem in problems])
        checked: Self = schema
        return checked
