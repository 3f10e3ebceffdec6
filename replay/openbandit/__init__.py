"""Open Bandit: a real log of recommendations without known counterfactuals.

`log` reads it, `values` values policies on it with the logged propensities, `replays` replays our
own allocation policies on it, `findings` says what came out, `command` runs it all.
"""
