"""`equipoise replay --benchmark openbandit:PATH`: value, replay, write the folder whole, print."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from rich.console import Console

from equipoise.agent.config.experiment import MOST_MODELS
from equipoise.agent.errors import AgentError
from equipoise.agent.maintenance.atomic_files import whole_folder
from equipoise.policies.registry import policy
from equipoise.replay.benchmarks.base import BenchmarkError
from equipoise.replay.findings.page import write_page
from equipoise.replay.findings.text import print_findings
from equipoise.replay.openbandit.findings import findings
from equipoise.replay.openbandit.log import LoggedFeedback, campaign_folders, read_log
from equipoise.replay.openbandit.rejection import KEPT_PER_REFRESH, STEERING
from equipoise.replay.openbandit.results import Replay, compute, tidy

if TYPE_CHECKING:
    from equipoise.replay.order import ReplayOrder

_SENSELESS: dict[str, tuple[str, object]] = {
    "estimators": ("--estimators", None),
    "alphas": ("--alpha", [0.5]),
    "confoundings": ("--confounding", [1.0]),
    "obs": ("--obs", 5000),
    "requests": ("--requests", None),
    "exp_rate": ("--exp-rate", 0.1),
    "budget": ("--budget", None),
    "delta": ("--delta", 0.05),
    "epsilon": ("--epsilon", 0.0),
    "sequence": ("--sequence", "bounded"),
    "world": ("--world", []),
    "store": ("--store", None),
    "experiment": ("--experiment", None),
    "benchmark_options": ("--features, --benchmark-option", []),
}
"""Options of worlds and streams, and the values that they have where nobody gave them."""


def replay_open_bandit(order: ReplayOrder) -> None:
    """What `equipoise replay` does for this benchmark.

    Raises AgentError naming an option that a log without a world cannot honour; else as
    `run_open_bandit`.
    """
    for name, (option, default) in _SENSELESS.items():
        if getattr(order, name, default) != default:
            raise AgentError(
                f"{option}: a log is replayed as it is, so openbandit takes only --policies,"
                " --seeds, --jobs, --out, --force and --json"
            )
    path = order.benchmark.partition(":")[2]
    if not path:
        raise BenchmarkError(
            "openbandit needs a path: openbandit:PATH, the folder of random/, bts/"
        )
    run_open_bandit(
        Path(path),
        policies=order.policies,
        seeds=order.seeds,
        jobs=order.jobs,
        out=order.out,
        force=order.force,
        as_json=order.as_json,
    )


def run_open_bandit(
    path: Path,
    behaviour: str | None = None,
    *,
    policies: Sequence[str],
    seeds: int,
    jobs: int = 0,
    out: Path,
    force: bool = False,
    as_json: bool = False,
) -> None:
    """Value and replay on the logs at `path`; write results.parquet, summary.json, report.html.

    behaviour: "random" or "bts"; None for all that are there. policies: presets or assignments at
    a fixed rate. seeds: replays per policy. jobs: processes, 0 for one per core. Nothing is left
    under `out` on an error. Raises AgentError or BenchmarkError on bad input.
    """
    names = [_checked(name) for name in dict.fromkeys(policies)]
    wanted = [behaviour] if behaviour else list(campaign_folders(path))
    console = Console(stderr=as_json)
    with whole_folder(out, replace="summary.json" if force else None) as folder:
        logs = {name: read_log(path, name) for name in wanted}
        for log in logs.values():
            if len(log.items) > MOST_MODELS:
                raise BenchmarkError(
                    f"the {log.behaviour} log has {len(log.items)} items, must be at most"
                    f" {MOST_MODELS}: an agent takes no more models"
                )
        results = compute(logs, names, seeds, jobs, _shown)
        meta = describe(logs, names, seeds)
        found = findings(results)
        tidy(results).to_parquet(folder / "results.parquet", index=False)
        summary = {**meta, "findings": msgspec.to_builtins(found)}
        text = msgspec.json.format(msgspec.json.encode(summary), indent=2)
        (folder / "summary.json").write_bytes(text + b"\n")
        write_page(folder / "report.html", found, meta)
    if as_json:
        print(text.decode())
        return
    print_findings(console, found)
    console.print(f"Results: {out / 'results.parquet'}, report: {out / 'report.html'}")


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
        raise AgentError(f"--policies: {error}") from None
    if gate != "fixed-rate":
        raise AgentError(
            f"--policies: {name!r} has the gate {gate!r}, must be fixed-rate: a replay decides"
            " every row of a log"
        )
    return name


def _shown(replays: Iterator[Replay], total: int) -> Iterable[Replay]:
    from rich.progress import track

    return track(replays, "replaying", total=total, console=Console(stderr=True))
