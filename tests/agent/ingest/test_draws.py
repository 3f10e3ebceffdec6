"""What rows drawn elsewhere show of their draws: a certificate only where nothing contradicts it.

Each kind of log below made certified intervals miss in most of its runs before it was noticed.
"""

from __future__ import annotations

import math

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
    read,
    requests,
    split,
    taken,
)
from msgspec import UNSET
from traffic import KEY, MODELS

from equipoise.agent.agent import Agent
from equipoise.agent.config import ModelConfig, RewardConfig, UnitsConfig
from equipoise.agent.errors import AgentError, ConflictError
from equipoise.agent.ingest.draws import BeforeDrawError, Evidence, Survey, survey
from equipoise.agent.ingest.joins import AFTER_DRAW
from equipoise.agent.ingest.records import nested
from equipoise.agent.lifecycle.eras import read_answers
from equipoise.agent.maintenance.audit import audit
from equipoise.agent.maintenance.export import tables

TWO = {"models": [ModelConfig(name="slow", price=0.01), ModelConfig(name="fast", price=0.01)]}


def nothing_certified(agent: Agent, why: str) -> None:
    """The widest ends there are, and a reason wherever somebody looks."""
    certified = agent.answers.certified()
    assert certified.rows == 0
    assert (certified.lower == 0.0).all()
    assert (certified.upper == 1.0).all()
    assert (certified.contrasts[~np.eye(len(certified.names), dtype=bool)] == -1.0).all()
    assert why in certified.uncertified
    assert agent.answers.certified_winner() is None
    assert why in agent.answers.recommendation().sentence
    assert "certified best" not in agent.answers.recommendation().sentence


@pytest.mark.parametrize("arms", [(0.4, 0.4, 0.2), (0.3, 0.3, 0.4), (0.46, 0.46, 0.08)])
def test_a_third_arm_that_is_no_model_here_certifies_nothing(arms):
    rng = np.random.default_rng(1)
    drawn = rng.choice(3, 600, p=arms)
    rows = [
        CHANGES(
            row,
            model=("slow", "fast", "gpt")[model],
            candidates=None,
            propensity=arms[model],
        )
        for row, model in zip(split(1, 600), drawn.tolist(), strict=True)
    ]
    agent = agent_of(experiment(**TWO))
    reader, refused = read(agent, rows, declared())
    assert len(refused) == np.count_nonzero(drawn == 2)
    nothing_certified(agent, "refused for what may depend on the draw (the first: model: model 'gp")
    assert "they count for estimates alone" in reader.sentence
    # A log from which somebody has removed the third arm.
    agent = agent_of(experiment(**TWO))
    taken(agent, [row for row in rows if row.model != "gpt"], declared())
    nothing_certified(agent, "which is not 1 in all: there was another model")
    # The same, where probabilities move and no two of them can be compared.
    moving = [
        CHANGES(row, propensity=row.propensity * (0.9 if at % 2 else 1.0))
        for at, row in enumerate(rows)
        if row.model != "gpt"
    ]
    agent = agent_of(experiment(**TWO))
    taken(agent, moving * 1, declared())
    assert agent.rule.drawn.doubt or arms[0] == 0.46, "of the smallest share too few rows tell it"


def test_what_came_after_a_draw_does_not_take_the_row_away():
    """Errors of one model come with its failures, those of the other with its successes."""
    rng = np.random.default_rng(2)
    rows = [
        CHANGES(row, reward=-1.0)
        if (row.model == "slow") == (row.reward == 0.0) and rng.random() < 0.5
        else row
        for row in split(2, 1500)
    ]
    errors = sum(row.reward == -1.0 for row in rows)
    agent, missing = agent_of(experiment()), agent_of(experiment())
    reader, refused = read(agent, rows, declared())
    taken(
        missing,
        [CHANGES(r, reward=None if r.reward == -1.0 else r.reward) for r in rows],
        declared(),
    )
    one, other = agent.answers.certified(), missing.answers.certified()
    assert (refused, one.rows, one.missing) == ([], 1500, errors)
    assert np.allclose(one.lower, other.lower, rtol=0.0, atol=1e-12)
    assert np.allclose(one.upper, other.upper, rtol=0.0, atol=1e-12)
    assert one.lower[0] < 0.5 < one.upper[0]
    said = (
        f"of {errors:,} rows the reward is missing (the first: reward: -1 is outside the declared"
    )
    assert said in reader.sentence
    # Another model answered when the first had failed: the draw stands, and was not delivered.
    others = [CHANGES(row, served="gpt-x") if row.reward == 0.0 else row for row in split(3, 900)]
    lost = [
        CHANGES(row, delivered=False, reward=None) if row.reward == 0.0 else row
        for row in split(3, 900)
    ]
    agent, same = agent_of(experiment()), agent_of(experiment())
    reader, refused = read(agent, others, declared())
    taken(same, lost, declared())
    assert (refused, agent.answers.certified().rows) == ([], 900)
    ends = agent.answers.certified().lower, same.answers.certified().lower
    assert np.allclose(*ends, rtol=0.0, atol=1e-12)
    assert (
        "the answer is taken as not delivered (the first: served: model 'gpt-x'" in reader.sentence
    )
    # Read once more, they are the same rows.
    assert read(agent, others, declared())[1] == []
    assert audit(agent.store, agent.config, KEY).clean


def test_a_value_declared_for_missing_rewards_is_not_that_of_one_that_cannot_be():
    """Errors of a model that is right by halves: as 0 they would be failures."""
    rows = [
        CHANGES(row, reward=7.0) if row.model == "slow" and at % 2 else row
        for at, row in enumerate(split(20, 1200, values=(0.9, 0.5)))
    ]
    settings = experiment(reward=RewardConfig(low=0.0, high=1.0, window=None, missing=0.0))
    agent = agent_of(settings)
    reader, refused = read(agent, rows, declared())
    certified = agent.answers.certified()
    assert (refused, certified.rows) == ([], 1200)
    assert certified.lower[0] < 0.9 < certified.upper[0]
    assert certified.upper[0] - certified.lower[0] > 0.4
    assert (
        "reward cannot be, and the answer is taken as not delivered (the first: reward: 7 is"
        in (reader.sentence)
    )


def test_units_that_come_in_many_readings_are_seen():
    agent, rows = agent_of(experiment()), hash_split(4, 75, 20)
    for day in range(20):
        reader = taken(agent, rows[75 * day : 75 * day + 75], declared())
    nothing_certified(
        agent, "with the rows read before, of 75 rows whose unit had one before, 75 got"
    )
    assert agent.rule.era == 1, "it is the era of the first rows that is taken back"
    assert "a unit was drawn once" in reader.sentence
    assert audit(agent.store, agent.config, KEY).clean
    again = Agent(agent.config, agent.store, KEY)
    nothing_certified(again, "a unit was drawn once")
    agent.decide(requests(3))
    kept = read_answers(agent.store)[1].parts[0]
    assert (kept.rows, kept.lower[:2]) == (0, [0.0, 0.0])
    assert "a unit was drawn once" in kept.uncertified


def test_what_later_rows_contradict_is_taken_back_of_eras_that_ended():
    """Between two readings the daemon runs, so that each has an era of its own."""
    agent, rows = agent_of(experiment()), hash_split(4, 75, 3, (0.1, 0.9))
    for day in range(2):
        taken(agent, rows[75 * day : 75 * day + 75], declared())
        kept = read_answers(agent.store).get(1)
        if day == 0:
            assert agent.answers.certified().lower[1] > 0.0
            agent.end_drawn(NOW)
            assert read_answers(agent.store)[1].parts[0].lower[1] > 0.0
    nothing_certified(agent, "with the rows read before, of 75 rows whose unit had one before")
    assert (kept.parts[0].lower[1], kept.parts[0].rows) == (0.0, 0)
    assert "of 75 rows whose unit had one before" in kept.parts[0].uncertified
    assert read_answers(agent.store)[0].parts[0].drawn is UNSET, "our own eras are nothing to it"
    assert audit(agent.store, agent.config, KEY).clean


def test_rows_without_a_unit_do_not_count_as_drawn_by_unit():
    agent = agent_of(experiment(units=UnitsConfig(ttl=50.0)))
    rows = [CHANGES(row, unit_id=None) for row in hash_split(5, 40, 5)]
    taken(agent, rows, declared("unit"))
    nothing_certified(agent, "200 rows name no unit, and were drawn by unit")


def test_shares_that_contradict_the_probabilities_certify_nothing_and_pause_nothing():
    agent = agent_of(experiment())
    reader = taken(agent, split(6, 800, (0.5, 0.5), (0.6, 0.6), (0.26, 0.74)), declared())
    nothing_certified(agent, "their draws contradict their probabilities: slow gets 27.4%")
    assert "they count for estimates alone" in reader.sentence
    agent.refresh(NOW)
    assert agent.state.paused is None
    agent.decide(requests(20))
    assert (agent.rule.drawn, agent.state.paused) == (None, None)
    assert "their draws contradict" in read_answers(agent.store)[1].parts[0].uncertified
    again = Agent(agent.config, agent.store, KEY)
    assert again.decide(requests(50)).randomized.any()


def test_probabilities_of_the_row_before_are_seen():
    """They are right on average, and wrong of each row."""
    rng = np.random.default_rng(7)
    p = rng.choice([0.1, 0.9], 1500)
    model = (rng.random(1500) < p).astype(int)
    rows = [
        CHANGES(
            row,
            model=("slow", "fast")[model[at]],
            candidates={"slow": 1.0 - p[at - 1], "fast": float(p[at - 1])},
        )
        for at, row in enumerate(split(7, 1500))
    ]
    agent = agent_of(experiment())
    taken(agent, rows, declared())
    checks = {check.name: check.status for check in agent.answers.checks()}
    assert checks["assignment"] != "alarm"
    nothing_certified(agent, "1 / probability of the drawn model is")


@pytest.mark.parametrize("timed", [True, False])
def test_sorted_rows_are_seen_and_no_row_rests_on_others_of_a_file_without_times(timed):
    rows = split(8, 1500, values=(0.3, 0.7))
    if not timed:
        rows = [CHANGES(row, at=None) for row in rows]
    agent = agent_of(experiment())
    taken(agent, rows, declared())
    certified = agent.answers.certified()
    assert certified.rows == 1500
    rules = {
        segment.batch.rule_id for segment in agent.store.read() if hasattr(segment.batch, "era")
    }
    assert len(rules) == (3 if timed else 1)
    assert any("(their times do not fall)" in each for each in certified.assumptions) == timed
    said = "(their times are missing or equal: nothing shows it)"
    assert any(said in each for each in certified.assumptions) != timed
    if not timed:
        # Then the order decides nothing.
        other = agent_of(experiment())
        taken(other, rows[::-1], declared())
        assert np.allclose(other.answers.certified().lower, certified.lower, atol=1e-12)
        agent = agent_of(experiment())
        taken(agent, sorted(rows, key=lambda row: (row.model, row.reward)), declared())
        nothing_certified(agent, "have the model of the row before")


@pytest.mark.parametrize(("sticky", "share"), [(5, 0.2), (1, 0.1)])
def test_a_few_units_that_were_drawn_once_are_seen_among_many(sticky, share):
    rng = np.random.default_rng(9)
    model, rows = rng.integers(0, 2, sticky), split(9, 1500)
    for at, row in enumerate(rows):
        name = f"u{rng.integers(100)}"
        if rng.random() < share:
            name = f"bot{(bot := int(rng.integers(sticky)))}"
            row = CHANGES(row, model=("slow", "fast")[model[bot]])
        rows[at] = CHANGES(row, unit_id=name)
    agent = agent_of(experiment())
    taken(agent, rows, declared())
    nothing_certified(agent, "some units were drawn once, not for each row")


def test_routing_that_follows_the_draw_is_left_out():
    """A column of the model that answered was taken for what would have answered without a draw."""
    rows = [CHANGES(row, routed=row.model) for row in split(10, 800, values=(0.6, 0.7))]
    agent = agent_of(experiment())
    taken(agent, rows, declared())
    certified = agent.answers.certified()
    assert certified.rows == 800
    assert (certified.lower[3], certified.upper[3]) == (0.0, 1.0)
    # Where rows say nothing of it, the export says nothing either.
    frame = tables(agent.store, agent.config)["decisions"]
    assert frame["routed"].isna().all()


def test_rows_that_cannot_be_told_apart_certify_nothing():
    agent = agent_of(experiment())
    rows = [CHANGES(row, at=None) for row in split(11, 100)]
    found = survey(
        (("log", at, CHANGES(row, request_id=None)) for at, row in enumerate(rows)),
        declared(),
        MODELS,
    )
    assert found.drawn.uncertified.startswith("100 rows have neither request_id nor at")
    taken(agent, rows, declared())
    assert agent.answers.certified().rows == 100


def test_the_same_row_with_anything_else_in_it_is_a_conflict():
    settings = experiment(units=UnitsConfig(ttl=50.0))
    agent = agent_of(settings)
    rows = [
        CHANGES(row, routed="slow", served=row.model, delivered=True, unit_id=f"u{at}")
        for at, row in enumerate(epsilon_greedy(12, 60))
    ]
    taken(agent, rows, declared())
    assert read(agent, rows, declared())[1] == []
    third = rows[3]
    for change, name in (
        ({"served": "fast" if third.model != "fast" else "slow"}, "served"),
        ({"served": None}, "served"),
        ({"delivered": False}, "delivered"),
        ({"at": third.at + 0.5}, "at"),
        ({"routed": "cheap"}, "routed"),
        ({"reward": None}, "reward"),
    ):
        with pytest.raises(ConflictError, match=f"'r3' has other {name} than decision d3"):
            taken(agent, [CHANGES(third, **change)], declared())
    for how in (
        declared("unit"),
        declared("unknown"),
        CHANGES(declared(), mapping="splits"),
    ):
        with pytest.raises(ConflictError, match=r"'r3' is there as drawn by flags, .* by request"):
            taken(agent, [third], how)
    # Of rows with the drawn model's probability alone, that one is compared.
    agent = agent_of(settings)
    alone = [
        CHANGES(row, candidates=None, propensity=row.candidates[row.model])
        for row in epsilon_greedy(12, 60)
    ]
    taken(agent, alone, declared())
    other = CHANGES(alone[3], propensity=alone[3].propensity / 2)
    with pytest.raises(ConflictError, match="'r3' has other probabilities"):
        taken(agent, [*alone[:3], other, *alone[4:]], declared())


def test_a_row_that_is_refused_shapes_nothing():
    rows = epsilon_greedy(13, 600, (0.2, 0.8), ("slow", "fast"))
    rows[50] = CHANGES(rows[50], request_id="odd", at=BEGAN + 900.0)
    odd = CHANGES(rows.pop(50), candidates={"slow": 0.3, "fast": 0.3, "cheap": 0.3})
    agent, plain = agent_of(experiment()), agent_of(experiment())
    reader, refused = read(agent, [*rows, odd], declared())
    taken(plain, rows, declared())
    assert len(refused) == 1
    assert agent.answers.certified().rows == 599
    ends = agent.answers.certified().lower, plain.answers.certified().lower
    assert np.allclose(*ends, rtol=0.0, atol=1e-12)
    assert "(1 row was refused for what was known before the draw)" in reader.sentence
    odd = CHANGES(odd, candidates=rows[50].candidates, keep_prob=1.5)
    agent = agent_of(experiment())
    assert len(read(agent, [*rows, odd], declared())[1]) == 1


def test_a_row_with_hardly_a_chance_for_some_model_is_not_open():
    """Weights of one such row would drown all others. It is known before the draw."""
    rows = split(14, 1200, values=(0.3, 0.7))
    rare = CHANGES(rows[600], candidates={"slow": 0.001, "fast": 0.999}, model="fast")
    agent, plain = agent_of(experiment()), agent_of(experiment())
    reader = taken(agent, [*rows[:600], rare, *rows[601:]], declared())
    taken(plain, rows[:600] + rows[601:], declared())
    one, other = agent.answers.certified(), plain.answers.certified()
    assert one.rows == other.rows == 1199
    assert one.contrasts[1, 0] == pytest.approx(other.contrasts[1, 0], abs=0.01)
    assert "(1 were not)" in one.about
    assert reader.sentence.startswith("1,199 of 1,200 new rows count for certificates")
    frame = tables(agent.store, agent.config)["decisions"]
    assert frame["certifiable"].sum() == 1199


def test_rows_whose_rewards_may_still_come_wait_with_those_that_have_theirs():
    """Else what is there today would be the quick rewards, of some models more than of others."""
    rows = [CHANGES(row, at=NOW - 150.0 + at) for at, row in enumerate(split(15, 100))]
    agent = agent_of(experiment())
    reader, refused = read(agent, rows, declared())
    assert agent.answers.certified().rows == 51
    assert len(refused) == 49
    assert all("may still come until" in each for each in refused)
    assert reader.sentence.startswith("each row counts for certificates")


def test_evidence_is_that_of_a_plain_product_and_honest_logs_have_none():
    """By Ville's inequality an honest log ever reaches a million with probability at most 1e-6, for
    each of the four bets: none of these 80 may."""
    rng = np.random.default_rng(16)
    for _ in range(80):
        found, logs = Evidence(), {"weights": np.zeros(6), "runs": np.zeros(2)}
        units: dict[int, np.ndarray] = {}
        last: dict[int, int] = {}
        before = -1
        best = 0
        for _row in range(250):
            p = np.full(3, 0.1)
            p[best] = 0.8
            model, unit = int(rng.choice(3, p=p)), int(rng.integers(20))
            found.add(model, p.tolist(), unit, int(rng.integers(3)))
            z, most = 1.0 / (3.0 * p[model]) - 1.0, 1.0 / 0.3 - 1.0
            stakes = np.array([0.02, 0.1, 0.3])
            logs["weights"] += np.log(np.concatenate([1 + stakes * z, 1 - stakes * z / most]))
            stuck = np.array([0.5, 0.95])
            if before >= 0:
                hit = before == model
                q = stuck + (1 - stuck) * p[before]
                logs["runs"] += np.log(q / p[before] if hit else (1 - q) / (1 - p[before]))
            if unit in last:
                q = stuck + (1 - stuck) * p[last[unit]]
                chance = p[last[unit]]
                units.setdefault(unit, np.zeros(2))
                units[unit] += np.log(q / chance if last[unit] == model else (1 - q) / (1 - chance))
            last[unit], before = model, model
            best = int(rng.integers(3)) if rng.random() < 0.1 else best
        shares = np.array([0.02, 0.1, 0.3, 1.0])
        products = sum(
            np.log(1.0 - shares + shares * np.exp(each).mean()) for each in units.values()
        )
        assert math.isclose(_log_mean(products), found.log_evidence["by_unit"], abs_tol=1e-9)
        assert math.isclose(_log_mean(logs["runs"]), found.log_evidence["in_runs"], abs_tol=1e-9)
        assert math.isclose(
            _log_mean(logs["weights"]), found.log_evidence["of_others"], abs_tol=1e-9
        )
        assert not found.by_unit
        assert not found.against(declared())
        assert not found.routed_follows


def _log_mean(logs: np.ndarray) -> float:
    return float(np.log(np.exp(logs).mean()))


def test_ends_that_cross_certify_nothing():
    """Whatever it is: something that is declared of such rows is not so."""
    agent = agent_of(experiment())
    taken(agent, split(17, 400, values=(0.2, 0.8)), declared())
    sums = agent.answers.view().certified.sums[0].score
    sums.low[:] += 400.0
    agent.answers.view().answers.clear()
    nothing_certified(agent, "their ends contradict one another")


def test_an_assumption_is_named_with_the_date_of_the_rows():
    agent = agent_of(experiment())
    taken(agent, [CHANGES(row, at=BEGAN) for row in split(18, 300)], declared())
    said = agent.answers.certified().assumptions
    assert "rows stand in the order of their draws (their times are missing or equal: nothing" in (
        " ".join(said)
    )


def test_a_log_in_disorder_is_refused_before_anything_is_taken():
    agent, rows = agent_of(experiment()), split(19, 60)
    with pytest.raises(AgentError, match="sort them"):
        taken(agent, rows[::-1], declared())
    assert agent.store.decisions == 0
    # Rows of a later file that are older than those that are there leave doubt of all.
    taken(agent, rows[20:], declared())
    read(agent, [*rows[:20], CHANGES(rows[59], request_id="new")], declared())
    nothing_certified(
        agent, "20 rows were refused for what may depend on the draw (the first: at: "
    )


def test_a_flag_of_a_part_of_the_users_may_log_its_weights_within_that_or_of_all():
    settings = experiment(**TWO)
    for whole in (False, True):
        weights = {"slow": 0.12, "fast": 0.28} if whole else {"slow": 0.3, "fast": 0.7}
        rows = [
            CHANGES(row, candidates=None, propensity=weights[row.model])
            for row in split(21, 60, (0.3, 0.7))
        ]
        agent = agent_of(settings)
        assert read(agent, rows, declared(shares=(0.3, 0.7), coverage=0.4))[1] == []
        assert agent.store.decision(0).probabilities[0].tolist() == [0.3, 0.7]


def test_no_row_says_itself_what_of_it_cannot_be_read():
    read_row = nested("decisions", experiment().features)
    row = {"model": "slow", "features": [0.5], "candidates": {"slow": 1.0}, "delivered": "perhaps"}
    assert read_row(row).unread == {"delivered": "delivered: 'perhaps' is neither true nor false"}
    with pytest.raises(AgentError, match="unread: no field of a row"):
        read_row(row | {"unread": {"reward": "lost"}})
    for part in ("model", "propensity"):
        with pytest.raises(AgentError):
            read_row(row | {part: [1, 2]})
    with pytest.raises(BeforeDrawError):
        read_row(row | {"at": "yesterday"})


@pytest.mark.parametrize("reason", sorted(AFTER_DRAW))
def test_rows_that_are_left_out_after_their_draw_are_told_from_others(reason):
    found = Survey(declared(), ("slow", "fast"))
    found.skipped("of type SPAN")
    assert found._doubt() == ""
    found.skipped(reason)
    assert f"1 {reason} were left out after their draw" in found._doubt()
