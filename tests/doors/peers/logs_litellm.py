"""Runs in LiteLLM's environment: a Router whose calls are logged as its callbacks get them.

    python logs_litellm.py FOLDER REQUESTS

Writes FOLDER/litellm.jsonl (StandardLoggingPayload, a line a call, success or failure) and
FOLDER/truth.jsonl: for every request which model wrote the text that came back, under which id, and
whether it came from the cache. The upstream, on loopback, says in its text which model was asked.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm
from litellm import Router
from litellm.integrations.custom_logger import CustomLogger

FOLDER, REQUESTS = Path(sys.argv[1]), int(sys.argv[2])
GROUPS = {"large": "gpt-4o", "small": "gpt-4o-mini", "broken": "dead"}
COUNT = [0]


class Upstream(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        COUNT[0] += 1
        model = body["model"]
        if model == "dead":
            self._send(500, {"error": {"message": "dead", "type": "server_error"}})
            return
        if "input" in body:
            data = [{"object": "embedding", "index": 0, "embedding": [0.5]}]
            usage = {"prompt_tokens": 3, "total_tokens": 3}
            self._send(200, {"object": "list", "model": model, "data": data, "usage": usage})
            return
        base = {"id": f"chatcmpl-{COUNT[0]:05d}", "created": 1790000000, "model": f"{model}-2026"}
        usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
        text = f"by {model}"
        if not body.get("stream"):
            choice = {"index": 0, "finish_reason": "stop"}
            choice |= {"message": {"role": "assistant", "content": text}}
            self._send(
                200, {**base, "object": "chat.completion", "choices": [choice], "usage": usage}
            )
            return
        chunks = [
            {"choices": [{"index": 0, "delta": {"role": "assistant", "content": text}}]},
            {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        ]
        if (body.get("stream_options") or {}).get("include_usage"):
            chunks.append({"choices": [], "usage": usage})
        lines = [{**base, "object": "chat.completion.chunk", **chunk} for chunk in chunks]
        stream = "".join(f"data: {json.dumps(line)}\n\n" for line in lines) + "data: [DONE]\n\n"
        self._send(200, stream.encode(), "text/event-stream")

    def _send(self, status: int, body: Any, kind: str = "application/json") -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class ToFile(CustomLogger):
    """What a user's file logger does."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = open(path, "w")  # noqa: SIM115 - it is open as long as the program

    def _write(self, kwargs: Any) -> None:
        self._file.write(json.dumps(kwargs["standard_logging_object"], default=str) + "\n")
        self._file.flush()

    # The failure's arguments come by name, so their names matter.
    async def async_log_success_event(
        self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any
    ) -> None:
        self._write(kwargs)

    async def async_log_failure_event(
        self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any
    ) -> None:
        self._write(kwargs)


async def main() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_address[1]}/v1"
    litellm.cache = litellm.Cache()
    litellm.callbacks = [ToFile(FOLDER / "litellm.jsonl")]
    deployments = [
        {
            "model_name": group,
            "litellm_params": {"model": f"openai/{model}", "api_base": base, "api_key": "x"},
        }
        for group, model in {**GROUPS, "vectors": "text-embedding-3-small"}.items()
    ]
    router = Router(
        deployments,
        fallbacks=[{"broken": ["small"]}],
        num_retries=1,
        retry_after=0,
        disable_cooldowns=True,
    )
    generator, truth = random.Random(5), []
    for number in range(REQUESTS):
        group = generator.choice(list(GROUPS))
        shape = generator.choice(["plain", "stream", "usage", "repeat", "failing", "embed"])
        ask = {"role": "user", "content": f"question {number}"}
        options: dict[str, Any] = {"caching": True, "user": f"user-{number % 50}"}
        if shape == "embed":
            await router.aembedding(model="vectors", input=[f"text {number}"])
            truth.append({"kind": "embedding"})
            continue
        if shape == "failing":
            try:
                await router.acompletion(model="broken", messages=[ask], fallbacks=[])
            except litellm.InternalServerError:
                truth.append({"kind": "failed"})
            continue
        if shape in ("stream", "usage"):
            if shape == "usage":
                options["stream_options"] = {"include_usage": True}
            stream = await router.acompletion(
                model=group,
                messages=[ask],
                stream=True,
                user=options["user"],
                **{key: each for key, each in options.items() if key == "stream_options"},
            )
            text, name = "", ""
            async for chunk in stream:
                name = chunk.id
                text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
            truth.append({"kind": shape, "id": name, "wrote": text.removeprefix("by ")})
            continue
        answer = await router.acompletion(model=group, messages=[ask], **options)
        written = {"id": answer.id, "wrote": answer.choices[0].message.content.removeprefix("by ")}
        truth.append({"kind": "plain", **written})
        if shape == "repeat":
            await asyncio.sleep(0.05)
            again = await router.acompletion(model=group, messages=[ask], **options)
            hit = again._hidden_params.get("cache_hit") is True
            same = again.id == answer.id
            truth.append(
                {"kind": "cached" if hit else "plain", "id": again.id, "same": same}
                | ({} if hit else {"wrote": again.choices[0].message.content.removeprefix("by ")})
            )
    await asyncio.sleep(5)
    (FOLDER / "truth.jsonl").write_text("".join(json.dumps(each) + "\n" for each in truth))


asyncio.run(main())
