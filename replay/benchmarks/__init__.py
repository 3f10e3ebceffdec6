"""Benchmarks: contexts × models with features, cached outputs, outcomes and costs."""

from equipoise.replay.benchmarks.base import (
    Benchmark,
    BenchmarkError,
    benchmark,
    describe,
    describe_options,
    has_own_rewards,
    load,
    load_from_texts,
)

__all__ = [
    "Benchmark",
    "BenchmarkError",
    "benchmark",
    "describe",
    "describe_options",
    "has_own_rewards",
    "load",
    "load_from_texts",
]
