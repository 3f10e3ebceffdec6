"""The full coverage study: `python tests/statistical/coverage_study.py [--runs 2000]
[--out docs/coverage.md] [--only NAME] [--keep FOLDER] [--tables]`.

Writes one page of tables. Every finished cell is kept as a small JSON file, named by the cell and
by a digest of the code it ran, so that a study that was stopped goes on where it was, and a cell
is run again once the code it depends on has changed. One core; half an hour or so.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import re
import time
import zlib
from pathlib import Path

import tables
from cells import cells

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LOOKED_AT = (ROOT / "agent" / "inference", HERE)
NOT_RUN = {
    "coverage_study.py",
    "crossing_study.py",
    "tables.py",
    "width_tables.py",
    "markdown_text.py",
    "monitors_study.py",
    "forecast_study.py",
    "live_experiments.py",
    "conftest.py",
}


def program(path):
    """What a file does: its syntax tree without docstrings, so that words run nothing again."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            body.pop(0)
    return ast.dump(tree).encode()


def digest(runs):
    """Of the code that makes the figures, and of the number of runs."""
    total = hashlib.sha256(str(runs).encode())
    for folder in LOOKED_AT:
        for path in sorted(folder.glob("*.py")):
            if path.name not in NOT_RUN and not path.name.startswith("test_"):
                total.update(program(path))
    return total.hexdigest()[:12]


def file_name(name):
    return re.sub(r"[^\w.-]+", "_", name) + f"-{zlib.crc32(name.encode()):08x}.json"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "coverage.md")
    parser.add_argument("--only", default="", help="cells whose name contains this")
    parser.add_argument("--tables", action="store_true", help="run nothing, write what there is")
    parser.add_argument("--keep", type=Path, default=ROOT / "runs" / "coverage")
    options = parser.parse_args(arguments)
    folder = options.keep / digest(options.runs)
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {n: f for n, f in cells(options.runs).items() if options.only in n}
    results, begun = {}, time.monotonic()
    for place, (name, function) in enumerate(wanted.items(), 1):
        path = folder / file_name(name)
        if path.exists():
            results[name] = json.loads(path.read_text())
        if path.exists() or options.tables:
            continue
        start = time.monotonic()
        results[name] = function(zlib.crc32(name.encode()))
        partial = path.with_suffix(".part")
        partial.write_text(json.dumps(results[name]))
        partial.replace(path)
        now = time.monotonic()
        print(
            f"[{place}/{len(wanted)}] {now - begun:6.0f} s  {now - start:5.1f} s  {name}",
            flush=True,
        )
    if options.only:
        print(json.dumps(results, indent=1))
        return
    options.out.write_text(tables.page(results, options.runs))
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
