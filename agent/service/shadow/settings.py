"""The `[service.shadow]` table: which contexts, which endpoint, at what price and pace."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, TypeAlias

from equipoise.agent.config.parts import Part
from equipoise.agent.features.problems import Problem, shown

Source: TypeAlias = Literal["text", "prompt_tokens", "completion_tokens", "seconds", "usd"]


class ShadowModel(Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """name: in the experiment. calls: at the endpoint. Prices in USD per million tokens."""

    name: str
    calls: str
    input_usd: float
    output_usd: float

    def faults(self) -> Iterator[Problem]:
        for key in ("input_usd", "output_usd"):
            if not 0 <= getattr(self, key) <= 1e6:
                yield Problem(key, shown(getattr(self, key)), "USD per million tokens, 0 or more")


class ShadowSettings(Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Replays of cached contexts on candidate models.

    contexts: a file of JSON lines: context_id, features, messages. endpoint: base URL of an
    OpenAI-compatible interface, such as http://127.0.0.1:8000/v1. key_env: the environment variable
    that holds its key. outputs: for each output feature where its value comes from.
    budget_usd: a hard stop on what all SIM rows of the log cost, in USD. max_tokens: of an answer;
    what it could cost at most is set aside before a request is sent. requests_per_minute,
    concurrency: pace. attempts: per request, where the endpoint is busy or fails.
    timeout_seconds: of one attempt. every_seconds: between two looks for new contexts.
    """

    contexts: str
    endpoint: str
    models: list[ShadowModel]
    outputs: dict[str, Source]
    budget_usd: float
    key_env: str | None = None
    max_tokens: int = 1024
    requests_per_minute: float = 60.0
    concurrency: int = 2
    attempts: int = 4
    timeout_seconds: float = 60.0
    every_seconds: float = 60.0

    def faults(self) -> Iterator[Problem]:
        if not self.endpoint.startswith(("http://", "https://")):
            yield Problem("endpoint", shown(self.endpoint), "an address that begins with http")
        if not 0 <= self.budget_usd <= 1e9:
            yield Problem("budget_usd", shown(self.budget_usd), "USD, 0 or more")
        for key in ("max_tokens", "concurrency", "attempts"):
            if not 1 <= getattr(self, key) <= 1_000_000:
                yield Problem(key, shown(getattr(self, key)), "a whole number of 1 or more")
        for key in ("requests_per_minute", "timeout_seconds", "every_seconds"):
            if not 0 < getattr(self, key) <= 1e6:
                yield Problem(key, shown(getattr(self, key)), "a number above 0")
