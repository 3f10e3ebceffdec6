"""Pages keep their word: every test, page and picture they point to exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from equipoise.agent.estimators import FAMILIES
from equipoise.agent.monitors import DEFAULT_ACTIONS

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_a_page_points_to_exists(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    missing = []
    for file, name in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?", text):
        path = ROOT / file
        if not path.exists() or (name and f"def {name}(" not in path.read_text()):
            missing.append(f"{file}::{name}")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)\)", text) if "://" not in link]
    missing += [link for link in links if not (page.parent / link).exists()]
    named = re.findall(r"`(docs/[\w./-]+\.\w+)`", text)
    sources = re.findall(r"`((?:agent|policies|store|replay)/[\w/]*(?:\.py)?)`", text)
    missing += [name for name in (*named, *sources) if not (ROOT / name).exists()]
    assert not missing


def test_every_promise_names_a_test() -> None:
    sections = (ROOT / "docs/guarantees.md").read_text().split("\n## ")[2:-1]
    assert len(sections) == 7
    for section in sections:
        assert "`tests/" in section, section.splitlines()[0]


def test_the_index_has_every_page() -> None:
    index = (ROOT / "docs/README.md").read_text()
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert {name for name in pages if f"]({name})" not in index} == set()


def test_decisions_are_numbered_dated_and_listed() -> None:
    folder = ROOT / "docs/decisions"
    files = sorted(path for path in folder.glob("*.md") if path.name != "README.md")
    assert [int(path.name[:3]) for path in files] == list(range(1, len(files) + 1))
    form = re.compile(
        r"# (\d{3})\. ([^\n]+)\n\n\d{4}-\d\d-\d\d\n\n"
        r"\*\*Context\.\*\* .+\n\n\*\*Choice\.\*\* .+\n\n\*\*Price\.\*\* .+\n",
        flags=re.DOTALL,
    )
    expected = []
    for path in files:
        entry = form.fullmatch(path.read_text())
        assert entry is not None, path.name
        expected.append(f"- [{path.name[:3]}]({path.name}) {entry[2]}")
        assert path.name.startswith(f"{entry[1]}-")
    lines = (folder / "README.md").read_text().splitlines()
    assert [line for line in lines if line.startswith("- [")] == expected


def test_every_family_and_every_check_has_its_line() -> None:
    families = re.findall(
        r"^\| `([\w-]+)` \| [A-Z]", (ROOT / "docs/estimators.md").read_text(), re.M
    )
    assert sorted(families) == sorted(FAMILIES)
    page = (ROOT / "docs/monitors.md").read_text()
    assert dict(re.findall(r"^\| `(\w+)` \| .+\? \| `([\w-]+)` \|$", page, re.M)) == DEFAULT_ACTIONS
