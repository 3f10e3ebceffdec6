"""`serve --check` beside a store that is there: what the next start would do or refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from equipoise.agent.agent import Agent
from equipoise.agent.config.file import load_file
from equipoise.agent.errors import AgentError
from equipoise.agent.service.run import check_only
from equipoise.store.sqlite import SqliteStore

CONFIG = """
name = "chat"
models = [{name = "large"}, {name = "small"}]
[features]
context = [{type = "number", name = "words", low = 0, scale = 100}]
"""
SEGMENT = """
[[budget.segments]]
name = "long"
column = "words"
low = 0.5
max_requests = 20
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "chat.toml"
    path.write_text(CONFIG)
    file = load_file(path)
    with SqliteStore(tmp_path / "log.db") as store:
        Agent(file.experiment, store, bytes(32))
    return path


def checked(path: Path, more: str) -> dict[str, object]:
    path.write_text(CONFIG + more)
    return check_only(path, {"store": str(path.parent / "log.db")})


def test_what_the_start_would_refuse_is_refused(path: Path):
    with pytest.raises(AgentError, match=r"budget\.segments .*start a new store"):
        checked(path, SEGMENT)
    assert "compares large, small" in str(checked(path, "")["sentence"])


def test_what_begins_an_era_is_said(path: Path):
    facts = checked(path, "[policy]\nrate = 0.2\n")
    assert "begins a new era: policy.rate" in str(facts["sentence"])
    assert len(facts["new_era"]) == 1
    assert checked(path, "[policy]\nepsilon = 0.02\n")["new_era"] == []


def test_what_retention_means_for_the_disk_is_said(path: Path):
    more = '[service.retention]\ndays = 90\narchive = "old-rows"\n'
    assert "rows older than 90 days go to old-rows" in str(checked(path, more)["sentence"])


@pytest.mark.forges
def test_a_file_that_is_no_store_is_not_the_configuration_s_fault(path: Path):
    (path.parent / "log.db").write_bytes(b"something else")
    assert checked(path, "")["new_era"] == []


def test_what_a_window_or_none_means_is_said(path: Path):
    """The longest wait of a certified row: its window, and its unit's life before it."""
    facts = checked(path, "")
    assert facts["longest_wait_seconds"] is None
    assert "no reward.window: a reward that never comes is waited for" in str(facts["sentence"])
    path.write_text(CONFIG + "[reward]\nwindow = 3600\n[units]\nttl = 1800\n")
    facts = check_only(path, {"store": str(path.parent / "new.db")})
    assert facts["longest_wait_seconds"] == 5400.0
    assert "certified 5400 s after they were decided at the latest" in str(facts["sentence"])
