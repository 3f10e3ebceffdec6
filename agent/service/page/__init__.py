"""The page at `/`: what is known and decided, for people; and the history it draws."""

from __future__ import annotations

from importlib.resources import files

import msgspec

from equipoise.agent.service.daemon import Daemon
from equipoise.agent.service.endpoints import Plain
from equipoise.agent.service.page.history import History

HISTORY_SECONDS = 5.0
SECURITY = {
    # Everything comes from here, nothing is inline, and no other site may frame its buttons.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
_FILES = (
    ("/", "page.html", "text/html; charset=utf-8"),
    ("/page.css", "page.css", "text/css; charset=utf-8"),
    ("/page.js", "page.js", "text/javascript; charset=utf-8"),
)


def page(daemon: Daemon) -> tuple[Plain, ...]:
    """What to serve beside the interface. It begins to keep the history when the daemon starts."""
    history = History()

    async def look() -> None:
        if daemon.analysis.newest is not None:
            history.add(daemon.analysis.newest.estimates)

    daemon.jobs.add("history", HISTORY_SECONDS, look)

    async def points() -> tuple[int, bytes]:
        await look()
        return 200, msgspec.json.encode(history.answer())

    served = Plain("/page/history", "application/json", points, headers=SECURITY)
    return (*(_static(*each) for each in _FILES), served)


def _static(path: str, name: str, content_type: str) -> Plain:
    body = files(__name__).joinpath(name).read_bytes()

    async def read() -> tuple[int, bytes]:
        return 200, body

    return Plain(path, content_type, read, headers=SECURITY)
