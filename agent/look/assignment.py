"""Who is sent where, and which rows look as if the model had been drawn at random.

Tests are score tests of independence between the model and a column, clustered by user: with
s_u the sum over the rows of user u of (d - mean d)(x - mean x)', for indicators d of models and
x of a column's levels, R² of regressing 1 on s_u gives Hotelling's F with (df, users - df) degrees
of freedom. They are corrected for the number of columns by Holm's method.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeAlias

import msgspec
import numpy as np
from scipy import special, stats

from equipoise.agent.look.crossing import (
    FEWEST_CLUSTERS,
    Crossed,
    Ints,
    crossed,
    starts,
    sticky,
)
from equipoise.agent.look.reading import Reader
from equipoise.agent.look.values import NONE
from equipoise.store.batches import Floats

MOST_TESTED = 8
"""Models that tests tell apart; the rest count as one."""
LEVELS, PARTS = 7, 5
"""Levels of a category, without the rest; parts that the range of a number is cut into."""
SIZE = 0.01
"""Probability that a part which is split at random is not found: the level of its tests."""
FALSE_ALARMS = 0.05
"""Probability that any part which is sent as the rest is called random, over all parts tried."""
FEWEST_ROWS, FEWEST_OF_MODEL = 200, 20
LARGEST_DIFFERENCE = 0.15  # of a share between halves of a log called random, seen with 80%
LARGEST_ERROR = 0.25  # of the sum of 1 / p, seen with 80%, where propensities are believed
Verdict: TypeAlias = Literal["looks random", "crossed", "not random", "too few"]


class Level(msgspec.Struct, frozen=True):
    """The rows of one value of a column. shares: by model."""

    label: str
    rows: int
    shares: dict[str, float]


class Sent(msgspec.Struct, frozen=True):
    """How much the model depends on one column. strength: Cramér's V, 0 to 1. p: of independence,
    clustered by user, corrected by Holm; None where it cannot be tested, `note` says why."""

    column: str
    strength: float
    p: float | None
    levels: list[Level]
    note: str = ""


class Split(msgspec.Struct, frozen=True):
    """A part of the log, and whether it looks like a random split. where: which rows. rows,
    clusters: of the sample. shares: by model. columns: tested. p: smallest, corrected by Holm;
    worst: its column. power: probability that the test would have said no, were these rows sent as
    the rest is; detectable: difference of a model's share between two halves that is seen with
    80%. sticky: whether each user has one model. crossed: tasks of several models."""

    where: str
    column: str
    value: str
    rows: int
    clusters: int
    shares: dict[str, float]
    columns: int
    p: float
    worst: str
    power: float | None
    detectable: float
    sticky: bool
    verdict: Verdict
    same: list[str] = []
    crossed: Crossed | None = None


@dataclass(frozen=True, slots=True)
class Factor:
    """A column of the sample as codes. codes: (rows,); labels: of the codes. source: the column it
    was made of; candidate: whether its values may be parts that are split at random."""

    name: str
    codes: Ints
    labels: list[str]
    source: str
    candidate: bool


class Sample:
    """The rows that tests rest on, sorted by user. served: models as the reader has them;
    model: as `settle` numbers them. fraction: of all rows that were used."""

    def __init__(self, reader: Reader, kept: Mapping[str, np.ndarray] | None) -> None:
        self.reader = reader
        empty = np.zeros(0)
        kept = kept or {"model": empty.astype(np.int64), "unit": empty.astype(np.int64)}
        unit = kept["unit"]
        # Hashes of texts differ from run to run: users are numbered as they come.
        _, first, inverse = np.unique(unit, return_index=True, return_inverse=True)
        rank = np.empty(len(first), np.int64)
        rank[np.argsort(first, kind="stable")] = np.arange(len(first))
        cluster = rank[inverse] if len(unit) else unit.astype(np.int64)
        alone = unit == 0
        # Rows without a user stand for themselves.
        cluster[alone] = len(first) + np.arange(np.count_nonzero(alone))
        order = np.argsort(cluster, kind="stable")
        self._kept = {name: values[order] for name, values in kept.items()}
        self.rows = len(unit)
        self.served = self.model = self._kept["model"].astype(np.int64)
        names = {path: f"key {number}" for number, path in enumerate(reader.keys)}
        self.keys = {path: self._kept.get(name, empty) for path, name in names.items()}
        self.fraction = 1.0
        self.cluster = cluster[order]
        self.clusters = len(np.unique(self.cluster))
        self.clustered = bool(self.rows and not alone.all())
        self.reward = self._kept.get("reward", np.full(self.rows, math.nan))
        self.propensity = self._kept.get("propensity", np.full(self.rows, math.nan))
        self.names: list[str] = []
        self.factors: list[Factor] = []

    def design(self, code: int, requests: float) -> float:
        """Variance of a model's mean reward, as a multiple of that of independent rows.

        Pairs of rows of a user are in the sample as the square of single rows, so what they add is
        scaled up to all rows.
        """
        rows = (self.model == code) & np.isfinite(self.reward)
        if not self.clustered or np.count_nonzero(rows) < 2:
            return 1.0
        errors = self.reward[rows] - self.reward[rows].mean()
        squares = float(errors @ errors)
        if squares == 0.0:
            return 1.0
        sums = np.add.reduceat(errors, starts(self.cluster[rows]))
        fraction = np.count_nonzero(self.model == code) / requests
        return 1.0 + max(float(sums @ sums) / squares - 1.0, 0.0) / float(fraction)

    def seconds(self, code: int) -> tuple[float | None, float | None]:
        values = self._kept.get("seconds")
        if values is None:
            return None, None
        values = values[(self.model == code) & np.isfinite(values)]
        if not len(values):
            return None, None
        return float(np.median(values)), float(np.quantile(values, 0.95))

    def settle(self, order: Sequence[int]) -> None:
        """Number the models by how many requests they have, and make the factors."""
        labels = self.reader.models.labels
        shown = list(order[:MOST_TESTED])
        self.names = [labels[code] for code in shown]
        if len(order) > MOST_TESTED:
            self.names.append("other models")
        numbers = np.full(len(labels) + 1, len(shown), np.int64)
        numbers[shown] = np.arange(len(shown))
        self.model = numbers[self.model]
        self.factors = [factor for factor in self._factors() if len(factor.labels) > 1]

    def _factors(self) -> Iterator[Factor]:
        for number, column in enumerate(self.reader.chosen.columns):
            values = self._kept.get(f"column {number}")
            if values is None:
                return
            codes = self.reader.columns[number]
            if codes is None:
                name = f"length of {column.path}" if column.kind == "length" else column.path
                few = column.kind == "number" and len(np.unique(values)) <= 2 * LEVELS
                made = (_few if few else _parts)(values)
                yield Factor(name, *made, column.path, few)
            elif column.kind == "tags":
                yield from _tags(column.path, values, codes.labels)
            else:
                made = _categories(values, codes.labels)
                yield Factor(column.path, *made, column.path, True)
        at = self._kept.get("at")
        if at is not None and np.isfinite(at).any():
            hours = np.where(np.isfinite(at), np.floor(at / 3600.0) % 24.0, math.nan)
            names = ["0 to 6 h", "6 to 12 h", "12 to 18 h", "18 to 24 h"]
            quarter = np.where(np.isfinite(hours), hours // 6.0, 4.0).astype(np.int64)
            yield Factor("hour (UTC)", *_packed(quarter, [*names, "nothing"]), "", False)
            fifth, _ = _parts(at)
            fifths = [f"{number + 1}. fifth of the log" for number in range(PARTS)] + ["nothing"]
            yield Factor("time", *_packed(fifth, fifths), "", False)


def _packed(codes: Ints, labels: Sequence[str]) -> tuple[Ints, list[str]]:
    """Codes without those that no row has."""
    there = np.flatnonzero(np.bincount(codes, minlength=len(labels)))
    numbers = np.zeros(len(labels), np.int64)
    numbers[there] = np.arange(len(there))
    return numbers[codes], [labels[code] for code in there.tolist()]


def _categories(values: np.ndarray, labels: Sequence[object]) -> tuple[Ints, list[str]]:
    counts = np.bincount(values[values >= 0], minlength=len(labels))
    most = [int(code) for code in np.argsort(-counts, kind="stable")[:LEVELS] if counts[code]]
    numbers = np.full(len(labels), len(most), np.int64)
    numbers[most] = np.arange(len(most))
    names = [*(_label(labels[code]) for code in most), "others", "nothing"]
    codes = np.full(len(values), len(most), np.int64)
    codes[values >= 0] = numbers[values[values >= 0]]
    codes[values == NONE] = len(most) + 1
    return _packed(codes, names)


def _label(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)[:60]


def _tags(path: str, values: np.ndarray, labels: Sequence[object]) -> Iterator[Factor]:
    """A factor for each tag: whether a row has it."""
    tags = [_tags_of(label) for label in labels]
    counts = np.bincount(values[values >= 0], minlength=len(labels))
    rows: Counter[str] = Counter()
    for own, number in zip(tags, counts.tolist(), strict=True):
        for tag in own:
            rows[tag] += number
    ranked = sorted(rows.items(), key=lambda item: (-item[1], item[0]))
    for tag, number in ranked[:20]:
        if number == len(values):
            continue
        has = np.array([tag in own for own in tags] + [False, False])
        codes = has[np.where(values >= 0, values, len(labels))].astype(np.int64)
        yield Factor(f"{path} has {tag}", codes, ["no", "yes"], path, True)


def _tags_of(label: object) -> set[str]:
    """A list of tags, or the text of one."""
    if isinstance(label, str) and label.startswith("["):
        try:
            label = msgspec.json.decode(label)
        except (msgspec.DecodeError, UnicodeError):
            return {_label(label)}
    return set(map(_label, label)) if isinstance(label, list | tuple) else {_label(label)}


def _few(values: Floats) -> tuple[Ints, list[str]]:
    found, codes = np.unique(np.where(np.isfinite(values), values, math.inf), return_inverse=True)
    names = ["nothing" if value == math.inf else _label(float(value)) for value in found]
    return codes.astype(np.int64), names


def _parts(values: Floats) -> tuple[Ints, list[str]]:
    there = np.isfinite(values)
    if not there.any():
        return np.zeros(len(values), np.int64), ["nothing"]
    ends = np.unique(np.quantile(values[there], np.arange(1, PARTS) / PARTS))
    codes = np.where(there, np.searchsorted(ends, values, side="right"), len(ends) + 1)
    shown = [f"{end:.4g}" for end in ends]
    between = map(" to ".join, pairwise(shown))
    names = [f"below {shown[0]}", *between, f"from {shown[-1]}", "nothing"]
    return _packed(codes.astype(np.int64), names)


@dataclass(frozen=True, slots=True)
class Test:
    """A test of independence. ratio: R² of regressing 1 on the users' scores, by what is left.
    strength: Cramér's V."""

    p: float
    df: int
    clusters: int
    ratio: float
    strength: float

    @property
    def noncentrality(self) -> float:
        """Of the chi-squared statistic, a lower bound with 80%: the statistic of an association
        that is there is larger than its noncentrality, by chance and by its degrees of freedom."""
        middle = max(self.clusters * self.ratio - self.df, 0.0)
        return max(middle - 0.8416 * math.sqrt(2.0 * (self.df + 2.0 * middle)), 0.0)


def independence(first: Ints, second: Ints, cluster: Ints) -> Test | None:
    """Whether two columns of codes are independent, clustered. cluster: sorted. None where there
    is nothing to test."""
    left, right = _indicators(first), _indicators(second)
    if not left.shape[1] or not right.shape[1]:
        return None
    scores = (left[:, :, None] * right[:, None, :]).reshape(len(first), -1)
    return _around_zero(scores, cluster, cramer(first, second))


def _around_zero(scores: Floats, cluster: Ints, strength: float) -> Test | None:
    """Hotelling's test that the sums of scores over clusters have mean 0. scores: (rows, any)."""
    sums = np.add.reduceat(scores, starts(cluster), axis=0)
    values, vectors = np.linalg.eigh(sums.T @ sums)
    real = values > max(values[-1], 0.0) * 1e-9
    df, clusters = int(np.count_nonzero(real)), len(sums)
    if not df or clusters <= df + 1:
        return None
    total = vectors[:, real].T @ sums.sum(axis=0)
    share = min(float(np.sum(total * total / values[real])) / clusters, 1.0)
    freedom = clusters - df
    ratio = share / max(1.0 - share, 1e-300)
    p = float(stats.f.sf(ratio * freedom / df, df, freedom))
    return Test(p, df, clusters, ratio, strength)


def _indicators(codes: Ints) -> Floats:
    """(rows, levels - 1) indicators less their means, of levels that rows have."""
    _, packed = np.unique(codes, return_inverse=True)
    levels = int(packed.max()) + 1 if len(packed) else 0
    matrix: Floats = (packed[:, None] == np.arange(1, levels)).astype(np.float64)
    return np.asarray(matrix - matrix.mean(axis=0)) if len(matrix) else matrix


def cramer(first: Ints, second: Ints) -> float:
    """Cramér's V of two columns of codes: 0 where they are independent, 1 where one is a function
    of the other."""
    table = np.zeros((int(first.max()) + 1, int(second.max()) + 1))
    np.add.at(table, (first, second), 1.0)
    table = table[table.sum(axis=1) > 0][:, table.sum(axis=0) > 0]
    least = min(table.shape) - 1
    if least < 1:
        return 0.0
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / table.sum()
    return math.sqrt(float(((table - expected) ** 2 / expected).sum()) / table.sum() / least)


def holm(values: Sequence[float]) -> list[float]:
    """p-values corrected for their number.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(values)), key=values.__getitem__)
    result, highest = [0.0] * len(values), 0.0
    for rank, at in enumerate(order):
        highest = max(highest, min(1.0, values[at] * (len(values) - rank)))
        result[at] = highest
    return result


def assignment(sample: Sample) -> tuple[list[Sent], list[Split], dict[str, int]]:
    """Who is sent where, and which parts look randomized."""
    if sample.rows < FEWEST_ROWS or len(sample.names) < 2:
        return [], [], {}
    model, cluster = sample.model, sample.cluster
    tests = {each.name: independence(model, each.codes, cluster) for each in sample.factors}
    known = {name: test for name, test in tests.items() if test is not None}
    corrected = dict(zip(known, holm([test.p for test in known.values()]), strict=True))
    sent = [_sent(sample, factor, tests[factor.name], corrected) for factor in sample.factors]
    sent.sort(key=lambda each: (each.p is None, -each.strength))
    splits, tried = _splits(sample, known)
    return sent, splits, tried


def _sent(
    sample: Sample, factor: Factor, test: Test | None, corrected: Mapping[str, float]
) -> Sent:
    levels = []
    for code, label in enumerate(factor.labels):
        counts = np.bincount(sample.model[factor.codes == code], minlength=len(sample.names))
        shares = counts / max(counts.sum(), 1)
        pairs = zip(sample.names, shares.tolist(), strict=True)
        levels.append(Level(label, int(counts.sum()), dict(pairs)))
    note = f"only {sample.clusters} users" if test is None else ""
    strength = cramer(sample.model, factor.codes)
    return Sent(factor.name, strength, corrected.get(factor.name), levels, note)


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows that may be split at random."""

    where: str
    column: str
    value: str
    rows: np.ndarray


_DEVICES = re.compile(
    r"bucket|split|variant|cohort|experiment|canary|random|treatment|slot|arm$|ab_?test|holdout",
    re.I,
)


def _splits(sample: Sample, overall: Mapping[str, Test]) -> tuple[list[Split], dict[str, int]]:
    """The whole log first; where it does not look random, every value of every column."""
    weighted = _weighted(sample)
    devices = _devices(sample)
    factors = [factor for factor in sample.factors if factor.source not in devices]
    order = sorted(
        (factor for factor in factors if factor.name in overall),
        key=lambda factor: overall[factor.name].p,
    )
    whole = _judged(sample, _Part("all requests", "", "", np.ones(sample.rows, bool)), order, None)
    if whole.verdict in ("looks random", "crossed"):
        return [*weighted, whole], {whole.verdict: 1}
    parts: list[_Part] = []
    seen: dict[bytes, list[str]] = {}
    for factor in sample.factors:
        if not factor.candidate:
            continue
        for code, label in enumerate(factor.labels):
            if label in ("others", "nothing", "no"):
                continue
            rows = factor.codes == code
            counts = np.bincount(sample.model[rows], minlength=len(sample.names))
            if rows.sum() < FEWEST_ROWS or np.sum(counts >= FEWEST_OF_MODEL) < 2:
                continue
            where = factor.name if label == "yes" and " has " in factor.name else ""
            where = where or f"{factor.name} = {label}"
            key = np.packbits(rows).tobytes()
            if key in seen:
                seen[key].append(where)
                continue
            seen[key] = [where]
            parts.append(_Part(where, factor.source, label, rows))
    splits = [*weighted, whole]
    powers = [_power(sample, part, order, overall) for part in parts]
    for part, power, enough in zip(parts, powers, believable(powers), strict=True):
        judged = _judged(sample, part, order, power, enough)
        same = seen[np.packbits(part.rows).tobytes()][1:]
        splits.append(msgspec.structs.replace(judged, same=same))
    ranks = {"looks random": 0, "crossed": 1, "too few": 2, "not random": 3}
    splits.sort(key=lambda each: (ranks[each.verdict], -each.rows))
    return splits, dict(Counter(each.verdict for each in splits))


def _weighted(sample: Sample) -> list[Split]:
    """Whether a column is the probability that the model had: then 1 / p sums up to the number of
    rows for every model, whatever else a row holds."""
    chance = sample.propensity
    rows = np.isfinite(chance) & (chance > 0.0) & (chance < 1.0)
    if rows.sum() < FEWEST_ROWS:
        return []
    cluster, model, inverse = sample.cluster[rows], sample.model[rows], 1.0 / chance[rows]
    counts = np.bincount(model, minlength=len(sample.names))
    codes = np.flatnonzero(counts >= FEWEST_OF_MODEL)
    left = (model[:, None] == codes) * inverse[:, None] - 1.0
    values: dict[str, float] = {}
    for factor in sample.factors:
        right = np.hstack([np.ones((len(model), 1)), _indicators(factor.codes[rows])])
        scores = (left[:, :, None] * right[:, None, :]).reshape(len(model), -1)
        test = _around_zero(scores, cluster, 0.0)
        if test is not None:
            values[factor.name] = test.p
    sums = np.add.reduceat(left, starts(cluster), axis=0)
    level = SIZE / max(len(values), 1)
    z = float(special.ndtri(1.0 - level / 2.0) + special.ndtri(0.8))
    seen = z * float(np.sqrt((sums * sums).sum(axis=0)).max()) / len(model)
    corrected = dict(zip(values, holm(list(values.values())), strict=True))
    worst = min(corrected, key=corrected.__getitem__, default="")
    smallest = corrected.get(worst, 1.0)
    verdict: Verdict = "looks random" if seen <= LARGEST_ERROR else "too few"
    return [
        Split(
            where="rows with a propensity",
            column="",
            value="propensity",
            rows=int(rows.sum()),
            clusters=len(sums),
            shares=_shares(sample, counts),
            columns=len(values),
            p=smallest,
            worst=worst,
            power=None,
            detectable=min(seen, 1.0),
            sticky=sticky(model, cluster),
            verdict="not random" if smallest < SIZE else verdict if values else "too few",
        )
    ]


def _devices(sample: Sample) -> set[str]:
    """Columns that look as if they were what the split was made by: named so, and independent of
    every other column. What they say of the model is the split itself, no confounding."""
    named = {factor.source for factor in sample.factors if _DEVICES.search(factor.source)}
    found = set()
    for source in named:
        own = [factor for factor in sample.factors if factor.source == source]
        others = [factor for factor in sample.factors if factor.source not in named]
        tests = [
            independence(mine.codes, other.codes, sample.cluster)
            for mine in own
            for other in others
        ]
        values = [test.p for test in tests if test is not None]
        if values and min(holm(values)) >= SIZE:
            found.add(source)
    return found


def _power(
    sample: Sample, part: _Part, factors: Sequence[Factor], overall: Mapping[str, Test]
) -> float:
    """The probability that the test of a part says no, were it sent as the whole log is: that of
    the column which says no most often, with as few rows or users as here, and these shares."""
    shares = np.bincount(sample.model[part.rows], minlength=len(sample.names)) / part.rows.sum()
    elsewhere = np.bincount(sample.model, minlength=len(sample.names)) / sample.rows
    spread = float((1 - shares @ shares) / (1 - elsewhere @ elsewhere))
    size = min(float(part.rows.mean()), len(np.unique(sample.cluster[part.rows])) / sample.clusters)
    level = SIZE / max(len(factors), 1)
    power = 0.0
    for factor in factors:
        before = overall[factor.name]
        if factor.source != part.column:
            limit = stats.chi2.isf(level, before.df)
            chance = stats.ncx2.sf(limit, before.df, before.noncentrality * size * spread)
            power = max(power, float(chance))
    return power


def believable(powers: Sequence[float]) -> list[bool]:
    """Which parts may be called random: those with most power, as many as may pass wrongly with
    FALSE_ALARMS in all.

    >>> believable([0.99, 1.0, 0.97, 0.9])
    [True, True, True, False]
    """
    missed, result = 0.0, [False] * len(powers)
    for at in sorted(range(len(powers)), key=lambda each: -powers[each]):
        missed += 1.0 - powers[at]
        result[at] = missed <= FALSE_ALARMS
    return result


def _judged(
    sample: Sample, part: _Part, factors: Sequence[Factor], power: float | None, enough: bool = True
) -> Split:
    """Whether a part looks random. factors: in the order in which they are likely to say no; as
    soon as one does, the others are not asked. power: None for the whole log, which has nothing to
    be compared with. enough: whether the power is."""
    rows = part.rows
    cluster, split = sample.cluster[rows], sample.model[rows]
    counts = np.bincount(split, minlength=len(sample.names))
    level = SIZE / max(len(factors), 1)
    values: dict[str, float] = {}
    for factor in factors:
        test = independence(split, factor.codes[rows], cluster)
        if test is not None:
            values[factor.name] = test.p
            if test.p < level:
                break
    clusters = len(np.unique(cluster))
    corrected = dict(zip(values, holm(list(values.values())), strict=True))
    worst = min(corrected, key=corrected.__getitem__, default="")
    refused = bool(values) and min(values.values()) < level
    detectable = _detectable(split, cluster, level)
    if power is None:
        enough = clusters >= FEWEST_CLUSTERS and detectable <= LARGEST_DIFFERENCE
    verdict: Verdict = "not random" if refused else "looks random"
    if not refused and (not enough or not values):
        verdict = "too few"
    # Where every model has the same tasks, a column that goes with the model is a result.
    keys = {path: hashes[rows] for path, hashes in sample.keys.items()}
    asked = power is None or not refused
    found = crossed(sample.served[rows], keys, sample.fraction) if asked else None
    verdict = verdict if found is None else "crossed"
    return Split(
        where=part.where,
        column=part.column,
        value=part.value,
        rows=int(rows.sum()),
        clusters=clusters,
        shares=_shares(sample, counts),
        columns=len(values),
        p=corrected.get(worst, 1.0),
        worst=worst,
        power=power,
        detectable=detectable,
        sticky=sticky(split, cluster),
        verdict=verdict,
        crossed=found,
    )


def _shares(sample: Sample, counts: Ints) -> dict[str, float]:
    pairs = zip(sample.names, (counts / counts.sum()).tolist(), strict=True)
    return {name: share for name, share in pairs if share}


def _detectable(split: Ints, cluster: Ints, level: float) -> float:
    """The difference of a model's share between two halves of the rows that is seen with 80%."""
    indicator = (split == int(np.argmax(np.bincount(split)))).astype(np.float64)
    errors = indicator - indicator.mean()
    sums = np.add.reduceat(errors, starts(cluster))
    z = float(special.ndtri(1.0 - level / 2.0) + special.ndtri(0.8))
    return min(1.0, 2.0 * z * math.sqrt(float(sums @ sums)) / len(split))
