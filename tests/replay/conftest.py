"""Results of a replay that never ran, shaped like those of the harness."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

FAMILIES = (
    *("ipw", "obs-only", "representation-exp", "cvci", "grounded"),
    *("doubly-robust", "hierarchical"),
)
GRID = (0, 25, 50, 100, 200, 300, 500, 700, 1000)
VALUES = (0.553, 0.512, 0.412, 0.468, 0.331, 0.498)
NAIVE_LIMITS = (0.541, 0.530, 0.642, 0.475, 0.390, 0.501)
MODELS = ("forest", "adaptive-tree", "nearest-five", "naive-bayes", "stump", "logistic")
Results = tuple[pd.DataFrame, dict[str, Any]]


def synthetic_results(
    models: Sequence[str] = MODELS,
    policies: Sequence[str] = ("uniform", "top-two", "track-and-stop"),
    estimators: Sequence[str] = FAMILIES,
    alphas: Sequence[float] = (0.5,),
    confoundings: Sequence[float] = (1.0,),
    seeds: int = 5,
    routing_value: float = 0.497,
    with_values: bool = True,
) -> Results:
    """Results and meta: errors shrink with 1/sqrt(EXP), `obs-only` keeps most of the log's bias.

    The naive comparison prefers the third model, the first one is best.
    """
    rng = np.random.default_rng(7)
    truth, log = np.array(VALUES[: len(models)]), np.array(NAIVE_LIMITS[: len(models)])
    biases = {"naive-log": 1.0, "obs-only": 0.8, "cvci": 0.1, "grounded": 0.1}
    rows, scenarios = [], []
    for alpha in alphas:
        for confounding in confoundings:
            limit = truth + confounding * (log - truth)
            scenarios.append(
                {
                    "alpha": alpha,
                    "confounding": confounding,
                    "values": dict(zip(models, truth.tolist(), strict=True)),
                    "naive_limit": dict(zip(models, limit.tolist(), strict=True)),
                    "routing_value": routing_value,
                }
            )
            for policy in policies:
                for seed in range(seeds):
                    common = rng.normal(size=len(models))
                    rows += [
                        row
                        for estimator in ("naive-log", *estimators)
                        for row in _stream(
                            models,
                            truth,
                            limit - truth,
                            biases.get(estimator, 0.0),
                            common,
                            rng,
                            {
                                "benchmark": "synthetic",
                                "alpha": alpha,
                                "confounding": confounding,
                                "policy": policy,
                                "estimator": estimator,
                                "seed": seed,
                            },
                            routing_value,
                        )
                    ]
    frame = pd.DataFrame(rows)
    frame["decided_right"] = frame["decided_right"].astype("boolean")
    meta = {
        "benchmark": "synthetic",
        "title": "Six classifiers that never were",
        "source": "made up for the tests",
        "models": list(models),
        "contexts": 2310,
        "exclusions": {},
        "scenarios": scenarios,
        "options": {
            "requests": 10_400,
            "exp_rate": 0.1,
            "budget": 1000,
            "obs": 5000,
            "seeds": seeds,
            "delta": 0.05,
            "epsilon": 0.0,
        },
        "version": "0.1.0",
    }
    return (frame if with_values else frame.drop(columns="values")), meta


def _stream(
    models: Sequence[str],
    truth: np.ndarray,
    shift: np.ndarray,
    bias: float,
    common: np.ndarray,
    rng: np.random.Generator,
    key: dict[str, Any],
    routing_value: float,
) -> list[dict[str, Any]]:
    rows = []
    best = float(truth.max())
    for checkpoint in GRID:
        noise = 0.02 + 0.5 / np.sqrt(1 + checkpoint) * (0.3 if "r" in key["estimator"] else 0.6)
        noise = 0.004 if key["estimator"] in ("naive-log", "obs-only") else noise
        values = truth + bias * shift + noise * 0.4 * (common + rng.normal(size=len(truth)))
        if key["estimator"] == "ipw" and checkpoint == 0:
            values = np.full(len(truth), np.nan)
        error = values - truth
        pairs = np.triu_indices(len(truth), 1)
        contrast = (error[:, None] - error[None, :])[pairs]
        known = np.isfinite(values).all()
        pick = int(np.argmax(values)) if known else None
        regret = best - (float(truth.mean()) if pick is None else float(truth[pick]))
        keep = known and values.max() < routing_value
        decided = checkpoint >= 700
        rows.append(
            {
                **key,
                "checkpoint": checkpoint,
                "requests": checkpoint * 10,
                "exp_used": checkpoint + (3 if checkpoint else 0),
                "spend": 0.0021 * checkpoint * (1 + 0.1 * common[0]),
                "harm": 0.03 * checkpoint * (1 + 0.2 * common[1]),
                "width": min(1.0, 4.0 / np.sqrt(1 + checkpoint)),
                "covered": True,
                "ever_miscovered": False,
                "decided_at": 700.0 if decided else np.nan,
                "decided_right": True if decided else None,
                "recommended": None if pick is None else models[pick],
                "action": "(today's routing)" if keep else None if pick is None else models[pick],
                "regret": regret,
                "regret_action": best - routing_value if keep else regret,
                "bias": float(error.mean()),
                "rmse": float(np.sqrt((error**2).mean())),
                "rmse_contrast": float(np.sqrt((contrast**2).mean())),
                "values": values.tolist(),
            }
        )
    return rows


@pytest.fixture(scope="session")
def synthesize() -> Callable[..., Results]:
    """`synthetic_results`, for tests that want results of their own."""
    return synthetic_results


@pytest.fixture(scope="session")
def demo() -> Results:
    """One confounded scenario, three policies, seven estimators, five seeds."""
    return synthetic_results()


@pytest.fixture(scope="session")
def browse() -> Callable[..., tuple[str, str]]:
    """A real browser: page, folder for its profile, options -> DOM after scripts, console."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("no chromium on this machine; on Debian: apt install chromium")

    def visit(page: Path, profile: Path, *options: str) -> tuple[str, str]:
        done = subprocess.run(
            [
                *(found, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
                *("--no-first-run", "--disable-background-networking"),
                *("--disable-component-update", "--disable-sync", "--enable-logging=stderr"),
                *(f"--user-data-dir={profile}", "--virtual-time-budget=10000"),
                *("--window-size=1200,2000", *options, "--dump-dom", page.as_uri()),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
        return done.stdout, "\n".join(console)

    return visit
