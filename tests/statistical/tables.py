"""The page of the coverage study: results of the cells as tables in plain words."""

from __future__ import annotations

import math

import width_tables
from cells import DELTA, LONG_ROWS, NAMES, RATES, ROWS, THRESHOLDS, WORLDS
from markdown_text import ABSENT, percent, table, times
from peers_trap import SETTINGS
from row_traps import TRAPS
from speed import GAPS, SHARES, SPLIT_SETTINGS

from equipoise.agent.inference.certificate import RARER
from equipoise.agent.inference.levels import FALLBACK_SHARE


def page(results, runs):
    """The whole page. results: cell name -> what the cell returned; a cell that is absent shows as
    a dash."""
    error = math.sqrt(DELTA * (1 - DELTA) / runs)
    parts = [
        _opening(runs, error),
        _coverage(results, runs),
        _rarer(results, runs),
        _split(results, runs),
        _peers(results, runs),
        _row_traps(results, runs),
        _speed(results, runs),
        width_tables.lines_of(results),
    ]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def _opening(runs, error):
    return [
        "# Coverage: how often certified intervals are wrong",
        "",
        "For users who want to see the promises of guarantees.md measured. Written by `python "
        "tests/statistical/coverage_study.py`; do not edit by hand. The declared level is "
        f"{percent(DELTA)} for all reported intervals together, at every look.",
        "",
        "An *ever-miss* is a run in which any reported interval misses its true value at any "
        "look: every row up to the 100th, then looks 4% apart. The bounds are read from the "
        "functions that ship. All seeds are fixed by the names of the cells. "
        f"{runs:,} runs unless stated; one standard error of a share of {percent(DELTA)} is "
        f"then {100 * error:.2f} points. A dash is a cell that was not run; the command runs "
        "missing cells.",
    ]


SEQUENCES = (
    ("bounded", "bounded"),
    ("asymptotic", "asymptotic, as it ships"),
    ("per-model", "per-model, as it ships"),
    ("per-model, unguarded", "per-model, unguarded"),
    ("naive z", "naive z"),
    ("naive t", "naive t"),
)


def _coverage(results, runs):
    lines = [
        "## Ever-miss at a declared 5%",
        "",
        f"Four models, a rate of randomization of .4, {ROWS:,} requests (some "
        f"{int(0.4 * ROWS):,} randomized); all contrasts of the models and of today's routing "
        "together. *Bounded values* are both ends of the values of the five. The naive intervals "
        "have the same level for every contrast, hold at one sample size, and begin at 30 rewards "
        "of each model. *As it ships*: the sequence has "
        f"{percent(1 - FALLBACK_SHARE)} of the level; where its condition does not hold, the "
        "bounded one is read at the rest. *Open*: share of runs in which the asymptotic one was "
        "certified at the end. Figures in brackets: the sequence's assumption does not hold "
        "there, so it would not be used.",
        "",
    ]
    header = ["world", "allocation", "bounded", "bounded values"]
    header += [title for _, title in SEQUENCES[1:]] + ["open"]
    rows = []
    for world in WORLDS:
        for allocation in NAMES:
            cell = results.get(f"coverage/{world}/{allocation}")
            rows += [[world, allocation, *_shares(cell, world, allocation)]]
    lines += table(header, rows)
    long = [name for name in results if name.startswith("long/")]
    if long:
        lines += ["", f"The same at a rate of .2 and {LONG_ROWS:,} requests:", ""]
        rows = []
        for name in long:
            _, world, allocation = name.split("/")
            rows.append([world, allocation, *_shares(results[name], world, allocation)])
        lines += table(header, rows)
    worst = _worst(results)
    lines += ["", "Largest ever-miss of each, brackets left out: " + worst + "."]
    return lines


def _assumed(name, world, allocation):
    """Whether a sequence's own assumption holds in a cell."""
    if name == "per-model":
        return world != "drift" or allocation == "contrast"
    if name == "per-model, unguarded":
        return world != "drift" and allocation != "contrast"
    return True


def _shares(cell, world, allocation):
    if cell is None:
        return [ABSENT] * (len(SEQUENCES) + 2)
    values = percent(max(cell["lower values"], cell["upper values"]))
    found = []
    for name, _ in SEQUENCES:
        shown = percent(cell[name])
        found.append(shown if _assumed(name, world, allocation) else f"({shown})")
    return [found[0], values, *found[1:], percent(cell["open"])]


def _worst(results):
    said = []
    for name, title in SEQUENCES:
        shares = [
            cell[name]
            for key, cell in results.items()
            if key.startswith(("coverage/", "long/")) and _assumed(name, *key.split("/")[1:])
        ]
        if shares:
            said.append(f"{title} {percent(max(shares))}")
    return ", ".join(said)


def _rarer(results, runs):
    lines = [
        "## When the asymptotic sequence becomes safe",
        "",
        f"Ever-miss of the asymptotic sequence alone, {runs // 2:,} runs, four models at or near a "
        "success rate, by the amount of the rarer outcome that every model needs before it opens; "
        "in brackets the share of runs in which it opened. Nominal: "
        f"{percent(DELTA * (1 - FALLBACK_SHARE))}. It ships with {RARER:g}.",
        "",
    ]
    header = [
        "success rate",
        "allocation",
        *(f"from {needed:g}" for needed in THRESHOLDS),
        "requests",
    ]
    rows = []
    for value in RATES:
        for allocation in ("uniform", "top-two"):
            cell = results.get(f"rarer/{value:g}/{allocation}")
            row = [f"{value:g}", allocation]
            if cell is None:
                rows.append(row + [ABSENT] * (len(THRESHOLDS) + 1))
                continue
            row += [f"{percent(cell[str(n)][0])} ({cell[str(n)][1]:.0%})" for n in THRESHOLDS]
            rows.append([*row, f"{cell['rows']:,}"])
    return lines + table(header, rows)


def _split(results, runs):
    lines = [
        "## How the level is divided where another sequence is declared",
        "",
        f"Median number of randomized requests to `decided`, over the lower bound, {runs // 10:,} "
        "runs, four models, uniform draws, asymptotic declared, by its share of the level; the "
        "bounded sequence has the rest. At success rates near one half the sequence opens early "
        "and its own share decides; at .85 and .01 decisions come from the bounded one or wait "
        "for the opening.",
        "",
    ]
    rows = []
    for name in SPLIT_SETTINGS:
        cell = results.get(f"split/{name}")
        rows.append(
            [name, *([ABSENT] * len(SHARES) if cell is None else map(times, cell.values()))]
        )
    return lines + table(["setting", *(f"share {s:g}" for s in SHARES)], rows)


def _peers(results, runs):
    lines = [
        "## The stop rule in common use, on success rates near 0 and 1",
        "",
        "Two models, equal allocation, first look at 10 rewards of each, a decision being wrong if "
        "a model more than epsilon worse than the best is chosen. *Stop rule*: (gap + epsilon)^2 / "
        "(2 (v/n + v/n)) > ln((1 + ln N) / delta) with plug-in variances, at a nominal 5%.",
        "",
    ]
    rows, names = [], []
    for place, (values, epsilon) in enumerate(SETTINGS):
        rule, ours = (results.get(f"peers/{place}/{kind}") for kind in ("stop rule", "certified"))
        if rule is None or ours is None:
            continue
        names = list(ours)
        rows.append(
            [
                f"{values[0]:g}, {values[1]:g}",
                f"{epsilon:g}",
                percent(rule[0]),
                *(f"{percent(ours[n][0])} ({ours[n][1]:.0%} decided)" for n in names),
            ]
        )
    return lines + table(["success rates", "epsilon", "stop rule", *names], rows)


def _row_traps(results, runs):
    lines = [
        "## Which rows enter, and in which order",
        "",
        f"{runs // 8:,} runs, two models, the bounded sequence (contrasts and values together at "
        "5%), predictions off. The first ever-miss is with the rows that the method allows, the "
        "second with those of a naive log.",
        "",
    ]
    rows = []
    for name in TRAPS:
        cell = results.get(f"rows/{name}")
        if cell is None:
            rows.append([name] + [ABSENT] * 4)
            continue
        rows.append(
            [
                name,
                percent(cell["right"]),
                percent(cell["naive"]),
                f"{cell['naive_score']:.3f}",
                f"{cell['truth']:.3f}",
            ]
        )
    header = ["trap", "ever-miss", "ever-miss, naive", "mean score, naive", "true value"]
    return lines + table(header, rows)


def _speed(results, runs):
    lines = [
        "## How long a decision takes",
        "",
        f"Median number of randomized requests to `decided` over {runs // 10:,} runs, divided by "
        "Garivier & Kaufmann's bound T* ln(1/delta) (Gaussian form with the rewards' own "
        "variances), delta = 5%, epsilon = 0; one model ahead by the gap, the others at .5. "
        "The naive z interval under peeking shows the price of a valid interval.",
        "",
    ]
    rows, names = [], ["bounded", "per-model", "asymptotic", "naive z"]
    for models in (2, 4):
        for gap in GAPS:
            for allocation in ("uniform", "top-two"):
                cell = results.get(f"speed/{models}/{gap:g}/{allocation}")
                row = [str(models), f"{gap:g}", allocation]
                if cell is None:
                    rows.append(row + [ABSENT] * 5)
                    continue
                shown = [
                    times(cell["ratios"][n][0]) + f" ({percent(cell['ratios'][n][1])} wrong)"
                    for n in names
                ]
                rows.append([*row, f"{cell['bound']:,.0f}", *shown])
    return lines + table(["models", "gap", "allocation", "bound", *names], rows)
