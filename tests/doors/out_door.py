"""Bandit feedback as Vowpal Wabbit and Open Bandit Pipeline read it: the same estimates from all.

Stores of a real replay, and of made-up traffic whose truth is known: routing that sees what users
will say, an era that leaves a model out, masks, fallbacks, lost rewards, sticky units.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from harness import PEERS, ROOT, Report, python_with

sys.path.append(str(ROOT / "tests" / "agent"))

from raw_feedback import ROUTING, RawRows
from traffic import KEY, Traffic, config

from equipoise.agent.agent import Agent
from equipoise.agent.config import (
    CertifyConfig,
    DeclaredPolicy,
    ExperimentConfig,
    ModelConfig,
    PolicyConfig,
    RewardConfig,
    UnitsConfig,
)
from equipoise.store.batches import OutcomeBatch, RequestBatch, select
from equipoise.store.sqlite import SqliteStore

VW = ("vowpalwabbit==9.11.9", "vw-estimators==0.2.2", "numpy==2.4.6", "scipy==1.17.1")
OBP = (
    # The newest release that an interpreter of today takes; later ones pin Python below 3.11.
    "obp==0.4.0",
    "numpy==2.4.6",
    "pandas==3.1.1",
    "pyarrow==26.0.1",
    "scikit-learn==1.9.1",
    "scipy==1.17.1",
    "matplotlib==3.11.2",
    "seaborn==0.13.2",
)
EQUIPOISE = Path(sys.executable).with_name("equipoise")
AGREE = 1e-9
SINGLE = 1e-6
"""What labels in single precision leave of it: 24 bits of each cost and each probability."""
ALIKE = ("llama/8b", "llama:8b", "llama_8b")
"""Of these Vowpal Wabbit takes the last two for one, where they are values of a feature."""
SPLIT = DeclaredPolicy(name="split", column="a", at_least=0.0, model=ALIKE[1], otherwise=ALIKE[2])
STORES: dict[str, dict[str, Any]] = {
    "by request": {
        "models": [ModelConfig(name=name, price=0.01) for name in ALIKE],
        "policy": PolicyConfig(assignment="top-two", rate=0.3),
        "reward": RewardConfig(low=-1.0, high=3.0, window=100.0, missing=-1.0),
        "certify": CertifyConfig(policies=[SPLIT]),
    },
    "by unit": {
        "policy": PolicyConfig(gate="fixed-rate", assignment="uniform", rate=0.5),
        "reward": RewardConfig(low=0.0, high=1.0, window=100.0, missing=0.0),
        "units": UnitsConfig(ttl=3.0),
    },
}


def drive(folder: Path, report: Report) -> None:
    """Everything that reads an export, on every store; raises AssertionError where one differs."""
    vw, obp = python_with("vw", *VW), python_with("obp", *OBP)
    report.peer = f"{', '.join(VW[:2])}, {OBP[0]}"
    replay = folder / "replay.db"
    options = [
        "--policies",
        "top-two",
        "--estimators",
        "ipw",
        "--budget",
        "1500",
        "--exp-rate",
        "0.4",
    ]
    told = ["--out", str(folder / "replay"), "--store", str(replay)]
    run([EQUIPOISE, "replay", *options, *told])
    compare(folder, "a replay", replay, vw, obp, report)
    for name, settings in STORES.items():
        path = folder / f"{name.replace(' ', '-')}.db"
        truth = played(path, config(**settings))
        said = compare(folder, name, path, vw, obp, report)
        holds(name, said, truth, settings["reward"], report)
    flat(folder, report)


def run(command: list[Any]) -> str:
    done = subprocess.run(
        [str(each) for each in command], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def compare(
    folder: Path, name: str, store: Path, vw: Path, obp: Path, report: Report
) -> dict[str, Any]:
    """Export, let everybody estimate, compare; what our own export says of itself."""
    out = {}
    for format_ in ("parquet", "dsjson", "obp"):
        out[format_] = folder / f"{store.stem}-{format_}"
        run([EQUIPOISE, "export", store, "--out", out[format_], "--format", format_])
    raw = RawRows(out["parquet"])
    said = json.loads((out["dsjson"] / "experiment.json").read_text())
    decisions = json.loads((out["parquet"] / "experiment.json").read_text())["log"]["decisions"]
    assert said["rows"] + sum(said["left_out"].values()) == decisions
    propensities = recomputed(raw, out["dsjson"] / "decisions.dsjson")
    scratch = folder / f"{store.stem}-scratch"
    scratch.mkdir()
    by_vw = json.loads(run([vw, PEERS / "vw_estimates.py", out["dsjson"], scratch]))
    by_obp = json.loads(run([obp, PEERS / "obp_estimates.py", out["obp"]]))
    assert by_vw["rows"] == by_obp["rows"] == said["rows"] == len(raw.rows)
    low, high = raw.estimates("low"), raw.estimates("high")
    gaps: dict[str, float] = {"vw-estimators": 0.0, "obp": 0.0, "experiment.json": 0.0}
    for candidate in raw.candidates:
        for at, kind in enumerate(("ips", "snips")):
            wanted = low[candidate][at], high[candidate][at]
            ours = said["estimates"][candidate][kind]
            theirs = by_vw["estimates"][candidate][kind], by_obp["estimates"][candidate][kind]
            for who, got, want in (
                ("vw-estimators", [theirs[0]], wanted[:1]),
                ("obp", theirs[1], wanted),
                ("experiment.json", ours, wanted),
            ):
                gap = max(abs(one - other) for one, other in zip(got, want, strict=True))
                gaps[who] = max(gaps[who], gap)
    for who, gap in gaps.items():
        assert gap < AGREE, (name, who, gap)
    scale = max(abs(each[0]) for each in low.values())
    single = max(abs(got - low[candidate][0]) for candidate, got in by_vw["vw"].items())
    assert single < SINGLE * max(scale, 1.0), (name, single)
    assert by_vw["probability_gap"] < 2.0**-23
    worst = ", ".join(f"{who} {gap:.0e}" for who, gap in gaps.items())
    report.add(
        f"{name}: {len(raw.rows):,} rows, {len(raw.candidates)} candidates, IPS and SNIPS",
        f"furthest from the raw rows: {worst}; {propensities:,} propensities recompute",
    )
    report.add(
        f"{name}: Vowpal Wabbit's own loss, float32",
        f"within {single:.0e} for {len(by_vw['vw'])} candidates; "
        f"a probability it reads is off by {by_vw['probability_gap']:.0e} of itself",
    )
    said["plain_means"] = {
        action: float(np.mean([row["low"] for row in raw.rows if row["action"] == action]))
        for action in raw.actions
        if any(row["action"] == action for row in raw.rows)
    }
    return said


def recomputed(raw: RawRows, events: Path) -> int:
    """How many propensities of the lines follow from the raw rows: all of them."""
    count = 0
    with open(events) as lines:
        for row, line in zip(raw.rows, lines, strict=True):
            event = json.loads(line)
            for action, chance in zip(event["a"], event["p"], strict=True):
                assert abs(row["chances"][raw.actions[action - 1]] - chance) < 1e-15
                count += 1
            assert event["EventId"] == row["id"]
    return count


def played(path: Path, settings: ExperimentConfig) -> dict[str, float]:
    """20,000 decisions of an era without the first model; what each candidate is worth.

    Users with a high hidden trait are happier with everything, and the router sends them to the
    second model.
    A tenth of the rewards never come and count as the lowest; 1% of all draws fail, and another
    model answers half of those.
    """
    rng = np.random.default_rng(11)
    sticky = settings.units is not None
    low, high = settings.reward.low, settings.reward.high
    with SqliteStore(path) as store:
        agent, traffic = Agent(settings, store, KEY), Traffic(rng)
        agent.decide(traffic.requests(50))
        agent.controls.open_era("by hand", 1.0, active=np.array([False, True, True]))
        for index in range(100):
            asked, trait = requests(rng, traffic, 200, 150 if sticky else None)
            asked = replace(asked, request_id=[f"q{index}-{row}" for row in range(200)])
            decided = agent.decide(asked)
            good = rng.random(200) < chance(decided.model, trait)
            came = rng.random(200) >= 0.1
            fails = rng.random(200) < 0.01
            again = fails & (rng.random(200) < 0.5)
            parts = OutcomeBatch(
                number=decided.number,
                served=decided.model,
                attempt=np.ones(200, dtype=np.int64),
                delivered=~fails,
                outputs=Traffic.outputs(decided.context, decided.model),
                reward=np.where(came & ~fails, np.where(good, high, low), np.nan),
                at=decided.at,
            )
            agent.observe(parts)
            fallback = replace(
                parts,
                served=(decided.model + 1) % 3,
                attempt=np.full(200, 2),
                delivered=np.ones(200, dtype=bool),
                reward=np.full(200, high),
            )
            agent.observe(select(fallback, again))
            traffic.at += 50.0
            agent.expire(traffic.at)
            if index % 20 == 19:
                agent.refresh(traffic.at, review=False)
        traffic.at += 200.0
        agent.expire(traffic.at)
        agent.refresh(traffic.at, review=False)
    # 0.9 of the rewards come; the mean trait is .5, and .8 of those who are routed to the second.
    names = settings.model_names
    mean = {name: 0.9 * (0.2 + 0.1 * at + 0.2) for at, name in enumerate(names)}
    routed = 0.4 * chance(1, 0.8) + 0.6 * (chance(0, 0.3) + chance(2, 0.3)) / 2
    worth = {**mean, ROUTING: 0.9 * float(routed)}
    return {name: low + (high - low) * value for name, value in worth.items()}


def chance(model: Any, trait: Any) -> Any:
    return 0.2 + 0.1 * np.asarray(model) + 0.4 * np.asarray(trait)


def requests(
    rng: np.random.Generator, traffic: Traffic, count: int, units: int | None
) -> tuple[RequestBatch, np.ndarray]:
    """Requests, and the hidden trait that the router sees; a unit keeps its trait."""
    asked = traffic.requests(count)
    trait = rng.random(count)
    if units is not None:
        asked.unit[:] = rng.integers(0, units, count) + 10_000 * int(traffic.at)
        _, member = np.unique(asked.unit, return_inverse=True)
        trait = trait[member]
    elsewhere = 2 * (rng.random(count) < 0.5)
    return replace(asked, routed=np.where(trait > 0.6, 1, elsewhere)), trait


def holds(
    name: str,
    said: dict[str, Any],
    truth: dict[str, float],
    reward: RewardConfig,
    report: Report,
) -> None:
    """Every estimate is within four standard errors of the truth, fallbacks as bad as may be."""
    far = 0.0
    for candidate, worth in truth.items():
        if candidate not in said["estimates"]:
            assert candidate == next(iter(truth)), "the era compares the two others"
            continue
        told = said["estimates"][candidate]
        error = (reward.high - reward.low) * 0.5 / told["effective_rows"] ** 0.5
        low, high = told["snips"]
        assert low - 4 * error < worth < high + 4 * error, (name, candidate, worth, told)
        far = max(far, (low - worth) / error, (worth - high) / error)
    second = list(truth)[1]
    naive = said["plain_means"][second] - truth[second]
    error = abs(naive) / (reward.high - reward.low)
    report.add(
        f"{name}: the truth",
        f"all within {max(far, 0.0):.1f} standard errors of their ends; the plain mean of the rows"
        f" served by the second model is off by {error:.3f} of the range",
    )


def flat(folder: Path, report: Report) -> None:
    """A store five times as large takes five times as long and as much memory."""
    found = []
    for batches in (40, 200):
        path = folder / f"large-{batches}.db"
        with SqliteStore(path) as store:
            agent, traffic = Agent(config(), store, KEY), Traffic(np.random.default_rng(5))
            for _ in range(batches):
                agent.observe(traffic.outcomes(agent.decide(traffic.requests(1000))))
        for format_ in ("dsjson", "obp"):
            out = folder / f"large-{batches}-{format_}"
            started = time.monotonic()
            command = [EQUIPOISE, "export", path, "--out", out, "--format", format_]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            assert process.returncode == 0
            found.append((batches, format_, time.monotonic() - started, used.ru_maxrss / 1024))
    for format_ in ("dsjson", "obp"):
        (few, small), (many, large) = (
            (seconds, memory) for _, each, seconds, memory in found if each == format_
        )
        assert large - small < 60, found
        report.add(
            f"{format_}: 40,000 and 200,000 decisions",
            f"{few:.1f} and {many:.1f} s, {small:.0f} and {large:.0f} MB",
        )
