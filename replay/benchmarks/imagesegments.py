"""Real classifiers on real data without a download: river's bundled image segments.

Seven river classifiers learn from a few hundred of the 2,310 segments and predict the class of
the others. What a model "writes" is its vector of class probabilities, so the output features are
features of that vector; a success is a right class.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from equipoise.replay.benchmarks.base import Benchmark, NoOptions, benchmark
from equipoise.replay.benchmarks.reading.text_features import Arrays, cached
from equipoise.store.batches import Floats

_RECIPE = 1  # raise it with any change to what `_predict` computes
_SEED = 7
_TRAINING_ROWS = 410
_CLASSES = ("brickface", "cement", "foliage", "grass", "path", "sky", "window")
# The last bits of a sum over a dict of class names depend on the interpreter's string hashing.
_DECIMALS = 9


@dataclass(frozen=True, slots=True)
class Candidate:
    """rows: how many training rows it learns from. price: USD per request.

    The prices stand in for a price list: a tenth of a cent for each 10 microseconds that one
    prediction took when measured once, rounded. They are constants, so that no run depends on
    the machine it runs on. Rows are chosen to spread the models out and to put the best two a
    few points apart.
    """

    rows: int
    price: float


CANDIDATES = {
    "nearest-neighbours": Candidate(rows=100, price=0.004),
    "softmax-regression": Candidate(rows=410, price=0.002),
    "passive-aggressive": Candidate(rows=200, price=0.002),
    "scaled-naive-bayes": Candidate(rows=410, price=0.017),
    "hoeffding-tree": Candidate(rows=410, price=0.009),
    "adaptive-forest": Candidate(rows=410, price=0.008),
    "naive-bayes": Candidate(rows=410, price=0.016),
}

# Edge densities have a long right tail, so their logarithm is taken (with 1 added).
_CONTEXT_FEATURES = {
    "region-centroid-row": False,
    "vedge-mean": True,
    "hedge-mean": True,
    "intensity-mean": False,
    "exred-mean": False,
    "exgreen-mean": False,
    "saturation-mean": False,
    "hue-mean": False,
}


@benchmark("imagesegments", "Seven river classifiers on river's image segments (embedded)")
def load_imagesegments(path: Path | None, options: NoOptions) -> Benchmark:
    """1,900 segments × 7 classifiers; takes seconds once, then comes from the cache.

    x: eight image features, standardized over the contexts. outputs: highest probability, its
    margin over the second, entropy (1 = uniform), a judge's score of the chosen class, and the
    probabilities of six of the seven classes (the seventh follows). The judge is nearest
    neighbours over all training rows and no candidate; its score is the probability it gives to
    the class the model chose, as a stronger model would grade an answer.
    """
    arrays = cached("imagesegments", f"{_RECIPE}-river-{version('river')}", _predict)
    probabilities, chosen = arrays["probabilities"], arrays["probabilities"].argmax(axis=2)
    x = np.stack(
        [
            np.log1p(column) if long_tailed else column
            for column, long_tailed in zip(
                arrays["features"].T, _CONTEXT_FEATURES.values(), strict=True
            )
        ],
        axis=1,
    )
    prices = [candidate.price for candidate in CANDIDATES.values()]
    return Benchmark(
        name="imagesegments",
        title="Seven river classifiers on river's image segments",
        models=tuple(CANDIDATES),
        context_names=tuple(_CONTEXT_FEATURES),
        output_names=("top", "margin", "entropy", "judge", *(f"p-{c}" for c in _CLASSES[:-1])),
        x=(x - x.mean(axis=0)) / x.std(axis=0),
        outputs=_output_features(probabilities, arrays["judge"]),
        outcome=chosen == arrays["labels"][:, None],
        cost=np.broadcast_to(prices, chosen.shape),
        context_ids=tuple(f"segment-{row}" for row in arrays["rows"].tolist()),
        source="ImageSegments of the river package (UCI Image Segmentation, Statlog version)",
        invented=("costs",),
        exclusions={"segments used for training": _TRAINING_ROWS},
    )


def _output_features(probabilities: Floats, judge: Floats) -> Floats:
    """(C, K, 10) from the candidates' (C, K, 7) and the judge's (C, 7) class probabilities."""
    ordered = np.sort(probabilities, axis=2)
    top = ordered[:, :, -1]
    logarithms = np.log(np.where(probabilities > 0, probabilities, 1.0))
    entropy = -(probabilities * logarithms).sum(axis=2) / np.log(len(_CLASSES))
    score = np.take_along_axis(judge, probabilities.argmax(axis=2), axis=1)
    summary = np.stack([top, top - ordered[:, :, -2], entropy, score], axis=2)
    return np.concatenate([summary, probabilities[:, :, :-1]], axis=2)


def _predict() -> Arrays:
    """Train the candidates and the judge, and predict every segment none of them saw.

    probabilities (C, K, 7), judge (C, 7), labels (C,) class positions, features (C, 8) raw,
    rows (C,) positions in the bundled data.
    """
    from river import datasets

    segments = list(datasets.ImageSegments())
    order = np.random.default_rng(_SEED).permutation(len(segments))
    training = [segments[row] for row in order[:_TRAINING_ROWS]]
    rows = np.sort(order[_TRAINING_ROWS:])
    contexts = [segments[row] for row in rows]
    classifiers = _classifiers()
    predicted = [
        _probabilities(classifiers[name], training[: candidate.rows], contexts)
        for name, candidate in CANDIDATES.items()
    ]
    return {
        "probabilities": np.stack(predicted, axis=1),
        "judge": _probabilities(_nearest_neighbours(), training, contexts),
        "labels": np.array([_CLASSES.index(label) for _, label in contexts]),
        "features": np.array([[x[name] for name in _CONTEXT_FEATURES] for x, _ in contexts], float),
        "rows": rows,
    }


def _probabilities(classifier: Any, training: list[Any], contexts: list[Any]) -> Floats:
    """(C, 7) class probabilities of the contexts after one pass over the training rows."""
    for x, label in training:
        classifier.learn_one(x, label)
    predicted = [classifier.predict_proba_one(x) for x, _ in contexts]
    table = [[votes.get(label, 0.0) for label in _CLASSES] for votes in predicted]
    return np.array(table, dtype=np.float64).round(_DECIMALS)


def _classifiers() -> dict[str, Any]:
    """The untrained candidates by name."""
    from river import forest, linear_model, multiclass, naive_bayes, optim, preprocessing, tree

    scale = preprocessing.StandardScaler
    margin = multiclass.OneVsRestClassifier(linear_model.PAClassifier(mode=1))
    return {
        "nearest-neighbours": _nearest_neighbours(),
        "softmax-regression": scale() | linear_model.SoftmaxRegression(optim.SGD(0.03)),
        "passive-aggressive": scale() | margin,
        "scaled-naive-bayes": scale() | naive_bayes.GaussianNB(),
        "hoeffding-tree": tree.HoeffdingTreeClassifier(grace_period=20, delta=0.01, tau=0.1),
        "adaptive-forest": forest.ARFClassifier(n_models=5, grace_period=20, seed=_SEED),
        "naive-bayes": naive_bayes.GaussianNB(),
    }


def _nearest_neighbours() -> Any:
    """Exact search: the default engine is approximate and seeds itself from the clock."""
    from river import neighbors, preprocessing

    engine = neighbors.LazySearch(window_size=_TRAINING_ROWS)
    return preprocessing.StandardScaler() | neighbors.KNNClassifier(n_neighbors=5, engine=engine)
