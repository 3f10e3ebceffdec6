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
from equipoise.agent.planning.simulation.forward import MOST_REQUESTS
from equipoise.agent.planning.simulation.verdicts import verdicts
from equipoise.agent.planning.tables import Tables
from equipoise.store.batches import Floats

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
    # As the certificate: of all requests, where missing rewards count as declared.
    close = (effect if problem.request.of_raters else problem.difference(effect)) / 2.0
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


LOOKS = 32
FIRST, LAST = 1.0 / 60.0, 2.5
"""Looks run from the first to the last multiple of the requests that the plan is for."""
PATHS = 1000
"""Simulated experiments a world of two models, in proportion fewer of more: a share is right to
about 0.02."""


class World(msgspec.Struct, frozen=True):
    """What is said where one thing is true.

    lead: true lead of the candidate over all others, reward units. yes, no: share of experiments
    that ended so by each look of the question; the others cannot say. answered, hours: requests and
    time until the wanted share has an answer, None where that is beyond the last look. half_width:
    certified, of the candidate's lead over the best of the others at the look `at`; None where
    nothing is certified of it.
    """

    lead: float
    yes: list[float]
    no: list[float]
    answered: float | None
    hours: float | None
    half_width: float | None


class Question(msgspec.Struct, frozen=True):
    """Is `candidate` better than every other model by `difference`?

    Yes: certified better. No: certified not to be better by the difference. The first of them ends
    an experiment; each is wrong in at most delta of the experiments in which it is not true.
    requests, randomized, hours: at the looks. at: the look that the plan, or the horizon, is for.
    """

    candidate: str
    difference: float
    requests: list[float]
    randomized: list[float]
    hours: list[float] | None
    at: int
    worlds: list[World]


def question(problem: Problem, row: Requirement | None, most: int | None = None) -> Question | None:
    """The question of a plan; None where nobody knows how long to look.

    row: of the plan; most: simulated experiments a world, at most.
    """
    request = problem.request
    planned = None if row is None else row.requests.needed
    if request.horizon is not None and request.traffic is not None:
        planned = (request.horizon - request.window) * request.traffic
    if row is None or planned is None or not 1.0 <= planned * LAST <= MOST_REQUESTS:
        return None
    effect = row.effect / problem.scale
    planned = float(np.round(planned))
    grid = np.round(np.geomspace(max(planned * FIRST, 1.0), planned * LAST, LOOKS))
    trail = np.unique([*grid, planned])
    at = int(np.searchsorted(trail, planned))
    difference = problem.difference(effect)
    paths = max(2 * PATHS // problem.models, 100)
    paths = paths if most is None else min(paths, most)
    leads = [effect, 0.0, *([-effect] if problem.values[0] >= effect else [])]
    worlds = []
    for lead in leads:
        case = Case(lead, row.rate, row.floor, row.explained)
        design = problem.design(row.policy, Sequence(request.sequence), [case], paths)
        rng = np.random.default_rng(request.seed)
        said = verdicts(design, 0, difference, trail.tolist(), at, rng)
        answered = _reached(trail, said.yes + said.no, request.power)
        worlds.append(
            World(
                lead=lead * problem.scale,
                yes=said.yes.tolist(),
                no=said.no.tolist(),
                answered=answered,
                hours=None if answered is None else _answered_after(problem, answered),
                half_width=said.half_width * problem.scale / problem.simulated(1.0)
                if said.half_width < 1.0
                else None,
            )
        )
    return Question(
        candidate=problem.names[0],
        difference=effect * problem.scale,
        requests=trail.tolist(),
        randomized=(trail * row.rate).tolist(),
        hours=None
        if request.traffic is None
        else [each / request.traffic + request.window for each in trail.tolist()],
        at=at,
        worlds=worlds,
    )


def _reached(trail: Floats, share: Floats, wanted: float) -> float | None:
    """Requests at which a rising share reaches what is wanted, between two looks by a line."""
    enough = np.flatnonzero(share >= wanted)
    if not len(enough):
        return None
    last = int(enough[0])
    if last == 0:
        return float(trail[0])
    ends = share[last - 1 : last + 1]
    return float(np.interp(wanted, ends, trail[last - 1 : last + 1]))


def _answered_after(problem: Problem, requests: float) -> float | None:
    traffic = problem.request.traffic
    return None if traffic is None else requests / traffic + problem.request.window
