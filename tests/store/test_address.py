"""URLs of stores: what they name, and what messages show of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from equipoise.store.address import beside, files_of, is_url, parse_address, shown
from equipoise.store.errors import StoreError


@pytest.mark.parametrize("where", ["postgresql://h/d", "postgres://h/d", "POSTGRESQL://h/d"])
def test_urls_are_told_from_paths(where: str) -> None:
    assert is_url(where)


@pytest.mark.parametrize("where", ["equipoise.db", "./postgresql:/h/d", Path("a/b"), "http://h/d"])
def test_everything_else_is_a_path(where: str | Path) -> None:
    assert not is_url(where)


def test_the_schema_is_ours_and_the_rest_the_drivers() -> None:
    address = parse_address("postgresql://u:p@h:5433/d?sslmode=require&schema=chat&host=/run/pg")
    assert address.schema == "chat"
    assert address.url == "postgresql://u:p@h:5433/d?sslmode=require&host=/run/pg"
    assert parse_address("postgres://h/d").schema == "equipoise"


@pytest.mark.parametrize(
    "schema", ["", "Chat", "9lives", "a-b", "x" * 64, "pg_chat", "information_schema", "a;drop"]
)
def test_a_schema_with_another_name_is_refused(schema: str) -> None:
    with pytest.raises(StoreError, match="schema is"):
        parse_address(f"postgresql://h/d?schema={schema}")


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("postgresql://u:geheim@h/d?schema=a", "postgresql://u:***@h/d?schema=a"),
        ("postgresql://u@h/d", "postgresql://u@h/d"),
        ("postgresql://h/d?user=u&password=geheim", "postgresql://h/d?user=u&password=***"),
        ("postgresql://h/d?sslpassword=geheim", "postgresql://h/d?sslpassword=***"),
        ("postgresql://u:ge@heim@h/d", "postgresql://u:***@h/d"),
        ("a/b.db", "a/b.db"),
    ],
)
def test_no_password_is_ever_shown(where: str, said: str) -> None:
    assert shown(where) == said
    assert "heim" not in shown(where)


def test_files_beside_a_database_are_called_after_its_schema() -> None:
    assert beside("folder/chat.db", ".key") == Path("folder/chat.db.key")
    assert beside("postgresql://h/d?schema=chat", ".key") == Path("chat.key")
    assert files_of("postgresql://h/d") == Path("equipoise")
