"""The decision status: one life cycle for stopping, page, planner and API.

    exploring --> decided | equivalent          what the certified contrasts allow to say
    any ------> paused(reason) --> as before    randomizing stopped by a person, a check or a file
    any ------> restarted(drift) --> exploring  a new era whose sums hold no row yet, or too few
    any ------> ended --> restarted             ended for good by a person, until it is resumed

`decided` may go back to `exploring` only through a new era: bounds of the running average can
widen again when traffic moves, so the status is what the newest bounds say.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from equipoise.store.batches import Flags, Floats

RESTARTING_ROWS = 100
"""Randomized rows of a new era below which its status is `restarted`."""


class State(StrEnum):
    EXPLORING = "exploring"
    DECIDED = "decided"
    EQUIVALENT = "equivalent"
    PAUSED = "paused"
    RESTARTED = "restarted"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Status:
    """What is decided. models: the winner, or the equivalent ones; () while nothing is.

    epsilon: reward units; delta: probability that the statement is ever wrong. sentence: for
    people.
    """

    state: State
    models: tuple[str, ...]
    epsilon: float
    delta: float
    sentence: str

    def __str__(self) -> str:
        return self.sentence


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the models of an era stand, from certified contrasts turned so that more is better.

    names: (K,); decision: (K, K) lower ends of V(a) - V(b) at the level of a decision; pairs:
    (K, K) the same at the level of all pairs at once; active: (K,) models compared; epsilon: the
    smallest difference that matters. Reward units.
    """

    names: tuple[str, ...]
    decision: Floats
    pairs: Floats
    active: Flags
    epsilon: float

    def winner(self) -> tuple[int, float] | None:
        """The model certified within epsilon of the best, and the lower end of its lead."""
        if np.count_nonzero(self.active) < 2:
            return None
        others = self.active[None, :] & ~np.eye(len(self.names), dtype=bool)
        worst = np.where(others, self.decision, np.inf).min(axis=1)
        worst = np.where(self.active, worst, -np.inf)
        best = int(np.argmax(worst))
        return (best, float(worst[best])) if worst[best] > -self.epsilon else None

    @property
    def decided(self) -> bool:
        """Whether there is a winner, or all that is left is alike."""
        return self.winner() is not None or bool(self.equivalent())

    def lead(self, model: int) -> float:
        """Lower end of a model's lead over the best of the others, at the level of all pairs.

        At the level of a decision only "better than all others" is paid for: "by at least L" also
        needs the model's own lead over the second best to be true, one comparison more.
        """
        others = self.active.copy()
        others[model] = False
        return float(np.min(self.pairs[model, others], initial=np.inf))

    def equivalent(self) -> tuple[int, ...]:
        """Models not certified worse than another, if all their pairs lie within epsilon."""
        both = self.active[:, None] & self.active[None, :]
        beaten = (both & (self.pairs > 0.0)).any(axis=0)
        unbeaten = np.flatnonzero(self.active & ~beaten)
        pairs = self.pairs[np.ix_(unbeaten, unbeaten)][~np.eye(len(unbeaten), dtype=bool)]
        if self.epsilon <= 0.0 or len(unbeaten) < 2 or not (pairs > -self.epsilon).all():
            return ()
        return tuple(unbeaten.tolist())


def decide(
    standing: Standing,
    delta: float,
    *,
    paused: str | None,
    era_reason: str,
    randomized: float,
    about: str = "",
    ended: bool = False,
) -> Status:
    """The status of an experiment.

    paused: why randomizing is stopped, None where it is not; ended: whether for good. era_reason:
    why the running era was opened if it is not the first, "" otherwise. randomized: randomized rows
    in its sums. about: which requests the sums are about, "" for all.
    """

    def status_of(state: State, models: tuple[str, ...], sentence: str) -> Status:
        return Status(state, models, standing.epsilon, delta, sentence)

    winner, alike = standing.winner(), standing.equivalent()
    answer = _answer(standing, winner, alike, delta, about)
    if paused is not None:
        before = "" if answer is None else f" What was certified stands: {answer[2]}"
        state, word = (State.ENDED, "Ended") if ended else (State.PAUSED, "Paused")
        return status_of(state, answer[1] if answer else (), f"{word}: {paused}.{before}")
    if answer is not None:
        return status_of(*answer)
    if era_reason and randomized < RESTARTING_ROWS:
        sentence = f"Started afresh ({era_reason}): {randomized:,.0f} randomized requests so far."
        return status_of(State.RESTARTED, (), sentence)
    return status_of(
        State.EXPLORING,
        (),
        f"Nothing is certified yet{about} after {randomized:,.0f} randomized requests.",
    )


def _answer(
    standing: Standing,
    winner: tuple[int, float] | None,
    alike: tuple[int, ...],
    delta: float,
    about: str,
) -> tuple[State, tuple[str, ...], str] | None:
    names = standing.names
    promise = f"wrong in at most {delta:.3g} of such experiments, whenever one looks"
    if winner is not None and winner[1] > 0.0:
        lead = standing.lead(winner[0])
        by = f", by at least {lead:.4g}" if lead > 0.0 else ""
        sentence = f"{names[winner[0]]} is best{about}{by} ({promise})."
        return State.DECIDED, (names[winner[0]],), sentence
    if alike:
        listed = ", ".join(names[index] for index in alike)
        sentence = f"{listed} are within {standing.epsilon:.4g} of each other{about} ({promise})."
        return State.EQUIVALENT, tuple(names[index] for index in alike), sentence
    if winner is not None:
        sentence = (
            f"{names[winner[0]]} is within {standing.epsilon:.4g} of the best{about} ({promise})."
        )
        return State.DECIDED, (names[winner[0]],), sentence
    return None
