"""What the checks cost in every chunk of the log, as a share of folding that chunk.

    python tests/performance/checks.py

Like `run.py` it prints and asserts nothing; both sides are measured in this process.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from works import agent_of, outcomes, requests

from equipoise.agent.state.light_fold import CHUNK
from equipoise.store.batches import ObservationBatch, slice_rows


def cost_of_checks(preset: str, rng: np.random.Generator) -> None:
    """One chunk of decisions and their outcomes: all of its folding, and the checks alone."""
    agent, n = agent_of(16, 15, 8, preset), CHUNK // 2
    fold, fill = agent.fold, requests(agent, rng, -agent.light.next_seq % CHUNK)
    y, reward = rng.normal(size=(len(fill), agent.state.transform.q)), rng.random(len(fill))
    agent.ingest(ObservationBatch(fill.unit, fill.at, fill.x, fill.routed, y, reward))
    sent = outcomes(agent, rng, agent.decide(requests(agent, rng, n)))
    agent.observe(slice_rows(sent, 0, n - 1))
    last, state, seq = slice_rows(sent, n - 1, n), fold.to_bytes(), fold.next_seq
    whole = median_seconds(lambda: fold.apply(seq, last), lambda: fold.load_bytes(state))
    start, stop = fold.certified.watermark - n, fold.certified.watermark
    fold.load_bytes(state)
    twin = fold.watch

    def afresh() -> None:
        nonlocal twin
        twin = fold.watch.copy()

    def share(what: str, predicted: np.ndarray) -> None:
        alone = median_seconds(
            lambda: twin.take(fold.pending, start, stop, predicted, fold._rules), afresh
        )
        note = f"{alone / whole:.0%} of folding the chunk ({whole * 1e6:,.0f} us)"
        print(f"  {preset}, {what:<50}{alone * 1e6:,.0f} us  {note}", flush=True)

    share("drift of routed rewards only", np.full(n, np.nan))
    share("drift of every model too", rng.random(n))


def median_seconds(work: Callable[[], object], before: Callable[[], object]) -> float:
    """Median over 200 repeats of what `work` takes, `before` not counted."""
    times = []
    for _ in range(200):
        before()
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


if __name__ == "__main__":
    print(f"Checks: a chunk of {CHUNK:,} log rows (decisions and outcomes), p = 32, K = 8")
    for chosen in ("top-two", "thompson"):
        cost_of_checks(chosen, np.random.default_rng(6))
