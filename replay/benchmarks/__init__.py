"""Benchmarks: contexts × models with features, cached outputs, outcomes and costs."""

from equipoise.replay.benchmarks.base import Benchmark, BenchmarkError
from equipoise.replay.benchmarks.registry import benchmark, describe, load

__all__ = ["Benchmark", "BenchmarkError", "benchmark", "describe", "load"]
