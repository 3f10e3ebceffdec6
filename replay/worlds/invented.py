"""What a replay invents around the contexts, outputs and outcomes of a benchmark.

Nobody may take an invented user for their own: headlines name every invention.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

from equipoise.replay.benchmarks.base import Benchmark
from equipoise.replay.worlds.options import WorldOptions


@dataclass(frozen=True, slots=True)
class Invention:
    """Something that the benchmark does not hold: its name in a headline, and what was made up."""

    name: str
    detail: str


def traffic_is_routed(obs: int, exp_rate: float) -> bool:
    """Whether some requests are served as routed: then there is a usage log, and a routing."""
    return obs > 0 or exp_rate < 1


def inventions(
    benchmark: Benchmark, worlds: Sequence[WorldOptions], obs: int, exp_rate: float
) -> list[Invention]:
    """All that is made up in any of the worlds, the most consequential first.

    obs: rows of usage log before the first request; exp_rate: share of live requests randomized.
    """
    found = [*_benchmark(benchmark), *_users(worlds)]
    if traffic_is_routed(obs, exp_rate):
        found += _routing(worlds, obs)
    found += [*_noise(benchmark, worlds), *_losses(worlds)]
    return list(dict.fromkeys(found))


def _benchmark(benchmark: Benchmark) -> Iterator[Invention]:
    if "outcomes" in benchmark.invented:
        yield Invention("models and outcomes", "models, contexts, outputs and outcomes are drawn")
    if "costs" in benchmark.invented:
        yield Invention("prices", "prices stand in for a price list")


def _users(worlds: Sequence[WorldOptions]) -> Iterator[Invention]:
    details = []
    tastes = [1.0 - each.alpha for each in worlds]
    if any(tastes):
        details.append(f"their taste makes up {_span(tastes, percent=True)} of a reward")
    ratings = [each.rating for each in worlds]
    if any(ratings):
        details.append(f"generous ones rate up to {_span(ratings)} higher, others lower")
    if details:
        yield Invention("users", f"users: {' and '.join(details)}")


def _routing(worlds: Sequence[WorldOptions], obs: int) -> Iterator[Invention]:
    how = []
    selected = [each.confounding for each in worlds]
    if any(selected):
        how.append(f"generous users tend to get the worse models (ω = {_span(selected)})")
    if any(each.routing_skill for each in worlds):
        how.append("it knows in part what each model is worth on a request")
    if any(each.routing_context for each in worlds):
        how.append("it follows the context")
    words = " and ".join(how) or "every model equally often, as nothing is known of a real one"
    yield Invention("routing", f"routing: {words}")
    rows = f"a usage log of {obs:,} requests" if obs else "a usage log"
    yield Invention("usage log", f"{rows}, and all requests that are not randomized")


def _noise(benchmark: Benchmark, worlds: Sequence[WorldOptions]) -> Iterator[Invention]:
    binary = bool(((benchmark.outcome == 0) | (benchmark.outcome == 1)).all())
    for kind, words in (("bernoulli", "0 or 1"), ("bounded", "a Beta distribution")):
        noisy = [each for each in worlds if each.reward == kind]
        same = binary and all(each.alpha == 1 and each.rating == 0 for each in noisy)
        if noisy and not same:
            yield Invention("noise of rewards", f"rewards are drawn around their means ({words})")


def _losses(worlds: Sequence[WorldOptions]) -> Iterator[Invention]:
    default = WorldOptions()
    for name, names, detail in (
        ("missing rewards", ("missing", "missing_by_reward"), "some rewards never arrive"),
        ("delays", ("delay", "window"), "rewards come late"),
        ("failures", ("noncompliance", "undelivered"), "some models fail and others answer"),
        ("drift", ("drift",), "rewards change while the stream runs"),
        (
            "simulator faults",
            ("simulator_drift", "simulator_truncation", "simulator_missing"),
            "replays differ from what models answer",
        ),
        ("hidden features", ("hidden_outputs", "warp"), "estimators see outputs in part"),
    ):
        assert set(names) <= {field.name for field in fields(WorldOptions)}
        if any(getattr(each, n) != getattr(default, n) for each in worlds for n in names):
            yield Invention(name, detail)


def _span(numbers: Sequence[float], percent: bool = False) -> str:
    """One number, or from the lowest to the highest."""
    ends = [f"{100 * n:g}%" if percent else f"{n:g}" for n in (min(numbers), max(numbers))]
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"
