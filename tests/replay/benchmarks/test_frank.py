"""FRANK: the real files where they are, and small files of the same layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from equipoise.replay.benchmarks import Benchmark, BenchmarkError, load
from equipoise.replay.harness.stream import StreamSettings
from equipoise.replay.harness.sweep import cells, run_sweep

DATA = Path(__file__).resolve().parents[3] / ".." / "shared" / "data" / "frank"
needs_data = pytest.mark.skipif(not DATA.exists(), reason=f"{DATA} is absent")
HUMAN = "human_annotations.json"
METRICS = "baseline_factuality_metrics_outputs.json"

Rows = list[dict[str, Any]]


def human(dataset: str = "cnndm", articles: int = 8) -> Rows:
    return [
        {
            "hash": f"{dataset}{article}",
            "model_name": system,
            "dataset": dataset,
            "Factuality": (article + place) % 5 / 4,
            "RelE": 1.0,
            "split": "test" if article < 3 else "valid",
        }
        for article in range(articles)
        for place, system in enumerate(("bart", "pgn", "s2s"))
    ]


def metrics(dataset: str = "cnndm", articles: int = 8) -> Rows:
    return [
        {
            "hash": f"{dataset}{article}",
            "model_name": system,
            "dataset": dataset,
            "Rouge 1": 0.01 * (3 * article + place),
            "FactCC": float((article + place) % 2),
            "split": "test",
        }
        for article in range(articles)
        for place, system in enumerate(("bart", "pgn", "s2s"))
    ]


def read(folder: Path, judged: Any = None, scores: Any = None, **options: Any) -> Benchmark:
    (folder / HUMAN).write_text(json.dumps(human() if judged is None else judged))
    (folder / METRICS).write_text(json.dumps(metrics() if scores is None else scores))
    return load(f"frank:{folder}", **options)


@needs_data
class TestRealFiles:
    def test_the_systems_and_their_numbers(self) -> None:
        table = load(f"frank:{DATA}")
        assert table.models == ("bart", "bert_sum", "bus", "pgn", "s2s")
        assert table.outputs.shape == (250, 5, 14)
        assert table.context_names == ("test-split",)
        assert table.exclusions == {"metrics with gaps (Dep Entail)": 1}
        np.testing.assert_allclose(
            table.outcome.mean(axis=0), [0.9328, 0.8954, 0.7077, 0.8991, 0.4857], atol=1e-4
        )

    def test_a_metric_with_gaps_may_cost_articles_instead(self) -> None:
        table = load(f"frank:{DATA}", max_gaps=0.1)
        assert table.outputs.shape == (220, 5, 15)
        assert table.exclusions == {"articles without metrics": 30}

    @pytest.mark.parametrize("name", [HUMAN, METRICS])
    def test_either_file_names_the_pair(self, name: str) -> None:
        assert load(f"frank:{DATA / name}", models="bart,s2s").outcome.shape == (250, 2)

    def test_metrics_explain_a_third_of_factuality(self) -> None:
        """A deterministic fit, 0.363 when written: the representation is half right here."""
        table = load(f"frank:{DATA}")
        design = np.concatenate([np.ones((250, 5, 1)), table.outputs], axis=2).reshape(1250, -1)
        outcome = table.outcome.ravel()
        theta = np.linalg.lstsq(design, outcome, rcond=None)[0]
        assert 0.33 < 1 - ((outcome - design @ theta) ** 2).mean() / outcome.var() < 0.4


class TestSmallFiles:
    def test_values_are_joined_by_article_and_system(self, tmp_path: Path) -> None:
        table = read(tmp_path, scores=metrics()[::-1])
        assert table.outcome[1].tolist() == [0.25, 0.5, 0.75]
        assert table.output_names == ("Rouge-1", "FactCC")
        rouge = table.outputs[:, :, 0].ravel()
        np.testing.assert_allclose(np.diff(rouge), np.diff(rouge)[0])
        assert table.x[:, 0].tolist() == [1, 1, 1, 0, 0, 0, 0, 0]
        assert np.isnan(table.cost).all()

    def test_an_article_without_features_runs_through_the_whole_replay(
        self, tmp_path: Path
    ) -> None:
        rows = [{**row, "split": "test"} for row in human()]
        table = read(tmp_path, rows)
        assert table.x.shape == (8, 0)
        assert table.exclusions == {"constant context features (test-split)": 1}
        settings = StreamSettings(requests=300, budget=20, obs=200)
        families = ["ipw", "hierarchical"]
        results = run_sweep(table, settings, cells([0.5], [1.0], ["uniform"], families, 1), jobs=1)
        assert np.isfinite(results.regret).all()

    def test_gaps_are_counted_by_reason(self, tmp_path: Path) -> None:
        judged, scores = human(articles=40), metrics(articles=40)
        judged[4]["Factuality"] = None
        judged.pop(9)
        scores[30]["FactCC"] = None
        scores[31]["FactCC"] = float("nan")
        scores.pop(60)
        table = read(tmp_path, judged, scores)
        assert len(table.context_ids) == 36
        assert table.exclusions == {
            "articles absent for a model": 1,
            "articles without Factuality": 1,
            "articles without metrics": 2,
        }

    def test_metrics_with_gaps_and_fields_that_are_none_are_counted(self, tmp_path: Path) -> None:
        scores = [{**row, "note": "text", "flat": 1.0} for row in metrics()]
        for row in scores[:3]:
            row["FactCC"] = None
        table = read(tmp_path, scores=scores)
        assert table.output_names == ("Rouge-1",)
        assert table.exclusions == {
            "fields without a single number (note)": 1,
            "metrics with gaps (FactCC)": 1,
            "constant output features (flat)": 1,
        }

    def test_the_largest_dataset_or_the_one_asked_for(self, tmp_path: Path) -> None:
        judged, scores = human(), metrics()
        judged += human("xsum", 5)
        scores += metrics("xsum", 5)
        table = read(tmp_path, judged, scores)
        assert len(table.context_ids) == 8
        assert table.exclusions == {"rows of datasets other than cnndm": 15}
        assert load(f"frank:{tmp_path}", dataset="xsum").context_ids[0] == "xsum0"
        with pytest.raises(BenchmarkError, match="dataset: 'odd' is not there; there are: cnndm"):
            load(f"frank:{tmp_path}", dataset="odd")

    def test_files_in_the_projects_own_folder(self, tmp_path: Path) -> None:
        (tmp_path / "data").mkdir()
        table = read(tmp_path / "data")
        assert load(f"frank:{tmp_path}").models == table.models

    def test_repeated_rows_are_counted_and_contradictions_refused(self, tmp_path: Path) -> None:
        rows = human()
        assert read(tmp_path, [*rows, rows[3]]).exclusions == {"rows that repeat another": 1}
        with pytest.raises(
            BenchmarkError, match=r"\[24\]: hash 'cnndm1' with model_name 'bart' occurs twice"
        ):
            read(tmp_path, [*rows, {**rows[3], "Factuality": 0.0}])

    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [
            ("Factuality", 1.5, r"human_annotations\.json\[7\]: Factuality is 1.5, must be a num"),
            ("Factuality", "high", r"\[7\]: Factuality is 'high', must be a number from 0 to 1"),
            ("hash", None, r"\[7\]: hash is nothing, must be a text"),
            ("model_name", 3, r"\[7\]: model_name is 3, must be a text"),
        ],
    )
    def test_a_wrong_value_is_named(
        self, tmp_path: Path, field: str, value: Any, message: str
    ) -> None:
        rows = human()
        rows[7][field] = value
        with pytest.raises(BenchmarkError, match=message):
            read(tmp_path, rows)

    def test_a_wrong_metric_is_named(self, tmp_path: Path) -> None:
        rows = metrics()
        rows[5]["FactCC"] = "good"
        with pytest.raises(BenchmarkError, match=r"outputs\.json\[5\]: FactCC is 'good', must be"):
            read(tmp_path, scores=rows)

    @pytest.mark.parametrize(
        ("judged", "scores", "message"),
        [
            ([], None, r"human_annotations\.json is an empty list"),
            ({}, None, r"human_annotations\.json is an object with none, must be a list"),
            (None, [1], r"outputs\.json\[0\] is 1, must be an object"),
            (None, metrics("other"), "no metric is known in 98% of the 0 rows"),
            ([r for r in human() if r["model_name"] == "bart"], None, "1 of 1 models"),
            (human(articles=1), None, "1 of 1 articles are usable for all 3 models"),
        ],
    )
    def test_another_shape_is_refused(
        self, tmp_path: Path, judged: Any, scores: Any, message: str
    ) -> None:
        with pytest.raises(BenchmarkError, match=message):
            read(tmp_path, judged, scores)

    def test_the_file_that_is_absent_is_named(self, tmp_path: Path) -> None:
        read(tmp_path)
        (tmp_path / METRICS).unlink()
        with pytest.raises(BenchmarkError, match=f"holds no {METRICS}"):
            load(f"frank:{tmp_path / HUMAN}")
