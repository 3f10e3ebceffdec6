"""Usage logs whose truth is known: who is sent where, what is drawn at random, what models are
worth. Rows as plain data; `litellm` wraps them into what LiteLLM's callback logs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

START = 1_795_000_000.0
_SENTENCE = "please explain how to fix this bug in my code and write a short test for it then show"
_WORDS = _SENTENCE.split()


@dataclass(frozen=True)
class World:
    """confounded: how strongly plan and length decide who gets `large`, 0 for not at all. canary:
    share of requests that are drawn at random with `share` of `small`, and tagged. effect: what
    `large` adds to the chance of a thumb up. hard: what a long prompt takes from it. users: how
    many; taste: standard deviation of what a user adds. rated: share with a thumb. sticky: whether
    each user keeps one model."""

    confounded: float = 1.2
    canary: float = 0.1
    share: float = 0.5
    effect: float = 0.05
    hard: float = 0.15
    users: int = 2000
    taste: float = 0.05
    rated: float = 0.3
    sticky: bool = False
    spacing: float = 30.0


def rows(count: int, world: World, seed: int) -> Iterator[dict[str, Any]]:
    """Rows of a log that nobody else has."""
    draws = np.random.default_rng(seed)
    paid = draws.random(world.users) < 0.35
    taste = draws.normal(0.0, world.taste, world.users)
    kept: dict[int, tuple[str, bool]] = {}
    countries = ("de", "fr", "us", "uk", "es")
    for number in range(count):
        user = int(draws.integers(world.users))
        size = draws.normal(0.3 * paid[user], 0.8)
        canary = bool(draws.random() < world.canary)
        chance = 1.0 / (1.0 + np.exp(-world.confounded * (size + 1.2 * paid[user] - 0.4)))
        large = bool(draws.random() < (1.0 - world.share if canary else chance))
        if world.sticky:
            large, canary = kept.setdefault(user, (large, canary))
        good = 0.65 - world.hard * size + world.effect * large + taste[user]
        thumb = None
        if draws.random() < world.rated:
            thumb = "up" if draws.random() < good else "down"
        yield {
            "ts": START + number * world.spacing,
            "user_id": f"u{user}",
            "plan": "paid" if paid[user] else "free",
            "country": countries[int(draws.integers(5))],
            "tags": ["web", *(["canary"] if canary else [])],
            "model": "large" if large else "small",
            "prompt": "x" * int(60 * np.exp(size)),
            "latency_ms": float(draws.normal(2000.0 if large else 900.0, 100.0)),
            "cost": 0.011 if large else 0.002,
            "usage": {"completion_tokens": int(draws.integers(20, 200))},
            "thumb": thumb,
        }


def litellm(row: dict[str, Any], number: int) -> dict[str, Any]:
    """The row as LiteLLM's StandardLoggingPayload has it, about three kilobytes."""
    model, size = row["model"], len(row["prompt"])
    text = " ".join(_WORDS[(number + at) % len(_WORDS)] for at in range(max(size // 6, 1)))
    answer = " ".join(_WORDS[(7 * number + at) % len(_WORDS)] for at in range(90))
    tokens = row["usage"]["completion_tokens"]
    usage = {
        "completion_tokens": tokens,
        "prompt_tokens": size // 4,
        "total_tokens": tokens + size // 4,
    }
    took = row["latency_ms"] / 1000.0
    deployment = {"large": "gpt-4o", "small": "gpt-4o-mini"}[model]
    return {
        "id": f"chatcmpl-{number:032x}",
        "trace_id": f"{number:08x}-1111-4222-8333-444455556666",
        "litellm_call_id": f"{number:08x}-7777-4888-8999-aaaabbbbcccc",
        "call_type": "acompletion",
        "cache_hit": None,
        "stream": False,
        "status": "success",
        "status_fields": {"llm_api_status": "success", "guardrail_status": "not_run"},
        "custom_llm_provider": "openai",
        "saved_cache_cost": 0.0,
        "startTime": row["ts"],
        "endTime": row["ts"] + took,
        "completionStartTime": row["ts"] + took / 3.0,
        "response_time": took,
        "model": f"openai/{deployment}",
        "metadata": {
            "user_api_key_hash": "88dc28d0f030c55ed4ab77ed8faf098196cb1c05df778539800c9f1243fe6b4b",
            "user_api_key_alias": "web",
            "user_api_key_team_id": "team-3",
            "user_api_key_org_id": None,
            "user_api_key_user_id": row["user_id"],
            "user_api_key_team_alias": "support",
            "user_api_key_user_email": None,
            "spend_logs_metadata": None,
            "requester_ip_address": "10.0.0.3",
            "requester_metadata": {
                "plan": row["plan"],
                "country": row["country"],
                "thumb": row["thumb"],
            },
            "user_api_key_end_user_id": None,
            "prompt_management_metadata": None,
            "applied_guardrails": [],
            "mcp_tool_call_metadata": None,
            "vector_store_request_metadata": None,
            "usage_object": usage,
        },
        "cache_key": None,
        "response_cost": row["cost"],
        "cost_breakdown": {"input_cost": 0.0001, "output_cost": 0.00002},
        **usage,
        "request_tags": row["tags"],
        "end_user": "",
        "api_base": "https://api.openai.com/v1/",
        "model_group": model,
        "model_id": f"arm-{model}",
        "requester_ip_address": "10.0.0.3",
        "messages": [
            {"role": "system", "content": "You are a helpful assistant of the support team."},
            {"role": "user", "content": text},
        ],
        "response": {
            "id": f"chatcmpl-{number:032x}",
            "created": int(row["ts"]),
            "model": f"{deployment}-2024-07-18",
            "object": "chat.completion",
            "system_fingerprint": None,
            "choices": [
                {
                    "finish_reason": "stop",
                    "index": 0,
                    "message": {"content": answer, "role": "assistant", "tool_calls": None},
                }
            ],
            "usage": usage,
        },
        "model_parameters": {"temperature": 0.7, "stream": False},
        "hidden_params": {
            "model_id": f"arm-{model}",
            "cache_key": None,
            "api_base": "https://api.openai.com",
            "response_cost": row["cost"],
            "additional_headers": {},
            "litellm_overhead_time_ms": 3.1,
        },
        "model_map_information": {"model_map_key": deployment, "model_map_value": None},
        "error_str": None,
        "error_information": None,
        "response_cost_failure_debug_info": None,
        "guardrail_information": None,
        "standard_built_in_tools_params": None,
    }
