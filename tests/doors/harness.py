"""What the doors share: environments of peers, a report of what was measured, runs of the pages.

A peer lives in an environment of its own under build/doors, so that its pins cannot touch ours.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PEERS = Path(__file__).resolve().parent / "peers"
BUILD = ROOT / "build" / "doors"
INSTALL_SECONDS = 900.0
NEWCOMER_SECONDS = 600.0
_BLOCK = re.compile(r"^```(sh|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


def python_with(name: str, *requirements: str) -> Path:
    """The interpreter of an environment with these requirements, made once and kept.

    requirements: pinned, NAME==VERSION.
    """
    folder = BUILD / name
    stamp, wanted = folder / ".requirements", "\n".join(sorted(requirements))
    python = folder / "bin" / "python"
    if not stamp.exists() or stamp.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, *requirements], check=True, timeout=INSTALL_SECONDS)
        stamp.write_text(wanted)
    return python


def node_with(name: str, *packages: str) -> Path:
    """A folder whose node_modules holds these packages, NAME@VERSION, made once and kept."""
    folder = BUILD / name
    stamp, wanted = folder / ".packages", "\n".join(sorted(packages))
    if not stamp.exists() or stamp.read_text() != wanted:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text('{"private": true, "type": "module"}')
        install = ["npm", "install", "--silent", "--no-audit", "--no-fund", *packages]
        subprocess.run(install, cwd=folder, check=True, timeout=INSTALL_SECONDS)
        stamp.write_text(wanted)
    return folder


def debian_with(name: str, *packages: str) -> Path:
    """A folder that holds the files of these Debian packages, NAME=VERSION, unpacked once and kept.
    Nothing is installed, and what they depend on must be there."""
    folder = BUILD / name
    stamp, wanted = folder / ".packages", "\n".join(sorted(packages))
    if not stamp.exists() or stamp.read_text() != wanted:
        folder.mkdir(parents=True, exist_ok=True)
        get = ["apt-get", "download", "--quiet", *packages]
        subprocess.run(get, cwd=folder, check=True, timeout=INSTALL_SECONDS)
        for archive in folder.glob("*.deb"):
            subprocess.run(["dpkg", "-x", archive, folder], check=True)
        stamp.write_text(wanted)
    return folder


@dataclass
class Report:
    """What one door has shown. peer: products and versions that were driven."""

    door: str
    peer: str = ""
    rows: list[tuple[str, str]] = field(default_factory=list)

    def add(self, check: str, figure: str) -> None:
        """A check that held, and what was measured."""
        self.rows.append((check, figure))
        print(f"  {check}: {figure}", flush=True)


@dataclass(frozen=True)
class Step:
    """A block of commands of a page, as it ran."""

    commands: str
    seconds: float
    output: str


def newcomer(page: Path, environment: Mapping[str, str] | None = None) -> list[Step]:
    """Run the `sh` blocks of a page in order, as somebody who has nothing but the page would.

    They run in one shell in a new folder, where `equipoise/` is a clone of this repository. A
    `text` block is what the commands before it must print, all numbers aside. Raises AssertionError
    where a command fails, prints something else, or all take longer than NEWCOMER_SECONDS.
    """
    blocks = _BLOCK.findall(page.read_text(encoding="utf-8"))
    steps: list[Step] = []
    with tempfile.TemporaryDirectory(prefix="equipoise-door-") as name:
        folder = Path(name)
        clone = [
            "git",
            "clone",
            "--quiet",
            "--depth",
            "1",
            ROOT.as_uri(),
            str(folder / "equipoise"),
        ]
        subprocess.run(clone, check=True)
        script = "\n".join(_marked(text) for kind, text in blocks if kind == "sh")
        with open(folder / "printed", "w+b") as printed:
            started = time.monotonic()
            shell = subprocess.Popen(
                ["bash", "-e", "-c", script],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **(environment or {})},
            )
            try:
                code = shell.wait(NEWCOMER_SECONDS)
            finally:
                # What the page left running in the background belongs to the shell's session.
                with suppress(ProcessLookupError):
                    os.killpg(shell.pid, signal.SIGTERM)
            printed.seek(0)
            text = printed.read().decode(errors="replace")
        assert code == 0, f"{page.name}: exit code {code}\n{text[-3000:]}"
    shell_blocks = [block for kind, block in blocks if kind == "sh"]
    # Two marks a block: what stands behind the first is what it printed.
    marked = [part.partition("\n") for part in text.split(_MARK)[1:]]
    for commands, first, last in zip(shell_blocks, marked[::2], marked[1::2], strict=True):
        steps.append(Step(commands, float(last[0]) - float(first[0]), first[2]))
    assert time.monotonic() - started < NEWCOMER_SECONDS
    at = -1
    for kind, block in blocks:
        if kind == "sh":
            at += 1
        else:
            wanted, got = _NUMBER.sub("#", block.strip()), _NUMBER.sub("#", steps[at].output)
            assert wanted in got, (
                f"{page.name} promises\n{block}\nbut it printed\n{steps[at].output}"
            )
    return steps


_MARK = "\x1e"


def _marked(commands: str) -> str:
    """A block between two marks with the time, that split what the shell prints."""
    mark = f"printf '{_MARK}%s\\n' \"$(date +%s.%N)\""
    return f"{mark}\n{commands}{mark}"


def json_lines(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
