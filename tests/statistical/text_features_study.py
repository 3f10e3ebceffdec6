"""What features of texts explain out of sample: `python FILE [--slopes] NAME:PATH...`.

Ridge fits to the judge's preference of AlpacaEval, cross-validated by prompt in ten parts. R2
without effects of models; `within`: the share of the variance around each model's mean, with them;
`effect`: what is left to a model, root mean square; `new`: RMSE of the mean of a model that was
not fitted to.

With `--slopes` instead, for every benchmark named: the share of the explainable variance around a
model's mean, from one reward per context and model, with slopes that models share and with a part
of each model's own; each with the best of several penalties, so that neither is held back.
"""

from __future__ import annotations

import argparse

import numpy as np

from equipoise.agent.features.text import projected
from equipoise.replay.benchmarks import alpacaeval
from equipoise.replay.benchmarks.base import load
from equipoise.replay.worlds import World, WorldOptions
from equipoise.store.batches import Floats

RIDGE = 3.0


def standardized(features: Floats) -> Floats:
    spread = features.std(axis=(0, 1))
    return np.asarray((features - features.mean(axis=(0, 1))) / np.where(spread > 0, spread, 1.0))


def parts(contexts: int, count: int) -> Floats:
    return np.asarray(np.random.default_rng(0).permutation(contexts) % count)


def ridge(design: Floats, target: Floats, penalty: Floats | float) -> tuple[float, Floats]:
    """Mean of the target, and coefficients of what differs from it."""
    mean = float(target.mean())
    square = design.T @ design + np.diag(np.broadcast_to(penalty, design.shape[1]))
    return mean, np.linalg.solve(square, design.T @ (target - mean))


def predictions(design: Floats, target: Floats, penalty: Floats | float, count: int) -> Floats:
    """(C, K), each part of the contexts from a fit to the others; design (C, K, P)."""
    fold, width = parts(len(target), count), design.shape[2]
    result = np.zeros(target.shape)
    for each in range(count):
        own = fold == each
        mean, slopes = ridge(design[~own].reshape(-1, width), target[~own].ravel(), penalty)
        result[own] = mean + design[own] @ slopes
    return result


def say(name: str, features: Floats, reward: Floats) -> None:
    features = standardized(features)
    contexts, models, width = features.shape
    effects = np.broadcast_to(np.eye(models), (contexts, models, models))
    left = reward - predictions(features, reward, RIDGE, 10)
    own = reward - predictions(np.concatenate([features, effects], axis=2), reward, RIDGE, 10)
    values = reward.mean(axis=0)
    unseen = []
    for model in range(models):
        others = np.arange(models) != model
        design = features[:, others].reshape(-1, width)
        centre = design.mean(axis=0)
        mean, slopes = ridge(design - centre, reward[:, others].ravel(), RIDGE)
        unseen.append(mean + (features[:, model] - centre).mean(axis=0) @ slopes - values[model])
    effect = left.mean(axis=0)
    print(
        f"| {name} | {width} | {1 - (left**2).mean() / reward.var():.3f}"
        f" | {1 - (own**2).mean() / (reward - values).var():.3f}"
        f" | {np.sqrt((effect**2).mean()):.3f} | {effect[values.argmax()]:.3f}"
        f" | {np.sqrt(np.mean(np.square(unseen))):.3f} |",
        flush=True,
    )


def texts(spec: str) -> None:
    kept: list[tuple[str, list[str]]] = []
    read = alpacaeval._answers

    def keep(prompt, results):
        kept.append((prompt, [result.answers[prompt] or "" for result in results]))
        return read(prompt, results)

    alpacaeval._answers = keep
    table = load(spec)
    reward, (contexts, models) = table.outcome, table.outcome.shape

    def everywhere(x: Floats) -> Floats:
        return np.broadcast_to(x[:, None], (contexts, models, x.shape[1]))

    def answers(tokens: str, longest: int) -> Floats:
        rows = [[projected(text[:20_000], tokens, longest, 64) for text in row] for _, row in kept]
        return np.array(rows)

    plain = np.concatenate([everywhere(table.x), table.outputs], axis=2)
    print("| features | columns | R2 | within | effect | of the best | new |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    say("as before", plain, reward)
    for tokens, longest in (("shapes", 1), ("words", 1), ("shapes", 2)):
        columns = answers(tokens, longest)
        for size in (8, 16, 32, 64):
            both = np.concatenate([plain, columns[..., :size]], axis=2)
            say(f"{size} {tokens}, runs up to {longest}", both, reward)
        if (tokens, longest) == ("words", 1):
            words = columns[..., :16]
    prompts = np.array([projected(prompt, "words", 1, 16) for prompt, _ in kept])
    prompts = everywhere(prompts)
    say("16 words of the prompt", np.concatenate([plain, prompts], axis=2), reward)
    products = np.concatenate([plain, words, prompts, words * prompts], axis=2)
    say("16 words of both, and products", products, reward)
    length = table.outputs[..., :2] - table.outputs[..., :2].mean(axis=1, keepdims=True)
    say("relative lengths", np.concatenate([plain, length], axis=2), reward)


def slopes(spec: str) -> None:
    table = load(spec)
    contexts, models, _ = table.outputs.shape
    x = np.broadcast_to(table.x[:, None], (contexts, models, table.x.shape[1]))
    features = standardized(np.concatenate([x, table.outputs], axis=2))
    width = features.shape[2]
    own = np.zeros((contexts, models, models * width))
    for model in range(models):
        own[:, model, model * width : (model + 1) * width] = features[:, model]
    effects = np.broadcast_to(np.eye(models), (contexts, models, models))
    shared = np.concatenate([features, effects], axis=2)
    for alpha in (0.0, 0.5, 1.0):
        world = World(table, WorldOptions(alpha=alpha, confounding=1.0))
        rng = np.random.default_rng(1)
        kind = rng.integers(world.means.shape[1], size=contexts)
        chance = world.means[np.arange(contexts), kind]
        reward = (rng.random(chance.shape) < chance).astype(float)
        mean = world.means.mean(axis=1)
        possible = ((mean - mean.mean(axis=0)) ** 2).mean()

        def share(design, penalty, reward=reward, mean=mean, possible=possible):
            return 1 - ((mean - predictions(design, reward, penalty, 5)) ** 2).mean() / possible

        few = np.repeat(0.5, models)
        together, apart = [], []
        for ridge_of in (3.0, 30.0, 300.0):
            penalty = np.append(np.repeat(ridge_of, width), few)
            together.append(share(shared, penalty))
            for ridge_own in (30.0, 300.0, 3000.0):
                both = np.append(penalty, np.repeat(ridge_own, own.shape[2]))
                apart.append(share(np.concatenate([shared, own], axis=2), both))
        name = table.name
        print(f"| {name} | {alpha:g} | {max(together):.3f} | {max(apart):.3f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("benchmarks", nargs="+")
    parser.add_argument("--slopes", action="store_true")
    options = parser.parse_args()
    for spec in options.benchmarks:
        (slopes if options.slopes else texts)(spec)


if __name__ == "__main__":
    main()
