"""What LiteLLM 1.108.7 and 1.110.2 gave the plugin's hooks.

The dictionaries are those that the hooks got from the real proxy and Router (`make doors`), without
what the plugin does not read.
"""

from __future__ import annotations

import asyncio
from typing import Any

from equipoise.agent.client import Choice
from equipoise.agent.doors.litellm import Equipoise, Settings

MODELS = {"large": ("gpt-large",), "small": ("gpt-small", "gpt-small-eu")}
OUTPUTS = {"seconds": "seconds", "tokens": "output_tokens", "usd": "cost"}
MESSAGES = [{"role": "user", "content": "fix this, please"}]


class Daemon:
    """A client whose daemon draws what it is told to, and that keeps what it is given."""

    def __init__(self, model: str = "small", **choice: Any) -> None:
        self.model, self.choice = model, choice
        self.asked: list[dict[str, Any]] = []
        self.told: list[tuple[str, dict[str, Any]]] = []

    async def decide_async(
        self, request_id: str, routed: str, features: Any, **more: Any
    ) -> Choice:
        self.asked.append({"id": request_id, "routed": routed, "features": features, **more})
        drawn = {"randomized": True, "propensity": 0.4, "decision_id": "d0"} | self.choice
        model = routed if drawn.get("reason") else self.model
        return Choice(request_id, model, routed, **drawn)

    def outcome(self, request: Choice, **parts: Any) -> None:
        self.told.append((request.request_id, parts))

    def close(self) -> None:
        pass


def plugin(daemon: Any = None, **settings: Any) -> Equipoise:
    given = {"models": MODELS, "routed": {"chat": "large"}, "outputs": OUTPUTS} | settings
    return Equipoise(Settings(**given), daemon or Daemon())


def asked(call_id: str = "c1", **more: Any) -> dict[str, Any]:
    """A request as the proxy's pre-call hook gets it."""
    body = {"model": "chat", "messages": MESSAGES, "litellm_call_id": call_id}
    return {**body, "metadata": {"requester_metadata": {"plan": "paid"}}, **more}


def pre_call(door: Equipoise, body: dict[str, Any], key: Any = None) -> dict[str, Any]:
    return asyncio.run(door.async_pre_call_hook(key, None, body, "acompletion"))


def attempt(body: dict[str, Any], deployment: str, call_id: str = "c1") -> dict[str, Any]:
    """Arguments of a deployment's hook: the Router has put its choice into the metadata."""
    bucket = "litellm_metadata" if "litellm_metadata" in body else "metadata"
    group = deployment.rpartition("-")[0]
    return {
        "model": "openai/gpt-4o-mini",
        "litellm_call_id": call_id,
        bucket: {**body[bucket], "model_group": group, "model_info": {"id": deployment}},
        "model_info": {"id": deployment},
    }


def event(
    body: dict[str, Any], deployment: str, call_id: str = "c1", **more: Any
) -> dict[str, Any]:
    """Arguments of a logging event, with the record that LiteLLM made."""
    inner = attempt(body, deployment, call_id)
    record = {
        "status": "success",
        "model_group": deployment.rpartition("-")[0],
        "model_id": deployment,
        "prompt_tokens": 100,
        "completion_tokens": 20,
        "response_cost": 2.7e-05,
        "response_cost_failure_debug_info": None,
        "cache_hit": None,
        "stream": None,
        "error_str": None,
        "startTime": 1795855620.024663,
        "endTime": 1795855620.063328,
        "response_time": 0.012,
        "response": {
            "model": "chat",
            "choices": [{"finish_reason": "stop", "message": {"content": "of course"}}],
        },
    }
    return {
        "model": "gpt-4o-mini",
        "litellm_call_id": call_id,
        "litellm_params": {"metadata": inner.get("metadata") or inner["litellm_metadata"]},
        "stream": record["stream"],
        "stream_options": more.pop("stream_options", None),
        "standard_logging_object": {**record, **more},
    }
