"""`make bench`: how fast the agent is, as ratios to named baselines of the same run.

Machines are noisy, so nothing here asserts; it prints. Both sides of a ratio take turns in one
run, and a ratio is the median of five (`measure.py`). A table of everything comes at the end.

    make bench                                       all sections
    python tests/performance/run.py decide updates
    python tests/performance/run.py --against PATH   beside another checkout with its own .venv
    python tests/performance/run.py sweep --against PATH --sweep "--seeds 40"
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import bare
import works
from measure import HERE, Bench, Figures, Side, Target, environment, number, python_of

ROOT = Path(__file__).resolve().parents[2]
MAIN = "from equipoise.replay.cli import main; main()"
KINDS = {
    "uniform": "constant",
    "top-two": "constant",
    "active": "forms",
    "contrast": "forms",
    "thompson": "draws",
}
"""What a rule of each policy computes from a request."""


def decide(bench: Bench) -> None:
    bench.begin("decide", "decisions in process, p = 32, K = 8, logged to memory")
    for preset, kind in KINDS.items():
        name = f"single {preset}"
        found = bench.compare(
            f"{preset}, one at a time",
            {"p50": "us", "p99": "us"},
            {"own": works.build(name), "bare": bare.single(kind), **bench.before(name)},
            {"p50": (Target("bare", 3.0),)},
        )
        tails = sorted(each["p99"] / each["p50"] for each in found["own"])
        tail = tails[len(tails) // 2]
        sides = {"own": tail}
        bench.add(f"{preset}, p99 / p50", "", sides, {"p50": tail}, (Target("p50", 4.0),))
    for preset in KINDS:
        for size in (64, 1024):
            name = f"batches {preset} {size}"
            sides = {"own": works.build(name), **bench.before(name)}
            bench.compare(f"{preset}, batches of {size:,}", {"rate": "rows/s"}, sides)


def refresh(bench: Bench) -> None:
    bench.begin("refresh", "estimate, certify, freeze the next rule, off the hot path")
    for d, q, models in ((16, 15, 8), (16, 47, 20)):
        for preset in ("top-two", "contrast"):
            name = f"refresh {preset} {d} {q} {models}"
            sides = {"own": works.build(name), **bench.before(name)}
            bench.compare(f"{preset}, p = {1 + d + q}, K = {models}", {"ms": "ms"}, sides)


def updates(bench: Bench) -> None:
    bench.begin("updates", "observe and fold, beside bare NumPy of the same moments")
    for d, q, models in ((16, 15, 8), (16, 4, 6)):
        for size, share in ((100, 0.8), (1024, 0.5)):
            name = f"updates {d} {q} {models} {size}"
            own, least = works.build(name), bare.sums(d, q, models, size)
            bench.compare(
                f"p = {1 + d + q}, K = {models}, batches of {size:,}",
                {"rate": "rows/s"},
                {"own": own, "bare": least, **bench.before(name)},
                {"rate": (Target("bare", share, least=True),)},
            )


def replay(bench: Bench) -> None:
    bench.begin("replay", "decisions and updates, d = 16, K = 6, batches of 100, on one table")
    peers = {name: made for name, make in bare.PEERS.items() if (made := make()) is not None}
    targets = (
        Target("bare", 0.6, least=True),
        Target("mabwiser LinUCB", 4.0, least=True),
        Target("before", 2.0, least=True),
    )
    for preset, every in (("top-two", 2000), ("top-two", 10_000), ("thompson", 10_000)):
        name = f"replay {preset} {every}"
        sides = {"bare": bare.sums(16, 4, 6, 100, decide=True), **bench.before(name), **peers}
        what = f"{preset}, refresh every {every:,}"
        own = {"own": works.build(name)}
        bench.compare(what, {"rate": "rows/s"}, {**own, **sides}, {"rate": targets})


def command(checkout: Path | None, *arguments: str, least: str = "") -> Side:
    """A whole command in a process of its own: seconds, start-up included. least: a program that is
    run instead."""

    def work() -> Figures:
        began = time.perf_counter()
        done = subprocess.run(
            [python_of(checkout), "-c", least or MAIN, *arguments],
            capture_output=True,
            text=True,
            cwd=checkout or ROOT,
            env=environment(),
        )
        if done.returncode:
            raise SystemExit(f"equipoise {shlex.join(arguments)}: {done.stderr}")
        return {"s": time.perf_counter() - began}

    return work


def startup(bench: Bench) -> None:
    bench.begin("startup", "commands in a process of their own, wall, beside `import typer, rich`")
    with tempfile.TemporaryDirectory() as folder:
        few = ("--policies", "top-two", "--seeds", "1", "--budget", "100", "--jobs", "1")
        stores: dict[Path | None, str] = {}
        for checkout in (None, bench.against) if bench.against else (None,):
            stores[checkout] = f"{folder}/{len(stores)}.sqlite"
            out = f"{folder}/{len(stores)}"
            command(checkout, "replay", *few, "--store", stores[checkout], "--out", out)()
        commands = {
            "--help": ("--help",),
            "status STORE": ("status", "STORE"),
            "plan --help": ("plan", "--help"),
            "ingest --help": ("ingest", "--help"),
            "replay --help": ("replay", "--help"),
            "serve --help": ("serve", "--help"),
        }
        for what, given in commands.items():

            def side(checkout: Path | None, given: tuple[str, ...] = given) -> Side:
                return command(checkout, *(stores[checkout] if a == "STORE" else a for a in given))

            sides = {"own": side(None), "bare": command(None, least="import typer, rich")}
            if bench.against:
                sides["before"] = side(bench.against)
            targets = (Target("bare", 2.0),) if what == "--help" else ()
            bench.compare(what, {"s": "s"}, sides, {"s": targets}, rounds=15)


def plan(bench: Bench) -> None:
    bench.begin("plan", "plans from numbers; bare: their rewards drawn, nothing else")
    for models, limit in ((2, 1.0), (7, 1.0), (17, 1.0), (20, 1.0), (64, 2.0)):
        name = f"plan {models}"
        sides = {"own": works.build(name), "bare": bare.plan(models), **bench.before(name)}
        bench.compare(f"{models} models, without start-up", {"cpu": "s", "wall": "s"}, sides)
        given = ("plan", "--models", str(models), "--traffic", "1000", "--reward-rate", "0.5")
        given = (*given, "--effect", "0.05")
        whole = {"own": command(None, *given)}
        if bench.against:
            whole["before"] = command(bench.against, *given)
        what = f"{models} models, the command"
        found = bench.compare(what, {"s": "s"}, whole, rounds=3)["own"]
        took = sorted(each["s"] for each in found)[1]
        bench.add(what, "s", {"own": took}, {"s": took}, (Target("s", limit),))


def sweep(bench: Bench, flags: str = "") -> None:
    """The demo of the Makefile, or other flags, here and by the other checkout."""
    if not flags:
        found = re.search(r"^DEMO_FLAGS \?= (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert found is not None
        flags = re.sub(r"--out \S+|--force", "", found[1])
    bench.begin("sweep", f"equipoise replay {flags}")
    with tempfile.TemporaryDirectory() as folder:
        own, other = f"{folder}/own", f"{folder}/before"
        given = ("replay", *shlex.split(flags), "--force", "--out")
        sides = {"own": command(None, *given, own)}
        if bench.against:
            sides["before"] = command(bench.against, *given, other)
        bench.compare("the command", {"s": "s"}, sides, {"s": (Target("before", 0.5),)})
        if bench.against:
            print(f"  results: {differences(own, other)}")


def differences(one: str, other: str) -> str:
    """What two results.parquet differ in, column by column."""
    import numpy as np
    import pandas as pd

    a, b = (pd.read_parquet(Path(folder) / "results.parquet") for folder in (one, other))
    if a.shape != b.shape or list(a.columns) != list(b.columns):
        return f"of other shape: {a.shape} and {b.shape}"
    said = []
    for name in a.columns:
        x, y = a[name], b[name]
        if len(x) and isinstance(x.iloc[0], np.ndarray):
            x, y = pd.Series(np.concatenate(x.tolist())), pd.Series(np.concatenate(y.tolist()))
        same = (x == y).fillna(False) | (x.isna() & y.isna())
        if same.all():
            continue
        text = f"{name} in {int((~same).sum()):,} of {len(x):,}"
        if x.dtype.kind == "f":
            apart = ((x - y).abs() / np.maximum(x.abs(), y.abs()))[~same]
            text += f" (by {float(apart.max()):.1e} at most)"
        said.append(text)
    return "; ".join(said) or "equal bit for bit"


def memory(bench: Bench) -> None:
    bench.begin("memory", "a long stream whose log is not kept: single decisions, and memory")
    # In a process of its own: peaks of memory are of a process.
    ask = "import json, works; print(json.dumps(works.long_stream()))"
    done = subprocess.run(
        [sys.executable, "-c", ask], capture_output=True, text=True, check=True, cwd=HERE
    )
    found = {int(rows): figures for rows, figures in json.loads(done.stdout).items()}
    first = next(iter(found.values()))
    for rows, figures in found.items():
        ratio = {"the first": figures["p50"] / first["p50"]}
        bench.add(f"p50 at {rows:,} log rows", "us", {"own": figures["p50"]}, ratio)
        note = f"state {number(figures['state'])} KiB"
        bench.add(f"peak at {rows:,} log rows", "MiB", {"own": figures["peak"]}, note=note)


SECTIONS = {
    "decide": decide,
    "refresh": refresh,
    "updates": updates,
    "replay": replay,
    "sweep": sweep,
    "plan": plan,
    "startup": startup,
    "memory": memory,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("sections", nargs="*", help=f"of {', '.join(SECTIONS)}; all by default")
    parser.add_argument("--against", type=Path, help="another checkout, with its own .venv")
    parser.add_argument("--sweep", default="", help="flags of the sweep, instead of the demo's")
    chosen = parser.parse_args()
    if unknown := set(chosen.sections) - set(SECTIONS):
        parser.error(f"no such section: {', '.join(sorted(unknown))}")
    bench = Bench(chosen.against and chosen.against.resolve())
    began = time.perf_counter()
    for name in chosen.sections or SECTIONS:
        if name == "sweep":
            sweep(bench, chosen.sweep)
        else:
            SECTIONS[name](bench)
    bench.table()
    bench.close()
    print(f"\n{time.perf_counter() - began:,.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
