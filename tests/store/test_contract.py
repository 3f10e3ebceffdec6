"""The battery every store passes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from equipoise.store.batches import DecisionBatch, ExpiryBatch, ObservationBatch
from equipoise.store.contract import Store
from equipoise.store.errors import ContradictionError, SequenceError, StoreError
from equipoise.store.records import Alert, Era, RuleRecord

KINDS = ["decisions", "outcomes", "observations", "simulations", "expiries"]


def era(number: int = 0, **given: Any) -> Era:
    content = {"reason": "start", "models": ["a", "b"], "key_hash": "k", "schema_hash": "s"}
    return Era(**{"era": number, "opened_at": 1.5, **content, **given})


def rule(name: str = "r1", **given: Any) -> RuleRecord:
    return RuleRecord(**{"rule_id": name, "era": 0, "at": 2.0, "body": "{}", **given})


def alert(**given: Any) -> Alert:
    content = {"at": 3.0, "check": "drift", "status": "alarm", "sentence": "Rewards moved."}
    return Alert(**{**content, **given})


def test_a_new_store_is_empty(store: Store) -> None:
    assert (store.next_seq, store.decisions) == (0, 0)
    assert list(store.read()) == []
    assert store.restore() is None
    assert store.settings() == {}
    assert (store.eras(), store.rules(), store.alerts()) == ([], [], [])
    assert store.rule("r1") is None
    assert store.decision(0) is None
    assert store.outcome_parts(0) == []
    assert store.find_requests(["a"]) == {}
    assert store.find_observations(["a"]) == set()


@pytest.mark.parametrize("rows", [1, 2, 300])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_comes_back_bit_for_bit(
    store: Store, kind: str, rows: int, author: Any, rows_of: Any, log_of: Any
) -> None:
    batch = getattr(author, kind)(rows)
    assert store.append(batch) == 0
    assert store.next_seq == rows
    assert log_of(store) == rows_of(0, batch)


@pytest.mark.parametrize("mask", [False, True])
def test_a_mask_stays_a_mask_and_none_stays_none(store: Store, mask: bool, author: Any) -> None:
    store.append(author.decisions(5, mask=mask))
    (segment,) = store.read()
    assert isinstance(segment.batch, DecisionBatch)
    assert (segment.batch.eligible is not None) == mask


def test_seqs_are_consecutive_over_all_kinds(store: Store, author: Any) -> None:
    seqs = [store.append(getattr(author, kind)(3)) for kind in KINDS * 2]
    assert seqs == list(range(0, 30, 3))
    assert store.next_seq == 30
    assert store.decisions == 6


def test_an_empty_batch_changes_nothing(store: Store, author: Any) -> None:
    store.append(author.outcomes(2))
    assert store.append(author.decisions(0)) == 2
    assert store.append(author.observations(0)) == 2
    assert (store.next_seq, store.decisions) == (2, 0)


def test_vectors_of_no_length_and_of_other_lengths(
    store: Store, new_author: Any, log_of: Any, rows_of: Any
) -> None:
    wanted = []
    for features in (0, 3, 1):
        author = new_author(seed=features, features=features, outputs=features)
        batch = author.observations(2)
        wanted += rows_of(store.append(batch), batch)
    assert log_of(store) == wanted


def test_one_decision_segment_has_one_rule_and_one_era(store: Store, author: Any) -> None:
    laws = [("a", 0), ("a", 1), ("b", 1), ("b", 1), ("a", 1)]
    for name, number in laws:
        store.append(author.decisions(2, name, number))
    read = [
        (segment.batch.rule_id, segment.batch.era)
        for segment in store.read()
        if isinstance(segment.batch, DecisionBatch)
        for _ in range(len(segment.batch))
    ]
    assert read == [law for law in laws for _ in range(2)]


def test_any_window_is_a_slice_of_the_log(store: Store, author: Any, log_of: Any) -> None:
    for _ in range(12):
        store.append(author.anything(int(author.rng.integers(1, 6))))
    whole = log_of(store)
    assert [row[0] for row in whole] == list(range(store.next_seq))
    end = store.next_seq
    for since in range(-1, end + 2):
        for until in (None, since, since + 1, since + 7, end, end + 5):
            stop = end if until is None else max(until, 0)
            assert log_of(store, since, until) == whole[max(since, 0) : stop]


def test_read_ends_where_the_log_ended_at_the_call(store: Store, author: Any) -> None:
    store.append(author.outcomes(3))
    reading = store.read()
    store.append(author.outcomes(3))
    assert sum(len(segment.batch) for segment in reading) == 3


def test_appending_between_two_segments_disturbs_no_reading(
    store: Store, author: Any, log_of: Any
) -> None:
    for _ in range(10):
        store.append(author.anything(2))
    before = log_of(store)
    seen = []
    for segment in store.read():
        seen += list(range(segment.seq, segment.seq + len(segment.batch)))
        store.append(author.anything(1))
    assert seen == list(range(20))
    assert log_of(store, 0, 20) == before


@pytest.mark.parametrize(
    "numbers", [[1, 2, 3], [0, 1, 3], [0, 0, 1], [-1, 0, 1]], ids=["gap", "jump", "twice", "below"]
)
def test_decision_numbers_must_continue(store: Store, author: Any, numbers: list[int]) -> None:
    batch = dataclasses.replace(author.decisions(3), number=np.array(numbers))
    with pytest.raises(SequenceError, match=r"row \d of the decisions has number -?\d"):
        store.append(batch)
    assert (store.next_seq, store.decisions, list(store.read())) == (0, 0, [])


def test_requests_are_found_by_id(store: Store, author: Any) -> None:
    store.append(author.decisions(3, request_id=None))
    store.append(author.decisions(3, request_id=["a", "", "c"]))
    store.append(author.decisions(2, request_id=["", "d"]))
    assert store.find_requests(["d", "c", "a", "b", ""]) == {"a": 3, "c": 5, "d": 7}
    many = [f"absent-{i}" for i in range(1200)]
    assert store.find_requests([*many, "d"]) == {"d": 7}


@pytest.mark.parametrize("request_id", [["x", "b"], ["x", "x"]], ids=["known", "within"])
def test_a_request_id_has_one_decision(store: Store, author: Any, request_id: list[str]) -> None:
    store.append(author.decisions(2, request_id=["a", "b"]))
    with pytest.raises(ContradictionError, match=rf"request_id '{request_id[1]}' already"):
        store.append(author.decisions(2, request_id=request_id))
    assert (store.next_seq, store.decisions) == (2, 2)
    assert store.find_requests(["x", "a", "b"]) == {"a": 0, "b": 1}


def test_a_decision_is_found_by_number(store: Store, author: Any, rows_of: Any) -> None:
    batches = [author.decisions(n, f"rule-{n}", mask=n > 1) for n in (1, 3, 2)]
    for batch in batches:
        store.append(author.outcomes(2))
        store.append(batch)
    wanted = [row for batch in batches for row in rows_of(0, batch)]
    for number in range(6):
        found = store.decision(number)
        assert found is not None
        assert len(found) == 1
        assert rows_of(wanted[number][0], found) == [wanted[number]]
    assert store.decision(6) is None
    assert store.decision(-1) is None


def test_parts_of_an_outcome_come_in_log_order(store: Store, author: Any) -> None:
    store.append(author.decisions(4))
    store.append(author.outcomes(3, number=np.array([2, 1, 2]), attempt=np.array([1, 1, 2])))
    assert [int(part.attempt[0]) for part in store.outcome_parts(2)] == [1, 2]
    store.append(author.expiries(1))
    store.append(author.outcomes(2, number=np.array([0, 2]), attempt=np.array([1, 3])))
    assert [int(part.attempt[0]) for part in store.outcome_parts(2)] == [1, 2, 3]
    assert [len(part) for part in store.outcome_parts(2)] == [1, 1, 1]
    assert store.outcome_parts(3) == []


def test_settings_are_written_once(store: Store) -> None:
    store.freeze("schema", "[1]")
    store.freeze("schema", "[1]")
    store.freeze("key", "k")
    with pytest.raises(ContradictionError, match=r"setting schema is frozen as '\[1\]', got"):
        store.freeze("schema", "[2]")
    assert store.settings() == {"schema": "[1]", "key": "k"}


def test_records_are_kept_once(store: Store) -> None:
    for _ in range(2):
        for record in (era(1), era(0), rule("r2"), rule("r1", body="[]"), alert(), alert(at=1.0)):
            store.put(record)
    assert store.eras() == [era(0), era(1)]
    assert store.rules() == [rule("r2"), rule("r1", body="[]")]
    assert store.rule("r1") == rule("r1", body="[]")
    assert store.alerts() == [alert(), alert(at=1.0)]


def test_an_era_cannot_change(store: Store) -> None:
    store.put(era())
    with pytest.raises(ContradictionError, match=r"era 0 is kept with models \['a', 'b'\], got"):
        store.put(era(models=["b", "a"]))
    assert store.eras() == [era()]


def test_a_rule_cannot_change_but_may_be_frozen_again_later(store: Store) -> None:
    store.put(rule())
    store.put(rule(at=9.0))
    for other in (rule(body="[]"), rule(era=1)):
        with pytest.raises(ContradictionError, match="rule r1 is kept with another era or body"):
            store.put(other)
    assert store.rules() == [rule()]


def test_alerts_that_differ_anywhere_are_different_alerts(store: Store) -> None:
    several = [alert(), alert(status="warning"), alert(sentence="Other."), alert(check="sample")]
    for record in several:
        store.put(record)
    assert store.alerts() == several


def test_the_newest_checkpoint_is_restored(store: Store, author: Any) -> None:
    store.append(author.outcomes(10))
    for seq in (2, 4, 4, 10, 8):
        store.checkpoint(seq, b"state %d" % seq, at=seq / 2)
    newest = store.restore()
    assert newest is not None
    assert (newest.seq, newest.state, newest.at) == (8, b"state 8", 4.0)


def test_a_checkpoint_may_not_lie_beyond_the_log(store: Store, author: Any) -> None:
    store.append(author.outcomes(3))
    store.checkpoint(3, b"", at=0.0)
    for seq in (4, -1):
        with pytest.raises(SequenceError, match=rf"checkpoint at seq {seq}, the log ends at 3"):
            store.checkpoint(seq, b"", at=0.0)


def test_every_error_of_a_store_is_a_value_error() -> None:
    assert issubclass(StoreError, ValueError)
    assert issubclass(ContradictionError, StoreError)


def test_a_row_may_be_of_two_numbers_only(store: Store) -> None:
    store.append(ExpiryBatch(number=np.array([7, 0]), at=np.array([np.nan, 2.5])))
    (segment,) = store.read()
    assert isinstance(segment.batch, ExpiryBatch)
    assert segment.batch.number.tolist() == [7, 0]
    np.testing.assert_array_equal(segment.batch.at, [np.nan, 2.5])


def test_observations_are_found_by_their_request_ids(store: Store, author: Any) -> None:
    def observe(names: list[str] | None, rows: int) -> None:
        store.append(dataclasses.replace(author.observations(rows), request_id=names))

    observe(["a", "", "c"], 3)
    observe(None, 2)
    observe([f"n{number}" for number in range(1200)], 1200)
    store.append(author.decisions(1, request_id=["d"]))
    names = ["c", "", "a", "d", "e", *(f"n{number}" for number in range(2000))]
    assert store.find_observations(names) == {"a", "c", *(f"n{number}" for number in range(1200))}


def test_rows_are_found_whole_by_what_names_them(store: Store, author: Any) -> None:
    """The first of each name, wherever it lies, with its seq; each alone."""
    store.append(author.decisions(2))
    rows = author.observations(4)
    store.append(dataclasses.replace(rows, request_id=["a", "", "c", "a"]))
    store.append(dataclasses.replace(author.observations(2), request_id=["c", "e"]))
    found = store.observations(["e", "a", "c", "", "nobody"])
    assert {name: segment.seq for name, segment in found.items()} == {"a": 2, "c": 4, "e": 7}
    for name, row in (("a", 0), ("c", 2)):
        batch = found[name].batch
        assert isinstance(batch, ObservationBatch)
        assert len(batch) == 1
        np.testing.assert_array_equal(batch.x[0], rows.x[row])
        np.testing.assert_array_equal(batch.outputs[0], rows.outputs[row])
        assert batch.reward[0] == rows.reward[row]
    context, model = np.array([7, 7, 8, 7]), np.array([0, 1, 0, 0])
    first = store.append(
        dataclasses.replace(author.simulations(4), context=context, model=model, context_id=None)
    )
    asked = np.array([7, 8, 9, 7, 8]), np.array([0, 0, 0, 1, 1])
    replays = store.simulations(*asked)
    assert {pair: segment.seq - first for pair, segment in replays.items()} == {
        (7, 0): 0,
        (8, 0): 2,
        (7, 1): 1,
    }
    many = np.arange(2000)
    assert store.simulations(many, np.zeros(2000, dtype=np.int64)).keys() == {(7, 0), (8, 0)}
