"""The LiteLLM door against the real proxy and Router, in front of an endpoint whose answers are
known."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from harness import PEERS, ROOT, Report, python_with
from litellm_peers import (
    FALLBACKS,
    KEY,
    PLUGIN,
    PROXY,
    Fakes,
    copy_plugin,
    deployments,
    endpoints,
    free_port,
    proxy,
)
from running import Running, running, until

LIBRARIES = ("1.108.7", "1.110.2")
REQUESTS = 2000
ROUTED = 240  # requests through a Router of a program
AT_ONCE = 8
AWAY = 200  # requests while the daemon is
TURNS, BLOCK = 60, 25
SEED = 20261128
MODELS = {"gpt-4o": "large", "gpt-4o-mini": "small", "gpt-4.1": None}  # the last is a mere fallback
VALUES = {"large": 0.8, "small": 0.5}  # true mean reward of each model's own answers
COSTS = {"gpt-4o": 0.00045, "gpt-4o-mini": 2.7e-05}
LATE_SECONDS = 0.3  # as the endpoint takes them
NO_VALUE = -1.0  # what the experiment takes where an output is left out
CONFIG = """
name = "chat"
models = [{name = "large", price = 0.02}, {name = "small", price = 0.01}]
[reward]
window = 25.0
[features]
context = [{type = "number", name = "words", low = 0, scale = 100},
  {type = "category", name = "plan", values = ["free", "paid"], other = true, missing = 0}]
outputs = [{type = "number", name = "seconds"},
  {type = "number", name = "tokens", missing = -1}, {type = "number", name = "usd", missing = -1}]
[policy]
assignment = "uniform"
rate = 0.8
"""
TOKENS = """
[[service.tokens]]
name = "proxy"
token = "route-0123456789abcdef0123456789"
[[service.tokens]]
name = "operator"
scope = "admin"
token = "admin-0123456789abcdef0123456789"
"""


def drive(folder: Path, report: Report) -> None:
    report.peer = f"{PROXY[0]} as the proxy; litellm {' and '.join(LIBRARIES)} in a program."
    with endpoints(folder) as fakes:
        traffic(folder, fakes, report)
        declared(folder, fakes, report)
        other_endpoints(folder, fakes, report)
        daemon_away(folder, fakes, report)
        overhead(folder, fakes, report)
        routers(folder, fakes, report)


# The traffic, whose truth is known.


@dataclass
class Sent:
    """A request, and what its user got. model: that wrote the answer, "" for none."""

    tag: str
    kind: str
    plan: str = ""
    streamed: bool = False
    usage: bool = False
    user: str = ""
    paid: bool = False
    call_id: str | None = None
    at: float = 0.0
    until: float = 0.0
    status: int = 0
    model: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    reward: float | None = None

    def body(self) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": "chat",
            "messages": [{"role": "user", "content": f"{self.tag} {self.plan}"}],
            "user": self.user,
            "metadata": {"plan": "paid" if self.paid else "free"},
        }
        if self.streamed:
            body["stream"] = True
            if self.usage:
                body["stream_options"] = {"include_usage": True}
        return body


BOTH = "gpt-4o={0} gpt-4o-mini={0}"
PLANS = {  # of every 100 requests that are not asked twice
    "plain": (46, ""),
    "uncounted": (4, BOTH.format("plain")),
    "retried": (12, BOTH.format("500,ok")),
    "limited": (4, BOTH.format("429,ok")),
    "late": (4, BOTH.format("late500,ok")),
    "slow": (4, BOTH.format("slow")),
    "down": (10, "gpt-4o-mini=500 gpt-4o=ok"),
    "backup": (4, "gpt-4o-mini=500 gpt-4o=500"),
    "dead": (2, BOTH.format("400") + " gpt-4.1=400"),
    "cut0": (4, BOTH.format("cut0,ok")),
    "cut1": (3, BOTH.format("cut1")),
    "left": (2, BOTH.format("slow")),  # the client leaves before the first word
    "stopped": (2, BOTH.format("drip")),  # or after it
}
STREAMED = ("cut0", "cut1", "left", "stopped")


def planned(number: int) -> list[list[Sent]]:
    """Requests in lists of those that wait for one another: most alone, some of them in pairs."""
    draw = random.Random(SEED)
    kinds = [kind for kind, (times, _) in PLANS.items() for _ in range(times)]
    lists: list[list[Sent]] = []
    left = number
    while left > 0:
        tag = f"r{number - left}"
        common: dict[str, Any] = {"user": f"u{draw.randrange(50)}", "paid": draw.random() < 0.4}
        kind = draw.choice(kinds) if draw.random() < 0.88 else draw.choice(("cached", "again"))
        if kind == "cached":  # two users ask the same
            streamed = draw.random() < 0.3
            pair = [Sent(tag, kind, streamed=streamed, **common) for _ in range(2)]
        elif kind == "again":  # a client repeats a request, after an answer or a failure
            plan = draw.choice(("", BOTH.format("400,ok") + " gpt-4.1=400"))
            pair = [Sent(tag, kind, plan, call_id=f"call-{tag}", **common) for _ in range(2)]
        else:
            streamed = kind in STREAMED or draw.random() < 0.3
            usage = streamed and draw.random() < 0.5
            call_id = f"call-{tag}" if kind == "left" else None
            pair = [Sent(tag, kind, PLANS[kind][1], streamed, usage, call_id=call_id, **common)]
        lists.append(pair)
        left -= len(pair)
    return lists


async def send_all(port: int, lists: Sequence[Sequence[Sent]]) -> None:
    queue = iter(lists)
    limits = httpx.Limits(max_connections=4 * AT_ONCE)
    async with httpx.AsyncClient(timeout=60.0, limits=limits, headers=KEY) as client:

        async def worker() -> None:
            for chained in queue:
                for sent in chained:
                    await send(client, port, sent)

        await asyncio.gather(*(worker() for _ in range(AT_ONCE)))


async def send(client: httpx.AsyncClient, port: int, sent: Sent) -> None:
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    headers = {} if sent.call_id is None else {"x-litellm-call-id": sent.call_id}
    sent.at = time.time()
    text = ""
    with contextlib.suppress(TimeoutError):
        async with (
            asyncio.timeout(0.15 if sent.kind == "left" else 60.0),
            client.stream("POST", url, json=sent.body(), headers=headers) as response,
        ):
            sent.status, sent.headers = response.status_code, response.headers
            if sent.streamed and response.status_code == 200:
                async for line in response.aiter_lines():
                    text += delta(line)
                    if text and sent.kind == "stopped":
                        break
            else:
                content = json.loads(await response.aread())
                if "choices" in content:
                    text = content["choices"][0]["message"]["content"]
    sent.until = time.time()
    sent.model = text.split(" ")[0]


def delta(line: str) -> str:
    """The text in a line of a stream."""
    if not line.startswith("data: {"):
        return ""
    content = json.loads(line.removeprefix("data: "))
    choices = content.get("choices") or [{}]
    return (choices[0].get("delta") or {}).get("content") or ""


def traffic(folder: Path, fakes: Fakes, report: Report) -> None:
    """All of LiteLLM at once: every record of the daemon against the endpoint's own."""
    place = folder / "traffic"
    place.mkdir()
    draw = random.Random(SEED + 1)
    lists = planned(REQUESTS)
    everyone = [sent for chained in lists for sent in chained]
    with running(place, TOKENS, config=CONFIG) as daemon:
        with proxy(folder, fakes, daemon.port, timeout=1.0) as port:
            began = time.monotonic()
            asyncio.run(send_all(port, lists))
            seconds = time.monotonic() - began
            kinds = Counter(sent.kind for sent in everyone)
            report.add("requests", f"{len(everyone):,} in {seconds:.0f} s, {dict(kinds)}")
            rate(daemon, lists, draw)
        # The proxy's end has delivered all reports.
        found = compare(daemon, lists, fakes.calls())
        report.add("records right", f"all, {dict(found)}")
        certified(daemon, len(everyone) - sum(pair[0].kind == "again" for pair in lists), report)
        daemon.stop()
    audited(place, report)


def audited(place: Path, report: Report) -> None:
    order = [ROOT / ".venv" / "bin" / "equipoise", "audit", place / "log.db", "--json"]
    found = json.loads(subprocess.run(order, capture_output=True, check=True).stdout)
    assert found["clean"], found
    report.add("audit", f"clean, {found['decisions']:,} propensities recomputed")


def rate(daemon: Running, lists: Sequence[Sequence[Sent]], draw: random.Random) -> None:
    """Users rate nine answers in ten; the application sends the thumb with the request's id."""
    for chained in lists:
        for sent in chained:
            value = VALUES.get(MODELS.get(sent.model) or "", 0.5)
            if sent.model and sent is chained[-1 if sent.kind == "again" else 0]:
                thumb, rated = float(draw.random() < value), draw.random() < 0.9
                if rated:
                    sent.reward = thumb
                    body = {
                        "request_id": sent.headers["x-litellm-call-id"],
                        "outcome_token": sent.headers["x-equipoise-outcome-token"],
                        "reward": thumb,
                    }
                    answer = daemon.ask("POST", "/v1/outcomes", body, token=route())
                    assert answer.status == 200, answer.body


def route() -> str:
    return str(PLUGIN["token"])


def compare(
    daemon: Running,
    lists: Sequence[Sequence[Sent]],
    calls: Mapping[str, Sequence[Mapping[str, Any]]],
    program: bool = False,
) -> Counter[str]:
    """Every decision of the daemon with what the endpoint was asked and the user got; how many
    requests ended how. program: sent through a Router of their own."""
    kinds: Counter[str] = Counter()
    for chained in lists:
        for sent in chained:
            if sent.kind == "again" and sent is chained[1]:
                assert sent.headers["x-litellm-call-id"] == chained[0].headers["x-litellm-call-id"]
                continue
            call_id = sent.call_id or sent.headers["x-litellm-call-id"]
            logged = daemon.ask("GET", f"/v1/decisions?request_id={call_id}", token=route()).json
            own = [call for call in calls.get(sent.tag, ()) if sent.at <= call["at"] <= sent.until]
            if sent.kind == "left" or (sent.kind == "again" and not chained[0].model):
                own = list(calls[sent.tag])  # a failure that was repeated is one story
            kinds[check(sent, chained, logged, own, program)] += 1
    return kinds


def check(
    sent: Sent,
    chained: Sequence[Sent],
    logged: Any,
    calls: Sequence[Mapping[str, Any]],
    program: bool,
) -> str:
    """One decision; what came of it, in a word."""
    assert "decision" in logged, (sent, logged, calls)
    drawn = logged["decision"]["model"]
    where = (sent, logged, calls)
    answered = chained[1] if sent.kind == "again" and not sent.model else sent
    listed = [part["attempts"] for part in logged["outcomes"] if part["attempts"]]
    assert len([part for part in logged["outcomes"] if part["reward"] is not None]) <= 1, where
    assert logged["unit_id"] == (sent.user or logged["decision"]["request_id"]), where
    if program and sent.kind == "stopped":  # LiteLLM has no event for it, the application must say
        assert not listed, where
        return "stopped"
    attempts = listed[-1] if listed else []
    expected = [
        (
            MODELS[call["model"]],
            "failed" if at + 1 < len(calls) or not answered.model else "delivered",
        )
        for at, call in enumerate(calls)
    ]
    if sent.kind == "cut1":
        expected[-1] = (expected[-1][0], "failed")
    if sent.kind in ("left", "stopped"):
        expected = [(drawn, "delivered")]
    if not calls:
        expected = [(drawn, "cached")]
    assert [(each["model"], each["status"]) for each in attempts] == expected, where
    assert attempts[0]["model"] == drawn, where
    last = logged["outcomes"]
    outputs = [part["outputs"] for part in last if part["outputs"] is not None]
    delivered = attempts[-1]["status"] == "delivered"
    assert len(outputs) == delivered, where
    # A program's Router does not say which failure is the last one.
    assert len(listed) == (len(attempts) if program else 2 if answered is not sent else 1), where
    if not delivered:
        return "cached" if not calls else "failed"
    seconds, tokens, usd = outputs[0]
    known = not sent.streamed and sent.kind != "uncounted"
    model = calls[-1]["model"]
    assert tokens == (20.0 if known else NO_VALUE), where
    assert usd == (COSTS.get(model, usd) if known else NO_VALUE), where
    assert (sent.kind == "slow") * LATE_SECONDS <= seconds + 0.01, where
    # Of the attempt that answered: without what the failed one took, streamed or not.
    if sent.kind == "late" or not (program or sent.kind in ("left", "stopped")):
        within = sent.until - sent.at - (sent.kind == "late") * LATE_SECONDS
        assert seconds <= within + 0.1, where
    return "as drawn" if attempts[-1]["model"] == drawn else "by another model"


def certified(daemon: Running, decisions: int, report: Report) -> None:
    def closed() -> Any:
        estimates = daemon.ask("GET", "/v1/estimates", token=route()).json
        return estimates if estimates["waiting"] == 0 else None

    estimates = until(closed)
    assert estimates["decisions"] == decisions, estimates
    rows = {each["model"]: each for each in estimates["models"]}
    words = []
    for model, value in VALUES.items():
        low, high, shown = rows[model]["lower"], rows[model]["upper"], rows[model]["shown"]
        assert low <= value <= high, rows
        assert abs(shown["value"] - value) < 4 * shown["standard_error"], rows
        words.append(f"{model} {value}: {shown['value']:.3f}, certified [{low:.3f}, {high:.3f}]")
    report.add("truth inside", f"{'; '.join(words)}; {estimates['certified_rows']:,} rows")


def declared(folder: Path, fakes: Fakes, report: Report) -> None:
    """What two settings promise: drawn requests that no cache answers, and counts of streams."""
    place = folder / "declared"
    place.mkdir()
    lists = [[Sent(f"f{at}", "cached", user="u") for _ in range(2)] for at in range(AWAY // 4)]
    streams = [Sent(f"s{at}", "plain", "", True, at % 2 == 0) for at in range(AWAY // 4)]
    with running(place, TOKENS, config=CONFIG) as daemon:
        options = {"cached": "fresh", "stream_usage": True, "timeout": 1.0}
        with proxy(folder, fakes, daemon.port, **options) as port:
            asyncio.run(send_all(port, [*lists, *([each] for each in streams)]))
        hits: Counter[bool] = Counter()
        for sent in [each for pair in lists for each in pair] + streams:
            call_id = sent.headers["x-litellm-call-id"]
            logged = daemon.ask("GET", f"/v1/decisions?request_id={call_id}", token=route()).json
            assert "outcomes" in logged, (sent, logged)
            (part,) = logged["outcomes"]
            if sent.kind == "cached":
                hit = part["attempts"][-1]["status"] == "cached"
                assert not (hit and logged["decision"]["randomized"]), (sent, logged)
                hits[hit] += 1
            else:
                assert (part["outputs"][1] == 20.0) == sent.usage, (sent, logged)
        daemon.stop()
    report.add(
        "cached = fresh", f"{hits[True]} of {hits.total()} from the cache, none of them drawn"
    )
    report.add(
        "stream_usage", f"{len(streams) // 2} of {len(streams)} streams with tokens, all real"
    )


ENDPOINTS = {
    "/v1/messages": {"max_tokens": 50},
    "/v1/responses": {},
    "/v1/completions": {},
}


def other_endpoints(folder: Path, fakes: Fakes, report: Report) -> None:
    """Requests of other shapes are drawn and reported too, once, retries and fallbacks included."""
    place = folder / "endpoints"
    place.mkdir()
    plans = ["", BOTH.format("500,ok"), "gpt-4o-mini=500 gpt-4o=ok"]
    with running(place, TOKENS, config=CONFIG) as daemon:
        with proxy(folder, fakes, daemon.port, timeout=1.0, cache=False) as port:
            asked = []
            for at in range(AWAY // 2):
                for path, more in ENDPOINTS.items():
                    prompt = f"e{at}{path} {plans[at % len(plans)]}"
                    shaped: dict[str, Any] = {"input": prompt}
                    if path == "/v1/completions":
                        shaped = {"prompt": prompt}
                    elif path == "/v1/messages":
                        shaped = {"messages": [{"role": "user", "content": prompt}]}
                    body = {"model": "chat", **shaped, **more}
                    url = f"http://127.0.0.1:{port}{path}"
                    answer = httpx.post(url, json=body, headers=KEY, timeout=60.0)
                    assert answer.status_code == 200, answer.text
                    asked.append((f"e{at}{path}", answer.headers["x-litellm-call-id"]))
        calls, found = fakes.calls(), Counter[str]()
        for tag, call_id in asked:
            logged = daemon.ask("GET", f"/v1/decisions?request_id={call_id}", token=route()).json
            (part,) = logged["outcomes"]
            attempts = [(each["model"], each["status"]) for each in part["attempts"]]
            statuses = ["failed"] * (len(calls[tag]) - 1) + ["delivered"]
            models = [MODELS[call["model"]] for call in calls[tag]]
            assert attempts == list(zip(models, statuses, strict=True)), (tag, logged, calls[tag])
            assert part["outputs"][1] == 20.0, logged
            found[tag.partition("/")[2]] += 1
        daemon.stop()
    report.add("other endpoints", f"all records right, {dict(found)}")


# A daemon that is not there.


@contextmanager
def listener(answer: Callable[[int], tuple[float, bytes] | None]) -> Iterator[int]:
    """A port where every connection is taken; answer(n) is the n-th one's delay and bytes, None for
    a connection that stays silent."""
    held: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0), backlog=512) as server:

        def talk(taken: socket.socket, at: int) -> None:
            told = answer(at)
            with contextlib.suppress(OSError):
                taken.recv(65536)
                if told is not None:
                    time.sleep(told[0])
                    taken.sendall(told[1])
                    taken.close()

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    taken, _ = server.accept()
                    held.append(taken)
                    threading.Thread(target=talk, args=(taken, len(held)), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield int(server.getsockname()[1])
    for taken in held:
        taken.close()


def told(body: bytes, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %s\r\ncontent-length: %d\r\n\r\n%s" % (status, len(body), body)


RUBBISH = [
    b"\x00\xff\r\n\r\n",
    b"",
    told(b"{}"),
    told(b"[1, 2"),
    told(b"null"),
    told(b'{"request_id": 7, "model": "gpt-small"}'),
    told(b"<html>" * 1000),
    told(b"{}", b"500 Internal Server Error"),
]


def daemon_away(folder: Path, fakes: Fakes, report: Report) -> None:
    """No request fails, and each is served as routed, whatever became of the daemon."""
    away: dict[str, Any] = {
        "hung": lambda _: None,
        "slow": lambda _: (0.5, told(b"{}")),
        "rubbish": lambda at: (0.0, RUBBISH[at % len(RUBBISH)]),
    }
    for name, answer in away.items():
        with listener(answer) as port:
            report.add(f"daemon {name}", without_daemon(folder, fakes, port, name))
    report.add("daemon stopped", without_daemon(folder, fakes, free_port(), "stopped"))
    frozen(folder, fakes, report)


def without_daemon(folder: Path, fakes: Fakes, daemon: int, name: str) -> str:
    sent = [Sent(f"{name}{at}", "plain", streamed=at % 4 == 0) for at in range(AWAY)]
    with proxy(folder, fakes, daemon) as port:
        asyncio.run(send_all(port, [[each] for each in sent]))
    assert all(each.status == 200 and each.model == "gpt-4o" for each in sent), sent
    waits = statistics.median(each.until - each.at for each in sent)
    return f"0 of {AWAY} requests failed, all as routed, half within {waits * 1000:.0f} ms"


def frozen(folder: Path, fakes: Fakes, report: Report) -> None:
    """A real daemon that stops in the middle and goes on: what it decided unheard is no draw."""
    place = folder / "frozen"
    place.mkdir()
    with running(place, TOKENS, config=CONFIG) as daemon:
        with proxy(folder, fakes, daemon.port) as port:
            everyone: list[Sent] = []
            for phase in ("before", "meanwhile", "after"):
                sent = [Sent(f"{phase}{at}", "plain", user="u") for at in range(AWAY // 2)]
                if phase == "meanwhile":
                    daemon.process.send_signal(signal.SIGSTOP)
                asyncio.run(send_all(port, [[each] for each in sent]))
                everyone += sent
                assert all(each.status == 200 for each in sent), sent
                if phase == "meanwhile":
                    assert all(each.model == "gpt-4o" for each in sent), sent
                    daemon.process.send_signal(signal.SIGCONT)
                    time.sleep(1.0)
        told_of: Counter[str] = Counter()
        for each in everyone:
            call_id = each.headers["x-litellm-call-id"]
            logged = daemon.ask("GET", f"/v1/decisions?request_id={call_id}", token=route())
            if logged.status == 404:
                assert each.model == "gpt-4o"
                told_of["never asked"] += 1
                continue
            parts = [part for part in logged.json["outcomes"] if part["attempt"] is not None]
            drawn = logged.json["decision"]["model"]
            if any(part["delivered"] for part in parts):
                assert MODELS[each.model] == drawn, (each, logged.json)
                told_of["as decided"] += 1
            else:
                assert each.model == "gpt-4o", (each, logged.json)
                told_of["too late, and undelivered"] += 1
        daemon.stop()
    report.add("daemon frozen and thawed", f"0 of {len(everyone)} failed, {dict(told_of)}")


# What it costs.


def overhead(folder: Path, fakes: Fakes, report: Report) -> None:
    """The same proxy with and without the plugin, in turns of BLOCK requests."""
    place = folder / "overhead"
    place.mkdir()
    with (
        running(place, TOKENS, config=CONFIG) as daemon,
        proxy(folder, fakes, None, cache=False) as plain,
        proxy(folder, fakes, daemon.port, cache=False) as with_plugin,
    ):
        times: dict[int, list[float]] = {plain: [], with_plugin: []}
        for turn in range(TURNS):
            for port in (plain, with_plugin) if turn % 2 else (with_plugin, plain):
                took = one_by_one(port, f"o{turn}-")
                times[port] += took if turn >= TURNS // 10 else []
        daemon.stop()
    without, added = (statistics.quantiles(times[port], n=100) for port in (plain, with_plugin))
    difference = added[49] - without[49]
    assert difference < 1.5 if not os.environ.get("BUSY") else True, difference
    report.add(
        "added to p50",
        f"{difference:.2f} ms ({without[49]:.2f} without, {added[49]:.2f} with; p90 "
        f"{without[89]:.2f} and {added[89]:.2f}; {len(times[plain])} requests each)",
    )


def one_by_one(port: int, tag: str) -> list[float]:
    """Milliseconds of BLOCK requests, one after the other on one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    times = []
    for at in range(BLOCK):
        body = json.dumps(Sent(f"{tag}{at}", "plain").body()).encode()
        began = time.perf_counter()
        headers = {**KEY, "content-type": "application/json"}
        connection.request("POST", "/v1/chat/completions", body, headers)
        response = connection.getresponse()
        response.read()
        times.append(1000 * (time.perf_counter() - began))
        assert response.status == 200
    connection.close()
    return times


# The Router in a program.


def routers(folder: Path, fakes: Fakes, report: Report) -> None:
    for version in LIBRARIES:
        python = python_with("litellm", *PROXY)
        if version != LIBRARIES[0]:
            python = python_with("litellm-library", f"litellm=={version}")
        place = folder / f"router-{version}"
        place.mkdir()
        with running(place, TOKENS, config=CONFIG) as daemon:
            report.add(f"Router {version}", router(place, fakes, daemon, python, version))
            daemon.stop()
        audited(place, report)


def router(place: Path, fakes: Fakes, daemon: Running, python: Path, version: str) -> str:
    """As `compare`, for requests that a program sends through its own Router."""
    # The library 1.110.2 answers nothing from a cache unless FastAPI is there as well.
    cached = version == LIBRARIES[0]
    kinds = [kind for kind in PLANS if kind not in ("left",)]
    lists: list[list[Sent]] = []
    for at in range(ROUTED):
        kind = kinds[at % len(kinds)]
        streamed = kind in STREAMED or at % 3 == 0
        lists.append([Sent(f"{version}-{at}", kind, PLANS[kind][1], streamed)])
    if cached:
        twice = [f"{version}-twice{at}" for at in range(ROUTED // 10)]
        lists += [
            [Sent(tag, "cached", streamed=at % 2 == 0) for _ in range(2)]
            for at, tag in enumerate(twice)
        ]
    copy_plugin(place)
    url = f"http://127.0.0.1:{daemon.port}"
    order = {
        "settings": {**PLUGIN, "url": url, "timeout": 1.0, "unit": None},
        "deployments": deployments(fakes),
        "fallbacks": FALLBACKS,
        "cached": cached,
        "lists": [[asked(sent) for sent in chained] for chained in lists],
    }
    done = subprocess.run(
        [python, PEERS / "litellm_router.py", place],
        input=json.dumps(order),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    *lines, last = [json.loads(line) for line in done.stdout.splitlines() if line[:1] == "{"]
    assert last == {"errors": 0}, last
    for line in lines:
        chained = next(each for each in lists if each[0].tag == line["tag"])
        sent = next(each for each in chained if each.call_id is None)
        sent.call_id, sent.model, sent.at, sent.until = (line[name] for name in ANSWERED)
    found = compare(daemon, lists, fakes.calls(), program=True)
    return f"{sum(found.values())} requests, all records right, {dict(found)}"


def asked(sent: Sent) -> dict[str, Any]:
    left = sent.kind == "stopped"
    return {"tag": sent.tag, "plan": sent.plan, "streamed": sent.streamed, "left": left}


ANSWERED = ("request_id", "model", "at", "until")
