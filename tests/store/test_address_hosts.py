from __future__ import annotations

import psycopg
import pytest

from equipoise.store.address import parse_address, shown


@pytest.mark.parametrize(
    ("url", "known"),
    [
        ("postgresql:///db?host=/run/postgresql", {"dbname": "db", "host": "/run/postgresql"}),
        ("postgresql:///db", {"dbname": "db"}),
        ("postgresql://", {}),
        (
            "postgres://me:p%40ss@a:1,b:2/db?target_session_attrs=read-write",
            {
                "user": "me",
                "password": "p@ss",
                "host": "a,b",
                "port": "1,2",
                "dbname": "db",
                "target_session_attrs": "read-write",
            },
        ),
    ],
)
def test_the_driver_is_given_all_but_the_schema(url: str, known: dict[str, str]) -> None:
    for given in (url, f"{url}{'&' if '?' in url else '?'}schema=mine"):
        address = parse_address(given)
        assert psycopg.conninfo.conninfo_to_dict(address.url) == known
        assert address.schema == ("mine" if "mine" in given else "equipoise")
        assert "ss@" not in shown(given)
        assert shown(given).startswith(url.partition("//")[0] + "//")
