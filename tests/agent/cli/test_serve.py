"""`serve --check` beside a store that is there: what the next start would do or refuse."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from commands import run_command

from equipoise.agent.agent import Agent
from equipoise.agent.config.file import load_file
from equipoise.agent.config.service import ServiceSettings
from equipoise.agent.errors import AgentError
from equipoise.agent.experiment import Experiment
from equipoise.agent.service.roles import _elected, _look_first
from equipoise.agent.service.run import check_only
from equipoise.agent.service.telemetry import Log
from equipoise.store.lanes import HubRefusedError, Publication
from equipoise.store.lanes.opening import open_hub
from equipoise.store.opening import exists
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


def check_url(path: Path, url: str, *options: str) -> tuple[int, str]:
    path.write_text(CONFIG)
    done = run_command("serve", "--config", path, "--store", url, *options, "--check")
    return done.returncode, done.stdout + done.stderr


def test_what_is_found_at_a_database_is_said(path: Path, postgres_url: str) -> None:
    code, text = check_url(path, postgres_url, "--workers", "3")
    assert code == 0, text
    assert "connected as postgres, which may create tables" in text
    assert "no experiment is there yet" in text
    assert "3 deciders of up to" in text
    assert "until" not in text.partition("GB per day")[2].partition("\n")[0]
    assert not exists(postgres_url)
    wrong = postgres_url.replace("//postgres@", "//nobody:hidden@")
    code, text = check_url(path, wrong)
    assert code == 2
    assert "refused: database postgresql://nobody:***@" in text
    assert "does not exist" in text
    assert "hidden" not in text


@pytest.mark.parametrize("options", [["--role", "decider"], ["--role", "authority"], []])
def test_a_start_with_a_refused_login_ends(
    path: Path, postgres_url: str, options: list[str]
) -> None:
    path.write_text(CONFIG)
    key = path.with_suffix(".key")
    key.write_bytes(bytes(32))
    wrong = postgres_url.replace("//postgres@", "//nobody:hidden@")
    order = ["--config", path, "--store", wrong, "--key", key, "--port", "0", *options]
    done = run_command("serve", *order)
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if line.startswith("equipoise: ")]
    assert len(said) == 1
    assert 'role "nobody" does not exist' in said[0]
    assert "hidden" not in done.stdout + done.stderr
    assert "standing by" not in done.stdout


def test_who_may_not_enter_ends_and_who_finds_nobody_goes_on(
    path: Path, postgres_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    key = path.with_suffix(".key")
    key.write_bytes(bytes(32))
    with Experiment.open(postgres_url, load_file(path).experiment, key=key) as chat:
        era = chat.agent.store.eras()[-1]
    with open_hub(postgres_url) as hub:
        term = hub.elect("authority", 30.0)
        assert term is not None
        rule = Publication(version=1, at=0.0, rule_id="r", era=era.era, documents=("era:0",))
        hub.publish(term, rule, {f"era:{era.era}": msgspec.json.encode(era).decode()})
        hub.resign(term)
    log = Log()
    settings = ServiceSettings(store=postgres_url)
    for decider in (True, False):
        _look_first(settings, bytes(32), log, decider=decider)
        with pytest.raises(AgentError, match="key is that of another experiment"):
            _look_first(settings, bytes([1] * 32), log, decider=decider)
        nobody = ServiceSettings(store=postgres_url.replace("//postgres@", "//nobody@"))
        with pytest.raises(HubRefusedError, match="does not exist"):
            _look_first(nobody, bytes(32), log, decider=decider)
    capsys.readouterr()
    away = ServiceSettings(store="postgresql://x@127.0.0.1:1/y")
    _look_first(away, bytes(32), Log(), decider=True)
    assert '"event":"hub-away"' in capsys.readouterr().err


def test_an_authority_without_its_database_does_not_stand_by(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class EnoughError(Exception):
        pass

    def enough(seconds: float) -> None:
        raise EnoughError

    monkeypatch.setattr("equipoise.agent.service.roles.time.sleep", enough)
    away = ServiceSettings(store="postgresql://x@127.0.0.1:1/y")
    with pytest.raises(EnoughError), _elected("authority", away):
        pass
    said = capsys.readouterr()
    assert said.out == "the hub is away\n"
    assert all(json.loads(line)["event"] == "hub-away" for line in said.err.splitlines())
    store = ServiceSettings(store=str(path.parent / "log.db"))
    with open_hub(store.store) as hub:
        hub.elect("another", 30.0)
        with pytest.raises(EnoughError), _elected("authority", store):
            pass
    assert capsys.readouterr().out == "standing by\n"
