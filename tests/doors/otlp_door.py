"""Spans and evaluations by OpenTelemetry's own exporters, some of whose batches are sent twice.

Three instrumentations of the OpenAI client make the spans: two generations of OpenTelemetry's, and
OpenInference's. Their application knows which model answered what, and what it was worth; the log
of the daemon must say the same, once for each request.
"""

from __future__ import annotations

import http.client
import json
import shutil
import sqlite3
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from harness import PEERS, ROOT, Report, python_with
from running import Running, running, until

CONFIG = """
name = "chat"
models = [{name = "gpt-4o"}, {name = "gpt-4o-mini"}]
[reward]
low = 0.0
high = 1.0
window = 3600
[features]
context = [{type = "number", name = "words", low = 0, scale = 100}]
outputs = [{type = "number", name = "tokens", low = 0, missing = 0}]
[policy]
assignment = "uniform"
rate = 0.5
[[ingest]]
name = "spans"
[ingest.features]
words = "attributes.app.words"
[ingest.outputs]
tokens = "output_tokens"
"""
SERVICE = """
base_path = "/equipoise"
[service.otlp]
mapping = "spans"
evaluation = "Relevance"
settle_seconds = 8.0
wait_seconds = 3600.0
"""
REQUESTS = 400
OPENAI = ("openai==2.54.0", "httpx==0.28.1")
SDK = ("opentelemetry-sdk==1.45.1", "opentelemetry-processor-baggage==0.66b1")
PROTO = "opentelemetry-exporter-otlp-proto-http==1.45.1"
JSON = "opentelemetry-exporter-otlp-json-http==0.66b1"
RUNS = (
    (
        "openai-v2",
        "gzip",
        (
            PROTO,
            "opentelemetry-instrumentation-openai-v2==2.4b0",
            "opentelemetry-util-genai==0.4b0",
        ),
    ),
    ("genai-openai", "deflate", (PROTO, "opentelemetry-instrumentation-genai-openai==1.3b0")),
    ("openinference", "json", (JSON, "openinference-instrumentation-openai==0.1.66")),
)


def drive(folder: Path, report: Report) -> None:
    report.peer = "OpenTelemetry SDK 1.45 with its OTLP exporters, in Protobuf and JSON"
    shutil.copy(ROOT / "agent" / "client.py", folder / "client.py")
    for instrumentation, exporter, packages in RUNS:
        python = python_with(f"otlp-{instrumentation}", *OPENAI, *SDK, *packages)
        own = folder / instrumentation
        own.mkdir()
        with running(own, SERVICE, config=CONFIG) as daemon, _flaky(daemon.port) as proxy:
            truth = _traffic(python, instrumentation, exporter, proxy.port, daemon, folder)
            counts = _settled(daemon, truth)
            assert proxy.again > 0
            _check_decisions(daemon, truth)
            daemon.stop()
            _check_rows(daemon, truth)
        _report(report, instrumentation, exporter, truth, counts, proxy.again)
    _upgrades(folder, report)


def _traffic(
    python: Path, instrumentation: str, exporter: str, port: int, daemon: Running, folder: Path
) -> list[Any]:
    urls = [f"http://127.0.0.1:{port}/equipoise", f"http://127.0.0.1:{daemon.port}/equipoise"]
    order = [PEERS / "otlp_app.py", instrumentation, exporter, str(REQUESTS), *urls, folder]
    done = subprocess.run([python, *order], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    truth: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return truth


def _settled(daemon: Running, truth: list[Any]) -> Any:
    """The counts, once nothing waits but the calls that nobody rated."""
    unrated = sum(row["decision"] is None and row["reward"] is None for row in truth)

    def counts() -> Any:
        answer = daemon.ask("GET", "/equipoise/v1/otlp").json
        waiting = answer["waiting_calls"], answer["waiting_evaluations"]
        return answer if waiting == (unrated, 0) else None

    return until(counts, 240.0)


def _expected(row: Any) -> tuple[str, float, float | None, float]:
    """Model, words, tokens and reward of a row; tokens None where a stream has none."""
    tokens = 20 + int(row["answer"].rpartition("-")[2]) % 31
    return row["model"], row["words"], None if row["streamed"] else float(tokens), row["reward"]


def _check_decisions(daemon: Running, truth: list[Any]) -> None:
    """Each decision has the outputs and the reward of its own call, and nothing else."""
    for row in truth:
        if row["decision"] is None:
            continue
        found = daemon.ask("GET", f"/equipoise/v1/decisions/{row['decision']}").json
        assert found["decision"]["model"] == row["model"]
        parts = found["outcomes"]
        rewards = [part["reward"] for part in parts if part["reward"] is not None]
        outputs = [part for part in parts if part["outputs"] is not None]
        assert rewards == ([] if row["reward"] is None else [row["reward"]]), (row, parts)
        if row["failed"]:
            assert not outputs, (row, parts)
            continue
        assert [part["served"] for part in outputs] == [row["model"]], (row, parts)
        tokens = _expected({**row, "reward": 0.0})[2]
        if tokens is not None:
            assert outputs[0]["outputs"][0] == tokens, (row, parts)


def _check_rows(daemon: Running, truth: list[Any]) -> None:
    """The usage log holds every rated call outside a decision, once."""
    with sqlite3.connect(daemon.store) as store:
        rows = store.execute("SELECT routed, x, outputs, reward FROM observations").fetchall()
    names = ("gpt-4o", "gpt-4o-mini")
    logged = sorted(
        (names[routed], round(json.loads(x)[0] * 100), json.loads(outputs)[0], reward)
        for routed, x, outputs, reward in rows
    )
    expected = sorted(
        (model, words, 0.0 if tokens is None else tokens, reward)
        for model, words, tokens, reward in (
            _expected(row) for row in truth if row["decision"] is None and row["reward"] is not None
        )
    )
    extra, missing = Counter(logged) - Counter(expected), Counter(expected) - Counter(logged)
    assert not extra, f"logged without cause {extra}; not logged {missing}"
    assert not missing, f"not logged {missing}"


def _report(
    report: Report, instrumentation: str, exporter: str, truth: list[Any], counts: Any, again: int
) -> None:
    decided = [row for row in truth if row["decision"] is not None]
    answered = [row for row in decided if not row["failed"]]
    rated = [row for row in decided if row["reward"] is not None]
    assert counts["calls"] == len(truth)
    assert counts["outcomes"] == len(answered)
    assert counts["rewards"] == len(rated)
    assert counts["failed"] == len(decided) - len(answered)
    assert counts["rejected"] == counts["refused"] == counts["spare"] == 0, counts
    assert counts["repeats"] > 0
    total = counts["observations"] + counts["outcomes"] + counts["failed"] + counts["waiting_calls"]
    assert total == counts["calls"], counts
    report.add(
        f"{instrumentation}, {exporter}",
        f"{counts['calls']} calls: {counts['observations']} rows, {counts['outcomes']} outcomes, "
        f"{counts['rewards']} rewards, {counts['failed']} failed, "
        f"{counts['waiting_calls']} unrated; "
        f"{again} exports sent twice, {counts['repeats']} repeats counted once",
    )


class _Proxy(ThreadingHTTPServer):
    """Passes exports on. Of every fourth it loses the answer: the exporter sends it again."""

    def __init__(self, upstream: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.port, self.upstream = self.server_port, upstream
        self.count = self.again = 0
        self.lock = threading.Lock()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Proxy

    def log_message(self, *_: object) -> None: ...

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {
            name: text
            for name, text in self.headers.items()
            if name.lower() in ("content-type", "content-encoding")
        }
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.upstream, timeout=30)
        upstream.request("POST", self.path, body, headers)
        answer = upstream.getresponse()
        status, text = answer.status, answer.read()
        upstream.close()
        assert status == 200, text
        with self.server.lock:
            self.server.count += 1
            lost = self.server.count % 4 == 0
            self.server.again += lost
        self.send_response(503 if lost else status)
        self.send_header("content-length", "0" if lost else str(len(text)))
        self.send_header("content-type", answer.headers["content-type"])
        self.end_headers()
        self.wfile.write(b"" if lost else text)


@contextmanager
def _flaky(upstream: int) -> Iterator[_Proxy]:
    proxy = _Proxy(upstream)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()


JAVA = """
import java.net.URI;
import java.net.http.*;

public class Ask {
    public static void main(String[] words) throws Exception {
        HttpClient client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_2).build();
        for (int number = 0; number < 3; number++) {
            HttpRequest request = HttpRequest.newBuilder(URI.create(words[0]))
                .header("content-type", "application/json")
                .POST(HttpRequest.BodyPublishers.ofString(words[1])).build();
            HttpResponse<String> answer =
                client.send(request, HttpResponse.BodyHandlers.ofString());
            System.out.println(answer.version() + " " + answer.statusCode());
        }
    }
}
"""


def _upgrades(folder: Path, report: Report) -> None:
    """Clients that offer to go on in HTTP/2 are answered in HTTP/1.1, bodies and all; curl speaks
    to the socket of a file."""
    body = '{"request_id": "r", "routed": "gpt-4o", "features": {"words": 3}}'
    own = folder / "upgrades"
    own.mkdir()
    (folder / "Ask.java").write_text(JAVA)
    with running(own, config=CONFIG) as daemon:
        url = f"http://127.0.0.1:{daemon.port}/v1/decide"
        form = "%{http_version} %{http_code}"
        curl = ["curl", "-s", "-o", folder / "out", "-w", form, "-d", body]
        shown = subprocess.run([*curl, "--http2", url], capture_output=True, text=True, timeout=60)
        assert shown.stdout == "1.1 200", shown
        answers = ["curl --http2: HTTP/1.1"]
        if shutil.which("java"):
            java = ["java", folder / "Ask.java", url, body]
            shown = subprocess.run(java, capture_output=True, text=True, timeout=120)
            assert shown.stdout.split("\n")[:3] == ["HTTP_1_1 200"] * 3, shown
            answers.append("Java's HttpClient: HTTP/1.1")
    report.add("offers of h2c", ", ".join(answers))
