"""Who may come in: token, host name, origin, content type, and how often.

A program says what it wants and carries its token. A browser speaks for whatever page it shows: it
sends requests that the page's author wrote, to any address, with credentials that the reader gave.
So what a browser says of the page (`Origin`, `Sec-Fetch-Site`) must say that the page is ours, and
where no token is needed the name in `Host` must be one of this machine, for any name in the world
can be made to point here.
"""

from __future__ import annotations

import ipaddress
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

from equipoise.agent.service.problems import Refusal, problem, refuse
from equipoise.agent.service.protocol import WEBSOCKET
from equipoise.agent.service.settings import Scope, ServiceSettings
from equipoise.agent.service.tokens import ANYBODY, Caller, Tokens

_JSON = (b"application/json", b"application/x-ndjson")
_FORM = b"application/x-www-form-urlencoded"
_CONTENT = "content-type application/json or application/x-ndjson"

Headers = Sequence[tuple[bytes, bytes]]


class Doors:
    """Admits requests. tokens: may be replaced while it stands; settings: names and rate."""

    def __init__(self, tokens: Tokens, settings: ServiceSettings) -> None:
        self.tokens = tokens
        self._names = frozenset(name.lower() for name in settings.names)
        self._hosts = self._names | {settings.host.lower()}
        self._most_reads = settings.limits.reads
        self._reads: Counter[str] = Counter()
        rate = settings.limits.decide_per_second
        self.rates = None if rate is None else Rates(rate)

    def admit(self, method: str, headers: Headers, scope: Scope | None) -> Caller:
        """Who asks. scope: what a token needs, None where everybody may ask.

        Raises Refusal: 400 for a WebSocket, 401 and 403 as `Tokens.check`, 403 for another site's
        page, 415 for a body that says it is no JSON, 421 for another host's name.
        """
        host = origin = site = content = b""
        navigates = websocket = False
        for name, value in headers:
            if name == b"host":
                host = value
            elif name == b"content-type":
                content = value
            elif name == b"origin":
                origin = value or b"null"
            elif name == b"sec-fetch-site":
                site = value.lower()
            elif name == b"sec-fetch-dest":
                navigates = value.lower() == b"document"
            elif name == WEBSOCKET:
                websocket = True
        if websocket:
            raise refuse(400, "there are no WebSockets here")
        if not self.tokens and host and not self._ours(_host_name(host.lower())):
            raise Refusal(
                problem(421, "this daemon does not answer to that name: add it to service.names")
            )
        if origin and not self._same(origin.lower(), host.lower()):
            raise refuse(403, "this may not be asked for from another site")
        if site in (b"cross-site", b"same-site") and not (navigates and method in ("GET", "HEAD")):
            # A link to the page may stand anywhere.
            raise refuse(403, "this may not be asked for from another site")
        if method in ("POST", "PUT"):
            _check_content(content, browser=bool(origin or site))
        return ANYBODY if scope is None else self.tokens.check(headers, scope)

    def count(self, caller: Caller, requests: int = 1) -> None:
        """Let a caller have so many requests decided, or raise Refusal 429."""
        if self.rates is not None:
            self.rates.take(caller.name, requests)

    @contextmanager
    def reading(self, caller: Caller, weight: int) -> Iterator[None]:
        """While a caller waits for something dear: so much of it at once, else Refusal 429."""
        name = caller.name
        if self._reads[name] + weight > self._most_reads:
            limit = f"{self._most_reads} at once"
            raise Refusal(problem(429, f"more reports than {limit}", limit=limit, retry_after=1.0))
        self._reads[name] += weight
        try:
            yield
        finally:
            self._reads[name] -= weight

    def _ours(self, name: str) -> bool:
        return name in self._hosts or _is_loopback(name)

    def _same(self, origin: bytes, host: bytes) -> bool:
        """Whether a page of that origin came from here."""
        scheme, found, place = origin.partition(b"://")
        if not found or scheme not in (b"http", b"https"):
            return False
        default = b":443" if scheme == b"https" else b":80"
        return place.removesuffix(default) == host.removesuffix(default) or (
            _host_name(place) in self._names
        )


class Rates:
    """A bucket a token: `per_second` requests, and as many at once."""

    def __init__(self, per_second: float) -> None:
        self._rate = per_second
        self._most = max(per_second, 1.0)
        self._left: dict[str, tuple[float, float]] = {}

    def take(self, name: str, requests: int) -> None:
        """Take so many out of the bucket. Raises Refusal 429 where it does not hold as many; a
        batch larger than the bucket is let through once it is full."""
        now = time.monotonic()
        left, at = self._left.get(name, (self._most, now))
        left = min(self._most, left + (now - at) * self._rate)
        needed = min(float(requests), self._most)
        if left < needed - 1e-9:
            self._left[name] = left, now
            raise Refusal(
                problem(
                    429,
                    f"{requests} more than {self._rate:g} requests a second",
                    limit=f"{self._rate:g} requests a second",
                    retry_after=(needed - left) / self._rate,
                )
            )
        # What a large batch takes beyond the bucket is paid back before the next.
        self._left[name] = left - requests, now


def _check_content(content: bytes, browser: bool) -> None:
    """Refuse what a page can send anywhere without asking: text, and forms.

    Many programs name no type at all, and curl sends `-d` as a form, which counts as JSON where no
    browser is behind it.
    """
    kind = content.partition(b";")[0].strip().lower()
    if kind in _JSON or not content or (kind == _FORM and not browser):
        return
    raise refuse(415, f"the body is to come with {_CONTENT}", limit=_CONTENT)


def _host_name(place: bytes) -> str:
    """The name in `Host`, without its port."""
    text = place.decode("latin-1")
    if text.startswith("["):
        return text.partition("]")[0][1:]
    return text.partition(":")[0].removesuffix(".")


@lru_cache(maxsize=256)
def _is_loopback(name: str) -> bool:
    """Whether a name can only mean this machine or one beside it.

    A name without a dot is nobody's in the world: no public zone has one, so no page of a stranger
    can be at it.
    """
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        plain = name.replace("-", "").isalnum() and name.isascii()
        return plain or name.endswith(".localhost")
