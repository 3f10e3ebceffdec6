"""Declarations: refusals with every problem, canonical text, hashes."""

from __future__ import annotations

import math
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.agent.features import (
    Boolean,
    Category,
    FeatureSchema,
    Number,
    SchemaError,
    Text,
    Transform,
    Vector,
)
from equipoise.agent.features.schema import AnyFeature
from equipoise.agent.features.text import STATISTICS

NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9_.\-]{0,8}", fullmatch=True)
NUMBERS = st.floats(-1e6, 1e6)
COMMON: dict[str, st.SearchStrategy[Any]] = {"name": NAMES, "missing": st.none() | NUMBERS}
FEATURES: st.SearchStrategy[AnyFeature] = st.one_of(
    st.builds(
        Number,
        **COMMON,
        low=st.none() | st.floats(-0.5, 0),
        high=st.none() | st.integers(1, 9),
        offset=NUMBERS,
        scale=st.floats(1e-3, 1e3),
        log=st.booleans(),
    ),
    st.builds(Boolean, **COMMON),
    st.builds(
        Category,
        **COMMON,
        values=st.lists(st.sampled_from("abcdefg"), min_size=2, max_size=5, unique=True),
        other=st.booleans(),
    ),
    st.builds(
        Text,
        **COMMON,
        statistics=st.lists(st.sampled_from(sorted(STATISTICS)), min_size=1, unique=True),
        max_chars=st.integers(1, 10_000),
    ),
    st.builds(Vector, **COMMON, length=st.integers(1, 5)),
)


@st.composite
def schemas(draw: st.DrawFn) -> FeatureSchema:
    features = draw(st.lists(FEATURES, max_size=6, unique_by=lambda feature: feature.name))
    cut = draw(st.integers(0, len(features)))
    schema = FeatureSchema(context=features[:cut], outputs=features[cut:])
    columns = schema.context_columns() + schema.output_columns()
    if not columns:
        return schema
    pair = st.lists(st.sampled_from(columns), min_size=2, max_size=2)
    pairs = draw(st.lists(pair, max_size=3, unique_by=lambda names: tuple(sorted(names))))
    return FeatureSchema(context=schema.context, outputs=schema.outputs, interactions=pairs)


def problems(schema: FeatureSchema) -> list[str]:
    with pytest.raises(SchemaError) as caught:
        schema.checked()
    return caught.value.problems


@settings(deadline=None, max_examples=80)
@given(schemas())
def test_canonical_text_round_trips(schema: FeatureSchema) -> None:
    text = schema.to_json()
    again = FeatureSchema.from_json(text)
    assert again == schema
    assert again.to_json() == text
    assert again.schema_hash == schema.schema_hash
    assert Transform(again).phi_names == Transform(schema).phi_names


def _reversed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _reversed(value[key]) for key in reversed(value)}
    return [_reversed(item) for item in value] if isinstance(value, list) else value


@settings(deadline=None, max_examples=30)
@given(schemas())
def test_the_hash_ignores_the_order_of_keys(schema: FeatureSchema) -> None:
    shuffled = msgspec.json.encode(_reversed(msgspec.to_builtins(schema)))
    assert FeatureSchema.from_json(shuffled).schema_hash == schema.schema_hash


def test_whole_and_broken_numbers_hash_alike() -> None:
    assert (
        FeatureSchema(context=[Number(name="a", scale=2)]).schema_hash
        == FeatureSchema(context=[Number(name="a", scale=2.0)]).schema_hash
    )


def test_any_change_changes_the_hash() -> None:
    a, b, y = Number(name="a"), Boolean(name="b"), Number(name="y")
    variants = [
        FeatureSchema(context=[a, b], outputs=[y]),
        FeatureSchema(context=[b, a], outputs=[y]),
        FeatureSchema(context=[a, b, y]),
        FeatureSchema(context=[a, b], outputs=[y], interactions=[["a", "y"]]),
        FeatureSchema(context=[a, b], outputs=[y], interactions=[["y", "a"]]),
        FeatureSchema(context=[a, b], outputs=[Number(name="y", log=True)]),
        FeatureSchema(context=[a, b], outputs=[Number(name="y", missing=0)]),
        FeatureSchema(context=[a, b], outputs=[Number(name="y", low=0)]),
        FeatureSchema(context=[a, b], outputs=[Number(name="y", scale=1 + 1e-15)]),
        FeatureSchema(context=[a, b], outputs=[Vector(name="y", length=1)]),
        FeatureSchema(context=[a, b], outputs=[Text(name="y", statistics=["words"])]),
        FeatureSchema(context=[a, b], outputs=[Text(name="y", statistics=["lines"])]),
    ]
    hashes = [schema.schema_hash for schema in variants]
    assert len(set(hashes)) == len(variants)
    assert all(re.fullmatch("[0-9a-f]{16}", value) for value in hashes)


def test_what_rows_are_taken_is_no_part_of_the_hash() -> None:
    """It may change while an experiment runs, and stores of versions without it stay the same."""
    plain = FeatureSchema(context=[Number(name="a"), Vector(name="v", length=2)])
    limited = FeatureSchema(
        context=[Number(name="a", limit=5.0, winsorize=True), Vector(name="v", length=2, limit=3.0)]
    )
    assert plain.schema_hash == limited.schema_hash
    assert "limit" not in plain.to_json()
    assert "winsorize" not in plain.to_json()
    assert FeatureSchema.from_json(limited.to_json()) == limited


def test_the_hash_is_pinned() -> None:
    """Stores hold it: a change here makes every stored schema a foreign one."""
    schema = FeatureSchema.vectors(["a"], ["y"])
    assert schema.schema_hash == "7fe871bd49db9c08"


@pytest.mark.parametrize(
    ("feature", "part"),
    [
        (Number(name="a b"), "context[0].name: received 'a b', expected a letter"),
        (Number(name="a\n"), "context[0].name: received"),
        (Number(name=""), "context[0].name: received ''"),
        (Number(name="a", scale=0), "context[0].scale: received 0, expected a number above 0"),
        (Number(name="a", scale=math.nan), "context[0].scale: received nan"),
        (Number(name="a", offset=math.inf), "context[0].offset: received inf"),
        (Number(name="a", low=math.nan), "context[0].low: received nan"),
        (Number(name="a", high=math.inf), "context[0].high: received inf"),
        (Number(name="a", low=2, high=1), "context[0].high: received 1, expected a number above"),
        (Number(name="a", high=-1, log=True), "context[0].high: received -1, expected a number a"),
        (Number(name="a", low=-1, log=True), "context[0].low: received -1, expected a number ab"),
        (Number(name="a", missing=math.nan), "context[0].missing: received nan"),
        (Number(name="a", low="x"), "context[0].low: received 'x', expected a number"),  # type: ignore[arg-type]
        (Category(name="a", values=["x"]), "context[0].values: received a list of 1, expected 2"),
        (Category(name="a", values=["x", "x"]), "context[0].values: received 'x' twice"),
        (Category(name="a", values=["x", ""]), "context[0].values[1]: received ''"),
        (Category(name="a", values=["x", "\0"]), "context[0].values[1]: received '\\x00'"),
        (Category(name="a", values=["x", "other"], other=True), "context[0].values: received 'o"),
        (Text(name="a", statistics=[]), "context[0].statistics: received none"),
        (Text(name="a", statistics=["wordz"]), "names of statistics; did you mean 'words'?"),
        (Text(name="a", statistics=["words"] * 2), "context[0].statistics: received 'words' twi"),
        (Text(name="a", statistics=["words"], max_chars=0), "context[0].max_chars: received 0"),
        (Vector(name="a", length=0), "context[0].length: received 0, expected a whole number"),
        (Vector(name="a", length=5000), "context[0].length: received 5000, expected a whole numb"),
    ],
)
def test_a_wrong_feature_is_one_problem(feature: AnyFeature, part: str) -> None:
    (problem,) = problems(FeatureSchema(context=[feature]))
    assert part in problem


def test_columns_and_names_are_unique() -> None:
    same = FeatureSchema(context=[Number(name="a")], outputs=[Number(name="a")])
    assert "outputs: received 'a' twice" in problems(same)[0]
    clash = FeatureSchema(context=[Number(name="a.words"), Text(name="a", statistics=["words"])])
    assert "context: received 'a.words' twice" in problems(clash)[0]
    names = [Text(name="a", statistics=["words"]), Category(name="a", values=["x", "y"])]
    assert "each feature name once" in problems(FeatureSchema(context=names))[0]


def test_interactions_are_pairs_of_known_columns() -> None:
    schema = FeatureSchema(
        context=[Number(name="length")],
        outputs=[Number(name="price")],
        interactions=[["length", "prise"], ["length"], ["length", "price"], ["price", "length"]],
    )
    assert problems(schema) == [
        "interactions: received 'prise' in ['length', 'prise'], expected names of columns; "
        "did you mean 'price'?",
        "interactions: received ['length'], expected pairs of column names",
        "interactions: received ['price', 'length'] twice, expected each pair once; remove one",
    ]


def test_no_blame_for_what_rests_on_another_problem() -> None:
    schema = FeatureSchema(context=[Vector(name="v", length=0)], interactions=[["v[0]", "v[0]"]])
    assert len(problems(schema)) == 1


def test_the_number_of_columns_is_limited() -> None:
    wide = FeatureSchema(context=[Vector(name=name, length=600) for name in "ab"])
    assert problems(wide)[0].startswith("received 1201 columns, expected at most 1024")


@pytest.mark.parametrize("text", ["", "[" * 100_000, "3", '{"contexts": []}', b"\xff", "{}x"])
def test_damaged_text_is_refused(text: str | bytes) -> None:
    with pytest.raises(SchemaError):
        FeatureSchema.from_json(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "name", "context", "values", "low", "x"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=150)
@given(
    context=st.lists(
        st.dictionaries(
            st.sampled_from(["type", "name", "values", "length", "statistics", "scale", "low"]),
            st.sampled_from(["number", "category", "text", "vector", "a"]) | JSON,
        ),
        max_size=3,
    ),
    interactions=JSON,
)
def test_garbage_is_a_schema_or_a_schema_error(context: Any, interactions: Any) -> None:
    schema = FeatureSchema(context=context, interactions=interactions)
    found = ["a problem"]
    try:
        Transform(schema)
    except SchemaError as error:
        found = error.problems
    assert found
