"""The registry of experiments: one file and one decorator each, found by name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from equipoise.agent.errors import AgentError
from equipoise.replay.order import Analysis
from equipoise.replay.studies.streams import Arm

FIFTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, slots=True)
class Variant:
    """A world that differs from the others of an experiment.

    name: its label in the column `world` of the results. options: NAME=VALUE texts.
    """

    name: str = ""
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """What an experiment runs unless its command says otherwise.

    estimators: families, () for all. needs: those its analysis cannot do without. extra: rows of
    results besides families (`direct-method`). exp_rate: 1, since traffic that is not randomized
    costs time and changes nothing under a policy that does not look at it.
    """

    alphas: tuple[float, ...]
    confoundings: tuple[float, ...]
    budget: int
    seeds: int = 20
    obs: int = 20_000
    exp_rate: float = 1.0
    policy: str = "uniform"
    estimators: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    variants: tuple[Variant, ...] = (Variant(),)
    arms: tuple[Arm, ...] = ()
    refresh: int | None = None


@dataclass(frozen=True, slots=True)
class Experiment:
    """A registered experiment. title: the question it asks.

    analyse: results and the description of the run (as in summary.json) to findings; pure.
    """

    name: str
    title: str
    plan: Plan
    analyse: Analysis


_EXPERIMENTS: dict[str, Experiment] = {}


def experiment(name: str, title: str, plan: Plan) -> Callable[[Analysis], Analysis]:
    """Register an analysis `(results, meta) -> Findings` under a name.

    A module of this package registers by being there.
    """

    def register(analyse: Analysis) -> Analysis:
        if name in _EXPERIMENTS:
            raise ValueError(f"experiment {name!r} is registered twice")
        _EXPERIMENTS[name] = Experiment(name, title, plan, analyse)
        return analyse

    return register


def experiments() -> dict[str, Experiment]:
    """All registered experiments by name, in alphabetical order."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"{__package__}.{module.name}")
    return dict(sorted(_EXPERIMENTS.items()))


def find_experiment(name: str) -> Experiment:
    """The experiment of this name. Raises AgentError where there is none."""
    known = experiments()
    if name not in known:
        raise AgentError(f"--experiment: {name!r} is not one of {', '.join(known)}")
    return known[name]
