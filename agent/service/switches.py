"""Whether requests are randomized: the mode, the pause button and the kill switch, in that order.

The pause, which checks may press too, and a changed budget are kept in the store, so a restart
does not forget them.
"""

from __future__ import annotations

import msgspec

from equipoise.agent.agent import Agent
from equipoise.agent.service.killswitch import KillSwitch
from equipoise.agent.service.schema import BudgetAnswer, Mode, ModeAnswer
from equipoise.store.records import Control

UNSAID = "an operator paused it"
"""The reason of a pause for which none was given."""
BUDGET = "budget"


class Switches:
    """What an operator can turn. mode: as configured."""

    def __init__(self, agent: Agent, mode: Mode, kill_switch: KillSwitch) -> None:
        self._agent = agent
        self._mode = mode
        self.kill_switch = kill_switch
        self.keep_budget()
        self._act()

    def pause(self, reason: str, at: float) -> ModeAnswer:
        """Log decisions from now on with e = 0."""
        self._agent.pause(reason or UNSAID, at)
        return self.answer()

    def resume(self, reason: str, at: float) -> ModeAnswer:
        """Randomize again, if the mode is `run`; after a check had paused, in a new era."""
        self._agent.resume(at, reason)
        return self.answer()

    @property
    def paused(self) -> bool:
        """Whether a person or a check paused the experiment."""
        return self._agent.paused is not None

    @property
    def reason(self) -> str:
        """Why it is paused, "" where it is not or nobody said."""
        reason = self._agent.paused
        return "" if reason is None or reason == UNSAID else reason

    def set_budget(self, requests: int | None, at: float) -> BudgetAnswer:
        """Change the hard stop; counted from the start of the experiment."""
        self._set(Control(at=at, name=BUDGET, value=_text(requests)))
        return self.budget()

    def keep_budget(self) -> None:
        """Put the budget that an operator set last in force again."""
        for control in self._agent.store.controls():
            self._apply(control)

    def set_mode(self, mode: Mode) -> None:
        """Take another mode, from a configuration that was read again."""
        self._mode = mode
        self._act()

    def budget(self) -> BudgetAnswer:
        limit, spent = self._agent.budget, self._agent.fold.randomized
        left = None if limit is None else max(limit - spent, 0)
        return BudgetAnswer(requests=limit, randomized=spent, left=left)

    def answer(self) -> ModeAnswer:
        return ModeAnswer(
            mode=self._mode,
            paused=self.paused,
            reason=self.reason,
            kill_switch=self.kill_switch.on,
            randomizing=self._mode == "run" and not self.paused and not self.kill_switch.on,
        )

    def _set(self, control: Control) -> ModeAnswer:
        self._agent.store.put(control)
        self._apply(control)
        self._act()
        return self.answer()

    def _apply(self, control: Control) -> None:
        value = msgspec.json.decode(control.value)
        if control.name == BUDGET:
            self._agent.set_budget(value)

    def _act(self) -> None:
        self._agent.observing_only = self._mode == "observe"


def _text(value: object) -> str:
    return msgspec.json.encode(value).decode()
