"""Estimates over time since the daemon started, in bounded memory."""

from __future__ import annotations

from equipoise.agent.service.schema import EstimatesAnswer, ModelEstimate, Wire

MOST_POINTS = 240


class Point(Wire, frozen=True, kw_only=True):
    """What was estimated at a moment; the rows in the order of the models, then routing."""

    at: float
    log_rows: int
    randomized: int
    models: list[ModelEstimate]
    todays_routing: ModelEstimate


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
            randomized=estimates.randomized,
            models=estimates.models,
            todays_routing=estimates.todays_routing,
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
