"""Summarization: systems on news articles, with human factuality and automatic metrics.

Reads FRANK's files as they are: `human_annotations.json` and
`baseline_factuality_metrics_outputs.json`, rows joined by (hash, model_name).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from equipoise.agent.features.values import shown
from equipoise.replay.benchmarks.base import Benchmark, BenchmarkError, benchmark, option
from equipoise.replay.benchmarks.reading.complete import (
    ImportOptions,
    ScaledFeatures,
    chosen,
    complete,
    put_once,
    scaled,
)
from equipoise.replay.benchmarks.reading.files import (
    JsonObject,
    feature_names,
    find_file,
    identifiers,
    names_listed,
    objects,
    one_line,
    read_json,
)
from equipoise.store.batches import Floats

_TITLE = "Summarization systems on news articles, rated for factuality (FRANK)"
_HUMAN = "human_annotations.json"
_METRICS = "baseline_factuality_metrics_outputs.json"
_FOLDERS = ("", "data")
_NO_METRIC = frozenset({"hash", "model_name", "dataset", "split", "Factuality"})
_REASONS = ("absent for a model", "without Factuality", "without metrics")

Key: TypeAlias = tuple[str, str]


@dataclass(frozen=True, slots=True)
class FrankOptions(ImportOptions):
    """What to read of FRANK's files."""

    features: str = option(
        "without-outcome",
        "the outcome is a human judgement, which nothing computes offline",
        choices=("without-outcome",),
    )
    dataset: str = option(
        "", "dataset of the articles (cnndm, xsum); if empty the one with the most rows"
    )
    max_gaps: float = option(
        0.02,
        "a metric that is missing in more than this share of the rows is left out; an article"
        " where a remaining metric is missing is left out",
        unit="share",
        low=0,
        high=1,
    )


@benchmark("frank", _TITLE, options=FrankOptions, needs_path=True)
def load_frank(path: Path | None, options: FrankOptions) -> Benchmark:
    """Articles × systems of one dataset. PATH: the folder of the two files, or one of them.

    outcome: Factuality, the share of a summary's sentences without a factual error. outputs: the
    automatic metrics, robustly standardized (see `scaling`). x: whether the article is in the
    test split, all that the files tell of an article; none where that is constant, since means
    over systems would leak other models' outputs. cost: unknown.

    Left out and counted: rows of other datasets, metrics with too many gaps (`max_gaps`),
    systems that lack too many articles (`max_missing`), articles that a remaining system lacks
    or that miss Factuality or a metric, repeated rows. Raises BenchmarkError.
    """
    assert path is not None
    folder = path.parent if path.is_file() else path
    human, repeated = _read(find_file(folder, _HUMAN, _FOLDERS))
    metric_file = find_file(folder, _METRICS, _FOLDERS)
    metrics, repeated_too = _read(metric_file)
    exclusions: dict[str, int] = {}
    if repeated + repeated_too:
        exclusions["rows that repeat another"] = repeated + repeated_too
    human, others = _of_dataset(human, options.dataset)
    systems = list(dict.fromkeys(system for _, system in human))
    articles = list(dict.fromkeys(article for article, _ in human))
    keep, left_out = chosen(identifiers(systems), options.models)
    models = [name for name, use in zip(identifiers(systems), keep, strict=True) if use]
    cells = [
        [(article, system) for system, use in zip(systems, keep, strict=True) if use]
        for article in articles
    ]
    names, values, with_gaps = _metrics(metrics, cells, metric_file, options.max_gaps)
    factuality = np.array([[_factuality(human.get(cell)) for cell in row] for row in cells])
    absent = np.array([[cell not in human for cell in row] for row in cells])
    unknown = np.isnan(values).any(axis=2)
    faults = np.select([absent, np.isnan(factuality), unknown], [1, 2, 3], default=0)
    selected = complete(faults, _REASONS, models, options.max_missing, "articles")
    kept_cells = np.ix_(selected.contexts, selected.models)
    outcome, values = factuality[kept_cells], values[kept_cells]
    kept_articles = [articles[row] for row in selected.contexts.tolist()]
    outputs = scaled(
        {name: values[:, :, i] for i, name in enumerate(feature_names(names))}, outcome.shape
    )
    outputs.require_one(metric_file)
    x = _split(human, kept_articles)
    return Benchmark(
        name="frank",
        title=_TITLE,
        models=tuple(models[m] for m in selected.models.tolist()),
        context_names=x.names,
        output_names=outputs.names,
        x=x.values,
        outputs=outputs.values,
        outcome=outcome,
        cost=np.full(outcome.shape, np.nan),
        context_ids=identifiers(kept_articles, empty="article"),
        source="human annotations and metric outputs of artidoro/frank",
        exclusions={
            **exclusions,
            **others,
            **left_out,
            **with_gaps,
            **selected.exclusions,
            **x.exclusions("context"),
            **outputs.exclusions("output"),
        },
    )


def _read(file: Path) -> tuple[dict[Key, JsonObject], int]:
    """Rows by (hash, model_name), and how many of them occurred before."""
    fields: dict[Key, Mapping[str, Any]] = {}
    rows: dict[Key, JsonObject] = {}
    repeated = 0
    for row in objects(read_json(file), str(file)):
        key = row.text("hash"), row.text("model_name")
        about = f"{row.where}: hash {shown(key[0])} with model_name {shown(key[1])}"
        repeated += put_once(fields, key, row.fields, about)
        rows.setdefault(key, row)
    if not rows:
        raise BenchmarkError(f"{file} is an empty list, must hold rows")
    return rows, repeated


def _of_dataset(
    human: dict[Key, JsonObject], wanted: str
) -> tuple[dict[Key, JsonObject], dict[str, int]]:
    """The rows of the wanted dataset, or of the largest, and how many belong to others."""
    datasets = {key: row.optional_text("dataset") or "" for key, row in human.items()}
    counts = Counter(datasets.values())
    if wanted and wanted not in counts:
        raise BenchmarkError(f"dataset: {wanted!r} is not there; there are: {names_listed(counts)}")
    dataset = wanted or counts.most_common(1)[0][0]
    others = len(human) - counts[dataset]
    of_dataset = {key: row for key, row in human.items() if datasets[key] == dataset}
    return of_dataset, {
        f"rows of datasets other than {one_line(dataset)}": others
    } if others else {}


def _metrics(
    metrics: dict[Key, JsonObject], cells: list[list[Key]], file: Path, max_gaps: float
) -> tuple[list[str], Floats, dict[str, int]]:
    """Names of q metrics, their values (C, K, q) with NaN where unknown, and what was left out."""
    rows = [metrics[cell] for row in cells for cell in row if cell in metrics]
    fields = list(dict.fromkeys(name for row in rows for name in row.fields))
    fields = [name for name in fields if name not in _NO_METRIC]
    numeric = {name for row in rows for name, value in row.fields.items() if _is_number(value)}
    names = [name for name in fields if name in numeric]
    values = np.full((len(cells), len(cells[0]), len(names)), np.nan)
    for i, row in enumerate(cells):
        for j, cell in enumerate(row):
            if (scores := metrics.get(cell)) is not None:
                values[i, j] = [scores.number(name) for name in names]
    counts = (~np.isnan(values)).sum(axis=(0, 1))
    usable = counts >= (1 - max_gaps) * len(rows)
    if not rows or not usable.any():
        raise BenchmarkError(
            f"{file}: no metric is known in {1 - max_gaps:.0%} of the {len(rows)} rows of these"
            " articles and models, must be at least one; max_gaps sets the share"
        )
    exclusions = {}
    if others := [name for name in fields if name not in numeric]:
        exclusions[f"fields without a single number ({names_listed(others)})"] = len(others)
    if incomplete := [name for name, complete in zip(names, usable, strict=True) if not complete]:
        exclusions[f"metrics with gaps ({names_listed(incomplete)})"] = len(incomplete)
    names = [name for name, complete in zip(names, usable, strict=True) if complete]
    return names, values[:, :, usable], exclusions


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _factuality(judged: JsonObject | None) -> float:
    return math.nan if judged is None else judged.number("Factuality", 0, 1)


def _split(human: dict[Key, JsonObject], articles: Sequence[str]) -> ScaledFeatures:
    """One indicator of the test split, or no feature where all articles are alike."""
    split = {article: row.optional_text("split") for (article, _), row in human.items()}
    test = np.array([float(split[article] == "test") for article in articles])
    return scaled({"test-split": test}, (len(articles),), ("test-split",))
