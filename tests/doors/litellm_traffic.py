"""Requests through a LiteLLM proxy whose truth is known, and each record compared with it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from harness import ROOT, Report
from litellm_peers import (
    KEY,
    PLUGIN,
    Fakes,
    proxy,
)
from running import Running, running, until

REQUESTS = 2000
AT_ONCE = 8
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


async def send_all(
    port: int, lists: Sequence[Sequence[Sent]], application: Application | None = None
) -> None:
    queue = iter(lists)
    limits = httpx.Limits(max_connections=4 * AT_ONCE)
    async with httpx.AsyncClient(timeout=60.0, limits=limits, headers=KEY) as client:

        async def worker() -> None:
            for chained in queue:
                for sent in chained:
                    await send(client, port, sent)
                    if application is not None:
                        await application.rate(client, sent, chained[0])

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
    lists = planned(REQUESTS)
    everyone = [sent for chained in lists for sent in chained]
    with running(place, TOKENS, config=CONFIG) as daemon:
        with proxy(folder, fakes, daemon.port, timeout=1.0) as port:
            began = time.monotonic()
            asyncio.run(send_all(port, lists, Application(daemon.port)))
            seconds = time.monotonic() - began
            kinds = Counter(sent.kind for sent in everyone)
            report.add("requests", f"{len(everyone):,} in {seconds:.0f} s, {dict(kinds)}")
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


class Application:
    """Rates nine answers in ten as they come, by the id and the token in their headers."""

    def __init__(self, daemon: int) -> None:
        self.url = f"http://127.0.0.1:{daemon}/v1/outcomes"
        self.draw = random.Random(SEED + 1)

    async def rate(self, client: httpx.AsyncClient, sent: Sent, first: Sent) -> None:
        value = VALUES.get(MODELS.get(sent.model) or "", 0.5)
        repeated = sent is not first and first.model and sent.kind == "again"
        if not sent.model or repeated or self.draw.random() >= 0.9:
            return
        sent.reward = float(self.draw.random() < value)
        body = {
            "request_id": sent.headers["x-litellm-call-id"],
            "outcome_token": sent.headers["x-equipoise-outcome-token"],
            "reward": sent.reward,
        }
        answer = await client.post(self.url, json=body, headers=TOKEN)
        assert answer.json() | {"accepted": 1, "late": 0} == answer.json(), answer.text


def route() -> str:
    return str(PLUGIN["token"])


TOKEN = {"authorization": f"Bearer {route()}"}


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
    rewards = [part["reward"] for part in logged["outcomes"] if part["reward"] is not None]
    assert rewards == [each.reward for each in (sent, answered) if each.reward is not None][:1], (
        where
    )
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
