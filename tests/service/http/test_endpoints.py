"""What an operation declares is what its endpoint does: weight, body, query, commit, counters."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
from typing import Any

import msgspec
import pytest

from equipoise.agent.config.service import LimitSettings, ServiceSettings
from equipoise.agent.service.api.operations import NDJSON, Operation, Parameter, declared
from equipoise.agent.service.api.problems import Refusal
from equipoise.agent.service.http.access import Doors, Tokens
from equipoise.agent.service.http.endpoints import Call, Endpoint, Room, read_plain_or_packed
from equipoise.agent.service.telemetry import Counters, Log


class Handlers:
    def __init__(self) -> None:
        self.go_on = asyncio.Event()

    @Operation("GET", "/thing", weight=2, parameters=(Parameter("name", "query", "Any."),))
    async def one_thing(self, call: Call) -> dict[str, str]:
        """What there is.

        Not for the document.
        """
        await self.go_on.wait()
        return dict(call.query)

    @Operation("PUT", "/thing", body=dict[str, int], problems=(404,))
    async def put_thing(self, call: Call) -> dict[str, int]:
        """Change it."""
        return msgspec.json.decode(call.body, type=dict[str, int])

    async def no_operation(self, call: Call) -> None:
        """Not declared."""


def endpoint(
    handlers: Handlers, counters: Counters, committed: Any = None, log: io.StringIO | None = None
) -> Endpoint:
    settings = ServiceSettings(limits=LimitSettings(reads=3))
    served = {operation.method: (operation, handler) for operation, handler in declared(handlers)}
    doors = Doors(Tokens(()), settings)
    lines = Log("info", io.StringIO() if log is None else log)
    return Endpoint("/thing", served, doors, settings.limits, counters, lines, committed)


async def ask(served: Endpoint, method: str, body: bytes = b"", query: bytes = b"") -> Any:
    """Status and JSON of the answer."""
    messages: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        messages.append(message)

    scope = {"method": method, "headers": [], "path_params": {}, "query_string": query}
    await served(scope, receive, send)
    return messages[0]["status"], json.loads(messages[1]["body"])


def test_a_declaration_says_each_thing_once():
    reads, puts = (operation for operation, _ in declared(Handlers()))
    assert (reads.name, reads.summary, reads.answer) == (
        "oneThing",
        "What there is.",
        dict[str, str],
    )
    assert reads.statuses == [401, 403, 421, 429, 431, 500, 503]
    assert puts.statuses == [400, 401, 403, 404, 413, 415, 421, 422, 431, 500]
    lines = Operation("POST", "/lines", body=int, content=NDJSON)
    assert lines.statuses == [401, 403, 408, 413, 415, 421, 431, 500]


def test_no_more_is_waited_for_at_once_than_the_limit_of_reads():
    async def work() -> None:
        handlers, counters = Handlers(), Counters()
        served = endpoint(handlers, counters)
        first = asyncio.create_task(ask(served, "GET"))
        await asyncio.sleep(0)
        second = asyncio.create_task(ask(served, "GET"))
        for _ in range(5):
            await asyncio.sleep(0)
        assert second.done(), "it waits for nothing"
        status, refusal = second.result()
        assert (status, refusal["limit"], refusal["retry_after"]) == (429, "3 at once", 1.0)
        assert (await ask(served, "PUT", b"{}"))[0] == 200, "what weighs nothing is not counted"
        handlers.go_on.set()
        assert (await first)[0] == 200
        assert (await ask(served, "GET", query=b"name=a%20b")) == (200, {"name": "a b"})
        assert counters.responses == {("/thing", 200): 3, ("/thing", 429): 1}

    asyncio.run(work())


def test_what_changes_something_is_answered_once_it_is_committed():
    async def work() -> None:
        handlers, counters, log = Handlers(), Counters(), io.StringIO()
        handlers.go_on.set()

        async def broken() -> None:
            raise OSError("the disk is gone")

        served = endpoint(handlers, counters, broken, log)
        status, refusal = await ask(served, "PUT", b'{"a": 1}')
        assert status == 500
        assert "disk" not in refusal["detail"]
        assert '"fault":"OSError"' in log.getvalue()
        assert (await ask(served, "GET"))[0] == 200, "what is read promises nothing"

    asyncio.run(work())


@pytest.mark.parametrize("query", [b"other=1", b"name=a&name=b", b"name=%ff"])
def test_a_query_that_was_not_declared_is_refused(query: bytes):
    async def work() -> None:
        handlers = Handlers()
        handlers.go_on.set()
        status, refusal = await ask(endpoint(handlers, Counters()), "GET", query=query)
        assert (status, refusal["field"]) == (422, "query")

    asyncio.run(work())


def test_a_method_that_was_not_declared_is_refused():
    async def work() -> None:
        served = endpoint(Handlers(), Counters())
        assert (await ask(served, "POST"))[1]["limit"] == "GET, HEAD, PUT"

    asyncio.run(work())


def body_of(parts: list[bytes], **headers: str) -> tuple[Any, Any]:
    """The scope of a request, and what gives its body in parts."""
    waiting = list(parts)

    async def receive() -> Any:
        part = waiting.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(waiting)}

    names = [(name.replace("_", "-").encode(), text.encode()) for name, text in headers.items()]
    return {"headers": names}, receive


def test_room_is_taken_before_a_body_is_read_and_given_back():
    limits = LimitSettings(packed_bytes=60)
    room = Room(200)
    packed = gzip.compress(b"x" * 40)
    length = len(packed)

    async def sizes(parts: list[bytes], **headers: str) -> list[int]:
        needed: list[int] = []
        scope, receive = body_of(parts, **headers)
        with room.share() as need:

            def noted(size: int) -> None:
                needed.append(size)
                need(size)

            await read_plain_or_packed(scope, receive, 100, limits, noted)
        return needed

    read = asyncio.run
    assert read(sizes([b"12", b"34"], content_length="4")) == [4, 4]
    assert read(sizes([b"12", b"34"])) == [100, 4]
    named = {"content_encoding": "gzip"}
    assert read(sizes([packed], content_length=f"{length}", **named)) == [length, length + 100, 40]
    assert read(sizes([packed], **named)) == [60, length + 100, 40]

    with room.share() as first:
        first(150)
        with pytest.raises(Refusal, match="bodies of more than 200 bytes at once") as refused:
            read(sizes([b"never read"]))
        assert refused.value.document.status == 429
        with pytest.raises(Refusal, match="200 bytes"):  # there is room for it packed, not unpacked
            read(sizes([packed], **named))
        first(100)
        assert read(sizes([b"12"])) == [100, 2]
        with pytest.raises(Refusal, match="larger than 100 bytes"):
            read(sizes([], content_length="101"))
    with room.share() as whole:
        whole(200)
