"""What all importers share: names, strict JSON, scaling, and which cells stay."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.agent.features.kinds import NAME
from equipoise.replay.benchmarks import BenchmarkError
from equipoise.replay.benchmarks.reading.complete import (
    CLIP,
    ImportOptions,
    chosen,
    complete,
    put_once,
    scaled,
)
from equipoise.replay.benchmarks.reading.files import (
    JsonObject,
    feature_names,
    find_file,
    identifiers,
    objects,
    read_json,
)
from equipoise.replay.benchmarks.reading.text_features import (
    ANSWER_FEATURES,
    PROMPT_FEATURES,
    answer_features,
    prompt_features,
    words,
)
from equipoise.store.records import Id


class TestNames:
    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("o4-mini", "o4-mini"),
            ("Mixtral-8x7B_v0.1", "Mixtral-8x7B_v0.1"),
            ("a/b:c@d+e", "a/b:c@d+e"),
            ("Claude 4.5 Opus medium (20251101)", "Claude-4.5-Opus-medium-20251101"),
            ("  ünïcode näme ", "unicode-name"),
            ("-leading", "leading"),
            ("模型", "model"),
            ("", "model"),
            ("x" * 500, "x" * 160),
        ],
    )
    def test_readable(self, name: str, expected: str) -> None:
        assert identifiers([name]) == (expected,)

    def test_equal_ones_are_told_apart_and_valid_ones_keep_themselves(self) -> None:
        assert identifiers(["a b", "a-b", "a (b)", "a-b-2"]) == ("a-b-3", "a-b", "a-b-4", "a-b-2")
        assert feature_names(["x y", "x_y", "1x"]) == ("x-y", "x_y", "x")

    @settings(deadline=None, max_examples=200)
    @given(st.lists(st.text(max_size=8) | st.sampled_from(["a", "a-2", "a ", " a", "a-"])))
    def test_always_valid_and_unique(self, names: list[str]) -> None:
        ids = identifiers(names)
        assert msgspec.convert(list(ids), list[Id]) == list(ids)
        features = feature_names(names)
        assert all(NAME.fullmatch(name) for name in features)
        for result in (ids, features):
            assert len(set(result)) == len(result) == len(names)


class TestJson:
    @pytest.mark.parametrize(
        ("raw", "message"),
        [
            (b"", "is empty, must be JSON"),
            (b'[{"a": 1', "is not JSON, or was cut short"),
            (b"\xff\xfe", "is not JSON, or was cut short: .*utf-8"),
            (b'{"a": 1, "b": {"c": 1, "c": 2}}', "holds the key 'c' twice"),
            (b"[" * 200_000, "nested too deeply"),
            (b"[" + b"9" * 5000 + b"]", "is not JSON"),
        ],
    )
    def test_refuses_the_file(self, tmp_path: Path, raw: bytes, message: str) -> None:
        path = tmp_path / "data.json"
        path.write_bytes(raw)
        with pytest.raises(BenchmarkError, match=message) as caught:
            read_json(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_reads_a_byte_order_mark_and_an_unknown_number(self, tmp_path: Path) -> None:
        path = tmp_path / "data.json"
        path.write_bytes(b'\xef\xbb\xbf{"a": NaN}')
        assert read_json(path) == {"a": None}

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (2, r"here: v is 2, must be a number from 0 to 1"),
            (-0.1, r"v is -0.1"),
            (True, r"v is true"),
            ("0.5", r"v is '0.5'"),
            ([0.5], r"v is a list of 1"),
            (math.inf, r"v is inf"),
            (10**400, r"v is a number of \d+ bits"),
        ],
    )
    def test_refuses_a_number(self, value: Any, message: str) -> None:
        with pytest.raises(BenchmarkError, match=message):
            JsonObject("here", {"v": value}).number("v", 0, 1)

    def test_an_absent_or_null_number_is_unknown(self) -> None:
        row = JsonObject("here", {"null": None, "one": 1})
        assert math.isnan(row.number("null"))
        assert math.isnan(row.number("absent"))
        assert math.isnan(row.flag("null"))
        assert row.number("one") == row.flag("one") == 1.0
        with pytest.raises(BenchmarkError, match=r"v is 1e\+60, must be a finite number"):
            JsonObject("here", {"v": 1e60}).number("v")

    @pytest.mark.parametrize("value", [2, "true", 1.0, [], {}])
    def test_refuses_a_flag(self, value: Any) -> None:
        with pytest.raises(BenchmarkError, match=r"here: v is .*, must be true or false"):
            JsonObject("here", {"v": value}).flag("v")

    @pytest.mark.parametrize("value", [3, "", "  ", None])
    def test_refuses_a_text(self, value: Any) -> None:
        with pytest.raises(BenchmarkError, match=r"here: v is .*, must be a text"):
            JsonObject("here", {"v": value}).text("v")

    def test_names_the_entry_that_is_no_object(self) -> None:
        with pytest.raises(BenchmarkError, match=r"f\[1\] is 3, must be an object"):
            objects([{}, 3], "f")
        with pytest.raises(BenchmarkError, match="f is an object with a, must be a list"):
            objects({"a": 1}, "f")
        with pytest.raises(BenchmarkError, match="here: field 'b' is absent; it has: a"):
            JsonObject("here", {"a": 1}).text("b")

    def test_finds_a_file_by_folder_or_by_itself(self, tmp_path: Path) -> None:
        (tmp_path / "data").mkdir()
        file = tmp_path / "data" / "f.json"
        file.write_text("[]")
        assert find_file(file, "other.json") == file
        assert find_file(tmp_path, "f.json", ("", "data")) == file
        with pytest.raises(BenchmarkError, match=r"holds no f\.json"):
            find_file(tmp_path, "f.json")


class TestScaling:
    def test_middle_is_0_and_the_middle_half_is_as_wide_as_that_of_a_normal(self) -> None:
        """Quartiles of the result are those of a standard normal: false alarm rate 0."""
        column = np.arange(101.0) * 7 + 3
        values = scaled({"a": column}, (101,)).values[:, 0]
        assert np.median(values) == 0
        np.testing.assert_allclose(np.quantile(values, [0.25, 0.75]), [-0.6745, 0.6745], atol=1e-3)

    def test_an_outlier_moves_nothing_but_itself(self) -> None:
        column = np.arange(101.0)
        odd = np.append(column[:-1], 1e30)
        plain, other = (scaled({"a": c}, (101,)).values[:, 0] for c in (column, odd))
        np.testing.assert_array_equal(plain[:-1], other[:-1])
        assert other[-1] == CLIP
        tiny = np.append(np.arange(101.0) * 1e-300, 1e50)
        assert np.abs(scaled({"a": tiny}, (102,)).values).max() == CLIP

    def test_mostly_equal_values_are_scaled_by_the_others(self) -> None:
        column = np.full(100, 0.1) * 3
        column[:10] += np.arange(1, 11)
        column[0] = 1e30
        values = scaled({"a": column}, (100,)).values[:, 0]
        np.testing.assert_allclose(values[1:10], np.arange(2, 11) / 6.5)
        assert values[0] == CLIP
        assert not values[10:].any()

    def test_constants_go_and_indicators_stay(self) -> None:
        columns = {"flat": np.full((3, 2), 7.0), "flag": np.eye(3, 2), "v": np.arange(6.0)}
        columns["v"] = columns["v"].reshape(3, 2)
        result = scaled(columns, (3, 2), ("flag",))
        assert result.names == ("flag", "v")
        np.testing.assert_array_equal(result.values[:, :, 0], columns["flag"])
        assert result.exclusions("output") == {"constant output features (flat)": 1}
        nothing = scaled({"flat": np.zeros(3)}, (3,))
        assert nothing.values.shape == (3, 0)
        with pytest.raises(BenchmarkError, match=r"here: no output feature varies \(flat\)"):
            nothing.require_one("here")


class TestComplete:
    MODELS = ("a", "b", "c")
    REASONS = ("absent", "unknown")

    def test_a_context_counts_once_under_its_worst_reason(self) -> None:
        faults = np.array([[0, 0, 0], [2, 1, 0], [0, 2, 2], [0, 0, 0]])
        selected = complete(faults, self.REASONS, self.MODELS, 0.5, "rows")
        assert selected.contexts.tolist() == [0, 3]
        assert selected.models.tolist() == [0, 1, 2]
        assert selected.exclusions == {"rows absent": 1, "rows unknown": 1}

    def test_a_model_goes_first_where_it_lacks_more_than_its_share(self) -> None:
        faults = np.array([[0, 1, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]])
        gone = complete(faults, self.REASONS, self.MODELS, 0.5, "rows")
        assert gone.models.tolist() == [0, 2]
        assert gone.contexts.tolist() == [0, 1, 2, 4]
        assert gone.exclusions == {
            "models that lack more than 50% of the rows (b)": 1,
            "rows absent": 1,
        }
        with pytest.raises(BenchmarkError, match=r"1 of 5 rows are usable for all 3 models"):
            complete(faults, self.REASONS, self.MODELS, 0.6, "rows")

    def test_refuses_where_too_few_models_stay(self) -> None:
        faults = np.array([[0, 1, 1], [0, 2, 1]])
        message = r"1 of 3 models have 50% of the 2 rows, .* \(3 cells absent, 1 cells unknown\)"
        with pytest.raises(BenchmarkError, match=message):
            complete(faults, self.REASONS, self.MODELS, 0.5, "rows")

    def test_chosen_models(self) -> None:
        assert chosen(self.MODELS, "")[0].all()
        keep, left_out = chosen(self.MODELS, " c, a ,")
        assert keep.tolist() == [True, False, True]
        assert left_out == {"models not asked for": 1}
        with pytest.raises(BenchmarkError, match="models: 'd' is not there; there are: a, b, c"):
            chosen(self.MODELS, "a,d")

    def test_rows_that_repeat_and_rows_that_contradict(self) -> None:
        rows: dict[str, float] = {}
        assert [put_once(rows, "k", 1.0, "row k") for _ in range(3)] == [0, 1, 1]
        with pytest.raises(BenchmarkError, match="row k occurs twice and its rows differ"):
            put_once(rows, "k", 2.0, "row k")

    @pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
    def test_share_has_limits(self, share: float) -> None:
        with pytest.raises(ValueError, match="max_missing is"):
            ImportOptions(max_missing=share)


class TestTextFeatures:
    @staticmethod
    def answer(text: str, prompt: str = "name three red fruits") -> dict[str, float]:
        prompt_words = frozenset(words(prompt))
        values = answer_features(prompt_words, text)
        return dict(zip(ANSWER_FEATURES, values, strict=True))

    def test_structure(self) -> None:
        text = "# Fruits\n\n**Red** ones:\n\n- cherry\n- apple\n\n```\nx = 1\n```"
        found = self.answer(text)
        assert found["headings"] == pytest.approx(math.log(2))
        assert found["emphasis"] == pytest.approx(math.log(2))
        assert found["paragraphs"] == pytest.approx(math.log(4))
        assert found["list-items"] == pytest.approx(2 / 10)
        assert found["code"] > 0
        assert not found["unfinished"]

    def test_overlap_with_the_prompt(self) -> None:
        found = self.answer("Red fruits: cherry, cherry.")
        assert found["prompt-recall"] == 2 / 4
        assert found["prompt-overlap"] == 2 / 5
        assert found["distinct-words"] == 3 / 4

    @pytest.mark.parametrize(
        ("text", "refusal"),
        [
            ("I'm sorry, but I cannot help with that.", 1),
            ("As an AI language model, I have no fruit.", 1),
            ("I am unable to browse.", 1),
            ("Cherry, apple, strawberry.", 0),
            ("A sorry sight: no fruit can not be red.", 0),
            ("fruit " * 100 + "I'm sorry", 0),
        ],
    )
    def test_refusal(self, text: str, refusal: float) -> None:
        assert self.answer(text)["refusal"] == refusal

    def test_a_cut_end(self) -> None:
        assert self.answer("It ends in the middle of")["unfinished"] == 1
        assert self.answer("It ends. ")["unfinished"] == 0

    @pytest.mark.parametrize("text", ["", " ", "\n\n", "\ud800", "模型。", "x" * 300_000])
    def test_any_text_has_finite_features(self, text: str) -> None:
        assert np.isfinite(list(self.answer(text).values())).all()
        assert np.isfinite(list(self.answer("red", prompt=text).values())).all()
        assert np.isfinite(prompt_features(text)).all()

    @pytest.mark.parametrize(
        ("prompt", "hint"),
        [
            ("Write a Python function.", "about-code"),
            ("What is 3 * 4?", "about-maths"),
            ("List five ways to relax.", "asks-for-list"),
            ("Who wrote it?", "question"),
        ],
    )
    def test_hints(self, prompt: str, hint: str) -> None:
        for text, expected in ((prompt, 1.0), ("Tell me a story about the sea.", 0.0)):
            values = prompt_features(text)
            assert dict(zip(PROMPT_FEATURES, values, strict=True))[hint] == expected
