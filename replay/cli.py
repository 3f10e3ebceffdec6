"""The `equipoise` command: the agent's commands about stores, and those of the replay.

It lives in the topmost layer because it knows all the others. Numerical libraries are imported
inside the commands, so that `--help` stays fast.
"""

from __future__ import annotations

import os
import shutil
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from equipoise.agent.cli import add_command, application, run
from equipoise.agent.cli.ingest import ingest
from equipoise.agent.cli.look import look
from equipoise.agent.cli.maintenance import audit, backup, end, export, migrate, repair, restore
from equipoise.agent.cli.plan import plan_command
from equipoise.agent.cli.reference import reference
from equipoise.agent.cli.serve import init, serve
from equipoise.agent.cli.status import status

if TYPE_CHECKING:
    from equipoise.agent.planning.problem import Problem

app = application("Find out which LLM is better, with a little randomization of live traffic.")


def _numbers(name: str, text: str | None) -> list[float] | None:
    if text is None:
        return None
    numbers = []
    for part in text.split(","):
        try:
            number = float(part)
        except ValueError:
            from equipoise.agent.errors import AgentError

            raise AgentError(f"{name}: {part!r} is not a number") from None
        numbers.append(number)
    return list(dict.fromkeys(numbers))


def _families(text: str | None) -> list[str] | None:
    """The named families; None for all that the benchmark has the sources for."""
    return None if text in (None, "all") else text.split(",")


def _print_listing(rows: list[dict[str, str]], as_json: bool) -> None:
    """Rows as JSON, or as names with what there is to say of each below, wrapped and never cut."""
    if as_json:
        import msgspec

        typer.echo(msgspec.json.encode(rows).decode())
        return
    lines = textwrap.TextWrapper(
        min(shutil.get_terminal_size().columns, 100),
        initial_indent=4 * " ",
        subsequent_indent=6 * " ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    for row in rows:
        (_, name), *details = row.items()
        typer.echo(name)
        for key, value in details:
            if value:
                typer.echo(lines.fill(f"{key}: {value}"))


def replay(
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder to create for the results.",
            show_default="runs/replay, or runs/EXPERIMENT",
        ),
    ] = None,
    benchmark: Annotated[
        str, typer.Option(help="NAME or NAME:PATH; see `equipoise benchmarks`.")
    ] = "imagesegments",
    features: Annotated[
        str | None,
        typer.Option(help="with-outcome or without-outcome: whether a replay shows the outcome."),
    ] = None,
    benchmark_option: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE, an option of the benchmark; see `benchmarks NAME`."),
    ] = None,
    experiment: Annotated[
        str | None,
        typer.Option(
            help="Run a study: alignment, exp-budget, families, grid, misspecified or simulator"
            " compare estimators; allocation and gates compare policies. Each has defaults of its"
            " own (uniform at --exp-rate 1, 20,000 rows of log, 20 seeds or more), which other"
            " options override."
        ),
    ] = None,
    policies: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated presets or gate+assignment pairs; see `equipoise policies`.",
            show_default="uniform,top-two,track-and-stop",
        ),
    ] = None,
    estimators: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated families, or `all` that the benchmark has the sources for; see"
            " `equipoise estimators`.",
            show_default="all",
        ),
    ] = None,
    alpha: Annotated[
        str | None,
        typer.Option(
            help="Alignment: weight of task success in the reward, 0 to 1; a list.",
            show_default="0.5; 1 on a table of your own",
        ),
    ] = None,
    confounding: Annotated[
        str | None,
        typer.Option(
            help="Strength of self-selection, 0 or more; a list.",
            show_default="1; 0 on a table of your own",
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(help="Streams per cell; intervals are formed from 5 on.", show_default="5"),
    ] = None,
    obs: Annotated[
        int | None,
        typer.Option(
            help="Rows of usage log to invent before the start.",
            show_default="5000; 0 on a table of your own",
        ),
    ] = None,
    requests: Annotated[int | None, typer.Option(help="At most this many live requests.")] = None,
    exp_rate: Annotated[
        float | None,
        typer.Option(
            help="Share of requests to randomize, in (0, 1].",
            show_default="0.1; 1 on a table of your own",
        ),
    ] = None,
    budget: Annotated[
        int | None, typer.Option(help="Hard stop, in randomized requests.", show_default="1000")
    ] = None,
    delta: Annotated[float, typer.Option(help="Error level of certified answers.")] = 0.05,
    epsilon: Annotated[
        float, typer.Option(help="Smallest difference that matters, in reward units.")
    ] = 0.0,
    sequence: Annotated[
        str, typer.Option(help="Certified sequence: bounded, per-model or asymptotic.")
    ] = "bounded",
    world: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE, an option of the world; see `equipoise worlds`."),
    ] = None,
    jobs: Annotated[
        int,
        typer.Option(
            help="Processes, 0 for one per core; on a cluster the cells under way at a time, 0 for"
            " what its workers take."
        ),
    ] = 0,
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Run on this cluster: HOST:PORT of a Dask scheduler, `ray` or ray://HOST:PORT.",
        ),
    ] = None,
    store: Annotated[
        Path | None, typer.Option(help="Also keep the first stream's log in this SQLite store.")
    ] = None,
    force: Annotated[bool, typer.Option(help="Replace an earlier result folder.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as JSON instead of a table.")
    ] = False,
) -> None:
    """Compare policies and estimators where the truth is known.

    Replays every combination of policy, estimator, setting and seed on a benchmark. Writes
    results.parquet, summary.json and a self-contained report.html, all or nothing; a study also
    writes findings.md. After an interruption, give the same command again: finished streams are
    not run twice. Whatever a replay invents around a benchmark is named in its headline; around a
    table of your own (table:FILE) it invents nothing unless you ask for it.

    Example: equipoise replay --policies uniform,top-two --budget 1000

    Example: equipoise replay --benchmark table:outcomes.csv

    Example: equipoise replay --experiment grid --benchmark swebench:PATH

    Example: equipoise replay --experiment grid --scheduler tcp://10.0.0.5:8786
    """
    # Matrices of a replay are too small for threads: its processes fill the cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from equipoise.replay.benchmarks.base import in_flags
    from equipoise.replay.command import complete_order, run_replay

    with in_flags():
        order = complete_order(
            {
                "benchmark": benchmark,
                "benchmark_options": [
                    *([] if features is None else [f"features={features}"]),
                    *(benchmark_option or []),
                ],
                "experiment": experiment,
                "policies": None if policies is None else policies.split(","),
                "estimators": _families(estimators),
                "alphas": _numbers("--alpha", alpha),
                "confoundings": _numbers("--confounding", confounding),
                "seeds": seeds,
                "obs": obs,
                "requests": requests,
                "exp_rate": exp_rate,
                "budget": budget,
                "delta": delta,
                "epsilon": epsilon,
                "sequence": sequence,
                "world": world or [],
                "jobs": jobs,
                "scheduler": scheduler,
                "out": out,
                "store": store,
                "force": force,
                "as_json": as_json,
            }
        )
        run_replay(order)


def benchmarks(
    name: Annotated[
        str | None, typer.Argument(help="Show the options of this benchmark instead.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """List the benchmarks of `replay`, or the options of one.

    Example: equipoise benchmarks swebench
    """
    from equipoise.replay.benchmarks import describe, describe_options

    rows = describe() if name is None else describe_options(name)
    _print_listing(rows, as_json)
    if not rows and not as_json:
        typer.echo("It has no options.")


def worlds(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """List what `replay --world NAME=VALUE` can change.

    Example: equipoise worlds

    Example: equipoise replay --world reward=bounded --world missing=0.1
    """
    from equipoise.replay.worlds.options import describe_options

    _print_listing(describe_options(), as_json)


def policies(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """List the policies of `replay`, gates and assignments.

    A gate says which requests are randomized, an assignment onto which model; gate+assignment is
    a policy too.

    Example: equipoise policies

    Example: equipoise replay --policies uniform,uncertainty+top-two
    """
    from equipoise.policies.registry import describe

    _print_listing(describe(), as_json)


def estimators(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """List the estimator families and what they use.

    OBS is the usage log, EXP the randomized requests, SIM replays of cached requests.

    Example: equipoise estimators

    Example: equipoise replay --estimators ipw,hierarchical
    """
    import equipoise.agent.estimators  # noqa: F401 - registers the families
    from equipoise.agent.estimators.base import describe

    _print_listing(describe(), as_json)


def _plan_of_benchmark(name: str, world: list[str], fields: Mapping[str, Any]) -> Problem:
    from equipoise.replay.benchmarks.base import in_flags
    from equipoise.replay.planning import of_benchmark

    with in_flags():
        return of_benchmark(name, world, fields)


def _validate_plans(benchmarks: list[str], count: int, out: Path | None, as_json: bool) -> None:
    from equipoise.replay.planning import validate

    validate(benchmarks, count, out, as_json)


for command in (
    replay,
    benchmarks,
    worlds,
    policies,
    estimators,
    look,
    init,
    serve,
    ingest,
    plan_command(_plan_of_benchmark, _validate_plans),
    status,
    end,
    audit,
    export,
    backup,
    restore,
    migrate,
    repair,
    reference,
):
    add_command(app, command)


def main() -> None:
    """Entry point of the script `equipoise` and of `python -m equipoise`."""
    run(app)
