"""The coverage study, small and seeded: what holds must hold, what fails must be seen to fail.

The full study is `python tests/statistical/coverage_study.py`. Every test states how often it
would fail by chance if what it tests were exactly at its limit; the sequences are far inside.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import peers_trap
import pytest
import row_traps
import speed
import widths
from cells import WORLDS, coverage
from many_runs import Setup, Snapshot, Sums, draw, scored, simulate
from naive import welch_half_width
from scipy import stats
from sequences import Asymptotic, Bounded, BoundedValues, Declared, PerModel
from streams import Stream, requests
from watchers import EverMissed, contrasts_of, values_of

from equipoise.agent.inference.certificate import Sequence
from equipoise.agent.inference.per_model import RewardMoments
from equipoise.agent.inference.prediction import TuningMoments
from equipoise.agent.inference.score import Rows, ScoreMoments

CONFOUNDED = "strong confounding, predictor trained on the log"
SMALL = Stream((0.4, 0.6, 0.5), 400, taste=0.2, herding=0.7, sway=0.1, missing=0.1)


def part_of(rows, run, size):
    """The rows of one run out of `draw`."""
    here = slice(run * size, (run + 1) * size)
    return Rows(*(getattr(rows, name)[here] for name in Rows.__dataclass_fields__))


@pytest.mark.parametrize("prediction", ["none", "log", "garbage"])
@pytest.mark.parametrize("allocation", ["top-two", "contrast"])
def test_sums_over_many_runs_are_those_of_the_shipped_moments(allocation, prediction):
    """Every row once more through the shipped `update`, `centres` and `tuning`, run by run."""
    setup = Setup(replace(SMALL, prediction=prediction), allocation)
    caps, runs = setup.caps_in_force(), 3
    size = setup.stream.models + 1
    score = [ScoreMoments.empty(len(caps), size) for _ in range(runs)]
    reward = [RewardMoments.empty(size - 1) for _ in range(runs)]
    fit = [TuningMoments.empty(size - 1) for _ in range(runs)]

    def decide(setup, snapshot, start, count, rng):
        rows = draw(setup, snapshot, start, count, rng)
        for run in range(runs):
            mine = part_of(rows, run, count)
            tuned = fit[run].tuning()
            if prediction == "garbage":
                tuned = type(tuned)(np.zeros(size), np.ones(size))
            score[run].update(mine, tuned, score[run].centres(), caps)
            drawn = mine.drawn[:, :-1].any(axis=1)
            model = mine.drawn[:, :-1].argmax(axis=1)
            reward[run].update(
                reward[run].centres(), model[drawn], mine.low[drawn], mine.high[drawn]
            )
            fit[run].update(mine)
        return scored(setup, snapshot, rows, (runs, count, size))

    sums = simulate(setup, runs, 0, [], decide=decide)
    for run in range(runs):
        ours = (sums.of_run(run), sums.rewards_of([run]), sums.tuning)
        for mine, shipped in zip(ours, (score[run], reward[run], fit[run]), strict=True):
            for name, array in shipped.arrays().items():
                other = mine.arrays()[name]
                if mine is sums.tuning:
                    other = other[run]
                np.testing.assert_allclose(
                    np.squeeze(other), np.squeeze(array), rtol=1e-9, atol=1e-9, err_msg=name
                )


def test_the_screen_hides_no_bound_above_theta():
    """Theta a tenth below the truth and a level of .6, so that bounds do cross: at each look every
    run goes through the shipped function, not just the suspects."""
    setup = Setup(replace(SMALL, rows=700), "top-two")
    contrasts, models = contrasts_of(setup.stream), contrasts_of(setup.stream, 3)
    level = 0.6
    cases = [
        (Bounded(level, setup), contrasts),
        (BoundedValues(level, setup), values_of(setup.stream)),
        (BoundedValues(level, setup, upper=True), values_of(setup.stream, upper=True)),
        (PerModel(level), models),
        (Asymptotic(level / 2, setup, 5.0), contrasts),
        (Declared(Sequence.ASYMPTOTIC, level, setup, needed=20.0), contrasts),
    ]
    crossed = np.zeros(len(cases), dtype=int)

    class Everyone:
        def look(self, sums):
            for place, (sequence, truth) in enumerate(cases):
                theta = truth(sums.t) - 0.1
                evidence = sequence.evidence(sums, theta)
                above = sequence.lower(sums, np.arange(30)) > theta + 1e-12
                if theta.shape[0] == theta.shape[1]:
                    above &= ~np.eye(len(theta), dtype=bool)
                assert not (above & (evidence <= 0)).any()
                crossed[place] += above.sum()

    simulate(setup, 30, 1, [Everyone()], looks=np.arange(20, 700, 60))
    assert (crossed > 0).all(), crossed


@pytest.mark.parametrize("name", WORLDS)
def test_the_worlds_mean_what_they_say(name):
    """Means of 200,000 requests against `truth`; 5.5 standard errors, 45 means in all: below
    2e-6 by chance."""
    stream = replace(WORLDS[name], rows=2000)
    asked = requests(stream, 0, 2000, 100, np.random.default_rng(2))
    routed = np.take_along_axis(asked.reward, asked.routed[..., None], axis=-1)
    means = np.concatenate([asked.reward, routed], axis=-1).mean(axis=(0, 1))
    np.testing.assert_allclose(means, stream.truth()[-1], atol=5.5 * 0.5 / np.sqrt(200_000))


CELLS = [
    ("no confounding", "top-two"),
    (CONFOUNDED, "contrast"),
    ("garbage predictions, not tuned away", "track-and-stop"),
    ("rewards near 1", "uniform"),
    ("drift", "neyman"),
]


@pytest.mark.parametrize(("world", "allocation"), CELLS)
def test_certified_sequences_hold_at_every_look(world, allocation):
    """150 runs. At a true 5% more than 17 misses have probability 0.06%; four kinds of statement
    in five worlds: about 1%."""
    found = coverage(replace(WORLDS[world], rows=1500), allocation, 150, 3)
    limit = 17 / 150
    assert found["bounded"] <= limit
    assert max(found["lower values"], found["upper values"]) <= limit
    assert found["asymptotic"] <= limit
    if world != "drift":
        assert found["per-model"] <= limit


def test_naive_intervals_fail_under_peeking():
    """150 runs. At a true 5% more than 30 misses (20%) have probability below 1e-10; they miss in
    more than half of all runs, and the limit is 8 standard errors below that."""
    found = coverage(replace(WORLDS["rewards near 1"], rows=3000), "uniform", 150, 3)
    assert found["naive z"] > 0.2
    assert found["naive t"] > 0.2


def test_per_model_is_wrong_where_its_assumption_is():
    """Rewards and the gate both depend on the request: the raw means of the models are biased.
    30 runs; at a true 5% more than 7 misses have probability 0.06%, each."""
    stream = Stream((0.5, 0.5, 0.5, 0.5), 9000, sway=0.45)
    found = coverage(stream, "contrast", 30, 4)
    assert found["per-model, unguarded"] > 0.5
    assert found["naive t"] > 0.9
    assert found["per-model"] <= 7 / 30
    assert found["bounded"] <= 7 / 30


@pytest.mark.parametrize("place", range(len(peers_trap.SETTINGS)))
def test_the_stop_rule_in_common_use_is_wrong_in_four_runs_of_ten(place):
    """500 runs, 43 to 56% wrong in 2,000; 4.5 standard errors away from either end."""
    wrong, stopped = peers_trap.stop_rule(*peers_trap.SETTINGS[place], 500, 5)
    assert 0.33 < wrong < 0.66
    assert stopped > 0.99


@pytest.mark.parametrize("place", range(len(peers_trap.SETTINGS)))
def test_certified_decisions_are_not(place):
    """100 runs; at a true 5% more than 14 wrong have probability 0.005%."""
    found = peers_trap.certified(*peers_trap.SETTINGS[place], 100, 6, rows=3000)
    for name in ("bounded", "per-model as it ships", "asymptotic as it ships"):
        assert found[name][0] <= 0.14, name
    assert found["bounded"][1] > 0.9


@pytest.mark.parametrize("name", [n for n in row_traps.TRAPS if not n.startswith("10%")])
def test_rows_that_method_allows_hold_and_naive_ones_do_not(name):
    """30 runs; at a true 5% more than 7 misses have probability 0.06%, 7 traps: below 1%."""
    found = row_traps.run_trap(name, 30, 7)
    assert found["right"] <= 7 / 30
    assert found["naive"] >= 0.7


@pytest.mark.parametrize(("models", "gap"), [(2, 0.2), (2, 0.1), (4, 0.2)])
def test_decisions_are_made_within_four_times_the_lower_bound(models, gap):
    """Median of 40 runs; the medians of 200 are below 3, where 4 is some 60 standard errors off.
    Wrong ones: more than 8 of 40 have probability 0.01% at a true 5%."""
    found = speed.decisions(models, gap, "uniform", 40, 8)["ratios"]
    assert found["asymptotic"][0] <= 4.0
    assert all(found[name][1] <= 8 / 40 for name in ("bounded", "per-model", "asymptotic"))


def test_widths_of_the_asymptotic_sequence():
    """At most 1.6 times the fixed-n interval where it is tuned, 1.8 from a fifth to 30 times."""
    found = widths.asymptotic(1, 0)
    place = found["times"].index(1.0)
    for name, ratios in found["ratios"].items():
        if name.startswith(("one-sided 5% / 3", "two-sided 5%")):
            assert ratios[place] > 1.3
        assert ratios[place] <= 1.6
        assert max(ratios) <= 1.8


def test_widths_of_the_per_model_sequence():
    """At most 3.2 times Welch's interval at 200 rewards of each model; 10 runs a cell, whose
    ratios vary by 2%."""
    for mean, high in widths.per_model(10, 9).values():
        assert 1.0 < mean <= high <= 3.2


def test_bounds_do_not_depend_on_the_scale_of_the_reward():
    assert max(widths.scale(3, 10).values()) < 1e-9


def test_a_rule_behind_a_watermark_knows_less():
    """The lag reaches the snapshot: with it, the first blocks are drawn knowing nothing."""
    setup = Setup(replace(SMALL, lag=3), "top-two")
    counts = []

    def decide(setup, snapshot, start, count, rng):
        counts.append(snapshot.count.sum(axis=1))
        rows = draw(setup, snapshot, start, count, rng)
        return scored(setup, snapshot, rows, (50, count, 4))

    simulate(setup, 50, 11, [], decide=decide)
    seen = np.array(counts)
    assert (seen[1] == 0).any()
    assert (seen[1] > 0).any()
    assert (np.diff(seen, axis=0) < 0).any()


def test_nothing_was_ever_missed_before_the_first_look():
    sums = Sums.empty(3, 5, 3)
    snapshot = Snapshot.of(sums, "none")
    assert (snapshot.mean == 0.5).all()
    watcher = EverMissed(Bounded(0.05, Setup(SMALL)), contrasts_of(SMALL))
    sums.t = 1
    watcher.look(sums)
    assert watcher.rate == 0.0


@pytest.mark.parametrize("alpha", [0.1, 0.025, 0.001])
def test_welch_interval_is_scipys(alpha):
    rng = np.random.default_rng(0)
    a, b, c = rng.normal(0, 1, 7), rng.normal(1, 3, 40), rng.normal(2, 0.1, 2)
    samples = [a, b, c]
    counts = np.array([len(s) for s in samples], float)
    squares = np.array([((s - s.mean()) ** 2).sum() for s in samples])
    wide = welch_half_width(counts, squares, alpha)
    for i, one in enumerate(samples):
        for j, two in enumerate(samples):
            if i != j:
                ends = stats.ttest_ind(one, two, equal_var=False).confidence_interval(1 - 2 * alpha)
                assert wide[i, j] == pytest.approx((ends.high - ends.low) / 2, rel=1e-9)


def test_welch_intervals_of_too_few_rewards_are_unknown_and_no_spread_is_zero():
    wide = welch_half_width(np.array([1.0, 5.0, 6.0]), np.array([0.0, 0.0, 0.0]), 0.05)
    assert np.isnan(wide[0]).all()
    assert np.isnan(wide[:, 0]).all()
    assert (wide[1:, 1:] == 0).all()


def test_runs_of_welch_intervals_may_come_first():
    counts, squares = np.array([[5.0, 9.0], [30.0, 2.0]]), np.array([[1.0, 4.0], [3.0, 0.5]])
    both = welch_half_width(counts, squares, 0.05)
    for run in range(2):
        np.testing.assert_array_equal(both[run], welch_half_width(counts[run], squares[run], 0.05))
