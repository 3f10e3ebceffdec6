"""The job: contexts that some candidate has not answered yet are sent to it, within a budget.

Prompts are read from the file, sent, and forgotten: the log gets features only.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np

from equipoise.agent.errors import AgentError
from equipoise.agent.features.problems import FeatureError
from equipoise.agent.gateway import Gateway
from equipoise.agent.keys import text_key
from equipoise.agent.service.logs import Log
from equipoise.agent.service.shadow.endpoint import Endpoint, EndpointError, Output
from equipoise.agent.service.shadow.settings import ShadowModel, ShadowSettings
from equipoise.store.records import Features, FeatureValue, Id, Record, Simulation

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
        moments = self._gateway.agent.view().moments.simulation
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
        _, known = self._gateway.agent.fold.simulated.lookup(keys, models)
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
