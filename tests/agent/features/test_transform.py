"""Rows to arrays, arrays to phi."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

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
from equipoise.agent.features.values import shown

SCHEMA = FeatureSchema(
    context=[
        Number(name="length", low=0, scale=10),
        Boolean(name="signed_in", missing=0),
        Category(name="plan", values=["free", "pro"]),
        Text(name="prompt", statistics=["words"]),
        Vector(name="v", length=2),
    ],
    outputs=[Number(name="price"), Number(name="words", log=True)],
    interactions=[["price", "length"], ["length", "v[1]"], ["words", "words"]],
)
ROW = {"length": 20, "signed_in": True, "plan": "pro", "prompt": "", "v": [3.0, 4.0]}


@pytest.fixture(scope="module")
def transform() -> Transform:
    return Transform(SCHEMA)


def test_sizes_and_names(transform: Transform) -> None:
    context = ("length", "signed_in", "plan=pro", "prompt.words", "v[0]", "v[1]")
    assert (transform.d, transform.q, transform.p) == (6, 2, 12)
    assert transform.context_names == context
    assert transform.output_names == ("price", "words")
    interactions = ("price*length", "length*v[1]", "words*words")
    assert transform.phi_names == (*context, "price", "words", *interactions)


def test_named_rows_and_vectors_mix(transform: Transform) -> None:
    x = transform.context_rows([ROW, [2, 1, 1, 0, 3, 4], (2.0, 1, 1, 0, 3, 4), np.arange(6)])
    assert x.dtype == np.float64
    assert x.shape == (4, 6)
    assert x[0].tolist() == x[1].tolist() == x[2].tolist() == [2, 1, 1, 0, 3, 4]
    assert transform.output_rows([{"price": 0.5, "words": 0}]).tolist() == [[0.5, 0.0]]


def test_phi_by_hand(transform: Transform) -> None:
    x, y = np.array([[2.0, 1, 1, 0, 3, 4]]), np.array([[0.5, 7.0]])
    assert transform.phi(x, y).tolist() == [[2, 1, 1, 0, 3, 4, 0.5, 7, 0.5 * 2, 2 * 4, 49]]


@pytest.mark.parametrize("interactions", [[], SCHEMA.interactions])
def test_phi_of_a_row_is_its_own_alone_and_in_any_batch(interactions: list[list[str]]) -> None:
    schema = FeatureSchema(
        context=SCHEMA.context, outputs=SCHEMA.outputs, interactions=interactions
    )
    transform = Transform(schema)
    rng = np.random.default_rng(7)
    x, y = rng.normal(size=(5, 6)), rng.normal(size=(5, 2))
    phi = transform.phi(x, y)
    assert phi.shape == (5, transform.p - 1)
    assert phi[:, :8].tobytes() == np.hstack([x, y]).tobytes()
    alone = [transform.phi(x[at : at + 1], y[at : at + 1]) for at in range(5)]
    assert np.concatenate(alone).tobytes() == phi.tobytes()


@pytest.mark.parametrize("interactions", [[], SCHEMA.interactions])
def test_phi_is_a_new_array(interactions: list[list[str]]) -> None:
    schema = FeatureSchema(
        context=SCHEMA.context, outputs=SCHEMA.outputs, interactions=interactions
    )
    x, y = np.ones((2, 6)), np.ones((2, 2))
    Transform(schema).phi(x, y)[...] = 5.0
    assert (x == 1).all()
    assert (y == 1).all()


def test_unknown_outputs_stay_unknown(transform: Transform) -> None:
    phi = transform.phi(np.ones((1, 6)), np.full((1, 2), np.nan))
    assert np.flatnonzero(np.isnan(phi[0])).tolist() == [6, 7, 8, 10]


def test_no_features_at_all() -> None:
    transform = Transform(FeatureSchema())
    assert (transform.d, transform.q, transform.p, transform.phi_names) == (0, 0, 1, ())
    x, y = transform.context_rows([{}, {}, []]), transform.output_rows([{}] * 3)
    assert x.shape == y.shape == transform.phi(x, y).shape == (3, 0)
    assert transform.context_rows([]).shape == (0, 0)


def test_no_rows(transform: Transform) -> None:
    x, y = transform.context_rows([]), transform.output_rows([])
    assert x.shape == (0, 6)
    assert transform.phi(x, y).shape == (0, 11)
    assert transform.check_context(np.empty((0, 6))).shape == (0, 6)


def test_a_transform_is_frozen() -> None:
    schema = FeatureSchema.vectors(["a", "b"], [])
    transform = Transform(schema)
    schema.context.append(Number(name="c"))
    assert transform.schema == FeatureSchema.vectors(["a", "b"], [])
    assert transform.schema_hash == FeatureSchema.vectors(["a", "b"], []).schema_hash


def test_one_error_lists_the_problems_of_a_row(transform: Transform) -> None:
    row = {"length": -1, "signed_in": 1, "plan": "gold", "prompt": 5, "v": [1], "lenght": 2}
    with pytest.raises(FeatureError) as caught:
        transform.context_rows([ROW, row])
    error = caught.value
    assert (error.side, error.row, error.total, len(error.problems)) == ("context", 1, 6, 5)
    assert [problem.key for problem in error.problems] == [
        "length",
        "signed_in",
        "plan",
        "prompt",
        "v",
    ]
    assert str(error).startswith("context row 1: length: received -1, expected a finite number of")
    assert str(error).endswith("; and 1 more")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.row, again.problems) == (str(error), 1, error.problems)


def test_an_unknown_name_is_refused_with_the_nearest(transform: Transform) -> None:
    with pytest.raises(FeatureError, match=r"lenght: received 2, .* did you mean 'length'\?"):
        transform.context_rows([{**ROW, "lenght": 2}])
    with pytest.raises(FeatureError, match="known are: price, words"):
        transform.output_rows([{"price": 1, "words": 2, "temperature": None}])


def test_many_unknown_names_are_counted(transform: Transform) -> None:
    with pytest.raises(FeatureError) as caught:
        transform.context_rows([{**ROW, **{f"z{at}": 0 for at in range(10_000)}}])
    assert caught.value.total == 10_000
    assert len(str(caught.value)) < 1500


def test_a_long_value_is_cut_in_messages(transform: Transform) -> None:
    with pytest.raises(FeatureError) as caught:
        transform.context_rows([{**ROW, "plan": "p" * 10_000, "q" * 10_000: 1}])
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1.0, 2.0], "context row 0: received 2 numbers, expected 6 finite numbers (length, "),
        ([0, 0, 0, 0, 0, math.nan], "context row 0: v[1]: received nan, expected a finite number"),
        ([0, 0, True, 0, "x", 0], "plan=pro: received true, expected a finite number; v[0]: rec"),
        (np.zeros((2, 3)), "context row 0: received 2 numbers, expected 6 finite numbers"),
        (np.array(["a"] * 6), "context row 0: length: received 'a', expected a finite number"),
        (np.array(1.0), "context row 0: received an array of shape () and type float64, expected"),
        ("length", "context row 0: received 'length', expected named values, or 6 finite"),
        (None, "context row 0: received nothing, expected named values, or 6 finite numbers"),
    ],
)
def test_a_wrong_vector_is_refused(transform: Transform, row: Any, message: str) -> None:
    with pytest.raises(FeatureError) as caught:
        transform.context_rows([row])
    assert message in str(caught.value)


@pytest.mark.parametrize("rows", [None, 3, "row", ROW, iter([ROW])])
def test_rows_are_a_sequence(transform: Transform, rows: Any) -> None:
    with pytest.raises(FeatureError, match="expected a list of rows"):
        transform.context_rows(rows)


def test_a_sound_array_is_not_copied(transform: Transform) -> None:
    x = np.random.default_rng(0).normal(size=(9, 6))
    assert transform.check_context(x) is x
    assert transform.context_rows(x) is x
    assert transform.check_context(x.astype(np.float32)).dtype == np.float64
    assert transform.check_context(np.asfortranarray(x)[::2]).tolist() == x[::2].tolist()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1.5e9, -1e200, 1e300])
def test_a_wrong_array_is_refused_with_row_name_and_value(
    transform: Transform, value: float
) -> None:
    x = np.zeros((5, 6))
    x[3, 4] = value
    with pytest.raises(FeatureError) as caught:
        transform.check_context(x)
    assert str(caught.value).startswith(f"context row 3: v[0]: received {shown(value)}, expected ")


def test_the_largest_numbers_pass(transform: Transform) -> None:
    x = np.full((5, 6), -1e9)
    assert transform.check_context(x) is x


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(6),
        np.zeros((2, 5)),
        np.zeros((2, 6), dtype=bool),
        np.zeros((2, 6), dtype=complex),
        np.zeros((2, 6), dtype=object),
        np.full((2, 6), "1"),
        np.full((2, 6), 2, dtype=np.longdouble) ** 5000,
        [[0.0] * 6],
        None,
    ],
)
def test_an_array_of_another_shape_or_type_is_refused(transform: Transform, array: Any) -> None:
    with pytest.raises(FeatureError, match=r"expected an array \(n, 6\)"):
        transform.check_context(array)


def test_absent_outputs_are_rows_of_nan(transform: Transform) -> None:
    y = np.array([[1.0, 2.0], [np.nan, np.nan]])
    assert transform.check_outputs(y, absent=True) is y
    with pytest.raises(FeatureError, match="outputs row 1: price: received nan"):
        transform.check_outputs(y)
    y[1, 0] = 3.0
    with pytest.raises(FeatureError, match="outputs row 1: words: received nan"):
        transform.check_outputs(y, absent=True)


VALUES: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(10**400), 10**400),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=3),
    st.sampled_from(["free", "pro", "\ud800", 1 + 2j, object(), int, np.float32("nan")]),
    st.lists(st.floats() | st.integers() | st.text(max_size=2), max_size=7),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
    st.builds(np.full, st.sampled_from([0, 1, 2, 6, (2, 2)]), st.floats() | st.booleans()),
)
KEYS = st.sampled_from([*ROW, "price", ""]) | VALUES.filter(
    lambda value: isinstance(value, str | int | float | bytes | None)
)


@settings(deadline=None, max_examples=300)
@example([{**ROW, "length": 10**5000}])
@given(st.lists(st.dictionaries(KEYS, VALUES, max_size=7) | VALUES, max_size=3) | VALUES)
def test_garbage_is_refused_by_name(rows: Any) -> None:
    """Any object whatever gives finite numbers or a FeatureError that can be shown."""
    transform = Transform(SCHEMA)
    try:
        x = transform.context_rows(rows)
    except FeatureError as error:
        refusal = str(error)
    else:
        refusal = ""
        assert x.shape[1] == transform.d
        assert np.isfinite(x).all()
    assert len(refusal) < 3000


@settings(deadline=None, max_examples=100)
@given(
    length=st.floats(0, 1e6) | st.integers(0, 10**9),
    plan=st.sampled_from(["free", "pro"]),
    prompt=st.text(max_size=20),
    v=st.lists(st.floats(-1e9, 1e9), min_size=2, max_size=2),
)
def test_a_row_by_name_is_the_row_it_becomes(
    length: float, plan: str, prompt: str, v: list[float]
) -> None:
    transform = Transform(SCHEMA)
    named = {"length": length, "signed_in": False, "plan": plan, "prompt": prompt, "v": v}
    x = transform.context_rows([named])
    assert transform.context_rows(x.tolist()).tobytes() == x.tobytes()
    assert transform.check_context(x).tobytes() == x.tobytes()
    backwards = dict(reversed(named.items()))
    assert transform.context_rows([backwards]).tobytes() == x.tobytes()
