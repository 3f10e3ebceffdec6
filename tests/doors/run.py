"""`make doors`: every door, driven by the real product it was built for.

A door is a file `NAME_door.py` beside this one with `drive(folder, report)`: it starts what it
needs on loopback, sends traffic whose truth is known, and raises AssertionError where anything
differs from what docs/doors/NAME.md promises. Afterwards the page itself is run, command by
command, as a newcomer would.

    make doors
    make doors DOORS="litellm ofrep"
    .venv/bin/python tests/doors/run.py litellm --no-newcomer
    .venv/bin/python tests/doors/run.py --out docs/doors/measured.md
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import time
import traceback
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "service"), str(TESTS / "doors")]

from harness import ROOT, Report, Step, newcomer  # noqa: E402

DOORS = sorted(path.stem.removesuffix("_door") for path in Path(__file__).parent.glob("*_door.py"))
PAGES = ROOT / "docs" / "doors"


def main() -> int:
    parser = argparse.ArgumentParser(description="Drive every door by the real peer.")
    parser.add_argument("doors", nargs="*", metavar="DOOR", help=f"of {', '.join(DOORS)}")
    parser.add_argument("--no-newcomer", action="store_true", help="do not run the pages")
    parser.add_argument("--only-newcomer", action="store_true", help="run nothing but the pages")
    parser.add_argument("--out", type=Path, help="write the figures into this page")
    options = parser.parse_args()
    if unknown := set(options.doors) - set(DOORS):
        parser.error(f"no door is called {', '.join(sorted(unknown))}: {', '.join(DOORS)}")
    failed = []
    for door in options.doors or DOORS:
        print(f"== {door}", flush=True)
        report, steps, started = Report(door), [], time.monotonic()
        try:
            if not options.only_newcomer:
                with tempfile.TemporaryDirectory(prefix=f"equipoise-{door}-") as folder:
                    importlib.import_module(f"{door}_door").drive(Path(folder), report)
            page = PAGES / f"{door}.md"
            if not options.no_newcomer and page.exists():
                steps = newcomer(page)
                for step in steps:
                    print(f"  {step.seconds:6.1f} s  {step.commands.strip().splitlines()[0]}")
        except Exception:
            traceback.print_exc()
            failed.append(door)
            continue
        print(f"  {time.monotonic() - started:.0f} s in all", flush=True)
        if options.out is not None:
            _write(options.out, door, _section(report, steps))
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


_HEAD = """# The doors, measured

Written by `.venv/bin/python tests/doors/run.py --out docs/doors/measured.md`: each door driven by
the real product on loopback, then its page run command by command as a newcomer would, in a new
folder with a clone of this repository. Seconds include downloads.
"""


def _write(page: Path, door: str, section: str) -> None:
    """Put the section of a door into a page, in place of an older one; others stay."""
    text = page.read_text(encoding="utf-8") if page.exists() else _HEAD
    head, *parts = text.split("\n## ")
    sections = {part.split("\n", 1)[0]: part.rstrip("\n") for part in parts}
    sections[door] = f"{door}\n\n{section}"
    body = "".join(f"\n\n## {sections[name]}" for name in sorted(sections))
    page.write_text(head.rstrip("\n") + body + "\n", encoding="utf-8")


def _section(report: Report, steps: list[Step]) -> str:
    lines = [report.peer, "", "| check | figure |", "|---|---|"] if report.rows else []
    lines += [f"| {check} | {figure} |" for check, figure in report.rows]
    if steps:
        total = sum(step.seconds for step in steps)
        lines += ["", f"The page as a newcomer runs it, {total:.0f} s:", "", "| s | commands |"]
        lines += ["|---|---|"]
        for step in steps:
            first = step.commands.strip().splitlines()[0].replace("|", "\\|")
            lines.append(f"| {step.seconds:.1f} | `{first}` |")
    return "\n".join(lines).strip("\n")


if __name__ == "__main__":
    sys.exit(main())
