"""Worlds: what production adds to a benchmark, with the truth known exactly."""

from equipoise.replay.worlds.options import WorldOptions
from equipoise.replay.worlds.world import Hidden, World

__all__ = ["Hidden", "World", "WorldOptions"]
