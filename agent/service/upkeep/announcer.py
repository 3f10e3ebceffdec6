"""Changes of status: each is logged, kept in the store, and posted to the webhooks.

A change is a row of the store before anybody is told, and so is how far each address has got. So
whatever is not yet posted when the process ends is posted after the next start: at least once, and
in order. An address is named by a digest in the store and by its host in the log, since the rest of
it may be a secret. One that was not there at the last start hears of changes from then on.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Sequence
from hashlib import blake2b
from urllib.parse import urlsplit

import httpx
import msgspec

from equipoise.agent.answers.status import State
from equipoise.agent.service.api.estimates import RecommendationAnswer, Status
from equipoise.agent.service.telemetry import Log
from equipoise.store.errors import StoreError
from equipoise.store.opening import ServedStore
from equipoise.store.records import Control

CHANGE, TOLD = "status", "webhook"
"""The names under which changes, and how many of them an address has got, are kept."""
TIMEOUT_SECONDS = 10.0
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 300.0
"""Seconds between attempts: doubled each time, and a part of them at random."""
AGAIN_SECONDS = 5.0
LOGGED_ELSEWHERE = ("paused", "ended")


class StatusChange(
    msgspec.Struct, frozen=True, kw_only=True, rename={"before": "from", "after": "to"}
):
    """What is posted. before, after: statuses, `from` and `to` on the wire; models: what the new
    one is about. sentence: for people. at: seconds since the epoch."""

    experiment: str
    before: Status
    after: Status
    models: list[str]
    sentence: str
    at: float
    era: int


class Announcer:
    """Knows the last status that was announced, and who was told of it.

    experiment: its name. addresses: of the webhooks.
    """

    def __init__(
        self, experiment: str, addresses: Sequence[str], store: ServedStore, log: Log
    ) -> None:
        self._experiment = experiment
        self._store = store
        self._log = log
        decode = msgspec.json.Decoder(StatusChange).decode
        controls = store.controls()
        self._changes = [decode(each.value) for each in controls if each.name == CHANGE]
        self._told: dict[str, int] = {}
        for control in controls:
            if control.name == TOLD:
                self._told |= msgspec.json.decode(control.value, type=dict[str, int])
        self._addresses = {_digest(address): address for address in addresses}
        self._kept = len(self._changes)
        self._more = asyncio.Event()
        self._closing = False
        self._keeping: asyncio.Task[None] | None = None
        self._posting: asyncio.Task[None] | None = None

    def start(self, at: float) -> None:
        """Begin to post what waits. at: seconds since the epoch, now."""
        new = {name: self._kept for name in self._addresses if name not in self._told}
        if new:
            self._told |= new
            self._store.put(_told(new, at))
        loop = asyncio.get_running_loop()
        self._keeping = loop.create_task(self._keep())
        if self._addresses:
            self._posting = loop.create_task(self._post_all())

    def look(self, answer: RecommendationAnswer, era: int, at: float) -> None:
        """Take in the status as it is now; a change is kept and posted soon."""
        last = self._changes[-1] if self._changes else None
        before = State.EXPLORING if last is None else last.after
        models = [] if last is None else last.models
        if (answer.status, answer.status_models) == (before, models):
            return
        self._changes.append(
            StatusChange(
                experiment=self._experiment,
                before=before,
                after=answer.status,
                models=answer.status_models,
                sentence=answer.status_sentence,
                at=at,
                era=era,
            )
        )
        self._more.set()

    async def close(self) -> None:
        """Keep what is not kept yet, and post no more: the next start goes on."""
        if self._posting is not None:
            self._posting.cancel()
            await asyncio.gather(self._posting, return_exceptions=True)
        if self._keeping is not None:
            # Not cut off: a thread that writes goes on, and the row would be written again.
            self._closing = True
            self._more.set()
            await self._keeping
            await self._keep_waiting()

    async def _keep(self) -> None:
        while not self._closing:
            with contextlib.suppress(TimeoutError):
                # A store that could not be written is tried again.
                await asyncio.wait_for(self._more.wait(), AGAIN_SECONDS)
            self._more.clear()
            await self._keep_waiting()

    async def _keep_waiting(self) -> None:
        """Write the changes that are not in the store yet, as far as it can be written."""
        while self._kept < len(self._changes):
            change = self._changes[self._kept]
            value = msgspec.json.encode(change).decode()
            try:
                await asyncio.to_thread(
                    self._store.put, Control(at=change.at, name=CHANGE, value=value)
                )
            except StoreError:
                return
            self._kept += 1
            if change.after not in LOGGED_ELSEWHERE:
                self._log.info(
                    change.after, was=change.before, models=change.models, era=change.era
                )

    async def _post_all(self) -> None:
        async with httpx.AsyncClient(timeout=TIMEOUT_SECONDS) as client:
            await asyncio.gather(*(self._post_to(client, name) for name in self._addresses))

    async def _post_to(self, client: httpx.AsyncClient, name: str) -> None:
        """Post every change to one address, in order, however often that takes."""
        attempts = 0
        while True:
            if self._told[name] >= self._kept:
                await asyncio.sleep(FIRST_PAUSE)
                continue
            change = self._changes[self._told[name]]
            fault = await _post(client, self._addresses[name], msgspec.json.encode(change))
            if not fault:
                attempts = 0
                self._told[name] += 1
                await self._keep_told(name, change.at)
                continue
            attempts += 1
            host = urlsplit(self._addresses[name]).hostname
            self._log.warning("webhook-failed", host=host, fault=fault, attempts=attempts)
            wait = min(FIRST_PAUSE * 2.0 ** min(attempts - 1, 20), LONGEST_PAUSE)
            # Spread, so that daemons that failed together do not come back together.
            await asyncio.sleep(wait * random.uniform(0.5, 1.0))

    async def _keep_told(self, name: str, at: float) -> None:
        try:
            await asyncio.to_thread(self._store.put, _told({name: self._told[name]}, at))
        except StoreError:  # after the next start it is posted once more
            return


async def _post(client: httpx.AsyncClient, address: str, body: bytes) -> str:
    """What went wrong, "" where it was taken. The answer's body is not read."""
    headers = {"content-type": "application/json"}
    try:
        async with client.stream("POST", address, content=body, headers=headers) as response:
            return "" if response.is_success else f"status {response.status_code}"
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        return type(error).__name__


def _told(counts: dict[str, int], at: float) -> Control:
    return Control(at=at, name=TOLD, value=msgspec.json.encode(counts).decode())


def _digest(address: str) -> str:
    return blake2b(address.encode(), digest_size=8, person=b"equipoise-hook").hexdigest()
