"""Fuzz and break a real daemon for an hour, and write down what came of it.

make torture, or: python tests/service/torture.py --minutes 60 --seed 1 --out docs/reliability.md

Every part is a command with a seed; the report has its command line and its last lines. A
part whose script is not there, or whose needs are not met (root, a C compiler), is said to be left
out. Exit code 1: a part found a fault.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from running import CONFIG, running

HERE = Path(__file__).parent
EXTRAS = '[[guardrails]]\nname = "errors"\nlimit = 0.9\n'
MARK = "<!-- written by tests/service/torture.py -->"


@dataclass(frozen=True)
class Part:
    """share: of the time; arguments: given the seconds it may take and the seed."""

    name: str
    what: str
    share: float
    script: str
    arguments: Callable[[float, int], list[str]]


def _moments(kinds: str, seconds_each: float) -> Callable[[float, int], list[str]]:
    def arguments(seconds: float, seed: int) -> list[str]:
        moments = max(3, int(seconds / (seconds_each * len(kinds.split(",")))))
        return ["--moments", str(moments), "--kinds", kinds, "--seed", str(seed)]

    return arguments


def _scaled(
    name: str, fewest: int, most: int, a_second: float
) -> Callable[[float, int], list[str]]:
    def arguments(seconds: float, seed: int) -> list[str]:
        return [name, str(min(most, max(fewest, int(seconds * a_second)))), "--seed", str(seed)]

    return arguments


# Seconds a unit of work takes on two quiet cores; a busy machine takes longer, not less.
PARTS = (
    Part("requests", "every operation of /openapi.json, by schemathesis", 0.2, "", lambda *_: []),
    Part(
        "machine",
        "whatever is asked in whatever order, beside a model of what must be true",
        0.2,
        "machine.py",
        lambda seconds, seed: ["--examples", str(max(3, int(seconds / 3))), "--seed", str(seed)],
    ),
    Part(
        "kills",
        "kill -9 under load, of the daemon and of the analyst",
        0.2,
        "killing.py",
        _moments("daemon,analyst", 3.0),
    ),
    Part(
        "disks",
        "kill -9 on a disk that fills up, or refuses writes",
        0.15,
        "killing.py",
        _moments("full,read-only", 6.0),
    ),
    Part(
        "damage",
        "one fault in a file of the store, then a start",
        0.1,
        "damage.py",
        _scaled("--faults", 50, 2000, 5.6),
    ),
    Part(
        "poison",
        "rows with odd numbers in every field",
        0.05,
        "poison.py",
        _scaled("--rows", 50, 5000, 28.0),
    ),
    Part("flood", "clients that hold on to the loop", 0.05, "flood.py", lambda *_: []),
    Part(
        "clocks",
        "the wall clock is set under load",
        0.05,
        "clock_steps.py",
        lambda seconds, _: ["--rounds", str(max(1, int(seconds / 80)))],
    ),
)


@dataclass(frozen=True)
class Result:
    part: Part
    command: str
    code: int | None
    seconds: float
    text: str

    @property
    def verdict(self) -> str:
        if self.code is None:
            return "left out"
        return "no fault" if self.code == 0 else "**faults**"


def run_script(part: Part, seconds: float, seed: int) -> Result:
    """One script, which may take three times its share."""
    arguments = part.arguments(seconds, seed)
    shown = " ".join(["python", f"tests/service/{part.script}", *arguments])
    path = HERE / part.script
    if not path.exists():
        return Result(part, shown, None, 0.0, "the script is not there")
    return _result(part, shown, [sys.executable, str(path), *arguments], 3 * seconds + 120)


def run_requests(part: Part, seconds: float, seed: int) -> Result:
    """schemathesis over a daemon that knows some decisions, and what the daemon said of it."""
    options = [
        "--max-time",
        str(max(10, int(seconds))),
        "--seed",
        str(seed),
        "--continue-on-failure",
        "--no-color",
    ]
    program = Path(sys.executable).with_name("schemathesis")
    settings = ["--config-file", str(HERE / "schemathesis.toml")]
    shown = " ".join(
        [
            "schemathesis --config-file tests/service/schemathesis.toml",
            "run http://127.0.0.1:PORT/openapi.json",
            *options,
        ]
    )
    if not program.exists():
        return Result(
            part, shown, None, 0.0, "schemathesis is not installed: pip install .[torture]"
        )
    with (
        tempfile.TemporaryDirectory() as name,
        running(Path(name), config=CONFIG + EXTRAS) as daemon,
    ):
        for index in range(50):
            daemon.decide(f"r{index}")
        url = f"http://127.0.0.1:{daemon.port}/openapi.json"
        hooks = {"SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(HERE)}
        # It keeps what it found in the folder it runs in.
        command = [str(program), *settings, "run", url, *options]
        result = _result(part, shown, command, 2 * seconds + 120, hooks, name)
        ready = daemon.ask("GET", "/readyz").status
        ended = daemon.stop()
        errors = [line for line in daemon.log if '"error"' in line or "Traceback" in line]
    text = (
        f"{result.text}\nready afterwards: {ready}; ended with {ended}; {len(errors)} errors logged"
    )
    good = ready == 200 and ended == 0 and not errors
    code = result.code if good else 1
    return Result(
        part, shown, code, result.seconds, text + "".join(f"\n{line}" for line in errors[:5])
    )


def _result(
    part: Part,
    shown: str,
    command: list[str],
    limit: float,
    more: dict[str, str] | None = None,
    folder: str | None = None,
) -> Result:
    begun = time.monotonic()
    try:
        ended = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=limit,
            cwd=folder,
            env={**os.environ, **(more or {})},
        )
        code, text = ended.returncode, ended.stdout + ended.stderr
    except subprocess.TimeoutExpired as error:
        code, text = 1, f"{error.stdout or ''}\nnot done after {limit:.0f} s"
    return Result(part, shown, code, time.monotonic() - begun, text)


def _last(text: str, lines: int) -> str:
    # Ports, temporary folders and addresses say nothing to anybody.
    text = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:PORT", text)
    text = re.sub(r"/tmp/\w+", "FOLDER", text)
    kept = [line.rstrip()[:300] for line in text.strip().splitlines()]
    return "\n".join(kept[-lines:])


def block(result: Result) -> str:
    """What the page says of a part."""
    today = datetime.datetime.now(datetime.UTC).date()
    where = f"Python {platform.python_version()}, {os.cpu_count()} cores"
    head = f"### {result.part.name}\n\n{result.part.what.capitalize()}: {result.verdict}."
    if result.code is None:
        return f"{head} {result.text.capitalize()}.\n"
    took = f"{result.seconds / 60:.1f} minutes on {today}, {where}"
    return f"{head} {took}.\n\n`{result.command}`\n\n```text\n{_last(result.text, 40)}\n```\n"


def page(before: str, results: list[Result]) -> str:
    """The page with what is new; parts that were not run keep what was said of them."""
    head, _, kept = before.partition(MARK)
    blocks = {
        text.partition("\n")[0]: f"### {text.rstrip()}\n" for text in kept.split("\n### ")[1:]
    }
    for result in results:
        if result.code is not None or result.part.name not in blocks:
            blocks[result.part.name] = block(result)
    order = [part.name for part in PARTS if part.name in blocks]
    return f"{head.rstrip()}\n\n{MARK}\n\n" + "\n".join(blocks[name] for name in order)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="page whose part below the mark is written anew")
    parser.add_argument("--parts", default=",".join(part.name for part in PARTS))
    chosen = parser.parse_args()
    results = []
    for part in PARTS:
        if part.name not in chosen.parts.split(","):
            continue
        seconds = 60.0 * chosen.minutes * part.share
        print(f"{part.name}: {part.what} …", flush=True)
        work = run_requests if not part.script else run_script
        results.append(work(part, seconds, chosen.seed))
        print(f"  {results[-1].verdict}\n{_last(results[-1].text, 12)}", flush=True)
        if chosen.out is not None:
            before = chosen.out.read_text() if chosen.out.exists() else ""
            chosen.out.write_text(page(before, results))
    raise SystemExit(any(each.code for each in results))


if __name__ == "__main__":
    main()
