"""Stopping times as a requirement: requests, time, money and harm, with an 80% band."""

from __future__ import annotations

from collections.abc import Sequence as Rows

import msgspec
import numpy as np
from scipy import special

from equipoise.agent.planning.problem import Case, Problem
from equipoise.agent.planning.simulation.forward import Design, Ends, fewest_rewards
from equipoise.store.batches import Flags, Floats

BAND = (0.1, 0.9)
NEARLY = 0.1
YEAR = 24.0 * 365.0
"""Hours beyond which a plan says that it cannot know: nothing stays as assumed for that long."""
TOO_LONG = "it would take more than a year, and nothing stays as assumed for that long"


class Interval80(msgspec.Struct, frozen=True):
    """Of a skewed number over experiments: median, 80% band, and `needed`, the quantile at the
    wanted power. None where that share of the experiments never gets there."""

    median: float | None
    low: float | None
    high: float | None
    needed: float | None


class Requirement(msgspec.Struct, frozen=True):
    """What a goal takes. reading: the certified sequence, or the family that recommends.

    effect, rate, floor, explained: of this row. randomized: EXP requests; requests: all traffic
    meanwhile; hours: until it is known, the outcome window included, None without traffic; money:
    USD of the randomized requests; extra: USD that they cost more than today's routing would have
    paid for them (below 0: less), None where today's mix or a price is unknown; harm: reward lost
    on them (below 0: won). fewest: Garivier &
    Kaufmann's lower bound on the mean of `randomized`. known: whether the planner stands by the
    numbers; note: why not.
    """

    policy: str
    reading: str
    goal: str
    effect: float
    rate: float
    floor: float
    explained: float
    randomized: Interval80
    requests: Interval80
    hours: Interval80 | None
    money: Interval80 | None
    extra: Interval80 | None
    harm: Interval80
    fewest: float | None
    known: bool
    note: str

    @property
    def bill(self) -> Interval80 | None:
        """The USD that are asked for: the extra ones where today's bill is known, else all."""
        return self.money if self.extra is None else self.extra


def interval80(values: Floats, power: float) -> Interval80:
    """Quantiles of (n,) values, inf where a path did not end. None for inf."""
    ends = np.quantile(values, [0.5, *BAND, power], method="inverted_cdf").tolist()
    return Interval80(*(float(f"{end:.6g}") if np.isfinite(end) else None for end in ends))


def requirement(
    problem: Problem,
    design: Design,
    ends: Ends,
    part: slice,
    case: Case,
    policy: str,
    reading: str,
    goal: str,
) -> Requirement:
    """The requirement of one case, which are the paths `part` of a simulation."""
    power, scale = problem.request.power, problem.scale
    requests, counts = ends.requests[part], ends.counts[part]
    done = np.isfinite(requests)
    values = design.values[part]
    lost = (counts * (problem.reference(values)[:, None] - values)).sum(axis=1) * scale
    paid = (counts * problem.prices).sum(axis=1)
    hours = _hours(problem, requests)
    known, note = _known(problem, hours, power, done)
    fewest = np.inf
    if goal == "effect" and not design.lost.any():
        fewest = fewest_rewards(values[0], design.variances[part][0], design.epsilon, design.delta)
    return Requirement(
        policy=policy,
        reading=reading,
        goal=goal,
        effect=case.effect * scale,
        rate=case.rate,
        floor=case.floor,
        explained=case.explained,
        randomized=interval80(np.where(done, counts.sum(axis=1), np.inf), power),
        requests=interval80(requests, power),
        hours=None if hours is None else interval80(hours, power),
        money=_band(problem, paid, done),
        extra=None
        if problem.today is None
        else _band(problem, paid - problem.today * counts.sum(axis=1), done),
        harm=interval80(np.where(done, lost, np.inf), power),
        fewest=fewest if np.isfinite(fewest) else None,
        known=known,
        note=note,
    )


def _band(problem: Problem, amounts: Floats, done: Flags) -> Interval80 | None:
    """Of USD (n,) that paths cost; None where they are unknown."""
    if np.isnan(amounts).any():
        return None
    return interval80(np.where(done, amounts, np.inf), problem.request.power)


def _hours(problem: Problem, requests: Floats) -> Floats | None:
    traffic = problem.request.traffic
    return None if traffic is None else requests / traffic + problem.request.window


def _known(problem: Problem, hours: Floats | None, power: float, done: Flags) -> tuple[bool, str]:
    if done.mean() < power:
        return False, (
            f"only {done.mean():.0%} of the simulated experiments ever get there under this policy"
        )
    if hours is not None and np.quantile(hours, power, method="inverted_cdf") > YEAR:
        return False, TOO_LONG
    return True, ""


def at_rate(problem: Problem, row: Requirement, rate: float, requests: float) -> Requirement:
    """A requirement where another share of the requests is randomized, by closed form.

    requests: what all traffic is multiplied by. What is randomized, and paid and lost on it, is
    multiplied by as much and by the rates' ratio; the rest stays.
    """
    randomized, window = requests * rate / row.rate, problem.request.window
    hours, known, note = row.hours, row.known, row.note
    if hours is not None:
        hours = _times(hours, requests, window)
        late = hours.needed is not None and hours.needed > YEAR
        if known or note == TOO_LONG:
            known, note = not late, TOO_LONG if late else ""
    return msgspec.structs.replace(
        row,
        rate=rate,
        randomized=_times(row.randomized, randomized),
        requests=_times(row.requests, requests),
        hours=hours,
        money=None if row.money is None else _times(row.money, randomized),
        extra=None if row.extra is None else _times(row.extra, randomized),
        harm=_times(row.harm, randomized),
        known=known,
        note=note,
    )


def _times(interval: Interval80, factor: float, offset: float = 0.0) -> Interval80:
    """Of a number that is `factor` times as large above an offset."""
    ends = (interval.median, interval.low, interval.high, interval.needed)
    moved = (None if end is None else offset + factor * (end - offset) for end in ends)
    return Interval80(*(None if end is None else float(f"{end:.6g}") for end in moved))


class FixedSample(msgspec.Struct, frozen=True):
    """What a calculator for A/B tests says of the same difference, power and level.

    each: requests per model; models: all of them together, with as many models as are compared;
    two: of two. times: randomized requests of the plan over `models`. None where it has no number.
    """

    each: float
    two: float
    models: float
    times: float | None


def fixed_sample(problem: Problem, effect: float, row: Requirement | None) -> FixedSample:
    """The sample size of a two-sided z test of two means that is read once, at the end.

    n = (z(1 - delta / 2) + z(power))^2 (v_1 + v_2) / d^2 a model, with the variances that the two
    models have where one is better by d. effect: d on the [0, 1] scale, of requests whose reward
    comes; where the others count as the worst case it knows nothing of them.
    """
    request = problem.request
    values, variances = problem.over_all(problem.values_at(effect)[None, :])
    best, second = np.argsort(-values[0], kind="stable")[:2]
    rated = 1.0 - float(problem.lost.mean())
    difference = float(values[0, best] - values[0, second]) / rated
    quantiles = special.ndtri(1.0 - request.delta / 2.0) + special.ndtri(request.power)
    noise = float(variances[0, best] + variances[0, second])
    each = max(quantiles, 0.0) ** 2 * noise / difference**2 / rated
    each = float(max(np.ceil(each), 2.0))
    needed = None if row is None else row.randomized.needed
    times = None if needed is None else needed / (each * problem.models)
    return FixedSample(each, 2.0 * each, each * problem.models, times)


def cheapest(rows: Rows[Requirement], horizon: float | None) -> Requirement | None:
    """The first row that needs nearly the fewest requests among those known to be in time.

    Nearly: within a tenth, twice the error of the simulation; so the policies named first win ties.
    """

    def in_time(row: Requirement) -> bool:
        if horizon is None or row.hours is None:
            return True
        return row.hours.needed is not None and row.hours.needed <= horizon

    fit = [(row.randomized.needed, row) for row in rows if row.known and in_time(row)]
    known = [(needed, row) for needed, row in fit if needed is not None]
    if not known:
        return None
    fewest = min(needed for needed, _ in known)
    return next(row for needed, row in known if needed <= fewest * (1.0 + NEARLY))
