"""An OpenAI endpoint whose answers are known: the prompt itself says what each model does with it.

A prompt is `TAG MODEL=WHAT,WHAT,... MODEL=WHAT ...`, such as `r17 large=500,ok small=ok`: the
first call of `large` about r17 fails, later ones succeed; a model that is not named succeeds. WHAT
is a status code, `late500` (that status after LATE_SECONDS), `ok`, `slow` (an answer after as
long), `cut0` or `cut1` (a stream that breaks before or after its first word; an answer that breaks
off, where nothing is streamed), `drip` (LATE_SECONDS between two words of a stream) or `plain` (ok,
and no usage). Every call is written to the record as one JSON line.

    python fake_openai.py PORT RECORD
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sys
import time
from collections import Counter
from typing import Any, TextIO

PROMPT_TOKENS, COMPLETION_TOKENS = 100, 20
LATE_SECONDS = 0.3
WORDS = 5  # of a streamed answer
_PART = re.compile(r"(\S+)=(\S+)")


class Endpoint:
    def __init__(self, record: TextIO) -> None:
        self.record = record
        self.calls: Counter[tuple[str, str]] = Counter()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while await self.exchange(reader, writer):
                pass
        writer.close()

    async def exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; whether the connection goes on."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = re.search(r"content-length: (\d+)", head)
        body = json.loads(await reader.readexactly(int(length[1]))) if length else {}
        if not body:
            answer(writer, 200, {"object": "list", "data": []})
            return True
        model, streamed = body["model"], bool(body.get("stream"))
        messages = body.get("messages") or body["input"]
        prompt = messages if isinstance(messages, str) else text_of(messages[-1]["content"])
        tag, *_ = prompt.split()
        plan = dict(_PART.findall(prompt)).get(model, "ok").split(",")
        what = plan[min(self.calls[tag, model], len(plan) - 1)]
        self.calls[tag, model] += 1
        line = {"tag": tag, "model": model, "what": what, "streamed": streamed, "at": time.time()}
        self.record.write(json.dumps(line) + "\n")
        self.record.flush()
        if what.startswith(("slow", "late")):
            await asyncio.sleep(LATE_SECONDS)
        status = what.removeprefix("late")
        if status.isdigit():
            answer(writer, int(status), {"error": {"message": f"told to: {what}", "code": status}})
            return True
        if streamed:
            usage = (body.get("stream_options") or {}).get("include_usage") and what != "plain"
            return await self.stream(writer, model, tag, what, bool(usage))
        message = {"role": "assistant", "content": f"{model} answers {tag}"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        content: dict[str, Any] = {**common(model, tag, "chat.completion"), "choices": [choice]}
        if "input" in body:
            content = response(model, tag, message["content"])
        elif what != "plain":
            content["usage"] = USAGE
        if what.startswith("cut"):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{")
            await writer.drain()
            return False
        answer(writer, 200, content)
        await writer.drain()
        return True

    async def stream(
        self, writer: asyncio.StreamWriter, model: str, tag: str, what: str, usage: bool
    ) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n")
        writer.write(b"transfer-encoding: chunked\r\n\r\n")
        chunk = common(model, tag, "chat.completion.chunk")
        words = [f"{model} ", "answers ", f"{tag} ", "at ", "length"]
        keep = {"cut0": 0, "cut1": 1}.get(what, WORDS)
        for at, word in enumerate(words[:keep]):
            delta = {"content": word} | ({"role": "assistant"} if at == 0 else {})
            send(
                writer, {**chunk, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
            )
            await writer.drain()
            await asyncio.sleep(LATE_SECONDS if what == "drip" else 0.002)
        if keep < WORDS:
            return False
        send(writer, {**chunk, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        if usage:
            send(writer, {**chunk, "choices": [], "usage": USAGE})
        frame(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True


USAGE = {
    "prompt_tokens": PROMPT_TOKENS,
    "completion_tokens": COMPLETION_TOKENS,
    "total_tokens": PROMPT_TOKENS + COMPLETION_TOKENS,
}


def text_of(content: Any) -> str:
    """Of a message, whose content is a text or a list of parts."""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def response(model: str, tag: str, text: str) -> dict[str, Any]:
    """An answer of /v1/responses."""
    part = {"type": "output_text", "text": text, "annotations": []}
    message = {"type": "message", "id": f"msg-{tag}", "role": "assistant", "status": "completed"}
    return {
        **common(model, tag, "response"),
        "created_at": time.time(),
        "status": "completed",
        "output": [{**message, "content": [part]}],
        "usage": {
            "input_tokens": PROMPT_TOKENS,
            "output_tokens": COMPLETION_TOKENS,
            "total_tokens": PROMPT_TOKENS + COMPLETION_TOKENS,
        },
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }


def common(model: str, tag: str, kind: str) -> dict[str, Any]:
    dated = f"{model}-2024-07-18"  # as providers answer with a dated name
    return {"id": f"chatcmpl-{tag}", "object": kind, "created": int(time.time()), "model": dated}


def answer(writer: asyncio.StreamWriter, status: int, content: object) -> None:
    body = json.dumps(content).encode()
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    writer.write(head.encode() + b"\r\n\r\n" + body)


def send(writer: asyncio.StreamWriter, chunk: object) -> None:
    frame(writer, b"data: " + json.dumps(chunk).encode() + b"\n\n")


def frame(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


async def main() -> None:
    with open(sys.argv[2], "a", encoding="utf-8") as record:
        server = await asyncio.start_server(Endpoint(record).serve, "127.0.0.1", int(sys.argv[1]))
        print(f"listening on {server.sockets[0].getsockname()[1]}", flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
