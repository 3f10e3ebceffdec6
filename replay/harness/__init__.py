"""Replayed streams, the sweep over many of them, its cache of finished cells, its metrics."""
