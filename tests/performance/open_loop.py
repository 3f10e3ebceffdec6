"""An open-loop load generator: requests leave at scheduled times, whatever the server does.

Latency counts from the *scheduled* time, so a server that stalls is charged for everything that
queued up meanwhile ("coordinated omission" otherwise hides it). The generator's own lateness, the
time from schedule to send while a connection was free, is kept beside it: where that is large the
run says nothing about the server.
"""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

_clock = time.perf_counter


@dataclass
class Stream:
    """One kind of request. times: (n,) seconds from the start, increasing. body: of request i.

    answered: called with (i, status, body of the answer). connections: how many may be in flight.
    Filled in: latency, lateness (seconds), statuses.
    """

    path: str
    times: np.ndarray
    body: Callable[[int], bytes]
    answered: Callable[[int, int, bytes], None]
    connections: int
    latency: list[float] = field(default_factory=list)
    lateness: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)


class _Connection:
    """A connection with at most one request in flight."""

    def __init__(self, port: int, stream: Stream) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.stream = stream
        self.index = 0
        self.scheduled = 0.0
        # The lines that Python's `http.client` sends, which the product's client uses.
        self._head = (
            f"POST {stream.path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
            "Accept-Encoding: identity\r\nContent-Type: application/json\r\nContent-Length: "
        ).encode()
        self._received = b""

    def send(self, index: int, scheduled: float) -> None:
        self.index, self.scheduled = index, scheduled
        body = self.stream.body(index)
        self.socket.sendall(b"%s%d\r\n\r\n%s" % (self._head, len(body), body))

    def receive(self) -> bool:
        """Read what is there; whether the answer is whole, which is then recorded."""
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionError("the server closed a connection")
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found:
            return False
        place = head.find(b"content-length:")
        if len(body) < int(head[place + 15 :].split(b"\r\n", 1)[0]):
            return False
        stream, status = self.stream, int(head[9:12])
        stream.latency.append(_clock() - self.scheduled)
        stream.statuses[status] = stream.statuses.get(status, 0) + 1
        stream.answered(self.index, status, body)
        self._received = b""
        return True


def run(port: int, streams: list[Stream]) -> None:
    """Send everything on schedule and wait for the answers."""
    idle: list[deque[_Connection]] = []
    waiting: list[deque[tuple[int, float]]] = [deque() for _ in streams]
    everyone: dict[int, _Connection] = {}
    for stream in streams:
        mine = [_Connection(port, stream) for _ in range(stream.connections)]
        idle.append(deque(mine))
        everyone.update({one.socket.fileno(): one for one in mine})
    position = {id(stream): index for index, stream in enumerate(streams)}
    # It answers in a microsecond or two and never sleeps: this core is the generator's own.
    poller = select.epoll()
    for descriptor in everyone:
        poller.register(descriptor, select.EPOLLIN)
    start = _clock() + 0.05
    schedule = _merged(streams)
    due, which, index = next(schedule)
    busy = 0
    ended = False
    while not ended or busy:
        while not ended and due + start <= _clock():
            if idle[which]:
                late = _clock() - start - due
                streams[which].lateness.append(late)
                idle[which].popleft().send(index, start + due)
                busy += 1
            else:
                waiting[which].append((index, start + due))
            due, which, index = next(schedule, (np.inf, 0, 0))
            ended = due == np.inf
        left = 1.0 if ended else due + start - _clock()
        for descriptor, _ in poller.poll(left - 0.002 if left > 0.003 else 0.0, 8):
            one = everyone[descriptor]
            if one.receive():
                at = position[id(one.stream)]
                if waiting[at]:
                    one.send(*waiting[at].popleft())
                else:
                    idle[at].append(one)
                    busy -= 1
    poller.close()
    for one in everyone.values():
        one.socket.close()


def _merged(streams: list[Stream]) -> Iterator[tuple[float, int, int]]:
    """(time, stream, index within the stream) of every request, in time order."""
    times = np.concatenate([stream.times for stream in streams])
    which = np.repeat(np.arange(len(streams)), [len(stream.times) for stream in streams])
    index = np.concatenate([np.arange(len(stream.times)) for stream in streams])
    order = np.argsort(times, kind="stable")
    return zip(times[order].tolist(), which[order].tolist(), index[order].tolist(), strict=True)


def arrivals(rate: float, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """Times of a Poisson stream of `rate` per second."""
    times = np.cumsum(rng.exponential(1 / rate, int(rate * seconds * 1.2) + 20))
    return times[times < seconds]
