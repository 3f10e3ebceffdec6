"""What the repository itself must look like, checked on the files git would commit."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("agent", "policies", "store", "replay")
MOST_LINES = 600
MOST_BYTES = 1_000_000

MACHINE_PATH = re.compile(
    r"(?<![\w.:/~}-])/(?:home|root|Users|work|workspace|opt|mnt|tmp)/\w|file://|[A-Z]:\\Users"
)
REGISTRY = re.compile(
    r"pypi\.org|pythonhosted\.org|anaconda\.org|npmjs\.org|(?:ghcr|docker|quay)\.io"
    r"|--(?:extra-)?index-url|--find-links|--trusted-host"
)
DATA = re.compile(
    r"\.(?:csv|tsv|jsonl|ndjson|parquet|feather|arrow|np[yz]|pkl|pickle|joblib"
    r"|db|sqlite3?|gz|zip|zst|tar|whl|key)$"
)


def _files() -> list[Path]:
    """Tracked files, and new ones that no ignore rule excludes."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git working copy, so there is no list of the project's files")
    paths = {ROOT / name for name in listed.stdout.split("\0") if name}
    return sorted(path for path in paths if path.is_file() and not path.is_symlink())


def _texts() -> list[tuple[str, str]]:
    """(name, content) of every text file but this one, which spells out what it forbids."""
    found = []
    for path in _files():
        content = path.read_bytes()
        if path != Path(__file__).resolve() and b"\0" not in content:
            found.append((path.relative_to(ROOT).as_posix(), content.decode("utf-8")))
    return found


def _matches(pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{name}:{number}: {line.strip()}"
        for name, text in _texts()
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]


def _project() -> dict[str, object]:
    table: dict[str, object] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


def _constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines)
    return {canonicalize_name(name): version for name, version in pairs}


@pytest.mark.parametrize(
    "line", ["open('/home/someone/x')", "see /tmp/notes", "see file:///x", r"C:\Users\x"]
)
def test_a_machine_path_would_be_noticed(line: str) -> None:
    assert MACHINE_PATH.search(line)


@pytest.mark.parametrize("line", ["GET /v1/decide", "~/work/equipoise", "a.test/home/x", "/etc/x"])
def test_other_paths_are_fine(line: str) -> None:
    assert not MACHINE_PATH.search(line)


def test_no_path_of_one_machine() -> None:
    here = re.compile(re.escape(str(ROOT)) + r"(?!\w)")
    assert _matches(MACHINE_PATH) + _matches(here) == []


def test_no_registry_is_named() -> None:
    assert _matches(REGISTRY) == []


def test_no_data_is_committed() -> None:
    assert [path.name for path in _files() if DATA.search(path.name)] == []
    assert [path.name for path in _files() if path.stat().st_size > MOST_BYTES] == []


def test_python_files_stay_readable() -> None:
    lengths = {name: text.count("\n") for name, text in _texts() if name.endswith(".py")}
    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES} == {}


def test_every_folder_with_code_is_a_package() -> None:
    sources = [path.relative_to(ROOT) for path in _files() if path.suffix == ".py"]
    folders = {
        parent
        for path in sources
        if path.parts[0] in PACKAGES
        for parent in path.parents
        if parent.parts
    }
    assert {folder.parts[0] for folder in folders} == set(PACKAGES)
    missing = [folder for folder in folders if not (ROOT / folder / "__init__.py").is_file()]
    assert missing == [], "setup.py would leave these out of the wheel"


def test_every_file_of_a_package_is_in_the_wheel() -> None:
    text = (ROOT / "setup.py").read_text()
    for folder in PACKAGES:
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix not in (".py", ".pyc", ""):
                known = path.name == "py.typed" or f'"**/*{path.suffix}"' in text
                assert known, f"setup.py: package_data lacks {path.relative_to(ROOT)}"


def test_every_package_is_typed() -> None:
    assert [name for name in PACKAGES if not (ROOT / name / "py.typed").is_file()] == []


def test_tests_are_no_package() -> None:
    """A package under tests/ could shadow one of ours on the import path."""
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_the_changelog_begins_with_the_version() -> None:
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == _project()["version"]


def test_constraints_are_names_and_versions() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
    assert len(_constraints()) == len(lines), "a name is constrained twice"


def test_every_dependency_is_constrained_to_a_version_it_allows() -> None:
    project, pinned = _project(), _constraints()
    extras = project["optional-dependencies"]
    assert isinstance(extras, dict)
    assert isinstance(project["dependencies"], list)
    requirements = [Requirement(text) for text in sum(extras.values(), project["dependencies"])]
    wrong = [
        str(need)
        for need in requirements
        if not need.specifier.contains(pinned.get(canonicalize_name(need.name), "0.dev0"))
    ]
    assert wrong == []
