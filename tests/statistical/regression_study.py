"""What the regression inside the score is worth: `python FILE BENCHMARK... [--seeds N]`.

For each world: the mean width of the certified contrasts (asymptotic form, whose width is the
standard deviation of the score) under the agent's own predictions, relative to a running mean per
model, beside the best that any prediction could do, which is E[R | context, do(m)] itself. Then the
same with garbage: replays that are noise, logs whose rewards are noise. Prints a table, and with
`--out FILE` writes it as a page.

Requests, draws and rewards are the same in every column (uniform assignment).

With `--explained` it prints another table, of the last frozen predictions alone: how much of the
variance of rewards around their model's mean the best prediction explains, how much the agent's
does, and the latter as a share of the former. That share is also what it saves of the variance of
the score, of all that could be saved over a constant mean per model.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from equipoise.agent.agent import Agent
from equipoise.replay.benchmarks.base import load, load_from_texts
from equipoise.replay.harness.stream import StreamSettings, experiment, stream_key
from equipoise.replay.worlds import World, WorldOptions
from equipoise.store.batches import OutcomeBatch
from equipoise.store.memory import MemoryStore

PAGE = """# Regression: how much predictions narrow certified intervals

For users who decide whether replays are worth their price. Certified contrasts use a score that
compares every reward with a prediction frozen before its draw. *Best cut* is how much narrower the
contrasts would be than with a running mean per model if every prediction were E[R | context,
do(model)] itself, which only the simulated world knows. *Ours* is the agent's result, including the
time it takes to learn. The last two columns are widths relative to the running mean when replays,
or the rewards of the log, are noise: a useless prediction is switched off. Uniform assignment,
{exp:,} randomized requests, {seeds} seeds, omega = 1. Where the scorer cannot explain the rewards
(AlpacaEval and FRANK at alpha = 1) there is little to gain, and little is gained. Written by
`tests/statistical/regression_study.py`.

{table}
"""


def stream(
    world: World, seed: int, exp: int, rate: float, estimator: str, garbage: str = ""
) -> Iterator[Agent]:
    """The agent after a third, two thirds and all of `exp` randomized requests, roughly."""
    settings = StreamSettings(requests=10**9, exp_rate=rate, obs=0)
    config = experiment(world, settings, "fixed-rate", "uniform", estimator)
    agent = Agent(config, MemoryStore(), stream_key(seed))
    noise = np.random.default_rng([seed, 5])
    simulations, log = world.simulations(), world.observations(5000, np.random.default_rng(seed))
    if garbage == "replays":
        shape = simulations.outputs.shape
        simulations = replace(simulations, outputs=noise.normal(size=shape))
    if garbage == "log":
        log = replace(log, reward=noise.random(len(log.reward)))
    agent.simulate(simulations)
    agent.ingest(log)
    agent.refresh(review=False)
    who, what = np.random.default_rng([seed, 1]), np.random.default_rng([seed, 2])
    batch, done = 250, 0
    for part in (1, 2, 3):
        while done < exp * part / (3 * rate):
            requests, hidden = world.requests(batch, who, first=done)
            decided = agent.decide(requests)
            outputs, reward = world.serve(hidden, decided.model, what)
            agent.observe(
                OutcomeBatch(
                    number=decided.number,
                    served=decided.model,
                    attempt=np.ones(batch, dtype=np.int64),
                    delivered=np.ones(batch, dtype=bool),
                    outputs=outputs,
                    reward=reward,
                    at=decided.at,
                )
            )
            agent.refresh(review=False)
            done += batch
        yield agent


def widths(agent: Agent) -> float:
    """Root of the mean square of the score's contrasts, over pairs of models."""
    score, models = agent.answers.view().certified.overall.score, len(agent.models)
    squares = score.contrast_squares()[-1][:models, :models] / score.rows[0]
    return float(np.sqrt(squares[~np.eye(models, dtype=bool)]).mean())


def oracle(world: World, rate: float) -> tuple[float, float]:
    """The same in the limit: under E[R | context, do(m)], and under the mean per model.

    Under uniform draws w = K / rate. For given mu the score of m has conditional variance
    w E[R^2] - ... ; a contrast's mean square around its mean is summed exactly over contexts.
    """
    models = len(world.models)
    mean = world.means.mean(axis=1)
    second = mean  # rewards are 0 or 1
    w = models / rate
    result = []
    for mu in (mean, np.broadcast_to(mean.mean(axis=0), mean.shape)):
        # psi = mu + W (R - mu), W = w with probability 1 / w.
        residual = second - 2.0 * mu * mean + mu**2
        bias = mean - mu
        roots = []
        for a in range(models):
            for b in range(models):
                if a != b:
                    gap = mu[:, a] - mu[:, b]
                    square = (
                        gap**2
                        + 2.0 * gap * (bias[:, a] - bias[:, b])
                        + w * (residual[:, a] + residual[:, b])
                    )
                    centre = mean[:, a].mean() - mean[:, b].mean()
                    roots.append(np.sqrt(square.mean() - centre**2))
        result.append(float(np.mean(roots)))
    return result[0], result[1]


def explained(world: World, agent: Agent) -> tuple[float, float]:
    """R^2 of the best prediction, and of the one that is frozen now, around the mean per model.

    Under uniform draws of the model the variance of psi(m) is (1/p - 1) E[(E[R | x, m] - mu)^2] and
    what no mu changes, so the ratio of the two R^2 is the share of the possible saving.
    """
    mean = world.means.mean(axis=1)
    x, (contexts, models) = world.benchmark.x, mean.shape
    rows = np.repeat(np.arange(contexts), models)
    phi = agent.state.transform.phi(x[rows], world.outputs.reshape(len(rows), -1))
    rule = agent.rule
    assert rule.prediction is not None
    known = np.ones((contexts, models), dtype=bool)
    raw = rule.prediction.raw(x, phi.reshape(contexts, models, -1), known)
    mu = rule.frozen[0].tuning.apply(np.column_stack([raw, raw[:, 0]]))[:, :models]
    centre = mean.mean(axis=0)
    spread = float((centre * (1.0 - centre)).mean())  # rewards are 0 or 1
    possible = float(((mean - centre) ** 2).mean())
    return possible / spread, (possible - float(((mean - mu) ** 2).mean())) / spread


def explained_table(options: argparse.Namespace) -> None:
    """Without garbage, so a quarter of the streams."""
    print("| benchmark | alpha | R2, best | R2, ours | share of best | standard error |")
    print("|---|---|---|---|---|---|")
    for spec in options.benchmarks:
        name, _, chosen = spec.partition(",")
        benchmark = load_from_texts(name, [chosen] if chosen else [])
        for alpha in (0.0, 0.5, 1.0):
            world = World(benchmark, WorldOptions(alpha=alpha, confounding=1.0))
            own = []
            for seed in range(options.seeds):
                arguments = world, seed, options.exp, options.rate, "hierarchical"
                best, found = explained(world, list(stream(*arguments))[-1])
                own.append(found)
            error = np.std(own, ddof=1) / len(own) ** 0.5 if len(own) > 1 else np.nan
            label = benchmark.name + (f", {chosen}" if chosen else "")
            print(
                f"| {label} | {alpha} | {best:.1%} | {np.mean(own):.1%} "
                f"| {np.mean(own) / best:.0%} | {error / best:.0%} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("benchmarks", nargs="+")
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--exp", type=int, default=6000)
    parser.add_argument("--rate", type=float, default=0.25)
    parser.add_argument("--out", type=Path, help="also write the first part of the page here")
    parser.add_argument("--explained", action="store_true", help="only how much is explained")
    options = parser.parse_args()
    if options.explained:
        explained_table(options)
        return
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    say("| benchmark | alpha | best cut | ours | share of best | garbage replays | garbage log |")
    say("|---|---|---|---|---|---|---|")
    for spec in options.benchmarks:
        for alpha in (0.0, 0.5, 1.0):
            world = World(load(spec), WorldOptions(alpha=alpha, confounding=1.0))
            best, plain = oracle(world, options.rate)
            rows = []
            for seed in range(options.seeds):
                arguments = world, seed, options.exp, options.rate
                base = [widths(a) for a in stream(*arguments, "ipw")][-1]
                kinds = ("", "replays", "log")
                family = "hierarchical"
                ours = [[widths(a) for a in stream(*arguments, family, g)][-1] for g in kinds]
                rows.append([width / base for width in ours])
            own, replays, log = np.mean(rows, axis=0)
            cut = 1.0 - best / plain
            say(
                f"| {spec.split(':')[0]} | {alpha} | {cut:.2%} | {1 - own:.2%} "
                f"| {(1 - own) / cut:.0%} | {replays:.4f} | {log:.4f} |"
            )
    if options.out:
        page = PAGE.format(seeds=options.seeds, exp=options.exp, table="\n".join(lines))
        options.out.write_text(page)


if __name__ == "__main__":
    main()
