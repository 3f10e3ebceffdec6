"""Rows drawn elsewhere: they count for what was declared of them, and for no more."""

from __future__ import annotations

import numpy as np
import pytest
from drawn_logs import (
    BEGAN,
    CHANGES,
    NOW,
    agent_of,
    declared,
    epsilon_greedy,
    experiment,
    hash_split,
    requests,
    taken,
)
from raw_scores import Log, raw_sums
from traffic import KEY, MODELS

from equipoise.agent.agent import Agent
from equipoise.agent.answers.statements import state
from equipoise.agent.config import BudgetConfig, PolicyConfig, RewardConfig, UnitsConfig
from equipoise.agent.errors import AgentError, ConflictError
from equipoise.agent.ingest.drawn import DrawnRows
from equipoise.agent.ingest.drawn_rows import DrawnRow
from equipoise.agent.ingest.draws import survey
from equipoise.agent.lifecycle.eras import read_answers
from equipoise.agent.maintenance.audit import audit
from equipoise.agent.maintenance.export import tables
from equipoise.agent.record_adapter import RecordAdapter
from equipoise.store.batches import DecisionBatch, ExpiryBatch
from equipoise.store.records import Observation, Request

STICKY = {"units": UnitsConfig(ttl=50.0)}


@pytest.mark.parametrize("how", ["request", "unit"])
def test_certified_sums_equal_a_loop_over_the_raw_log(how):
    """Of several rules: predictions are frozen again from the rows before."""
    settings = experiment(**(STICKY if how == "unit" else {}))
    agent = agent_of(settings)
    rows = hash_split(1, 400, 3) if how == "unit" else epsilon_greedy(1, 1200)
    taken(agent, rows, declared(how))
    certified, log = agent.answers.view().certified, Log(agent.store, agent.state.transform)
    used = {row["rule"].rule_id for row in log.rows}
    assert len(used) > 1
    for row in log.rows:
        # All models that are compared were candidates; of another nothing is said.
        row["open"] = True
        row["probabilities"] = np.where(row["probabilities"] > 0.0, row["probabilities"], 1.0)
    # Today's routing is not compared: nothing says what it would have served.
    models = [0, 1] if how == "unit" else [0, 1, 2]
    spec = certified.spec
    found = raw_sums(log, spec, certified.watermark, 0.0, sticky=False)
    score = certified.overall.score
    assert found[0] == score.rows[0] == (400 if how == "unit" else 1200)
    for mine, theirs in zip(
        (score.low, score.high, score.low_squares, score.high_squares), found[1:5], strict=True
    ):
        assert np.allclose(mine[:2, models], theirs[:2, models], rtol=1e-10)
    pairs = np.ix_(models, models)
    for cap in range(2):
        own = score.contrast_squares()[cap][pairs]
        assert np.allclose(own, found[5][cap][pairs], rtol=1e-8)


@pytest.mark.parametrize("sampled", [False, True])
def test_estimates_are_the_weighted_means_of_the_raw_rows(sampled):
    rng = np.random.default_rng(3)
    rows = epsilon_greedy(2, 900)
    if sampled:
        # Rows without a reward are kept less often, as joiners of bandit services do.
        kept = [0.25 if row.reward == 0.0 else 0.8 for row in rows]
        coins = rng.random(len(rows))
        rows = [
            CHANGES(row, keep_prob=keep)
            for row, keep, coin in zip(rows, kept, coins, strict=True)
            if coin < keep
        ]
    agent = agent_of(experiment())
    taken(agent, rows, declared())
    values = agent.answers.estimates(["ipw"])["ipw"].values
    for at, name in enumerate(MODELS):
        own = [row for row in rows if row.model == name]
        weight = np.array([1.0 / (row.candidates[name] * (row.keep_prob or 1.0)) for row in own])
        reward = np.array([row.reward for row in own])
        assert values[at] == pytest.approx(weight @ reward / weight.sum(), abs=1e-12)
    assert agent.answers.certified().rows == (0 if sampled else 900)
    # What is left of a sample may depend on the reward, and so on the model: no test of that.
    rows_of = {
        check.name: check.figures["rows"]
        for check in agent.answers.checks()
        if "rows" in check.figures
    }
    for name in ("missingness", "delivery", "assignment"):
        assert rows_of[name] == (0 if sampled else 900), name


@pytest.mark.parametrize(
    ("change", "more", "why"),
    [
        ({}, {"how": "unknown"}, "how they were drawn is not declared"),
        ({"keep_prob": 0.5}, {}, "the log is a sample"),
        ({"candidates": None, "propensity": 0.4}, {}, "the probability of the drawn model alone"),
    ],
)
def test_what_is_not_known_of_the_draws_is_never_certified(change, more, why):
    agent = agent_of(experiment())
    rows = [CHANGES(row, **change) for row in epsilon_greedy(4, 600, (0.02, 0.5, 0.98))]
    reader = taken(agent, rows, declared(**more))
    answer = agent.answers.recommendation()
    assert agent.answers.certified().rows == 0
    assert np.isfinite(agent.answers.estimates(["ipw"])["ipw"].values).all()
    assert why in reader.sentence
    assert why in answer.sentence
    assert "rows drawn by flags, as declared on 2027-01-15" in answer.sentence
    assert "certified best" not in answer.sentence
    assert not {"alarm", "watch"} & {
        check.status for check in agent.answers.checks() if check.name in ("assignment", "delivery")
    }


def test_of_two_models_the_probability_of_the_drawn_one_is_enough():
    rows = epsilon_greedy(5, 700, (0.3, 0.8), ("slow", "fast"))
    alone = [CHANGES(row, candidates=None, propensity=row.candidates[row.model]) for row in rows]
    known, told = agent_of(experiment()), agent_of(experiment())
    taken(known, rows, declared())
    taken(told, alone, declared())
    one, other = known.answers.certified(), told.answers.certified()
    assert one.rows == other.rows == 700
    assert np.allclose(one.contrasts, other.contrasts, atol=1e-9)
    assert one.contrasts[1, 0] > 0.0
    assert not one.active[2]


def test_names_of_models_decide_nothing():
    rows = epsilon_greedy(6, 900)
    turn = dict(zip(MODELS, ("cheap", "slow", "fast"), strict=True))
    turned = [
        CHANGES(
            row,
            model=turn[row.model],
            candidates={turn[name]: each for name, each in row.candidates.items()},
        )
        for row in rows
    ]
    agents = agent_of(experiment()), agent_of(experiment())
    for agent, log in zip(agents, (rows, turned), strict=True):
        taken(agent, log, declared())
    one, other = (agent.answers.certified() for agent in agents)
    to = [MODELS.index(turn[name]) for name in MODELS]
    assert np.allclose(one.contrasts[:3, :3], other.contrasts[np.ix_(to, to)], atol=1e-9)
    assert np.allclose(one.lower[:3], other.lower[to], atol=1e-9)
    assert one.contrasts[2, 0] > 0.0


def test_rows_of_a_unit_are_one_draw():
    """Twenty rows of a user that say the same are as good as one of them."""
    many, few = hash_split(7, 150, 20, (0.2, 0.8)), hash_split(7, 150, 1, (0.2, 0.8))
    answers = []
    for rows in (many, few):
        agent = agent_of(experiment(**STICKY))
        taken(agent, rows, declared("unit"))
        answers.append(agent.answers.certified())
        assert answers[-1].rows == 150
        # The time-to-live of our own units is nothing to theirs.
        leaders = {
            (int(leader), int(unit))
            for segment in agent.store.read()
            if isinstance(segment.batch, DecisionBatch)
            for leader, unit in zip(segment.batch.leader, segment.batch.unit, strict=True)
        }
        assert len(leaders) == 150
    widths = [answer.upper[0] - answer.lower[0] for answer in answers]
    assert widths[0] > 0.8 * widths[1]


def test_a_file_that_was_drawn_by_unit_is_not_taken_as_drawn_by_request():
    def look(rows, how="request"):
        return survey((("log", at, row) for at, row in enumerate(rows)), declared(how), MODELS)

    with pytest.raises(AgentError, match=r'3,600 got the same model.*declare drawn = "unit"'):
        look(hash_split(8, 400, 10))
    assert look(hash_split(8, 400, 10), "unit").drawn.certifies
    rng = np.random.default_rng(9)
    for seed in range(20):
        rows = [CHANGES(row, unit_id=f"u{rng.integers(30)}") for row in epsilon_greedy(seed, 400)]
        assert look(rows).drawn.certifies


def test_rows_must_stand_in_the_order_of_their_draws():
    rows = epsilon_greedy(10, 50)
    rows[20], rows[30] = rows[30], rows[20]
    with pytest.raises(AgentError, match=r"log, row 22: at is 2023-.* before row 21 .*; sort them"):
        taken(agent_of(experiment()), rows, declared())
    assert taken(agent_of(experiment()), rows, declared("unknown"))
    agent = agent_of(experiment())
    taken(agent, epsilon_greedy(10, 50)[10:], declared())
    with pytest.raises(AgentError, match=r"at: .* is before .*, the newest row so far"):
        taken(agent, epsilon_greedy(10, 50)[:10], declared())


ROW = DrawnRow(
    model="fast",
    features=[0.5],
    candidates={"slow": 0.5, "fast": 0.3, "cheap": 0.2},
    reward=1.0,
    request_id="r0",
    at=BEGAN,
)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"candidates": {"slow": 1.0, "fast": 0.0}}, "fast, which was drawn, had a probability of"),
        (
            {"candidates": {"slow": 0.8, "cheap": 0.2}},
            "fast, which was drawn, had a probability of",
        ),
        ({"candidates": {"slow": 0.5, "fast": 0.4}}, "add up to 0.9, expected 1 within 1e-05"),
        (
            {"candidates": {"slow": -0.5, "fast": 1.5}},
            "probability of 'slow': -0.5 is not within 0",
        ),
        ({"candidates": {"slow": 0.5, "gpt": 0.5}}, "candidates: model 'gpt' is not one of slow"),
        ({"model": "gpt"}, "model: model 'gpt' is not one of slow, fast, cheap"),
        ({"propensity": 0.31}, "propensity: 0.31, and that among the candidates .* is 0.3"),
        ({"candidates": None}, "propensity: received nothing, expected the probability"),
        ({"candidates": None, "propensity": 0.0}, "propensity: 0 is not within 1e-09"),
        ({"candidates": None, "propensity": 1.2}, "propensity: 1.2 is not within 1e-09 … 1"),
        ({"keep_prob": 0.0}, "keep_prob: 0 is not within"),
        ({"keep_prob": 1.5}, "keep_prob: 1.5 is not within"),
        ({"sticky": True}, "sticky: the model was kept from an earlier draw"),
        ({"routed": "gpt"}, "routed: model 'gpt' is not one of"),
        ({"at": NOW + 1e4}, "10,000 s after the agent's clock"),
        ({"at": NOW - 5.0, "reward": None}, "reward: received nothing, and it may still come"),
    ],
)
def test_a_row_that_cannot_be_is_refused_with_field_value_and_limit(change, said):
    agent = agent_of(experiment())
    row = CHANGES(ROW, **change)
    other = CHANGES(ROW, request_id="r1", routed=row.routed and "slow", keep_prob=row.keep_prob)
    other = CHANGES(other, at=NOW)
    found = survey([("log", 1, row), ("log", 2, other)], declared(), MODELS)
    reader = DrawnRows(agent, found, NOW)
    reader.begin([row])
    with pytest.raises(AgentError, match=said):
        reader.take([row])
    assert agent.store.decisions == 0


def test_probabilities_add_up_to_the_declared_coverage():
    """A flag that is drawn for 40% of the users: its probabilities are of those."""
    row = CHANGES(ROW, candidates={"slow": 0.2, "fast": 0.2})
    agent = agent_of(experiment())
    reader = taken(agent, [row], declared(coverage=0.4))
    assert agent.store.decision(0).probabilities[0].tolist() == [0.5, 0.5, 0.0]
    assert "of the 0.4 that was drawn at all" in reader.sentence
    alone = [CHANGES(row, candidates=None, propensity=0.1, request_id=f"p{at}") for at in range(2)]
    alone[1] = CHANGES(alone[1], model="slow")
    agent = agent_of(experiment())
    taken(agent, alone, declared(coverage=0.4))
    assert agent.store.decision(0).probabilities[0].tolist() == [0.75, 0.25, 0.0]
    with pytest.raises(AgentError, match=r"add up to 1, expected the declared coverage 0.4"):
        taken(agent_of(experiment()), [ROW], declared(coverage=0.4))


def test_a_row_that_some_model_could_not_get_stays_out_and_is_counted():
    rows = epsilon_greedy(11, 400)
    two = {"slow": 0.5, "fast": 0.5, "cheap": 0.0}
    closed = [row for row in rows if row.model != "cheap"][::4]
    rows = [CHANGES(row, candidates=two) if row in closed else row for row in rows]
    agent = agent_of(experiment())
    taken(agent, rows, declared())
    certified = agent.answers.certified()
    assert certified.rows == 400 - len(closed)
    assert f"open to every model compared ({len(closed)} were not)" in certified.about


def test_reading_again_changes_nothing_and_other_content_is_refused():
    agent = agent_of(experiment())
    rows = epsilon_greedy(12, 700)
    taken(agent, rows[:600], declared())
    state, seq, era = agent.fold.to_bytes(), agent.store.next_seq, agent.rule.era
    taken(agent, rows[:600], declared(), at_once=100)
    assert (agent.fold.to_bytes(), agent.store.next_seq, agent.rule.era) == (state, seq, era)
    # A file that has grown: the new rows belong to the same era.
    taken(agent, rows, declared())
    assert agent.rule.era == era
    assert agent.answers.certified().rows == 700
    for change, name in (
        ({"reward": 1.0 - rows[3].reward}, "reward"),
        ({"features": [0.25]}, "features"),
        ({"unit_id": "somebody"}, "unit_id"),
        ({"candidates": {"slow": 0.3, "fast": 0.3, "cheap": 0.4}}, "probabilities"),
    ):
        with pytest.raises(ConflictError, match=f"'r3' has other {name} than decision d3"):
            taken(agent, [CHANGES(rows[3], **change)], declared())


def test_a_process_that_ended_between_decision_and_outcome_goes_on():
    agent = agent_of(experiment())
    rows = epsilon_greedy(13, 80)
    log = agent._log

    def breaks(batch, then=None):
        if not isinstance(batch, DecisionBatch):
            raise KeyboardInterrupt
        log(batch, then)

    agent._log = breaks
    with pytest.raises(KeyboardInterrupt):
        taken(agent, rows[:50], declared())
    again = Agent(agent.config, agent.store, KEY)
    assert again.answers.certified().rows == 0
    taken(again, rows, declared())
    assert again.answers.certified().rows == 80
    assert again.answers.certified().missing == 0
    whole = agent_of(experiment())
    taken(whole, rows, declared())
    ends = [each.answers.certified().contrasts for each in (again, whole)]
    assert np.allclose(*ends, atol=0.02)


def test_units_of_a_reading_that_broke_off_are_closed_by_the_next_decision():
    agent = agent_of(experiment(**STICKY))
    rows = hash_split(26, 30, 4)[:100]
    found = survey((("log", at, row) for at, row in enumerate(rows)), declared("unit"), MODELS)
    reader = DrawnRows(agent, found, NOW)
    reader.begin(rows)
    reader.take(rows)
    assert agent.answers.certified().rows == 0, "each may have further rows"
    agent.decide(requests(3))
    assert read_answers(agent.store)[1].parts[0].rows == 30
    assert agent.answers.view().watermark == 100
    # Or by rows of another mapping.
    other = agent_of(experiment(**STICKY))
    reader = DrawnRows(other, found, NOW)
    reader.begin(rows)
    reader.take(rows)
    more = [CHANGES(row, request_id=f"e{at}") for at, row in enumerate(epsilon_greedy(26, 60))]
    taken(other, more, declared())
    assert read_answers(other.store)[1].parts[0].rows == 30
    assert other.answers.certified().rows == 60


def test_rows_of_years_ago_are_not_late_and_lost_rewards_are_closed():
    rows = [
        CHANGES(row, reward=None) if at % 4 == 0 else row
        for at, row in enumerate(epsilon_greedy(14, 400))
    ]
    agent = agent_of(experiment())
    taken(agent, rows, declared())
    certified = agent.answers.certified()
    assert (agent.late, certified.rows, certified.missing) == (0, 400, 100)
    assert sum(len(s.batch) for s in agent.store.read() if isinstance(s.batch, ExpiryBatch)) == 100
    declared_value = RewardConfig(low=0.0, high=1.0, window=None, missing=0.0)
    zero = agent_of(experiment(reward=declared_value))
    taken(zero, rows, declared())
    assert zero.answers.certified().rows == 400
    assert audit(zero.store, zero.config, KEY).clean


def test_what_another_model_answered_is_the_worst_case():
    rows = epsilon_greedy(15, 500)
    served = [CHANGES(row, served="fast") if row.model == "cheap" else row for row in rows]
    lost = [CHANGES(row, delivered=False) if row.model == "cheap" else row for row in rows]
    for log in (served, lost):
        agent = agent_of(experiment())
        taken(agent, log, declared())
        certified = agent.answers.certified()
        assert certified.lower[2] == 0.0
        assert certified.upper[2] == 1.0


def test_the_next_decision_here_begins_an_era_and_the_answer_is_kept():
    agent = agent_of(experiment(budget=BudgetConfig(requests=100)))
    taken(agent, epsilon_greedy(16, 1500, (0.1, 0.2, 0.9)), declared())
    before = agent.answers.status()
    assert before.models == ("cheap",)
    assert "on requests drawn by flags, as declared on 2027-01-15" in before.sentence
    said = state(agent.answers.facts(), agent.answers.situation())
    assert said.activity_sentence == (
        "These rows were drawn elsewhere; the next decision here, or the start of a daemon, begins "
        "an era of its own."
    )
    assert said.outlook == "", "nothing is randomized here yet"
    # What others randomized is no part of our budget.
    assert agent.state.purse.limits["requests"] == 100
    assert agent.light.ledger.spent.sum() == agent.light.randomized == 0
    assert agent.light.ledger.arrivals.total == 0
    decided = agent.decide(requests(40))
    assert decided.era == 2
    assert (decided.rate > 0.0).all(), "it is not decided here"
    assert agent.rule.drawn is None
    assert agent.state.eras.reason(1) == "rows drawn by flags, as declared on 2027-01-15"
    answer = read_answers(agent.store)[1].parts[0]
    assert (answer.rows, answer.drawn) == (1500, "flags, as declared on 2027-01-15")
    assert agent.answers.certified().rows == 0
    # The file once more: it is known, and begins nothing.
    seq = agent.store.next_seq
    taken(agent, epsilon_greedy(16, 1500, (0.1, 0.2, 0.9)), declared())
    assert (agent.store.next_seq, agent.rule.era) == (seq, 2)
    agent.controls.end(None, "enough", NOW, certified=False)
    with pytest.raises(AgentError, match=r"the experiment ended on .*; resume it first"):
        taken(agent, [CHANGES(ROW, request_id="new")], declared())


def test_rows_do_not_wait_behind_decisions_that_are_open():
    agent = agent_of(experiment())
    agent.decide(requests(3, at=NOW - 10.0))
    with pytest.raises(AgentError, match="3 decisions are not closed yet, the first is d0"):
        taken(agent, epsilon_greedy(17, 20), declared())
    reader = DrawnRows(agent, survey([("log", 1, ROW)], declared(), MODELS), NOW + 1000.0)
    reader.begin([ROW])  # their window has ended
    assert agent.rule.drawn is None
    with pytest.raises(AgentError):
        reader.take([CHANGES(ROW, model="gpt")])
    assert agent.rule.drawn is None, "no row, no era"
    reader.take([ROW])
    assert agent.rule.drawn is not None


def test_a_row_of_a_usage_log_or_of_our_own_does_not_count_twice():
    agent = agent_of(experiment())
    adapter = RecordAdapter(agent, lambda: NOW)
    adapter.ingest(
        [Observation(routed="fast", features=[0.5], outputs=[], reward=1.0, request_id="r0")]
    )
    with pytest.raises(ConflictError, match="'r0' is in the store as a row of a usage log"):
        taken(agent, [ROW], declared())
    adapter.decide([Request(request_id="r1", routed="fast", features=[0.5])])
    with pytest.raises(ConflictError, match="request_id 'r1' was decided here, as d0"):
        taken(agent, [CHANGES(ROW, request_id="r1")], declared())


def test_sticky_buckets_are_units_from_their_first_row_on():
    """A flag with sticky buckets gives today's weights beside yesterday's assignment."""
    agent = agent_of(experiment(**STICKY))
    rows = hash_split(18, 40, 3)
    later = [
        row if at < 40 else CHANGES(row, sticky=True, candidates={"slow": 0.9, "fast": 0.1})
        for at, row in enumerate(rows)
    ]
    taken(agent, later, declared("unit"))
    assert agent.answers.certified().rows == 40
    chances = {
        tuple(row)
        for segment in agent.store.read()
        if isinstance(segment.batch, DecisionBatch)
        for row in segment.batch.probabilities.tolist()
    }
    assert chances == {(0.5, 0.5, 0.0)}, "those of the draw"
    first = [
        CHANGES(row, sticky=True, request_id=f"s{row.request_id}", unit_id="new")
        for row in rows[:1]
    ]
    with pytest.raises(AgentError, match="the first row of unit 'new' follows an earlier draw"):
        taken(agent, [CHANGES(first[0], at=NOW - 1000.0)], declared("unit"))
    other = CHANGES(rows[0], request_id="o", at=NOW - 1000.0, unit_id="x")
    two = [
        other,
        CHANGES(other, request_id="p", model={"slow": "fast", "fast": "slow"}[other.model]),
    ]
    with pytest.raises(AgentError, match=r"and unit 'x' had drawn .*: a unit keeps its draw"):
        taken(agent, two, declared("unit"))
    with pytest.raises(AgentError, match="'u0' was closed with the rows before"):
        taken(agent, [CHANGES(rows[0], request_id="q", at=NOW - 500.0)], declared("unit"))


def test_todays_routing_is_compared_where_the_rows_say_it():
    rng = np.random.default_rng(19)
    rows = [
        CHANGES(row, routed=str(rng.choice(MODELS)))
        for row in epsilon_greedy(19, 1500, (0.1, 0.5, 0.9))
    ]
    agent = agent_of(experiment())
    taken(agent, rows, declared())
    certified = agent.answers.certified()
    assert certified.lower[3] < 0.5 < certified.upper[3]
    assert certified.upper[3] - certified.lower[3] < 0.6
    value, _ = agent.answers.routing()
    as_routed = [row for row in rows if row.routed == row.model]
    weight = np.array([1.0 / row.candidates[row.model] for row in as_routed])
    reward = np.array([row.reward for row in as_routed])
    assert value == pytest.approx(weight @ reward / weight.sum(), abs=1e-12)
    without = agent_of(experiment())
    taken(without, [CHANGES(row, routed=None) for row in rows], declared())
    plain = without.answers.certified()
    assert (plain.lower[3], plain.upper[3]) == (0.0, 1.0)
    assert np.isnan(without.answers.routing()[0])


def test_declared_shares_are_recomputed_and_look_at_no_request():
    rows = [CHANGES(row, candidates=None) for row in hash_split(20, 300, 1)]
    shares = declared(shares=(0.5, 0.5, 0.0))
    agent = agent_of(experiment())
    taken(agent, rows, shares)
    assert agent.state.rules.context_free
    assert agent.answers.certified().rows == 300
    other = agent_of(experiment())
    taken(other, epsilon_greedy(20, 30), declared())
    assert not other.state.rules.context_free


def test_the_export_says_who_drew():
    agent = agent_of(experiment())
    taken(agent, epsilon_greedy(23, 50), declared())
    agent.decide(requests(5))
    frame = tables(agent.store, agent.config)["decisions"]
    assert (
        frame["drawn_by"].fillna("").tolist()
        == ["flags, as declared on 2027-01-15"] * 50 + [""] * 5
    )
    assert frame["certifiable"].all()
    loose = agent_of(experiment())
    taken(loose, epsilon_greedy(23, 50), declared("unknown"))
    assert not tables(loose.store, loose.config)["decisions"]["certifiable"].any()


def test_rebuilt_from_the_log_it_is_the_same_bit_for_bit():
    for rows, how, more in (
        (hash_split(24, 300, 4), "unit", STICKY),
        (epsilon_greedy(24, 900), "request", STICKY),
        (epsilon_greedy(24, 900), "request", {}),
    ):
        agent = agent_of(experiment(**more))
        taken(agent, rows, declared(how))
        agent.decide(requests(5))
        again = Agent(agent.config, agent.store, KEY)
        assert again.fold.to_bytes() == agent.fold.to_bytes()


def test_drawn_rows_serve_policies_and_refreshes():
    settings = experiment(policy=PolicyConfig(assignment="top-two", rate=0.3, estimator="ipw"))
    agent = agent_of(settings)
    taken(agent, epsilon_greedy(25, 600, (0.2, 0.3, 0.9)), declared())
    agent.refresh(NOW)
    assert agent.rule.drawn is not None, "a refresh keeps the era and who drew its rows"
    decided = agent.decide(requests(200))
    assert decided.probabilities[0].argmax() == 2, "what others found is known to the policy"
