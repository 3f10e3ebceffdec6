"""Coding: systems on SWE-bench issues, with what each attempt cost and whether it passed.

Reads `leaderboards.json` of the SWE-bench site as it is:
`leaderboards[].results[].per_instance_details[instance_id] = {resolved, cost, api_calls}`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from equipoise.replay.benchmarks.base import Benchmark, BenchmarkError, benchmark, option
from equipoise.replay.benchmarks.reading.complete import (
    ImportOptions,
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
    json_object,
    names_listed,
    one_line,
    read_json,
)
from equipoise.store.batches import Floats

_TITLE = "Coding systems on SWE-bench issues"
_DEFAULT_BOARD = "bash-only"
_MOST_REPOSITORIES = 8
_FEWEST_ISSUES = 5
_DOUBTFUL = 5.0  # percentage points between a result's details and its headline
_ISSUE = re.compile(r"(?P<repository>.+)-(?P<number>\d{1,15})")
_REASONS = ("absent for a model", "without resolved", "without cost or api_calls")


@dataclass(frozen=True, slots=True)
class SwebenchOptions(ImportOptions):
    """What to read of a leaderboard file."""

    features: str = option(
        "with-outcome",
        "whether `resolved` is an output feature: tests can be run offline",
        choices=("with-outcome", "without-outcome"),
    )
    board: str = option(
        "", f"name of the leaderboard; if empty {_DEFAULT_BOARD}, or else the first with details"
    )


@benchmark("swebench", _TITLE, options=SwebenchOptions, needs_path=True)
def load_swebench(path: Path | None, options: SwebenchOptions) -> Benchmark:
    """Issues × systems of one board. PATH: leaderboards.json, or its folder.

    outcome: 1 where the tests of the issue pass. cost: USD that the attempt really cost.
    outputs: cost and number of model calls, each as it is and as a logarithm (of 1 + US cents,
    of 1 + calls), robustly standardized (see `scaling`); with features=with-outcome also
    resolved (0 or 1). x: indicators of the most frequent repositories (at most 8, each with 5
    issues and more, one repository always being the rest), and the recency of the issue: the rank
    of its number within its repository, from -1 (oldest) to 1.

    Models are named by `names.identifiers` of a result's name. Left out and counted: results
    without per-instance details, models that lack too many issues (`max_missing`), issues that a
    remaining model lacks or that miss resolved, cost or api_calls. `source` says where a result's
    details contradict its own headline. Raises BenchmarkError.
    """
    assert path is not None
    file = find_file(path, "leaderboards.json", ("", "data"))
    boards = json_object(read_json(file), str(file)).objects("leaderboards")
    results, exclusions = _results(_board(boards, options.board, str(file)), str(file))
    models = identifiers(result.text("name") for result, _ in results)
    keep, left_out = chosen(models, options.models)
    issues = sorted({issue for _, details in results for issue in details})
    table = np.full((len(issues), len(models), 3), np.nan)
    faults = np.full(table.shape[:2], 1)
    row_of = {issue: row for row, issue in enumerate(issues)}
    for column, (_, details) in enumerate(results):
        for issue, cell in details.items():
            values = cell.flag("resolved"), cell.number("cost", 0), cell.number("api_calls", 0)
            table[row_of[issue], column] = values
            unknown = np.isnan(values)
            faults[row_of[issue], column] = 2 if unknown[0] else 3 if unknown.any() else 0
    names = [name for name, use in zip(models, keep, strict=True) if use]
    selected = complete(faults[:, keep], _REASONS, names, options.max_missing, "issues")
    table = table[:, keep][np.ix_(selected.contexts, selected.models)]
    kept_issues = [issues[row] for row in selected.contexts.tolist()]
    resolved, cost, calls = np.moveaxis(table, -1, 0)
    doubts = _doubts(results, models)
    columns = {
        "cost": cost,
        "log-cost": np.log1p(100 * cost),
        "calls": calls,
        "log-calls": np.log1p(calls),
    }
    with_outcome = options.features == "with-outcome"
    if with_outcome:
        columns["resolved"] = resolved
    outputs = scaled(columns, resolved.shape, indicators=("resolved",))
    outputs.require_one(file)
    contexts = _issue_features(kept_issues)
    x = scaled(contexts, (len(kept_issues),), indicators=tuple(contexts))
    return Benchmark(
        name="swebench",
        title=_TITLE,
        models=tuple(names[m] for m in selected.models.tolist()),
        context_names=x.names,
        output_names=outputs.names,
        x=x.values,
        outputs=outputs.values,
        outcome=resolved,
        cost=cost,
        context_ids=identifiers(kept_issues, empty="issue"),
        source="; ".join(("data/leaderboards.json of the SWE-bench site", *doubts)),
        exclusions={
            **exclusions,
            **left_out,
            **selected.exclusions,
            **x.exclusions("context"),
            **outputs.exclusions("output"),
        },
        outcome_features=with_outcome,
    )


def _board(boards: Sequence[JsonObject], wanted: str, file: str) -> JsonObject:
    named: dict[str, JsonObject] = {}
    for board in boards:
        name = board.text("name")
        put_once(named, name, board, f"{file}: board {name!r}")
    if not named:
        raise BenchmarkError(f"{file}: leaderboards is an empty list, must hold a board")
    if wanted:
        if wanted not in named:
            raise BenchmarkError(f"{file}: no board {wanted!r}; there are: {names_listed(named)}")
        return named[wanted]
    if _DEFAULT_BOARD in named:
        return named[_DEFAULT_BOARD]
    with_details = (
        board
        for board in named.values()
        if any(result.fields.get("per_instance_details") for result in board.objects("results"))
    )
    return next(with_details, boards[0])


def _results(
    board: JsonObject, file: str
) -> tuple[list[tuple[JsonObject, dict[str, JsonObject]]], dict[str, int]]:
    """The results of a board that have details, and how many have none."""
    where = f"{file}, board {one_line(board.text('name'))}"
    detailed, without = [], []
    for entry in board.objects("results"):
        name = entry.text("name")
        result = JsonObject(f"{where}, {one_line(name)}", entry.fields)
        details = result.named_objects("per_instance_details")
        if details:
            detailed.append((result, details))
        else:
            without.append(name)
    if not detailed:
        raise BenchmarkError(f"{where}: no result has per_instance_details")
    if not without:
        return detailed, {}
    reason = f"results without per-instance details ({names_listed(without)})"
    return detailed, {reason: len(without)}


def _doubts(
    results: Sequence[tuple[JsonObject, dict[str, JsonObject]]], models: Sequence[str]
) -> list[str]:
    """Where the issues of a result do not add up to the share that it reports itself.

    Nothing tells which of the two is right, so the result stays and the reader is told.
    """
    doubts = []
    for (result, details), model in zip(results, models, strict=True):
        reported = result.number("resolved", 0, 100)
        share = 100 * float(np.mean([cell.flag("resolved") for cell in details.values()]))
        if abs(share - reported) > _DOUBTFUL:
            doubts.append(
                f"{model} resolved {share:.1f}% by its details, {reported:.1f}% by its headline"
            )
    return doubts


def _issue_features(issues: Sequence[str]) -> dict[str, Floats]:
    """Context features by name, each (C,), from ids such as `django__django-11099`."""
    parts = [_ISSUE.fullmatch(issue) for issue in issues]
    repositories = np.array(
        [part["repository"] if part else issue for part, issue in zip(parts, issues, strict=True)]
    )
    numbers = np.array([float(part["number"]) if part else 0.0 for part in parts])
    counts = Counter(repositories.tolist()).most_common()
    frequent = [name for name, count in counts if count >= _FEWEST_ISSUES][:_MOST_REPOSITORIES]
    if len(frequent) == len(counts):
        frequent = frequent[:-1]  # all indicators together would equal the intercept
    columns = {
        name: (repositories == repository).astype(np.float64)
        for name, repository in zip(
            feature_names(f"repository-{name.rpartition('__')[2]}" for name in frequent),
            frequent,
            strict=True,
        )
    }
    recency = np.zeros(len(issues))
    for name in np.unique(repositories):
        rows = np.flatnonzero(repositories == name)
        ranks = np.argsort(np.argsort(numbers[rows], kind="stable"), kind="stable")
        recency[rows] = 2 * (ranks + 0.5) / len(rows) - 1
    return {**columns, "recency": recency}
