"""AlpacaEval results: the real files where they are, and small folders of the same layout."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from equipoise.replay.benchmarks import Benchmark, BenchmarkError, load
from equipoise.replay.worlds import World, WorldOptions
from equipoise.store.records import Id

DATA = Path(__file__).resolve().parents[3] / ".." / "shared" / "data" / "alpacaeval"
needs_data = pytest.mark.skipif(not DATA.exists(), reason=f"{DATA} is absent")
JUDGE = "weighted_alpaca_eval_gpt4_turbo"
PROMPTS = ["Name a red fruit.", "What is 2 + 3?", "Write Python code.", "List ten cities."]

Rows = list[dict[str, Any]]


def outputs(model: str) -> Rows:
    return [
        {
            "dataset": "odd" if i % 2 else "even",
            "instruction": prompt,
            "output": f"{model} says: " + "word " * (i + len(model)),
            "generator": model,
        }
        for i, prompt in enumerate(PROMPTS)
    ]


def judgements(model: str) -> Rows:
    return [
        {
            "instruction": prompt,
            "generator_1": "baseline",
            "generator_2": model,
            "preference": 1 + 0.2 * i + 0.01 * len(model),
            "price_per_example": 0.01,
        }
        for i, prompt in enumerate(PROMPTS)
    ]


def write(root: Path, model: str, answers: Any = None, verdicts: Any = None) -> None:
    folder = root / "results" / model
    (folder / JUDGE).mkdir(parents=True, exist_ok=True)
    answers = outputs(model) if answers is None else answers
    verdicts = judgements(model) if verdicts is None else verdicts
    (folder / "model_outputs.json").write_text(json.dumps(answers))
    (folder / JUDGE / "annotations.json").write_text(json.dumps(verdicts))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for model in ("alpha", "be", "gam"):
        write(tmp_path, model)
    return tmp_path


def read(root: Path, **options: Any) -> Benchmark:
    return load(f"alpacaeval:{root}", **options)


@needs_data
class TestRealFiles:
    def test_the_models_and_their_numbers(self) -> None:
        table = read(DATA)
        assert table.outcome.shape == (804, 15)
        assert table.outputs.shape == (804, 15, 14)
        assert table.x.shape == (804, 11)
        assert table.exclusions == {"instructions absent for a model": 1}
        assert np.isnan(table.cost).all()
        means = dict(zip(table.models, table.outcome.mean(axis=0).tolist(), strict=True))
        assert means["FuseChat-Gemma-2-9B-Instruct"] == pytest.approx(0.7046, abs=1e-4)
        assert means["vicuna-13b-v1.5"] == pytest.approx(0.0673, abs=1e-4)

    def test_without_the_incomplete_model_all_prompts_stay(self) -> None:
        table = read(DATA / "results", models="claude-2,claude-2.1")
        assert table.outcome.shape == (805, 2)
        assert table.exclusions["models not asked for"] == 13
        assert not any(reason.startswith("instructions") for reason in table.exclusions)

    def test_features_explain_a_quarter_of_the_preference(self) -> None:
        """A deterministic fit, 0.247 when written: the representation is wrong here."""
        table = read(DATA)
        contexts, models = table.outcome.shape
        x = np.repeat(table.x[:, None], models, axis=1)
        ones = np.ones((contexts, models, 1))
        design = np.concatenate([ones, x, table.outputs], axis=2).reshape(contexts * models, -1)
        outcome = table.outcome.ravel()
        theta = np.linalg.lstsq(design, outcome, rcond=None)[0]
        r2 = 1 - ((outcome - design @ theta) ** 2).mean() / outcome.var()
        assert 0.2 < r2 < 0.3


class TestSmallFolder:
    def test_values(self, root: Path) -> None:
        table = read(root)
        assert table.models == ("alpha", "be", "gam")
        np.testing.assert_allclose(table.outcome[:, 0], [0.05, 0.25, 0.45, 0.65])
        np.testing.assert_allclose(table.outcome[1], [0.25, 0.22, 0.23])
        assert "dataset-even" in table.context_names
        assert "dataset-odd" not in table.context_names
        assert not table.outcome_features

    def test_ids_do_not_depend_on_what_else_is_there(self, root: Path) -> None:
        ids = read(root).context_ids
        assert msgspec.convert(list(ids), list[Id]) == list(ids)
        assert [name.partition("-")[0] for name in ids] == ["even", "odd", "even", "odd"]
        write(root, "alpha", answers=outputs("alpha")[1:])
        assert read(root).context_ids == ids[1:]

    def test_more_features_show_more_of_the_same_world(self, root: Path) -> None:
        plain, more = read(root), read(root, features="with-text")
        size = len(plain.output_names)
        assert more.output_names[:size] == plain.output_names
        assert len(more.output_names) > size
        assert np.array_equal(more.outputs[..., :size], plain.outputs)
        options = WorldOptions(alpha=0.3, confounding=1.0)
        assert np.array_equal(World(more, options).means, World(plain, options).means)
        # Without the mark they would be features that people have a taste for.
        other = World(replace(more, tasted=None), options)
        assert not np.array_equal(other.means, World(plain, options).means)

    def test_results_folder_itself(self, root: Path) -> None:
        np.testing.assert_array_equal(read(root / "results").outputs, read(root).outputs)

    def test_a_folder_without_its_files_is_counted(self, root: Path) -> None:
        (root / "results" / "empty").mkdir()
        (root / "results" / "gam" / JUDGE / "annotations.json").unlink()
        table = read(root)
        assert table.models == ("alpha", "be")
        assert table.exclusions["folders without model_outputs.json (empty)"] == 1
        assert table.exclusions[f"folders without {JUDGE}/annotations.json (gam)"] == 1

    def test_gaps_are_counted_by_reason(self, root: Path) -> None:
        prompts = [*PROMPTS, "And a fifth?", "And a sixth?"]
        for model in ("alpha", "be", "gam"):
            first_out, first_verdict = outputs(model)[0], judgements(model)[0]
            answers = [{**first_out, "instruction": prompt} for prompt in prompts]
            for i, answer in enumerate(answers):
                answer["output"] += "." * i
            verdicts = [{**first_verdict, "instruction": prompt} for prompt in prompts]
            if model == "alpha":
                verdicts[0]["preference"] = None
                verdicts.pop(2)
            if model == "be":
                answers[1]["output"] = None
                answers.pop(3)
            write(root, model, answers, verdicts)
        table = read(root)
        assert len(table.context_ids) == 2
        assert table.exclusions["instructions absent for a model"] == 1
        assert table.exclusions["instructions never judged for a model"] == 1
        assert table.exclusions["instructions without a verdict or an output"] == 2

    def test_a_model_with_few_instructions_is_left_out(self, root: Path) -> None:
        write(root, "be", outputs("be")[:1])
        table = read(root)
        assert table.models == ("alpha", "gam")
        assert len(table.context_ids) == 4

    def test_repeated_rows_are_counted_and_contradictions_refused(self, root: Path) -> None:
        rows = judgements("be")
        write(root, "be", verdicts=[*rows, rows[2]])
        assert read(root).exclusions["rows that repeat another"] == 1
        write(root, "be", verdicts=[*rows, {**rows[2], "preference": 1.9}])
        with pytest.raises(
            BenchmarkError, match=r"annotations\.json\[4\]: instruction 'Write Python.*twice"
        ):
            read(root)

    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [
            ("preference", 0.5, r"preference is 0.5, must be a number from 1 to 2"),
            ("preference", "1.5", r"preference is '1.5', must be a number"),
            ("instruction", None, r"instruction is nothing, must be a text"),
            ("generator_1", "other", r"generator_1 is 'other', others .* against 'baseline'"),
        ],
    )
    def test_a_wrong_annotation_is_named(
        self, root: Path, field: str, value: Any, message: str
    ) -> None:
        rows = judgements("be")
        rows[3][field] = value
        write(root, "be", verdicts=rows)
        with pytest.raises(BenchmarkError, match=rf"be/{JUDGE}/annotations\.json\[3\]: {message}"):
            read(root)

    def test_models_in_the_wrong_order_are_refused(self, root: Path) -> None:
        rows = [{**r, "generator_1": "be", "generator_2": "baseline"} for r in judgements("be")]
        write(root, "be", verdicts=rows)
        with pytest.raises(BenchmarkError, match="generator_1 is 'be', the model itself"):
            read(root)

    @pytest.mark.parametrize(
        ("answers", "message"),
        [
            ({"rows": []}, r"model_outputs\.json is an object with rows, must be a list"),
            (["text"], r"model_outputs\.json\[0\] is 'text', must be an object"),
            ([{"output": "x"}], r"\[0\]: field 'instruction' is absent; it has: output"),
            ([{"instruction": "a", "output": 3}], r"\[0\]: output is 3, must be a text or null"),
        ],
    )
    def test_another_shape_is_refused(self, root: Path, answers: Any, message: str) -> None:
        write(root, "be", answers=answers)
        with pytest.raises(BenchmarkError, match=message):
            read(root)

    def test_a_cut_file_is_named(self, root: Path) -> None:
        path = root / "results" / "gam" / "model_outputs.json"
        path.write_text(path.read_text()[:-20])
        with pytest.raises(
            BenchmarkError, match=r"gam/model_outputs\.json is not JSON, or was cut"
        ):
            read(root)

    def test_paths_that_are_no_results(self, root: Path, tmp_path: Path) -> None:
        file = root / "results" / "gam" / "model_outputs.json"
        with pytest.raises(BenchmarkError, match="is a file, must be AlpacaEval's folder"):
            read(file)
        with pytest.raises(BenchmarkError, match="holds no model with outputs and annotations"):
            read(root / "results" / "gam")
        with pytest.raises(BenchmarkError, match="features is 'with-outcome', must be one of"):
            read(root, features="with-outcome")
        with pytest.raises(BenchmarkError, match=r"folders without other/annotations\.json"):
            read(root, annotator="other")
