"""Anyone's outcomes: a Parquet or CSV file with one row per (context, model).

Columns: context_id, model, reward, optionally cost (USD), x_* (features of the context) and y_*
(features of the output): numbers, true or false, categories or texts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from equipoise.agent.config.ingest import as_feature, as_text
from equipoise.agent.features import Boolean, Category, FeatureSchema, Text, Transform
from equipoise.agent.features.kinds import LONGEST_VALUE
from equipoise.agent.features.text import STATISTICS
from equipoise.agent.features.values import shown
from equipoise.replay.benchmarks.base import Benchmark, BenchmarkError, benchmark, check, option
from equipoise.replay.benchmarks.reading.complete import ImportOptions, chosen, complete, scaled
from equipoise.replay.benchmarks.reading.files import (
    TableFile,
    feature_names,
    identifiers,
    names_listed,
    read_table,
)
from equipoise.store.batches import Flags, Floats, Ints

_TITLE = "Your own contexts, models and rewards"
_REQUIRED = ("context_id", "model", "reward")
_REASONS = (
    "absent for a model",
    "without a reward",
    "without an output feature",
    "without a context feature",
)


@dataclass(frozen=True, slots=True)
class TableOptions(ImportOptions):
    """How to read a table."""

    features: str = option(
        "without-outcome",
        "whether the reward is an output feature too: only where a replay without users tells it",
        choices=("with-outcome", "without-outcome"),
    )
    reward_low: float = option(0.0, "lowest reward there can be; becomes outcome 0", unit="reward")
    reward_high: float = option(
        1.0, "highest reward there can be; becomes outcome 1", unit="reward"
    )

    def __post_init__(self) -> None:
        check(self)
        if self.reward_high <= self.reward_low:
            raise ValueError(
                f"reward_high is {self.reward_high}, must be above reward_low, {self.reward_low}"
            )


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """n rows without repetition. context (n,), model (n,): positions; columns: each (n,)."""

    context: Ints
    model: Ints
    columns: Mapping[str, Floats]


@benchmark("table", _TITLE, options=TableOptions, needs_path=True, own_rewards=True)
def load_table(path: Path | None, options: TableOptions) -> Benchmark:
    """Contexts × models of a file. PATH: a Parquet, CSV or TSV file, or a folder with only one.

    outcome: (reward - reward_low) / (reward_high - reward_low). cost: USD, unknown where the
    column or a value is missing. outputs: the columns y_*, x: the columns x_*, each robustly
    standardized (see `scaling`); those of words are read as the agent reads them, and stay on
    its scale (see `declared`). x_* must be the same in all rows of a context. A cell that is
    empty or says nan, na or null is missing.

    Left out and counted: models that lack too many contexts (`max_missing`), contexts that a
    remaining model lacks or that miss a reward or a feature, rows that repeat another, other
    columns. Raises BenchmarkError naming the file, the row, the column and the value.
    """
    assert path is not None
    file = read_table(path)
    x_columns, y_columns, exclusions = _features(file)
    words: dict[str, Floats] = {}
    context_ids = file.texts("context_id")
    x_names = _read_words(file, x_columns, words, len(set(context_ids)))
    y_names = _read_words(file, y_columns, words, len(context_ids))
    numbers = [name for name in (*x_names, *y_names) if name not in words]
    columns = {**_numbers(file, numbers, options), **words}
    context, contexts = _positions(context_ids)
    model, models = _positions(file.texts("model"))
    rows, repeated = _unique_rows(file, _Rows(context, model, columns), contexts, models)
    if repeated:
        exclusions["rows that repeat another"] = repeated
    of_context = {name: _of_context(file, rows, name, contexts) for name in x_names}
    shape = len(contexts), len(models)
    cells = {name: _cells(rows, name, shape) for name in ("reward", "cost", *y_names)}
    faults = _faults(rows, cells, y_names, of_context)
    ids = identifiers(models)
    keep, left_out = chosen(ids, options.models)
    ids = tuple(name for name, use in zip(ids, keep, strict=True) if use)
    selected = complete(faults[:, keep], _REASONS, ids, options.max_missing, "contexts")
    whole = np.ix_(selected.contexts, np.flatnonzero(keep)[selected.models])
    reward = cells["reward"][whole]
    outcome = (reward - options.reward_low) / (options.reward_high - options.reward_low)
    short = dict(zip([*x_names, *y_names], feature_names([*x_names, *y_names]), strict=True))
    x = scaled(
        {short[name]: of_context[name][selected.contexts] for name in x_names},
        (len(selected.contexts),),
        _short(words, short),
    )
    with_outcome = options.features == "with-outcome"
    output_columns = {short[name]: cells[name][whole] for name in y_names}
    if with_outcome:
        output_columns["outcome"] = outcome
    outputs = scaled(output_columns, outcome.shape, {"outcome", *_short(words, short)})
    outputs.require_one(file.path)
    kept_contexts = [contexts[row] for row in selected.contexts.tolist()]
    return Benchmark(
        name="table",
        title=_TITLE,
        models=tuple(ids[m] for m in selected.models.tolist()),
        context_names=x.names,
        output_names=outputs.names,
        x=x.values,
        outputs=outputs.values,
        outcome=outcome,
        cost=cells["cost"][whole],
        context_ids=identifiers(kept_contexts, empty="context"),
        source=file.path.name,
        exclusions={
            **exclusions,
            **left_out,
            **selected.exclusions,
            **x.exclusions("context"),
            **outputs.exclusions("output"),
        },
        outcome_features=with_outcome,
        scale=_scale(options),
    )


def _features(file: TableFile) -> tuple[list[str], list[str], dict[str, int]]:
    """Names of the columns x_* and y_*, and how many columns are of no known kind."""
    names = file.columns
    for name in _REQUIRED:
        if name not in names:
            raise BenchmarkError(f"{file.path}: no column {name!r}; it has: {names_listed(names)}")
    x_names = [name for name in names if name.startswith("x_")]
    y_names = [name for name in names if name.startswith("y_")]
    if not y_names:
        raise BenchmarkError(f"{file.path}: no column y_*, must have an output feature")
    others = [name for name in names if name not in {*_REQUIRED, "cost", *x_names, *y_names}]
    if not others:
        return x_names, y_names, {}
    kind = f"columns of no known kind ({names_listed(others)}; features begin with x_ or y_)"
    return x_names, y_names, {kind: len(others)}


def _read_words(
    file: TableFile, names: list[str], words: dict[str, Floats], units: int
) -> list[str]:
    """Names of the columns that features become; those of words are put into `words`."""
    columns: list[str] = []
    for name, short in zip(names, feature_names(names), strict=True):
        feature = declared(file, name, short, units)
        if feature is None:
            columns.append(name)
            continue
        parts = encoded(file, name, feature)
        words.update(parts)
        columns += parts
    return columns


def _short(words: Mapping[str, Floats], short: Mapping[str, str]) -> set[str]:
    return {short[name] for name in words if name in short}


MOST_CATEGORIES = 20
"""A column with more different words is text."""

Words = Boolean | Category | Text


def declared(file: TableFile, column: str, name: str, units: int) -> Words | None:
    """The feature `name` that a column is, None for numbers. units: how many contexts or outputs
    it describes, each of which may stand in several rows.

    true and false are a boolean; up to MOST_CATEGORIES words, used twice on average, are a
    category, its values in alphabetical order; everything else is a text, with all statistics.
    """
    if file.is_numeric(column):
        return None
    values = [value for value in file.values(column) if value not in (None, "")]
    if values and all(str(value).strip().lower() in ("true", "false") for value in values):
        return Boolean(name=name)
    words = sorted({word for value in values if (word := as_text(column, value))})
    if 2 <= len(words) <= min(MOST_CATEGORIES, units // 2) and all(
        word.isprintable() and len(word) <= LONGEST_VALUE for word in words
    ):
        return Category(name=name, values=words)
    return Text(name=name, statistics=list(STATISTICS))


def encoded(file: TableFile, column: str, feature: Words) -> dict[str, Floats]:
    """The columns of a feature by name, each (n,), NaN where a cell is empty."""
    transform = Transform(FeatureSchema(context=[feature]))
    kind = type(feature).__name__
    left_out: Counter[str] = Counter()
    values = [as_feature(kind, column, value, left_out) for value in file.values(column)]
    known = np.array([value is not None for value in values], dtype=bool)
    rows = np.full((len(values), transform.d), np.nan)
    rows[known] = transform.context_rows([{feature.name: v} for v in values if v is not None])
    return dict(zip(transform.context_names, rows.T, strict=True))


def _numbers(file: TableFile, features: list[str], options: TableOptions) -> dict[str, Floats]:
    """reward, cost and the features, each (n,), within their ranges; NaN where unknown."""
    columns = {name: file.numbers(name) for name in ("reward", *features)}
    reward, low, high = columns["reward"], options.reward_low, options.reward_high
    limit = f"in [{low:g}, {high:g}]; reward_low and reward_high declare another range"
    file.require("reward", reward, np.isnan(reward) | ((reward >= low) & (reward <= high)), limit)
    cost = file.numbers("cost") if "cost" in file.columns else np.full(len(reward), np.nan)
    file.require("cost", cost, np.isnan(cost) | (cost >= 0), "0 or more, or empty if unknown")
    return {**columns, "cost": cost}


def _scale(options: TableOptions) -> str:
    low, high = options.reward_low, options.reward_high
    if (low, high) == (0.0, 1.0):
        return ""
    return f"Rewards are shown from 0 to 1, which are {low:g} and {high:g} in the table"


def _positions(names: list[str]) -> tuple[Ints, list[str]]:
    """(n,) positions among the distinct names, and those, in the order they occur."""
    positions, distinct = pd.factorize(np.array(names, dtype=object))
    return positions.astype(np.int64), [str(name) for name in distinct.tolist()]


def _unique_rows(
    file: TableFile, rows: _Rows, contexts: Sequence[str], models: Sequence[str]
) -> tuple[_Rows, int]:
    """The first row of each (context, model), and how many others there are, all equal to it."""
    cell = rows.context * len(models) + rows.model
    _, first, inverse = np.unique(cell, return_index=True, return_inverse=True)
    for name, column in rows.columns.items():
        original = column[first][inverse]
        differs = (column != original) & ~(np.isnan(column) & np.isnan(original))
        if differs.any():
            row = int(np.argmax(differs))
            raise BenchmarkError(
                f"{file.path}, row {row + 1}: context_id {shown(contexts[rows.context[row]])} and"
                f" model {shown(models[rows.model[row]])} occur before with another {name}"
                f" ({shown(original[row])}, here {shown(column[row])}), must be unique"
            )
    first.sort()
    columns = {name: column[first] for name, column in rows.columns.items()}
    return _Rows(rows.context[first], rows.model[first], columns), len(cell) - len(first)


def _of_context(file: TableFile, rows: _Rows, name: str, contexts: Sequence[str]) -> Floats:
    """(C,) the one value of a context's rows, NaN where no row has any."""
    column = rows.columns[name]
    lowest = np.full(len(contexts), np.nan)
    highest = lowest.copy()
    np.fmin.at(lowest, rows.context, column)
    np.fmax.at(highest, rows.context, column)
    differs = highest > lowest
    if differs.any():
        at = int(np.argmax(differs))
        raise BenchmarkError(
            f"{file.path}: context_id {shown(contexts[at])} has {name} {shown(lowest[at])} in one"
            f" row and {shown(highest[at])} in another, must be the same"
        )
    return lowest


def _cells(rows: _Rows, name: str, shape: tuple[int, int]) -> Floats:
    """(C, K) values of a column, NaN where there is none."""
    cells = np.full(shape, np.nan)
    cells[rows.context, rows.model] = rows.columns[name]
    return cells


def _faults(
    rows: _Rows, cells: Mapping[str, Floats], y_names: list[str], of_context: Mapping[str, Floats]
) -> Ints:
    """(C, K) why a cell is of no use, as `complete` takes it."""
    reward = cells["reward"]
    absent = np.ones(reward.shape, dtype=bool)
    absent[rows.context, rows.model] = False
    outputs = _any_unknown([cells[name] for name in y_names], reward.shape)
    context = _any_unknown([column[:, None] for column in of_context.values()], reward.shape)
    return np.select([absent, np.isnan(reward), outputs, context], [1, 2, 3, 4], default=0)


def _any_unknown(columns: Sequence[Floats], shape: tuple[int, int]) -> Flags:
    unknown = np.zeros(shape, dtype=bool)
    for column in columns:
        unknown |= np.isnan(column)
    return unknown
