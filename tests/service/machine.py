"""A stateful machine over the whole interface of a real daemon, beside a model of what is true.

python tests/service/machine.py --examples 200 --seed 1

Every step is one request, or something that happens to the daemon: a reload, a restart, kill -9.
The model holds what was acknowledged. All examples of a run share one store, each with names of
its own.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import traceback
from itertools import takewhile
from pathlib import Path
from typing import Any

from acknowledged import MODELS, PARTS, Model, World
from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from running import until

number = st.integers(0, 14)
small = st.integers(0, 1)


class Machine(RuleBasedStateMachine):
    """The rules. `world` is set by `run` and shared by all examples."""

    world: World
    most = 3
    """Disturbances an example may have: a start takes a second."""

    def __init__(self) -> None:
        super().__init__()
        self.world.example += 1
        self.model = self.world.model
        self.prefix = f"e{self.world.example}"
        self.disturbed = 0

    def _named(self) -> list[str]:
        return [name for name in self.model.decisions if name.startswith(f"{self.prefix}-")]

    def _count(self, step: str) -> None:
        self.model.steps[step] += 1

    def _body(self, index: int, words: int, routed: str) -> dict[str, Any]:
        name = f"{self.prefix}-{index}"
        return {"request_id": name, "routed": routed, "features": {"words": words}}

    @initialize(rows=st.lists(st.tuples(small, st.sampled_from(MODELS)), min_size=4, max_size=8))
    def begin(self, rows: list[tuple[int, str]]) -> None:
        """Something to repeat, to contradict and to tell outcomes of."""
        for index, (words, routed) in enumerate(rows):
            body = self._body(index, words, routed)
            answer = self.world.ask("POST", "/v1/decide", body)
            assert answer.status == 200, answer
            self.model.take(body, answer.json)

    @rule(index=number, words=small, routed=st.sampled_from(MODELS))
    def decide(self, index: int, words: int, routed: str) -> None:
        body = self._body(index, words, routed)
        asked = self.model.asked.get(body["request_id"])
        answer = self.world.ask("POST", "/v1/decide", body)
        if asked is not None and asked != body and not self.model.killed:
            self._count("conflicting repeat")
            assert answer.status == 409
            return
        self._count("decide" if asked is None else "repeat")
        assert answer.status == 200, answer
        self.model.take(body, answer.json)

    @rule(rows=st.lists(st.tuples(number, small, st.sampled_from(MODELS)), min_size=1, max_size=6))
    def decide_batch(self, rows: list[tuple[int, int, str]]) -> None:
        bodies = [self._body(*row) for row in rows]
        names = [body["request_id"] for body in bodies]
        answer = self.world.ask("POST", "/v1/decide/batch", {"requests": bodies})
        twice = len(set(names)) < len(names)
        other = any(self.model.asked.get(body["request_id"], body) != body for body in bodies)
        if (twice or other) and not self.model.killed:
            self._count("conflicting batch")
            assert answer.status == 409, answer
            return
        self._count("batch")
        assert answer.status == 200, answer
        for body, made in zip(bodies, answer.json["decisions"], strict=True):
            self.model.take(body, made)

    def _outcome(self, name: str, parts: dict[str, float], by_id: bool) -> dict[str, Any]:
        key = (
            {"decision_id": self.model.decisions[name]["decision_id"]}
            if by_id
            else {"request_id": name}
        )
        fields: dict[str, Any] = dict(key)
        for part, value in parts.items():
            if part == "reward":
                fields[part] = value
            else:
                fields[part] = {"seconds" if part == "outputs" else "errors": value}
        return fields

    parts = st.dictionaries(
        st.sampled_from(PARTS), st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=3
    )

    @precondition(_named)
    @rule(pick=number, parts=parts, by_id=st.booleans())
    def outcome(self, pick: int, parts: dict[str, float], by_id: bool) -> None:
        named = self._named()
        name = named[pick % len(named)]
        told = self.model.told(name, parts)
        answer = self.world.ask("POST", "/v1/outcomes", self._outcome(name, parts, by_id))
        self._count(f"outcome: {told}")
        if told == "conflict":
            assert answer.status == 409, answer
            return
        assert answer.status == 200, answer
        counts = answer.json["accepted"], answer.json["duplicates"], answer.json["late"]
        assert counts == ((1, 0, 0) if told == "accepted" else (0, 1, 0)), (parts, answer)
        if told == "accepted":
            self.model.keep(name, parts)

    @precondition(_named)
    @rule(rows=st.lists(st.tuples(number, parts, st.booleans()), min_size=1, max_size=5))
    def outcomes(self, rows: list[tuple[int, dict[str, float], bool]]) -> None:
        """A list, each row judged alone. A repeated name counts in the order of the rows: parts of
        one decision go in one after the other, names by id and by request_id apart."""
        named, seen = self._named(), set()
        bodies, expected = [], []
        for pick, parts, by_id in rows:
            name = named[pick % len(named)]
            if name in seen:
                continue  # rows of one decision in one list are another rule's
            seen.add(name)
            told = self.model.told(name, parts)
            bodies.append(self._outcome(name, parts, by_id))
            expected.append(told)
            if told == "accepted":
                self.model.keep(name, parts)
        bodies += [{"request_id": f"{self.prefix}-never", "reward": 1.0}]
        answer = self.world.ask("POST", "/v1/outcomes", bodies)
        self._count("outcomes in a list")
        assert answer.status == 200, answer
        statuses = {row["index"]: row["status"] for row in answer.json["rejected"]}
        conflicts = {row: 409 for row, told in enumerate(expected) if told == "conflict"}
        assert statuses == {**conflicts, len(expected): 404}
        assert answer.json["accepted"] == expected.count("accepted")
        assert answer.json["duplicates"] == expected.count("duplicate")

    @precondition(_named)
    @rule(pick=number, first=parts, second=parts)
    def parts_of_one_decision_in_one_list(
        self, pick: int, first: dict[str, float], second: dict[str, float]
    ) -> None:
        named = self._named()
        name = named[pick % len(named)]
        told = []
        for parts in (first, second):
            told.append(self.model.told(name, parts))
            if told[-1] == "accepted":
                self.model.keep(name, parts)
        bodies = [self._outcome(name, parts, by_id=True) for parts in (first, second)]
        answer = self.world.ask("POST", "/v1/outcomes", bodies)
        self._count("parts in one list")
        assert answer.status == 200, answer
        rejected = [row["index"] for row in answer.json["rejected"]]
        assert rejected == [row for row, what in enumerate(told) if what == "conflict"]
        assert answer.json["accepted"] == told.count("accepted")
        assert answer.json["duplicates"] == told.count("duplicate")

    @rule(wrong=st.sampled_from(["unknown", "range", "metric", "nothing", "json", "model"]))
    def refused(self, wrong: str) -> None:
        """What is not acceptable changes nothing; `rows_are_conserved` looks."""
        named = self._named()
        name = named[0] if named else f"{self.prefix}-never"
        body: Any = {
            "unknown": {"decision_id": "d999999999", "reward": 1.0},
            "range": {"request_id": name, "reward": 1.5},
            "metric": {"request_id": name, "metrics": {"erors": 1.0}},
            "nothing": {"reward": 1.0},
            "json": b'{"request_id": ',
            "model": {"request_id": name, "served": "huge"},
        }[wrong]
        answer = self.world.ask("POST", "/v1/outcomes", body)
        self._count(f"refused: {wrong}")
        assert answer.status in (400, 404, 422), answer
        assert answer.json["status"] == answer.status

    @rule(rows=st.lists(st.tuples(number, st.booleans(), st.booleans()), max_size=6))
    def observe(self, rows: list[tuple[int, bool, bool]]) -> None:
        lines, bad, repeated, fresh = [], [], 0, 0
        for place, (index, with_id, broken) in enumerate(rows):
            row: dict[str, Any] = {
                "routed": "small",
                "features": {"words": index},
                "outputs": {"seconds": 1.0},
                "reward": 2.0 if broken else 0.5,
            }
            name = f"{self.prefix}-o{index}"
            if with_id:
                row["request_id"] = name
            lines.append(json.dumps(row))
            if broken:
                # Outside the range; and under a known id it contradicts what is there.
                bad.append(place)
            elif with_id and name in self.model.observed:
                repeated += 1
            else:
                fresh += 1
                if with_id:
                    self.model.observed.add(name)
        before = set(self.model.observed)
        answer = self.world.ask("POST", "/v1/observations", "\n".join(lines).encode())
        self._count("observations")
        assert answer.status == 200, answer
        counted = answer.json
        assert (counted["rows"], counted["duplicates"]) == (fresh, repeated), (rows, counted)
        assert [row["index"] for row in counted["rejects"]] == bad
        assert before == self.model.observed
        self.model.rows += fresh

    @rule(rows=st.lists(st.tuples(small, st.sampled_from(MODELS), st.integers(0, 2)), max_size=5))
    def simulate(self, rows: list[tuple[int, str, int]]) -> None:
        lines, fresh, repeated, bad = [], 0, 0, []
        # A pair once in a body: who contradicts within one is told nothing today.
        rows = list(
            {(index, model): (index, model, seconds) for index, model, seconds in rows}.values()
        )
        for place, (index, model, seconds) in enumerate(rows):
            context = f"{self.prefix}-c{index}"
            row = {"context_id": context, "model": model, "features": {"words": index}}
            lines.append(json.dumps({**row, "outputs": {"seconds": float(seconds)}}))
            held = self.model.simulated.get((context, model))
            if held is None:
                self.model.simulated[context, model] = float(seconds)
                fresh += 1
            elif held == seconds:
                repeated += 1
            else:
                bad.append(place)
        answer = self.world.ask("POST", "/v1/simulations", "\n".join(lines).encode())
        self._count("simulations")
        assert answer.status == 200, answer
        counted = answer.json
        assert [row["index"] for row in counted["rejects"]] == bad, (rows, counted)
        assert (counted["rows"], counted["duplicates"]) == (fresh, repeated), (rows, counted)
        self.model.rows += fresh

    @rule(
        by=st.sampled_from(["pause", "resume", "resume", "budget", "budget"]),
        reason=st.sampled_from(["", "a release"]),
        more=st.none() | st.integers(0, 5),
    )
    def operate(self, by: str, reason: str, more: int | None) -> None:
        if by == "budget":
            self._budget(more)
        else:
            self._pause(by, reason)

    def _pause(self, by: str, reason: str) -> None:
        answer = self.world.ask("POST", f"/v1/{by}", {"reason": reason})
        self._count(by)
        assert answer.status == 200, answer
        self.model.paused = reason if by == "pause" else None

    def _budget(self, more: int | None) -> None:
        self.model.budget = None if more is None else self.model.randomized + more
        answer = self.world.ask("PUT", "/v1/budget", {"requests": self.model.budget})
        self._count("budget")
        assert answer.status == 200, answer
        assert answer.json["left"] == more

    @rule(path=st.sampled_from(["estimates", "checks", "recommendation", "forecast", "rule"]))
    def read(self, path: str) -> None:
        self._count(f"read {path}")
        if path == "rule":
            rule_id = self.world.ask("GET", "/readyz").json["rule_id"]
            assert self.world.ask("GET", f"/v1/rules/{rule_id}").json["rule_id"] == rule_id
            return
        answer = self.world.ask("GET", f"/v1/{path}")
        assert answer.status == 200, answer
        if path == "forecast":
            return
        assert answer.json["log_rows"] == self.model.rows
        if path == "estimates":
            told = answer.json
            assert told["decisions"] == len(self.model.decisions)
            assert told["randomized"] == self.model.randomized
            # Rows close in the order of decisions: the first without a reward holds up the rest.
            closed = takewhile(lambda known: "reward" in known, self.model.known.values())
            assert told["waiting"] == len(self.model.decisions) - sum(1 for _ in closed)

    @precondition(lambda self: self.disturbed < self.most)
    @rule(by=st.sampled_from(["switch", "reload", "mistake", "restart", "kill", "kill"]))
    def disturb(self, by: str) -> None:
        self.disturbed += 1
        if by == "switch":
            self._switch()
        elif by in ("restart", "kill"):
            self._count(by)
            self.world.again(by)
        else:
            self._count(by)
            self.world.reload(by == "reload")

    def _switch(self) -> None:
        path = self.world.folder / "log.db.kill"
        self.model.killed = not self.model.killed
        if self.model.killed:
            path.touch()
        else:
            path.unlink()
        self._count("kill switch")
        until(lambda: self._ready()["mode"]["kill_switch"] is self.model.killed)

    def _ready(self) -> Any:
        return self.world.ready().json

    @invariant()
    def rows_are_conserved(self) -> None:
        said, model = self._ready(), self.model
        assert said["log_rows"] == model.rows
        assert said["mode"]["paused"] is (model.paused is not None)
        assert said["mode"]["reason"] == (model.paused or "")
        budget = self.world.ask("GET", "/v1/budget").json
        assert (budget["requests"], budget["randomized"]) == (model.budget, model.randomized)

    def teardown(self) -> None:
        if self.world.failure is None and sys.exc_info()[0] is not None:
            # The first one: hypothesis plays an example again, and the store has gone on since.
            self.world.failure = traceback.format_exc()
        if self.model.killed:
            self._switch()


def run(
    folder: Path, examples: int, steps: int, seed: int, most: int = 3
) -> tuple[Model, list[str]]:
    """The model after so many examples over one store, and what was found wrong at the end.

    Raises what the first wrong answer raises. Nothing is shrunk: the store goes on.
    """
    world = World(folder)
    try:
        chosen = settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        )
        machine = type("Seeded", (Machine,), {"world": world, "most": most})
        try:
            run_state_machine_as_test(seeded(seed)(machine), settings=chosen)
        except Exception as error:
            raise AssertionError(f"{world.trace()}{world.failure}") from error
        return world.model, world.finish()
    finally:
        world.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model, found = run(Path(folder), chosen.examples, chosen.steps, chosen.seed)
    steps = ", ".join(f"{name} {count:,}" for name, count in model.steps.most_common())
    print(
        f"{chosen.examples} examples, {model.steps.total():,} steps: {len(model.decisions):,} "
        f"decisions, {model.rows:,} log rows, {len(found)} faults\n{steps}"
    )
    print("\n".join(found[:20]))
    raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
