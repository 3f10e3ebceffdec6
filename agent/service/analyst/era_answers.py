"""Every era with its last certified answer, for API, page and `equipoise status`."""

from __future__ import annotations

from itertools import zip_longest

import numpy as np

from equipoise.agent.agent import Agent
from equipoise.agent.answers.certifier import Certified
from equipoise.agent.answers.statements import NOTHING_SPECIAL, Progress, decision
from equipoise.agent.answers.status import Status
from equipoise.agent.lifecycle.eras import EraAnswer, read_answers
from equipoise.agent.service.analyst.reports import (
    certified_values,
    comparisons,
    contrasts,
    segment,
)
from equipoise.agent.service.api.schema import CertifiedAnswer, EraEntry, ErasAnswer


def eras(agent: Agent) -> ErasAnswer:
    """Every era of the store; no sums are asked for."""
    answers, records = read_answers(agent.store), agent.store.eras()
    entries = []
    for era, after in zip_longest(records, records[1:]):
        compared = agent.state.eras.active(era.era)[: len(era.models)]
        ended = answers.get(era.era) if after is not None else None
        entries.append(
            EraEntry(
                era=era.era,
                opened_at=era.opened_at,
                reason=era.reason,
                compared=np.array(era.models)[compared].tolist(),
                ended_at=None if after is None else after.opened_at,
                ended_reason=None if after is None else after.reason,
                answer=None if ended is None else certified_answer(ended),
            )
        )
    return ErasAnswer(era=agent.rule.era, eras=entries)


def certified_answer(answer: EraAnswer) -> CertifiedAnswer:
    """The kept answer of an era, with the decision that it was."""
    whole, *segments = [Certified.of_kept(part) for part in answer.parts]
    status, winner = _status(whole), whole.standing.winner()
    lead = -np.inf if winner is None else whole.standing.lead(winner[0])
    leader = _leader(whole)
    return CertifiedAnswer(
        status=status.state,
        status_models=list(status.models),
        sentence=status.sentence,
        lead=lead if 0.0 < lead < np.inf else None,
        epsilon=whole.epsilon,
        delta=whole.delta,
        sequence=whole.sequence.value,
        assumptions=list(whole.assumptions),
        requests=whole.rows,
        randomized=whole.randomized,
        values=certified_values(whole),
        contrasts=contrasts(whole),
        leader=None if leader is None else whole.names[leader],
        comparisons=[] if leader is None else comparisons(whole, leader),
        segments=[segment(part, _status(part)) for part in segments],
    )


def _status(certified: Certified) -> Status:
    made = certified.randomized
    return decision(
        certified.claim,
        Progress(made, made, about=certified.about),
        NOTHING_SPECIAL,
        epsilon=certified.epsilon,
        delta=certified.delta,
    )


def _leader(certified: Certified) -> int | None:
    """The model decided on, else the one that the others are least known to be better than."""
    standing = certified.standing
    winner, alike = standing.winner(), standing.equivalent()
    if winner is not None:
        return winner[0]
    if alike:
        return alike[0]
    others = certified.active[None, :] & ~np.eye(len(standing.names), dtype=bool)
    worst = np.where(others, standing.pairs, np.inf).min(axis=1, initial=np.inf)
    worst = np.where(certified.active, worst, -np.inf)
    return int(np.argmax(worst)) if np.isfinite(worst).any() else None
