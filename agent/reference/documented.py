"""What the fields of a struct are, read from its types and its docstring.

A docstring says of a field what it means after its name and a colon, at the start of a sentence:

    requests: randomized requests. money: USD for the answers to them. low, high: the range.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from dataclasses import dataclass
from inspect import cleandoc
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

from equipoise.agent.features.declarations import expected, limit_of
from equipoise.store.records import Features, Id, Seconds

_FEATURES = "values by name, or a list of numbers"


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a struct. accepts: its values in words. default: as JSON, None where the field is
    required. meaning: a sentence, "" where the docstring says nothing of it."""

    name: str
    accepts: str
    default: str | None
    meaning: str
    kind: Any


def fields_of(struct: type[msgspec.Struct]) -> list[Field]:
    """The fields of a struct in their order.

    >>> from equipoise.agent.config.parts import UnitsConfig
    >>> [field] = fields_of(UnitsConfig)
    >>> field.name, field.accepts, field.default
    ('ttl', 'seconds, more than 0', None)
    """
    _, meanings = described(struct)
    fields = []
    for field in msgspec.structs.fields(struct):
        default = None
        if not field.required:
            factory = field.default_factory
            value = field.default if factory is msgspec.NODEFAULT else factory()
            # What is unset is left out, and has no default to show.
            default = None if value is msgspec.UNSET else msgspec.json.encode(value).decode()
        meaning = meanings.get(field.name, "")
        fields.append(Field(field.name, accepted(field.type), default, meaning, field.type))
    return fields


def described(struct: type[msgspec.Struct]) -> tuple[str, dict[str, str]]:
    """What a docstring says of the struct as a whole, and of each of its fields.

    Fields that a base class has are described there, unless the struct describes them anew.
    """
    names = struct.__struct_fields__
    about, meanings = _read(struct.__doc__ or "", names)
    for base in struct.__mro__[1:]:
        if isinstance(base, type) and issubclass(base, msgspec.Struct) and base.__doc__:
            meanings = _read(base.__doc__, names)[1] | meanings
    return about, meanings


def _read(doc: str, names: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    either = "|".join(map(re.escape, names)) or "(?!)"
    start = re.compile(rf"(?:^|(?<=[.;:)] ))((?:{either})(?:, (?:{either}))*): ")
    about: list[str] = []
    meanings: dict[str, str] = {}
    for paragraph in re.split(r"\n\s*\n", cleandoc(doc)):
        text = " ".join(paragraph.split())
        if text.startswith(">>>"):
            continue
        before, *rest = start.split(text)
        about += [before.strip()] if before.strip() else []
        for listed, meaning in zip(rest[::2], rest[1::2], strict=True):
            for name in listed.split(", "):
                meanings[name] = sentence(meaning)
    return " ".join(about), meanings


def sentence(text: str) -> str:
    """The text with a capital at its start and a full stop at its end.

    >>> sentence("USD per request; ")
    'USD per request.'
    """
    text = text.strip().rstrip(".;")
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def structs_of(kind: Any) -> list[type[msgspec.Struct]]:
    """The structs in a type: itself, the members of a union, the entries of a list or table."""
    found: list[type[msgspec.Struct]] = []
    for part in _parts(kind):
        if isinstance(part, type) and issubclass(part, msgspec.Struct):
            found.append(part)
        elif get_origin(part) in (list, dict, tuple):
            found += structs_of(get_args(part)[-1])
    return found


def is_list(kind: Any) -> bool:
    """Whether a type is a list, or a list or nothing."""
    return any(get_origin(part) is list for part in _parts(kind))


def _parts(kind: Any) -> Iterator[Any]:
    if get_origin(kind) is Annotated:
        yield from _parts(get_args(kind)[0])
    elif get_origin(kind) in (Union, types.UnionType):
        for part in get_args(kind):
            yield from _parts(part)
    else:
        yield kind


def accepted(kind: Any) -> str:
    """The values of a type in words.

    >>> accepted(list[str]), accepted(Literal["run", "observe"] | None)
    ('a list, each: text', '`run` or `observe`, or null')
    """
    parts = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    unsaid = (types.NoneType, msgspec.UnsetType)  # what is unset is left out of an answer
    some = [part for part in parts if part not in unsaid]
    if set(some) == set(get_args(Features)):
        return _FEATURES + (", or null" if types.NoneType in parts else "")
    words = [_words(part) for part in some]
    return " or ".join(dict.fromkeys(words)) + (", or null" if types.NoneType in parts else "")


def _words(kind: Any) -> str:
    if kind in (Id, Seconds):
        return "an id" if kind == Id else "seconds since the epoch"
    if get_origin(kind) is Annotated:
        limit = _limit(kind)
        return limit or _words(get_args(kind)[0])
    if get_origin(kind) is Literal:
        return " or ".join(f"`{choice}`" for choice in get_args(kind))
    if get_origin(kind) in (list, dict, tuple):
        return _collection(kind)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return f"a `{kind.__name__}`"
    return "anything" if kind is Any else expected(kind)


def _collection(kind: Any) -> str:
    entries = get_args(kind)
    noun = {dict: "a table", list: "a list", tuple: "a list"}[get_origin(kind)]
    if not entries or Any in entries:
        return noun
    inner = accepted(entries[-1])
    if get_origin(kind) is tuple and entries[-1] is not Ellipsis:
        return f"{noun} of {len(entries)}, each: {inner}"
    return (
        f"{noun} by name, each: {inner}" if get_origin(kind) is dict else f"{noun}, each: {inner}"
    )


def _limit(kind: Any) -> str:
    """The bound in words; "" where the type has none that it says."""
    meta = get_args(kind)[1]
    if meta.pattern is not None and meta.description is None:
        return "text"
    if meta.max_length is not None and meta.description is None:
        return f"text of at most {meta.max_length} characters"
    return limit_of(kind)


def lines(fields: list[Field], given: bool = True) -> list[str]:
    """A Markdown list of fields. given: whether somebody writes them, and may leave some out."""
    text = []
    for field in fields:
        default = "required" if field.default is None else f"default `{field.default}`"
        text.append(f"- **`{field.name}`**: {field.accepts}" + (f"; {default}." if given else "."))
        text += [f"  {field.meaning}"] * bool(field.meaning)
    return text
