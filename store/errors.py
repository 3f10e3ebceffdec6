"""What can go wrong with a store: one family of exceptions, each with a one-line message."""

from __future__ import annotations


class StoreError(ValueError):
    """Base of every error a store raises. The message is one line and names the store."""


class MissingStoreError(StoreError):
    """There is no file, or no folder, where the store should be."""


class NotAStoreError(StoreError):
    """Something is there, but not a store: a folder, another kind of file, another database."""


class CorruptStoreError(StoreError):
    """The file is cut short or damaged."""


class LostRowsError(CorruptStoreError):
    """Rows that were acknowledged are missing, or the files beside a store are not its own.

    Nothing was written. `equipoise repair` opens the store all the same and notes what is lost."""


class SchemaVersionError(StoreError):
    """The store was written by a newer equipoise, or needs an upgrade that cannot be made here."""


class StoreInUseError(StoreError):
    """Another writer holds the store."""


class ReadOnlyStoreError(StoreError):
    """A write to a store that was opened for reading, or that may not be written."""


class ContradictionError(StoreError):
    """Something that is written once was given again with other content."""


class SequenceError(StoreError):
    """Numbers that do not continue the log: decisions out of order, a checkpoint ahead of it."""


class WriteError(StoreError):
    """A write was refused (disk full, database locked, …); the log is as it was before."""


class FullStoreError(WriteError):
    """There is no room left for the write."""


class SlowStoreError(WriteError):
    """The store did not get to the write in time: locked by another program, or behind."""


class LostConnectionError(WriteError):
    """There is no connection to the database. Nothing was written, unless the message says that
    nobody can know yet."""


class TornAppendError(RuntimeError):
    """Rows are in the log, and the memory of the process that appended them does not know it (no
    room, an interrupt): only a new process can go on. No StoreError, for the store is whole."""


class DisplacedStoreError(WriteError):
    """The files of an open store are not where, or what, they were: removed, moved, replaced."""


class TrimmedError(StoreError):
    """Old rows went while they were read; what begins anew finds the log whole."""
