"""What a benchmark is: its declared options, its table of numbers, and how it is found by name.

A benchmark is one file of this package: an options class, and a loader with the decorator
`benchmark`. An options class is a frozen dataclass whose fields are made by `option`; the metadata
is what a command line needs for its help, and `check` is the one place that enforces it.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import Field, dataclass, field, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeAlias, TypeVar

import numpy as np

from equipoise.agent.errors import AgentError
from equipoise.store.batches import Floats

Value = TypeVar("Value", int, float, str)


class Declared(Protocol):
    """Any dataclass instance."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


def option(
    default: Value,
    explanation: str,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[str] = (),
) -> Value:
    """A dataclass field with a default and metadata: explanation, unit, low, high, choices.

    low, high: inclusive limits of a number. choices: the allowed words of a text; without any it
    is free. Typed as its default, as `dataclasses.field` is.
    """
    metadata = {
        "explanation": explanation,
        "unit": unit,
        "low": low,
        "high": high,
        "choices": tuple(choices),
    }
    declared: Value = field(default=default, metadata=metadata)
    return declared


def check(options: Declared) -> None:
    """Raise ValueError with the option's name, its value and its limit.

    The type of the default decides what is accepted: a whole number where it is an int, any
    finite number where it is a float, one of `choices` where it is a text that has any.
    """
    for declared in fields(options):
        _check_one(declared, getattr(options, declared.name))


def parsed(declared: type[Declared], texts: Sequence[str]) -> dict[str, Any]:
    """Values of `NAME=VALUE` texts, each of the type of its default.

    Raises ValueError with the option's name and value.
    """
    declarations = {each.name: each for each in fields(declared)}
    values: dict[str, Any] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator:
            raise ValueError(f"{text!r} is not NAME=VALUE")
        if name not in declarations:
            has = f"one of {', '.join(declarations)}" if declarations else "there: it has none"
            raise ValueError(f"{name!r} is not {has}")
        default: Any = declarations[name].default
        try:
            values[name] = type(default)(value)
        except ValueError:
            raise ValueError(f"{name} is {value!r}, must be a number") from None
    return values


def limits(declared: Field[Any]) -> str:
    """Which values an option accepts, for people; empty where there is no limit."""
    low, high = declared.metadata["low"], declared.metadata["high"]
    if declared.metadata["choices"]:
        return ", ".join(declared.metadata["choices"])
    if low is None or high is None:
        return "" if low is None else f"{low:g} or more"
    return f"{low:g} to {high:g}"


def _check_one(declared: Field[Any], value: object) -> None:
    name, limits = declared.name, declared.metadata
    if isinstance(declared.default, str):
        if not isinstance(value, str):
            raise ValueError(f"{name} is {value!r}, must be a text")
        if limits["choices"] and value not in limits["choices"]:
            raise ValueError(f"{name} is {value!r}, must be one of {', '.join(limits['choices'])}")
        return
    whole = isinstance(declared.default, int)
    if isinstance(value, bool) or not isinstance(value, Integral if whole else Real):
        raise ValueError(f"{name} is {value!r}, must be {'a whole' if whole else 'a'} number")
    if not math.isfinite(value):
        raise ValueError(f"{name} is {value}, must be finite")
    if limits["low"] is not None and value < limits["low"]:
        raise ValueError(f"{name} is {value}, must be at least {limits['low']}")
    if limits["high"] is not None and value > limits["high"]:
        raise ValueError(f"{name} is {value}, must be at most {limits['high']}")


class BenchmarkError(ValueError):
    """A benchmark that cannot be had, in one line for the person who asked for it."""


class OptionError(AgentError):
    """An option that cannot be honoured.

    Its text names keywords of `replay`, `in_flags` the options of the command.

    >>> error = OptionError("exp_rate", "2 is not within (0, 1]")
    >>> str(error), error.in_flags
    ('exp_rate: 2 is not within (0, 1]', '--exp-rate: 2 is not within (0, 1]')
    """

    def __init__(self, options: str, reason: str) -> None:
        """options: keywords, with commas between."""
        super().__init__(f"{options}: {reason}")
        names = (f"--{_FLAGS.get(name, name.replace('_', '-'))}" for name in options.split(", "))
        self.in_flags = f"{', '.join(names)}: {reason}"


@contextmanager
def in_flags() -> Iterator[None]:
    """Inside, options are refused under the names they have on the command line."""
    try:
        yield
    except OptionError as error:
        raise AgentError(error.in_flags) from None


_FLAGS = {"benchmark_options": "benchmark-option"}
"""Where it is not the keyword with hyphens."""


@dataclass(frozen=True, slots=True, eq=False)
class Benchmark:
    """C contexts × K models: what each model put out, how well it did, what it cost.

    x: (C, d) context features. outputs: (C, K, q) features of the cached outputs.
    outcome: (C, K) success at the task in [0, 1]. cost: (C, K) USD, NaN where unknown.
    models: K names. context_names: d names. output_names: q names. context_ids: C texts.
    source: where the data is from. exclusions: what was left out, and how many of each.
    outcome_features: whether the outcome is itself one of the output features.
    invented: which of "outcomes" and "costs" were not measured but made up.
    scale: how rewards of the source became outcomes, in words; empty where they are the same.
    tasted: how many output features, the first ones, the taste of a world is for; None for all.
    More features then show more of the same world, instead of making another.

    Arrays are copied to float64 and made read-only. Raises BenchmarkError naming the field, the
    value and the limit.
    """

    name: str
    title: str
    models: tuple[str, ...]
    context_names: tuple[str, ...]
    output_names: tuple[str, ...]
    x: Floats
    outputs: Floats
    outcome: Floats
    cost: Floats
    context_ids: tuple[str, ...]
    source: str
    exclusions: Mapping[str, int] = field(default_factory=dict)
    outcome_features: bool = False
    invented: tuple[str, ...] = ()
    scale: str = ""
    tasted: int | None = None

    def __post_init__(self) -> None:
        for names in ("models", "context_names", "output_names", "context_ids"):
            object.__setattr__(self, names, _unique_names(names, getattr(self, names)))
        contexts, models = len(self.context_ids), len(self.models)
        if models < 2:
            raise BenchmarkError(f"models has {models} entries, must have at least 2")
        if contexts < 2:
            raise BenchmarkError(f"context_ids has {contexts} entries, must have at least 2")
        shapes = {
            "x": (contexts, len(self.context_names)),
            "outputs": (contexts, models, len(self.output_names)),
            "outcome": (contexts, models),
            "cost": (contexts, models),
        }
        for name, shape in shapes.items():
            object.__setattr__(self, name, _table(name, getattr(self, name), shape))
        for name in ("x", "outputs", "outcome"):
            table = getattr(self, name)
            _require(name, table, np.isfinite(table), "finite")
        _require("outcome", self.outcome, (self.outcome >= 0) & (self.outcome <= 1), "in [0, 1]")
        valid = (self.cost >= 0) & (self.cost < np.inf)
        _require("cost", self.cost, valid | np.isnan(self.cost), "0 or more, or NaN if unknown")
        for reason, count in self.exclusions.items():
            if count < 0:
                raise BenchmarkError(f"exclusions[{reason!r}] is {count}, must be 0 or more")

    def summary(self) -> list[dict[str, str | float]]:
        """One row per model: its name, mean outcome, and mean cost (USD) where it is known."""
        priced = ~np.isnan(self.cost)
        total = np.where(priced, self.cost, 0.0).sum(axis=0)
        with np.errstate(invalid="ignore"):
            cost = total / priced.sum(axis=0)
        columns = zip(self.models, self.outcome.mean(axis=0).tolist(), cost.tolist(), strict=True)
        return [{"model": name, "outcome": mean, "cost": usd} for name, mean, usd in columns]


def _unique_names(name: str, names: Sequence[str]) -> tuple[str, ...]:
    if "" in names:
        raise BenchmarkError(f"{name}[{list(names).index('')}] is empty, must be a name")
    distinct: set[str] = set()
    for entry in names:
        if entry in distinct:
            raise BenchmarkError(f"{name} holds {entry!r} twice, must be unique")
        distinct.add(entry)
    return tuple(names)


def _table(name: str, values: Floats, shape: tuple[int, ...]) -> Floats:
    """A read-only float64 copy of the expected shape."""
    try:
        table = np.array(values, dtype=np.float64, order="C")
    except (TypeError, ValueError) as error:
        raise BenchmarkError(f"{name} is not a table of numbers: {error}") from error
    if table.shape != shape:
        raise BenchmarkError(f"{name} has shape {table.shape}, must have {shape}")
    table.flags.writeable = False
    return table


def _require(name: str, table: Floats, holds: np.ndarray, limit: str) -> None:
    if holds.all():
        return
    cell = tuple(int(i) for i in np.argwhere(~holds)[0])
    raise BenchmarkError(f"{name}{list(cell)} is {table[cell]}, must be {limit}")


Loader: TypeAlias = Callable[[Path | None, Any], Benchmark]


@dataclass(frozen=True, slots=True)
class NoOptions:
    """For benchmarks that have nothing to choose."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A registered benchmark. options: the frozen dataclass that its loader is given.

    own_rewards: whether its rewards are those of real users, so that a replay adds nothing to
    them unless it is asked to.
    """

    name: str
    title: str
    options: type[Any]
    needs_path: bool
    loader: Loader
    own_rewards: bool = False


_ENTRIES: dict[str, Entry] = {}

LOGS = {"openbandit": "A real log of recommendations with its propensities (Open Bandit)"}
"""Logs without known counterfactuals: the replay runs them its own way, without a world."""


def benchmark(
    name: str,
    title: str,
    *,
    options: type[Any] = NoOptions,
    needs_path: bool = False,
    own_rewards: bool = False,
) -> Callable[[Loader], Loader]:
    """Register a loader `(path, options) -> Benchmark` under a name.

    A module of this package registers by being there. The loader may raise OSError and
    UnicodeDecodeError for its path; `load` turns them into one line.
    """

    def register(loader: Loader) -> Loader:
        if name in _ENTRIES:
            raise ValueError(f"benchmark {name!r} is registered twice")
        _ENTRIES[name] = Entry(name, title, options, needs_path, loader, own_rewards)
        return loader

    return register


def entries() -> dict[str, Entry]:
    """All registered benchmarks by name, in alphabetical order."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"{__package__}.{module.name}")
    return dict(sorted(_ENTRIES.items()))


def has_own_rewards(spec: str) -> bool:
    """Whether the rewards of the benchmark "name" or "name:PATH" are to be left as they are."""
    name = spec.partition(":")[0]
    registered = entries()
    return name in registered and registered[name].own_rewards


def _names(registered: Mapping[str, Entry]) -> str:
    return ", ".join([*registered, *LOGS])


def load(spec: str, **options: Any) -> Benchmark:
    """The benchmark that "name" or "name:PATH" asks for, under its own options.

    Raises BenchmarkError with one line: unknown name or option, a value out of range, a path
    missing, superfluous, absent or unreadable, or contents that are no benchmark.
    """
    name, colon, location = spec.partition(":")
    registered = entries()
    if name in LOGS:
        raise BenchmarkError(
            f"{name!r} is a log without known counterfactuals, no table of contexts x models; run"
            f" it as it is: equipoise replay --benchmark {name}:PATH --policies uniform,top-two"
        )
    if name not in registered:
        raise BenchmarkError(f"unknown benchmark {name!r}; there are: {_names(registered)}")
    entry = registered[name]
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


def load_from_texts(spec: str, texts: Sequence[str]) -> Benchmark:
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
    registered = entries()
    if name in LOGS:
        return []
    if name not in registered:
        raise BenchmarkError(f"unknown benchmark {name!r}; there are: {_names(registered)}")
    return [
        {
            "option": declared.name,
            "default": str(declared.default),
            "limits": limits(declared),
            "what it does": declared.metadata["explanation"],
        }
        for declared in fields(registered[name].options)
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
