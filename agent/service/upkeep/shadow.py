"""Shadow replay: cached contexts sent to candidate models, their outputs kept as SIM.

Prompts are read from the file, sent, and forgotten: the log gets features only.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeAlias

import httpx
import msgspec
import numpy as np

from equipoise.agent.config.service import ShadowModel, ShadowSettings
from equipoise.agent.errors import AgentError
from equipoise.agent.features.values import FeatureError
from equipoise.agent.record_adapter import Gateway
from equipoise.agent.service.telemetry import Log
from equipoise.store.records import Features, FeatureValue, Id, Record, Simulation
from equipoise.store.text_keys import text_key

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


Result: TypeAlias = Literal["row", "failed", "budget"]

AT_ONCE = 256
"""Contexts that are read ahead."""


class CachedContext(Record, frozen=True, kw_only=True):
    """A line of the contexts' file. messages: as the protocol takes them."""

    context_id: Id
    features: Features
    messages: list[dict[str, Any]]


class Shadow:
    """Shadow replay for one agent. environment: where the endpoint's key is looked up.

    Raises AgentError where the models or outputs are not those of the experiment.
    """

    def __init__(
        self,
        gateway: Gateway,
        settings: ShadowSettings,
        log: Log,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self._gateway = gateway
        self._settings = settings
        self._log = log
        self._refused: set[tuple[str, str]] = set()
        self._spent = self._reserved = 0.0
        self._turns = asyncio.Semaphore(settings.concurrency)
        key = None
        if settings.key_env is not None:
            key = environment.get(settings.key_env)
            if not key:
                raise AgentError(f"service.shadow.key_env: {settings.key_env} is not set")
        agent = gateway.agent
        names = {feature.name for feature in agent.config.features.outputs}
        if settings.outputs.keys() != names:
            raise AgentError(
                f"service.shadow.outputs: expected a source for each of {', '.join(sorted(names))}"
            )
        self._position = {name: index for index, name in enumerate(agent.models)}
        for model in settings.models:
            if model.name not in self._position:
                raise AgentError(f"service.shadow.models: {model.name!r} is no model of ours")
        self._endpoint = Endpoint(settings, key)

    @property
    def spent(self) -> float:
        """USD: what the SIM rows of the log cost, or what was paid since the start if that is more.

        Answers that were of no use are in the second figure only.
        """
        moments = self._gateway.agent.answers.view().moments.simulation
        return max(float((moments.priced * moments.cost).sum()), self._spent)

    async def run(self) -> int:
        """Replay what is missing, until the file ends or the budget does; rows that came."""
        self._spent = self.spent
        rows, contexts = 0, self._contexts()
        some = 4 * self._settings.concurrency
        while True:
            ahead = await asyncio.to_thread(lambda: list(islice(contexts, AT_ONCE)))
            if not ahead:
                return rows
            missing = self._missing(ahead)
            for start in range(0, len(missing), some):
                pairs = missing[start : start + some]
                results = await asyncio.gather(*(self._one(*pair) for pair in pairs))
                rows += results.count("row")
                if "budget" in results:
                    self._log.info("shadow-budget-spent", usd=round(self._spent, 4))
                    return rows

    async def close(self) -> None:
        await self._endpoint.close()

    async def _one(self, context: CachedContext, model: ShadowModel) -> Result:
        """Replay one pair."""
        async with self._turns:
            most = self._most(context, model)
            if self._spent + self._reserved + most > self._settings.budget_usd:
                return "budget"
            # What is on its way may cost the most it could: the budget is never exceeded.
            self._reserved += most
            try:
                output = await self._endpoint.complete(model, context.messages)
                self._spent += output.usd
                self._gateway.simulate([self._row(context, model, output)])
            except (EndpointError, AgentError, FeatureError) as error:
                if not isinstance(error, EndpointError) or error.final:
                    self._refused.add((context.context_id, model.name))
                self._log.warning(
                    "shadow-failed",
                    context=context.context_id,
                    model=model.name,
                    fault=type(error).__name__,
                )
                return "failed"
            finally:
                self._reserved -= most
            return "row"

    def _most(self, context: CachedContext, model: ShadowModel) -> float:
        """USD that a replay can cost: no token is shorter than a byte."""
        asked = len(msgspec.json.encode(context.messages))
        return (asked * model.input_usd + self._settings.max_tokens * model.output_usd) / 1e6

    def _row(self, context: CachedContext, model: ShadowModel, output: Output) -> Simulation:
        outputs: dict[str, FeatureValue] = {
            name: getattr(output, source) for name, source in self._settings.outputs.items()
        }
        return Simulation(
            context_id=context.context_id,
            model=model.name,
            features=context.features,
            outputs=outputs,
            cost=output.usd,
        )

    def _missing(self, contexts: list[CachedContext]) -> list[tuple[CachedContext, ShadowModel]]:
        pairs = [(context, model) for context in contexts for model in self._settings.models]
        keys = np.array([text_key("context", each.context_id) for each, _ in pairs])
        models = np.array([self._position[model.name] for _, model in pairs])
        _, known = self._gateway.agent.light.simulated.lookup(keys, models)
        return [
            pair
            for pair, there in zip(pairs, known.tolist(), strict=True)
            if not there and (pair[0].context_id, pair[1].name) not in self._refused
        ]

    def _contexts(self) -> Iterator[CachedContext]:
        decode = msgspec.json.Decoder(CachedContext).decode
        with Path(self._settings.contexts).open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    yield decode(line)
                except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
                    self._log.warning("shadow-line", line=number, fault=type(error).__name__)
