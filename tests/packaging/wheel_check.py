"""Build the wheel, compare it with the tree, and run it from a fresh environment.

An editable install finds everything in the tree; only a wheel shows that a sub-package or a
data file was left out. This needs a package index, so `make wheel-check` runs it, not pytest.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("agent", "policies", "store", "replay")
ITSELF = "equipoise/replay/package/"
"""The folder of the tree whose files are the package `equipoise` itself."""
COMMANDS = (
    ["bin/equipoise", "--help"],
    ["bin/equipoise", "benchmarks"],
    ["bin/python", "-m", "equipoise", "--version"],
    ["bin/python", "-c", "import equipoise; assert equipoise.__version__"],
)


def copy_sources(to: Path) -> Path:
    """Copy what the build reads, so that an old build/ folder cannot leak into the wheel."""
    sources = to / "sources"
    sources.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    for folder in FOLDERS:
        skip = shutil.ignore_patterns("__pycache__", ".*")
        shutil.copytree(ROOT / folder, sources / folder, ignore=skip)
    return sources


def build_wheel(sources: Path, to: Path) -> Path:
    """Build the wheel of `sources` and return its path."""
    out = to / "dist"
    run(sys.executable, "-m", "build", "--wheel", "--outdir", str(out), str(sources), cwd=to)
    (wheel,) = out.glob("*.whl")
    return wheel


def differences(sources: Path, wheel: Path) -> list[str]:
    """Name the files that only the tree or only the wheel has."""
    in_tree = {
        f"equipoise/{path.relative_to(sources).as_posix()}".replace(ITSELF, "equipoise/")
        for folder in FOLDERS
        for path in (sources / folder).rglob("*")
        if path.is_file()
    }
    with ZipFile(wheel) as archive:
        in_wheel = {name for name in archive.namelist() if ".dist-info/" not in name}
    return [f"only in the tree: {name}" for name in sorted(in_tree - in_wheel)] + [
        f"only in the wheel: {name}" for name in sorted(in_wheel - in_tree)
    ]


def try_commands(wheel: Path, work: Path) -> None:
    """Install the wheel alone and run its command from an empty folder."""
    environment = work / "environment"
    venv.create(environment, with_pip=True)
    install = [str(environment / "bin/python"), "-m", "pip", "install", "--quiet"]
    run(*install, "--disable-pip-version-check", "-c", str(ROOT / "constraints.txt"), str(wheel))
    empty = work / "empty"
    empty.mkdir()
    for command, *arguments in COMMANDS:
        run(str(environment / command), *arguments, cwd=empty)
    left = [path.name for path in empty.iterdir()]
    if left:
        raise SystemExit(f"the commands left files in the working folder: {left}")


def run(*command: str, cwd: Path | None = None) -> None:
    """Run a command quietly; where it fails, show what it printed and stop."""
    done = subprocess.run(
        command,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed ({done.returncode}):\n{done.stdout}")


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="equipoise wheel ") as folder:
        work = Path(folder)
        sources = copy_sources(work)
        wheel = build_wheel(sources, work)
        different = differences(sources, wheel)
        if different:
            raise SystemExit("the wheel and the tree differ:\n" + "\n".join(different))
        try_commands(wheel, work)
        print(f"{wheel.name}: same files as the tree; its command runs from an empty folder")


if __name__ == "__main__":
    main()
