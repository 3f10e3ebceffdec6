"""The cheapest split of money between EXP, replays (SIM) and waiting.

What replays teach is which output to expect at a context, by a regression per model. Breiman and
Freedman (1983): least squares with p columns on n rows leaves s (1 + p / (n - p - 1)) of the
variance s that no number of rows explains. The part of a reward that replays leave unexplained is
an upper bound of s here, so the curve is a pessimistic one
(tests/replay/test_planning_split.py holds it against replays of a linear world).
"""

from __future__ import annotations

import msgspec
import numpy as np

from equipoise.agent.inference.certificate import Sequence
from equipoise.agent.planning.problem import Case, Problem
from equipoise.agent.planning.requirement import Requirement
from equipoise.agent.planning.tables import Tables
from equipoise.store.batches import Floats

SPLITS = 7
NEARLY_ALL = 0.98
"""The most replays tried explain this share of what unlimited ones would."""


class Split(msgspec.Struct, frozen=True):
    """One way to pay for an answer.

    replays: contexts, each replayed on every model; explained: share of the variance of rewards
    that they predict; randomized, hours: to plan for, None where unknown; exp_money, replay_money,
    waiting_money: USD, and total of the three. cheapest: of those that are in time.
    """

    replays: float
    explained: float
    randomized: float | None
    hours: float | None
    exp_money: float | None
    replay_money: float
    waiting_money: float
    total: float | None
    cheapest: bool = False


def explained_by(replays: Floats, columns: int, explainable: float) -> Floats:
    """Share of the variance that so many replays per model predict. 0 where they are too few."""
    free = replays - columns - 1.0
    share = 1.0 - (1.0 - explainable) * (1.0 + columns / np.maximum(free, 1e-9))
    return np.where(free > 0, np.maximum(share, 0.0), 0.0)


def missing(problem: Problem) -> list[str]:
    """Fields without which nobody can say what a replay is worth."""
    found = [name for name in ("explainable", "columns") if getattr(problem, name) is None]
    return found if np.isfinite(problem.prices).all() else [*found, "price"]


def splits(tables: Tables, problem: Problem, row: Requirement) -> list[Split]:
    """Ways to reach the goal of a row under its policy, by the number of replays."""
    request = problem.request
    explainable, columns = problem.explainable, problem.columns
    assert explainable is not None
    assert columns is not None
    count = np.unique([0.0, *_grid(columns, explainable)])
    shares = explained_by(count, columns, explainable)
    # What is predicted already is no reason for replays that would predict less.
    more = (count == 0) | (shares > row.explained)
    count, shares = count[more], shares[more]
    effect = row.effect / problem.scale
    cases = [Case(effect, row.rate, row.floor, share) for share in shares.tolist()]
    rows = [row]
    if len(cases) > 1:
        # Without replays it is the experiment that is recommended.
        rows += tables.required(row.policy, Sequence(request.sequence), cases[1:], most=160)[0]
    per_context = float(problem.prices.sum())
    if request.replay_price is not None:
        per_context = request.replay_price * problem.models
    smooth = _smoothed(rows)
    found = [
        _split(problem, each, factor, replays, per_context)
        for each, factor, replays in zip(rows, smooth, count.tolist(), strict=True)
    ]
    fit = [each for each in found if each.total is not None and _in_time(each, request.horizon)]
    best = min(fit, key=lambda each: each.total or 0.0, default=None)
    return [msgspec.structs.replace(each, cheapest=each is best) for each in found]


def _grid(columns: int, explainable: float) -> list[float]:
    """Replays from where they begin to explain anything to where they explain nearly all."""
    if explainable <= 0:
        return []
    odds = explainable / (1.0 - explainable)
    first = columns + 1.0 + columns / odds
    last = columns + 1.0 + columns / (odds * (1.0 - NEARLY_ALL))
    return [float(round(each)) for each in np.geomspace(first * 1.1, last, SPLITS - 1)]


def _smoothed(rows: list[Requirement]) -> list[float]:
    """What to multiply each row by to lie on one line from the first row on.

    The certified variance is linear in the share that is left unexplained; the simulation's own
    error would otherwise decide between neighbours.
    """
    needed = np.array([row.randomized.needed or np.nan for row in rows])
    share = np.array([row.explained for row in rows]) - rows[0].explained
    known = np.isfinite(needed) & (share != 0)
    if not np.isfinite(needed[0]) or known.sum() < 2:
        return [1.0] * len(rows)
    slope = (share[known] @ (needed[known] - needed[0])) / (share[known] @ share[known])
    line = np.clip(needed[0] + slope * share, 0.1 * needed[0], 10.0 * needed[0])
    factors: list[float] = np.where(np.isfinite(needed), line / needed, 1.0).tolist()
    return factors


def _split(
    problem: Problem, row: Requirement, factor: float, replays: float, per_context: float
) -> Split:
    window = problem.request.window

    def scaled(value: float | None, fixed: float = 0.0) -> float | None:
        return None if value is None else fixed + (value - fixed) * factor

    hours = None if row.hours is None else scaled(row.hours.needed, window)
    paid = None if row.money is None else scaled(row.money.needed)
    replayed, waited = replays * per_context, problem.request.hour_price * (hours or 0.0)
    known = row.known and paid is not None
    return Split(
        replays=replays,
        explained=row.explained,
        randomized=scaled(row.randomized.needed),
        hours=hours,
        exp_money=paid,
        replay_money=replayed,
        waiting_money=waited,
        total=(paid or 0.0) + replayed + waited if known else None,
    )


def _in_time(split: Split, horizon: float | None) -> bool:
    return horizon is None or split.hours is None or split.hours <= horizon
