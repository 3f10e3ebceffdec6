"""An experiment that moves between databases is the same experiment, or it has not moved."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
import pytest
from commands import run_command

from equipoise.agent.config import ExperimentConfig
from equipoise.agent.errors import AgentError
from equipoise.agent.experiment import Experiment
from equipoise.agent.lifecycle import stored_config
from equipoise.agent.maintenance.audit import audit
from equipoise.agent.maintenance.key_file import key_path, read_key
from equipoise.agent.maintenance.migrate import migrate
from equipoise.store.address import Where, beside, is_url, parse_address
from equipoise.store.errors import CorruptStoreError, StoreError, StoreInUseError
from equipoise.store.lanes import Publication, Spent
from equipoise.store.lanes.copying import copy_hub
from equipoise.store.lanes.opening import open_hub
from equipoise.store.opening import exists, open_store
from equipoise.store.sql import copying
from equipoise.store.sqlite import SqliteStore

CONFIG: dict[str, Any] = {
    "name": "chat",
    "models": [{"name": "large", "price": 0.02}, {"name": "small", "price": 0.002}],
    "reward": {"low": 0.0, "high": 1.0, "window": 3600.0},
    "features": {
        "context": [{"type": "number", "name": "words"}],
        "outputs": [{"type": "number", "name": "seconds"}],
    },
    "policy": {"assignment": "uniform", "rate": 0.5, "estimator": "ipw"},
}


def live(chat: Experiment, first: int, count: int) -> list[Any]:
    choices = []
    for number in range(first, first + count):
        choice = chat.decide(f"r{number}", routed="large", features={"words": number})
        chat.outcome(choice, outputs={"seconds": 2.0}, reward=0.5)
        choices.append((choice.model, choice.decision_id, choice.propensity))
    return choices


def make(where: Where, key: Path | None = None) -> None:
    """An experiment with everything that a store keeps."""
    with Experiment.open(where, CONFIG, clock=lambda: 1e9, key=key) as chat:
        live(chat, 0, 40)
        chat.refresh()
        chat.agent.checkpoint(1e9)
        store = chat.agent.store
        store.keep_base(20, b"a state", 1e9)
        usage = {"routed": "small", "features": {"words": 1.5}, "outputs": {"seconds": 1.0}}
        chat.ingest([{**usage, "reward": 0.25, "request_id": "old"}])
        replay = {"context_id": "c", "features": {"words": -0.0}, "outputs": {"seconds": -0.0}}
        chat.simulate([{**replay, "model": model} for model in ("large", "small")])
        live(chat, 40, 10)
    config = {**CONFIG, "models": [*CONFIG["models"], {"name": "tiny", "price": 0.001}]}
    with Experiment.open(where, config, clock=lambda: 1e9, key=key) as chat:
        live(chat, 50, 10)
        chat.refresh()


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "chat.db"
    make(path)
    return path


@pytest.fixture
def first(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a store in the working folder."""
    monkeypatch.chdir(tmp_path)
    for end in ("", ".key"):
        shutil.copy(f"{template}{end}", f"first.db{end}")
    return "first.db"


def content(where: Where) -> list[Any]:
    with open_store(where, read_only=True) as store:
        tables: dict[str, list[Any]] = {}
        for piece in store.pieces(store.next_seq):
            tables.setdefault(piece.table, []).extend(piece.rows)
        return sorted(tables.items())


def check_audit(where: Where, key: Path | None = None) -> dict[str, Any]:
    order = ["audit", where, "--json", *([] if key is None else ["--key", key])]
    result = run_command(*order)
    assert result.returncode == 0, result.stdout + result.stderr
    said: dict[str, Any] = json.loads(result.stdout)
    assert said["uniforms_redrawn"]
    assert said["chained_rows"] == said["rows"] > 100
    return said


def test_there_and_back_it_stays_the_same_and_goes_on_alike(
    tmp_path: Path, postgres_url: str, first: str
) -> None:
    places: list[Where] = [first, postgres_url, "second.db", "third.db"]
    before = content(places[0])
    for source, target in pairwise(places):
        facts = migrate(source, target)
        assert facts["key"] == str(key_path(target))
        assert read_key(target) == read_key(source)
        assert key_path(target).stat().st_mode & 0o777 == 0o600
        assert content(target) == before == content(source)
        with open_store(source, read_only=True) as one, open_store(target, read_only=True) as two:
            anchor = one.anchor(1.0)
            assert anchor == two.anchor(1.0)
            assert anchor.log is not None
            assert facts["digest"] == anchor.log.digest
            assert (facts["log_rows"], facts["decisions"]) == (one.next_seq, one.decisions)
            assert one.restore() == two.restore()
    said = [check_audit(place) for place in places]
    assert said[0] == said[1] == said[2] == said[3]
    lives = []
    for place in places[:3]:
        with Experiment.open(place, clock=lambda: 1e9) as chat:
            lives.append(live(chat, 60, 30))
            assert chat.decide("r3", routed="large", features={"words": 3.0}).decision_id == "d3"
    assert lives[0] == lives[1] == lives[2]
    assert len({model for model, *_ in lives[0]}) > 1
    assert content(places[0]) == content(places[1])
    assert sorted(each.name for each in tmp_path.iterdir() if each.name.startswith(".")) == []


def test_from_one_schema_to_another_with_keys_elsewhere(
    tmp_path: Path, new_postgres_url: Callable[[], str]
) -> None:
    source, target = new_postgres_url(), new_postgres_url()
    keys = tmp_path / "a", tmp_path / "b"
    make(source, keys[0])
    result = run_command("migrate", source, target, "--key", keys[0], "--to-key", keys[1])
    assert result.returncode == 0, result.stderr
    assert "as in postgresql://" in result.stdout
    assert keys[0].read_bytes() == keys[1].read_bytes()
    assert check_audit(source, keys[0]) == check_audit(target, keys[1])
    again = run_command("migrate", source, target, "--key", keys[0], "--to-key", keys[1])
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert "nothing is replaced" in again.stderr


@pytest.mark.parametrize("to_postgres", [True, False])
@pytest.mark.parametrize("moment", ["fill", "check_copy", "write_key"])
def test_what_is_interrupted_has_not_happened(
    tmp_path: Path,
    postgres_url: str,
    first: str,
    monkeypatch: Any,
    to_postgres: bool,
    moment: str,
) -> None:
    source, target = first, postgres_url if to_postgres else "second.db"
    before = content(source)

    def fails(*given: Any, **more: Any) -> Any:
        if moment == "fill":  # in the middle of it
            connection, pieces, insert = given[:3]
            insert(connection, next(pieces))
        raise KeyboardInterrupt

    module = "equipoise.agent.maintenance.migrate" if moment == "write_key" else None
    with monkeypatch.context() as broken:
        broken.setattr(f"{module or 'equipoise.store.moving'}.{moment}", fails)
        with pytest.raises(KeyboardInterrupt):
            migrate(source, target)
    assert not exists(target)
    assert not key_path(target).exists()
    assert content(source) == before
    assert [each.name for each in tmp_path.iterdir() if "migrate" in each.name] == []
    migrate(source, target)
    assert content(target) == before


def test_a_row_that_changes_on_its_way_is_noticed(
    first: str, postgres_url: str, monkeypatch: Any
) -> None:
    real = copying.pieces

    def forged(connection: Any, until: int) -> Any:
        for piece in real(connection, until):
            if piece.table == "outcomes":
                row = list(piece.rows[3])
                place = piece.columns.index("reward")
                row[place] = 0.75
                piece.rows[3] = tuple(row)
            yield piece

    monkeypatch.setattr(copying, "pieces", forged)
    for target in (postgres_url, "second.db"):
        with pytest.raises(CorruptStoreError, match="another digest"):
            migrate(first, target)
        assert not exists(target)


def test_a_target_that_holds_anything_is_refused_and_left_alone(
    first: str, new_postgres_url: Callable[[], str], monkeypatch: Any
) -> None:
    url = new_postgres_url()
    address = parse_address(url)
    with psycopg.connect(address.url, autocommit=True) as other:
        other.execute(f"CREATE SCHEMA {address.schema}")
        other.execute(f"CREATE TABLE {address.schema}.invoices (id int)")
    Path("second.db").write_bytes(b"")
    Path("third.db-wal").write_bytes(b"x")
    Path("fourth.db.key").write_bytes(bytes(32))
    for target, error in (
        (url, "holds invoices"),
        ("second.db", "second.db exists"),
        ("third.db", "third.db-wal exists"),
        ("fourth.db", "is not the key of this experiment"),
        ("nowhere/fifth.db", "does not exist"),
        ("first.db", "first.db exists"),
    ):
        with pytest.raises((StoreError, AgentError), match=error):
            migrate("first.db", target)
    assert not exists("third.db")
    # Whoever makes something there after the first look is not overrun either.
    monkeypatch.setattr("equipoise.agent.maintenance.migrate.check_target", lambda target: None)
    for target in (url, "second.db"):
        with pytest.raises(StoreError, match=r"holds invoices|second\.db exists"):
            migrate(first, target)
    assert Path("second.db").read_bytes() == b""
    with pytest.raises(StoreError, match="does not exist"):
        migrate("absent.db", "sixth.db")
    assert not exists("absent.db")


def test_while_somebody_writes_nothing_moves(tmp_path: Path, postgres_url: str) -> None:
    path = tmp_path / "first.db"
    with Experiment.open(path, CONFIG), pytest.raises(StoreInUseError):
        migrate(path, postgres_url)
    assert not exists(postgres_url)


def test_an_empty_schema_may_be_the_target(first: str, postgres_url: str) -> None:
    address = parse_address(postgres_url)
    with psycopg.connect(address.url, autocommit=True) as other:
        other.execute(f"CREATE SCHEMA {address.schema}")
    assert migrate(first, postgres_url, to_key="key")["deciders"] is False
    assert content(first) == content(postgres_url)


@pytest.mark.parametrize("to_postgres", [True, False])
def test_what_deciders_agreed_on_comes_along(
    first: str, postgres_url: str, monkeypatch: Any, to_postgres: bool
) -> None:
    source, target = (first, postgres_url) if to_postgres else (postgres_url, "second.db")
    if not to_postgres:
        migrate(first, source)
    with open_hub(source) as hub:
        term = hub.elect("authority", 30.0)
        assert term is not None
        rule = Publication(version=1, at=0.0, rule_id="r", era=0, documents=("config:0",))
        hub.publish(term, rule, {"config:0": "{}"})
        hub.resign(term)
        lease = hub.join("here", 30.0)
        with pytest.raises(AgentError, match=r"deciders hold lanes \(here\)"):
            migrate(source, target)
        assert not exists(target)
        hub.leave(lease, Spent())
    for moment in ("before", "after"):
        with monkeypatch.context() as broken:

            def fails(old: Any, new: Any, moment: str = moment) -> None:
                if moment == "after":
                    copy_hub(old, new)
                raise KeyboardInterrupt

            broken.setattr("equipoise.agent.maintenance.migrate.copy_hub", fails)
            with pytest.raises(KeyboardInterrupt):
                migrate(source, target)
        assert not exists(target)
    assert migrate(source, target)["deciders"] is True
    with open_hub(source) as old, open_hub(target) as new:
        assert new.newest() == old.newest()
        again = new.join("there", 30.0)
        assert (again.lane, again.token > lease.token) == (lease.lane + 1, True)
    assert is_url(target) or beside(target, ".lanes").exists()


def test_a_log_that_begins_later_begins_there_again(first: str, postgres_url: str) -> None:
    with SqliteStore(first) as store:
        store.truncation.trim(2e9, 2e9, None)
        assert store.truncation.begins == 20
    migrate("first.db", postgres_url)
    assert content("first.db") == content(postgres_url)
    for place in ("first.db", postgres_url):
        with open_store(place, read_only=True) as store:
            text = stored_config.load(store)
            assert text is not None
            found = audit(store, ExperimentConfig.from_json(text), read_key(place))
            assert (found.faults, found.begins) == ([], 20)
