"""What the LiteLLM door is driven with: the real proxy, and endpoints whose answers are known."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import PEERS, ROOT, python_with
from running import until

PROXY = ("litellm[proxy]==1.108.7",)
PLUGIN = {
    "models": {"large": "gpt-large", "small": ["gpt-small"]},
    "routed": {"chat": "large"},
    "features": {"words": "prompt.words", "plan": "metadata.plan"},
    "outputs": {"seconds": "seconds", "tokens": "output_tokens", "usd": "cost"},
    "unit": "body.user",
    "token": "route-0123456789abcdef0123456789",
}
KEY = {"authorization": "Bearer sk-1"}


@dataclass
class Fakes:
    ports: list[int]
    records: list[Path]

    def calls(self) -> dict[str, list[dict[str, Any]]]:
        """What was asked of the models, by the tag of the request, in order."""
        lines = [json.loads(line) for path in self.records for line in path.open()]
        by_tag: dict[str, list[dict[str, Any]]] = {}
        for line in sorted(lines, key=lambda line: line["at"]):
            by_tag.setdefault(line["tag"], []).append(line)
        return by_tag


@contextmanager
def process(order: Sequence[object], log: Path, **options: Any) -> Iterator[subprocess.Popen[str]]:
    with open(log, "w", encoding="utf-8") as output:
        started = subprocess.Popen(
            [str(each) for each in order], stdout=output, stderr=output, text=True, **options
        )
        try:
            yield started
        finally:
            started.terminate()
            try:
                started.wait(15)
            except subprocess.TimeoutExpired:
                started.kill()
                started.wait()


@contextmanager
def endpoints(folder: Path) -> Iterator[Fakes]:
    python = python_with("litellm", *PROXY)
    with contextlib.ExitStack() as stack:
        fakes = Fakes([], [])
        for at in range(2):
            port, record = free_port(), folder / f"calls{at}"
            order = [python, PEERS / "fake_openai.py", port, record]
            stack.enter_context(process(order, folder / f"fake{at}.log"))
            until(lambda port=port: answers(port, "/"))
            fakes.ports.append(port)
            fakes.records.append(record)
        yield fakes


@contextmanager
def proxy(
    folder: Path, fakes: Fakes, daemon: int | None, *, cache: bool = True, **options: Any
) -> Iterator[int]:
    """A proxy on a port of its own, with the plugin for that daemon, or without it for None.

    options: of the plugin.
    """
    port = free_port()
    place = folder / f"proxy-{port}"
    place.mkdir()
    copy_plugin(place)
    groups = deployments(fakes)
    settings: dict[str, Any] = {"drop_params": True}
    config: dict[str, Any] = {
        "model_list": groups,
        "litellm_settings": settings,
        "router_settings": {
            "num_retries": 2,
            "retry_after": 0,
            "disable_cooldowns": True,
            "fallbacks": FALLBACKS,
        },
        "general_settings": {"master_key": "sk-1"},
    }
    if cache:
        settings |= {"cache": True, "cache_params": {"type": "local"}}
    if daemon is not None:
        settings["callbacks"] = "equipoise_litellm.plugin"
        url = f"http://127.0.0.1:{daemon}"
        config["callback_settings"] = {"equipoise": {**PLUGIN, "url": url, **options}}
    (place / "config.yaml").write_text(json.dumps(config))  # YAML takes JSON
    command = python_with("litellm", *PROXY).parent / "litellm"
    order = [command, "--config", "config.yaml", "--host", "127.0.0.1", "--port", port]
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    log = folder / f"proxy-{port}.log"
    with process(order, log, cwd=place, env=environment) as started:
        until(lambda: answers(port, "/health/liveliness") or started.poll() is not None)
        assert started.poll() is None, log.read_text()[-3000:]
        yield port


FALLBACKS = [{"gpt-small": ["gpt-large"]}, {"gpt-large": ["backup"]}]


def deployments(fakes: Fakes) -> list[dict[str, Any]]:
    return [
        {
            "model_name": group,
            "litellm_params": {
                "model": f"openai/{model}",
                "api_base": f"http://127.0.0.1:{fakes.ports[at]}/v1",
                "api_key": "x",
            },
            "model_info": {"id": f"{group}-{at}"},
        }
        for group, model in (("gpt-large", "gpt-4o"), ("gpt-small", "gpt-4o-mini"))
        for at in range(2)
    ] + [
        {
            "model_name": "backup",
            "litellm_params": {
                "model": "openai/gpt-4.1",
                "api_base": f"http://127.0.0.1:{fakes.ports[0]}/v1",
                "api_key": "x",
            },
            "model_info": {"id": "backup-0"},
        }
    ]


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def answers(port: int, path: str) -> bool:
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", path)
        return connection.getresponse().status < 500
    return False


def copy_plugin(place: Path) -> None:
    """As the page says: two files beside the configuration."""
    shutil.copy(ROOT / "agent" / "doors" / "litellm.py", place / "equipoise_litellm.py")
    shutil.copy(ROOT / "agent" / "client.py", place / "client.py")
