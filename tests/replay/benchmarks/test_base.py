"""The benchmark table, its validation, its registry, its options and its cache."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from equipoise.replay.benchmarks import Benchmark, BenchmarkError, base, describe, load
from equipoise.replay.benchmarks.base import check, option
from equipoise.replay.benchmarks.reading import text_features as cache


def small(**changes: Any) -> Benchmark:
    columns: dict[str, Any] = {
        "name": "small",
        "title": "Two contexts, two models",
        "models": ("a", "b"),
        "context_names": ("x",),
        "output_names": ("y", "z"),
        "x": [[0.0], [1.0]],
        "outputs": [[[0.0, 1.0], [2.0, 3.0]], [[4.0, 5.0], [6.0, 7.0]]],
        "outcome": [[0.0, 1.0], [0.5, 0.25]],
        "cost": [[0.1, np.nan], [0.3, np.nan]],
        "context_ids": ("c1", "c2"),
        "source": "made for this test",
    }
    return Benchmark(**{**columns, **changes})


class TestTable:
    def test_arrays_are_private_and_read_only(self) -> None:
        x = np.array([[0.0], [1.0]])
        table = small(x=x)
        x[0, 0] = 9.0
        assert table.x[0, 0] == 0.0
        for array in (table.x, table.outputs, table.outcome, table.cost):
            assert array.dtype == np.float64
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 1.0

    def test_summary_keeps_unknown_costs_unknown(self) -> None:
        first, second = small().summary()
        assert first == {"model": "a", "outcome": 0.25, "cost": pytest.approx(0.2)}
        assert np.isnan(second["cost"])

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"models": ("a",)}, "models has 1 entries, must have at least 2"),
            ({"models": ("a", "a")}, "models holds 'a' twice"),
            ({"output_names": ("y", "")}, r"output_names\[1\] is empty"),
            ({"context_ids": ("c1",)}, "context_ids has 1 entries"),
            ({"x": [[0.0, 1.0], [1.0, 2.0]]}, r"x has shape \(2, 2\), must have \(2, 1\)"),
            ({"x": [[0.0], [np.inf]]}, r"x\[1, 0\] is inf, must be finite"),
            ({"x": [["far"], [0.0]]}, "x is not a table of numbers"),
            ({"outputs": np.zeros((2, 2, 3))}, r"outputs has shape \(2, 2, 3\)"),
            ({"outputs": np.full((2, 2, 2), np.nan)}, r"outputs\[0, 0, 0\] is nan, must be finite"),
            ({"outcome": [[0.0, 1.5], [0.5, 0.2]]}, r"outcome\[0, 1\] is 1.5, must be in \[0, 1\]"),
            ({"outcome": [[0.0, 1.0], [np.nan, 0.2]]}, r"outcome\[1, 0\] is nan"),
            ({"cost": [[0.1, -1.0], [0.3, 0.0]]}, r"cost\[0, 1\] is -1.0, must be 0 or more"),
            ({"cost": [[0.1, np.inf], [0.3, 0.0]]}, r"cost\[0, 1\] is inf"),
            ({"exclusions": {"no verdict": -1}}, r"exclusions\['no verdict'\] is -1"),
        ],
    )
    def test_refuses_with_field_value_and_limit(
        self, changes: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(BenchmarkError, match=message):
            small(**changes)


@dataclass(frozen=True)
class Choices:
    count: int = option(3, "how many", low=1, high=9)
    share: float = option(0.5, "how much", unit="share", low=0, high=1)
    kind: str = option("plain", "which", choices=("plain", "fancy"))

    def __post_init__(self) -> None:
        check(self)


class TestOptions:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"count": 0}, "count is 0, must be at least 1"),
            ({"count": 10}, "count is 10, must be at most 9"),
            ({"count": 2.5}, "count is 2.5, must be a whole number"),
            ({"count": True}, "count is True, must be a whole number"),
            ({"share": "much"}, "share is 'much', must be a number"),
            ({"share": float("nan")}, "share is nan, must be finite"),
            ({"kind": "odd"}, "kind is 'odd', must be one of plain, fancy"),
        ],
    )
    def test_refuse_with_name_value_and_limit(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Choices(**changes)

    def test_accept_limits_and_numpy_numbers(self) -> None:
        assert Choices(count=np.int64(9), share=1, kind="fancy").share == 1  # type: ignore[arg-type]

    def test_carry_what_a_help_page_needs(self) -> None:
        share = Choices.__dataclass_fields__["share"].metadata
        assert (share["explanation"], share["unit"]) == ("how much", "share")


@pytest.fixture
def from_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registered benchmark that reads its path, for the length of a test."""
    base.entries()
    monkeypatch.setattr(base, "_ENTRIES", dict(base._ENTRIES))

    @base.benchmark("from-file", "Reads a file", options=Choices, needs_path=True)
    def loader(path: Path | None, options: Choices) -> Benchmark:
        assert path is not None
        return small(title=path.read_text(), outcome=np.full((2, 2), options.count / 4))


@pytest.mark.usefixtures("from_file")
class TestRegistry:
    def test_passes_path_and_options(self, tmp_path: Path) -> None:
        path = tmp_path / "with:colon.json"
        path.write_text("hello")
        loaded = load(f"from-file:{path}", count=2)
        assert loaded.title == "hello"
        assert loaded.outcome[0, 0] == 0.5

    @pytest.mark.parametrize(
        ("spec", "options", "message"),
        [
            ("nothing", {}, "unknown benchmark 'nothing'; there are: .*imagesegments"),
            ("", {}, "unknown benchmark ''"),
            ("from-file", {}, "needs a path: from-file:PATH"),
            ("from-file:", {}, "needs a path"),
            ("from-file:absent.json", {}, "absent.json does not exist"),
            ("from-file:.", {}, r"cannot read \.: Is a directory"),
            ("from-file:.", {"colour": 1}, "no option 'colour'; it has: count, share, kind"),
            ("from-file:.", {"count": 0}, "count is 0, must be at least 1"),
            ("semisynthetic:here", {}, "takes no path, got 'here'"),
            ("imagesegments", {"seed": 1}, "no option 'seed'; it has none"),
            ("semisynthetic", {"misfit": 2}, "misfit is 2, must be at most 1"),
        ],
    )
    def test_refuses_in_one_line(self, spec: str, options: dict[str, Any], message: str) -> None:
        with pytest.raises(BenchmarkError, match=message) as caught:
            load(spec, **options)
        assert "\n" not in str(caught.value)

    def test_refuses_contents(self, tmp_path: Path) -> None:
        path = tmp_path / "data"
        path.write_text("x")
        with pytest.raises(BenchmarkError, match=r"'from-file': outcome\[0, 0\] is 2.25, must be"):
            load(f"from-file:{path}", count=9)
        path.write_bytes(b"\xff\xfe\xfa")
        with pytest.raises(BenchmarkError, match="data is not UTF-8 text"):
            load(f"from-file:{path}")

    def test_lists_what_there_is(self) -> None:
        rows = {row["name"]: row for row in describe()}
        assert rows["from-file:PATH"]["options"] == "count=3, share=0.5, kind=plain"
        assert {"imagesegments", "semisynthetic"} < set(rows)

    def test_refuses_a_second_entry_of_the_same_name(self) -> None:
        with pytest.raises(ValueError, match="'from-file' is registered twice"):
            base.benchmark("from-file", "Again")(lambda path, options: small())


class TestSemisynthetic:
    @staticmethod
    def unexplained(table: Benchmark) -> float:
        """Root mean square residual of the outcome on [1, x, y], over all rows."""
        contexts, models = table.outcome.shape
        x = np.repeat(table.x[:, None], models, axis=1)
        design = np.concatenate([np.ones((contexts, models, 1)), x, table.outputs], axis=2)
        design, outcome = design.reshape(contexts * models, -1), table.outcome.ravel()
        theta = np.linalg.lstsq(design, outcome, rcond=None)[0]
        return float(np.sqrt(((outcome - design @ theta) ** 2).mean()))

    def test_without_misfit_the_representation_explains_the_outcome(self) -> None:
        assert self.unexplained(load("semisynthetic")) < 1e-10
        assert self.unexplained(load("semisynthetic", misfit=0.1)) > 0.01

    def test_misfit_grows_with_the_option_and_changes_nothing_else(self) -> None:
        tables = [load("semisynthetic", misfit=misfit) for misfit in (0.0, 0.25, 0.5, 1.0)]
        residuals = [self.unexplained(table) for table in tables]
        assert residuals == sorted(residuals)
        assert residuals[-1] > 0.1
        for table in tables[1:]:
            np.testing.assert_array_equal(table.outputs, tables[0].outputs)
        blend = 0.75 * tables[0].outcome + 0.25 * tables[-1].outcome
        np.testing.assert_allclose(tables[1].outcome, blend, atol=1e-15)

    def test_has_the_sizes_asked_for(self) -> None:
        sizes = {"contexts": 30, "models": 4, "context_features": 2, "output_features": 3}
        table = load("semisynthetic", **sizes)
        assert table.x.shape == (30, 2)
        assert table.outputs.shape == (30, 4, 3)
        assert np.isfinite(table.cost).all()

    def test_seed_decides_everything(self) -> None:
        first, again, other = (load("semisynthetic", seed=seed) for seed in (3, 3, 4))
        np.testing.assert_array_equal(first.outcome, again.outcome)
        assert not np.array_equal(first.outcome, other.outcome)


class TestCache:
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        self.computed = 0
        return tmp_path / "equipoise"

    def get(self, version: str = "1") -> cache.Arrays:
        def compute() -> cache.Arrays:
            self.computed += 1
            return {"a": np.arange(50.0), "b": np.array([[1, 2]])}

        arrays = cache.cached("table", version, compute)
        assert list(arrays) == ["a", "b"]
        np.testing.assert_array_equal(arrays["a"], np.arange(50.0))
        np.testing.assert_array_equal(arrays["b"], [[1, 2]])
        return arrays

    def test_computes_once_and_leaves_one_file(self, folder: Path) -> None:
        self.get()
        self.get()
        assert self.computed == 1
        assert [path.name for path in folder.iterdir()] == ["table-1.npz"]

    def test_another_version_is_another_table(self, folder: Path) -> None:
        self.get("1")
        self.get("2")
        assert self.computed == 2
        (folder / "table-2.npz").replace(folder / "table-3.npz")
        self.get("3")
        assert self.computed == 3

    @pytest.mark.parametrize("damage", ["cut", "garbage", "empty", "absent", "other-contents"])
    def test_a_damaged_file_is_computed_anew(self, folder: Path, damage: str) -> None:
        self.get()
        path = folder / "table-1.npz"
        whole = path.read_bytes()
        if damage == "cut":
            path.write_bytes(whole[: len(whole) // 2])
        elif damage == "garbage":
            path.write_bytes(b"not an archive at all")
        elif damage == "empty":
            path.write_bytes(b"")
        elif damage == "absent":
            path.unlink()
        else:  # a valid archive whose numbers are not those the checksum was made of
            with np.load(path) as file:
                arrays = dict(file)
            np.savez(path, **{**arrays, "a": arrays["a"] + 1})
        self.get()
        self.get()
        assert self.computed == 2
        assert path.read_bytes()

    def test_a_flipped_byte_anywhere_never_changes_a_number(self, folder: Path) -> None:
        self.get()
        path = folder / "table-1.npz"
        whole = path.read_bytes()
        for place in range(0, len(whole), 3):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
            self.get()

    def test_a_folder_that_cannot_be_made_is_ignored(self, folder: Path) -> None:
        folder.write_text("a file where the folder should be")
        self.get()
        self.get()
        assert self.computed == 2

    def test_a_home_that_does_not_exist_or_a_relative_setting_is_ignored(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.setenv("XDG_CACHE_HOME", "relative/cache")
        self.get()
        assert (tmp_path / "home" / ".cache" / "equipoise" / "table-1.npz").exists()

        def homeless() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(Path, "home", homeless)
        self.get()
        assert self.computed == 2


def test_replace_validates_again() -> None:
    with pytest.raises(BenchmarkError, match="outcome"):
        replace(small(), outcome=np.full((2, 2), -1.0))
