"""Is a model better by D: what such an experiment says, and when, if it is and if it is not."""

from __future__ import annotations

import msgspec
import numpy as np

from equipoise.agent.inference.certificate import Sequence
from equipoise.agent.planning.problem import Case, Problem
from equipoise.agent.planning.requirement import Requirement
from equipoise.agent.planning.simulation.forward import MOST_REQUESTS
from equipoise.agent.planning.simulation.verdicts import verdicts
from equipoise.store.batches import Floats

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
    # What the difference is of all requests, where missing rewards count as declared.
    difference = effect if problem.missing is None else effect * float(problem.rated.mean())
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
                hours=None if answered is None else _hours(problem, answered),
                half_width=said.half_width * problem.scale if said.half_width < 1.0 else None,
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


def _hours(problem: Problem, requests: float) -> float | None:
    traffic = problem.request.traffic
    return None if traffic is None else requests / traffic + problem.request.window
