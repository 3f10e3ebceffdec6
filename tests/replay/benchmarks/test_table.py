"""Anyone's Parquet or CSV file."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from equipoise.agent.features import Boolean, Category, FeatureSchema, Text, Transform
from equipoise.agent.features.text import STATISTICS
from equipoise.replay.benchmarks import Benchmark, BenchmarkError, load
from tests.agent.ingest import wide_parquet


def frame(contexts: int = 6, models: int = 3, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = contexts * models
    return pd.DataFrame(
        {
            "context_id": np.repeat([f"c{c}" for c in range(contexts)], models),
            "model": [f"m {m}" for m in range(models)] * contexts,
            "reward": rng.random(rows).round(3),
            "cost": rng.random(rows).round(3),
            "x_size": np.repeat(np.arange(contexts, dtype=float), models),
            "y_length": rng.normal(size=rows).round(3),
            "y_score": rng.normal(size=rows).round(3),
        }
    )


def read(folder: Path, table: pd.DataFrame, kind: str = "csv", **options: Any) -> Benchmark:
    path = folder / f"data.{kind}"
    if kind == "parquet":
        table.to_parquet(path)
    else:
        table.to_csv(path, index=False, sep="\t" if kind.startswith("tsv") else ",")
    return load(f"table:{path}", **options)


def read_text(folder: Path, text: str, **options: Any) -> Benchmark:
    (folder / "data.csv").write_text(text)
    return load(f"table:{folder}", **options)


@pytest.mark.parametrize("kind", ["csv", "tsv", "csv.gz", "parquet"])
def test_values(tmp_path: Path, kind: str) -> None:
    table = frame()
    loaded = read(tmp_path, table, kind)
    assert loaded.models == ("m-0", "m-1", "m-2")
    assert loaded.context_ids == ("c0", "c1", "c2", "c3", "c4", "c5")
    assert loaded.context_names == ("x_size",)
    assert loaded.output_names == ("y_length", "y_score")
    np.testing.assert_array_equal(loaded.outcome, table.reward.to_numpy().reshape(6, 3))
    np.testing.assert_array_equal(loaded.cost, table.cost.to_numpy().reshape(6, 3))
    length = table.y_length.to_numpy().reshape(6, 3)
    assert np.corrcoef(loaded.outputs[:, :, 0].ravel(), length.ravel())[0, 1] > 0.99
    assert loaded.exclusions == {}
    assert loaded.source == f"data.{kind}"


def test_order_of_rows_changes_only_the_order_of_contexts(tmp_path: Path) -> None:
    table = frame()
    plain = read(tmp_path, table)
    turned = read(tmp_path, table.iloc[::-1])
    assert turned.models == plain.models[::-1]
    np.testing.assert_array_equal(turned.outcome, plain.outcome[::-1, ::-1])
    np.testing.assert_allclose(turned.outputs, plain.outputs[::-1, ::-1])
    np.testing.assert_allclose(turned.x, plain.x[::-1])


def test_numbers_as_names_and_words_that_look_missing(tmp_path: Path) -> None:
    table = frame(models=2)
    table["context_id"] = np.repeat(np.arange(6), 2)
    table["model"] = ["NA", "None"] * 6
    for kind in ("csv", "parquet"):
        loaded = read(tmp_path, table, kind)
        assert loaded.models == ("NA", "None")
        assert loaded.context_ids[:2] == ("0", "1")


def test_rewards_of_another_range_need_it_declared(tmp_path: Path) -> None:
    table = frame()
    table["reward"] = 2.0
    table.loc[4, "reward"] = 4.5
    message = r"row 1: reward is 2, must be in \[0, 1\]; reward_low and reward_high declare"
    with pytest.raises(BenchmarkError, match=message):
        read(tmp_path, table)
    loaded = read(tmp_path, table, reward_low=1, reward_high=5)
    assert loaded.outcome[1, 1] == 0.875
    assert loaded.outcome[0, 0] == 0.25
    with pytest.raises(BenchmarkError, match=r"row 5: reward is 4.5, must be in \[1, 4.4\]"):
        read(tmp_path, table, reward_low=1, reward_high=4.4)
    with pytest.raises(BenchmarkError, match=r"reward_high is 1.0, must be above reward_low, 1"):
        read(tmp_path, table, reward_low=1)


def test_gaps_are_counted_by_reason(tmp_path: Path) -> None:
    for kind in ("csv", "parquet"):
        table = frame(contexts=9)
        table.loc[0, "reward"] = np.nan
        table.loc[4, "y_score"] = np.nan
        table.loc[table.context_id == "c2", "x_size"] = np.nan
        table.loc[10, "x_size"] = np.nan  # the other rows of c3 tell
        table.loc[11, "cost"] = np.nan
        table = table.drop(index=[13]).reset_index(drop=True)
        loaded = read(tmp_path, table, kind)
        assert loaded.context_ids == ("c3", "c5", "c6", "c7", "c8")
        assert loaded.exclusions == {
            "contexts absent for a model": 1,
            "contexts without a reward": 1,
            "contexts without an output feature": 1,
            "contexts without a context feature": 1,
        }
        assert np.isnan(loaded.cost).sum() == 1


def test_a_model_with_few_contexts_is_left_out(tmp_path: Path) -> None:
    table = frame()
    table = table[(table.model != "m 1") | (table.context_id < "c2")]
    loaded = read(tmp_path, table)
    assert loaded.models == ("m-0", "m-2")
    assert loaded.exclusions == {"models that lack more than 50% of the contexts (m-1)": 1}
    chosen = read(tmp_path, table, models="m-2,m-1", max_missing=1.0)
    assert chosen.outcome.shape == (2, 2)
    np.testing.assert_array_equal(chosen.outcome[:, 1], frame().reward[[2, 5]])


def test_nothing_left_is_a_clear_message(tmp_path: Path) -> None:
    table = frame(models=2)
    table.loc[table.index % 4 == 0, "reward"] = np.nan
    table.loc[table.index % 4 == 3, "y_score"] = np.nan
    message = (
        r"0 of 6 contexts are usable for all 2 models, must be at least 2 \(3 contexts without a"
        r" reward; 3 contexts without an output feature\)"
    )
    with pytest.raises(BenchmarkError, match=message):
        read(tmp_path, table)


def test_without_cost_context_features_or_with_other_columns(tmp_path: Path) -> None:
    table = frame().drop(columns=["cost", "x_size"]).assign(note="n", when=3)
    loaded = read(tmp_path, table)
    assert np.isnan(loaded.cost).all()
    assert loaded.x.shape == (6, 0)
    assert loaded.exclusions == {
        "columns of no known kind (note, when; features begin with x_ or y_)": 2
    }


def test_outcome_as_a_feature(tmp_path: Path) -> None:
    loaded = read(tmp_path, frame(), features="with-outcome")
    assert loaded.output_names[-1] == "outcome"
    assert loaded.outcome_features
    np.testing.assert_array_equal(loaded.outputs[:, :, -1], loaded.outcome)


def test_repeated_rows_are_counted_and_contradictions_refused(tmp_path: Path) -> None:
    table = frame()
    table.loc[1, "cost"] = np.nan
    again = pd.concat([table, table.iloc[[1, 1, 7]]])
    loaded = read(tmp_path, again)
    assert loaded.exclusions == {"rows that repeat another": 3}
    np.testing.assert_array_equal(loaded.outcome, read(tmp_path, table).outcome)
    again = again.reset_index(drop=True)
    again.loc[20, "y_score"] = 99.0
    message = r"row 21: context_id 'c2' and model 'm 1' occur before with another y_score \(.*99\)"
    with pytest.raises(BenchmarkError, match=message):
        read(tmp_path, again)


def test_context_features_that_differ_within_a_context(tmp_path: Path) -> None:
    table = frame()
    table.loc[4, "x_size"] = 7.0
    with pytest.raises(BenchmarkError, match="context_id 'c1' has x_size 1 in one row and 7 in"):
        read(tmp_path, table)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("reward", "good", r"row 3: reward is 'good', must be a number or empty"),
        ("y_score", "1,5", r"row 3: y_score is '1,5', must be a number or empty"),
        ("reward", np.inf, r"row 3: reward is inf, must be finite"),
        ("y_length", 1e60, r"row 3: y_length is 1e\+60, must be finite"),
        ("cost", -2.0, r"row 3: cost is -2, must be 0 or more, or empty"),
        ("model", "", r"row 3: model is empty, must be a name"),
        ("context_id", None, r"row 3: context_id is empty, must be a name"),
    ],
)
def test_a_wrong_value_is_named(
    tmp_path: Path, kind: str, column: str, value: Any, message: str
) -> None:
    table = frame()
    if isinstance(value, str):
        table[column] = table[column].astype(str)
    table.loc[2, column] = value
    with pytest.raises(BenchmarkError, match=rf"data\.{kind}, {message}") as caught:
        read(tmp_path, table, kind)
    assert "\n" not in str(caught.value)


def test_true_and_false_are_rewards(tmp_path: Path) -> None:
    table = frame()
    table["reward"] = table.reward > 0.5
    csv, parquet = read(tmp_path, table), read(tmp_path, table, "parquet")
    np.testing.assert_array_equal(csv.outcome, table.reward.to_numpy().reshape(6, 3))
    np.testing.assert_array_equal(parquet.outcome, csv.outcome)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"data\.csv is not CSV, or was cut short: Empty CSV file"),
        ("model,reward,y_a\nm,1,2\n", "no column 'context_id'; it has: model, reward, y_a"),
        ("context_id,model,reward\nc,m,1\n", r"no column y_\*, must have an output feature"),
        ("context_id,model,reward,y_a,y_a\nc,m,1,2,3\n", "column 'y_a' occurs twice"),
        ("context_id,model,reward,y_a\nc,m,1,2\nc,n,1\n", "Row #3: Expected 4 columns, got 3"),
        ("context_id,model,reward,y_a\nc,m,1,2,5\n", "Expected 4 columns, got 5"),
        ("context_id,model,reward,y_a\n", "0 of 0 models"),
        ("context_id,model,reward,y_a\nc,m,1,2\nd,m,1,3\n", "1 of 1 models"),
        (
            "context_id,model,reward,y_a\nc,m,1,2\nc,n,1,2\nd,m,1,2\nd,n,1,2\n",
            r"no output feature varies \(y_a\), must be at least one",
        ),
    ],
)
def test_another_shape_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BenchmarkError, match=message) as caught:
        read_text(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_text_that_is_not_utf8_or_has_a_byte_order_mark(tmp_path: Path) -> None:
    text = frame().to_csv(index=False)
    path = tmp_path / "data.csv"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert len(load(f"table:{path}").models) == 3
    path.write_bytes(text.replace("m 1", "mé").encode("latin-1"))
    with pytest.raises(BenchmarkError, match=r"data\.csv is not CSV.*UTF8"):
        load(f"table:{path}")


@pytest.mark.parametrize("kind", ["parquet", "csv.gz"])
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, kind: str) -> None:
    read(tmp_path, frame(), kind)
    path = tmp_path / f"data.{kind}"
    whole = path.read_bytes()
    for length in range(0, len(whole) - 1, max(1, len(whole) // 17)):
        path.write_bytes(whole[:length])
        with pytest.raises(BenchmarkError) as caught:
            load(f"table:{path}")
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_column_types_that_are_no_numbers(tmp_path: Path) -> None:
    table = frame()
    table["y_score"] = pd.Timestamp("2025-01-01")
    with pytest.raises(BenchmarkError, match=r"y_score has type timestamp.*, must be numbers"):
        read(tmp_path, table, "parquet")
    table = frame()
    table["model"] = table["y_score"]
    with pytest.raises(BenchmarkError, match="model has type double, must be text or whole num"):
        read(tmp_path, table, "parquet")


def test_a_type_that_is_not_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    wide_parquet.write(path, pa.table({"context_id": ["a"], "model": ["m"], "reward": [1.0]}))
    with pytest.raises(
        BenchmarkError, match=r"data\.parquet has types that cannot be read.*64 bits"
    ):
        load(f"table:{path}")


def test_a_category_a_decimal_and_a_column_of_nothing(tmp_path: Path) -> None:
    table = frame()
    table["model"] = table["model"].astype("category")
    table["cost"] = None
    table["y_length"] = pd.Series([Decimal(i) / 4 for i in range(18)], dtype=object)
    loaded = read(tmp_path, table, "parquet")
    assert loaded.models == ("m-0", "m-1", "m-2")
    assert np.isnan(loaded.cost).all()
    np.testing.assert_allclose(
        np.diff(loaded.outputs[:, :, 0].ravel()), loaded.outputs[0, 1, 0] - loaded.outputs[0, 0, 0]
    )


def test_a_folder_must_hold_one_table(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"holds 0 table files \(none\), must be 1"):
        load(f"table:{tmp_path}")
    folder = tmp_path / "part=3"
    folder.mkdir()
    read(folder, frame(), "parquet")
    loaded = load(f"table:{folder}")
    assert loaded.exclusions == {}
    read(folder, frame())
    with pytest.raises(BenchmarkError, match=r"2 table files \(data\.csv, data\.parquet\)"):
        load(f"table:{folder}")


def test_feature_names_are_made_valid(tmp_path: Path) -> None:
    table = frame().rename(columns={"y_length": "y_length (words)", "y_score": "y_length-words"})
    assert read(tmp_path, table).output_names == ("y_length-words-2", "y_length-words")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_columns_of_words_are_what_the_daemon_makes_of_them(tmp_path: Path, kind: str) -> None:
    table = frame(contexts=8).astype({"y_score": float})
    plans = ["free", "paid", "team", "free"]
    prompts = [f"Fix this, {'please ' * c}{c}?" for c in range(8)]
    refused = [c % 3 == 0 for c in range(24)]
    table["x_plan"] = np.repeat([plans[c % 4] for c in range(8)], 3)
    table["x_prompt"] = np.repeat(prompts, 3)
    table["y_refused"] = refused
    loaded = read(tmp_path, table, kind)
    schema = FeatureSchema(
        context=[
            Category(name="x_plan", values=["free", "paid", "team"]),
            Text(name="x_prompt", statistics=list(STATISTICS)),
        ],
        outputs=[Boolean(name="y_refused")],
    )
    daemon = Transform(schema)
    x = daemon.context_rows([{"x_plan": plans[c % 4], "x_prompt": prompts[c]} for c in range(8)])
    names = [each.replace("=", "-") for each in daemon.context_names]
    varying = {name: x[:, at] for at, name in enumerate(names) if np.ptp(x[:, at])}
    assert {"x_plan-paid", "x_plan-team", "x_prompt.words"} <= set(varying)
    assert loaded.context_names == ("x_size", *varying)
    for at, column in enumerate(varying.values(), start=1):
        np.testing.assert_array_equal(loaded.x[:, at], column)
    y = daemon.output_rows([{"y_refused": each} for each in refused])
    at = loaded.output_names.index("y_refused")
    np.testing.assert_array_equal(loaded.outputs[:, :, at].ravel(), y[:, 0])


def test_an_empty_word_is_a_gap_and_many_words_are_a_text(tmp_path: Path) -> None:
    table = frame(contexts=30)
    table["x_plan"] = np.repeat(["free", "paid", ""], 30)
    table["x_city"] = np.repeat([f"city {c}" for c in range(30)], 3)
    loaded = read(tmp_path, table)
    assert loaded.exclusions["contexts without a context feature"] == 10
    assert "x_plan-paid" in loaded.context_names
    assert "x_city.characters" in loaded.context_names
