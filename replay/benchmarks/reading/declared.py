"""Columns of words as features: declared by what they hold, and read as the agent reads them."""

from __future__ import annotations

from collections import Counter

import numpy as np

from equipoise.agent.config.ingest import as_feature, as_text
from equipoise.agent.features import Boolean, Category, FeatureSchema, Text, Transform
from equipoise.agent.features.kinds import LONGEST_VALUE, STATISTICS
from equipoise.replay.benchmarks.reading.files import TableFile
from equipoise.store.batches import Floats

MOST_CATEGORIES = 20
"""A column with more different words is text."""

Words = Boolean | Category | Text


def declared(file: TableFile, column: str, name: str) -> Words | None:
    """The feature `name` that a column is, None for numbers.

    true and false are a boolean; up to MOST_CATEGORIES words, half of which occur again, are a
    category, its values in alphabetical order; everything else is a text, with all statistics.
    """
    if file.is_numeric(column):
        return None
    values = [value for value in file.values(column) if value not in (None, "")]
    if values and all(str(value).strip().lower() in ("true", "false") for value in values):
        return Boolean(name=name)
    words = sorted({word for value in values if (word := as_text(column, value))})
    if 2 <= len(words) <= min(MOST_CATEGORIES, len(values) // 2) and all(
        word.isprintable() and len(word) <= LONGEST_VALUE for word in words
    ):
        return Category(name=name, values=words)
    return Text(name=name, statistics=list(STATISTICS))


def encoded(file: TableFile, column: str, feature: Words) -> dict[str, Floats]:
    """The columns of a feature by name, each (n,), NaN where a cell is empty."""
    transform = Transform(FeatureSchema(context=[feature]))
    kind = type(feature).__name__
    left_out: Counter[str] = Counter()
    values = [as_feature(kind, column, value, left_out) for value in file.values(column)]
    known = np.array([value is not None for value in values], dtype=bool)
    rows = np.full((len(values), transform.d), np.nan)
    rows[known] = transform.context_rows([{feature.name: v} for v in values if v is not None])
    return dict(zip(transform.context_names, rows.T, strict=True))
