"""What authorities publish: tickets keep every cap at every moment, and nearly all is used."""

from __future__ import annotations

import math

import numpy as np
import pytest
from fleet import Fleet
from traffic import KEY, MODELS, Traffic, config

from equipoise.agent.config import (
    BudgetConfig,
    ModelConfig,
    PolicyConfig,
    SegmentBudget,
    UnitsConfig,
)
from equipoise.agent.lanes.publishing import SLICES, Limits, TicketOffice, refuse_lanes
from equipoise.agent.maintenance.audit import audit
from equipoise.store.batches import Closure, DecisionBatch
from equipoise.store.lanes import Tickets

CAPS = {
    "requests": {"budget": BudgetConfig(requests=90)},
    "money": {"budget": BudgetConfig(money=0.9)},
    "models": {
        "models": [
            ModelConfig(name=name, price=0.01, max_requests=cap)
            for name, cap in zip(MODELS, (40, 200, None), strict=True)
        ]
    },
    "segments": {
        "budget": BudgetConfig(
            segments=[SegmentBudget(name="left", column="a", high=0.0, max_requests=50)]
        )
    },
}


def drawn(fleet: Fleet) -> tuple[float, np.ndarray, float]:
    """Draws of all lanes by now, shipped or not: in all, by model, in the first segment."""
    ledgers = [lane.agent.light.ledger for lane in fleet.lanes]
    by_model = sum(ledger.by_model for ledger in ledgers)
    segments = [float(ledger.by_segment[0]) for ledger in ledgers if len(ledger.by_segment)]
    return float(by_model.sum()), by_model, sum(segments)


def check_caps(name: str, fleet: Fleet) -> float:
    """The share of the cap that was used; no more than all of it."""
    total, by_model, segment = drawn(fleet)
    if name == "models":
        assert by_model[0] <= 40
        assert by_model[1] <= 200
        return float(by_model[0] / 40)
    used = segment / 50 if name == "segments" else total / 90
    assert used <= 1.0
    return used


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", CAPS)
def test_no_cap_is_exceeded_at_any_moment(name: str, seed: int) -> None:
    """Lanes come, go, are lost, lag behind and ship late, and authorities follow one another."""
    settings = config(policy=PolicyConfig(rate=0.8), **CAPS[name])
    fleet, rng = Fleet(settings, KEY, 3), np.random.default_rng(seed)
    traffic = Traffic(rng)
    used = 0.0
    for step in range(160):
        fleet.now = traffic.at + 1.0
        held = [lane for lane in fleet.lanes if lane.ended is None]
        lane = held[rng.integers(len(held))]
        lane.decide(traffic.requests(int(rng.integers(1, 12))))
        used = check_caps(name, fleet)
        what = rng.random()
        if what < 0.4:
            fleet.ship(lane)
        elif what < 0.7:
            fleet.publish()
            fleet.adopt(*[each for each in held if rng.random() < 0.5])
        elif what < 0.85:
            fleet.sequence()
        elif what < 0.9 and len(held) > 1:
            fleet.lose(lane)
        elif what < 0.95 and len(held) < 4:
            fleet.join()
        elif step % 3 == 0:
            # Another authority: it knows what was published, and the log.
            office = TicketOffice(len(MODELS), len(settings.budget.segments))
            office.resume(
                [fleet.sequencer.versions[each] for each in sorted(fleet.sequencer.versions)]
            )
            fleet.office = office
            fleet.sequencer._count = office.count
    for _ in range(40):
        fleet.ship()
        fleet.sequence()
        fleet.tidy()
        fleet.publish()
        fleet.adopt()
        for lane in fleet.lanes:
            if lane.ended is None:
                fleet.now = traffic.at + 1.0
                lane.decide(traffic.requests(6))
        used = check_caps(name, fleet)
    fleet.turn()
    fleet.turn()
    assert used > 0.7
    assert audit(fleet.main.store, settings, KEY).faults == []


@pytest.mark.parametrize("idle", [False, True])
def test_a_segment_that_is_full_closes_no_other(idle: bool) -> None:
    """Not even where a lane without traffic holds the last ticket of it."""
    settings = config(policy=PolicyConfig(rate=0.8), **CAPS["segments"])
    fleet, traffic = Fleet(settings, KEY, 2), Traffic(np.random.default_rng(1))
    for _ in range(30):
        fleet.now = traffic.at + 1.0
        for lane in fleet.lanes[: 1 if idle else 2]:
            batch = lane.decide(traffic.requests(20))
        fleet.turn(refresh=False)
    left = batch.x[:, 0] < 0.0
    assert set(batch.closed_by[left].tolist()) == {Closure.SEGMENT}
    assert set(batch.closed_by[~left].tolist()) == {Closure.OPEN}
    # What the idle lane was given stays with it.
    assert 50 - 50 // (2 * SLICES) <= drawn(fleet)[2] <= 50
    assert audit(fleet.main.store, settings, KEY).faults == []


def test_a_lane_without_tickets_closes_everybody() -> None:
    settings = config(policy=PolicyConfig(rate=0.9), budget=BudgetConfig(requests=400))
    fleet, traffic = Fleet(settings, KEY, 2), Traffic(np.random.default_rng(1))
    lane = fleet.lanes[0]
    tickets = fleet.newest.tickets[1].draws
    assert tickets == 400 // 4
    batch = lane.decide(traffic.requests(200))
    assert np.count_nonzero(batch.randomized) == tickets
    last = int(np.flatnonzero(batch.randomized)[-1])
    assert not batch.capped[: last + 1].any()
    assert batch.capped[last + 1 :].all()
    assert set(batch.closed_by[last + 1 :].tolist()) == {Closure.SLICE}
    alone = [bool(lane.decide(traffic.requests(1)).randomized[0]) for _ in range(20)]
    assert not any(alone)


def test_a_spent_budget_is_told_from_a_slice_that_is_used_up() -> None:
    """And the audit proves it, by the draws that the log holds."""
    settings = config(policy=PolicyConfig(rate=1.0), budget=BudgetConfig(requests=20))
    fleet, traffic = Fleet(settings, KEY, 1), Traffic(np.random.default_rng(1))
    (lane,) = fleet.lanes
    for _ in range(30):
        fleet.now = traffic.at + 1.0
        lane.decide(traffic.requests(2))
        fleet.turn(refresh=False)
    assert drawn(fleet)[0] == 20
    assert fleet.newest.exhausted
    last = lane.decide(traffic.requests(5))
    assert set(last.closed_by.tolist()) == {Closure.BUDGET}
    fleet.turn(refresh=False)
    fleet.turn(refresh=False)
    found = audit(fleet.main.store, settings, KEY)
    assert found.faults == []
    sliced = found.closed_by["slice"]
    assert found.closed_by == {"slice": sliced, "budget": 65 - 20 - sliced}
    assert [each for each in found.unproven if "served as routed" in each] == [
        f"why {sliced} decisions were served as routed: by a decider's slice of a budget"
    ]


def test_tickets_that_are_taken_back_count_until_their_lane_acts_by_it() -> None:
    settings = config(policy=PolicyConfig(rate=1.0), budget=BudgetConfig(requests=800))
    fleet, traffic = Fleet(settings, KEY, 2), Traffic(np.random.default_rng(1))
    first, second = fleet.lanes
    fleet.main.controls.set_budget(300)
    fleet.publish()
    fleet.adopt(first)  # the second goes on by what it was given
    for _ in range(70):
        first.decide(traffic.requests(3))
        fleet.ship(first)
        fleet.now = traffic.at
        fleet.publish()
        fleet.adopt(first)
    second.decide(traffic.requests(250))
    assert drawn(fleet)[0] <= 300
    fleet.adopt(second)
    fleet.ship()
    for _ in range(80):
        fleet.now = traffic.at
        fleet.publish()
        fleet.adopt()
        for lane in fleet.lanes:
            lane.decide(traffic.requests(2))
        fleet.ship()
        fleet.sequence()
    assert drawn(fleet)[0] == 300


def test_a_limit_that_comes_later_waits_for_those_who_had_none() -> None:
    settings = config(policy=PolicyConfig(rate=1.0))
    fleet, traffic = Fleet(settings, KEY, 2), Traffic(np.random.default_rng(1))
    first, second = fleet.lanes
    assert fleet.newest.tickets[1].unlimited
    fleet.main.controls.set_budget(50)
    fleet.publish()
    fleet.adopt(first)
    second.decide(traffic.requests(30))
    assert np.count_nonzero(first.decide(traffic.requests(30)).randomized) == 0
    fleet.adopt(second)
    fleet.ship()
    for _ in range(30):
        fleet.now = traffic.at
        fleet.publish()
        fleet.adopt()
        first.decide(traffic.requests(2))
        fleet.ship()
        fleet.sequence()
    idle = fleet.newest.tickets[2].draws - second.spent.draws
    assert drawn(fleet)[0] + idle == 50
    assert idle < 8


def test_without_a_limit_a_lane_draws_before_it_is_known() -> None:
    settings = config(policy=PolicyConfig(rate=1.0))
    fleet, traffic = Fleet(settings, KEY, 1), Traffic(np.random.default_rng(1))
    early = fleet.join()
    assert early.number not in fleet.newest.tickets
    assert np.count_nonzero(early.decide(traffic.requests(30)).randomized) == 30
    # A limit that came before anybody had heard of it waits for it too.
    fleet.main.controls.set_budget(50)
    fleet.publish()
    fleet.adopt(fleet.lanes[0])
    fleet.ship(fleet.lanes[0])
    fleet.publish()
    fleet.adopt(fleet.lanes[0])
    assert np.count_nonzero(fleet.lanes[0].decide(traffic.requests(30)).randomized) == 0
    early.decide(traffic.requests(15))
    fleet.adopt(early)
    fleet.ship()
    for _ in range(20):
        fleet.now = traffic.at
        fleet.publish()
        fleet.adopt()
        fleet.lanes[0].decide(traffic.requests(3))
        fleet.ship()
        fleet.sequence()
    assert 45 <= drawn(fleet)[0] <= 50


def test_what_a_lost_lane_held_counts_as_spent_until_all_of_it_came() -> None:
    settings = config(policy=PolicyConfig(rate=1.0), budget=BudgetConfig(requests=80))
    fleet, traffic = Fleet(settings, KEY, 2), Traffic(np.random.default_rng(1))
    first, second = fleet.lanes
    held = fleet.newest.tickets[2].draws
    second.decide(traffic.requests(4))
    fleet.lose(second)
    for _ in range(60):
        fleet.now = traffic.at
        fleet.turn(refresh=False)
        first.decide(traffic.requests(3))
        second.unshipped, fleet.kept = [], second.unshipped or fleet.__dict__.get("kept", [])
        second.whole = False
    assert drawn(fleet)[0] - 4 == 80 - held
    second.unshipped = fleet.kept
    fleet.ship()
    fleet.sequence()
    fleet.tidy()
    for _ in range(20):
        fleet.now = traffic.at
        fleet.turn(refresh=False)
        first.decide(traffic.requests(3))
    assert drawn(fleet)[0] == 80


def test_units_and_shares_of_users_have_one_decider() -> None:
    assert refuse_lanes(config()) is None
    said = refuse_lanes(config(units=UnitsConfig(ttl=10.0)))
    assert said is not None
    assert said.startswith("[units]: the requests of a user would have to meet in one decider")


def test_limits_in_money_are_draws_at_the_dearest_price() -> None:
    models = [
        ModelConfig(name=name, price=price)
        for name, price in zip(MODELS, (0.01, 0.02, 0.04), strict=True)
    ]
    settings = config(models=models, budget=BudgetConfig(money=1.0, requests=70))
    fleet = Fleet(settings, KEY, 1)
    assert Limits.of(fleet.main).draws == 25
    assert Limits.of(fleet.main).models == (math.inf,) * 3
    assert Tickets(draws=None, models=(None, None)).unlimited
    assert not Tickets(draws=None, models=(None, 3)).unlimited


def test_decisions_of_a_pause_are_noted_with_the_publication_that_said_so() -> None:
    settings = config(policy=PolicyConfig(rate=0.9))
    fleet, traffic = Fleet(settings, KEY, 2), Traffic(np.random.default_rng(1))
    fleet.lanes[0].decide(traffic.requests(20))
    fleet.main.controls.pause("for a while", 2.0)
    fleet.publish()
    fleet.adopt(fleet.lanes[1])
    batch = fleet.lanes[1].decide(traffic.requests(20))
    assert set(batch.closed_by.tolist()) == {Closure.PAUSED}
    fleet.lanes[0].decide(traffic.requests(10))  # by the rule from before
    fleet.now = 4.0
    fleet.main.controls.resume(4.0)
    fleet.turn()
    fleet.turn()
    found = audit(fleet.main.store, settings, KEY)
    assert found.faults == []
    assert (found.decisions, found.capped) == (50, 20)
    kept = [s.batch for s in fleet.main.store.read() if isinstance(s.batch, DecisionBatch)]
    assert sum(len(batch) for batch in kept) == 50
