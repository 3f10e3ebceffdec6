"""Pages keep their word: every test, page and picture they point to exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

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
    missing += [page for page in named if not (ROOT / page).exists()]
    assert not missing


def test_every_promise_names_a_test() -> None:
    sections = (ROOT / "docs/guarantees.md").read_text().split("\n## ")[2:-1]
    assert len(sections) == 7
    for section in sections:
        assert "`tests/" in section, section.splitlines()[0]
