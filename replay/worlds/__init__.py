"""Worlds: what production adds to a benchmark, with the truth known exactly."""

from equipoise.replay.worlds.options import WorldError, WorldOptions
from equipoise.replay.worlds.outcomes import Service
from equipoise.replay.worlds.world import Hidden, Truth, World

__all__ = ["Hidden", "Service", "Truth", "World", "WorldError", "WorldOptions"]
