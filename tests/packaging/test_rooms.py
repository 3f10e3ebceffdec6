"""The layout: rooms of a bearable size, no import circle, tests named after what they test.

Which room may import which is the import contract in pyproject.toml (`make lint`).
"""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("agent", "policies", "store", "replay")
MOST_FILES = 330
MOST_IN_AGENT = 9
ACROSS = {"battery", "degenerate", "truth"}
"""Tests in a room that hold for everything in it."""
WRITING = {"append", "put", "freeze", "checkpoint", "keep_base", "trim", "remove_rules", "open"}


def _sources() -> dict[str, Path]:
    """Module names without `equipoise.`, with their files."""
    names = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = list(path.relative_to(ROOT).with_suffix("").parts)
            names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def _imports(text: str, modules: set[str]) -> set[str]:
    """Modules of ours that a source imports anywhere in it, also for its types alone."""
    imported = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module:
            head = node.module.removeprefix("equipoise.")
            full = {f"{head}.{alias.name}" for alias in node.names}
            imported |= (full & modules) or ({head} & modules)
        elif isinstance(node, ast.Import):
            imported |= {alias.name.removeprefix("equipoise.") for alias in node.names} & modules
    return imported


def _circle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of one import circle, [] where there is none."""
    state: dict[str, int] = {}

    def visit(name: str, path: list[str]) -> list[str]:
        state[name] = 1
        for other in sorted(graph[name]):
            if state.get(other) == 1:
                return [*path[path.index(other) :], other] if other in path else [other]
            if other not in state:
                found = visit(other, [*path, other])
                if found:
                    return found
        state[name] = 2
        return []

    for name in sorted(graph):
        if name not in state:
            circle = visit(name, [name])
            if circle:
                return circle
    return []


def test_a_circle_would_be_noticed() -> None:
    graph = defaultdict(set, {"a": {"b"}, "b": {"c"}, "c": {"a"}})
    assert _circle(graph) == ["a", "b", "c", "a"]
    assert _circle(defaultdict(set, {"a": {"b", "c"}, "b": {"c"}, "c": set()})) == []


def test_no_module_is_in_an_import_circle() -> None:
    sources = _sources()
    graph = {
        name: _imports(path.read_text(), set(sources)) - {name} for name, path in sources.items()
    }
    assert sum(map(len, graph.values())) > 1000
    assert _circle(graph) == []


def test_rooms_stay_of_a_size_to_be_found_in() -> None:
    assert len(_sources()) <= MOST_FILES
    assert len(list((ROOT / "agent").glob("*.py"))) <= MOST_IN_AGENT


def test_answers_write_nothing() -> None:
    calls = [
        (path.name, node.func.attr)
        for path in (ROOT / "agent" / "answers").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in WRITING
        and "store" in ast.unparse(node.func.value)
    ]
    assert calls == []


def test_a_test_is_named_after_what_it_tests() -> None:
    """tests/ROOM/test_NAME.py or test_NAME_ASPECT.py, for ROOM/NAME.py or the room ROOM/NAME/.

    tests/service is agent/service: it runs the real daemon.
    """
    strays = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        room = path.relative_to(ROOT / "tests").parent
        if not room.parts or room.parts[0] not in {*PACKAGES, "service"}:
            continue
        home = ROOT / ("agent" if room.parts[0] == "service" else ".") / room
        words = path.stem.removeprefix("test_").split("_")
        names = {"_".join(words[: count + 1]) for count in range(len(words))}
        here = {each.stem for each in home.glob("*.py")} | {
            each.name for each in home.iterdir() if each.is_dir()
        }
        if not (names & here or words[0] in ACROSS):
            strays.append(str(path.relative_to(ROOT)))
    assert strays == []
