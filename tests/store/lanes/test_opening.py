from __future__ import annotations

from pathlib import Path

import pytest

from equipoise.store.lanes.contract import HubError
from equipoise.store.lanes.opening import hub_path, open_hub
from equipoise.store.lanes.postgres import PostgresHub
from equipoise.store.lanes.sqlite import SqliteHub


def test_a_store_in_a_file_has_its_hub_beside_it(tmp_path: Path) -> None:
    with open_hub(tmp_path / "chat.db") as hub:
        assert isinstance(hub, SqliteHub)
        assert hub.path == hub_path(tmp_path / "chat.db") == tmp_path / "chat.db.lanes"
        assert hub.path.exists()


def test_a_store_in_a_database_has_its_hub_in_its_schema(postgres_url: str) -> None:
    with open_hub(postgres_url) as hub:
        assert isinstance(hub, PostgresHub)
        assert f"schema={hub.schema}" in postgres_url
    with open_hub(postgres_url.replace("postgresql://", "postgres://")) as hub:
        assert isinstance(hub, PostgresHub)


def test_without_psycopg_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "equipoise.store.lanes.postgres", None)
    with pytest.raises(HubError, match=r"install equipoise\[postgres\]"):
        open_hub("postgresql://host/db")
    open_hub(tmp_path / "chat.db").close()
