"""Runs of a sweep averaged, with intervals, and summarized in numbers and sentences."""
