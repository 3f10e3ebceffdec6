"""The uniform of a decision is a function of key, experiment and number alone."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from equipoise.agent.decisions.uniforms import Uniforms, key_hash, new_key

KEY = bytes(range(32))


def test_any_order_and_any_batch_give_the_same_uniforms():
    whole = Uniforms(KEY, "a").of(0, 20_000).copy()
    for first, count in [(0, 1), (4095, 3), (4096, 1), (13_333, 5000), (7, 9), (19_999, 1)]:
        again = Uniforms(KEY, "a").of(first, count)
        assert (again == whole[first : first + count]).all()
    draws = Uniforms(KEY, "a")
    one_by_one = [draws.of(index, 1)[0] for index in range(9000)]
    assert (np.array(one_by_one) == whole[:9000]).all()
    assert draws.of(3, 2)[0] == whole[3]


def test_keys_and_experiments_have_streams_of_their_own():
    a = Uniforms(KEY, "a").of(0, 1000)
    assert not np.isin(a, Uniforms(KEY, "b").of(0, 1000)).any()
    assert not np.isin(a, Uniforms(bytes(32), "a").of(0, 1000)).any()


def test_uniforms_are_uniform():
    """Kolmogorov-Smirnov at level 1e-4 on a fixed stream."""
    uniforms = Uniforms(KEY, "a").of(0, 100_000)
    assert stats.kstest(uniforms, "uniform").pvalue > 1e-4
    assert uniforms.min() >= 0
    assert uniforms.max() < 1


def test_a_golden_value_so_that_old_logs_stay_auditable():
    assert Uniforms(KEY, "a").of(5, 1)[0] == 0.6440031050490842


def test_uniforms_cannot_be_written():
    with pytest.raises(ValueError, match="read-only"):
        Uniforms(KEY, "a").of(0, 4)[0] = 0.5


def test_a_key_of_another_length_is_refused():
    with pytest.raises(ValueError, match="31 bytes, expected 32"):
        Uniforms(KEY[1:], "a")


def test_key_hash_tells_keys_apart_without_giving_them_away():
    key = new_key()
    assert key_hash(key) != key_hash(KEY)
    assert key.hex() not in key_hash(key)
