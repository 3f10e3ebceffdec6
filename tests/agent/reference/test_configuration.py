"""The page on settings is what the program reads, and every example on it is accepted."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from equipoise.agent.config.file import file_from_dict
from equipoise.agent.config.reload import reload_plan
from equipoise.agent.reference.configuration import BASE, EXAMPLES, base_with, page, tables

PAGE = Path(__file__).resolve().parents[3] / "docs/reference/configuration.md"
TABLES = {table.heading: table for table in tables()}


def test_the_page_is_written_from_the_structs() -> None:
    assert PAGE.read_text() == page(), "write it anew: make reference"


def test_every_key_has_a_meaning_and_stands_in_an_example() -> None:
    assert TABLES.keys() == EXAMPLES.keys()
    assert sum(len(table.fields) for table in TABLES.values()) > 120
    for heading, table in TABLES.items():
        for field in table.fields:
            assert field.meaning, f"{heading} {field.name}: the docstring does not say what it is"
            assert field.name in _keys(EXAMPLES[heading]), f"{heading} {field.name}: no example"


def _keys(text: str) -> set[str]:
    return set(re.findall(r"(?:^|[{,]\s*)(\w+) = ", text, re.MULTILINE)) | set(
        re.findall(r"^\[\[?(?:\w+\.)*(\w+)\]", text, re.MULTILINE)
    )


@pytest.mark.parametrize("heading", EXAMPLES)
def test_every_example_is_accepted_as_it_stands_on_the_page(heading: str) -> None:
    text = PAGE.read_text()
    assert EXAMPLES[heading].strip() in text
    given = base_with(EXAMPLES[heading])
    file = file_from_dict(given)
    if heading.startswith("["):
        # What it says is read, and not a default: without the example the file is another.
        first = heading.strip("[]").partition(".")[0]
        if first not in ("features", "models", "reward", "capacity"):
            assert file != file_from_dict(tomllib.loads(BASE)), heading
    for table, entry in tomllib.loads(EXAMPLES[heading]).items():
        assert given[table] == entry or table == "features"


@pytest.mark.parametrize(
    ("heading", "key", "change", "expected"),
    [
        ("[[models]]", "name", {"models": [{"name": "huge"}, {"name": "small"}]}, "refused"),
        ("[[models]]", "price", {"models": [{"name": "large"}, {"name": "small"}]}, "applied"),
        ("[reward]", "window", {"reward": {"window": 60}}, "a new era"),
        ("[policy]", "rate", {"policy": {"rate": 0.2}}, "a new era"),
        ("[policy]", "epsilon", {"policy": {"epsilon": 0.2}}, "applied"),
        ("[units]", "ttl", {"units": {"ttl": 60}}, "refused"),
        ("[budget]", "money", {"budget": {"money": 5.0}}, "applied"),
        ("[service]", "mode", {"service": {"mode": "observe"}}, "applied"),
        ("[service]", "port", {"service": {"port": 1}}, "at the next start"),
        ("[service.limits]", "rows", {"service": {"limits": {"rows": 5}}}, "at the next start"),
        ("[certify]", "lifetime", {"certify": {"lifetime": True}}, "a new era"),
        ("[capacity]", "requests_per_second", {"capacity": {"requests_per_second": 5}}, "applied"),
    ],
)
def test_what_the_page_says_of_a_change_is_what_a_reload_does(
    heading: str, key: str, change: dict[str, Any], expected: str
) -> None:
    old = tomllib.loads(BASE)
    effect = reload_plan(file_from_dict(old), file_from_dict({**old, **change})).effect
    words = {"restart": "at the next start", "era": "a new era"}
    assert words.get(effect, effect) == expected
    section = PAGE.read_text().partition(f"\n## `{heading}`\n")[2].partition("\n## ")[0]
    (line,) = (line for line in section.splitlines() if line.startswith(f"- **`{key}`**"))
    assert line.endswith(f"; a change: {expected}.")
