"""Options of a world by name and text, for the command line, and what they make a replay invent.

Nobody may take an invented user for their own: headlines name every invention.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

from equipoise.replay.benchmarks.base import Benchmark, OptionError, check, limits, option, parsed

ROUTED = "routed"
"""The fallback that is the model production chose."""


class WorldError(ValueError):
    """Options that do not fit the benchmark of the world."""


@dataclass(frozen=True, slots=True)
class WorldOptions:
    """Options of a world; the metadata of each field holds its explanation, unit and limits.

    Raises ValueError naming the option, its value and its limit.
    """

    confounding: float = option(
        0.5,
        "strength of self-selection: how far the choice of model depends on the latent user type"
        " (0 = not at all)",
        low=0,
    )
    alpha: float = option(
        0.5,
        "alignment: weight of task success in the reward; the rest is a fixed linear taste for"
        " output features, which logs already show",
        low=0,
        high=1,
    )
    rating: float = option(
        0.15,
        "how far the latent type alone moves a rating, up for generous users and down for others",
        unit="reward",
        low=0,
        high=0.5,
    )
    routing_skill: float = option(
        0.0,
        "how far the choice follows what each model is worth on that very request; negative is"
        " worse than blind",
        unit="logits per standard deviation",
    )
    routing_context: float = option(
        0.0,
        "how far the choice follows the visible context, each model drawn to contexts of its own;"
        " unlike routing_skill it knows nothing the agent does not",
        unit="logits per standard deviation",
        low=0,
    )
    reward: str = option(
        "bernoulli",
        "kind of reward: bernoulli (0 or 1), bounded (Beta on [0, 1] with the same mean) or exact"
        " (the mean itself: without taste and latent types, the outcome of the benchmark)",
        choices=("bernoulli", "bounded", "exact"),
    )
    concentration: float = option(
        10.0, "concentration a + b of bounded rewards; larger is less noise", low=1
    )
    missing: float = option(
        0.0, "share of rewards that never arrive, whatever they are", unit="share", low=0, high=1
    )
    missing_by_reward: float = option(
        0.0,
        "further share that never arrives: of rewards 0 if positive, of rewards 1 if negative,"
        " in proportion between",
        unit="share",
        low=-1,
        high=1,
    )
    delay: float = option(
        0.0,
        "mean delay of a reward after its request, exponential; a request comes every second, and"
        " rewards are seen at the end of a batch of requests; 0 for rewards with their batch",
        unit="seconds",
        low=0,
    )
    delay_by_reward: float = option(
        0.0,
        "how far the delay depends on the reward: successes take 1 + this times the mean delay,"
        " failures 1 - this, rewards between are either in proportion",
        unit="share of delay",
        low=-1,
        high=1,
    )
    delay_pattern: str = option(
        "same",
        "same: delays depend on the reward alike for all models; opposite: the other way round for"
        " models worth less than the average one",
        choices=("same", "opposite"),
    )
    window: float = option(
        0.0,
        "outcome window: a reward that takes longer counts as missing, in the usage log too; 0 for"
        " 20 mean delays, without delays for nothing to wait for",
        unit="seconds",
        low=0,
    )
    noncompliance: float = option(
        0.0,
        "share of requests whose model fails and is replaced by the fallback, whatever they are;"
        " true values are then those by intention to treat",
        unit="share",
        low=0,
        high=1,
    )
    fallback: str = option(
        ROUTED,
        "who answers where a model fails: routed for the model production chose, or the name of a"
        " model",
    )
    undelivered: float = option(
        0.0,
        "share of requests whose client hears of the decision too late and serves the routed"
        " model; they are never EXP",
        unit="share",
        low=0,
        high=1,
    )
    drift: float = option(
        0.0,
        "how far rewards move while the stream runs, up to 1 if positive, down to 0 if negative;"
        " the usage log and the replays are from before",
        unit="share of the way",
        low=-1,
        high=1,
    )
    drift_of: str = option(
        "all",
        "what drifts: the rewards of all models, of the best or of the worst one, or the contexts,"
        " towards the half of them where rewards are higher (lower, if negative)",
        choices=("all", "best", "worst", "contexts"),
    )
    drift_shape: str = option(
        "linear",
        "linear: from the first request until drift_over requests have come; change: at once, then",
        choices=("linear", "change"),
    )
    drift_over: int = option(
        1000, "requests until all of the drift has happened", unit="requests", low=1
    )
    simulator_drift: float = option(
        0.0,
        "simulator fault: each model's replayed outputs are shifted this far, in a direction of"
        " its own",
        unit="standard deviations of a feature",
        low=0,
    )
    simulator_truncation: float = option(
        0.0,
        "simulator fault: share of replays cut short, the longest first; their features move half"
        " way to the low end",
        unit="share",
        low=0,
        high=1,
    )
    simulator_missing: float = option(
        0.0, "simulator fault: share of (context, model) rows absent", unit="share", low=0, high=1
    )
    simulator_missing_tilt: float = option(
        0.0,
        "how far absent rows are those with a low expected reward: 0 at random, 1 strongly",
        low=0,
        high=1,
    )
    hidden_outputs: int = option(
        0,
        "scorer misspecification: output features withheld from the agent, the most telling first",
        unit="features",
        low=0,
    )
    warp: float = option(
        0.0,
        "scorer misspecification: output features reach the agent bent, tanh(warp z) / warp of"
        " the standardized z",
        low=0,
    )
    world_seed: int = option(
        0,
        "seed of what a world fixes once: the taste, what draws contexts to models, the faults",
        low=0,
    )

    def __post_init__(self) -> None:
        check(self)
        share = self.missing + abs(self.missing_by_reward)
        if share >= 1:
            raise ValueError(
                f"missing + |missing_by_reward| is {share}, must be below 1:"
                " no reward would arrive at one end of the range"
            )


UNCHANGED_WORLD = ("reward=exact", "rating=0")
"""With alpha = 1 and no confounding the rewards of a benchmark, as they are."""
_OWN_FLAGS = ("alpha", "confounding")


def describe_options() -> list[dict[str, str]]:
    """Name, default, unit, limits and explanation of every option, those with own flags too."""
    return [
        {
            "option": declared.name,
            "default": str(declared.default),
            "unit": declared.metadata["unit"],
            "limits": limits(declared),
            "what it does": declared.metadata["explanation"],
        }
        for declared in fields(WorldOptions)
    ]


def parse_options(texts: Sequence[str]) -> WorldOptions:
    """The world of `NAME=VALUE` texts. Raises OptionError naming option, value and limit."""
    for text in texts:
        if (name := text.partition("=")[0]) in _OWN_FLAGS:
            raise OptionError("world", f"{name} is an option of its own: {name}")
    try:
        return WorldOptions(**parsed(WorldOptions, texts))
    except ValueError as error:
        raise OptionError("world", str(error)) from None


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
