"""Planned experiments simulated: the frozen rule forward in time, and when it may stop."""
