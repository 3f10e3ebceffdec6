"""Replays: `equipoise replay` on the command line, `replay` in Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from equipoise.agent.config import SequenceName
from equipoise.agent.estimators.base import NOTES, own_families
from equipoise.agent.maintenance.key_file import write_key
from equipoise.policies.registry import policy
from equipoise.replay.benchmarks import Benchmark, has_own_rewards, load_from_texts
from equipoise.replay.benchmarks.base import OptionError
from equipoise.replay.harness.cluster import Source
from equipoise.replay.harness.stream import StreamSettings, experiment, run_stream, stream_key
from equipoise.replay.harness.sweep import Advance, Cell, cells, run_sweep, show_progress
from equipoise.replay.order import (
    DEFAULTS,
    Prepared,
    ReplayOrder,
    checked_families,
    checked_policies,
    describe_run,
    result_folder,
    stream_settings,
    unchanged,
    write_results,
)
from equipoise.replay.planning import certainty
from equipoise.replay.worlds import World
from equipoise.replay.worlds.options import traffic_is_routed

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console


def replay(
    benchmark: str = "imagesegments",
    *,
    features: str | None = None,
    benchmark_options: Mapping[str, object] | None = None,
    experiment: str | None = None,
    policies: str | Sequence[str] | None = None,
    estimators: str | Sequence[str] | None = None,
    alpha: float | Sequence[float] | None = None,
    confounding: float | Sequence[float] | None = None,
    seeds: int | None = None,
    obs: int | None = None,
    requests: int | None = None,
    exp_rate: float | None = None,
    budget: int | None = None,
    delta: float = 0.05,
    epsilon: float = 0.0,
    sequence: SequenceName = "bounded",
    world: Mapping[str, object] | None = None,
    jobs: int = 0,
    scheduler: str | None = None,
    out: Path | str | None = None,
    store: Path | str | None = None,
    force: bool = False,
    progress: bool = False,
) -> pd.DataFrame:
    """Run policies x estimators x scenarios x seeds on a benchmark whose truth is known.

    Options, defaults and results are those of `equipoise replay`, whose results.parquet holds the
    same rows: one per run, checkpoint and estimator. None stands for the default of the command,
    or of the experiment asked for. alpha, confounding: a number or several. world,
    benchmark_options: by name, as `equipoise worlds` and `equipoise benchmarks NAME` list them.
    jobs: processes, 0 for one per core. scheduler: address of a Dask or Ray cluster to run on, with
    the same results. Nothing is written unless `out` names a folder (which gets the files that the
    command writes) or `store` a file. progress: shown on standard error.

    Raises OptionError, BenchmarkError or WorldError naming what is wrong.

    >>> from equipoise.replay import replay
    >>> results = replay(
    ...     policies=["uniform"], estimators=["ipw"], seeds=1, obs=500, budget=100, jobs=1
    ... )
    >>> results.query("checkpoint == 100")[["policy", "estimator", "recommended"]].values.tolist()
    [['uniform', 'naive-log', 'hoeffding-tree'], ['uniform', 'ipw', 'adaptive-forest']]
    """
    order = complete_order(
        {
            "benchmark": benchmark,
            "benchmark_options": _texts({"features": features, **(benchmark_options or {})}),
            "experiment": experiment,
            "policies": _names(policies),
            "estimators": _names(estimators),
            "alphas": _several(alpha),
            "confoundings": _several(confounding),
            "seeds": seeds,
            "obs": obs,
            "requests": requests,
            "exp_rate": exp_rate,
            "budget": budget,
            "delta": delta,
            "epsilon": epsilon,
            "sequence": sequence,
            "world": _texts(world or {}),
            "jobs": jobs,
            "scheduler": scheduler,
            "out": None if out is None else Path(out),
            "store": None if store is None else Path(store),
            "force": force,
            "progress": progress,
        }
    )
    return run_order(order if out is not None else replace(order, out=None))[0]


def _texts(options: Mapping[str, object]) -> list[str]:
    return [f"{name}={value}" for name, value in options.items() if value is not None]


def _names(names: str | Sequence[str] | None) -> list[str] | None:
    """As the command takes them: one text with commas, or several."""
    if isinstance(names, str):
        return names.split(",")
    return None if names is None else list(names)


def _several(numbers: float | Sequence[float] | None) -> list[float] | None:
    if numbers is None or isinstance(numbers, Sequence):
        return None if numbers is None else list(dict.fromkeys(map(float, numbers)))
    return [float(numbers)]


def complete_order(options: Mapping[str, Any]) -> ReplayOrder:
    """An order from options, None where one was not given: the defaults of a replay, of a benchmark
    whose rewards are somebody's own, or of the experiment that is asked for.

    Raises OptionError where there is no such experiment.
    """
    defaults = DEFAULTS
    if options["experiment"] is None and has_own_rewards(options["benchmark"]):
        options, defaults = unchanged(options)
    elif options["experiment"] is not None:
        from equipoise.replay.studies.registry import planned

        defaults = {**DEFAULTS, **planned(options["experiment"], options)}
    chosen = {name: value for name, value in options.items() if value is not None}
    return ReplayOrder(**{**options, **defaults, **chosen})


def run_replay(order: ReplayOrder) -> None:
    """Run, write and print. Raises OptionError, BenchmarkError or StoreError on bad input."""
    _, text, show = run_order(order)
    if order.as_json:
        print(text, end="")
        return
    from rich.console import Console

    console = Console()
    show(console)
    assert order.out is not None
    console.print(f"Results: {order.out / 'results.parquet'}, report: {order.out / 'report.html'}")
    if order.store is not None:
        console.print(f"The first stream's log: equipoise status {order.store}")


Show: TypeAlias = "Callable[[Console], None]"


def run_order(order: ReplayOrder) -> tuple[pd.DataFrame, str, Show]:
    """Run and write; return the results, the text of summary.json and what prints the findings.

    The latter two say nothing where no folder is written.
    """
    if order.experiment is None and order.benchmark.partition(":")[0] == "openbandit":
        from equipoise.replay.openbandit.command import replay_open_bandit

        return replay_open_bandit(order)
    if order.experiment is None:
        prepared = prepare(order)
    else:
        from equipoise.replay.studies.registry import prepare as prepare_study

        prepared = prepare_study(order)
    text, show = "", cast("Show", _nothing)
    with result_folder(order) as (folder, finished):
        with _progress(order, len(prepared.sweep)) as advance:
            results = run_sweep(
                prepared.benchmark,
                prepared.settings,
                prepared.sweep,
                order.jobs,
                advance,
                finished,
                order.scheduler,
                Source(order.benchmark, tuple(order.benchmark_options)),
                _load_results,
            )
        if folder is not None:
            text, show = _write(folder, results, prepared)
    if order.store is not None:
        keep_store(order.store, prepared.benchmark, prepared.settings, prepared.sweep[0])
    return results, text, show


def _load_results() -> None:
    """Import what results are made into, while other processes are at work."""
    import_module("equipoise.replay.findings.report")


def _nothing(console: Console) -> None:
    pass


@contextmanager
def _progress(order: ReplayOrder, total: int) -> Iterator[Advance]:
    if not order.progress:
        yield lambda done: None
        return
    with show_progress(total) as advance:
        yield advance


def prepare(order: ReplayOrder) -> Prepared:
    """Check everything that can be wrong with an order, before anything runs or is written."""
    log = traffic_is_routed(order.obs, order.exp_rate)
    # Without a log these say nothing, or the same as others.
    lacking = [name for name, notes in NOTES.items() if notes.without_log and not log]
    families = checked_families(
        order.estimators or [name for name in own_families() if name not in lacking]
    )
    policies = checked_policies(order.policies)
    if order.store is not None and order.store.exists():
        raise OptionError("store", f"{order.store} exists")
    settings = stream_settings(order)
    benchmark = load_from_texts(order.benchmark, order.benchmark_options)
    sweep = cells(order.alphas, order.confoundings, policies, families, order.seeds)
    meta = describe_run(benchmark, settings, order)
    if lacking:
        meta["without_log"] = lacking
        meta["without_log_words"] = (
            "; ".join(
                f"{name} is {NOTES[name].without_log}" for name in lacking if name in families
            )
            or "they were not run"
        )
    if len(sweep) and len(order.alphas) == len(order.confoundings) == 1:
        world = World(benchmark, sweep[0].world_options(settings))
        own = order.benchmark if meta["own_rewards"] else None
        meta["certainty"] = certainty(world, settings, order.policies, own)
    return Prepared(settings, benchmark, sweep, meta)


def _write(folder: Path, results: pd.DataFrame, prepared: Prepared) -> tuple[str, Show]:
    from equipoise.replay.findings.page import write_page
    from equipoise.replay.findings.report import print_summary, write_report
    from equipoise.replay.findings.text import as_markdown, print_findings
    from equipoise.replay.results.summary import invented_sentence, summarize

    meta = prepared.meta
    if prepared.analyse is None:
        summary = summarize(results, meta)
        write_report(folder / "report.html", results, summary, meta)
        return write_results(folder, results, summary), partial(print_summary, summary=summary)
    findings = prepared.analyse(results, meta)
    first, *others = findings.sentences
    findings = replace(findings, sentences=(f"{invented_sentence(meta)} {first}", *others))
    (folder / "findings.md").write_text(as_markdown(findings), encoding="utf-8")
    write_page(folder / "report.html", findings, meta)
    text = write_results(folder, results, {**meta, "findings": findings})
    return text, partial(print_findings, findings=findings)


def keep_store(path: Path, benchmark: Benchmark, settings: StreamSettings, cell: Cell) -> None:
    """Run one cell again into a SQLite store, with its key beside it; whole or not at all."""
    from equipoise.store.sqlite import SqliteStore

    world = World(benchmark, cell.world_options(settings))
    rule = policy(cell.policy)
    config = experiment(world, settings, rule.gate.name, rule.assignment.name, cell.steering)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.partial")
    scratch.unlink(missing_ok=True)
    with SqliteStore(scratch) as store:
        for checkpoint in run_stream(world, config, settings, cell.seed, store):
            last = checkpoint.agent
        last.checkpoint()
    write_key(path, stream_key(cell.seed))
    scratch.rename(path)
