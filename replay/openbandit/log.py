"""Open Bandit's files read strictly: BEHAVIOUR/CAMPAIGN/{CAMPAIGN.csv, item_context.csv}."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import pandas as pd

from equipoise.agent.features.values import listed, shown
from equipoise.replay.benchmarks.base import BenchmarkError, check, option
from equipoise.replay.benchmarks.reading.complete import ScaledFeatures, scaled
from equipoise.replay.benchmarks.reading.files import (
    TableFile,
    feature_names,
    identifiers,
    names_listed,
    read_table,
)
from equipoise.store.batches import Flags, Floats, Ints

_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class LoggedFeedback:
    """n rows of one logging policy over K items at P positions of a page.

    behaviour: the logging policy, "random" or "bts". items: K names. positions: P names.
    x: (n, d) user features, x_names: d names. affinity: (n, K) how close each user is to each
    item, (n, 0) where unknown. item_features: (K, q), item_names: q names.
    item: (n,) the item shown. position: (n,) where. propensity: (n,) the probability with which
    the logging policy showed this item at this position then. reward: (n,) 1 for a click, else 0.
    at: (n,) seconds since the epoch. exclusions: what was left out, and how many of each.

    Arrays are read-only. Raises BenchmarkError where shapes contradict each other.
    """

    behaviour: str
    items: tuple[str, ...]
    positions: tuple[str, ...]
    x_names: tuple[str, ...]
    x: Floats
    affinity: Floats
    item_names: tuple[str, ...]
    item_features: Floats
    item: Ints
    position: Ints
    propensity: Floats
    reward: Floats
    at: Floats
    exclusions: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n, k = len(self.item), len(self.items)
        shapes: dict[str, tuple[int, ...]] = {
            "x": (n, len(self.x_names)),
            "item_features": (k, len(self.item_names)),
            **dict.fromkeys(("item", "position", "propensity", "reward", "at"), (n,)),
            "affinity": (n, k if self.affinity.ndim == 2 and self.affinity.shape[1] else 0),
        }
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise BenchmarkError(
                    f"{name} has shape {getattr(self, name).shape}, must be {shape}"
                )
        for declared in fields(self):
            value = getattr(self, declared.name)
            if isinstance(value, np.ndarray):
                value = value.view()
                value.flags.writeable = False
                object.__setattr__(self, declared.name, value)

    def __len__(self) -> int:
        return len(self.item)

    @property
    def position_counts(self) -> Ints:
        """(P,) rows at each position."""
        return np.bincount(self.position, minlength=len(self.positions))

    @property
    def position_shares(self) -> Floats:
        """(P,) share of the rows at each position."""
        return np.asarray(self.position_counts / len(self))

    @property
    def is_uniform(self) -> bool:
        """Whether every item was always equally likely, which rejection replay rests on."""
        return bool(np.all(np.abs(self.propensity * len(self.items) - 1.0) <= _ROUNDING))

    def select(self, rows: Flags | Ints, propensity: Floats | None = None) -> LoggedFeedback:
        """Some rows, with other propensities where `propensity` (of those rows) is given."""
        columns = ("x", "affinity", "item", "position", "reward", "at")
        picked = {name: getattr(self, name)[rows] for name in columns}
        chosen = self.propensity[rows] if propensity is None else propensity
        return replace(self, propensity=chosen, **picked)


BEHAVIOURS = ("random", "bts")
"""Uniformly random, and Bernoulli Thompson sampling, the order in which logs are reported."""

_ITEMS = "item_context.csv"
_REQUIRED = ("timestamp", "item_id", "position", "click", "propensity_score")
_USER = "user_feature_"
_AFFINITY = "user-item_affinity_"
_ITEM_FEATURE = "item_feature_"
_MOST_LEVELS = 50
_MOST_POSITIONS = 20


@dataclass(frozen=True, slots=True)
class LogOptions:
    """Which log to read."""

    behaviour: str = option(
        "random", "the logging policy: uniform, or Thompson sampling", choices=BEHAVIOURS
    )

    def __post_init__(self) -> None:
        check(self)


def read_log(path: Path, behaviour: str = "random") -> LoggedFeedback:
    """The log of one behaviour. path: as for `campaign_folders`.

    Rows without a click value are left out and counted, as are features with one value or with
    more than 50 levels. Everything else that is missing, not a number, out of range or unknown
    is refused. Raises BenchmarkError naming file, row, field, value and limit.
    """
    try:
        LogOptions(behaviour)
    except ValueError as error:
        raise BenchmarkError(str(error)) from None
    folders = campaign_folders(path)
    if behaviour not in folders:
        raise BenchmarkError(f"{path} holds no {behaviour}; it has: {', '.join(folders)}")
    folder = folders[behaviour]
    try:
        items_file = read_table(folder / _ITEMS)
        rows_file = read_table(folder / f"{folder.name}.csv")
    except OSError as error:
        reason = error.strerror or error
        raise BenchmarkError(f"cannot read {error.filename or folder}: {reason}") from error
    return _joined(behaviour, rows_file, items_file)


def campaign_folders(path: Path) -> dict[str, Path]:
    """behaviour -> its folder of one campaign.

    path: the folder that holds random/ and bts/ (or one of them); one of these two; a campaign's
    folder inside one; or ROOT/CAMPAIGN for ROOT/{random,bts}/CAMPAIGN, where there are several
    campaigns. Raises BenchmarkError.
    """
    for name in (path.name, path.parent.name):
        if name in BEHAVIOURS and path.is_dir():
            inside = name == path.parent.name and (path / _ITEMS).is_file()
            return {name: path if inside else _only_campaign(path)}
    folders = {name: path / name for name in BEHAVIOURS if (path / name).is_dir()}
    if folders:
        return {name: _only_campaign(folder) for name, folder in folders.items()}
    beside = {name: path.parent / name / path.name for name in BEHAVIOURS}
    folders = {name: folder for name, folder in beside.items() if (folder / _ITEMS).is_file()}
    if folders:
        return folders
    if not path.exists():
        raise BenchmarkError(f"{path} does not exist")
    raise BenchmarkError(f"{path} holds neither random/ nor bts/, must be the folder of the logs")


def _only_campaign(folder: Path) -> Path:
    campaigns = sorted(entry.parent for entry in folder.glob(f"*/{_ITEMS}"))
    if not campaigns:
        raise BenchmarkError(f"{folder} holds no CAMPAIGN/{_ITEMS}")
    if len(campaigns) > 1:
        names = listed(campaign.name for campaign in campaigns)
        raise BenchmarkError(
            f"{folder} holds {len(campaigns)} campaigns ({names}), name one:"
            f" {folder.parent / campaigns[0].name}"
        )
    return campaigns[0]


def _joined(behaviour: str, rows: TableFile, items: TableFile) -> LoggedFeedback:
    for file, needed in ((rows, _REQUIRED), (items, ("item_id",))):
        for name in needed:
            if name not in file.columns:
                has = names_listed(file.columns)
                raise BenchmarkError(f"{file.path}: column {name!r} is absent; it has: {has}")
    if not rows.table.num_rows:
        raise BenchmarkError(f"{rows.path} holds no rows, must be at least 1")
    names, order = _items(items)
    item = _shown_items(rows, names, items.path)
    position_names, position = _positions(rows)
    propensity = _propensities(rows)
    click = rows.numbers("click")
    rows.require("click", click, np.isnan(click) | (click == 0) | (click == 1), "0 or 1")
    affinity = _affinities(rows, items, order)
    users = _features(rows, _USER)
    about = _features(items, _ITEM_FEATURE)
    at = _seconds(rows)
    answered = ~np.isnan(click)
    if not answered.any():
        raise BenchmarkError(f"{rows.path}: click is empty in all {len(answered)} rows")
    unknown = int(np.count_nonzero(~answered))
    full = LoggedFeedback(
        behaviour=behaviour,
        items=identifiers(names, empty="item"),
        positions=position_names,
        x_names=users.kept.names,
        x=users.kept.values,
        affinity=affinity,
        item_names=about.kept.names,
        item_features=about.kept.values[order],
        item=item,
        position=position,
        propensity=propensity,
        reward=click,
        at=at,
        exclusions={
            **({"rows without a click value": unknown} if unknown else {}),
            **users.exclusions("user"),
            **about.exclusions("item"),
        },
    )
    return full.select(answered) if unknown else full


def _items(items: TableFile) -> tuple[list[str], Ints]:
    """Names of the items in their natural order, and the rows of the file they stand in."""
    ids = items.texts("item_id")
    if len(ids) < 2:
        raise BenchmarkError(f"{items.path} holds {len(ids)} items, must be at least 2")
    for name, count in Counter(ids).items():
        if count > 1:
            raise BenchmarkError(f"{items.path}: item_id {shown(name)} occurs twice")
    # In the order of the ids, so that the order of the file means nothing.
    order = sorted(range(len(ids)), key=lambda row: (len(ids[row]), ids[row]))
    return [ids[row] for row in order], np.array(order)


def _shown_items(rows: TableFile, names: Sequence[str], where: Path) -> Ints:
    place = {name: index for index, name in enumerate(names)}
    ids = rows.texts("item_id")
    for row, name in enumerate(ids, start=1):
        if name not in place:
            raise BenchmarkError(
                f"{rows.path}, row {row}: item_id is {shown(name)}, must be an item of {where}"
            )
    return np.array([place[name] for name in ids], dtype=np.int64)


def _positions(rows: TableFile) -> tuple[tuple[str, ...], Ints]:
    values = rows.numbers("position")
    with np.errstate(invalid="ignore"):
        whole = (values == np.floor(values)) & (values >= 1) & (values <= _MOST_POSITIONS)
    rows.require("position", values, whole, f"a whole number from 1 to {_MOST_POSITIONS}")
    levels, position = np.unique(values, return_inverse=True)
    return tuple(f"{level:g}" for level in levels), position.astype(np.int64)


def _propensities(rows: TableFile) -> Floats:
    values = rows.numbers("propensity_score")
    with np.errstate(invalid="ignore"):
        holds = (values > 0) & (values <= 1)
    rows.require("propensity_score", values, holds, "a number above 0, at most 1")
    return values


def _affinities(rows: TableFile, items: TableFile, order: Ints) -> Floats:
    """(n, K) affinities in the order of the items; (n, 0) where the file has none.

    The files number these columns by the rows of item_context.csv.
    """
    columns = [name for name in rows.columns if name.startswith(_AFFINITY)]
    if not columns:
        return np.zeros((rows.table.num_rows, 0))
    ids = items.texts("item_id")
    result = np.empty((rows.table.num_rows, len(ids)))
    for place, row in enumerate(order.tolist()):
        name = f"{_AFFINITY}{ids[row]}"
        if name not in columns:
            raise BenchmarkError(f"{rows.path}: column {name!r} is absent, others of its kind are")
        values = rows.numbers(name)
        rows.require(name, values, ~np.isnan(values), "a number")
        result[:, place] = values
    return result


def _seconds(rows: TableFile) -> Floats:
    texts = rows.texts("timestamp")
    times = pd.to_datetime(pd.Series(texts), format="ISO8601", utc=True, errors="coerce")
    if times.isna().any():
        row = int(np.argmax(times.isna()))
        raise BenchmarkError(
            f"{rows.path}, row {row + 1}: timestamp is {shown(texts[row])},"
            " must be a time as 2019-11-24 00:01:03+00:00"
        )
    seconds = (times - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(seconds=1)
    return np.asarray(seconds, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class _Features:
    """kept: the table. wide: names of features with too many levels."""

    kept: ScaledFeatures
    wide: tuple[str, ...]

    def exclusions(self, side: str) -> dict[str, int]:
        counted = self.kept.exclusions(side)
        if self.wide:
            names = listed(self.wide)
            counted[f"{side} features of over {_MOST_LEVELS} levels ({names})"] = len(self.wide)
        return counted


def _features(file: TableFile, prefix: str) -> _Features:
    """Numbers standardized; categories as indicators of all levels but the most frequent."""
    columns: dict[str, Floats] = {}
    indicators: set[str] = set()
    wide: list[str] = []
    for name in file.columns:
        if not name.startswith(prefix):
            continue
        if (numbers := _all_numbers(file, name)) is not None:
            columns[name] = numbers
            continue
        levels = Counter(file.texts(name))
        if len(levels) > _MOST_LEVELS:
            wide.append(name)
            continue
        for label, column in _indicators(name, file.texts(name), levels):
            columns[label] = column
            indicators.add(label)
    labels = dict(zip(columns, feature_names(columns), strict=True))
    table = scaled(
        {labels[name]: column for name, column in columns.items()},
        (file.table.num_rows,),
        {labels[name] for name in indicators},
    )
    return _Features(table, tuple(wide))


def _all_numbers(file: TableFile, name: str) -> Floats | None:
    """The column where every value is a number, else None: it holds categories."""
    try:
        values = file.numbers(name)
    except BenchmarkError:
        return None
    return None if np.isnan(values).any() else values


def _indicators(
    name: str, values: Sequence[str], levels: Counter[str]
) -> Iterator[tuple[str, Floats]]:
    """One indicator per level but the most frequent. Levels are hashes: told by their start."""
    frequent = min(levels, key=lambda level: (-levels[level], level))
    texts = np.array(values)
    for place, level in enumerate(sorted(levels)):
        if level != frequent or len(levels) == 1:
            yield f"{name}.{place}.{level[:8]}", (texts == level).astype(np.float64)
