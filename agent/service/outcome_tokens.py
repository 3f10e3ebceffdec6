"""Outcome tokens: proof that whoever reports an outcome was told of the decision.

Decision ids are counted, so anybody who may report outcomes could report those of others. Each
answer of decide carries a short HMAC-SHA256 (RFC 2104) of the decision's number, with a key of its
own that is derived from the store's secret key and the experiment's name. It is computed anew each
time, so nothing is kept, and a restart or a restored backup knows the same ones.
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64encode

from equipoise.agent.service.problems import refuse
from equipoise.agent.service.tokens import Caller

_DOMAIN = b"equipoise outcome token, version 1\0"
_BYTES = 15
"""120 bits, 20 characters."""


class OutcomeTokens:
    """Of one experiment. key: the store's; required: whether callers of scope route need one."""

    def __init__(self, key: bytes, experiment: str, required: bool) -> None:
        self._key = hmac.digest(key, _DOMAIN + experiment.encode(), "sha256")
        self._required = required

    def of(self, number: int) -> str:
        """The token of a decision."""
        digest = hmac.digest(self._key, b"d%d" % number, "sha256")
        return urlsafe_b64encode(digest[:_BYTES]).decode()

    def check(self, number: int, token: str | None, caller: Caller) -> None:
        """Refuse (403) an outcome that does not carry the token of its decision."""
        if token is None:
            if not self._required or caller.admin:
                return
            why = "the token that came with the decision is needed"
        elif hmac.compare_digest(self.of(number).encode(), token.encode()):
            return
        else:
            why = f"this is not the one that came with decision d{number}"
        raise refuse(403, f"outcome_token: {why}", field="outcome_token")
