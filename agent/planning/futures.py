"""Futures of a running experiment: its certified sums simulated on until a decision.

A future draws what is not known: the true values and the shares of rewards that go missing, from
what the randomized rewards say; then the rewards to come, which enter the sums as they really do.
It lasts until something is certified, and is compared with what the limits in force leave. When
that is follows from the pace of the traffic and from the watermark, which a reward that never comes
holds back until its window ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from equipoise.agent.answers.answers import Answers
from equipoise.agent.inference.certificate import Sequence
from equipoise.agent.inference.levels import split_level
from equipoise.agent.planning.pace import Pace
from equipoise.agent.planning.problem import Case, Problem
from equipoise.agent.planning.requirement import YEAR
from equipoise.agent.planning.simulation.forward import Design, Ends, simulate
from equipoise.store.batches import Closure, Flags, Floats

PATHS = 300
STEP = 1.15
"""Looks of the simulation are so far apart."""
FARTHEST, FARTHEST_RANDOMIZED = 300.0, 100_000.0
"""It ends where so many times the rows so far, or so many randomized requests, have come."""
RECENT = 5_000
"""Newest decisions that say which share of the requests enters the certified sums, and how long a
reward takes."""
LATEST = 0.95
"""Quantile of the delays of rewards that the watermark is taken to wait for."""
_UNDECIDED = (Closure.PAUSED, Closure.OBSERVING, Closure.BUDGET)


@dataclass(frozen=True, slots=True)
class Limit:
    """A hard stop. left: what the rows beyond the watermark may still spend; costs: (K,) of a
    randomized row by its model; covers: whether any request may be randomized now."""

    name: str
    left: float
    costs: Floats
    covers: bool


@dataclass(frozen=True, slots=True)
class Futures:
    """N futures, each from the watermark on.

    rows, randomized: (N,) certified rows, and those of them that are randomized, until something is
    certified; inf where nothing is before the simulation ends. hours: (N,) from now on, None where
    the pace is unknown. within: (N,) whether all limits reach that far. ruled_out: (N,) whether
    missing rewards that count as the worst case rule a decision out. limit: the one that ends most
    of the others, None where none does. requests_per_hour: the pace of late; entering: share of the
    requests that enter the certified sums.
    """

    rows: Floats
    randomized: Floats
    hours: Floats | None
    within: Flags
    ruled_out: Flags
    limit: str | None
    requests_per_hour: float | None
    entering: float


def futures(
    answers: Answers, problem: Problem, rewards: Floats, at: float, told: bool = False
) -> Futures:
    """The futures of an experiment.

    rewards: (K,) that the values rest on; at: seconds since the epoch, now; told: whether the
    traffic is that of the request, rather than that of the log.
    """
    rng = np.random.default_rng(problem.request.seed)
    pace = pace_of(answers, at)
    design = _design(answers, problem, rewards, rng)
    known = answers.view().certified.overall.rows if problem.start is not None else 0.0
    ends = simulate(
        design,
        rng,
        start=None if problem.start is None else problem.start(PATHS, len(design.caps())),
        trail=_looks(design, known, pace),
    )
    hours = _hours(answers, ends.requests, pace, rng, problem.request.traffic if told else None)
    limits = list(_limits(answers, design.models))
    randomized = np.where(np.isfinite(ends.requests), ends.counts.sum(axis=1), np.inf)
    within, limit = _within(answers, limits, ends, hours, at)
    high = design.values + design.lost
    leader = design.values.argmax(axis=1)[:, None]
    np.put_along_axis(high, leader, -np.inf, axis=1)
    lead = np.take_along_axis(design.values, leader, axis=1)[:, 0] - high.max(axis=1)
    return Futures(
        rows=ends.requests,
        randomized=randomized,
        hours=hours,
        within=within,
        ruled_out=design.lost.any(axis=1) & (lead + design.epsilon <= 0.0),
        limit=limit,
        requests_per_hour=pace.per_hour(_typical(ends.requests)),
        entering=pace.entering,
    )


def _typical(rows: Floats) -> float:
    done = rows[np.isfinite(rows)]
    return float(np.median(done)) if len(done) else 1_000.0


def _design(
    answers: Answers, problem: Problem, rewards: Floats, rng: np.random.Generator
) -> Design:
    """The design of all futures, with values and shares of missing rewards of their own."""
    request = problem.request
    assert problem.variances is not None
    own = problem.values * (1.0 - problem.values)
    if (np.abs(problem.variances * (1.0 - 1.0 / rewards) - own) <= 1e-5).all():
        # Rewards of 0 and 1, so a value says its variance.
        problem = replace(problem, variances=None)
    case = Case(max(problem.gap, 1e-3), request.rate, problem.floor, problem.explained)
    sequence, delta = _in_force(answers, problem)
    design = problem.design(request.policies[0], sequence, [case], PATHS, delta)
    values, size = problem.values, design.values.shape
    if problem.variances is None:
        # One reward of each kind more, half a reward each: 20 of 20 do not make a certain 1.
        drawn = rng.beta(rewards * values + 0.5, rewards * (1.0 - values) + 0.5, size)
    else:
        off = 0.5 * (values**2 + (1.0 - values) ** 2)
        variance = (rewards * problem.variances + off) / (rewards + 1.0)
        drawn = values + np.sqrt(variance / rewards) * rng.standard_normal(size)
    rated: Floats = problem.rated + np.zeros(size)
    if request.rated is None and problem.missing is None:
        total = rewards / np.maximum(problem.rated, 1e-6)
        some = problem.rated < 1.0
        share = rng.beta(total * (1.0 - problem.rated) + 1e-9, total * problem.rated + 1e-9, size)
        rated = np.where(some, 1.0 - share, 1.0)
    means, variances = replace(problem, rated=rated).over_all(np.clip(drawn, 0.0, 1.0))
    lost = 1.0 - rated if problem.missing is None else np.zeros(size)
    return replace(design, values=means, variances=variances, lost=lost)


def _in_force(answers: Answers, problem: Problem) -> tuple[Sequence, float | None]:
    """The sequence that the next decision is read by, and its delta, None for the declared one."""
    declared = Sequence(problem.request.sequence)
    used = answers.certified().sequence
    if declared.value != answers.state.config.certify.sequence or used is declared:
        return declared, None
    if declared is Sequence.ASYMPTOTIC and not answers.conditions.widened:
        # It opens once there is enough of the rarer outcome, in the simulation too.
        return declared, None
    return used, problem.levels[0] * split_level(1.0)[1]


def _looks(design: Design, known: float, pace: Pace) -> Floats:
    """(L, N) rows beyond the watermark at which the futures are looked at. known: rows so far."""
    rate = float(design.rate[0])
    first = max(float(np.ceil(5.0 / rate)), 0.01 * known)
    last = max(FARTHEST * known, FARTHEST_RANDOMIZED / rate)
    hourly = pace.per_hour(last)
    if hourly is not None:
        last = min(last, max(hourly * pace.entering * YEAR, 10.0 * first))
    count = int(np.ceil(np.log(last / first) / np.log(STEP))) + 1
    rows: Floats = np.round(np.geomspace(first, last, count))
    return np.repeat(rows[:, None], len(design.values), axis=1)


def pace_of(answers: Answers, at: float) -> Pace:
    """The pace of the traffic, and the share of it that enters the certified sums."""
    table = answers.state.light.pending
    recent = slice(max(table.size - RECENT, 0), table.size)
    asked = ~np.isin(table.closed_by[recent], _UNDECIDED) & ~table.is_void(recent)
    entering = float(table.certifiable[recent][asked].mean()) if asked.any() else 1.0
    return Pace.of(table, answers.state.light.ledger.arrivals, at, entering)


def _hours(
    answers: Answers,
    rows: Floats,
    pace: Pace,
    rng: np.random.Generator,
    traffic: float | None,
) -> Floats | None:
    """(N,) hours until the row with this number beyond the watermark is certified.

    Those that wait behind the watermark are there already. traffic: requests an hour, if told.
    """
    table = answers.state.light.pending
    first = max(answers.view().watermark - table.base, 0)
    own = table.era[first : table.size] == answers.state.rule.era
    enters = table.certifiable[first : table.size] & own
    held = np.sort(table.at[first : table.size][enters])
    coming = np.maximum(rows - len(held), 0.0)
    hours = pace.hours(coming, rng)
    if traffic is not None:
        hours = coming / (traffic * pace.entering)
    if hours is None:
        return None
    usual = _usual_delay(answers)
    lag = _lag(answers, pace, usual, len(rows), rng)
    index = np.clip(np.where(np.isfinite(rows), rows, 0.0) - 1.0, 0, max(len(held) - 1, 0))
    if len(held):
        made = (held[index.astype(int)] - pace.now) / 3600.0
        hours = np.where(rows <= len(held), made, hours)
    behind, window = answers.behind(), answers.state.config.reward.window
    soonest = 0.0
    if window is not None and behind.number >= 0 and pace.now - behind.at > usual:
        # Its reward would be there by now: all wait until its window ends.
        soonest = max(behind.at + window - pace.now, 0.0) / 3600.0
    return np.maximum(hours + lag, soonest)


def _usual_delay(answers: Answers) -> float:
    """Seconds within which nearly all rewards came that did, 0 where none did."""
    table = answers.state.light.pending
    recent = slice(max(table.size - RECENT, 0), table.size)
    came = table.has_reward[recent] & ~table.filled[recent]
    took = (table.reward_at - table.at)[recent][came]
    took = took[np.isfinite(took)]
    return max(float(np.quantile(took, LATEST)), 0.0) if len(took) else 0.0


def _lag(
    answers: Answers, pace: Pace, usual: float, count: int, rng: np.random.Generator
) -> Floats:
    """(N,) hours from a decision until the watermark has passed it.

    Every row that is decided waits for the rewards of all rows before it: for the window, less the
    time since the last row whose reward never comes.
    """
    table, config = answers.state.light.pending, answers.state.config
    recent = slice(max(table.size - RECENT, 0), table.size)
    came = table.has_reward[recent] & ~table.filled[recent]
    grows = 0.0 if config.units is None else config.units.ttl
    result = np.full(count, usual)
    window, hourly = config.reward.window, pace.per_hour(float(RECENT))
    if window is not None and hourly is not None:
        # Those whose window ended without a reward, of all whose window ended.
        over = table.at[recent] + window < pace.now
        lost = float((over & ~came).sum()) / max(float(over.sum()), 1.0)
        if not over.any():
            late = table.at[recent] + usual < pace.now
            lost = max(float((late & ~came).sum()) / max(float(late.sum()), 1.0) - 0.05, 0.0)
        if lost > 0.0:
            since = rng.exponential(3600.0 / (hourly * lost), count)
            result = np.maximum(result, window - since)
    return (result + grows) / 3600.0


def _limits(answers: Answers, models: int) -> Iterator[Limit]:
    """The hard stops in force, in the certified rows' own terms."""
    state = answers.state
    purse, ledger, table = state.purse, state.light.ledger, state.light.pending
    active = np.flatnonzero(state.rule.active)
    rows = slice(max(answers.view().watermark - table.base, 0), table.size)
    # The watermark may still stand in the era before, whose draws this one does not count.
    own = table.randomized[rows] & (table.era[rows] == state.rule.era)
    drawn = table.model[rows][own]
    held = np.bincount(drawn, minlength=len(state.models)).astype(float)
    each = 1.0
    if state.config.units is not None:
        # A row is a unit, and all of its requests are paid for.
        opened = table.randomized[: table.size] & table.certifiable[: table.size]
        each = max(table.randomized[: table.size].sum() / max(opened.sum(), 1), 1.0)
    requests = _most_requests(answers)
    if np.isfinite(requests):
        left = requests - float(ledger.by_model.sum())
        yield Limit("requests", left + float(held.sum()), np.full(models, each), left >= 1.0)
    for name in purse.limits:
        costs = purse.by_model(name)
        if name == "requests":
            continue
        if np.isfinite(costs).all():
            left = purse.limits[name] - float(ledger.by_model @ costs)
            yield Limit(name, left + float(held @ costs), each * costs[active], purse.covers(name))
        else:
            yield Limit(name, 0.0, np.ones(models), False)
    for index, model in enumerate(active.tolist()):
        cap = state.config.models[model].max_requests
        if cap is not None:
            alone = each * (np.arange(models) == index)
            left = cap - float(ledger.by_model[model]) + float(held[model])
            yield Limit(f"requests of {state.models[model]}", left, alone, True)


def _most_requests(answers: Answers) -> float:
    """The hard stop in randomized requests, inf for none: the one that an operator set last.

    It is kept in the store: whoever follows the log only hears of it there.
    """
    for control in reversed(answers.state.store.controls()):
        if control.name == "budget":
            value = msgspec.json.decode(control.value)
            return np.inf if value is None else float(value)
    return answers.state.purse.limits.get("requests", np.inf)


def budget_spent(answers: Answers) -> str | None:
    """The limit that lets no request be randomized any more, None where none does."""
    models = int(np.count_nonzero(answers.state.rule.active))
    spent = [each.name for each in _limits(answers, models) if not each.covers]
    return spent[0] if spent else None


def _within(
    answers: Answers, limits: list[Limit], ends: Ends, hours: Floats | None, at: float
) -> tuple[Flags, str | None]:
    """(N,) which futures end before any limit does, and the limit that ends most of the others."""
    within = np.isfinite(ends.requests)
    reached: dict[str, int] = {}
    for each in limits:
        over = within & (ends.counts @ each.costs > each.left * (1.0 + 1e-9))
        reached[each.name] = int(over.sum())
    over_any = np.zeros(len(within), dtype=bool)
    for each in limits:
        over_any |= ends.counts @ each.costs > each.left * (1.0 + 1e-9)
    horizon, arrivals = answers.state.config.budget.horizon, answers.state.light.ledger.arrivals
    if horizon is not None and hours is not None:
        late = hours > (arrivals.first + horizon - at) / 3600.0
        reached["horizon"] = int((within & late).sum())
        over_any |= late
    name = max(reached, key=lambda key: reached[key]) if reached else None
    return within & ~over_any, name if name is not None and reached[name] else None
