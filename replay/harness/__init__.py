"""Streams of a replay, and sweeps over many of them that can be interrupted."""
