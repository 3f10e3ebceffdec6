"""The store in a SQLite file: one writer, any number of readers, readable with any SQLite tool."""

from equipoise.store.sqlite.store import SqliteStore as SqliteStore
