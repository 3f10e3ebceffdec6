"""Declarations: structs whose fields say what they accept, read with every problem at once.

A limit on one value stands in the type of its field, `Annotated[float, bound(gt=0.0, le=1.0)]`;
what fields ask of each other is a method `faults() -> Iterator[Problem]` of the struct.

msgspec stops at the first wrong value. Someone who writes a configuration wants the whole list, so
`read` walks the struct types field by field: a wrong value becomes a `Problem` with its full key,
a value of a wrong type is replaced by a harmless one, and reading goes on. What `faults` says about
a value that was wrong itself, or what rests on such a value, is withheld.
"""

from __future__ import annotations

import sys
import types
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

import msgspec

from equipoise.agent.features.values import Problem, shown, suggestion

HUGE = sys.float_info.max


def bound(limit: str = "", fix: str = "", *, printable: bool = False, **ends: Any) -> msgspec.Meta:
    """What a field accepts.

    limit: the limit in words; left out, it is made of the ends. fix: what to do about a value
    beyond it. printable: whether a text must be. ends: gt, ge, le, pattern, min_length, max_length,
    as msgspec.Meta takes them. NaN is beyond any end.

    >>> problems = []
    >>> read(2, Annotated[float, bound(gt=0.0, le=1.0)], problems, "rate")
    2.0
    >>> print(*problems)
    rate: received 2, expected a number above 0, at most 1
    """
    extra = {"fix": fix, "printable": printable}
    return msgspec.Meta(description=limit or None, extra=extra, **ends)


def finite(fix: str = "") -> msgspec.Meta:
    """Bounds of any number but NaN and the infinities."""
    return bound("a finite number", fix, ge=-HUGE, le=HUGE)


@lru_cache(maxsize=1024)
def bound_of(kind: Any) -> tuple[Any, msgspec.Meta | None]:
    """A type without its own bound, and this, None where it has none."""
    parts = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    for at, part in enumerate(parts):
        if get_origin(part) is Annotated:
            bare = (*parts[:at], part.__origin__, *parts[at + 1 :])
            return Union[bare], part.__metadata__[0]  # noqa: UP007 - as many as there are
    return kind, None


def limit_of(kind: Any) -> str:
    """The bound of a type in words, "" where it has none."""
    bare, meta = bound_of(kind)
    if meta is None or meta.description is not None:
        return "" if meta is None else str(meta.description)
    noun = expected(bare)
    if meta.le is not None and meta.ge is not None:
        both = f"within ±{meta.le:g}" if meta.ge == -meta.le else f"from {meta.ge} to {meta.le}"
        return f"{noun} {both}"
    least = f"of {meta.ge:g} or more" if meta.gt is None else f"above {meta.gt:g}"
    return f"{noun} {least}" + ("" if meta.le is None else f", at most {meta.le:g}")


def _beyond(value: Any, kind: Any, key: str) -> Iterator[Problem]:
    """A problem if the value, whose type is right, is beyond the bound of its type."""
    _, meta = bound_of(kind)
    if meta is None or value is None:
        return
    extra = meta.extra or {}
    try:
        msgspec.convert(value, kind)
        accepted = not extra["printable"] or value.isprintable()
    except msgspec.ValidationError:
        accepted = False
    if not accepted:
        yield Problem(key, shown(value), limit_of(kind), extra["fix"])


def sound(struct: msgspec.Struct) -> bool:
    """Whether a struct, whose types are right, is within its bounds and has no faults."""
    values = [(getattr(struct, each.name), each.type) for each in _fields(type(struct))]
    for value, kind in values:
        if isinstance(value, list):
            values += [(entry, get_args(kind)[0]) for entry in value]
    return not any(any(_beyond(*each, "")) for each in values) and not any(_faults(struct))


def twice(
    key: str, names: Iterable[str], fix: str = "rename one", limit: str = "each name once"
) -> Iterator[Problem]:
    """A problem for each name that comes more than once."""
    for name, times in Counter(names).items():
        if times > 1:
            often = "twice" if times == 2 else f"{times} times"
            yield Problem(key, f"{shown(name)} {often}", limit, fix)


def unknown(
    key: str, name: str, choices: Iterable[str], also: tuple[str, ...] = (), limit: str = ""
) -> Iterator[Problem]:
    """A problem if a name is none of those that are known, which it lists unless limit is given."""
    names = list(choices)
    if name not in names:
        expected = limit or f"one of {', '.join(names)}"
        yield Problem(key, shown(name), expected, suggestion(name, names), also)


def unordered(
    low: float, high: float, fix: str = "", also: tuple[str, ...] = ("low",)
) -> Iterator[Problem]:
    """A problem if a range has nothing in it."""
    if not low < high:
        yield Problem("high", shown(high), f"a number above low, which is {shown(low)}", fix, also)


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
_HARMLESS: dict[Any, Any] = {str: "", int: 0, float: 0.0, bool: False, list: [], dict: {}}


def read(data: object, kind: Any, problems: list[Problem], key: str = "") -> Any:
    """`data` as a value of type `kind`, or WRONG; what is wrong is appended to `problems`.

    kind: a struct type, a union of structs with tags, a list of such, a table of such by text, or
    any type msgspec converts; each with or without bounds. A value beyond them is returned as it
    is, after a problem.
    key: where the data stands, the prefix of every problem's key.
    """
    bare, _ = bound_of(kind)
    value = _read_bare(data, bare, problems, key)
    if value is not WRONG:
        problems += _beyond(value, kind, key)
    return value


def _read_bare(data: object, kind: Any, problems: list[Problem], key: str) -> Any:
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
    other_keys = [name for name in data if not isinstance(name, str)]
    problems += [Problem(_join(key, name), shown(name), "text as a key") for name in other_keys]
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
            problems.append(Problem(where, "nothing", expected(bound_of(field.type)[0]), "add it"))
            value = WRONG
        else:
            continue
        if value is not WRONG:
            values[field.name] = value
        elif field.required:
            bare, _ = bound_of(field.type)
            values[field.name] = _HARMLESS[get_origin(bare) or bare]
            complete = False
    built = struct(**values)
    faulty = [problem.key for problem in problems[start:]]
    problems += _verdicts(built, faulty, key)
    return built if complete else WRONG


def _verdicts(built: msgspec.Struct, faulty: list[str], key: str) -> list[Problem]:
    """What a struct finds wrong in itself, less what rests on what is wrong already."""
    verdicts: list[Problem] = []
    for problem in _faults(built):
        where = _join(key, problem.key) if problem.key else key
        rests_on = [_join(key, other) for other in problem.also]
        unreliable = [*faulty, *(earlier.key for earlier in verdicts if earlier.key != where)]
        if where in faulty or any(_within(other, unreliable) for other in rests_on):
            continue
        verdicts.append(Problem(where, problem.received, problem.expected, problem.fix))
    return verdicts


def _faults(struct: msgspec.Struct) -> Iterable[Problem]:
    return getattr(struct, "faults", tuple)()


def _within(key: str, faulty: list[str]) -> bool:
    return any(one == key or one.startswith((f"{key}.", f"{key}[")) for one in faulty)


def _join(key: str, name: object) -> str:
    part = name if isinstance(name, str) and len(name) <= 60 and name.isprintable() else shown(name)
    return f"{key}.{part}" if key else part
