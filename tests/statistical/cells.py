"""The cells of the coverage study: every one is a name and a function of (runs, seed)."""

from __future__ import annotations

from functools import partial

import peers_trap
import row_traps
import speed
import widths
from allocations import NAMES
from many_runs import Setup, look_times, simulate
from naive import NaiveT, NaiveZ
from sequences import Asymptotic, Bounded, BoundedValues, Declared, PerModel
from streams import Stream
from watchers import EverMissed, contrasts_of, values_of

from equipoise.agent.inference import levels
from equipoise.agent.inference.certificate import Sequence

DELTA = 0.05
ROWS = 3000
EVEN, LOW, HIGH = (0.5, 0.45, 0.55, 0.5), (0.01, 0.01, 0.02, 0.03), (0.99, 0.99, 0.98, 0.97)
WORLDS = {
    "no confounding": Stream(EVEN, ROWS),
    "strong confounding, predictor trained on the log": Stream(
        EVEN, ROWS, taste=0.3, herding=0.8, sway=0.1, prediction="log"
    ),
    "wrong simulator": Stream(EVEN, ROWS, sway=0.1, prediction="wrong"),
    "garbage predictions, not tuned away": Stream(EVEN, ROWS, sway=0.1, prediction="garbage"),
    "rewards near 0": Stream(LOW, ROWS),
    "rewards near 1": Stream(HIGH, ROWS),
    "10% missing": Stream(EVEN, ROWS, missing=0.1),
    "delayed": Stream(EVEN, ROWS, lag=6),
    "drift": Stream(EVEN, ROWS, drift=0.3),
}
LONG = ("no confounding", "rewards near 1")
LONG_ROWS = 10_000
RATES = (0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 0.99)
THRESHOLDS = (5.0, 10.0, 25.0, 50.0, 100.0)


def coverage(stream, allocation, runs, seed, rate=0.4):
    """Share of runs in which any shown contrast, or any value, is ever missed, by sequence."""
    setup = Setup(stream, allocation, rate)
    size = stream.models + 1
    pair, models = levels.pair_level(DELTA, size), levels.pair_level(DELTA, stream.models)
    value = levels.value_level(DELTA, size)
    free = allocation != "contrast"
    contrasts, of_models = contrasts_of(stream), contrasts_of(stream, stream.models)
    watchers = {
        "bounded": EverMissed(Bounded(pair, setup), contrasts),
        "lower values": EverMissed(BoundedValues(value, setup), values_of(stream)),
        "upper values": EverMissed(BoundedValues(value, setup, True), values_of(stream, True)),
        "asymptotic": EverMissed(Declared(Sequence.ASYMPTOTIC, pair, setup), contrasts),
        "per-model": EverMissed(
            Declared(Sequence.PER_MODEL, models, setup, context_free=free), of_models
        ),
        "per-model, unguarded": EverMissed(PerModel(models), of_models),
        "naive z": EverMissed(NaiveZ(pair), contrasts),
        "naive t": EverMissed(NaiveT(models), of_models),
    }
    sums = simulate(setup, runs, seed, list(watchers.values()))
    result = {name: watcher.rate for name, watcher in watchers.items()}
    result["open"] = float(watchers["asymptotic"].sequence.chosen(sums).mean())
    return {**result, "rows": stream.rows}


def rarer(value, allocation, runs, seed):
    """Ever-miss of the asymptotic sequence by the amount of the rarer outcome it opens at.

    Two equal models at `value`, two a little nearer to one half. Rows are as many as give each
    model some 150 of its rarer outcome under uniform draws, at most 40,000.
    """
    step = 0.15 * min(value, 1.0 - value) * (1.0 if value < 0.5 else -1.0)
    values = (value, value, value + step, value + 2.0 * step)
    rate = 0.4 if 0.05 < value < 0.95 else 1.0
    rows = int(min(150 * len(values) / rate / min(value, 1.0 - value), 40_000))
    rows = max(rows, 4000)
    stream = Stream(values, rows)
    setup = Setup(stream, allocation, rate, caps=(float("inf"),))
    level, _ = levels.split_level(levels.pair_level(DELTA, len(values) + 1))
    watchers = {
        needed: EverMissed(Asymptotic(level, setup, needed), contrasts_of(stream))
        for needed in THRESHOLDS
    }
    sums = simulate(setup, runs, seed, list(watchers.values()), look_times(rows, 20, 0.02))
    amount = sums.rarer()
    return {
        str(needed): [watcher.rate, float((amount >= needed).mean())]
        for needed, watcher in watchers.items()
    } | {"rows": rows}


def cells(runs):
    """Name -> function of a seed, in the order they are run: the short ones first."""
    found = {}
    for name, function in widths.CELLS.items():
        found[f"width/{name}"] = partial(function, max(runs // 20, 1))
    for place, (values, epsilon) in enumerate(peers_trap.SETTINGS):
        found[f"peers/{place}/stop rule"] = partial(peers_trap.stop_rule, values, epsilon, runs)
        found[f"peers/{place}/certified"] = partial(peers_trap.certified, values, epsilon, runs)
    for name in row_traps.TRAPS:
        found[f"rows/{name}"] = partial(row_traps.run_trap, name, max(runs // 8, 1))
    for models in (2, 4):
        for gap in speed.GAPS:
            for allocation in ("uniform", "top-two"):
                found[f"speed/{models}/{gap:g}/{allocation}"] = partial(
                    speed.decisions, models, gap, allocation, max(runs // 10, 1)
                )
    for name, values in speed.SPLIT_SETTINGS.items():
        found[f"split/{name}"] = partial(speed.split, values, max(runs // 10, 1))
    for value in RATES:
        for allocation in ("uniform", "top-two"):
            found[f"rarer/{value:g}/{allocation}"] = partial(
                rarer, value, allocation, max(runs // 2, 1)
            )
    for allocation in NAMES:
        for world, stream in WORLDS.items():
            found[f"coverage/{world}/{allocation}"] = partial(coverage, stream, allocation, runs)
    for world in LONG:
        parts = WORLDS[world].__dict__ | {"rows": LONG_ROWS}
        for allocation in ("uniform", "top-two"):
            found[f"long/{world}/{allocation}"] = partial(
                coverage, Stream(**parts), allocation, runs, rate=0.2
            )
    return found
