"""Open Bandit's files: the real ones where they are, and small files of the same layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from equipoise.replay.benchmarks import BenchmarkError, describe, load
from equipoise.replay.openbandit.log import LoggedFeedback, read_log

DATA = Path(__file__).resolve().parents[3] / ".." / "shared" / "data" / "obd"
needs_data = pytest.mark.skipif(not DATA.exists(), reason=f"{DATA} is absent")

ITEMS = pd.DataFrame(
    {"item_id": [0, 1, 2], "item_feature_0": [0.5, -1.0, 2.0], "item_feature_1": ["a", "b", "a"]}
)


def rows(count: int = 12) -> pd.DataFrame:
    numbers = np.arange(count)
    return pd.DataFrame(
        {
            "timestamp": [f"2019-11-24 00:00:{second:02d}.5+00:00" for second in numbers],
            "item_id": numbers % 3,
            "position": numbers % 2 + 1,
            "click": (numbers % 5 == 0).astype(int),
            "propensity_score": 1 / 3,
            "user_feature_0": np.where(numbers % 4 == 0, "young", "old"),
            "user-item_affinity_0": numbers * 1.0,
            "user-item_affinity_1": 0.0,
            "user-item_affinity_2": 2.0,
        }
    )


def write(
    root: Path, table: pd.DataFrame, items: pd.DataFrame = ITEMS, name: str = "random"
) -> Path:
    folder = root / name / "men"
    folder.mkdir(parents=True)
    table.to_csv(folder / "men.csv")
    items.to_csv(folder / "item_context.csv")
    return root


def same(first: LoggedFeedback, second: LoggedFeedback) -> bool:
    names = [n for n in LoggedFeedback.__slots__ if isinstance(getattr(first, n), np.ndarray)]
    return len(names) == 8 and all(
        np.array_equal(getattr(first, n), getattr(second, n)) for n in names
    )


@needs_data
class TestRealFiles:
    @pytest.mark.parametrize(("behaviour", "clicks"), [("random", 46), ("bts", 69)])
    def test_the_logs_and_their_numbers(self, behaviour: str, clicks: int) -> None:
        log = read_log(DATA, behaviour)
        assert (len(log), len(log.items), log.positions) == (10000, 34, ("1", "2", "3"))
        assert log.reward.sum() == clicks
        assert log.affinity.shape == (10000, 34)
        assert log.exclusions == {}
        assert (np.diff(log.at) >= 0).all()
        assert log.is_uniform == (behaviour == "random")

    def test_columns_are_the_files_own(self) -> None:
        log = read_log(DATA, "bts")
        table = pd.read_csv(DATA / "bts" / "men" / "men.csv")
        assert [int(log.items[item]) for item in log.item] == table.item_id.tolist()
        np.testing.assert_array_equal(log.propensity, table.propensity_score)
        np.testing.assert_array_equal(log.position + 1, table.position)
        np.testing.assert_array_equal(log.affinity[:, 7], table["user-item_affinity_7"])

    def test_propensities_are_those_of_position_and_item(self) -> None:
        """sum of 1 / p over the rows of a position estimates K times their number: within 20%."""
        log = read_log(DATA, "bts")
        for place in range(3):
            mean = (1 / log.propensity[log.position == place]).mean()
            assert 0.8 * 34 < mean < 1.2 * 34


class TestSmallFiles:
    def test_a_log(self, tmp_path: Path) -> None:
        log = read_log(write(tmp_path, rows()))
        assert log.items == ("0", "1", "2")
        assert log.item.tolist() == [0, 1, 2] * 4
        assert log.position.tolist() == [0, 1] * 6
        assert log.reward.tolist() == [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0]
        assert log.at[1] - log.at[0] == 1.0
        assert log.x_names == ("user_feature_0.1.young",)
        assert log.x[:, 0].tolist() == [1, 0, 0, 0] * 3
        assert log.item_names == ("item_feature_0", "item_feature_1.1.b")
        assert log.affinity[3].tolist() == [3.0, 0.0, 2.0]
        assert log.is_uniform
        with pytest.raises(ValueError, match="read-only"):
            log.reward[0] = 0.0

    def test_one_unequal_propensity_makes_a_log_not_uniform(self, tmp_path: Path) -> None:
        table = rows()
        table.loc[7, "propensity_score"] = 0.4
        assert not read_log(write(tmp_path, table)).is_uniform

    @pytest.mark.parametrize("part", ["", "random", "random/men", "men"])
    def test_a_path_may_name_the_root_a_behaviour_or_a_campaign(
        self, tmp_path: Path, part: str
    ) -> None:
        write(tmp_path, rows())
        assert len(read_log(tmp_path / part)) == 12

    def test_several_campaigns_must_be_named(self, tmp_path: Path) -> None:
        write(tmp_path, rows())
        (tmp_path / "random" / "all").mkdir()
        ITEMS.to_csv(tmp_path / "random" / "all" / "item_context.csv")
        with pytest.raises(BenchmarkError, match=r"2 campaigns \(all, men\), name one: .*/all"):
            read_log(tmp_path)
        assert len(read_log(tmp_path / "men")) == 12

    def test_the_order_of_the_items_file_means_nothing(self, tmp_path: Path) -> None:
        one = read_log(write(tmp_path / "a", rows()))
        assert same(one, read_log(write(tmp_path / "b", rows(), ITEMS.iloc[[2, 0, 1]])))

    def test_rows_without_a_click_value_are_counted(self, tmp_path: Path) -> None:
        table = rows().astype({"click": object})
        table.loc[[2, 5], "click"] = None
        log = read_log(write(tmp_path, table))
        assert log.exclusions == {"rows without a click value": 2}
        assert log.item.tolist() == [0, 1, 0, 1, 0, 1, 2, 0, 1, 2]
        assert log.affinity[:, 0].tolist() == [0, 1, 3, 4, 6, 7, 8, 9, 10, 11]

    def test_features_that_say_nothing_or_too_much_are_counted(self, tmp_path: Path) -> None:
        table = rows(55)
        table["user_feature_1"] = "all"
        table["user_feature_2"] = [f"id{number}" for number in range(55)]
        log = read_log(write(tmp_path, table))
        assert log.x_names == ("user_feature_0.1.young",)
        assert log.exclusions == {
            "constant user features (user_feature_1.0.all)": 1,
            "user features of over 50 levels (user_feature_2)": 1,
        }

    def test_a_log_without_affinities(self, tmp_path: Path) -> None:
        table = rows().filter(regex="^(?!user-item)")
        assert read_log(write(tmp_path, table)).affinity.shape == (12, 0)

    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [
            ("propensity_score", 0.0, r"men\.csv, row 5: propensity_score is 0.*above 0, at most"),
            ("propensity_score", 1.5, r"row 5: propensity_score is 1\.5"),
            ("propensity_score", None, r"row 5: propensity_score is nan, must be a number above"),
            ("propensity_score", "often", r"row 5: propensity_score is 'often', must be a number"),
            ("click", 2, r"row 5: click is 2(\.0)?, must be 0 or 1"),
            ("click", "yes", r"row 5: click is 'yes', must be a number or empty"),
            ("position", 0, r"row 5: position is 0(\.0)?, must be a whole number from 1 to 20"),
            ("position", 1.5, r"row 5: position is 1\.5"),
            ("position", None, r"row 5: position is nan"),
            ("item_id", 9, r"row 5: item_id is '9', must be an item of .*item_context\.csv"),
            ("item_id", None, r"row 5: item_id is empty"),
            ("timestamp", "noon", r"row 5: timestamp is 'noon', must be a time as"),
            ("user_feature_0", None, r"row 5: user_feature_0 is empty"),
            ("user-item_affinity_1", None, r"row 5: user-item_affinity_1 is nan, must be a number"),
        ],
    )
    def test_a_wrong_value_is_named(
        self, tmp_path: Path, field: str, value: Any, message: str
    ) -> None:
        table = rows().astype(object)
        table.loc[4, field] = value
        with pytest.raises(BenchmarkError, match=message):
            read_log(write(tmp_path, table))

    @pytest.mark.parametrize(
        ("table", "items", "message"),
        [
            (rows().drop(columns="click"), ITEMS, r"men\.csv: column 'click' is absent; it has:"),
            (rows(), ITEMS.drop(columns="item_id"), r"context\.csv: column 'item_id' is absent"),
            (
                rows().drop(columns="user-item_affinity_1"),
                ITEMS,
                "'user-item_affinity_1' is absent",
            ),
            (rows(0), ITEMS, r"men\.csv holds no rows"),
            (rows().assign(click=None), ITEMS, "click is empty in all 12 rows"),
            (rows(), ITEMS.iloc[:1], "holds 1 items, must be at least 2"),
            (rows(), ITEMS.assign(item_id=[0, 1, 1]), "item_id '1' occurs twice"),
        ],
    )
    def test_another_shape_is_refused(
        self, tmp_path: Path, table: pd.DataFrame, items: pd.DataFrame, message: str
    ) -> None:
        with pytest.raises(BenchmarkError, match=message):
            read_log(write(tmp_path, table, items))

    def test_what_is_absent_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(BenchmarkError, match="nowhere does not exist"):
            read_log(tmp_path / "nowhere")
        with pytest.raises(BenchmarkError, match="holds neither random/ nor bts/"):
            read_log(tmp_path)
        write(tmp_path, rows())
        with pytest.raises(BenchmarkError, match="holds no bts; it has: random"):
            read_log(tmp_path, "bts")
        with pytest.raises(BenchmarkError, match="behaviour is 'best', must be one of random, bts"):
            read_log(tmp_path, "best")
        (tmp_path / "random" / "men" / "men.csv").unlink()
        with pytest.raises(BenchmarkError, match=r"cannot read .*men\.csv: No such file"):
            read_log(tmp_path)


def test_the_listing_names_it_and_loading_it_says_how_to_run_it() -> None:
    assert "openbandit:PATH" in [row["name"] for row in describe()]
    with pytest.raises(
        BenchmarkError, match=r"a log without known counterfactuals.*equipoise replay"
    ):
        load("openbandit:anywhere")
    with pytest.raises(BenchmarkError, match=r"there are: .*openbandit"):
        load("nothing")
