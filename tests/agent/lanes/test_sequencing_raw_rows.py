"""Of one decider and of three: propensities, certified sums and the sums of all families are those
of a loop over the raw rows, with segments, policies, guardrails, repeats, losses and two eras."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fleet import Fleet
from raw_scores import Log, psi, reward_end
from traffic import KEY, Traffic, config

from equipoise.agent.config import (
    CertifyConfig,
    DeclaredPolicy,
    GuardrailConfig,
    PolicyConfig,
    SegmentConfig,
)
from equipoise.agent.maintenance.audit import audit
from equipoise.store.batches import RequestBatch, SimulationBatch, take

SETTINGS = config(
    policy=PolicyConfig(assignment="top-two", rate=0.4, estimator="hierarchical"),
    certify=CertifyConfig(
        segments=[SegmentConfig(name="left", column="a", high=0.1)],
        policies=[
            DeclaredPolicy(name="split", column="a", at_least=0.2, model="fast", otherwise="cheap")
        ],
    ),
    guardrails=[GuardrailConfig(name="errors", limit=0.9)],
)


def stream(fleet: Fleet, turns: int, size: int, seed: int) -> None:
    """Requests over the lanes; replays come all the while, an era begins half-way, and lanes lag,
    are lost, and decide again what others have decided."""
    traffic, rng = Traffic(np.random.default_rng(seed)), np.random.default_rng(seed + 1)
    simulations = traffic.simulations()
    order = rng.permutation(len(simulations))
    count, due = 0, []
    for turn in range(turns):
        fleet.now = traffic.at + 1.0
        new: SimulationBatch = take(simulations, order[turn::turns])
        fleet.main.simulate(new)
        requests = traffic.requests(size)
        names = [f"r{count + row}" for row in range(size)]
        for row in rng.choice(size, size // 20, replace=False).tolist():
            if turn:
                # Decided before, by another lane most likely.
                names[row] = f"r{rng.integers(0, turn) * size + row}"
        count += size
        held = [lane for lane in fleet.lanes if lane.ended is None]
        owner = rng.integers(0, len(held), size)
        for lane, outcomes in due:
            lane.observe(outcomes)
        due = []
        for index, lane in enumerate(held):
            rows = np.flatnonzero(owner == index)
            known = lane.agent.store.find_requests([names[row] for row in rows.tolist()])
            rows = np.array([row for row in rows.tolist() if names[row] not in known], dtype=int)
            if len(rows):
                some = RequestBatch(
                    requests.unit[rows],
                    requests.context[rows],
                    requests.at[rows],
                    requests.x[rows],
                    requests.routed[rows],
                    request_id=[names[row] for row in rows.tolist()],
                )
                outcomes = traffic.outcomes(lane.decide(some))
                errors = (rng.random(len(rows)) < 0.1).astype(float)
                comes = rng.random(len(rows)) < 0.95
                outcomes = replace(
                    outcomes,
                    metrics=errors[:, None],
                    reward=np.where(comes, outcomes.reward, np.nan),
                    delivered=rng.random(len(rows)) < 0.97,
                )
                due.append((lane, outcomes))
        if turn % 5 == 2 and len(held) > 1:
            fleet.lose(held[1])
            fleet.join()
        if turn == turns // 2:
            fleet.main.controls.open_era("for a test", fleet.now)
        fleet.ship()
        fleet.sequence()
        fleet.main.expire(fleet.now)
        if turn % 2:
            fleet.main.refresh(fleet.now, review=False)
        fleet.publish()
        fleet.adopt(*[lane for lane in fleet.lanes if rng.random() < 0.7] or fleet.lanes)
    for lane, outcomes in due:
        lane.observe(outcomes)
    traffic.at += 200.0
    fleet.now = traffic.at
    for _ in range(3):
        fleet.turn(refresh=False)
        fleet.main.expire(fleet.now)


def apart(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, relative to numbers above 1."""
    found, expected = np.asarray(found, dtype=float), np.asarray(expected, dtype=float)
    return float((np.abs(found - expected) / np.maximum(np.abs(expected), 1.0)).max(initial=0.0))


def differences(fleet: Fleet) -> dict[str, float]:
    """The largest differences between what the agent holds and what its raw rows come to."""
    main = fleet.main
    view = main.answers.view()
    log, certified = Log(main.store, main.state.transform), view.certified
    spec = certified.spec
    found = {"propensities": 0.0}
    for row in log.rows:
        rate, shares = row["rule"].allocation.allocate(row["x"][None], None)
        found["propensities"] = max(
            found["propensities"],
            apart(row["probabilities"], shares[0]),
            0.0 if row["rate"] == 0.0 else apart(row["rate"], rate[0]),
        )
    shape = len(spec.caps), len(spec.names)
    for part, sums in enumerate(certified.sums):
        raw = {name: np.zeros(shape) for name in ("low", "high", "low_squares", "high_squares")}
        rows, contrast = 0, np.zeros((*shape, shape[1]))
        for row in log.rows[: certified.watermark]:
            inside = not part or spec.segments[part - 1].holds(row["x"][None])[0]
            of = row["rule"].era == certified.era and row["rate"] >= SETTINGS.limits.rate_min
            if not (inside and of) or row["left"]:
                continue
            rows += 1
            frozen = row["rule"].frozen[part]
            ends = {
                e: (e, reward_end(row, w, spec, None)) for e, w in (("low", 0.0), ("high", 1.0))
            }
            for cap, most in enumerate(spec.caps):
                scores = {
                    end: np.array(
                        [
                            psi(log, row, a, most, given, spec, frozen.tuning)
                            for a in range(shape[1])
                        ]
                    )
                    for end, given in ends.items()
                }
                u = scores["low"] - frozen.centres.low[cap]
                v = scores["high"] - frozen.centres.high[cap]
                raw["low"][cap] += scores["low"]
                raw["high"][cap] += scores["high"]
                raw["low_squares"][cap] += u**2
                raw["high_squares"][cap] += v**2
                contrast[cap] += (u[:, None] - v[None, :]) ** 2
        found[f"certified rows, part {part}"] = abs(float(sums.rows) - rows)
        for name, expected in raw.items():
            found[f"certified {name}, part {part}"] = apart(getattr(sums.score, name), expected)
        off = ~np.eye(shape[1], dtype=bool)
        found[f"certified contrasts, part {part}"] = apart(
            sums.score.contrast_squares()[:, off], contrast[:, off]
        )
    arms, routing = view.moments.arms, view.moments.routing
    weights = np.zeros((4, spec.models))
    routed = np.zeros(2)
    for row in log.rows:
        if row["reward"] is None or row["left"] or not row["delivered"]:
            continue
        reward, model = row["reward"], int(row["model"])
        if row["randomized"]:
            weight = 1.0 / (row["rate"] * row["probabilities"][model])
            weights[:, model] += 1.0, weight, weight**2, weight * reward
        if model == row["routed"]:
            share = 1.0 - row["rate"] + row["rate"] * row["probabilities"][row["routed"]]
            routed += 1.0 / share, reward / share
    found["arms"] = apart(
        np.stack(
            [
                arms.count.sum(axis=0),
                arms.weight.sum(axis=0),
                arms.weight_sq.sum(axis=0),
                (arms.weight * np.nan_to_num(arms.mean)).sum(axis=0),
            ]
        ),
        weights,
    )
    found["routing"] = apart(
        [routing.weight.sum(), (routing.weight * np.nan_to_num(routing.mean)).sum()], routed
    )
    return found


@pytest.mark.parametrize("lanes", [1, 3])
def test_sums_are_those_of_the_raw_rows(lanes: int) -> None:
    fleet = Fleet(SETTINGS, KEY, lanes)
    stream(fleet, 10, 80, seed=5)
    found = differences(fleet)
    assert max(found.values()) <= 1e-10, found
    assert found["propensities"] <= 1e-12
    assert fleet.main.state.rule.era == 1
    assert fleet.main.answers.view().certified.overall.rows > 150
    if lanes > 1:
        assert fleet.sequencer.done.late > 0
    assert audit(fleet.main.store, SETTINGS, KEY).faults == []
