"""An instrumented application: model calls against a server that answers like OpenAI's, exported by
OpenTelemetry's own SDK. Runs in the peer's environment; prints what truly happened, as JSON.

    python otlp_app.py INSTRUMENTATION EXPORTER REQUESTS OTLP_URL DAEMON_URL CLIENT_FOLDER
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

INSTRUMENTATION, EXPORTER, REQUESTS, OTLP_URL, DAEMON_URL, FOLDER = sys.argv[1:7]
sys.path.insert(0, FOLDER)

import client as equipoise  # noqa: E402
import openai  # noqa: E402
from opentelemetry import baggage, context, trace  # noqa: E402
from opentelemetry._logs import Logger, LogRecord, SeverityNumber  # noqa: E402
from opentelemetry.processor.baggage import ALLOW_ALL_BAGGAGE_KEYS, BaggageSpanProcessor  # noqa: E402
from opentelemetry.sdk._logs import LoggerProvider  # noqa: E402
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor  # noqa: E402
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider  # noqa: E402
from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: E402

MODELS = ("gpt-4o", "gpt-4o-mini")


class Provider(BaseHTTPRequestHandler):
    """Answers with the dated name of the model; tokens follow from the number of the answer."""

    protocol_version = "HTTP/1.1"
    answers = 0
    lock = threading.Lock()

    def log_message(self, *_: object) -> None: ...

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.lock:
            Provider.answers += 1
            number = Provider.answers
        if body["messages"][0]["content"] == "fail":
            self._send(400, {"error": {"message": "no", "type": "invalid_request_error"}})
            return
        name, model = f"chatcmpl-{INSTRUMENTATION}-{number}", body["model"] + "-2024-08-06"
        if body.get("stream"):
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("connection", "close")
            self.end_headers()
            for delta, reason in (({"content": "Hi"}, None), ({}, "stop")):
                choices = [{"index": 0, "delta": delta, "finish_reason": reason}]
                chunk = {"id": name, "object": "chat.completion.chunk", "created": 1}
                text = json.dumps({**chunk, "model": model, "choices": choices})
                self.wfile.write(f"data: {text}\n\n".encode())
            self.wfile.write(b"data: [DONE]\n\n")
            self.close_connection = True
            return
        message = {"role": "assistant", "content": "Hi"}
        tokens = tokens_of(name)
        self._send(
            200,
            {
                "id": name,
                "object": "chat.completion",
                "created": 1,
                "model": model,
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {
                    "prompt_tokens": 100,
                    "completion_tokens": tokens,
                    "total_tokens": 100 + tokens,
                },
            },
        )

    def _send(self, status: int, body: object) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


def tokens_of(answer: str) -> int:
    return 20 + int(answer.rpartition("-")[2]) % 31


def instrument() -> None:
    if INSTRUMENTATION == "openai-v2":
        from opentelemetry.instrumentation.openai_v2 import OpenAIInstrumentor
    elif INSTRUMENTATION == "genai-openai":
        from opentelemetry.instrumentation.genai.openai import OpenAIInstrumentor
    else:
        from openinference.instrumentation.openai import OpenAIInstrumentor
    OpenAIInstrumentor().instrument()


def exporters() -> tuple[object, object]:
    if EXPORTER == "json":
        from opentelemetry.exporter.otlp.json.http._log_exporter import OTLPLogExporter
        from opentelemetry.exporter.otlp.json.http.trace_exporter import OTLPSpanExporter

        return (
            OTLPSpanExporter(endpoint=f"{OTLP_URL}/v1/traces"),
            OTLPLogExporter(endpoint=f"{OTLP_URL}/v1/logs"),
        )
    from opentelemetry.exporter.otlp.proto.http import Compression
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    way = {"gzip": Compression.Gzip, "deflate": Compression.Deflate}.get(
        EXPORTER, Compression.NoCompression
    )
    return (
        OTLPSpanExporter(endpoint=f"{OTLP_URL}/v1/traces", compression=way),
        OTLPLogExporter(endpoint=f"{OTLP_URL}/v1/logs", compression=way),
    )


def main() -> None:
    provider = ThreadingHTTPServer(("127.0.0.1", 0), Provider)
    threading.Thread(target=provider.serve_forever, daemon=True).start()
    to_spans, to_logs = exporters()
    tracing, logging = TracerProvider(), LoggerProvider()
    tracing.add_span_processor(BaggageSpanProcessor(ALLOW_ALL_BAGGAGE_KEYS))
    tracing.add_span_processor(LastCall())
    tracing.add_span_processor(
        BatchSpanProcessor(to_spans, max_export_batch_size=64, schedule_delay_millis=300)
    )
    logging.add_log_record_processor(
        BatchLogRecordProcessor(to_logs, max_export_batch_size=64, schedule_delay_millis=300)
    )
    trace.set_tracer_provider(tracing)
    instrument()
    tracer, logger = tracing.get_tracer("app"), logging.get_logger("judge")
    calls = openai.OpenAI(
        base_url=f"http://127.0.0.1:{provider.server_port}/v1", api_key="none", max_retries=0
    )
    router = equipoise.Client(DAEMON_URL, timeout=2.0)
    draw = random.Random(5)
    truth = []
    waiting = []
    for number in range(int(REQUESTS)):
        words = draw.randrange(1, 100)
        routed = MODELS[words < 50]
        decided = number % 3 == 0
        how = (
            draw.choice(("span", "response", "decision"))
            if decided
            else (draw.choice(("span", "response")))
        )
        fails, streams = draw.random() < 0.04, draw.random() < 0.15
        reward = round(draw.random(), 3) if draw.random() < 0.9 and not fails else None
        row = {"decision": None, "model": routed, "words": words, "reward": reward}
        with ExitStack() as stack:
            said = {"app.words": words}
            span = stack.enter_context(tracer.start_as_current_span("handle"))
            if decided:
                choice = router.decide(
                    f"{INSTRUMENTATION}-{number}", routed=routed, features={"words": words}
                )
                assert choice.decision_id is not None, choice
                row |= {"decision": choice.decision_id, "model": choice.model}
                attributes = choice.span_attributes("chat")
                if number % 2:  # the call finds its decision in the span around it
                    span.set_attributes(attributes)
                else:  # the call itself names it
                    said |= attributes
            here = context.get_current()
            for key, value in said.items():
                here = baggage.set_baggage(key, value, here)
            token = context.attach(here)
            try:
                # Something between the request's span and the call's, as frameworks have it.
                with tracer.start_as_current_span("chain"):
                    answer = ask(calls, row["model"], fails, streams)
            finally:
                context.detach(token)
            row |= {"answer": answer, "streamed": streams, "failed": fails}
        truth.append(row)
        if reward is not None:
            assert LastCall.span is not None
            waiting.append((row, how, LastCall.span, attributes if decided else {}))
        if number % 7 == 0 and waiting:
            judge(logger, *waiting.pop())
            logging.force_flush()  # before the span is exported, as often as not
    for each in waiting:
        judge(logger, *each)
    logging.force_flush()
    tracing.force_flush(60_000)
    tracing.shutdown()
    logging.shutdown()
    router.close()
    print(json.dumps(truth))


class LastCall(SpanProcessor):
    """The span of the newest model call, which a judge would read in a trace store."""

    span: trace.SpanContext | None = None

    def on_end(self, span: ReadableSpan) -> None:
        names = span.attributes or {}
        if "gen_ai.operation.name" in names or names.get("openinference.span.kind") == "LLM":
            LastCall.span = span.get_span_context()


def judge(logger: Logger, row: dict, how: str, span: trace.SpanContext, attributes: dict) -> None:
    """Rate an answer by the span of its call, the id of the response, or our decision."""
    said = {
        "gen_ai.evaluation.name": "Relevance",
        "gen_ai.evaluation.score.value": row["reward"],
        "gen_ai.evaluation.explanation": "as it seemed",
    }
    if how == "response":
        said["gen_ai.response.id"] = row["answer"]
    if how == "decision":
        names = ("equipoise.decision_id", "equipoise.outcome_token")
        said |= {name: attributes[name] for name in names}
    where = trace.set_span_in_context(trace.NonRecordingSpan(span), context.Context())
    for name in ("Relevance", "Politeness"):  # another evaluator, whose scores are no rewards
        logger.emit(
            LogRecord(
                timestamp=time.time_ns(),
                context=where if how == "span" else context.Context(),
                severity_number=SeverityNumber.INFO,
                event_name="gen_ai.evaluation.result",
                attributes={**said, "gen_ai.evaluation.name": name},
            )
        )


def ask(calls: openai.OpenAI, model: str, fails: bool, streams: bool) -> str | None:
    messages = [{"role": "user", "content": "fail" if fails else "hello"}]
    try:
        if streams:
            chunks = list(
                calls.chat.completions.create(model=model, messages=messages, stream=True)
            )
            return chunks[0].id
        return calls.chat.completions.create(model=model, messages=messages).id
    except openai.BadRequestError:
        return None


if __name__ == "__main__":
    main()
