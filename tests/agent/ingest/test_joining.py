"""What is joined does not depend on what came first, how often, or on a daemon that was killed."""

from __future__ import annotations

import itertools
import random
import sqlite3
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from equipoise.agent.ingest.arrivals import Arrival, Call, Decided, Rating, Within
from equipoise.agent.ingest.joining import PATIENCE, Ready
from equipoise.store.records import AttemptReport, Outcome
from tests.agent.ingest.arrived import (
    LONG,
    SETTLE,
    WAIT,
    call,
    finished,
    name,
    opened,
    rating,
    said,
)

STORIES: dict[str, tuple[Sequence[Arrival], list[tuple[str, str, Any]], dict[str, int]]] = {
    "a row, rated by its span": (
        [call(1), rating(0.7, span=name(1))],
        [("observations", name(1), 0.7)],
        {},
    ),
    "a row, rated by the id of its answer": (
        [call(1), rating(0.7, answer="answer-1-1")],
        [("observations", name(1), 0.7)],
        {},
    ),
    "two rows, each its own rating": (
        [call(1), call(2, 2), rating(0.1, span=name(1)), rating(0.2, answer="answer-2-2")],
        [("observations", name(1), 0.1), ("observations", name(2, 2), 0.2)],
        {},
    ),
    "an outcome, rated by its span": (
        [call(1, decision="d4"), rating(0.7, span=name(1))],
        [("outcomes", "d4", [1.0]), ("rewards", "d4", 0.7)],
        {},
    ),
    "a decision, rated by its own id": (
        [call(1, decision="d4"), rating(0.7, decision="d4")],
        [("outcomes", "d4", [1.0]), ("rewards", "d4", 0.7)],
        {},
    ),
    "the decision is named by the span around the call": (
        [call(2, parent=1), Decided(span=name(1), decision="d4"), rating(0.7, span=name(2))],
        [("outcomes", "d4", [1.0]), ("rewards", "d4", 0.7)],
        {},
    ),
    "something lies between the two": (
        [
            call(3, parent=2),
            Within(name(3), name(2)),
            Within(name(2), name(1)),
            Decided(span=name(1), decision="d4"),
        ],
        [("outcomes", "d4", [1.0])],
        {},
    ),
    "the span around the call is rated": (
        [call(2, parent=1), Decided(span=name(1), decision="d4"), rating(0.7, span=name(1))],
        [("outcomes", "d4", [1.0]), ("rewards", "d4", 0.7)],
        {},
    ),
    "a call within a call, the inner one rated": (
        [call(1), call(2, parent=1), rating(0.7, span=name(2))],
        [("observations", name(1), 0.7)],
        {"inner": 1},
    ),
    "one answer seen twice in a trace": (
        [
            call(1, answer="a", parent=7),
            call(2, answer="a", parent=7),
            Decided(span=name(7), decision="d4"),
            rating(0.7, answer="a"),
        ],
        [("outcomes", "d4", [1.0]), ("rewards", "d4", 0.7)],
        {"again": 1},
    ),
    "one answer seen twice, and one of the two names the decision": (
        [call(1, answer="a"), call(2, answer="a", decision="d4"), rating(0.7, answer="a")],
        [("outcomes", "d4", [1.0]), ("rewards", "d4", 0.7)],
        {"again": 1},
    ),
    "a failed attempt and one that served": (
        [
            call(1, decision="d4", failed=True, answer=None),
            call(2, decision="d4", served="small"),
            rating(0.7, span=name(1)),
        ],
        [("outcomes", "d4", [1.0]), ("rewards", "d4", 0.7)],
        {"failed": 1},
    ),
    "of two answers the last is what the user got": (
        [call(1, decision="d4", outputs=[1.0]), call(2, decision="d4", outputs=[2.0])],
        [("outcomes", "d4", [2.0])],
        {"superseded": 1},
    ),
    "the span itself has the reward": (
        [call(1, reward=0.3), call(2, 2, decision="d4", reward=0.4)],
        [("observations", name(1), 0.3), ("outcomes", "d4", 0.4)],
        {},
    ),
    "of two ratings that are there the last one given counts": (
        [call(1), rating(0.1, at=1.0, span=name(1)), rating(0.9, at=2.0, span=name(1))],
        [("observations", name(1), 0.9)],
        {"spare": 1},
    ),
}


@pytest.mark.parametrize("story", STORIES)
def test_no_order_of_arrival_changes_what_is_logged(story: str, tmp_path: Path) -> None:
    arrivals, expected, left_out = STORIES[story]
    for turn, order in enumerate(itertools.islice(itertools.permutations(arrivals), 12)):
        folder = tmp_path / str(turn)
        folder.mkdir()
        with opened(folder) as joining:
            for each in order:
                joining.note([each], now=0.0)
                assert joining.judge(now=1.0).left_out["spare"] == 0
            ready, counts = finished(joining, now=SETTLE)
            assert said(ready) == expected, order
            assert {key: count for key, count in counts.items() if count} == left_out, order
            assert finished(joining, now=SETTLE + 1.0)[0] == []
            assert joining.waiting() == {"calls": 0, "evaluations": 0}


def test_an_exporter_that_sends_again_changes_nothing(tmp_path: Path) -> None:
    arrivals: list[Arrival] = [call(1), call(2, 2, decision="d4"), rating(span=name(1))]
    with opened(tmp_path) as joining:
        assert joining.note(arrivals, 0.0) == {"calls": 2, "evaluations": 1}
        assert joining.note(arrivals, 1.0) == {"repeats": 3}
        ready, _ = finished(joining, SETTLE)
        assert len(ready) == 2
        assert joining.note(arrivals, SETTLE + 1.0) == {"repeats": 3}
        assert finished(joining, 3 * SETTLE)[0] == []
        # One that waits for the call around its own is the same when it is sent again.
        joining.note([call(4, 4, parent=3), rating(span=name(4, 4))], 4 * SETTLE)
        joining.judge(5 * SETTLE)
        joining.note([call(3, 4), rating(span=name(4, 4))], 5 * SETTLE)
        joining.judge(5 * SETTLE)
        assert joining.note([rating(span=name(4, 4))], 5 * SETTLE) == {"repeats": 1}
        ready, counts = finished(joining, 6 * SETTLE)
        assert said(ready) == [("observations", name(3, 4), 0.5)]
        assert counts["spare"] == 0


@pytest.mark.parametrize("killed", [False, True])
def test_what_lies_between_two_spans_survives_a_kill(killed: bool, tmp_path: Path) -> None:
    """An HTTP span lies between a call and the one around it, and between a call and the span that
    names its decision."""
    arrivals = [
        *(Within(name(3), name(2)), Within(name(2), name(1)), Within(name(1), "")),
        *(Within(name(6, 2), name(5, 2)), Within(name(5, 2), name(4, 2))),
        *(call(1, reward=0.1), call(3, parent=2, reward=0.2)),
        *(Decided(span=name(4, 2), decision="d4"), call(6, 2, parent=5, reward=0.3)),
    ]
    joining = opened(tmp_path)
    joining.note(arrivals, 0.0)
    if killed:  # nothing is closed
        joining = opened(tmp_path)
    ready, counts = finished(joining, SETTLE)
    assert said(ready) == [("observations", name(1), 0.1), ("outcomes", "d4", 0.3)]
    assert counts["inner"] == 1
    joining.judge(3 * PATIENCE * SETTLE)  # and nothing of it is kept for ever
    with sqlite3.connect(tmp_path / "log.db.spans") as file:
        assert file.execute("SELECT count(*) FROM parents").fetchone() == (0,)
    joining.close()


def test_no_more_parents_are_kept_than_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("equipoise.agent.ingest.joining.MOST_PARENTS", 10)
    with opened(tmp_path) as joining:
        joining.note([Within(name(span), name(span + 1)) for span in range(1, 40)], 0.0)
        joining.judge(1.0)
        joining.note([call(30, reward=0.5, parent=38), Decided(span=name(40), decision="d4")], 1.0)
        assert said(finished(joining, SETTLE + 1.0)[0]) == [("outcomes", "d4", 0.5)]
    with sqlite3.connect(tmp_path / "log.db.spans") as file:
        kept = file.execute("SELECT span FROM parents ORDER BY rowid").fetchall()
    assert kept == [(name(span),) for span in range(30, 40)]


def test_only_calls_that_happened_within_what_came_are_judged_again(tmp_path: Path) -> None:
    with opened(tmp_path) as joining:
        joining.note([call(span, parent=span + 100) for span in range(1, 50)], 0.0)
        finished(joining, PATIENCE * SETTLE)
        joining.note([Within(name(103), name(999)), Within(name(200), name(999))], 500.0)
        with sqlite3.connect(tmp_path / "log.db.spans") as file:
            new = file.execute("SELECT span FROM calls WHERE state = 'new'").fetchall()
        assert new == [(name(3),)]
        finished(joining, 500.0)  # whole as far as 999 now
        joining.note([Decided(span=name(999), decision="d4")], 501.0)
        assert said(finished(joining, 501.0)[0]) == [("outcomes", "d4", [1.0])]


def test_of_calls_in_a_circle_one_counts(tmp_path: Path) -> None:
    with opened(tmp_path) as joining:
        joining.note([call(1, parent=2, reward=0.1), call(2, parent=3, reward=0.2)], 0.0)
        joining.note([Within(name(3), name(1)), call(4, 4, parent=4, reward=0.4)], 0.0)
        joining.note([Within(name(5, 5), name(5, 5)), call(6, 5, parent=5, reward=0.6)], 0.0)
        ready, counts = finished(joining, SETTLE)
        rows = [name(1), name(4, 4), name(6, 5)]
        assert [about for _, about, _ in said(ready)] == rows
        assert counts["inner"] == 1


def test_a_clock_that_was_set_back_keeps_nothing_waiting(tmp_path: Path) -> None:
    day = 86_400.0
    with opened(tmp_path) as joining:
        joining.note([call(1, reward=0.5)], day)
    with opened(tmp_path) as joining:
        joining.judge(1.0)
        assert said(finished(joining, 1.0 + SETTLE)[0]) == [("observations", name(1), 0.5)]
        joining.note([call(2, 2, reward=0.5)], day)
        joining.judge(2.0)  # within one run too
        assert said(finished(joining, 2.0 + SETTLE)[0]) == [("observations", name(2, 2), 0.5)]


def test_what_was_noted_survives_and_what_was_not_finished_comes_again(tmp_path: Path) -> None:
    first = opened(tmp_path)
    first.note([call(1), rating(0.7, span=name(1)), call(2, 2, decision="d4")], 0.0)
    lost = [each.record for each in first.judge(SETTLE).ready + first.judge(SETTLE).ready]
    with opened(tmp_path) as second:  # the first was killed before it had logged anything
        ready, _ = finished(second, SETTLE)
    assert said(ready) == [("observations", name(1), 0.7), ("outcomes", "d4", [1.0])]
    assert all(each.record in lost for each in ready)
    first.close()


def test_an_answer_out_of_a_cache_counts_for_nobody_else(tmp_path: Path) -> None:
    """Two users get the same answer: the second one's is no trial of any model, and what that user
    thinks of it is not the first one's reward."""
    with opened(tmp_path) as joining:
        joining.note([call(1, 1, decision="d1", answer=LONG)], 0.0)
        joining.note([call(2, 2, decision="d2", answer=LONG), rating(0.1, span=name(2, 2))], 0.0)
        ready, counts = finished(joining, SETTLE)
        assert said(ready) == [
            ("outcomes", "d1", [1.0]),
            ("outcomes", "d2", None),
            ("rewards", "d2", 0.1),
        ]
        cached = next(each.record for each in ready if said([each])[0][1:] == ("d2", None))
        assert isinstance(cached, Outcome)
        assert cached.attempts == [AttemptReport(model="large", status="cached")]
        assert counts == Counter()
        # A row of the usage log out of a cache is nobody's trial either.
        joining.note([call(3, 3, answer=LONG), rating(0.2, span=name(3, 3))], SETTLE)
        ready, counts = finished(joining, 2 * SETTLE)
        assert (ready, counts["again"], counts["spare"]) == ([], 1, 1)


@pytest.mark.parametrize(
    ("answer", "first", "second", "same"),
    [
        ("chatcmpl-7", (1, {}), (1, {}), True),
        ("chatcmpl-7", (1, {}), (1, {"tokens": 8}), False),
        ("chatcmpl-7", (1, {}), (1, {"tokens": None}), True),
        ("chatcmpl-7", (1, {}), (1, {"served": "small"}), False),
        ("chatcmpl-7", (1, {}), (2, {}), False),
        (LONG, (1, {}), (1, {"tokens": 8, "provider": "azure"}), True),
        (LONG, (1, {}), (2, {}), True),
        (LONG, (1, {}), (2, {"provider": None}), True),
        (LONG, (1, {}), (2, {"provider": "azure"}), False),
        (LONG, (1, {}), (2, {"tokens": 8}), False),
        (LONG, (1, {}), (2, {"served": "small"}), False),
    ],
)
def test_an_id_alone_does_not_say_that_an_answer_was_there_before(
    answer: str, first: Any, second: Any, same: bool, tmp_path: Path
) -> None:
    """Ollama's response ids are numbers below 999: 2000 calls would have 999 answers."""
    facts = {"answer": answer, "tokens": 7, "provider": "openai", "reward": 0.5}
    with opened(tmp_path) as joining:
        joining.note([call(1, first[0], **facts)], 0.0)
        joining.note([call(2, second[0], **(facts | second[1]))], 0.0)
        ready, counts = finished(joining, SETTLE)
    assert (len(ready), counts["again"]) == ((1, 1) if same else (2, 0))


def test_a_rating_by_an_id_that_several_traces_have_is_nobodys(tmp_path: Path) -> None:
    with opened(tmp_path) as joining:
        joining.note([call(1, 1, decision="d1", answer="chatcmpl-7")], 0.0)
        joining.note([call(2, 2, decision="d2", answer="chatcmpl-7")], 0.0)
        joining.note([rating(0.9, answer="chatcmpl-7")], 0.0)
        joining.note([rating(0.2, answer="chatcmpl-7", span=name(2, 2))], 0.0)
        this = joining.judge(SETTLE)
        assert said(this.ready) == [
            ("outcomes", "d1", [1.0]),
            ("outcomes", "d2", [1.0]),
            ("rewards", "d2", 0.2),
        ]
        assert this.left_out["ambiguous"] == 1
        assert "several traces have that id" in this.refusals[0]
        assert joining.waiting()["evaluations"] == 1


def test_an_outcome_lists_the_attempts_of_its_request_in_their_order(tmp_path: Path) -> None:
    first = call(1, decision="d4", failed=True, answer=None)
    others = [call(2, decision="d4"), call(3, decision="d4", served="small", seconds=None)]
    with opened(tmp_path) as joining:
        joining.note([first], 0.0)
        assert finished(joining, SETTLE) == ([], Counter(failed=1))
        joining.note(others, 2 * SETTLE)  # a time-out may be longer than anything
        ready, counts = finished(joining, 3 * SETTLE)
        joining.note([call(4, decision="d4")], 3 * SETTLE)
        assert finished(joining, 4 * SETTLE) == ([], Counter(superseded=1))
    (outcome,) = (each.record for each in ready)
    assert isinstance(outcome, Outcome)
    assert outcome.attempts == [
        AttemptReport(model="large", status="failed", seconds=0.5),
        AttemptReport(model="large", status="discarded", seconds=0.5),
        AttemptReport(model="small", status="delivered"),
    ]
    assert counts == Counter(superseded=1)


@pytest.mark.parametrize("late", ["decided", "outer"])
def test_what_is_around_a_call_may_end_long_after_it(late: str, tmp_path: Path) -> None:
    around: Arrival = Decided(span=name(1), decision="d4") if late == "decided" else call(1)
    with opened(tmp_path) as joining:
        joining.note([call(3, parent=2), Within(name(3), name(2)), Within(name(2), name(1))], 0.0)
        assert finished(joining, SETTLE) == ([], Counter())
        joining.note([around], 5 * SETTLE)
        ready, counts = finished(joining, 6 * SETTLE)
        assert said(ready) == ([("outcomes", "d4", [1.0])] if late == "decided" else [])
        assert counts["inner"] == (late == "outer")


def test_a_call_waits_for_a_span_around_it_that_has_not_come(tmp_path: Path) -> None:
    """An exporter may take its time; the span of another service never comes."""
    with opened(tmp_path) as joining:
        joining.note([call(3, parent=2), Within(name(3), name(2)), rating(span=name(3))], 0.0)
        joining.note([call(4, 4, parent=1), rating(0.1, span=name(4, 4))], 0.0)
        joining.note([Within(name(1, 4), "")], 0.0)  # whole: it happened in a span of no decision
        assert said(finished(joining, SETTLE)[0]) == [("observations", name(4, 4), 0.1)]
        assert joining.waiting() == {"calls": 1, "evaluations": 1}
        assert finished(joining, PATIENCE * SETTLE - 1.0)[0] == []
        ready, _ = finished(joining, PATIENCE * SETTLE)
        assert said(ready) == [("observations", name(3), 0.5)]


def test_who_is_never_rated_is_counted_or_kept(tmp_path: Path) -> None:
    for keep in (False, True):
        folder = tmp_path / str(keep)
        folder.mkdir()
        with opened(folder, keep_unrated=keep) as joining:
            joining.note([call(1), rating(span=name(9)), rating(answer="nobody's")], 0.0)
            assert finished(joining, WAIT - 1.0) == ([], Counter())
            assert joining.waiting() == {"calls": 1, "evaluations": 2}
            this = joining.judge(WAIT)
            joining.finish(this.ready)
            records = [each.record for each in this.ready]
            assert [record.reward for record in records] == ([None] if keep else [])
            assert this.left_out["unrated"] == (0 if keep else 1)
            assert this.left_out["unmatched"] == 2
            assert joining.waiting() == {"calls": 0, "evaluations": 0}
            joining.note([rating(0.9, span=name(1))], WAIT)
            assert joining.judge(WAIT).left_out["spare" if keep else "late"] == 1
            joining.judge(4 * WAIT)  # nothing of it is kept for ever
            with sqlite3.connect(folder / "log.db.spans") as file:
                assert file.execute("SELECT count(*) FROM calls").fetchone() == (0,)
                assert file.execute("SELECT count(*) FROM ratings").fetchone() == (0,)


def test_a_row_that_cannot_be_one_says_why_once_it_is_rated(tmp_path: Path) -> None:
    with opened(tmp_path) as joining:
        joining.note([call(1, row=None, refusal="no words"), rating(span=name(1))], 0.0)
        this = joining.judge(SETTLE)
        this = this if this.refusals else joining.judge(SETTLE)
        assert (this.ready, this.refusals) == ([], ["no words"])
        assert this.left_out["refused"] == 1


def test_no_prompt_and_nobody_else_can_read_the_file(tmp_path: Path) -> None:
    with opened(tmp_path) as joining:
        joining.note([call(1)], 0.0)
        assert (tmp_path / "log.db.spans").stat().st_mode & 0o077 == 0


def test_any_mixture_is_logged_once_and_everything_is_accounted_for(tmp_path: Path) -> None:
    """Random traces, shuffled, cut into exports, some of them sent twice, with a restart between:
    no call is lost or logged twice."""
    draw = random.Random(3)
    for turn in range(4):
        folder = tmp_path / str(turn)
        folder.mkdir()
        arrivals: list[Arrival] = []
        for trace in range(1, 60):
            kind = draw.choice(("row", "decision", "around", "nested"))
            own = {"decision": f"d{trace}"} if kind == "decision" else {}
            arrivals.append(call(1, trace, parent=9 if kind == "around" else None, **own))
            if kind == "around":
                arrivals.append(Decided(span=name(9, trace), decision=f"d{trace}"))
            if kind == "nested":
                arrivals.append(call(2, trace, parent=1))
            if draw.random() < 0.8:
                by = draw.choice(({"span": name(1, trace)}, {"answer": f"answer-1-{trace}"}))
                arrivals.append(rating(trace / 100, **by))
        draw.shuffle(arrivals)
        ready: list[Ready] = []
        counts: Counter[str] = Counter()
        joining = opened(folder)
        for start in range(0, len(arrivals), 17):
            for _ in range(draw.choice((1, 1, 2))):
                joining.note(arrivals[start : start + 17], now=start / 100)
            if draw.random() < 0.3:
                joining.close()
                joining = opened(folder)
        for now in (11.0, 12.0, 13.0, WAIT + 20.0):
            some, left_out = finished(joining, now)
            ready += some
            counts += left_out
        joining.close()
        calls = [each for each in arrivals if isinstance(each, Call)]
        rated = {each.reward for each in arrivals if isinstance(each, Rating)}
        logged = [each for each in said(ready) if each[0] != "rewards"]
        assert len(logged) == len({each[:2] for each in logged})
        assert len(logged) + counts["inner"] + counts["unrated"] == len(calls)
        got = [each.record.reward for each in ready if each.record.reward is not None]
        assert sorted(got) == sorted(rated)
        for each in ready:
            record: Any = each.record
            trace = int(
                record.request_id.partition("-")[0]
                if each.what == "observations"
                else record.decision_id[1:],
                16 if each.what == "observations" else 10,
            )
            assert record.reward in (None, trace / 100)


def test_attempts_are_what_an_outcome_may_have(tmp_path: Path) -> None:
    """150 retries, and a clock that was wrong: what is over the limits is left out, and counted."""
    with opened(tmp_path) as joining:
        failed = {"decision": "d4", "failed": True, "answer": None}
        joining.note([call(span, seconds=float(span), **failed) for span in range(1, 151)], 0.0)
        joining.note([call(200, decision="d4", seconds=1.8e10)], 0.0)
        ready, counts = finished(joining, SETTLE)
    (outcome,) = (each.record for each in ready)
    assert isinstance(outcome, Outcome)
    assert msgspec.convert(msgspec.to_builtins(outcome), Outcome) == outcome
    assert outcome.attempts is not None
    assert [each.seconds for each in outcome.attempts] == [*map(float, range(52, 151)), None]
    assert counts["trimmed"] == 51 + 1


def test_what_waits_is_bounded_but_for_outcomes(tmp_path: Path) -> None:
    with opened(tmp_path, most=5) as joining:
        rows = [call(span, span) for span in range(1, 9)]
        assert joining.note(rows, 0.0) == {"calls": 5, "beyond": 3}
        assert joining.note(rows, 0.0) == {"repeats": 5, "beyond": 3}
        outcomes: list[Arrival] = [call(20, 20, decision="d1"), call(22, 21, parent=23)]
        outcomes += [Within(name(22, 21), name(23, 21)), Decided(span=name(23, 21), decision="d2")]
        assert joining.note(outcomes, 0.0) == {"calls": 2, "around": 1}
        ratings = [rating(answer=f"nobody's-{number}") for number in range(9)]
        assert joining.note(ratings, 0.0) == {"evaluations": 5, "beyond": 4}
        assert joining.waiting() == {"calls": 7, "evaluations": 5}
        assert {about for _, about, _ in said(finished(joining, SETTLE)[0])} == {"d1", "d2"}
        # Those of a decision, and of a call that waits for them, make room.
        about: list[Arrival] = [rating(0.1, decision="d1"), rating(0.2, span=name(22, 21))]
        assert joining.note([*about, rating(0.3, span=name(3, 3))], SETTLE) == {"evaluations": 3}
        ready = finished(joining, SETTLE)[0]
        assert said(ready) == [
            ("observations", name(3, 3), 0.3),
            ("rewards", "d1", 0.1),
            ("rewards", "d2", 0.2),
        ]
        assert joining.note(rows[6:], SETTLE) == {"calls": 1, "beyond": 1}
