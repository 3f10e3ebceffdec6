"""How often the checks cry wolf, and how soon they find what is wrong: `python FILE [--runs N]`.

Prints a table, and with `--out FILE` writes it as a page. The fast tests of tests/agent/monitors
hold the same promises on fewer runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

from equipoise.agent.monitors import Fidelity, Guardrail, GuardrailLimit, Missingness
from equipoise.agent.monitors import assignment as shares
from equipoise.agent.monitors.drift import CLIP, THRESHOLD, TOLERATED, WARM_UP
from equipoise.replay.benchmarks.base import load
from equipoise.replay.worlds import World, WorldOptions

LEVEL = 0.01
NEVER = np.inf
ROWS: list[str] = []
"""Lines of the table, for the page."""
PAGE = """# Checks: how often they raise a false alarm, and how soon a true one

For operators who decide how far to trust an alarm. Each check may raise an alarm in at most 1% of
honest experiments, however often you look. Written by
`python tests/statistical/monitors_study.py --runs {runs} --out docs/checks.md`; shares are given
with their standard error.

| situation | runs | runs with an alarm | when |
|---|---|---|---|
{rows}
"""


def line(what: str, when: np.ndarray, unit: str) -> None:
    """One row of the table. when: (R,) rows until the alarm, inf where there was none."""
    share, found = np.isfinite(when).mean(), when[np.isfinite(when)]
    error = np.sqrt(share * (1 - share) / len(when))
    rest = f"median {np.median(found):,.0f} {unit}" if len(found) else ""
    late = f", 95% by {np.quantile(when, 0.95, method='higher'):,.0f}" if share >= 0.95 else ""
    print(f"{what:<64} {share:8.2%} ± {error:.2%}  {rest}{late}", flush=True)
    ROWS.append(f"| {what} | {len(when):,} | {share:.2%} ± {error:.2%} | {rest}{late} |")


def audit(
    rng: np.random.Generator, models: int, runs: int, bias: float, moving: bool
) -> np.ndarray:
    """20,000 randomized requests in 200 looks, by counts: requests under one rule are alike."""
    looks, rows, rate = 200, 100, 0.25
    when = np.full(runs, NEVER)
    evidence = np.zeros((runs, models + 1, len(shares.BIASES)))
    pi = np.full(models, 1.0 / models)
    for look in range(looks):
        if moving and look % 10 == 0:
            pi = 0.1 / models + 0.9 * rng.dirichlet(np.ones(models))
        true = pi.copy()
        if bias:
            true[0] += bias
            true[1:] *= (1.0 - true[0]) / (1.0 - pi[0])
        drawn = np.full(runs, rows)
        asked = drawn + rng.negative_binomial(rows, rate, runs)
        counts = np.column_stack([rng.multinomial(rows, true, size=runs), drawn])
        totals = np.column_stack([np.tile(drawn[:, None], models), asked])
        hit, miss = (np.log(f) for f in shares.factors(np.append(pi, rate)))
        evidence += counts[..., None] * hit + (totals - counts)[..., None] * miss
        streams = shares.log_evidence(
            {"evidence": evidence, "impossible": np.zeros((runs, models + 1))}
        )
        peak = streams.max(axis=1)
        together = peak + np.log(np.exp(streams - peak[:, None]).mean(axis=1))
        when[(together >= -np.log(LEVEL)) & np.isinf(when)] = (look + 1) * rows
    return when


def until_alarm(make: Callable, feed: Callable, runs: int, rows: int, step: int) -> np.ndarray:
    """(R,) rows until the first alarm of a check that is looked at every `step` rows."""
    when = np.full(runs, NEVER)
    for run in range(runs):
        monitor, columns = make(), feed()
        for start in range(0, rows, step):
            monitor.update(*(c[start : start + step] for c in columns[0]), *columns[1])
            if monitor.result().status == "alarm":
                when[run] = min(start + step, rows)
                break
    return when


def fidelity(
    rng: np.random.Generator, runs: int, spec: str, truncation: float, step: int = 25
) -> np.ndarray:
    """1,000 pairs of distinct (context, model) of a world whose replays are cut short."""
    world = World(load(spec), WorldOptions(simulator_truncation=truncation))
    replays = world.simulations()
    live, scale = world.outputs.reshape(-1, world.outputs.shape[2]), replays.outputs.std(axis=0)

    def feed() -> tuple:
        at = rng.permutation(len(live))[:1000]
        return (replays.model[at], live[at], replays.outputs[at]), (scale,)

    return until_alarm(lambda: Fidelity(world.models, world.output_names), feed, runs, 1000, step)


def noisy_pairs(rng: np.random.Generator, runs: int, cut: float, draw: Callable) -> np.ndarray:
    """1,000 pairs whose live and replayed outputs are draws of their own."""

    def feed() -> tuple:
        context = rng.normal(size=(1000, 3))
        live, simulated = context + draw((1000, 3)), context + draw((1000, 3))
        longest = simulated[:, 0] > np.quantile(simulated[:, 0], 1.0 - cut)
        simulated[longest, 0] = -2.5 + 0.5 * (simulated[longest, 0] + 2.5)
        return (rng.integers(0, 4, 1000), live, simulated), (np.ones(3), np.ones(3))

    return until_alarm(lambda: Fidelity("abcd", "xyz"), feed, runs, 1000, 50)


def page_hinkley(values: np.ndarray) -> np.ndarray:
    """(R,) the row of the first alarm in each column of values (T, R): `Drift`, all runs at once.

    tests/agent/monitors/test_drift.py holds that `Drift` is this, by river's own detector.
    """
    origin = values[:WARM_UP].mean(axis=0)
    square = 0.5 + ((values[:WARM_UP] - origin) ** 2).sum(axis=0)
    mean = np.zeros_like(origin)
    up, down = np.zeros_like(origin), np.zeros_like(origin)
    lowest, highest = np.full_like(origin, np.inf), np.full_like(origin, -1.0)
    when = np.full(len(origin), NEVER)
    for t, row in enumerate(values[WARM_UP:] - origin):
        z = np.clip(row / np.sqrt(square / (2 + WARM_UP + t)), -CLIP, CLIP)
        square += row * row
        mean += (z - mean) / (t + 1)
        up += z - mean - TOLERATED
        down += z - mean + TOLERATED
        lowest, highest = np.minimum(lowest, up), np.maximum(highest, down)
        alarm = (up - lowest > THRESHOLD) | (highest - down > THRESHOLD)
        when[alarm & np.isinf(when) & (t >= 29)] = WARM_UP + t + 1
    return when


def lost(rng: np.random.Generator, runs: int, rates: list[float], rows: int) -> np.ndarray:
    """Rewards that go missing at a rate per model, under weights that move."""
    models = len(rates)

    def feed() -> tuple:
        pi = np.repeat(0.1 / models + 0.9 * rng.dirichlet(np.ones(models), rows // 500), 500, 0)
        model = (rng.random(rows)[:, None] > np.cumsum(pi, axis=1)[:, :-1]).sum(axis=1)
        return (pi, model, rng.random(rows) < np.array(rates)[model]), ()

    return until_alarm(lambda: Missingness("abcd"[:models]), feed, runs, rows, 500)


def guardrail(rng: np.random.Generator, runs: int, rates: list[float], rows: int) -> np.ndarray:
    """An error rate with a limit of 5%."""

    def feed() -> tuple:
        model = rng.integers(0, len(rates), rows)
        return (model, (rng.random(rows) < np.array(rates)[model]).astype(float)), ()

    models = "abcd"[: len(rates)]
    return until_alarm(
        lambda: Guardrail(models, GuardrailLimit("errors", 0.05)), feed, runs, rows, 250
    )


def main(runs: int) -> None:
    rng = np.random.default_rng(0)
    some, few = max(runs // 20, 10), max(runs // 50, 10)
    print(f"{'share of runs that alarm':<64}")
    for models in (2, 4, 10):
        what = f"assignment, K = {models}, 20,000 randomized: honest, moving weights"
        line(what, audit(rng, models, runs, 0.0, True), "randomized")
        for bias in (0.02, -0.02):
            name = f"assignment, K = {models}: {bias:+.0%} for one model, uniform weights"
            line(name, audit(rng, models, max(runs // 5, 10), bias, False), "randomized")
    for spec in ("imagesegments", "semisynthetic"):
        for cut in (0.0, 0.02, 0.1):
            name = f"fidelity, {spec}, {cut:.0%} truncated, 1,000 pairs"
            line(name, fidelity(rng, few, spec, cut), "pairs")
    noises = {"normal noise": lambda s: 0.5 * rng.normal(size=s)}
    noises["heavy noise"] = lambda s: rng.standard_t(1.5, s)
    for name, draw in noises.items():
        line(f"fidelity, faithful, {name}", noisy_pairs(rng, some, 0.0, draw), "pairs")
    line(
        "fidelity, 10% truncated, normal noise",
        noisy_pairs(rng, few, 0.1, noises["normal noise"]),
        "pairs",
    )
    for share in (0.5, 0.95, 0.05, 0.02, 0.005):
        values = (rng.random((20_000, some)) < share).astype(float)
        line(f"drift, stationary, rate {share:g}, 20,000 rows", page_hinkley(values), "rows")
    line("drift, stationary, Beta(2, 1)", page_hinkley(rng.beta(2, 1, (20_000, some))), "rows")
    for before, after in ((0.5, 0.6), (0.5, 0.7), (0.9, 0.8), (0.02, 0.08)):
        both = np.repeat([before, after], [3000, 5000])[:, None]
        when = page_hinkley((rng.random((8000, few)) < both).astype(float)) - 3000
        line(f"drift, {before:g} becomes {after:g}: rows after the change", when, "rows")
    line("missingness, 10% alike, 5,000 rows", lost(rng, some, [0.1] * 4, 5000), "rows")
    line("missingness, 10% and 5%", lost(rng, few, [0.1, 0.05, 0.05, 0.05], 20_000), "rows")
    line("guardrail, all at the limit", guardrail(rng, some, [0.05] * 3, 5000), "rows")
    line("guardrail, 10% for one model", guardrail(rng, few, [0.1, 0.03, 0.03], 5000), "rows")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000, help="honest runs of the audit")
    parser.add_argument("--out", type=Path, help="also write the table to this page")
    given = parser.parse_args()
    main(given.runs)
    if given.out:
        given.out.write_text(PAGE.format(runs=given.runs, rows="\n".join(ROWS)))
