"""Rows of logs as their producers write them, shortened to what says something.

litellm, spend: LiteLLM 1.108.7 with an upstream on loopback. scores of Langfuse: the models of its
SDK 5.0.4. dsjson: lines that Vowpal Wabbit 9.11.9 read and learned from. The rest follow the
documents of their products: Langfuse's field reference of exports, TensorZero's data model of
2026-04, Helicone's type of a request, OpenRouter's answer of its generation API and the header of
its activity export.
"""

from __future__ import annotations

import json
from typing import Any

T0 = 1795855979.0
QUESTION = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "why?"}]


def litellm(number: int = 1, **changes: Any) -> dict[str, Any]:
    """A StandardLoggingPayload: an answer of `large`, a second long."""
    return {
        "id": f"chatcmpl-{number:04d}",
        "litellm_call_id": f"call-{number}",
        "trace_id": f"trace-{number}",
        "session_id": "",
        "call_type": "acompletion",
        "cache_hit": None,
        "stream": None,
        "status": "success",
        "saved_cache_cost": 0.0,
        "startTime": T0 + 10 * number,
        "endTime": T0 + 10 * number + 1.0,
        "response_time": 1.0,
        "model": "openai/gpt-4o",
        "metadata": {"user_api_key_end_user_id": None, "requester_metadata": None},
        "response_cost": 0.00045,
        "response_cost_failure_debug_info": None,
        "prompt_tokens": 100,
        "completion_tokens": 20,
        "request_tags": [],
        "end_user": None,
        "model_group": "large",
        "model_id": "1c028c67",
        "messages": QUESTION,
        "response": {
            "id": f"chatcmpl-{number:04d}",
            "model": "gpt-4o-2024-08-06",
            "choices": [{"message": {"role": "assistant", "content": f"answer {number}"}}],
        },
        "model_parameters": {"stream": False, "user": f"u{number}"},
        "error_str": None,
        **changes,
    }


def streamed(number: int, **changes: Any) -> dict[str, Any]:
    """A stream without usage: no tokens, no cost, and a response time to the first token."""
    none = {"prompt_tokens": 0, "completion_tokens": 0, "response_cost": 0.0}
    return litellm(number, stream=True, cache_hit=False, response_time=0.1, **none, **changes)


def attempt(number: int, of: int, **changes: Any) -> dict[str, Any]:
    """A failed call of the request `of`: its id is its call id, and it has the request's trace."""
    row = litellm(number, trace_id=f"trace-{of}", id=f"call-{number}", status="failure")
    none = {"prompt_tokens": 0, "completion_tokens": 0, "response_cost": 0.0, "response": None}
    error = {"error_str": "InternalServerError: dead", "model_group": "broken"}
    return {**row, **none, **error, **changes}


def cached(number: int, of: int, **changes: Any) -> dict[str, Any]:
    """An answer of the cache: of the request `of`, whatever model was drawn for this one."""
    first = litellm(of)
    same = {"id": f"{first['id']}_cache_hit1795855993.153648", "response": first["response"]}
    row = litellm(number, cache_hit=True, response_cost=0.0, model_parameters={}, **same)
    return {**row, "endTime": row["startTime"] + 0.001, "model_group": "small", **changes}


def spend(number: int = 1, **changes: Any) -> dict[str, Any]:
    """A row of LiteLLM_SpendLogs."""
    return {
        "request_id": f"chatcmpl-{number:04d}",
        "call_type": "acompletion",
        "cache_hit": "None",
        "startTime": f"2026-11-28 08:52:{number:02d}.500000+00:00",
        "endTime": f"2026-11-28 08:52:{number:02d}.750000+00:00",
        "model": "openai/gpt-4o",
        "user": "",
        "metadata": json.dumps({"litellm_call_id": f"call-{number}", "status": None}),
        "spend": 0.00045,
        "prompt_tokens": 100,
        "completion_tokens": 20,
        "request_tags": "[]",
        "end_user": f"u{number}",
        "model_group": "large",
        "messages": "{}",
        "response": "{}",
        "proxy_server_request": json.dumps({"messages": QUESTION}),
        "session_id": f"trace-{number}",
        "status": "success",
        **changes,
    }


def observation(number: int = 1, **changes: Any) -> dict[str, Any]:
    """An observation of Langfuse's API."""
    return {
        "id": f"{number:016x}",
        "traceId": f"{number:032x}",
        "type": "GENERATION",
        "name": "answer",
        "startTime": f"2026-11-28T08:52:{number:02d}.000Z",
        "endTime": f"2026-11-28T08:52:{number:02d}.500Z",
        "level": "DEFAULT",
        "providedModelName": "large",
        "modelId": "m1",
        "input": json.dumps(QUESTION),
        "output": json.dumps({"role": "assistant", "content": "because"}),
        "usageDetails": {"input": 100, "output": 20, "total": 120},
        "costDetails": {"input": 0.0002, "output": 0.0001, "total": 0.0003},
        "totalCost": 0.0003,
        "userId": f"u{number}",
        "sessionId": None,
        "metadata": {},
        **changes,
    }


_EXPORTED = {
    "traceId": "trace_id",
    "startTime": "start_time",
    "endTime": "end_time",
    "providedModelName": "provided_model_name",
    "usageDetails": "usage_details",
    "costDetails": "cost_details",
    "totalCost": "total_cost",
    "userId": "user_id",
    "sessionId": "session_id",
    "modelId": "model_id",
}


def exported(number: int = 1, **changes: Any) -> dict[str, Any]:
    """The same in an export to blob storage: other names, other times."""
    row = observation(number)
    times = {
        name: row[name].replace("T", " ").rstrip("Z") + "000" for name in row if "Time" in name
    }
    return {_EXPORTED.get(name, name): each for name, each in (row | times).items()} | changes


def score(of: dict[str, Any], value: Any, **changes: Any) -> dict[str, Any]:
    """A score of Langfuse's third API, of an observation; with its subject it is of a trace."""
    return {
        "id": f"score-{of['id']}",
        "projectId": "p",
        "name": "helpful",
        "dataType": "NUMERIC",
        "value": value,
        "timestamp": "2026-11-28T09:00:00Z",
        "subject": {"kind": "observation", "id": of["id"], "traceId": of["traceId"]},
        **changes,
    }


def uuid7(milliseconds: int, number: int) -> str:
    text = f"{milliseconds:012x}7{number:03x}8{number:015x}"
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def inference(number: int = 1, **changes: Any) -> dict[str, Any]:
    """TensorZero's ChatInference, as `SELECT *` writes it: without its timestamp."""
    return {
        "id": uuid7(1795855979500 + number, number),
        "function_name": "chat",
        "variant_name": "large",
        "episode_id": uuid7(1795855979000, 77),
        "input": json.dumps(
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "why?"}]}]}
        ),
        "output": json.dumps([{"type": "text", "text": "because"}]),
        "processing_time_ms": 1200,
        "tags": {},
        **changes,
    }


def model_inference(number: int = 1, of: int = 1, **changes: Any) -> dict[str, Any]:
    """TensorZero's ModelInference: numbers of 64 bits and decimals are text."""
    return {
        "id": uuid7(1795855979600 + number, number),
        "inference_id": inference(of)["id"],
        "model_name": "large",
        "model_provider_name": "openai",
        "input_tokens": "100",
        "output_tokens": "20",
        "cost": "0.00045",
        "response_time_ms": 1100,
        "cached": False,
        **changes,
    }


def helicone(number: int = 1, **changes: Any) -> dict[str, Any]:
    """A request of Helicone's query API."""
    return {
        "request_id": f"7f6c1a9e-0000-4000-8000-{number:012d}",
        "request_created_at": f"2026-11-28T08:52:{number:02d}.123Z",
        "request_body": {"model": "large", "messages": QUESTION},
        "response_id": f"resp-{number}",
        "response_status": 200,
        "response_body": {"id": f"chatcmpl-{number}", "choices": [{"message": {"content": "so"}}]},
        "request_model": "large",
        "response_model": "large-2026",
        "model": "large",
        "request_user_id": f"u{number}",
        "request_properties": {},
        "delay_ms": 900,
        "prompt_tokens": 100,
        "completion_tokens": 20,
        "costUSD": 0.00045,
        "feedback_rating": True,
        "cache_reference_id": "00000000-0000-0000-0000-000000000000",
        **changes,
    }


def activity(number: int = 1, **changes: Any) -> dict[str, Any]:
    """A row of OpenRouter's activity export: a CSV, so all is text."""
    return {
        "generation_id": f"gen-{number}",
        "created_at": f"2026-11-28 08:52:{number:02d}.123",
        "cost_total": "0.00045",
        "tokens_prompt": "100",
        "tokens_completion": "20",
        "model_permaslug": "large",
        "provider_name": "OpenAI",
        "cancelled": "false",
        "streamed": "true",
        "user": f"u{number}",
        "finish_reason_normalized": "stop",
        "generation_time_ms": "900",
        **changes,
    }


def generation(number: int = 1) -> dict[str, Any]:
    """An answer of OpenRouter's generation API."""
    row = {
        "id": f"gen-{number}",
        "created_at": f"2026-11-28T08:52:{number:02d}.433273+00:00",
        "total_cost": 0.00045,
        "model": "large",
        "streamed": True,
        "cancelled": False,
        "generation_time": 900,
        "finish_reason": "stop",
        "tokens_prompt": 90,
        "tokens_completion": 18,
        "native_tokens_prompt": 100,
        "native_tokens_completion": 20,
        "external_user": f"u{number}",
    }
    return {"data": row}


def dsjson(number: int = 1, **changes: Any) -> dict[str, Any]:
    """A line of a decision service: action 2 of three was drawn and cost -1."""
    return {
        "_label_cost": -1.0,
        "_label_probability": 0.2,
        "_label_Action": 2,
        "_labelIndex": 1,
        "o": [{"EventId": f"e{number}", "v": 1.0}],
        "Timestamp": f"2026-11-28T08:52:{number:02d}.1230000Z",
        "Version": "1",
        "EventId": f"e{number}",
        "a": [2, 1, 3],
        "c": {"User": {"plan": "paid"}, "_multi": [{"_tag": name} for name in ACTIONS]},
        "p": [0.2, 0.7, 0.1],
        "VWState": {"m": "x/y"},
        **changes,
    }


ACTIONS = ("large", "small", "tiny")
