"""The kill switch: a file whose existence stops the agent from deciding anything.

It needs neither the store nor HTTP: `touch <store>.kill` is enough, and removing the file is the
way back. The file is looked for a few times a second, not at every request. Where no file can be
made, SIGUSR1 turns the switch on and SIGUSR2 off again.
"""

from __future__ import annotations

import os

LOOK_SECONDS = 0.1


class KillSwitch:
    """on: whether the file was there at the last look, or the signal said so."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.on = False
        self._signalled = False
        self.look()

    def signal(self, on: bool) -> None:
        """What a signal says holds until another one, whatever file there is."""
        self._signalled = on

    def look(self) -> bool:
        """Look for the file; whether the switch changed."""
        # A path that cannot be looked at (no permission, a dead mount) stops nothing.
        before, self.on = self.on, self._signalled or os.path.lexists(self.path)
        return self.on is not before
