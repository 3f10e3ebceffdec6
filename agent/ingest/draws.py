"""What rows that were drawn elsewhere show of their draws: one by one, and all together.

`draw_of` reads the draw of a row. `Evidence` bets against what was declared, a row after another:
each bet multiplies a stake by a factor whose mean is 1 if the row was drawn as declared, whatever
came before, so that by Ville's inequality a stake ever grows a millionfold with probability at most
one in a million. There are four, each with that level: that units keep their model (drawn by unit),
that the file does (sorted), that the weights 1 / p are too large or too small (probabilities of
another row), and that today's routing follows the draw (the field was mapped to the drawn model).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from equipoise.agent.errors import SKEW, AgentError, dated
from equipoise.agent.features.values import listed, shown
from equipoise.agent.ingest.drawn_rows import DrawnRow
from equipoise.agent.ingest.joins import AFTER_DRAW
from equipoise.agent.lifecycle.drawn import Drawn
from equipoise.store.batches import Flags, Floats
from equipoise.store.words import plural, verb

TOLERANCE = 1e-5
"""By which probabilities that are written with few digits may differ from their sum, or from one
another."""
LEAST = 1e-9
"""Smallest probability of a model that was drawn, and of keeping the row as well."""
MILLION = math.log(1e6)
"""Log evidence from which a bet is taken as won."""
_STUCK = (0.5, 0.95)
"""Shares of rows that repeat the model before, which bets are laid on."""
_AMONG = (0.02, 0.1, 0.3, 1.0)
"""Shares of units that keep their model, the same."""
_STAKES = (0.02, 0.1, 0.3)
"""Parts of the stake that are laid on a weight."""


class BeforeDrawError(AgentError):
    """A fault of a row that was known before its draw: leaving such rows out selects nothing."""


@dataclass(frozen=True, slots=True)
class Draw:
    """The draw of a row. model: that was drawn. shares: (K,) probabilities of all models, None
    where the row says that of the drawn one alone: own. kept: probability of keeping the row."""

    model: int
    shares: Floats | None
    own: float
    kept: float = 1.0

    def chances(self, count: int) -> Floats:
        """(K,) probabilities, where two models are compared: the other one has what is left."""
        if self.shares is not None:
            return self.shares
        chances = np.full(count, 1.0 - self.own)
        chances[self.model] = self.own
        return chances


def position_of(field: str, name: str | None, position: Mapping[str, int]) -> int:
    """The position of a model. Raises AgentError where there is none of that name."""
    found = position.get(name or "")
    if found is None:
        raise AgentError(f"{field}: model {shown(name)} is not one of {', '.join(position)}")
    return found


def draw_of(row: DrawnRow, drawn: Drawn, position: Mapping[str, int]) -> Draw:
    """The draw of a row, given that it was drawn at all.

    Raises AgentError naming what cannot be, BeforeDrawError where that was known before the draw.
    """
    shares, own = None, 0.0
    if drawn.shares is not None:
        model = position_of("model", row.model, position)
        shares = np.array(drawn.shares)
        if row.propensity is not None:
            # A flag that is drawn for a part of the users logs its weights within that, or of all.
            whole = abs(row.propensity - drawn.coverage * shares[model]) <= TOLERANCE
            _agrees("propensity", row.propensity, shares[model], "the declared share", whole)
    elif row.candidates is not None:
        shares = np.zeros(len(position))
        try:
            for name, chance in row.candidates.items():
                _within(f"candidates: probability of {shown(name)}", chance, 0.0, 1.0)
                shares[position_of("candidates", name, position)] = chance
            total = float(shares.sum())
            if abs(total - drawn.coverage) > TOLERANCE:
                covered = f"the declared coverage {drawn.coverage:g}"
                raise AgentError(
                    f"candidates: their probabilities add up to {total:.7g}, expected"
                    f" {'1' if drawn.coverage == 1.0 else covered} within {TOLERANCE:g}"
                )
        except AgentError as error:
            raise BeforeDrawError(str(error)) from None
        model = position_of("model", row.model, position)
        _agrees("propensity", row.propensity, shares[model], "that among the candidates")
        shares = shares / total
    elif row.propensity is not None:
        model = position_of("model", row.model, position)
        _within("propensity", row.propensity, LEAST, drawn.coverage)
        own = min(row.propensity / drawn.coverage, 1.0)
    else:
        raise AgentError(
            "propensity: received nothing, expected the probability of the drawn model, or"
            " candidates with theirs"
        )
    if shares is not None:
        own = float(shares[model])
    if own < LEAST:
        raise AgentError(
            f"propensity: {row.model}, which was drawn, had a probability of {own:g},"
            f" expected {LEAST:g} to 1: it is not that of its draw"
        )
    if row.keep_prob is not None:
        _within("keep_prob", row.keep_prob, LEAST / own, 1.0)
    return Draw(model, shares, own, 1.0 if row.keep_prob is None else row.keep_prob)


def _within(field: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise AgentError(f"{field}: {value:g} is not within {low:g} … {high:g}")


def _agrees(field: str, value: float | None, other: float, what: str, also: bool = False) -> None:
    if value is not None and not also and not abs(value - other) <= TOLERANCE:
        raise AgentError(f"{field}: {value:g}, and {what} of the drawn model is {other:g}")


@dataclass(slots=True)
class _Unit:
    model: int
    stakes: list[float]


class Evidence:
    """Bets against independent draws with the logged probabilities, over rows in their order."""

    def __init__(self) -> None:
        self._units: dict[int | str, _Unit] = {}
        self._among = [0.0] * len(_AMONG)
        self._file = _Unit(-1, [0.0] * len(_STUCK))
        self._weights = [0.0] * (2 * len(_STAKES))
        self._routed = [0.0] * (2 * len(_STUCK))
        self._repeats, self._same, self._expected = 0, 0, 0.0
        self._rows, self._runs, self._runs_expected, self._weight = 0, 0, 0.0, 0.0

    def add(
        self,
        model: int,
        chances: Sequence[float],
        unit: int | str | None = None,
        routed: int | None = None,
        two: bool = False,
    ) -> None:
        """A row that was drawn for itself. chances: (K,) probabilities. unit: None where nobody is
        named. routed: what today's routing would have served. two: two models are compared, and the
        other one's probability stands at all others."""
        own, self._rows = chances[model], self._rows + 1
        if not 0.0 < own < 1.0:
            return
        open_ = (own, 1.0 - own) if two else [chance for chance in chances if chance > 0.0]
        weight = 1.0 / (own * len(open_))
        most = 1.0 / (min(open_) * len(open_)) - 1.0
        self._weight += weight
        for at, part in enumerate(_STAKES):
            self._weights[at] += math.log1p(part * (weight - 1.0))
            if most > 1e-9:
                self._weights[at - len(_STAKES)] += math.log1p(-part * (weight - 1.0) / most)
        before = self._file.model
        if before >= 0:
            self._runs += before == model
            self._runs_expected += chances[before]
            _bet(self._file.stakes, chances[before], before == model)
        self._file.model = model
        if unit is not None:
            self._add_unit(unit, model, chances)
        if routed is not None:
            half = len(_STUCK)
            follows, flees = self._routed[:half], self._routed[half:]
            _bet(follows, chances[routed], routed == model)
            _bet(flees, 1.0 - chances[routed], routed != model)
            self._routed = follows + flees

    def _add_unit(self, key: int | str, model: int, chances: Sequence[float]) -> None:
        unit = self._units.get(key)
        if unit is None:
            self._units[key] = _Unit(model, [0.0] * len(_STUCK))
            return
        self._repeats += 1
        self._same += unit.model == model
        self._expected += chances[unit.model]
        before = _mean(unit.stakes)
        _bet(unit.stakes, chances[unit.model], unit.model == model)
        after, unit.model = _mean(unit.stakes), model
        for at, share in enumerate(_AMONG):
            # One stake on each unit, of which a share is laid: their product is a bet as well.
            self._among[at] += _laid(share, after) - _laid(share, before)

    @property
    def log_evidence(self) -> dict[str, float]:
        """Log of each stake, that began at 1, by what it is laid on."""
        return {
            "by_unit": _mean(self._among),
            "in_runs": _mean(self._file.stakes),
            "of_others": _mean(self._weights),
            "routed_follows": _mean(self._routed),
        }

    @property
    def by_unit(self) -> str:
        """What shows that units were drawn once, "" where nothing does."""
        if self.log_evidence["by_unit"] < MILLION:
            return ""
        once = "some units were drawn once, not for each row"
        if self._same == self._repeats:
            once = "a unit was drawn once"
        return (
            f"of {plural(self._repeats, 'row')} whose unit had one before, {self._same:,} got the"
            f" same model, where draws by request give about {self._expected:,.0f}: {once}"
        )

    @property
    def of_units_alone(self) -> bool:
        """Whether units were drawn once, all of them, so that this is what is to be declared."""
        return bool(self.by_unit) and self._same == self._repeats

    def against(self, drawn: Drawn) -> str:
        """What shows that rows were not drawn as declared, "" where nothing does."""
        by_unit = self.by_unit if drawn.how == "request" else ""
        return by_unit or self.of_others or self.in_runs

    @property
    def in_runs(self) -> str:
        """What shows that rows do not stand in the order of their draws."""
        if self.log_evidence["in_runs"] < MILLION:
            return ""
        return (
            f"of {plural(self._rows, 'row')}, {self._runs:,} have the model of the row before,"
            f" where draws in this order give about {self._runs_expected:,.0f}: they are"
            " sorted, or one draw served many"
        )

    @property
    def of_others(self) -> str:
        """What shows that probabilities are not those of their rows."""
        if self.log_evidence["of_others"] < MILLION:
            return ""
        mean = self._weight / self._rows
        return (
            f"1 / probability of the drawn model is {mean:.3g} times the number of models on"
            " average, where it is that number for the probabilities of these draws: they are those"
            " of other rows or models"
        )

    @property
    def routed_follows(self) -> str:
        """What shows that today's routing is not what it would have been without a draw."""
        if self.log_evidence["routed_follows"] < MILLION:
            return ""
        return "what the rows call routed depends on what was drawn"


def _bet(stakes: list[float], chance: float, hit: bool) -> None:
    """Lay stakes on a hit, whose probability is said to be this. stakes: logs, changed in place."""
    if not 0.0 < chance < 1.0:
        return
    for at, stuck in enumerate(_STUCK):
        stakes[at] += math.log((stuck + (1.0 - stuck) * chance) / chance if hit else 1.0 - stuck)


def _laid(share: float, stake: float) -> float:
    """Log of a stake of which a share was laid, and now is what `stake` is the log of."""
    if share == 1.0:
        return stake
    high = max(stake, 0.0)
    return high + math.log((1.0 - share) * math.exp(-high) + share * math.exp(stake - high))


def _mean(stakes: Sequence[float]) -> float:
    high = max(stakes)
    return high + math.log(sum(math.exp(stake - high) for stake in stakes) / len(stakes))


@dataclass(frozen=True, slots=True)
class Declared:
    """What a mapping declares, and what a whole file shows. drawn: both together. active: (K,)
    models that are compared. rows: how many there are. left_out: rows that could not be read for
    what was known before their draw."""

    drawn: Drawn
    active: Flags
    rows: int
    left_out: int = 0


class Survey:
    """A look at all rows that were declared so, which are added in the order of their files."""

    def __init__(self, declared: Drawn, models: Sequence[str]) -> None:
        self._declared, self._models = declared, models
        self._position = {name: at for at, name in enumerate(models)}
        self._active = np.zeros(len(models), dtype=bool)
        if declared.shares is not None:
            self._active |= np.array(declared.shares) > 0.0
        self._rows, self._alone, self._left_out, self._lost = 0, 0, 0, 0
        self._routed, self._kept, self._evidence = False, False, Evidence()
        self._latest, self._place, self._disorder, self._untimed = -math.inf, "", "", 0
        self._nameless, self._unitless, self._why = 0, 0, ""
        self._own: dict[int, tuple[float, float]] = {}
        self._seen: set[str] = set()
        self._skipped = Counter[str]()

    def skipped(self, reason: str) -> None:
        """A row of a preset that is no answer of a model, and why."""
        if reason in AFTER_DRAW:
            self._skipped[reason] += 1

    def lost(self, error: AgentError) -> None:
        """A row that could not be read."""
        if isinstance(error, BeforeDrawError):
            self._left_out += 1
            return
        self._lost += 1
        self._why = self._why or str(error)

    def add(self, source: str, number: int, row: DrawnRow) -> None:
        """A row, its file and its number in it."""
        declared = self._declared
        try:
            draw = draw_of(row, declared, self._position)
            routed = None
            if row.routed is not None:
                routed = position_of("routed", row.routed, self._position)
        except BeforeDrawError:  # counted when it is refused
            return
        except AgentError as error:
            self.lost(error)
            return
        self._rows += 1
        self._routed = self._routed or routed is not None
        self._kept = self._kept or draw.kept != 1.0
        self._nameless += row.request_id is None and row.at is None
        self._add_time(row, f"{source}, row {number}", f"row {number}")
        self._active[draw.model] = True
        if draw.shares is None:
            self._alone += 1
            low, high = self._own.get(draw.model, (draw.own, draw.own))
            self._own[draw.model] = min(low, draw.own), max(high, draw.own)
        else:
            self._active |= draw.shares > 0.0
        unit = row.unit_id if declared.how == "request" else None
        if declared.how == "unit":
            self._unitless += row.unit_id is None
            # The rows of a unit after its first one follow that.
            if row.unit in self._seen:
                return
            self._seen.add(row.unit)
        chances = draw.chances(len(self._models)).tolist()
        self._evidence.add(draw.model, chances, unit, routed, draw.shares is None)

    def _add_time(self, row: DrawnRow, here: str, place: str) -> None:
        at = row.at
        # One that has not come yet is refused alone.
        if at is None or at > self._declared.declared + SKEW:
            self._untimed += 1
            return
        if at < self._latest and not self._disorder:
            before = f"{self._place} ({dated(self._latest)})"
            self._disorder = f"{here}: at is {dated(at)}, before {before}"
        self._untimed += at == self._latest
        self._latest, self._place = (
            (at, place) if at >= self._latest else (self._latest, self._place)
        )

    def result(self) -> Declared:
        """What is declared, and what the rows show.

        Raises AgentError where the file as a whole is not what was declared.
        """
        evidence, few = self._evidence, np.count_nonzero(self._active) <= 2
        drawn = msgspec.structs.replace(
            self._declared,
            routed=self._routed and not evidence.routed_follows,
            kept=self._kept,
            complete=not self._alone or bool(few),
            timed=2 * self._untimed <= self._rows,
        )
        if drawn.certifies:
            if self._disorder:
                raise AgentError(
                    f"{self._disorder}: rows must stand in the order of their draws; sort them"
                )
            if drawn.how == "request" and evidence.of_units_alone:
                raise AgentError(f'{evidence.by_unit}; declare drawn = "unit"')
        if self._rows and np.count_nonzero(self._active) < 2:
            raise AgentError(
                "the rows compare a single model: their candidates, or shares, must name two of"
                f" {', '.join(self._models)}"
            )
        doubt = self._doubt() or evidence.against(drawn)
        drawn = msgspec.structs.replace(drawn, doubt=doubt)
        return Declared(drawn, self._active, self._rows, self._left_out)

    def _doubt(self) -> str:
        """What leaves open whether the rows are what was declared."""
        if self._lost:
            return doubt_of(self._lost, self._why)
        if self._skipped:
            rows = [f"{count:,} {reason}" for reason, count in self._skipped.most_common()]
            return (
                f"{listed(rows)} were left out after their draw, which takes no row away: map such"
                " a log without its preset, with served and delivered"
            )
        fixed = [low for low, high in self._own.values() if high - low <= TOLERANCE]
        if len(fixed) == len(self._own) == 2 and abs(sum(fixed) - 1.0) > 2.0 * TOLERANCE:
            return (
                f"the probabilities that they give two models are {fixed[0]:g} and {fixed[1]:g} of"
                " what was drawn, which is not 1 in all: there was another model"
            )
        if self._nameless:
            return (
                f"{plural(self._nameless, 'row')} {verb(self._nameless, 'has', 'have')} neither"
                " request_id nor at, and in another reading equal ones could not be told apart"
            )
        if self._unitless:
            few = verb(self._unitless, "names", "name")
            return f"{plural(self._unitless, 'row')} {few} no unit, and were drawn by unit"
        return ""


def doubt_of(rows: int, why: str) -> str:
    """What refused rows leave open. why: of the first of them."""
    return (
        f"{plural(rows, 'row')} {verb(rows, 'was', 'were')} refused for what may depend on the draw"
        f" (the first: {why}); read a log without such rows into a store of its own"
    )


def survey(
    placed: Iterable[tuple[str, int, DrawnRow]], declared: Drawn, models: Sequence[str]
) -> Declared:
    """Look at all rows that were declared so. placed: each with its file and its number in it.

    Raises AgentError where the file as a whole is not what was declared.
    """
    found = Survey(declared, models)
    for source, number, row in placed:
        found.add(source, number, row)
    return found.result()
