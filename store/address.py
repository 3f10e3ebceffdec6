"""URLs of stores in PostgreSQL: `postgresql://host/database?schema=name`.

Everything but `schema` is what every PostgreSQL program takes: host, port, user, password, sslmode,
and so on, or their environment variables (PGHOST, PGPASSWORD, …) and password file.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias
from urllib.parse import SplitResult, parse_qsl, quote, urlencode, urlsplit

from equipoise.store.errors import StoreError

Where: TypeAlias = str | os.PathLike[str]
"""What names a store: a path, or a URL as a string."""
SCHEMES = ("postgresql", "postgres")
DEFAULT_SCHEMA = "equipoise"
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_SECRET = re.compile(r"password|passwd|secret|sslpassword", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a store is. url: for the driver; schema: the database schema, one an experiment."""

    url: str
    schema: str

    @property
    def shown(self) -> str:
        """The same for messages: without a password."""
        return shown(f"{self.url}{'&' if '?' in self.url else '?'}schema={self.schema}")


def is_url(where: object) -> bool:
    """Whether this names a PostgreSQL database rather than a file."""
    return isinstance(where, str) and where.partition("://")[0].lower() in SCHEMES


def parse_address(url: str) -> Address:
    """Raises StoreError where the URL names no schema that equipoise would make."""
    if not is_url(url):
        raise StoreError(f"{shown(url)!r} is no postgresql:// URL")
    try:
        parts = urlsplit(url)
        given = parse_qsl(parts.query, keep_blank_values=True)
    except ValueError as error:
        raise StoreError(f"{shown(url)}: it cannot be read as a URL") from error
    schemas = [value for name, value in given if name == "schema"]
    schema = schemas[-1] if schemas else DEFAULT_SCHEMA
    if not _NAME.fullmatch(schema) or schema.startswith("pg_") or schema == "information_schema":
        raise StoreError(
            f"{shown(url)}: schema is {schema!r}, expected 1 to 63 of a-z, 0-9 and _, "
            "no digit first, and not pg_…"
        )
    rest = urlencode([pair for pair in given if pair[0] != "schema"], quote_via=quote, safe="/")
    return Address(_joined(parts, parts.netloc, rest), schema)


def shown(where: object) -> str:
    """A path or URL for messages: *** for every password in it."""
    text = str(where)
    if not is_url(text):
        return text
    try:
        parts = urlsplit(text)
        given = parse_qsl(parts.query, keep_blank_values=True)
    except ValueError:
        return f"{text.partition('://')[0]}://…"
    user, at, host = parts.netloc.rpartition("@")
    name, colon, _ = user.partition(":")
    netloc = f"{name}:***@{host}" if colon else f"{name}{at}{host}"
    hidden = [(key, "***" if _SECRET.search(key) else value) for key, value in given]
    query = urlencode(hidden, quote_via=quote, safe="/*")
    return _joined(parts, netloc, query)


def _joined(parts: SplitResult, netloc: str, query: str) -> str:
    # urlunsplit leaves out the // of a URL without a host, which the driver would not know.
    return f"{parts.scheme}://{netloc}{parts.path}{'?' if query else ''}{query}"


def files_of(where: Where) -> Path:
    """The path whose name those of the files beside a store begin with: the path of its file; for a
    URL the name of its schema, in the working folder."""
    if is_url(where):
        return Path(parse_address(str(where)).schema)
    return Path(where)


def beside(where: Where, suffix: str) -> Path:
    """The file beside a store with this suffix."""
    path = files_of(where)
    return path.with_name(path.name + suffix)
