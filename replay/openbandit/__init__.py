"""Open Bandit: a real log of recommendations without known counterfactuals.

`log` reads it, `targets` are policies to value, `evaluate` values them with the logged
propensities, `rejection` replays our own allocation policies on it, `command` runs it all.
"""
