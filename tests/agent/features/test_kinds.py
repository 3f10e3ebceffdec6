"""Each kind of feature: what it becomes, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from equipoise.agent.features import (
    Boolean,
    Category,
    FeatureError,
    FeatureSchema,
    Number,
    Text,
    Transform,
    Vector,
)
from equipoise.agent.features.schema import AnyFeature


def encoded(feature: AnyFeature, value: object) -> list[float]:
    transform = Transform(FeatureSchema(context=[feature]))
    row: list[float] = transform.context_rows([{feature.name: value}])[0].tolist()
    return row


def refusal(feature: AnyFeature, value: object) -> str:
    with pytest.raises(FeatureError) as caught:
        encoded(feature, value)
    (problem,) = caught.value.problems
    return str(problem)


@pytest.mark.parametrize(
    ("feature", "value", "expected"),
    [
        (Number(name="a"), 3, 3.0),
        (Number(name="a"), np.float32(0.5), 0.5),
        (Number(name="a"), np.int16(7), 7.0),
        (Number(name="a", offset=10, scale=4), 12, 0.5),
        (Number(name="a", log=True), 0, 0.0),
        (Number(name="a", log=True, offset=1, scale=2), math.e**3 - 1, 1.0),
        (Number(name="a", log=True, low=-0.5), -0.5, math.log(0.5)),
        (Number(name="a", low=0, high=1), 0, 0.0),
        (Number(name="a", low=0, high=1), 1, 1.0),
        (Boolean(name="a"), True, 1.0),
        (Boolean(name="a"), False, 0.0),
        (Boolean(name="a"), np.True_, 1.0),
    ],
)
def test_a_scalar_becomes_one_number(feature: AnyFeature, value: object, expected: float) -> None:
    assert encoded(feature, value) == [pytest.approx(expected, abs=1e-15)]


@pytest.mark.parametrize(
    ("feature", "value", "message"),
    [
        (Number(name="a"), True, "a: received true, expected a finite number"),
        (Number(name="a"), np.False_, "a: received false, expected a finite number"),
        (Number(name="a"), "3", "a: received '3', expected a finite number"),
        (Number(name="a"), math.nan, "a: received nan, expected a finite number"),
        (Number(name="a", low=0), -1, "a: received -1, expected a finite number of at least 0"),
        (Number(name="a", high=2), 3, "a: received 3, expected a finite number of at most 2"),
        (Number(name="a", low=0, high=1), 2.5, "a: received 2.5, expected a number from 0 to 1"),
        (Number(name="a", log=True), -0.1, "a: received -0.1, expected a finite number of at"),
        (Number(name="a"), [1.0], "a: received a list of 1, expected a finite number"),
        (Number(name="a"), 10**400, "a: received a number of 1329 bits, expected a finite"),
        (Boolean(name="a"), 1, "a: received 1, expected true or false"),
        (Boolean(name="a"), "true", "a: received 'true', expected true or false"),
        (Category(name="a", values=["x", "y"]), "z", "a: received 'z', expected one of 'x', 'y'"),
        (Category(name="a", values=["x", "y"]), 0, "a: received 0, expected one of 'x', 'y'"),
        (Category(name="a", values=["x"], other=True), 1, "a: received 1, expected text"),
        (Text(name="a", statistics=["words"]), b"x", "a: received an object of type bytes, exp"),
        (Vector(name="a", length=2), [1.0], "a: received a list of 1, expected a list of 2 fin"),
        (Vector(name="a", length=2), 1.0, "a: received 1, expected a list of 2 finite numbers"),
        (Vector(name="a", length=2), [1, math.inf], "a[1]: received inf, expected a finite num"),
        (Vector(name="a", length=2), [True, 1], "a[0]: received true, expected a finite number"),
        (Vector(name="a", length=2), np.array([1, np.nan]), "a[1]: received nan, expected a fi"),
        (Vector(name="a", length=2), ["1", "2"], "a[0]: received '1', expected a finite number"),
    ],
)
def test_a_refusal_names_feature_value_and_limit(
    feature: AnyFeature, value: object, message: str
) -> None:
    assert refusal(feature, value).startswith(message)


@pytest.mark.parametrize("value", [math.inf, -math.inf, 1e51, -1e51])
def test_no_number_can_spoil_a_sum_of_squares(value: float) -> None:
    assert "finite number" in refusal(Number(name="a"), value)
    assert "received" in refusal(Vector(name="a", length=1), [value])
    assert encoded(Number(name="a"), math.copysign(1e9, value)) == [math.copysign(1e9, value)]
    assert encoded(Number(name="a", high=1e50), 1e50) == [1e50]
    assert encoded(Number(name="a", limit=2e18), math.copysign(1.7e18, value)) == [
        math.copysign(1.7e18, value)
    ]


@pytest.mark.parametrize(
    ("feature", "value", "message"),
    [
        (Number(name="a", low=0), 1.7e12, "a: received 1700000000000, expected a finite number of"),
        (Number(name="a"), 1.1e9, "a: received 1100000000, expected a finite number within ±1e+09"),
        (Number(name="a", scale=10), 1.1e10, "a: received 11000000000, expected a finite number"),
        (Number(name="a", limit=5), -6, "a: received -6, expected a finite number within ±5;"),
        (Vector(name="a", length=2), [1, 1.7e18], "a[1]: received 1.7e+18, expected a number wi"),
        (Vector(name="a", length=2, limit=3), [4, 0], "a[0]: received 4, expected a number within"),
    ],
)
def test_a_number_beyond_its_limit_is_refused_with_field_value_and_limit(
    feature: AnyFeature, value: object, message: str
) -> None:
    assert refusal(feature, value).startswith(message)


def test_a_scale_moves_the_limit() -> None:
    assert encoded(Number(name="a", scale=10), 9e9) == [9e8]
    assert encoded(Number(name="a", offset=1.7e18, scale=1e9), 1.7e18 + 5e9) == [5.0]


@pytest.mark.parametrize(
    ("feature", "value", "columns"),
    [
        (Number(name="a", low=0, high=10, winsorize=True), 11, [10]),
        (Number(name="a", low=0, high=10, winsorize=True), -1e300, [0]),
        (Number(name="a", limit=5, scale=2, winsorize=True), -1e3, [-5]),
        (Number(name="a", log=True, winsorize=True), -1, [0]),
        (Number(name="a", winsorize=True), 1.7e18, [1e9]),
        (Vector(name="a", length=2, winsorize=True), [1e30, 1], [1e9, 1]),
    ],
)
def test_a_declared_feature_is_winsorized(
    feature: AnyFeature, value: object, columns: list[float]
) -> None:
    assert encoded(feature, value) == columns
    bad = [math.inf, 1.0] if isinstance(value, list) else math.inf
    assert ": received" in refusal(feature, bad)


def test_a_number_may_not_overflow_in_its_transform() -> None:
    assert "after offset and scale" in refusal(Number(name="a", scale=1e-9), 1e45)


def test_a_category_drops_its_first_value() -> None:
    plan = Category(name="plan", values=["free", "pro", "team"])
    assert [encoded(plan, value) for value in plan.values] == [[0, 0], [1, 0], [0, 1]]


def test_the_other_bucket_is_a_column_of_its_own() -> None:
    plan = Category(name="plan", values=["free", "pro"], other=True)
    assert plan.columns() == ["plan=pro", "plan=other"]
    assert encoded(plan, "gift") == [0, 1]
    assert encoded(plan, "pro") == [1, 0]
    assert encoded(plan, "free") == [0, 0]


@pytest.mark.parametrize("value", [[1, 2.5], (1, 2.5), np.array([1, 2.5]), [1.0, np.float32(2.5)]])
def test_a_vector_is_taken_as_it_is(value: object) -> None:
    assert encoded(Vector(name="v", length=2), value) == [1.0, 2.5]


@pytest.mark.parametrize("row", [{}, {"a": None}])
@pytest.mark.parametrize(
    "feature",
    [
        Number(name="a", low=5, missing=-0.5),
        Boolean(name="a", missing=-0.5),
        Category(name="a", values=["x", "y", "z"], missing=-0.5),
        Text(name="a", statistics=["words", "lines"], missing=-0.5),
        Vector(name="a", length=3, missing=-0.5),
    ],
)
def test_a_declared_missing_value_fills_every_column(
    feature: AnyFeature, row: dict[str, Any]
) -> None:
    transform = Transform(FeatureSchema(context=[feature]))
    assert transform.context_rows([row]).tolist() == [[-0.5] * len(feature.columns())]


def test_without_a_rule_a_missing_value_is_refused() -> None:
    transform = Transform(FeatureSchema(context=[Number(name="a")]))
    for row in ({}, {"a": None}):
        with pytest.raises(FeatureError, match="a: received nothing, expected a value"):
            transform.context_rows([row])


def test_nan_is_no_missing_value() -> None:
    assert "received nan" in refusal(Number(name="a", missing=0), math.nan)
