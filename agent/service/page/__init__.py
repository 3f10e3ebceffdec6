"""The page at `/`: what is known and decided, for people; and the history it draws."""

from __future__ import annotations

from importlib.resources import files
from typing import TypeAlias

import msgspec

from equipoise.agent.service.analyst.client import AnalystClient
from equipoise.agent.service.api.estimates import EstimatesAnswer, ModelEstimate
from equipoise.agent.service.api.schema import Wire
from equipoise.agent.service.http.endpoints import Plain
from equipoise.agent.service.upkeep.jobs import Jobs

MOST_POINTS = 240


Shown: TypeAlias = tuple[float, float, float] | None
"""A value and the ends of its 95% interval; None where it is not known."""


class Point(Wire, frozen=True, kw_only=True):
    """What was shown at a moment. models: in the order of the configuration."""

    at: float
    log_rows: int
    era: int
    randomized: int
    models: list[Shown]
    routing: Shown


class HistoryAnswer(Wire, frozen=True, kw_only=True):
    """Points in the order of time."""

    points: list[Point]


class History:
    """Points that are evenly spread over the log, at most `most` and at least half as many.

    Where there are too many, every second one goes, and from then on only half as many come in.
    The newest is always there.
    """

    def __init__(self, most: int = MOST_POINTS) -> None:
        self._most = most
        self._points: list[Point] = []
        self._newest: Point | None = None
        self._every = 1
        self._seen = 0

    def add(self, estimates: EstimatesAnswer) -> None:
        """Take the estimates in, unless nothing was logged since."""
        newest = self._newest
        if newest is not None and newest.log_rows >= estimates.log_rows:
            return
        self._newest = Point(
            at=estimates.at,
            log_rows=estimates.log_rows,
            era=estimates.era,
            randomized=estimates.randomized,
            models=[_shown(each) for each in estimates.models],
            routing=_shown(estimates.todays_routing),
        )
        if self._seen % self._every == 0:
            self._points.append(self._newest)
        self._seen += 1
        if len(self._points) > self._most:
            del self._points[1::2]
            self._every *= 2

    def answer(self) -> HistoryAnswer:
        """The points kept, and the newest."""
        points = self._points
        if self._newest is not None and points[-1] is not self._newest:
            points = [*points, self._newest]
        return HistoryAnswer(points=points)


def _shown(each: ModelEstimate) -> Shown:
    return None if each.shown is None else (each.shown.value, *each.shown.interval)


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
    ("/charts.js", "charts.js", "text/javascript; charset=utf-8"),
)


def page(analysis: AnalystClient, jobs: Jobs) -> tuple[Plain, ...]:
    """What to serve beside the interface. It begins to keep the history when the daemon starts."""
    history = History()

    async def take() -> None:
        if analysis.newest is not None:
            history.add(analysis.newest.estimates)

    jobs.add("history", HISTORY_SECONDS, take)

    async def points() -> tuple[int, bytes]:
        await take()
        return 200, msgspec.json.encode(history.answer())

    return (
        *(
            Plain.fixed(
                path, kind, files(__name__).joinpath(name).read_bytes(), more_headers=SECURITY
            )
            for path, name, kind in _FILES
        ),
        Plain("/page/history", "application/json", points, more_headers=SECURITY),
    )
