"""Instruction following: answers of models to AlpacaEval's prompts, with a judge's preference.

Reads AlpacaEval's `results/` folder as it is: for each model MODEL/model_outputs.json and
MODEL/weighted_alpaca_eval_gpt4_turbo/annotations.json.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np

from equipoise.agent.features.text import projected
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
    feature_names,
    identifiers,
    names_listed,
    objects,
    read_json,
)
from equipoise.replay.benchmarks.reading.text_features import (
    ANSWER_FEATURES,
    ANSWER_INDICATORS,
    MAX_CHARACTERS,
    PROMPT_FEATURES,
    PROMPT_INDICATORS,
    answer_features,
    prompt_features,
    words,
)

_TITLE = "Language models on AlpacaEval's instructions, judged against a baseline"
_OUTPUTS = "model_outputs.json"
_ANNOTATIONS = "annotations.json"
_MOST_DATASETS = 12
_SHAPES = 8
_REASONS = ("absent for a model", "never judged for a model", "without a verdict or an output")


@dataclass(frozen=True, slots=True)
class AlpacaevalOptions(ImportOptions):
    """What to read of AlpacaEval's results."""

    features: str = option(
        "without-outcome",
        "the outcome is a judge's preference, which nothing computes offline; with-text adds how"
        f" answers are written: {_SHAPES} columns of their n-grams, projected at random",
        choices=("without-outcome", "with-text"),
    )
    annotator: str = option(
        "weighted_alpaca_eval_gpt4_turbo", "folder of the judge whose annotations are read"
    )


@dataclass(frozen=True, slots=True)
class _Results:
    """One model's files. answers: output by instruction, None for null; verdicts: preference by
    instruction, NaN for null; datasets: by instruction; baselines: where each was met first;
    repeated: rows that were there already."""

    answers: dict[str, str | None]
    verdicts: dict[str, float]
    datasets: dict[str, str]
    baselines: dict[str, str]
    repeated: int


@benchmark("alpacaeval", _TITLE, options=AlpacaevalOptions, needs_path=True)
def load_alpacaeval(path: Path | None, options: AlpacaevalOptions) -> Benchmark:
    """Instructions × models. PATH: the folder `results`, or one that holds it.

    outcome: preference - 1, from 0 (the baseline's answer is better) to 1 (the model's is).
    outputs: `answer_features`, and with features=with-text a projection of the shapes of words;
    x: `prompt_features` and indicators of the dataset an instruction is from; both robustly
    standardized (see `scaling`), indicators as they are. cost: unknown (the file's price is the
    judge's, not the model's).

    A context's id is its dataset and a hash of its instruction, so that it does not depend on
    which others are there. Left out and counted: folders without outputs or annotations, models
    that lack too many instructions (`max_missing`), instructions that a remaining model lacks,
    that its judge did not see, or that have null for the preference or the output, repeated rows.
    Raises BenchmarkError, also where models were judged against different baselines.
    """
    assert path is not None
    if not path.is_dir():
        raise BenchmarkError(f"{path} is a file, must be AlpacaEval's folder of results")
    root = path / "results" if (path / "results").is_dir() else path
    folders, exclusions = _folders(root, options.annotator)
    names = identifiers(folder.name for folder in folders)
    keep, left_out = chosen(names, options.models)
    exclusions.update(left_out)
    folders = [folder for folder, use in zip(folders, keep, strict=True) if use]
    models = [name for name, use in zip(names, keep, strict=True) if use]
    results = [_read(folder, options.annotator) for folder in folders]
    _require_one_baseline(models, results)
    if repeated := sum(result.repeated for result in results):
        exclusions["rows that repeat another"] = repeated
    instructions = list(dict.fromkeys(text for one in results for text in one.answers))
    faults = np.array([[_fault(one, text) for one in results] for text in instructions])
    faults = faults.reshape(len(instructions), len(results))
    selected = complete(faults, _REASONS, models, options.max_missing, "instructions")
    texts = [instructions[row] for row in selected.contexts.tolist()]
    kept_results = [results[m] for m in selected.models.tolist()]
    datasets = [_dataset(results, text) for text in texts]
    x = _contexts(texts, datasets)
    answers = np.array([_answers(text, kept_results) for text in texts])
    columns = {f"answer-{name}": answers[:, :, at] for at, name in enumerate(ANSWER_FEATURES)}
    indicators = [f"answer-{name}" for name in ANSWER_INDICATORS]
    tasted = scaled(columns, answers.shape[:2], indicators)
    if options.features == "with-text":
        shapes = np.array([_shapes(text, kept_results) for text in texts])
        columns |= {f"answer-shapes-{at}": shapes[:, :, at] for at in range(_SHAPES)}
    outputs = scaled(columns, answers.shape[:2], indicators)
    outputs.require_one(root)
    outcome = np.array([[one.verdicts[text] - 1.0 for one in kept_results] for text in texts])
    return Benchmark(
        name="alpacaeval",
        title=_TITLE,
        models=tuple(models[m] for m in selected.models.tolist()),
        context_names=x.names,
        output_names=outputs.names,
        x=x.values,
        outputs=outputs.values,
        outcome=outcome,
        cost=np.full(outcome.shape, np.nan),
        context_ids=identifiers(map(_context_id, datasets, texts)),
        source=f"results/ of tatsu-lab/alpaca_eval, judged by {options.annotator}",
        tasted=len(tasted.names),
        exclusions={
            **exclusions,
            **selected.exclusions,
            **x.exclusions("context"),
            **outputs.exclusions("output"),
        },
    )


def _folders(root: Path, annotator: str) -> tuple[list[Path], dict[str, int]]:
    """The folders that hold both files, by name, and how many others there are."""
    folders = sorted(entry for entry in root.iterdir() if entry.is_dir())
    exclusions: dict[str, int] = {}
    for file in (Path(_OUTPUTS), Path(annotator) / _ANNOTATIONS):
        without = [folder.name for folder in folders if not (folder / file).is_file()]
        folders = [folder for folder in folders if (folder / file).is_file()]
        if without:
            exclusions[f"folders without {file} ({names_listed(without)})"] = len(without)
    if not folders:
        because = "; ".join(exclusions) or "it holds no folders"
        raise BenchmarkError(f"{root} holds no model with outputs and annotations: {because}")
    return folders, exclusions


def _read(folder: Path, annotator: str) -> _Results:
    file = folder / _OUTPUTS
    answers: dict[str, str | None] = {}
    verdicts: dict[str, float] = {}
    datasets: dict[str, str] = {}
    baselines: dict[str, str] = {}
    repeated = 0
    generators = set()
    for row in objects(read_json(file), str(file)):
        text = row.text("instruction")
        about = f"{row.where}: instruction {shown(text)}"
        repeated += put_once(answers, text, row.optional_text("output"), about)
        datasets[text] = row.optional_text("dataset") or ""
        generators.add(row.optional_text("generator"))
    file = folder / annotator / _ANNOTATIONS
    for row in objects(read_json(file), str(file)):
        text = row.text("instruction")
        about = f"{row.where}: instruction {shown(text)}"
        repeated += put_once(verdicts, text, row.number("preference", 1, 2), about)
        baseline = row.optional_text("generator_1") or ""
        if baseline in generators and row.optional_text("generator_2") not in generators:
            raise BenchmarkError(
                f"{row.where}: generator_1 is {shown(baseline)}, the model itself; must be the"
                " baseline, since preference 2 means that generator_2 is better"
            )
        baselines.setdefault(baseline, row.where)
    return _Results(answers, verdicts, datasets, baselines, repeated)


def _require_one_baseline(models: Sequence[str], results: Sequence[_Results]) -> None:
    baselines: dict[str, str] = {}
    for result in results:
        baselines.update({name: where for name, where in result.baselines.items() if name})
    if len(baselines) > 1:
        (first, _), (second, where) = list(baselines.items())[:2]
        raise BenchmarkError(
            f"{where}: generator_1 is {shown(second)}, others were judged against {shown(first)};"
            " must be one baseline"
        )


def _fault(result: _Results, text: str) -> int:
    if text not in result.answers:
        return 1
    if text not in result.verdicts:
        return 2
    return 3 if result.answers[text] is None or math.isnan(result.verdicts[text]) else 0


def _dataset(results: Sequence[_Results], text: str) -> str:
    return next((one.datasets[text] for one in results if one.datasets.get(text)), "prompt")


def _context_id(dataset: str, text: str) -> str:
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
    return f"{dataset}-{digest}"


def _contexts(texts: Sequence[str], datasets: Sequence[str]) -> ScaledFeatures:
    """Scaled features of the instructions, and an indicator of each dataset but the last."""
    prompts = np.array([prompt_features(text) for text in texts])
    columns = {f"prompt-{name}": prompts[:, column] for column, name in enumerate(PROMPT_FEATURES)}
    indicators = [f"prompt-{name}" for name in PROMPT_INDICATORS]
    kinds = sorted(set(datasets))[:-1][:_MOST_DATASETS]
    for name, kind in zip(feature_names(f"dataset-{kind}" for kind in kinds), kinds, strict=True):
        columns[name] = np.array([dataset == kind for dataset in datasets], dtype=np.float64)
        indicators.append(name)
    return scaled(columns, (len(texts),), indicators)


def _answers(text: str, results: Sequence[_Results]) -> list[list[float]]:
    """Unscaled features of every model's answer to one instruction."""
    prompt_words = frozenset(words(text))
    return [answer_features(prompt_words, result.answers[text] or "") for result in results]


def _shapes(text: str, results: Sequence[_Results]) -> list[list[float]]:
    """The projected shapes of every model's answer to one instruction."""
    answers = [(result.answers[text] or "")[:MAX_CHARACTERS] for result in results]
    return [projected(answer, "shapes", 1, _SHAPES).tolist() for answer in answers]
