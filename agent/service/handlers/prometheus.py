"""Prometheus metrics: the daemon's counters and state, read when they are asked for."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import get_args

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from equipoise.agent.agent import Agent
from equipoise.agent.answers.statements import Situation
from equipoise.agent.answers.status import Activity, State
from equipoise.agent.budget.cost import Spent
from equipoise.agent.lanes.authority import Authority, LanesReport
from equipoise.agent.monitors.check import Status as CheckStatus
from equipoise.agent.monitors.check import gravest_by_name
from equipoise.agent.planning.forecast import Forecast
from equipoise.agent.service.analyst.client import AnalystClient
from equipoise.agent.service.analyst.reports import Report
from equipoise.agent.service.control import Breaker, Clock, Switches
from equipoise.agent.service.handlers.queries import expected_now
from equipoise.agent.service.telemetry import Counters
from equipoise.store.opening import ServedStore

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
RESTS = 20.0


class Exposition:
    """The text that a Prometheus server scrapes.

    Metrics are read in the loop and written down in a thread; who comes meanwhile gets the same
    text, and the next is not begun before a few times as long have passed as this one took.
    """

    def __init__(
        self,
        agent: Agent,
        store: ServedStore,
        counters: Counters,
        switches: Switches,
        breaker: Breaker,
        analysis: AnalystClient,
        clock: Clock,
        authority: Authority | None = None,
    ) -> None:
        self._authority = authority
        self._agent = agent
        self._store = store
        self._counters = counters
        self._switches = switches
        self._breaker = breaker
        self._analysis = analysis
        self._clock = clock
        self._turn = asyncio.Lock()
        self._text = b""
        self._number = 0
        self._next = 0.0

    async def read(self) -> bytes:
        """The metrics as they are now, or soon."""
        number = self._number
        async with self._turn:
            if self._number > number + 1:
                return self._text  # it was begun after we came
            await asyncio.sleep(self._next - time.monotonic())
            start = time.monotonic()
            self._number += 1
            families = list(self._families())
            self._text = await asyncio.to_thread(_text, families)
            self._next = time.monotonic() + RESTS * (time.monotonic() - start)
            self._number += 1
            return self._text

    def _families(self) -> Iterator[Metric]:
        yield from traffic(self._counters, self._agent.models)
        yield from self._state()
        yield from _lanes(LanesReport() if self._authority is None else self._authority.report())
        if self._analysis.newest is not None:
            yield from _knowledge(self._analysis.newest, self._switches.situation())
        if self._analysis.forecast is not None:
            made = expected_now(
                self._analysis.forecast, self._agent, self._switches, self._analysis
            )
            yield from _expectation(made)

    def _state(self) -> Iterator[Metric]:
        agent, store, switches = self._agent, self._store, self._switches
        budget, activity = switches.budget(self._analysis.basis), switches.activity
        works = self._breaker.reason is None and store.trouble is None
        gauges: dict[str, tuple[str, float]] = {
            "equipoise_log_rows": ("Rows of the log.", agent.light.next_seq),
            "equipoise_requests": ("Decisions in the log.", agent.state.decisions),
            "equipoise_randomized": ("Randomized decisions in the log.", agent.light.randomized),
            "equipoise_open_decisions": (
                "Decisions held in memory, most of them waiting for an outcome.",
                agent.light.pending.size,
            ),
            "equipoise_queue_rows": ("Rows that wait for SQLite.", store.waiting),
            "equipoise_store_ok": ("1 while the store takes rows.", float(works)),
            "equipoise_clock_off_seconds": (
                "Seconds by which the machine's clock is ahead of the daemon's own.",
                self._clock.off,
            ),
            "equipoise_paused": (
                "1 while an operator or a check paused it, or it has ended.",
                float(switches.paused),
            ),
            "equipoise_kill_switch": (
                "1 while the kill switch is on.",
                float(switches.kill_switch.on),
            ),
            "equipoise_randomizing": (
                "1 while requests may be randomized.",
                float(activity.randomizing),
            ),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(name, text, value=value)
        doing = GaugeMetricFamily(
            "equipoise_activity", "1 for what is done with requests now.", labels=["activity"]
        )
        for each in Activity:
            doing.add_metric([each.value], float(each is activity))
        yield doing
        yield from _spent(budget.spent)
        yield CounterMetricFamily(
            "equipoise_would_randomize",
            "Requests that would have been randomized, had they not only been observed.",
            value=agent.would_randomize,
        )
        if budget.requests is not None:
            yield GaugeMetricFamily(
                "equipoise_budget_requests", "Requests that may be randomized.", budget.requests
            )
            yield GaugeMetricFamily(
                "equipoise_budget_left", "Of those, not spent yet.", budget.left or 0
            )
        yield CounterMetricFamily(
            "equipoise_clock_steps",
            "Times that the machine's clock was set.",
            value=self._counters.clock_steps,
        )
        if self._counters.moved_out is not None:
            yield CounterMetricFamily(
                "equipoise_rows_moved_out",
                "Old rows that left the store.",
                value=self._counters.moved_out,
            )
        yield CounterMetricFamily(
            "equipoise_commits", "Transactions that moved rows into SQLite.", value=store.commits
        )
        yield CounterMetricFamily(
            "equipoise_commit_seconds", "Seconds spent in them.", value=store.commit_seconds
        )


_SPENT = {
    "requests": ("randomized_requests", "Requests randomized onto a model, in all eras."),
    "usd": ("randomized_usd", "USD for their answers, by the prices in force."),
    "extra_usd": ("randomized_extra_usd", "USD more than the models routed would have cost."),
    "rewards": ("rewards", "Rewards of them that came."),
    "reward_sum": ("reward_sum", "The sum of those."),
    "gained": ("gained_rewards", "Rewards gained against today's routing, estimated."),
    "gained_error": ("gained_rewards_error", "Its standard error."),
}


def _spent(spent: Spent) -> Iterator[Metric]:
    """What randomizing has cost; what is not known is left out, and never 0."""
    for field, (name, text) in _SPENT.items():
        gauge = GaugeMetricFamily(f"equipoise_{name}", text, labels=["model"])
        for row in spent.models:
            if (value := getattr(row, field)) is not None:
                gauge.add_metric([row.model], value)
        yield gauge
    # Errors of several models do not add up, and a sum lacks the models without a price.
    for field in ("usd", "extra_usd", "gained", "gained_error"):
        name, text = _SPENT[field]
        gauge = GaugeMetricFamily(f"equipoise_{name}_in_all", f"In all: {text}")
        if (value := getattr(spent, field)) is not None:
            gauge.add_metric([], value)
        yield gauge
    unpriced = GaugeMetricFamily(
        "equipoise_unpriced", "1 for a model without a price.", labels=["model"]
    )
    for row in spent.models:
        unpriced.add_metric([row.model], float(row.model in spent.unpriced))
    yield unpriced


def traffic(counters: Counters, models: Sequence[str]) -> Iterator[Metric]:
    """What came over HTTP since the start. models: their names."""
    decisions = CounterMetricFamily(
        "equipoise_decisions", "Decisions since the start.", labels=["model", "randomized"]
    )
    for model in models:
        for randomized in (False, True):
            count = counters.decisions[model, randomized]
            decisions.add_metric([model, str(randomized).lower()], count)
    yield decisions
    yield CounterMetricFamily(
        "equipoise_repeated_requests", "Requests decided before.", value=counters.repeated
    )
    yield _counter(
        "equipoise_passed_through",
        "Requests that were not decided, by reason.",
        "reason",
        counters.passed_through,
    )
    yield _counter(
        "equipoise_outcomes", "Outcome parts by what became of them.", "what", counters.outcomes
    )
    yield _counter("equipoise_bulk_rows", "Rows of bulk bodies.", "kind", counters.bulk)
    yield _counter(
        "equipoise_otlp", "What came by OTLP, by what became of it.", "what", counters.spans
    )
    waiting = GaugeMetricFamily(
        "equipoise_otlp_waiting", "What of it waits, by kind.", labels=["kind"]
    )
    for kind, count in counters.waiting.items():
        waiting.add_metric([kind], count)
    yield waiting
    yield _counter(
        "equipoise_job_failures", "Runs of jobs that failed.", "job", counters.job_failures
    )
    refused = {str(status): count for status, count in counters.refused.items()}
    yield _counter(
        "equipoise_connections_refused",
        "Connections that were closed for a limit.",
        "status",
        refused,
    )
    responses = CounterMetricFamily("equipoise_responses", "Responses.", labels=["route", "status"])
    for (route, status), count in sorted(counters.responses.items()):
        responses.add_metric([route, str(status)], count)
    yield responses
    seconds = HistogramMetricFamily(
        "equipoise_handler_seconds", "Time inside a handler.", labels=["route"]
    )
    for route, histogram in sorted(counters.seconds.items()):
        seconds.add_metric([route], histogram.cumulative(), histogram.total)
    yield seconds
    yield HistogramMetricFamily(
        "equipoise_refresh_seconds",
        "Work of one refresh.",
        buckets=counters.refresh_seconds.cumulative(),
        sum_value=counters.refresh_seconds.total,
    )
    yield CounterMetricFamily(
        "equipoise_refresh_failures", "Refreshes that failed.", value=counters.refresh_failures
    )


def exposition_text(families: Iterable[Metric]) -> bytes:
    """Metrics as a Prometheus server reads them."""
    return _text(list(families))


def _text(families: list[Metric]) -> bytes:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Read(families))
    return generate_latest(registry)


class _Read(Collector):
    """Metrics that were read."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def _knowledge(report: Report, situation: Situation) -> Iterator[Metric]:
    """Values, interval widths and checks of the newest report, and the status as it stands."""
    value = GaugeMetricFamily("equipoise_value", "Estimated value.", labels=["model"])
    error = GaugeMetricFamily("equipoise_standard_error", "Its standard error.", labels=["model"])
    width, *ends = (
        GaugeMetricFamily(f"equipoise_interval_{name}", text, labels=["model"])
        for name, text in (
            ("width", "Width of the certified interval."),
            ("lower", "Its lower end."),
            ("upper", "Its upper end."),
        )
    )
    for row in (*report.estimates.models, report.estimates.todays_routing):
        if row.value is not None:
            value.add_metric([row.model], row.value)
        if row.standard_error is not None:
            error.add_metric([row.model], row.standard_error)
        if row.lower is not None and row.upper is not None:
            width.add_metric([row.model], row.upper - row.lower)
            for gauge, end in zip(ends, (row.lower, row.upper), strict=True):
                gauge.add_metric([row.model], end)
    yield from (value, error, width, *ends)
    answer = report.recommendation(situation=situation)
    status = GaugeMetricFamily("equipoise_status", "1 for the present one.", labels=["status"])
    for each in State:
        status.add_metric([each.value], float(answer.status is each))
    yield status
    checks = GaugeMetricFamily(
        "equipoise_check", "1 for the present status of a check.", labels=["check", "status"]
    )
    for check in gravest_by_name(report.checks.checks):
        for name in get_args(CheckStatus):
            checks.add_metric([check.name, name], float(check.status == name))
    yield checks
    yield GaugeMetricFamily("equipoise_report_time_seconds", "When it was made.", value=report.at)
    yield GaugeMetricFamily("equipoise_report_log_rows", "Rows it holds.", value=report.log_rows)
    waiting, behind = report.estimates.waiting, report.estimates.watermark
    yield GaugeMetricFamily("equipoise_waiting", "Decisions without an outcome.", value=waiting)
    yield GaugeMetricFamily(
        "equipoise_held_back",
        "Decisions that are not certified only because an earlier one waits.",
        value=behind.held_back,
    )
    yield GaugeMetricFamily(
        "equipoise_oldest_waiting_seconds",
        "Age of the oldest decision that waits; negative where it is dated in the future.",
        value=0.0 if behind.at is None else report.at - behind.at,
    )
    # What became of the draws of this era that are closed, as the check `delivery` counts them.
    assignments = GaugeMetricFamily(
        "equipoise_assignments",
        "Draws of this era that are closed: decided, delivered, and answered by the model drawn.",
        labels=["model", "what"],
    )
    for check in report.checks.checks:
        if check.name == "delivery":
            for what in ("decided", "delivered", "exposed"):
                counts = check.figures[what]
                for row, count in zip(report.estimates.models, counts, strict=True):
                    assignments.add_metric([row.model, what], count)
    yield assignments


def _expectation(forecast: Forecast) -> Iterator[Metric]:
    """Quantiles of what is to come until the decision; +Inf beyond what was simulated."""
    for name, text, band in (
        ("equipoise_decided_in_hours", "Hours until the decision, forecast.", forecast.hours),
        (
            "equipoise_decided_after_randomized",
            "Randomized requests of this era in all until the decision, forecast.",
            forecast.total,
        ),
    ):
        gauge = GaugeMetricFamily(name, text, labels=["quantile"])
        if band is not None:
            for quantile, value in (("0.1", band.low), ("0.5", band.median), ("0.9", band.high)):
                gauge.add_metric([quantile], math.inf if value is None else value)
        yield gauge


def _counter(name: str, text: str, label: str, counts: dict[str, int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for value, count in sorted(counts.items()):
        family.add_metric([value], count)
    return family


def _lanes(report: LanesReport) -> Iterator[Metric]:
    states = {
        "held": sum(lane.held for lane in report.lanes),
        "lost": sum(lane.lost for lane in report.lanes),
        "left": sum(not lane.held and not lane.lost for lane in report.lanes),
    }
    gauge = GaugeMetricFamily("equipoise_lanes", "Lanes of deciders, by state.", labels=["state"])
    for state, count in states.items():
        gauge.add_metric([state], count)
    yield gauge
    text = "Rows that deciders shipped and the log lacks."
    gauge = GaugeMetricFamily("equipoise_shipped_waiting", text, labels=["kind"])
    for kind in ("decisions", "outcomes", "reports"):
        gauge.add_metric([kind], report.waiting.get(kind, 0))
    yield gauge
    yield GaugeMetricFamily(
        "equipoise_lanes_behind_seconds",
        "Age of the oldest publication whose decisions are not in the log.",
        value=report.behind,
    )
    counts = {name: getattr(report, name) for name in _SHIPPED}
    counts["refused"] = sum(report.refused.values())
    text = "What deciders shipped, by what became of it."
    yield _counter("equipoise_shipped", text, "what", counts)


_SHIPPED = ("decisions", "late", "repeated", "bounded", "outcomes", "duplicates", "out_of_time")
