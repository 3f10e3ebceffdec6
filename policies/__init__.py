"""Allocation: which requests to randomize, and onto which model."""
