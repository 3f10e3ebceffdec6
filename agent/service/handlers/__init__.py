"""Handlers of all routes but the hot ones."""
