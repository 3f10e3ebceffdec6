"""Reading declared data into structs with every problem at once.

msgspec stops at the first wrong value. Someone who writes a configuration wants the whole list, so
`read` walks the struct types field by field: a wrong value becomes a `Problem` with its full key,
a harmless value takes its place, and reading goes on. A struct may have a method
`faults() -> Iterator[Problem]` that judges values whose types are right; its verdicts on values
that were wrong themselves, or that rest on such values, are withheld.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, Literal, Union, get_args, get_origin

import msgspec

from equipoise.agent.features.problems import Problem, shown, suggestion


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
