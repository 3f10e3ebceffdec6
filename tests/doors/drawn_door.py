"""The door `drawn`: logs of Vowpal Wabbit and GrowthBook, with the truth known, become EXP."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from harness import PEERS, Report, python_with

COMMAND = Path(sys.executable).with_name("equipoise")
REQUIREMENTS = ("vowpalwabbit==9.11.9", "growthbook==4.0.0")
ROWS, USERS = 4000, 4000
HEAD = """
name = "answers"
models = [{name = "large"}, {name = "small"}, {name = "tiny"}]
[features]
context = [{type = "number", name = "words"}]
[policy]
estimator = "ipw"
"""
VW = """
[[ingest]]
name = "vw"
kind = "decisions"
drawn = "DRAWN"
features = {words = "words"}
models = {"1" = "large", "2" = "small", "3" = "tiny"}
rewards = {"-1" = 1.0, "0" = 0.0}
[ingest.fields]
model = "_label_Action"
candidates = "a"
probabilities = "p"
propensity = "_label_probability"
drop_prob = "pdrop"
reward = "_label_cost"
request_id = "EventId"
at = "Timestamp"
"""
GROWTHBOOK = """
[[ingest]]
name = "growthbook"
kind = "decisions"
drawn = "DRAWN"
features = {words = "words"}
models = {"0" = "large", "1" = "small"}
[ingest.fields]
model = "variationId"
probabilities = "variationWeights"
sticky = "stickyBucketUsed"
reward = "good"
unit_id = "user"
at = "at"
"""
UNITS = "[units]\nttl = 86400.0\n"


def equipoise(folder: Path, *arguments: str, fails: int = 0) -> Any:
    done = subprocess.run(
        [COMMAND, *arguments], cwd=folder, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == fails, f"{arguments}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    if fails == 2:
        return done.stderr
    return json.loads(done.stdout) if "--json" in arguments else done.stdout


def ingested(folder: Path, log: str, mapping: str, store: str, units: str = "") -> dict[str, Any]:
    (folder / "equipoise.toml").write_text(HEAD + units + mapping)
    name = "vw" if "vw" in log else "growthbook"
    order = ("ingest", log, "--mapping", name, "--store", store, "--json")
    printed: dict[str, Any] = equipoise(folder, *order)
    again = equipoise(folder, *order)
    assert (again["accepted"], again["duplicates"]) == (0, printed["accepted"]), again
    return printed


def weighted(rows: list[tuple[str, float, float]]) -> dict[str, float]:
    """Weighted mean reward by model, from (model, propensity, reward), in plain numbers."""
    above, below = defaultdict(float), defaultdict(float)
    for model, chance, reward in rows:
        above[model] += reward / chance
        below[model] += 1.0 / chance
    return {model: above[model] / below[model] for model in above}


def holds(facts: dict[str, Any], truth: dict[str, float]) -> str:
    """That certified ends and contrasts hold the truth; how wide the ends are."""
    certificate, widths = facts["certificate"], []
    names, lower, upper = (certificate[name] for name in ("candidates", "lower", "upper"))
    for name, value in truth.items():
        at = names.index(name)
        assert lower[at] <= value <= upper[at], (name, lower[at], value, upper[at])
        widths.append(upper[at] - lower[at])
        for other, theirs in truth.items():
            assert certificate["contrasts"][at][names.index(other)] <= value - theirs
    return f"width {sum(widths) / len(widths):.3f}"


def drive(folder: Path, report: Report) -> None:
    report.peer = f"{' and '.join(REQUIREMENTS)}, rows and users from seeds"
    python = python_with("drawn", *REQUIREMENTS)
    make = [python, PEERS / "drawn_logs.py", folder, str(ROWS), str(USERS)]
    subprocess.run(make, check=True, timeout=600)
    _vw(folder, report)
    _growthbook(folder, report)


def _vw(folder: Path, report: Report) -> None:
    lines = [json.loads(line) for line in (folder / "vw.jsonl").read_text().splitlines()]
    arms = {1: "large", 2: "small", 3: "tiny"}
    raw = [
        (arms[row["_label_Action"]], row["_label_probability"], -row["_label_cost"])
        for row in lines
    ]
    truth = {"large": 0.6, "small": 0.45, "tiny": 0.3}
    printed = ingested(folder, "vw.jsonl", VW.replace("DRAWN", "request"), "vw.db")
    assert printed["accepted"] == ROWS, printed
    facts = equipoise(folder, "status", "vw.db", "--json")
    assert facts["certificate"]["requests"] == ROWS
    assert facts["status_models"] == ["large"], facts["status_sentence"]
    report.add(
        f"VW, {ROWS:,} rows that were drawn as it learned: the truth is inside", holds(facts, truth)
    )
    mine, plain = {row["model"]: row["value"] for row in facts["models"]}, weighted(raw)
    # VW writes probabilities in single precision: they add up to 1 within 1e-7.
    off = max(abs(mine[name] - plain[name]) for name in plain)
    assert off < 1e-6
    report.add("VW, weighted means against a loop over its file", f"differ by {off:.1e}")
    equipoise(folder, "export", "vw.db", "--out", "vw-out", "--format", "csv")
    audited = equipoise(folder, "audit", "vw.db")
    assert f"{ROWS:,} decisions that were drawn by vw" in audited, audited
    report.add("VW, audit", "clean; says that the probabilities are taken as declared")
    ingested(folder, "vw.jsonl", VW.replace("DRAWN", "unknown"), "vw-unknown.db")
    unknown = equipoise(folder, "status", "vw-unknown.db", "--json")
    assert unknown["certificate"]["requests"] == 0
    assert "how they were drawn is not declared" in unknown["sentence"]
    report.add('VW, drawn = "unknown"', "estimates alone, and it is said why")


def _growthbook(folder: Path, report: Report) -> None:
    lines = [json.loads(line) for line in (folder / "growthbook.jsonl").read_text().splitlines()]
    users = {row["user"] for row in lines}
    truth = {
        name: 0.98 * value + 0.02 * (1 - value) for name, value in (("large", 0.6), ("small", 0.45))
    }
    unit = GROWTHBOOK.replace("DRAWN", "unit")
    printed = ingested(folder, "growthbook.jsonl", unit, "gb.db", UNITS)
    assert printed["accepted"] == len(lines), printed
    facts = equipoise(folder, "status", "gb.db", "--json")
    assert facts["certificate"]["requests"] == len(users), "a user is a row"
    held = holds(facts, truth)
    report.add(
        f"GrowthBook, {len(lines):,} rows of {len(users):,} users: the truth is inside", held
    )
    equipoise(folder, "audit", "gb.db")
    (folder / "equipoise.toml").write_text(HEAD + GROWTHBOOK.replace("DRAWN", "request"))
    order = ("ingest", "growthbook.jsonl", "--mapping", "growthbook", "--store", "wrong.db")
    said = equipoise(folder, *order, fails=2)
    assert 'a unit was drawn once; declare drawn = "unit"' in said, said
    assert not (folder / "wrong.db").exists()
    report.add('GrowthBook, declared drawn = "request"', f"refused: {said.strip()[:160]}")
