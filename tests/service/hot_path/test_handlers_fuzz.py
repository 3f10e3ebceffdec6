"""Bodies nobody meant: whatever comes, a handler answers or refuses with a reason of its own."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from running import write_config

from equipoise.agent.config.file import load_file
from equipoise.agent.maintenance.key_file import write_key
from equipoise.agent.service.api.problems import refusal_of
from equipoise.agent.service.daemon import Daemon
from equipoise.agent.service.hot_path.handlers import HotHandlers
from equipoise.agent.service.telemetry import Log
from equipoise.store.journal import JournaledStore

SOME = settings(deadline=None, max_examples=200)

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
names = st.sampled_from(["large", "small", "d0", "d1", "r0", "r1"]) | st.text(max_size=10)
numbers = st.floats() | st.integers() | st.just(0.5)


def usually(good: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(good, good, good, values)


request = st.fixed_dictionaries(
    {
        "request_id": usually(names),
        "routed": usually(names),
        "features": usually(st.fixed_dictionaries({"words": numbers}) | st.lists(numbers)),
    },
    optional={
        "unit_id": usually(names),
        "context_id": usually(names),
        "eligible": usually(st.lists(names, max_size=3)),
        "at": usually(numbers),
    },
)
outcome = st.fixed_dictionaries(
    {},
    optional={
        "decision_id": usually(names),
        "request_id": usually(names),
        "served": usually(names),
        "attempt": usually(st.integers()),
        "delivered": usually(st.booleans()),
        "outputs": usually(st.fixed_dictionaries({"seconds": numbers}) | st.lists(numbers)),
        "reward": usually(numbers),
        "metrics": usually(st.dictionaries(names, numbers, max_size=3)),
        "at": usually(numbers),
    },
)
bodies = {
    "decide": request,
    "decide_batch": st.fixed_dictionaries({"requests": usually(st.lists(request, max_size=4))}),
    "outcomes": outcome | st.lists(outcome, max_size=4),
}


@pytest.fixture(scope="module")
def hot(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    file = load_file(write_config(folder), {"store": str(folder / "log.db")})
    store = JournaledStore(file.service.store)
    key, log = write_key(store.path), Log("info", io.StringIO())
    daemon = Daemon(file.experiment, file.service, store, key, log)
    daemon.hot.decide(b'{"request_id":"r0","routed":"large","features":{"words":1}}')
    yield daemon.hot
    store.close()


def judged(hot: HotHandlers, name: str, body: bytes) -> int:
    """The status; anything that is no refusal of ours is raised and fails the test."""
    try:
        json.loads(getattr(hot, name)(body))
    except Exception as error:
        document = refusal_of(error).document
        assert document.status in (400, 404, 409, 413, 422)
        assert len(document.detail) <= 1000
        return document.status
    return 200


@pytest.mark.parametrize("name", list(bodies))
@SOME
@given(data=st.data())
def test_bodies_that_are_nearly_right(hot: HotHandlers, name: str, data: st.DataObject):
    body = data.draw(bodies[name])
    text = json.dumps(body).encode("utf-8", "surrogatepass")
    judged(hot, name, text)


@pytest.mark.parametrize("name", list(bodies))
@SOME
@given(data=st.data())
def test_bodies_with_bytes_changed(hot: HotHandlers, name: str, data: st.DataObject):
    text = bytearray(json.dumps(data.draw(bodies[name])).encode("utf-8", "surrogatepass"))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
        if not text:
            break
    judged(hot, name, bytes(text))


@pytest.mark.parametrize("name", list(bodies))
@SOME
@given(body=st.binary(max_size=200))
def test_any_bytes(hot: HotHandlers, name: str, body: bytes):
    judged(hot, name, body)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"requests":' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"request_id":"a","request_id":"b","routed":"large","features":{"words":1}}',
        b'{"request_id":"a","routed":"large","features":{"words":1e400}}',
        b'{"request_id":"a","routed":"large","features":{"words":1' + b"0" * 5000 + b"}}",
        b'{"request_id":"a","routed":"large","features":{"words":"\\ud800"}}',
        b'{"decision_id":"d' + b"9" * 18 + b'","reward":1}',
        b'{"decision_id":"d0","attempt":9223372036854775808}',
        b'{"decision_id":"d\xd9\xa3","reward":1}',
    ],
)
def test_bodies_that_broke_others(hot: HotHandlers, body: bytes):
    for name in bodies:
        judged(hot, name, body)
