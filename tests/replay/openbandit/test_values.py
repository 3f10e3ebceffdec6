"""Values from logged propensities: raw recomputation, known truths, positions, intervals."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from equipoise.replay.benchmarks import BenchmarkError
from equipoise.replay.openbandit.log import LoggedFeedback
from equipoise.replay.openbandit.values import (
    Value,
    always,
    as_in,
    best_item,
    combined,
    cross_fitted_clicks,
    difference,
    item_rates,
    on_policy,
    policy_values,
    shown_shares,
    time_blocks,
    uniform,
    unknown,
    weighted_rate,
    wilson,
)
from equipoise.store.batches import Floats

SHOWN = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])
"""(P, K) the logging policy: other shares at the two positions."""
CLICKS = np.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.05]])
"""(P, K) click rates of users with x = 0; those with x = 1 click 0.2 more on item 1."""
SHARES = np.array([0.5, 0.5])


def click_rates(x: Floats, position: np.ndarray) -> Floats:
    rates = CLICKS[position].copy()
    rates[:, 1] += 0.2 * x
    return rates


def synthetic(rng: np.random.Generator, count: int, shown: Floats = SHOWN) -> LoggedFeedback:
    x = rng.integers(0, 2, count).astype(float)
    position = np.arange(count) % 2
    item = (rng.random(count)[:, None] > np.cumsum(shown[position], axis=1)).sum(axis=1)
    rates = click_rates(x, position)[np.arange(count), item]
    return LoggedFeedback(
        behaviour="random",
        items=("a", "b", "c"),
        positions=("1", "2"),
        x_names=("young",),
        x=x[:, None],
        affinity=np.zeros((count, 0)),
        item_names=("price",),
        item_features=np.array([[0.0], [1.0], [3.0]]),
        item=item,
        position=position,
        propensity=shown[position, item],
        reward=(rng.random(count) < rates).astype(float),
        at=np.arange(count, dtype=float),
    )


def personal(log: LoggedFeedback) -> Floats:
    """A policy that looks at the user and the position."""
    base = np.array([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]])[log.position]
    young = log.x[:, 0] == 1
    base[young] = [0.1, 0.8, 0.1]
    return base


PERSONAL_VALUE = float(
    np.mean(
        [
            [[0.2, 0.5, 0.3] @ CLICKS[0], [0.6, 0.3, 0.1] @ CLICKS[1]],
            [[0.1, 0.8, 0.1] @ (CLICKS[p] + [0, 0.2, 0]) for p in (0, 1)],
        ]
    )
)


def test_estimates_equal_a_recomputation_row_by_row() -> None:
    log = synthetic(np.random.default_rng(0), 41)
    target = personal(log)
    predicted = np.random.default_rng(1).random((41, 3))
    made = policy_values(log, target, predicted)
    for place in (0, 1):
        ips, dr, top, weights = [], [], 0.0, []
        for row in range(41):
            if log.position[row] != place:
                continue
            item, reward = log.item[row], log.reward[row]
            w = target[row, item] / log.propensity[row]
            direct = sum(target[row, a] * predicted[row, a] for a in range(3))
            ips.append(w * reward)
            dr.append(direct + w * (reward - predicted[row, item]))
            top += w * reward
            weights.append(w)
        for name, terms in (("ips", ips), ("dr", dr)):
            part = made[name].positions[place]
            assert part.value == pytest.approx(np.mean(terms), abs=1e-14)
            assert part.se == pytest.approx(np.std(terms, ddof=1) / math.sqrt(len(terms)))
        part = made["snips"].positions[place]
        assert part.value == pytest.approx(top / sum(weights))
        assert part.effective_rows == pytest.approx(sum(weights) ** 2 / np.square(weights).sum())
    for estimated in made.values():
        shares = (21 / 41, 20 / 41)
        parts = estimated.positions
        both = list(zip(shares, parts, strict=True))
        assert estimated.mix.value == pytest.approx(sum(s * part.value for s, part in both))
        assert estimated.mix.se == pytest.approx(math.hypot(*(s * part.se for s, part in both)))
    # Over the log's own shares, IPS is the plain mean over all rows.
    w = target[np.arange(41), log.item] / log.propensity
    assert made["ips"].mix.value == pytest.approx(float((w * log.reward).mean()), abs=1e-14)


def test_a_constant_has_no_width_and_no_match_is_unknown() -> None:
    log = replace(synthetic(np.random.default_rng(5), 200), reward=np.full(200, 0.3))
    made = policy_values(log, personal(log), np.zeros((200, 3)))["snips"]
    for part in (*made.positions, made.mix):
        assert part.value == pytest.approx(0.3, rel=1e-12)
        assert part.se == pytest.approx(0.0, abs=1e-12)
    assert policy_values(log, personal(log), np.zeros((200, 3)))["ips"].mix.se > 0.01
    # Every row shows one item and the policy always shows another: 0 would be a claim.
    single = replace(log, item=np.zeros(200, dtype=int))
    other = np.tile([0.0, 0.0, 1.0], (200, 1))
    assert math.isnan(policy_values(single, other, np.zeros((200, 3)))["snips"].mix.value)


def test_the_known_value_is_met_whatever_the_reward_model_says() -> None:
    """400 logs of 400 rows, false alarm under 4e-4 for the six means (each beyond 4 standard
    errors). DR's predictions are garbage on purpose; alone they are off by 0.2. SNIPS may be
    biased by the order of 1 / n, less than its noise here. Coverage: 95% intervals miss in at
    most 9% of 400 logs; at 95% coverage that happens with probability 4e-4 per estimator."""
    rng = np.random.default_rng(2)
    found: dict[str, list[Value]] = {"ips": [], "snips": [], "dr": []}
    garbage = []
    for _ in range(400):
        log = synthetic(rng, 400)
        predicted = rng.random((400, 3)) ** np.array([1.0, 0.2, 3.0])
        target = personal(log)
        garbage.append((target * predicted).sum(axis=1).mean())
        for name, estimated in policy_values(log, target, predicted).items():
            found[name].append(estimated.mix)
    assert abs(np.mean(garbage) - PERSONAL_VALUE) > 0.2
    for name, values in found.items():
        numbers = np.array([value.value for value in values])
        error = (numbers.mean() - PERSONAL_VALUE) / (numbers.std(ddof=1) / math.sqrt(400))
        assert abs(error) < 4, name
        assert np.mean([value.se for value in values]) == pytest.approx(
            numbers.std(ddof=1), rel=0.15
        )
        inside = [v.interval[0] <= PERSONAL_VALUE <= v.interval[1] for v in values]
        assert np.mean(inside) > 0.91, name


def test_a_good_reward_model_narrows_and_the_fitted_one_is_good() -> None:
    """Deterministic: standard errors of one log of 4,000 rows."""
    log = synthetic(np.random.default_rng(3), 4000)
    target = personal(log)
    plain = policy_values(log, target)
    assert set(plain) == {"ips", "snips"}
    made = policy_values(log, target, cross_fitted_clicks(log))
    assert made["dr"].mix.se < 0.9 * made["ips"].mix.se


def test_predictions_never_see_their_own_fold() -> None:
    log = synthetic(np.random.default_rng(4), 100)
    before, fold = cross_fitted_clicks(log), time_blocks(log)
    assert np.bincount(fold).tolist() == [20] * 5
    reward = np.where(fold == 2, 1.0 - log.reward, log.reward)
    columns = {name: getattr(log, name) for name in LoggedFeedback.__slots__}
    after = cross_fitted_clicks(LoggedFeedback(**{**columns, "reward": reward}))
    np.testing.assert_array_equal(after[fold == 2], before[fold == 2])
    assert not np.allclose(after[fold != 2], before[fold != 2])
    assert ((before >= 0) & (before <= 1)).all()


def test_folds_follow_time_not_the_order_of_rows() -> None:
    log = synthetic(np.random.default_rng(5), 50)
    order = np.random.default_rng(6).permutation(50)
    np.testing.assert_array_equal(time_blocks(log)[order], time_blocks(log.select(order)))


class TestPositions:
    """Every item is alike; position 1 is clicked on ten times as often, and shows item a most."""

    SHOWN = np.array([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]])

    def log(self, count: int = 6000) -> LoggedFeedback:
        log = synthetic(np.random.default_rng(7), count, self.SHOWN)
        rate = np.array([0.4, 0.04])[log.position]
        reward = (np.random.default_rng(8).random(count) < rate).astype(float)
        columns = {name: getattr(log, name) for name in LoggedFeedback.__slots__}
        return LoggedFeedback(**{**columns, "reward": reward})

    def test_ignoring_positions_answers_wrongly_and_minding_them_rightly(self) -> None:
        """False alarm 1e-4: each of two values beyond 4 standard errors of 0.22."""
        log = self.log()
        naive = []
        for item in (0, 2):
            value = policy_values(log, always(log, item))["snips"].mix
            assert abs(value.value - 0.22) < 4 * value.se
            # Propensities of the item alone, over both positions: 0.45 for a and for c.
            marginal = np.full(len(log), 0.45)
            ignoring = weighted_rate((log.item == item) / marginal, log.reward)
            naive.append(ignoring.value)
        assert naive[0] > 0.22 + 0.1
        assert naive[1] < 0.22 - 0.1

    def test_values_per_position_and_another_mix(self) -> None:
        log = self.log()
        first, second = policy_values(log, uniform(log))["ips"].positions
        assert abs(first.value - 0.4) < 4 * first.se
        assert abs(second.value - 0.04) < 4 * second.se
        skewed = policy_values(log, uniform(log), shares=np.array([0.9, 0.1]))["ips"].mix
        assert skewed.value == pytest.approx(0.9 * first.value + 0.1 * second.value)

    def test_a_position_where_the_item_never_stood_is_unknown(self) -> None:
        log = self.log(200)
        log = log.select((log.position == 0) | (log.item != 1))
        values = policy_values(log, always(log, 1))["ips"]
        assert math.isnan(values.mix.value)
        assert values.mix.measured.mean is None
        assert np.isnan(values.mix.interval).all()
        assert not math.isnan(values.positions[0].value)
        only_first = policy_values(log, always(log, 1), shares=np.array([1.0, 0.0]))
        assert only_first["ips"].mix.value == values.positions[0].value


def test_relabelling_items_changes_nothing() -> None:
    log = synthetic(np.random.default_rng(9), 300)
    order = np.array([2, 0, 1])
    columns = {name: getattr(log, name) for name in LoggedFeedback.__slots__}
    other = LoggedFeedback(
        **{
            **columns,
            "items": tuple(log.items[i] for i in order),
            "item_features": log.item_features[order],
            "item": np.argsort(order)[log.item],
        }
    )
    one, two = cross_fitted_clicks(log), cross_fitted_clicks(other)
    np.testing.assert_allclose(two, one[:, order], atol=1e-12)
    pairs = [
        (personal(log), personal(other)[:, order]),
        (uniform(log), uniform(other)),
        (best_item(log), best_item(other)),
        (as_in(log, log), as_in(other, other)),
    ]
    for mine, theirs in pairs:
        a, b = policy_values(log, mine, one), policy_values(other, theirs, two)
        for name in a:
            first = (a[name].mix, *a[name].positions)
            second = (b[name].mix, *b[name].positions)
            for x, y in zip(first, second, strict=True):
                assert x.value == pytest.approx(y.value, abs=1e-12)
                assert x.interval == pytest.approx(y.interval, abs=1e-12)


class TestTargets:
    def test_a_logs_click_rate_is_the_value_of_its_shares(self) -> None:
        """Exact: clicks / rows = sum over items of share times click rate of the item."""
        log = synthetic(np.random.default_rng(10), 500)
        shares = shown_shares(log)
        np.testing.assert_allclose(shares.sum(axis=1), 1)
        same = log.select(np.arange(500), shares[log.position, log.item])
        assert policy_values(same, as_in(log, log))["ips"].mix.value == pytest.approx(
            on_policy(log).mix.value
        )
        assert on_policy(log).mix.value == pytest.approx(log.reward.mean())

    def test_logs_that_do_not_match_are_refused(self) -> None:
        log = synthetic(np.random.default_rng(11), 20)
        columns = {name: getattr(log, name) for name in LoggedFeedback.__slots__}
        other = LoggedFeedback(**{**columns, "items": ("a", "b", "z")})
        with pytest.raises(
            BenchmarkError, match="log are a, b, c and of the random log are a, b, z"
        ):
            as_in(log, other)

    def test_the_best_item_is_not_valued_on_the_rows_that_chose_it(self) -> None:
        """100 logs in which all items are clicked on at 0.3: the mean value is within 4 standard
        errors (false alarm 6e-5); choosing and valuing on the same rows is far above it."""
        rng = np.random.default_rng(12)
        crossed, optimistic = [], []
        for _ in range(100):
            log = synthetic(rng, 200)
            columns = {name: getattr(log, name) for name in LoggedFeedback.__slots__}
            log = LoggedFeedback(**{**columns, "reward": (rng.random(200) < 0.3).astype(float)})
            crossed.append(policy_values(log, best_item(log))["ips"].mix.value)
            optimistic.append(np.nanmax(item_rates(log, np.ones(200, dtype=bool))))
        error = np.std(crossed, ddof=1) / 10
        assert abs(np.mean(crossed) - 0.3) < 4 * error
        assert np.mean(optimistic) > 0.3 + 6 * np.std(optimistic, ddof=1) / 10


class TestIntervals:
    def test_no_clicks_still_leave_a_width(self) -> None:
        value = weighted_rate(np.ones(300), np.zeros(300))
        assert value.interval == (0.0, pytest.approx(wilson(0.0, 300)[1]))
        assert 0.009 < value.interval[1] < 0.013

    def test_an_unweighted_rate_has_wilsons_interval(self) -> None:
        reward = np.repeat([1.0, 0.0], [20, 180])
        value = weighted_rate(np.ones(200), reward)
        assert value.interval == pytest.approx(wilson(0.1, 200))

    def test_few_clicks_on_rows_of_little_weight_are_not_believed(self) -> None:
        weight = np.repeat([0.01, 10.0], [500, 10])
        reward = np.where(np.arange(510) < 3, 1.0, 0.0)
        value = weighted_rate(weight, reward)
        assert value.interval[1] > 0.2  # ten heavy rows without a click exclude no more
        assert value.value + 2 * value.se < 0.001

    @pytest.mark.parametrize("few", [True, False])
    @pytest.mark.parametrize("turned", [False, True])
    def test_what_is_shown_lies_in_the_range_of_clicks(self, few: bool, turned: bool) -> None:
        """A doubly robust value of -.2 (1.2 turned) over 400 rows: the nearest rate is 0 (1), and
        its interval is no point: Wilson's over 400 rows, or up to -.2 + 1.96 se."""
        clicks = np.repeat([1.0, 0.0], [4, 396] if few else [40, 360])
        spread = np.tile([1.0, -1.0], 200) * (0.15 / 20.0)
        at = 1.2 if turned else -0.2
        value = Value(at, spread, np.full(400, 1 / 400), clicks / clicks.sum())
        assert value.se == pytest.approx(0.15)
        shown, reach = value.brief, max(wilson(0.0, 400)[1], 1.96 * 0.15 - 0.2)
        ends = (1 - shown.high, 1 - shown.low) if turned else (shown.low, shown.high)
        assert shown.value == (1.0 if turned else 0.0)
        assert ends == (0.0, pytest.approx(reach, abs=1e-4))
        assert shown.measured.mean == shown.value
        assert value.value == at, "differences and sums are of the estimate itself"

    def test_rare_clicks_are_covered(self) -> None:
        """1,000 logs of 400 rows, clicks at 0.01, weights 1 and 5: at least 93% covered; at 95%
        coverage less than that has probability 3e-3, and the seed is fixed."""
        rng = np.random.default_rng(13)
        covered = 0
        for _ in range(1000):
            weight = np.where(rng.random(400) < 0.3, 5.0, 1.0)
            low, high = weighted_rate(weight, (rng.random(400) < 0.01).astype(float)).interval
            covered += low <= 0.01 <= high
        assert covered >= 930

    def test_differences_share_rows_or_do_not(self) -> None:
        rng = np.random.default_rng(14)
        value = weighted_rate(np.ones(50), (rng.random(50) < 0.5).astype(float))
        assert difference(value, value, same_log=True).low == 0.0
        apart = difference(value, value, same_log=False)
        assert apart.high == pytest.approx(1.959964 * math.sqrt(2) * value.se)
        assert difference(value, unknown(50), same_log=True).mean is None

    def test_a_combination_averages_influences_not_standard_errors(self) -> None:
        rng = np.random.default_rng(15)
        reward = (rng.random(60) < 0.5).astype(float)
        value = weighted_rate(np.ones(60), reward)
        halves = [weighted_rate((np.arange(60) % 2 == k).astype(float), reward) for k in (0, 1)]
        assert combined([value] * 3, [1 / 3] * 3).se == pytest.approx(value.se)
        joined = combined(halves, [0.5, 0.5])
        assert joined.se == pytest.approx(math.hypot(halves[0].se, halves[1].se) / 2)
        assert joined.effective_rows == pytest.approx(60)
