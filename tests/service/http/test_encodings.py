"""Compressed bodies are read like plain ones, and none is unpacked further than its limit."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import tracemalloc
import zlib
from collections.abc import Callable, Iterator

import pyarrow as pa
import pytest
from running import Running, running

from equipoise.agent.service.api.problems import Refusal
from equipoise.agent.service.http.encodings import (
    LARGEST_WINDOW,
    MOST_PARTS,
    PIECE,
    encoding_of,
    pieces,
    unpacked,
    unpacked_pieces,
)


def zstd(data: bytes) -> bytes:
    packed: bytes = pa.Codec("zstd").compress(data, asbytes=True)
    return packed


PACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "zstd": zstd,
}
TEXT = json.dumps([{"words": number, "text": "ü" * (number % 90)} for number in range(9000)])
DATA = TEXT.encode()


@pytest.mark.parametrize("encoding", PACK)
@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, len(DATA)])
def test_a_body_is_what_was_packed(encoding: str, size: int):
    data, packed = DATA[:size], PACK[encoding](DATA[:size])
    assert b"".join(pieces(packed, encoding, size)) == data
    assert asyncio.run(unpacked(packed, encoding, size)) == data
    assert all(0 < len(piece) <= PIECE for piece in pieces(packed, encoding, size))
    if size:
        with pytest.raises(Refusal, match="unpacks to more than"):
            list(pieces(packed, encoding, size - 1))


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_a_body_may_have_several_parts(encoding: str):
    pack = PACK[encoding]
    packed = pack(DATA[:70_000]) + pack(b"") + pack(DATA[70_000:])
    assert b"".join(pieces(packed, encoding, len(DATA))) == DATA


def outcome(packed: bytes, encoding: str, seen: Callable[[bytes], object] = bytes) -> int:
    """The status that a body would get; seen: called with every piece."""
    try:
        for piece in pieces(packed, encoding, 1 << 20):
            seen(piece)
    except Refusal as error:
        return error.document.status
    return 200


@pytest.mark.parametrize("encoding", PACK)
def test_a_body_that_is_damaged_is_refused_in_one_line(encoding: str):
    packed = PACK[encoding](DATA[:5000])
    behind = [] if encoding == "zstd" else [packed + b"more"]
    for damaged in (b"", packed[:-1], packed[: len(packed) // 2], b"plain text", *behind):
        if encoding == "zstd" and not damaged:
            continue  # no frame at all unpacks to nothing
        with pytest.raises(Refusal, match=f"^the body is not {encoding}: [^\n]+$") as refused:
            list(pieces(damaged, encoding, 1 << 20))
        assert refused.value.document.status == 400
    draw = random.Random(1)
    for _ in range(200):
        bytes_ = bytearray(packed)
        bytes_[draw.randrange(len(bytes_))] = draw.randrange(256)
        assert outcome(bytes(bytes_), encoding) in (200, 400, 413)


@pytest.mark.parametrize("encoding", PACK)
def test_a_bomb_is_refused_after_its_limit_was_unpacked(encoding: str):
    packed = PACK[encoding](bytes(1 << 26))
    assert len(packed) < 1 << 17
    sizes: list[int] = []
    tracemalloc.start()
    status = outcome(packed, encoding, lambda piece: sizes.append(len(piece)))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert status == 413
    assert sum(sizes) == 1 << 20
    assert most < 1 << 19


def frame(window: int, blocks: int = 1) -> bytes:
    """A zstd frame without content. window: the byte that says it."""
    empty = (0).to_bytes(3, "little")
    last = (1).to_bytes(3, "little")
    return b"\x28\xb5\x2f\xfd\x00" + bytes([window]) + empty * (blocks - 1) + last


def test_a_frame_that_asks_for_more_memory_than_a_content_coding_may_is_refused():
    largest = (23 - 10) << 3
    assert b"".join(pieces(frame(largest), "zstd", 10)) == b""
    skippable = b"\x5a\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"skip"
    for packed in (frame(largest + 1), frame(largest) + frame(17 << 3), skippable + frame(17 << 3)):
        with pytest.raises(Refusal, match=f"needs a window of more than {LARGEST_WINDOW} bytes"):
            list(pieces(packed, "zstd", 10))
    single = b"\x28\xb5\x2f\xfd\xa0" + (LARGEST_WINDOW + 1).to_bytes(4, "little") + b"\x01\x00\x00"
    with pytest.raises(Refusal, match="needs a window"):
        list(pieces(single, "zstd", 10))


def test_what_is_next_to_nothing_may_not_come_too_often():
    with pytest.raises(Refusal, match=f"more than {MOST_PARTS} blocks"):
        list(pieces(frame(0, MOST_PARTS + 1), "zstd", 10))
    skippable = b"\x50\x2a\x4d\x18" + bytes(4)
    with pytest.raises(Refusal, match=f"more than {MOST_PARTS} blocks"):
        list(pieces(skippable * (MOST_PARTS + 1), "zstd", 10))
    with pytest.raises(Refusal, match="more behind its end"):
        list(pieces(gzip.compress(b"") * (MOST_PARTS + 1), "gzip", 10))


def test_pieces_come_without_holding_up_the_loop():
    async def read() -> bytes:
        parts = [part async for part in unpacked_pieces(gzip.compress(DATA), "gzip", len(DATA))]
        assert len(parts) > 5
        return b"".join(parts)

    assert asyncio.run(read()) == DATA


@pytest.mark.parametrize(
    ("value", "encoding"),
    [("gzip", "gzip"), ("X-GZIP", "gzip"), (" zstd ", "zstd"), ("identity", ""), ("", "")],
)
def test_a_coding_is_known_in_any_spelling(value: str, encoding: str):
    assert encoding_of([(b"content-encoding", value.encode())]) == encoding
    assert encoding_of([]) == ""


@pytest.mark.parametrize("values", [["br"], ["gzip, zstd"], ["gzip", "gzip"], ["zstd;q=1"]])
def test_any_other_coding_is_refused_with_those_that_are_taken(values: list[str]):
    with pytest.raises(Refusal, match="expected one of gzip, zstd, deflate") as refused:
        encoding_of([(b"content-encoding", value.encode()) for value in values])
    assert refused.value.document.status == 415
    assert refused.value.headers == {"accept-encoding": "gzip, zstd, deflate"}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    service = "[service.limits]\nbody_bytes = 4096\nbulk_bytes = 2000000\npacked_bytes = 60000\n"
    with running(tmp_path_factory.mktemp("packed"), service) as started:
        yield started


def request(name: str) -> bytes:
    body = {"request_id": name, "routed": "large", "features": {"words": 3}}
    return json.dumps(body).encode()


@pytest.mark.parametrize("encoding", PACK)
def test_every_route_takes_them(daemon: Running, encoding: str):
    pack, header = PACK[encoding], {"Content-Encoding": encoding}

    def ask(method: str, path: str, body: object) -> tuple[int, bytes]:
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = daemon.ask(method, path, pack(text), **header)
        return answer.status, answer.body

    status, made = ask("POST", "/v1/decide", request(encoding))
    assert (status, json.loads(made)["request_id"]) == (200, encoding)
    # The same request, plain, is the same decision: nothing else was read.
    assert daemon.ask("POST", "/v1/decide", request(encoding)).body == made
    batch = {"requests": [json.loads(request(f"{encoding}-2"))]}
    assert ask("POST", "/v1/decide/batch", batch)[0] == 200
    assert ask("POST", "/v1/outcomes", {"request_id": encoding, "reward": 0.5})[0] == 200
    row = {"routed": "large", "features": {"words": 1}, "outputs": {"seconds": 1}, "reward": 1}
    lines = "\n".join(json.dumps({**row, "request_id": f"{encoding}{n}"}) for n in range(3000))
    status, counted = ask("POST", "/v1/observations", lines.encode())
    assert (status, json.loads(counted)["rows"]) == (200, 3000)
    assert ask("PUT", "/v1/budget", {"requests": 100})[0] == 200


@pytest.mark.parametrize("encoding", PACK)
def test_every_limit_holds(daemon: Running, encoding: str):
    header, pack = {"Content-Encoding": encoding}, PACK[encoding]
    bomb = daemon.ask("POST", "/v1/decide", pack(bytes(1 << 24)), **header)
    assert bomb.status == 413
    assert bomb.json["detail"] in (
        "the body unpacks to more than 4096 bytes",
        "the body is larger than 4096 bytes",
    )
    lines = daemon.ask("POST", "/v1/observations", pack(b"\n" * (1 << 22)), **header)
    assert lines.json["detail"] == "the body unpacks to more than 2000000 bytes"
    noise = random.Random(2).randbytes(70_000)
    large = daemon.ask("POST", "/v1/observations", pack(noise), **header)
    assert large.json["detail"] == "the body is larger than 60000 bytes"
    broken = daemon.ask("POST", "/v1/decide", pack(request("broken"))[:-6], **header)
    assert (broken.status, broken.json["field"]) == (400, "content-encoding")
    assert daemon.ask("POST", "/v1/decide", request(f"after-{encoding}")).status == 200


def test_an_unknown_coding_is_refused_by_the_hot_path_and_others(daemon: Running):
    for path in ("/v1/decide", "/v1/outcomes", "/v1/observations", "/v1/plan"):
        answer = daemon.ask("POST", path, request("br"), **{"Content-Encoding": "br"})
        assert answer.status == 415, path
        assert answer.headers["accept-encoding"] == "gzip, zstd, deflate"
