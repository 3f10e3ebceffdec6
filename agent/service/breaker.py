"""What stops the daemon from trying a store that just failed, and says why."""

from __future__ import annotations

import time

from equipoise.agent.service.schema import PassThrough
from equipoise.store.errors import FullStoreError, ReadOnlyStoreError, SlowStoreError, StoreError

RETRY_SECONDS = 0.5


class Breaker:
    """After a failure nothing is tried for half a second: requests are passed through at once.

    A store that is slow to refuse (a locked database, a hanging disk) would otherwise make every
    request slow. reason: why requests are passed through now, None while the store works.
    """

    def __init__(self) -> None:
        self.reason: PassThrough | None = None
        self._until = 0.0

    @property
    def open(self) -> bool:
        """Whether to pass through without trying."""
        return self.reason is not None and time.monotonic() < self._until

    def trip(self, error: StoreError) -> PassThrough:
        """Remember a failure; the reason it gives."""
        self.reason = _reason(error)
        self._until = time.monotonic() + RETRY_SECONDS
        return self.reason

    def close(self) -> None:
        """The store worked again."""
        self.reason = None


def _reason(error: StoreError) -> PassThrough:
    if isinstance(error, FullStoreError):
        return "store-full"
    if isinstance(error, SlowStoreError):
        return "store-slow"
    if isinstance(error, ReadOnlyStoreError):
        return "store-read-only"
    return "store-failed"
