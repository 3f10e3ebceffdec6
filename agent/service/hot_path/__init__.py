"""Decide and outcomes: from the socket to the log with as little between as possible."""
