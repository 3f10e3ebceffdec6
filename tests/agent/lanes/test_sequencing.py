"""What deciders ship enters the log once, in an order that rests on no outcome."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from fleet import Fleet
from raw_scores import Log, raw_sums
from traffic import KEY, Traffic, config

from equipoise.agent.agent import Agent
from equipoise.agent.cli.status import describe
from equipoise.agent.config import PolicyConfig, RewardConfig
from equipoise.agent.maintenance.audit import audit
from equipoise.store.batches import Closure, DecisionBatch, RequestBatch
from equipoise.store.errors import WriteError
from equipoise.store.format.sql_rows import joined
from equipoise.store.lanes import Tickets
from equipoise.store.memory import MemoryStore


def named(requests: RequestBatch, first: int) -> RequestBatch:
    names = [f"r{first + row}" for row in range(len(requests))]
    return RequestBatch(
        requests.unit, requests.context, requests.at, requests.x, requests.routed, request_id=names
    )


def take(requests: RequestBatch, rows: np.ndarray) -> RequestBatch:
    return RequestBatch(
        requests.unit[rows],
        requests.context[rows],
        requests.at[rows],
        requests.x[rows],
        requests.routed[rows],
        request_id=[requests.request_id[row] for row in rows.tolist()],
    )


def reported(*outcomes: dict[str, object]) -> bytes:
    return msgspec.json.encode([{"outcome": each, "came": 1.0} for each in outcomes])


def stream(fleet: Fleet, turns: int, seed: int = 5, size: int = 60) -> Traffic:
    """Requests that are spread over the lanes, their outcomes a turn later."""
    traffic = Traffic(np.random.default_rng(seed))
    rng = np.random.default_rng(seed + 1)
    count, due = 0, []
    fleet.main.simulate(traffic.simulations())
    for _ in range(turns):
        fleet.now = traffic.at + 1.0
        batch = named(traffic.requests(size), count)
        count += size
        held = [lane for lane in fleet.lanes if lane.ended is None]
        owner = rng.integers(0, len(held), size)
        for lane, outcomes in due:
            lane.observe(outcomes)
        due = []
        for index, lane in enumerate(held):
            rows = np.flatnonzero(owner == index)
            if len(rows):
                decided = lane.decide(take(batch, rows))
                due.append((lane, traffic.outcomes(decided)))
        fleet.turn()
    for lane, outcomes in due:
        lane.observe(outcomes)
    fleet.turn()
    fleet.turn()
    return traffic


def decisions_of(fleet: Fleet) -> list[DecisionBatch]:
    return [
        segment.batch
        for segment in fleet.main.store.read()
        if isinstance(segment.batch, DecisionBatch)
    ]


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("assignment", ["uniform", "top-two"])
def test_certified_sums_of_lanes_are_those_of_their_raw_rows(lanes: int, assignment: str) -> None:
    settings = config(policy=PolicyConfig(assignment=assignment, rate=0.4))
    fleet = Fleet(settings, KEY, lanes)
    stream(fleet, 8)
    certified = fleet.main.answers.view().certified
    log = Log(fleet.main.store, fleet.main.state.transform)
    expected = raw_sums(log, certified.spec, certified.watermark, settings.limits.rate_min)
    score = certified.overall.score
    assert certified.watermark == 480
    assert certified.overall.rows == expected[0] == 480
    for found, value in zip(
        (score.low, score.high, score.low_squares, score.high_squares), expected[1:5], strict=True
    ):
        np.testing.assert_allclose(found, value, rtol=1e-12, atol=1e-12)
    found = audit(fleet.main.store, settings, KEY)
    assert found.faults == []
    assert (found.decisions, found.outcomes) == (480, 480)


def test_probabilities_of_lanes_are_those_of_their_rules() -> None:
    """Recomputed row by row from the rule's own text, one request alone."""
    fleet = Fleet(config(policy=PolicyConfig(assignment="top-two", rate=0.4)), KEY, 3)
    stream(fleet, 8)
    rows = 0
    for batch in decisions_of(fleet):
        rule = fleet.main.state.rules.rule(batch.rule_id)
        for row in range(len(batch)):
            rate, shares = rule.allocation.allocate(batch.x[row : row + 1], None)
            assert abs(rate[0] - batch.rate[row]) <= 1e-12
            assert np.abs(shares[0] - batch.probabilities[row]).max() <= 1e-12
            rows += 1
    assert rows == 480


def test_the_order_is_that_of_publication_lane_and_counter() -> None:
    fleet = Fleet(config(), KEY, 3)
    stream(fleet, 6)
    draw = np.concatenate([batch.positions for batch in decisions_of(fleet)])
    number = np.concatenate([batch.number for batch in decisions_of(fleet)])
    assert number.tolist() == list(range(360))
    lane, counter = draw >> 40, draw & (2**40 - 1)
    turn = np.repeat(np.arange(6), 60)
    order = np.lexsort((counter, lane, turn))
    assert order.tolist() == list(range(360))
    assert len(set(draw.tolist())) == 360


def test_a_version_waits_for_the_last_lane_that_may_still_hold_it() -> None:
    fleet, traffic = Fleet(config(), KEY, 2), Traffic(np.random.default_rng(0))
    first, second = fleet.lanes
    first.decide(traffic.requests(10))
    second.decide(traffic.requests(10))
    fleet.publish()
    fleet.adopt(first)
    fleet.ship()
    fleet.sequence()
    assert fleet.main.store.decisions == 0  # the second lane may decide more under it
    second.decide(traffic.requests(5))
    first.decide(traffic.requests(7))
    fleet.adopt(second)
    fleet.ship()
    fleet.sequence()
    assert fleet.main.store.decisions == 25  # and not the 7 of the newest
    fleet.publish()
    fleet.adopt()
    fleet.ship()
    fleet.sequence()
    assert fleet.main.store.decisions == 32
    assert fleet.main.store.lane_ends() == {1: 17, 2: 15}


def test_what_a_lost_lane_ships_is_logged_and_in_no_sum() -> None:
    settings = config()
    fleet, traffic = Fleet(settings, KEY, 2), Traffic(np.random.default_rng(0))
    first, second = fleet.lanes
    late = second.decide(traffic.requests(40))
    kept = first.decide(traffic.requests(40))
    fleet.ship(first)
    fleet.now = 30.0
    fleet.lose(second)
    fleet.publish()
    fleet.adopt()
    fleet.ship(first)
    fleet.sequence()
    assert fleet.main.store.decisions == 40
    fleet.main.refresh(30.0, review=False)
    fleet.publish()
    fleet.adopt()
    third = first.decide(traffic.requests(30))
    second.observe(traffic.outcomes(late))
    first.observe(traffic.outcomes(kept))
    first.observe(traffic.outcomes(third))
    fleet.ship()
    fleet.turn()
    fleet.turn()
    assert fleet.main.store.decisions == 110
    assert fleet.sequencer.done.late == 40
    view = fleet.main.answers.view()
    assert view.watermark == 110
    assert view.certified.overall.rows == 70
    log = Log(fleet.main.store, fleet.main.state.transform)
    expected = raw_sums(log, view.certified.spec, 110, settings.limits.rate_min)
    np.testing.assert_allclose(view.certified.overall.score.low, expected[1], rtol=1e-12)
    # Nor in the sums of the experiment: they count as usage alone.
    drawn = np.concatenate([kept.randomized, third.randomized]).sum()
    assert view.moments.exp.count.sum() == drawn
    found = audit(fleet.main.store, settings, KEY)
    assert found.faults == []
    assert found.left_out == {"late": 40}


def test_what_comes_late_and_was_out_of_tickets_is_in_no_sum_either() -> None:
    settings = config()
    fleet, traffic = Fleet(settings, KEY, 2), Traffic(np.random.default_rng(0))
    first, second = fleet.lanes
    second.agent.limit(Tickets(draws=0))
    sliced = second.decide(traffic.requests(40))
    assert set(sliced.closed_by.tolist()) == {int(Closure.SLICE)}
    first.decide(traffic.requests(40))
    fleet.ship(first)
    fleet.lose(second)
    fleet.turn()
    fleet.main.refresh(30.0, review=False)
    fleet.turn()
    first.decide(traffic.requests(30))
    fleet.ship()
    fleet.turn()
    fleet.turn()
    assert fleet.main.store.decisions == 110
    found = audit(fleet.main.store, settings, KEY)
    assert found.faults == []
    assert found.left_out == {"late": 40}
    assert found.closed_by == {}


def test_what_a_lane_shipped_late_enters_behind_what_came_in_time() -> None:
    """A version that a third lane holds back is numbered before the late rows of a lost one."""
    settings = config()
    fleet, traffic = Fleet(settings, KEY, 3), Traffic(np.random.default_rng(0))
    first, second, third = fleet.lanes
    fleet.now = 3.0
    early = second.decide(traffic.requests(10))
    fleet.ship(second)
    fleet.publish()
    fleet.adopt(first, second)
    in_time = second.decide(traffic.requests(10))
    fleet.ship(second)
    fleet.lose(second)
    late = second.decide(traffic.requests(10))
    fleet.ship(second)
    third.decide(traffic.requests(5))
    fleet.ship(first)
    fleet.sequence()
    assert fleet.main.store.decisions == 0
    fleet.publish()
    fleet.adopt()
    fleet.ship(first, third)
    fleet.sequence()
    log = np.concatenate([batch.positions for batch in decisions_of(fleet)]) & (2**40 - 1)
    closed_by = np.concatenate([batch.closed_by for batch in decisions_of(fleet)])
    assert sorted(log.tolist()) == sorted([*range(30), *range(5)])
    assert closed_by.tolist() == [int(Closure.OPEN)] * 25 + [int(Closure.LATE)] * 10
    assert len(early) + len(in_time) + len(late) == 30
    assert audit(fleet.main.store, settings, KEY).faults == []


def test_what_is_left_out_holds_nothing_back() -> None:
    """Its outcome may never come: who asked twice rates once, and those of a lost lane are gone."""
    settings = config(reward=RewardConfig(low=0.0, high=1.0))
    fleet, traffic = Fleet(settings, KEY, 2), Traffic(np.random.default_rng(0))
    first, second = fleet.lanes
    requests = named(traffic.requests(10), 0)
    fleet.now = 2.0
    first.observe(traffic.outcomes(first.decide(requests)))
    fleet.turn()
    fleet.turn()
    second.decide(take(requests, np.arange(3)))
    fleet.turn()
    second.decide(named(traffic.requests(4), 20))
    fleet.lose(second)
    fleet.turn()
    fleet.turn()
    first.observe(traffic.outcomes(first.decide(named(traffic.requests(10), 40))))
    fleet.turn()
    fleet.turn()
    assert audit(fleet.main.store, settings, KEY).left_out == {"late": 4, "repeated": 3}
    view = fleet.main.answers.view()
    assert (view.watermark, fleet.main.store.decisions) == (27, 27)
    assert view.certified.overall.rows == 20
    behind = fleet.main.light.pending.behind(view.watermark)
    assert (behind.waiting, behind.held) == (0, 0)
    said = describe(fleet.main)
    assert (said["left_out"], said["waiting_for_outcomes"]) == ({"late": 4, "repeated": 3}, 0)


def test_what_comes_late_of_an_era_that_has_ended_leaves_the_new_one_alone() -> None:
    settings = config()
    fleet, traffic = Fleet(settings, KEY, 2), Traffic(np.random.default_rng(0))
    first, second = fleet.lanes
    late = second.decide(traffic.requests(40))
    first.observe(traffic.outcomes(first.decide(traffic.requests(40))))
    fleet.now = 30.0
    fleet.lose(second)
    fleet.publish()
    fleet.adopt()
    fleet.ship(first)
    fleet.sequence()
    fleet.main.controls.open_era("for a test", 31.0)
    fleet.publish()
    fleet.adopt()
    first.observe(traffic.outcomes(first.decide(traffic.requests(30))))
    fleet.publish()
    fleet.adopt()
    fleet.ship(first)
    fleet.sequence()
    before = fleet.main.answers.view()
    assert (before.certified.era, before.certified.overall.rows, before.watermark) == (1, 30, 70)
    checks = [check.sentence for check in fleet.main.fold.watched().checks()]
    second.observe(traffic.outcomes(late))
    fleet.ship(second)
    fleet.sequence()
    after = fleet.main.answers.view()
    assert fleet.main.store.decisions == 110
    assert (after.certified.era, after.certified.overall.rows, after.watermark) == (1, 30, 110)
    assert after.certified.overall.score.low.tolist() == before.certified.overall.score.low.tolist()
    assert [check.sentence for check in fleet.main.fold.watched().checks()] == checks
    first.observe(traffic.outcomes(first.decide(traffic.requests(20))))
    fleet.turn(refresh=False)
    fleet.turn(refresh=False)
    assert fleet.main.answers.view().certified.overall.rows == 50
    assert audit(fleet.main.store, settings, KEY).faults == []


def sent_again(requests: RequestBatch, rows: np.ndarray, later: float) -> RequestBatch:
    again = take(requests, rows)
    return replace(again, at=again.at + later)


@pytest.mark.parametrize("how", ["clock behind", "same time", "older publication"])
def test_a_request_that_is_sent_again_never_displaces_the_decision_before(how: str) -> None:
    """What its first answer was worth decides whether it comes again: the first one counts."""
    settings = config()
    fleet, traffic = Fleet(settings, KEY, 3), Traffic(np.random.default_rng(0), at=1000.0)
    second, first, third = fleet.lanes
    fleet.now = 1010.0
    requests = named(traffic.requests(20), 0)
    if how == "older publication":
        fleet.publish()
        fleet.adopt(first)
    elif how == "clock behind":
        second.skew = -200.0
    first.decide(requests)
    if how == "older publication":
        # The lane that lags had none of its own before, and enters first.
        fleet.ship(first)
    later = 0.0 if how == "same time" else 1.0
    second.decide(sent_again(requests, np.arange(0, 20, 2), later))
    fleet.turn(refresh=False)
    fleet.turn(refresh=False)
    store = fleet.main.store
    assert store.decisions == 30
    # Nobody can tell which came first, so both count, and one of them bears the name.
    closed = np.concatenate([batch.closed_by for batch in decisions_of(fleet)])
    assert np.bincount(closed, minlength=13).tolist() == [20, *[0] * 11, 10]
    assert fleet.sequencer.done.repeated == 10
    numbers = store.find_requests(list(requests.request_id))
    assert len(numbers) == 20
    table = fleet.main.light.pending
    assert table.certifiable[:30].all()
    # The other one waits until that one is rated, by whoever names the request, and no longer.
    fleet.sequencer.close_again(fleet.now)
    assert not table.expired[:30].any()
    rated = dict(list(numbers.items())[:15])
    fleet.lanes[2].report(reported(*({"request_id": name, "reward": 1.0} for name in rated)), 15)
    fleet.ship()
    fleet.sequence()
    fleet.sequencer.close_again(fleet.now)
    twice = sum(name in rated for name in list(requests.request_id)[::2])
    assert np.count_nonzero(table.expired[:30]) == twice > 5
    # From here on the log shows it: what is decided by this publication is decided after that.
    third.decide(sent_again(requests, np.arange(20), 2.0))
    fleet.turn(refresh=False)
    fleet.turn(refresh=False)
    assert fleet.sequencer.done.repeated == 30
    found = audit(store, settings, KEY)
    assert (found.faults, found.left_out) == ([], {"repeated": 20})


def test_a_request_that_the_log_had_by_a_publication_counts_once() -> None:
    fleet, traffic = Fleet(config(), KEY, 2), Traffic(np.random.default_rng(0))
    requests = named(traffic.requests(20), 0)
    fleet.now = 2.0
    fleet.lanes[1].decide(requests)
    fleet.publish()
    fleet.adopt()
    fleet.ship()
    fleet.sequence()
    assert fleet.main.store.decisions == 20
    # Made before the log had them, though sent after.
    fleet.lanes[0].decide(sent_again(requests, np.arange(5), 1.0))
    fleet.publish()
    fleet.adopt()
    fleet.lanes[0].decide(sent_again(requests, np.arange(5, 15), 1.0))
    fleet.turn(refresh=False)
    fleet.turn(refresh=False)
    closed = np.concatenate([batch.closed_by for batch in decisions_of(fleet)])
    assert closed.tolist() == [0] * 20 + [int(Closure.AGAIN)] * 5 + [int(Closure.REPEATED)] * 10


def test_what_is_shipped_twice_enters_once() -> None:
    """An authority that ended between the log and the hub: the next one sees both."""
    fleet, traffic = Fleet(config(), KEY, 2), Traffic(np.random.default_rng(0))
    for lane in fleet.lanes:
        lane.observe(traffic.outcomes(lane.decide(traffic.requests(25))))
    fleet.now = 3.0
    fleet.ship()
    before = list(fleet.shipped)
    fleet.publish()
    fleet.adopt()
    fleet.ship()
    fleet.sequence()
    rows = fleet.main.store.next_seq
    fleet.shipped = before
    fleet.sequence()
    assert (fleet.main.store.next_seq, fleet.main.store.decisions) == (rows, 50)
    assert fleet.sequencer.done.duplicates == 50


def test_times_are_bounded_by_their_publication_and_the_hub() -> None:
    fleet, traffic = Fleet(config(), KEY, 3), Traffic(np.random.default_rng(0), at=5000.0)
    fleet.now = 5000.0
    fleet.publish()
    fleet.adopt()
    for lane, skew in zip(fleet.lanes, (-4000.0, 0.0, 9000.0), strict=True):
        lane.skew = skew
        lane.decide(traffic.requests(5))
    fleet.now = traffic.at + 1.0
    fleet.turn()
    fleet.turn()
    at = np.concatenate([batch.at for batch in decisions_of(fleet)])
    assert at.min() == 4700.0
    assert at.max() <= 5004.0
    assert fleet.sequencer.done.bounded == 10


def test_an_outcome_may_come_to_any_lane_before_its_decision() -> None:
    fleet, traffic = Fleet(config(), KEY, 2), Traffic(np.random.default_rng(0))
    first, second = fleet.lanes
    decided = first.decide(named(traffic.requests(3), 0))
    del decided
    second.report(
        reported({"decision_id": "d1-1", "reward": 1.0}, {"request_id": "r2", "reward": 0.5})
    )
    second.report(reported({"decision_id": "d1-9", "reward": 1.0}))
    fleet.now = 2.0
    fleet.ship(second)
    fleet.sequence()
    assert len(fleet.shipped) == 2
    fleet.turn()
    fleet.turn()
    store = fleet.main.store
    assert [float(part.reward[0]) for part in store.outcome_parts(1)] == [1.0]
    assert [float(part.reward[0]) for part in store.outcome_parts(2)] == [0.5]
    assert fleet.sequencer.done.duplicates == 0
    assert len(fleet.shipped) == 1
    second.report(
        reported({"decision_id": "d1-1", "reward": 0.0}, {"decision_id": "d1-1", "reward": 1.0})
    )
    fleet.now = 90.0
    fleet.ship()
    fleet.sequence()
    assert fleet.sequencer.done.refused == {
        "an outcome of a decision that never came": 1,
        "an outcome that contradicts the one before": 1,
    }
    assert fleet.sequencer.done.duplicates == 1


@pytest.mark.parametrize("how", ["own", "reported"])
def test_outcomes_that_a_store_refused_are_taken_later(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A parcel of which one part still waits is looked at again: what failed is not taken for
    entered."""
    fleet, traffic = Fleet(config(), KEY, 2), Traffic(np.random.default_rng(0))
    first, second = fleet.lanes
    decided = first.decide(named(traffic.requests(3), 0))
    fleet.now = 2.0
    fleet.turn()
    fleet.turn()
    later = first.decide(named(traffic.requests(1), 3))
    if how == "own":
        both = [traffic.outcomes(decided), traffic.outcomes(later)]
        first._pack("outcomes", 0, joined(both))
    else:
        names = [{"request_id": f"r{at}", "reward": 1.0} for at in range(4)]
        second.report(reported(*names), 4)
    fleet.ship()
    with monkeypatch.context() as patch:
        patch.setattr(fleet.main.store, "append", refusing)
        with pytest.raises(WriteError):
            fleet.sequence()
    fleet.turn()
    fleet.turn()
    parts = [len(fleet.main.store.outcome_parts(number)) for number in range(4)]
    assert (parts, fleet.sequencer.done.duplicates) == ([1] * 4, 0)
    assert fleet.sequencer._taken == {}


def refusing(batch: object) -> int:
    raise WriteError("no room")


def test_the_fold_of_the_log_is_the_state_of_the_authority() -> None:
    fleet = Fleet(config(), KEY, 3)
    stream(fleet, 6)
    main = fleet.main
    again = Agent(fleet.config, main.store, KEY)
    assert again.fold.to_bytes() == main.fold.to_bytes()
    assert isinstance(main.store, MemoryStore)


def test_outcomes_wait_as_long_as_their_decisions_may_still_enter() -> None:
    """Of an authority that was away for minutes: what it finds is old and was never late."""
    fleet, traffic = Fleet(config(), KEY, 2), Traffic(np.random.default_rng(0))
    first, second = fleet.lanes
    fleet.now = 2.0
    decided = first.decide(named(traffic.requests(10), 0))
    first.observe(traffic.outcomes(decided))
    second.report(reported({"request_id": "r3", "reward": 1.0}))
    fleet.ship()
    fleet.now = 90.0
    fleet.publish()
    fleet.sequence()  # lanes still act by the publication before
    assert (fleet.main.store.decisions, len(fleet.shipped)) == (0, 3)
    fleet.adopt()
    fleet.ship()
    fleet.sequence()
    done = fleet.sequencer.done
    assert (done.decisions, done.outcomes + done.duplicates) == (10, 11 - len(done.refused))
    assert set(done.refused) <= {"an outcome that contradicts the one before"}
    assert fleet.shipped == []


def test_a_choice_of_late_rows_by_what_they_drew_is_an_alarm() -> None:
    """The draws that count must have their shares: if one model's answers ended lanes, it would
    lack some."""
    fleet = Fleet(config(policy=PolicyConfig(rate=0.9)), KEY, 2)
    traffic, rng = Traffic(np.random.default_rng(0)), np.random.default_rng(1)
    statuses = []
    for fair in (True, False):
        for _ in range(120):
            fleet.now = traffic.at + 1.0
            for lane in [lane for lane in fleet.lanes if lane.ended is None]:
                batch = lane.decide(traffic.requests(6))
                lane.observe(traffic.outcomes(batch))
                hits = np.count_nonzero(batch.randomized & (batch.model == 0))
                if rng.random() < 0.3 if fair else hits > 2:
                    fleet.lose(lane)
                    fleet.join()
            fleet.turn(refresh=False)
        checks = {check.name: check.status for check in fleet.main.fold.watched().checks()}
        statuses.append(checks["assignment"])
        assert fleet.sequencer.done.late > 100
    assert statuses == ["ok", "alarm"]


def test_what_comes_late_of_the_next_era_does_not_end_this_one() -> None:
    """A lane that lags holds rows of this era, which enter first."""
    settings = config()
    fleet, traffic = Fleet(settings, KEY, 2), Traffic(np.random.default_rng(0))
    first, second = fleet.lanes
    fleet.main.controls.open_era("for a test", 1.0)
    fleet.publish()
    fleet.adopt(first)
    lost = first.decide(traffic.requests(10))
    fleet.lose(first)
    lagging = second.decide(traffic.requests(40))
    second.observe(traffic.outcomes(lagging))
    fleet.now = 3.0
    fleet.ship()
    fleet.sequence()
    assert fleet.main.store.decisions == 0
    fleet.adopt(second)
    fleet.ship()
    fleet.publish()
    fleet.sequence()
    assert fleet.main.answers.view().certified.overall.rows == 40
    fleet.adopt(second)
    fleet.ship()
    fleet.sequence()
    positions = np.concatenate([batch.positions for batch in decisions_of(fleet)])
    assert positions.tolist() == [*lagging.positions.tolist(), *lost.positions.tolist()]
    assert audit(fleet.main.store, settings, KEY).faults == []


def test_replays_that_came_after_the_rule_are_unknown_to_what_it_decided() -> None:
    """For all that the numbers of its decisions are given later: what came since might depend on
    how the requests ended."""
    fleet, traffic = Fleet(config(), KEY, 1), Traffic(np.random.default_rng(0))
    requests = traffic.requests(20)
    fleet.lanes[0].decide(requests)
    fleet.main.simulate(traffic.simulations())
    fleet.turn(refresh=False)
    fleet.turn(refresh=False)
    main = fleet.main
    rule = main.state.rules.rule(decisions_of(fleet)[0].rule_id)
    lookup = main.light.simulated.lookup_all
    assert not lookup(requests.context, np.arange(20), rule.known_before)[1].any()
    main.refresh(5.0, review=False)
    later = np.arange(20, 40)
    assert lookup(requests.context, later, main.state.rule.known_before)[1].all()
