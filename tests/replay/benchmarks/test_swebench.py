"""SWE-bench leaderboards: the real file where it is, and small files of the same layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from equipoise.replay.benchmarks import Benchmark, BenchmarkError, load

DATA = Path(__file__).resolve().parents[3] / ".." / "shared" / "data" / "swebench"
needs_data = pytest.mark.skipif(not DATA.exists(), reason=f"{DATA} is absent")
ISSUES = [f"{owner}-{n}" for owner in ("a__x", "b__y") for n in (9, 10, 300, 41, 52, 63)]


def details(offset: int) -> dict[str, dict[str, Any]]:
    return {
        issue: {"api_calls": 3 + i, "cost": 0.1 * (i + offset), "resolved": (i + offset) % 3 == 0}
        for i, issue in enumerate(ISSUES)
    }


def results() -> list[dict[str, Any]]:
    return [
        {"name": f"Model {m} (2025)", "resolved": 33.3, "per_instance_details": details(m)}
        for m in range(3)
    ]


def write(folder: Path, boards: Any) -> Path:
    path = folder / "leaderboards.json"
    path.write_text(json.dumps({"leaderboards": boards}))
    return path


def small(folder: Path, models: list[dict[str, Any]], **options: Any) -> Benchmark:
    return load(f"swebench:{write(folder, [{'name': 'b', 'results': models}])}", **options)


@needs_data
class TestRealFile:
    def test_the_board_and_its_numbers(self) -> None:
        table = load(f"swebench:{DATA}")
        assert table.outcome.shape == (500, 17)
        assert table.output_names == ("cost", "log-cost", "calls", "log-calls", "resolved")
        assert len(table.context_names) == 9
        assert table.outcome_features
        assert table.exclusions == {}
        first = table.summary()[0]
        assert first["model"] == "Claude-4.5-Opus-medium-20251101"
        assert first["outcome"] == pytest.approx(0.744)
        assert first["cost"] == pytest.approx(0.721244997)
        np.testing.assert_array_equal(table.outputs[:, :, -1], table.outcome)

    def test_details_that_contradict_the_headline_are_told(self) -> None:
        source = load(f"swebench:{DATA}").source
        assert "Claude-3.7-Sonnet-20250219 resolved 10.2% by its details, 52.8%" in source
        assert source.count("resolved") == 1

    def test_file_or_folder_and_without_outcome(self) -> None:
        whole = load(f"swebench:{DATA}")
        table = load(f"swebench:{DATA / 'leaderboards.json'}", features="without-outcome")
        assert table.output_names == whole.output_names[:-1]
        assert not table.outcome_features
        np.testing.assert_array_equal(table.outputs, whole.outputs[:, :, :-1])

    def test_models_to_read(self) -> None:
        table = load(f"swebench:{DATA}", models="gpt-oss-120b,Minimax-M2")
        assert table.models == ("Minimax-M2", "gpt-oss-120b")
        assert table.exclusions["models not asked for"] == 15


class TestSmallFile:
    def test_values(self, tmp_path: Path) -> None:
        table = small(tmp_path, results())
        assert table.models == ("Model-0-2025", "Model-1-2025", "Model-2-2025")
        assert table.context_ids == tuple(sorted(ISSUES))
        row = table.context_ids.index("a__x-300")
        assert table.cost[row].tolist() == pytest.approx([0.2, 0.3, 0.4])
        assert table.outcome[row].tolist() == [0, 1, 0]
        assert table.exclusions == {}

    def test_repositories_and_recency_by_number(self, tmp_path: Path) -> None:
        table = small(tmp_path, results())
        assert table.context_names == ("repository-x", "recency")
        by_id = dict(zip(table.context_ids, table.x.tolist(), strict=True))
        # a__x has the numbers 9 < 10 < 41 < 52 < 63 < 300.
        assert by_id["a__x-9"] == pytest.approx([1, -5 / 6])
        assert by_id["a__x-300"] == pytest.approx([1, 5 / 6])
        assert by_id["b__y-10"] == pytest.approx([0, -3 / 6])

    def test_one_issue_missing_and_one_cell_null_leave_two_contexts_out(
        self, tmp_path: Path
    ) -> None:
        models = results()
        del models[0]["per_instance_details"]["a__x-9"]
        models[1]["per_instance_details"]["b__y-9"]["cost"] = None
        models[2]["per_instance_details"]["b__y-10"]["resolved"] = None
        table = small(tmp_path, models)
        assert len(table.context_ids) == 9
        assert table.exclusions == {
            "issues absent for a model": 1,
            "issues without cost or api_calls": 1,
            "issues without resolved": 1,
        }

    def test_a_model_with_few_issues_is_left_out(self, tmp_path: Path) -> None:
        models = results()
        kept = dict(list(models[2]["per_instance_details"].items())[:5])
        models[2]["per_instance_details"] = kept
        table = small(tmp_path, models)
        assert table.models == ("Model-0-2025", "Model-1-2025")
        assert len(table.context_ids) == 12
        key = "models that lack more than 50% of the issues (Model-2-2025)"
        assert table.exclusions == {key: 1}
        assert small(tmp_path, models, max_missing=0.6).outcome.shape == (5, 3)

    def test_results_without_details_are_counted(self, tmp_path: Path) -> None:
        models = [*results(), {"name": "Other"}, {"name": "Null", "per_instance_details": None}]
        exclusions = small(tmp_path, models).exclusions
        assert exclusions == {"results without per-instance details (Other, Null)": 2}

    def test_equal_names_are_told_apart(self, tmp_path: Path) -> None:
        models = results()
        for model in models:
            model["name"] = "Same"
        assert small(tmp_path, models).models == ("Same", "Same-2", "Same-3")

    def test_boards(self, tmp_path: Path) -> None:
        one, two = results(), results()[:2]
        plain = {"name": "Lite", "results": [{"name": "m", "resolved": 3.0}]}
        boards = [plain, {"name": "new", "results": two}, {"name": "bash-only", "results": one}]
        path = write(tmp_path, boards)
        assert len(load(f"swebench:{path}").models) == 3
        assert len(load(f"swebench:{path}", board="new").models) == 2
        write(tmp_path, boards[:2])
        assert len(load(f"swebench:{path}").models) == 2
        with pytest.raises(BenchmarkError, match="no board 'other'; there are: Lite, new"):
            load(f"swebench:{path}", board="other")
        with pytest.raises(BenchmarkError, match="board Lite: no result has per_instance_details"):
            load(f"swebench:{path}", board="Lite")

    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [
            ("resolved", "yes", "resolved is 'yes', must be true or false"),
            ("cost", -1, "cost is -1, must be a finite number of at least 0"),
            ("cost", "1", "cost is '1', must be a finite number"),
            ("api_calls", float("inf"), "api_calls is inf, must be a finite number"),
        ],
    )
    def test_a_wrong_value_is_named(
        self, tmp_path: Path, field: str, value: Any, message: str
    ) -> None:
        models = results()
        models[1]["per_instance_details"]["a__x-41"][field] = value
        with pytest.raises(BenchmarkError, match=message) as caught:
            small(tmp_path, models)
        text = str(caught.value)
        assert all(part in text for part in ("leaderboards.json", "Model 1 (2025)", "a__x-41"))
        assert "\n" not in text

    @pytest.mark.parametrize(
        ("contents", "message"),
        [
            ([], "is a list of 0, must be an object"),
            ({}, "field 'leaderboards' is absent"),
            ({"leaderboards": {}}, "leaderboards is an object with none, must be a list"),
            ({"leaderboards": []}, "leaderboards is an empty list"),
            ({"leaderboards": [{"name": "b"}]}, "field 'results' is absent; it has: name"),
            ({"leaderboards": [{"results": []}]}, "field 'name' is absent"),
            ({"leaderboards": [{"name": "b", "results": []}]}, "no result has per_instance"),
            ({"leaderboards": [{"name": "b", "results": [1]}]}, r"results\[0\] is 1, must be"),
            (
                {"leaderboards": [{"name": "b", "results": [{"per_instance_details": {}}]}]},
                "field 'name' is absent",
            ),
            (
                {
                    "leaderboards": [
                        {"name": "b", "results": [{"name": "m", "per_instance_details": [1]}]}
                    ]
                },
                "m: per_instance_details is a list of 1, must be an object or null",
            ),
        ],
    )
    def test_another_shape_is_refused(self, tmp_path: Path, contents: Any, message: str) -> None:
        path = tmp_path / "leaderboards.json"
        path.write_text(json.dumps(contents))
        with pytest.raises(BenchmarkError, match=message):
            load(f"swebench:{path}")

    def test_a_file_cut_anywhere_is_refused(self, tmp_path: Path) -> None:
        path = write(tmp_path, [{"name": "b", "results": results()}])
        whole = path.read_text()
        for length in range(0, len(whole) - 1, 97):
            path.write_text(whole[:length])
            with pytest.raises(BenchmarkError, match=r"leaderboards\.json is"):
                load(f"swebench:{tmp_path}")

    def test_a_folder_without_the_file(self, tmp_path: Path) -> None:
        with pytest.raises(BenchmarkError, match=r"holds no leaderboards\.json"):
            load(f"swebench:{tmp_path}")

    def test_a_single_model_is_no_comparison(self, tmp_path: Path) -> None:
        with pytest.raises(BenchmarkError, match="1 of 1 models"):
            small(tmp_path, results()[:1])
