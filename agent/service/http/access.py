"""Access: who asks (bearer tokens), from where (host names, origins), how often, and who decided.

A program says what it wants and carries its token. A browser speaks for whatever page it shows: it
sends requests that the page's author wrote, to any address, with credentials that the reader gave.
So what a browser says of the page (`Origin`, `Sec-Fetch-Site`) must say that the page is ours, and
where no token is needed the name in `Host` must be one of this machine, for any name in the world
can be made to point here. Of tokens only digests are kept, and every one of them is compared in
constant time, so that neither the answer's time nor the daemon's memory tells anything about them.

Decision ids are counted, so anybody who may report outcomes could report those of others. Each
answer of decide therefore carries an outcome token: a short HMAC-SHA256 (RFC 2104) of the number of
the decision, with a key that is derived from the store's secret key and the experiment's name. It
is computed anew each time, so nothing is kept, and a restart or a restored backup knows the same.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from hashlib import blake2b, sha256
from typing import NamedTuple

from equipoise.agent.config.service import Scope, ServiceSettings, TokenSettings, weakness
from equipoise.agent.service.api.problems import Refusal
from equipoise.agent.service.http.connection_limits import WEBSOCKET

_DOMAIN = b"equipoise outcome token, version 1\0"
_BYTES = 15
"""120 bits, 20 characters."""
_BLOCK, _PADS = 64, (0x36, 0x5C)
_URL_SAFE = bytes.maketrans(b"+/", b"-_")


class OutcomeTokens:
    """Of one experiment. key: the store's; required: whether callers of scope route need one."""

    def __init__(self, key: bytes, experiment: str, required: bool) -> None:
        own = hmac.digest(key, _DOMAIN + experiment.encode(), "sha256").ljust(_BLOCK, b"\0")
        # HMAC's two passes up to the key: a token is made for every decision and every outcome.
        self._inner, self._outer = (sha256(bytes(each ^ pad for each in own)) for pad in _PADS)
        self._required = required

    def of(self, name: str) -> str:
        """The token of a decision, by its id."""
        return self._of(name).decode()

    def _of(self, name: str) -> bytes:
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(name.encode())
        outer.update(inner.digest())
        text = binascii.b2a_base64(outer.digest()[:_BYTES], newline=False)
        return text.translate(_URL_SAFE)

    def asks(self, caller: Caller) -> bool:
        """Whether a caller needs one."""
        return self._required and not caller.admin

    def check(self, name: str, token: str | None, caller: Caller) -> None:
        """Refuse (403) an outcome that does not carry the token of its decision."""
        if token is None:
            if not self.asks(caller):
                return
            why = "the token that came with the decision is needed"
        elif hmac.compare_digest(self._of(name), token.encode()):
            return
        else:
            why = f"this is not the one that came with decision {name}"
        raise Refusal(403, f"outcome_token: {why}", field="outcome_token")


# Basic first: of several challenges in one header, Chromium looks at the first only.
_CHALLENGE = {"www-authenticate": 'Basic realm="equipoise", Bearer realm="equipoise"'}


class Caller(NamedTuple):
    """Who asks. name: of the token, "" where none is needed; admin: whether it may do all."""

    name: str
    admin: bool


ANYBODY = Caller("", True)
"""Who asks where no token is needed."""


class MissingTokenError(ValueError):
    """A token whose environment variable is not set, or holds something that is no secret."""


class Tokens:
    """The tokens of a configuration. Without any, everything is open (on loopback only).

    environment: where tokens that are given by `env` are looked up.
    """

    def __init__(
        self, tokens: Iterable[TokenSettings], environment: Mapping[str, str] = os.environ
    ) -> None:
        self._digests: list[tuple[bytes, Scope, str]] = []
        self._own = os.urandom(32)
        self.replace(tokens, environment)

    def replace(
        self, tokens: Iterable[TokenSettings], environment: Mapping[str, str] = os.environ
    ) -> None:
        """Take these from now on. Raises MissingTokenError and changes nothing."""
        self._digests = [(_digest(token, environment), token.scope, token.name) for token in tokens]
        self.stamp = object()
        """Another one whenever the tokens are others."""

    def known_by(self, header: bytes) -> bytes:
        """What the whole header of a request may be remembered by: where it may hold a token, a
        digest under a key of this process."""
        return blake2b(header, key=self._own).digest() if self._digests else header

    def __bool__(self) -> bool:
        return bool(self._digests)

    def check(self, headers: Sequence[tuple[bytes, bytes]], scope: Scope) -> Caller:
        """Whose token a request carries. An admin token may do all.

        A browser sends the token as the password of Basic authentication. Where nothing is
        presented nothing is compared.
        Raises Refusal 401 where there is no known token, 403 where it lacks the scope.
        """
        if not self._digests:
            return ANYBODY
        token: tuple[Scope, str] | None = None
        text = _presented(headers)
        if text:
            presented = sha256(text).digest()
            for digest, granted, name in self._digests:
                if hmac.compare_digest(digest, presented):
                    token = granted, name
        if token is None:
            raise Refusal(401, "a bearer token is needed here", headers=_CHALLENGE)
        granted, name = token
        if granted not in (scope, "admin"):
            raise Refusal(403, f"this needs a token of scope {scope}", limit=scope)
        return Caller(name, granted == "admin")


def _digest(token: TokenSettings, environment: Mapping[str, str]) -> bytes:
    if token.sha256 is not None:
        return bytes.fromhex(token.sha256)
    secret = token.token
    if secret is None:
        secret = environment.get(token.env or "", "")
        if not secret:
            raise MissingTokenError(
                f"service.tokens: {token.name} is to come from the environment variable "
                f"{token.env}, which is not set"
            )
        if fault := weakness(secret):
            raise MissingTokenError(
                f"service.tokens: {token.name}: the environment variable {token.env} holds "
                f"{fault[0]}, expected {fault[1]}"
            )
    return sha256(secret.encode()).digest()


def _presented(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    for name, value in headers:
        if name == b"authorization":
            kind, _, rest = value.partition(b" ")
            if kind.lower() == b"bearer":
                return rest.strip()
            if kind.lower() == b"basic":
                try:
                    return base64.b64decode(rest.strip(), validate=True).partition(b":")[2]
                except binascii.Error:
                    return b""
    return b""


_JSON = (b"application/json", b"application/x-ndjson")
_FORM = b"application/x-www-form-urlencoded"
_CONTENT = "content-type application/json or application/x-ndjson"

Headers = Sequence[tuple[bytes, bytes]]


class Doors:
    """Admits requests. tokens: may be replaced while it stands; settings: names and limits; rates:
    of requests to decide, None for any number."""

    def __init__(
        self, tokens: Tokens, settings: ServiceSettings, rates: Rates | None = None
    ) -> None:
        self.tokens = tokens
        self._names = frozenset(name.lower() for name in settings.names)
        self._hosts = self._names | {settings.host.lower()}
        self._most_reads = settings.limits.reads
        self._reads: Counter[str] = Counter()
        self._rates = rates

    def admit(
        self,
        method: str,
        headers: Headers,
        scope: Scope | None,
        contents: tuple[bytes, ...] | None = None,
    ) -> Caller:
        """Who asks. scope: what a token needs, None where everybody may ask. contents: types of a
        body, one of which it must name; without them any program may send JSON.

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
            raise Refusal(400, "there are no WebSockets here")
        if not self.tokens and host and not self._ours(_host_name(host.lower())):
            raise Refusal(421, "this daemon does not answer to that name: add it to service.names")
        if origin and not self._same(origin.lower(), host.lower()):
            raise Refusal(403, "this may not be asked for from another site")
        if site in (b"cross-site", b"same-site") and not (navigates and method in ("GET", "HEAD")):
            # A link to the page may stand anywhere.
            raise Refusal(403, "this may not be asked for from another site")
        if method in ("POST", "PUT"):
            _check_content(content, bool(origin or site), contents)
        return ANYBODY if scope is None else self.tokens.check(headers, scope)

    def count(self, caller: Caller) -> None:
        """Let a caller have a request decided, or raise Refusal 429."""
        if self._rates is not None:
            self._rates.take(caller.name, 1)

    @contextmanager
    def reading(self, caller: Caller, weight: int) -> Iterator[None]:
        """While a caller waits for something dear: so much of it at once, else Refusal 429."""
        name = caller.name
        if self._reads[name] + weight > self._most_reads:
            limit = f"{self._most_reads} at once"
            raise Refusal(429, f"more reports than {limit}", limit=limit, retry_after=1.0)
        self._reads[name] += weight
        try:
            yield
        finally:
            self._reads[name] -= weight

    def _ours(self, name: str) -> bool:
        return name in self._hosts or _is_loopback(name)

    def _same(self, origin: bytes, host: bytes) -> bool:
        """Whether a page of that origin came from here."""
        scheme, separator, place = origin.partition(b"://")
        if not separator or scheme not in (b"http", b"https"):
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
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, name: str, requests: int) -> None:
        """Take so many out of the bucket. Raises Refusal 429 where it does not hold as many; a
        batch larger than the bucket is let through once it is full."""
        now = time.monotonic()
        level, at = self._buckets.get(name, (self._most, now))
        level = min(self._most, level + (now - at) * self._rate)
        needed = min(float(requests), self._most)
        if level < needed - 1e-9:
            self._buckets[name] = level, now
            limit, seconds = f"{self._rate:g} requests a second", (needed - level) / self._rate
            raise Refusal(429, f"{requests} more than {limit}", limit=limit, retry_after=seconds)
        # What a large batch takes beyond the bucket is paid back before the next.
        self._buckets[name] = level - requests, now


def _check_content(content: bytes, browser: bool, contents: tuple[bytes, ...] | None) -> None:
    """Refuse what a page can send anywhere without asking: text, and forms.

    Many programs name no type at all, and curl sends `-d` as a form, which counts as JSON where no
    browser is behind it.
    """
    kind = content.partition(b";")[0].strip().lower()
    if contents is not None:
        if kind not in contents:
            names = " or ".join(each.decode() for each in contents)
            raise Refusal(415, f"the body is to come with content-type {names}", limit=names)
        return
    if kind in _JSON or not content or (kind == _FORM and not browser):
        return
    raise Refusal(415, f"the body is to come with {_CONTENT}", limit=_CONTENT)


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
