"""Studies: how one is registered, found by name, and what an order for it comes to.

A study is one file and one decorator in this package: the question it asks, what it runs, and an
analysis `(results, meta) -> Findings`. On the command line it is `equipoise replay --experiment`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from equipoise.agent.estimators.base import own_families
from equipoise.policies.registry import policy
from equipoise.replay.benchmarks import load_from_texts
from equipoise.replay.benchmarks.base import OptionError
from equipoise.replay.harness.sweep import cells
from equipoise.replay.order import (
    Analysis,
    Prepared,
    ReplayOrder,
    checked_families,
    checked_policies,
    describe_run,
    describe_world,
    stream_settings,
)
from equipoise.replay.studies.streams import Arm, arm_cells, reward_variances
from equipoise.replay.worlds import World, WorldOptions
from equipoise.replay.worlds.options import parse_options

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
class Study:
    """A registered study. title: the question it asks.

    analyse: results and the description of the run (as in summary.json) to findings; pure.
    """

    name: str
    title: str
    plan: Plan
    analyse: Analysis


_STUDIES: dict[str, Study] = {}


def study(name: str, title: str, plan: Plan) -> Callable[[Analysis], Analysis]:
    """Register an analysis `(results, meta) -> Findings` under a name.

    A module of this package registers by being there.
    """

    def register(analyse: Analysis) -> Analysis:
        if name in _STUDIES:
            raise ValueError(f"experiment {name!r} is registered twice")
        _STUDIES[name] = Study(name, title, plan, analyse)
        return analyse

    return register


def studies() -> dict[str, Study]:
    """All registered experiments by name, in alphabetical order."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"{__package__}.{module.name}")
    return dict(sorted(_STUDIES.items()))


def find_study(name: str) -> Study:
    """The experiment of this name. Raises OptionError where there is none."""
    registered = studies()
    if name not in registered:
        raise OptionError("experiment", f"{name!r} is not one of {', '.join(registered)}")
    return registered[name]


BATCH = 25
"""Requests decided together: every checkpoint is a multiple of it, so that at a rate of 1 none is
overshot."""


def planned(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """What an experiment runs unless its command says otherwise, as options of an order.

    options: those of the command line, None where one was not given. Raises OptionError where
    there is no such experiment.
    """
    plan = find_study(name).plan
    return {
        "policies": planned_policies(plan),
        "alphas": list(plan.alphas),
        "confoundings": list(plan.confoundings),
        "seeds": plan.seeds,
        "obs": plan.obs,
        "exp_rate": plan.exp_rate,
        # A number of requests says by itself how long a stream is.
        "budget": plan.budget if options["requests"] is None else None,
        "out": Path("runs") / name,
    }


def planned_policies(plan: Plan) -> list[str]:
    """The one policy of an experiment, or those of its arms."""
    return list(dict.fromkeys(arm.policy for arm in plan.arms)) or [plan.policy]


def prepare(order: ReplayOrder) -> Prepared:
    """Check everything that can be wrong with an order, before anything runs or is written."""
    chosen = find_study(order.experiment or "")
    plan = chosen.plan
    families = checked_families(order.estimators or plan.estimators or own_families())
    missing = [name for name in plan.needs if name not in families]
    if missing:
        raise OptionError(
            "estimators",
            f"{', '.join(missing)} missing; the experiment {chosen.name} compares"
            f" {', '.join(plan.needs)}",
        )
    policies = checked_policies(order.policies)
    if plan.arms and (order.estimators or policies != tuple(planned_policies(plan))):
        raise OptionError(
            "policies, estimators",
            f"the experiment {chosen.name} compares arms of its own; leave them out",
        )
    if len(policies) > 1 and not plan.arms:
        raise OptionError("policies", f"an experiment has one policy, got {', '.join(policies)}")
    if plan.extra and policy(policies[0]).uses_estimate:
        raise OptionError(
            "policies",
            f"{policies[0]} looks at estimates; the experiment {chosen.name} compares"
            f" {', '.join(plan.extra)} on the stream of {', '.join(plan.needs)}",
        )
    if order.store is not None:
        raise OptionError("store", "an experiment keeps no store; leave out one of the two")
    variants = _worlds(chosen, order.world)
    settings = replace(stream_settings(order), batch=BATCH)
    if plan.refresh is not None:
        settings = replace(settings, refresh=max(BATCH, round(plan.refresh / order.exp_rate)))
    benchmark = load_from_texts(order.benchmark, order.benchmark_options)
    scenarios = order.alphas, order.confoundings
    if plan.arms:
        # Where no cost is known, a price in the rule changes nothing.
        arms = [arm for arm in plan.arms if not arm.priced or np.isfinite(benchmark.cost).all()]
        sweep = arm_cells(arms, *scenarios, order.seeds, variants)
    else:
        sweep = cells(*scenarios, policies, (*families, *plan.extra), order.seeds, variants)
    meta = describe_run(benchmark, settings, order, [world for _, world in variants])
    places = {
        (cell.world, cell.alpha, cell.confounding): cell.world_options(settings) for cell in sweep
    }
    meta["scenarios"] = [
        {"world": place[0], **_described(World(benchmark, options), plan)}
        for place, options in places.items()
    ]
    meta["experiment"] = chosen.name
    meta["worlds"] = {each.name: list(each.options) for each in plan.variants if each.name}
    if plan.arms:
        meta["options"]["arms"] = [arm.label for arm in arms]
    else:
        meta["options"]["policy"] = policies[0]
        meta["options"]["estimators"] = [*families, *plan.extra]
    return Prepared(settings, benchmark, sweep, meta, chosen.analyse)


def _described(world: World, plan: Plan) -> dict[str, Any]:
    """A scenario; with the noise of its rewards where allocations are compared."""
    return {**describe_world(world), **(reward_variances(world) if plan.arms else {})}


def _worlds(chosen: Study, texts: Sequence[str]) -> list[tuple[str, WorldOptions]]:
    """Labels and options of the experiment's variants on top of the options given."""
    varied = {text.partition("=")[0] for each in chosen.plan.variants for text in each.options}
    for text in texts:
        name = text.partition("=")[0]
        if name in varied:
            raise OptionError("world", f"{name} is what the experiment {chosen.name} varies")
    return [(each.name, parse_options([*texts, *each.options])) for each in chosen.plan.variants]
