"""The report of a replay: one HTML file that needs no network, for reading and printing."""

from equipoise.replay.report.page import write_report

__all__ = ["write_report"]
