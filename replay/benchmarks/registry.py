"""The registry of benchmarks: one file and one decorator each, found by name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias

from equipoise.replay.benchmarks.base import Benchmark, BenchmarkError
from equipoise.replay.benchmarks.options import limits, parsed

Loader: TypeAlias = Callable[[Path | None, Any], Benchmark]


@dataclass(frozen=True, slots=True)
class NoOptions:
    """For benchmarks that have nothing to choose."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A registered benchmark. options: the frozen dataclass that its loader is given."""

    name: str
    title: str
    options: type[Any]
    needs_path: bool
    loader: Loader


_ENTRIES: dict[str, Entry] = {}

LOGS = {"openbandit": "A real log of recommendations with its propensities (Open Bandit)"}
"""Logs without known counterfactuals: the replay runs them its own way, without a world."""


def benchmark(
    name: str, title: str, *, options: type[Any] = NoOptions, needs_path: bool = False
) -> Callable[[Loader], Loader]:
    """Register a loader `(path, options) -> Benchmark` under a name.

    A module of this package registers by being there. The loader may raise OSError and
    UnicodeDecodeError for its path; `load` turns them into one line.
    """

    def register(loader: Loader) -> Loader:
        if name in _ENTRIES:
            raise ValueError(f"benchmark {name!r} is registered twice")
        _ENTRIES[name] = Entry(name, title, options, needs_path, loader)
        return loader

    return register


def entries() -> dict[str, Entry]:
    """All registered benchmarks by name, in alphabetical order."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"{__package__}.{module.name}")
    return dict(sorted(_ENTRIES.items()))


def load(spec: str, **options: Any) -> Benchmark:
    """The benchmark that "name" or "name:PATH" asks for, under its own options.

    Raises BenchmarkError with one line: unknown name or option, a value out of range, a path
    missing, superfluous, absent or unreadable, or contents that are no benchmark.
    """
    name, colon, location = spec.partition(":")
    known = entries()
    if name in LOGS:
        raise BenchmarkError(
            f"{name!r} is a log without known counterfactuals, no table of contexts x models; run"
            f" it as it is: equipoise replay --benchmark {name}:PATH --policies uniform,top-two"
        )
    if name not in known:
        raise BenchmarkError(f"unknown benchmark {name!r}; there are: {', '.join([*known, *LOGS])}")
    entry = known[name]
    try:
        path = _path(entry, location if colon else None)
        return entry.loader(path, _options(entry, options))
    except UnicodeDecodeError as error:
        raise BenchmarkError(
            f"benchmark {name!r}: {location} is not UTF-8 text: {error}"
        ) from error
    except OSError as error:
        where, reason = error.filename or location, error.strerror or error
        raise BenchmarkError(f"benchmark {name!r}: cannot read {where}: {reason}") from error
    except ValueError as error:
        reason = " ".join(str(error).splitlines())  # names in a file may hold line breaks
        raise BenchmarkError(f"benchmark {name!r}: {reason}") from error


def load_as_told(spec: str, texts: Sequence[str]) -> Benchmark:
    """`load` with options as `NAME=VALUE` texts. Raises BenchmarkError."""
    name = spec.partition(":")[0]
    if name not in entries():
        return load(spec)
    try:
        options = parsed(entries()[name].options, texts)
    except ValueError as error:
        raise BenchmarkError(f"benchmark {name!r}: option {error}") from None
    return load(spec, **options)


def describe_options(name: str) -> list[dict[str, str]]:
    """One row per option of a benchmark. Raises BenchmarkError where there is no such one."""
    known = entries()
    if name in LOGS:
        return []
    if name not in known:
        raise BenchmarkError(f"unknown benchmark {name!r}; there are: {', '.join([*known, *LOGS])}")
    return [
        {
            "option": declared.name,
            "default": str(declared.default),
            "limits": limits(declared),
            "what it does": declared.metadata["explanation"],
        }
        for declared in fields(known[name].options)
    ]


def describe() -> list[dict[str, str]]:
    """One row per benchmark for a listing: name (as `load` takes it), title, options."""
    return [
        {
            "name": f"{entry.name}:PATH" if entry.needs_path else entry.name,
            "title": entry.title,
            "options": ", ".join(f"{o.name}={o.default}" for o in fields(entry.options)),
        }
        for entry in entries().values()
    ] + [
        {
            "name": f"{name}:PATH",
            "title": title,
            "options": "PATH: a behaviour, or the folder of both",
        }
        for name, title in LOGS.items()
    ]


def _path(entry: Entry, location: str | None) -> Path | None:
    if not entry.needs_path:
        if location is not None:
            raise BenchmarkError(f"takes no path, got {location!r}")
        return None
    if not location:
        raise BenchmarkError(f"needs a path: {entry.name}:PATH")
    path = Path(location)
    if not path.exists():
        raise BenchmarkError(f"{location} does not exist")
    return path


def _options(entry: Entry, options: dict[str, Any]) -> Any:
    declared = [option.name for option in fields(entry.options)]
    for option in options:
        if option not in declared:
            has = f"it has: {', '.join(declared)}" if declared else "it has none"
            raise BenchmarkError(f"no option {option!r}; {has}")
    return entry.options(**options)
