"""Two ways through the server, one answer: in the parser's call, and by ASGI."""

from __future__ import annotations

import json
import time

import pytest
from raw_requests import TOKEN, Raw, asked, in_chunks, plainly
from running import Running, running

from equipoise.agent.config.service import ServiceSettings, TokenSettings
from equipoise.agent.service.hot_path.application import KNOWN_BYTES, MOST_KNOWN, Application
from equipoise.agent.service.hot_path.handlers import HotHandlers
from equipoise.agent.service.http.access import Doors, Tokens
from equipoise.agent.service.telemetry import Counters, Log

SERVICE = """
[service.limits]
body_bytes = 5000
body_seconds = 0.5
idle_seconds = 1
[[service.tokens]]
name = "router"
token = "a-token-of-some-length"
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    with running(tmp_path_factory.mktemp("direct"), SERVICE) as started:
        yield started


@pytest.mark.parametrize(
    ("body", "more", "status"),
    [
        (asked("same"), TOKEN, 200),
        (asked("same", 2.0), TOKEN, 409),
        (asked("other", "many"), TOKEN, 422),
        ("{", TOKEN, 400),
        (asked("same"), "", 401),
        (asked("same"), "authorization: Bearer wrong\r\n", 401),
    ],
)
def test_both_ways_answer_alike(daemon: Running, body: str, more: str, status: int):
    with Raw(daemon) as one:
        answers = []
        for way in (plainly, in_chunks, plainly):
            one.say(way(body, more))
            answers.append(one.hear())
        assert answers[0] == answers[1] == answers[2]
        assert answers[0][0] == status


def test_requests_on_one_connection_are_answered_in_order_whatever_their_way(daemon: Running):
    health = "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
    with Raw(daemon) as one:
        one.say(plainly(asked("o1")) + health + plainly(asked("o2")) + in_chunks(asked("o3")))
        one.say(plainly(asked("o4")) + health)
        said = [json.loads(one.hear()[2]).get("request_id", "health") for _ in range(6)]
    assert said == ["o1", "health", "o2", "o3", "o4", "health"]


def test_a_refusal_does_not_overtake_the_answer_before_it(daemon: Running):
    endless = "POST /v1/decide HTTP/1.1\r\nhost: x\r\n" + 40 * f"filler: {1000 * 'a'}\r\n"
    with Raw(daemon) as one:
        one.say(plainly(asked("first")) + endless)
        assert one.hear()[0] == 200
        assert one.hear()[0] == 431


def test_a_request_may_come_in_any_pieces(daemon: Running):
    text = plainly(asked("pieces")).encode()
    with Raw(daemon) as one:
        for cut in (1, 20, 60, len(text) - 30, len(text) - 1):
            one.say(text[:cut])
            time.sleep(0.02)
            one.say(text[cut:])
            assert one.hear()[0] == 200


def test_a_body_that_does_not_come_is_given_up(daemon: Running):
    with Raw(daemon) as one:
        one.say(plainly(asked("slow"))[:-5])
        assert one.hear()[0] == 408
        assert one.hear()[0] == 0


def test_a_connection_is_kept_as_long_as_it_was_agreed(daemon: Running):
    with Raw(daemon) as one:
        one.say(plainly(asked("close"), TOKEN + "connection: close\r\n"))
        status, headers, _ = one.hear()
        assert (status, headers["connection"]) == (200, "close")
        assert one.hear()[0] == 0
    with Raw(daemon) as one:
        one.say(plainly(asked("old"), version="1.0"))
        assert one.hear()[0] == 200
        assert one.hear()[0] == 0
    with Raw(daemon) as one:
        for name in ("idle", "idle no more"):  # the first answer does not end it
            one.say(plainly(asked(name)))
            assert one.hear()[0] == 200
        assert one.hear()[0] == 0, "after a second without a request"


def test_a_header_that_came_before_is_judged_as_then(daemon: Running):
    wrong = TOKEN.replace("a-token", "b-token")
    with Raw(daemon) as one:
        for number in range(3):  # of one length, so that the headers are the same bytes
            for more, status in ((TOKEN, 200), (wrong, 401), ("", 401)):
                one.say(plainly(asked(f"again-{number}"), more))
                assert one.hear()[0] == status
        for text in ("{", asked("again-0", 2.0), asked("again-0")):  # each is judged by itself
            one.say(plainly(text))
        assert [one.hear()[0] for _ in range(3)] == [400, 409, 200]
        # Less than was announced, then the rest; and two at once.
        text = plainly(asked("again-4"))
        one.say(text[:-3])
        time.sleep(0.02)
        one.say(text[-3:] + plainly(asked("again-5")) + plainly(asked("again-6")))
        said = [json.loads(one.hear()[2])["request_id"] for _ in range(3)]
        assert said == ["again-4", "again-5", "again-6"]


def test_what_looks_like_a_request_and_is_part_of_another_is_not_answered(daemon: Running):
    known = plainly(asked("smuggled"))
    with Raw(daemon) as one:
        for _ in range(2):
            one.say(known)
            assert one.hear()[0] == 200
        for first, status, said in (
            (plainly("x" * len(known)).removesuffix("x" * len(known)), 400, b"JSON"),  # its body
            ("GET /healthz HTTP/1.1\r\nfoo: ", 200, b"alive"),  # a line of its header
        ):
            one.say(first)
            time.sleep(0.05)
            one.say(known)
            answer = one.hear()
            assert answer[0] == status
            assert said in answer[2]


def test_a_header_is_known_for_its_own_request_alone(daemon: Running):
    one_decision = asked("own-1")
    outcome = json.dumps({"request_id": "own-0", "reward": 1.0}).ljust(len(one_decision))
    both = plainly(one_decision) + plainly(outcome).replace("/v1/decide", "/v1/outcomes")
    with Raw(daemon) as one:
        one.say(plainly(asked("own-0")))
        assert one.hear()[0] == 200
        one.say(both)
        assert [one.hear()[0] for _ in "ab"] == [200, 403]
        one.say(plainly(one_decision))
        assert json.loads(one.hear()[2])["request_id"] == "own-1"
    for _ in range(3):
        with Raw(daemon) as one:
            one.say(plainly(asked("closing")))
            assert one.hear()[0] == 200
            one.say(plainly(asked("closing"), TOKEN + "connection: close\r\n"))
            assert one.hear()[1]["connection"] == "close"
            assert one.hear()[0] == 0


def test_a_connection_that_is_used_is_not_idle(daemon: Running):
    with Raw(daemon) as one:
        for number in range(4):
            one.say(plainly(asked(f"used-{number}")))
            assert one.hear()[0] == 200
            time.sleep(0.6)  # of the second that it may be idle


def test_a_header_is_forgotten_when_the_tokens_are_others():
    tokens = [TokenSettings(name="router", token="a-token-of-some-length")]
    settings, made = ServiceSettings(tokens=tokens), Tokens(tokens, {})
    hot = HotHandlers(None, None, None, Counters(), 10, None)  # type: ignore[arg-type]
    doors = Doors(made, settings)
    front = Application(hot, None, None, doors, settings.limits, Counters(), Log("error"))  # type: ignore[arg-type]
    header = b"POST /v1/outcomes HTTP/1.1\r\nauthorization: Bearer a-token-of-some-length\r\n\r\n"
    headers = [(b"authorization", b"Bearer a-token-of-some-length")]
    heard: list[int] = []
    front.answer("/v1/outcomes", headers, b"{", lambda status, *_: heard.append(status), header)
    known = front.recall(header)
    assert heard == [400]
    assert known is not None
    assert (known.path, known.caller.name, known.length) == ("/v1/outcomes", "router", 1)
    assert front.recall(header + b" ") is None
    kept = repr(vars(front)) + repr(vars(made))
    assert "a-token" not in kept, "only a digest of what holds a token is kept"
    made.replace([TokenSettings(name="router", token="another-token-of-length")], {})
    assert front.recall(header) is None
    front.answer("/v1/outcomes", headers, b"{", lambda status, *_: heard.append(status), header)
    assert heard == [400, 401]
    assert front.recall(header) is None


def test_headers_that_are_remembered_are_bounded():
    settings = ServiceSettings()
    hot = HotHandlers(None, None, None, Counters(), 10, None)  # type: ignore[arg-type]
    doors = Doors(Tokens([]), settings)
    front = Application(hot, None, None, doors, settings.limits, Counters(), Log("error"))  # type: ignore[arg-type]
    for number in range(3 * MOST_KNOWN):
        header = b"POST /v1/outcomes HTTP/1.1\r\nnumber: %d\r\n\r\n" % number
        front.answer("/v1/outcomes", [], b"{", lambda *_: None, header)
        assert front.recall(header) is not None
    long = b"x" * (KNOWN_BYTES + 1)
    front.answer("/v1/outcomes", [], b"{", lambda *_: None, long)
    assert front.recall(long) is None
    assert len(front._admitted) <= MOST_KNOWN


def test_what_asks_first_whether_it_may_send_is_told(daemon: Running):
    body = asked("expect")
    with Raw(daemon) as one:
        one.say(plainly(body, TOKEN + "expect: 100-continue\r\n").removesuffix(body))
        assert one.file.readline().startswith(b"HTTP/1.1 100 ")
        assert one.file.readline() == b"\r\n"
        one.say(body)
        assert one.hear()[0] == 200


def test_a_large_body_goes_the_other_way_and_is_refused(daemon: Running):
    with Raw(daemon) as one:
        one.say(plainly(" " * 5001))
        status, headers, _ = one.hear()
        assert (status, headers["connection"]) == (413, "close")
