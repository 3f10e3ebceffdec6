"""Bearer tokens: who may do what.

Only digests are kept, and every one of them is compared in constant time, so that neither the
answer's time nor the daemon's memory tells anything about a token.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import NamedTuple

from equipoise.agent.service.problems import Refusal, problem
from equipoise.agent.service.settings import Scope, TokenSettings, weakness

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
        self.replace(tokens, environment)

    def replace(
        self, tokens: Iterable[TokenSettings], environment: Mapping[str, str] = os.environ
    ) -> None:
        """Take these from now on. Raises MissingTokenError and changes nothing."""
        self._digests = [(_digest(token, environment), token.scope, token.name) for token in tokens]

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
        known: tuple[Scope, str] | None = None
        text = _presented(headers)
        if text:
            presented = sha256(text).digest()
            for digest, has, name in self._digests:
                if hmac.compare_digest(digest, presented):
                    known = (has, name)
        if known is None:
            raise Refusal(problem(401, "a bearer token is needed here"), _CHALLENGE)
        if known[0] not in (scope, "admin"):
            raise Refusal(problem(403, f"this needs a token of scope {scope}", limit=scope))
        return Caller(known[1], known[0] == "admin")


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
