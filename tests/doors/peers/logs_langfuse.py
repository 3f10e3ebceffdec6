"""Runs in Langfuse's environment: its SDK writes traces and scores, and reads them from its API.

    python logs_langfuse.py FOLDER REQUESTS

The server is a stand-in on loopback: it takes the spans and scores that the SDK sends, and gives
them back in the shape of the public API, which the SDK checks with its own models. Writes
FOLDER/observations.jsonl and FOLDER/scores.json as the SDK writes what it read, and
FOLDER/truth.jsonl: for every trace which model answered last, and its last thumb.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from langfuse import Langfuse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

FOLDER, REQUESTS = Path(sys.argv[1]), int(sys.argv[2])
SPANS: list[Any] = []
SCORES: list[dict[str, Any]] = []
PAGE = 40


def iso(nanoseconds: int) -> str:
    moment = datetime.fromtimestamp(nanoseconds / 1e9, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def observation(span: Any) -> dict[str, Any]:
    said = {each.key: each.value for each in span.attributes}

    def text(key: str) -> str | None:
        return said[key].string_value if key in said else None

    usage = json.loads(text("langfuse.observation.usage_details") or "{}")
    cost = json.loads(text("langfuse.observation.cost_details") or "{}")
    return {
        "id": span.span_id.hex(),
        "traceId": span.trace_id.hex(),
        "projectId": "p",
        "type": (text("langfuse.observation.type") or "span").upper(),
        "isRootObservation": not span.parent_span_id,
        "parentObservationId": span.parent_span_id.hex() or None,
        "name": span.name,
        "startTime": iso(span.start_time_unix_nano),
        "endTime": iso(span.end_time_unix_nano),
        "level": text("langfuse.observation.level") or "DEFAULT",
        "providedModelName": text("langfuse.observation.model.name"),
        "model": text("langfuse.observation.model.name"),
        "input": text("langfuse.observation.input"),
        "output": text("langfuse.observation.output"),
        "usageDetails": usage,
        "costDetails": cost,
        "totalCost": sum(cost.values()),
        "userId": text("user.id"),
        "sessionId": text("session.id"),
        "metadata": {},
    }


def score(given: dict[str, Any], number: int) -> dict[str, Any]:
    kind = "observation" if given.get("observationId") else "trace"
    subject = {"kind": kind, "id": given.get("observationId") or given["traceId"]}
    moment = given.get("timestamp") or iso(1790000000 * 10**9 + number * 10**9)
    return {
        "id": f"score-{number}",
        "projectId": "p",
        "name": given["name"],
        "value": float(given["value"]),
        "dataType": "NUMERIC",
        "source": "API",
        "environment": "default",
        "timestamp": moment,
        "createdAt": moment,
        "updatedAt": moment,
        "subject": subject | ({"traceId": given["traceId"]} if kind == "observation" else {}),
    }


class Server(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            import gzip

            body = gzip.decompress(body)
        if self.path.endswith("/otel/v1/traces"):
            request = ExportTraceServiceRequest.FromString(body)
            SPANS.extend(
                span
                for resource in request.resource_spans
                for scope in resource.scope_spans
                for span in scope.spans
            )
            self._send(b"", "application/x-protobuf")
            return
        given = json.loads(body)
        SCORES.extend(given)
        done = [{"id": each.get("id", "x"), "status": 201} for each in given]
        self._send(json.dumps({"successes": done, "errors": []}).encode(), status=207)

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        at = int(parse_qs(url.query).get("cursor", ["0"])[0])
        rows = (
            [observation(span) for span in SPANS]
            if "observations" in url.path
            else [score(each, number) for number, each in enumerate(SCORES)]
        )
        more = {"cursor": str(at + PAGE)} if at + PAGE < len(rows) else {}
        meta = {"limit": PAGE, **more}
        self._send(json.dumps({"data": rows[at : at + PAGE], "meta": meta}).encode())

    def _send(self, data: bytes, kind: str = "application/json", status: int = 200) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def pages(read: Any, **options: Any) -> list[Any]:
    found, cursor = [], None
    while True:
        page = read(cursor=cursor, **options) if cursor else read(**options)
        found.append(page)
        cursor = getattr(page.meta, "cursor", None)
        if not cursor:
            return found


def main() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    client = Langfuse(public_key="pk-lf-x", secret_key="sk-lf-x", base_url=url)
    generator, truth = random.Random(3), []
    for number in range(REQUESTS):
        steps = generator.choice([1, 1, 2, 3])
        with client.start_as_current_observation(name="turn", as_type="span") as root:
            for step in range(steps):
                model = generator.choice(["large", "small"])
                with client.start_as_current_observation(
                    name="answer",
                    as_type="generation",
                    model=model,
                    input=[{"role": "user", "content": f"question {number}"}],
                    output={"role": "assistant", "content": f"by {model}"},
                    usage_details={"input": 100, "output": 20 + step},
                    cost_details={"input": 0.001, "output": 0.002},
                ):
                    time.sleep(0.002)
            trace = root.trace_id
        thumb = None
        if generator.random() < 0.7:
            for _ in range(generator.choice([1, 1, 2])):
                thumb = float(generator.random() < (0.8 if model == "large" else 0.4))
                client.create_score(name="helpful", value=thumb, trace_id=trace)
        truth.append({"trace": trace, "model": model, "steps": steps, "thumb": thumb})
    client.flush()
    time.sleep(2)
    observations = pages(client.api.observations.get_many, fields="core,basic,io,model,usage")
    with open(FOLDER / "observations.jsonl", "w") as file:
        for page in observations:
            for each in page.data:
                file.write(each.json() + "\n")
    read_scores = pages(client.api.scores.get_many, fields="subject")
    rows = [json.loads(each.json()) for page in read_scores for each in page.data]
    (FOLDER / "scores.json").write_text(json.dumps({"data": rows}, indent=1))
    (FOLDER / "truth.jsonl").write_text("".join(json.dumps(each) + "\n" for each in truth))


main()
