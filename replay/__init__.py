"""Replays: allocation policies and estimators against cached benchmarks whose truth is known.

`replay` runs policies x estimators x scenarios x seeds and returns a table; `equipoise replay` is
the same on the command line.

    cli          commands, of the agent too
    command      a replay from its order to its files; `replay`
    order        options, checks, description
    benchmarks   contexts x models: features, outcomes, costs
    worlds       users, routing, rewards, drift: what production adds to a benchmark
    harness      streams, sweeps, clusters, finished cells, rows of results
    results      averages with intervals, summary, headline
    findings     sentences, tables and figures; drawn as page, terminal, Markdown
    studies      questions with their own analysis: `--experiment NAME`
    openbandit   a real log without known truth
    planning     plans from benchmarks, and plans against what replays needed
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from equipoise.replay.command import replay

__all__ = ["replay"]


def __getattr__(name: str) -> object:
    # Imported when asked for: `equipoise --help` needs none of the numerical libraries.
    if name == "replay":
        from equipoise.replay.command import replay

        return replay
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
