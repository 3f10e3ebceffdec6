"""A controlled world: linear outcomes with a dial for how wrong the linear representation is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from equipoise.replay.benchmarks.base import Benchmark, benchmark, check, option


@dataclass(frozen=True, slots=True)
class SemisyntheticOptions:
    """Size and shape of the semisynthetic benchmark."""

    contexts: int = option(1000, "number of contexts", low=2, high=10_000_000)
    models: int = option(6, "number of models", low=2, high=1000)
    context_features: int = option(5, "features of a context (d)", low=1, high=1000)
    output_features: int = option(8, "features of an output (q)", low=1, high=1000)
    misfit: float = option(
        0.0,
        "share of the outcome that features do not explain linearly: 0 none, 1 all of it",
        low=0,
        high=1,
    )
    seed: int = option(0, "seed of the whole table", low=0)

    def __post_init__(self) -> None:
        check(self)


@benchmark(
    "semisynthetic",
    "Drawn contexts, models and outcomes with known truth",
    options=SemisyntheticOptions,
)
def load_semisynthetic(path: Path | None, options: SemisyntheticOptions) -> Benchmark:
    """Outcomes (1 - misfit) · L(x, y) + misfit · N(m, x).

    x: standard normal. y of model m: a mean of its own, a linear response to x of its own, and
    standard normal noise. L: one linear function of (x, y) shared by all models, scaled to
    [0, 1] by its range. N: a logistic curve of the model's own effect and its own bend in x,
    which no linear function of (x, y) can follow. The same seed with another misfit keeps x, y,
    L and N.
    """
    contexts, models = options.contexts, options.models
    d, q = options.context_features, options.output_features
    rng = np.random.default_rng(options.seed)
    x = rng.standard_normal((contexts, d))
    centre = rng.normal(0.0, 0.5, (models, q))
    response = rng.normal(0.0, 0.5, (models, q, d)) / np.sqrt(d)
    noise = rng.standard_normal((contexts, models, q))
    outputs = centre + np.einsum("cd,mqd->cmq", x, response) + noise
    by_context, by_output = rng.standard_normal(d), rng.standard_normal(q)
    linear = np.einsum("cd,d->c", x, by_context)[:, None]
    linear = linear + np.einsum("cmq,q->cm", outputs, by_output)
    linear = (linear - linear.min()) / (linear.max() - linear.min())
    effect, bend = rng.normal(0.0, 0.7, models), rng.standard_normal((models, d))
    curve = effect + 2.0 * np.tanh(np.einsum("cd,md->cm", x, bend))
    other = 1.0 / (1.0 + np.exp(-curve))
    price = rng.permutation(np.geomspace(0.0005, 0.008, models))
    return Benchmark(
        name="semisynthetic",
        title="Drawn contexts, models and outcomes with known truth",
        models=tuple(f"model-{m + 1}" for m in range(models)),
        context_names=tuple(f"x{i + 1}" for i in range(d)),
        output_names=tuple(f"y{i + 1}" for i in range(q)),
        x=x,
        outputs=outputs,
        outcome=(1.0 - options.misfit) * linear + options.misfit * other,
        cost=np.broadcast_to(price, (contexts, models)),
        context_ids=tuple(f"context-{c + 1}" for c in range(contexts)),
        invented=("outcomes", "costs"),
        source=f"drawn from seed {options.seed}",
    )
