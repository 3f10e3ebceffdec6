"""`equipoise replay --benchmark openbandit:PATH`: value the policies, replay, write the folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from equipoise.agent.config.experiment import MOST_MODELS
from equipoise.agent.maintenance.atomic_files import whole_folder
from equipoise.policies.registry import policy
from equipoise.replay.benchmarks.base import BenchmarkError, OptionError
from equipoise.replay.findings.page import write_page
from equipoise.replay.findings.text import print_findings
from equipoise.replay.openbandit.findings import findings
from equipoise.replay.openbandit.log import LoggedFeedback, campaign_folders, read_log
from equipoise.replay.openbandit.replays import KEPT_PER_REFRESH, STEERING, Replay, compute, tidy
from equipoise.replay.order import DEFAULTS, ReplayOrder, write_results

_SENSELESS = {
    "estimators": "estimators",
    "alphas": "alpha",
    "confoundings": "confounding",
    **{name: name for name in ("obs", "requests", "exp_rate", "budget", "delta", "epsilon")},
    **{name: name for name in ("sequence", "world", "store", "experiment", "scheduler")},
    "benchmark_options": "features, benchmark_options",
}
"""Fields of an order that must have their defaults, with the options of worlds and streams."""


def replay_open_bandit(
    order: ReplayOrder,
) -> tuple[pd.DataFrame, str, Callable[[Console], None]]:
    """Value and replay on the logs of a benchmark `openbandit:PATH`, as `run_order` does.

    PATH: a folder of random/ and bts/, or one of the two. Nothing is left under `out` on an error.
    Raises OptionError naming an option that a log without a world cannot honour, or a policy;
    BenchmarkError for logs that cannot be used.
    """
    for name, option in _SENSELESS.items():
        if getattr(order, name) != DEFAULTS.get(name):
            raise OptionError(
                option,
                "a log is replayed as it is: openbandit takes policies, seeds, jobs, out and force",
            )
    location = order.benchmark.partition(":")[2]
    if not location:
        raise BenchmarkError(
            "openbandit needs a path: openbandit:PATH, the folder of random/, bts/"
        )
    policies = [_checked(name) for name in dict.fromkeys(order.policies)]
    folders: AbstractContextManager[Path | None] = nullcontext()
    if order.out is not None:
        folders = whole_folder(order.out, replace="summary.json" if order.force else None)
    with folders as folder:
        logs = {name: read_log(Path(location), name) for name in campaign_folders(Path(location))}
        for log in logs.values():
            if len(log.items) > MOST_MODELS:
                raise BenchmarkError(
                    f"the {log.behaviour} log has {len(log.items)} items, must be at most"
                    f" {MOST_MODELS}: an agent takes no more models"
                )
        progress = {"progress": _progress} if order.progress else {}
        results = compute(logs, policies, order.seeds, order.jobs, **progress)
        meta, frame, text = describe(logs, policies, order.seeds), tidy(results), ""
        report = findings(results)
        if folder is not None:
            text = write_results(folder, frame, {**meta, "findings": report})
            write_page(folder / "report.html", report, meta)
    return frame, text, partial(print_findings, findings=report)


def describe(
    logs: Mapping[str, LoggedFeedback], policies: Sequence[str], seeds: int
) -> dict[str, Any]:
    """What a reader of the results needs to know of what was run."""
    from importlib.metadata import version

    first = next(iter(logs.values()))
    exclusions = {
        f"{name} log: {what}": count
        for name, log in logs.items()
        for what, count in log.exclusions.items()
    }
    return {
        "benchmark": "openbandit",
        "title": "A real log of recommendations with its propensities",
        "source": "the Open Bandit Dataset, st-tech/zr-obp (Saito et al. 2020, CC BY 4.0)",
        "exclusions": exclusions,
        "options": {
            "seeds": seeds,
            "policies": ", ".join(policies),
            "logs": ", ".join(f"{name}: {len(log):,} rows" for name, log in logs.items()),
            "items": len(first.items),
            "positions": ", ".join(first.positions),
            "steering": STEERING,
            "kept_rows_per_refresh": KEPT_PER_REFRESH,
        },
        "version": version("equipoise"),
    }


def _checked(name: str) -> str:
    try:
        gate = policy(name).gate.name
    except ValueError as error:
        raise OptionError("policies", str(error)) from None
    if gate != "fixed-rate":
        raise OptionError(
            "policies",
            f"{name!r} has the gate {gate!r}, must be fixed-rate: a replay decides every row of a"
            " log",
        )
    return name


def _progress(replays: Iterator[Replay], total: int) -> Iterable[Replay]:
    from rich.progress import track

    return track(replays, "replaying", total=total, console=Console(stderr=True))
