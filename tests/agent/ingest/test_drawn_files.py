"""Files of rows that were drawn elsewhere, in the shapes in which others write them."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import run_command

from tests.agent.ingest.recorded import attempt, litellm

CONFIG = """
name = "chat"
models = [{name = "large"}, {name = "small"}]
[features]
context = [{type = "number", name = "words"}]
[policy]
estimator = "ipw"
[service]
store = "chat.db"
"""
MAPPING = """
[[ingest]]
name = "flags"
kind = "decisions"
drawn = "request"
features = {words = "words"}
"""
NAMED = """
fields.model = "arm"
fields.reward = "thumb"
fields.request_id = "id"
fields.at = "ts"
"""
SHAPES = {
    "mapping": (
        NAMED + 'fields.candidates = "p"',
        lambda row: row,
    ),
    "text": (
        NAMED + 'fields.candidates = "p"',
        lambda row: row | {"p": json.dumps(row["p"])},
    ),
    "dsjson": (
        """
fields.model = "_label_Action"
fields.candidates = "a"
fields.probabilities = "p"
fields.reward = "_label_cost"
fields.request_id = "EventId"
fields.at = "Timestamp"
fields.drop_prob = "pdrop"
models = {"1" = "large", "2" = "small"}
rewards = {"-1" = 1.0, "0" = 0.0}
""",
        lambda row: {
            "_label_Action": 1 if row["arm"] == "large" else 2,
            "_label_cost": -row["thumb"],
            "a": [1, 2] if row["arm"] == "large" else [2, 1],
            "p": list(row["p"].values())[:: 1 if row["arm"] == "large" else -1],
            "EventId": row["id"],
            "Timestamp": row["ts"],
            "pdrop": 0.0,
            "words": row["words"],
        },
    ),
    "weights": (
        """
fields.model = "variation"
fields.probabilities = "weights"
fields.reward = "thumb"
fields.request_id = "id"
fields.at = "ts"
models = {"0" = "large", "1" = "small"}
""",
        lambda row: (
            row | {"variation": int(row["arm"] == "small"), "weights": [*row["p"].values()]}
        ),
    ),
    "propensity": (
        NAMED + 'fields.propensity = "pi"',
        lambda row: row | {"pi": row["p"][row["arm"]]},
    ),
    "shares": (
        NAMED + "shares = {large = 0.25, small = 0.75}",
        lambda row: row,
    ),
}
ENDS = (0.610472, 0.370019)
Run = Callable[..., Any]


def rows(count: int = 600) -> list[dict[str, Any]]:
    rng = random.Random(1)
    found = []
    for at in range(count):
        arm = "large" if rng.random() < 0.25 else "small"
        reward = float(rng.random() < (0.9 if arm == "large" else 0.3))
        found.append(
            {
                "id": f"r{at}",
                "arm": arm,
                "p": {"large": 0.25, "small": 0.75},
                "thumb": reward,
                "ts": 1.7e9 + at,
                "words": at % 7,
            }
        )
    return found


def write(path: Path, found: list[dict[str, Any]]) -> Path:
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, found[0])
            writer.writeheader()
            for row in found:
                text = {
                    k: json.dumps(v) if isinstance(v, dict | list) else v for k, v in row.items()
                }
                writer.writerow(text)
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(found), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def call(*arguments: str, mapping: str = "", expected: int = 0) -> Any:
        (tmp_path / "equipoise.toml").write_text(CONFIG + mapping)
        done = run_command("ingest", *arguments, "--json", cwd=tmp_path)
        assert done.returncode == expected, done.stderr or done.stdout
        return json.loads(done.stdout) if expected < 2 else done.stderr

    return call


def status(folder: Path) -> dict[str, Any]:
    done = run_command("status", "chat.db", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("shape", "suffix"),
    [
        ("mapping", "jsonl"),
        ("mapping", "parquet"),
        ("mapping", "csv"),
        ("text", "parquet"),
        ("dsjson", "jsonl"),
        ("dsjson", "parquet"),
        ("weights", "csv"),
        ("propensity", "csv"),
        ("shares", "parquet"),
    ],
)
def test_every_shape_gives_the_same_certificate(run, tmp_path, shape, suffix):
    mapping, spell = SHAPES[shape]
    write(tmp_path / f"log.{suffix}", [spell(row) for row in rows()])
    printed = run(f"log.{suffix}", "--mapping", "flags", mapping=MAPPING + mapping)
    assert (printed["accepted"], printed["rejected"]) == (600, 0), printed
    assert printed["drawn"].startswith("each row counts for certificates, as drawn by flags, as")
    facts = status(tmp_path)
    assert facts["status_models"] == ["large"]
    assert "on requests drawn by flags, as declared on" in facts["status_sentence"]
    assert facts["certificate"]["requests"] == 600
    low, high = facts["certificate"]["lower"], facts["certificate"]["upper"]
    assert 0.6 < low[0] < 0.9 < high[0], "the truth is .9"
    # The same rows, however they are written; the ends that all shapes had when this was written.
    assert (low[0], high[1]) == pytest.approx(ENDS, abs=1e-6)
    again = run(f"log.{suffix}", "--mapping", "flags", mapping=MAPPING + mapping)
    assert (again["accepted"], again["duplicates"]) == (0, 600)
    assert status(tmp_path)["log_rows"] == facts["log_rows"]
    done = run_command("audit", "chat.db", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "600 decisions that were drawn by flags, as declared on" in done.stdout


def test_rows_without_a_name_count_once_and_equal_rows_are_told_apart(run, tmp_path):
    mapping = MAPPING + 'fields = {model = "arm", candidates = "p", reward = "thumb"}'
    found = [{key: row[key] for key in ("arm", "p", "thumb", "words")} for row in rows()]
    write(tmp_path / "log.jsonl", found)
    printed = run("log.jsonl", "--mapping", "flags", mapping=mapping)
    assert printed["accepted"] == 600
    # Of another day's log nobody could say which of equal rows were there before.
    assert "600 rows have neither request_id nor at" in printed["drawn"]
    assert status(tmp_path)["certificate"]["requests"] == 0
    assert run("log.jsonl", "--mapping", "flags", mapping=mapping)["duplicates"] == 600


def test_refused_rows_are_named_and_stop_no_other(run, tmp_path):
    mapping, _ = SHAPES["mapping"]
    found = rows(50)
    found[7]["p"] = {"large": 1.0, "small": 0.0} if found[7]["arm"] == "small" else {"small": 1.0}
    found[20]["p"] = {"large": 0.5, "small": 0.4}
    found[30]["arm"] = "gpt"
    del found[40]["p"]
    write(tmp_path / "log.jsonl", found)
    printed = run("log.jsonl", "--mapping", "flags", mapping=MAPPING + mapping, expected=1)
    assert printed["accepted"] == 46
    # Those three may have left for what was drawn; the one in row 21 would have left in any case.
    said = "they count for estimates alone: 3 rows were refused for what may depend on the draw"
    assert printed["drawn"].startswith(said)
    assert status(tmp_path)["certificate"]["requests"] == 0
    reasons = {reject["row"]: reject["reason"] for reject in printed["rejects"]}
    assert reasons.keys() == {8, 21, 31, 41}
    assert "which was drawn, had a probability of 0" in reasons[8]
    assert "add up to 0.9, expected 1" in reasons[21]
    assert "'gpt' is not one of large, small" in reasons[31]
    assert "propensity: received nothing" in reasons[41]


def test_rows_refused_for_what_was_known_before_their_draw_are_counted_with_the_certificate(
    run, tmp_path
):
    mapping, _ = SHAPES["mapping"]
    found = rows()
    for at in (20, 40, 50):
        found[at]["p"] = {"large": 0.5, "small": 0.4}
    found[60]["words"] = "many"
    write(tmp_path / "log.jsonl", found)
    printed = run("log.jsonl", "--mapping", "flags", mapping=MAPPING + mapping, expected=1)
    assert (printed["accepted"], printed["rejected"]) == (596, 4)
    said = "(4 rows were refused for what was known before the draw)"
    assert printed["drawn"].startswith("each row counts for certificates")
    assert said in printed["drawn"]
    facts = status(tmp_path)
    assert facts["certificate"]["requests"] == 596
    assert said in facts["status_sentence"], "who reads the certificate reads it too"
    # The same file once more counts nobody twice.
    run("log.jsonl", "--mapping", "flags", mapping=MAPPING + mapping, expected=1)
    assert said in status(tmp_path)["status_sentence"]


def test_our_own_names_need_no_mapping_and_certify_nothing(run, tmp_path):
    found = [
        {
            "model": row["arm"],
            "candidates": row["p"],
            "reward": row["thumb"],
            "request_id": row["id"],
            "features": {"words": row["words"]},
        }
        for row in rows()
    ]
    write(tmp_path / "log.jsonl", found)
    printed = run("log.jsonl", "--kind", "decisions")
    assert printed["drawn"].startswith("they count for estimates alone: how they were drawn is not")
    facts = status(tmp_path)
    assert (facts["status"], facts["certificate"]["requests"]) == ("restarted", 0)
    assert "for estimates alone: how they were drawn is not declared" in facts["sentence"]
    assert [row["exp_rewards"] for row in facts["models"]] == [
        sum(row["arm"] == name for row in rows()) for name in ("large", "small")
    ]


@pytest.mark.parametrize(
    ("mapping", "arguments", "said"),
    [
        (
            MAPPING.replace('drawn = "request"', ""),
            (),
            'drawn: received nothing, expected "request"',
        ),
        (MAPPING.replace('"request"', '"unit"'), (), "units: received nothing, expected a ttl"),
        (
            MAPPING.replace('"request"', '"unit"'),
            (),
            "fields.unit_id: received nothing, expected a",
        ),
        (
            MAPPING.replace('"decisions"', '"observations"'),
            (),
            "drawn: received 'request', expected",
        ),
        (MAPPING + "shares = {large = 0.5, small = 0.4}", (), "shares: received 0.9 in all"),
        (
            MAPPING + "shares = {large = 0.5, gpt = 0.5}",
            (),
            "shares: received 'gpt', expected a mo",
        ),
        (MAPPING + "coverage = 1.5", (), "coverage: received 1.5"),
        (MAPPING + 'fields = {mode = "arm"}', (), "received 'mode', expected a field of decisions"),
        (MAPPING, ("--url", "http://127.0.0.1:9"), "a daemon takes no rows that were drawn elsewh"),
    ],
)
def test_a_declaration_that_cannot_be_is_one_line(run, tmp_path, mapping, arguments, said):
    write(tmp_path / "log.jsonl", rows(5))
    more = "" if "fields" in mapping else "\n[ingest.fields]\nmodel = 'arm'\ncandidates = 'p'"
    printed = run("log.jsonl", "--mapping", "flags", *arguments, mapping=mapping + more, expected=2)
    assert said in printed, printed
    assert not (tmp_path / "chat.db").exists()


def test_standard_input_cannot_be_read_twice(run, tmp_path):
    mapping = MAPPING + SHAPES["mapping"][0]
    printed = run("-", "--mapping", "flags", mapping=mapping, expected=2)
    assert "rows drawn elsewhere are read twice, standard input once: name a file" in printed


def test_a_row_stays_whose_outcome_cannot_be_read(run, tmp_path):
    mapping = (
        MAPPING
        + NAMED
        + """fields.candidates = "p"
fields.served = "served"
fields.delivered = "seen"
rewards = {up = 1.0, down = 0.0}
"""
    )
    found = [row | {"served": row["arm"], "seen": "yes"} for row in rows()]
    for at, row in enumerate(found):
        row["thumb"] = ("down", "up")[int(row["thumb"])] if at % 10 else "error"
    for row in found[5::100]:
        row["seen"] = "perhaps"
    for row in found[7::100]:
        row["served"] = "fallback"
    write(tmp_path / "log.jsonl", found)
    printed = run("log.jsonl", "--mapping", "flags", mapping=mapping)
    assert (printed["accepted"], printed["rejected"]) == (600, 0)
    assert printed["drawn"].startswith("each row counts for certificates")
    for said in (
        "; of 60 rows the reward is missing (the first: reward: 'error' is not one of up, down)",
        "; of 6 rows delivered cannot be, and the answer is taken as not delivered (the first:",
        "; of 6 rows served cannot be, and the answer is taken as not delivered (the first: served:"
        " model 'fallback' is not one of",
    ):
        assert said in printed["drawn"]
    facts = status(tmp_path)["certificate"]
    # Those that were not delivered have no reward of their model, and are not known either.
    assert (facts["requests"], facts["missing_rewards"]) == (600, 72)


def test_a_preset_says_no_routing_of_drawn_rows(run, tmp_path):
    found = [
        {"model": row["arm"], "id": row["id"], "thumb": row["thumb"], "ts": row["ts"], "words": 1}
        | {
            "conversation": [
                {"role": "user", "content": "x"},
                {"role": "assistant", "content": "y"},
            ]
        }
        for row in rows()
    ]
    write(tmp_path / "log.jsonl", found)
    mapping = """
[[ingest]]
name = "flags"
kind = "decisions"
drawn = "request"
preset = "lmsys-chat"
shares = {large = 0.25, small = 0.75}
features = {words = "words"}
fields = {model = "model", reward = "thumb", request_id = "id", at = "ts"}
"""
    assert run("log.jsonl", "--mapping", "flags", mapping=mapping)["accepted"] == 600
    facts = status(tmp_path)
    assert facts["certificate"]["requests"] == 600
    assert (facts["certificate"]["lower"][2], facts["certificate"]["upper"][2]) == (0.0, 1.0)
    done = run_command("status", "chat.db", cwd=tmp_path)
    assert "every row that was drawn is in the log" in " ".join(done.stdout.split())
    assert "600 decisions, 0 randomized here" in done.stdout
    done = run_command("audit", "chat.db", cwd=tmp_path)
    assert "every draw of the 0 decisions made here recomputes" in done.stdout


@pytest.mark.parametrize("share", [0.0, 0.04])
def test_calls_that_a_preset_leaves_out_after_their_draw_certify_nothing(run, tmp_path, share):
    """A model that fails in one call of twenty-five: no check of shares sees that in 600 rows."""
    found, failures = [], 0
    for number, row in enumerate(rows()):
        failed = row["arm"] == "small" and random.Random(number).random() < share
        call = attempt(number, number) if failed else litellm(number, thumb=row["thumb"])
        times = {"startTime": row["ts"], "endTime": row["ts"] + 1}
        found.append({**call, "model_group": row["arm"], "words": row["words"], **times})
        failures += failed
    write(tmp_path / "log.jsonl", found)
    mapping = (
        MAPPING
        + """
preset = "litellm"
shares = {large = 0.25, small = 0.75}
fields = {model = "model_group", reward = "thumb", request_id = "id", at = "startTime"}
"""
    )
    done = run("log.jsonl", "--mapping", "flags", mapping=mapping)
    assert done["accepted"] == 600 - failures
    assert sum(done.get("skipped", {}).values()) == failures
    facts = status(tmp_path)
    assert facts["certificate"]["requests"] == (0 if failures else 600)
    said = f"{failures} calls of requests that failed were left out after their draw"
    assert (said in run_command("status", "chat.db", "--json", cwd=tmp_path).stdout) == (share > 0)
