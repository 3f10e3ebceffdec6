"""One chat completion from an OpenAI-compatible endpoint: pace, retries, what it cost."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import msgspec

from equipoise.agent.service.shadow.settings import ShadowModel, ShadowSettings

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds between attempts: doubled each time, halved at random, unless the endpoint says when."""
_AGAIN = frozenset({408, 409, 429, 500, 502, 503, 504})


class EndpointError(RuntimeError):
    """The endpoint gave no usable answer. final: whether the same request can never succeed."""

    def __init__(self, sentence: str, final: bool = False) -> None:
        super().__init__(sentence)
        self.final = final


class Message(msgspec.Struct, frozen=True):
    content: str | None = None


class Choice(msgspec.Struct, frozen=True):
    message: Message


class Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Completion(msgspec.Struct, frozen=True):
    """The part of the protocol's answer that is read."""

    choices: list[Choice]
    usage: Usage = Usage()


@dataclass(frozen=True, slots=True)
class Output:
    """What a model answered. seconds: until the whole answer; usd: by the declared prices."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    usd: float


class Pace:
    """At most so many starts a minute, evenly spread."""

    def __init__(self, per_minute: float) -> None:
        self._gap = 60.0 / per_minute
        self._next = 0.0

    async def turn(self) -> None:
        now = time.monotonic()
        start, self._next = max(now, self._next), max(now, self._next) + self._gap
        await asyncio.sleep(start - now)

    def pause(self, seconds: float) -> None:
        """Nobody starts for so long: the endpoint asked for it."""
        self._next = max(self._next, time.monotonic() + seconds)


class Endpoint:
    """Asks for completions within the pace. key: the bearer token, None for none."""

    def __init__(self, settings: ShadowSettings, key: str | None) -> None:
        self._settings = settings
        self._pace = Pace(settings.requests_per_minute)
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        self._client = httpx.AsyncClient(
            base_url=settings.endpoint.rstrip("/") + "/",
            headers=headers,
            timeout=settings.timeout_seconds,
        )

    async def complete(self, model: ShadowModel, messages: Sequence[dict[str, Any]]) -> Output:
        """The model's answer. Raises EndpointError after the last attempt."""
        for attempt in range(1, self._settings.attempts + 1):
            await self._pace.turn()
            start = time.perf_counter()
            try:
                return self._read(model, await self._post(model, messages), start)
            except (httpx.HTTPError, _BusyError) as error:
                if attempt == self._settings.attempts:
                    why = type(error).__name__
                    raise EndpointError(f"no answer in {attempt} attempts ({why})") from error
                pause = getattr(error, "after", None)
                if pause is not None:
                    self._pace.pause(min(pause, LONGEST_PAUSE))
                else:
                    # Spread, so that callers that failed together do not come back together.
                    wait = min(FIRST_PAUSE * 2.0 ** (attempt - 1), LONGEST_PAUSE)
                    await asyncio.sleep(wait * random.uniform(0.5, 1.0))
        raise AssertionError("unreachable: the loop returns or raises")

    async def close(self) -> None:
        await self._client.aclose()

    async def _post(self, model: ShadowModel, messages: Sequence[dict[str, Any]]) -> bytes:
        body = {
            "model": model.calls,
            "messages": list(messages),
            "max_tokens": self._settings.max_tokens,
        }
        response = await self._client.post("chat/completions", json=body)
        if response.status_code in _AGAIN:
            raise _BusyError(response.headers.get("retry-after"))
        if response.status_code != 200:
            raise EndpointError(f"the endpoint answered {response.status_code}", final=True)
        return response.content

    @staticmethod
    def _read(model: ShadowModel, content: bytes, start: float) -> Output:
        seconds = time.perf_counter() - start
        try:
            completion = msgspec.json.decode(content, type=Completion)
            text = completion.choices[0].message.content or ""
        except (msgspec.DecodeError, UnicodeError, IndexError) as error:
            raise EndpointError("the endpoint's answer is no completion", final=True) from error
        usage = completion.usage
        usd = (
            max(usage.prompt_tokens, 0) * model.input_usd
            + max(usage.completion_tokens, 0) * model.output_usd
        ) / 1e6
        return Output(text, usage.prompt_tokens, usage.completion_tokens, seconds, usd)


class _BusyError(Exception):
    """Come again. after: in so many seconds, where the endpoint said when."""

    def __init__(self, after: str | None) -> None:
        super().__init__("the endpoint is busy")
        try:
            self.after = None if after is None else max(0.0, float(after))
        except ValueError:  # a date; our own pause will do
            self.after = None
