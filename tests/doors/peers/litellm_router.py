"""Requests through LiteLLM's Router in a program, with the plugin; runs where LiteLLM is installed.

    python litellm_router.py FOLDER < ORDER > ANSWERS

FOLDER holds the plugin's two files. ORDER is JSON: `settings` of the plugin, `deployments`,
`fallbacks`, `cached`, and `lists` of requests (tag, plan, streamed, left) that wait for one
another. ANSWERS has a JSON line per request: tag, request_id, model that wrote the answer.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from typing import Any

sys.path.insert(0, sys.argv[1])
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm
from equipoise_litellm import Equipoise, Settings

ORDER = json.load(sys.stdin)
AT_ONCE = 40


async def ask(door: Equipoise, router: litellm.Router, request: dict[str, Any]) -> None:
    messages = [{"role": "user", "content": f"{request['tag']} {request['plan']}"}]
    arguments = await door.prepare(
        model="chat", messages=messages, stream=request["streamed"], metadata={"plan": "free"}
    )
    text, error, at = "", "", time.time()
    try:
        response = await router.acompletion(**arguments)
        if request["streamed"]:
            async for chunk in response:
                text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
                if text and request["left"]:
                    break
        else:
            text = response.choices[0].message.content
    except Exception as failure:
        error = type(failure).__name__
    answer = {"tag": request["tag"], "model": text.split(" ")[0], "error": error}
    answer |= {"at": at, "until": time.time()}
    answer["request_id"] = arguments["metadata"].get("equipoise_request_id")
    print(json.dumps(answer), flush=True)


async def main() -> None:
    door = Equipoise(Settings.read(ORDER["settings"], {}))
    litellm.callbacks.append(door)
    if ORDER["cached"]:
        litellm.cache = litellm.Cache(type="local")
    router = litellm.Router(
        model_list=ORDER["deployments"],
        fallbacks=ORDER["fallbacks"],
        num_retries=1,
        disable_cooldowns=True,
        cache_responses=ORDER["cached"],
    )
    free = asyncio.Semaphore(AT_ONCE)

    async def all_of(requests: list[dict[str, Any]]) -> None:
        async with free:
            for request in requests:
                await ask(door, router, request)

    await asyncio.gather(*map(all_of, ORDER["lists"]))
    await asyncio.sleep(2.0)  # LiteLLM's events come behind the answers
    assert await asyncio.to_thread(door.client.flush), "the daemon did not take all reports"
    print(json.dumps({"errors": door.counters.errors}))


asyncio.run(main())
