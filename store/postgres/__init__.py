"""The store in a PostgreSQL database: one writer by a lock of the server, readers anywhere."""

from equipoise.store.postgres.store import PostgresStore as PostgresStore
from equipoise.store.postgres.store import holds_store as holds_store
