"""Worlds, harness, metrics and reports: allocation policies against cached benchmarks."""
