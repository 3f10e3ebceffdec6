"""Spans and their evaluations, joined whatever comes first: kept in a file until they are whole.

A call ends, and its span is exported seconds later, before or after the span that it happened
within; its evaluation comes from somewhere else, minutes later or earlier. What arrives is noted as
it is, and a retry of an exporter changes nothing, for a span is noted once by its id. After
`settle_seconds`, when the spans around it have arrived, a call is judged:

- within another call (a framework's around a library's): the outer one counts;
- an answer that was there before counts once: the same call seen by two instrumentations, or
  somebody's answer out of a cache, which is no trial of the model that was drawn: that decision's
  outcome is that it was not delivered. Its id alone does not say so, for some servers draw ids of
  three digits: `same_answer`;
- of a decision, which its own span names or the one it happened within: an attempt of its outcome;
  of several that did not fail the last one is what the user got. A call that failed waits for one
  that did not, for retries may take longer than anything else;
- all others: rows of the usage log (OBS), as soon as their evaluation is there.

Prompts are not kept: features are columns of numbers already.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import msgspec

from equipoise.agent.ingest.arrivals import (
    Arrival,
    Call,
    Decided,
    Rating,
    Within,
    alike,
    same_answer,
    same_trace,
    trace_range,
    unique,
)
from equipoise.agent.ingest.span_file import open_span_file, transaction
from equipoise.store.records import AttemptReport, AttemptStatus, Observation, Outcome

_AT_ONCE = 500
"""Calls, or ratings, that are judged in one round."""
MOST_PARENTS = 1_000_000
"""Spans whose parents are noted, so that a call is found within whatever lies between: about
150 bytes each. A call whose parent was dropped waits as for one that has not come."""
PATIENCE = 20.0
"""Times `settle_seconds`: how long a call waits for a span around it that has not come, and that
may never come, such as another service's."""
_WAITING = ("new", "partial", "open")
_READ_AGAIN = (*_WAITING, "failed", "superseded")
"""States of calls that may still be said something of."""
_DEEPEST = 64
MOST_ATTEMPTS = 100
"""As many as `Outcome` takes; the last ones count."""
_DAMAGED = "a span that waited cannot be read any more: its row in the file is damaged"
_UNREADABLE = (TypeError, ValueError, msgspec.DecodeError)


@dataclass(frozen=True, slots=True)
class Ready:
    """A record that can be logged. what: "observations", "outcomes" or "rewards"; span, ratings:
    what it was made of."""

    what: str
    record: Observation | Outcome
    span: str = ""
    ratings: tuple[int, ...] = ()


@dataclass(slots=True)
class Round:
    """What can be logged now, and what was left out since the last round, by why. refusals: why
    calls are no rows, a few of them. more: whether another round has work to do."""

    ready: list[Ready] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    refusals: list[str] = field(default_factory=list)
    more: bool = False

    def refuse(self, why: str) -> None:
        if len(self.refusals) < 3:
            self.refusals.append(why)


class _Found(NamedTuple):
    span: str
    state: str
    decision: str | None
    parent: str | None
    answer: str | None


class _DamagedError(Exception):
    """The row of a call cannot be read."""


class Joining:
    """The file, for one process; its methods may be called from any thread.

    settle_seconds, wait_seconds: how long a call waits for the spans around it, and it and an
    evaluation for each other. most: calls, and evaluations, that wait at once. keep_unrated:
    whether rows without a reward count. safe: whether what was noted survives a power cut.
    put_aside: where a damaged file went, None where it was none.
    Raises sqlite3.Error where the file cannot be read or written.
    """

    def __init__(
        self,
        path: Path,
        settle_seconds: float,
        wait_seconds: float,
        *,
        most: int = 1_000_000,
        keep_unrated: bool = False,
        safe: bool = False,
    ) -> None:
        self._settle, self._wait = settle_seconds, wait_seconds
        self._keep_unrated = keep_unrated
        self._lock = threading.Lock()
        self._file, self.put_aside = open_span_file(path, safe=safe)
        self.most, self._counted = most, dict[str, int]()
        self._latest = float("inf")
        self._encode = msgspec.json.Encoder().encode
        self._decode = msgspec.json.Decoder(Call).decode

    def close(self) -> None:
        with self._lock:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def waiting(self) -> dict[str, int]:
        """How many calls and evaluations wait."""
        with self._lock:
            return self._count()

    def _count(self) -> dict[str, int]:
        counted = {}
        for kind, table in (("calls", "calls"), ("evaluations", "ratings")):
            query = f"SELECT count(*) FROM {table} WHERE state IN {_WAITING}"
            counted[kind] = self._file.execute(query).fetchone()[0]
        return counted

    def note(self, arrivals: Iterable[Arrival], now: float) -> Counter[str]:
        """Keep what has arrived, all or nothing; how many of each kind are new, how many were there
        before, and how many are "beyond" the most that may wait. What is known to be of a decision
        is kept all the same."""
        counts: Counter[str] = Counter()
        came: dict[str, None] = {}
        with self._lock, transaction(self._file):
            self._set_clock(now)
            waiting = self._counted = self._counted or self._count()
            # What is around a call comes first: it may name its decision.
            for each in sorted(arrivals, key=lambda each: isinstance(each, Call | Rating)):
                if isinstance(each, Within):
                    came[each.span] = None
                    parent = "" if each.parent == each.span else each.parent
                    self._file.execute(
                        "INSERT OR IGNORE INTO parents VALUES (?, ?, ?)", (each.span, parent, now)
                    )
                    continue
                if isinstance(each, Call):
                    values = (each.span, each.parent, each.answer, each.decision, now, each.ended)
                    noted = self._file.execute(
                        "INSERT OR IGNORE INTO calls VALUES (?, ?, ?, ?, ?, ?, 'new', ?, ?)",
                        (*values, self._encode(each), self._encode(alike(each)).decode()),
                    )
                    kind, table = "calls", "calls"
                    came[each.span] = None
                elif isinstance(each, Rating):
                    noted = self._file.execute(
                        "INSERT OR IGNORE INTO ratings"
                        " VALUES (NULL, ?, ?, ?, ?, ?, ?, 'new', NULL)",
                        (each.span, each.answer, each.decision, each.reward, each.at, now),
                    )
                    kind, table = "evaluations", "ratings"
                else:
                    noted = self._file.execute(
                        "INSERT OR IGNORE INTO decided VALUES (?, ?, ?)",
                        (each.span, each.decision, now),
                    )
                    kind = "around"
                    self._wake(each.span, None)
                    came[each.span] = None
                if not noted.rowcount:
                    kind = "repeats"
                elif not isinstance(each, Decided):
                    if waiting[kind] >= self.most and not self._passes(each):
                        query = f"DELETE FROM {table} WHERE rowid = ?"
                        self._file.execute(query, (noted.lastrowid,))
                        kind = "beyond"
                    else:
                        waiting[kind] += 1
                counts[kind] += 1
            # Calls that wait as rows are judged again where this is around them.
            self._file.executemany(
                "UPDATE calls INDEXED BY calls_by_parent SET state = 'new'"
                " WHERE parent = ? AND state IN ('open', 'partial')",
                ((span,) for span in came),
            )
        return counts

    def judge(self, now: float) -> Round:
        """Judge what has waited long enough. What is ready stays ready until it is `finished`."""
        this = Round()
        with self._lock, transaction(self._file):
            self._set_clock(now)
            self._counted = {}
            self._judge_calls(now, this)
            self._judge_ratings(this)
            self._expire(now, this)
        return this

    def finish(self, done: Sequence[Ready], refused: Sequence[Ready] = ()) -> None:
        """These were logged, were there before, or were refused for good."""
        with self._lock, transaction(self._file):
            for records, state in ((done, "done"), (refused, "refused")):
                for each in records:
                    for number in each.ratings:
                        self._set_rating(number, state)
                    if each.span:
                        self._set_call(each.span, state)

    def _passes(self, each: Call | Rating) -> bool:
        """Whether this does not wait for long: an outcome, or the rating of a call that waits."""
        if each.decision:
            return True
        if isinstance(each, Call):
            return self._around(each.span, each.parent)[1] is not None
        target = self._target(each.span, each.answer)
        return target is not None and bool(target.decision or target.state == "open")

    def _set_clock(self, now: float) -> None:
        """Where the clock was set back, nothing waits until it has caught up."""
        if now < self._latest:
            for table in ("calls", "decided", "parents", "ratings"):
                self._file.execute(f"UPDATE {table} SET came = ?1 WHERE came > ?1", (now,))
        self._latest = now

    def _judge_calls(self, now: float, this: Round) -> None:
        settled = self._file.execute(
            "SELECT span, parent, answer, decision, ended, came FROM calls WHERE state = 'new' AND"
            " came <= ?1 UNION ALL SELECT span, parent, answer, decision, ended, came FROM calls"
            " WHERE state = 'partial' AND came <= ?2 ORDER BY came LIMIT ?3",
            (now - self._settle, now - PATIENCE * self._settle, _AT_ONCE),
        ).fetchall()
        this.more = len(settled) == _AT_ONCE
        ready: dict[str, tuple[float, str]] = {}
        for row in settled:
            try:
                self._judge_call(row, ready, now, this)
            except _DamagedError:
                self._leave_out(row[0], "refused", this)
                this.refuse(_DAMAGED)
        for decision, (_, span) in ready.items():
            this.ready.append(self._outcome(decision, span, this))

    def _judge_call(
        self,
        row: tuple[Any, ...],
        ready: dict[str, tuple[float, str]],
        now: float,
        this: Round,
    ) -> None:
        span, parent, answer, decision, ended, came = row
        outer, within, top = self._around(span, parent)
        if top != parent:
            self._file.execute("UPDATE calls SET parent = ? WHERE span = ?", (top, span))
        if outer:
            self._leave_out(span, "inner", this)
            return
        decision = decision or within
        first = None if answer is None else self._first(span, answer)
        if first is not None:
            same = same_trace(span, first.span)
            if same and decision and first.decision is None and first.state in _WAITING:
                self._leave_out(first.span, "again", this)  # this one says more
                first = None
            elif decision is None or decision == first.decision or same:
                self._leave_out(span, "again", this)
                return
        if first is not None:
            attempt = _attempt(self._call(span), "cached", this)
            cached = Outcome(decision_id=decision, attempts=[attempt])
            self._file.execute("UPDATE calls SET decision = ? WHERE span = ?", (decision, span))
            this.ready.append(Ready("outcomes", cached, span))
            return
        call = self._call(span)
        if decision is None:
            if top is not None and now - came < PATIENCE * self._settle:
                self._set_call(span, "partial")
            elif call.reward is not None:
                self._log(span, call.reward, (), this)
            else:
                self._set_call(span, "open")
            return
        self._file.execute("UPDATE calls SET decision = ? WHERE span = ?", (decision, span))
        if call.failed:
            self._leave_out(span, "failed", this)
        elif self._delivered(decision):
            self._leave_out(span, "superseded", this)
        elif decision in ready:
            earlier, later = sorted((ready[decision], (ended, span)))
            self._leave_out(earlier[1], "superseded", this)
            ready[decision] = later
        else:
            ready[decision] = ended, span

    def _outcome(self, decision: str, span: str, this: Round) -> Ready:
        call = self._call(span)
        query = (
            "SELECT row, state FROM calls WHERE decision = ? AND span != ?"
            " AND state IN ('failed', 'superseded') AND row IS NOT NULL ORDER BY ended, rowid"
        )
        before = self._file.execute(query, (decision, span)).fetchall()
        attempts = []
        for row, state in before:
            try:
                earlier = self._decode(row)
            except _UNREADABLE:
                this.left_out["refused"] += 1
                this.refuse(_DAMAGED)
                continue
            status: AttemptStatus = "failed" if state == "failed" else "discarded"
            attempts.append(_attempt(earlier, status, this))
        attempts.append(_attempt(call, "delivered", this))
        this.left_out["trimmed"] += max(0, len(attempts) - MOST_ATTEMPTS)
        outcome = Outcome(
            decision_id=decision,
            attempts=attempts[-MOST_ATTEMPTS:],
            outputs=call.outputs,
            reward=call.reward,
        )
        return Ready("outcomes", outcome, span)

    def _judge_ratings(self, this: Round) -> None:
        new = self._file.execute(
            "SELECT id, span, answer, decision, reward, at FROM ratings WHERE state = 'new'"
            " ORDER BY at, id LIMIT ?",
            (_AT_ONCE,),
        ).fetchall()
        this.more |= len(new) == _AT_ONCE
        rows: dict[str, list[tuple[int, float]]] = {}
        for number, span, answer, decision, reward, _ in new:
            if not decision and self._ambiguous(span, answer):
                self._set_rating(number, "ambiguous")
                this.left_out["ambiguous"] += 1
                this.refuse("gen_ai.response.id of an evaluation: several traces have that id")
                continue
            target = self._target(span, answer)
            if target is None and not decision:
                self._set_rating(number, "open")
                continue
            decision = decision or (target and target.decision) or ""
            if decision:
                outcome = Outcome(decision_id=decision, reward=reward)
                this.ready.append(Ready("rewards", outcome, ratings=(number,)))
            elif target is not None and target.state == "open":
                rows.setdefault(target.span, []).append((number, reward))
            elif target is not None and target.state in _WAITING:
                # Woken when that call is judged.
                query = "UPDATE ratings SET state = 'open', about = ? WHERE id = ?"
                self._file.execute(query, (target.span, number))
            else:
                state = "late" if target is not None and target.state == "unrated" else "spare"
                self._set_rating(number, state)
                this.left_out[state] += 1
        for span, ratings in rows.items():
            # The last one that was given counts; they are in that order.
            numbers = tuple(number for number, _ in ratings)
            this.left_out["spare"] += len(numbers) - 1
            self._log(span, ratings[-1][1], numbers, this)

    def _log(self, span: str, reward: float | None, ratings: tuple[int, ...], this: Round) -> None:
        try:
            call = self._call(span)
        except _DamagedError:
            record, why = None, _DAMAGED
        else:
            record, why = call.row, call.refusal
        if record is None:
            self._leave_out(span, "refused", this)
            for number in ratings:
                self._set_rating(number, "refused")
            this.refuse(why)
            return
        row = msgspec.structs.replace(record, reward=reward)
        this.ready.append(Ready("observations", row, span, ratings))

    def _target(self, span: str, answer: str) -> _Found | None:
        """The call that a rating is about, None where it has not come: of calls within each other
        the outer one, of an answer that came twice in one trace the first."""
        found = None
        if span:
            found = self._find("span = ?", span)
            if found is None and (decision := self._decision_of(span)) is not None:
                return _Found(span, "done", decision, None, None)
        if found is None and answer:
            found = self._find("answer = ? AND state NOT IN ('inner', 'again')", answer)
            found = found or self._find("answer = ?", answer)
        for _ in range(_DEEPEST):
            if found is None or found.state not in ("inner", "again"):
                break
            if found.state == "inner":
                found = self._find("span = ?", found.parent or "")
                continue
            first = self._find(
                "answer = ? AND state NOT IN ('inner', 'again') AND span >= ? AND span < ?",
                found.answer or "",
                *trace_range(found.span),
            )
            if first is None:
                break  # somebody else's, out of a cache
            found = first
        return found

    def _expire(self, now: float, this: Round) -> None:
        old = now - self._wait
        waited = self._file.execute(
            "SELECT span FROM calls WHERE state = 'open' AND came <= ? LIMIT ?", (old, _AT_ONCE)
        ).fetchall()
        this.more |= len(waited) == _AT_ONCE
        for (span,) in waited:
            if self._keep_unrated:
                self._log(span, None, (), this)
            else:
                self._leave_out(span, "unrated", this)
        unmatched = self._file.execute(
            "UPDATE ratings SET state = 'unmatched' WHERE state = 'open' AND came <= ?", (old,)
        ).rowcount
        this.left_out["unmatched"] += unmatched
        # What is over is kept as long again, for whatever arrives twice.
        for table in ("calls", "ratings"):
            self._file.execute(
                f"DELETE FROM {table} WHERE state NOT IN {_WAITING} AND came <= ?",
                (old - self._wait,),
            )
        self._file.execute("DELETE FROM decided WHERE came <= ?", (old - self._wait,))
        # Judged calls know how far what is around them is known.
        self._file.execute(
            "DELETE FROM parents WHERE came < ?1 OR rowid <= (SELECT max(rowid) FROM parents) - ?2",
            (now - 2 * PATIENCE * max(self._settle, 1.0), MOST_PARENTS),
        )

    def _around(self, span: str, parent: str | None) -> tuple[bool, str | None, str | None]:
        """Whether a span happened within another call, or else the decision that it happened
        within; and how far what is around it is known: that call, the decision's span, the first
        span that has not come, or None where all have."""
        for _ in range(_DEEPEST):
            if not parent:
                break
            if parent == span:  # a circle, of which this one counts
                return False, None, None
            if self._find("span = ?", parent) is not None:
                circular = self._circular(span, parent)
                return not circular, None, None if circular else parent
            decision = self._decision_of(parent)
            if decision is not None:
                return False, decision, parent
            known = self._parent_of(parent)
            if known is None:
                return False, None, parent
            parent = known
        return False, None, None

    def _circular(self, span: str, outer: str) -> bool:
        parent: str | None = outer
        for _ in range(_DEEPEST):
            if not parent or parent == span:
                break
            found = self._find("span = ?", parent)
            parent = self._parent_of(parent) if found is None else found.parent
        return parent == span

    def _parent_of(self, span: str) -> str | None:
        query = "SELECT parent FROM parents WHERE span = ?"
        found = self._file.execute(query, (span,)).fetchone()
        return None if found is None else found[0]

    def _wake(self, span: str, answer: str | None) -> None:
        """Have the ratings that waited for this judged again."""
        query = "UPDATE ratings SET state = 'new' WHERE state = 'open' AND"
        self._file.execute(f"{query} span = ?", (span,))
        self._file.execute(f"{query} about = ?", (span,))
        if answer is not None:
            self._file.execute(f"{query} answer = ?", (answer,))

    def _first(self, span: str, answer: str) -> _Found | None:
        """An earlier call with the same answer."""
        low, high = trace_range(span)
        query = (
            "SELECT span, state, decision, parent, answer, alike FROM calls WHERE answer = ?1"
            " AND span != ?2 AND (?3 OR span >= ?4 AND span < ?5) AND (state = 'new' AND rowid <"
            " (SELECT rowid FROM calls WHERE span = ?2) OR state NOT IN ('new', 'inner', 'again'))"
            " ORDER BY rowid LIMIT ?6"
        )
        values = (answer, span, unique(answer), low, high, _AT_ONCE)
        own = self._file.execute("SELECT alike FROM calls WHERE span = ?", (span,)).fetchone()[0]
        for *found, other in self._file.execute(query, values).fetchall():
            if same_answer(answer, same_trace(span, found[0]), own, other):
                return _Found(*found)
        return None

    def _ambiguous(self, span: str, answer: str) -> bool:
        """Whether only its answer could say what a rating is about, and several traces have it."""
        if not answer or (span and (self._find("span = ?", span) or self._decision_of(span))):
            return False
        first = self._find("answer = ?", answer)
        if first is None:
            return False
        query = "SELECT 1 FROM calls WHERE answer = ? AND NOT (span >= ? AND span < ?) LIMIT 1"
        values = (answer, *trace_range(first.span))
        return self._file.execute(query, values).fetchone() is not None

    def _delivered(self, decision: str) -> bool:
        query = "SELECT 1 FROM calls WHERE decision = ? AND state = 'done'"
        return self._file.execute(query, (decision,)).fetchone() is not None

    def _decision_of(self, span: str) -> str | None:
        query = "SELECT decision FROM decided WHERE span = ?"
        found = self._file.execute(query, (span,)).fetchone()
        return None if found is None else found[0]

    def _find(self, where: str, *values: str) -> _Found | None:
        query = "SELECT span, state, decision, parent, answer FROM calls"
        row = self._file.execute(f"{query} WHERE {where} ORDER BY rowid", values).fetchone()
        return None if row is None else _Found(*row)

    def _call(self, span: str) -> Call:
        (row,) = self._file.execute("SELECT row FROM calls WHERE span = ?", (span,)).fetchone()
        try:
            return self._decode(row)
        except _UNREADABLE:
            raise _DamagedError from None

    def _leave_out(self, span: str, state: str, this: Round) -> None:
        self._set_call(span, state)
        this.left_out[state] += 1

    def _set_call(self, span: str, state: str) -> None:
        over = "" if state in _READ_AGAIN else ", row = NULL"
        query = f"UPDATE calls SET state = ?{over} WHERE span = ? RETURNING answer"
        for (answer,) in self._file.execute(query, (state, span)).fetchall():
            self._wake(span, answer)

    def _set_rating(self, number: int, state: str) -> None:
        self._file.execute("UPDATE ratings SET state = ? WHERE id = ?", (state, number))


def _attempt(call: Call, status: AttemptStatus, this: Round) -> AttemptReport:
    report = AttemptReport(model=call.served, status=status, seconds=call.seconds)
    if status == "cached":
        return msgspec.structs.replace(report, seconds=None)
    try:
        return msgspec.convert(msgspec.to_builtins(report), AttemptReport)
    except msgspec.ValidationError:  # a clock that was wrong
        this.left_out["trimmed"] += 1
        return msgspec.structs.replace(report, seconds=None)
