"""What would make a plan cheaper or faster: a short list, in the order of what it takes to do it.

First what changes nothing but the waiting (a larger share of randomized requests), then what
assumes or asks for less: another certified sequence, fewer models, a winner within some epsilon of
the best, a larger difference.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import replace
from typing import Literal, TypeAlias

import msgspec
import numpy as np

from equipoise.agent.inference.certificate import Sequence
from equipoise.agent.planning.problem import Case, Problem
from equipoise.agent.planning.requirement import Requirement
from equipoise.agent.planning.tables import Tables

Kind: TypeAlias = Literal["as asked", "rate", "sequence", "models", "epsilon", "effect"]
HELPS = 0.9
"""A lever must need no more than this share of the time or of the requests: less is the error of
the simulation."""
LEVER_PATHS = 80


class Lever(msgspec.Struct, frozen=True):
    """One change of the question, and what it takes then.

    value: what the changed field would be: a share, a name of a sequence, a number of models, or
    reward units; None for the plan as asked.
    """

    kind: Kind
    value: float | str | None
    row: Requirement


def levers(
    problem: Problem,
    row: Requirement,
    rates: Rows[Requirement],
    effects: Rows[Requirement],
    goals: Rows[Requirement],
    most: int | None = None,
) -> list[Lever]:
    """The plan as asked, and the levers that help.

    row: of the plan; rates, effects, goals: its tables. most: simulated experiments per case.
    """
    found = [Lever("as asked", None, row)]
    larger = [each for each in rates if each.rate > row.rate]
    if larger:
        found.append(Lever("rate", larger[-1].rate, larger[-1]))
    others = [each for each in goals if each.goal == row.goal and each.reading != row.reading]
    others = [each for each in others if each.known and each.reading != "ipw"]
    if others:
        least = min(others, key=_needed)
        found.append(Lever("sequence", least.reading, least))
    found += _fewer(problem, row, most)
    wide = [each for each in effects if each.policy == row.policy and each.effect > row.effect]
    if wide:
        largest = max(wide, key=lambda each: each.effect)
        found.append(Lever("effect", largest.effect, largest))
    return [found[0], *(each for each in found[1:] if _helps(each, row))]


def _fewer(problem: Problem, row: Requirement, most: int | None) -> list[Lever]:
    """Two models only, and a winner that need only be close to the best."""
    sequence, effect = Sequence(problem.request.sequence), row.effect / problem.scale
    found: list[Lever] = []

    def required(of: Problem, epsilon: float) -> Requirement:
        case = Case(effect, row.rate, min(row.floor, 1.0 / of.models), row.explained)
        tables = Tables(of, most=most)
        simulated = {"epsilon": epsilon, "most": LEVER_PATHS}
        return tables.required(row.policy, sequence, [case], **simulated)[0][0]  # type: ignore[arg-type]

    if problem.source == "numbers" and problem.models > 2:
        found.append(Lever("models", 2, required(two_models(problem), problem.epsilon)))
    close = effect / 2.0
    if problem.epsilon < close:
        found.append(Lever("epsilon", close * problem.scale, required(problem, close)))
    return found


def two_models(problem: Problem) -> Problem:
    """The same question about the first model and the one that serves most of today's traffic.

    What today's routing pays and is worth stays as it is: the models left out are worth what every
    model but the first is.
    """
    mix = problem.mix
    other = 1 if mix is None else 1 + int(np.argmax(mix[1:]))
    kept = [0, other]
    return replace(
        problem,
        names=tuple(problem.names[index] for index in kept),
        values=problem.values[kept],
        variances=None if problem.variances is None else problem.variances[kept],
        rated=problem.rated[kept],
        prices=problem.prices[kept],
        mix=None if mix is None else np.array([mix[0], 1.0 - mix[0]]),
        candidates=3,
    )


def _needed(row: Requirement) -> float:
    needed = row.randomized.needed
    return np.inf if needed is None or not row.known else needed


def _hours(row: Requirement) -> float:
    hours = None if row.hours is None else row.hours.needed
    return np.inf if hours is None or not row.known else hours


def _helps(lever: Lever, row: Requirement) -> bool:
    """Whether it needs less, or is over sooner where the plan knows the time."""
    if not lever.row.known:
        return False
    faster = _hours(lever.row) < HELPS * _hours(row)
    return faster or (lever.kind != "rate" and _needed(lever.row) < HELPS * _needed(row))
