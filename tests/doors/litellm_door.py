"""The LiteLLM door against the real proxy and Router, in front of an endpoint whose answers are
known."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import signal
import socket
import statistics
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from harness import PEERS, Report, python_with
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
from litellm_traffic import (
    BOTH,
    CONFIG,
    MODELS,
    PLANS,
    STREAMED,
    TOKENS,
    Sent,
    audited,
    compare,
    route,
    send_all,
    traffic,
)
from running import Running, running

LIBRARIES = ("1.108.7", "1.110.2")
ROUTED = 240  # requests through a Router of a program
AWAY = 200  # requests while the daemon is
TURNS, BLOCK = 160, 10


def drive(folder: Path, report: Report) -> None:
    report.peer = f"{PROXY[0]} as the proxy; litellm {' and '.join(LIBRARIES)} in a program."
    with endpoints(folder) as fakes:
        traffic(folder, fakes, report)
        declared(folder, fakes, report)
        other_endpoints(folder, fakes, report)
        daemon_away(folder, fakes, report)
        overhead(folder, fakes, report)
        routers(folder, fakes, report)


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
        times: dict[int, list[list[float]]] = {plain: [], with_plugin: []}
        for turn in range(TURNS):
            for port in (plain, with_plugin) if turn % 2 else (with_plugin, plain):
                times[port].append(one_by_one(port, f"o{turn}-"))
        daemon.stop()
    # Turn by turn, because what else the machine does changes in between; the first ones warm up.
    turns = [[statistics.median(turn) for turn in each[TURNS // 10 :]] for each in times.values()]
    added = [with_it - without for without, with_it in zip(*turns, strict=True)]
    quiet = [statistics.quantiles(each, n=10)[0] for each in turns]
    without, with_it = (statistics.median(each) for each in turns)
    report.add(
        "added to p50",
        f"{statistics.median(added):.2f} ms, the median of {len(added)} turns of {BLOCK} requests "
        f"({without:.2f} ms without, {with_it:.2f} with; {quiet[0]:.2f} and {quiet[1]:.2f} in the "
        "quietest tenth of turns)",
    )


def one_by_one(port: int, tag: str) -> list[float]:
    """Milliseconds of BLOCK requests, one after the other on one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    times = []
    for at in range(BLOCK):
        asked = {**Sent(f"{tag}{at}", "plain").body(), "model": "gpt-large"}  # that both have
        body = json.dumps(asked).encode()
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
