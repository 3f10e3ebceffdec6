"""Plans from benchmarks, and planned experiments that the agent then runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from commands import run_command as run

from equipoise.agent.errors import AgentError, PlanError
from equipoise.agent.planning.plan import make_plan
from equipoise.replay.benchmarks import load
from equipoise.replay.planning import (
    Planned,
    Realised,
    attainable_share,
    markdown,
    of_benchmark,
    planned_experiments,
    prices,
    realise,
    restricted,
    reward_variances,
    rows,
    write_into,
)
from equipoise.replay.worlds import World, WorldOptions


@pytest.fixture(scope="module")
def benchmark_():
    return load("imagesegments")


def test_fewer_models_are_the_same_models(benchmark_):
    few = restricted(benchmark_, (4, 1))
    assert few.models == (benchmark_.models[4], benchmark_.models[1])
    np.testing.assert_array_equal(few.outcome, benchmark_.outcome[:, [4, 1]])
    np.testing.assert_allclose(prices(few), prices(benchmark_)[[4, 1]])


@pytest.mark.parametrize("reward", ["bernoulli", "bounded"])
def test_variances_are_those_of_served_rewards(benchmark_, reward):
    """40,000 rewards: the relative standard error of a variance is below 0.01."""
    world = World(benchmark_, WorldOptions(reward=reward))
    rng = np.random.default_rng(3)
    _, hidden = world.requests(40_000, rng)
    for model in (0, 3):
        reward_ = world.serve(hidden, np.full(40_000, model), rng)[1]
        assert reward_.var() == pytest.approx(reward_variances(world)[model], rel=0.04)


def test_what_a_scorer_could_explain_is_a_share(benchmark_):
    world = World(benchmark_, WorldOptions(alpha=0.0))
    assert 0.0 < attainable_share(world) < 0.5
    quiet = World(benchmark_, WorldOptions(alpha=0.0, reward="bounded", rating=0.0))
    assert attainable_share(quiet) > attainable_share(world)


def test_a_benchmark_is_planned_from_its_own_values():
    problem = of_benchmark("imagesegments", ["rating=0.1"], {"traffic": 100.0, "effect": 0.1})
    answer = make_plan(problem)
    assert answer.source == "benchmark"
    assert answer.recommended is not None
    assert any("at best a linear scorer" in line for line in answer.assumptions)
    with pytest.raises(PlanError, match="price is 1, expected none"):
        of_benchmark("imagesegments", [], {"traffic": 100.0, "effect": 0.1, "price": 1.0})


def test_planned_experiments_are_run_and_compared(benchmark_):
    found = [realise(benchmark_, each) for each in planned_experiments(benchmark_, 5, seed=11)]
    again = list(planned_experiments(benchmark_, 5, seed=11))
    assert again == [each.planned for each in found]
    ratios = np.array([each.ratio for each in found])
    assert (ratios > 0.1).all()
    assert 0.4 < np.median(ratios) < 2.5
    table = rows(found)
    assert table[0]["experiments"] == 5
    assert sum(row["experiments"] for row in table if row["cut"] == "policy") == 5


def realised(ratio, policy="uniform", right=True):
    planned = Planned(
        "b", (0, 1), 0.5, policy, "bounded", 0.5, None, 0.1, False, 1, 100.0, 50.0, 200.0, 0.0
    )
    return Realised(planned, 100.0 * ratio, right)


def test_findings_count_what_is_inside_and_what_gave_up():
    found = [realised(0.4), realised(0.9), realised(1.1, "top-two", right=False)]
    found.append(realised(np.inf, "top-two", right=None))
    every = rows(found)[0]
    assert every["inside"] == 0.5
    assert every["unfinished"] == 1
    assert every["wrong"] == 1
    assert every["ratio_high"] is None
    assert "| all | 4 |" in markdown(rows(found))


def test_the_table_goes_between_the_markers_only(tmp_path):
    page = tmp_path / "page.md"
    write_into(page, "first\n")
    page.write_text("before\n" + page.read_text() + "after\n")
    write_into(page, "second\n")
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "second" in text
    assert "first" not in text
    other = tmp_path / "other.md"
    other.write_text("mine")
    with pytest.raises(AgentError, match="has no line"):
        write_into(other, "table")
    assert other.read_text() == "mine"


THREE = ("plan", "--models", "3", "--traffic", "1000", "--reward-rate", "0.5")


def test_the_fixed_shape_answers_json():
    result = run(*THREE, "--effect", "0.1", "--json")
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["recommended"]["randomized"]["needed"] > 0


def test_the_readme_quotes_the_plan_of_its_command():
    """To a tenth: other processors round other draws."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    command = re.search(r"^equipoise (plan --traffic .*)$", readme, flags=re.MULTILINE)
    quoted = re.search(r"```text\n(Randomize .*?)```", readme, flags=re.DOTALL)
    result = run(*command[1].split(), "--json")
    said = json.loads(result.stdout)["sentence"]
    number = r"[0-9][0-9,]*\.?[0-9]*"
    assert re.sub(number, "#", said) == re.sub(number, "#", " ".join(quoted[1].split()))
    mine, theirs = (
        [float(each.rstrip(".").replace(",", "")) for each in re.findall(number, text)]
        for text in (said, quoted[1])
    )
    assert mine == pytest.approx(theirs, rel=0.1)


def test_models_prices_and_the_mix_are_named():
    prices = ("--price", "large=0.01", "--price", "new=0.004,small=0.002")
    mix = ("--mix", "small=0.8,large=0.2", "--title", "Ours")
    options = ("--traffic", "1000", "--reward-rate", "0.5", "--effect", "0.1", "--rate", "1")
    result = run("plan", *options, *prices, *mix, "--json")
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["models"] == ["new", "large", "small"]
    assert answer["title"] == "Ours"
    assert {"name": "horizon", "value": "none"} in answer["inputs"]
    assert answer["recommended"]["extra"]["needed"] > 0


def test_a_budget_alone_needs_no_traffic():
    result = run("plan", "--models", "3", "--reward-rate", "0.5", "--budget", "500", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["bought"][0]["requests"] == 5000


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--effect", "0"), "effect is 0"),
        (("--effect", "0.1", "--budget", "0"), "budget_requests is 0"),
        (("--effect", "0.1", "--horizon", "1", "--window", "2"), "horizon is 1"),
        (("--effect", "0.1", "--rate", "2"), "rate is 2"),
        ((), "effect is missing"),
        (("--effect", "0.1", "--price", "a=1,b"), "price is 'b', expected NAME=USD"),
        (("--effect", "0.1", "--mix", "a=0.5,b=0.2,c=0.1"), "mix is 0.8 in all"),
        (("--effect", "0.1", "--rated", "0.08"), "declare what one means (--missing VALUE"),
    ],
)
def test_impossible_goals_end_with_2_and_one_line(options, said, tmp_path):
    result = run(*THREE, *options, "--html", tmp_path / "plan.html", "--csv", tmp_path / "a.csv")
    assert result.returncode == 2
    assert said in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_store_says_when_it_will_know(tmp_path):
    store = tmp_path / "log.db"
    options = ("--policies", "uniform", "--estimators", "ipw", "--budget", "400", "--seeds", "1")
    made = run("replay", *options, "--exp-rate", "0.4", "--out", tmp_path / "a", "--store", store)
    assert made.returncode == 0, made.stderr
    page, table = tmp_path / "plan.html", tmp_path / "plan.csv"
    result = run("plan", "--store", store, "--effect", "0.1", "--html", page, "--csv", table)
    assert result.returncode == 0, result.stderr
    assert "400 randomized requests so far" in " ".join(result.stdout.split())
    assert "</html>" in page.read_text()
    assert table.read_text().startswith("table,policy")
