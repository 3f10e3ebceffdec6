"""A problem out of what an experiment already knows: values, variances, and its certified sums."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from equipoise.agent.answers.answers import Answers
from equipoise.agent.answers.policy_snapshot import logged_moments
from equipoise.agent.answers.statements import fact
from equipoise.agent.answers.status import Activity
from equipoise.agent.budget.purse import model_costs
from equipoise.agent.errors import PlanError
from equipoise.agent.inference.certificate import CertificateMoments
from equipoise.agent.inference.levels import EraPrior
from equipoise.agent.inference.score import ScoreMoments
from equipoise.agent.planning.futures import RECENT, futures, pace_of
from equipoise.agent.planning.problem import Problem, Start
from equipoise.agent.planning.request import LEAST, PlanRequest, read_request
from equipoise.agent.planning.requirement import interval80
from equipoise.agent.planning.sentences import ENDED, never
from equipoise.agent.planning.simulation.paths import ASSIGNMENTS, PathState
from equipoise.store.batches import Floats, Ints

FEWEST_REWARDS = 20.0
"""Randomized rewards that every model needs before its mean and variance are planned with."""
TOO_FEW = "rewards of the least tried model"
"""What a plan from a store names where they are too few."""
EXP_FAMILIES = ("ipw", "representation-exp", "doubly-robust", "hierarchical")
"""Families whose answer rests on EXP, whatever the log says."""
_SHRUNK_BY = 10.0
_LAST_REQUESTS = 1_000.0
_DRAWS = 2000


def of_experiment(answers: Answers, data: dict[str, Any]) -> tuple[Problem, dict[str, Any]]:
    """The problem of a running experiment, and what it knows today.

    data: fields of a request that are to differ from the experiment's own. Raises PlanError where
    too little is known.
    """
    problem, count = running_problem(answers, data)
    told = data.get("traffic") is not None
    known = _known(answers, problem, count, told)
    return replace(problem, today=_today(answers)), known


def _today(answers: Answers) -> float | None:
    """USD of a request as it is routed today, by who was routed where; None where unknown."""
    config, ledger = answers.state.config, answers.state.light.ledger
    routed = ledger.expected.sum(axis=1)
    declared = np.array([np.nan if m.price is None else m.price for m in config.models])
    prices = model_costs(answers.view().moments.simulation, declared)
    used = routed > 0
    if not used.any() or np.isnan(prices[used]).any():
        return None
    return float(routed[used] @ prices[used] / routed[used].sum())


def running_problem(answers: Answers, data: dict[str, Any]) -> tuple[Problem, Floats]:
    """The problem of a running experiment, and the rewards (K,) that its values rest on, those of
    equal weights that would say as much.

    As `of_experiment`, without what no forecast needs. Raises PlanError where too little is known.
    """
    config, view = answers.state.config, answers.view()
    active = np.flatnonzero(answers.state.rule.active)
    count, mean, variance, effective = (part[active] for part in _rewards(answers))
    if not (count >= FEWEST_REWARDS).all():
        least = float(count.min()) if len(count) else 0.0
        raise PlanError(
            TOO_FEW,
            least,
            f"at least {FEWEST_REWARDS:g} to plan from a store; until then plan with numbers",
        )
    request = _request(answers, data, len(active))
    rated, missing = _rated(answers, data, request, active, mean)
    low, scale = config.reward.low, config.reward.high - config.reward.low
    values = (mean - low) / scale
    values = values if answers.sign > 0 else 1.0 - values
    declared = np.array([np.nan if m.price is None else m.price for m in config.models])
    routing = (answers.routing()[0] - low) / scale
    routing = routing if answers.sign > 0 else 1.0 - routing
    sums = view.certified
    # Another meaning of a missing reward starts another era.
    same = sums.era == answers.state.rule.era and "missing" not in data
    start = _starter(sums.overall, active, answers.sign, missing) if same else None
    problem = Problem(
        source="store",
        request=request,
        names=tuple(answers.state.models[index] for index in active),
        values=values,
        # Weights that move may leave next to nothing to tell a variance by.
        variances=np.clip(np.nan_to_num(variance / scale**2, nan=0.25), 1e-6, 0.25),
        rated=rated,
        missing=missing,
        prices=model_costs(view.moments.simulation, declared)[active],
        routing=float(routing) if np.isfinite(routing) else None,
        scale=scale,
        candidates=len(answers.state.certifier.spec.names),
        explained=_explained(sums.overall, active)
        if "explained" not in data
        else request.explained,
        tuned_rows=float(config.certify.tuned_rows),
        start=start,
        era_caps=answers.state.certifier.spec.caps,
        prior=_prior(answers, active),
        read=view.moments.dimensions.features - 1,
    )
    return problem, effective


def _prior(answers: Answers, active: Ints) -> EraPrior | None:
    """What was thought of the running era, of its models alone."""
    prior = answers.state.certifier.prior_in_force(answers.view().certified, answers.state.rule)
    return None if prior is None else replace(prior, best=prior.best[active])


def _rewards(answers: Answers) -> tuple[Floats, Floats, Floats, Floats]:
    """Randomized rewards per model, (K,) each: how many, their mean and variance by the logged
    probabilities, reward units, and how many of equal weights would say as much.

    With sticky units these are of units, whose reward is the mean of their requests.
    """
    view, config = answers.view(), answers.state.config
    if config.units is None:
        arms = view.moments.arms
        weight, squares = arms.weight.sum(axis=0), arms.weight_sq.sum(axis=0)
        effective = np.divide(weight**2, squares, out=np.zeros_like(weight), where=squares > 0)
        return *logged_moments(arms), effective
    low, scale = config.reward.low, config.reward.high - config.reward.low
    rewards = view.certified.overall.rewards
    came = np.maximum(rewards.count - (rewards.high - rewards.low), 1e-9)
    mean = np.clip(rewards.low / came, 0.0, 1.0)
    # Squares around the running centre, which a missing reward entered as 0.
    variance = np.clip(rewards.low_squares / np.maximum(rewards.count, 1.0), 0.0, 0.25)
    return came, low + scale * mean, scale**2 * variance, came


def _rated(
    answers: Answers, data: dict[str, Any], request: PlanRequest, active: Ints, mean: Floats
) -> tuple[Floats, float | None]:
    """(K,) share of randomized requests whose reward enters as it came or as declared, and what the
    others count as: None for the worst case.

    A store that declares a value has it among its rewards already; what is left are draws that were
    not delivered. A model's share is drawn to that of all by ten requests. mean: (K,) of the
    rewards that came, in reward units.
    """
    if request.of_raters:
        worth = np.sort((mean - request.reward_low) / (request.reward_high - request.reward_low))
        worth = worth if request.maximise else np.sort(1.0 - worth)
        declared, missing = Problem.of_missing(request, len(active), float(worth[-2:].mean()))
        sums = answers.view().certified.overall.rated
        if sums is None or request.rated is not None:
            return declared, missing
        drawn, came = sums.draws[:, active]
        share = (came + _SHRUNK_BY * came.sum() / max(drawn.sum(), 1.0)) / (drawn + _SHRUNK_BY)
        return np.clip(share, LEAST, 1.0) * (request.ask or 1.0), missing
    if answers.state.config.reward.missing_value is not None:
        for name in ("rated", "missing"):
            if name in data:
                limit = "nothing beside a store whose configuration declares reward.missing"
                raise PlanError(name, data[name], f"{limit}: its rewards count it already")
    declared, missing = Problem.of_missing(request, len(active), 0.5)
    if "missing" not in data:
        missing = None
    if request.rated is not None:
        return declared, missing
    rewards = answers.view().certified.overall.rewards
    lost, count = (rewards.high - rewards.low)[active], rewards.count[active]
    overall = float(lost.sum() / max(count.sum(), 1.0))
    share = (lost + _SHRUNK_BY * overall) / (count + _SHRUNK_BY)
    return np.clip(1.0 - share, LEAST, 1.0), missing


def _request(answers: Answers, data: dict[str, Any], models: int) -> PlanRequest:
    config = answers.state.config
    for name in ("names", "candidate", "mix", "price", "prices"):
        if name in data:
            raise PlanError(name, data[name], "none beside a store, which knows its models")
    own = config.policy.assignment
    limits = config.limits
    declared: dict[str, Any] = {
        "models": models,
        "rate": _rate(answers),
        "floor": min(limits.floor, 1.0 / models),
        # A request's delta is that of all statements together; half of it is the whole traffic's.
        "delta": answers.state.certifier.delta(answers.state.rule.era, 0)
        * (2 if config.certify.segments else 1),
        "segments": len(config.certify.segments),
        "epsilon": config.policy.epsilon,
        "sequence": config.certify.sequence,
        "reward_low": config.reward.low,
        "reward_high": config.reward.high,
        "maximise": config.reward.maximise,
        "missing": config.reward.missing,
        "ask": config.reward.ask,
        "window": (config.reward.window or 0.0) / 3600.0,
    }
    if own in ASSIGNMENTS:
        declared["policies"] = [own]
    traffic = _traffic(answers)
    if traffic is not None:
        declared["traffic"] = traffic
    return read_request({**declared, **data})


def _rate(answers: Answers) -> float:
    """The share that is randomized, as the newest decisions of the era were; the declared one
    before any. With a horizon, or a gate of its own mind, it is not what was declared."""
    table, limits = answers.state.light.pending, answers.state.config.limits
    recent = slice(max(table.size - RECENT, 0), table.size)
    open_ = table.certifiable[recent] & (table.era[recent] == answers.state.rule.era)
    rates = table.rate[recent][open_]
    return float(rates.mean()) if len(rates) else limits.rate


def _traffic(answers: Answers) -> float | None:
    """Requests an hour over the last thousand; None where unknown."""
    if answers.state.config.units is not None:
        # Rows are units there, and plans from numbers speak of requests.
        return None
    now = answers.state.light.pending.newest_at
    return pace_of(answers, now).per_hour(_LAST_REQUESTS)


def _explained(sums: CertificateMoments, active: Ints) -> float:
    """Share of the variance of rewards that the prediction in force explains, by past rows."""
    if sums.rated is not None:
        return 0.0  # predictions are of who rates
    moments = sums.tuning
    factor = moments.tuning().factor[active]
    weight = np.where(moments.weight[active] > 0, moments.weight[active], 1.0)
    q, r = moments.q[active] / weight, moments.r[active] / weight
    spread = np.maximum(moments.qq[active] / weight - q**2, 0.0)
    noise = np.maximum(moments.rr[active] / weight - r**2, 1e-9)
    shared = moments.qr[active] / weight - q * r
    share = (2.0 * factor * shared - factor**2 * spread) / noise
    return float(np.clip(share.mean(), 0.0, 0.95))


def _starter(sums: CertificateMoments, active: Ints, sign: int, missing: float | None) -> Start:
    """The certified sums so far, for any number of paths. Caps are in the order of an era's.

    missing: what others count as where the sums are of those who rate, larger being better.
    """
    plain = sums.score
    if sums.rated is not None and missing is not None:
        plain = sums.rated.at(missing if sign > 0 else 1.0 - missing)
    score = _mirrored(plain) if sign < 0 else plain
    rewards = sums.rewards
    count = rewards.count[active]
    lost = (rewards.high - rewards.low)[active]
    total = rewards.low[active] if sign > 0 else count - rewards.high[active]
    own = np.stack([rewards.low_squares, rewards.high_squares])[:, active]
    own = own if sign > 0 else own[::-1]
    if sums.rated is not None and missing is not None:
        silent = np.maximum(sums.rated.draws[0][active] - count, 0.0)
        before = total / np.maximum(count, 1.0)
        total, count = total + missing * silent, count + silent
        middle = total / np.maximum(count, 1.0)
        # Around the mean of both kinds.
        apart = (count - silent) * (before - middle) ** 2 + silent * (missing - middle) ** 2
        own = own + apart
    mean = total / np.maximum(count, 1.0)

    def start(paths: int, caps: int) -> PathState:
        def repeated(array: Floats, axis: int) -> Floats:
            return np.repeat(np.expand_dims(array, axis), paths, axis=axis)

        return PathState(
            rows=np.full(paths, float(score.rows[0])),
            count=repeated(count, 0),
            lost=repeated(lost, 0),
            total=repeated(total, 0),
            squares=repeated(own[0] + count * mean**2, 0),
            own=repeated(own, 1),
            ends=repeated(np.stack([score.low, score.high])[:, :caps, active], 2),
            end_squares=repeated(
                np.stack([score.low_squares, score.high_squares])[:, :caps, active], 2
            ),
            cross=repeated(score.cross[:caps][:, active][:, :, active], 1),
        )

    return start


def _mirrored(score: ScoreMoments) -> ScoreMoments:
    """Sums of the rewards 1 - R: low and high scores change places."""
    rows = float(score.rows[0])
    return replace(
        score,
        low=rows - score.high,
        high=rows - score.low,
        low_squares=score.high_squares,
        high_squares=score.low_squares,
        cross=np.swapaxes(score.cross, 1, 2),
    )


def _known(answers: Answers, problem: Problem, count: Floats, told: bool) -> dict[str, Any]:
    """What the store holds, and when it will be decided if its estimates are what they look.

    told: whether the traffic to come was.
    """
    order = np.argsort(-problem.values)
    first, second = int(order[0]), int(order[1])
    assert problem.variances is not None
    noise = problem.variances / count
    winner = answers.certified_winner()
    certified = answers.certified()
    alike = [answers.state.models[each] for each in certified.standing.equivalent()]
    claim = certified.claim
    by, unit = None, "requests" if problem.request.traffic is None else "hours"
    if winner is None and not alike:
        # Of the store alone, "now" is its newest decision.
        now = answers.state.light.pending.newest_at
        coming = futures(answers, problem, count, now, told)
        left = coming.rows if unit == "requests" or coming.hours is None else coming.hours
        by = interval80(left, problem.request.power)
    alarms = ", ".join(answers.state.alarms)
    return {
        "experiment": answers.state.config.name,
        "randomized": int(answers.state.light.randomized),
        "decided": winner or (" and ".join(alike) if alike else None),
        "alike": alike,
        "claim": "" if claim is None else fact(claim),
        "stopped": _stopped(answers),
        "left": _left(answers),
        "leader": problem.names[first],
        "runner_up": problem.names[second],
        "gap": problem.gap * problem.scale,
        "gap_error": float(np.sqrt(noise[first] + noise[second]) * problem.scale),
        "remaining": None
        if by is None
        else {"median": by.median, "low": by.low, "high": by.high, "needed": by.needed},
        "unit": unit,
        "lost": float(problem.lost.mean()),
        "never": never(problem, problem.gap),
        "families": _families(answers, problem.request.regret or problem.request.epsilon),
        "cannot_know": [f"checks stand at alarm: {alarms}"] if alarms else [],
    }


_STOPPED = {
    Activity.ENDED: ENDED,
    Activity.OBSERVING: "only observed",
    Activity.PAUSED: "paused",
    Activity.DECIDED: "stopped after its decision",
    Activity.UNPRICED: "stopped, as its budget is in money and no price is known",
    Activity.BUDGET_SPENT: "out of its budget",
}


def _stopped(answers: Answers) -> str | None:
    """Why nothing is randomized now, to follow "it is"; None if something is."""
    now = answers.activity()
    if now.randomizing:
        return None
    why = f" ({answers.state.paused})" if now is Activity.PAUSED else ""
    return _STOPPED[now] + why


def _left(answers: Answers) -> float | None:
    """Randomized requests that the budget still allows, None without such a budget."""
    left = [each.left for each in answers.spending() if each.resource == "requests"]
    return max(left[0], 0.0) if left else None


def _families(answers: Answers, within: float) -> list[dict[str, Any]]:
    """What each family that rests on EXP recommends, and how sure its posterior is of that."""
    rng = np.random.default_rng(0)
    rows = []
    for name, each in answers.estimates(EXP_FAMILIES).items():
        if not (np.isfinite(each.values).all() and np.isfinite(each.covariance).all()):
            continue
        values = answers.sign * rng.multivariate_normal(
            each.values, each.covariance, size=_DRAWS, method="eigh", check_valid="ignore"
        )
        best = int(np.argmax(answers.sign * each.values))
        near = values[:, best] >= values.max(axis=1) - within - 1e-12
        rows.append(
            {
                "family": name,
                "recommended": answers.state.models[best],
                "within": within,
                "chance": float(near.mean()),
            }
        )
    return rows
