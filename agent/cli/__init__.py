"""Commands about a store: status, audit, export. `equipoise.replay.cli` is the whole command.

Numerical libraries are imported inside the commands, so that `--help` stays fast.
"""
