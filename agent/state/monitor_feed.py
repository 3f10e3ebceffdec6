"""The watch over a log: feeds the checks from the fold's tables, at the end of every chunk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from equipoise.agent.lifecycle.drawn import Drawn
from equipoise.agent.moments.state import Moments
from equipoise.agent.monitors.monitor_set import ClosedRows, DecisionRows, MonitorSet
from equipoise.agent.state.certified_sums import Rules, Spec
from equipoise.agent.state.open_decisions import OpenDecisions
from equipoise.agent.state.replay_index import NO_CONTEXT, Pairs, ReplayIndex
from equipoise.policies.draw import draw
from equipoise.store.batches import Closure, Flags, Floats, Ints, left_out

FEWEST_ROWS = 100.0
"""Rewards from which scales of features and a scorer are taken; before, no pairs are compared."""
_PSEUDO_ROWS = 1.0


class Features(Protocol):
    """What state needs of a feature transform."""

    d: int

    def phi(self, x: Floats, y: Floats, more: int = 0, /) -> Floats:
        """(n, d), (n, q) -> (n, p - 1 + more): phi without its intercept, and columns to fill."""
        ...


class MonitorFeed:
    """The panel, the pairs of live and replayed rows, and how far the decisions were taken.

    Of a part of the traffic that a limit closed no rewards of models come any more, so that what
    still comes would look like drift: from the first such row of an era on (`_limited`) only the
    rewards of traffic as routed are looked at, of requests that would have been served as routed
    had nothing closed them.
    """

    def __init__(
        self, monitors: MonitorSet, features: Features, spec: Spec, models: int, p: int
    ) -> None:
        self.monitors = monitors
        self._features = features
        self._spec = spec
        self._compared = p - 1 - features.d
        self._pairs = Pairs(models, self._compared)
        self._decided = 0
        self._limited = -1

    def compare(
        self,
        table: OpenDecisions,
        index: ReplayIndex,
        completed: Sequence[Ints],
        replayed: bool,
        moments: Moments,
    ) -> None:
        """Form the pairs of a chunk.

        completed: decisions in the order they were completed, in parts; replayed: whether SIM rows
        came; moments: those before the chunk, so that scales and scorer do not know its pairs.
        """
        at = np.concatenate([table.rows(part) for part in completed] or [np.zeros(0, np.int64)])
        context = table.context[at]
        if not self._compared or not (len(index) or (context != NO_CONTEXT).any()):
            return
        first = self._features.d

        def live(rows: Ints) -> Floats:
            return self._features.phi(table.x[at[rows]], table.y[at[rows]])[:, first:]

        model, phi, row = self._pairs.take(index, context, table.served[at], live, replayed)
        if not len(model):
            return
        guide = _guide(moments)
        if guide is not None:
            scale, theta = guide
            simulated = index.phi(row, model)[:, first:]
            self.monitors.take_pairs(model, phi, simulated, scale[first:], theta[first:])

    def renew(self, model: int) -> None:
        """Compare nothing that the version before of a model answered any more."""
        self._pairs.renew(model)

    def take(
        self, table: OpenDecisions, start: int, stop: int, predicted: Floats, rules: Rules
    ) -> None:
        """Take the decisions made since the last chunk, and the rows closed in this one.

        start, stop: the watermark before and after; predicted: (stop - start,) as in `ClosedRows`.
        """
        for era, rows in _by_era(table, self._decided, table.next):
            elsewhere = _elsewhere(table, rows, rules)
            if elsewhere is not None and not elsewhere.certifies:
                # Nothing says that they were drawn for themselves with these probabilities.
                continue
            # A request that follows its unit's first one is no draw of its own.
            drawn = _drawn_here(table, rows)
            self.monitors.take_decisions(
                era,
                DecisionRows(
                    table.rate[drawn],
                    table.propensity[drawn],
                    table.probabilities[drawn],
                    table.model[drawn],
                    table.randomized[drawn],
                    table.closed_by[drawn],
                    table.open_to_all[drawn],
                    ~left_out(table.closed_by[drawn]),
                ),
            )
        self._decided = table.next
        first = start - table.base
        for era, rows in _by_era(table, start, stop):
            numbers = np.arange(rows.start, rows.stop) + table.base
            elsewhere = _elsewhere(table, rows, rules)
            # What is left of a sample may depend on the reward, and so on the model.
            whole = elsewhere is None or not elsewhere.kept
            # What comes of these may hang on who sent a request again, and why.
            counted = ~left_out(table.closed_by[rows])
            self.monitors.take_closed(
                era,
                ClosedRows(
                    table.probabilities[rows],
                    table.model[rows],
                    table.routed[rows],
                    table.randomized[rows] & (table.leader[rows] == numbers) & whole & counted,
                    table.delivered[rows],
                    table.has_reward[rows],
                    (table.has_reward[rows] | table.filled[rows]) & counted,
                    self._spec.scaled(table.reward[rows]),
                    predicted[rows.start - first : rows.stop - first],
                    self._tested(table, era, rows),
                    _as_routed(table, rows, rules),
                    table.metrics[rows],
                    table.as_drawn(rows),
                ),
            )

    def copy(self) -> Self:
        twin = self.__class__.__new__(self.__class__)
        twin.__dict__.update(self.__dict__)
        twin.monitors, twin._pairs = self.monitors.copy(), self._pairs.copy()
        return twin

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The state by name, for a checkpoint."""
        return {
            "decided": np.array([self._decided]),
            "limited": np.array([self._limited]),
            **{f"panel.{name}": array for name, array in self.monitors.arrays().items()},
            **{f"pairs.{name}": array for name, array in self._pairs.arrays().items()},
        }

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        parts: dict[str, dict[str, NDArray[Any]]] = {"panel": {}, "pairs": {}}
        for name, array in arrays.items():
            head, _, tail = name.partition(".")
            if tail:
                parts[head][tail] = array
        self._decided = int(arrays["decided"][0])
        self._limited = int(arrays["limited"][0])
        self.monitors.load(parts["panel"])
        self._pairs.load(parts["pairs"])

    def _tested(self, table: OpenDecisions, era: int, rows: slice) -> Flags:
        """(n,) rows before the first of the era that a limit on a part of the traffic closed."""
        if self._limited == era:
            return np.zeros(rows.stop - rows.start, dtype=bool)
        closed_by = table.closed_by[rows]
        limited = (closed_by == Closure.SEGMENT) | (closed_by == Closure.USER)
        if limited.any():
            self._limited = era
        return np.logical_not(np.logical_or.accumulate(limited))


def _as_routed(table: OpenDecisions, rows: slice, rules: Rules) -> Flags:
    """(n,) rows served as routed, or that their rule would have left so where they were closed."""
    routed = table.routed[rows]
    result: Flags = table.model[rows] == routed
    closed = np.flatnonzero(table.closed_by[rows] > 0)
    rule = table.rule[rows][closed]
    for ordinal in np.unique(rule).tolist():
        at = closed[rule == ordinal] + rows.start
        rate, shares = rules.by_ordinal(ordinal).allocation.allocate(table.x[at], None)
        model, _ = draw(table.uniform[at], rate, shares, table.routed[at])
        result[at - rows.start] = model == table.routed[at]
    return result


def _elsewhere(table: OpenDecisions, rows: slice, rules: Rules) -> Drawn | None:
    """What is declared of decisions of one era that were drawn elsewhere, None where none was."""
    return rules.by_ordinal(int(table.rule[rows.start])).drawn


def _by_era(table: OpenDecisions, start: int, stop: int) -> Iterator[tuple[int, slice]]:
    """Runs of decisions start … stop - 1 of one era, as rows of the table; lost ones left out."""
    if start == stop:
        return
    first = start - table.base
    era = table.era[first : stop - table.base]
    void = table.is_void(slice(first, stop - table.base))
    if void.any():
        era = np.where(void, -1, era)
    edges = (np.flatnonzero(np.diff(era)) + 1).tolist()
    for begin, end in zip([0, *edges], [*edges, len(era)], strict=True):
        if era[begin] >= 0:
            yield int(era[begin]), slice(first + begin, first + end)


def _drawn_here(table: OpenDecisions, rows: slice) -> slice | Ints:
    """Those rows that were drawn for themselves; the slice itself where all were."""
    own = table.leader[rows] == np.arange(rows.start, rows.stop) + table.base
    return rows if own.all() else np.flatnonzero(own) + rows.start


def _guide(moments: Moments) -> tuple[Floats, Floats] | None:
    """Standard deviations of phi (p - 1,) and coefficients of a ridge scorer (p - 1,), from OBS
    and EXP within groups of units; None while there are too few rows.

    Any scale and any scorer known before a pair are fair; better ones see a fault earlier.
    """
    groups = moments.dimensions.groups
    scorers = moments.scorers.part(slice(0, 2 * groups))
    weight = float(scorers.weight.sum())
    if weight < FEWEST_ROWS:
        return None
    scatter = scorers.scatter.sum(axis=0)
    spread = np.sqrt(np.diag(scatter)[:-1] / weight)
    unit = np.divide(1.0, spread, out=np.zeros(len(spread)), where=spread > 0)
    gram = scatter[:-1, :-1] * unit * unit[:, None] + _PSEUDO_ROWS * np.eye(len(spread))
    try:
        theta: Floats = unit * np.linalg.solve(gram, unit * scatter[:-1, -1])
    except np.linalg.LinAlgError:  # pragma: no cover - the fold goes on whatever is in the log
        theta = np.zeros(len(spread))
    return spread, theta if np.isfinite(theta).all() else np.zeros(len(spread))
