"""How often forecasts hold: `python tests/statistical/forecast_study.py [--experiments 110]
[--out docs/forecasts.md] [--keep FOLDER]`.

Simulated live experiments are forecast at many moments, and each forecast is compared with what
became of it. A finished experiment is kept as a small JSON file, named by a digest of the code that
made it, so that a study that was stopped goes on where it was. One core; some minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from coverage_study import program
from live_experiments import MOST_RANDOMIZED, Kind, Moment, kind, live

from equipoise.agent.planning.forecast import Forecast, current, forecast

ROOT = Path(__file__).resolve().parents[2]
LOOKED_AT = (ROOT / "agent" / "planning", ROOT / "agent" / "planning" / "simulation")
FIRST, GROWTH = 60, 1.6
"""Randomized requests at the first forecast, and how many times as many at the next."""
BEGIN, END = "<!-- study: written by a command -->", "<!-- end of study -->"


def digest() -> str:
    """Of the code that makes the figures, words left out."""
    total = hashlib.sha256()
    for folder in LOOKED_AT:
        for path in sorted(folder.glob("*.py")):
            total.update(program(path))
    for name in ("live_experiments.py", "forecast_study.py"):
        total.update(program(Path(__file__).parent / name))
    return total.hexdigest()[:12]


def seen_now(made: Forecast, moment: Moment) -> Forecast:
    """What the daemon would show at this moment."""
    agent = moment.agent
    limit = agent.controls.budget
    left = None if limit is None else limit - moment.drawn
    return current(
        made,
        at=moment.at,
        status=agent.answers.status(),
        paused=agent.state.paused,
        budget_left=left,
        era=agent.rule.era,
        newest_at=moment.newest,
    )


def experiment(number: int) -> dict[str, Any]:
    """One experiment with its forecasts, and where it ended."""
    chosen, made, due = kind(number), [], float(FIRST)
    before: Moment | None = None
    paused_at, spent_at, silent_at = 0, 0, 0
    for moment in live(chosen):
        agent = moment.agent
        spent = chosen.budget is not None and moment.drawn >= chosen.budget
        silent = moment.at - moment.newest > chosen.window
        wanted = moment.drawn >= due
        # And once in each of the states in which nothing may be foretold.
        wanted |= moment.paused and paused_at == 0
        wanted |= spent and spent_at < 2
        wanted |= silent and not spent and silent_at < 3
        paused_at, spent_at = paused_at + moment.paused, spent_at + spent
        silent_at += silent
        if wanted and not moment.decided:
            due = max(due, GROWTH * moment.drawn if moment.drawn >= due else due)
            answer = seen_now(forecast(agent.answers, moment.at), moment)
            made.append(row(answer, moment, chosen))
        if moment.decided:
            break
        before = moment
        last = (moment.randomized, moment.at)
    assert before is not None
    end = {
        "decided": moment.decided,
        "randomized": moment.randomized,
        "at": moment.at,
        "drawn": moment.drawn,
        "not_before": last,
        "after": seen_now(forecast(moment.agent.answers, moment.at), moment).reason,
    }
    pauses = [alert.at for alert in moment.agent.store.alerts() if alert.status == "paused"]
    return {"kind": chosen.__dict__, "forecasts": made, "end": end, "pauses": pauses}


def row(answer: Forecast, moment: Moment, chosen: Kind) -> dict[str, Any]:
    """A forecast, with what is true at its moment."""
    arms = moment.agent.answers.view().moments.arms
    table = moment.agent.light.pending

    def band(interval: Any) -> list[float | None] | None:
        return None if interval is None else [interval.low, interval.median, interval.high]

    return {
        "at": moment.at,
        "randomized": moment.randomized,
        "drawn": moment.drawn,
        "state": answer.state,
        "reason": answer.reason,
        "chance": answer.chance,
        "total": band(answer.total),
        "hours": band(answer.hours),
        "least": float(arms.count.sum(axis=0).min()),
        "silent": moment.at - moment.newest,
        "paused": moment.paused,
        "spent": chosen.budget is not None and moment.drawn >= chosen.budget,
        "rows": int(table.next),
    }


def covers(band: list[float | None], before: float, end: float) -> bool:
    """Whether a band holds the end, which lies between the last look before it and itself."""
    low, _, high = (np.inf if each is None else each for each in band)
    return low <= (before + end) / 2.0 <= high


def judged(run: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """Every forecast of an experiment, with whether it held."""
    end = run["end"]
    decided = end["decided"]
    total, before = (end["randomized"], end["not_before"][0]) if decided else (np.inf, np.inf)
    # Of a run that was cut off all is known that it takes more.
    least = end["randomized"] if end["drawn"] >= MOST_RANDOMIZED else np.inf
    for made in run["forecasts"]:
        share = made["randomized"] / (total if decided else max(end["randomized"], 1))
        told = {
            **made,
            "kind": run["kind"],
            "decided": decided,
            "early": share < 0.5,
            "held": None,
            "in_time": None,
        }
        if made["state"] == "pending":
            high = np.inf if made["total"][2] is None else made["total"][2]
            told["held"] = covers(made["total"], before, total) if decided else high >= least
            stopped = any(at >= made["at"] for at in run["pauses"])
            stopped |= run["kind"]["event"] == "silence" and made["drawn"] < run["kind"]["middle"]
            if made["hours"] is not None and decided and not stopped:
                after = [(each - made["at"]) / 3600.0 for each in (end["not_before"][1], end["at"])]
                told["in_time"] = covers(made["hours"], *after)
        else:
            told["right"] = right(made, run, decided)
        yield told


def right(made: dict[str, Any], run: dict[str, Any], decided: bool) -> bool:
    """Whether a reason is the true one."""
    chosen, reason = run["kind"], made["reason"]
    if reason == "paused":
        return made["paused"]
    if reason == "no-traffic":
        return made["silent"] > 60.0
    if reason == "budget-spent":
        return made["spent"]
    if reason == "too-few-rewards":
        return made["least"] < 20 or chosen["sticky"]
    if reason == "budget-too-small":
        return not decided and chosen["budget"] is not None
    if reason == "never":
        # Of the true values: all that the worst case leaves of the best model's lead.
        order = sorted(chosen["values"])
        lead = (order[-1] - order[-2]) * (1.0 - chosen["missing"]) - chosen["missing"]
        return chosen["declared"] is None and chosen["missing"] > 0.0 and lead <= 0.0
    return not decided and reason == "too-small-a-difference"


def of(share: list[bool]) -> str:
    """Of how many, and which share with its standard error."""
    if not share:
        return "0 | –"
    mean = float(np.mean(share))
    return f"{len(share)} | {mean:.0%} ± {np.sqrt(mean * (1.0 - mean) / len(share)):.0%}"


GROUPS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "all": lambda each: True,
    "of experiments that were decided": lambda each: each["decided"],
    "early: less than half of the way": lambda each: each["early"],
    "late": lambda each: not each["early"],
    "nothing missing": lambda each: each["kind"]["missing"] == 0.0,
    "missing, as the worst case": lambda each: (
        each["kind"]["missing"] > 0.0 and each["kind"]["declared"] is None
    ),
    "missing, declared as 0": lambda each: each["kind"]["declared"] is not None,
    "traffic: flat": lambda each: each["kind"]["traffic"] == "flat",
    "traffic: idle at first": lambda each: each["kind"]["traffic"] == "idle",
    "traffic: day and night": lambda each: each["kind"]["traffic"] == "night",
    "traffic: bursts": lambda each: each["kind"]["traffic"] == "bursts",
    "a budget": lambda each: each["kind"]["budget"] is not None,
    "a pause or a silence": lambda each: bool(each["kind"]["event"]),
    "sticky units": lambda each: each["kind"]["sticky"],
    "policy: uniform": lambda each: each["kind"]["assignment"] == "uniform",
    "policy: neyman": lambda each: each["kind"]["assignment"] == "neyman",
    "policy: top-two": lambda each: each["kind"]["assignment"] == "top-two",
    "sequence: bounded": lambda each: each["kind"]["sequence"] == "bounded",
    "sequence: per-model": lambda each: each["kind"]["sequence"] == "per-model",
    "sequence: asymptotic": lambda each: each["kind"]["sequence"] == "asymptotic",
    "2 models": lambda each: len(each["kind"]["values"]) == 2,
    "3 models": lambda each: len(each["kind"]["values"]) == 3,
    "4 models": lambda each: len(each["kind"]["values"]) == 4,
    "5 models": lambda each: len(each["kind"]["values"]) == 5,
}


def tables(runs: list[dict[str, Any]]) -> str:
    """The tables of the page."""
    rows = [each for run in runs for each in judged(run)]
    ended = sum(run["end"]["decided"] for run in runs)
    gone = sum(run["end"]["after"] in ("decided", "equivalent") for run in runs)
    lines = [
        f"{len(runs)} experiments, {ended} of them decided; {len(rows)} forecasts. After all"
        f" {gone} decisions the forecast is that there is nothing to wait for.",
        "",
        "| forecasts | with a band | requests inside it | with a time | decided inside it |",
        "|---|---|---|---|---|",
    ]
    for name, holds in GROUPS.items():
        some = [each for each in rows if holds(each)]
        held = of([each["held"] for each in some if each["held"] is not None])
        lines.append(
            f"| {name} | {held} | {of([e['in_time'] for e in some if e['in_time'] is not None])} |"
        )
    lines += [
        "",
        "| cannot be said, because | forecasts | the reason is the true one |",
        "|---|---|---|",
    ]
    reasons = Counter(each["reason"] for each in rows if each["state"] != "pending")
    for reason, _ in reasons.most_common():
        some = [each["right"] for each in rows if each["reason"] == reason]
        lines.append(f"| {reason} | {of(some)} |")
    none = [each for each in rows if each["state"] != "pending"]
    lines.append(
        f"| all, {len(none) / len(rows):.0%} of the forecasts | {of([e['right'] for e in none])} |"
    )
    return "\n".join(lines)


def main(count: int, keep: Path, first: int) -> str:
    folder = keep / digest()
    folder.mkdir(parents=True, exist_ok=True)
    runs, start = [], time.monotonic()
    for number in range(first, first + count):
        path = folder / f"{number}.json"
        if not path.exists():
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps(experiment(number)))
            partial.rename(path)
        runs.append(json.loads(path.read_text()))
        if (number + 1) % 10 == 0:
            print(f"{number + 1 - first} of {count}, {time.monotonic() - start:.0f} s", flush=True)
    return tables(runs)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experiments", type=int, default=110)
    parser.add_argument("--first", type=int, default=0, help="number of the first: other draws")
    parser.add_argument("--keep", type=Path, default=Path("runs/forecasts"))
    parser.add_argument("--out", type=Path, help="also write the tables into this page")
    given = parser.parse_args()
    written = main(given.experiments, given.keep, given.first)
    print(written)
    if given.out:
        page = given.out.read_text()
        head, rest = page.split(BEGIN)
        given.out.write_text(f"{head}{BEGIN}\n\n{written}\n\n{END}{rest.split(END)[1]}")
