"""Every field with every odd number, row by row, through a real daemon; after each, does it answer?

`python tests/service/poison.py --rows 5000 --seed 1` prints what odd input gets, and ends with 1 if
anything broke a promise: estimates answer in time after each row, with values that are finite and
near those without the odd rows; certified intervals hold the truth; no answer is a 5xx; the analyst
is not lost. `poison(...)` is for the suite, which asserts no times.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.service.running import Running, running

MODELS = ("a", "b", "c")
TRUTH = {"a": 0.4, "b": 0.55, "c": 0.65}
CONFIG = """
name = "odd"
models = [{name = "a", price = 0.01}, {name = "b"}, {name = "c"}]
[features]
context = [
    {type = "number", name = "words", low = 0},
    {type = "number", name = "size"},
    {type = "number", name = "clipped", low = -5, high = 5, winsorize = true},
    {type = "number", name = "grown", log = true},
    {type = "boolean", name = "known"},
    {type = "vector", name = "v", length = 2},
    {type = "category", name = "plan", values = ["free", "pro"], other = true},
]
outputs = [{type = "number", name = "seconds", low = 0}, {type = "number", name = "cost"}]
interactions = [["words", "seconds"]]
[policy]
assignment = "uniform"
rate = 0.5
[[guardrails]]
name = "errors"
limit = 0.5
"""
SERVICE = "refresh_seconds = 0.5\ncheckpoint_seconds = 5\n"

HUGE = "1" + "0" * 400
ODD = [
    *("0", "-0.0", "1", "-1", "5e-324", "-5e-324", "2.2250738585072014e-308", "1e-300"),
    *(f"{sign}1e{power}" for power in (-50, -9, 3, 4, 5, 6, 7, 8) for sign in ("", "-")),
    *("999999999.9", "1e9", "-1e9", "1000000001", "1e10", "1e12", "1e15", "1e16", "1e50", "-1e50"),
    *("1.0000001e50", "1e100", "-1e154", "1e155", "1.7976931348623157e308", "1e309", "-1e400"),
    *("1795810000", "1795810000123", "1795810000123456", "1795810000123456789"),
    *("9007199254740993", "9223372036854775807", "18446744073709551616", HUGE, f"-{HUGE}"),
    *("NaN", "Infinity", "-Infinity", "null", "true", "false", '""', '"7"', '"NaN"', '"1e999"'),
    *("[]", "[1]", "[1, 2]", "[1e9, -1e9]", "[1e10, 0]", '["1", 2]', "[null, 1]", "{}"),
    *('{"words": 1}', "[[1, 2]]", '"2026-11-27"', '"\\ud800"', '"\\u0000"'),
]
"""As they stand in the body, for JSON itself cannot say all of them."""


@dataclass
class Report:
    """rows: odd ones sent; answers: (way, field, value) -> status; faults: promises broken;
    fallbacks: looks at which a family said that it cannot be computed; slowest: seconds that
    estimates took after an odd row."""

    rows: int = 0
    answers: dict[tuple[str, str, str], int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    fallbacks: int = 0
    slowest: float = 0.0


WAYS = {
    "decide": ("POST", "/v1/decide", ("request", "context")),
    "outcome": ("POST", "/v1/outcomes", ("outcome", "outputs")),
    "observation": ("POST", "/v1/observations", ("observation", "context", "outputs")),
    "simulation": ("POST", "/v1/simulations", ("simulation", "context", "outputs")),
}
CONTEXT = ("words", "size", "clipped", "grown", "known", "v", "plan")
OUTPUTS = ("seconds", "cost")
OWN = {
    "decide": ("at", "unit_id", "context_id", "eligible"),
    "outcome": ("reward", "at", "attempt", "delivered", "served", "errors"),
    "observation": ("reward", "at"),
    "simulation": ("cost", "at"),
}
AT_ONCE = 100


def cases() -> list[tuple[str, str, str]]:
    """(way in, field, value) for every field and every odd value."""
    found = []
    for way in WAYS:
        fields = [f"features.{name}" for name in CONTEXT if way != "outcome"]
        fields += [f"outputs.{name}" for name in OUTPUTS if way != "decide"]
        fields += list(OWN[way])
        found += [(way, name, value) for name, value in itertools.product(fields, ODD)]
    return found


class Traffic:
    """Honest rows, and honest rows with one value replaced. Rewards are coins of a known chance,
    whatever else a row holds."""

    def __init__(self, daemon: Running, seed: int) -> None:
        self.daemon = daemon
        self.random = random.Random(seed)
        self.number = 0

    def features(self) -> dict[str, Any]:
        gauss = self.random.gauss
        return {
            "words": float(self.random.randrange(1, 100)),
            "size": gauss(0, 1),
            "clipped": gauss(0, 1),
            "grown": abs(gauss(5, 2)),
            "known": self.random.random() < 0.5,
            "v": [gauss(0, 1), gauss(0, 1)],
            "plan": self.random.choice(["free", "pro", "team"]),
        }

    def outputs(self, model: str) -> dict[str, float]:
        return {"seconds": MODELS.index(model) + self.random.random(), "cost": self.random.random()}

    def reward(self, model: str) -> float:
        return float(self.random.random() < TRUTH[model])

    def name(self) -> str:
        self.number += 1
        return f"r{self.number}"

    def honest(self, count: int) -> None:
        requests = [
            {"request_id": self.name(), "routed": "a", "features": self.features()}
            for _ in range(count)
        ]
        answer = self.daemon.ask("POST", "/v1/decide/batch", {"requests": requests})
        assert answer.status == 200, answer.body
        outcomes = [
            {
                "request_id": each["request_id"],
                "outputs": self.outputs(each["model"]),
                "reward": self.reward(each["model"]),
            }
            for each in answer.json["decisions"]
        ]
        answer = self.daemon.ask("POST", "/v1/outcomes", outcomes)
        assert answer.status == 200, answer.body
        assert not answer.json["rejected"], answer.body

    def replays(self, count: int) -> None:
        lines = []
        for _ in range(count):
            name, features = self.name(), self.features()
            lines += [
                {
                    "context_id": name,
                    "model": model,
                    "features": features,
                    "outputs": self.outputs(model),
                }
                for model in MODELS
            ]
        body = "\n".join(map(json.dumps, lines)).encode()
        answer = self.daemon.ask("POST", "/v1/simulations", body)
        assert answer.status == 200, answer.body

    def odd(self, way: str, name: str, value: str) -> tuple[int, str]:
        """One row with one odd value; the status, as its row got it, and the words."""
        method, path, _ = WAYS[way]
        row: dict[str, Any] = {}
        if way in ("decide", "outcome"):
            row = {"request_id": self.name(), "routed": "a", "features": self.features()}
            if way == "outcome":
                made = self.daemon.ask("POST", "/v1/decide", row)
                assert made.status == 200, made.body
                model = made.json["model"]
                row = {
                    "request_id": row["request_id"],
                    "outputs": self.outputs(model),
                    "reward": self.reward(model),
                }
        elif way == "observation":
            row = {
                "request_id": self.name(),
                "routed": "a",
                "features": self.features(),
                "outputs": self.outputs("a"),
                "reward": self.reward("a"),
            }
        else:
            model = self.random.choice(MODELS)
            row = {
                "context_id": self.name(),
                "model": model,
                "features": self.features(),
                "outputs": self.outputs(model),
            }
        side, _, inner = name.partition(".")
        mark = "@odd@"
        if inner:
            row[side][inner] = mark
        elif name == "errors":
            row["metrics"] = {"errors": mark}
        else:
            row[name] = mark
        body = json.dumps(row).replace(f'"{mark}"', value).encode()
        answer = self.daemon.ask(method, path, body)
        status, words = answer.status, answer.body.decode(errors="replace")
        if status == 200 and way in ("observation", "simulation") and answer.json["rejected"]:
            reject = answer.json["rejects"][0]
            status, words = reject["status"], reject["detail"]
        if way == "decide" and status == 200:
            # Its outcome is honest: the row enters every sum.
            model = answer.json["model"]
            sent = self.daemon.ask(
                "POST",
                "/v1/outcomes",
                {
                    "request_id": row["request_id"],
                    "outputs": self.outputs(model),
                    "reward": self.reward(model),
                },
            )
            assert sent.status == 200, sent.body
        return status, words


FAMILIES = "ipw,obs-only,representation-exp,cvci,grounded,doubly-robust,hierarchical"
TRUSTED = ("ipw", "representation-exp", "doubly-robust", "hierarchical", "grounded", "cvci")


def look(daemon: Running, report: Report, after: str, start: dict[str, list[float]] | None) -> Any:
    """Ask for all estimates; what is wrong with them is put into the report."""
    begin = time.monotonic()
    answer = daemon.ask("GET", f"/v1/estimates?family={FAMILIES}")
    took = time.monotonic() - begin
    report.slowest = max(report.slowest, took)
    if answer.status != 200:
        report.faults.append(f"{after}: estimates {answer.status} {answer.body[:200]!r}")
        return None
    told = answer.json
    for each in told["models"]:
        low, high = each["lower"], each["upper"]
        if not low <= TRUTH[each["model"]] <= high:
            report.faults.append(f"{after}: certified [{low}, {high}] of {each['model']}")
    report.fallbacks += bool(told["fallbacks"])
    for family, values in told["families"].items():
        if family in told["fallbacks"]:
            if family == "ipw":
                report.faults.append(f"{after}: {told['fallbacks']}")
        elif any(each["value"] is None for each in values):
            report.faults.append(f"{after}: {family} has no value")
        elif start is not None and family in TRUSTED:
            moved = max(
                abs(each["value"] - before)
                for each, before in zip(values, start[family], strict=True)
            )
            if moved > 0.15:
                report.faults.append(f"{after}: {family} moved by {moved:.2f}")
    return told


def poison(
    daemon: Running,
    chosen: Iterable[tuple[str, str, str]],
    seed: int,
    report: Report,
    every: int = 1,
) -> None:
    """Send odd rows among honest ones, and look after each `every` of them."""
    traffic = Traffic(daemon, seed)
    traffic.replays(200)
    for _ in range(6):
        traffic.honest(500)
    told = look(daemon, report, "before", None)
    start = {
        family: [each["value"] for each in values] for family, values in told["families"].items()
    }
    for at, (way, name, value) in enumerate(chosen):
        shown = value if len(value) < 30 else f"{value[:8]}… ({len(value)} digits)"
        status, words = traffic.odd(way, name, value)
        report.rows += 1
        report.answers[way, name, shown] = status
        if status >= 500:
            report.faults.append(f"{way} {name} = {shown}: {status} {words[:200]}")
        if at % every == 0:
            look(daemon, report, f"after {way} {name} = {shown} ({status})", start)
        if at % 50 == 49:
            # Most traffic is honest: what is taken of the odd ones stays a small share.
            traffic.honest(200)
    lost = [line for line in daemon.log if "analyst-failed" in line or "analyst-died" in line]
    report.faults += [f"log: {line[:200]}" for line in lost]


def in_order(rows: int, seed: int) -> list[tuple[str, str, str]]:
    """So many cases in an order of the seed; all of them before any comes again."""
    order = cases()
    random.Random(seed).shuffle(order)
    return list(itertools.islice(itertools.cycle(order), rows))


def table(report: Report) -> Iterator[str]:
    """Markdown: by way and field, how many odd values were taken and which."""
    yield "| way | field | taken | refused | taken values |"
    yield "|---|---|---|---|---|"
    fields = dict.fromkeys((way, name) for way, name, _ in sorted(report.answers))
    for way, name in fields:
        found = {v: s for (w, n, v), s in report.answers.items() if (w, n) == (way, name)}
        taken = [value for value, status in found.items() if status == 200]
        shown = ", ".join(f"`{value}`" for value in sorted(taken, key=_size)[-6:])
        yield f"| {way} | {name} | {len(taken)} | {len(found) - len(taken)} | … {shown} |"


def _size(value: str) -> float:
    try:
        number = abs(float(value))
    except ValueError:
        return -1.0
    return number if math.isfinite(number) else -1.0


@contextmanager
def odd_daemon(folder: Path) -> Iterator[Running]:
    with running(folder, SERVICE, config=CONFIG) as daemon:
        yield daemon


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0, help="that estimates may take")
    options = parser.parse_args()
    report = Report()
    chosen = in_order(options.rows, options.seed)
    for start in range(0, len(chosen), AT_ONCE):
        # A store for each hundred: odd rows are few among honest ones, as they are in life.
        with tempfile.TemporaryDirectory() as folder, odd_daemon(Path(folder)) as daemon:
            part = chosen[start : start + AT_ONCE]
            poison(daemon, part, options.seed + start, report, options.every)
        print(f"{report.rows} rows, {len(report.faults)} faults", file=sys.stderr, flush=True)
    tally = Counter(report.answers.values())
    print("\n".join(table(report)))
    print(f"\n{report.rows} odd rows, {len(cases())} cases: {dict(sorted(tally.items()))}")
    print(f"a family said that it cannot be computed at {report.fallbacks} looks")
    print(f"estimates took up to {report.slowest:.2f} s")
    if report.slowest > options.seconds:
        report.faults.append(f"estimates took {report.slowest:.1f} s")
    for fault in report.faults[:40]:
        print("FAULT", fault)
    print(f"{len(report.faults)} faults")
    return int(bool(report.faults))


if __name__ == "__main__":
    raise SystemExit(main())
