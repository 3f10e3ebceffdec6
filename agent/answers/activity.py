"""What an experiment is doing with its requests now: one word for page, API, metrics and status.

    kill-switch, passing-through   nothing is decided and nothing is logged
    ended, observing, paused,      decisions are logged and every request is served as routed
    decided, unpriced,
    budget-spent
    ramp, randomizing              requests are randomized

Several may hold at once. The word is the first that does, in the order of `Activity`: what takes
most away comes first, and of two stops the one that would still stand once the other has gone.
"""

from __future__ import annotations

from enum import StrEnum


class Activity(StrEnum):
    """What is done with requests, in the order in which one hides another.

    kill-switch: its file exists, requests are passed through. passing-through: the store fails, or
    the process stops or starts again; requests are passed through. ended: for good, until somebody
    resumes it. observing: the mode is `observe`. paused: by a person or a check. decided: the rule
    in force stopped after the decision (`budget.after_decision = "stop"`). unpriced: a budget in
    money, and no model has a price that is known. budget-spent: a hard stop is reached. ramp: the
    decision has been made and only the smallest share goes on (`after_decision = "ramp"`).
    """

    KILL_SWITCH = "kill-switch"
    PASSING_THROUGH = "passing-through"
    ENDED = "ended"
    OBSERVING = "observing"
    PAUSED = "paused"
    DECIDED = "decided"
    UNPRICED = "unpriced"
    BUDGET_SPENT = "budget-spent"
    RAMP = "ramp"
    RANDOMIZING = "randomizing"

    @property
    def randomizing(self) -> bool:
        """Whether any request may be randomized."""
        return self in (Activity.RAMP, Activity.RANDOMIZING)

    @property
    def logging(self) -> bool:
        """Whether decisions are logged."""
        return self not in (Activity.KILL_SWITCH, Activity.PASSING_THROUGH)


def activity(
    *,
    kill_switch: bool = False,
    passing_through: bool = False,
    ended: bool = False,
    observing: bool = False,
    paused: bool = False,
    decided: bool = False,
    unpriced: bool = False,
    budget_spent: bool = False,
    ramp: bool = False,
) -> Activity:
    """The word for everything that holds. Embedded, without a daemon, the first two never do.

    >>> activity(paused=True, budget_spent=True)
    <Activity.PAUSED: 'paused'>
    >>> activity().randomizing
    True
    """
    holds = {
        Activity.KILL_SWITCH: kill_switch,
        Activity.PASSING_THROUGH: passing_through,
        Activity.ENDED: ended,
        Activity.OBSERVING: observing,
        Activity.PAUSED: paused,
        Activity.DECIDED: decided,
        Activity.UNPRICED: unpriced,
        Activity.BUDGET_SPENT: budget_spent,
        Activity.RAMP: ramp,
    }
    return next((each for each in Activity if holds.get(each)), Activity.RANDOMIZING)
