"""HTTP servers for tests of the client: one that keeps the protocol, and ones that do not."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec

from equipoise.agent.agent import Accepted, Agent
from equipoise.agent.config import config_from_dict
from equipoise.agent.errors import AgentError, ConflictError, UnknownDecisionError
from equipoise.agent.record_adapter import RecordAdapter
from equipoise.store.memory import MemoryStore
from equipoise.store.records import Observation, Outcome, Request

CONFIG = {
    "name": "chat",
    "models": [{"name": "large"}, {"name": "small"}],
    "features": {
        "context": [{"type": "number", "name": "words"}],
        "outputs": [{"type": "number", "name": "seconds"}],
    },
    "policy": {"assignment": "uniform", "rate": 0.5},
}


class Protocol:
    """The routes that the client uses, over a real agent in memory; kept as small as can be."""

    def __init__(self) -> None:
        self.desk = RecordAdapter(Agent(config_from_dict(CONFIG), MemoryStore(), bytes(32)))
        self.lock = threading.Lock()
        self.connections = 0
        self.requests: list[str] = []
        self.tokens: set[str | None] = set()

    def answer(self, path: str, body: bytes) -> tuple[int, bytes]:
        with self.lock:
            self.requests.append(path)
            if path == "/v1/decide":
                return self._decide(body)
            if path == "/v1/outcomes":
                return 200, self._each(body, Outcome, self.desk.observe, "rejected")
            lines = b"[" + b",".join(body.split(b"\n")) + b"]"
            return 200, self._each(lines, Observation, self.desk.ingest, "rejects")

    def _decide(self, body: bytes) -> tuple[int, bytes]:
        try:
            made = self.desk.decide([msgspec.json.decode(body, type=Request)])[0]
        except ConflictError as error:
            return 409, msgspec.json.encode({"detail": str(error)})
        except (ValueError, msgspec.MsgspecError) as error:
            return 422, msgspec.json.encode({"detail": str(error)})
        return 200, msgspec.json.encode({**msgspec.to_builtins(made), "reason": None})

    @staticmethod
    def _each(body: bytes, kind: type, take: Callable[..., Accepted], name: str) -> bytes:
        rejected, decided = [], 0
        for index, raw in enumerate(msgspec.json.decode(body, type=list[msgspec.Raw])):
            try:
                decided += take([msgspec.json.decode(raw, type=kind)]).decided
            except UnknownDecisionError:
                rejected.append({"index": index, "status": 404, "detail": ""})
            except (AgentError, ValueError, msgspec.MsgspecError) as error:
                rejected.append({"index": index, "status": 422, "detail": str(error)})
        return msgspec.json.encode({name: rejected, "decided": decided})


@contextlib.contextmanager
def serving(protocol: Protocol, port: int = 0, delay: float = 0.0) -> Iterator[int]:
    """The port of a server that keeps the protocol, `delay` seconds late."""
    stop = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 5.0
        disable_nagle_algorithm = True

        def setup(self) -> None:
            super().setup()
            protocol.connections += 1
            self.server.open.append(self.connection)  # type: ignore[attr-defined]

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            protocol.tokens.add(self.headers["Authorization"])
            stop.wait(delay)
            status, text = protocol.answer(self.path, body)
            with contextlib.suppress(OSError):
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 256
        open: list[socket.socket]

        def handle_error(self, *_: object) -> None:
            pass

    server = Server(("127.0.0.1", port), Handler)
    server.open = []
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        stop.set()
        server.shutdown()
        thread.join()
        for connection in server.open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        server.server_close()


@contextlib.contextmanager
def behaving(badly: Callable[[socket.socket], None]) -> Iterator[int]:
    """The port of a server that does `badly(connection)` with every connection."""
    stop = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.02)
    threads: list[threading.Thread] = []

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(2.0)
            badly(connection)
            stop.wait(2.0)

    def accept() -> None:
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                connection, _ = listener.accept()
                threads.append(threading.Thread(target=serve, args=(connection,)))
                threads[-1].start()

    threads.append(threading.Thread(target=accept))
    threads[0].start()
    try:
        yield listener.getsockname()[1]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        listener.close()
