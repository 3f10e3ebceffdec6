"""The commands of the agent, for `equipoise.replay.cli`, which is the whole command.

Numerical libraries are imported inside the commands, so that `--help` stays fast.
"""
